"""What is measured of every slice before training: where the head lies, and the intensities of its volume."""

import hashlib
import inspect
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import datasets
import numpy as np
from datasets import Dataset
from PIL import Image

from modeling import image_processing_brain_mri
from modeling.image_processing_brain_mri import (
    FLAIR,
    OCCUPIED,
    SliceIntensities,
    head_mask,
    slice_intensities,
    to_channels,
    volume_intensities,
)

from .patients import decode_row


class Box(NamedTuple):
    """The head in a slice, in pixels: center (row, column) and size."""

    center_row: float
    center_column: float
    height: float
    width: float


def head_box(image: np.ndarray) -> Box:
    """Where the head lies in (H, W, 3); the middle quarter of the frame where there is next to no signal."""
    mask = head_mask(image)
    spans = []
    for share, size in ((mask.mean(axis=1), image.shape[0]), (mask.mean(axis=0), image.shape[1])):
        occupied = np.flatnonzero(share > OCCUPIED)
        spans.append((occupied[0], occupied[-1] + 1) if len(occupied) else (size / 4, 3 * size / 4))
    (top, bottom), (left, right) = spans
    return Box((top + bottom) / 2, (left + right) / 2, bottom - top, right - left)


def pixels_of(image: Image.Image) -> np.ndarray:
    """(H, W, 3) of an image of the dataset; a grey one is FLAIR, in all channels."""
    pixels = np.asarray(image)
    return np.repeat(pixels[..., None], 3, axis=-1) if pixels.ndim == 2 else pixels


def is_empty(image: np.ndarray) -> bool:
    """Whether FLAIR is constant in (H, W, 3), so that there is nothing to normalise."""
    return image[..., FLAIR].min() == image[..., FLAIR].max()


def code_version() -> str:
    """SHA-256 of the code that measures slices: part of the key in the cache of `datasets`, which knows it by name."""
    modules = (image_processing_brain_mri, sys.modules[__name__])
    return hashlib.sha256("".join(map(inspect.getsource, modules)).encode()).hexdigest()


def measure_images(split: Dataset, measure: Callable[[np.ndarray], dict], desc: str) -> Dataset:
    """`measure` of every image, (H, W, 3): one pass, whose result `datasets` keeps in its cache.

    Raises:
        DamagedSlice: an image cannot be decoded.
    """

    def measure_one(row, code):
        return measure(pixels_of(decode_row(row)["image"]))

    columns = ["image", "patient_id", "slice_index"]
    return (
        split.select_columns(columns)
        .cast_column("image", datasets.Image(decode=False))
        .map(measure_one, fn_kwargs={"code": code_version()}, remove_columns=columns, desc=desc)
    )


def relative_head_sizes(split: Dataset) -> np.ndarray:
    """Height and width of the head in every slice as a share of the slice's longer side: (N, 2) float."""

    def measure(image: np.ndarray) -> dict[str, float]:
        return dict(zip(("head_height", "head_width"), relative_head_size(image), strict=True))

    sizes = measure_images(split, measure, "Finding the head")
    return np.stack([sizes["head_height"], sizes["head_width"]], axis=1)


def relative_head_size(image: np.ndarray) -> tuple[float, float]:
    """Height and width of the head in (H, W, 3) as a share of the longer side; both 0 in an empty slice."""
    if is_empty(image):
        return 0.0, 0.0
    box = head_box(image.astype(np.float32))
    return box.height / max(image.shape[:2]), box.width / max(image.shape[:2])


def measure_slice(image: np.ndarray) -> SliceIntensities:
    """`slice_intensities` of (H, W, 3) in any dtype; an empty slice has no brain pixels."""
    if is_empty(image):
        return SliceIntensities(
            np.zeros((3, 2), dtype=np.float32), brain_pixels=0, brightness=0.0, copied=np.ones(3, dtype=bool)
        )
    return slice_intensities(to_channels(image))


def intensities_by_patient(patient_ids: Sequence[str], slices: Sequence[SliceIntensities]) -> np.ndarray:
    """Each row's `volume_intensities`, of all rows of its patient: (N, 3, 2) float32; zeros where all are empty."""
    patient_ids = np.asarray(patient_ids)
    result = np.empty((len(slices), 3, 2), dtype=np.float32)
    for patient in np.unique(patient_ids):
        rows = np.flatnonzero(patient_ids == patient)
        result[rows] = volume_intensities([slices[row] for row in rows])
    return result


def measure_split(split: Dataset) -> np.ndarray:
    """`intensities_by_patient` of a split: (N, 3, 2) float32."""

    def measure(image: np.ndarray) -> dict:
        return measure_slice(image)._asdict()

    measured = measure_images(split, measure, "Measuring intensities")
    slices = [SliceIntensities(**row) for row in measured.with_format("numpy")]
    return intensities_by_patient(split["patient_id"], slices)
