"""Tables and figure of the experiments, as docs/results.md shows them.

    python -m experiments.report --output runs/experiments [--only Loss ...] [--figure docs/figures/experiments.png]

Scores are per patient, after post-processing, of the last weights on patients who were not trained on and chose
nothing. A difference is taken patient by patient from the row above it that says "reference"; its interval, like all,
is a 95 % bootstrap over patients. Where it does not hold 0, the change is beyond what these patients leave to chance;
one training of each cannot tell how much is due to its random numbers.
"""

import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.run import Score
from modeling.command_line import command_parser
from modeling.metrics import bootstrap_interval
from modeling.visualization import new_figure

SUMMARY = ("dice_median", "lesion_slice_dice", "lesion_slices", "empty_slices", "false_alarm_rate")


@dataclass(frozen=True)
class Table:
    """One question: its rows, what each is called, the first being what the others are compared with."""

    title: str
    rows: dict[str, Score]


TABLES = (
    Table(
        "Loss",
        {
            "BCE + Dice (reference)": Score("baseline"),
            "Dice": Score("loss-dice"),
            "BCE": Score("loss-bce"),
        },
    ),
    Table(
        "Channels",
        {
            "all, tested on all (reference)": Score("baseline"),
            "all, tested on FLAIR": Score("baseline", channels="flair"),
            "FLAIR, tested on FLAIR": Score("flair", channels="flair"),
            "FLAIR, tested on all": Score("flair"),
        },
    ),
    Table(
        "Architecture",
        {
            "TransUNet, small (reference)": Score("baseline"),
            "the same without its transformer layers": Score("no-attention"),
            "U-Net, five levels": Score("unet-5level"),
            "U-Net, four levels": Score("unet-4level"),
        },
    ),
    Table(
        "Skull",
        {
            "left on (reference)": Score("baseline"),
            "off in training and testing": Score("stripped", variant="stripped"),
            "off in testing alone": Score("baseline", variant="stripped"),
            "off in training alone": Score("stripped"),
        },
    ),
    Table(
        "Leak",
        {
            "split by patient (reference)": Score("baseline", variant="by-slice"),
            "split by slice": Score("by-slice", variant="by-slice"),
        },
    ),
    Table(
        "Teacher",
        {
            "none (reference)": Score("unet-5level-bce"),
            "TransUNet": Score("unet-5level-taught"),
        },
    ),
    Table(
        "Teacher (FLAIR alone)",
        {
            "none (reference)": Score("unet-5level-bce", channels="flair"),
            "TransUNet": Score("unet-5level-taught", channels="flair"),
        },
    ),
)


@dataclass(frozen=True)
class Scores:
    """What evaluate.py wrote of one model: Dice of each patient, by name, and the summary; NaN where undefined."""

    dice: dict[str, float]
    summary: dict[str, float]


def read_scores(folder: Path, what: Score) -> Scores:
    """The scores of a model.

    Raises:
        OSError: it has not been scored yet, or the file cannot be read.
        ValueError: the file is damaged, or of another kind.
    """
    file = folder / "scores" / f"{what.name}.json"
    makes_it = f"`python -m experiments.run --only {what.experiment} ...` makes it"
    if not file.exists():
        raise FileNotFoundError(f"{file} is missing: {makes_it}.")
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        patients, summary = result["patients"], result["summary"]["postprocessed"]
        return Scores(
            {patient["patient_id"]: number(patient["postprocessed"]["dice"]) for patient in patients},
            {key: number(summary[key]) for key in SUMMARY},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} holds no scores of evaluate.py. Delete it: {makes_it} anew.") from error


def number(score: float | None) -> float:
    """JSON has no NaN: evaluate.py writes null where a score is undefined."""
    return math.nan if score is None else float(score)


def differences(scores: Scores, reference: Scores) -> np.ndarray:
    """Dice less the reference's of the patients who have both: (N,).

    Raises:
        ValueError: scores of different patients.
    """
    if scores.dice.keys() != reference.dice.keys():
        raise ValueError("The scores are of different patients; repeat the experiments into an empty folder.")
    return defined(scores.dice[patient] - reference.dice[patient] for patient in sorted(scores.dice))


