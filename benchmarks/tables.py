"""Scores as the cells and tables of Markdown."""

from collections.abc import Sequence

import numpy as np

from modeling.metrics import VolumeScores, bootstrap_interval, summarize

SCORES = (
    "Dice per patient, mean (95 % CI)",
    "median",
    "lesion slices",
    "false alarms",
    "mean against the default",
)  # what `score_cells` gives


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def mean_and_interval(values: Sequence[float], sign: str = "") -> str:
    """Mean over patients and its bootstrap interval, which one patient alone does not have; `sign` may be `+`."""
    low, high = bootstrap_interval(np.asarray(values, dtype=float))
    interval = "" if np.isnan(low) else f" ({low:{sign}.3f} to {high:{sign}.3f})"
    return f"{np.nanmean(values):{sign}.3f}{interval}"


def score_cells(scores: Sequence[VolumeScores], default: Sequence[VolumeScores]) -> list[str]:
    """Cells below `SCORES`; the last is the difference from the default's scores of the same patients."""
    summary = summarize(scores)
    dice, dice_by_default = ([score.dice for score in of] for of in (scores, default))
    return [
        mean_and_interval(dice),
        f"{summary.dice_median:.3f}",
        f"{summary.lesion_slice_dice:.3f}",
        f"{100 * summary.false_alarm_rate:.1f} %",
        mean_and_interval(np.subtract(dice, dice_by_default), sign="+"),
    ]
