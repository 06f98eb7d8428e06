"""Image processor for MR slices: any common image in, robustly normalised three-channel tensors out."""

import io
import operator
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from transformers import BatchFeature
from transformers.image_processing_backends import PilBackend
from transformers.processing_utils import ImagesKwargs

MINIMUM_SIZE = 32  # pixels
FLAIR = 1  # channel order: pre-contrast T1, FLAIR, post-contrast T1
ACCEPTED = (
    "Accepted is one slice of at least 32x32 pixels, as RGB (pre-contrast T1, FLAIR, post-contrast T1) or as one grey "
    "FLAIR channel: a PIL image, a file path, or an array (H, W), (H, W, 1), (H, W, 3) or (3, H, W)."
)
GAVE_NAN = "The model gives NaN, as damaged weights do, and half precision where it overflows: load it in float32."
NOT_DONE = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "pad_size")  # options of other processors

FOREGROUND = 0.1  # of the 99.5th percentile of FLAIR: above the noise, below cerebrospinal fluid at its brightest
DIM = 0.15  # of the brain of the brightest slice: where a slice is darker, it shows noise and the top of the scalp
OCCUPIED = 0.06  # share of a row or column that must have signal to count as head rather than noise
SCALP = 0.05  # of the square root of the head's area: how far its outline is moved inwards
MINIMUM_BRAIN = 0.1  # of the head's pixels: where less is left inside, the whole head is taken
OUTLIER = 2.25  # interquartile ranges from the median; a dyadic number, so that scaled integers compare the same
OUTLIER_ROUNDS = 3
NORMAL_IQR = 1.349  # interquartile range of the standard normal distribution
MINIMUM_SPREAD = 0.02  # of the brain's 99th percentile: keeps noise from being blown up where the tissue is uniform


def read_image(source: str | os.PathLike | Image.Image) -> np.ndarray:
    """The pixels of an image file or PIL image, at their own bit depth.

    Returns:
        (H, W) for grey images, uint8, uint16, int32 or float32; (H, W, 3) uint8 for colour images, uint16 for files
        with 16 bits per channel. (A PIL image of such a file has 8 bits once its pixels were loaded.)

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an image, a damaged file, one that Pillow takes for too large, several pages, or 16 bits per
            channel with transparency. (A damaged PIL image raises what Pillow does when its pixels are loaded.)
    """
    if not isinstance(source, Image.Image):
        if not Path(source).is_file():
            raise FileNotFoundError(f"There is no image file {os.fspath(source)!r}. {ACCEPTED}")
        try:
            with Image.open(source) as image:
                return read_image(image)
        except UnidentifiedImageError:
            raise ValueError(f"{Path(source).name!r} is not an image that Pillow can read. {ACCEPTED}") from None
        except Image.DecompressionBombError:
            raise ValueError(f"{Path(source).name!r} has more pixels than Pillow reads. {ACCEPTED}") from None
        except (OSError, EOFError, SyntaxError, TypeError, KeyError) as error:  # all from Pillow's decoders
            raise ValueError(f"{Path(source).name!r} is damaged: {error}. Export it again.") from error
    if getattr(source, "n_frames", 1) > 1:
        raise ValueError(f"The image has {source.n_frames} pages or frames. {ACCEPTED}")
    if ";16" in (samples := raw_mode(source)) and "A" in source.getbands():
        raise ValueError(f"The image has 16 bits per channel and transparency (alpha). Save it without. {ACCEPTED}")
    if samples.startswith("RGB;16"):
        return read_deep_colour(source)
    if source.mode in ("1", "LA"):
        source = source.convert("L")
    elif source.mode not in ("L", "I", "F") and not source.mode.startswith("I;16"):
        source = source.convert("RGB")
    return np.asarray(source)


def raw_mode(image: Image.Image) -> str:
    """How Pillow reads the samples of an opened file, for example `RGB;16B`: three of 16 bits, high byte first.

    "" once they were loaded, or where the image is of no file.
    """
    tile = getattr(image, "tile", None)
    arguments = (tile[0].args if tile else "") or ""
    return arguments if isinstance(arguments, str) else str(arguments[0])


