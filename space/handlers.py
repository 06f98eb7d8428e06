"""Handlers of the page and of its endpoints: a path, a model's name and a threshold in, pictures and numbers out.

They raise `InputError` for what people can mend. `modeling` is imported inside them, as it brings in PyTorch.
"""

import html
import logging
import math
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import TYPE_CHECKING, NamedTuple

import gradio as gr
import numpy as np
from PIL import Image

from .results import file_stem, new_folder, write_slice_zip
from .uploads import InputError, read_channels
from .viewer import HEADROOM, write_view

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedModel

Progress = Callable[..., object]  # takes the part done, 0 to 1, and `desc`

logger = logging.getLogger(__name__)

DISPLAY_SIDE = 768  # pixels; small slices are enlarged up to this
MAX_ATTENTION_TOKENS = 1024  # their weights grow with the square: above, they would take gigabytes


class Outdated(Exception):
    """The files that this was to be done about are no longer there."""


def no_progress(*args, **kwargs) -> None:
    """Where nobody watches."""


def shown_to_people(handler: Callable) -> Callable:
    """Let an `InputError` through as a message, and hide other faults behind an id that the log has, too.

    What is `Outdated` changes nothing on the page.
    """

    @wraps(handler)
    def wrapper(*args, **kwargs):
        try:
            return handler(*args, **kwargs)
        except Outdated:
            return gr.skip()
        except InputError as error:
            message = html.escape(str(error), quote=False)  # Gradio renders messages as HTML
            raise gr.Error(message, duration=30, print_exception=False) from None
        except gr.Error:
            raise
        except Exception:
            error_id = uuid.uuid4().hex[:8]
            logger.exception("Error %s in %s", error_id, handler.__name__)
            raise gr.Error(
                f"Something went wrong on the server. Please try again; if it happens again, report error {error_id} "
                "to the maintainers of this page.",
                duration=30,
                print_exception=False,
            ) from None

    return wrapper


class Loaded(NamedTuple):
    """A checkpoint in memory."""

    model: "PreTrainedModel"
    processor: "BaseImageProcessor"
    weights_sha256: str  # of the file as it was when it was loaded


@lru_cache(maxsize=2)
def load(source: str) -> Loaded:
    """The checkpoint of a directory or Hub id; the two used last stay in memory.

    Raises:
        InputError: it cannot be loaded; the log has the reason.
    """
    from modeling.inference import load_model
    from modeling.predictions import weights_sha256

    try:
        return Loaded(*load_model(source), weights_sha256(source))
    except (OSError, ValueError, RuntimeError):
        logger.exception("The model %s cannot be loaded", source)
        raise InputError("This model cannot be loaded at the moment. Choose another one.") from None


def check_request(model: str, threshold: float, models: dict[str, str]) -> None:
    """Refuse a model that is not in `models`, and a threshold outside (0, 1)."""
    if not isinstance(model, str) or model not in models:
        raise InputError(f"There is no model {str(model)[:80]!r} here. Choose one of: {', '.join(models)}.")
    if not isinstance(threshold, int | float) or not 0 < threshold < 1:
        raise InputError(f"The threshold is {threshold!r:.80}; it must be a number between 0 and 1, for example 0.5.")


@dataclass(frozen=True)
class SlicePreview:
    """An uploaded slice before any model ran."""

    view: dict  # FLAIR for the viewer, see `write_view`
    warnings: list[str]  # sentences on what looks wrong


@dataclass(frozen=True)
class SliceResult:
    """One segmented slice, ready to show; files lie in the upload folder."""

    view: dict  # FLAIR, mask and probabilities for the viewer, see `write_view`
    outline: Image.Image  # FLAIR in grey with the outline of the mask, RGB, enlarged for display
    probability_map: Image.Image  # RGB, as large
    uncertainty_map: Image.Image | None  # likewise, of `uncertainty.disagreement`
    peak: tuple[int, int]  # (row, column) of the highest probability, in pixels of the slice
    mask_path: str  # PNG of the slice's size, 0 or 255
    zip_path: str  # mask, probabilities, pictures and measurements
    measurements: dict  # what /segment_slice documents
    warnings: list[str]


def preview_slice(flair: str | None, pre: str | None = None, post: str | None = None) -> SlicePreview:
    """An uploaded slice and what looks wrong with it; no model runs.

    Raises:
        InputError: as `read_channels`.
    """
    from modeling.input_checks import check_slice
    from modeling.visualization import flair_to_grey

    pixels, notes = read_channels(flair, pre, post)
    view = write_view(new_folder(), flair_to_grey(pixels, HEADROOM)[None])
    return SlicePreview(view, notes + [finding.message for finding in check_slice(pixels)])


def draw(pixels: np.ndarray, mask: np.ndarray, reference: np.ndarray | None = None) -> Image.Image:
    """FLAIR in grey with the masks' outlines, enlarged by a whole number to what a screen shows well."""
    from modeling.visualization import draw_outline

    scale = display_scale(mask.shape)
    return draw_outline(pixels, mask, reference=reference, scale=scale, width=scale)


