"""Training on a dataset as it comes, from the Hub or a folder, without downloading it.

Images are read a row group of the Parquet files at a time, which is one patient as `hub_dataset.build` writes them. The
small columns are read first, on their own: the slices of an epoch, and so its batches, are known before any image is.
They are what grows with the dataset in memory; beside them are there the slices, still encoded, in the shuffle buffer
and in the next batches, and a few row groups.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
from datasets import IterableDataset, load_dataset
from transformers import BaseImageProcessor

from .loading import (
    LesionBatchSampler,
    SampleKey,
    check_columns,
    check_slice,
    find_dataset,
    or_no_folder,
    training_sample,
)
from .patients import decode_row
from .slice_measures import intensities_by_patient, measure_slice, pixels_of, relative_head_size

SMALL_COLUMNS = ("patient_id", "slice_index", "has_lesion")
IMAGE_COLUMNS = ("image", "mask", "patient_id", "slice_index")
# What a read takes beyond the bytes asked for: by default 5 MiB, so that a small column would bring the images along.
STORAGE_OPTIONS = {"hf": {"block_size": 2**16}}
NUM_READERS = 8  # row groups whose small columns are read at a time
READ_AHEAD = 2  # row groups on their way while the one before is used


class StreamError(RuntimeError):
    """Rows cannot be read, hold no slice, or are not what they were at the start."""


class StreamedSplit:
    """A split whose images stay where they are.

    Stands in for `datasets.Dataset` where rows are asked for patient by patient, as `evaluate.evaluate_split` does:
    `split[column]` is one of `SMALL_COLUMNS` as a list, `split[row]` a row with its images decoded. The row group that
    was read last is kept, so rows of one patient should lie together.

    Args:
        stream: the split with `IMAGE_COLUMNS`, not decoded, a shard for each row group.
        small: the same with `SMALL_COLUMNS` and `mask`.
        where: names the split in messages.

    Attributes:
        row_groups: (N,) int, the row group of each row.
        missing_masks: number of rows without one.
    """

    def __init__(self, stream: IterableDataset, small: IterableDataset, where: str):
        self.stream, self.where = stream, where
        with ThreadPoolExecutor(NUM_READERS) as pool:
            groups = list(pool.map(partial(self._read_small, small), range(small.num_shards)))
        self.columns = {name: [row[name] for rows in groups for row in rows] for name in SMALL_COLUMNS}
        self.missing_masks = sum(not row["mask"] for rows in groups for row in rows)
        self.starts = np.cumsum([0, *map(len, groups)])
        self.row_groups = np.repeat(np.arange(len(groups)), np.diff(self.starts))
        self.last_read: tuple[int, list[dict]] | None = None

    @property
    def column_names(self) -> list[str]:
        return ["image", "mask", *SMALL_COLUMNS]

    def select_columns(self, names: Sequence[str]) -> "StreamedSplit":
        """The split itself: rows have the columns that evaluation asks for."""
        return self

    def __len__(self) -> int:
        return len(self.row_groups)

    def __getitem__(self, item: str | int) -> list | dict:
        if isinstance(item, str):
            return self.columns[item]
        group = int(self.row_groups[item])
        if self.last_read is None or self.last_read[0] != group:
            self.last_read = None  # freed before the next one is read
            self.last_read = (group, self.read(group))
        return decode_row(self.last_read[1][item - self.starts[group]])

    def read(self, group: int) -> list[dict]:
        """The rows of a row group, their images still encoded.

        Raises:
            StreamError: they cannot be read, are other rows than at the start, or hold what `check_slice` refuses.
        """
        rows = self._read_shard(self.stream, group)
        expected = range(self.starts[group], self.starts[group + 1])
        found = [(row["patient_id"], row["slice_index"]) for row in rows]
        if found != [(self.columns["patient_id"][i], self.columns["slice_index"][i]) for i in expected]:
            raise StreamError(f"{self.where} was changed while it was read")
        for row in rows:
            try:
                check_slice(row)
            except ValueError as error:
                raise StreamError(f"{self.where} cannot be used. {str(error).rstrip('.')}") from error
        return rows

    def _read_small(self, small: IterableDataset, group: int) -> list[dict]:
        """The rows of a row group, of the mask only whether it is there."""
        return [row | {"mask": row["mask"] is not None} for row in self._read_shard(small, group)]

    def _read_shard(self, stream: IterableDataset, group: int) -> list[dict]:
        try:
            return list(stream.shard(num_shards=stream.num_shards, index=group))
        except Exception as error:  # the libraries raise whatever the network or a file leads to
            raise StreamError(f"{self.where} cannot be read any further: {first_line(error)}") from error


def stream_splits(name_or_dir: str) -> dict[str, StreamedSplit]:
    """The splits of a folder that `hub_dataset.build` wrote, or of a dataset on the Hub, without their images.

    Raises:
        FileNotFoundError: no such folder or dataset.
        ValueError: a column that is needed is missing, or the dataset cannot be read as a stream of Parquet files.
    """
    streams = open_streams(name_or_dir)
    where = {name: f"The split {name!r} of {name_or_dir}" for name in streams}
    for name, stream in streams.items():
        check_columns(stream.column_names, where[name])
    small = open_streams(name_or_dir, columns=[*SMALL_COLUMNS, "mask"])
    try:
        return {
            name: StreamedSplit(stream.select_columns(list(IMAGE_COLUMNS)), small[name], where[name])
            for name, stream in streams.items()
        }
    except StreamError as error:
        raise ValueError(f"{error} (Every split needs at least one slice.)") from error


def open_streams(name_or_dir: str, **options) -> dict[str, IterableDataset]:
    """The splits as `datasets` streams them, not decoded, a shard for each row group."""
    location = find_dataset(name_or_dir)
    try:
        streams = load_dataset(location, streaming=True, storage_options=STORAGE_OPTIONS, **options)
        return {name: stream.decode(False).reshard() for name, stream in streams.items()}
    except FileNotFoundError as error:
        raise FileNotFoundError(or_no_folder(error, name_or_dir)) from error
    except Exception as error:  # the libraries raise whatever the Hub or a file leads to
        raise ValueError(
            f"The dataset {name_or_dir} cannot be streamed; that needs Parquet files, and a network for those on the "
            f"Hub: {or_no_folder(first_line(error), name_or_dir)}"
        ) from error


def first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


class EncodedSlice(NamedTuple):
    """A training sample to be: its key, its row with the images encoded, and its volume's intensities (3, 2)."""

    key: SampleKey
    row: dict
    volume: np.ndarray