def read_deep_colour(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint16 of an opened file with 16 bits per channel, of which Pillow by itself keeps the high bytes only.

    A second reading with the byte order reversed gives the low bytes.
    """
    native = "L" if sys.byteorder == "little" else "B"
    as_it_is = raw_mode(image)
    swapped = "RGB;16B" if as_it_is[-1].replace("N", native) == "L" else "RGB;16L"
    position = image.fp.tell()  # which is part of the image's state, and the image stays unloaded
    image.fp.seek(0)
    data = image.fp.read()
    image.fp.seek(position)
    halves = []
    for mode in (as_it_is, swapped):
        with Image.open(io.BytesIO(data)) as again:
            again.tile = [
                tile._replace(args=mode if isinstance(tile.args, str) else (mode, *tile.args[1:]))
                for tile in again.tile
            ]
            halves.append(np.asarray(again).astype(np.uint16))
    high, low = halves
    return high << 8 | low


def to_channels(image: np.ndarray) -> np.ndarray:
    """Bring one slice to (H, W, 3) float32; a missing channel becomes a copy of FLAIR, the dataset's own rule.

    Args:
        image: (H, W), (H, W, 1) or (1, H, W) FLAIR, or (H, W, 3) or (3, H, W); any real dtype, any intensity scale.

    Raises:
        ValueError: another shape or channel count, under 32 pixels, NaN or infinity, or a constant FLAIR channel.
    """
    if image.ndim == 3 and image.shape[-1] not in (1, 3) and image.shape[0] in (1, 3):
        image = np.moveaxis(image, 0, -1)
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[-1] not in (1, 3):
        raise ValueError(f"The image has shape {image.shape}. {ACCEPTED}")
    height, width, channels = image.shape
    if min(height, width) < MINIMUM_SIZE:
        raise ValueError(f"The image is {height}x{width} pixels, too small to segment. {ACCEPTED}")
    if image.dtype.kind not in "uif":
        raise ValueError(f"The image has the dtype {image.dtype}; intensities must be integers or floats. {ACCEPTED}")
    with np.errstate(over="ignore", invalid="ignore"):
        image = image.astype(np.float32)
        extent = np.ptp(image)  # of two finite intensities it may be beyond float32, too
    if not np.isfinite(extent):
        raise ValueError(
            "The image contains NaN or infinite intensities, or some beyond float32. Replace them, for instance by "
            "zero, first."
        )
    constant = [image[..., channel].min() == image[..., channel].max() for channel in range(channels)]
    if constant[FLAIR if channels == 3 else 0]:
        raise ValueError(
            f"The FLAIR channel is constant (every pixel is {image[0, 0, FLAIR if channels == 3 else 0]:g}): there is "
            f"nothing to segment. {ACCEPTED}"
        )
    if channels == 1:
        return np.repeat(image, 3, axis=-1)
    for channel in range(3):
        if constant[channel]:
            image[..., channel] = image[..., FLAIR]
    return image


def head_mask(image: np.ndarray) -> np.ndarray:
    """Pixels of the head with signal: (H, W, 3) -> (H, W) bool, by a threshold on FLAIR relative to its own bright end.

    Without the fluid in the ventricles, which is dark on FLAIR.
    """
    flair = image[..., FLAIR] - image[..., FLAIR].min()
    reference = bright_end(flair)
    if reference == 0:  # signal on fewer than 0.5 % of the pixels
        return flair > 0
    return flair / reference > FOREGROUND


def bright_end(flair: np.ndarray) -> np.float32:
    """The 99.5th percentile of FLAIR above its lowest value."""
    return order_statistic(np.sort(flair, axis=None), 0.995) - flair.min()


def brain_mask(image: np.ndarray) -> np.ndarray:
    """Pixels of the head with signal that lie well within its outline: (H, W, 3) -> (H, W) bool.

    The outline is filled and moved inwards by a share of the head's size, past most of skull and scalp, whose fat is
    brighter than the brain and outweighs it in the slices near the vertex. For intensity statistics, not anatomy.
    """
    head = head_mask(image)
    interior = between_first_and_last(head, axis=0) & between_first_and_last(head, axis=1)
    for _ in range(round(SCALP * np.sqrt(interior.sum()))):
        interior = eroded(interior)
    brain = head & interior
    return brain if brain.sum() >= MINIMUM_BRAIN * head.sum() else head


def between_first_and_last(mask: np.ndarray, axis: int) -> np.ndarray:
    """True from the first to the last true pixel along each line of a bool mask."""
    from_end = np.flip(np.maximum.accumulate(np.flip(mask, axis), axis), axis)
    return np.maximum.accumulate(mask, axis) & from_end


def eroded(mask: np.ndarray) -> np.ndarray:
    """A bool mask (H, W) without the pixels at its edge; beyond the frame all is false."""
    inner = np.zeros_like(mask)
    inner[1:-1, 1:-1] = mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    return inner


class SliceIntensities(NamedTuple):
    """What a slice's brain pixels say of its intensities.

    Attributes:
        statistics: (C, 2) float32, median and spread of each channel; the spread is the interquartile range.
        brain_pixels: the number of pixels behind them.
        brightness: median of FLAIR, as in `statistics`, above its lowest value in the slice.
        copied: (C,) bool, whether a channel is FLAIR, be it as a copy in the place of another sequence.
    """

    statistics: np.ndarray
    brain_pixels: int
    brightness: float
    copied: np.ndarray


def slice_intensities(image: np.ndarray) -> SliceIntensities:
    """Median and spread of one slice (H, W, C) float32 over its own brain pixels.

    Both are taken after far outliers (a lesion, an artefact, what is left of the scalp) were set aside, three times
    over. So neither moves much with the lesion or the amount of background, and both follow any change of scale and
    offset.
    """
    brain = brain_mask(image)
    statistics = np.empty((image.shape[-1], 2), dtype=np.float32)
    for channel in range(image.shape[-1]):
        values = image[..., channel]
        tissue = np.sort(values[brain])  # once sorted, every order statistic and every cut is a look-up
        minimum_spread = MINIMUM_SPREAD * (order_statistic(tissue, 0.99) - values.min())
        for _ in range(OUTLIER_ROUNDS):
            median, iqr = median_and_iqr(tissue)
            limit = OUTLIER * max(iqr, minimum_spread)
            tissue = tissue[np.searchsorted(tissue, median - limit) : np.searchsorted(tissue, median + limit, "right")]
        median, iqr = median_and_iqr(tissue)
        statistics[channel] = median, max(iqr, minimum_spread) or np.ptp(values)
    copied = (image == image[..., FLAIR, None]).all(axis=(0, 1))
    brightness = float(statistics[FLAIR, 0] - image[..., FLAIR].min())
    return SliceIntensities(statistics, int(brain.sum()), brightness, copied)


def volume_intensities(slices: Sequence[SliceIntensities]) -> np.ndarray:
    """Median and spread of each channel in a whole volume: the medians of its slices', weighted by their brain pixels.

    Slices whose brain is dark beside the brightest one's do not count: above the head, noise fills the whole frame and
    would outweigh the brain. Nor, for another channel, do those where FLAIR is in its place, unless it is in all.

    Returns:
        (C, 2) float32.

    Raises:
        ValueError: no slice.
    """
    if not slices:
        raise ValueError("The intensities of a volume need at least one slice.")
    statistics, brain_pixels, brightness, copied = (np.array(values) for values in zip(*slices, strict=True))
    weights = np.where(brightness > DIM * brightness.max(), brain_pixels, 0)[:, None]  # (S, 1)
    of_channel = weights * ~copied  # (S, C)
    weights = np.where(of_channel.any(axis=0), of_channel, weights)
    order = np.argsort(statistics, axis=0, kind="stable")
    reached = np.cumsum(np.take_along_axis(weights[..., None], order, axis=0), axis=0)
    middle = (2 * reached > reached[-1:]).argmax(axis=0)[None]
    return np.take_along_axis(np.take_along_axis(statistics, order, axis=0), middle, axis=0)[0]


def normalize_intensities(
    image: np.ndarray, clip: float, volume: np.ndarray | None = None, volume_share: float = 0.0
) -> np.ndarray:
    """Robust z-scores of one slice: (H, W, C) float32 -> (H, W, C) float32 in [-clip, clip].

    Each channel has the median of the brain pixels taken off and is divided by their interquartile range over 1.349,
    which is the standard deviation where they are normally distributed. (Z-scores over the brain as in nnU-Net, Isensee
    et al. 2021, doi 10.1038/s41592-020-01008-z, Methods; quartiles instead of moments.) Both are the slice's own, or
    lie between those and its volume's: a lesion that fills much of a slice is brain by its own statistics.

    Args:
        volume: (C, 2), from `volume_intensities`; a copy of FLAIR takes FLAIR's, whatever the volume has in its place.
        volume_share: weight of `volume` in [0, 1]; the slice's own statistics have the rest.

    Raises:
        ValueError: `volume_share` is out of its range, or `volume` of another shape, not finite or without spread.
    """
    if not 0 <= volume_share <= 1:
        raise ValueError(f"volume_share must lie in [0, 1], 0 for each slice by itself, but is {volume_share}.")
    own = slice_intensities(image)
    statistics = own.statistics
    if volume is not None:
        if volume.shape != statistics.shape:
            raise ValueError(
                f"The intensities of the volume must be the median and spread of each channel, {statistics.shape}, but "
                f"have the shape {volume.shape}."
            )
        if not (np.isfinite(volume).all() and (volume[:, 1] > 0).all()):
            raise ValueError(
                f"The intensities of the volume must be finite, and the spread of each channel above zero, but are "
                f"{volume.tolist()}; `modeling.inference.measure_intensities` gives them."
            )
        volume = np.where(own.copied[:, None], volume[FLAIR], volume)
        statistics = (1 - volume_share) * statistics + volume_share * volume
    median, spread = statistics.astype(np.float32).T
    return np.clip((image - median) / spread * np.float32(NORMAL_IQR), -clip, clip)


def order_statistic(sorted_values: np.ndarray, quantile: float) -> np.float32:
    """The value at or just below a quantile. Without interpolation, the normalisation of a slice is the same to the bit
    when it comes with other integer intensities (8 bit, 16 bit)."""
    return sorted_values[int(quantile * (len(sorted_values) - 1))]


def median_and_iqr(sorted_values: np.ndarray) -> tuple[np.float32, np.float32]:
    lower, median, upper = (order_statistic(sorted_values, quantile) for quantile in (0.25, 0.5, 0.75))
    return median, upper - lower


class BrainMRIImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    size_divisor (`int`, *optional*, defaults to `self.size_divisor`):
        Height and width are padded at the bottom and on the right to a multiple of this, in pixels.
    clip (`float`, *optional*, defaults to `self.clip`):
        Normalised intensities are limited to [-clip, clip], in robust standard deviations.
    volume_intensities (`np.ndarray`, *optional*):
        (3, 2), median and spread of each channel in the volume that the slices are of
        (`modeling.inference.measure_intensities`). Without it, each slice is normalised by itself.
    volume_share (`float`, *optional*, defaults to `self.volume_share`):
        Weight of `volume_intensities` in [0, 1]; a slice's own median and spread have the rest.
    """

    size_divisor: int
    clip: float | int
    volume_intensities: np.ndarray | None
    volume_share: float | int


class BrainMRIImageProcessor(PilBackend):
    """Turns MR slices into the `pixel_values` of the models here, and their logits into masks.

    A slice is RGB in the order pre-contrast T1, FLAIR, post-contrast T1, or grey FLAIR, which is copied into all three
    channels, as is FLAIR into a channel that is constant. Intensities may have any scale and bit depth. A slice is
    normalised by its own brain pixels (`normalize_intensities`), and those of its volume where `volume_intensities` are
    given.
    """

    valid_kwargs = BrainMRIImageProcessorKwargs
    model_input_names = ["pixel_values"]  # noqa: RUF012 (transformers reads it from the class)
    rescale_factor = None
    do_pad = True
    size_divisor = 16
    clip = 8.0
    volume_share = 0.5

    def _prepare_images_structure(self, images, expected_ndims: int = 3) -> list:
        """A flat list of slices from one slice, a list of slices, or a batch array (B, H, W, 3) or (B, 3, H, W)."""
        if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4:
            images = list(images)
        if not isinstance(images, (list, tuple)):
            return [images]
        if not images:
            raise ValueError(f"No image was given. {ACCEPTED}")
        return [image for item in images for image in self._prepare_images_structure(item)]

    def process_image(self, image, **kwargs) -> np.ndarray:
        """One slice in any accepted form -> (H, W, 3) float32, at the intensities given."""
        if isinstance(image, (str, os.PathLike, Image.Image)):
            image = read_image(image)
        elif isinstance(image, torch.Tensor):
            image = (image.float() if image.dtype == torch.bfloat16 else image).detach().cpu().numpy()
        elif not isinstance(image, np.ndarray):
            raise ValueError(f"An image came as {type(image).__name__}. {ACCEPTED}")
        return to_channels(image)

    def _preprocess(
        self,
        images: list[np.ndarray],
        do_pad: bool,
        size_divisor: int,
        clip: float,
        volume_share: float,
        volume_intensities: np.ndarray | None = None,
        return_tensors=None,
        **kwargs,
    ) -> BatchFeature:
        if unknown := [name for name in NOT_DONE if kwargs.get(name)]:
            raise ValueError(
                f"BrainMRIImageProcessor does not do {', '.join(unknown)}: it normalises each slice by its own "
                f"intensities and keeps its pixels. Leave them out."
            )
        if size_divisor < 1 or not clip > 0:
            raise ValueError(f"size_divisor and clip must be positive, but are {size_divisor} and {clip}.")
        images = [normalize_intensities(image, clip, volume_intensities, volume_share) for image in images]
        if do_pad:
            height = -(-max(image.shape[0] for image in images) // size_divisor) * size_divisor
            width = -(-max(image.shape[1] for image in images) // size_divisor) * size_divisor
            images = [pad_with_background(image, height, width) for image in images]
        return BatchFeature(
            {"pixel_values": [np.ascontiguousarray(image.transpose(2, 0, 1)) for image in images]},
            tensor_type=return_tensors,
        )

    def post_process_semantic_segmentation(
        self,
        outputs,
        target_sizes: list[tuple[int, int]] | None = None,
        threshold: float = 0.5,
    ) -> list[torch.Tensor]:
        """Masks from a model's outputs, without the padding.

        Args:
            outputs: a model's output, with `logits` (B, 1, H, W).
            target_sizes: (height, width) of each slice as it was given to the processor, in pixels; without it the
                masks keep the padded size.
            threshold: probability in (0, 1) from which a pixel counts as lesion.

        Returns:
            One (height, width) int64 tensor per slice, 0 (background) or 1 (FLAIR abnormality).

        Raises:
            ValueError: logits that are NaN, a threshold outside (0, 1), another number of sizes than slices, or a size
                that the padded logits do not cover.
        """
        logits = outputs.logits.squeeze(1)  # (B, H, W)
        if logits.isnan().any():
            raise ValueError(GAVE_NAN)
        if not 0 < threshold < 1:
            raise ValueError(f"threshold is a probability between 0 and 1, exclusive, but is {threshold}.")
        if target_sizes is None:
            target_sizes = [tuple(logits.shape[-2:])] * len(logits)
        if len(target_sizes) != len(logits):
            raise ValueError(
                f"{len(logits)} slices but {len(target_sizes)} target_sizes came; give one size per slice."
            )
        masks = []
        for slice_logits, size in zip(logits, target_sizes, strict=True):
            try:
                height, width = map(operator.index, size)
            except (TypeError, ValueError):
                raise ValueError(f"A target size is (height, width) in whole pixels, but one is {size!r}.") from None
            if not (0 < height <= slice_logits.shape[0] and 0 < width <= slice_logits.shape[1]):
                raise ValueError(
                    f"target size {height}x{width} does not fit the logits' {tuple(slice_logits.shape)}; give the "
                    f"sizes of the slices as they went into the processor."
                )
            masks.append((slice_logits[:height, :width].float().sigmoid() >= threshold).long())
        return masks


def pad_with_background(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Extend (H, W, C) at the bottom and on the right to (height, width, C) with each channel's own minimum."""
    if image.shape[:2] == (height, width):
        return image
    padded = np.empty((height, width, image.shape[2]), dtype=image.dtype)
    padded[:] = image.min(axis=(0, 1))
    padded[: image.shape[0], : image.shape[1]] = image
    return padded


__all__ = ["BrainMRIImageProcessor"]
