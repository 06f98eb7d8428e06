"""DICOM series -> volumes, and masks back onto their slices as DICOM SEG."""

import warnings

import highdicom as hd
import nibabel as nib
import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGLossless, RLELossless
from volume_samples import AFFINE, SPACING, head, save_dicom, save_zip

from modeling import scans
from modeling.dicom_segmentation import DicomSegmentationError, write_dicom_segmentation
from modeling.input_files import VolumeFileError
from modeling.nifti_files import write_nifti
from modeling.volume_files import read_volume

FLAIR = head().slices[..., 1]
AXIAL = ((0, -1), (1, -1), (2, 1))
CORONAL = ((0, -1), (2, 1), (1, -1))
ORIENTATIONS = [
    AXIAL,
    ((0, 1), (1, 1), (2, -1)),
    ((1, 1), (0, -1), (2, 1)),
    ((2, 1), (1, -1), (0, 1)),
    ((0, 1), (2, -1), (1, -1)),
]
MADE_WITH = {"model": "unet\\5\nlevel" + "x" * 80, "weights_sha256": "ab" * 32, "parameters": {"threshold": 0.4}}


def segmentation_of(path, mask, volume) -> hd.seg.Segmentation:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_dicom_segmentation(path, mask, volume.headers, volume.geometry, **MADE_WITH)
        return hd.seg.segread(path)


def mask_of_instance(header, mask) -> np.ndarray:
    """What a mask holds at the pixels of a source slice, found by the positions in its header alone."""
    to_voxel = np.linalg.inv(AFFINE) @ np.diag([-1, -1, 1, 1])
    rows, columns = np.mgrid[: header.Rows, : header.Columns]
    directions = np.array(header.ImageOrientationPatient, float).reshape(2, 3)
    between_rows, between_columns = map(float, header.PixelSpacing)
    points = (
        np.array(header.ImagePositionPatient, float)
        + columns[..., None] * directions[0] * between_columns
        + rows[..., None] * directions[1] * between_rows
    )
    right, front, up = np.rint(points @ to_voxel[:3, :3].T + to_voxel[:3, 3]).astype(int).transpose(2, 0, 1)
    return mask[:, ::-1, ::-1][up, front, right]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_mask_lands_on_the_source_slices_in_any_order_and_orientation(tmp_path, orientation):
    files = save_dicom(tmp_path, FLAIR, orientation)
    volume = read_volume(files)
    np.testing.assert_array_equal(volume.slices, FLAIR)
    assert volume.spacing == pytest.approx(SPACING)
    segmentation = segmentation_of(tmp_path / "seg.dcm", head().mask, volume)
    sources = {header.SOPInstanceUID: header for header in map(dcmread, files)}
    found = {}
    for frame, groups in zip(segmentation.pixel_array, segmentation.PerFrameFunctionalGroupsSequence, strict=True):
        reference = groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        position = groups.PlanePositionSequence[0].ImagePositionPatient
        assert list(position) == pytest.approx(list(sources[reference].ImagePositionPatient))
        found[reference] = frame
    for reference, header in sources.items():
        expected = mask_of_instance(header, head().mask)
        assert (reference in found) == expected.any()
        np.testing.assert_array_equal(found.get(reference, np.zeros_like(expected)), expected)
    shared = segmentation.SharedFunctionalGroupsSequence[0]
    source = next(iter(sources.values()))
    assert shared.PlaneOrientationSequence[0].ImageOrientationPatient == source.ImageOrientationPatient
    assert shared.PixelMeasuresSequence[0].PixelSpacing == source.PixelSpacing

    write_nifti(tmp_path / "mask.nii", head().mask, volume.geometry)
    written = nib.as_closest_canonical(nib.load(tmp_path / "mask.nii"))
    np.testing.assert_array_equal(np.asarray(written.dataobj), head().mask[:, ::-1, ::-1].transpose(2, 1, 0))
    np.testing.assert_allclose(written.affine, AFFINE, atol=1e-6)


