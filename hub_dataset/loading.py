"""Loading the dataset for training: lazily decoded slices, lesion-weighted batches, crops to the head."""

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import datasets
import numpy as np
import torch
from datasets import Dataset, DatasetDict, config, load_dataset
from datasets.exceptions import DatasetsError
from PIL import Image
from torch.utils.data import Sampler
from tqdm.auto import tqdm
from transformers import BaseImageProcessor

from modeling.image_processing_brain_mri import MINIMUM_SIZE, normalize_intensities, to_channels

from .augmentation import FLAIR_ALONE, SliceAugmentation, change_intensities, copy_flair, resample, sample_augmentation
from .patients import COLUMNS, group_by_patient, name_of, read_row
from .slice_measures import head_box, is_empty, measure_split, pixels_of

REQUIRED_COLUMNS = ("image", "mask", "patient_id", "slice_index", "has_lesion")


def load_splits(name_or_dir: str) -> DatasetDict:
    """The dataset's splits, from a folder that `hub_dataset.build` wrote or from the Hub.

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: it cannot be loaded, or columns that training and evaluation need are missing.
    """
    location = find_dataset(name_or_dir)
    try:
        splits = load_dataset(location)
    except FileNotFoundError as error:
        raise FileNotFoundError(or_no_folder(error, name_or_dir)) from error
    except (OSError, ValueError, DatasetsError) as error:
        raise ValueError(
            f"The dataset {name_or_dir} cannot be loaded (every split needs at least one slice; a copy in the cache "
            f"{config.HF_DATASETS_CACHE} that was cut off must be removed): "
            f"{or_no_folder(error.__cause__ or error, name_or_dir)}"
        ) from error
    for name, split in splits.items():
        check_columns(split.column_names, f"The split {name!r} of {name_or_dir}")
    return splits


def load_split(name_or_dir: str, split: str) -> Dataset:
    """One split of `load_splits`.

    Raises:
        FileNotFoundError, ValueError: as `load_splits`; or there is no such split.
    """
    splits = load_splits(name_or_dir)
    if split not in splits:
        raise ValueError(f"The split {split!r} is absent from {name_or_dir}; it has {', '.join(splits)}.")
    return splits[split]


def find_dataset(name_or_dir: str) -> str:
    """What `datasets.load_dataset` takes for a folder, which must be there, or for USER/NAME on the Hub.

    Raises:
        FileNotFoundError: a path that does not exist, or an empty folder.
        ValueError: a path that `datasets` would take for a pattern.
    """
    folder = Path(name_or_dir).expanduser()
    if folder.is_dir() and re.search(r"\[.+\]|::", str(folder.absolute())):
        raise ValueError(
            f"The dataset {name_or_dir} cannot be loaded from {folder.absolute()}, as `datasets` takes [...] and :: in "
            f"a path for patterns. Rename the folder that has them."
        )
    if folder.is_dir() and not any(folder.iterdir()):
        raise FileNotFoundError(
            f"The dataset folder {name_or_dir!r} is empty. `python -m hub_dataset.build --source KAGGLE_3M_DIR "
            f"--output {name_or_dir}` fills it."
        )
    looks_like_path = name_or_dir.startswith((".", "/", "~")) or name_or_dir.count("/") != 1
    if not looks_like_path:
        return name_or_dir
    if not folder.is_dir():
        raise FileNotFoundError(no_folder(name_or_dir))
    return str(folder)


def no_folder(name_or_dir: str) -> str:
    return (
        f"There is no dataset folder {name_or_dir!r}. `python -m hub_dataset.build --source KAGGLE_3M_DIR --output "
        f"{name_or_dir}` builds it; a dataset on the Hub is named USER/NAME."
    )


def or_no_folder(error: object, name_or_dir: str) -> str:
    """The text of an error of `load_dataset`, and that there is no folder of this name where there is none.

    A folder that is yet to be built, such as data/lgg, looks like USER/NAME, and the Hub was asked for it.
    """
    found = Path(name_or_dir).expanduser().is_dir()
    return str(error) if found else f"{str(error).rstrip('.')}. {no_folder(name_or_dir)}"


def check_columns(columns: Sequence[str], where: str) -> None:
    """Raise `ValueError` where one of `REQUIRED_COLUMNS` is missing; `where` begins the sentence."""
    if missing := [column for column in REQUIRED_COLUMNS if column not in columns]:
        raise ValueError(
            f"{where} has no column {', '.join(missing)}; its columns are {', '.join(columns)}. "
            f"`python -m hub_dataset.build` writes all that is needed."
        )


