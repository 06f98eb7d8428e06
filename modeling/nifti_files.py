"""NIfTI files -> scans, and masks and maps -> NIfTI files in the input's own space."""

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .input_files import InputFile, VolumeFileError, unzip_bytes
from .scans import LIMITS, MAX_SIDE, MAX_VOXELS, Scan, check_intensities, check_size, describe_plane
from .volume_geometry import Geometry

MAX_EXTENSION_BYTES = 2**24  # between the header and the voxels
OTHER_SIZE = 0.2  # by which a voxel's size differs from another; a sheared affine's edges are a little longer
MILLIMETRES = {"meter": 1000.0, "micron": 0.001}


def read_nifti(file: InputFile, *, mask: bool = False) -> Scan:
    """Read one volume as axial slices: `(S, H, W)`, int or float32, by permutation and flips alone.

    Args:
        mask: an all-zero volume is fine.

    Raises:
        VolumeFileError: a damaged file, other than three dimensions, colours or complex numbers, no valid affine, too
            many or too few voxels, NaN, or one intensity everywhere.
    """
    voxels, affine, header = unpack(file)
    try:
        geometry = Geometry.from_affine(voxels.shape, affine, header)
    except ValueError as error:
        raise VolumeFileError(
            f"{file.name!r} has no valid orientation: {error}. Export it again, for instance with dcm2niix."
        ) from None
    check_size(file.name, geometry.axial_shape)
    check_intensities(file.name, voxels, mask=mask)
    spacing, no_spacing = geometry.axial_spacing, ""
    if not has_orientation(header) and np.allclose(spacing, 1):
        spacing, no_spacing = None, "the NIfTI file does not give it"
    warnings = [*doubts(file.name, affine, header), *describe_plane(file.name, geometry)]
    return Scan(
        file.name, np.ascontiguousarray(geometry.to_axial(voxels)), geometry, spacing, no_spacing, tuple(warnings)
    )


def unpack(file: InputFile):
    """The voxels (X, Y, Z) of a NIfTI file, int or float32, its affine (4, 4) in mm, and its header.

    Raises:
        VolumeFileError: a damaged file, or one that `check_header` refuses.
    """
    import nibabel as nib
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError
    from nibabel.wrapstruct import WrapStructError

    data = file.read()
    zipped = data.startswith(b"\x1f\x8b")
    try:
        # The header first: it says how much there is to unpack.
        start = unzip_bytes(data, 540) if zipped else data[:540]
        image_class = nib.Nifti2Image if start[4:8] == b"n+2\0" else nib.Nifti1Image
        header = image_class.header_class(start[: image_class.header_class.sizeof_hdr], check=True)
        shape, stored_as = header.get_data_shape(), header.get_data_dtype()
        shape = check_header(file.name, shape, stored_as)
        size = np.prod(shape, dtype=np.int64) * stored_as.itemsize
        if zipped:
            data = unzip_bytes(data, int(size) + MAX_EXTENSION_BYTES)
        image = image_class.from_bytes(data)
        voxels = np.asarray(image.dataobj).reshape(shape)
        affine = np.array(image.affine, dtype=np.float64)
        affine[:3] *= millimetres(image.header)
    except (ImageFileError, HeaderDataError, WrapStructError, OSError, EOFError, zlib.error, struct.error) as error:
        raise damaged(file.name, error) from None
    except (ValueError, TypeError, OverflowError, KeyError) as error:
        if isinstance(error, VolumeFileError):
            raise
        raise damaged(file.name, error) from None
    if voxels.dtype.kind not in "ui" or voxels.dtype.itemsize > 4:
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, which is refused
            voxels = voxels.astype(np.float32)
    return voxels, affine, image.header


def millimetres(header) -> float:
    """Millimetres in the unit of length of a NIfTI header."""
    return MILLIMETRES.get(header.get_xyzt_units()[0], 1.0)


