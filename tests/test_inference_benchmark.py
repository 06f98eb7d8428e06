"""benchmarks/inference.py: the straightforward way gives masks for whole patients, black slices included."""

import numpy as np
from tiny_models import tiny_model

from benchmarks.inference import straightforward
from modeling import BrainMRIImageProcessor


def test_slices_without_flair_are_empty_and_the_others_reach_the_model():
    model = tiny_model("unet-5level").eval()
    model.head.bias.data.fill_(50)  # every pixel it sees is lesion
    processor = BrainMRIImageProcessor(size_divisor=model.config.size_divisor)
    slices = np.random.default_rng(0).integers(1, 255, (3, 48, 40, 3), dtype=np.uint8)
    slices[0, ..., 1] = 0  # no FLAIR, although the other channels hold noise
    mask = straightforward(model, processor, slices)
    assert mask.shape == (3, 48, 40)
    assert not mask[0].any()
    assert mask[1:].all()
