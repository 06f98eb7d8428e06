"""From slices and volumes to lesion probabilities and masks, with nothing computed that is not needed.

Two shortcuts are exact up to rounding: batch norm folded into the convolutions, and the channels-last memory format
(`load_model`). So is a third: a volume's slices are computed side by side, one to a core, so that the cores wait less
for each other than when they share one. The others are approximate, each an option of `predict_volume`: slices are
cropped to the head (`crop_margin`), and those between two without a lesion are left out (`screening_stride`).
benchmarks/inference.py measures what each gains and what it costs in Dice.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from threading import Barrier

import numpy as np
import torch
from scipy import ndimage
from scipy.special import expit, logit
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval
from transformers import AutoImageProcessor, BaseImageProcessor, PreTrainedModel

from .checkpoints import load_complete
from .image_processing_brain_mri import (
    FLAIR,
    FOREGROUND,
    GAVE_NAN,
    MINIMUM_SIZE,
    OCCUPIED,
    slice_intensities,
    to_channels,
    volume_intensities,
)
from .measurements import volume_ml
from .postprocessing import check_threshold, mask_from_probabilities
from .views import VIEWS, View

Progress = Callable[[Iterable], Iterable]  # wraps an iterable to show progress, as tqdm and gr.Progress().tqdm do

CROP_MARGIN = 0  # pixels around the head; the window is rounded up, as the crops of training are
SCREENING_STRIDE = 3  # slices; no lesion of the 88 patients for training and validation goes through fewer
SCREENING_LEVEL = 0.1  # highest probability, before the temperature, from which a slice's neighbours may have a lesion
MAX_WORKERS = 8  # slices computed side by side; each takes up to 0.1 GB at 256x256
EMPTY_SLICE = 0.002  # share of pixels with signal under which a slice of a volume holds no brain


@dataclass(frozen=True)
class SliceSegmentation:
    """`probabilities` (H, W) float32 in [0, 1] and `mask` (H, W) bool of one slice."""

    probabilities: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True)
class VolumeSegmentation:
    """Segmentation of a stack of slices.

    Attributes:
        probabilities: (S, H, W) float32 in [0, 1].
        mask: (S, H, W) bool, after the threshold and, unless switched off, 3-D post-processing.
        spacing: size of a voxel along (S, H, W) in mm as it was given, or None.
        affine: (4, 4) voxel-to-world matrix in mm as it was given, or None.
    """

    probabilities: np.ndarray
    mask: np.ndarray
    spacing: tuple[float, float, float] | None = None
    affine: np.ndarray | None = None

    @property
    def volume_ml(self) -> float | None:
        """The lesion's volume in millilitres, or None where the spacing is unknown."""
        return None if self.spacing is None else volume_ml(self.mask, self.spacing)


def load_model(name_or_path: str, *, fold: bool = True) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """A checkpoint's model and image processor, from a folder or the Hub, ready for inference on this machine.

    The model is in evaluation mode, in float32 (half precision serves storage; CPUs compute slower in it) and in the
    channels-last memory format, which PyTorch's CPU convolutions prefer.

    Args:
        fold: fold batch norm into the convolutions (`fold_batch_norm`); such a model is for inference alone.

    Raises:
        OSError, ValueError: as `load_complete`.
    """
    model = load_complete(name_or_path, dtype=torch.float32).eval()
    processor = AutoImageProcessor.from_pretrained(name_or_path)
    if fold:
        fold_batch_norm(model)
    return model.to(memory_format=torch.channels_last), processor


def fold_batch_norm(model: nn.Module) -> None:
    """Multiply each batch norm into the convolution before it, in place; the outputs stay the same up to rounding.

    The model must be in evaluation mode and can be neither trained nor saved as a checkpoint afterwards.
    """
    for block in [module for module in model.modules() if isinstance(module, nn.Sequential)]:
        for (name, convolution), (norm_name, norm) in pairwise(list(block.named_children())):
            transposed = isinstance(convolution, nn.ConvTranspose2d)
            if isinstance(norm, nn.BatchNorm2d) and (transposed or isinstance(convolution, nn.Conv2d)):
                setattr(block, name, fuse_conv_bn_eval(convolution, norm, transpose=transposed))
                setattr(block, norm_name, nn.Identity())