def doubts(name: str, affine: np.ndarray, header) -> Iterator[str]:
    """What makes one doubt where a NIfTI file says that its voxels lie, or how large they are; `affine` is in mm."""
    import nibabel as nib

    if not has_orientation(header):
        yield (
            f"{name!r} does not say how it is oriented (its qform and sform codes are 0); its third axis is taken as "
            f"the slices'. Check that the slices shown are axial."
        )
    elif np.array_equal(affine, np.eye(4)):
        yield (
            f"{name!r} has the identity as its affine, which tools write where the geometry was lost: the orientation, "
            f"and lengths and volumes in mm and ml, may be wrong."
        )
    else:
        sizes = nib.affines.voxel_sizes(affine)
        zooms = np.multiply(header.get_zooms()[:3], millimetres(header))
        if not np.allclose(sizes, zooms, rtol=OTHER_SIZE):
            by_affine, by_header = ("×".join(f"{length:.3g}" for length in lengths) for lengths in (sizes, zooms))
            yield (
                f"{name!r} gives two sizes of its voxels, {by_affine} mm by its affine and {by_header} mm by its "
                f"pixdim; lengths and volumes go by the affine. Check them."
            )


def has_orientation(header) -> bool:
    """Whether a NIfTI header says how its voxels lie in space."""
    return bool(header["sform_code"] or header["qform_code"])


def check_header(name: str, shape: tuple[int, ...], dtype: np.dtype) -> tuple[int, int, int]:
    """The three lengths of a volume, or a sentence on why it is none."""
    if dtype.kind not in "uif":
        raise VolumeFileError(f"{name!r} holds {dtype} values, not grey MR intensities. Save each sequence as numbers.")
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    lengths = "×".join(map(str, shape))
    if len(shape) > 3:
        raise VolumeFileError(
            f"{name!r} has {len(shape)} dimensions ({lengths}): it holds several volumes. Save each sequence "
            f"(pre-contrast T1, FLAIR, post-contrast T1) as a file of its own, with three dimensions."
        )
    if len(shape) < 3 or min(shape) < 1:
        raise VolumeFileError(f"{name!r} has the size {lengths or 0}; a volume has three dimensions of at least 1.")
    if max(shape) > MAX_SIDE or math.prod(shape) > MAX_VOXELS:  # before the voxels are read
        raise VolumeFileError(f"{name!r} has {lengths} voxels, which is too large: {LIMITS}")
    return tuple(int(length) for length in shape)


def damaged(name: str, error: Exception) -> VolumeFileError:
    return VolumeFileError(f"{name!r} is a damaged or incomplete NIfTI file ({error}). Export it again.")


def write_nifti(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write axial slices `(S, H, W)` as NIfTI in the input's own space: its shape, its affine, its orientation codes.

    Where the input has no affine, the axes are (column, row, slice) and the header gives no orientation.

    Args:
        path: ends in .nii or .nii.gz.
        array: bool, which becomes uint8 0 or 1, labels in uint8, or float32.

    Raises:
        ValueError: an array of other slices than the input's.
    """
    import nibabel as nib

    if array.shape != geometry.axial_shape:
        raise ValueError(
            f"The array has the shape {array.shape}, but the input has axial slices of {geometry.axial_shape}; give "
            f"what was computed of all of them."
        )
    array = array.astype(np.uint8) if array.dtype == bool else array
    if geometry.affine is None:
        image = nib.Nifti1Image(np.ascontiguousarray(array.transpose(2, 1, 0)), None)
    else:
        image = nib.Nifti1Image(np.ascontiguousarray(geometry.from_axial(array)), geometry.affine)
        if geometry.nifti_header is not None:
            keep_space(image, geometry.nifti_header)
    image.header["descrip"] = b"lower-grade glioma segmentation; research use only"
    image.to_filename(path)


def keep_space(image, header) -> None:
    """Copy what a NIfTI header says of space, and nothing that may name a person."""
    from nibabel.spatialimages import HeaderDataError

    image.header.set_zooms(np.divide(image.header.get_zooms(), millimetres(header)))  # from the affine, in mm
    image.set_sform(*header.get_sform(coded=True))
    try:
        with np.errstate(invalid="ignore"):
            image.set_qform(*header.get_qform(coded=True))
    except (ValueError, HeaderDataError):  # an invalid one, which nothing reads beside an sform
        image.set_qform(None, 0)
    image.header.set_xyzt_units(header.get_xyzt_units()[0])
