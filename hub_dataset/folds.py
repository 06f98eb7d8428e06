"""Folds of a cross-validation by patient, and a fold as a dataset of its own, for what takes a dataset.

    python -m hub_dataset.folds --dataset data/lgg --folds 8 --fold 3 --output data/fold3
    python evaluate.py --checkpoint runs/fold3/last --dataset data/fold3 --split validation --output results.json

`train.py --folds 8 --fold 3` trains and validates on the same patients. `test` is left out.
"""

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, concatenate_datasets
from datasets.table import embed_table_storage

from modeling.command_line import command_parser

from .loading import load_splits
from .splits import deal_folds


def split_by_fold(splits: DatasetDict, folds: int, fold: int) -> DatasetDict:
    """`splits` with the patients of training and validation dealt anew: fold number `fold` of `folds` validates.

    Other splits, such as `test`, stay as they are.

    Raises:
        ValueError: `train` or `validation` missing, fewer patients than folds, or no such fold.
    """
    if missing := {"train", "validation"} - splits.keys():
        raise ValueError(f"The dataset has no split {', '.join(sorted(missing))}; folds are dealt from both.")
    if not 0 <= fold < folds:
        raise ValueError(f"There is no fold {fold} of {folds}; folds are counted from 0.")
    slices = concatenate_datasets([splits["train"], splits["validation"]])
    patients = np.asarray(slices["patient_id"])
    held_out = np.isin(patients, deal_folds(set(patients.tolist()), folds)[fold])
    dealt = {"train": slices.select(np.flatnonzero(~held_out)), "validation": slices.select(np.flatnonzero(held_out))}
    return DatasetDict({**splits, **dealt})


def write_splits(splits: Mapping[str, Dataset], folder: Path) -> None:
    """Write splits as a dataset folder, all of it or, where that is interrupted, nothing.

    Raises:
        FileExistsError: the folder is there already.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} is there already. Choose another folder, or delete it.")
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        for name, split in splits.items():
            file = unfinished / "data" / f"{name}-00000-of-00001.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            write_parquet(split, file)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_parquet(split: Dataset, file: Path) -> None:
    """Write a split with a row group for each patient, as `hub_dataset.build` does; streaming reads these whole."""
    tables = split.with_format("arrow")
    patients = np.asarray(split["patient_id"])
    with pq.ParquetWriter(file, split.features.arrow_schema) as writer:
        for patient in dict.fromkeys(patients.tolist()):
            table = tables[np.flatnonzero(patients == patient)]
            writer.write_table(embed_table_storage(table), row_group_size=len(table))


def main(argv: list[str] | None = None) -> None:
    parser = command_parser(__doc__, "hub_dataset.folds")
    parser.add_argument("--dataset", required=True, help="folder written by hub_dataset.build, or USER/NAME on the Hub")
    parser.add_argument("--folds", required=True, type=int, metavar="K", help="folds to deal the patients to")
    parser.add_argument("--fold", required=True, type=int, metavar="N", help="the fold that validates, from 0")
    parser.add_argument("--output", required=True, type=Path, help="a new folder")
    args = parser.parse_args(argv)
    try:
        dealt = split_by_fold(load_splits(args.dataset), args.folds, args.fold)
        write_splits(DatasetDict(train=dealt["train"], validation=dealt["validation"]), args.output)
    except (OSError, ValueError) as error:
        sys.exit(f"hub_dataset.folds: error: {error}")
    for name in ("train", "validation"):
        print(f"{name}: {len(set(dealt[name]['patient_id']))} patients, {len(dealt[name]):,} slices")


if __name__ == "__main__":
    main()
