"""A patient's files, alone, in folders and in zips -> one volume: which sequence is which, and what is refused."""

import gzip
import io
import struct

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from volume_samples import (
    AFFINE,
    ORIENTATIONS,
    as_nifti,
    head,
    save_dicom,
    save_nifti,
    save_pages,
    save_slices,
    save_zip,
)

from modeling import image_stacks, nifti_files, scans
from modeling.input_files import VolumeFileError
from modeling.volume_files import read_volume, sequence_of

FLAIR = 1


@pytest.mark.parametrize(
    ("name", "sequence"),
    [
        ("sub-01_FLAIR.nii.gz", "flair"),
        ("Ax T2 FLAIR POST", "flair"),
        ("BraTS-GLI-00000-000-t2f", "flair"),
        ("t2_tirm_tra_dark-fluid", "flair"),
        ("BraTS-GLI-00000-000-t1c", "post"),
        ("t1ce", "post"),
        ("T1 POST GD", "post"),
        ("t1_mprage_tra_km", "post"),
        ("AX T1 +C", "post"),
        ("AX T1 PRE CONTRAST", "pre"),
        ("T1 without contrast", "pre"),
        ("t1_postop", "pre"),
        ("BraTS-GLI-00000-000-t1n", "pre"),
        ("t1", "pre"),
        ("mprage", "pre"),
        ("BraTS-GLI-00000-000-t2w", "other"),
        ("ep2d_diff DWI b1000", "other"),
        ("flair/img_*", "flair"),
        ("t1/flair_*", "flair"),
        ("TCGA_CS_4941_19960909_*", None),
        ("IM_0001", None),
        ("AX T1 FLAIR", "pre"),
        ("AX T1 FLAIR POST", "post"),
        ("AX T2 POST", "other"),
        ("ADC post", "other"),
        ("t1c_on_t2", "post"),
        ("T1 localizer", "other"),
        ("preop_T1c", "post"),
        ("pre-op_T1_Gd", "post"),
        ("pretreatment_FLAIR", "flair"),
        ("pre_RT_T1_post", "post"),
        ("post_surgery_T1", "pre"),
        ("post-RT_T1", "pre"),
        ("AX T1 WO CONTRAST", "pre"),
        ("AX T1 W O CONTRAST", "pre"),
        ("T1 ohne KM", "pre"),
        ("T1_no_gad", "pre"),
        ("T1 sans gado", "pre"),
        ("T1 non-enhanced", "pre"),
        ("t1_unenhanced", "pre"),
        ("T1_C-", "pre"),
        ("T1 mit KM", "post"),
        ("T1 C+ SE", "post"),
        ("t1_c.nii.gz", "post"),
        ("T1Gd.nii.gz", "post"),
        ("T1 POST W O FS", "post"),
        ("t1_cor", "pre"),
        ("C01_T1.nii.gz", "pre"),
        ("sub-C01_T1w.nii.gz", "pre"),
        ("C3L-00016_T1.nii.gz", "pre"),
        ("C-12_T1.nii.gz", "pre"),
        ("GD12_T1.nii.gz", "pre"),
        ("sub-ce01_T1w.nii", "pre"),
        ("PD001_T1.nii.gz", "pre"),
        ("DTI01_T1.nii", "pre"),
        ("DTI64_ep2d", "other"),
        ("pd_tse", "other"),
        ("t1_tirm_tra_dark-fluid", "pre"),
        ("t1_se_tra_KM2", "post"),
        ("T1_GD1", "post"),
        ("T1KM5mm", "post"),
        ("MPRAGE+GD3", "post"),
        ("t1_mpr_gd3d", "post"),
        ("T1CE3D", "post"),
        ("t1_c1", "post"),
        ("C+ T1", "post"),
        ("Ax T1 W C", "post"),
        ("T1 W&WO contrast", "post"),
        ("T1contr", "post"),
        ("FLAIR/PD001", "flair"),
        ("UCSF-PDGM-0004_ASL", None),
        ("t1_control", "pre"),
    ],
)
def test_sequences_are_told_apart_by_name(name, sequence):
    assert sequence_of(name) == sequence


