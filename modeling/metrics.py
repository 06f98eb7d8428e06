"""Segmentation metrics on arrays: counts first, formulas second, aggregation over patients last.

A score that its definition leaves open is NaN, never 1 and never 0; `ratio` is the one place that decides it. Two empty
masks thus have no Dice: agreement on the absence of a lesion is reported by `false_alarm_rate`, not by an average that
empty slices would lift. Aggregate with `np.nanmean`, and state how many values it took.

Masks are bool arrays. A volume is `(S, H, W)`, axial slices first.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree
from scipy.stats import bootstrap


@dataclass(frozen=True)
class Counts:
    """Pixels by outcome. Counts of disjoint regions add up, so a patient's counts are the sum of the slices' counts."""

    tp: int = 0
    fp: int = 0
    fn: int = 0
    tn: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        if not isinstance(other, Counts):
            return NotImplemented
        return Counts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn)


class Interval(NamedTuple):
    """A confidence interval; both ends are NaN where it is undefined."""

    low: float
    high: float


def ratio(numerator: float, denominator: float) -> float:
    """The empty-mask rule: a ratio over nothing is undefined, NaN.

    What follows for each score (truth, prediction):

    | score | both empty | truth empty | prediction empty |
    |---|---|---|---|
    | `dice`, `iou` | NaN | 0 | 0 |
    | `precision` | NaN | 0 | NaN |
    | `recall` | NaN | NaN | 0 |
    """
    return numerator / denominator if denominator else math.nan


def confusion_counts(prediction: np.ndarray, truth: np.ndarray) -> Counts:
    """Count true and false positives and negatives.

    Args:
        prediction, truth: bool arrays of one shape, of any number of dimensions.

    Raises:
        ValueError: an array is not bool, or the shapes differ.
    """
    _check_pair(prediction, truth)
    tp = int(np.count_nonzero(prediction & truth))
    fp = int(np.count_nonzero(prediction)) - tp
    fn = int(np.count_nonzero(truth)) - tp
    return Counts(tp=tp, fp=fp, fn=fn, tn=truth.size - tp - fp - fn)


def dice(counts: Counts) -> float:
    """Dice coefficient 2 tp / (2 tp + fp + fn) in [0, 1] (Dice, Ecology 26, 1945); NaN where both masks are empty."""
    return ratio(2 * counts.tp, 2 * counts.tp + counts.fp + counts.fn)


def iou(counts: Counts) -> float:
    """Intersection over union, the Jaccard index tp / (tp + fp + fn) in [0, 1]; NaN where both masks are empty."""
    return ratio(counts.tp, counts.tp + counts.fp + counts.fn)


def precision(counts: Counts) -> float:
    """Share of the predicted pixels that are lesion, tp / (tp + fp) in [0, 1]; NaN where nothing is predicted."""
    return ratio(counts.tp, counts.tp + counts.fp)


def recall(counts: Counts) -> float:
    """Share of the lesion's pixels that are predicted, tp / (tp + fn) in [0, 1]; NaN where there is no lesion."""
    return ratio(counts.tp, counts.tp + counts.fn)


