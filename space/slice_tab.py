"""The tab for single slices, and its endpoint /segment_slice."""

import html
from dataclasses import dataclass

import gradio as gr

from .components import (
    AT_ONCE,
    NOTICE,
    ON_MODEL,
    PRIVATE,
    facts_list,
    no_file,
    picture,
    take_uploads_only,
    threshold_slider,
    warnings_list,
)
from .handlers import attention, preview_slice, segment, shown_to_people
from .models import default_model
from .sessions import Sessions
from .uploads import EXAMPLES, InputError
from .viewer import try_threshold, viewer

EXAMPLE_NAMES = {
    "Lesion": "lesion.png",
    "Small lesion": "small_lesion.png",
    "FLAIR only": "flair_only_16bit.png",
    "No lesion": "no_lesion.png",
}

FORMATS = """
<p class="hint">PNG, JPEG or TIFF, 8 or 16 bit. RGB in the order pre-contrast T1, FLAIR, post-contrast T1, or one grey
FLAIR image, which then stands in for the others. The axial slice should show the whole head.</p>
"""
SEQUENCES = """
<p class="hint">The slice above is then grey FLAIR. A sequence that is missing is copied from FLAIR.</p>
"""
EXAMPLES_HINT = '<p class="hint">Or pick an example (generated, not from patients):</p>'
NOTHING_YET = '<p class="provenance">The measurements appear here once a slice has been outlined.</p>'

PROBABILITY, UNCERTAINTY, ATTENTION = "Probability", "Uncertainty", "Attention"
LAYERS = {  # what is drawn beside FLAIR -> its title, and a sentence on it
    PROBABILITY: ("Lesion probability", "How likely the model takes each pixel for lesion."),
    UNCERTAINTY: (
        "Uncertainty",
        "How far the probabilities differ where the slice is mirrored and turned: 0 where they agree, 1 where they "
        "contradict each other.",
    ),
    ATTENTION: (
        "Attention",
        "What the model looks at from the blue square, the brighter the more. Click a point in either picture to ask "
        "from there.",
    ),
}
BESIDE = "beside"  # the second picture, which events tell by this alone
SCALE = """
<div class="scale" role="img" aria-label="Colour scale from 0 to 1">
<span>0</span><span class="bar"></span><span>1</span></div>
"""


@dataclass(frozen=True)
class Shown:
    """What is on the screen after a model ran."""

    scale: int  # pixels of the second picture to one of the slice
    layer: str  # a key of `LAYERS`


