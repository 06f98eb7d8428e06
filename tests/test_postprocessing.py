"""Post-processing of masks: components, holes, and that nothing else is touched."""

import itertools

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from modeling.postprocessing import (
    LOWEST_EXPECTED_SCORE,
    describe_removed,
    fill_holes,
    largest_component,
    mask_from_probabilities,
    outline_threshold,
    postprocess_volume,
    remove_small_components,
)


def blobs(seed, shape=(7, 24, 20), threshold=-0.02):
    """Irregular components with islands, holes and tunnels: smoothed noise, cut."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), sigma=0.7)
    return noise > threshold


def box(shape, *ranges):
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(*r) for r in ranges)] = True
    return mask


@pytest.fixture
def lesion_with_islands():
    """A lesion of 3 x 6 x 6 = 108 voxels, an island of 12 and a single voxel, apart from each other."""
    lesion = box((8, 20, 20), (1, 4), (2, 8), (2, 8))
    island = box((8, 20, 20), (5, 7), (12, 14), (12, 15))
    voxel = box((8, 20, 20), (0, 1), (18, 19), (0, 1))
    return lesion, island, voxel


def test_small_islands_go_and_the_lesion_stays(lesion_with_islands):
    lesion, island, voxel = lesion_with_islands
    mask = lesion | island | voxel
    np.testing.assert_array_equal(remove_small_components(mask, min_voxels=2), lesion | island)
    np.testing.assert_array_equal(remove_small_components(mask, min_voxels=12), lesion | island)
    np.testing.assert_array_equal(remove_small_components(mask, min_voxels=13), lesion)
    np.testing.assert_array_equal(remove_small_components(mask, keep_fraction=12 / 108), lesion | island)
    np.testing.assert_array_equal(remove_small_components(mask, keep_fraction=0.12), lesion)
    np.testing.assert_array_equal(remove_small_components(mask, min_voxels=2, keep_fraction=0.0), lesion | island)
    np.testing.assert_array_equal(remove_small_components(mask), mask)


def test_an_island_of_just_the_fraction_stays_whatever_the_rounding():
    hundred, seven = box((1, 40, 40), (0, 1), (0, 10), (0, 10)), box((1, 40, 40), (0, 1), (20, 21), (20, 27))
    np.testing.assert_array_equal(remove_small_components(hundred | seven, keep_fraction=0.07), hundred | seven)


def test_the_only_component_goes_when_it_is_below_min_voxels(lesion_with_islands):
    _, island, _ = lesion_with_islands
    assert not remove_small_components(island, min_voxels=13).any()
    np.testing.assert_array_equal(remove_small_components(island, keep_fraction=1.0), island)


def test_size_is_counted_in_three_dimensions_not_per_slice():
    column = box((6, 10, 10), (0, 6), (4, 6), (4, 6))  # 4 pixels in each of 6 slices
    plate = box((6, 10, 10), (0, 1), (7, 10), (6, 10))  # 12 pixels in one slice
    np.testing.assert_array_equal(remove_small_components(column | plate, min_voxels=13), column)
    np.testing.assert_array_equal(largest_component(column | plate), column)


def test_voxels_that_meet_at_a_corner_are_one_component():
    mask = np.zeros((2, 6, 6), dtype=bool)
    mask[0, 2, 2] = mask[1, 3, 3] = True
    assert remove_small_components(mask, min_voxels=2).sum() == 2
    mask[1, 3, 3], mask[1, 4, 4] = False, True  # one step further: two components
    assert remove_small_components(mask, min_voxels=2).sum() == 0


def test_largest_component_keeps_the_first_of_equals():
    first, second = box((10, 10), (0, 2), (0, 2)), box((10, 10), (5, 7), (5, 7))
    np.testing.assert_array_equal(largest_component(first | second), first)
    np.testing.assert_array_equal(
        largest_component(first | second | box((10, 10), (7, 8), (6, 7))), second | box((10, 10), (7, 8), (6, 7))
    )


def test_a_hole_is_filled_in_its_slice_even_where_it_opens_into_the_slice_above():
    ring = box((3, 12, 12), (0, 2), (3, 9), (3, 9)) & ~box((3, 12, 12), (0, 2), (5, 7), (5, 7))
    np.testing.assert_array_equal(fill_holes(ring), box((3, 12, 12), (0, 2), (3, 9), (3, 9)))


def test_a_cavity_enclosed_in_three_dimensions_is_filled():
    solid = box((5, 12, 12), (0, 5), (2, 10), (2, 10))
    cavity = box((5, 12, 12), (1, 4), (4, 8), (4, 8))
    np.testing.assert_array_equal(fill_holes(solid & ~cavity), solid)


def test_a_contour_closed_only_through_corners_has_an_inside():
    diamond = np.zeros((5, 5), dtype=bool)
    diamond[[0, 1, 1, 2, 2, 3, 3, 4], [2, 1, 3, 0, 4, 1, 3, 2]] = True
    assert fill_holes(diamond).sum() == 13


def test_background_at_the_edge_of_the_frame_is_no_hole():
    bay = box((8, 8), (0, 5), (1, 7)) & ~box((8, 8), (0, 3), (3, 5))
    np.testing.assert_array_equal(fill_holes(bay), bay)


@pytest.mark.parametrize("seed", range(6))
def test_filling_agrees_with_scipy_slice_by_slice_and_leaves_nothing_to_fill_in_three_dimensions(seed):
    mask = blobs(seed)
    filled = fill_holes(mask)
    assert filled.sum() > mask.sum()  # the case is not trivial
    np.testing.assert_array_equal(filled, np.stack([ndimage.binary_fill_holes(slice_) for slice_ in mask]))
    np.testing.assert_array_equal(filled[3], fill_holes(mask[3]))
    interior = np.pad(filled, 1)  # a frame of background: what scipy fills now is enclosed on all sides
    np.testing.assert_array_equal(ndimage.binary_fill_holes(interior), interior)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("threshold", [0.0, 0.15, 0.3])
@pytest.mark.parametrize("fill", [True, False])
def test_post_processing_is_idempotent(seed, threshold, fill):
    once = postprocess_volume(blobs(seed, threshold=threshold), min_voxels=8, keep_fraction=0.05, fill=fill)
    assert once.any()
    np.testing.assert_array_equal(postprocess_volume(once, min_voxels=8, keep_fraction=0.05, fill=fill), once)


@pytest.mark.parametrize("seed", range(3))
def test_stricter_limits_keep_subsets(seed):
    mask = blobs(seed, threshold=0.3)
    for limits in ([{"min_voxels": n} for n in (0, 5, 20, 80)], [{"keep_fraction": f} for f in (0.0, 0.1, 0.5, 1.0)]):
        kept = [remove_small_components(mask, **limit) for limit in limits]
        assert all(not (b & ~a).any() for a, b in itertools.pairwise(kept))
        assert kept[-1].sum() < kept[0].sum()


def test_holes_are_filled_before_sizes_are_compared():
    ring = box((1, 20, 20), (0, 1), (2, 8), (2, 8)) & ~box(
        (1, 20, 20), (0, 1), (3, 7), (3, 7)
    )  # 20 voxels, 36 when solid
    bar = box((1, 20, 20), (0, 1), (12, 14), (2, 14))  # 24 voxels
    np.testing.assert_array_equal(
        postprocess_volume(ring | bar, min_voxels=0, keep_fraction=1.0), box((1, 20, 20), (0, 1), (2, 8), (2, 8))
    )
    np.testing.assert_array_equal(postprocess_volume(ring | bar, min_voxels=0, keep_fraction=1.0, fill=False), bar)


class TestRemovedIslands:
    LESION = box((9, 40, 40), (2, 6), (3, 13), (3, 13))  # 400 voxels
    ISLAND = box((9, 40, 40), (4, 7), (20, 26), (20, 25))  # 90 voxels
    SPECK = box((9, 40, 40), (0, 1), (30, 33), (30, 33))  # 9 voxels

    def test_a_large_one_is_told_of_with_its_slices(self):
        before = self.LESION | self.ISLAND | self.SPECK
        sentence = describe_removed(before, postprocess_volume(before))
        assert "an island of 90 voxels on slices 5 to 7 of 9, and 1 smaller." in sentence
        before = self.LESION | box((9, 40, 40), (8, 9), (20, 27), (20, 26))  # a tenth of what stays, not of the whole
        assert "an island of 42 voxels on slice 9 of 9." in describe_removed(before, postprocess_volume(before))

    def test_what_stays_and_specks_are_no_news(self):
        for before in (self.LESION | self.SPECK, self.LESION, np.zeros_like(self.LESION)):
            assert describe_removed(before, postprocess_volume(before)) is None
        both = self.LESION | box((9, 40, 40), (2, 6), (20, 30), (20, 30))
        after = postprocess_volume(both)
        np.testing.assert_array_equal(after, both)
        assert describe_removed(both, after) is None

    def test_where_nothing_is_left_all_of_it_is_news(self):
        assert "island of 9 voxels on slice 1 of 9" in describe_removed(self.SPECK, postprocess_volume(self.SPECK))

    def test_a_filled_hole_is_no_removal(self):
        ring = self.LESION & ~box((9, 40, 40), (2, 6), (5, 9), (5, 9))
        assert describe_removed(ring, postprocess_volume(ring)) is None


def test_post_processing_moves_with_the_lesion():
    mask = np.zeros((9, 40, 40), dtype=bool)
    mask[1:8, 2:26, 3:23] = blobs(11)
    options = {"min_voxels": 10, "keep_fraction": 0.1}
    moved = postprocess_volume(np.roll(mask, (1, 12, 14), axis=(0, 1, 2)), **options)
    np.testing.assert_array_equal(moved, np.roll(postprocess_volume(mask, **options), (1, 12, 14), axis=(0, 1, 2)))


@pytest.mark.parametrize("function", [postprocess_volume, remove_small_components, largest_component, fill_holes])
@pytest.mark.parametrize("shape", [(0, 8, 8), (3, 8, 8), (4, 1, 1)])
def test_an_empty_mask_stays_empty(function, shape):
    mask = np.zeros(shape, dtype=bool)
    result = function(mask)
    assert result.shape == shape
    assert result.dtype == bool
    assert not result.any()
    assert not np.shares_memory(result, mask) or result.size == 0


@pytest.mark.parametrize("function", [postprocess_volume, remove_small_components, largest_component, fill_holes])
def test_the_argument_is_never_written(function):
    mask = blobs(3)
    mask.setflags(write=False)
    result = function(mask)
    assert result.flags.writeable
    assert not np.shares_memory(result, mask)


@pytest.mark.parametrize("function", [postprocess_volume, remove_small_components, largest_component, fill_holes])
@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((2, 4, 4), dtype=np.float32), "float32.*Threshold"),
        (np.zeros((2, 4, 4), dtype=np.uint8), "uint8"),
        (np.zeros((1, 2, 4, 4), dtype=bool), r"\(1, 2, 4, 4\)"),
        ([[True, False]], "list"),
    ],
)
def test_anything_but_a_bool_mask_is_refused(function, mask, message):
    with pytest.raises(ValueError, match=message):
        function(mask)


def test_a_single_slice_is_no_volume():
    with pytest.raises(ValueError, match=r"\(S, H, W\), got \(4, 4\)"):
        postprocess_volume(np.zeros((4, 4), dtype=bool))


@pytest.mark.parametrize("limit", [{"min_voxels": -1}, {"keep_fraction": 1.5}, {"keep_fraction": float("nan")}])
def test_limits_out_of_range_are_refused(limit):
    with pytest.raises(ValueError, match=next(iter(limit))):
        postprocess_volume(blobs(0), **limit)


def lesion_probabilities(seed, shape=(9, 40, 40), softness=4.0):
    """(S, H, W) float32: near 1 within an irregular lesion, and falling towards 0 over `softness` pixels."""
    random = np.random.default_rng(seed)
    distance = np.linalg.norm((np.indices(shape).T - np.array(shape) / 2) * (2.0, 1.0, 1.0), axis=-1).T
    rough = 6 * ndimage.gaussian_filter(random.standard_normal(shape), sigma=1.5)
    return (1 / (1 + np.exp((distance - 9 + rough) / softness))).astype(np.float32)


def f_beta(mask, truth, threshold):
    """F-beta (1 where both are empty), beta^2 being 1 / threshold - 1: Dice for 0.5."""
    beta_squared = 1 / threshold - 1
    both = np.count_nonzero(mask & truth)
    return (1 + beta_squared) * both / (np.count_nonzero(mask) + beta_squared * np.count_nonzero(truth))


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("softness", [0.5, 2.0, 5.0])
def test_the_outline_threshold_gives_the_best_score_where_probabilities_are_right(softness, threshold):
    probabilities = lesion_probabilities(0, softness=softness)
    random = np.random.default_rng(1)
    truths = [random.random(probabilities.shape) < probabilities for _ in range(20)]

    def score(level):
        return np.mean([f_beta(probabilities >= level, truth, threshold) for truth in truths])

    level = outline_threshold(probabilities, threshold)
    best = max(score(other) for other in np.linspace(0.02, 0.98, 97))
    assert score(level) == pytest.approx(best, abs=1e-3)
    assert level == pytest.approx(threshold * best, abs=2e-3)  # a share of the best score, half of it for Dice
    if softness == 5.0:
        assert score(threshold) < best - 0.01  # a case that says something


def test_the_less_sure_a_volume_the_lower_the_outline_threshold():
    levels = [outline_threshold(lesion_probabilities(0, softness=softness)) for softness in (0.1, 1.0, 3.0, 6.0)]
    assert levels == sorted(levels, reverse=True)
    assert outline_threshold(np.array([0.0, 1.0, 1.0])) == 0.5
    assert outline_threshold(np.array([0.0, 1.0, 1.0]), 0.7) == 0.7
    assert outline_threshold(np.full((4, 8, 8), 0.1)) == LOWEST_EXPECTED_SCORE * 0.5
    assert outline_threshold(np.zeros((4, 8, 8), dtype=np.float32)) == LOWEST_EXPECTED_SCORE * 0.5


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("threshold", [0.35, 0.5, 0.6])
def test_an_extended_mask_is_what_propagates_from_what_was_found(seed, threshold):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((7, 24, 20)), sigma=1.2)
    probabilities = (1 / (1 + np.exp(-20 * noise - 0.5))).astype(np.float32)
    limits = {"threshold": threshold, "min_voxels": 8, "keep_fraction": 0.05}
    found = mask_from_probabilities(probabilities, **limits, extend=False)
    np.testing.assert_array_equal(
        found, postprocess_volume(probabilities >= threshold, min_voxels=8, keep_fraction=0.05)
    )
    extended = mask_from_probabilities(probabilities, **limits)
    reached = probabilities >= outline_threshold(probabilities, threshold)
    expected = fill_holes(ndimage.binary_propagation(found, structure=np.ones((3, 3, 3)), mask=found | reached))
    np.testing.assert_array_equal(extended, expected)
    assert np.count_nonzero(extended) > np.count_nonzero(found) > 0


def test_outlines_are_extended_and_nothing_new_is_found():
    probabilities = np.zeros((8, 30, 30), dtype=np.float32)
    probabilities[2:5, 4:18, 4:14] = 0.9
    probabilities[2:5, 4:18, 14:17] = 0.48  # beside the lesion
    probabilities[3, 8, 8] = 0.1  # a hole in it
    probabilities[2:5, 4:14, 24:28] = 0.48  # apart from it
    probabilities[7, 20:23, 20:23] = 0.9  # an island that is too small
    assert 0.25 < outline_threshold(probabilities) < 0.48
    np.testing.assert_array_equal(
        mask_from_probabilities(probabilities), box(probabilities.shape, (2, 5), (4, 18), (4, 17))
    )
    np.testing.assert_array_equal(
        mask_from_probabilities(probabilities, extend=False), box(probabilities.shape, (2, 5), (4, 18), (4, 14))
    )
    assert not mask_from_probabilities(np.minimum(probabilities, 0.49)).any()


def test_a_faint_lesion_of_which_little_is_found_is_kept_by_its_outline():
    probabilities = np.zeros((8, 30, 30), dtype=np.float32)
    probabilities[2:6, 4:16, 4:16] = 0.4
    probabilities[3, 8:11, 8:11] = 0.6
    outlined = mask_from_probabilities(probabilities)
    np.testing.assert_array_equal(outlined, box(probabilities.shape, (2, 6), (4, 16), (4, 16)))
    assert mask_from_probabilities(probabilities, min_voxels=outlined.sum()).any()
    assert not mask_from_probabilities(probabilities, min_voxels=outlined.sum() + 1).any()
    assert not mask_from_probabilities(probabilities, extend=False).any()


@pytest.mark.parametrize("threshold", [0.0, 1.0, 1.5, float("nan")])
@pytest.mark.parametrize("function", [outline_threshold, mask_from_probabilities])
def test_a_threshold_that_is_no_probability_is_refused(function, threshold):
    with pytest.raises(ValueError, match="threshold is a probability between 0 and 1"):
        function(np.full((2, 4, 4), 0.6), threshold=threshold)


def test_probabilities_of_a_single_slice_are_no_volume():
    with pytest.raises(ValueError, match=r"\(S, H, W\), got \(4, 4\)"):
        mask_from_probabilities(np.full((4, 4), 0.6))


def test_the_default_limits_leave_readers_outlines_almost_whole(lgg_data):
    patients = sorted({path.parent for path in lgg_data.glob("TCGA_*/*_mask.tif")})
    assert patients
    kept, total = 0, 0
    for patient in patients:
        paths = sorted(patient.glob("*_mask.tif"), key=lambda path: int(path.stem.split("_")[-2]))
        mask = np.stack([np.asarray(Image.open(path)) > 0 for path in paths])
        agreement = np.count_nonzero(postprocess_volume(mask) & mask)
        assert agreement >= 0.94 * np.count_nonzero(mask), patient.name
        kept, total = kept + agreement, total + np.count_nonzero(mask)
    assert kept >= 0.99 * total
