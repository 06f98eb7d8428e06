"""Write a checkpoint as an ONNX graph, for programs that have no PyTorch.

    pip install onnx onnxscript onnxruntime
    python -m modeling.onnx_export checkpoints/transunet-small transunet-small.onnx

The graph takes `pixel_values` (batch, channels, height, width) and gives `logits` (batch, 1, height, width), float32,
for any batch and any height and width of at least 32 pixels; multiples of the model's divisor, to which the processor
pads, are what it was trained on. Its metadata tell the preset, the normalisation that the input needs, and the
threshold. Where onnxruntime is installed the graph is run beside the PyTorch model before it is put in place.
"""

import contextlib
import copy
import logging
import sys
import tempfile
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn
from torch.export import Dim
from transformers import AutoImageProcessor, BaseImageProcessor, PreTrainedConfig, PreTrainedModel
from transformers.models.bit.modeling_bit import BitMaxPool2d, WeightStandardizedConv2d

from .checkpoints import load_complete
from .command_line import command_parser
from .inference import fold_batch_norm
from .layers import MINIMUM_SIZE, SamePaddingConv2d, Upsample2x
from .presets import PRESETS

REQUIRED = ("onnx", "onnxscript")
TRACED_SHAPE = (2, 75, 93)  # batch, height, width; sizes that no layer halves evenly, so that nothing is left out
CHECKED_SHAPES = ((1, 256, 256), (2, 131, 93))
TOLERANCE = 1e-3  # of the logits, relative to the largest where that is beyond 1; rounding alone stays well below
THRESHOLD = 0.5
NORMALIZATION = (
    "Channels are pre-contrast T1, FLAIR and post-contrast T1, or FLAIR in all three. Each channel of each slice by "
    "itself: take off the median of its brain pixels, divide by their interquartile range over 1.349 (both with "
    "outliers set aside), clip, and pad at the bottom and on the right with the channel's minimum to multiples of "
    "size_divisor. In a volume, median and interquartile range are averaged with the volume's, which have the weight "
    "volume_share. BrainMRIImageProcessor does it; preprocessor_config has its settings."
)