def slice_tab(models: dict[str, str], demo: gr.Blocks) -> None:
    """Fill the tab of `demo` that is open; `models` as from `find_models`."""
    gr.set_static_paths(EXAMPLES)  # served from where they are: copies in the upload folder would be deleted
    sessions = Sessions()

    def clear(flair, pre, post, layer, request: gr.Request):
        sessions.change(request, (flair, pre, post))
        return None, None, describe_layer(layer), NOTHING_YET, no_file(), no_file(), None

    @shown_to_people
    def show_preview(flair, pre, post, request: gr.Request):
        if not flair:
            return gr.skip()
        work = sessions.begin_preview(request, (flair, pre, post))
        preview = preview_slice(flair, pre, post)
        work.finish_preview()
        return preview.view, warnings_list(preview.warnings) + NOTHING_YET

    @shown_to_people
    def show_result(flair, pre, post, model, threshold, layer, request: gr.Request, progress=gr.Progress()):  # noqa: B008
        work = sessions.begin(request, (flair, pre, post))
        progress = work.watch(progress)
        result = segment(flair, model, threshold, models, progress, pre, post, uncertainty=layer == UNCERTAINTY)
        drawn, remark = result.probability_map, None
        if layer == UNCERTAINTY:
            drawn = result.uncertainty_map
        elif layer == ATTENTION:
            try:
                drawn = attention(flair, model, result.peak, models, pre, post)
            except InputError as error:  # the outline is worth showing all the same
                layer, remark = PROBABILITY, str(error)
        work.finish()
        return (
            result.view,
            layer_picture(drawn, layer),
            describe_layer(layer, remark),
            warnings_list(result.warnings) + describe_result(result.measurements),
            gr.DownloadButton(value=result.mask_path, interactive=True),
            gr.DownloadButton(value=result.zip_path, interactive=True),
            Shown(result.outline.width // result.measurements["width"], layer),
        )

    @shown_to_people
    def update_result(shown, flair, pre, post, model, threshold, layer, request: gr.Request):
        if not shown and not sessions.outlined(request):  # Gradio forgets `shown` where many others come
            return gr.skip()
        return show_result(flair, pre, post, model, threshold, layer, request)

    @shown_to_people
    def show_attention(shown, flair, pre, post, model, request: gr.Request, event: gr.SelectData):
        if not shown or shown.layer != ATTENTION:
            return gr.skip()
        scale = shown.scale if event.target.elem_id == BESIDE else 1  # the viewer tells pixels of the slice
        column, row = (place // scale for place in event.index)
        work = sessions.begin(request, (flair, pre, post))
        drawn = attention(flair, model, (row, column), models, pre, post)
        work.finish()
        return layer_picture(drawn, ATTENTION, (row, column))

    @shown_to_people
    def segment_slice(image, model, threshold, pre_contrast=None, post_contrast=None, progress=gr.Progress()):  # noqa: B008
        """Outline the lesion on one slice.

        Args:
            image: the slice as PNG, JPEG or TIFF: RGB in the order pre-contrast T1, FLAIR, post-contrast T1, or grey
                FLAIR.
            model: a name that /list_models gives.
            threshold: probability from which a pixel belongs to the lesion, between 0 and 1.
            pre_contrast: the grey T1 slice before contrast, if it is a file of its own; `image` is then grey FLAIR.
                A T1 slice that is missing is copied from FLAIR.
            post_contrast: likewise after contrast.

        Returns:
            The mask as PNG (0 or 255, at the size of the slice), FLAIR with the outline, the probability map in
            colours, and the measurements: model, weights_sha256, threshold, width, height, lesion_pixels,
            lesion_percent (of the whole slice), highest_probability, and warnings (what looks wrong with the slice).
        """
        result = segment(image, model, threshold, models, progress, pre_contrast, post_contrast)
        return result.mask_path, result.outline, result.probability_map, result.measurements

    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            flair = gr.File(label="Slice", height=130, elem_id="slice")
            gr.HTML(FORMATS, padding=False)
            with gr.Accordion("T1 in files of their own", open=False, elem_id="sequences"):
                gr.HTML(SEQUENCES, padding=False)
                pre = gr.File(label="Pre-contrast T1", height=130, elem_id="pre")
                post = gr.File(label="Post-contrast T1", height=130, elem_id="post")
            gr.HTML(EXAMPLES_HINT, padding=False)
            with gr.Row(elem_id="examples"):
                examples = {
                    str(EXAMPLES / name): gr.Button(label, icon=EXAMPLES / name, size="sm", min_width=60)
                    for label, name in EXAMPLE_NAMES.items()
                }
            model = gr.Dropdown(list(models), value=default_model(models), label="Model", elem_id="model")
            gr.HTML(NOTICE, padding=False)
            run = gr.Button("Outline the lesion", variant="primary", elem_id="run")
        with gr.Column(scale=5, min_width=320):
            with gr.Row():
                with gr.Column(min_width=260):
                    view = viewer("view", "Upload a slice or pick an example")
                    threshold = threshold_slider("threshold", "pixel")
                with gr.Column(min_width=260):
                    beside = picture(LAYERS[PROBABILITY][0], elem_id=BESIDE)
                    about_layer = gr.HTML(describe_layer(PROBABILITY), padding=False, elem_id="about-layer")
                    layer = gr.Radio(
                        list(LAYERS), value=PROBABILITY, label="Second picture", elem_id="layer",
                        info="Uncertainty takes four times as long; attention is a TransUNet's.",
                    )  # fmt: skip
            measurements = gr.HTML(NOTHING_YET, padding=False, elem_id="measurements")
            with gr.Row():
                mask = gr.DownloadButton("Mask (PNG)", interactive=False, size="md", elem_id="mask")
                everything = gr.DownloadButton("Everything (ZIP)", interactive=False, size="md", elem_id="zip")
    shown = gr.State(None)

    files = [flair, pre, post]
    results = [view, beside, about_layer, measurements, mask, everything, shown]
    for path, button in examples.items():
        button.click(lambda path=path: (path, None, None), None, files, queue=False, show_progress="hidden", **PRIVATE)
    demo.unload(sessions.close)
    gr.on(
        [file.change for file in files],
        clear, [*files, layer], results, queue=False, show_progress="hidden", **AT_ONCE, **PRIVATE,
    ).then(
        show_preview, files, [view, measurements], show_progress_on=view, concurrency_limit=4, **AT_ONCE, **PRIVATE,
    )  # fmt: skip
    try_threshold(threshold, "view")
    gr.on(
        [run.click, view.submit], show_result, [*files, model, threshold, layer], results, show_progress_on=view,
        **ON_MODEL, **PRIVATE,
    )  # fmt: skip
    gr.on(
        [model.input, layer.input], update_result, [shown, *files, model, threshold, layer], results,
        show_progress_on=view, trigger_mode="always_last", **ON_MODEL, **PRIVATE,
    )  # fmt: skip
    gr.on(
        [view.select, beside.select], show_attention, [shown, *files, model], beside, show_progress="hidden",
        trigger_mode="always_last", **ON_MODEL, **PRIVATE,
    )  # fmt: skip

    # The endpoint has components of its own, which are not shown: text and number reach the handler unchecked, so that
    # it answers in its own words.
    api_file, api_pre, api_post = (
        gr.File(label=label, visible=False) for label in ("image", "pre_contrast", "post_contrast")
    )
    gr.Button(visible=False).click(
        segment_slice,
        [
            api_file,
            gr.Textbox(default_model(models), label="model", visible=False),
            gr.Number(0.5, label="threshold", visible=False),
            api_pre,
            api_post,
        ],
        [
            gr.File(label="mask", visible=False),
            picture("outline", visible=False),
            picture("probability map", visible=False),
            gr.JSON(label="measurements", visible=False),
        ],
        api_name="segment_slice",
        **ON_MODEL,
    )
    for component in (*files, api_pre, api_post):
        take_uploads_only(component)
    take_uploads_only(api_file, "slice.png")


def layer_picture(drawn, layer: str, point: tuple[int, int] | None = None) -> gr.Image:
    """The picture beside FLAIR; `point` (row, column) is where attention was asked from."""
    title = LAYERS[layer][0]
    where = "" if point is None else f" from row {point[0]}, column {point[1]}"
    return gr.Image(drawn, label=title, alt_text=f"{title}{where}, as colours")


def describe_layer(layer: str, remark: str | None = None) -> str:
    """What the picture beside FLAIR shows, and a remark on why it is not the one that was asked for, in HTML."""
    scale = "" if layer == ATTENTION else SCALE
    return f'{scale}<p class="hint">{LAYERS[layer][1]}</p>' + warnings_list([remark] if remark else [])


def describe_result(measurements: dict) -> str:
    """The measurements as the page shows them, in HTML."""
    area, percent = measurements["lesion_pixels"], measurements["lesion_percent"]
    facts = {
        "Lesion area": f"{area:,} px",
        "Share of the slice": f"{percent:.2f} %",
        "Highest probability": f"{measurements['highest_probability']:.2f}",
    }
    remark = "" if area else "<p>No lesion outlined: no pixel reaches the threshold.</p>"
    return (
        f'{facts_list(facts)}{remark}<p class="provenance">{html.escape(measurements["model"])} at threshold '
        f"{measurements['threshold']:.2f}, slice of {measurements['width']} × {measurements['height']} pixels</p>"
    )
