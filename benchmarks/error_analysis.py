"""Where models err: post-processing, lesion size, outline, and calibration, from predictions kept by evaluate.py.

    python evaluate.py --checkpoint checkpoints/unet-5level --dataset data/lgg --output results.json \\
        --predictions predictions/unet-5level
    python -m benchmarks.error_analysis --dataset data/lgg --predictions predictions/unet-5level \\
        [--split validation] [--no_extend] [--figure docs/figures/calibration.png]

Each folder of predictions is one model, called after the folder. Prints tables in Markdown:

- post-processing: none, holes filled, islands out that are under a tenth of the largest, or under half of it, largest
  component, a lower threshold, outlines extended (the default); with and without cutting the probabilities to the brain
  (`brain_region`: thresholds and morphology on FLAIR); the default on the probabilities of a slice averaged with its
  neighbours'. The last column is the difference from the default, patient by patient, with its 95 % interval;
- Dice of slices with a lesion, in three equal groups by the lesion's area, by how irregular its outline is
  (perimeter^2 / (4 pi area), 1 for a disc), and by how bright it is on FLAIR as a model sees it (the mean, in robust
  standard deviations above the brain's median), for the patients' slices together;
- calibration: how often a voxel with a given probability is lesion, the expected calibration error, and the temperature
  that gives the lowest cross-entropy (Guo et al. 2017, arXiv 1706.04599, section 4.2). That is fitted on these very
  patients, so it is judged by leaving out one at a time: each is scaled by the temperature fitted on the others.
  Probabilities are those of the model with the temperature that its configuration already has.
"""

import argparse
from collections.abc import Callable
from functools import partial
from itertools import cycle
from pathlib import Path

import numpy as np
from scipy.ndimage import convolve1d
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit
from tqdm import tqdm

from hub_dataset.patients import Patient, read_patient
from modeling.brain_region import brain_region
from modeling.command_line import command_parser
from modeling.image_processing_brain_mri import FLAIR, BrainMRIImageProcessor, normalize_intensities, to_channels
from modeling.metrics import VolumeScores, score_volume, slice_dice
from modeling.postprocessing import fill_holes, largest_component, mask_from_probabilities
from modeling.visualization import new_figure

from .kept_predictions import find_predictions, read_probabilities
from .tables import SCORES, score_cells, table

THRESHOLD = 0.5
BINS = 10
NEIGHBOURS = (0.25, 0.5, 0.25)  # weights of the slice below, the slice itself and the one above
SMALLEST = 1e-7  # probabilities closer to 0 or 1 count as this far from it: float32 has none closer to 1
LOWER_THRESHOLD = 0.4
VARIANTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "none": lambda probabilities: probabilities >= THRESHOLD,
    "holes filled": lambda probabilities: fill_holes(probabilities >= THRESHOLD),
    "holes filled, islands under a tenth out": partial(mask_from_probabilities, keep_fraction=0.1, extend=False),
    "holes filled, islands under half out": partial(mask_from_probabilities, extend=False),
    "holes filled, largest component": lambda probabilities: largest_component(fill_holes(probabilities >= THRESHOLD)),
    f"holes filled, islands under half out, at {LOWER_THRESHOLD}": partial(
        mask_from_probabilities, threshold=LOWER_THRESHOLD, extend=False
    ),
    "the default: holes filled, islands under half out, outlines extended": mask_from_probabilities,
}


def make_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__, "benchmarks.error_analysis")
    parser.add_argument("--dataset", required=True, help="folder written by hub_dataset.build, or USER/NAME on the Hub")
    parser.add_argument("--predictions", nargs="+", type=Path, required=True, help="folders from evaluate.py")
    parser.add_argument("--split", default="validation", help="train, validation or test")
    parser.add_argument(
        "--no_extend", action="store_true", help="groups of slices: outlines as the threshold gave them"
    )
    parser.add_argument("--figure", type=Path, help="reliability diagram (PNG)")
    return parser


def brain(patient: Patient) -> np.ndarray:
    """(S, H, W) bool: the brain in each slice."""
    return np.stack([brain_region(image) for image in patient.slices])


def irregularity(mask: np.ndarray) -> float:
    """perimeter^2 / (4 pi area) of a lesion (H, W) bool; the perimeter by Crofton's formula in four directions."""
    padded = np.pad(mask, 1)
    straight = sum(np.count_nonzero(np.diff(padded, axis=axis)) for axis in (0, 1))
    diagonal = np.count_nonzero(padded[1:, 1:] ^ padded[:-1, :-1]) + np.count_nonzero(padded[1:, :-1] ^ padded[:-1, 1:])
    perimeter = np.pi / 8 * (straight + diagonal / np.sqrt(2))
    return perimeter**2 / (4 * np.pi * np.count_nonzero(mask))