def display_scale(size: tuple[int, int]) -> int:
    """How many times a slice of (height, width) pixels is enlarged for display."""
    return max(1, DISPLAY_SIDE // max(size))


def heatmap(values: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """(H, W) in [0, 1] as colours, enlarged to (width, height) pixels."""
    from modeling.visualization import probability_heatmap

    return probability_heatmap(values).resize(size, Image.Resampling.BICUBIC)


def segment(
    flair: str | None,
    model: str,
    threshold: float,
    models: dict[str, str],
    progress: Progress = no_progress,
    pre: str | None = None,
    post: str | None = None,
    uncertainty: bool = False,
) -> SliceResult:
    """Outline the lesion on an uploaded slice.

    Args:
        flair, pre, post: the slice in one file, or in a file per sequence (see `read_channels`).
        model: a name in `models` (see `find_models`).
        threshold: probability from which a pixel belongs to the lesion, between 0 and 1, exclusive.
        progress: called with the part done, 0 to 1, and `desc`.
        uncertainty: whether to measure how sure the model is, in four times the time.

    Raises:
        InputError: an unusable slice, an unknown model, or a threshold out of range.
    """
    check_request(model, threshold, models)
    pixels, warnings = read_channels(flair, pre, post)

    from modeling.inference import segment_slice
    from modeling.input_checks import check_slice
    from modeling.uncertainty import disagreement
    from modeling.visualization import flair_to_grey

    progress(0.1, desc=f"Loading {model}")
    network, processor, weights = load(models[model])
    progress(0.4, desc="Outlining the lesion")
    segmentation = segment_slice(network, processor, pixels, threshold=threshold)
    spread = None
    if uncertainty:
        progress(0.6, desc="Asking again, mirrored and turned")
        spread = disagreement(network, processor, pixels[None], segmentation.probabilities[None])[0]
    progress(0.9, desc="Drawing")
    outline = draw(pixels, segmentation.mask)
    height, width = segmentation.mask.shape
    area = int(segmentation.mask.sum())
    warnings += [finding.message for finding in check_slice(pixels)]
    measurements = {
        "model": model,
        "weights_sha256": weights,
        "threshold": threshold,
        "width": width,
        "height": height,
        "lesion_pixels": area,
        "lesion_percent": 100 * area / (height * width),
        "highest_probability": float(segmentation.probabilities.max()),
        "warnings": warnings,
    }
    folder, stem = new_folder(), file_stem(flair)
    pictures = {
        "mask": segmentation.mask.astype(np.uint8) * np.uint8(255),
        "outline": outline,
        "probability": as_16_bit(segmentation.probabilities),
    } | ({} if spread is None else {"uncertainty": as_16_bit(spread)})
    mask_path = folder / f"{stem}_mask.png"
    Image.fromarray(pictures["mask"]).save(mask_path)
    peak = np.unravel_index(segmentation.probabilities.argmax(), segmentation.mask.shape)
    return SliceResult(
        view=write_view(
            folder,
            flair_to_grey(pixels, HEADROOM)[None],
            probabilities=segmentation.probabilities[None],
            mask=segmentation.mask[None],
            threshold=threshold,
        ),
        outline=outline,
        probability_map=heatmap(segmentation.probabilities, outline.size),
        uncertainty_map=None if spread is None else heatmap(spread, outline.size),
        peak=(int(peak[0]), int(peak[1])),
        mask_path=str(mask_path),
        zip_path=write_slice_zip(folder / f"{stem}_results.zip", stem, pictures, measurements),
        measurements=measurements,
        warnings=warnings,
    )


def as_16_bit(fractions: np.ndarray) -> np.ndarray:
    """[0, 1] -> uint16 over its whole range."""
    return np.rint(fractions * 65535).astype(np.uint16)


def attention(
    flair: str | None,
    model: str,
    point: tuple[int, int],
    models: dict[str, str],
    pre: str | None = None,
    post: str | None = None,
) -> Image.Image:
    """Where a TransUNet attends from a point of a slice, drawn over FLAIR.

    Args:
        flair, pre, post: the slice, as for `segment`.
        point: (row, column) in pixels of the slice.

    Raises:
        InputError: an unusable slice, an unknown model or one without attention, or a point outside the slice.
    """
    check_request(model, 0.5, models)
    pixels, _ = read_channels(flair, pre, post)
    height, width = pixels.shape[:2]
    if not (0 <= point[0] < height and 0 <= point[1] < width):
        raise InputError(f"The point {point} is outside the slice of {height}×{width} pixels.")

    import torch

    from modeling import TransUNetConfig
    from modeling.attention_map import attention_from_point, draw_attention

    network, processor, _ = load(models[model])
    if network.config.model_type != TransUNetConfig.model_type:
        raise InputError(f"{model} has no attention to show: it is a U-Net, which only convolves. Choose a TransUNet.")
    token = network.config.size_divisor
    if -(-height // token) * -(-width // token) > MAX_ATTENTION_TOKENS:
        side = token * math.isqrt(MAX_ATTENTION_TOKENS)
        raise InputError(
            f"The slice has {width}×{height} pixels; attention is drawn up to {side}×{side}. Give a smaller slice."
        )
    with torch.inference_mode():
        inputs = processor(images=pixels, size_divisor=token, return_tensors="pt")
        weights = network(**inputs, output_attentions=True).attentions
    grid = attention_from_point([layer[0].numpy() for layer in weights], point, (height, width), token)
    return draw_attention(pixels, grid, point, token, scale=display_scale((height, width)))