def test_the_object_says_what_it_is_and_whose(tmp_path):
    volume = read_volume(save_dicom(tmp_path, FLAIR))
    before = [header.to_json() for header in volume.headers]
    segmentation_of(tmp_path / "seg.dcm", head().mask, volume)
    written, source = dcmread(tmp_path / "seg.dcm"), volume.headers[0]
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName", "StudyDate"):
        assert written[keyword].value == source[keyword].value
    assert str(written.PatientName) == "Müller^Änne"
    assert written.ReferencedSeriesSequence[0].SeriesInstanceUID == source.SeriesInstanceUID
    assert written.SeriesInstanceUID != source.SeriesInstanceUID
    assert (written.Modality, written.SegmentationType, written.BitsAllocated) == ("SEG", "BINARY", 1)
    assert "research only" in written.SeriesDescription
    (segment,) = written.SegmentSequence
    assert segment.SegmentLabel == "FLAIR abnormality"
    assert segment.SegmentAlgorithmType == "AUTOMATIC"
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == "52988006"
    assert segment.AnatomicRegionSequence[0].CodeValue == "12738006"
    (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
    assert algorithm.AlgorithmName == "unet_5_level" + "x" * 52
    assert algorithm.AlgorithmVersion == "ab" * 32
    assert {"threshold=0.4", "weights_sha256=" + "ab" * 32} <= set(algorithm.AlgorithmParameters.split(","))
    assert [header.to_json() for header in volume.headers] == before, "the headers of the input were changed"


def test_an_empty_mask_has_an_empty_frame_for_each_slice(tmp_path):
    volume = read_volume(save_dicom(tmp_path, FLAIR))
    segmentation = segmentation_of(tmp_path / "seg.dcm", np.zeros_like(head().mask), volume)
    assert segmentation.pixel_array.shape == FLAIR.shape
    assert not segmentation.pixel_array.any()


def test_what_anonymisers_blank_is_left_empty(tmp_path):
    patient = ("PatientName", "PatientID", "PatientSex", "PatientBirthDate")
    study = ("StudyID", "StudyDate", "StudyTime", "AccessionNumber", "SliceThickness", "SpecificCharacterSet")
    volume = read_volume(save_dicom(tmp_path, FLAIR, CORONAL, Modality="", **dict.fromkeys(patient + study)))
    assert volume.warnings == ()
    segmentation = segmentation_of(tmp_path / "seg.dcm", head().mask, volume)
    assert segmentation.PatientID == ""
    measures = segmentation.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert measures.SliceThickness == measures.SpacingBetweenSlices == pytest.approx(SPACING[1])


def test_the_distance_between_slices_is_theirs_and_not_the_gap_that_scanners_store(tmp_path):
    files = save_dicom(tmp_path, FLAIR, SpacingBetweenSlices=1.5)
    segmentation = segmentation_of(tmp_path / "seg.dcm", head().mask, read_volume(files))
    measures = segmentation.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert measures.SpacingBetweenSlices == pytest.approx(SPACING[0])
    uneven = [file for file in files if dcmread(file).InstanceNumber != 5]
    segmentation = segmentation_of(tmp_path / "seg.dcm", head().mask[:-1], read_volume(uneven))
    assert "SpacingBetweenSlices" not in segmentation.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]


