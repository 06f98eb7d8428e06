"""DICOM series -> volumes: which series serve, in which order their slices lie, and what is refused."""

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGLossless, RLELossless
from volume_samples import CORONAL, SAGITTAL, SPACING, head, save_dicom, save_zip

from modeling import scans
from modeling.input_files import VolumeFileError
from modeling.volume_files import read_volume

FLAIR = head().slices[..., 1]


def test_a_study_gives_the_series_that_serve(tmp_path):
    """FLAIR and T1 become channels; a localiser, a screenshot's series and a broken T1 do not get in the way."""
    for number, (name, channel) in enumerate({"AX FLAIR": 1, "AX T1 POST": 2, "AX T1 PRE": 0}.items()):
        save_dicom(tmp_path, head().slices[..., channel] + number, description=name)
    localiser = save_dicom(tmp_path, FLAIR, description="3-plane loc", orientation=SAGITTAL)
    save_dicom(tmp_path, FLAIR, description="screenshots", Modality="SEG")
    broken = sorted(tmp_path.glob("AX_T1_PRE*"))[0]
    header = dcmread(broken)
    header.ImageOrientationPatient = dcmread(localiser[0]).ImageOrientationPatient
    header.save_as(broken)
    path = save_zip(tmp_path / "study.zip", {file.name: file for file in sorted(tmp_path.iterdir(), reverse=True)})
    volume = read_volume([path])
    np.testing.assert_array_equal(volume.slices[..., 1], FLAIR)
    np.testing.assert_array_equal(volume.slices[..., 2], head().slices[..., 2] + 1)
    text = " ".join(volume.warnings)
    for said in ("'AX T1 PRE' is left out", "different directions", "'3-plane loc'", "no pre-contrast T1"):
        assert text.count(said) == 1
    assert {header.SeriesDescription for header in volume.headers} == {"AX FLAIR"}


@pytest.mark.parametrize(
    ("attributes", "why"),
    [
        ({"FrameOfReferenceUID": "1.2.9"}, "it lies in another frame of reference than 'AX T2 FLAIR'"),
        ({"StudyInstanceUID": "1.2.9", "StudyDate": "20230102"}, "it is of another examination than 'AX T2 FLAIR'"),
        ({"StudyInstanceUID": "1.2.9", "FrameOfReferenceUID": None}, "it is of another examination than 'AX T2 FLAIR'"),
        ({"StudyInstanceUID": "1.2.9"}, None),  # of the same day, and in the same frame of reference
    ],
)
def test_series_of_other_examinations_are_left_out(tmp_path, attributes, why):
    save_dicom(tmp_path, FLAIR)
    save_dicom(tmp_path, head().slices[..., 2], description="AX T1 POST", **attributes)
    volume = read_volume(tmp_path)
    assert volume.slices.ndim == (3 if why else 4)
    assert (f"'AX T1 POST' is left out: {why}" in " ".join(volume.warnings)) == bool(why)


def test_other_patients_are_told_by_their_names_where_they_have_no_number(tmp_path):
    save_dicom(tmp_path, FLAIR, PatientID=None, PatientName="A^A")
    save_dicom(tmp_path, FLAIR, description="AX T1", PatientID=None, PatientName=None)
    assert read_volume(tmp_path).slices.ndim == 4
    save_dicom(tmp_path, FLAIR, description="AX T1 POST", PatientID=None, PatientName="B^B")
    with pytest.raises(VolumeFileError, match="belong to 2 patients"):
        read_volume(tmp_path)


def test_a_study_whose_flair_cannot_be_read_is_refused_with_the_reason(tmp_path):
    save_dicom(tmp_path, head().slices[..., 2], description="AX T1 POST")
    files = save_dicom(tmp_path, FLAIR)
    header = dcmread(files[3])
    header.PixelSpacing = [1.5, 1.6]
    header.save_as(files[3])
    with pytest.raises(VolumeFileError, match="The slices of 'AX T2 FLAIR' have different pixel spacings"):
        read_volume(tmp_path)


def test_series_without_a_description_are_called_by_their_protocol_or_folder(tmp_path):
    for name, channel, attributes in (
        ("flair", 1, {}),
        ("second", 2, {"ProtocolName": "T1 GD"}),
        ("third", 0, {"SeriesDescription": "AX T1 W/O CONTRAST"}),  # the slash leads to no folder
    ):
        (tmp_path / name).mkdir()
        save_dicom(tmp_path / name, head().slices[..., channel], **({"SeriesDescription": None} | attributes))
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.slices, head().slices)
    assert volume.warnings == ()


def test_two_series_of_one_description_are_both_seen(tmp_path):
    for copy in ("first", "second"):
        (tmp_path / copy).mkdir()
        save_dicom(tmp_path / copy, FLAIR)
    with pytest.raises(VolumeFileError, match=r"'AX T2 FLAIR', 'AX T2 FLAIR \(2\)'\), and 2 of them are FLAIR"):
        read_volume(tmp_path)


