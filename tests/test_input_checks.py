"""The checks of uploaded images: silent on heads, and each of them heard on what it is for."""

import functools
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image
from scipy import ndimage

from hub_dataset.phantom import phantom_volume
from modeling.input_checks import check_slice, check_volume, warnings_of

FLAIR = 1
DEFECTS = ("inverted", "colour map", "frame", "plane", "not a head")


@functools.cache
def head(seed: int = 0) -> np.ndarray:
    return phantom_volume(seed, num_slices=24, size=128).slices


def slice_of(seed: int = 0) -> np.ndarray:
    return head(seed)[12]


def found(pixels: np.ndarray, **options) -> list[str]:
    return [finding.check for finding in check_slice(pixels, **options)]


def coloured(flair: np.ndarray, name: str) -> np.ndarray:
    return (colormaps[name](flair / flair.max())[..., :3] * 255).astype(np.uint8)


def framed(pixels: np.ndarray, brightness: int, width: int = 15) -> np.ndarray:
    margins = ((width, width), (width + 5, width + 5), (0, 0))[: pixels.ndim]
    return np.pad(pixels, margins, constant_values=brightness)


@pytest.mark.parametrize("seed", range(4))
def test_a_head_is_let_through_in_silence(seed):
    assert check_volume(head(seed)) == []
    for pixels in head(seed)[5:20]:
        assert check_slice(pixels) == []
        assert check_slice(pixels[..., FLAIR]) == []


def test_depth_and_scale_of_the_intensities_do_not_matter():
    pixels = slice_of()
    for other in (pixels.astype(np.uint16) * 257, pixels / np.float32(255), pixels.astype(np.int32) - 1000):
        assert check_slice(other) == []
        assert found(other.max() - other) == ["inverted"]
    enlarged = np.asarray(Image.fromarray(pixels).resize((900, 900)))
    assert check_slice(enlarged) == []


def test_inverted_contrast_is_told_from_a_frame():
    for pixels in (slice_of(), slice_of()[..., FLAIR]):
        assert found(255 - pixels) == ["inverted"]
        silent = np.where(pixels < 20, 0, pixels)
        assert found(255 - silent) == ["inverted"]
        for brightness in (180, 255):
            assert found(framed(pixels, brightness)) == ["frame"]
        assert found(framed(pixels, 0)) == []
    pre, flair, post = np.moveaxis(slice_of(), -1, 0)
    assert found(np.stack([pre, 255 - flair, post], axis=-1)) == ["inverted"], "the model outlines on FLAIR"
    spotted = 180 - flair
    spotted[60:72, 60:72] = 255
    assert found(spotted) == ["inverted"], "air may be no brighter than two thirds"
    hot = (255 - flair).astype(np.uint16)
    hot[64, 64] = 5000
    assert found(hot) == ["inverted"], "one pixel is no scale"


@pytest.mark.parametrize("name", ["jet", "hot", "viridis", "plasma", "inferno", "gist_rainbow"])
def test_a_colour_map_is_recognised(name):
    assert found(coloured(slice_of()[..., FLAIR], name)) == ["colour map"]


@pytest.mark.parametrize("name", ["jet", "plasma", "gist_rainbow"])
def test_a_colour_map_is_recognised_also_after_resampling(name):
    assert found(ndimage.zoom(coloured(slice_of()[..., FLAIR], name), (1.3, 1.3, 1), order=1)) == ["colour map"]


@pytest.mark.parametrize("missing", ["pre", "post"])
def test_a_copied_sequence_is_no_colour_map(missing):
    assert check_volume(phantom_volume(1, num_slices=12, size=128, missing=missing).slices) == []


def test_few_colours_are_no_colour_map_where_a_sequence_is_dim_copied_or_absent_or_little_is_lit():
    flair, dim = slice_of()[..., FLAIR], slice_of()[..., 2] // 5
    for pre in (flair, np.zeros_like(flair)):
        assert found(np.stack([pre, flair, dim], axis=-1)) == []
    spot = np.zeros_like(slice_of())
    spot[54:74, 54:74, FLAIR] = 60 + flair[54:74, 54:74] // 2
    assert found(spot) == []


