"""Metrics against hand-computed cases, brute force and the properties their definitions promise."""

import math

import numpy as np
import pytest
from scipy import ndimage

from modeling.metrics import (
    Counts,
    bootstrap_interval,
    confusion_counts,
    dice,
    false_alarm_rate,
    false_alarms,
    hausdorff95,
    iou,
    lesion_slice_dice,
    precision,
    ratio,
    recall,
    score_volume,
    slice_dice,
    summarize,
)


def random_pair(seed, shape=(4, 9, 11)):
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.standard_normal((2, *shape)), sigma=(0, *[1.0] * len(shape)))
    return smooth[0] > 0.1, smooth[1] + smooth[0] > 0.1


def brute_force_hausdorff95(prediction, truth, spacing):
    """The definition, pixel by pixel: surfaces by looking at face neighbours, all pairs of distances."""

    def surface(mask):
        points = []
        for index in np.ndindex(mask.shape):
            if not mask[index]:
                continue
            for axis in range(mask.ndim):
                for step in (-1, 1):
                    neighbour = list(index)
                    neighbour[axis] += step
                    outside = not 0 <= neighbour[axis] < mask.shape[axis]
                    if (outside or not mask[tuple(neighbour)]) and index not in points:
                        points.append(index)
        return np.array(points) * spacing

    distances = np.linalg.norm(surface(prediction)[:, None] - surface(truth)[None], axis=-1)
    return max(np.percentile(distances.min(axis=0), 95), np.percentile(distances.min(axis=1), 95))


# Counts and overlap


def test_hand_computed_counts_and_scores():
    truth = np.array([[1, 1, 1, 0], [0, 0, 0, 0]], dtype=bool)
    prediction = np.array([[0, 1, 1, 1], [1, 0, 0, 0]], dtype=bool)
    counts = confusion_counts(prediction, truth)
    assert counts == Counts(tp=2, fp=2, fn=1, tn=3)
    assert dice(counts) == pytest.approx(4 / 7)
    assert iou(counts) == pytest.approx(2 / 5)
    assert precision(counts) == pytest.approx(2 / 4)
    assert recall(counts) == pytest.approx(2 / 3)


@pytest.mark.parametrize("seed", range(4))
def test_overlap_agrees_with_set_arithmetic(seed):
    prediction, truth = random_pair(seed)
    p, t = set(map(tuple, np.argwhere(prediction))), set(map(tuple, np.argwhere(truth)))
    counts = confusion_counts(prediction, truth)
    assert dice(counts) == pytest.approx(2 * len(p & t) / (len(p) + len(t)))
    assert iou(counts) == pytest.approx(len(p & t) / len(p | t))
    assert counts.tp + counts.fp + counts.fn + counts.tn == truth.size


@pytest.mark.parametrize("seed", range(4))
def test_overlap_is_symmetric_and_iou_follows_from_dice(seed):
    prediction, truth = random_pair(seed)
    forward, backward = confusion_counts(prediction, truth), confusion_counts(truth, prediction)
    assert dice(forward) == dice(backward)
    assert iou(forward) == iou(backward)
    assert precision(forward) == recall(backward)
    assert iou(forward) == pytest.approx(dice(forward) / (2 - dice(forward)))


def test_a_patients_counts_are_the_sum_of_the_slices_counts():
    prediction, truth = random_pair(0)
    slices = [confusion_counts(p, t) for p, t in zip(prediction, truth, strict=True)]
    assert sum(slices, Counts()) == confusion_counts(prediction, truth)


def test_counts_do_not_overflow_narrow_integers():
    full = np.ones((300, 300), dtype=bool)
    assert confusion_counts(full, full) == Counts(tp=90_000)


def test_counts_add_to_counts_only():
    with pytest.raises(TypeError):
        Counts(1, 2, 3, 4) + 1


# The empty-mask rule


def test_a_ratio_over_nothing_is_undefined():
    assert ratio(3, 4) == 0.75
    assert ratio(0, 4) == 0.0
    assert math.isnan(ratio(0, 0))


