"""The tab that shows how to get the page's result from code."""

import html
import inspect
from pathlib import Path

import gradio as gr

from .components import PRIVATE
from .models import default_model

ROOT = Path(__file__).resolve().parents[1]
ADDRESS = "http://127.0.0.1:7860"  # replaced in the browser by the address the page was opened at
AT_THIS_ADDRESS = f"""(...codes) => codes.map(
    (code) => code.replaceAll("{ADDRESS}", (window.location.origin + window.location.pathname).replace(/[/]$/, "")))"""
INTRODUCTION = """
<h2>Use it from code</h2>
<p>The same slice, model and threshold, three ways. Each gives the mask at the size of the slice. Use anonymised images
only; what is sent to this page is deleted within the hour, and with transformers nothing leaves your machine.</p>
"""
OTHERS = """
<div class="prose-column">
<p class="hint">Where the sequences are files of their own, <code>image</code> is grey FLAIR, and the T1 slices go in as
<code>pre_contrast</code> and <code>post_contrast</code>, either or both.</p>
<p class="hint">All endpoints, with what they take and give. Calls wait in the same queue as the page's
visitors.</p>
{endpoints}
</div>
"""

GRADIO_CLIENT = """
# pip install gradio_client
from gradio_client import Client, handle_file

client = Client("{address}")
mask, outline, probability_map, measurements = client.predict(
    image=handle_file("slice.png"), model="{model}", threshold=0.5, api_name="/segment_slice"
)
print(mask)  # the path of a PNG with 0 and 255
print(measurements)
"""

TRANSFORMERS = """
{setup}
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

source = "{source}"
processor = AutoImageProcessor.from_pretrained(source{options})
model = AutoModelForSemanticSegmentation.from_pretrained(source{options}, dtype=torch.float32).eval()

image = Image.open("slice.png")
with torch.inference_mode():
    outputs = model(**processor(images=image, return_tensors="pt"))
(mask,) = processor.post_process_semantic_segmentation(
    outputs, target_sizes=[(image.height, image.width)], threshold=0.5
)  # (height, width), 0 or 1
"""
FROM_THE_HUB = "import torch"
FROM_A_CLONE = "import torch\n\nimport modeling  # in the folder of this page's repository"

CURL = """
address={address}

# 1. Upload the slice: the answer is its path on the server.
image=$(curl -s -F "files=@slice.png" $address/gradio_api/upload | tr -d '[]"')

# 2. Ask for the outline: the answer is the number of the request.
event=$(curl -s $address/gradio_api/call/v2/segment_slice -H "Content-Type: application/json" -d '{{
  "image": {{"path": "'"$image"'", "meta": {{"_type": "gradio.FileData"}}}},
  "model": "{model}",
  "threshold": 0.5
}}' | cut -d '"' -f 4)

# 3. Wait for the result: mask, outline, probability map and measurements in one line, or what is wrong.
result=$(curl -sN $address/gradio_api/call/segment_slice/$event | grep '^data: ' | tail -n 1)
echo "$result"

# 4. Fetch the mask.
mask=$(echo "$result" | cut -d '"' -f 4)
curl -s -o mask.png "$address/gradio_api/file=$mask"
"""


def code_tab(models: dict[str, str], demo: gr.Blocks) -> None:
    """Fill the tab that is open in the page `demo`; `models` as from `find_models`."""
    gr.HTML(INTRODUCTION, padding=False, elem_classes="prose-column")
    codes = [  # uncoloured: the editor's colours are too pale to read, in the light theme above all
        gr.Code(code, label=name, interactive=False, wrap_lines=True, show_line_numbers=False, elem_id=f"code-{name}")
        for name, code in examples(models).items()
    ]
    gr.HTML(OTHERS.format(endpoints=describe_endpoints(demo)), padding=False)
    demo.load(None, codes, codes, js=AT_THIS_ADDRESS, **PRIVATE)


def describe_endpoints(demo: gr.Blocks) -> str:
    """The documentation of the public endpoints that the page has so far, in HTML."""
    return "".join(
        f"<details><summary><code>/{function.api_name}</code></summary>"
        f"<pre>{html.escape(inspect.getdoc(function.fn) or '')}</pre></details>"
        for function in demo.fns.values()
        if function.api_visibility == "public" and function.api_name
    )


def examples(models: dict[str, str]) -> dict[str, str]:
    """The call of the default model's /segment_slice, by the tool it is made with; the page is at `ADDRESS`."""
    name = default_model(models)
    source, options, setup = models[name], ", trust_remote_code=True", FROM_THE_HUB
    if (folder := Path(source)).is_dir():
        # Where the folder lies outside the repository, its place on this machine is nobody's business.
        folder = folder.resolve()
        source = str(folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder.name)
        options, setup = "", FROM_A_CLONE
    return {
        "gradio_client": GRADIO_CLIENT.format(address=ADDRESS, model=name).strip(),
        "transformers": TRANSFORMERS.format(setup=setup, source=source, options=options).strip(),
        "curl": CURL.format(address=ADDRESS, model=name).strip(),
    }
