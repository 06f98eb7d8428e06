"""The Space: outlines the FLAIR abnormality of a lower-grade glioma on a brain MR slice or volume.

    python app.py                                        # http://127.0.0.1:7860, on the weights in checkpoints/
    MODEL_IDS=user/model,runs/my-unet python app.py      # further models: Hub ids or directories
    GRADIO_SERVER_PORT=8080 python app.py                # another port

The handlers are plain functions: a path in, pictures and numbers out. `build_demo` puts the page around them.
"""

import logging
import os
from pathlib import Path

import gradio as gr

from space.components import NOTICE, ON_MODEL, PRIVATE, picture, refuse_urls, threshold_slider
from space.handlers import default_model, describe_result, find_models, preview, segment, shown_to_people
from space.uploads import EXAMPLES, MAX_FILE_SIZE
from space.volume_tab import volume_tab

EXAMPLE_NAMES = {
    "Lesion": "lesion.png",
    "Small lesion": "small_lesion.png",
    "FLAIR only": "flair_only_16bit.png",
    "No lesion": "no_lesion.png",
}

TITLE = "Lower-grade glioma on brain MR"
HEADER = f"""
<h1>{TITLE}</h1>
<p>Outlines the FLAIR abnormality of a lower-grade glioma on axial MR slices.</p>
"""
FORMAT_HINT = """
<p class="hint">PNG, JPEG or TIFF, 8 or 16 bit. RGB in the order pre-contrast T1, FLAIR, post-contrast T1, or one grey
FLAIR image. The axial slice should show the whole head.</p>
"""
EXAMPLES_HINT = '<p class="hint">Or pick an example (generated, not from patients):</p>'
NOTHING_YET = '<p class="provenance">The measurements appear here once a slice has been outlined.</p>'
SCALE = """
<div class="scale" role="img" aria-label="Colour scale of the probability map, from 0 to 1">
<span>0</span><span class="bar"></span><span>1</span></div>
"""


def theme() -> gr.themes.Base:
    """System fonts, so that nothing is fetched, and text and button colours that reach WCAG AA."""
    return gr.themes.Default(
        primary_hue="blue",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
    )