@torch.inference_mode()
def predict_probabilities(model: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """Lesion probabilities (B, H, W) float32 of normalised slices (B, 3, H, W), on the CPU.

    Raises:
        ValueError: the model gives NaN, which would pass for slices without a lesion.
    """
    pixel_values = pixel_values.to(model.device, model.dtype, memory_format=torch.channels_last)
    probabilities = model(pixel_values=pixel_values).logits.squeeze(1).float().sigmoid().cpu()
    if probabilities.isnan().any():
        raise ValueError(GAVE_NAN)
    return probabilities


def segment_slice(
    model: PreTrainedModel, processor: BaseImageProcessor, image, *, threshold: float = 0.5
) -> SliceSegmentation:
    """Segment one slice.

    Args:
        image: a slice in any form that `BrainMRIImageProcessor` accepts.
        threshold: probability in (0, 1) from which a pixel counts as lesion.

    Raises:
        FileNotFoundError: no such image file.
        ValueError: an image that the processor refuses, or a threshold outside (0, 1).
    """
    check_threshold(threshold)
    image = processor.process_image(image)  # (H, W, 3)
    height, width = image.shape[:2]
    pixel_values = processor(images=image, return_tensors="pt")["pixel_values"]
    probabilities = predict_probabilities(model, pixel_values)[0, :height, :width].numpy()
    return SliceSegmentation(probabilities=probabilities, mask=probabilities >= threshold)


def signal_mask(volume: np.ndarray) -> np.ndarray:
    """Voxels with FLAIR signal, by the volume's own intensities: (S, H, W) or (S, H, W, 3) -> (S, H, W) bool."""
    flair = volume[..., FLAIR] if volume.ndim == 4 else volume
    lowest = float(flair.min())  # no integer, whose differences may be out of its range
    bright = float(np.quantile(flair, 0.995, method="lower")) - lowest
    return flair > lowest + FOREGROUND * bright


def head_window(signal: np.ndarray, margin: int, divisor: int) -> tuple[slice, slice]:
    """Rows and columns that hold the head in (S, H, W) bool, with a margin, in multiples of `divisor` pixels.

    A window may end beyond the frame, in the processor's padding, but never beyond the frame's size rounded up.
    """
    windows = []
    for axis, size in ((2, signal.shape[1]), (1, signal.shape[2])):
        occupied = np.flatnonzero((signal.mean(axis=axis) > OCCUPIED).any(axis=0))
        first, last = (occupied[0], occupied[-1] + 1) if len(occupied) else (0, size)
        padded = -(-size // divisor) * divisor
        wanted = max(last - first + 2 * margin, MINIMUM_SIZE)
        length = min(-(-wanted // divisor) * divisor, padded)
        start = min(max((first + last - length) // 2, 0), padded - length)
        windows.append(slice(int(start), int(start + length)))
    return windows[0], windows[1]


def measure_intensities(slices: np.ndarray) -> np.ndarray | None:
    """Median and spread of each channel in a volume, which the processor takes as `volume_intensities`.

    Args:
        slices: (S, H, W, 3) or (S, H, W) FLAIR, as for `predict_volume`; those without brain do not count.

    Returns:
        (3, 2) float32, or None where FLAIR is constant in every slice.

    Raises:
        ValueError: slices that the processor refuses.
    """
    shown = slices[~_is_constant(slices)]
    return volume_intensities([slice_intensities(to_channels(image)) for image in shown]) if len(shown) else None


def _is_constant(slices: np.ndarray) -> np.ndarray:
    """Whether FLAIR shows nothing in float32, as the processor sees it: (S, H, W) or (S, H, W, 3) -> (S,) bool."""
    flair = slices[..., FLAIR] if slices.ndim == 4 else slices
    return flair.min(axis=(1, 2)).astype(np.float32) == flair.max(axis=(1, 2)).astype(np.float32)


@cache
def worker_pool(threads: int) -> ThreadPoolExecutor:
    """Threads that compute at the same time and have so many of PyTorch's among them; kept until the process ends."""
    workers = min(threads, MAX_WORKERS)
    shares = iter([threads // workers + (worker < threads % workers) for worker in range(workers)])
    started = Barrier(workers + 1)

    def start() -> None:
        torch.get_num_threads()  # the first use in a thread sets its number to the process's
        torch.set_num_threads(next(shares))

    pool = ThreadPoolExecutor(workers, thread_name_prefix="slices", initializer=start)
    for _ in range(workers):
        pool.submit(started.wait)
    started.wait()
    torch.set_num_threads(threads)  # for the threads to come, which would start with the workers' number
    return pool


if hasattr(os, "register_at_fork"):  # the pool comes to a forked process without its threads
    os.register_at_fork(after_in_child=worker_pool.cache_clear)


def predict_volume(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    slices: np.ndarray,
    *,
    batch_size: int = 1,
    crop_margin: int | None = CROP_MARGIN,
    screening_stride: int = SCREENING_STRIDE,
    views: int = 1,
    progress: Progress | None = None,
) -> np.ndarray:
    """Lesion probabilities of a stack of neighbouring slices.

    Each is normalised by its own intensities and, with the processor's `volume_share`, those of the whole stack
    (`measure_intensities`); so a slice may come out otherwise here than alone, and in part of its volume than in all.

    Args:
        slices: (S, H, W, 3) in the order pre-contrast T1, FLAIR, post-contrast T1, or (S, H, W) FLAIR; any real dtype.
        batch_size: slices computed in one forward pass, at most. On a CPU, alone is fastest, as the window is tightest.
        crop_margin: the slices of a batch are computed in the window that holds their heads and this many pixels around
            them; the probability is 0 elsewhere, and in slices without brain. None computes every slice whole, as a
            stack of one slice always is: the result is that of `segment_slice`.
        screening_stride: every so many slices are computed first, then, from slice to slice, the neighbours of those in
            which a probability comes to `SCREENING_LEVEL`; it is 0 in the others. A lesion through at least so many
            slices meets a computed one. 1 computes every slice.
        views: with 2 to 4, slices in and beside which a probability comes to `SCREENING_LEVEL` are computed once more
            for each further one of `views.VIEWS`, mirrored or turned, and a probability is the average over the views
            where that is higher: nothing is lost that the slice as it is shows.
        progress: wraps the iterable of slices, such as `tqdm.tqdm`.

    Returns:
        (S, H, W) float32 in [0, 1].

    Raises:
        ValueError: another shape or dtype, no slice, NaN or infinite intensities, slices under 32x32 pixels, or an
            option out of its range.
    """
    slices = np.asarray(slices)
    _check_volume(slices)
    for name, value in (("batch_size", batch_size), ("screening_stride", screening_stride)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, but is {value}.")
    if not 1 <= views <= len(VIEWS):
        raise ValueError(f"views must lie in 1 to {len(VIEWS)}, but is {views}.")
    if crop_margin is not None and crop_margin < 0:
        raise ValueError(f"crop_margin is a number of pixels, or None for no cropping, but is {crop_margin}.")
    computation = _VolumeComputation(model, processor, slices, batch_size, crop_margin)
    with closing(computation.run(screening_stride, views)) as computed:
        steps = _Steps(computed, views * len(computation.indices))
        for _ in progress(steps) if progress else steps:
            pass
    return computation.probabilities


def _check_volume(slices: np.ndarray) -> None:
    if slices.ndim not in (3, 4) or (slices.ndim == 4 and slices.shape[-1] != 3) or len(slices) == 0:
        raise ValueError(
            f"A volume has shape (slices, height, width, 3) or, for FLAIR alone, (slices, height, width), but this one "
            f"has {slices.shape}."
        )
    if min(slices.shape[1:3]) < MINIMUM_SIZE:
        raise ValueError(
            f"The slices are {slices.shape[1]}x{slices.shape[2]} pixels, too small to segment: {MINIMUM_SIZE} a side "
            f"at least."
        )
    if slices.dtype.kind not in "uif":
        raise ValueError(f"The volume has the dtype {slices.dtype}; intensities must be integers or floats.")
    if not np.isfinite(slices).all():
        raise ValueError("The volume contains NaN or infinite intensities. Replace them, for instance by zero, first.")


class _VolumeComputation:
    """The `probabilities` of one volume as they are computed; `indices` are the slices that show a head."""

    def __init__(
        self,
        model: PreTrainedModel,
        processor: BaseImageProcessor,
        slices: np.ndarray,
        batch_size: int,
        crop_margin: int | None,
    ):
        self.model, self.processor, self.slices = model, processor, slices
        self.batch_size, self.crop_margin = batch_size, crop_margin if len(slices) > 1 else None
        self.probabilities = np.zeros(slices.shape[:3], dtype=np.float32)
        self.signal = signal_mask(slices)
        shown = ~_is_constant(slices)
        if self.crop_margin is not None:
            shown &= self.signal.mean(axis=(1, 2)) > EMPTY_SLICE
        self.indices = np.flatnonzero(shown)
        self.intensities = measure_intensities(slices)
        self.level = expit(logit(SCREENING_LEVEL) / model.config.temperature)
        # Slices above 512x512 take all threads one by one, for the memory's sake.
        small = math.prod(slices.shape[1:3]) <= 2**18
        self.threads = torch.get_num_threads() if model.device.type == "cpu" and small else 1

    def run(self, screening_stride: int, views: int) -> Iterator[int]:
        """Compute; a slice's index comes once for each view, when it is done or need not be computed."""
        indices = self.indices
        done = np.zeros(len(indices), dtype=bool)
        waiting = np.union1d(np.arange(0, len(indices), screening_stride), len(indices) - 1)[: len(indices)]
        while len(waiting):
            yield from self.compute(indices[waiting], VIEWS[0], self.probabilities)
            done[waiting] = True
            waiting = np.flatnonzero(self.suspects() & ~done)
        yield from indices[~done]

        if views > 1:
            again = self.suspects()
            total = self.probabilities.copy()
            for view in VIEWS[1:views]:
                yield from self.compute(indices[again], view, total)
                yield from indices[~again]
            np.maximum(self.probabilities, total / views, out=self.probabilities)

    def suspects(self) -> np.ndarray:
        """Which of `indices` hold what may be lesion, by what was computed so far, or lie beside one that does."""
        return ndimage.binary_dilation(self.probabilities[self.indices].max(axis=(1, 2)) >= self.level)

    def compute(self, chosen: np.ndarray, view: View, total: np.ndarray) -> Iterator[int]:
        """Add what the model gives for the `chosen` slices in one view to `total` (S, H, W), batch by batch."""
        if not len(chosen):
            return
        # Heads of about the same size share a window.
        chosen = chosen[np.argsort(self.signal[chosen].sum(axis=(1, 2)), kind="stable")]
        batches = np.split(chosen, range(self.batch_size, len(chosen), self.batch_size))
        side_by_side = min(self.threads, len(batches)) > 1
        one = partial(self.compute_batch, view=view, total=total)
        for batch in worker_pool(self.threads).map(one, batches) if side_by_side else map(one, batches):
            yield from batch

    def compute_batch(self, batch: np.ndarray, view: View, total: np.ndarray) -> np.ndarray:
        images, heads = view.of(self.slices[batch]), view.of(self.signal[batch]) > 0.5
        shown = ~_is_constant(images)  # otherwise all that a slice showed was in a corner that the turn cut off
        if not shown.any():
            return batch
        images, heads = images[shown], heads[shown]
        inputs = self.processor(images=list(images), volume_intensities=self.intensities, return_tensors="pt")
        pixel_values = inputs["pixel_values"]
        if self.crop_margin is None:
            rows, columns = slice(0, pixel_values.shape[-2]), slice(0, pixel_values.shape[-1])
        else:
            rows, columns = head_window(heads, self.crop_margin, self.processor.size_divisor)
        predicted = predict_probabilities(self.model, pixel_values[..., rows, columns]).numpy()
        height, width = heads.shape[1:]
        seen = np.zeros(heads.shape, dtype=np.float32)
        # The window may reach into the padding, which has no place in the result.
        seen[:, rows, columns] = predicted[:, : height - rows.start, : width - columns.start]
        total[batch[shown]] += view.undo(seen)
        return batch


class _Steps:
    """An iterator with the length that a progress bar needs."""

    def __init__(self, iterator: Iterator, length: int):
        self.iterator, self.length = iterator, length

    def __iter__(self) -> Iterator:
        return self.iterator

    def __len__(self) -> int:
        return self.length


def segment_volume(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    slices: np.ndarray,
    *,
    threshold: float = 0.5,
    postprocess: bool = True,
    batch_size: int = 1,
    crop_margin: int | None = CROP_MARGIN,
    screening_stride: int = SCREENING_STRIDE,
    views: int = 1,
    spacing: tuple[float, float, float] | None = None,
    affine: np.ndarray | None = None,
    progress: Progress | None = None,
) -> VolumeSegmentation:
    """Segment a stack of slices in order, such as a patient's axial slices.

    Args:
        slices, batch_size, crop_margin, screening_stride, views, progress: as in `predict_volume`.
        threshold: probability in (0, 1) from which a voxel counts as lesion.
        postprocess: drop small islands, fill holes and extend the outlines of what is left to the probability that
            promises the best Dice (`postprocessing.mask_from_probabilities`).
        spacing: voxel size along (S, H, W) in mm; kept, and used for the volume in ml.
        affine: (4, 4) voxel-to-world matrix in mm; kept.

    Raises:
        ValueError: as in `predict_volume`, a threshold outside (0, 1), or a spacing that is not three positive numbers.
    """
    check_threshold(threshold)
    if spacing is not None and (np.shape(spacing) != (3,) or not all(0 < length < np.inf for length in spacing)):
        raise ValueError(f"spacing is three positive lengths in mm, (slice, row, column), but is {spacing}.")
    probabilities = predict_volume(
        model,
        processor,
        slices,
        batch_size=batch_size,
        crop_margin=crop_margin,
        screening_stride=screening_stride,
        views=views,
        progress=progress,
    )
    mask = mask_from_probabilities(probabilities, threshold=threshold) if postprocess else probabilities >= threshold
    return VolumeSegmentation(probabilities, mask, spacing, affine)