class StreamedSlices(torch.utils.data.Dataset):
    """Augmented crops as those of `TrainingSlices`, decoded when asked for. Items are addressed by `EncodedSlice`."""

    def __init__(
        self,
        processor: BaseImageProcessor,
        augmentation_strength: float = 1.0,
        channels: Literal["all", "flair"] = "all",
    ):
        self.options = (processor, augmentation_strength, channels)

    def __getitem__(self, item: EncodedSlice) -> dict:
        return training_sample(decode_row(item.row), item.volume, item.key, *self.options)


class StreamedBatchSampler(LesionBatchSampler):
    """The epochs of `LesionBatchSampler` in an order in which they can be streamed; batches carry their slices along.

    Row groups come in random order, and their slices, of which those that the epoch does not use are dropped, pass
    through a shuffle buffer. Its order is drawn before, from seed and epoch alone: a slice leaves it up to `buffer`
    slices after its turn. An interrupted epoch therefore goes on exactly where it stopped, and reads again only what
    had not left the buffer by then. Batches are made, by size of the head, of `GROUP` batches that leave one after
    another; the heads and the intensities are measured as slices arrive, the latter of a patient's slices within the
    row group, which are all as `hub_dataset.build` writes them.

    Memory holds at most `buffer` slices and `GROUP` batches, encoded, and `READ_AHEAD` row groups and one more.

    Args:
        split: its small columns choose the slices of an epoch.
        buffer: slices among which the order is shuffled; 1 keeps that in which they come.
        options: further arguments of `LesionBatchSampler`.
    """

    def __init__(self, split: StreamedSplit, buffer: int, **options):
        super().__init__(np.asarray(split["has_lesion"]), np.full((len(split), 2), np.nan), **options)
        self.split = split
        self.buffer = buffer
        self.intensities = np.full((len(split), 3, 2), np.nan, dtype=np.float32)

    def __iter__(self) -> Iterator[list[EncodedSlice]]:
        # 1. The order in which slices leave the buffer
        generator = np.random.default_rng([self.seed, self.epoch])
        order = self.draw(generator)
        turns = generator.permutation(self.split.row_groups[-1] + 1)  # of the row groups
        order = order[np.argsort(turns[self.split.row_groups[order]], kind="stable")]
        order = order[np.argsort(np.arange(len(order)) + generator.uniform(0, self.buffer, len(order)))]
        groups = self.groups(order)
        sequences = [generator.permutation(len(group) // self.batch_size) for group in groups]

        # 2. What of it is still to come
        if not len(self):
            return
        done = self.start_batch // self.GROUP
        groups, sequences = groups[done:], sequences[done:]
        arriving = self.arriving(set(np.concatenate(groups).tolist()), turns)
        held: dict[int, dict] = {}

        # 3. Batches
        skip = self.start_batch % self.GROUP
        for group, sequence in zip(groups, sequences, strict=True):
            while not held.keys() >= set(group.tolist()):
                held |= next(arriving)
            batches = self.batches_of(group)[sequence]
            for indices in batches[:skip].flat:
                del held[indices]
            for indices in batches[skip:]:
                yield [
                    EncodedSlice(key, held.pop(key.index), self.intensities[key.index]) for key in self.keys(indices)
                ]
            skip = 0

    def arriving(self, wanted: set[int], turns: np.ndarray) -> Iterator[dict[int, dict]]:
        """The wanted slices with their heads measured, row group by row group in order of their turns."""
        groups = sorted({int(self.split.row_groups[i]) for i in wanted}, key=lambda group: turns[group])
        coming: deque = deque()
        with ThreadPoolExecutor(READ_AHEAD) as readers:
            for group in groups:
                coming.append(readers.submit(self.read, group, wanted))
                if len(coming) > READ_AHEAD:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()

    def read(self, group: int, wanted: set[int]) -> dict[int, dict]:
        """The wanted slices of a row group, which is measured when it is read first."""
        rows = dict(enumerate(self.split.read(group), self.split.starts[group]))
        first, last = self.split.starts[group : group + 2]
        if np.isnan(self.intensities[first:last]).any():
            images = [pixels_of(decode_row(row)["image"]) for row in rows.values()]
            patient_ids = [row["patient_id"] for row in rows.values()]
            self.intensities[first:last] = intensities_by_patient(patient_ids, list(map(measure_slice, images)))
            self.head_sizes[first:last] = [relative_head_size(image) for image in images]
        return {i: row for i, row in rows.items() if i in wanted}