@pytest.mark.parametrize(
    ("truth_empty", "prediction_empty", "expected"),
    [
        (True, True, {dice: math.nan, iou: math.nan, precision: math.nan, recall: math.nan}),
        (True, False, {dice: 0.0, iou: 0.0, precision: 0.0, recall: math.nan}),
        (False, True, {dice: 0.0, iou: 0.0, precision: math.nan, recall: 0.0}),
    ],
)
def test_the_empty_mask_rule(truth_empty, prediction_empty, expected):
    lesion, empty = np.ones((2, 3), dtype=bool), np.zeros((2, 3), dtype=bool)
    counts = confusion_counts(empty if prediction_empty else lesion, empty if truth_empty else lesion)
    for score, value in expected.items():
        assert score(counts) == pytest.approx(value, nan_ok=True), score.__name__


def test_slices_without_a_lesion_do_not_lift_the_lesion_slice_dice():
    truth, prediction = np.zeros((5, 4, 4), dtype=bool), np.zeros((5, 4, 4), dtype=bool)
    truth[0, 0, :2] = prediction[0, 0, :2] = True  # found: 1
    truth[1, 0, :2] = prediction[1, 0, 1:3] = True  # half found: 1/2
    truth[2, 0, :2] = True  # missed: 0
    prediction[3, 0, 0] = True  # false alarm; slice 4 is rightly empty
    np.testing.assert_allclose(slice_dice(prediction, truth), [1, 0.5, 0, 0, math.nan])
    np.testing.assert_allclose(lesion_slice_dice(prediction, truth), [1, 0.5, 0])
    np.testing.assert_array_equal(false_alarms(prediction, truth), [True, False])
    assert false_alarm_rate(prediction, truth) == 0.5


def test_slice_scores_of_one_sided_volumes():
    empty, full = np.zeros((3, 4, 4), dtype=bool), np.ones((3, 4, 4), dtype=bool)
    assert lesion_slice_dice(full, empty).size == 0
    assert false_alarm_rate(full, empty) == 1.0
    assert false_alarm_rate(empty, empty) == 0.0
    assert math.isnan(false_alarm_rate(full, full))


# Surface distance


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("spacing", [None, (3.0, 0.5, 1.5)])
def test_hausdorff95_agrees_with_brute_force(seed, spacing):
    prediction, truth = random_pair(seed)
    expected = brute_force_hausdorff95(prediction, truth, spacing or (1, 1, 1))
    assert expected > 0
    assert hausdorff95(prediction, truth, spacing) == pytest.approx(expected)
    assert hausdorff95(truth, prediction, spacing) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(3))
def test_hausdorff95_of_a_single_slice_agrees_with_brute_force(seed):
    prediction, truth = random_pair(seed, shape=(13, 12))
    assert hausdorff95(prediction, truth) == pytest.approx(brute_force_hausdorff95(prediction, truth, (1, 1)))


def test_hausdorff95_of_a_shifted_square_is_the_shift():
    truth = np.zeros((40, 40), dtype=bool)
    truth[5:15, 5:15] = True
    assert hausdorff95(np.roll(truth, 4, axis=1), truth) == 4.0
    assert hausdorff95(np.roll(truth, 4, axis=1), truth, spacing=(1.0, 0.5)) == 2.0
    assert hausdorff95(truth, truth) == 0.0


def test_hausdorff95_takes_the_larger_direction_and_forgives_few_outliers():
    truth = np.zeros((60, 60), dtype=bool)
    truth[10:30, 10:30] = True  # 76 surface pixels
    far = truth.copy()
    far[55, 55] = True  # 1 of 77 surface pixels, under 5 %
    assert hausdorff95(far, truth) == 0.0
    far[50:56, 50:56] = True  # 20 of 96: one direction only
    assert hausdorff95(far, truth) == hausdorff95(truth, far) == pytest.approx(math.hypot(26, 26), abs=2)


@pytest.mark.parametrize("seed", range(3))
def test_hausdorff95_is_invariant_to_translation_and_grows_with_spacing(seed):
    pair = np.zeros((2, 8, 20, 20), dtype=bool)
    pair[:, 2:6, 3:12, 4:15] = random_pair(seed)
    distance = hausdorff95(*pair)
    assert hausdorff95(*np.roll(pair, (1, 3, -2), axis=(1, 2, 3))) == distance
    assert hausdorff95(*pair, spacing=(2.0, 2.0, 2.0)) == pytest.approx(2 * distance)


