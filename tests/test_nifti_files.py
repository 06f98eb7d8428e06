"""NIfTI files of any orientation -> axial slices, and masks back into the input's own space."""

import nibabel as nib
import numpy as np
import pytest
from volume_samples import AFFINE, ORIENTATIONS, SPACING, as_nifti, head, save_nifti

from modeling.nifti_files import write_nifti
from modeling.volume_files import read_mask, read_volume

FLAIR = 1


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=lambda o: "".join("-+"[f > 0] + "xyz"[a] for a, f in o))
def test_axial_slices_are_found_in_any_orientation_and_the_mask_goes_back(tmp_path, orientation):
    flair, mask = head().slices[..., FLAIR], head().mask
    image = as_nifti(flair.astype(np.int16), orientation)
    image.to_filename(tmp_path / "flair.nii.gz")
    volume = read_volume([tmp_path / "flair.nii.gz"])
    np.testing.assert_array_equal(volume.slices, flair)
    assert volume.spacing == pytest.approx(SPACING)
    assert volume.warnings == ()

    write_nifti(tmp_path / "mask.nii.gz", mask, volume.geometry)
    written = nib.load(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), np.asarray(as_nifti(mask, orientation).dataobj))
    assert written.get_data_dtype() == np.uint8
    np.testing.assert_allclose(written.affine, image.affine)
    for code in ("sform_code", "qform_code"):
        assert written.header[code] == image.header[code]
    np.testing.assert_array_equal(read_mask([tmp_path / "mask.nii.gz"], volume), mask)


def test_oblique_slices_are_read_as_they_are_and_a_steep_tilt_is_said(tmp_path):
    flair = head().slices[..., FLAIR]
    for degrees, said in ((15, False), (40, True)):
        cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        tilt = np.array([[1, 0, 0, 0], [0, cosine, -sine, 0], [0, sine, cosine, 0], [0, 0, 0, 1]])
        image = nib.Nifti1Image(np.asarray(as_nifti(flair).dataobj), tilt @ AFFINE)
        image.to_filename(tmp_path / "flair.nii")
        volume = read_volume([tmp_path / "flair.nii"])
        np.testing.assert_array_equal(volume.slices, flair)
        assert volume.spacing == pytest.approx(SPACING)
        assert any(f"tilted by {degrees}°" in warning for warning in volume.warnings) == said


def test_a_voxel_of_a_sheared_volume_has_its_own_size(tmp_path):
    shear = np.eye(4)
    shear[1, 2] = np.tan(np.radians(20))
    flair = head().slices[..., FLAIR]
    nib.Nifti1Image(np.asarray(as_nifti(flair).dataobj), shear @ AFFINE).to_filename(tmp_path / "flair.nii")
    volume = read_volume(tmp_path / "flair.nii")
    assert volume.spacing == pytest.approx(SPACING)
    assert np.prod(volume.spacing) == pytest.approx(abs(np.linalg.det(volume.geometry.affine)))


def test_slices_as_fine_as_a_tenth_of_a_millimetre_are_read(tmp_path):
    flair = head().slices[..., FLAIR]
    volume = read_volume(save_nifti(tmp_path / "flair.nii", flair, affine=np.diag([0.1, 0.1, 0.1, 1])))
    np.testing.assert_array_equal(volume.slices, flair)
    assert volume.spacing == pytest.approx((0.1, 0.1, 0.1))


@pytest.mark.parametrize("name", ["flair.nii", "flair.nii.gz"])
def test_nifti_2_and_long_extensions_are_read(tmp_path, name):
    flair = head().slices[..., FLAIR]
    image = nib.Nifti2Image(np.asarray(as_nifti(flair).dataobj), AFFINE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 100_000))
    image.to_filename(tmp_path / name)
    volume = read_volume(tmp_path / name)
    np.testing.assert_array_equal(volume.slices, flair)
    assert volume.spacing == pytest.approx(SPACING)


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.float64])
def test_wide_numbers_come_as_float32(tmp_path, dtype):
    flair = head().slices[..., FLAIR]
    nib.Nifti1Image(np.asarray(as_nifti(flair).dataobj), AFFINE, dtype=dtype).to_filename(tmp_path / "flair.nii")
    slices = read_volume(tmp_path / "flair.nii").slices
    assert slices.dtype == np.float32
    np.testing.assert_array_equal(slices, flair)