def check_slices(split: Dataset, as_volumes: bool) -> None:
    """Look through the headers of all images, so that training does not end at an odd one hours later.

    Args:
        as_volumes: whether a patient's slices are to be put together, as for validation.

    Raises:
        ValueError: an image or mask that is missing or damaged, an image that is not grey or RGB or is smaller than
            `MINIMUM_SIZE`, a mask of another size, or, with `as_volumes`, a slice that comes twice or slices of a
            patient that differ in size.
    """
    split = split.select_columns(list(COLUMNS))
    for column in ("image", "mask"):
        split = split.cast_column(column, datasets.Image(decode=False))
    if as_volumes:
        group_by_patient(split)  # raises where one comes twice
    sizes: dict[str, tuple[int, int]] = {}
    for row in tqdm(split, desc="Checking slices", leave=False):
        size = check_slice(row)
        first = sizes.setdefault(row["patient_id"], size) if as_volumes else size
        if size != first:
            raise ValueError(
                f"The image of {name_of(row)} has {size[0]}x{size[1]} pixels, and the patient's first image "
                f"{first[0]}x{first[1]}; they must be of one size."
            )


def check_slice(row: dict) -> tuple[int, int]:
    """(width, height) of a row whose images are not decoded, from their headers.

    Raises:
        ValueError: as `check_slices`, for what concerns one row.
    """
    where = name_of(row)
    try:
        (mode, size), (_, mask_size) = header_of(row["image"]), header_of(row["mask"])
    # TypeError: there is none; AttributeError: there is one without content
    except (OSError, TypeError, AttributeError, Image.DecompressionBombError) as error:
        raise ValueError(f"The image or the mask of {where} is missing or damaged ({error}).") from error
    if mode not in ("L", "RGB", "I", "F") and not mode.startswith("I;16"):
        raise ValueError(f"The image of {where} has the colour mode {mode}; slices are grey or RGB.")
    if min(size) < MINIMUM_SIZE:
        raise ValueError(f"The image of {where} has {size[0]}x{size[1]} pixels, under {MINIMUM_SIZE} a side.")
    if size != mask_size:
        raise ValueError(
            f"The image of {where} has {size[0]}x{size[1]} pixels, its mask {mask_size[0]}x{mask_size[1]}; they must "
            f"be of one size."
        )
    return size


def header_of(encoded: dict) -> tuple[str, tuple[int, int]]:
    """Colour mode and (width, height) of an image of the dataset that is not decoded."""
    with Image.open(io.BytesIO(encoded["bytes"]) if encoded["bytes"] else encoded["path"]) as image:
        return image.mode, image.size


class SampleKey(NamedTuple):
    """What makes a training sample: the row, the seed of its augmentation, and the crop's geometry."""

    index: int
    seed: tuple[int, ...]
    height: int
    width: int
    image_size: int


class TrainingSlices(torch.utils.data.Dataset):
    """Augmented crops of slices, decoded when asked for. Items are addressed by `SampleKey`.

    Each item is a dict with `pixel_values` (3, height, width) float32, normalised as the processor does, with
    `measure_split` for the volumes, `labels` (height, width) int64, 0 or 1, and `index`, the row in the split.
    `channels` is `all`, or `flair` for FLAIR alone, as all three channels.
    """

    def __init__(
        self,
        split: Dataset,
        processor: BaseImageProcessor,
        augmentation_strength: float = 1.0,
        channels: Literal["all", "flair"] = "all",
    ):
        self.intensities = measure_split(split)
        self.split = split.select_columns(list(COLUMNS))
        self.options = (processor, augmentation_strength, channels)

    def __getitem__(self, key: SampleKey) -> dict:
        row = read_row(self.split, key.index)
        return training_sample(row, self.intensities[key.index], key, *self.options)


def training_sample(
    row: dict,
    volume: np.ndarray,
    key: SampleKey,
    processor: BaseImageProcessor,
    augmentation_strength: float,
    channels: str,
) -> dict:
    """An item of `TrainingSlices` from the decoded images of its row and the intensities (3, 2) of its volume."""
    generator = np.random.default_rng(key.seed)
    augmentation = sample_augmentation(generator, augmentation_strength, processor.volume_share)
    if channels == "flair":
        augmentation = replace(augmentation, flair_copies=FLAIR_ALONE)
    image, mask = pixels_of(row["image"]), np.asarray(row["mask"].convert("L"))
    return {"index": key.index, **make_sample(image, mask, key, augmentation, processor.clip, volume)}


