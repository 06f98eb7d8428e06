"""The tab that compares two outlines, and its endpoint /compare."""

import html

import gradio as gr

from .comparison import Comparison, compare_either, compare_models, compare_with_mask
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
from .handlers import shown_to_people
from .models import default_model
from .sessions import Sessions
from .viewer import viewer
from .volume_handlers import open_volume

FORMATS = """
<p class="hint">A slice (PNG, JPEG, TIFF) or a volume, in any of the formats of the other two tabs.</p>
"""
MASK_FORMATS = """
<p class="hint">On the same voxels as the images: NIfTI, numbered slices, a TIFF stack, or a PNG for a slice. Values
above 0 belong to the lesion.</p>
"""
NOTHING_YET = '<p class="provenance">The scores appear here once two outlines have been compared.</p>'
A_MODEL, A_MASK = "A second model", "An expert's mask"


def compare_tab(models: dict[str, str], demo: gr.Blocks) -> None:
    """Fill the tab of `demo` that is open; `models` as from `find_models`."""
    first = default_model(models)
    second = next((name for name in models if name != first), first)
    sessions = Sessions()

    def clear(paths, mask, request: gr.Request):
        sessions.change(request, (paths, mask))
        return None, NOTHING_YET, no_file()

    @shown_to_people
    def show_preview(paths, mask, request: gr.Request):
        if not paths:
            return gr.skip()
        work = sessions.begin_preview(request, (paths, mask))
        preview = open_volume(paths)
        work.finish_preview()
        return (
            preview.view,
            warnings_list(preview.warnings) + describe_input(preview.description) + NOTHING_YET,
            no_file(),
        )

    @shown_to_people
    def show_comparison(
        paths, kind, model, other_model, mask, threshold, request: gr.Request, progress=gr.Progress()  # noqa: B008
    ):  # fmt: skip
        work = sessions.begin(request, (paths, mask))
        if kind == A_MODEL:
            result = compare_models(paths, model, other_model, threshold, models, work.watch(progress))
        else:
            result = compare_with_mask(paths, model, mask, threshold, models, work.watch(progress))
        work.finish()
        return (
            result.view,
            describe_comparison(result),
            gr.DownloadButton(value=result.zip_path, interactive=True),
        )

    @shown_to_people
    def compare(files, model, other_model=None, mask=None, threshold=0.5, progress=gr.Progress()):  # noqa: B008
        """Compare two outlines of one slice or volume: of two models, or of a model and a mask.

        Args:
            files: the files of one examination, as for /segment_volume, or one slice.
            model: a name that /list_models gives, for outline A.
            other_model: another name, for outline B; or leave it out and give `mask`.
            mask: the files of outline B, on the voxels of `files`; or leave it out and give `other_model`.
            threshold: probability from which a voxel belongs to the lesion, between 0 and 1, for each model.

        Returns:
            A picture of the slice with most lesion (A's outline orange, B's blue, green where they agree), everything
            (both masks, the map of agreement, outlines, measurements) as ZIP, and the measurements: dice, iou,
            hd95_pixels, hd95_mm, reason (why a score is missing), agreement_labels (of the map), voxels_in_both,
            voxels_in_a_only, voxels_in_b_only, warnings, and under a and b those of /segment_volume.
        """
        result = compare_either(files, model, other_model, mask, threshold, models, progress)
        return result.picture, result.zip_path, result.measurements

    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            files = gr.File(label="Slice or volume", file_count="multiple", height=130, elem_id="compare-files")
            gr.HTML(FORMATS, padding=False)
            model = gr.Dropdown(list(models), value=first, label="Model (A)", elem_id="compare-model")
            kind = gr.Radio([A_MODEL, A_MASK], value=A_MODEL, label="Compare with (B)", elem_id="compare-kind")
            other_model = gr.Dropdown(list(models), value=second, label="Model (B)", elem_id="compare-other")
            with gr.Column(visible=False) as expert:
                mask = gr.File(label="Mask (B)", file_count="multiple", height=130, elem_id="compare-mask")
                gr.HTML(MASK_FORMATS, padding=False)
            threshold = threshold_slider("compare-threshold", "voxel")
            gr.HTML(NOTICE, padding=False)
            run = gr.Button("Compare the outlines", variant="primary", elem_id="compare-run")
        with gr.Column(scale=5, min_width=320):
            view = viewer("compare-view", "Upload a slice or a volume")
            facts = gr.HTML(NOTHING_YET, padding=False, elem_id="compare-facts")
            everything = gr.DownloadButton("Everything (ZIP)", interactive=False, size="md", elem_id="compare-zip")

    results = [view, facts, everything]
    kind.change(
        lambda kind: (gr.Dropdown(visible=kind == A_MODEL), gr.Column(visible=kind == A_MASK)),
        kind, [other_model, expert], queue=False, show_progress="hidden", **PRIVATE,
    )  # fmt: skip
    demo.unload(sessions.close)
    gr.on(
        [files.change, mask.change],
        clear,
        [files, mask],
        results,
        queue=False,
        show_progress="hidden",
        **AT_ONCE,
        **PRIVATE,
    ).then(show_preview, [files, mask], results, show_progress_on=view, concurrency_limit=2, **AT_ONCE, **PRIVATE)
    run.click(
        show_comparison, [files, kind, model, other_model, mask, threshold], results, show_progress_on=view,
        **ON_MODEL, **PRIVATE,
    )  # fmt: skip

    # Hidden components of its own, as for /segment_slice.
    api_files = gr.File(label="files", file_count="multiple", visible=False)
    api_mask = gr.File(label="mask", file_count="multiple", visible=False)
    gr.Button(visible=False).click(
        compare,
        [
            api_files,
            gr.Textbox(first, label="model", visible=False),
            gr.Textbox(None, label="other_model", visible=False),
            api_mask,
            gr.Number(0.5, label="threshold", visible=False),
        ],
        [
            picture("agreement", visible=False),
            gr.File(label="everything", visible=False),
            gr.JSON(label="measurements", visible=False),
        ],
        api_name="compare",
        **ON_MODEL,
    )
    for component in (files, mask, api_mask):
        take_uploads_only(component)
    take_uploads_only(api_files, "volume.nii.gz")


