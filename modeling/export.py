"""Store a trained checkpoint in half precision, for shipping; of several, the mean.

    python -m modeling.export runs/unet-5level/best checkpoints/unet-5level
    python -m modeling.export checkpoints/unet-5level runs/fine-tuned/best averaged

The weights take half the space on disk; `from_pretrained` still gives a float32 model, which CPUs compute faster.
Averaging helps checkpoints that were fine-tuned from one another or from the same weights, "model soups" (Wortsman et
al. 2022, arXiv 2203.05482, section 2, the uniform one); of others it gives no model of use.
"""

import json
import math
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoImageProcessor, PreTrainedModel

from .checkpoints import load_complete
from .command_line import command_parser

# Not compared: what the average takes from the first source, and where copies from the Hub have their code.
AS_FIRST = {"temperature": None, "loss": None, "auto_map": None}


def load_average(sources: Sequence[str]) -> PreTrainedModel:
    """The model whose weights and running statistics are the mean of those of `sources`, folders or Hub ids.

    Raises:
        OSError: no checkpoint under one of the names.
        ValueError: models of different configurations, or weights that are damaged or incomplete.
    """
    model, *others = (load_complete(source, dtype=torch.float32) for source in sources)
    weights = model.state_dict()
    for source, other in zip(sources[1:], others, strict=True):
        if other.config.to_diff_dict() | AS_FIRST != model.config.to_diff_dict() | AS_FIRST:
            raise ValueError(
                f"{sources[0]} and {source} have different configurations; only equal ones can be averaged."
            )
        for name, tensor in other.state_dict().items():
            if tensor.is_floating_point():
                weights[name] += tensor
    for tensor in weights.values():
        if tensor.is_floating_point():
            tensor /= len(sources)
    return model


def export_checkpoint(sources: Sequence[str], folder: Path, temperature: float | None = None) -> None:
    """Write the mean of the models `sources` to `folder` in float16, with the first one's configuration and processor.

    Files of the same names are replaced, others (a card, say) stay. `config.json` names float32, the dtype to load.
    A `temperature` goes into the configuration in place of the first one's.

    Raises:
        OSError: no checkpoint under one of the names, folders or Hub ids.
        ValueError: as `load_average`, a temperature that is not positive, or a weight that float16 cannot hold.
    """
    model = load_average(sources)
    if temperature is not None:
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature must be positive, but is {temperature}.")
        model.config.temperature = temperature
    processor = AutoImageProcessor.from_pretrained(sources[0])
    for part in (model.config, processor):  # there is no code beside these weights
        if hasattr(part, "auto_map"):
            del part.auto_map
    limit = torch.finfo(torch.float16).max
    too_large = [
        name
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point() and not (tensor.abs() <= limit).all()
    ]
    if too_large:
        raise ValueError(f"float16 cannot hold {', '.join(too_large)}: values beyond {limit:g} or not finite.")

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as unfinished:
        model.half().save_pretrained(unfinished)
        processor.save_pretrained(unfinished)
        config = Path(unfinished) / "config.json"
        content = json.loads(config.read_text(encoding="utf-8")) | {"dtype": "float32"}
        config.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        folder.mkdir(exist_ok=True)
        files = sorted(Path(unfinished).iterdir())
        for file in files:
            shutil.move(file, folder / file.name)
        for former in folder.glob("model*.safetensors*"):  # shards of other weights
            if former.name not in {file.name for file in files}:
                former.unlink()


def main(argv: list[str] | None = None) -> None:
    parser = command_parser(__doc__, "modeling.export")
    parser.add_argument(
        "sources", nargs="+", metavar="SOURCE", help="folder with a trained checkpoint, or USER/NAME on the Hub"
    )
    parser.add_argument("folder", type=Path, help="where to write it, such as checkpoints/PRESET")
    parser.add_argument(
        "--temperature", type=float, help="to divide the logits by, as `python -m benchmarks.error_analysis` fits it"
    )
    args = parser.parse_args(argv)
    try:
        export_checkpoint(args.sources, args.folder, args.temperature)
    except (OSError, ValueError) as error:
        sys.exit(f"modeling.export: error: {error}")
    size = (args.folder / "model.safetensors").stat().st_size
    print(f"{args.folder}: {size / 2**20:.1f} MiB of weights")


if __name__ == "__main__":
    main()
