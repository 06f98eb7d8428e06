"""Masks back onto the slices of the DICOM series they were found in, as DICOM SEG."""

import warnings

import highdicom as hd
import nibabel as nib
import numpy as np
import pytest
from pydicom import dcmread
from volume_samples import AFFINE, AXIAL, CORONAL, SAGITTAL, SPACING, head, save_dicom

from modeling.dicom_segmentation import DicomSegmentationError, write_dicom_segmentation
from modeling.nifti_files import write_nifti
from modeling.volume_files import read_volume

FLAIR = head().slices[..., 1]
ORIENTATIONS = [
    AXIAL,
    ((0, 1), (1, 1), (2, -1)),
    ((1, 1), (0, -1), (2, 1)),
    SAGITTAL,
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


def test_a_field_of_unknown_representation_is_a_reason(tmp_path):
    files = save_dicom(tmp_path, FLAIR, AccessionNumber="1234")
    for path in files:
        data = path.read_bytes()
        assert data.count(b"\x08\x00\x50\x00SH") == 1
        path.write_bytes(data.replace(b"\x08\x00\x50\x00SH", b"\x08\x00\x50\x00ZZ"))
    with pytest.raises(DicomSegmentationError, match=r"none can be made of \(Unknown Value Representation"):
        segmentation_of(tmp_path / "seg.dcm", head().mask, read_volume(files))


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
