"""What a mask measures: areas, volume, and the two diameters on the largest slice. Arrays in, numbers out."""

from collections.abc import Sequence

import numpy as np
from scipy.spatial import ConvexHull
from scipy.spatial.distance import cdist

from .postprocessing import largest_component

Spacing = Sequence[float]


def area_per_slice(mask: np.ndarray) -> np.ndarray:
    """Pixels of each slice: `(S, H, W)` bool -> `(S,)` int64."""
    return np.count_nonzero(mask, axis=(1, 2))


def largest_slice(mask: np.ndarray) -> int:
    """Index of the slice with the largest area, from 0; the middle slice where the mask is empty."""
    areas = area_per_slice(mask)
    return int(areas.argmax()) if areas.any() else len(mask) // 2


def volume_ml(mask: np.ndarray, spacing: Spacing) -> float:
    """Volume in millilitres of `(S, H, W)` bool with voxels of `spacing` mm along each axis.

    Raises:
        ValueError: `spacing` is not three lengths.
    """
    if np.shape(spacing) != (3,):
        raise ValueError(f"spacing is three lengths in mm, (slice, row, column), but is {spacing}.")
    return float(np.count_nonzero(mask) * np.prod(spacing) / 1000)


def measure_volume(mask: np.ndarray, spacing: Spacing | None, no_spacing: str = "") -> dict:
    """All measurements of a lesion, ready for JSON; what cannot be known is None.

    Args:
        mask: `(S, H, W)` bool.
        spacing: distance between voxels along (S, H, W) in mm, or None where it is unknown.
        no_spacing: why it is unknown, as the end of a sentence.

    Returns:
        `num_slices`, `height`, `width`, `spacing_mm`, `lesion_voxels`, `volume_ml`, `largest_slice` (counted
        from 1; None where there is no lesion), `diameters_mm` on that slice, `reason` (why `volume_ml` or
        `diameters_mm` is None) and `area_per_slice_pixels`.

    Raises:
        ValueError: `spacing` is not three lengths.
    """
    volume = None if spacing is None else round(volume_ml(mask, spacing), 3)
    areas, largest = area_per_slice(mask), largest_slice(mask)
    reason = None
    if spacing is None:
        why = f", {no_spacing}" if no_spacing else ""
        reason = f"No volume in ml and no diameters in mm: the spacing of the voxels is unknown{why}."
    elif not mask.any():
        reason = "No diameters: no lesion was outlined."
    return {
        "num_slices": len(mask),
        "height": mask.shape[1],
        "width": mask.shape[2],
        "spacing_mm": None if spacing is None else [round(float(length), 4) for length in spacing],
        "lesion_voxels": int(areas.sum()),
        "volume_ml": volume,
        "largest_slice": largest + 1 if mask.any() else None,
        "diameters_mm": None if reason else [round(length, 1) for length in diameters(mask[largest], spacing[1:])],
        "reason": reason,
        "area_per_slice_pixels": areas.tolist(),
    }


def diameters(mask: np.ndarray, spacing: Spacing) -> tuple[float, float]:
    """The longest diameter of a slice's largest component, and the longest one perpendicular to it.

    These are the bidimensional measurements of the RANO criteria (Wen et al., Journal of Clinical Oncology 28, 2010;
    for low grade van den Bent et al., Lancet Oncology 12, 2011), taken on the component's convex hull, so that a notch
    does not cut a diameter short. A pixel reaches from edge to edge: a row of n pixels is n pixels long.

    Args:
        mask: `(H, W)` bool.
        spacing: (row, column) distance between neighbours, in mm.

    Returns:
        (long, short) in mm; both 0 where the mask is empty.
    """
    rows, columns = np.nonzero(largest_component(mask))
    if not len(rows):
        return 0.0, 0.0
    edges = np.concatenate(
        [np.stack([rows + r, columns + c], axis=1) for r, c in ((-0.5, 0), (0.5, 0), (0, -0.5), (0, 0.5))]
    )
    points = edges * np.asarray(spacing, dtype=np.float64)
    hull = points[ConvexHull(points).vertices]
    distances = cdist(hull, hull)
    first, second = np.unravel_index(distances.argmax(), distances.shape)
    long = float(distances[first, second])

    direction = (hull[second] - hull[first]) / long
    along = (hull - hull[first]) @ direction
    across = (hull - hull[first]) @ np.array([-direction[1], direction[0]])
    # The hull's width at a place along the long diameter is largest at one of its corners.
    width = chain(along, across, upper=True)(along) - chain(along, across, upper=False)(along)
    return long, float(width.max())


def chain(along: np.ndarray, across: np.ndarray, upper: bool):
    """The upper or lower side of a convex hull as a function of the place along its long diameter."""
    side = across >= -1e-9 if upper else across <= 1e-9
    order = np.argsort(along[side])
    return lambda places: np.interp(places, along[side][order], across[side][order])
