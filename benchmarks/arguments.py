"""What the benchmarks' command lines share: whole numbers within limits, and a split by its name."""

import argparse
from collections.abc import Callable

from datasets import Dataset

from hub_dataset.loading import load_splits


def at_least(minimum: int) -> Callable[[str], int]:
    """The `type` of an argument that takes whole numbers from `minimum` on."""

    def whole_number(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = None
        if number is None or number < minimum:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {minimum} on")
        return number

    return whole_number


def load_split(dataset: str, split: str) -> Dataset:
    """One split of a dataset, which is a folder that `hub_dataset.build` wrote or on the Hub.

    Raises:
        FileNotFoundError: no such dataset.
        ValueError: it cannot be loaded, or has no such split.
    """
    splits = load_splits(dataset)
    if split not in splits:
        raise ValueError(f"The split {split!r} is absent from {dataset}; it has {', '.join(splits)}.")
    return splits[split]