def lesion_brightness(image: np.ndarray, lesion: np.ndarray) -> float:
    """Mean normalised FLAIR of a lesion (H, W) bool in its slice (H, W, 3): 0 is the median of the brain."""
    flair = normalize_intensities(to_channels(image), BrainMRIImageProcessor.clip)[..., FLAIR]
    return float(flair[lesion].mean())


def with_neighbours(probabilities: np.ndarray) -> np.ndarray:
    """(S, H, W) probabilities averaged along the slices with the weights `NEIGHBOURS`; end slices repeat outwards."""
    return convolve1d(probabilities, NEIGHBOURS, axis=0, mode="nearest")


def postprocessing_rows(name: str, probabilities: list, truths: list, brains: list) -> list[list[str]]:
    """A row of scores for each way of post-processing, with the difference of its mean from the default's."""

    def scores_of(masks: list[np.ndarray]) -> list[VolumeScores]:
        return [score_volume(mask, truth, hausdorff=False) for mask, truth in zip(masks, truths, strict=True)]

    def row(variant: str, masks: list[np.ndarray]) -> list[str]:
        return [name, variant, *score_cells(scores_of(masks), default)]

    default = scores_of(list(map(mask_from_probabilities, probabilities)))
    cut = [np.where(inside, volume, 0) for volume, inside in zip(probabilities, brains, strict=True)]
    averaged = map(with_neighbours, probabilities)
    return [
        *(row(variant, list(map(process, probabilities))) for variant, process in VARIANTS.items()),
        *(row(f"{variant}, cut to the brain", list(map(process, cut))) for variant, process in VARIANTS.items()),
        row("neighbouring slices averaged, then the default", list(map(mask_from_probabilities, averaged))),
    ]


def by_thirds(name: str, what: str, values: np.ndarray, dice: np.ndarray) -> list[str]:
    """A row with the mean Dice of the slices with the lowest, middle and highest third of `values`."""
    groups = np.array_split(np.argsort(values, kind="stable"), 3)
    decimals = 0 if values.max() >= 100 else 1
    limits = [f"{values[group[0]]:,.{decimals}f} to {values[group[-1]]:,.{decimals}f}" for group in groups]
    means = [f"{dice[group].mean():.3f} ({limit})" for group, limit in zip(groups, limits, strict=True)]
    return [name, what, *means]