def test_grey_saved_in_colour_is_said_to_be_flair_alone():
    pixels = np.repeat(slice_of()[..., FLAIR, None], 3, axis=-1)
    assert found(pixels) == ["identical channels"]
    assert found(255 - pixels) == ["identical channels", "inverted"]


def test_noise_and_photographs_are_no_heads():
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 255, (128, 128), dtype=np.uint8)
    rows, columns = np.mgrid[:128, :128] / 128
    photograph = 120 + 60 * np.sin(9 * rows) * np.cos(7 * columns) + 30 * (rows > 0.6)
    for pixels in (noise, photograph, np.pad(noise, 5)):
        assert found(pixels) == ["not a head"]
        assert found(np.repeat(pixels[..., None], 3, axis=-1)) == ["identical channels", "not a head"]
    rows, columns = (np.flatnonzero((slice_of()[..., FLAIR] > 40).any(axis=axis)) for axis in (1, 0))
    assert found(slice_of()[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]) == [], "a head without much air"


def test_other_planes_are_told_by_the_shape_of_the_head():
    assert found(np.rot90(slice_of())) == ["plane"]
    slices = head()
    for index in (56, 64, 72):
        sagittal = ndimage.zoom(slices[::-1, :, index], (80 / len(slices), 1, 1), order=1)
        assert found(np.pad(sagittal, ((24, 24), (0, 0), (0, 0)))) == ["plane"]


def test_the_plane_is_told_by_a_whole_and_large_head_alone():
    turned = np.rot90(slice_of())
    assert found(turned[:, 26:]) == found(turned[:, :-26]) == [], "cut off on one side"
    assert found(np.pad(turned[::2, ::2], ((32, 32), (32, 32), (0, 0)))) == [], "small, as at the top of a head"
    dark_inside = turned.copy()
    dark_inside[ndimage.binary_erosion(ndimage.binary_fill_holes(turned[..., FLAIR] > 40), iterations=8)] //= 12
    assert found(dark_inside) == ["plane"]
    beside = turned.copy()
    beside[8:16, 8:16] = 150
    assert found(beside) == ["plane"]


def test_pixels_that_are_no_squares_are_allowed_for():
    stretched = np.repeat(slice_of(), 2, axis=1)
    assert found(stretched) == ["plane"]
    assert found(stretched, pixel_aspect=2.0) == []
    assert check_volume(np.repeat(head(), 2, axis=2), pixel_aspect=2.0) == []
    assert found(slice_of(), pixel_aspect=0.7) == [], "nearly round"


def test_a_volume_is_judged_by_most_of_its_slices():
    for inverted, checks in (
        ([12], []),
        ([6, 7, 8, 9, 10], []),
        (range(6, 13), ["inverted"]),
        ([*range(6), *range(18, 24)], []),  # not in the middle half
    ):
        slices = head().copy()
        slices[inverted] = 255 - slices[inverted]
        assert [finding.check for finding in check_volume(slices)] == checks
    assert [finding.check for finding in check_volume(255 - head())] == ["inverted"]
    assert check_volume(255 - head()[12:13]) == check_slice(255 - head()[12])


def test_what_the_reader_found_odd_comes_before_what_the_images_look_like():
    volume = SimpleNamespace(slices=255 - head(), warnings=("Some slices are missing.",), spacing=None)
    odd, inverted = warnings_of(volume)
    assert odd == "Some slices are missing."
    assert "invert the image" in inverted


def test_what_the_processor_refuses_is_left_to_it():
    for pixels in (np.zeros((64, 64)), np.full((64, 64, 3), 7)):
        assert check_slice(pixels) == []
    assert check_slice(np.stack([slice_of()[..., 0], np.zeros((128, 128)), slice_of()[..., 2]], axis=-1)) == []


def test_real_slices_with_a_lesion_pass_in_silence(lgg_data):
    slices = noisy = 0
    for mask_path in sorted(lgg_data.glob("*/*_mask.tif"))[::10]:
        if np.asarray(Image.open(mask_path)).any():
            pixels = np.asarray(Image.open(str(mask_path).replace("_mask", "")))
            slices += 1
            noisy += any(check in DEFECTS for check in found(pixels))
    assert slices > 50
    assert noisy <= 0.02 * slices