def slice_dice(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Dice of each slice.

    Args:
        prediction, truth: `(S, H, W)` bool.

    Returns:
        `(S,)` float64 in [0, 1], NaN for slices where both masks are empty.

    Raises:
        ValueError: an array is not bool or not `(S, H, W)`, or the shapes differ.
    """
    _check_pair(prediction, truth, ndim=3)
    return np.array([dice(confusion_counts(p, t)) for p, t in zip(prediction, truth, strict=True)], dtype=np.float64)


def lesion_slice_dice(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """`slice_dice` of the slices that have a lesion in the truth, `(L,)` float64 without NaN, in slice order."""
    return slice_dice(prediction, truth)[truth.any(axis=(1, 2))]


def false_alarms(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Which of the slices without a lesion in the truth have any predicted pixel.

    Args:
        prediction, truth: `(S, H, W)` bool.

    Returns:
        `(E,)` bool, one value per slice that is empty in the truth, in slice order.

    Raises:
        ValueError: an array is not bool or not `(S, H, W)`, or the shapes differ.
    """
    _check_pair(prediction, truth, ndim=3)
    return prediction.any(axis=(1, 2))[~truth.any(axis=(1, 2))]


def false_alarm_rate(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Share in [0, 1] of the slices without a lesion where anything is predicted; NaN where all slices have one."""
    alarms = false_alarms(prediction, truth)
    return ratio(int(np.count_nonzero(alarms)), alarms.size)


def hausdorff95(prediction: np.ndarray, truth: np.ndarray, spacing: tuple[float, ...] | None = None) -> float:
    """95th percentile Hausdorff distance between the surfaces of two masks.

    The larger of the two directed distances, each the 95th percentile (linear interpolation) of the Euclidean distances
    from every surface pixel of one mask to the nearest surface pixel of the other (Maier-Hein et al., Metrics reloaded,
    Nature Methods 21, 2024; as MONAI computes it. MedPy takes one percentile of both directions pooled, which differs.)
    Surface pixels are the foreground pixels with background, or the frame's edge, among their face neighbours.

    Args:
        prediction, truth: bool arrays of one shape, `(H, W)` or `(S, H, W)`; a volume is measured in three dimensions.
        spacing: distance between neighbours along each axis, one positive value per axis. Without it every step is 1,
            so that the result is in pixels; a step from slice to slice then counts as one pixel, however thick the
            slices are.

    Returns:
        The distance in pixels, or in the unit of `spacing`; NaN where either mask is empty.

    Raises:
        ValueError: an array is not bool or has other dimensions, the shapes differ, or `spacing` does not fit.
    """
    _check_pair(prediction, truth)
    if truth.ndim not in (2, 3):
        raise ValueError(f"hausdorff95 takes masks of shape (H, W) or (S, H, W), got {truth.shape}.")
    scale = np.ones(truth.ndim) if spacing is None else np.asarray(spacing, dtype=np.float64)
    if scale.shape != (truth.ndim,) or not (np.isfinite(scale).all() and (scale > 0).all()):
        raise ValueError(f"spacing must have one positive value for each of the {truth.ndim} axes, got {spacing}.")
    if not (prediction.any() and truth.any()):
        return math.nan
    surface_p, surface_t = _surface_points(prediction) * scale, _surface_points(truth) * scale
    to_truth, _ = cKDTree(surface_t).query(surface_p)
    to_prediction, _ = cKDTree(surface_p).query(surface_t)
    return float(max(np.percentile(to_truth, 95), np.percentile(to_prediction, 95)))


def bootstrap_interval(
    values: Sequence[float] | np.ndarray,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    statistic: Callable[..., np.ndarray] = np.mean,
) -> Interval:
    """Percentile bootstrap confidence interval of a statistic over patients (Efron and Tibshirani, 1993, chapter 13).

    Args:
        values: `(N,)` scores, one per patient: slices of one patient are not independent. NaN (undefined) values are
            left out.
        level: confidence level, in (0, 1).
        resamples: number of resamples with replacement.
        seed: seed of the resampling; the same values give the same interval.
        statistic: reduces its `axis`, such as `np.mean` or `np.median`.

    Returns:
        `Interval(low, high)`; NaN ends where fewer than two values are defined.

    Raises:
        ValueError: `values` is not one-dimensional, `level` is outside (0, 1) or `resamples` is below 1.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"values must be one-dimensional, one score per patient, got shape {values.shape}.")
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must lie between 0 and 1, such as 0.95, got {level}.")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}.")
    values = values[~np.isnan(values)]
    if values.size < 2:
        return Interval(math.nan, math.nan)
    interval = bootstrap(
        (values,),
        statistic,
        n_resamples=resamples,
        confidence_level=level,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(float(interval.low), float(interval.high))


@dataclass(frozen=True)
class VolumeScores:
    """Scores of one predicted volume; NaN where undefined, and for `hausdorff95` where it was not computed.

    Attributes:
        counts: voxels by outcome.
        dice, iou, precision, recall: of the whole volume, in [0, 1].
        hausdorff95: in pixels.
        lesion_slices: slices with a lesion in the truth.
        lesion_slice_dice: mean Dice of these slices.
        empty_slices: slices without a lesion in the truth.
        false_alarms: how many of these have any predicted pixel.
    """

    counts: Counts
    dice: float
    iou: float
    precision: float
    recall: float
    hausdorff95: float
    lesion_slices: int
    lesion_slice_dice: float
    empty_slices: int
    false_alarms: int


def score_volume(prediction: np.ndarray, truth: np.ndarray, *, hausdorff: bool = True) -> VolumeScores:
    """All scores of one volume.

    Args:
        prediction, truth: `(S, H, W)` bool.
        hausdorff: whether HD95 is computed; it costs more than all else.

    Raises:
        ValueError: an array is not bool or not `(S, H, W)`, or the shapes differ.
    """
    counts = confusion_counts(prediction, truth)
    slice_scores, alarms = lesion_slice_dice(prediction, truth), false_alarms(prediction, truth)
    return VolumeScores(
        counts=counts,
        dice=dice(counts),
        iou=iou(counts),
        precision=precision(counts),
        recall=recall(counts),
        hausdorff95=hausdorff95(prediction, truth) if hausdorff else math.nan,
        lesion_slices=slice_scores.size,
        lesion_slice_dice=ratio(float(slice_scores.sum()), slice_scores.size),
        empty_slices=alarms.size,
        false_alarms=int(alarms.sum()),
    )


@dataclass(frozen=True)
class Summary:
    """Scores of several patients.

    Means and medians are over the patients for whom the score is defined, and NaN where there is none. `dice_interval`
    is the 95 % bootstrap interval of the mean Dice. `hausdorff95_patients` counts the patients who have a distance.
    `lesion_slice_dice` and `false_alarm_rate` take the slices of all patients together, each slice counting once.
    """

    dice_mean: float
    dice_interval: Interval
    dice_median: float
    iou_mean: float
    precision_mean: float
    recall_mean: float
    hausdorff95_mean: float
    hausdorff95_median: float
    hausdorff95_patients: int
    lesion_slices: int
    lesion_slice_dice: float
    empty_slices: int
    false_alarms: int
    false_alarm_rate: float


def summarize(scores: Sequence[VolumeScores]) -> Summary:
    """Aggregate patients' scores, one per patient."""

    def over_defined(statistic: Callable[[np.ndarray], float], name: str) -> float:
        values = np.array([getattr(score, name) for score in scores], dtype=np.float64)
        values = values[~np.isnan(values)]
        return float(statistic(values)) if values.size else math.nan

    lesion_slices = sum(score.lesion_slices for score in scores)
    empty_slices = sum(score.empty_slices for score in scores)
    alarms = sum(score.false_alarms for score in scores)
    slice_dice_sum = sum(score.lesion_slice_dice * score.lesion_slices for score in scores if score.lesion_slices)
    return Summary(
        dice_mean=over_defined(np.mean, "dice"),
        dice_interval=bootstrap_interval([score.dice for score in scores]),
        dice_median=over_defined(np.median, "dice"),
        iou_mean=over_defined(np.mean, "iou"),
        precision_mean=over_defined(np.mean, "precision"),
        recall_mean=over_defined(np.mean, "recall"),
        hausdorff95_mean=over_defined(np.mean, "hausdorff95"),
        hausdorff95_median=over_defined(np.median, "hausdorff95"),
        hausdorff95_patients=sum(not math.isnan(score.hausdorff95) for score in scores),
        lesion_slices=lesion_slices,
        lesion_slice_dice=ratio(slice_dice_sum, lesion_slices),
        empty_slices=empty_slices,
        false_alarms=alarms,
        false_alarm_rate=ratio(alarms, empty_slices),
    )


def _surface_points(mask: np.ndarray) -> np.ndarray:
    """Coordinates `(N, ndim)` of the foreground pixels that touch background or the frame's edge with a face."""
    box = ndimage.find_objects(mask.view(np.uint8), max_label=1)[0]
    cropped = mask[box]
    return np.argwhere(cropped & ~ndimage.binary_erosion(cropped)) + [side.start for side in box]


def _check_pair(prediction: np.ndarray, truth: np.ndarray, ndim: int | None = None) -> None:
    for name, array in (("prediction", prediction), ("truth", truth)):
        if not isinstance(array, np.ndarray) or array.dtype != bool:
            kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
            raise ValueError(
                f"{name} must be a bool array, got {kind}. Threshold probabilities, or compare labels, first."
            )
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction and truth must have one shape, got {prediction.shape} and {truth.shape}.")
    if ndim is not None and truth.ndim != ndim:
        raise ValueError(f"prediction and truth must be volumes of shape (S, H, W), got {truth.shape}.")
