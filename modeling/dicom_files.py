"""DICOM series -> scans. Headers are read first, and pixels only of the series that are used."""

import io
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .input_files import MAX_NAME, InputFile, VolumeFileError
from .scans import Scan, check_intensities, check_size, describe_plane
from .volume_geometry import Geometry

DEFLATED = "1.2.840.10008.1.2.1.99"
SAME_DIRECTION = 1e-3  # difference of direction cosines
SAME_POSITION = 1e-3  # mm
UNEVEN = 0.1  # of the distance between slices
SPARE_BYTES = 2**20  # of a compressed file, beside two bytes for each pixel
TO_NIFTI = "Convert the series to NIfTI, for instance with dcm2niix."
UNEVENLY = "the slices lie unevenly"
NO_POSITION = "its DICOM headers do not say where the slices lie"


@dataclass(frozen=True)
class Instance:
    """A DICOM file with one slice. What its header does not give is None, or "".

    Attributes:
        header: the data set without its pixels.
        position: (3,) of the first pixel's centre, to left, posterior, superior in mm.
        orientation: (2, 3) directions in which columns, then rows, are counted.
        spacing: distance between rows, and between columns, in mm.
    """

    file: InputFile
    header: Any
    rows: int
    columns: int
    patient: str
    series: str
    description: str
    number: int
    position: np.ndarray | None
    orientation: np.ndarray | None
    spacing: tuple[float, float] | None


def read_series(files: Sequence[InputFile]) -> dict[str, list[Instance]]:
    """The image series among files of kind "dicom": name -> slices, in no order; no pixels are decoded.

    A series is called by its description, or else by its folder or number.

    Raises:
        VolumeFileError: damaged or deflated files, several frames in a file, colours, other objects than images, or
            more than one patient.
    """
    series, others = defaultdict(list), []
    for file in files:
        instance = read_header(file)
        if isinstance(instance, str):
            others.append(f"{file.name!r} ({instance})")
        else:
            series[instance.series].append(instance)
    if not series:
        raise VolumeFileError(f"The DICOM files hold no images but other objects, such as {others[0]}.")
    patients = {instance.patient for instances in series.values() for instance in instances if instance.patient}
    if len(patients) > 1:
        raise VolumeFileError(f"The DICOM files belong to {len(patients)} patients. Give those of one patient.")
    named = {}
    for count, instances in enumerate(series.values(), start=1):
        name = instances[0].description or instances[0].file.folder or f"series {count}"
        named[f"{name} ({count})" if name in named else name] = instances
    return named


def read_header(file: InputFile) -> Instance | str:
    """The header of an image, or the modality of what is none."""
    data = file.read()
    try:
        if transfer_syntax(data) == DEFLATED:  # unpacks to any size
            raise VolumeFileError(f"{file.name!r} is deflated, which is not read. {TO_NIFTI}")
        header = open_dicom(data, stop_before_pixels=True)
        rows, columns = int(header.get("Rows") or 0), int(header.get("Columns") or 0)
        modality = str(header.get("Modality") or "")
        if not (rows and columns) or modality in ("SEG", "RTDOSE"):
            return modality or "no image"
        if int(header.get("NumberOfFrames") or 1) > 1:
            raise VolumeFileError(f"{file.name!r} holds several frames (enhanced DICOM), which is not read. {TO_NIFTI}")
        if int(header.get("SamplesPerPixel") or 1) > 1:
            raise VolumeFileError(f"{file.name!r} is a colour image, not grey MR intensities. Leave it out.")
        description = str(header.get("SeriesDescription") or header.get("ProtocolName") or "")
        position, directions = numbers(header, "ImagePositionPatient", 3), numbers(header, "ImageOrientationPatient", 6)
        spacing = numbers(header, "PixelSpacing", 2)
        if directions is not None and abs(np.linalg.norm(np.cross(directions[:3], directions[3:])) - 1) > 0.01:
            directions = None
        return Instance(
            file=file,
            header=header,
            rows=rows,
            columns=columns,
            patient=str(header.get("PatientID") or header.get("PatientName") or ""),
            series=str(header.get("SeriesInstanceUID") or ""),
            description=description.replace("/", " ").strip()[:MAX_NAME],
            number=int(header.get("InstanceNumber") or 0),
            position=position,
            orientation=None if directions is None else directions.reshape(2, 3),
            spacing=None if spacing is None or min(spacing) <= 0 else (float(spacing[0]), float(spacing[1])),
        )
    except VolumeFileError:
        raise
    except Exception as error:  # pydicom lets through whatever its parts raise on damaged files
        raise damaged(file.name, error) from None


