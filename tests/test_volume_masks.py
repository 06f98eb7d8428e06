"""Masks of volumes: told by their names, read onto the volume's voxels, or refused."""

import numpy as np
import pytest
from PIL import Image
from volume_samples import AFFINE, head, save_dicom, save_nifti, save_pages

from modeling.input_files import InputFile, VolumeFileError
from modeling.nifti_files import write_nifti
from modeling.volume_files import is_mask, read_mask, read_volume

FLAIR = 1


@pytest.mark.parametrize(
    ("name", "mask"),
    [
        ("TCGA_CS_4941_19960909_1_mask.tif", True),
        ("MASK.png", True),
        ("mask2.nii.gz", True),
        ("BraTS-GLI-00000-000-seg.nii.gz", True),
        ("lesion segmentation.nii", True),
        ("labels.tif", True),
        ("flair-label.nii.gz", True),
        ("roi_1.png", True),
        ("unmasked_flair.nii.gz", False),
        ("flair_masked.nii", False),
        ("segal_flair.nii", False),
        ("hanseg_flair.nii", False),
        ("masks/flair.nii", False),
    ],
)
def test_masks_are_told_by_their_names(name, mask):
    assert is_mask(InputFile(name, "nifti", bytes)) == mask


def test_a_mask_on_other_voxels_or_an_image_is_no_mask(tmp_path):
    flair, mask = head().slices[..., FLAIR], head().mask
    volume = read_volume([save_nifti(tmp_path / "flair.nii", flair)])
    np.testing.assert_array_equal(read_mask([save_pages(tmp_path / "m.tif", mask)], volume), mask)
    empty = save_nifti(tmp_path / "empty.nii", np.zeros_like(mask))
    assert not read_mask([empty], volume).any()

    def moved(millimetres):
        return AFFINE + np.array([[0, 0, 0, millimetres]] + [[0] * 4] * 3)

    # A tenth of a voxel, of 0.75 mm here, may be rounding.
    np.testing.assert_array_equal(read_mask([save_nifti(tmp_path / "m.nii", mask, affine=moved(0.06))], volume), mask)
    larger, first = AFFINE.copy(), [47, 63, 0, 1]  # the first voxel of the axial volume stays in place
    larger[:3, :3] *= 1.0012  # which adds up to over a tenth of a voxel at the far end alone
    larger[:3, 3] += (AFFINE @ first - larger @ first)[:3]
    for path, why in (
        (tmp_path / "flair.nii", "an image rather than a mask"),
        (save_nifti(tmp_path / "short.nii", mask[:-1]), r"instead of 12×64×48 \(slices×rows×columns\)\."),
        (save_nifti(tmp_path / "moved.nii", mask, affine=moved(0.09)), r"another position or orientation\."),
        (save_nifti(tmp_path / "larger.nii", mask, affine=larger), r"another position or orientation\."),
    ):
        with pytest.raises(VolumeFileError, match=why):
            read_mask([path], volume)


def test_a_mask_beside_its_volume_is_left_out_and_said(tmp_path):
    flair, mask = head().slices[..., FLAIR], head().mask
    paths = [save_nifti(tmp_path / "flair.nii", flair[:2]), save_nifti(tmp_path / "flair_mask.nii", mask[:2])]
    volume = read_volume(paths)
    np.testing.assert_array_equal(volume.slices, flair[:2])
    assert volume.description == "2 axial slices of 64×48 pixels, 5.0×0.75×0.80 mm, FLAIR only"
    assert volume.warnings == ("1 mask file(s) were left out, such as 'flair_mask.nii'.",)


def test_labels_and_colours_of_a_mask_are_all_lesion(tmp_path):
    flair, mask = head().slices[..., FLAIR], head().mask
    volume = read_volume(save_nifti(tmp_path / "flair.nii", flair))
    labels = np.where(mask, 1 + np.arange(48) % 4, 0).astype(np.uint8)
    np.testing.assert_array_equal(read_mask(save_nifti(tmp_path / "seg.nii", labels), volume), mask)
    red = np.zeros((*mask.shape, 3), np.uint8)
    red[..., 0] = 255 * mask
    np.testing.assert_array_equal(read_mask(save_pages(tmp_path / "mask.tif", red), volume), mask)
    assert not read_mask(save_pages(tmp_path / "mask.tif", np.zeros_like(red)), volume).any()


def test_several_masks_and_masks_of_no_use_are_refused(tmp_path):
    flair, mask = head().slices[..., FLAIR], head().mask
    volume = read_volume(save_nifti(tmp_path / "flair.nii", flair))
    paths = [save_nifti(tmp_path / f"{name}.nii", mask) for name in ("a_mask", "b_mask")]
    with pytest.raises(VolumeFileError, match=r"2 masks came \('a_mask\.nii', 'b_mask\.nii'\)"):
        read_mask(paths, volume)
    unknown = mask.astype(np.float32)
    unknown[0, 0, 0] = np.nan
    for path in (save_nifti(tmp_path / "mask.nii", unknown), save_pages(tmp_path / "mask.tif", unknown)):
        with pytest.raises(VolumeFileError, match="NaN or infinite"):
            read_mask(path, volume)
    with pytest.raises(VolumeFileError, match="A mask is not read from DICOM"):
        read_mask(save_dicom(tmp_path, mask), volume)


def test_a_large_mask_in_black_and_white_is_refused_before_it_is_decoded(tmp_path):
    volume = read_volume(save_nifti(tmp_path / "flair.nii", head().slices[..., FLAIR]))
    path = tmp_path / "mask.png"
    Image.new("1", (5000, 5000)).save(path)
    path.write_bytes(path.read_bytes()[:200])  # so that decoding would end with another message
    with pytest.raises(VolumeFileError, match="5,000×5,000 pixels, which is too large"):
        read_mask(path, volume)


def test_a_mask_comes_back_as_it_was_written_where_the_volume_has_no_orientation(tmp_path):
    slices, mask = head()
    volume = read_volume(save_pages(tmp_path / "stack.tif", slices))
    write_nifti(tmp_path / "mask.nii.gz", mask, volume.geometry)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.nii.gz", volume), mask)
    save_nifti(tmp_path / "oriented.nii", mask)
    np.testing.assert_array_equal(read_mask(tmp_path / "oriented.nii", volume), mask)
