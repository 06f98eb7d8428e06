"""From a volume's probabilities to its mask: small islands removed, outlines extended, holes filled. Arrays to arrays.

Masks are bool, `(S, H, W)` with axial slices first, or a single `(H, W)` slice. Foreground is fully connected (26
neighbours in a volume, 8 in a slice): slices are several millimetres apart, so a lesion's outline may move by a pixel
or more between neighbouring slices and still be one lesion. Background is connected through edges only (4 neighbours in
a slice), the dual of the former, so that a closed 8-connected contour has an inside (Rosenfeld, Digital Topology,
1979).
"""

import numpy as np
from scipy import ndimage

# Of the 88 training and validation lesions of the LGG dataset, as readers outlined them, 81 are one component, no
# second component exceeds 5 % of the first, and the smallest lesion has 1,870 voxels. Half of the largest, not all of
# it: two lesions of about one size both stay, and so does a lesion beside a false alarm of up to twice its size.
MIN_VOXELS = 400
KEEP_FRACTION = 0.5
NOTEWORTHY = 0.1  # of what is left: how large a removed island must be to be told of
# Expected scores below this extend an outline no further: where a model is that unsure of a whole volume, its
# probabilities say little about the edge of anything.
LOWEST_EXPECTED_SCORE = 0.25


def check_threshold(threshold: float) -> None:
    """Raise `ValueError` unless `threshold` is a probability strictly between 0 and 1."""
    if not 0 < threshold < 1:
        raise ValueError(f"threshold is a probability between 0 and 1, exclusive, but is {threshold}.")


def check_component_limits(min_voxels: int, keep_fraction: float) -> None:
    """Raise `ValueError` where a limit of `remove_small_components` is out of its range."""
    if min_voxels < 0:
        raise ValueError(f"min_voxels must be 0 (off) or more, got {min_voxels}.")
    if not 0.0 <= keep_fraction <= 1.0:
        raise ValueError(f"keep_fraction must lie in [0, 1], got {keep_fraction}.")


def mask_from_probabilities(
    probabilities: np.ndarray,
    *,
    threshold: float = 0.5,
    min_voxels: int = MIN_VOXELS,
    keep_fraction: float = KEEP_FRACTION,
    extend: bool = True,
) -> np.ndarray:
    """The mask of a volume: lesions are found at one threshold and outlined at a lower one (hysteresis thresholding).

    Of the voxels that reach `threshold`, holes are filled and islands under `keep_fraction` of the largest removed.
    What is left is extended to all connected voxels that reach `outline_threshold`, and holes are filled once more. So
    no lesion appears that `threshold` alone does not find; an island that was removed comes back only where it joins a
    lesion. `min_voxels` is asked of a lesion as it is outlined in the end: of a faint one, few voxels may be found.

    Args:
        probabilities: `(S, H, W)` float in [0, 1], axial slices first.
        threshold: probability in (0, 1) from which a voxel is found.
        min_voxels, keep_fraction: see `postprocess_volume`.
        extend: whether outlines are extended.

    Returns:
        `(S, H, W)` bool.

    Raises:
        ValueError: `probabilities` is not `(S, H, W)`, or an argument is out of its range.
    """
    check_threshold(threshold)
    found = postprocess_volume(probabilities >= threshold, min_voxels=0, keep_fraction=keep_fraction)
    outlined = _extend(found, probabilities, threshold) if extend and found.any() else found
    return remove_small_components(outlined, min_voxels=min_voxels)


def _extend(found: np.ndarray, probabilities: np.ndarray, threshold: float) -> np.ndarray:
    reached = found | (probabilities >= outline_threshold(probabilities, threshold))
    box = _bounding_box(reached)
    labels, sizes = _label(reached[box])
    keep = np.zeros(len(sizes), dtype=bool)
    keep[labels[found[box]]] = True
    return fill_holes(_paste(keep[labels], box, found.shape))


