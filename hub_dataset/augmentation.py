"""Augmentation of training slices: first the parameters are sampled, then applied by pure functions."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional as F

PRE_CONTRAST, FLAIR, POST_CONTRAST = range(3)
FLAIR_ALONE = (PRE_CONTRAST, POST_CONTRAST)  # the channels to copy it into
COPIES = ((PRE_CONTRAST,), (POST_CONTRAST,), FLAIR_ALONE)


@dataclass(frozen=True)
class SliceAugmentation:
    """Parameters of one augmentation; the defaults change nothing.

    Attributes:
        flair_copies: channels that are replaced by FLAIR, as in the dataset's patients with a missing sequence.
        flip_horizontal, flip_vertical: mirror the columns, the rows.
        rotation: counter-clockwise, in degrees.
        zoom: magnification.
        shear: slope of the columns.
        translation: (rows, columns) as a share of the slice's longer side.
        gamma: exponent of the intensity curve of each channel, on the normalised range.
        contrast, brightness: factor and offset of each channel's normalised intensities.
        volume_share: weight of the volume's median and spread in the normalisation, see `normalize_intensities`.
        noise: standard deviation of white noise, in normalised intensities.
        noise_seed: seed of that noise.
    """

    flair_copies: tuple[int, ...] = ()
    flip_horizontal: bool = False
    flip_vertical: bool = False
    rotation: float = 0.0
    zoom: float = 1.0
    shear: float = 0.0
    translation: tuple[float, float] = (0.0, 0.0)
    gamma: tuple[float, float, float] = (1.0, 1.0, 1.0)
    contrast: tuple[float, float, float] = (1.0, 1.0, 1.0)
    brightness: tuple[float, float, float] = (0.0, 0.0, 0.0)
    volume_share: float = 0.0
    noise: float = 0.0
    noise_seed: int = field(default=0, repr=False)


def sample_augmentation(
    generator: np.random.Generator, strength: float = 1.0, volume_share: float = 0.0
) -> SliceAugmentation:
    """Random parameters; `strength` scales their ranges: 0 changes nothing, 1 is the default recipe.

    `volume_share` is the one of testing. That of a sample is drawn between 0 and twice as much, 1 at most, so that the
    model knows a slice by itself as well as one in its volume; `strength` 0 leaves it as it is.
    """
    if strength == 0:
        return SliceAugmentation(volume_share=volume_share)

    def within(limit: float, size: int | None = None):
        return generator.uniform(-limit * strength, limit * strength, size)

    copies = COPIES[generator.integers(len(COPIES))] if generator.random() < min(0.15 * strength, 1) else ()
    return SliceAugmentation(
        flair_copies=copies,
        flip_horizontal=bool(generator.random() < 0.5),
        flip_vertical=bool(generator.random() < 0.25),
        rotation=within(20.0),
        zoom=float(np.exp(within(0.2))),
        shear=within(0.08),
        translation=tuple(within(0.04, 2)),
        gamma=tuple(np.exp(within(0.25, 3))),
        contrast=tuple(np.exp(within(0.15, 3))),
        brightness=tuple(within(0.2, 3)),
        noise=float(generator.uniform(0, 0.15 * strength)) if generator.random() < 0.3 else 0.0,
        noise_seed=int(generator.integers(2**31)),
        volume_share=float(generator.uniform(0, min(2 * volume_share, 1))),
    )


def copy_flair(image: np.ndarray, augmentation: SliceAugmentation) -> np.ndarray:
    """Replace channels of (..., 3) by FLAIR; to be done before normalisation, as the processor would see it."""
    if not augmentation.flair_copies:
        return image
    image = image.copy()
    for channel in augmentation.flair_copies:
        image[..., channel] = image[..., FLAIR]
    return image


def resample(
    channels: torch.Tensor,
    augmentation: SliceAugmentation,
    frame: tuple[int, int],
    scale: float,
    center: tuple[float, float],
) -> torch.Tensor:
    """Crop, scale and deform in one interpolation.

    Args:
        channels: (C, H, W) float; beyond its border, the border's own values go on.
        frame: (height, width) of the result in pixels.
        scale: pixels of the result per pixel of `channels`, before the augmentation's zoom.
        center: (row, column) of `channels` that lies in the middle of the frame, before the translation, in pixels.

    Returns:
        (C, *frame) of the same dtype.
    """
    height, width = channels.shape[-2:]
    longer_side = max(height, width)
    center = tuple(c + t * longer_side for c, t in zip(center, augmentation.translation, strict=True))
    if scale * augmentation.zoom <= 0.6:  # averaging first keeps fine structure from aliasing
        channels = F.avg_pool2d(channels[None], 2, ceil_mode=True)[0]
        center, scale = (center[0] / 2, center[1] / 2), 2 * scale
        height, width = channels.shape[-2:]

    angle = np.deg2rad(augmentation.rotation)
    rotate = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    deform = rotate @ np.array([[1.0, augmentation.shear], [0.0, 1.0]])
    deform[:, 0] *= -1 if augmentation.flip_horizontal else 1
    deform[:, 1] *= -1 if augmentation.flip_vertical else 1
    deform /= scale * augmentation.zoom

    # In grid_sample's coordinates, (x, y) from -1 to 1 between the outer edges of the image.
    from_frame = np.diag([frame[1] / 2, frame[0] / 2])
    to_image = np.diag([2 / width, 2 / height])
    offset = np.array([2 * center[1] / width - 1, 2 * center[0] / height - 1])
    theta = np.concatenate([to_image @ deform @ from_frame, offset[:, None]], axis=1)
    grid = F.affine_grid(torch.from_numpy(theta).to(channels.dtype)[None], [1, 1, *frame], align_corners=False)
    return F.grid_sample(channels[None], grid, mode="bilinear", padding_mode="border", align_corners=False)[0]


def change_intensities(image: torch.Tensor, augmentation: SliceAugmentation, clip: float) -> torch.Tensor:
    """Gamma, contrast, brightness and noise on normalised intensities (3, H, W) in [-clip, clip], in that order."""
    gamma, contrast, brightness = (
        torch.tensor(values, dtype=image.dtype)[:, None, None]
        for values in (augmentation.gamma, augmentation.contrast, augmentation.brightness)
    )
    if augmentation.gamma != (1.0, 1.0, 1.0):
        # The curve is bent over [0, 1] and shifted so that the median of the brain, at zero, stays where it is.
        unit = ((image + clip) / (2 * clip)).clamp(0, 1)  # interpolation may overshoot by a rounding error
        image = 2 * clip * (unit**gamma - 0.5**gamma)
    image = image * contrast + brightness
    if augmentation.noise:
        generator = torch.Generator().manual_seed(augmentation.noise_seed)
        image = image + augmentation.noise * torch.randn(image.shape, generator=generator, dtype=image.dtype)
    return image.clamp(-clip, clip)
