"""Numbered slices and the pages of TIFFs -> volumes: their order, depth, colours, and what does not belong together."""

import numpy as np
import pytest
from PIL import Image
from volume_samples import head, save_pages, save_slices

from modeling.input_files import VolumeFileError
from modeling.volume_files import read_mask, read_volume

FLAIR = 1


def test_the_datasets_slices_are_sorted_as_numbers_and_its_masks_are_left_out(tmp_path):
    slices, mask = head()
    paths = save_slices(tmp_path, slices)
    paths += save_slices(tmp_path, mask.astype(np.uint8) * 255, "TCGA_CS_4941_19960909_{}_mask.tif")
    volume = read_volume(paths)
    np.testing.assert_array_equal(volume.slices, slices)
    assert volume.spacing is None
    assert volume.slice_names[1] == "TCGA_CS_4941_19960909_2"
    assert volume.warnings == ("12 mask file(s) were left out, such as 'TCGA_CS_4941_19960909_10_mask.tif'.",)
    np.testing.assert_array_equal(read_mask(paths, volume), mask)


def test_pages_of_a_tiff_are_slices(tmp_path):
    slices = head().slices
    volume = read_volume([save_pages(tmp_path / "stack.tif", slices)])
    np.testing.assert_array_equal(volume.slices, slices)
    assert volume.description.endswith("pre-contrast T1 + FLAIR + post-contrast T1")
    deep = slices[..., FLAIR].astype(np.uint16) * 257
    volume = read_volume([save_pages(tmp_path / "flair.tif", deep)])
    np.testing.assert_array_equal(volume.slices, deep)
    assert "FLAIR only" in volume.description
    assert volume.slice_names is None


def test_one_slice_is_a_volume_of_one(tmp_path):
    Image.fromarray(head().slices[5]).save(tmp_path / "slice.png")
    volume = read_volume([tmp_path / "slice.png"])
    np.testing.assert_array_equal(volume.slices, head().slices[5:6])
    assert volume.description.startswith("1 axial slice of")


def test_grey_saved_in_colour_is_flair_alone(tmp_path):
    grey = np.repeat(head().slices[..., 1:2], 3, axis=-1)
    volume = read_volume([save_pages(tmp_path / "stack.tif", grey)])
    np.testing.assert_array_equal(volume.slices, grey[..., 0])
    assert any("channels of 'stack.tif' are the same" in warning for warning in volume.warnings)


def test_a_gap_in_the_numbers_is_said(tmp_path):
    paths = [path for path in save_slices(tmp_path, head().slices) if not path.stem.endswith("_7")]
    (warning,) = read_volume(paths).warnings
    assert warning.startswith("Between the slices 1 and 12 of ")
    assert warning.endswith(" some are missing: 7.")


@pytest.mark.parametrize("pattern", ["img{}_T1.png", "case2_{}_t2.png", "t1_{}.png", "{}_T1-FLAIR.png"])
def test_the_number_in_a_sequences_name_is_no_slices(tmp_path, pattern):
    save_slices(tmp_path, head().slices, pattern)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.slices, head().slices)
    assert volume.warnings == ()


def test_colours_in_jpeg_are_suspected_though_the_first_slice_is_black(tmp_path):
    slices = head().slices.copy()
    slices[0] = 0
    save_slices(tmp_path, slices, "{}.png")
    assert read_volume(tmp_path).warnings == ()
    for path in tmp_path.iterdir():
        path.unlink()
    save_slices(tmp_path, slices, "slice{}.jpg")
    (warning,) = read_volume(tmp_path).warnings
    assert warning.startswith("'slice*' is JPEG in colour")
    save_slices(tmp_path, slices[..., FLAIR], "slice{}.jpg")
    assert read_volume(tmp_path).warnings == ()


def test_slices_keep_their_bit_depth_and_their_names(tmp_path):
    flair = head().slices[..., FLAIR]
    for dtype in (np.uint8, np.uint16, np.float32):
        slices = flair.astype(dtype) * dtype(2.5)
        save_slices(tmp_path, slices, "{}.tif")
        volume = read_volume(tmp_path)
        assert volume.slices.dtype == dtype
        np.testing.assert_array_equal(volume.slices, slices)
        assert volume.slice_names == tuple(map(str, range(1, 13)))
    Image.fromarray(flair[6]).save(tmp_path / "7.tif")
    with pytest.raises(VolumeFileError, match=r"'1\.tif' is 64×48 pixels, grey, float32, '7\.tif' .* grey, uint8"):
        read_volume(tmp_path)


def test_numbers_that_count_no_slices_are_no_matter(tmp_path):
    """As those that end a DICOM file's name, which is its identifier."""
    for name, pixels in zip(("1.2.826.10", f"1.2.826.{10**30}"), head().slices, strict=False):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.slices, head().slices[:2])
    assert any("some are missing: 11, 12, 13, 14, 15, …" in warning for warning in volume.warnings)


def test_slices_that_do_not_belong_together_are_refused(tmp_path):
    slices = head().slices
    paths = save_slices(tmp_path, slices)
    for change, why in (
        (lambda: Image.fromarray(slices[0, :40]).save(paths[3]), "do not belong together"),
        (lambda: Image.fromarray(slices[0, ..., 1]).save(paths[3]), "do not belong together"),
        (lambda: Image.fromarray(slices[0]).save(paths[3].with_name("TCGA_CS_4941_19960909_07.tif")), "slice 7 is"),
        (lambda: Image.fromarray(slices[0]).save(paths[3].with_suffix(".png")), "is there 2 times"),
    ):
        before = paths[3].read_bytes()
        change()
        with pytest.raises(VolumeFileError, match=why):
            read_volume(sorted(tmp_path.iterdir()))
        paths[3].write_bytes(before)
    (tmp_path / "TCGA_CS_4941_19960909_1.png").unlink(missing_ok=True)


def test_a_slice_without_a_number_that_is_there_twice_is_named(tmp_path):
    for name in ("flair.png", "flair.tif"):
        Image.fromarray(head().slices[5]).save(tmp_path / name)
    with pytest.raises(VolumeFileError, match=r"^'flair' is there 2 times: flair\.png, flair\.tif\. Leave one in\.$"):
        read_volume(tmp_path)