def test_a_file_per_sequence_becomes_one_volume(tmp_path):
    slices = head().slices
    paths = [save_nifti(tmp_path / f"{n}.nii.gz", slices[..., c]) for c, n in enumerate(("t1", "flair", "t1ce"))]
    # Each in an orientation of its own: the voxels are the same.
    as_nifti(slices[..., 2], ORIENTATIONS[13]).to_filename(paths[2])
    volume = read_volume(reversed(paths))
    np.testing.assert_array_equal(volume.slices, slices)
    assert volume.description.endswith("pre-contrast T1 + FLAIR + post-contrast T1")
    assert volume.warnings == ()


def test_a_missing_sequence_is_replaced_by_flair_and_said(tmp_path):
    slices = head().slices
    paths = [save_nifti(tmp_path / f"{n}.nii", slices[..., c]) for c, n in ((1, "flair"), (2, "t1_gd"))]
    volume = read_volume(paths)
    np.testing.assert_array_equal(volume.slices, slices[..., [1, 1, 2]])
    assert volume.warnings == ("There is no pre-contrast T1: FLAIR is copied into its place, as in the training data.",)


def test_a_sequence_on_other_voxels_and_other_sequences_are_left_out(tmp_path):
    slices = head().slices
    moved = AFFINE + np.array([[0, 0, 0, 3]] + [[0] * 4] * 3)
    volume = read_volume(
        [
            save_nifti(tmp_path / "flair.nii", slices[..., 1]),
            save_nifti(tmp_path / "t1_pre.nii", slices[..., 0], affine=moved),
            save_nifti(tmp_path / "t2.nii", slices[..., 0]),
            save_nifti(tmp_path / "dwi.nii", slices[..., 0]),
        ]
    )
    np.testing.assert_array_equal(volume.slices, slices[..., 1])
    assert any("'t1_pre.nii' does not lie on the voxels" in warning for warning in volume.warnings)
    assert any("Left out" in warning and "'t2.nii', 'dwi.nii'" in warning for warning in volume.warnings)


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (("a", "b"), "none of them is FLAIR by name"),
        (("flair", "flair_2"), "2 of them are FLAIR"),
        (("flair", "t1c", "t1gd"), "2 sequences are post-contrast T1"),
    ],
)
def test_sequences_that_cannot_be_told_apart_are_refused_with_the_names_to_give(tmp_path, names, why):
    paths = [save_nifti(tmp_path / f"{name}.nii", head().slices[..., 1]) for name in names]
    with pytest.raises(VolumeFileError, match=why) as refusal:
        read_volume(paths)
    assert "t1_pre.nii.gz, flair.nii.gz and t1_post.nii.gz" in str(refusal.value)


def test_where_a_volume_lies_and_what_its_slices_are_called_is_as_of_flair(tmp_path):
    slices = head().slices
    files = [save_nifti(tmp_path / "t1.nii", slices[..., 0]), tmp_path / "flair.nii"]
    flair = as_nifti(slices[..., 1], ORIENTATIONS[13])
    flair.header.set_zooms((3, 3, 3))
    flair.to_filename(files[1])
    for paths in (files, files[::-1]):
        volume = read_volume(paths)
        np.testing.assert_allclose(volume.geometry.affine, flair.affine)
        assert any("'flair.nii' gives two sizes" in warning for warning in volume.warnings)
    t1, case = save_pages(tmp_path / "t1.tif", slices[..., 0]), tmp_path / "case"
    (case / "flair").mkdir(parents=True)
    save_slices(case / "flair", slices[..., 1], "{}.png")
    for paths in ((t1, case), (case, t1)):
        volume = read_volume(paths)
        np.testing.assert_array_equal(volume.slices, slices[..., [0, 1, 1]])
        assert volume.slice_names == tuple(map(str, range(1, 13)))


def test_folders_tell_sequences_apart_whose_files_are_called_alike(tmp_path):
    slices = head().slices
    folders = [tmp_path / name for name in ("t1c", "flair", "t1")]
    for folder, channel in zip(folders, (2, 1, 0), strict=True):
        folder.mkdir()
        save_nifti(folder / "image.nii.gz", slices[..., channel])
    for paths in (tmp_path, folders):
        np.testing.assert_array_equal(read_volume(paths).slices, slices)