def test_objects_without_pixels_do_not_get_in_the_way(tmp_path):
    save_dicom(tmp_path, FLAIR, description="axial")
    save_dicom(tmp_path, FLAIR[5:6], description="report", Modality="SR", Rows=None, Columns=None, PixelData=None)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.slices, FLAIR)
    assert volume.warnings == ()


def test_scaling_of_some_slices_alone_keeps_their_intensities(tmp_path):
    files = save_dicom(tmp_path, FLAIR)
    last = max(files, key=lambda file: dcmread(file).ImagePositionPatient[2])
    header = dcmread(last)
    header.RescaleSlope, header.RescaleIntercept = 0.25, -1
    header.save_as(last)
    slices = read_volume(files).slices
    np.testing.assert_array_equal(slices[:-1], FLAIR[:-1])
    np.testing.assert_array_equal(slices[-1], FLAIR[-1] * np.float32(0.25) - 1)


@pytest.mark.parametrize(
    ("attributes", "thickness"), [({"SpacingBetweenSlices": 6.0}, 6.0), ({}, 5.0), ({"SliceThickness": None}, None)]
)
def test_one_slice_is_as_thick_as_its_header_says(tmp_path, attributes, thickness):
    volume = read_volume(save_dicom(tmp_path, FLAIR[5:6], **attributes))
    if thickness is None:
        assert volume.spacing is None
        assert "thickness" in volume.no_spacing
    else:
        assert volume.spacing == pytest.approx((thickness, *SPACING[1:]))


@pytest.mark.parametrize("spacing", [None, [0.0, 0.0]])
def test_without_the_distance_between_pixels_there_is_no_spacing(tmp_path, spacing):
    volume = read_volume(save_dicom(tmp_path, FLAIR, PixelSpacing=spacing))
    assert volume.spacing is None
    assert "distance between pixels" in volume.no_spacing
    (warning,) = volume.warnings
    assert "areas and volumes are given in pixels and voxels alone" in warning


def test_distances_of_no_possible_space_are_refused(tmp_path):
    with pytest.raises(VolumeFileError, match=r"'AX T2 FLAIR' has DICOM headers .* make up no space"):
        read_volume(save_dicom(tmp_path, FLAIR, PixelSpacing=[1e-5, 1e-5]))


def test_pixel_spacings_that_differ_by_rounding_are_one(tmp_path):
    files = save_dicom(tmp_path, FLAIR)
    header = dcmread(files[3])
    header.PixelSpacing = [0.7501, 0.8]
    header.save_as(files[3])
    assert read_volume(files).spacing == pytest.approx(SPACING, abs=1e-3)


def test_slices_as_thin_as_a_tenth_of_a_millimetre_are_told_apart(tmp_path):
    files = save_dicom(tmp_path, FLAIR)
    for file in files:
        header = dcmread(file)
        x, y, z = map(float, header.ImagePositionPatient)
        header.ImagePositionPatient = [x, y, z / 50]
        header.save_as(file)
    volume = read_volume(files)
    np.testing.assert_array_equal(volume.slices, FLAIR)
    assert volume.spacing == pytest.approx((0.1, *SPACING[1:]))


def test_slices_without_positions_are_sorted_by_their_numbers(tmp_path):
    files = save_dicom(tmp_path, FLAIR, ImagePositionPatient=None)
    order = np.argsort([dcmread(file).InstanceNumber for file in files])
    volume = read_volume(files)
    np.testing.assert_array_equal(volume.slices, FLAIR[order])
    assert volume.spacing is None
    (warning,) = volume.warnings
    assert "they are sorted by their numbers. Check that they are axial" in warning


def test_a_series_that_was_not_acquired_in_axial_slices_is_said_to_be_so(tmp_path):
    files = save_dicom(tmp_path, np.repeat(FLAIR, 4, axis=0), CORONAL)
    assert read_volume(files).warnings == ()
    for file in files:
        header = dcmread(file)
        x, y, z = map(float, header.ImagePositionPatient)
        header.ImagePositionPatient = [x, 4 * y, z]
        header.save_as(file)
    (warning,) = read_volume(files).warnings
    assert "was not acquired in axial slices: its axial pixels are 3.0×0.8 mm" in warning


def test_two_slices_at_one_position_are_named(tmp_path):
    files = save_dicom(tmp_path, FLAIR)
    header = dcmread(files[4])
    header.ImagePositionPatient = dcmread(files[7]).ImagePositionPatient
    header.save_as(files[4])
    with pytest.raises(VolumeFileError, match="several slices at one position") as refusal:
        read_volume(files)
    for number, file in enumerate(files):
        assert (repr(file.name) in str(refusal.value)) == (number in (4, 7))


@pytest.mark.parametrize("attributes", [{}, {"ImagePositionPatient": None}])
def test_too_large_a_series_is_refused_before_its_pixels_are_read(tmp_path, monkeypatch, attributes):
    monkeypatch.setattr(scans, "MAX_SLICES", 8)
    monkeypatch.setattr(Dataset, "pixel_array", property(lambda _: pytest.fail("decoded")))
    with pytest.raises(VolumeFileError, match="'AX T2 FLAIR' has 12 slices of 64×48 pixels, which is too large"):
        read_volume(save_dicom(tmp_path, FLAIR, **attributes))


