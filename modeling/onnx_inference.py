"""A model that ONNX Runtime computes on the CPU, in the place of the PyTorch model it comes from.

`load_onnx_model` gives it. The graph is exported once, which takes a while, and then kept in
`graph_folder`, which may be deleted at any time.
"""

import hashlib
import logging
import threading
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import transformers
from huggingface_hub import constants
from huggingface_hub.utils import WeakFileLock
from transformers import BaseImageProcessor, PreTrainedModel
from transformers.modeling_outputs import SemanticSegmenterOutput

from .inference import load_model
from .onnx_export import REQUIRED, export_onnx
from .predictions import model_fingerprint

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

SOURCES = ("inference.py", "layers.py", "modeling_*.py", "onnx_export.py", "stems.py")  # whose text shapes the graph

logger = logging.getLogger(__name__)


class OnnxModel:
    """What inference uses of a `PreTrainedModel`, computed by ONNX Runtime on the CPU.

    It has the model's `config` and `state_dict()`, so that both have the same fingerprint, and is always in evaluation
    mode, in float32 and on the CPU. Several threads may call it at the same time; each computes with as many threads of
    ONNX Runtime as it has of PyTorch's (`torch.get_num_threads()`).

    Args:
        model: one of this package's models; its batch norm may be folded. It is not changed.

    Raises:
        ImportError: onnxruntime is not installed or, where the graph has yet to be exported, onnx or onnxscript.
        RuntimeError: the graph differs from the model by more than rounding, or cannot be written.
        ValueError: not a model of this package.
    """

    device = torch.device("cpu")
    dtype = torch.float32
    training = False

    def __init__(self, model: PreTrainedModel):
        self.config = model.config
        self.path = graph_folder() / f"{graph_fingerprint(model)}.onnx"
        self._model = model
        self._sessions: dict[int, InferenceSession] = {}  # by number of threads
        self._lock = threading.Lock()
        needed = ("onnxruntime",) if self.path.exists() else (*REQUIRED, "onnxruntime")
        if missing := [name for name in needed if find_spec(name) is None]:
            raise ImportError(
                f"Inference in ONNX Runtime needs {' and '.join(missing)}: pip install {' '.join(missing)}"
            )
        if not self.path.exists():
            keep_graph(model, self.path)

    def __call__(self, pixel_values: torch.Tensor) -> SemanticSegmenterOutput:
        """`logits` (B, 1, H, W) float32 of normalised slices (B, 3, H, W) float32; H and W are at least 32."""
        (logits,) = self._session().run(["logits"], {"pixel_values": pixel_values.contiguous().numpy()})
        return SemanticSegmenterOutput(logits=torch.from_numpy(logits))

    def eval(self) -> "OnnxModel":
        return self.train(False)

    def train(self, mode: bool = True) -> "OnnxModel":
        """As a PyTorch model has it, but a graph has no training mode.

        Raises:
            ValueError: `mode` is true.
        """
        if mode:
            raise ValueError("A model in ONNX Runtime cannot be trained; load it with engine='torch'.")
        return self

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The weights of the PyTorch model."""
        return self._model.state_dict()

    def _session(self) -> "InferenceSession":
        import onnxruntime

        threads = torch.get_num_threads()
        with self._lock:  # threads that come at the same time share a session
            if threads not in self._sessions:
                options = onnxruntime.SessionOptions()
                options.intra_op_num_threads = threads
                start = partial(onnxruntime.InferenceSession, self.path, options, providers=["CPUExecutionProvider"])
                try:
                    self._sessions[threads] = start()
                except Exception as error:  # of a class of its own for each way in which a file can be damaged
                    logger.warning("The ONNX graph %s cannot be read (%s); it is made again.", self.path, error)
                    self.path.unlink(missing_ok=True)
                    keep_graph(self._model, self.path)
                    self._sessions[threads] = start()
            return self._sessions[threads]


def load_onnx_model(name_or_path: str) -> tuple[OnnxModel, BaseImageProcessor]:
    """`inference.load_model` for ONNX Runtime: all functions of this package that predict take its model.

    Probabilities are the same up to rounding. The first time for a checkpoint exports a graph, which takes a while.

    Raises:
        OSError: no checkpoint under that name.
        ImportError, RuntimeError, ValueError: as `OnnxModel`.
    """
    model, processor = load_model(name_or_path)
    return OnnxModel(model), processor


def graph_folder() -> Path:
    """Where graphs are kept, for all processes of this user."""
    return Path(constants.HF_HOME) / "lgg-onnx"


def graph_fingerprint(model: PreTrainedModel) -> str:
    """SHA-256 of all that a model's graph depends on, as 64 hexadecimal digits.

    That is its configuration and weights, the versions of transformers and PyTorch, and the code of this package that
    makes the graph.
    """
    digest = hashlib.sha256()
    for part in (transformers.__version__, model_fingerprint(model), torch.__version__):
        digest.update(f"{part}\n".encode())
    for pattern in SOURCES:
        for source in sorted(Path(__file__).parent.glob(pattern)):
            digest.update(source.read_bytes())
    return digest.hexdigest()


def keep_graph(model: PreTrainedModel, path: Path) -> None:
    """Export `model` to `path`, unless another process is just doing it; then wait for that.

    Raises:
        RuntimeError: the graph differs from the model by more than rounding, or cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(path.with_suffix(".lock")):
            if not path.exists():
                logger.info("Exporting an ONNX graph to %s; it is kept for the next time.", path)
                export_onnx(model, path)
    except OSError as error:
        raise RuntimeError(
            f"The ONNX graph cannot be kept in {path.parent}: {error}. Set HF_HOME to a folder that can be written."
        ) from error