def test_grey_sequences_may_be_saved_in_colour(tmp_path):
    slices = head().slices
    paths = [
        save_pages(tmp_path / f"{name}.tif", np.repeat(slices[..., channel, None], 3, axis=-1))
        for channel, name in enumerate(("t1", "flair", "t1c"))
    ]
    volume = read_volume(paths)
    np.testing.assert_array_equal(volume.slices, slices)
    assert volume.warnings == ()


def test_a_sequence_in_colour_beside_others_is_left_out_and_flair_in_colour_is_refused(tmp_path):
    slices = head().slices
    coloured = save_pages(tmp_path / "t1.tif", slices)
    volume = read_volume([save_pages(tmp_path / "flair.tif", slices[..., 1]), coloured])
    np.testing.assert_array_equal(volume.slices, slices[..., 1])
    assert volume.warnings == ("'t1.tif' is in colour, so it is left out. Give it in grey to have it used.",)
    volume = read_volume(coloured)  # all three, whatever it is called
    np.testing.assert_array_equal(volume.slices, slices)
    assert volume.warnings == ()
    with pytest.raises(VolumeFileError, match=r"'flair\.tif' has three channels already"):
        read_volume([save_pages(tmp_path / "flair.tif", slices), save_pages(tmp_path / "t1.tif", slices[..., 0])])


def test_a_single_sequence_is_flair_and_its_name_may_say_otherwise(tmp_path):
    volume = read_volume([save_nifti(tmp_path / "t1ce.nii", head().slices[..., 1])])
    np.testing.assert_array_equal(volume.slices, head().slices[..., 1])
    assert any("does not sound like FLAIR" in warning for warning in volume.warnings)


def test_a_zip_of_slices_is_read_without_its_litter(tmp_path):
    slices = head().slices
    members = {f"patient/{path.name}": path for path in save_slices(tmp_path, slices, "slice{}.png")}
    members |= {"__MACOSX/patient/._slice1.png": b"\0\5", "patient/.DS_Store": b"\0", "patient/notes.txt": b"notes"}
    before = set(tmp_path.iterdir())
    volume = read_volume([save_zip(tmp_path / "patient.zip", members)])
    np.testing.assert_array_equal(volume.slices, slices)
    assert volume.warnings == ("1 file(s) that are no images were left out, such as 'patient/notes.txt'.",)
    assert set(tmp_path.iterdir()) - before == {tmp_path / "patient.zip"}, "nothing is unpacked to disk"


def test_a_folder_is_read_as_an_archive_of_it(tmp_path):
    slices = head().slices
    case = tmp_path / "case"
    for channel, name in enumerate(("t1_pre", "flair", "t1_post")):
        (case / name).mkdir(parents=True)
        save_slices(case / name, slices[..., channel], "{}.png")
    (case / ".git").mkdir()
    for name in (".git/notes.png", "Thumbs.db", "._flair.png"):
        (case / name).write_bytes(b"litter")
    (case / "acquisition.json").write_text("{}")
    for paths in (case, str(case), [case]):
        volume = read_volume(paths)
        np.testing.assert_array_equal(volume.slices, slices)
        assert volume.warnings == ("1 file(s) that are no images were left out, such as 'acquisition.json'.",)

    (case / "flair" / "3.png").write_bytes(b"no image")
    with pytest.raises(VolumeFileError, match=r"'flair/3.png' is of no kind"):
        read_volume(case)
    (tmp_path / "empty").mkdir()
    with pytest.raises(VolumeFileError, match="The folder 'empty' holds no files"):
        read_volume(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        read_volume(tmp_path / "missing")


def test_a_sequence_per_folder_or_name_becomes_one_volume(tmp_path):
    slices = head().slices
    members = {}
    for channel, name in enumerate(("t1", "flair", "t1c")):
        for index, path in enumerate(save_slices(tmp_path, slices[..., channel], f"{name}_{{}}.png")):
            members[f"case/{name}/img{index:03d}_{name}.png"] = path.read_bytes()
    order = np.argsort([str(number) for number in range(1, 13)])  # as save_slices sorts them
    volume = read_volume([save_zip(tmp_path / "case.zip", members)])
    np.testing.assert_array_equal(volume.slices, slices[order])


def nifti_bytes(at: int = 0, content: bytes = b"") -> bytes:
    """A sound file but for the bytes from `at` on."""
    data = as_nifti(head().slices[..., FLAIR].astype(np.float32)).to_bytes()
    return data[:at] + content + data[at + len(content) :]


def nifti_of(array: np.ndarray, affine=AFFINE) -> bytes:
    return nib.Nifti1Image(array, affine).to_bytes()


def with_nan() -> bytes:
    array = np.asarray(as_nifti(head().slices[..., FLAIR].astype(np.float32)).dataobj).copy()
    array[3, 4, 5:7] = np.nan
    return nifti_of(array)


def declared_size(*lengths: int) -> bytes:
    """A gzip file of nothing but a header that declares a huge volume."""
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(lengths)
    header["magic"], header["vox_offset"] = b"n+1\0", 352
    return gzip.compress(header.binaryblock + b"\0" * 4)


RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])