def defined(values: Iterable[float]) -> np.ndarray:
    """Those that are not NaN: (N,)."""
    return np.array([value for value in values if not math.isnan(value)])


def mean_and_interval(values: np.ndarray, sign: str = "") -> str:
    """Of defined values; an interval takes two."""
    if not values.size:
        return "-"
    low, high = bootstrap_interval(values)
    interval = "" if math.isnan(low) else f" ({low:{sign}.3f} to {high:{sign}.3f})"
    return f"{values.mean():{sign}.3f}{interval}"


def cell(score: float, unit: str = "", decimals: int = 3) -> str:
    return "-" if math.isnan(score) else f"{score:.{decimals}f}{unit}"


def row(name: str, scores: Scores, reference: Scores | None) -> list[str]:
    return [
        name,
        mean_and_interval(defined(scores.dice.values())),
        "" if reference is None else mean_and_interval(differences(scores, reference), sign="+"),
        cell(scores.summary["dice_median"]),
        cell(scores.summary["lesion_slice_dice"]),
        cell(100 * scores.summary["false_alarm_rate"], " %", decimals=1),
    ]


def format_table(table: Table, folder: Path) -> str:
    """A table in Markdown."""
    scores = {name: read_scores(folder, what) for name, what in table.rows.items()}
    reference = next(iter(scores.values()))
    header = [table.title, "Dice per patient, mean", "difference", "median", "lesion slices", "false alarms"]
    rows = [row(name, of, None if of is reference else reference) for name, of in scores.items()]
    count = f"{len(reference.dice)} patients, {reference.summary['lesion_slices']:.0f} slices with a lesion and "
    count += f"{reference.summary['empty_slices']:.0f} without"
    lines = [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]
    return "\n".join([*lines, "", count, ""])


def draw(tables: Sequence[Table], folder: Path, path: Path) -> None:
    """Write a figure: for each table, the Dice of every patient, and the mean with its interval."""
    heights = [len(table.rows) for table in tables]
    figure = new_figure(7.5, 0.42 * sum(heights) + 0.5 * len(tables) + 0.6)
    axes = figure.subplots(len(tables), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for ax, table in zip(axes, tables, strict=True):
        for place, what in enumerate(table.rows.values()):
            dice = defined(read_scores(folder, what).dice.values())
            if not dice.size:
                continue
            low, high = bootstrap_interval(dice)
            ax.plot(dice, np.full(dice.size, place), "o", color="#0072b2", alpha=0.25, markersize=5, markeredgewidth=0)
            ax.plot([low, high], [place, place], color="#d55e00", linewidth=2)
            ax.plot(dice.mean(), place, "D", color="#d55e00", markersize=6)
        ax.set_yticks(range(len(table.rows)), [name.removesuffix(" (reference)") for name in table.rows], fontsize=8)
        ax.set_ylim(len(table.rows) - 0.5, -0.5)
        ax.set_title(table.title, loc="left", fontsize=9, fontweight="bold")
        ax.grid(axis="x", color="0.9", linewidth=0.6)
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.tick_params(left=False, labelsize=8)
    axes[-1].set_xlabel("Dice of a patient; mean and its 95 % interval", fontsize=8)
    axes[-1].set_xlim(0, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main(argv: Sequence[str] | None = None) -> None:
    parser = command_parser(__doc__, "experiments.report")
    parser.add_argument("--output", required=True, type=Path, help="folder that experiments.run wrote")
    titles = [table.title for table in TABLES]
    parser.add_argument("--only", nargs="+", choices=titles, default=titles, metavar="TITLE", help=", ".join(titles))
    parser.add_argument("--figure", type=Path, help="Dice of every patient (PNG)")
    args = parser.parse_args(argv)
    tables = [table for table in TABLES if table.title in args.only]
    try:
        print("\n".join(format_table(table, args.output) for table in tables))
        if args.figure:
            draw(tables, args.output, args.figure)
    except (OSError, ValueError) as error:
        sys.exit(f"experiments.report: error: {error}")


if __name__ == "__main__":
    main()
