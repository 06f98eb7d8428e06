"""Convolutional stems of TransUNet.

A stem takes (B, num_channels, H, W) and gives a list of feature maps, finest first: (B, C_i, H / 2^(i+1), W / 2^(i+1)),
rounded up, with the channels that `TransUNetConfig.feature_sizes` names.
"""

import torch
from torch import nn
from transformers import BitBackbone, BitConfig, PreTrainedConfig

from .configuration_transunet import ConvStemConfig, EfficientNetLiteConfig
from .layers import ConvNormActivation


class ConvStem(nn.Module):
    """Stages of one 3x3 convolution and 2x2 max pooling; the pooled maps are the features."""

    def __init__(self, config: ConvStemConfig):
        super().__init__()
        channels = [config.num_channels, *config.hidden_sizes]
        self.stages = nn.ModuleList(
            ConvNormActivation(channels[i], channels[i + 1]) for i in range(len(config.hidden_sizes))
        )
        self.pool = nn.MaxPool2d(kernel_size=2, stride=2, ceil_mode=True)

    def forward(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        feature_maps = []
        for stage in self.stages:
            pixel_values = self.pool(stage(pixel_values))
            feature_maps.append(pixel_values)
        return feature_maps


class InvertedResidual(nn.Module):
    """Expand, filter depthwise, project (Sandler et al. 2018, arXiv 1801.04381, section 3.3).

    (B, in_channels, H, W) -> (B, out_channels, H / stride, W / stride), rounded up; with a residual connection where
    input and output have the same shape. The published batch norm momentum (0.01) is left at PyTorch's 0.1: a short
    fine-tuning on other intensities than ImageNet's has no thousands of steps for the statistics to follow.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int, expand_ratio: int, eps: float
    ):
        super().__init__()
        hidden = in_channels * expand_ratio
        common = {"bias": False, "eps": eps}
        self.expand = (
            nn.Identity()
            if expand_ratio == 1
            else ConvNormActivation(in_channels, hidden, kernel_size=1, activation=nn.ReLU6, **common)
        )
        self.depthwise = ConvNormActivation(
            hidden, hidden, kernel_size, stride=stride, groups=hidden, activation=nn.ReLU6, **common
        )
        self.project = ConvNormActivation(hidden, out_channels, kernel_size=1, activation=None, **common)
        self.has_residual = stride == 1 and in_channels == out_channels

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        output = self.project(self.depthwise(self.expand(hidden_states)))
        return hidden_states + output if self.has_residual else output


class EfficientNetLiteStem(nn.Module):
    """EfficientNet-Lite without its head; see `EfficientNetLiteConfig` for the sources.

    transformers' EfficientNet always has squeeze-and-excitation, and its MobileNetV2 only 3x3 kernels.
    """

    def __init__(self, config: EfficientNetLiteConfig):
        super().__init__()
        self.embedder = ConvNormActivation(
            config.num_channels,
            config.embedding_size,
            stride=2,
            bias=False,
            activation=nn.ReLU6,
            eps=config.batch_norm_eps,
        )
        self.stages = nn.ModuleList()
        channels = config.embedding_size
        for size, depth, kernel_size, stride, expand_ratio in zip(
            config.hidden_sizes, config.depths, config.kernel_sizes, config.strides, config.expand_ratios, strict=True
        ):
            blocks = []
            for block in range(depth):
                first_stride = stride if block == 0 else 1
                blocks.append(
                    InvertedResidual(channels, size, kernel_size, first_stride, expand_ratio, config.batch_norm_eps)
                )
                channels = size
            self.stages.append(nn.Sequential(*blocks))
        self.strides = list(config.strides)

    def forward(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        feature_maps = [self.embedder(pixel_values)]
        for stage, stride in zip(self.stages, self.strides, strict=True):
            output = stage(feature_maps[-1])
            feature_maps = [*(feature_maps if stride == 2 else feature_maps[:-1]), output]
        return feature_maps


class BitStem(nn.Module):
    """The ResNet of TransUNet (Chen et al. 2021, arXiv 2102.04306): weight-standardised convolutions, group norm.

    `transformers.BitBackbone`, whose own `forward` does not give the root's output before its pooling, the skip
    connection at half the input's size.
    """

    def __init__(self, config: BitConfig):
        super().__init__()
        self.backbone = BitBackbone(config)

    def forward(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        embedder, encoder = self.backbone.bit.embedder, self.backbone.bit.encoder
        root = embedder.norm(embedder.convolution(pixel_values))
        stages = encoder(embedder.pooler(root), output_hidden_states=True).hidden_states[1:]
        return [root, *stages]


# By name, not by class: code loaded from the Hub may exist twice in one process.
STEMS: dict[str, type[nn.Module]] = {
    ConvStemConfig.model_type: ConvStem,
    EfficientNetLiteConfig.model_type: EfficientNetLiteStem,
    BitConfig.model_type: BitStem,
}


def build_stem(config: PreTrainedConfig) -> nn.Module:
    """The stem that `config` describes: one whose `model_type` is a key of `STEMS`."""
    return STEMS[config.model_type](config)
