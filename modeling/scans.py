"""One sequence of a volume as it was read, and the limits on what is read."""

from dataclasses import dataclass

import numpy as np

from .input_files import VolumeFileError
from .volume_geometry import Geometry

MAX_SLICES = 400  # 0.5 mm apart, they cover a head
MAX_SIDE = 1024  # pixels of a slice
MAX_VOXELS = 2**25  # 320 x 320 x 320, or 128 slices of 512 x 512
ISOTROPIC_ENOUGH = 1.5  # ratio of a pixel's sides
OBLIQUE = 30  # degrees


@dataclass(frozen=True)
class Scan:
    """One sequence, or three as the channels of colour slices.

    Attributes:
        name: what people call it: the file's name, or a DICOM series' description.
        voxels: `(S, H, W)`, or `(S, H, W, 3)` in the order pre-contrast T1, FLAIR, post-contrast T1; axial, in
            `geometry`'s order.
        geometry: where the voxels lie in the input.
        spacing: distance between neighbours along (S, H, W) in mm, or None.
        no_spacing: why `spacing` is None, as the end of a sentence.
        warnings: sentences on what was found odd.
        slice_names: names of the slices' files, where each slice has one.
        headers: DICOM data sets without pixels, in the order of the input's own slices.
    """

    name: str
    voxels: np.ndarray
    geometry: Geometry
    spacing: tuple[float, float, float] | None = None
    no_spacing: str = ""
    warnings: tuple[str, ...] = ()
    slice_names: tuple[str, ...] | None = None
    headers: tuple = ()


LIMITS = (
    f"at most {MAX_SLICES} slices, {MAX_SIDE}×{MAX_SIDE} pixels and {MAX_VOXELS / 1e6:.0f} million voxels are read. "
    "Resample it to voxels of 1 mm or more, or leave out slices."
)


def check_size(name: str, shape: tuple[int, ...]) -> None:
    """Refuse (slices, rows, columns) that are too many to compute, before their pixels are read."""
    slices, height, width = shape
    if slices > MAX_SLICES or max(height, width) > MAX_SIDE or slices * height * width > MAX_VOXELS:
        raise VolumeFileError(
            f"{name!r} has {slices:,} slices of {height:,}×{width:,} pixels, which is too large: {LIMITS}"
        )
    if min(height, width) < 32:
        raise VolumeFileError(
            f"{name!r} has axial slices of {height}×{width} pixels, too small to segment; at least 32×32 are needed. "
            f"Is this an axial acquisition?"
        )


def check_intensities(name: str, voxels: np.ndarray, *, mask: bool = False) -> None:
    """Refuse NaN, infinity and, but for a `mask`, one intensity everywhere."""
    if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
        count = np.count_nonzero(~np.isfinite(voxels))
        raise VolumeFileError(
            f"{name!r} has NaN or infinite intensities in {count:,} of its {voxels.size:,} voxels. Replace them, for "
            f"instance by zero, first."
        )
    if not mask and (voxels.size == 0 or voxels.min() == voxels.max()):
        what = f"every voxel is {voxels.flat[0]:g}" if voxels.size else "it has no voxel"
        raise VolumeFileError(f"{name!r} is empty ({what}): there is nothing to segment. Export the volume again.")


def describe_plane(name: str, geometry: Geometry) -> list[str]:
    """What is unusual about the axial plane of an acquisition, in sentences."""
    warnings = []
    _, height, width = geometry.axial_spacing
    if max(height, width) > ISOTROPIC_ENOUGH * min(height, width):
        warnings.append(
            f"{name!r} was not acquired in axial slices: its axial pixels are {height:.1f}×{width:.1f} mm. The model "
            f"was trained on axial acquisitions; expect poor outlines."
        )
    if geometry.obliqueness > OBLIQUE:
        warnings.append(
            f"{name!r} is tilted by {geometry.obliqueness:.0f}° against the axial plane; slices are read as they are. "
            f"The model was trained on axial acquisitions."
        )
    return warnings