def test_what_is_black_at_the_highest_value_is_inverted_and_other_modalities_are_named(tmp_path):
    files = save_dicom(tmp_path, 4095 - FLAIR.astype(np.uint16), PhotometricInterpretation="MONOCHROME1", Modality="CT")
    volume = read_volume(files)
    np.testing.assert_array_equal(volume.slices, FLAIR)
    assert any("of the modality CT" in warning for warning in volume.warnings)


def test_compressed_pixels_are_read_where_a_decoder_is_there_and_named_where_not(tmp_path):
    files = save_dicom(tmp_path, FLAIR)
    for file in files:
        header = dcmread(file)
        header.compress(RLELossless)
        header.save_as(file)
    np.testing.assert_array_equal(read_volume(files).slices, FLAIR)
    for file in files:
        header = dcmread(file)
        header.file_meta.TransferSyntaxUID = JPEGLossless
        header.save_as(file)
    with pytest.raises(VolumeFileError, match=r"compressed as JPEG Lossless.*gdcmconv"):
        read_volume(files)


def test_unusable_dicom_is_refused_in_a_sentence(tmp_path):
    def changed(name, change):
        folder = tmp_path / name
        folder.mkdir()
        files = save_dicom(folder, FLAIR)
        header = dcmread(files[0])
        change(header)
        header.save_as(files[0])
        return files

    def deflate(header):
        header.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian

    def swell(header):
        header.compress(RLELossless)
        header.add_new(0x00091010, "OB", b"\0" * 2**21)

    def set_to(**attributes):
        return lambda header: [setattr(header, keyword, value) for keyword, value in attributes.items()]

    cases = {
        "deflated": (deflate, "is deflated"),
        "frames": (set_to(NumberOfFrames=2), "holds several frames"),
        "colour": (set_to(SamplesPerPixel=3), "colour image"),
        "patients": (set_to(PatientID="8"), "belong to 2 patients"),
        "sizes": (set_to(Rows=32), "different sizes"),
        "widths": (set_to(Columns=32), "different sizes"),
        "spacings": (set_to(PixelSpacing=[0.75, 0.82]), "different pixel spacings"),
        "one spacing": (set_to(PixelSpacing=None), "different pixel spacings"),
        "directions": (set_to(ImageOrientationPatient=[0.9998, 0.02, 0, -0.02, 0.9998, 0]), "different directions"),
        "swollen": (swell, "more bytes than its pixels need"),
        "short": (set_to(PixelData=b"\0" * 100), "damaged or incomplete DICOM"),
        "nonsense": (set_to(ImagePositionPatient=["1", "2"]), "does not say where"),
        "no number": (set_to(ImagePositionPatient=["nan", "1", "2"]), "does not say where"),
        "skewed": (set_to(ImageOrientationPatient=[1, 0, 0, 0.7, 0.7, 0]), "does not say where"),
    }
    for name, (change, why) in cases.items():
        files = changed(name, change)
        if name in ("nonsense", "no number", "skewed"):
            assert any(why in warning for warning in read_volume(files).warnings)
        else:
            with pytest.raises(VolumeFileError, match=why):
                read_volume(files)
    with pytest.raises(VolumeFileError, match="every voxel is 3"):
        read_volume(save_dicom(tmp_path, np.full_like(FLAIR, 3), description="constant"))
    for number in (None, 1):  # none, and that of an echo, time point or copy
        files = save_dicom(tmp_path, FLAIR, description=f"{number}", ImagePositionPatient=None, InstanceNumber=number)
        with pytest.raises(VolumeFileError, match="their order is unknown"):
            read_volume(files)
    for modality, name in (("SEG", "report"), ("RTDOSE", "dose")):
        with pytest.raises(VolumeFileError, match="no images but other objects"):
            read_volume(save_dicom(tmp_path, FLAIR, description=name, Modality=modality))
    files = save_dicom(tmp_path, FLAIR, description="one") + save_dicom(tmp_path, FLAIR, description="two")
    with pytest.raises(VolumeFileError, match=r"2 sequences came .* none of them is FLAIR"):
        read_volume(files)


def test_slices_that_lie_aslant_above_each_other_keep_their_places(tmp_path):
    """As of a tilted gantry: the affine shears."""
    for path in save_dicom(tmp_path, FLAIR):
        header = dcmread(path)
        header.ImagePositionPatient[1] += round(0.2 * header.ImagePositionPatient[2], 6)
        header.save_as(path)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.slices, FLAIR)
    assert volume.spacing == pytest.approx(SPACING)
    for index, header in enumerate(volume.headers):
        place = (volume.geometry.affine @ [0, 0, index, 1])[:3] * [-1, -1, 1]
        np.testing.assert_allclose(place, np.array(header.ImagePositionPatient, dtype=float), atol=1e-4)
