"""Convolutional blocks shared by the U-Nets and TransUNet."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import nn
from transformers import initialization as init

MINIMUM_SIZE = 32  # pixels


def check_pixel_values(pixel_values: torch.Tensor, num_channels: int) -> None:
    """Raise `ValueError` unless `pixel_values` is (B, num_channels, H, W) with H and W of at least 32."""
    if pixel_values.ndim != 4 or pixel_values.shape[1] != num_channels:
        raise ValueError(
            f"pixel_values must have shape (batch, {num_channels}, height, width), but have "
            f"{tuple(pixel_values.shape)}. BrainMRIImageProcessor makes them from images."
        )
    if min(pixel_values.shape[-2:]) < MINIMUM_SIZE:
        raise ValueError(
            f"Height and width must be at least {MINIMUM_SIZE} pixels, but are "
            f"{pixel_values.shape[-2]}x{pixel_values.shape[-1]}. Pad or enlarge the image."
        )


@torch.no_grad()
def init_convolutional_weights(module: nn.Module) -> None:
    """He initialisation (He et al. 2015, arXiv 1502.01852) of a convolution with a zero bias, or a fresh batch norm.

    Does nothing to other modules, nor to weights that `from_pretrained` has loaded.
    """
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        # A transposed convolution's fan-in lies on the axis that PyTorch calls fan-out.
        mode = "fan_out" if isinstance(module, nn.ConvTranspose2d) else "fan_in"
        init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
        if module.bias is not None:
            init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        init.ones_(module.weight)
        init.zeros_(module.bias)
        init.zeros_(module.running_mean)
        init.ones_(module.running_var)
        init.zeros_(module.num_batches_tracked)


class SamePaddingConv2d(nn.Conv2d):
    """Strided convolution with TensorFlow's "SAME" padding: (B, C, H, W) -> (B, D, H / stride, W / stride), rounded up.

    An odd number of rows or columns to add puts the extra one at the bottom or on the right, which no symmetric
    `padding` of `nn.Conv2d` does; networks published in TensorFlow need it to see what they were trained on.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        padding = []
        for size, kernel, stride in zip(hidden_states.shape[-2:], self.kernel_size, self.stride, strict=True):
            total = max(kernel - 1 - (size - 1) % stride, 0)
            padding = [total // 2, total - total // 2, *padding]  # `pad` wants the last axis first
        return super().forward(nn.functional.pad(hidden_states, padding))


class ConvNormActivation(nn.Sequential):
    """Convolution, batch normalisation and activation: (B, in_channels, H, W) -> (B, out_channels, H', W').

    H' is H / `stride`, rounded up. `activation=None` leaves the activation out.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        groups: int = 1,
        bias: bool = True,
        activation: type[nn.Module] | None = nn.ReLU,
        eps: float = 1e-5,
    ):
        if stride == 1:
            convolution = nn.Conv2d(
                in_channels, out_channels, kernel_size, padding=kernel_size // 2, groups=groups, bias=bias
            )
        else:
            convolution = SamePaddingConv2d(in_channels, out_channels, kernel_size, stride, groups=groups, bias=bias)
        layers = [convolution, nn.BatchNorm2d(out_channels, eps=eps)]
        super().__init__(*layers, *([] if activation is None else [activation(inplace=True)]))

    def normalize(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Normalisation and activation of the convolution's output."""
        for layer in list(self)[1:]:
            hidden_states = layer(hidden_states)
        return hidden_states


class UpdatedOnce:
    """A function for `torch.utils.checkpoint`, which calls it again to recompute what it did not keep.

    From the second time on, the batch norm in it, `norm`, leaves its running statistics as they are.
    """

    def __init__(self, function: Callable[..., torch.Tensor], norm: nn.Module):
        self.function, self.norm = function, norm
        self.called = False

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        if not self.called:
            self.called = True
            return self.function(*inputs)
        momentum, batches = self.norm.momentum, self.norm.num_batches_tracked.clone()
        self.norm.momentum = 0.0
        try:
            return self.function(*inputs)
        finally:
            self.norm.momentum = momentum
            self.norm.num_batches_tracked.copy_(batches)


class Recomputing(nn.Module):
    """A block that keeps what its convolutions give and no more, once `activation_checkpointing_enable` was called.

    Normalisation, activation and concatenation cost little beside a convolution, but hold more than half of the memory
    of a training step. They are computed again when the gradient needs them. PyTorch ends the recomputation of a part
    once it has all that was saved the first time, thus before the convolution at the part's end.
    """

    gradient_checkpointing = False  # transformers sets it, and `_gradient_checkpointing_func`

    @property
    def recomputes(self) -> bool:
        return self.gradient_checkpointing and self.training and torch.is_grad_enabled()

    def recomputed(
        self, function: Callable[..., torch.Tensor], norm: nn.Module | None, *inputs: torch.Tensor
    ) -> torch.Tensor:
        """`function(*inputs)`, of which only `inputs` are kept. `norm` is the batch norm within, if any."""
        return self._gradient_checkpointing_func(UpdatedOnce(function, norm) if norm else function, *inputs)


class ConvStack(nn.Sequential, Recomputing):
    """`depth` times `ConvNormActivation`; the first changes the number of channels."""

    def __init__(self, in_channels: int, out_channels: int, depth: int, bias: bool = True):
        channels = [in_channels] + [out_channels] * depth
        super().__init__(*(ConvNormActivation(channels[i], channels[i + 1], bias=bias) for i in range(depth)))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.recomputes:
            return self.after_convolution(self[0][0](hidden_states))
        return super().forward(hidden_states)

    def after_convolution(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The output of the stack from that of its first convolution, with normalisations recomputed."""
        for block, following in pairwise(self):
            hidden_states = self.recomputed(nn.Sequential(*list(block)[1:], following[0]), block[1], hidden_states)
        return self[-1].normalize(hidden_states)


class Upsample2x(nn.Module):
    """Twice the height and width: (B, in_channels, H, W) -> (B, out_channels, 2H, 2W), or `size` where one is given.

    `mode="transposed"` is a 2x2 transposed convolution of stride 2, batch normalisation and ReLU (U-Net);
    `mode="bilinear"` interpolates and keeps the number of channels (TransUNet's cascaded upsampler).
    `size` is at most (2H, 2W) and at least (2H - 1, 2W - 1): that of a feature map halved with rounding up.
    """

    def __init__(self, in_channels: int, out_channels: int, mode: str = "transposed"):
        super().__init__()
        self.mode = mode
        self.out_channels = out_channels if mode == "transposed" else in_channels
        if mode == "transposed":
            self.projection = nn.Sequential(
                nn.ConvTranspose2d(in_channels, out_channels, kernel_size=2, stride=2),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(inplace=True),
            )

    def forward(self, hidden_states: torch.Tensor, size: tuple[int, int] | None = None) -> torch.Tensor:
        return self.finish(self.convolve(hidden_states), size)

    def convolve(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The part that is worth keeping for the gradient."""
        return self.projection[0](hidden_states) if self.mode == "transposed" else hidden_states

    def finish(self, hidden_states: torch.Tensor, size: tuple[int, int] | None = None) -> torch.Tensor:
        """The output from that of `convolve`."""
        if self.mode == "transposed":
            hidden_states = self.projection[2](self.projection[1](hidden_states))
            return hidden_states if size is None else hidden_states[..., : size[0], : size[1]]
        size = size or (2 * hidden_states.shape[-2], 2 * hidden_states.shape[-1])
        return nn.functional.interpolate(hidden_states, size=size, mode="bilinear", align_corners=False)


class DecoderBlock(Recomputing):
    """Upsample to the skip connection's size, concatenate it, convolve.

    (B, in_channels, H, W) and a skip of (B, skip_channels, H', W') -> (B, out_channels, H', W'). With
    `skip_channels=0` there is no skip, and the output's size is (2H, 2W) or the `size` given.
    """

    def __init__(
        self,
        in_channels: int,
        skip_channels: int,
        out_channels: int,
        depth: int = 2,
        upsampling: str = "transposed",
        bias: bool = True,
    ):
        super().__init__()
        self.upsample = Upsample2x(in_channels, out_channels, upsampling)
        self.convolutions = ConvStack(self.upsample.out_channels + skip_channels, out_channels, depth, bias=bias)

    def forward(
        self,
        hidden_states: torch.Tensor,
        skip: torch.Tensor | None = None,
        size: tuple[int, int] | None = None,
    ) -> torch.Tensor:
        if skip is not None:
            size = tuple(skip.shape[-2:])

        def join(upsampled: torch.Tensor, skip: torch.Tensor | None) -> torch.Tensor:
            return upsampled if skip is None else torch.cat([upsampled, skip], dim=1)

        if not self.recomputes:
            return self.convolutions(join(self.upsample(hidden_states, size), skip))

        def join_and_convolve(hidden_states: torch.Tensor, skip: torch.Tensor | None) -> torch.Tensor:
            return self.convolutions[0][0](join(self.upsample.finish(hidden_states, size), skip))

        norm = self.upsample.projection[1] if self.upsample.mode == "transposed" else None
        hidden_states = self.upsample.convolve(hidden_states)
        return self.convolutions.after_convolution(self.recomputed(join_and_convolve, norm, hidden_states, skip))
