"""The LGG segmentation dataset: from the `kaggle_3m` folder to Parquet with a card, the patient splits, and loading.

Run as programs: `python -m hub_dataset.build` (the dataset) and `python -m hub_dataset.phantom` (a generated stand-in).
"""

from .splits import TEST_PATIENTS, TRAIN_PATIENTS, VALIDATION_PATIENTS, split_of

__all__ = ["TEST_PATIENTS", "TRAIN_PATIENTS", "VALIDATION_PATIENTS", "split_of"]
