"""A slice as it is, mirrored and turned: the views of test-time augmentation."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage


@dataclass(frozen=True)
class View:
    """`mirrored` left to right, then turned by `degrees`."""

    mirrored: bool = False
    degrees: float = 0.0

    def of(self, slices: np.ndarray) -> np.ndarray:
        """Slices (S, H, W) or (S, H, W, 3) as seen so; what a turn brings in from outside repeats the edge."""
        return _turned(slices[:, :, ::-1] if self.mirrored else slices, self.degrees)

    def undo(self, maps: np.ndarray) -> np.ndarray:
        """Maps (S, H, W) of what was seen so, back in place; corners that the turn cut off repeat the edge."""
        maps = _turned(maps, -self.degrees)
        return maps[:, :, ::-1] if self.mirrored else maps


# The first is the slice as it is; two views are taken from the front, so that the second differs most from it.
VIEWS = (View(), View(mirrored=True, degrees=-10.0), View(mirrored=True), View(degrees=10.0))


def _turned(slices: np.ndarray, degrees: float) -> np.ndarray:
    """Each slice turned about its centre, in float32 and with linear interpolation; as it is for no turn."""
    if not degrees:
        return slices
    return ndimage.rotate(slices.astype(np.float32), degrees, axes=(1, 2), reshape=False, order=1, mode="nearest")
