"""The models that the page offers: those of the repository, and those that the environment names."""

import os
from pathlib import Path

CHECKPOINTS = Path(__file__).resolve().parents[1] / "checkpoints"
PREFERRED_MODELS = ("transunet-small", "unet-5level")
LFS_POINTER_SIZE = 1024  # bytes; what a clone without Git LFS holds in place of weights is smaller


def with_weights(checkpoints: Path) -> list[Path]:
    """The folders in `checkpoints` that hold weights, sorted."""
    weights = sorted(checkpoints.glob("*/model.safetensors"))
    return [path.parent for path in weights if path.stat().st_size > LFS_POINTER_SIZE]


def find_models() -> dict[str, str]:
    """The models on offer: name -> directory or Hub id, from checkpoints/ and the environment variable MODEL_IDS.

    Raises:
        ValueError: two different models of one name, or an entry that is neither a model's directory nor named as one
            on the Hub.
    """
    from modeling.hub import is_repo_id

    models = {folder.name: str(folder) for folder in with_weights(CHECKPOINTS)}
    for entry in filter(None, map(str.strip, os.environ.get("MODEL_IDS", "").split(","))):
        name, source = entry, entry
        if Path(entry, "config.json").is_file():
            name, source = Path(entry).resolve().name, str(Path(entry).resolve())
        elif Path(entry).parent.is_dir() or not is_repo_id(entry):
            raise ValueError(
                f"MODEL_IDS names {entry!r}, which is neither a directory with a model (config.json, model.safetensors "
                f"and preprocessor_config.json) nor USER/NAME on the Hub."
            )
        if models.setdefault(name, source) != source:
            raise ValueError(f"Two models are called {name!r}: {models[name]} and {source}. Rename one directory.")
    return models


def default_model(models: dict[str, str]) -> str:
    return next((name for name in PREFERRED_MODELS if name in models), next(iter(models)))
