"""The viewer that the tabs share: a canvas that draws, windows, zooms and thresholds without asking the server.

`write_view` packs what it shows of a slice or volume into one file, which the browser fetches once; viewer.js draws it.
"""

import gzip
from pathlib import Path

import gradio as gr
import numpy as np

from .components import PRIVATE

HEADROOM = 1.5  # of the grey values above the window that is set at first, so that bright lesions can be windowed
STEPS = 100  # probabilities are rounded down to this part of 1, so that the slider's thresholds tell them apart exactly
IN_MASK = 128  # what the file adds to the probability of a voxel that the mask holds
SCRIPTS = ("viewer.js", "viewer_drawing.js", "viewer_input.js")
SCRIPT = "\n".join(Path(__file__).with_name(name).read_text(encoding="utf-8") for name in SCRIPTS)
MARKUP = """
<div class="viewer" role="group" aria-label="Viewer">
<div class="stage">
<canvas class="picture" role="img" tabindex="-1" aria-label="No picture yet"></canvas>
<p class="empty">EMPTY</p>
<p class="setting" aria-hidden="true"></p>
</div>
<div class="slices" hidden>
<canvas class="profile" aria-hidden="true" title="Lesion by slice: click to go there"></canvas>
<input class="position" type="range" min="1" max="1" step="1" aria-label="Slice">
</div>
<div class="controls" hidden>
<div class="tools">
<span class="overlays" role="group" aria-label="Overlay">
<button type="button" data-toggle="overlay" title="Everything drawn over FLAIR, on or off (O)">Overlay</button>
<button type="button" data-toggle="outline" title="Outline on or off (L)">Outline</button>
<button type="button" data-toggle="fill" title="Fill on or off (F)">Fill</button>
</span>
<span role="group" aria-label="Zoom">
<button type="button" data-do="zoomOut" aria-label="Zoom out" title="Zoom out (−)">−</button>
<button type="button" data-do="zoomIn" aria-label="Zoom in" title="Zoom in (+)">+</button>
</span>
<button type="button" data-do="largest" title="Go to the slice with most lesion (M)">Largest slice</button>
<button type="button" data-do="reset" title="Zoom, window and overlay as at first (R)">Reset</button>
<button type="button" data-do="save" aria-label="Save PNG" title="Save the picture as it is shown">PNG</button>
<button type="button" data-do="fullscreen" aria-label="Full screen" title="Full screen"><svg viewBox="0 0 16 16"
aria-hidden="true"><path d="M2 6V2h4M10 2h4v4M14 10v4h-4M6 14H2v-4"/></svg></button>
</div>
<div class="settings">
<label class="overlays">Opacity <input type="range" min="0" max="100" data-set="opacity"></label>
<label>Window <input type="range" min="2" max="255" data-set="window" title="Narrow: more contrast"></label>
<label>Level <input type="range" min="0" max="255" data-set="level" title="Low: brighter"></label>
</div>
<details class="keys"><summary>Mouse, touch and keys</summary><ul>
<li>Drag: window (sideways) and level (up and down). With Shift, or two fingers: move the picture.</li>
<li>Wheel or swipe sideways: slices of a volume. Ctrl and wheel, or two fingers: zoom.</li>
<li>Click a point, or move the cross with the arrow keys on a single slice: its probability.</li>
<li>In the picture: arrow keys, Page Up and Down, Home, End for slices; + − zoom, Shift and arrows move; O overlay,
L outline, F fill, M largest slice, R reset.</li>
</ul></details>
</div>
<p class="status" role="status"></p>
<div class="preview" hidden><p></p><button type="button" data-do="submit"></button></div>
</div>
"""


def viewer(elem_id: str, empty: str) -> gr.HTML:
    """Place a viewer. Its value is from `write_view`, or None, and then it shows the text `empty`.

    It has the events `select` (a point was chosen: `index` is (column, row) in pixels of the slice) and `submit` (the
    threshold that is being tried is to be run).
    """
    markup = MARKUP.replace("EMPTY", empty)
    return gr.HTML(
        html_template=markup, js_on_load=SCRIPT, apply_default_css=False, padding=False, elem_id=elem_id,
        elem_classes="mr-viewer",
    )  # fmt: skip


def try_threshold(threshold: gr.Slider, elem_id: str) -> None:
    """Let a slider move the threshold in the viewer `elem_id`, in the browser alone."""
    threshold.change(
        None, threshold, None, **PRIVATE,
        js=f"(value) => document.querySelector('#{elem_id} .viewer')"
        "?.dispatchEvent(new CustomEvent('threshold', { detail: value }))",
    )  # fmt: skip


def write_view(
    folder: Path,
    grey: np.ndarray,
    spacing: tuple[float, float, float] | None = None,
    start: int | None = None,
    probabilities: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    reference: np.ndarray | None = None,
    threshold: float | None = None,
    postprocessed: bool = False,
) -> dict:
    """Write what a viewer shows into `folder`, and return the viewer's value.

    The file is gzip of a byte per voxel for FLAIR, then, where there is an outline, of another: IN_MASK for voxels of
    the mask, plus the probability in parts of STEPS; or in a comparison, 1 for voxels of the mask plus 2 for voxels of
    the reference.

    Args:
        grey: (S, H, W) uint8, FLAIR from `volume_to_grey` with HEADROOM.
        spacing: mm along (S, H, W), where it is known.
        start: the slice to show first, from 0; the middle one if None.
        probabilities: (S, H, W) in [0, 1], or None where no model ran, and in a comparison.
        mask, reference: (S, H, W) bool: the outline, and the one that it is compared with.
        threshold: the one that gave the mask from the probabilities.
        postprocessed: whether the mask is more than the voxels that reach the threshold.
    """
    path = folder / "view.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(grey.tobytes())
        for index in range(len(grey) if mask is not None else 0):
            inside = mask[index].astype(np.uint8)
            if reference is None:
                file.write((probabilities[index] * STEPS).astype(np.uint8) + inside * np.uint8(IN_MASK))
            else:
                file.write(inside + reference[index] * np.uint8(2))
    return {
        "file": gr.FileData(path=str(path)).model_dump(),
        "kind": "flair" if mask is None else "lesion" if reference is None else "comparison",
        "shape": grey.shape,
        "spacing": spacing,
        "start": len(grey) // 2 if start is None else start,
        "window": [0, round(255 / HEADROOM)],
        "threshold": threshold,
        "postprocessed": postprocessed,
    }