@pytest.mark.parametrize(
    ("characters", "name"),
    [
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
        (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
        (["ISO_IR 13", "ISO 2022 IR 87"], "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎"),
        ("ISO 2022 IR 100", "Müller^Änne"),
    ],
)
def test_names_in_any_character_set_are_kept(tmp_path, characters, name):
    volume = read_volume(save_dicom(tmp_path, FLAIR, SpecificCharacterSet=characters, PatientName=name))
    assert segmentation_of(tmp_path / "seg.dcm", head().mask, volume).PatientName == name


def test_directions_that_differ_by_rounding_are_one(tmp_path):
    files = save_dicom(tmp_path, FLAIR)
    header = dcmread(files[3])
    header.ImageOrientationPatient = [float(value) + 1e-6 for value in header.ImageOrientationPatient]
    header.save_as(files[3])
    volume = read_volume(files)
    assert segmentation_of(tmp_path / "seg.dcm", head().mask, volume).pixel_array.any()


@pytest.mark.parametrize(
    ("attributes", "why"),
    [
        ({"FrameOfReferenceUID": None}, "12 of the 12 DICOM headers lack FrameOfReferenceUID"),
        ({"ImagePositionPatient": None}, "lack ImagePositionPatient"),
        ({"PixelSpacing": None}, "lack PixelSpacing"),
        ({"StudyInstanceUID": None}, "lack StudyInstanceUID"),
        ({"SOPClassUID": "1.2.3.4.5"}, "hold what none can be made of"),
        ({"PatientSex": "X"}, "hold what none can be made of"),
    ],
)
def test_without_what_it_needs_there_is_a_reason_instead(tmp_path, attributes, why):
    volume = read_volume(save_dicom(tmp_path, FLAIR, **attributes))
    assert volume.slices.shape == FLAIR.shape
    with pytest.raises(DicomSegmentationError, match=why):
        segmentation_of(tmp_path / "seg.dcm", head().mask, volume)
    assert not (tmp_path / "seg.dcm").exists()


def test_a_single_header_that_lacks_what_it_needs_is_counted(tmp_path):
    files = save_dicom(tmp_path, FLAIR)
    header = dcmread(files[7])
    del header.FrameOfReferenceUID
    header.save_as(files[7])
    with pytest.raises(DicomSegmentationError, match="1 of the 12 DICOM headers lack FrameOfReferenceUID"):
        segmentation_of(tmp_path / "seg.dcm", head().mask, read_volume(files))


def test_the_reason_does_not_tell_the_patients_data(tmp_path):
    volume = read_volume(save_dicom(tmp_path, FLAIR, PatientBirthDate="19601399x"))
    with pytest.raises(DicomSegmentationError, match="hold what none can be made of") as refused:
        segmentation_of(tmp_path / "seg.dcm", head().mask, volume)
    assert "1960" not in str(refused.value)


# Reading


def test_a_study_gives_the_series_that_serve(tmp_path):
    """FLAIR and T1 become channels; a localiser, a screenshot's series and a broken T1 do not get in the way."""
    for number, (name, channel) in enumerate({"AX FLAIR": 1, "AX T1 POST": 2, "AX T1 PRE": 0}.items()):
        save_dicom(tmp_path, head().slices[..., channel] + number, description=name)
    localiser = save_dicom(tmp_path, FLAIR, description="3-plane loc", orientation=ORIENTATIONS[3])
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


def test_intensities_are_scaled_and_unevenly_lying_slices_have_no_spacing(tmp_path):
    files = save_dicom(tmp_path, FLAIR, RescaleSlope=2, RescaleIntercept=-5)
    middle = next(file for file in files if (dcmread(file).ImagePositionPatient[2] - AFFINE[2, 3]) == 4 * SPACING[0])
    volume = read_volume([file for file in files if file != middle])
    assert volume.slices.dtype == np.float32
    np.testing.assert_array_equal(volume.slices, np.delete(FLAIR, 4, axis=0) * np.float32(2) - 5)
    assert volume.spacing is None
    assert "5.0 to 10.0 mm apart" in volume.no_spacing
    assert any("NIfTI mask of it has even slices, which lie elsewhere" in warning for warning in volume.warnings)
    heights = [(volume.geometry.axial_affine @ [index, 0, 0, 1])[2] for index in (0, 10)]
    assert heights == pytest.approx([AFFINE[2, 3], AFFINE[2, 3] + 11 * SPACING[0]])
    mask = np.delete(head().mask, 4, axis=0)
    segmentation = segmentation_of(tmp_path / "seg.dcm", mask, volume)
    heights = [
        groups.PlanePositionSequence[0].ImagePositionPatient[2]
        for groups in segmentation.PerFrameFunctionalGroupsSequence
    ]
    expected = np.delete(AFFINE[2, 3] + SPACING[0] * np.arange(len(FLAIR)), 4)[mask.any(axis=(1, 2))]
    assert sorted(heights) == pytest.approx(list(expected))


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


@pytest.mark.parametrize("value", [b"1,5 ", b"5\\5 ", b"abc ", b"-5.0", b"inf "])
def test_a_thickness_that_is_no_number_is_taken_as_missing(tmp_path, value):
    files = save_dicom(tmp_path, FLAIR)
    for file in files:
        element = b"\x18\x00\x50\x00DS\x04\x00"
        before, _, after = file.read_bytes().partition(element)
        file.write_bytes(before + element + value + after[4:])
    volume = read_volume(files[:1])
    assert volume.spacing is None
    assert "thickness" in volume.no_spacing
    segmentation = segmentation_of(tmp_path / "seg.dcm", head().mask, read_volume(files))
    measures = segmentation.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert measures.SliceThickness == pytest.approx(SPACING[0])


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


@pytest.mark.parametrize(("millimetres", "even"), [(0.2, True), (0.3, False)])
def test_slices_may_lie_a_tenth_of_their_distance_off(tmp_path, millimetres, even):
    files = save_dicom(tmp_path, FLAIR)
    header = dcmread(files[5])
    x, y, z = map(float, header.ImagePositionPatient)
    header.ImagePositionPatient = [x, y, z + millimetres]
    header.save_as(files[5])
    volume = read_volume(files)
    assert (volume.spacing is not None) == even
    assert even or "4.7 to 5.3 mm apart" in volume.no_spacing
    segmentation = segmentation_of(tmp_path / "seg.dcm", head().mask, volume)
    measures = segmentation.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert ("SpacingBetweenSlices" in measures) == even


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


def test_slices_that_are_shifted_one_to_the_next_stay_where_they_are(tmp_path):
    files = save_dicom(tmp_path, FLAIR)
    for file in files:
        header = dcmread(file)
        x, y, z = map(float, header.ImagePositionPatient)
        header.ImagePositionPatient = [x, y + 0.3 * z, z]  # a tilted gantry
        header.save_as(file)
    volume = read_volume(files)
    segmentation = segmentation_of(tmp_path / "seg.dcm", head().mask, volume)
    positions = {header.SOPInstanceUID: list(header.ImagePositionPatient) for header in map(dcmread, files)}
    assert len(segmentation.PerFrameFunctionalGroupsSequence) == head().mask.any(axis=(1, 2)).sum()
    measures = segmentation.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert measures.SpacingBetweenSlices == pytest.approx(SPACING[0]), "between the planes"
    for groups in segmentation.PerFrameFunctionalGroupsSequence:
        source = groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        assert list(groups.PlanePositionSequence[0].ImagePositionPatient) == pytest.approx(positions[source], abs=1e-3)
    write_nifti(tmp_path / "mask.nii", head().mask, volume.geometry)
    step = nib.load(tmp_path / "mask.nii").affine[:3, 2]
    assert abs(step[1]) == pytest.approx(0.3 * SPACING[0], abs=1e-3)


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
