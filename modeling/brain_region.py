"""The brain of a slice by thresholds and morphology, without a network: what skull-stripping leaves."""

import numpy as np

from .image_processing_brain_mri import FLAIR, brain_mask, to_channels
from .postprocessing import fill_holes


def brain_region(image: np.ndarray) -> np.ndarray:
    """The brain of a slice without its holes, to which a mask or the slice can be cut; dark lesions stay inside.

    Args:
        image: `(H, W, 3)` in the dataset's channel order, any real dtype and scale.

    Returns:
        `(H, W)` bool, found by thresholds and morphology (`brain_mask`); all false where FLAIR is constant.

    Raises:
        ValueError: under 32 pixels, NaN or infinity.
    """
    if not np.ptp(image[..., FLAIR]):  # slices beyond the head may be black throughout
        return np.zeros(image.shape[:2], dtype=bool)
    return fill_holes(brain_mask(to_channels(image)))
