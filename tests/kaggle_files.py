"""Small sources in the kaggle_3m layout under the real patients' names, with generated pixels."""

import csv
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from hub_dataset.source import CLINICAL_COLUMNS

PATIENT = "TCGA_CS_4941_19960909"  # in the validation split
OTHER_PATIENT = "TCGA_CS_4942_19970222"  # in the train split


def slice_pixels(index: int, size: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Image (H, W, 3) and mask (H, W) of slice `index`, uint8; odd slices have a lesion."""
    ramp = np.arange(size, dtype=np.uint8)
    image = np.stack(
        [np.tile(ramp, (size, 1)), np.tile(ramp[:, None], (1, size)), np.full((size, size), index)], axis=-1
    )
    mask = np.zeros((size, size), np.uint8)
    if index % 2:
        mask[10 : 20 + index, 30:40] = 255
    return image.astype(np.uint8), mask


def write_patient(root: Path, patient: str = PATIENT, indices: Iterable[int] = (1, 2, 10)) -> Path:
    """Write a patient's folder and return it."""
    folder = root / patient
    folder.mkdir(parents=True)
    for index in indices:
        image, mask = slice_pixels(index)
        Image.fromarray(image).save(folder / f"{patient}_{index}.tif")
        Image.fromarray(mask).save(folder / f"{patient}_{index}_mask.tif")
    return folder


def write_clinical(root: Path, patients: Iterable[str], **values: str) -> Path:
    """Write data.csv with a row of blanks, but for `values`, per patient folder's name, and return its path."""
    path = root / "data.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, CLINICAL_COLUMNS, restval="")
        writer.writeheader()
        writer.writerows({"Patient": patient.rsplit("_", 1)[0], **values} for patient in patients)
    return path


def write_source(root: Path, patients: Iterable[str] = (PATIENT,), indices: Iterable[int] = (1, 2, 10)) -> Path:
    """Write patients with their data.csv and return `root`."""
    for patient in patients:
        write_patient(root, patient, indices)
    write_clinical(root, patients)
    return root
