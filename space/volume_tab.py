"""The tab for whole volumes, and its endpoint /segment_volume."""

import html

import gradio as gr

from .components import (
    AT_ONCE,
    NOTICE,
    ON_MODEL,
    PRIVATE,
    facts_list,
    no_file,
    take_uploads_only,
    threshold_slider,
    warnings_list,
)
from .handlers import shown_to_people
from .models import default_model
from .sessions import Sessions
from .viewer import try_threshold, viewer
from .volume_3d import volume_3d
from .volume_handlers import open_volume, segment_volume

FORMATS = """
<p class="hint">NIfTI (one file, or one per sequence named t1, flair, t1ce or the like), a DICOM series as ZIP, numbered
slices or a ZIP of them, or a TIFF stack. The axial plane is found, and where the file tells the sides, the patient's
right is shown on the left. A missing sequence is copied from FLAIR.</p>
"""
NOTHING_YET = '<p class="provenance">The measurements appear here once a volume has been outlined.</p>'


def volume_tab(models: dict[str, str], demo: gr.Blocks) -> None:
    """Fill the tab of `demo` that is open; `models` as from `find_models`."""
    sessions = Sessions()

    def clear(paths, request: gr.Request):
        sessions.change(request, paths)
        return nothing()

    @shown_to_people
    def show_preview(paths, request: gr.Request):
        if not paths:
            return gr.skip()
        work = sessions.begin_preview(request, paths)
        preview = open_volume(paths)
        work.finish_preview()
        return (
            preview.view,
            describe_volume(None, preview.description, preview.warnings) + NOTHING_YET,
            *nothing()[2:],
        )

    @shown_to_people
    def show_volume(paths, model, threshold, uncertainty, request: gr.Request, progress=gr.Progress()):  # noqa: B008
        work = sessions.begin(request, paths)
        result = segment_volume(paths, model, threshold, models, work.watch(progress), uncertainty)
        work.finish()
        return (
            result.view,
            describe_volume(result.measurements, result.description, result.warnings),
            gr.DownloadButton(value=result.masks["nifti"], interactive=True),
            gr.DownloadButton(value=result.masks.get("tiff"), visible="tiff" in result.masks),
            gr.DownloadButton(value=result.masks.get("dicom_seg"), visible="dicom_seg" in result.masks),
            gr.DownloadButton(value=result.zip_path, interactive=True),
            result.view,
        )

    @shown_to_people
    def segment_volume_api(files, model, threshold, progress=gr.Progress()):  # noqa: B008
        """Outline the lesion in a volume.

        Args:
            files: the files of one examination: NIfTI, a zipped DICOM series, numbered slices, a ZIP, or a TIFF stack.
            model: a name that /list_models gives.
            threshold: probability from which a voxel belongs to the lesion, between 0 and 1.

        Returns:
            The mask as NIfTI in the input's own space, everything (masks, for a DICOM series as DICOM SEG, too,
            probabilities, outlines, measurements) as ZIP, and the measurements: model, weights_sha256, threshold,
            postprocessing, num_slices, height, width, spacing_mm, lesion_voxels, volume_ml, largest_slice (from 1; null
            without a lesion), diameters_mm, reason (why a measurement is missing), area_per_slice_pixels, and warnings
            (what looks wrong with the images, and why there is no DICOM SEG where the headers do not do for one).
        """
        result = segment_volume(files, model, threshold, models, progress)
        return result.masks["nifti"], result.zip_path, result.measurements

    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            files = gr.File(label="Volume", file_count="multiple", height=130, elem_id="volume")
            gr.HTML(FORMATS, padding=False)
            model = gr.Dropdown(list(models), value=default_model(models), label="Model", elem_id="volume-model")
            uncertainty = gr.Checkbox(
                label="Map the uncertainty, too",
                info="In the ZIP; takes four times as long",
                elem_id="volume-uncertainty",
            )
            gr.HTML(NOTICE, padding=False)
            run = gr.Button("Outline the lesion in the volume", variant="primary", elem_id="volume-run")
        with gr.Column(scale=5, min_width=320):
            view = viewer("volume-view", "Upload a volume")
            threshold = threshold_slider("volume-threshold", "voxel")
            facts = gr.HTML(NOTHING_YET, padding=False, elem_id="volume-measurements")
            with gr.Row():
                mask = gr.DownloadButton("Mask (NIfTI)", interactive=False, size="md", elem_id="volume-mask")
                tiff = gr.DownloadButton("Mask (TIFF)", visible=False, size="md", elem_id="volume-tiff")
                dicom = gr.DownloadButton("Mask (DICOM SEG)", visible=False, size="md", elem_id="volume-dicom-seg")
                everything = gr.DownloadButton("Everything (ZIP)", interactive=False, size="md", elem_id="volume-zip")
            scene = volume_3d("volume-3d")

    results = [view, facts, mask, tiff, dicom, everything, scene]
    demo.unload(sessions.close)
    files.change(clear, files, results, queue=False, show_progress="hidden", **AT_ONCE, **PRIVATE).then(
        show_preview, files, results, show_progress_on=view, concurrency_limit=2, **AT_ONCE, **PRIVATE
    )
    try_threshold(threshold, "volume-view")
    gr.on(
        [run.click, view.submit], show_volume, [files, model, threshold, uncertainty], results, show_progress_on=view,
        **ON_MODEL, **PRIVATE,
    )  # fmt: skip

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
    take_uploads_only(files)
    take_uploads_only(api_files, "volume.nii.gz")


def nothing() -> tuple:
    """The values of the page's parts where there is no volume: see `results` in `volume_tab`."""
    no_format = gr.DownloadButton(value=None, visible=False)
    return None, NOTHING_YET, no_file(), no_format, no_format, no_file(), None


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
        setting = f"{model} at threshold {measurements['threshold']:.2f}"
        if cleaning := measurements["postprocessing"]:
            setting += f", outlined from {cleaning['outline_threshold']:.2f}"
        text += f'<p class="provenance">{setting}</p>'
    return f'{text}<p class="provenance">{html.escape(description)}</p>'
