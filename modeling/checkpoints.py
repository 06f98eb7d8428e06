"""Saved models -> models and configurations that are whole, or a sentence on what is wrong with them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForSemanticSegmentation, PreTrainedConfig, PreTrainedModel


def load_complete(name_or_path: str | Path, **options) -> PreTrainedModel:
    """A checkpoint's model, all of whose weights were there; `options` go to `from_pretrained`.

    Raises:
        OSError: no checkpoint under that name.
        ValueError: its weights are damaged, missing or left over, its config.json is not valid, or it is of another
            kind.
    """
    # transformers would say that it is no valid id of the Hub.
    if str(name_or_path).startswith((".", "/", "~")) and not Path(name_or_path).is_dir():
        raise FileNotFoundError(f"There is no folder '{name_or_path}'; a checkpoint on the Hub is named USER/NAME.")
    try:
        with valid_config(name_or_path):
            model, report = AutoModelForSemanticSegmentation.from_pretrained(
                name_or_path, use_safetensors=True, output_loading_info=True, **options
            )
    except SafetensorError as error:
        raise ValueError(
            f"The weights in {name_or_path} are damaged, cut off, or a pointer of Git LFS ({error}). "
            "Fetch them again, a clone's with `git lfs pull`."
        ) from error
    wrong = {kind: sorted(map(str, names)) for kind, names in report.items() if names}
    if wrong:
        described = "; ".join(f"{kind.replace('_', ' ')}: {', '.join(names[:3])}" for kind, names in wrong.items())
        raise ValueError(
            f"The weights in {name_or_path} do not fit its config.json: {described}. Save the model again."
        )
    return model


def read_config(name_or_path: str | Path) -> PreTrainedConfig:
    """A checkpoint's configuration.

    Raises:
        OSError: no checkpoint under that name.
        ValueError: its config.json is not valid, or of a kind that transformers does not know.
    """
    with valid_config(name_or_path):
        return AutoConfig.from_pretrained(name_or_path)


@contextmanager
def valid_config(name_or_path: str | Path) -> Iterator[None]:
    try:
        yield
    except StrictDataclassError as error:
        raise ValueError(f"The config.json of {name_or_path} is not valid. {' '.join(str(error).split())}") from error
