"""The columns that training and evaluation need, and rows of made-up heads."""

import numpy as np
from datasets import Features
from PIL import Image as PILImage

from hub_dataset import shards
from hub_dataset.loading import REQUIRED_COLUMNS

FEATURES = Features({name: shards.FEATURES[name] for name in REQUIRED_COLUMNS})
SIZE = 48


def make_patient(patient_id, num_slices, lesion_slices, seed):
    """Rows of a head with a bright square in some slices; slices 9 and 10 tell numbers from strings."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    head = (rows - 24) ** 2 + (columns - 24) ** 2 < 20**2
    for number in range(1, num_slices + 1):
        image = rng.integers(0, 12, (SIZE, SIZE, 3)) + head[..., None] * rng.integers(70, 130, (SIZE, SIZE, 3))
        mask = np.zeros((SIZE, SIZE), dtype=np.uint8)
        if number in lesion_slices:
            mask[14:28, 15:30] = 255
            image[14:28, 15:30, 1] += 90
        yield {
            "image": PILImage.fromarray(image.astype(np.uint8)),
            "mask": PILImage.fromarray(mask),
            "patient_id": patient_id,
            "slice_index": number,
            "has_lesion": bool(mask.any()),
        }
