"""U-Net with batch normalisation for binary segmentation.

Ronneberger et al. 2015 (arXiv 1505.04597), with padded convolutions and batch normalisation as in Buda et al. 2019
(doi 10.1016/j.compbiomed.2019.05.002).
"""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.utils import can_return_tuple

from .configuration_unet import UNetConfig
from .layers import ConvStack, DecoderBlock, check_pixel_values, init_convolutional_weights
from .losses import segmentation_loss


class UNetEncoder(nn.Module):
    """(B, num_channels, H, W) -> one feature map per level, finest first: (B, hidden_sizes[i], H / 2^i, W / 2^i).

    Sizes are halved rounding up, so that no border pixel is lost and any height and width passes.
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        channels = [config.num_channels, *config.hidden_sizes]
        self.levels = nn.ModuleList(
            ConvStack(channels[level], channels[level + 1], depth) for level, depth in enumerate(config.encoder_depths)
        )
        self.pool = nn.MaxPool2d(kernel_size=2, stride=2, ceil_mode=True)

    def forward(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        feature_maps = [self.levels[0](pixel_values)]
        for level in self.levels[1:]:
            feature_maps.append(level(self.pool(feature_maps[-1])))
        return feature_maps


class UNetDecoder(nn.Module):
    """Feature maps of every level, finest first -> (B, hidden_sizes[0], H, W)."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        sizes = list(config.hidden_sizes)
        self.levels = nn.ModuleList(
            DecoderBlock(sizes[level + 1], sizes[level], sizes[level], config.decoder_depth)
            for level in reversed(range(len(sizes) - 1))
        )

    def forward(self, feature_maps: list[torch.Tensor]) -> torch.Tensor:
        hidden_states = feature_maps[-1]
        for level, skip in zip(self.levels, reversed(feature_maps[:-1]), strict=True):
            hidden_states = level(hidden_states, skip)
        return hidden_states


class UNetForSemanticSegmentation(PreTrainedModel):
    """U-Net that gives one logit per pixel: the log-odds that the pixel belongs to the FLAIR abnormality."""

    config_class = UNetConfig
    base_model_prefix = "unet"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["DecoderBlock"]  # noqa: RUF012

    def __init__(self, config: UNetConfig):
        config.validate_architecture()  # `from_pretrained` sets fields on a configuration that is built
        super().__init__(config)
        self.encoder = UNetEncoder(config)
        self.decoder = UNetDecoder(config)
        self.head = nn.Conv2d(config.hidden_sizes[0], 1, kernel_size=3, padding=1)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        init_convolutional_weights(module)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
    ) -> SemanticSegmenterOutput:
        r"""
        Args:
            pixel_values: (B, num_channels, H, W) float, as `BrainMRIImageProcessor` gives them; H and W at least 32.
            labels: (B, H, W), 0 or 1; with it the output carries `loss`, the one that `config.loss` names.
            output_hidden_states: also return the encoder's feature maps, finest first.

        Returns:
            `SemanticSegmenterOutput` with `logits` (B, 1, H, W), at the input's own size; a tuple with
            `return_dict=False`.

        Raises:
            ValueError: another number of axes or channels, a height or width under 32, or labels that don't fit.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        check_pixel_values(pixel_values, self.config.num_channels)

        feature_maps = self.encoder(pixel_values)
        logits = self.head(self.decoder(feature_maps)) / self.config.temperature

        loss = None if labels is None else segmentation_loss(logits, labels, self.config.loss)
        return SemanticSegmenterOutput(
            loss=loss, logits=logits, hidden_states=tuple(feature_maps) if output_hidden_states else None
        )


__all__ = ["UNetForSemanticSegmentation"]