def make_sample(
    image: np.ndarray,
    mask: np.ndarray,
    key: SampleKey,
    augmentation: SliceAugmentation,
    clip: float,
    volume: np.ndarray | None = None,
) -> dict[str, torch.Tensor]:
    """One slice (H, W, 3) and its mask (H, W), 0 or above, as augmented and cropped tensors; see `TrainingSlices`.

    `volume` (3, 2) are the intensities of its volume; without them it is normalised by itself.
    """
    frame = (key.height, key.width)
    if is_empty(image):
        return {"pixel_values": torch.zeros(3, *frame), "labels": torch.zeros(frame, dtype=torch.int64)}
    pixels = to_channels(copy_flair(image, augmentation))
    box = head_box(pixels)
    normalized = normalize_intensities(pixels, clip, volume, augmentation.volume_share)
    channels = np.concatenate([normalized, (mask > 0)[..., None]], axis=-1, dtype=np.float32)
    channels = torch.from_numpy(channels.transpose(2, 0, 1).copy())
    scale = key.image_size / max(image.shape[:2])
    channels = resample(channels, augmentation, frame, scale, (box.center_row, box.center_column))
    return {
        "pixel_values": change_intensities(channels[:3], augmentation, clip),
        "labels": (channels[3] > 0.5).long(),
    }


class LesionBatchSampler(Sampler[list[SampleKey]]):
    """Batches for one epoch: every slice with a lesion, and `empty_ratio` times as many without, drawn anew each epoch.

    A batch holds slices with heads of about the same size, so that its crop, the size of the largest head rounded up
    to `size_divisor`, leaves out most of the background. All is a function of seed and epoch, so an interrupted epoch
    goes on with `start_batch`. The last, incomplete batch is left out.

    Args:
        has_lesion: (N,) bool.
        head_sizes: (N, 2), from `relative_head_sizes`.
        image_size: length in pixels of the slice's longer side before cropping; may be changed between epochs.
    """

    GROUP = 8  # batches among which slices are sorted by size

    def __init__(
        self,
        has_lesion: np.ndarray,
        head_sizes: np.ndarray,
        batch_size: int,
        image_size: int,
        size_divisor: int,
        empty_ratio: float = 1.0,
        seed: int = 0,
    ):
        self.lesion, self.empty = np.flatnonzero(has_lesion), np.flatnonzero(~np.asarray(has_lesion))
        self.num_empty = min(round(empty_ratio * len(self.lesion)), len(self.empty))
        if len(self.lesion) + self.num_empty < batch_size:
            raise ValueError(
                f"An epoch has {len(self.lesion)} slices with a lesion and {self.num_empty} without, fewer than one "
                f"batch of {batch_size}. Use a smaller batch size or more patients."
            )
        self.head_sizes = head_sizes
        self.batch_size = batch_size
        self.image_size = image_size
        self.size_divisor = size_divisor
        self.seed = seed
        self.epoch = 0
        self.start_batch = 0
        self.drop_last = True

    def seek(self, epoch: int, start_batch: int = 0) -> None:
        """Go to a batch of an epoch. (Not named `set_epoch`, which accelerate would call with a count of its own.)"""
        self.epoch, self.start_batch = epoch, start_batch

    @property
    def num_batches(self) -> int:
        """Batches of a whole epoch."""
        return (len(self.lesion) + self.num_empty) // self.batch_size

    def __len__(self) -> int:
        return self.num_batches - self.start_batch

    def crop_size(self, indices: np.ndarray) -> tuple[int, int]:
        """(height, width) in pixels that hold the heads of these slices."""
        wanted = self.head_sizes[indices].max(axis=0) * self.image_size
        limits = (-(-MINIMUM_SIZE // self.size_divisor), -(-self.image_size // self.size_divisor))
        return tuple(int(np.clip(np.ceil(side / self.size_divisor), *limits)) * self.size_divisor for side in wanted)

    def draw(self, generator: np.random.Generator) -> np.ndarray:
        """The epoch's slices in random order: (num_lesion + num_empty,) int."""
        order = np.concatenate([self.lesion, generator.choice(self.empty, self.num_empty, replace=False)])
        generator.shuffle(order)
        return order

    def groups(self, order: np.ndarray) -> list[np.ndarray]:
        """`order` without its incomplete batch, `GROUP` batches at a time."""
        complete = order[: self.num_batches * self.batch_size]
        return np.split(complete, range(self.GROUP * self.batch_size, len(complete), self.GROUP * self.batch_size))

    def batches_of(self, group: np.ndarray) -> np.ndarray:
        """Batches of slices with heads of about the same size: (up to GROUP, batch_size) int."""
        by_size = group[np.argsort(self.head_sizes[group].prod(axis=1), kind="stable")]
        return by_size.reshape(-1, self.batch_size)

    def keys(self, indices: np.ndarray) -> list[SampleKey]:
        """The samples of one batch."""
        height, width = self.crop_size(indices)
        return [SampleKey(int(i), (self.seed, self.epoch, int(i)), height, width, self.image_size) for i in indices]

    def __iter__(self) -> Iterator[list[SampleKey]]:
        generator = np.random.default_rng([self.seed, self.epoch])
        batches = [batch for group in self.groups(self.draw(generator)) for batch in self.batches_of(group)]
        generator.shuffle(batches)
        for indices in batches[self.start_batch :]:
            yield self.keys(indices)
