"""Configuration of the U-Nets."""

import math

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .losses import check_loss_name


@strict
class UNetConfig(PreTrainedConfig):
    r"""Configuration of a [`UNetForSemanticSegmentation`]. The defaults are the preset `unet-5level`.

    Args:
        num_channels (`int`, defaults to 3): channels of the input.
        hidden_sizes (`list[int]`, defaults to `[32, 64, 128, 256, 512]`): channels of each level, finest first.
        encoder_depths (`list[int]`, defaults to `[2, 2, 2, 2, 2]`): 3x3 convolutions of each encoder level.
        decoder_depth (`int`, defaults to 2): 3x3 convolutions of each decoder level.
        loss (`str`, defaults to `"dice_bce"`): `dice_bce`, `dice`, `bce` or `focal_tversky`.
        temperature (`float`, defaults to 1): what the head's output is divided by to give the logits. Fitted to
            patients after training, it makes probabilities agree better with how often a pixel is lesion, and moves
            none across 0.5 (Guo et al. 2017, arXiv 1706.04599, section 4.2).

    Raises:
        StrictDataclassError: a wrong type, sizes and depths of different lengths, values under 1, or an unknown loss.
    """

    model_type = "lgg_unet"

    num_channels: int = 3
    hidden_sizes: list[int] | tuple[int, ...] = (32, 64, 128, 256, 512)
    encoder_depths: list[int] | tuple[int, ...] = (2, 2, 2, 2, 2)
    decoder_depth: int = 2
    loss: str = "dice_bce"
    temperature: float | int = 1.0

    def __post_init__(self, **kwargs):
        # One logit, two classes: the label map, not the logits, is what `id2label` names.
        if self.id2label is None:
            self.id2label = {0: "background", 1: "FLAIR abnormality"}
            self.label2id = {"background": 0, "FLAIR abnormality": 1}
        super().__post_init__(**kwargs)

    @property
    def size_divisor(self) -> int:
        """Heights and widths that are a multiple of this pass through every level without rounding, in pixels."""
        return 2 ** (len(self.hidden_sizes) - 1)

    def validate_architecture(self):
        if len(self.hidden_sizes) < 2 or len(self.hidden_sizes) != len(self.encoder_depths):
            raise ValueError(
                f"hidden_sizes and encoder_depths need one entry per level and at least two levels, but have "
                f"{len(self.hidden_sizes)} and {len(self.encoder_depths)}."
            )
        if min(self.num_channels, self.decoder_depth, *self.hidden_sizes, *self.encoder_depths) < 1:
            raise ValueError("num_channels, decoder_depth, hidden_sizes and encoder_depths must be positive.")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be positive, but is {self.temperature}.")
        if sorted(self.id2label) != [0, 1]:
            raise ValueError(f"id2label must name the labels 0 and 1, but has {self.id2label}.")
        check_loss_name(self.loss)


__all__ = ["UNetConfig"]
