"""benchmarks/inference.py: masks of whole patients, black slices included, and what is printed of their Dice."""

import argparse

import numpy as np
from PIL import Image
from tiny_models import tiny_model

from benchmarks.inference import OPTIONS, compare_patients, straightforward
from hub_dataset.loading import load_splits
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


def test_a_patient_without_a_lesion_has_no_part_in_the_mean(phantom_dataset_dir, capsys):
    model = tiny_model("unet-5level").eval()
    model.head.bias.data.fill_(-50)  # nothing is lesion
    processor = BrainMRIImageProcessor(size_divisor=model.config.size_divisor)
    split = load_splits(str(phantom_dataset_dir))["validation"]
    healthy, black = split["patient_id"][0], Image.new("L", (64, 64))
    split = split.map(
        lambda row: {"mask": black if row["patient_id"] == healthy else row["mask"]}, features=split.features
    )
    compare_patients(argparse.Namespace(patients=2, split="validation"), split, model, model, None, processor)
    rows = [line.split()[-2:] for line in capsys.readouterr().out.splitlines()[3:]]
    assert rows == [["0.0000", "+0.0000"]] * (2 + len(OPTIONS)), "of the other patient, whose lesion is missed"
