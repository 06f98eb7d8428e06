"""The view of a volume's slices that tabs share: a picture of one slice, and the slider to it."""

from dataclasses import dataclass

import gradio as gr
import numpy as np
from PIL import Image

from .components import PRIVATE, picture
from .handlers import draw

AGREEMENT_COLOR = (0, 158, 115)  # bluish green of the palette that `modeling.visualization` uses
FILL = 0.4  # opacity of the colours of agreement


@dataclass(frozen=True)
class Shown:
    """What is on the screen: `flair` (S, H, W) uint8, and masks (S, H, W) bool, None before a model ran."""

    flair: np.ndarray
    mask: np.ndarray | None = None
    reference: np.ndarray | None = None  # in a comparison, the second mask


def slice_view(name: str) -> tuple[gr.State, gr.Image, gr.Slider]:
    """Place the picture and the slider, `NAME-view` and `NAME-slice`; `show_slices` or `no_slices` fills all three."""
    shown = gr.State(None)
    view = picture("FLAIR", elem_id=f"{name}-view")
    position = gr.Slider(1, 2, value=1, step=1, label="Slice", visible=False, elem_id=f"{name}-slice")
    position.input(
        slice_picture, [shown, position], view, show_progress="hidden", trigger_mode="always_last",
        concurrency_limit=4, **PRIVATE,
    )  # fmt: skip
    return shown, view, position


def show_slices(shown: Shown, number: int) -> tuple[Shown, gr.Image, gr.Slider]:
    """The values of a `slice_view` at slice `number`, counted from 1; the slider is hidden where there is only one."""
    count = len(shown.flair)
    slider = gr.Slider(1, max(2, count), value=number, visible=count > 1)
    return shown, slice_picture(shown, number), slider


def no_slices() -> tuple[None, None, gr.Slider]:
    """The values of a `slice_view` where there is no volume."""
    return None, None, gr.Slider(visible=False)


def slice_picture(shown: Shown | None, number: int) -> gr.Image | None:
    """Slice `number`, counted from 1, with its outlines."""
    if shown is None:
        return None
    count = len(shown.flair)
    index = min(max(int(number), 1), count) - 1
    flair, place = shown.flair[index], f"slice {index + 1} of {count}"
    if shown.mask is None:
        drawn, what = draw(flair, np.zeros(flair.shape, dtype=bool)), "not outlined yet"
    elif shown.reference is None:
        drawn, what = draw(flair, shown.mask[index]), f"lesion {shown.mask[index].sum():,} pixels"
    else:
        a, b = shown.mask[index], shown.reference[index]
        drawn = draw_agreement(flair, a, b)
        what = f"{(a & b).sum():,} pixels in both outlines, {(a & ~b).sum():,} in A only, {(b & ~a).sum():,} in B only"
    return gr.Image(drawn, label=f"FLAIR, {place}", alt_text=f"FLAIR {place}, {what}")


def draw_agreement(flair: np.ndarray, a: np.ndarray, b: np.ndarray) -> Image.Image:
    """FLAIR (H, W) in grey with two masks (H, W) bool: filled where they agree and differ, and both outlined.

    A's outline is orange and B's blue, as is what either has alone; what they share is green.
    """
    from modeling.visualization import PREDICTION_COLOR, REFERENCE_COLOR, draw_outline

    outlined = draw(flair, a, b)
    scale = outlined.width // flair.shape[1]
    filled = np.array(draw_outline(flair, np.zeros(flair.shape, dtype=bool), scale=scale), dtype=np.float32)
    for part, color in ((a & b, AGREEMENT_COLOR), (a & ~b, PREDICTION_COLOR), (b & ~a, REFERENCE_COLOR)):
        enlarged = np.repeat(np.repeat(part, scale, axis=0), scale, axis=1)
        filled[enlarged] = (1 - FILL) * filled[enlarged] + FILL * np.array(color)
    lines = np.asarray(outlined)
    on_line = (lines != lines[..., :1]).any(axis=-1, keepdims=True)  # all else is grey
    return Image.fromarray(np.where(on_line, lines, np.rint(filled).astype(np.uint8)))