def outline_threshold(probabilities: np.ndarray, threshold: float = 0.5) -> float:
    """The probability at which the outlines of a volume promise the best score; the less sure the model, the lower.

    Were each voxel lesion as often as its probability p says, a mask of n voxels would have an expected Dice of about
    2 sum(p in the mask) / (n + sum(p everywhere)). No mask has a higher one than all voxels above half of that best
    value (Lipton et al. 2014, arXiv 1402.1892; for segmentation Nordstrom et al. 2023, arXiv 2304.04116).
    That half is what `threshold` 0.5 leads to. Another one weighs false alarms by threshold / (1 - threshold) against
    misses, as F-beta does with beta^2 = 1 / threshold - 1, and leads to that share of the best F-beta.

    Args:
        probabilities: float in [0, 1], of any shape.
        threshold: probability in (0, 1) from which a voxel counts as lesion where the model is sure of all others.

    Returns:
        At most `threshold`, at least `LOWEST_EXPECTED_SCORE` of it.

    Raises:
        ValueError: `threshold` is out of its range.
    """
    check_threshold(threshold)
    candidates = np.sort(probabilities[probabilities >= LOWEST_EXPECTED_SCORE * threshold])[::-1]
    beta_squared = 1 / threshold - 1
    caught = np.cumsum(candidates, dtype=np.float64)
    marked = np.arange(1, len(candidates) + 1)
    scores = (1 + beta_squared) * caught / (marked + beta_squared * probabilities.sum(dtype=np.float64))
    return float(threshold * np.clip(scores.max(initial=0.0), LOWEST_EXPECTED_SCORE, 1.0))


def postprocess_volume(
    mask: np.ndarray, *, min_voxels: int = MIN_VOXELS, keep_fraction: float = KEEP_FRACTION, fill: bool = True
) -> np.ndarray:
    """Fill the holes of a volume's mask, then remove its small islands.

    Holes go first, so that a component is judged by its solid size; in this order a second application changes nothing.

    Args:
        mask: `(S, H, W)` bool, axial slices first.
        min_voxels: a 3-D component with fewer voxels is removed; 0 or 1 is off.
        keep_fraction: a 3-D component smaller than this fraction of the largest one is removed, in [0, 1]; 0 is off,
            1 leaves the largest alone.
        fill: whether holes are filled, slice by slice (see `fill_holes`).

    Returns:
        `(S, H, W)` bool, a new array.

    Raises:
        ValueError: `mask` is not bool or not `(S, H, W)`, or a limit is out of its range.
    """
    _check_mask(mask, dimensions=(3,))
    if fill:
        mask = fill_holes(mask)
    return remove_small_components(mask, min_voxels=min_voxels, keep_fraction=keep_fraction)


def describe_removed(before: np.ndarray, after: np.ndarray) -> str | None:
    """Tell of the largest island that post-processing removed, where it has `NOTEWORTHY` of the voxels that are left.

    Args:
        before: `(S, H, W)` bool, as it came from the threshold.
        after: the same, after post-processing.

    Returns:
        A sentence for the user, with slices counted from 1; None where nothing that large was removed.
    """
    removed = before & ~after
    box = _bounding_box(removed)
    if box is None:
        return None
    labels, sizes = _label(removed[box])
    largest = sizes.argmax()
    if sizes[largest] < max(NOTEWORTHY * np.count_nonzero(after), 1):
        return None
    slices = box[0].start + 1 + np.flatnonzero((labels == largest).any(axis=(1, 2)))
    where = f"slice {slices[0]}" if len(slices) == 1 else f"slices {slices[0]} to {slices[-1]}"
    others = np.count_nonzero(sizes > 0) - 1
    return (
        f"Left out as a likely false alarm, by its size: an island of {sizes[largest]:,} voxels on {where} of "
        f"{len(before)}{f', and {others} smaller' if others else ''}. The probabilities still hold it."
    )


