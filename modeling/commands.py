"""What the commands that predict share: options, and checkpoints by name."""

import argparse

from transformers import BaseImageProcessor, PreTrainedModel

from .command_line import whole_number
from .inference import load_model
from .onnx_inference import OnnxModel, load_onnx_model
from .views import VIEWS


def add_inference_arguments(parser: argparse.ArgumentParser) -> None:
    """`--engine`, `--threshold`, `--batch_size` and `--views`."""
    parser.add_argument(
        "--engine",
        choices=("torch", "onnxruntime"),
        default="torch",
        help="what computes the network; onnxruntime: faster, on the CPU alone",
    )
    parser.add_argument("--threshold", type=float, default=0.5, help="probability from which a voxel counts as lesion")
    parser.add_argument(
        "--batch_size", type=whole_number(1), default=1, metavar="N", help="slices computed in one forward pass"
    )
    parser.add_argument(
        "--views",
        type=whole_number(1, len(VIEWS)),
        default=1,
        metavar="N",
        help="average suspect slices over so many views, mirrored and turned, 1 to "
        f"{len(VIEWS)}; where one alone is higher, it stays",
    )


def load_checkpoint(name_or_path: str, engine: str = "torch") -> tuple[PreTrainedModel | OnnxModel, BaseImageProcessor]:
    """The model and processor, with all errors as a `ValueError` that says what a checkpoint is or the engine lacks."""
    try:
        return load_onnx_model(name_or_path) if engine == "onnxruntime" else load_model(name_or_path)
    except (ImportError, RuntimeError) as error:
        raise ValueError(f"The checkpoint {name_or_path!r} cannot run with --engine {engine}. {error}") from error
    except (OSError, ValueError) as error:
        raise ValueError(
            f"The checkpoint {name_or_path!r} cannot be loaded; it must be a folder with config.json, "
            f"model.safetensors and preprocessor_config.json, or USER/NAME on the Hub. {error}"
        ) from error
