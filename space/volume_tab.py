"""The tab for whole volumes, and its endpoint /segment_volume."""

import html

import gradio as gr

from .components import (
    NOTICE,
    ON_MODEL,
    PRIVATE,
    facts_list,
    no_file,
    refuse_urls,
    threshold_slider,
    warnings_list,
)
from .handlers import default_model, shown_to_people
from .slice_view import Shown, no_slices, show_slices, slice_view
from .volume_handlers import open_volume, segment_volume

FORMATS = """
<p class="hint">NIfTI (one file, or one per sequence named t1, flair, t1ce or the like), a DICOM series as ZIP, numbered
slices or a ZIP of them, or a TIFF stack. The axial plane is found, and a missing sequence is copied from FLAIR.</p>
"""
NOTHING_YET = '<p class="provenance">The measurements appear here once a volume has been outlined.</p>'


def volume_tab(models: dict[str, str]) -> None:
    """Fill the tab that is open; `models` as from `find_models`."""

    @shown_to_people
    def show_preview(paths):
        if not paths:
            return gr.skip()
        preview = open_volume(paths)
        return (
            *show_slices(Shown(preview.flair), len(preview.flair) // 2 + 1),
            describe_volume(None, preview.description, preview.warnings) + NOTHING_YET,
            *nothing()[4:],
        )

    @shown_to_people
    def show_volume(paths, model, threshold, uncertainty, progress=gr.Progress()):  # noqa: B008
        result = segment_volume(paths, model, threshold, models, progress, uncertainty)
        shown = Shown(result.flair, result.mask)
        return (
            *show_slices(shown, result.measurements["largest_slice"] + 1),
            describe_volume(result.measurements, result.description, result.warnings),
            area_plot(result.measurements),
            gr.Button(visible=len(shown.flair) > 1 and bool(result.mask.any())),
            gr.DownloadButton(value=result.masks["nifti"], interactive=True),
            gr.DownloadButton(value=result.masks.get("tiff"), visible="tiff" in result.masks),
            gr.DownloadButton(value=result.zip_path, interactive=True),
        )

    def show_largest(shown):
        return show_slices(shown, int(shown.mask.sum(axis=(1, 2)).argmax()) + 1)

    @shown_to_people
    def segment_volume_api(files, model, threshold, progress=gr.Progress()):  # noqa: B008
        """Outline the lesion in a volume.

        Args:
            files: the files of one examination: NIfTI, a zipped DICOM series, numbered slices, a ZIP, or a TIFF stack.
            model: a name that /list_models gives.
            threshold: probability from which a voxel belongs to the lesion, between 0 and 1.

        Returns:
            The mask as NIfTI in the input's own space, everything (masks, probabilities, outlines, measurements) as
            ZIP, and the measurements: model, weights_sha256, threshold, postprocessing, num_slices, height, width,
            spacing_mm, lesion_voxels, volume_ml, largest_slice (from 0), diameters_mm, reason (why a measurement is
            missing), area_per_slice_pixels, and warnings (what looks wrong with the images).
        """
        result = segment_volume(files, model, threshold, models, progress)
        return result.masks["nifti"], result.zip_path, result.measurements

    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            files = gr.File(label="Volume", file_count="multiple", height=130, elem_id="volume")
            gr.HTML(FORMATS, padding=False)
            model = gr.Dropdown(list(models), value=default_model(models), label="Model", elem_id="volume-model")
            threshold = threshold_slider("volume-threshold", "voxel")
            uncertainty = gr.Checkbox(
                label="Map the uncertainty, too",
                info="In the ZIP; takes four times as long",
                elem_id="volume-uncertainty",
            )
            gr.HTML(NOTICE, padding=False)
            run = gr.Button("Outline the lesion in the volume", variant="primary", elem_id="volume-run")
        with gr.Column(scale=5, min_width=320):
            shown, view, position = slice_view("volume")
            areas = gr.BarPlot(
                x="slice", y="area", y_title="lesion pixels", title="Click the plot to go to a slice", height=180,
                visible=False, buttons=[], elem_id="volume-areas",
            )  # fmt: skip
            largest = gr.Button("Go to the largest slice", size="sm", visible=False, elem_id="volume-largest")
            facts = gr.HTML(NOTHING_YET, padding=False, elem_id="volume-measurements")
            with gr.Row():
                mask = gr.DownloadButton("Mask (NIfTI)", interactive=False, size="md", elem_id="volume-mask")
                tiff = gr.DownloadButton("Mask (TIFF)", visible=False, size="md", elem_id="volume-tiff")
                everything = gr.DownloadButton("Everything (ZIP)", interactive=False, size="md", elem_id="volume-zip")

    results = [shown, view, position, facts, areas, largest, mask, tiff, everything]
    files.change(nothing, None, results, queue=False, show_progress="hidden", **PRIVATE).then(
        show_preview, files, results, show_progress_on=view, concurrency_limit=2, **PRIVATE
    )
    run.click(
        show_volume, [files, model, threshold, uncertainty], results, show_progress_on=view, **ON_MODEL, **PRIVATE
    )
    largest.click(show_largest, shown, [shown, view, position], show_progress="hidden", concurrency_limit=4, **PRIVATE)

    # Hidden components of its own, as for /segment_slice.
    api_files = gr.File(label="files", file_count="multiple", visible=False)
    gr.Button(visible=False).click(
        segment_volume_api,
        [
            api_files,
            gr.Textbox(default_model(models), label="model", visible=False),
            gr.Number(0.5, label="threshold", visible=False),
        ],
        [
            gr.File(label="mask", visible=False),
            gr.File(label="everything", visible=False),
            gr.JSON(label="measurements", visible=False),
        ],
        api_name="segment_volume",
        **ON_MODEL,
    )
    for component in (files, api_files):
        refuse_urls(component)


def nothing() -> tuple:
    """The values of the page's parts where there is no volume: see `results` in `volume_tab`."""
    hidden = gr.Button(visible=False)
    no_tiff = gr.DownloadButton(value=None, visible=False)
    no_areas = gr.BarPlot(value=None, visible=False)
    return *no_slices(), NOTHING_YET, no_areas, hidden, no_file(), no_tiff, no_file()


def area_plot(measurements: dict) -> gr.BarPlot:
    """The lesion's area in every slice, numbered from 1; hidden where there is only one."""
    import pandas as pd

    areas = measurements["area_per_slice_pixels"]
    table = pd.DataFrame({"slice": range(1, len(areas) + 1), "area": areas})
    return gr.BarPlot(table, x_lim=[0.5, len(areas) + 0.5], visible=len(areas) > 1)


def describe_volume(measurements: dict | None, description: str, warnings: list[str]) -> str:
    """What looks wrong with what was read, measurements where there are any, and what was read, in HTML."""
    text = warnings_list(warnings)
    if measurements:
        facts = {"Lesion": f"{measurements['lesion_voxels']:,} voxels"}
        if measurements["volume_ml"] is not None:
            facts["Volume"] = f"{measurements['volume_ml']:.1f} ml"
        if measurements["diameters_mm"]:
            long, short = measurements["diameters_mm"]
            facts["Diameters on the largest slice"] = f"{long:.0f} × {short:.0f} mm"
        text += facts_list(facts)
        if measurements["reason"]:
            text += f"<p>{html.escape(measurements['reason'])}</p>"
        model = html.escape(measurements["model"])
        text += f'<p class="provenance">{model} at threshold {measurements["threshold"]:.2f}</p>'
    return f'{text}<p class="provenance">{html.escape(description)}</p>'
