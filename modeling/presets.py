"""Preset name -> configuration: the only place where numbers meet classes."""

from copy import deepcopy

from transformers import AutoModelForSemanticSegmentation, BitConfig, PreTrainedConfig, PreTrainedModel

from .configuration_transunet import ConvStemConfig, EfficientNetLiteConfig, TransUNetConfig
from .configuration_unet import UNetConfig

PRESETS: dict[str, PreTrainedConfig] = {
    # Two convolutions at each of five levels: 7,767,201 trainable parameters.
    "unet-5level": UNetConfig(hidden_sizes=[32, 64, 128, 256, 512], encoder_depths=[2, 2, 2, 2, 2]),
    # Wider and shallower, three convolutions in the deep levels: 10,655,809 trainable parameters.
    "unet-4level": UNetConfig(hidden_sizes=[64, 128, 256, 512], encoder_depths=[2, 2, 3, 3]),
    # A plain convolutional stem and four wide post-norm layers: 98,474,177 trainable parameters at 256x256.
    "transunet-conv": TransUNetConfig(
        backbone_config=ConvStemConfig(hidden_sizes=[64, 128, 256]),
        patch_size=2,
        scale_embedding=True,
        hidden_size=768,
        num_hidden_layers=4,
        num_attention_heads=8,
        head_dim=768,
        intermediate_size=3072,
        hidden_act="relu",
        pre_norm=False,
        layer_norm_eps=1e-5,
        projection_size=512,
        projection_kernel_size=1,
        projection_activation=False,
        decoder_hidden_sizes=[256, 128, 64],
        decoder_depth=1,
        decoder_upsampling="transposed",
        decoder_bias=True,
        input_skip_size=None,
        head_hidden_size=32,
    ),
    # The paper's R50-ViT-B/16 with the cascaded upsampler: 105,322,001 parameters at 256x256.
    "transunet-r50-vit-b16": TransUNetConfig(
        backbone_config=BitConfig(
            layer_type="bottleneck",
            depths=[3, 4, 9],
            hidden_sizes=[256, 512, 1024],
            global_padding="same",
            embedding_dynamic_padding=True,
        ),
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        head_dim=64,
        intermediate_size=3072,
        projection_size=512,
        decoder_hidden_sizes=[256, 128, 64, 16],
        input_skip_size=None,
    ),
    # EfficientNet-Lite0 up to stride 16 and four narrow pre-norm layers, for two CPU cores.
    "transunet-small": TransUNetConfig(
        backbone_config=EfficientNetLiteConfig(),
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=8,
        head_dim=32,
        intermediate_size=1024,
        decoder_hidden_sizes=[128, 64, 32, 16],
        input_skip_size=16,
    ),
}


def preset_config(name: str, **overrides) -> PreTrainedConfig:
    """A copy of the preset's configuration, with `overrides` set on it.

    Raises:
        ValueError: an unknown preset, or a field that its configuration does not have.
        StrictDataclassError: an override that the configuration rejects.
    """
    if name not in PRESETS:
        raise ValueError(f"Unknown preset {name!r}; choose one of {', '.join(PRESETS)}.")
    config = deepcopy(PRESETS[name])
    fields = config.to_dict()
    if unknown := sorted(overrides.keys() - fields.keys()):
        raise ValueError(f"{type(config).__name__} has no {', '.join(unknown)}; it has {', '.join(fields)}.")
    return type(config)(**fields | overrides) if overrides else config


def build_model(name: str, **overrides) -> PreTrainedModel:
    """The preset's model with fresh weights; `overrides` as in `preset_config`."""
    return AutoModelForSemanticSegmentation.from_config(preset_config(name, **overrides))
