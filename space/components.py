"""Parts that the page's tabs share: pictures, the notice, warnings, and how calls from code are taken."""

import html
import logging

import gradio as gr
from gradio_client.utils import is_http_url_like

logger = logging.getLogger(__name__)

NOTICE = """
<p class="notice"><strong>Research only, anonymised images only.</strong> Not a medical device, not for diagnosis or
treatment. Remove names and dates from the image, its file name and its metadata. Uploads and results are deleted
within the hour.</p>
"""

UNREADABLE_CALL = (
    "The call cannot be read: a parameter is of another kind than the list of parameters says, or a file is not one "
    "that was uploaded here. Upload each file, and name it as {'path': the path that came back, 'meta': {'_type': "
    "'gradio.FileData'}}."
)

PRIVATE = {"api_visibility": "private"}
ON_MODEL = {"concurrency_id": "model", "concurrency_limit": 1}
AT_ONCE = {"trigger_mode": "multiple"}  # also where the same is still being done about former files


def picture(label: str, **options) -> gr.Image:
    """An image that is shown, not edited, lossless."""
    return gr.Image(
        label=label, format="png", type="filepath", interactive=False, buttons=["download", "fullscreen"],
        elem_classes="mr", **options,
    )  # fmt: skip


def threshold_slider(elem_id: str, what: str) -> gr.Slider:
    return gr.Slider(
        0.01, 0.99, value=0.5, step=0.01, label="Threshold", elem_id=elem_id,
        info=f"Probability from which a {what} belongs to the lesion",
    )  # fmt: skip


def no_file() -> gr.DownloadButton:
    """What a download is while there is nothing to take away."""
    return gr.DownloadButton(value=None, interactive=False)


def facts_list(facts: dict[str, str]) -> str:
    """Names and values, in HTML."""
    rows = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())
    return f'<dl class="measurements">{rows}</dl>'


def warnings_list(warnings: list[str]) -> str:
    """Sentences on what looks wrong, in HTML; empty where nothing does."""
    items = "".join(f"<li>{html.escape(warning)}</li>" for warning in warnings)
    return f'<ul class="warnings" aria-label="What to know of this input">{items}</ul>' if warnings else ""


def take_uploads_only(component: gr.File, example: str | None = None) -> None:
    """Keep Gradio from fetching a URL that an API client sends in the place of an upload.

    Args:
        example: the file's name in the calls that Gradio shows as examples, which have a URL otherwise; None for none.
    """
    file = {"path": example, "meta": {"_type": "gradio.FileData"}} if example else None
    several = file and component.file_count == "multiple"
    component.example_payload = lambda: [file] if several else file
    component.example_value = lambda: [example] if several else example
    accept = component.async_move_resource_to_block_cache

    async def accept_uploads_only(path):
        if is_http_url_like(str(path)):
            raise gr.Error("A URL came instead of a file. Download the file and upload it.", print_exception=False)
        return await accept(path)

    component.async_move_resource_to_block_cache = accept_uploads_only


def take_raw_calls(demo: gr.Blocks) -> None:
    """Let a raw call leave out its last parameters, as the clients' calls can, and say so where it cannot be read."""
    preprocess = demo.preprocess_data

    async def with_defaults(block_fn, inputs, *args, **kwargs):
        left_out = [component.value for component in block_fn.inputs[len(inputs) :]]
        try:
            return await preprocess(block_fn, [*inputs, *left_out], *args, **kwargs)
        except gr.Error:
            raise
        except Exception as error:  # Gradio's checks of paths and kinds, whose words are for its own developers
            logger.warning("A call of %s cannot be read: %s: %.200s", block_fn.name, type(error).__name__, error)
            raise gr.Error(UNREADABLE_CALL, print_exception=False) from None

    demo.preprocess_data = with_defaults
