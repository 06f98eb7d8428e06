"""Every preset at a tiny size: the same classes and composition, a few thousand parameters."""

import torch
from transformers import BitConfig, PreTrainedModel

from modeling import build_model
from modeling.configuration_transunet import ConvStemConfig, EfficientNetLiteConfig

ENCODER = {
    "image_size": 64,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}

TINY = {
    "unet-5level": {"hidden_sizes": [4, 6, 8, 10, 12]},
    "unet-4level": {"hidden_sizes": [4, 6, 8, 10]},
    "transunet-conv": {
        **ENCODER,
        "backbone_config": ConvStemConfig(hidden_sizes=[4, 6, 8]),
        "head_dim": 24,  # as wide as the tokens, as in the preset
        "projection_size": 12,
        "decoder_hidden_sizes": [10, 8, 6],
        "head_hidden_size": 4,
    },
    "transunet-r50-vit-b16": {
        **ENCODER,
        "backbone_config": BitConfig(
            layer_type="bottleneck",
            embedding_size=8,
            depths=[1, 1, 2],
            hidden_sizes=[16, 32, 64],
            num_groups=4,
            global_padding="same",
            embedding_dynamic_padding=True,
        ),
        "head_dim": 12,
        "projection_size": 16,
        "decoder_hidden_sizes": [12, 10, 8, 4],
    },
    "transunet-small": {
        **ENCODER,
        "backbone_config": EfficientNetLiteConfig(
            embedding_size=8, hidden_sizes=[4, 6, 8, 10, 12], expand_ratios=[1, 2, 2, 2, 2]
        ),
        "head_dim": 12,
        "decoder_hidden_sizes": [12, 10, 8, 4],
        "input_skip_size": 4,
    },
}


def tiny_model(preset: str, seed: int = 0, **overrides) -> PreTrainedModel:
    """The preset at a tiny size with weights that depend on `seed` alone, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_model(preset, **{**TINY[preset], **overrides}).eval()


def randomized(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """`model` with norms, biases and position embeddings away from their fresh zeros and ones, as after training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point() and (value.ndim <= 1 or "position" in name):
                noise = torch.rand(value.shape, generator=generator)  # positive: variances stay variances
                value.add_(0.5 * noise)
    return model
