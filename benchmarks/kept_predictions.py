"""Models' predictions of the patients of a split, as `evaluate.py --predictions` keeps them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset

from hub_dataset.loading import load_splits
from hub_dataset.patients import group_by_patient


def find_predictions(
    dataset: str, split: str, folders: Sequence[Path]
) -> tuple[Dataset, dict[str, list[int]], dict[str, Path]]:
    """The split, the rows of each of its patients, and the folder of each model, which is called after it.

    Raises:
        FileNotFoundError: no such dataset.
        ValueError: no such split, two folders of one name, or one that lacks a patient.
    """
    splits = load_splits(dataset)
    if split not in splits:
        raise ValueError(f"The split {split!r} is absent from {dataset}; it has {', '.join(splits)}.")
    rows_of = group_by_patient(splits[split])
    models: dict[str, Path] = {}
    for folder in folders:
        if (other := models.setdefault(folder.resolve().name, folder)) != folder:
            raise ValueError(f"{other} and {folder} would both be called {folder.resolve().name!r}; rename one.")
        if missing := [patient_id for patient_id in rows_of if not prediction_file(folder, patient_id).exists()]:
            raise ValueError(
                f"{folder} has no predictions of {len(missing)} of the {len(rows_of)} patients in {split!r}, such as "
                f"{missing[0]}; `evaluate.py --predictions {folder}` without --limit makes them."
            )
    return splits[split], rows_of, models


def prediction_file(folder: Path, patient_id: str) -> Path:
    return folder / f"{patient_id}.npz"


def read_prediction(folder: Path, patient_id: str) -> np.ndarray:
    """(S, H, W) float32 probabilities."""
    with np.load(prediction_file(folder, patient_id)) as file:
        return file["probabilities"]
