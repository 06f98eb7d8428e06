"""TransUNet for binary segmentation: a convolutional stem, a transformer on its coarsest features, a U-Net decoder.

Chen et al. 2021 (arXiv 2102.04306), section 3; the transformer is that of ViT (Dosovitskiy et al. 2021,
arXiv 2010.11929, section 3.1) without the class token.
"""

import math

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.vit.modeling_vit import ViTAttention, ViTMLP, eager_attention_forward
from transformers.utils import can_return_tuple

from .configuration_transunet import TransUNetConfig
from .layers import ConvNormActivation, DecoderBlock, SamePaddingConv2d, check_pixel_values, init_convolutional_weights
from .losses import segmentation_loss
from .stems import build_stem


def to_grid(tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """(B, rows * columns, C) -> (B, C, rows, columns), a view in the channels-last memory format."""
    return tokens.transpose(1, 2).unflatten(2, grid)


class TransUNetEmbeddings(nn.Module):
    """Feature map (B, C, H, W) -> tokens (B, N, hidden_size) and the (rows, columns) of their grid, row by row.

    Each token is a linear map of `patch_size` x `patch_size` cells; an incomplete patch is filled up with zeros.
    """

    def __init__(self, config: TransUNetConfig):
        super().__init__()
        channels = config.feature_sizes[-1]
        self.scale = math.sqrt(config.hidden_size) if config.scale_embedding else 1.0
        self.projection = SamePaddingConv2d(channels, config.hidden_size, config.patch_size, stride=config.patch_size)
        self.position_embeddings = nn.Parameter(torch.zeros(1, config.hidden_size, *config.position_grid))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, feature_map: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        embeddings = self.projection(feature_map) * self.scale
        grid = tuple(embeddings.shape[-2:])
        embeddings = embeddings + resize_position_embeddings(self.position_embeddings, grid)
        return self.dropout(embeddings.flatten(2).transpose(1, 2)), grid


def resize_position_embeddings(position_embeddings: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Bicubic interpolation of (1, C, rows, columns) to another grid, as timm's for another resolution."""
    # An exported graph serves every size, so it always interpolates; at the same size that changes nothing.
    if not torch.compiler.is_exporting() and tuple(position_embeddings.shape[-2:]) == grid:
        return position_embeddings
    resized = nn.functional.interpolate(position_embeddings.float(), size=grid, mode="bicubic", antialias=True)
    return resized.to(position_embeddings.dtype)


class TransUNetAttention(ViTAttention):
    """Multi-head self-attention: (B, N, hidden_size) -> the same, and the weights (B, heads, N, N) where asked for.

    ViT's, with heads of `config.head_dim` and with the choice at each call whether weights are computed: only then it
    leaves `config._attn_implementation` (scaled-dot-product attention, which has none) for the explicit product.
    """

    def forward(
        self, hidden_states: torch.Tensor, output_attentions: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        batch, length, _ = hidden_states.shape
        query, key, value = (
            projection(hidden_states).view(batch, length, -1, self.head_dim).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        implementation = "eager" if output_attentions else self.config._attn_implementation
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        dropout = self.attention_dropout if self.training else 0.0
        context, weights = attention(self, query, key, value, None, dropout=dropout, scaling=self.scaling)
        return self.o_proj(context.reshape(batch, length, -1)), weights if output_attentions else None


class TransUNetLayer(GradientCheckpointingLayer):
    """Attention and MLP, each on a residual branch: (B, N, hidden_size) -> the same, and the attention weights.

    Layer normalisation stands before the branches (`pre_norm`, ViT) or after the sums (Vaswani et al. 2017,
    arXiv 1706.03762, section 3.1).
    """

    def __init__(self, config: TransUNetConfig):
        super().__init__()
        self.pre_norm = config.pre_norm
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = TransUNetAttention(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = ViTMLP(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, hidden_states: torch.Tensor, output_attentions: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        residual = hidden_states
        if self.pre_norm:
            hidden_states = self.attention_norm(hidden_states)
        hidden_states, weights = self.attention(hidden_states, output_attentions)
        hidden_states = residual + self.dropout(hidden_states)
        if not self.pre_norm:
            hidden_states = self.attention_norm(hidden_states)

        residual = hidden_states
        if self.pre_norm:
            hidden_states = self.mlp_norm(hidden_states)
        hidden_states = residual + self.dropout(self.mlp(hidden_states))
        if not self.pre_norm:
            hidden_states = self.mlp_norm(hidden_states)
        return hidden_states, weights


class TransUNetEncoder(nn.Module):
    """The transformer's layers: (B, N, hidden_size) -> the same, and the attention weights of every layer.

    Also gives the embeddings and every layer's output, the last one before the final normalisation.
    """

    def __init__(self, config: TransUNetConfig):
        super().__init__()
        self.layers = nn.ModuleList(TransUNetLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if config.pre_norm else nn.Identity()

    def forward(
        self, tokens: torch.Tensor, output_attentions: bool = False
    ) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor | None]]:
        hidden_states, attentions = [tokens], []
        for layer in self.layers:
            tokens, weights = layer(tokens, output_attentions)
            hidden_states.append(tokens)
            attentions.append(weights)
        return self.norm(tokens), hidden_states, attentions


class TransUNetDecoder(nn.Module):
    """Token grid (B, hidden_size, h, w), skip connections, coarsest first, and the input -> (B, C, H, W).

    TransUNet's cascaded upsampler. With `head_hidden_size`, the output is at half the input's size.
    """

    def __init__(self, config: TransUNetConfig):
        super().__init__()
        self.projection = nn.Identity()
        if config.projection_size is not None:
            self.projection = ConvNormActivation(
                config.hidden_size,
                config.projection_size,
                config.projection_kernel_size,
                bias=config.decoder_bias,
                activation=nn.ReLU if config.projection_activation else None,
            )
        self.input_skip = None
        if config.input_skip_size is not None:
            self.input_skip = ConvNormActivation(config.num_channels, config.input_skip_size, bias=config.decoder_bias)
        channels = [config.projection_size or config.hidden_size, *config.decoder_hidden_sizes]
        skips = [*config.skip_sizes, config.input_skip_size or 0]
        self.blocks = nn.ModuleList(
            DecoderBlock(
                channels[i],
                skips[i],
                channels[i + 1],
                depth=config.decoder_depth,
                upsampling=config.decoder_upsampling,
                bias=config.decoder_bias,
            )
            for i in range(len(config.decoder_hidden_sizes))
        )

    def forward(
        self, hidden_states: torch.Tensor, skips: list[torch.Tensor], pixel_values: torch.Tensor
    ) -> torch.Tensor:
        hidden_states = self.projection(hidden_states)
        skips = [*skips, None if self.input_skip is None else self.input_skip(pixel_values)]
        for block, skip in zip(self.blocks, skips, strict=False):
            hidden_states = block(hidden_states, skip, size=tuple(pixel_values.shape[-2:]))
        return hidden_states


class TransUNetHead(nn.Sequential):
    """Features -> one logit per pixel; with `head_hidden_size` at twice the height and width."""

    def __init__(self, config: TransUNetConfig):
        channels = config.decoder_hidden_sizes[-1]
        layers = []
        if config.head_hidden_size is not None:
            layers.append(nn.ConvTranspose2d(channels, config.head_hidden_size, kernel_size=2, stride=2))
            channels = config.head_hidden_size
        super().__init__(*layers, nn.Conv2d(channels, 1, kernel_size=3, padding=1))


class TransUNetForSemanticSegmentation(PreTrainedModel):
    """TransUNet that gives one logit per pixel: the log-odds that the pixel belongs to the FLAIR abnormality."""

    config_class = TransUNetConfig
    base_model_prefix = "transunet"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = [  # noqa: RUF012
        "TransUNetEmbeddings",
        "TransUNetLayer",
        "InvertedResidual",
        "BitBottleneckLayer",
        "DecoderBlock",
    ]

    def __init__(self, config: TransUNetConfig):
        config.validate_architecture()  # `from_pretrained` sets fields on a configuration that is built
        super().__init__(config)
        self.stem = build_stem(config.backbone_config)
        self.embeddings = TransUNetEmbeddings(config)
        self.encoder = TransUNetEncoder(config)
        self.decoder = TransUNetDecoder(config)
        self.head = TransUNetHead(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """He for convolutions; normal with `initializer_range` for linear layers; zero position embeddings."""
        if isinstance(module, TransUNetEmbeddings):
            init.zeros_(module.position_embeddings)
        elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d)):
            init_convolutional_weights(module)
        else:
            super()._init_weights(module)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> SemanticSegmenterOutput:
        r"""
        Args:
            pixel_values: (B, num_channels, H, W) float, as `BrainMRIImageProcessor` gives them; H and W at least 32.
            labels: (B, H, W), 0 or 1; with it the output carries `loss`, the one that `config.loss` names.
            output_hidden_states: also return the token grids (B, hidden_size, H / D, W / D), rounded up, with D the
                configuration's `size_divisor`: the embeddings, then every layer's output.
            output_attentions: also return every layer's attention weights (B, heads, N, N); row i holds where token i
                attends, tokens counted row by row over the grid. The logits are the same, the memory is not.

        Returns:
            `SemanticSegmenterOutput` with `logits` (B, 1, H, W), at the input's own size; a tuple with
            `return_dict=False`.

        Raises:
            ValueError: another number of axes or channels, a height or width under 32, or labels that don't fit.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        check_pixel_values(pixel_values, self.config.num_channels)
        height, width = pixel_values.shape[-2:]

        feature_maps = self.stem(pixel_values)
        tokens, grid = self.embeddings(feature_maps[-1])
        encoded, hidden_states, attentions = self.encoder(tokens, output_attentions)
        skips = feature_maps[: len(self.config.skip_sizes)][::-1]  # coarsest first
        decoded = self.decoder(to_grid(encoded, grid), skips, pixel_values)
        logits = self.head(decoded)[..., :height, :width] / self.config.temperature

        loss = None if labels is None else segmentation_loss(logits, labels, self.config.loss)
        return SemanticSegmenterOutput(
            loss=loss,
            logits=logits,
            hidden_states=tuple(to_grid(states, grid) for states in hidden_states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )


__all__ = ["TransUNetForSemanticSegmentation"]
