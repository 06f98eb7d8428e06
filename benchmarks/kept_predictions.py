"""Models' predictions of the patients of a split, as `evaluate.py --predictions` keeps them."""

from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset

from hub_dataset.loading import load_splits
from hub_dataset.patients import group_by_patient
from modeling.predictions import PredictionStore


def find_predictions(
    dataset: str, split: str, folders: Sequence[Path]
) -> tuple[Dataset, dict[str, list[int]], dict[str, PredictionStore]]:
    """The split, the rows of each of its patients, and the predictions of each model, which is called after its folder.

    Raises:
        FileNotFoundError: no such dataset, or no predictions in a folder.
        ValueError: no such split, two folders of one name, or one that lacks a patient.
    """
    splits = load_splits(dataset)
    if split not in splits:
        raise ValueError(f"The split {split!r} is absent from {dataset}; it has {', '.join(splits)}.")
    rows_of = group_by_patient(splits[split])
    models: dict[str, PredictionStore] = {}
    for folder in folders:
        store, name = PredictionStore.open(folder), folder.resolve().name
        if name in models:
            raise ValueError(f"{models[name].folder} and {folder} would both be called {name!r}; rename one.")
        if missing := [patient_id for patient_id in rows_of if patient_id not in store]:
            raise ValueError(
                f"{folder} has no predictions of {len(missing)} of the {len(rows_of)} patients in {split!r}, such as "
                f"{missing[0]}; `evaluate.py --predictions {folder}` without --limit makes them."
            )
        models[name] = store
    return splits[split], rows_of, models