def transparent() -> bytes:
    """A square that is drawn by its opacity alone."""
    pixels = np.full((64, 48, 4), 255, np.uint8)
    pixels[20:30, 20:30, 3] = 0
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def pages(array: np.ndarray, mode: str | None = None) -> bytes:
    first, *others = (Image.fromarray(page).convert(mode) for page in array)
    buffer = io.BytesIO()
    first.save(buffer, "TIFF", save_all=True, append_images=others)
    return buffer.getvalue()


UNREADABLE = {
    "text": ("notes.nii", b"Patient report\n" * 40, "of no kind that is known here"),
    "empty file": ("flair.nii.gz", b"", "is empty: it has no bytes"),
    "gzip of text": ("flair.nii.gz", gzip.compress(b"report" * 500), "gzip, but no NIfTI"),
    "damaged gzip": ("flair.nii.gz", b"\x1f\x8b\x08" + b"\xff" * 60, "gzip, but no NIfTI"),
    "nrrd": ("flair.nrrd", b"NRRD0004\n", "kind nrrd"),
    "pair": ("flair.hdr", b"\0" * 344 + b"ni1\0", "one .nii file"),
    "4-D": ("bold.nii", nifti_of(np.zeros((40, 40, 8, 5), np.int16)), "4 dimensions .*40×40×8×5"),
    "2-D": ("slice.nii", nifti_of(np.ones((40, 40), np.int16)), "three dimensions"),
    "NaN": ("flair.nii", with_nan(), "NaN or infinite intensities in 2 of"),
    "overflow": ("flair.nii", nifti_of(np.linspace(0, 1e300, 32**3).reshape(32, 32, 32)), "NaN or infinite"),
    "colours": ("rgb.nii", nifti_of(np.zeros((40, 40, 8), RGB)), "not grey MR intensities"),
    "complex": ("k.nii", nifti_of(np.ones((40, 40, 8), np.complex64)), "not grey MR intensities"),
    "constant": ("flair.nii", nifti_of(np.full((40, 40, 8), 7, np.int16)), "every voxel is 7"),
    "all zero": ("flair.nii.gz", gzip.compress(nifti_of(np.zeros((40, 40, 8), np.int16))), "is empty"),
    "small": ("flair.nii", nifti_of(np.ones((20, 40, 40), np.int16)), "40×20 pixels, too small"),
    "2,000 slices": (
        "flair.nii",
        nifti_of(np.ones((32, 32, 2000), np.uint8)),
        "32×32×2000 voxels, which is too large: at most 400 slices",
    ),
    "declared": ("flair.nii.gz", declared_size(8000, 8000, 8000), "too large"),
    "declared voxels": ("flair.nii.gz", declared_size(1000, 1000, 1000), "too large"),
    "no data": ("flair.nii.gz", declared_size(64, 64, 64), "damaged or incomplete"),
    "truncated": ("flair.nii", nifti_bytes()[:4000], "damaged or incomplete"),
    "truncated gzip": ("flair.nii.gz", gzip.compress(nifti_bytes())[:900], "damaged or incomplete"),
    "unknown type": ("flair.nii", nifti_bytes(70, struct.pack("<h", 99)), "damaged or incomplete"),
    "no finite space": ("flair.nii", nifti_bytes(280, struct.pack("<f", np.nan)), "valid orientation"),
    "no space": ("flair.nii", nifti_bytes(280, b"\0" * 48), "valid orientation"),
    "damaged tiff": ("stack.tif", b"II*\0\x08\0\0\0\0\0" + b"\0" * 16, "damaged or incomplete"),
    "constant pages": ("stack.tif", pages(np.full((3, 40, 40), 9, np.uint8)), "'stack.tif' is empty .every voxel is 9"),
    "bilevel": ("stack.tif", pages(head().mask), "colour space 1; accepted are grey and RGB"),
    "cmyk": ("stack.tif", pages(head().slices, "CMYK"), "colour space CMYK"),
    "narrow pages": ("stack.tif", pages(np.ones((3, 40, 20), np.uint8)), "40×20 pixels, too small"),
    "transparent": ("alpha.png", transparent(), "transparency .* Save it without"),
    "empty zip": ("empty.zip", b"PK\x05\x06" + b"\0" * 18, "holds no files"),
    "damaged zip": ("broken.zip", b"PK\x03\x04" + b"\0" * 100, "is damaged"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_unreadable_files_are_refused_in_a_sentence(tmp_path, case):
    name, content, why = UNREADABLE[case]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(VolumeFileError, match=why) as refusal:
        read_volume([path])
    assert name in str(refusal.value)
    assert str(tmp_path) not in str(refusal.value)


@pytest.mark.parametrize("limit", ["MAX_SLICES", "MAX_SIDE", "MAX_VOXELS"])
def test_a_volume_at_a_limit_is_read_and_one_above_it_refused(tmp_path, monkeypatch, limit):
    flair = head().slices[..., FLAIR]
    across = flair.transpose(0, 2, 1)
    reached = {"MAX_SLICES": 12, "MAX_SIDE": 64, "MAX_VOXELS": flair.size}[limit]
    paths = [save_nifti(tmp_path / "a.nii", flair), save_pages(tmp_path / "b.tif", flair)]
    paths += [save_nifti(tmp_path / "c.nii", across), save_pages(tmp_path / "d.tif", across)]
    (tmp_path / "e").mkdir()
    save_dicom(tmp_path / "e", flair)
    for path in [*paths, tmp_path / "e"]:
        for module in (image_stacks, nifti_files, scans):
            monkeypatch.setattr(module, limit, reached, raising=False)
        assert read_volume(path).slices.size == flair.size
        for module in (image_stacks, nifti_files, scans):
            monkeypatch.setattr(module, limit, reached - 1, raising=False)
        with pytest.raises(VolumeFileError, match="too large"):
            read_volume(path)


def test_slices_of_32_pixels_are_large_enough(tmp_path):
    flair = head().slices[:, 16:48, 8:40, FLAIR]
    np.testing.assert_array_equal(read_volume(save_nifti(tmp_path / "flair.nii", flair)).slices, flair)


def test_files_of_different_kinds_or_patients_are_refused(tmp_path):
    slices = save_slices(tmp_path, head().slices)
    volume = save_nifti(tmp_path / "flair.nii", head().slices[..., 1])
    with pytest.raises(VolumeFileError, match=r"different kinds came together \(image, nifti\)"):
        read_volume([*slices, volume])
    others = save_slices(tmp_path, head().slices, "TCGA_DU_5849_19950405_{}.tif")
    with pytest.raises(VolumeFileError, match="2 sequences came"):
        read_volume([*slices, *others])


def test_without_files_or_with_masks_alone_it_says_what_to_do(tmp_path):
    with pytest.raises(VolumeFileError, match="Choose the files"):
        read_volume([])
    with pytest.raises(VolumeFileError, match="all files are masks"):
        read_volume([save_pages(tmp_path / "lesion_mask.tif", head().mask)])
    with pytest.raises(FileNotFoundError):
        read_volume([tmp_path / "gone.nii"])
