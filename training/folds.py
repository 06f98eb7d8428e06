"""k-fold cross-validation by patient: a summary over finished folds.

    accelerate launch train.py --folds 5 --fold 0 --output_dir runs/fold0 ...     # and so on to --fold 4
    python -m training.folds runs/fold*

Prints the validation Dice of each finished fold, and of all their patients together with a 95 % bootstrap interval: at
the last epoch, and at the best one, which was chosen by the same patients and so flatters the model. Dice is per
patient, after post-processing. Folds that are still training, and those not given, are named.
"""

import math
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np

from modeling.card_inputs import TrainingRun, read_json, read_run
from modeling.command_line import command_parser
from modeling.metrics import bootstrap_interval

from .run_folder import HARMLESS

MAY_DIFFER = HARMLESS | {"fold", "changed_on_resume"}


def read_folds(folders: list[Path]) -> tuple[list[TrainingRun], list[TrainingRun]]:
    """Finished and unfinished folds of one cross-validation, in the order of their numbers.

    Raises:
        OSError: no such folder, or a file is missing.
        ValueError: a run without folds or with damaged files, a fold twice, runs that differ in more than their fold,
            or none that has finished.
    """
    runs = [read_run(folder) for folder in folders]
    for run in runs:
        if run.arguments.get("folds") is None:
            raise ValueError(f"{run.path} was trained without --folds; its patients are no fold of others.")
        first = runs[0]
        differing = sorted(
            name
            for name in (first.arguments.keys() | run.arguments.keys()) - MAY_DIFFER
            if first.arguments.get(name) != run.arguments.get(name)
        )
        if differing:
            raise ValueError(
                f"{first.path} and {run.path} are no folds of one cross-validation: they differ in "
                f"{', '.join(f'--{name}' for name in differing)}."
            )
    runs.sort(key=lambda run: run.arguments["fold"])
    for one, other in pairwise(runs):
        if one.arguments["fold"] == other.arguments["fold"]:
            raise ValueError(f"{one.path} and {other.path} are both fold {one.arguments['fold']}. Give one of them.")
    finished = [run for run in runs if is_finished(run)]
    if not finished:
        raise ValueError(f"None of {', '.join(map(str, folders))} has finished; train.py --resume goes on.")
    return finished, [run for run in runs if run not in finished]


def is_finished(run: TrainingRun) -> bool:
    """Whether last/ is of the log's last epoch, and that is the last one there was to be.

    Raises:
        ValueError: last/metrics.json is damaged.
    """
    metrics = run.path / "last" / "metrics.json"
    if not metrics.is_file():
        return False
    epoch = run.log[-1]["epoch"]
    stopped = bool(run.arguments.get("patience")) or epoch == run.arguments["epochs"]
    saved = read_json(metrics).get("epoch")
    if saved is None:
        raise ValueError(f"{metrics} is damaged: it names no epoch. `train.py --resume` writes it anew.")
    return stopped and saved == epoch


def scores_of(row: dict) -> np.ndarray:
    """Dice of each validation patient in a row of the log, NaN where undefined: (N,) float."""
    return np.array(list(row["validation_dice"].values()), dtype=float)


def describe(scores: np.ndarray) -> str:
    """Mean, its interval, and median over the patients that have a Dice."""
    defined = scores[~np.isnan(scores)]
    if not defined.size:
        return "no patient has a Dice"
    low, high = bootstrap_interval(defined)
    interval = "" if math.isnan(low) else f" (95 % CI {low:.3f} to {high:.3f})"
    return f"mean {defined.mean():.3f}{interval}, median {np.median(defined):.3f}"


def format_summary(finished: list[TrainingRun], unfinished: list[TrainingRun]) -> str:
    """The table of the finished folds and the scores of all their patients, as text."""
    folds = finished[0].arguments["folds"]
    last = [next(row for row in reversed(run.log) if "validation_dice" in row) for run in finished]
    best = [run.best for run in finished]
    lines = [f"{'fold':>4}{'patients':>10}{'at last epoch':>18}{'at best epoch':>18}   (mean Dice and epoch)"]
    for run, at_last, at_best in zip(finished, last, best, strict=True):
        cells = [f"{row['validation_dice_mean']:.3f} ({row['epoch']})" for row in (at_last, at_best)]
        lines.append(f"{run.arguments['fold']:4}{len(at_last['validation_dice']):10}{cells[0]:>18}{cells[1]:>18}")
    all_last, all_best = (np.concatenate([scores_of(row) for row in rows]) for rows in (last, best))
    lines += [
        "",
        f"{len(all_last)} patients of {len(finished)} of {folds} folds",
        f"last epoch: {describe(all_last)}",
        f"best epoch: {describe(all_best)}; chosen by these patients",
    ]
    given = {run.arguments["fold"] for run in (*finished, *unfinished)}
    if unfinished:
        lines.append(f"not finished: {', '.join(str(run.path) for run in unfinished)}")
    if missing := sorted(set(range(folds)) - given):
        lines.append(f"not given: fold {', '.join(map(str, missing))}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = command_parser(__doc__, "training.folds")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of train.py --folds")
    args = parser.parse_args(argv)
    try:
        finished, unfinished = read_folds(args.runs)
        print(format_summary(finished, unfinished))
    except (OSError, ValueError) as error:
        sys.exit(f"training.folds: error: {error}")


if __name__ == "__main__":
    main()