def export_onnx(
    model: PreTrainedModel, path: str | Path, *, processor: BaseImageProcessor | None = None
) -> float | None:
    """Write `model` to the file `path` as an ONNX graph with float32 weights; a file of that name is replaced.

    The graph maps `pixel_values` (batch, num_channels, height, width) to `logits` (batch, 1, height, width), for every
    batch and every height and width of at least 32. Batch norm is folded into the convolutions. Its metadata hold
    `preset` (or "custom"), `normalization`, `threshold`, `size_divisor`, `intended_use` and, where a `processor` is
    given, `preprocessor_config`. The model itself is not changed.

    Returns:
        The largest absolute difference of ONNX Runtime's logits from the model's own, at `CHECKED_SHAPES`; None where
        onnxruntime is not installed.

    Raises:
        ImportError: onnx or onnxscript is not installed.
        ValueError: not a model of this package.
        OSError: `path` cannot be written.
        RuntimeError: ONNX Runtime cannot compute it, or its logits differ by more than rounding. As after all errors,
            nothing is left behind.
    """
    missing = [name for name in REQUIRED if find_spec(name) is None]
    if missing:
        raise ImportError(f"ONNX export needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    if model.config.model_type not in {config.model_type for config in PRESETS.values()}:
        raise ValueError(f"The model is a {type(model).__name__}, which is none of this package's models.")
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the name of a file, such as {path / 'model.onnx'}.")

    reference = copy.deepcopy(model).float().eval().cpu()
    graph = copy.deepcopy(reference).to(memory_format=torch.contiguous_format)
    fold_batch_norm(graph)
    simplify(graph)
    axes = {0: Dim("batch"), 2: Dim("height", min=MINIMUM_SIZE), 3: Dim("width", min=MINIMUM_SIZE)}
    with _quiet():
        program = torch.onnx.export(
            _LogitsOnly(graph),
            (torch.zeros(TRACED_SHAPE[0], model.config.num_channels, *TRACED_SHAPE[1:]),),
            dynamo=True,
            input_names=["pixel_values"],
            output_names=["logits"],
            dynamic_shapes={"pixel_values": axes},
            verbose=False,
        )
    describe(program.model, model.config, processor)

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as unfinished:
        file = Path(unfinished) / path.name
        program.save(file, external_data=False)
        difference = None if find_spec("onnxruntime") is None else check_onnx(reference, file)
        file.replace(path)
    return difference


def check_onnx(model: PreTrainedModel, path: Path) -> float:
    """The largest absolute difference between the logits of `model` and of the graph at `path`, at `CHECKED_SHAPES`.

    Raises:
        RuntimeError: it is beyond `TOLERANCE`, or ONNX Runtime cannot compute the graph.
    """
    import onnxruntime

    others = "the graph was not kept. Other versions of torch (from 2.10 on), onnxscript or onnxruntime may agree."
    generator = torch.Generator().manual_seed(0)
    channels = model.config.num_channels
    inputs = [torch.randn(batch, channels, *size, generator=generator) for batch, *size in CHECKED_SHAPES]
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        computed = [session.run(["logits"], {"pixel_values": pixel_values.numpy()})[0] for pixel_values in inputs]
    except Exception as error:  # ONNX Runtime's own have no other base
        raise RuntimeError(f"ONNX Runtime cannot compute the graph ({error}); {others}") from error
    largest = 0.0
    for pixel_values, logits in zip(inputs, computed, strict=True):
        with torch.inference_mode():
            expected = model(pixel_values=pixel_values).logits
        difference = (torch.from_numpy(logits) - expected).abs().max().item()
        if not difference <= TOLERANCE * max(1.0, expected.abs().max().item()):
            height, width = pixel_values.shape[-2:]
            raise RuntimeError(
                f"ONNX Runtime's logits differ from PyTorch's by {difference:.2g} at {height}x{width}; {others}"
            )
        largest = max(largest, difference)
    return largest


def describe(graph, config: PreTrainedConfig, processor: BaseImageProcessor | None) -> None:
    """Write the metadata of an `onnx_ir.Model`, plain names for its axes, and nothing of the machine it was made on."""
    import onnx_ir
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    ClearMetadataAndDocStringPass()(graph)  # stack traces, with the paths of files
    graph.producer_name = "lgg-segmentation"
    graph.metadata_props.update(
        {
            "preset": preset_name(config) or "custom",
            "normalization": NORMALIZATION,
            "size_divisor": str(config.size_divisor),
            "threshold": f"{THRESHOLD}",
            "intended_use": "Research only, not a medical device.",
        }
    )
    if processor is not None:
        graph.metadata_props["preprocessor_config"] = processor.to_json_string()
    (logits,) = graph.graph.outputs
    logits.shape = onnx_ir.Shape(["batch", 1, "height", "width"])  # the export cannot see that cropping makes it so


def preset_name(config: PreTrainedConfig) -> str | None:
    """The preset whose architecture a configuration has, whatever its loss and temperature; None for another."""

    def architecture(config: PreTrainedConfig) -> dict:
        of_training = {"loss", "temperature"}
        of_saving = {"architectures", "auto_map", "dtype", "transformers_version", "_name_or_path"}
        return {key: value for key, value in config.to_diff_dict().items() if key not in of_training | of_saving}

    return next((name for name, preset in PRESETS.items() if architecture(preset) == architecture(config)), None)


def simplify(module: nn.Module) -> None:
    """Replace what the exporter would write out at length, in place; the outputs stay the same up to rounding.

    ONNX has "SAME" padding as an attribute: computed from the size, it would be a chain of operations in the graph, and
    sizes that the exporter reasons about for minutes. Standardised weights need computing only once.
    """
    for name, child in list(module.named_children()):
        if isinstance(child, WeightStandardizedConv2d):
            setattr(module, name, _standardized(child))
        elif isinstance(child, SamePaddingConv2d):
            setattr(module, name, _SameConv2d(child))
        elif isinstance(child, BitMaxPool2d):
            setattr(module, name, _SameMaxPool2d(child))
        elif isinstance(child, nn.ReLU6):
            setattr(module, name, _Clamp(0.0, 6.0))
        elif isinstance(child, Upsample2x) and child.mode == "transposed":
            setattr(module, name, _TransposedUpsample2x(child))
        else:
            simplify(child)


def _standardized(convolution: WeightStandardizedConv2d) -> nn.Module:
    """BiT's convolution with its weights standardised once and for all."""
    weight = convolution.weight.detach().flatten(1)
    variance, mean = torch.var_mean(weight, dim=1, correction=0, keepdim=True)
    plain = nn.Conv2d(
        convolution.in_channels,
        convolution.out_channels,
        convolution.kernel_size,
        convolution.stride,
        convolution.padding,
        convolution.dilation,
        convolution.groups,
        bias=convolution.bias is not None,
    )
    plain.bias = convolution.bias
    plain.weight = nn.Parameter(((weight - mean) / (variance + convolution.eps).sqrt()).view_as(convolution.weight))
    return plain if convolution.pad is None else _SameConv2d(plain)


def _same(operator: str, inputs: tuple, channels: int, kernel_size: tuple, stride: tuple, **attributes) -> torch.Tensor:
    """The ONNX operator with TensorFlow's "SAME" padding: (B, C, H, W) -> (B, channels, H / stride, W / stride)."""
    batch, _, height, width = inputs[0].shape
    return torch.onnx.ops.symbolic(
        operator,
        inputs,
        {"auto_pad": "SAME_UPPER", "kernel_shape": list(kernel_size), "strides": list(stride), **attributes},
        dtype=inputs[0].dtype,
        # Rounded up, in the form that simplifies when such layers follow one another.
        shape=(batch, channels, (height - 1) // stride[0] + 1, (width - 1) // stride[1] + 1),
    )


class _SameConv2d(nn.Module):
    def __init__(self, convolution: nn.Conv2d):
        super().__init__()
        self.convolution = convolution

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        convolution = self.convolution
        inputs = [hidden_states, convolution.weight, *([] if convolution.bias is None else [convolution.bias])]
        kernel_size, stride = convolution.kernel_size, convolution.stride
        return _same("Conv", tuple(inputs), convolution.out_channels, kernel_size, stride, group=convolution.groups)


class _SameMaxPool2d(nn.Module):
    """BiT pads with zeros and ONNX with nothing, which is the same maximum where a ReLU came before."""

    def __init__(self, pool: BitMaxPool2d):
        super().__init__()
        self.kernel_size, self.stride = pool.kernel_size, pool.stride

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return _same("MaxPool", (hidden_states,), hidden_states.shape[1], self.kernel_size, self.stride)


class _TransposedUpsample2x(nn.Module):
    """Crops by a negative padding, of which the exporter knows the size; of a slice it knows only a minimum of two."""

    def __init__(self, upsample: Upsample2x):
        super().__init__()
        self.projection = upsample.projection

    def forward(self, hidden_states: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        hidden_states = self.projection(hidden_states)
        height, width = hidden_states.shape[-2:]
        return nn.functional.pad(hidden_states, (0, size[1] - width, 0, size[0] - height))


class _Clamp(nn.Module):
    def __init__(self, low: float, high: float):
        super().__init__()
        self.low, self.high = low, high

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states.clamp(self.low, self.high)


class _LogitsOnly(nn.Module):
    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=pixel_values).logits


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on torchvision and on its own use of torch."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def main(argv: list[str] | None = None) -> None:
    parser = command_parser(__doc__, "modeling.onnx_export")
    parser.add_argument("checkpoint", help="folder of a saved model, or USER/NAME on the Hub")
    parser.add_argument("output", type=Path, metavar="OUTPUT.onnx", help="the file to write, replaced where it exists")
    args = parser.parse_args(argv)
    try:
        model = load_complete(args.checkpoint)
        processor = AutoImageProcessor.from_pretrained(args.checkpoint)
        difference = export_onnx(model, args.output, processor=processor)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        sys.exit(f"modeling.onnx_export: error: {error}")
    print(f"{args.output}: {args.output.stat().st_size / 2**20:.1f} MiB")
    if difference is None:
        print("Not checked against PyTorch: that needs onnxruntime (pip install onnxruntime).")
    else:
        sizes = " and ".join(f"{batch}x{height}x{width}" for batch, height, width in CHECKED_SHAPES)
        print(f"Largest difference of the logits from PyTorch's, at {sizes}: {difference:.1e}")


if __name__ == "__main__":
    main()
