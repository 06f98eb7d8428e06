"""Configuration of TransUNet and of its convolutional stems."""

import math

from huggingface_hub.dataclasses import strict
from transformers import BitConfig, PreTrainedConfig
from transformers.activations import ACT2FN

from .losses import check_loss_name


@strict
class ConvStemConfig(PreTrainedConfig):
    r"""Plain convolutional stem: each stage is a 3x3 convolution, batch norm and ReLU, then 2x2 max pooling.

    Args:
        num_channels (`int`, defaults to 3): channels of the input.
        hidden_sizes (`list[int]`, defaults to `[64, 128, 256]`): channels of each stage, finest first.
    """

    model_type = "lgg_conv_stem"
    base_config_key = "backbone_config"

    num_channels: int = 3
    hidden_sizes: list[int] | tuple[int, ...] = (64, 128, 256)

    @property
    def feature_sizes(self) -> list[int]:
        """Channels of the feature maps, at 1/2, 1/4, 1/8, ... of the input's size."""
        return list(self.hidden_sizes)

    def validate_architecture(self):
        if not self.hidden_sizes or min(self.num_channels, *self.hidden_sizes) < 1:
            raise ValueError("num_channels and hidden_sizes must be positive, and there must be at least one stage.")


@strict
class EfficientNetLiteConfig(PreTrainedConfig):
    r"""EfficientNet-Lite stem (Tan and Le 2019, arXiv 1905.11946, table 1, without squeeze-and-excitation and with
    ReLU6: R. Liu, "Higher accuracy on vision models with EfficientNet-Lite", TensorFlow blog, 2020).

    The defaults are EfficientNet-Lite0 up to stride 16: its first eleven blocks.

    Args:
        num_channels (`int`, defaults to 3): channels of the input.
        embedding_size (`int`, defaults to 32): channels of the first convolution, 3x3 with stride 2.
        hidden_sizes (`list[int]`, defaults to `[16, 24, 40, 80, 112]`): channels of each stage, finest first.
        depths (`list[int]`, defaults to `[1, 2, 2, 3, 3]`): inverted residual blocks of each stage.
        kernel_sizes (`list[int]`, defaults to `[3, 3, 5, 3, 5]`): of each stage's depthwise convolutions.
        strides (`list[int]`, defaults to `[1, 2, 2, 2, 1]`): of each stage's first block, 1 or 2.
        expand_ratios (`list[int]`, defaults to `[1, 6, 6, 6, 6]`): channels inside a block per channel of its input.
        batch_norm_eps (`float`, defaults to 1e-3): added to the variance by batch normalisation.
    """

    model_type = "lgg_efficientnet_lite"
    base_config_key = "backbone_config"

    num_channels: int = 3
    embedding_size: int = 32
    hidden_sizes: list[int] | tuple[int, ...] = (16, 24, 40, 80, 112)
    depths: list[int] | tuple[int, ...] = (1, 2, 2, 3, 3)
    kernel_sizes: list[int] | tuple[int, ...] = (3, 3, 5, 3, 5)
    strides: list[int] | tuple[int, ...] = (1, 2, 2, 2, 1)
    expand_ratios: list[int] | tuple[int, ...] = (1, 6, 6, 6, 6)
    batch_norm_eps: float = 1e-3

    @property
    def feature_sizes(self) -> list[int]:
        """Channels of the feature maps, at 1/2, 1/4, 1/8, ... of the input's size: of each one's last stage."""
        sizes = [self.embedding_size]
        for size, stride in zip(self.hidden_sizes, self.strides, strict=True):
            sizes = [*(sizes if stride == 2 else sizes[:-1]), size]
        return sizes

    def validate_architecture(self):
        per_stage = (self.hidden_sizes, self.depths, self.kernel_sizes, self.strides, self.expand_ratios)
        if not self.hidden_sizes or len({len(values) for values in per_stage}) > 1:
            raise ValueError(
                "hidden_sizes, depths, kernel_sizes, strides and expand_ratios need one entry per stage, but have "
                f"{', '.join(str(len(values)) for values in per_stage)}."
            )
        if min(self.num_channels, self.embedding_size, *(min(values) for values in per_stage)) < 1:
            raise ValueError("Channels, depths, kernel sizes, strides and expand ratios must be positive.")
        if not set(self.strides) <= {1, 2}:
            raise ValueError(f"strides must be 1 or 2, but are {list(self.strides)}.")
        if not all(size % 2 for size in self.kernel_sizes):
            raise ValueError(f"kernel_sizes must be odd, but are {list(self.kernel_sizes)}.")


STEM_CONFIGS = {config.model_type: config for config in (ConvStemConfig, EfficientNetLiteConfig, BitConfig)}


