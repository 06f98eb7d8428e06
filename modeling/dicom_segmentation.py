"""A mask on a DICOM series -> a DICOM SEG object, which viewers and archives show on that series."""

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path

import numpy as np

from .dicom_files import UNEVEN, positive_number
from .volume_geometry import Geometry

MANUFACTURER = "lgg-segmentation"
SERIES_DESCRIPTION = "FLAIR abnormality, AI outline: research only, not clinical"
SERIES_NUMBER = 9000  # far from those of scanners
# In the order in which people would look for them.
REQUIRED = (
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "SOPClassUID",
    "SOPInstanceUID",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
)
# Of the patient and the study: they may be empty in a DICOM SEG, but are there.
MAY_BE_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)


class DicomSegmentationError(ValueError):
    """There is no DICOM SEG for these headers; the text says why, in a sentence."""


def write_dicom_segmentation(
    path: Path,
    mask: np.ndarray,
    headers: Sequence,
    geometry: Geometry,
    *,
    model: str,
    weights_sha256: str,
    parameters: Mapping[str, object],
) -> None:
    """Write a mask as a binary DICOM SEG that refers to the slices of its FLAIR series, with the patient's data.

    Slices without lesion have no frame, unless all are: then each has an empty one.

    Args:
        mask: (S, H, W) bool, axial.
        headers: DICOM data sets of the slices, in the order of `geometry`'s own; see `MRVolume`.
        geometry: where the mask lies in the series.
        model, weights_sha256: which algorithm drew it.
        parameters: further options of the algorithm, by name.

    Raises:
        DicomSegmentationError: the headers lack what a DICOM SEG is made of, or hold what none may.
    """
    for keyword in REQUIRED:
        if lacking := sum(not header.get(keyword) for header in headers):
            raise DicomSegmentationError(
                f"There is no DICOM SEG: {lacking} of the {len(headers)} DICOM headers lack {keyword}, which it needs "
                f"to refer to the slices."
            )
    if geometry.affine is None:
        raise DicomSegmentationError(
            "There is no DICOM SEG: ImagePositionPatient and ImageOrientationPatient of the DICOM headers do not say "
            "where the slices lie."
        )
    import highdicom as hd
    from pydicom.sr.codedict import codes

    algorithm = hd.AlgorithmIdentificationSequence(
        name=long_string(model),
        family=codes.cid7162.ArtificialIntelligence,
        version=long_string(weights_sha256),
        source=MANUFACTURER,
        parameters={"weights_sha256": weights_sha256, **parameters},
    )
    segment = hd.seg.SegmentDescription(
        segment_number=1,
        segment_label="FLAIR abnormality",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Lesion,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        anatomic_regions=[codes.SCT.Brain],
        display_color=hd.color.CIELabColor.from_rgb(230, 60, 60),
    )
    segment.SegmentDescription = "Drawn by a model on brain MR. Research only: not for diagnosis or treatment."
    frames = geometry.from_axial(mask).transpose(2, 1, 0)  # (column, row, slice) -> (slice, row, column)
    headers = [deepcopy(header) for header in headers]
    try:
        first = headers[0]  # from which patient, study and pixel sizes are taken
        for keyword in MAY_BE_EMPTY:
            first.setdefault(keyword, "")
        for header in headers:  # which may differ by rounding
            header.ImageOrientationPatient = first.ImageOrientationPatient
        if not positive_number(first, "SliceThickness"):
            first.SliceThickness = float(np.linalg.norm(geometry.affine[:3, 2]))
        set_spacing_between_slices(first, headers)
        # One character set that holds every name: highdicom takes fewer than there are.
        first.decode()
        first.SpecificCharacterSet = "ISO_IR 192"
        segmentation = hd.seg.Segmentation(
            source_images=headers,
            pixel_array=np.ascontiguousarray(frames.astype(bool)),
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[segment],
            series_instance_uid=hd.UID(),
            series_number=SERIES_NUMBER,
            series_description=SERIES_DESCRIPTION,
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=long_string(model),
            software_versions=long_string(weights_sha256),
            device_serial_number=long_string(weights_sha256),
            content_label="FLAIR_LESION",
            content_description=SERIES_DESCRIPTION,
            omit_empty_frames=bool(mask.any()),
        )
        segmentation.save_as(path)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, NotImplementedError) as error:
        path.unlink(missing_ok=True)
        # Without the values, which may be a patient's and would go into reports.
        reason = re.sub(r"(['\"]).*?\1", "…", " ".join(str(error).split()))[:200]
        raise DicomSegmentationError(
            f"There is no DICOM SEG: the DICOM headers of the series hold what none can be made of ({reason})."
        ) from error


def set_spacing_between_slices(first, headers: Sequence) -> None:
    """Give `first` the distance at which the slices lie, or none where it varies; some scanners store the gap."""
    if "SpacingBetweenSlices" in first:
        del first.SpacingBetweenSlices
    directions = np.reshape(np.asarray(first.ImageOrientationPatient, dtype=float), (2, 3))
    positions = np.asarray([header.ImagePositionPatient for header in headers], dtype=float)
    distances = np.abs(np.diff(positions @ np.cross(*directions)))
    if len(distances) and np.ptp(distances) <= UNEVEN * np.median(distances):
        first.SpacingBetweenSlices = round(float(distances.mean()), 6)


def long_string(text: str) -> str:
    """At most 64 characters without what has a meaning of its own, as DICOM's LO takes them."""
    return re.sub(r"[\\\x00-\x1f\x7f]", "_", text)[:64]