def build_demo(models: dict[str, str]) -> gr.Blocks:
    """The page and its public endpoints, /segment_slice, /segment_volume and /list_models, on the given models."""
    gr.set_static_paths(EXAMPLES)  # served from where they are: copies in the upload folder would be deleted

    @shown_to_people
    def show_slice(path):
        return gr.Image(preview(path), label="FLAIR", alt_text="FLAIR slice, not outlined yet") if path else None

    @shown_to_people
    def show_result(path, model, threshold, progress=gr.Progress()):  # noqa: B008 (Gradio looks for it there)
        result = segment(path, model, threshold, models, progress)
        area = f"{result.measurements['lesion_pixels']:,} pixels"
        return (
            gr.Image(
                result.outline,
                label="FLAIR with outline",
                alt_text=f"FLAIR slice with the outline of the lesion, {area}",
            ),
            gr.Image(result.probability_map, alt_text="Probability of lesion at each pixel, as colours"),
            describe_result(result.measurements),
            gr.DownloadButton(value=result.mask_path, interactive=True),
            True,
        )

    @shown_to_people
    def update_result(shown, path, model, threshold):
        return show_result(path, model, threshold) if shown else gr.skip()

    @shown_to_people
    def segment_slice(image, model, threshold, progress=gr.Progress()):  # noqa: B008
        """Outline the lesion on one slice.

        Args:
            image: the slice as PNG, JPEG or TIFF.
            model: a name that /list_models gives.
            threshold: probability from which a pixel belongs to the lesion, between 0 and 1.

        Returns:
            The mask as PNG (0 or 255, at the size of the slice), FLAIR with the outline, the probability map in
            colours, and the measurements: model, threshold, width, height, lesion_pixels, lesion_percent (of the whole
            slice) and highest_probability.
        """
        result = segment(image, model, threshold, models, progress)
        return result.mask_path, result.outline, result.probability_map, result.measurements

    def list_models():
        """The names of the models, and which of them is the default."""
        return {"models": list(models), "default": default_model(models)}

    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, 1800)) as demo:
        gr.HTML(HEADER, elem_id="header", padding=False)
        with gr.Tab("Slice"), gr.Row():
            with gr.Column(scale=2, min_width=300):
                slice_file = gr.File(label="Slice", height=130, elem_id="slice")
                gr.HTML(FORMAT_HINT, padding=False)
                gr.HTML(EXAMPLES_HINT, padding=False)
                with gr.Row(elem_id="examples"):
                    examples = {
                        str(EXAMPLES / name): gr.Button(label, icon=EXAMPLES / name, size="sm", min_width=60)
                        for label, name in EXAMPLE_NAMES.items()
                    }
                model = gr.Dropdown(list(models), value=default_model(models), label="Model", elem_id="model")
                threshold = threshold_slider("threshold", "pixel")
                gr.HTML(NOTICE, padding=False)
                run = gr.Button("Outline the lesion", variant="primary", elem_id="run")
            with gr.Column(scale=5, min_width=320):
                with gr.Row():
                    with gr.Column(min_width=260):
                        view = picture("FLAIR", elem_id="view")
                    with gr.Column(min_width=260):
                        probability = picture("Lesion probability", elem_id="probability")
                        gr.HTML(SCALE, padding=False)
                with gr.Row(elem_id="facts"):
                    measurements = gr.HTML(NOTHING_YET, padding=False, elem_id="measurements")
                    mask = gr.DownloadButton(
                        "Download the mask (PNG)",
                        interactive=False,
                        size="md",
                        scale=0,
                        min_width=240,
                        elem_id="mask",
                    )
        with gr.Tab("Volume"):
            volume_tab(models)
        shown = gr.State(False)

        results = [view, probability, measurements, mask, shown]
        for path, button in examples.items():
            button.click(lambda path=path: path, None, slice_file, queue=False, show_progress="hidden", **PRIVATE)
        slice_file.change(
            lambda: (None, None, NOTHING_YET, gr.DownloadButton(value=None, interactive=False), False),
            None, results, queue=False, show_progress="hidden", **PRIVATE,
        ).then(show_slice, slice_file, view, concurrency_limit=4, **PRIVATE)  # fmt: skip
        run.click(
            show_result, [slice_file, model, threshold], results, show_progress_on=probability, **ON_MODEL, **PRIVATE
        )
        gr.on(
            [model.input, threshold.input], update_result, [shown, slice_file, model, threshold], results,
            show_progress="hidden", trigger_mode="always_last", **ON_MODEL, **PRIVATE,
        )  # fmt: skip

        # The endpoints have components of their own, which are not shown: text and number reach the handler unchecked,
        # so that it answers in its own words.
        api_file = gr.File(label="image", visible=False)
        gr.Button(visible=False).click(
            segment_slice,
            [
                api_file,
                gr.Textbox(default_model(models), label="model", visible=False),
                gr.Number(0.5, label="threshold", visible=False),
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

        gr.Button(visible=False).click(
            list_models, None, gr.JSON(label="models", visible=False), api_name="list_models"
        )
        for component in (slice_file, api_file):
            refuse_urls(component)
    return demo.queue(max_size=32, api_open=False)


def launch(demo: gr.Blocks, **options):
    """Serve the page with the settings that keep images private; `options` go to `Blocks.launch`."""
    on_space = "SPACE_ID" in os.environ
    settings = {
        "server_name": os.environ.get("GRADIO_SERVER_NAME") or ("0.0.0.0" if on_space else "127.0.0.1"),
        "server_port": int(os.environ.get("GRADIO_SERVER_PORT") or 7860),
        "max_file_size": MAX_FILE_SIZE,
        "state_session_capacity": 200,
        "max_threads": 16,
        "show_error": False,
        "share": False,
        "run_history": False,
        "enable_monitoring": False,
        "ssr_mode": False,
        "pwa": False,
        "mcp_server": False,
        "footer_links": ["api", "settings"],
        "theme": theme(),
        "css_paths": Path(__file__).resolve().parent / "space" / "page.css",
    }
    return demo.launch(**settings | options)


def available_cores() -> int:
    """The CPU cores this process may use, counting a container's quota, which PyTorch's own count overlooks."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    models = find_models()
    if not models:
        raise SystemExit(
            "There is no model to run: checkpoints/ has no folder with a model.safetensors in it, and the environment\n"
            "variable MODEL_IDS is not set. Fetch the weights with `git lfs pull`, train some (see `python train.py\n"
            "--help`), or name Hub ids or directories:\n\n    MODEL_IDS=user/model,path/to/checkpoint python app.py"
        )
    import torch

    import modeling  # noqa: F401 (here rather than under the first visitor's first click)

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(available_cores())
    launch(build_demo(models))


if __name__ == "__main__":
    main()
