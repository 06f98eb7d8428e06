"""The lesion in the head in 3-D: nothing is fetched or drawn before it is asked for.

volume_3d.js casts rays through the file of the volume's viewer (see `viewer.write_view`), in the browser alone.
"""

from pathlib import Path

import gradio as gr

SCRIPT = (Path(__file__).parent / "volume_3d.js").read_text(encoding="utf-8")
MARKUP = """
<div class="scene" role="group" aria-label="3-D view">
<button type="button" class="opener" aria-expanded="false" hidden>Show in 3-D</button>
<div class="content" hidden>
<div class="stage">
<canvas class="picture" role="img" tabindex="-1" aria-label="No picture yet"></canvas>
<p class="message" role="status"></p>
</div>
<div class="tools" hidden>
<span role="group" aria-label="Seen from">
<button type="button" data-from="front">Front</button>
<button type="button" data-from="side">Side</button>
<button type="button" data-from="top">Top</button>
</span>
<span role="group" aria-label="Zoom">
<button type="button" data-zoom="0.8" aria-label="Zoom out">−</button>
<button type="button" data-zoom="1.25" aria-label="Zoom in">+</button>
</span>
<button type="button" data-do="reset">Reset</button>
</div>
<div class="settings" hidden>
<label>Head <input type="range" min="0" max="100" data-set="head" title="How solid the head is"></label>
<label>Cut <input type="range" min="0" max="100" data-set="cut" title="Cut the head open, from our side"></label>
</div>
<p class="hint" hidden>Drag, or use the arrow keys in the picture, to turn; + and − zoom, R resets.</p>
<p class="status" role="status"></p>
</div>
</div>
"""


def volume_3d(elem_id: str) -> gr.HTML:
    """Place a 3-D view. Its value is that of the volume's viewer; there is nothing to open without a lesion model."""
    return gr.HTML(
        html_template=MARKUP, js_on_load=SCRIPT, apply_default_css=False, padding=False, elem_id=elem_id,
        elem_classes="mr-scene",
    )  # fmt: skip
