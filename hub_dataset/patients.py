"""A split of the dataset by patient: the rows of each, decoded one patient at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np
from datasets import Dataset, Image

from modeling.image_processing_brain_mri import FLAIR

COLUMNS = ("image", "mask", "patient_id", "slice_index")
DECODING_ERRORS = (OSError, SyntaxError)  # what Pillow raises, the latter from some decoders


@dataclass(frozen=True)
class Patient:
    """One patient's rows in order: `slices` (S, H, W, 3), or (S, H, W) if grey, and `truth` (S, H, W) bool."""

    patient_id: str
    slice_indices: list[int]
    slices: np.ndarray
    truth: np.ndarray

    def slices_given(self, channels: str) -> np.ndarray:
        """The slices for a model that is given `all` channels, or `flair` alone: (S, H, W, 3), or (S, H, W)."""
        return self.slices[..., FLAIR] if channels == "flair" and self.slices.ndim == 4 else self.slices


def group_by_patient(dataset: Dataset) -> dict[str, list[int]]:
    """Rows of each patient in the order of `slice_index`; reads no image.

    Raises:
        ValueError: a column is missing, there is no row, a slice has no patient or no number, or comes twice.
    """
    missing = [column for column in COLUMNS if column not in dataset.column_names]
    if missing:
        hint = " A dataset without masks can be segmented, not scored." if "mask" in missing else ""
        raise ValueError(
            f"Evaluation needs the columns {', '.join(COLUMNS)}; the dataset has no {', '.join(missing)}, but "
            f"{', '.join(dataset.column_names)}.{hint}"
        )
    if len(dataset) == 0:
        raise ValueError("The split has no rows, so there is nothing to score.")
    keys = list(zip(dataset["patient_id"], dataset["slice_index"], strict=True))
    for patient_id, slice_index in keys:
        if patient_id is None or not isinstance(slice_index, Real):  # as text, slice 10 would precede slice 2
            raise ValueError(
                f"Every slice needs a patient_id and a number as its slice_index, but one has {patient_id!r} and "
                f"{slice_index!r}."
            )
    groups: dict[str, list[int]] = {}
    previous = None
    for key, row in sorted((key, row) for row, key in enumerate(keys)):
        if key == previous:
            raise ValueError(f"Slice {key[1]} of patient {key[0]} is in the split twice. Build the dataset again.")
        groups.setdefault(key[0], []).append(row)
        previous = key
    return groups


class DamagedSlice(ValueError):
    """An image or a mask has a header but cannot be decoded."""


def name_of(row: dict) -> str:
    return f"slice {row['slice_index']} of patient {row['patient_id']}"


def read_row(dataset: Dataset, index: int) -> dict:
    """One row with its images decoded.

    Raises:
        DamagedSlice: one cannot be.
    """
    try:
        return dataset[index]
    except DECODING_ERRORS as error:
        raise damaged({name: dataset[name][index] for name in ("slice_index", "patient_id")}, error) from error


def decode_row(row: dict) -> dict:
    """`row`, its images not decoded, with those that it has decoded as `datasets` does.

    Raises:
        DamagedSlice: one cannot be.
    """
    try:
        return row | {name: Image().decode_example(row[name]) for name in ("image", "mask") if name in row}
    except DECODING_ERRORS as error:
        raise damaged(row, error) from error


def damaged(row: dict, error: Exception) -> DamagedSlice:
    return DamagedSlice(f"The image or the mask of {name_of(row)} is damaged ({error})")


def read_patient(dataset: Dataset, patient_id: str, rows: Sequence[int]) -> Patient:
    """Decode one patient's rows.

    Raises:
        ValueError: a damaged image or mask, a slice without a mask, or slices or masks of different sizes.
    """
    slices, truth, slice_indices = [], [], []
    for index in rows:
        row = read_row(dataset, index)
        where = name_of(row)
        if row["mask"] is None:
            raise ValueError(f"There is no mask for {where}. A dataset without masks can be segmented, not scored.")
        image, mask = np.asarray(row["image"]), np.asarray(row["mask"].convert("L")) > 0
        if mask.shape != image.shape[:2] or (slices and image.shape != slices[0].shape):
            raise ValueError(
                f"The image of {where} has shape {image.shape}, its mask {mask.shape}, and the patient's first image "
                f"{(slices[0] if slices else image).shape}; they must be of one size."
            )
        slices.append(image)
        truth.append(mask)
        slice_indices.append(row["slice_index"])
    return Patient(patient_id, slice_indices, np.stack(slices), np.stack(truth))