def test_hausdorff95_does_not_shrink_as_a_mask_moves_away():
    truth = np.zeros((3, 30, 60), dtype=bool)
    truth[:, 10:20, 5:15] = True
    distances = [hausdorff95(np.roll(truth, shift, axis=2), truth) for shift in range(0, 40, 4)]
    assert distances == sorted(distances)
    assert distances[0] == 0.0
    assert distances[-1] > distances[1]


def test_hausdorff95_is_undefined_where_a_mask_is_empty():
    mask, empty = np.ones((2, 3, 3), dtype=bool), np.zeros((2, 3, 3), dtype=bool)
    assert all(math.isnan(hausdorff95(*pair)) for pair in [(mask, empty), (empty, mask), (empty, empty)])


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (1.0, 0.0, 1.0), (1.0, float("nan"), 1.0), 2.0])
def test_hausdorff95_refuses_a_spacing_that_does_not_fit(spacing):
    mask = np.ones((2, 3, 3), dtype=bool)
    with pytest.raises(ValueError, match="one positive value for each of the 3 axes"):
        hausdorff95(mask, mask, spacing=spacing)


# Bootstrap


def test_bootstrap_interval_agrees_with_resampling_by_hand():
    values = np.random.default_rng(1).beta(8, 2, size=22)
    rng = np.random.default_rng(7)
    means = [values[rng.integers(0, 22, 22)].mean() for _ in range(20_000)]
    low, high = bootstrap_interval(values)
    np.testing.assert_allclose([low, high], np.percentile(means, [2.5, 97.5]), atol=2e-3)
    assert low < values.mean() < high


def test_bootstrap_interval_is_reproducible_and_narrows_with_the_level():
    values = np.linspace(0.4, 0.95, 15)
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(values) != bootstrap_interval(values, seed=1)
    wide, narrow = bootstrap_interval(values, level=0.95), bootstrap_interval(values, level=0.5)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_bootstrap_interval_leaves_undefined_scores_out():
    values = np.array([0.9, 0.8, 0.7, 0.6])
    assert bootstrap_interval([math.nan, *values]) == bootstrap_interval(values)


def test_bootstrap_interval_of_the_median_stays_among_the_values():
    values = np.array([0.1, 0.8, 0.81, 0.82, 0.83])
    low, high = bootstrap_interval(values, statistic=np.median)
    assert low in values
    assert high in values
    assert high == 0.83


def test_bootstrap_interval_of_equal_values_has_no_width():
    assert bootstrap_interval([0.8, 0.8, 0.8]) == pytest.approx((0.8, 0.8))


@pytest.mark.parametrize("values", [[], [0.9], [0.9, math.nan]])
def test_bootstrap_interval_of_fewer_than_two_scores_is_undefined(values):
    assert all(math.isnan(end) for end in bootstrap_interval(values))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"values": np.ones((2, 2))}, r"one-dimensional.*\(2, 2\)"),
        ({"values": [0.1, 0.2], "level": 95}, "level"),
        ({"values": [0.1, 0.2], "resamples": 0}, "resamples"),
    ],
)
def test_bootstrap_interval_refuses_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(**arguments)


# Volumes and their summary


def cube(*slices, size=4):
    """A (6, 12, 12) mask with a square in some slices."""
    mask = np.zeros((6, 12, 12), dtype=bool)
    mask[list(slices), 2 : 2 + size, 2 : 2 + size] = True
    return mask


def test_the_scores_of_a_volume_are_those_of_the_single_functions():
    prediction, truth = cube(1, 2, 5), cube(2, 3)
    counts = confusion_counts(prediction, truth)
    scores = score_volume(prediction, truth)
    assert scores.counts == counts
    assert (scores.dice, scores.iou) == (dice(counts), iou(counts))
    assert (scores.precision, scores.recall) == (precision(counts), recall(counts))
    assert scores.hausdorff95 == hausdorff95(prediction, truth) > 0
    assert (scores.lesion_slices, scores.lesion_slice_dice) == (2, 0.5)
    assert (scores.empty_slices, scores.false_alarms) == (4, 2)
    assert math.isnan(score_volume(prediction, truth, hausdorff=False).hausdorff95)


