"""How soon trainings stop improving, and what stopping early would have cost, from their logs.

    python -m experiments.plateau checkpoints/*/log.jsonl [--close 0.01] [--patience 1 2]

For each log of train.py: its best validation Dice (mean per patient, after post-processing), the first epoch that came
within `--close` of it, and for each patience, in validations, when train.py's `--patience` would have ended the run and
the Dice of the model it would have kept.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from modeling.card_inputs import is_number, read_log
from modeling.command_line import command_parser


class Validation(NamedTuple):
    """Epoch, counted from 1, time of training until then in seconds, and mean Dice of the validation patients."""

    epoch: int
    seconds: float
    dice: float


def read_validations(log: Path) -> list[Validation]:
    """The epochs of a log that were validated.

    Raises:
        OSError: no such file.
        ValueError: not a log of train.py, or none of its epochs was validated.
    """
    validations = [
        Validation(row["epoch"], row["seconds"], row["validation_dice_mean"])
        for row in read_log(log)
        if row.get("validation_dice_mean") is not None
    ]
    if odd := next((validation for validation in validations if not is_number(validation.dice)), None):
        raise ValueError(f"{log} is damaged: the Dice of epoch {odd.epoch} is no number, but {odd.dice!r}.")
    if not validations:
        raise ValueError(f"No epoch of {log} was validated.")
    return validations


def stopped(validations: Sequence[Validation], patience: int) -> tuple[Validation, Validation]:
    """Where a run with this patience ends, and the best validation until then."""
    best, waited = validations[0], 0
    for validation in validations[1:]:
        better = validation.dice > best.dice
        best, waited = (validation, 0) if better else (best, waited + 1)
        if waited == patience:
            return validation, best
    return validations[-1], best


def main(argv: Sequence[str] | None = None) -> None:
    parser = command_parser(__doc__, "experiments.plateau")
    parser.add_argument("logs", nargs="+", type=Path, metavar="LOG", help="log.jsonl of a run or a checkpoint")
    parser.add_argument("--close", type=float, default=0.01, help="what counts as no worse")
    parser.add_argument(
        "--patience", type=int, nargs="+", default=[1, 2], help="validations without a better one (default: 1 2)"
    )
    args = parser.parse_args(argv)
    if not args.close >= 0:
        parser.error(f"--close must be at least 0, not {args.close}.")
    if min(args.patience) < 1:
        parser.error(f"--patience must be at least 1 validation, not {min(args.patience)}.")
    header = ["run", "epochs", "best Dice (epoch)", f"within {args.close:g} from epoch"]
    header += [f"patience {patience}: stops at, keeps" for patience in args.patience]
    lines = [header, ["---"] * len(header)]
    try:
        for log in args.logs:
            validations = read_validations(log)
            best = max(validations, key=lambda validation: validation.dice)
            close = next(validation for validation in validations if validation.dice >= best.dice - args.close)
            cells = [log.parent.name, f"{validations[-1].epoch}", f"{best.dice:.3f} ({best.epoch})"]
            cells.append(f"{close.epoch}, {close.seconds / 60:.0f} of {validations[-1].seconds / 60:.0f} minutes")
            for end, kept in (stopped(validations, patience) for patience in args.patience):
                cells.append(f"{end.epoch}, {kept.dice:.3f} ({kept.epoch})")
            lines.append(cells)
    except (OSError, ValueError) as error:
        sys.exit(f"experiments.plateau: error: {error}")
    print("\n".join(f"| {' | '.join(cells)} |" for cells in lines))


if __name__ == "__main__":
    main()
