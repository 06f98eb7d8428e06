"""The Space: outlines the FLAIR abnormality of a lower-grade glioma on a brain MR slice or volume.

    python app.py                                        # http://127.0.0.1:7860, on the weights in checkpoints/
    MODEL_IDS=user/model,runs/my-unet python app.py      # further models: Hub ids or directories
    GRADIO_SERVER_PORT=8080 python app.py                # another port

The parts of the page are in space/: a file for each tab, and the handlers, plain functions, which the tabs call.
"""

import argparse
import logging
import os
from pathlib import Path

import gradio as gr

from space.about_tab import about_tab
from space.code_tab import code_tab
from space.compare_tab import compare_tab
from space.components import take_raw_calls
from space.models import default_model, find_models
from space.retention import StartError, private_upload_folder
from space.slice_tab import slice_tab
from space.uploads import MAX_FILE_SIZE
from space.volume_tab import volume_tab

SPACE = Path(__file__).resolve().parent / "space"
TITLE = "Lower-grade glioma on brain MR"
HEADER = f"""
<h1>{TITLE}</h1>
<p>Outlines the FLAIR abnormality of a lower-grade glioma on axial MR slices.</p>
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
        checkbox_border_color="*neutral_500",
        checkbox_border_color_hover="*neutral_600",
        checkbox_border_color_dark="*neutral_400",
        checkbox_border_color_hover_dark="*neutral_300",
    )


def build_demo(models: dict[str, str]) -> gr.Blocks:
    """The page and its public endpoints, /segment_slice, /segment_volume, /compare and /list_models, on the models."""

    def list_models():
        """The names of the models, and which of them is the default."""
        return {"models": list(models), "default": default_model(models)}

    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, 1800)) as demo:
        gr.HTML(HEADER, elem_id="header", padding=False)
        gr.Button(visible=False).click(
            list_models, None, gr.JSON(label="models", visible=False), api_name="list_models"
        )
        with gr.Tab("Slice"):
            slice_tab(models, demo)
        with gr.Tab("Volume"):
            volume_tab(models, demo)
        with gr.Tab("Compare"):
            compare_tab(models, demo)
        with gr.Tab("Code"):
            code_tab(models, demo)  # shows the endpoints so far: all have to come before it
        with gr.Tab("About"):
            about_tab(models)
    take_raw_calls(demo)
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
        "css_paths": sorted(SPACE.glob("*.css")),
        "js": (SPACE / "gradio_markup.js").read_text(encoding="utf-8"),
    }
    settings |= options
    try:
        return demo.launch(**settings)
    except (OSError, OverflowError):  # Gradio's words fit a port that is taken alone
        raise StartError(
            f"No page can be served at {settings['server_name']}, port {settings['server_port']}: the port is taken, "
            "or the address is not this machine's. Set GRADIO_SERVER_PORT or GRADIO_SERVER_NAME to another."
        ) from None


def is_fault(record: logging.LogRecord) -> bool:
    """Whether what the server logs is more than that a visitor left in the middle of an upload."""
    return not (record.exc_info and type(record.exc_info[1]).__name__ == "ClientDisconnect")  # Starlette's


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("uvicorn.error").addFilter(is_fault)
    try:
        models = find_models()
    except ValueError as error:
        raise SystemExit(f"app.py: error: {error}") from None
    if not models:
        raise SystemExit(
            "There is no model to run: checkpoints/ has no folder with a model.safetensors in it, and the environment\n"
            "variable MODEL_IDS is not set. Fetch the weights with `git lfs pull`, train some (see `python train.py\n"
            "--help`), or name Hub ids or directories:\n\n    MODEL_IDS=user/model,path/to/checkpoint python app.py"
        )
    from modeling.cores import use_cores  # here rather than under the first visitor's first click

    use_cores()
    try:
        with private_upload_folder():
            demo = build_demo(models)
            try:
                launch(demo)
            finally:
                demo.close()
    except StartError as error:
        raise SystemExit(f"app.py: error: {error}") from None
    except SystemExit as stopped:  # by a signal: a model that still computes in a thread would abort the process
        os._exit(stopped.code)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
