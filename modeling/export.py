"""Store a trained checkpoint in half precision, for shipping.

    python -m modeling.export runs/unet-5level/best checkpoints/unet-5level

The weights take half the space on disk; `from_pretrained` still gives a float32 model, which CPUs compute faster.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation


def export_checkpoint(source: str, folder: Path) -> None:
    """Write the model of `source`, a folder or Hub id, to `folder` in float16, with its configuration and processor.

    Files of the same names are replaced, others (a card, say) stay. `config.json` names float32, the dtype to load.

    Raises:
        OSError: no checkpoint under that name.
        ValueError: a weight that float16 cannot hold.
    """
    model = AutoModelForSemanticSegmentation.from_pretrained(source, dtype=torch.float32, use_safetensors=True)
    processor = AutoImageProcessor.from_pretrained(source)
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
        config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "float32"}, indent=2) + "\n")
        folder.mkdir(exist_ok=True)
        for file in sorted(Path(unfinished).iterdir()):
            shutil.move(file, folder / file.name)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="folder with a trained checkpoint, or USER/NAME on the Hub")
    parser.add_argument("folder", type=Path, help="where to write it, such as checkpoints/PRESET")
    args = parser.parse_args(argv)
    try:
        export_checkpoint(args.source, args.folder)
    except (OSError, ValueError) as error:
        sys.exit(f"modeling.export: error: {error}")
    size = (args.folder / "model.safetensors").stat().st_size
    print(f"{args.folder}: {size / 2**20:.1f} MiB of weights")


if __name__ == "__main__":
    main()