def examined_apart(instance: Instance, flair: Instance) -> str:
    """Why a series shows nothing of what lies at the same place in FLAIR, as the end of a sentence; "" where it does.

    One examination may be several studies, for its bills; they have the day and the frame of reference in common.
    """

    def differs(keyword: str, unknown: bool = False) -> bool:
        own, other = (str(header.get(keyword) or "") for header in (instance.header, flair.header))
        return own != other if own and other else unknown

    if differs("FrameOfReferenceUID"):
        return "it lies in another frame of reference"
    same_place = not differs("FrameOfReferenceUID", unknown=True)
    if differs("StudyInstanceUID") and (differs("StudyDate") or not same_place):
        return "it is of another examination"
    return ""


def open_dicom(data: bytes, **options):
    """pydicom's `dcmread`, without its warnings of odd values, which would take patients' data into logs."""
    from pydicom import config, dcmread

    config.settings.reading_validation_mode = config.IGNORE
    return dcmread(io.BytesIO(data), **options)


def transfer_syntax(data: bytes) -> str:
    """How a file is encoded, from the part before its data set; `dcmread` would unpack a deflated one as a whole."""
    from pydicom.filereader import read_dataset, read_preamble

    file = io.BytesIO(data)
    read_preamble(file, force=False)
    meta = read_dataset(file, is_implicit_VR=False, is_little_endian=True, stop_when=lambda tag, *_: tag >> 16 != 2)
    return str(meta.get("TransferSyntaxUID", ""))


def numbers(header, keyword: str, count: int) -> np.ndarray | None:
    """A header's list of numbers, None where it is missing or other than `count` finite ones."""
    value = header.get(keyword)
    if value is None or isinstance(value, str) or not isinstance(value, Iterable) or len(value) != count:
        return None
    found = np.array([float(number) for number in value])
    return found if np.isfinite(found).all() else None


def positive_number(header, keyword: str) -> float | None:
    """A header's number, None where it is missing, no number, or not above zero."""
    try:
        number = float(header.get(keyword))
    except (TypeError, ValueError):  # several, or a decimal comma
        return None
    return number if 0 < number < np.inf else None


def read_scan(name: str, instances: Sequence[Instance]) -> Scan:
    """One series, (S, H, W): integers as stored, or float32 where the headers scale them.

    Raises:
        VolumeFileError: slices that make up no volume, a compression that is not read, damaged pixels, too many or too
            few, NaN, or one intensity everywhere.
    """
    check_alike(name, instances)
    warnings = []
    if (modality := str(instances[0].header.get("Modality") or "")) not in ("MR", ""):
        warnings.append(f"{name!r} is of the modality {modality}; the models know MR FLAIR alone.")
    if any(instance.position is None or instance.orientation is None for instance in instances):
        instances = sorted(instances, key=lambda instance: instance.number)
        if len({instance.number for instance in instances}) < len(instances):
            raise VolumeFileError(
                f"{name!r} does not say where its slices lie, and their numbers (InstanceNumber) are missing or come "
                f"twice, so that their order is unknown. Give one volume, exported with these headers."
            )
        warnings.append(
            f"{name!r} does not say where its slices lie; they are sorted by their numbers. Check that they are axial."
        )
        shape = (len(instances), instances[0].rows, instances[0].columns)
        geometry, spacing, no_spacing = Geometry(shape), None, NO_POSITION
        check_size(name, shape)
        voxels = read_pixels(instances)
    else:
        instances, affine, no_spacing = locate(name, instances)
        shape = (instances[0].columns, instances[0].rows, len(instances))
        try:
            geometry = Geometry.from_affine(shape, affine)
        except ValueError:
            raise VolumeFileError(
                f"{name!r} has DICOM headers whose positions and distances make up no space. Export it again."
            ) from None
        spacing = None if no_spacing else geometry.axial_spacing
        if no_spacing:
            warnings.append(f"Of {name!r}, {no_spacing}: areas and volumes are given in pixels and voxels alone.")
        if no_spacing.startswith(UNEVENLY):
            warnings.append("A NIfTI mask of it has even slices, which lie elsewhere; its DICOM SEG lies on the scan.")
        warnings += describe_plane(name, geometry)
        check_size(name, geometry.axial_shape)
        voxels = np.ascontiguousarray(geometry.to_axial(read_pixels(instances).transpose(2, 1, 0)))
    check_intensities(name, voxels)
    headers = tuple(instance.header for instance in instances)
    return Scan(name, voxels, geometry, spacing, no_spacing, tuple(warnings), headers=headers)