def reliability(probabilities: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(count, mean probability, share of lesion) of the voxels in each of `BINS` equal bins; NaN in empty bins."""
    bins = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    count = np.bincount(bins, minlength=BINS)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(bins, probabilities, minlength=BINS) / count
        share = np.bincount(bins, truth, minlength=BINS) / count
    return count, mean, share


def fit_temperature(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """The divisor of the logits that gives the lowest mean cross-entropy, over voxels that have one: others are 0."""
    computed = probabilities > 0
    probabilities, truth = probabilities[computed], truth[computed]
    return float(
        np.exp(
            minimize_scalar(
                lambda log_temperature: cross_entropy(scale(probabilities, np.exp(log_temperature)), truth),
                bounds=(-1.5, 1.5),
                method="bounded",
            ).x
        )
    )


def scale(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities whose logits are divided by `temperature`; those of slices left out stay 0."""
    scaled = expit(logit(np.clip(probabilities.astype(np.float64), SMALLEST, 1 - SMALLEST)) / temperature)
    return np.where(probabilities > 0, scaled, 0)


def cross_entropy(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Mean over the voxels."""
    p = np.clip(probabilities.astype(np.float64), SMALLEST, 1 - SMALLEST)
    return float(-np.mean(np.where(truth, np.log(p), np.log1p(-p))))


def scale_by_the_others(probabilities: list[np.ndarray], truths: list[np.ndarray]) -> list[np.ndarray]:
    """Each patient's voxels, scaled by the temperature fitted on all other patients'."""
    scaled = []
    for index, own in enumerate(probabilities):
        others, their_truth = (np.concatenate(of[:index] + of[index + 1 :]) for of in (probabilities, truths))
        scaled.append(scale(own, fit_temperature(others, their_truth)))
    return scaled


def calibration_error(count: np.ndarray, mean: np.ndarray, share: np.ndarray) -> float:
    """Expected calibration error: |mean probability - share of lesion|, weighted by the voxels of each bin."""
    return float(np.nansum(count * np.abs(mean - share)) / count.sum())


def calibration_row(
    name: str, probabilities: list[np.ndarray], truths: list[np.ndarray]
) -> tuple[list[str], tuple[np.ndarray, np.ndarray]]:
    """A row on one model's calibration in the patients' voxels, and its curve: (mean probability, share of lesion)."""
    voxels, truth = np.concatenate(probabilities), np.concatenate(truths)
    count, mean, share = reliability(voxels, truth)
    left_out = scale_by_the_others(probabilities, truths)
    entropies = [
        np.mean([cross_entropy(*pair) for pair in zip(of, truths, strict=True)]) for of in (probabilities, left_out)
    ]
    row = [
        name,
        *(f"{value:.2f}" for value in share),
        f"{calibration_error(count, mean, share):.4f}",
        f"{calibration_error(*reliability(np.concatenate(left_out), truth)):.4f}",
        *(f"{entropy:.4f}" for entropy in entropies),
        f"{fit_temperature(voxels, truth):.2f}",
    ]
    return row, (mean, share)


def draw_reliability(curves: dict[str, tuple[np.ndarray, np.ndarray]], path: Path) -> None:
    figure = new_figure(4.2, 4)
    ax = figure.subplots()
    ax.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--", label="perfect")
    styles = cycle((marker, color) for marker in "osD" for color in ("#0072b2", "#d55e00", "#009e73"))
    for (name, (mean, share)), (marker, color) in zip(curves.items(), styles, strict=False):
        ax.plot(mean, share, marker=marker, markersize=4, linewidth=1.5, color=color, label=name)
    ax.set_xlabel("predicted probability")
    ax.set_ylabel("share of voxels that are lesion")
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    ax.grid(color="0.9", linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8)
    figure.savefig(path)


def check_figure(path: Path) -> None:
    """Make the figure's folder and open its file, so that no hours of computing end at one that cannot be written.

    Raises:
        OSError: it cannot.
        ValueError: a suffix of no format of matplotlib.
    """
    formats = new_figure(1, 1).canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in formats:
        raise ValueError(f"--figure must name a file that ends in .png, or in one of {', '.join(formats)}, got {path}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    path.open("ab").close()
    if is_new:
        path.unlink()


def main(argv: list[str] | None = None) -> None:
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        if args.figure:
            check_figure(args.figure)
        split, rows_of, models = find_predictions(args.dataset, args.split, args.predictions)
        if len(rows_of) < 2 or sum(split["has_lesion"]) < 3:
            raise ValueError("It takes two patients or more, and three slices or more with a lesion.")
    except (OSError, ValueError) as error:
        parser.error(str(error))
    truths, brains, brightness = [], [], []
    predictions = {name: [] for name in models}
    for patient_id in tqdm(sorted(rows_of), desc="patients"):
        patient = read_patient(split, patient_id, rows_of[patient_id])
        truths.append(patient.truth)
        brains.append(brain(patient))
        brightness += [
            lesion_brightness(image, lesion)
            for image, lesion in zip(patient.slices, patient.truth, strict=True)
            if lesion.any()
        ]
        for name, store in models.items():
            predictions[name].append(read_probabilities(store, patient))

    lesions = [mask for truth in truths for mask in truth if mask.any()]
    properties = {
        "area in pixels": np.array(list(map(np.count_nonzero, lesions))),
        "irregularity": np.array(list(map(irregularity, lesions))),
        "FLAIR in the lesion": np.array(brightness),
    }
    inside = [mask | truth for mask, truth in zip(brains, truths, strict=True)]
    truth_inside = [truth[where] for truth, where in zip(truths, inside, strict=True)]

    cleaning, groups, calibration, curves = [], [], [], {}
    for name, probabilities in predictions.items():
        cleaning += postprocessing_rows(name, probabilities, truths, brains)
        masks = [mask_from_probabilities(volume, extend=not args.no_extend) for volume in probabilities]
        dice = np.concatenate(
            [slice_dice(mask, truth)[truth.any(axis=(1, 2))] for mask, truth in zip(masks, truths, strict=True)]
        )
        groups += [by_thirds(name, what, values, dice) for what, values in properties.items()]
        probabilities_inside = [volume[where] for volume, where in zip(probabilities, inside, strict=True)]
        row, curves[name] = calibration_row(name, probabilities_inside, truth_inside)
        calibration.append(row)

    print(f"{len(truths)} patients of {args.split}, {len(lesions)} slices with a lesion, threshold {THRESHOLD}\n")
    print(table(["model", "post-processing", *SCORES], cleaning))
    print(table(["model", "slices by", "lowest third", "middle", "highest"], groups))
    edges = [f"{low / BINS:.1f} to {(low + 1) / BINS:.1f}" for low in range(BINS)]
    errors = ["calibration error", "of patients left out", "cross-entropy", "of patients left out", "temperature"]
    print(table(["model, share of lesion at", *edges, *errors], calibration))
    if args.figure:
        draw_reliability(curves, args.figure)


if __name__ == "__main__":
    main()