def test_the_summary_averages_patients_and_pools_slices():
    found = score_volume(cube(0, 1), cube(0, 1))  # Dice 1, two of two lesion slices, no false alarm in 4
    missed = score_volume(cube(5), cube(0, 1, 2, 3))  # Dice 0, none of four lesion slices, 1 false alarm in 2
    half = score_volume(cube(0), cube(0, 1))  # Dice 2/3, one of two lesion slices, no false alarm in 4
    summary = summarize([found, missed, half])
    assert summary.dice_mean == pytest.approx((1 + 0 + 2 / 3) / 3)
    assert summary.dice_median == pytest.approx(2 / 3)
    assert summary.iou_mean == pytest.approx((1 + 0 + 1 / 2) / 3)
    assert summary.precision_mean == pytest.approx((1 + 0 + 1) / 3)
    assert summary.recall_mean == pytest.approx((1 + 0 + 1 / 2) / 3)
    assert (summary.lesion_slices, summary.lesion_slice_dice) == (8, (2 + 0 + 1) / 8)
    assert (summary.empty_slices, summary.false_alarms, summary.false_alarm_rate) == (10, 1, 0.1)
    assert summary.hausdorff95_patients == 3
    assert summary.hausdorff95_median == half.hausdorff95
    partial = [score_volume(cube(0), cube(*range(end))) for end in (2, 3, 4)]  # whose IoU is 1/2, 1/3, 1/4
    assert summarize(partial).dice_interval == bootstrap_interval([2 / 3, 1 / 2, 2 / 5])


def test_patients_without_a_score_do_not_count_in_its_mean():
    found = score_volume(cube(0, 1), cube(0, 1))
    silent = score_volume(cube(), cube())  # no lesion, none predicted: no Dice, no distance, six quiet slices
    missed = score_volume(cube(), cube(0))  # Dice 0, no distance
    summary = summarize([found, silent, missed])
    assert summary.dice_mean == 0.5
    assert summary.precision_mean == 1.0
    assert summary.recall_mean == 0.5
    assert (summary.hausdorff95_mean, summary.hausdorff95_patients) == (0.0, 1)
    assert summary.lesion_slice_dice == pytest.approx(2 / 3)
    assert (summary.empty_slices, summary.false_alarm_rate) == (15, 0.0)


def test_the_summary_of_undefined_scores_is_undefined():
    summary = summarize([score_volume(cube(), cube())])
    assert math.isnan(summary.dice_mean)
    assert math.isnan(summary.dice_median)
    assert all(math.isnan(end) for end in summary.dice_interval)
    assert math.isnan(summary.lesion_slice_dice)
    assert summary.false_alarm_rate == 0.0


# Bad input


@pytest.mark.parametrize(
    "function", [confusion_counts, slice_dice, lesion_slice_dice, false_alarm_rate, hausdorff95, score_volume]
)
def test_only_bool_masks_of_one_shape_are_compared(function):
    mask = np.zeros((2, 4, 4), dtype=bool)
    with pytest.raises(ValueError, match="prediction must be a bool array, got float32"):
        function(mask.astype(np.float32), mask)
    with pytest.raises(ValueError, match="truth must be a bool array, got uint8"):
        function(mask, mask.astype(np.uint8))
    with pytest.raises(ValueError, match=r"one shape, got \(2, 4, 4\) and \(1, 4, 4\)"):
        function(mask, mask[:1])


@pytest.mark.parametrize("function", [slice_dice, lesion_slice_dice, false_alarm_rate, score_volume])
def test_slice_scores_need_a_volume(function):
    with pytest.raises(ValueError, match=r"\(S, H, W\), got \(4, 4\)"):
        function(np.zeros((4, 4), dtype=bool), np.zeros((4, 4), dtype=bool))


def test_the_arguments_are_never_written():
    prediction, truth = random_pair(2)
    before = prediction.copy(), truth.copy()
    for function in (confusion_counts, slice_dice, false_alarms, hausdorff95):
        function(prediction, truth)
    np.testing.assert_array_equal(prediction, before[0])
    np.testing.assert_array_equal(truth, before[1])