def check_alike(name: str, instances: Sequence[Instance]) -> None:
    """Refuse slices of several sizes, pixel spacings or directions."""
    first = instances[0]
    for instance in instances:
        same_size = (instance.rows, instance.columns) == (first.rows, first.columns)
        same_spacing = instance.spacing == first.spacing or (
            None not in (instance.spacing, first.spacing) and np.allclose(instance.spacing, first.spacing, rtol=1e-3)
        )
        same_direction = (
            first.orientation is None
            or instance.orientation is None
            or np.allclose(instance.orientation, first.orientation, atol=SAME_DIRECTION)
        )
        if not (same_size and same_spacing and same_direction):
            what = "sizes" if not same_size else "directions" if not same_direction else "pixel spacings"
            raise VolumeFileError(
                f"The slices of {name!r} have different {what} ({first.file.name!r} and {instance.file.name!r}), as in "
                f"a localiser. Give one series of parallel slices."
            )


def locate(name: str, instances: Sequence[Instance]) -> tuple[list[Instance], np.ndarray, str]:
    """The slices in the order in which they lie, the affine of (column, row, slice), and why it gives no spacing.

    The affine leads to right, anterior, superior in mm.

    Raises:
        VolumeFileError: two slices at one position.
    """
    to_columns, to_rows = instances[0].orientation
    normal = np.cross(to_columns, to_rows)
    instances = sorted(instances, key=lambda instance: float(instance.position @ normal))
    positions = np.stack([instance.position for instance in instances])
    gaps = np.diff(positions @ normal)
    no_spacing = ""
    if len(instances) == 1:
        header = instances[0].header
        gap = positive_number(header, "SpacingBetweenSlices") or positive_number(header, "SliceThickness")
        step = normal * (gap or 1)
        no_spacing = "" if gap else "its DICOM header does not give the slice's thickness"
    else:
        if gaps.min() < SAME_POSITION:
            index = int(gaps.argmin())
            one, other = instances[index].file.name, instances[index + 1].file.name
            raise VolumeFileError(
                f"{name!r} has several slices at one position ({one!r} and {other!r}): echoes, time points or copies. "
                f"Leave one volume in."
            )
        step = (positions[-1] - positions[0]) / (len(instances) - 1)
        if gaps.max() - gaps.min() > UNEVEN * np.median(gaps):
            no_spacing = f"{UNEVENLY}, {gaps.min():.1f} to {gaps.max():.1f} mm apart (is one missing?)"
    if instances[0].spacing is None:
        no_spacing = "its DICOM headers do not give the distance between pixels"
    between_rows, between_columns = instances[0].spacing or (1.0, 1.0)
    affine = np.eye(4)
    affine[:3] = np.column_stack([to_columns * between_columns, to_rows * between_rows, step, positions[0]])
    return instances, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine, no_spacing


def read_pixels(instances: Sequence[Instance]) -> np.ndarray:
    """(slices, rows, columns) in the order given."""
    slices = [read_slice(instance) for instance in instances]
    return np.stack(slices).astype(np.result_type(*slices), copy=False)


def read_slice(instance: Instance) -> np.ndarray:
    """(rows, columns) of one file: integers, or float32 where the header scales them."""
    data, name = instance.file.read(), instance.file.name
    compression = ""
    try:
        dataset = open_dicom(data)
        syntax = dataset.file_meta.TransferSyntaxUID
        compression = syntax.name if syntax.is_compressed else ""
        # Run lengths unpack to 64 times their size, whatever the header says.
        if compression and len(data) > 2 * instance.rows * instance.columns + SPARE_BYTES:
            raise VolumeFileError(f"{name!r} is damaged: it has more bytes than its pixels need. Export it again.")
        pixels = dataset.pixel_array
        if pixels.shape != (instance.rows, instance.columns):
            raise ValueError(f"pixels of the shape {pixels.shape}")
        if dataset.get("PhotometricInterpretation") == "MONOCHROME1":  # the highest value is black
            pixels = (2 ** int(dataset.BitsStored) - 1) - pixels.astype(np.int32)
        slope, intercept = float(dataset.get("RescaleSlope") or 1), float(dataset.get("RescaleIntercept") or 0)
        return pixels if (slope, intercept) == (1, 0) else (pixels * slope + intercept).astype(np.float32)
    except VolumeFileError:
        raise
    except Exception as error:  # as in `read_header`
        if compression and isinstance(error, RuntimeError):
            raise VolumeFileError(
                f"The pixels of {name!r} are compressed as {compression}, which could not be read. Decompress the "
                f"series, for instance with gdcmconv --raw, or convert it to NIfTI with dcm2niix."
            ) from None
        raise damaged(name, error) from None


def damaged(name: str, error: Exception) -> VolumeFileError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return VolumeFileError(f"{name!r} is a damaged or incomplete DICOM file ({reason}). Export it again.")