def test_scaled_intensities_come_as_float32(tmp_path):
    flair = head().slices[..., FLAIR]
    image = as_nifti(flair.astype(np.float64) / 7)
    image.set_data_dtype(np.int16)  # stored with a slope
    image.to_filename(tmp_path / "flair.nii")
    slices = read_volume([tmp_path / "flair.nii"]).slices
    assert slices.dtype == np.float32
    np.testing.assert_allclose(slices, flair / 7, atol=0.01)


@pytest.mark.parametrize("trailing", [1, 2])
def test_trailing_dimensions_of_one_are_dropped(tmp_path, trailing):
    flair = head().slices[..., FLAIR]
    for slices in (flair, flair[5:6]):
        array = np.asarray(as_nifti(slices).dataobj)
        nib.Nifti1Image(array.reshape(*array.shape, *[1] * trailing), AFFINE).to_filename(tmp_path / "flair.nii")
        np.testing.assert_array_equal(read_volume([tmp_path / "flair.nii"]).slices, slices)


@pytest.mark.parametrize(("unit", "millimetres"), [("meter", 1000), ("micron", 0.001)])
@pytest.mark.parametrize(("s_code", "q_code"), [(2, 0), (0, 1), (1, 1), (0, 0)])
def test_units_other_than_millimetres_are_converted(tmp_path, s_code, q_code, unit, millimetres):
    affine = AFFINE.copy()
    affine[:3] /= millimetres
    image = as_nifti(head().slices[..., FLAIR], affine=affine)
    image.header.set_xyzt_units(unit)
    image.set_qform(affine if q_code else None, q_code)
    image.set_sform(affine if s_code else None, s_code)
    affine = image.affine.copy()  # without a code, that of the voxels' size
    image.to_filename(tmp_path / "flair.nii")
    volume = read_volume([tmp_path / "flair.nii"])
    assert volume.spacing == pytest.approx(SPACING)
    assert bool(volume.warnings) == (s_code == q_code == 0)
    write_nifti(tmp_path / "mask.nii", head().mask, volume.geometry)
    written = nib.load(tmp_path / "mask.nii")
    np.testing.assert_allclose(written.affine, affine, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(written.header.get_zooms(), image.header.get_zooms(), rtol=1e-5)
    assert written.header.get_xyzt_units()[0] == unit
    np.testing.assert_array_equal(read_mask([tmp_path / "mask.nii"], volume), head().mask)


@pytest.mark.parametrize(("q_code", "value"), [(0, 1.5), (1, 1.5), (1, np.nan)])
def test_a_quaternion_that_is_not_in_use_may_be_invalid(tmp_path, q_code, value):
    image = as_nifti(head().slices[..., FLAIR])
    image.set_sform(AFFINE, 1)
    image.set_qform(AFFINE if q_code else None, q_code)
    image.header["quatern_b"] = value
    image.to_filename(tmp_path / "flair.nii")
    volume = read_volume([tmp_path / "flair.nii"])
    write_nifti(tmp_path / "mask.nii", head().mask, volume.geometry)
    written = nib.load(tmp_path / "mask.nii")
    np.testing.assert_allclose(written.affine, AFFINE)
    assert (int(written.header["sform_code"]), int(written.header["qform_code"])) == (1, 0)


def test_a_file_without_orientation_is_read_with_a_warning_and_without_a_spacing(tmp_path):
    flair = head().slices[..., FLAIR]
    nib.Nifti1Image(flair.transpose(2, 1, 0), None).to_filename(tmp_path / "flair.nii")
    volume = read_volume([tmp_path / "flair.nii"])
    assert volume.slices.shape == flair.shape
    assert volume.spacing is None
    assert "does not give it" in volume.no_spacing
    assert any("does not say how it is oriented" in warning for warning in volume.warnings)


def test_an_identity_affine_is_suspected(tmp_path):
    save_nifti(tmp_path / "flair.nii", head().slices[..., FLAIR], affine=np.eye(4))
    assert any("identity" in warning for warning in read_volume([tmp_path / "flair.nii"]).warnings)
    moved = np.eye(4)
    moved[:3, 3] = -24, -32, -6
    volume = read_volume(save_nifti(tmp_path / "flair.nii", head().slices[..., FLAIR], affine=moved))
    assert volume.warnings == ()
    assert volume.spacing == (1, 1, 1)


def test_a_map_keeps_its_values(tmp_path):
    flair = head().slices[..., FLAIR]
    image = as_nifti(flair.astype(np.int16), ORIENTATIONS[13])
    image.to_filename(tmp_path / "flair.nii")
    values = (flair / np.float32(510)).astype(np.float32)
    write_nifti(tmp_path / "map.nii", values, read_volume(tmp_path / "flair.nii").geometry)
    written = nib.load(tmp_path / "map.nii")
    assert written.get_data_dtype() == np.float32
    np.testing.assert_array_equal(np.asarray(written.dataobj), as_nifti(values, ORIENTATIONS[13]).dataobj)


def test_two_sizes_of_a_voxel_are_told_of(tmp_path):
    image = as_nifti(head().slices[..., FLAIR], affine=AFFINE)
    image.set_sform(np.diag([-1.0, 1.0, 1.0, 1.0]), 1)
    image.header.set_zooms((3.6, 3.6, 6.5))
    image.to_filename(tmp_path / "flair.nii")
    (warning,) = (text for text in read_volume([tmp_path / "flair.nii"]).warnings if "two sizes" in text)
    assert "1×1×1 mm by its affine and 3.6×3.6×6.5 mm by its pixdim" in warning
    image = as_nifti(head().slices[..., FLAIR], affine=AFFINE)
    image.header.set_zooms((0.85, 0.8, 5.3))  # edges of a sheared affine are a little longer
    image.to_filename(tmp_path / "flair.nii")
    assert read_volume([tmp_path / "flair.nii"]).warnings == ()


def test_slices_of_another_plane_are_said_to_be_so(tmp_path):
    for lengths, size in (((5.0, 0.75, 0.8), "0.8×5.0"), ((0.75, 5.0, 0.8), "5.0×0.8"), ((0.75, 1.2, 0.8), "1.2×0.8")):
        save_nifti(tmp_path / "flair.nii", head().slices[..., FLAIR], affine=np.diag([*lengths, 1]))
        (warning,) = read_volume([tmp_path / "flair.nii"]).warnings
        assert f"not acquired in axial slices: its axial pixels are {size} mm" in warning
    save_nifti(tmp_path / "flair.nii", head().slices[..., FLAIR], affine=np.diag([0.75, 1.1, 0.8, 1]))
    assert read_volume([tmp_path / "flair.nii"]).warnings == ()


def test_nothing_that_may_name_a_person_goes_into_the_mask(tmp_path):
    image = as_nifti(head().slices[..., FLAIR])
    image.header["descrip"], image.header["db_name"] = b"Doe^Jane", b"Jane"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Doe^Jane"))
    image.to_filename(tmp_path / "flair.nii")
    write_nifti(tmp_path / "mask.nii", head().mask, read_volume([tmp_path / "flair.nii"]).geometry)
    assert b"Jane" not in (tmp_path / "mask.nii").read_bytes()
    assert b"research use only" in nib.load(tmp_path / "mask.nii").header["descrip"].item()


def test_a_mask_of_other_slices_is_not_written(tmp_path):
    volume = read_volume(save_nifti(tmp_path / "flair.nii", head().slices[..., FLAIR]))
    with pytest.raises(ValueError, match="all of them"):
        write_nifti(tmp_path / "mask.nii", head().mask[1:], volume.geometry)
    assert not (tmp_path / "mask.nii").exists()
