"""Publish a checkpoint on the Hub, with the code that loads it.

    python -m modeling.publish checkpoints/unet-5level USER/NAME
    python -m modeling.publish runs/unet-5level/best USER/NAME --private

Uploads the weights as they are stored (safetensors, whole or in shards, of any precision), configuration and image
processor, the source files they need, and the model card (see `modeling.card`). Anyone can then load the model without
this repository, with `trust_remote_code=True`. Publishing again replaces what has changed and uploads nothing else.
"""

import json
import re
import shutil
import sys
import tempfile
from pathlib import Path

from huggingface_hub import ModelCard
from transformers import AutoImageProcessor, PreTrainedConfig
from transformers.dynamic_module_utils import custom_object_save

from .card import CARD, FIGURE, make_card
from .card_text import REPOSITORY
from .checkpoints import load_complete
from .command_line import command_parser
from .hub import HubError, check_destination, upload_folder

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
MARK = "image_processing_brain_mri.py"
USAGE = re.compile(r"^## How to use it\n.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)
NAMED = re.compile(r'(from_pretrained\(|model=)"[^"]*"')
WEIGHTS = ("model*.safetensors", "model.safetensors.index.json")


def publish_model(checkpoint: str | Path, repo_id: str, *, private: bool = False) -> str:
    """Upload a checkpoint's folder as a model, and return the commit's address.

    Raises:
        OSError, ValueError: not a complete checkpoint of this package; nothing is uploaded then.
        HubError: see `modeling.hub.upload_folder`.
    """
    check_destination(repo_id)
    with tempfile.TemporaryDirectory() as folder:
        stage_model(Path(checkpoint), Path(folder), repo_id)
        return upload_folder(
            folder,
            repo_id,
            mark=MARK,
            private=private,
            # Weights in another number of shards, and code that is no longer needed, would be loaded by nobody.
            delete_patterns=["*.py", *WEIGHTS],
            message="Publish the model",
        )


def stage_model(checkpoint: Path, folder: Path, repo_id: str) -> None:
    """Write into `folder` exactly what the model's repository `repo_id` gets.

    Raises:
        OSError, ValueError: not a complete checkpoint of this package.
    """
    whole = checkpoint / "model.safetensors"
    weights = [path for pattern in WEIGHTS for path in sorted(checkpoint.glob(pattern))]
    weights = [whole] if whole.is_file() else weights  # shards beside it are those of other weights
    if not weights:
        raise FileNotFoundError(f"{checkpoint} holds no model.safetensors; give the folder of a saved model.")
    model = load_complete(checkpoint)
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    for path in weights:
        shutil.copyfile(path, folder / path.name)
    settings = {name: json.loads((checkpoint / name).read_text(encoding="utf-8")) for name in (CONFIG, PROCESSOR)}
    for part, auto_class, name in (
        (model.config, "AutoConfig", CONFIG),
        (model, "AutoModelForSemanticSegmentation", CONFIG),
        (processor, "AutoImageProcessor", PROCESSOR),
    ):
        part._auto_class = auto_class  # of this object alone: `register_for_auto_class` would change later saves, too
        custom_object_save(part, folder, config=settings[name])
    for name, content in settings.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    stage_card(checkpoint, folder, repo_id, model.config)


def stage_card(checkpoint: Path, folder: Path, repo_id: str, config: PreTrainedConfig) -> None:
    """The checkpoint's own card, or else one that claims nothing, with the repository's name filled in."""
    path = checkpoint / CARD
    card = ModelCard.load(path) if path.is_file() else make_card(config, repo_id.split("/")[-1])
    text = USAGE.sub(lambda usage: NAMED.sub(rf'\1"{repo_id}"', usage[0]), str(card))  # of a downloaded one, too
    (folder / CARD).write_text(text.replace(REPOSITORY, repo_id), encoding="utf-8")
    if f"({FIGURE})" in card.text and (checkpoint / FIGURE).is_file():
        shutil.copyfile(checkpoint / FIGURE, folder / FIGURE)


def main(argv: list[str] | None = None) -> None:
    parser = command_parser(__doc__, "modeling.publish")
    parser.add_argument("checkpoint", type=Path, help="folder of a saved model")
    parser.add_argument("repo_id", metavar="USER/NAME", help="the model's repository, created where there is none")
    parser.add_argument("--private", action="store_true", help="make a new repository private; refuse a public one")
    args = parser.parse_args(argv)
    try:
        print(publish_model(args.checkpoint, args.repo_id, private=args.private))
    except (OSError, ValueError, HubError) as error:
        sys.exit(f"modeling.publish: error: {error}")


if __name__ == "__main__":
    main()
