"""Does an image look like what the models were trained on? Sentences for people; nothing is refused.

The limits were set on the training slices of the LGG dataset, on nearly all of which the checks stay silent, and on
inverted, colour-mapped, framed and turned copies of them.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from .image_processing_brain_mri import FLAIR, head_mask
from .volume_files import MRVolume

SIDE = 256  # pixels; larger slices are looked at in steps
SLICES = 7  # of a volume, from its middle half
EDGE = 3  # pixels at each side that are air around a head

BRIGHT_EDGE = 0.6  # of the brightest: MR shows air dark, 0.5 at most in noise
FILLED_EDGE = 0.85  # share of the edge with signal: a photograph's, not a head's
NOISE = 0.6  # correlation of neighbouring pixels; 0.88 and more in a slice of a head
COLOUR_MAP_COLOURS = 256  # of a map's table; slices of three sequences have thousands
COLOUR_MAP_BINS = 400  # of 32 steps a channel, in a map that was resampled or compressed
GREY = 0.12  # of the whole range: how far the channels of a grey pixel may lie apart, and how bright a dark one may be
STRONG = 0.5  # of the whole range: how far the channels of a strong colour lie apart
COLOURED_SHARE = 0.85  # of the lit pixels of a colour map
LEVELS = 32  # of the second channel; fewer are those of an empty slice
LIT = 0.03  # share of the slice that must be lit for its colours to tell
LARGE_ENOUGH = 0.2  # share of the slice that is head, from which its shape tells the plane
WIDE = 0.87  # height over width; 1.0 to 1.4 in axial slices


@dataclass(frozen=True)
class Finding:
    """What looks wrong: the name of the check, and a sentence or two on what to do."""

    check: str
    message: str


IDENTICAL = Finding("identical channels", "The three channels are the same: the slice is read as FLAIR alone.")
NOT_A_HEAD = Finding(
    "not a head",
    "This does not look like MR of a head: signal reaches the edges on all sides, or is noise throughout. Whatever the "
    "model outlines here means nothing. Give an axial slice that shows the whole head with air around it.",
)
COLOURED = Finding(
    "colour map",
    "The colours look like those of a colour map. The model reads the channels as three MR sequences, so its outline "
    "will be wrong. Export the slice in grey.",
)
FRAMED = Finding(
    "frame",
    "There is a bright frame around the image, as in a screenshot. Crop it, or export the slice itself: the frame "
    "disturbs the outline.",
)
INVERTED = Finding(
    "inverted",
    "The background is brighter than the head, so the contrast looks inverted. Air is dark on MR: invert the image.",
)
TURNED = Finding(
    "plane",
    "The head is wider than it is high: this may be a sagittal or coronal slice, or one turned on its side. The model "
    "knows axial slices alone, with the forehead at the top.",
)


def check_slice(pixels: np.ndarray, pixel_aspect: float = 1.0) -> list[Finding]:
    """What looks wrong with one slice.

    Args:
        pixels: (H, W) FLAIR, or (H, W, 3) in the order pre-contrast T1, FLAIR, post-contrast T1; real, finite.
        pixel_aspect: height of a pixel over its width.
    """
    step = max(1, min(pixels.shape[:2]) // SIDE)
    image = np.asarray(pixels[::step, ::step], dtype=np.float32)
    image = image if image.ndim == 3 else image[..., None]
    low, high = image.min(), image.max()
    if low == high:
        return []  # the processor refuses it, with its own sentence
    image = (image - low) / (high - low)
    findings = []
    if image.shape[-1] == 3 and (image == image[..., :1]).all():
        findings.append(IDENTICAL)
    elif image.shape[-1] == 3 and looks_colour_mapped(image):
        return [COLOURED]  # what follows would look at a channel that is no FLAIR
    flair = image[..., FLAIR if image.shape[-1] == 3 else 0]
    if flair.max() == flair.min():
        return findings  # refused, too
    inner = without_frame(flair)
    if is_bright_at_the_edge(flair):
        # A frame ends at the dark air of the slice within; an inverted slice stays bright up to the head.
        framed = inner.shape != flair.shape and min(inner.shape) > 2 * EDGE and not is_bright_at_the_edge(inner)
        return [*findings, FRAMED if framed else INVERTED]
    head = head_mask(np.repeat(flair[..., None], 3, axis=-1))
    if edge_of(head).mean() > FILLED_EDGE or neighbour_correlation(flair) < NOISE:
        return [*findings, NOT_A_HEAD]
    if is_wide(head, pixel_aspect):
        findings.append(TURNED)
    return findings


def check_volume(slices: np.ndarray, pixel_aspect: float = 1.0) -> list[Finding]:
    """What looks wrong with most of the slices looked at, in the middle half of `(S, H, W)` or `(S, H, W, 3)`."""
    count = len(slices)
    middle = range(count // 4, max(count - count // 4, count // 4 + 1))
    chosen = sorted({middle[round(place)] for place in np.linspace(0, len(middle) - 1, min(SLICES, len(middle)))})
    found = Counter(finding for index in chosen for finding in check_slice(slices[index], pixel_aspect))
    return [finding for finding, times in found.items() if 2 * times > len(chosen)]


def warnings_of(volume: MRVolume) -> list[str]:
    """What the reader of a volume found odd, then what its images look like."""
    spacing = volume.spacing
    findings = check_volume(volume.slices, spacing[1] / spacing[2] if spacing else 1.0)
    return [*volume.warnings, *(finding.message for finding in findings)]


def looks_colour_mapped(image: np.ndarray) -> bool:
    """Whether nearly all that is lit in (H, W, 3), in [0, 1], is coloured, in few colours or strong ones."""
    lit = image.max(axis=-1) > GREY
    if (
        lit.mean() < LIT
        or len(np.unique(image[..., FLAIR])) < LEVELS
        or neighbour_correlation(image.mean(axis=-1)) < NOISE
    ):
        return False
    colour = np.ptp(image, axis=-1)[lit]
    if (colour > GREY).mean() < COLOURED_SHARE:
        return False
    if count_colours(image, 255) <= COLOUR_MAP_COLOURS:
        return True
    # A sequence that was copied or is absent leaves strong colours or fewer of them, too.
    copied = any((image[..., a] == image[..., b]).all() for a, b in ((0, 1), (0, 2), (1, 2)))
    if copied or not np.ptp(image, axis=(0, 1)).all():
        return False
    return (colour > STRONG).mean() > COLOURED_SHARE or count_colours(image, 31) <= COLOUR_MAP_BINS


def count_colours(image: np.ndarray, steps: int) -> int:
    """How many colours (H, W, 3), in [0, 1], has where each channel is rounded to `steps` steps."""
    red, green, blue = np.moveaxis(np.rint(image * steps).astype(np.int32), -1, 0)
    return len(np.unique((red * (steps + 1) + green) * (steps + 1) + blue))


def edge_of(image: np.ndarray) -> np.ndarray:
    """The pixels at the edge of (H, W), flat."""
    return np.concatenate([part.ravel() for part in (image[:EDGE], image[-EDGE:], image[:, :EDGE], image[:, -EDGE:])])


def is_bright_at_the_edge(flair: np.ndarray) -> bool:
    low, high = np.quantile(flair, (0.005, 0.995))
    return np.median(edge_of(flair)) - low > BRIGHT_EDGE * (high - low) > 0


def without_frame(flair: np.ndarray) -> np.ndarray:
    """(H, W) without the rows and columns at its edge that have the corner's value throughout."""
    differs = flair != flair[0, 0]
    rows, columns = np.flatnonzero(differs.any(axis=1)), np.flatnonzero(differs.any(axis=0))
    if not len(rows):
        return flair
    return flair[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def neighbour_correlation(flair: np.ndarray) -> float:
    """Correlation of each pixel of (H, W) with the next one in its row."""
    return float(np.corrcoef(flair[:, :-1].ravel(), flair[:, 1:].ravel())[0, 1])


def is_wide(head: np.ndarray, pixel_aspect: float) -> bool:
    """Whether the largest part of a head mask (H, W) is large enough to tell, and wider than it is high."""
    parts, count = ndimage.label(ndimage.uniform_filter(head.astype(np.float32), 5) > 0.5)
    if not count:
        return False
    largest = 1 + np.bincount(parts.ravel())[1:].argmax()
    rows, columns = ndimage.find_objects(parts)[largest - 1]
    height, width = rows.stop - rows.start, columns.stop - columns.start
    filled = ndimage.binary_fill_holes(parts[rows, columns] == largest).sum() / head.size
    # A head that is cut off at the edge has lost the shape that would tell.
    cut = columns.start == 0 or columns.stop == head.shape[1]
    return bool(filled > LARGE_ENOUGH and not cut and height * pixel_aspect < WIDE * width)
