"""How far other thresholds could raise a model's Dice, and how far models agree with one another.

    python evaluate.py --checkpoint checkpoints/unet-5level --dataset data/lgg --output results.json \\
        --predictions predictions/unet-5level
    python -m benchmarks.upper_bounds --dataset data/lgg --predictions predictions/unet-5level [...] \\
        [--split validation]

Each folder of predictions is one model, called after the folder. Prints tables in Markdown:

- Dice per patient after post-processing, and that of each patient's best threshold and of each slice's best threshold,
  both found with the reader's outline. No way of choosing thresholds, however good, can do better with these
  probabilities (but filling holes and leaving out islands might). All three leave out patients without a lesion, who
  have no best threshold. Of several models, the average of their probabilities is the last row;
- of every patient, the Dice of each model's outline with the reader's, and of the models' outlines with one another.
"""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from tqdm import tqdm

from hub_dataset.patients import read_patient
from modeling.command_line import command_parser
from modeling.metrics import confusion_counts, dice
from modeling.postprocessing import mask_from_probabilities

from .kept_predictions import find_predictions, read_probabilities
from .tables import mean_and_interval, table


def threshold_counts(probabilities: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(marked, rightly marked) voxels at every threshold that makes a difference, from none marked to all.

    Args:
        probabilities: any shape.
        truth: bool, of the same shape.
    """
    order = np.argsort(probabilities, axis=None)[::-1]
    values, found = probabilities.ravel()[order], np.cumsum(truth.ravel()[order])
    last_of_value = np.append(values[1:] < values[:-1], True)  # no threshold parts voxels of equal probability
    marked = np.flatnonzero(last_of_value) + 1
    return np.insert(marked, 0, 0), np.insert(found[last_of_value], 0, 0)


def best_dice(probabilities: Sequence[np.ndarray], truths: Sequence[np.ndarray]) -> float:
    """The highest Dice of the parts together, where each has a threshold of its own.

    A ratio of two sums over independent parts, maximised by Dinkelbach's iteration (1967, doi 10.1287/mnsc.13.7.492):
    where `ratio` is the best so far, each part takes the threshold with the highest numerator - ratio * denominator.

    Returns:
        From 0 to 1; NaN where `truths` hold nothing.
    """
    lesion = sum(np.count_nonzero(truth) for truth in truths)
    if not lesion:
        return np.nan
    counts = [threshold_counts(*part) for part in zip(probabilities, truths, strict=True)]
    ratio = 0.0
    while True:
        choice = [int(np.argmax(2 * found - ratio * marked)) for marked, found in counts]
        marked, found = (sum(int(of[side][i]) for of, i in zip(counts, choice, strict=True)) for side in (0, 1))
        improved = 2 * found / (marked + lesion)
        if improved <= ratio:
            return ratio
        ratio = improved


def main(argv: list[str] | None = None) -> None:
    parser = command_parser(__doc__, "benchmarks.upper_bounds")
    parser.add_argument("--dataset", required=True, help="folder written by hub_dataset.build, or USER/NAME on the Hub")
    parser.add_argument("--predictions", nargs="+", type=Path, required=True, help="folders from evaluate.py")
    parser.add_argument("--split", default="validation", help="train, validation or test")
    args = parser.parse_args(argv)

    try:
        split, rows_of, models = find_predictions(args.dataset, args.split, args.predictions)
        if not any(split["has_lesion"]):
            raise ValueError(f"No patient of {args.split!r} has a lesion, so that no threshold could be better.")
    except (OSError, ValueError) as error:
        parser.error(str(error))
    pairs = list(combinations(models, 2))
    average = f"average of the {len(models)}"
    bounds = {name: [] for name in [*models, *([average] if pairs else [])]}
    agreement = []
    for patient_id in tqdm(sorted(rows_of), desc="patients"):
        patient = read_patient(split, patient_id, rows_of[patient_id])
        truth = patient.truth
        of_models = {name: read_probabilities(store, patient) for name, store in models.items()}
        if pairs:
            of_models[average] = np.mean(list(of_models.values()), axis=0)
        masks = {name: mask_from_probabilities(probabilities) for name, probabilities in of_models.items()}
        scores = {name: dice(confusion_counts(mask, truth)) for name, mask in masks.items()}
        if truth.any():
            for name, probabilities in of_models.items():
                by_slice = best_dice(probabilities, truth)
                bounds[name].append([scores[name], best_dice([probabilities], [truth]), by_slice])
        with_one_another = [dice(confusion_counts(masks[one], masks[other])) for one, other in pairs]
        agreement.append([*(scores[name] for name in models), *with_one_another])

    with_lesion = len(next(iter(bounds.values())))
    print(f"{len(agreement)} patients of {args.split}, {with_lesion} with a lesion; Dice per patient, mean (95 % CI)\n")
    header = ["model", "post-processed", "each patient's best threshold", "each slice's best threshold"]
    print(table(header, [[name, *map(mean_and_interval, zip(*rows, strict=True))] for name, rows in bounds.items()]))
    header = ["patient", *(f"{name}, reader" for name in models), *(f"{one}, {other}" for one, other in pairs)]
    lines = [
        [patient_id, *(f"{score:.2f}" for score in scores)]
        for patient_id, scores in zip(sorted(rows_of), agreement, strict=True)
    ]
    means = ["mean (95 % CI)", *map(mean_and_interval, zip(*agreement, strict=True))]
    print(table(header, [*lines, means]))


if __name__ == "__main__":
    main()
