"""Models' predictions of the patients of a split, as `evaluate.py --predictions` keeps them."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset

from hub_dataset.loading import load_split
from hub_dataset.patients import Patient, group_by_patient
from modeling.predictions import PredictionStore


def find_predictions(
    dataset: str, split: str, folders: Sequence[Path]
) -> tuple[Dataset, dict[str, list[int]], dict[str, PredictionStore]]:
    """The split, the rows of each of its patients, and the predictions of each model, which is called after its folder.

    Raises:
        FileNotFoundError: no such dataset, or no predictions in a folder.
        ValueError: no such split, two folders of one name, or one that lacks a patient.
    """
    slices = load_split(dataset, split)
    rows_of = group_by_patient(slices)
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
    return slices, rows_of, models


def read_probabilities(store: PredictionStore, patient: Patient) -> np.ndarray:
    """(S, H, W) float32; ends the process where they are damaged or were made of other slices."""
    try:
        if store.holds(patient.patient_id, patient.slices_given(store.made_with.get("channels", "all"))):
            return store.read(patient.patient_id)
    except ValueError as error:
        sys.exit(f"error: {patient.patient_id}: {error}")
    sys.exit(f"error: the probabilities of {patient.patient_id} are damaged; evaluate.py computes them again.")