def describe_input(description: str) -> str:
    """What was read, in HTML."""
    return f'<p class="provenance">{html.escape(description)}</p>'


def describe_comparison(result: Comparison) -> str:
    """What looks wrong, the key to the colours, the scores and what was compared, in HTML."""
    a, b = result.measurements["a"], result.measurements["b"]
    facts = {
        "Dice": "–" if result.dice is None else f"{result.dice:.3f}",
        "IoU": "–" if result.iou is None else f"{result.iou:.3f}",
    }
    if result.hd95_mm is not None:
        facts["HD95"] = f"{result.hd95_mm:.1f} mm"
    elif result.hd95_pixels is not None:
        facts["HD95"] = f"{result.hd95_pixels:.1f} px"
    else:
        facts["HD95"] = "–"
    for side, measured in (("A", a), ("B", b)):
        known = measured["volume_ml"] is not None
        facts[f"Lesion, {side}"] = (
            f"{measured['volume_ml']:.1f} ml" if known else f"{measured['lesion_voxels']:,} voxels"
        )
    names = [html.escape(side.get("model") or side["mask"]) for side in (a, b)]
    key = (
        f'<ul class="key" aria-label="Colours"><li class="a">A, {names[0]}</li><li class="b">B, {names[1]}</li>'
        '<li class="both">in both</li><li class="only-a">in A only</li><li class="only-b">in B only</li></ul>'
    )
    reason = result.measurements["reason"]
    remark = f"<p>{html.escape(reason)}</p>" if reason else ""
    setting = f'<p class="provenance">Threshold {a["threshold"]:.2f}</p>'
    return (
        warnings_list(result.warnings) + key + facts_list(facts) + remark + setting + describe_input(result.description)
    )