@strict
class TransUNetConfig(PreTrainedConfig):
    r"""Configuration of a [`TransUNetForSemanticSegmentation`]. The defaults are the preset `transunet-small`.

    Args:
        backbone_config (`dict` or `PreTrainedConfig`): the convolutional stem, told apart by `model_type`:
            `lgg_efficientnet_lite` ([`EfficientNetLiteConfig`], the default), `lgg_conv_stem` ([`ConvStemConfig`]) or
            `bit` (`transformers.BitConfig` with `layer_type="bottleneck"`, `global_padding="same"` and
            `embedding_dynamic_padding=True`).
        image_size (`int` or `list[int]`, defaults to 256): height and width in pixels for which there is one position
            embedding per token; at other sizes they are interpolated.
        patch_size (`int`, defaults to 1): cells of the stem's last feature map along each side of a token, 1 or 2.
        scale_embedding (`bool`, defaults to `False`): multiply the patch embeddings by the square root of
            `hidden_size` before the position embeddings are added.
        hidden_size (`int`, defaults to 256): width of the transformer.
        num_hidden_layers (`int`, defaults to 4): its layers; with 0 the tokens pass as they are embedded.
        num_attention_heads (`int`, defaults to 8): its attention heads.
        head_dim (`int`, defaults to 32): width of each head.
        intermediate_size (`int`, defaults to 1024): width inside its MLPs.
        hidden_act (`str`, defaults to `"gelu"`): activation of its MLPs.
        pre_norm (`bool`, defaults to `True`): layer normalisation before attention and MLP, and once more after the
            last layer; otherwise after each residual sum.
        qkv_bias (`bool`, defaults to `True`): biases of the query, key and value projections.
        layer_norm_eps (`float`, defaults to 1e-6): added to the variance by layer normalisation.
        hidden_dropout_prob (`float`, defaults to 0.1): dropout of the embeddings and of each residual branch.
        attention_probs_dropout_prob (`float`, defaults to 0): dropout of the attention weights.
        initializer_range (`float`, defaults to 0.02): standard deviation of fresh linear layers.
        projection_size (`int`, *optional*): channels to which a convolution and batch norm bring the tokens before
            the decoder; without it the decoder takes them as they are.
        projection_kernel_size (`int`, defaults to 3): of that convolution, odd.
        projection_activation (`bool`, defaults to `True`): whether a ReLU follows.
        decoder_hidden_sizes (`list[int]`, defaults to `[128, 64, 32, 16]`): channels of the decoder's blocks, coarsest
            first; each doubles the resolution.
        decoder_depth (`int`, defaults to 2): 3x3 convolutions of each block.
        decoder_upsampling (`str`, defaults to `"bilinear"`): `bilinear` or `transposed`.
        decoder_bias (`bool`, defaults to `False`): biases of the decoder's convolutions.
        input_skip_size (`int`, *optional*, defaults to 16): channels of a 3x3 convolution of the input that is the
            last block's skip connection; without it that block has none.
        head_hidden_size (`int`, *optional*): channels of a 2x2 transposed convolution with which the head doubles the
            resolution; without it the last decoder block reaches the input's own.
        loss (`str`, defaults to `"dice_bce"`): `dice_bce`, `dice`, `bce` or `focal_tversky`.
        temperature (`float`, defaults to 1): what the head's output is divided by to give the logits. Fitted to
            patients after training, it makes probabilities agree better with how often a pixel is lesion, and moves
            none across 0.5 (Guo et al. 2017, arXiv 1706.04599, section 4.2).

    Raises:
        ValueError: a `dict` whose `model_type` is none of the stems'.
        StrictDataclassError: a wrong type, a stem of another class or one that rounds sizes down, values that do not
            fit each other, or an unknown loss.
    """

    model_type = "lgg_transunet"
    sub_configs = {"backbone_config": PreTrainedConfig}  # noqa: RUF012 (transformers reads it from the class)

    backbone_config: dict | PreTrainedConfig | None = None
    image_size: int | list[int] | tuple[int, ...] = 256
    patch_size: int = 1
    scale_embedding: bool = False
    hidden_size: int = 256
    num_hidden_layers: int = 4
    num_attention_heads: int = 8
    head_dim: int = 32
    intermediate_size: int = 1024
    hidden_act: str = "gelu"
    pre_norm: bool = True
    qkv_bias: bool = True
    layer_norm_eps: float = 1e-6
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.0
    initializer_range: float = 0.02
    projection_size: int | None = None
    projection_kernel_size: int = 3
    projection_activation: bool = True
    decoder_hidden_sizes: list[int] | tuple[int, ...] = (128, 64, 32, 16)
    decoder_depth: int = 2
    decoder_upsampling: str = "bilinear"
    decoder_bias: bool = False
    input_skip_size: int | None = 16
    head_hidden_size: int | None = None
    loss: str = "dice_bce"
    temperature: float | int = 1.0

    def __post_init__(self, **kwargs):
        if self.backbone_config is None:
            self.backbone_config = EfficientNetLiteConfig()
        elif isinstance(self.backbone_config, dict):
            model_type = self.backbone_config.get("model_type")
            if model_type not in STEM_CONFIGS:
                raise ValueError(
                    f"backbone_config has model_type {model_type!r}; choose one of {', '.join(STEM_CONFIGS)}."
                )
            self.backbone_config = STEM_CONFIGS[model_type].from_dict(self.backbone_config)
        # One logit, two classes: the label map, not the logits, is what `id2label` names.
        if self.id2label is None:
            self.id2label = {0: "background", 1: "FLAIR abnormality"}
            self.label2id = {"background": 0, "FLAIR abnormality": 1}
        super().__post_init__(**kwargs)

    def to_diff_dict(self) -> dict:
        """As the library's, which would write the stem's configuration with all of its defaults."""
        backbone = self.backbone_config.to_diff_dict()
        shared = ("dtype", "transformers_version")
        return super().to_diff_dict() | {
            "backbone_config": {key: value for key, value in backbone.items() if key not in shared}
        }

    @property
    def num_channels(self) -> int:
        """Channels of the input."""
        return self.backbone_config.num_channels

    @num_channels.setter
    def num_channels(self, value: int) -> None:
        raise ValueError(
            "num_channels is the stem's: give it as backbone_config=EfficientNetLiteConfig(num_channels=...), or in "
            "another stem's configuration."
        )

    @property
    def feature_sizes(self) -> list[int]:
        """Channels of the stem's feature maps, at 1/2, 1/4, 1/8, ... of the input's size."""
        backbone = self.backbone_config
        if backbone.model_type == BitConfig.model_type:
            return [backbone.embedding_size, *backbone.hidden_sizes]
        return backbone.feature_sizes

    @property
    def size_divisor(self) -> int:
        """Length of a token's side in the input, in pixels; multiples of it pass through without rounding."""
        return 2 ** len(self.feature_sizes) * self.patch_size

    @property
    def position_grid(self) -> tuple[int, int]:
        """Rows and columns of the grid of position embeddings."""
        height, width = (self.image_size,) * 2 if isinstance(self.image_size, int) else self.image_size
        return -(-height // self.size_divisor), -(-width // self.size_divisor)

    @property
    def skip_sizes(self) -> list[int]:
        """Channels of the skip connections, coarsest first: the feature maps that are finer than the tokens."""
        sizes = self.feature_sizes
        return (sizes if self.patch_size > 1 else sizes[:-1])[::-1]

    def validate_architecture(self):
        backbone = self.backbone_config
        if backbone.model_type not in STEM_CONFIGS:
            raise ValueError(
                f"backbone_config is a {type(backbone).__name__}; choose one of "
                f"{', '.join(config.__name__ for config in STEM_CONFIGS.values())}."
            )
        if backbone.model_type == BitConfig.model_type and not (
            backbone.layer_type == "bottleneck"
            and backbone.global_padding == "SAME"
            and backbone.embedding_dynamic_padding
            and backbone.output_stride >= 2 ** (len(backbone.depths) + 1)
        ):
            raise ValueError(
                'A BiT stem needs layer_type="bottleneck", global_padding="same", embedding_dynamic_padding=True and '
                "an output_stride that lets every stage halve the resolution."
            )
        if not isinstance(self.image_size, int) and len(self.image_size) != 2:
            raise ValueError(f"image_size must be one number or height and width, but is {self.image_size}.")
        if self.patch_size not in (1, 2):
            raise ValueError(
                f"patch_size must be 1 or 2 cells of the stem's last feature map, but is {self.patch_size}."
            )
        positive = (
            *self.position_grid,
            self.hidden_size,
            self.num_attention_heads,
            self.head_dim,
            self.intermediate_size,
            self.decoder_depth,
            *self.decoder_hidden_sizes,
            *(size for size in (self.projection_size, self.input_skip_size, self.head_hidden_size) if size is not None),
        )
        if min(positive) < 1 or self.num_hidden_layers < 0:
            raise ValueError("Sizes, depths and numbers of layers and heads must be positive.")
        if not self.decoder_hidden_sizes:
            raise ValueError("decoder_hidden_sizes must have one entry at least.")
        if self.projection_kernel_size % 2 == 0 or self.projection_kernel_size < 1:
            raise ValueError(f"projection_kernel_size must be odd and positive, but is {self.projection_kernel_size}.")
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act must be one of {', '.join(sorted(ACT2FN))}, but is {self.hidden_act!r}.")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be from 0 to under 1, but is {getattr(self, name)}.")
        if not 0 <= self.initializer_range < math.inf:
            raise ValueError(f"initializer_range must not be negative, but is {self.initializer_range}.")
        doublings = len(self.decoder_hidden_sizes) + (self.head_hidden_size is not None)
        if 2**doublings != self.size_divisor:
            raise ValueError(
                f"The tokens lie at 1/{self.size_divisor} of the input's size, but decoder_hidden_sizes and "
                f"head_hidden_size double it {doublings} times: {2**doublings}."
            )
        if self.input_skip_size is not None and self.head_hidden_size is not None:
            raise ValueError("input_skip_size needs a decoder block at the input's size; leave head_hidden_size out.")
        if self.decoder_upsampling not in ("bilinear", "transposed"):
            raise ValueError(f"decoder_upsampling must be 'bilinear' or 'transposed', not {self.decoder_upsampling!r}.")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be positive, but is {self.temperature}.")
        if sorted(self.id2label) != [0, 1]:
            raise ValueError(f"id2label must name the labels 0 and 1, but has {self.id2label}.")
        check_loss_name(self.loss)


__all__ = ["TransUNetConfig"]
