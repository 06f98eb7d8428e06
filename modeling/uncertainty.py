"""How sure a model is: how much its probabilities disagree when a slice is mirrored and turned."""

import numpy as np
from transformers import BaseImageProcessor, PreTrainedModel

from .inference import CROP_MARGIN, Progress, predict_volume
from .views import VIEWS


def disagreement(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    slices: np.ndarray,
    probabilities: np.ndarray,
    *,
    crop_margin: int | None = CROP_MARGIN,
    progress: Progress | None = None,
) -> np.ndarray:
    """Twice the standard deviation of the probabilities over four views: 0 (they agree) to 1 (they contradict).

    The views are the slice as it is, mirrored, turned by 10 degrees, and both the other way, as in Wang et al.,
    Neurocomputing 338, 2019 (test-time augmentation; flips and rotations, whose effect is undone on the output).

    Args:
        slices, progress: as for `predict_volume`; `progress` is asked once for each of the three views.
        probabilities: `(S, H, W)` float32, what the model says of the slices as they are.
        crop_margin: the one that `probabilities` were computed with; else the window would pass for doubt.

    Returns:
        `(S, H, W)` float32 in [0, 1].

    Raises:
        ValueError: as `predict_volume`.
    """
    total, squares = probabilities.astype(np.float32), np.square(probabilities, dtype=np.float32)
    options = {"crop_margin": crop_margin, "progress": progress}
    for view in VIEWS[1:]:
        predicted = view.undo(predict_volume(model, processor, view.of(slices), **options))
        total += predicted
        squares += np.square(predicted)
    variance = squares / len(VIEWS) - np.square(total / len(VIEWS))
    return np.clip(2 * np.sqrt(np.maximum(variance, 0)), 0, 1)
