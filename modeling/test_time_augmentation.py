"""How sure a model is: how much its probabilities disagree when a slice is mirrored and turned."""

from collections.abc import Iterator

import numpy as np
from scipy import ndimage
from transformers import BaseImageProcessor, PreTrainedModel

from .inference import Progress, predict_volume

VIEWS = ((True, 0.0), (False, 10.0), (True, -10.0))  # mirrored, turned by degrees; beside the slice as it is


def disagreement(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    slices: np.ndarray,
    probabilities: np.ndarray,
    *,
    progress: Progress | None = None,
) -> np.ndarray:
    """Twice the standard deviation of the probabilities over four views: 0 (they agree) to 1 (they contradict).

    The views are the slice as it is, mirrored, turned by 10 degrees, and both the other way, as in Wang et al.,
    Neurocomputing 338, 2019 (test-time augmentation; flips and rotations, whose effect is undone on the output).

    Args:
        slices, progress: as for `predict_volume`; `progress` is asked once for each of the three views.
        probabilities: `(S, H, W)` float32, what the model says of the slices as they are.

    Returns:
        `(S, H, W)` float32 in [0, 1].

    Raises:
        ValueError: as `predict_volume`.
    """
    total, squares = probabilities.astype(np.float32), np.square(probabilities, dtype=np.float32)
    for predicted in predict_views(model, processor, slices, progress=progress):
        total += predicted
        squares += np.square(predicted)
    count = 1 + len(VIEWS)
    variance = squares / count - np.square(total / count)
    return np.clip(2 * np.sqrt(np.maximum(variance, 0)), 0, 1)


def predict_views(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    slices: np.ndarray,
    *,
    progress: Progress | None = None,
) -> Iterator[np.ndarray]:
    """What the model says of each of `VIEWS`, mirrored and turned back: `(S, H, W)` float32; see `disagreement`."""
    for mirrored, degrees in VIEWS:
        view = turned(slices[:, :, ::-1] if mirrored else slices, degrees)
        predicted = turned(predict_volume(model, processor, view, progress=progress), -degrees)
        yield predicted[:, :, ::-1] if mirrored else predicted


def turned(slices: np.ndarray, degrees: float) -> np.ndarray:
    """`(S, H, W)` or `(S, H, W, 3)`, each slice turned about its centre; float32, linear interpolation."""
    if not degrees:
        return slices
    return ndimage.rotate(slices.astype(np.float32), degrees, axes=(1, 2), reshape=False, order=1, mode="nearest")
