"""Areas, volumes and diameters of masks whose measures are known."""

import numpy as np
import pytest

from modeling.measurements import area_per_slice, diameters, largest_slice, measure_volume, volume_ml


def ellipse(long: float, short: float, degrees: float = 0.0, spacing=(1.0, 1.0), size: int = 160) -> np.ndarray:
    """An ellipse with these diameters in mm, its long one at an angle to the rows, on pixels of `spacing`."""
    rows, columns = (np.mgrid[:size, :size] - size / 2 + 0.37) * np.reshape(spacing, (2, 1, 1))
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    along, across = cosine * rows + sine * columns, cosine * columns - sine * rows
    return np.hypot(along / (long / 2), across / (short / 2)) < 1


@pytest.mark.parametrize("degrees", [0, 17, 45, 90, 130])
@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 0.9)])
def test_diameters_of_an_ellipse(degrees, spacing):
    long, short = diameters(ellipse(50, 28, degrees, spacing), spacing)
    assert long == pytest.approx(50, abs=1)
    assert short == pytest.approx(28, abs=1.5)


def test_pixels_are_as_long_as_their_spacing():
    mask = np.zeros((20, 20), dtype=bool)
    mask[5, 5] = True
    assert diameters(mask, (1, 1)) == pytest.approx((1, 1))
    mask[5, 5:12] = True
    assert diameters(mask, (1, 2))[0] == pytest.approx(14)


def test_the_short_diameter_is_perpendicular_and_may_lie_anywhere_along_the_long_one():
    mask = np.zeros((60, 60), dtype=bool)
    mask[30, 5:55] = True  # a T: 50 long, and at its end a bar of 21
    mask[20:41, 52:55] = True
    long, short = diameters(mask, (1, 1))
    assert long == pytest.approx(50.5, abs=1.5)
    assert short == pytest.approx(21, abs=1.5)


def test_only_the_largest_component_is_measured_and_notches_are_bridged():
    mask = ellipse(50, 28)
    whole = diameters(mask, (1, 1))
    mask[80:84, 70:] = False  # a notch
    mask[2, 2] = True  # an island far away
    assert diameters(mask, (1, 1)) == pytest.approx(whole, abs=1)


def test_an_empty_mask_has_no_diameters():
    assert diameters(np.zeros((8, 8), dtype=bool), (1, 1)) == (0, 0)


def test_volume_and_areas():
    mask = np.zeros((4, 30, 30), dtype=bool)
    mask[1, :10, :10] = mask[2, :20, :10] = True
    assert area_per_slice(mask).tolist() == [0, 100, 200, 0]
    assert volume_ml(mask, (5.0, 0.5, 2.0)) == pytest.approx(300 * 5 / 1000)
    for measure in (volume_ml, measure_volume):
        for spacing in ((0.5, 2.0), 0.5):
            with pytest.raises(ValueError, match="three lengths"):
                measure(mask, spacing)
    assert largest_slice(mask) == 2
    assert largest_slice(np.zeros_like(mask)) == 2, "the middle where there is nothing"


def test_a_report_has_all_measures_of_a_lesion():
    mask = np.zeros((5, 40, 30), dtype=bool)
    mask[2, 10:14, 5:8] = mask[3, 10:30, 10:16] = True
    assert measure_volume(mask, (5.0, 0.523456, 2.0)) == {
        "num_slices": 5,
        "height": 40,
        "width": 30,
        "spacing_mm": [5.0, 0.5235, 2.0],
        "lesion_voxels": 132,
        "volume_ml": 0.691,
        "largest_slice": 4,
        "diameters_mm": [round(length, 1) for length in diameters(mask[3], (0.523456, 2.0))],
        "reason": None,
        "area_per_slice_pixels": [0, 0, 12, 120, 0],
    }


def test_a_report_says_why_a_measure_is_missing():
    mask = np.zeros((5, 40, 30), dtype=bool)
    empty = measure_volume(mask, (5.0, 0.5, 2.0), "never said")
    assert (empty["volume_ml"], empty["largest_slice"], empty["diameters_mm"]) == (0, None, None)
    assert empty["reason"] == "No diameters: no lesion was outlined."
    mask[3, 10:30, 10:16] = True
    for why, end in (("image files do not give it", "is unknown, image files do not give it."), ("", "is unknown.")):
        unknown = measure_volume(mask, None, why)
        assert (unknown["lesion_voxels"], unknown["largest_slice"]) == (120, 4)
        assert unknown["spacing_mm"] is unknown["volume_ml"] is unknown["diameters_mm"] is None
        assert unknown["reason"].startswith("No volume in ml and no diameters in mm")
        assert unknown["reason"].endswith(end)