def remove_small_components(mask: np.ndarray, min_voxels: int = 0, keep_fraction: float = 0.0) -> np.ndarray:
    """Keep the components that have at least `min_voxels` and at least `keep_fraction` of the largest one's voxels.

    With `min_voxels` above the largest component's size nothing remains: an island is not kept for being the only one.

    Args:
        mask: `(S, H, W)` or `(H, W)` bool.
        min_voxels: smallest size that stays, in voxels (pixels of a slice); 0 or 1 is off.
        keep_fraction: smallest size that stays as a fraction of the largest component, in [0, 1]; 0 is off.

    Returns:
        bool array of `mask`'s shape, a new array.

    Raises:
        ValueError: `mask` is not bool or has other dimensions, or a limit is out of its range.
    """
    _check_mask(mask)
    check_component_limits(min_voxels, keep_fraction)
    box = _bounding_box(mask)
    if box is None:
        return mask.copy()
    labels, sizes = _label(mask[box])
    # Divided, as a product such as 0.07 * 100 may come out above 7.
    keep = (sizes >= max(min_voxels, 1)) & (sizes / sizes.max() >= keep_fraction)
    return _paste(keep[labels], box, mask.shape)


def largest_component(mask: np.ndarray) -> np.ndarray:
    """Keep the largest component alone; of equally large ones, the first in slice, row, column order.

    Args:
        mask: `(S, H, W)` or `(H, W)` bool.

    Returns:
        bool array of `mask`'s shape, a new array; empty where `mask` is empty.

    Raises:
        ValueError: `mask` is not bool or has other dimensions.
    """
    _check_mask(mask)
    box = _bounding_box(mask)
    if box is None:
        return mask.copy()
    labels, sizes = _label(mask[box])
    return _paste(labels == sizes.argmax(), box, mask.shape)


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """Fill the background that the mask encloses within an axial slice.

    Readers outline a lesion slice by slice, so a hole is a matter of its slice: it is filled even where it opens into
    the background of the slice above. Every cavity that is closed in 3-D is a hole of each slice it crosses, so no 3-D
    filling is left to do. Background that touches the frame's edge is no hole.

    Args:
        mask: `(S, H, W)` or `(H, W)` bool.

    Returns:
        bool array of `mask`'s shape, a new array.

    Raises:
        ValueError: `mask` is not bool or has other dimensions.
    """
    _check_mask(mask)
    box = _bounding_box(mask)
    if box is None:
        return mask.copy()
    background, count = ndimage.label(~mask[box], structure=_in_plane_neighbours(mask.ndim))
    is_hole = np.ones(count + 1, dtype=bool)
    for side in (np.s_[..., 0, :], np.s_[..., -1, :], np.s_[..., :, 0], np.s_[..., :, -1]):
        is_hole[background[side]] = False  # a hole never reaches the sides of the lesion's own bounding box
    is_hole[0] = True  # label 0 is the mask itself
    return _paste(is_hole[background], box, mask.shape)


def _check_mask(mask: np.ndarray, dimensions: tuple[int, ...] = (2, 3)) -> None:
    accepted = " or ".join({2: "(H, W)", 3: "(S, H, W)"}[n] for n in dimensions)
    if not isinstance(mask, np.ndarray):
        raise ValueError(f"The mask must be a bool array of shape {accepted}, got {type(mask).__name__}.")
    if mask.dtype != bool:
        raise ValueError(
            f"The mask must be bool, got {mask.dtype}. Threshold probabilities, or compare labels, first: "
            "probabilities > 0.5, labels == 1."
        )
    if mask.ndim not in dimensions:
        raise ValueError(f"The mask must have shape {accepted}, got {mask.shape}.")


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...] | None:
    """The smallest box around the foreground, None for an empty mask; a lesion is a small part of its volume."""
    return ndimage.find_objects(mask.view(np.uint8), max_label=1)[0] if mask.size else None


def _label(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fully connected components: labels, 0 being background, and voxels per label, with -1 for background."""
    labels, _ = ndimage.label(mask, structure=np.ones((3,) * mask.ndim, dtype=bool))
    sizes = np.bincount(labels.ravel())
    sizes[0] = -1  # background is never kept
    return labels, sizes


def _in_plane_neighbours(ndim: int) -> np.ndarray:
    """Structuring element that joins a pixel to its 4 neighbours of the same slice."""
    structure = np.zeros((3,) * ndim, dtype=bool)
    structure[(1,) * (ndim - 2)] = ndimage.generate_binary_structure(rank=2, connectivity=1)
    return structure


def _paste(cropped: np.ndarray, box: tuple[slice, ...], shape: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[box] = cropped
    return mask
