"""Training on a stream: the samples of a dataset read as a whole, in bounded memory, to go on with exactly."""

import io
import itertools
import re
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from evaluate_samples import FEATURES
from local_hub_requests import Handler
from PIL import Image as PILImage
from safetensors.torch import load_file
from tiny_models import tiny_model
from tiny_training import read_log
from torch.utils.data import DataLoader

from evaluate import evaluate_split
from hub_dataset import streaming
from hub_dataset.loading import LesionBatchSampler, TrainingSlices, load_splits
from hub_dataset.patients import DamagedSlice
from hub_dataset.slice_measures import relative_head_sizes
from hub_dataset.streaming import StreamedBatchSampler, StreamedSlices, StreamError, stream_splits
from modeling import BrainMRIImageProcessor
from training import loop

pytest_plugins = ["training_fixtures"]

PATIENTS, SLICES = 24, 6
SETTINGS = {"batch_size": 2, "image_size": 32, "size_divisor": 16, "seed": 3}


def png(pixels: np.ndarray) -> dict:
    content = io.BytesIO()
    PILImage.fromarray(pixels).save(content, "png")
    return {"bytes": content.getvalue(), "path": None}


def make_rows(patients: int, seed: int = 0, size: int = 32) -> list[dict]:
    """Rows of `SLICES` slices a patient, every third with a lesion: bright rectangles of many sizes."""
    rng, rows = np.random.default_rng(seed), []
    for patient, index in itertools.product(range(patients), range(SLICES)):
        image, mask = np.zeros((size, size, 3), np.uint8), np.zeros((size, size), np.uint8)
        height, width = rng.integers(size // 4, size - 4, 2)
        image[2 : 2 + height, 2 : 2 + width] = rng.integers(60, 120, (height, width, 3))
        if index % 3 == 1:
            mask[6:9, 6:9] = 255
        row = {"image": png(image), "mask": png(mask), "patient_id": f"P{patient:02}", "slice_index": index + 1}
        rows.append(row | {"has_lesion": bool(mask.any())})
    return rows


def write_split(path, rows: list[dict], columns=FEATURES) -> None:
    """Write Parquet with a row group for each patient."""
    table = pa.Table.from_pylist(rows, FEATURES.arrow_schema).select(list(columns))
    pq.write_table(table, path, row_group_size=SLICES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A dataset of many small patients. Not to be written to."""
    folder = tmp_path_factory.mktemp("stream")
    write_split(folder / "train.parquet", make_rows(PATIENTS))
    write_split(folder / "validation.parquet", make_rows(2, seed=1))
    return folder


@pytest.fixture(scope="module")
def train(folder):
    return stream_splits(str(folder))["train"]


def rows_of(batches) -> list[list[int]]:
    return [[item.key.index for item in batch] for batch in batches]


class TestSplit:
    def test_columns_and_rows_are_those_of_the_dataset(self, phantom_dataset_dir):
        streamed, whole = stream_splits(str(phantom_dataset_dir)), load_splits(str(phantom_dataset_dir))
        assert list(streamed) == list(whole) == ["train", "validation", "test"]
        for name, split in whole.items():
            assert len(streamed[name]) == len(split)
            assert streamed[name].missing_masks == 0
            for column in ("patient_id", "slice_index", "has_lesion"):
                assert streamed[name][column] == list(split[column])
        for i in (0, 13, 39):
            one, other = streamed["train"][i], whole["train"][i]
            assert (one["patient_id"], one["slice_index"]) == (other["patient_id"], other["slice_index"])
            for column in ("image", "mask"):
                np.testing.assert_array_equal(np.asarray(one[column]), np.asarray(other[column]))

    def test_evaluation_reads_each_patient_once_and_scores_as_ever(self, phantom_dataset_dir, monkeypatch):
        model, processor = tiny_model("unet-4level"), BrainMRIImageProcessor(size_divisor=8)
        split = stream_splits(str(phantom_dataset_dir))["validation"]
        reads, read = [], split.read
        monkeypatch.setattr(split, "read", lambda group: reads.append(group) or read(group))
        scores = evaluate_split(model, processor, split)
        assert reads == [0, 1]
        expected = evaluate_split(model, processor, load_splits(str(phantom_dataset_dir))["validation"])
        assert scores.to_dict() == expected.to_dict()

    def test_masks_that_are_missing_are_counted(self, tmp_path):
        rows = make_rows(2)
        rows[3]["mask"] = rows[8]["mask"] = None
        write_split(tmp_path / "train.parquet", rows)
        assert stream_splits(str(tmp_path))["train"].missing_masks == 2

    @pytest.mark.parametrize(
        ("name", "write", "message"),
        [
            ("train.parquet", lambda path: write_split(path, make_rows(1), ["image", "patient_id"]), "no column mask"),
            ("train.parquet", lambda path: write_split(path, []), "at least one slice"),
            ("train.csv", lambda path: path.write_text("image,mask\na,b\n"), "cannot be streamed; that needs Parquet"),
        ],
    )
    def test_what_cannot_be_streamed(self, tmp_path, name, write, message):
        write(tmp_path / name)
        with pytest.raises(ValueError, match=message):
            stream_splits(str(tmp_path))

    def test_without_a_network_a_dataset_of_the_hub_is_none(self):
        with pytest.raises(ValueError, match=r"alice/lgg cannot be streamed.* network.*no dataset folder 'alice/lgg'"):
            stream_splits("alice/lgg")

    def test_files_that_go_or_change_meanwhile(self, tmp_path):
        path = tmp_path / "train.parquet"
        write_split(path, make_rows(3))
        split = stream_splits(str(tmp_path))["train"]
        write_split(path, make_rows(3)[::-1])
        with pytest.raises(StreamError, match="was changed while it was read"):
            split.read(0)
        path.unlink()
        with pytest.raises(StreamError, match="cannot be read any further"):
            split.read(1)

    @pytest.mark.parametrize(
        ("column", "content", "message"),
        [
            ("image", png(np.ones((32, 32, 4), np.uint8)), "image of slice 2 of patient P01 has the colour mode RGBA"),
            ("image", {"bytes": b"none", "path": None}, "slice 2 of patient P01 is missing or damaged"),
            ("image", None, "slice 2 of patient P01 is missing or damaged"),
            ("image", {"bytes": None, "path": None}, "slice 2 of patient P01 is missing or damaged"),
            ("mask", png(np.zeros((40, 32), np.uint8)), "slice 2 of patient P01 has 32x32 pixels, its mask 32x40"),
        ],
        ids=["transparent", "no image", "missing", "without content", "mask of another size"],
    )
    def test_an_odd_slice_is_named(self, tmp_path, column, content, message):
        rows = make_rows(2)
        rows[SLICES + 1][column] = content
        write_split(tmp_path / "train.parquet", rows)
        split = stream_splits(str(tmp_path))["train"]
        split.read(0)
        with pytest.raises(StreamError, match=message):
            split.read(1)

    def test_a_slice_that_is_cut_off_is_named(self, tmp_path):
        rows = make_rows(1)
        rows[1]["image"]["bytes"] = rows[1]["image"]["bytes"][:-60]
        write_split(tmp_path / "train.parquet", rows)
        split = stream_splits(str(tmp_path))["train"]
        with pytest.raises(DamagedSlice, match="slice 2 of patient P00 is damaged"):
            list(StreamedBatchSampler(split, 1, **SETTINGS))


class TestSampler:
    def test_an_epoch_has_the_slices_that_it_has_of_the_whole_dataset(self, train):
        settings = SETTINGS | {"batch_size": 1, "empty_ratio": 0.5}
        has_lesion = np.asarray(train["has_lesion"])
        whole = LesionBatchSampler(has_lesion, np.ones((len(train), 2)), **settings)
        streamed = StreamedBatchSampler(train, 20, **settings)
        for epoch in range(2):
            whole.seek(epoch)
            streamed.seek(epoch)
            chosen = [i for batch in rows_of(streamed) for i in batch]
            assert len(chosen) == len(set(chosen)) == streamed.num_batches
            assert sorted(chosen) == sorted(key.index for batch in whole for key in batch)
            assert has_lesion[chosen].sum() == has_lesion.sum() == 2 * (~has_lesion[chosen]).sum()

    @pytest.mark.parametrize("channels", ["all", "flair"])
    def test_batches_are_the_tensors_of_the_whole_dataset(self, phantom_dataset_dir, channels):
        whole = load_splits(str(phantom_dataset_dir))["train"]
        options = (BrainMRIImageProcessor(), 1.0, channels)
        settings = SETTINGS | {"batch_size": 4, "image_size": 64}
        sampler = StreamedBatchSampler(stream_splits(str(phantom_dataset_dir))["train"], 10, **settings)
        keys = [[item.key for item in batch] for batch in sampler]
        streamed = DataLoader(StreamedSlices(*options), batch_sampler=sampler, num_workers=1)
        expected = DataLoader(TrainingSlices(whole, *options), batch_sampler=keys)
        for one, other in zip(streamed, expected, strict=True):
            assert one.keys() == other.keys() == {"pixel_values", "labels", "index"}
            assert all(torch.equal(one[name], other[name]) for name in one)
        sizes = relative_head_sizes(whole)
        for batch in keys:
            assert sampler.crop_size([key.index for key in batch]) == (batch[0].height, batch[0].width)
            np.testing.assert_array_equal(*(s[[key.index for key in batch]] for s in (sampler.head_sizes, sizes)))

    def test_lesions_and_patients_are_mixed_all_along_an_epoch(self, train):
        has_lesion = np.asarray(train["has_lesion"])
        sampler = StreamedBatchSampler(train, 40, **SETTINGS)
        order = np.concatenate(rows_of(sampler))
        quarters = np.array_split(order, 4)
        assert all(0.25 < has_lesion[quarter].mean() < 0.75 for quarter in quarters)
        in_order = np.concatenate(rows_of(StreamedBatchSampler(train, 1, **SETTINGS)))
        patients, patients_in_order = (
            sum(len(set(train.row_groups[quarter])) for quarter in np.array_split(rows, 4))
            for rows in (order, in_order)
        )
        assert patients > 1.2 * patients_in_order

    def test_epochs_differ_and_repeat_exactly(self, train):
        first, second = StreamedBatchSampler(train, 20, **SETTINGS), StreamedBatchSampler(train, 20, **SETTINGS)
        epochs = []
        for epoch in range(2):
            first.seek(epoch)
            second.seek(epoch)
            epochs.append(rows_of(first))
            assert epochs[-1] == rows_of(second)
        assert epochs[0] != epochs[1]
        begin, again = (set(train.row_groups[np.concatenate(batches[: len(batches) // 4])]) for batches in epochs)
        assert len(begin & again) < 0.7 * len(begin), "patients come in the same order"
        assert rows_of(StreamedBatchSampler(train, 20, **SETTINGS | {"seed": 4})) != epochs[0]

    def test_an_interrupted_epoch_goes_on_where_it_stopped_without_reading_all(self, train, monkeypatch):
        monkeypatch.setattr(StreamedBatchSampler, "GROUP", 4)
        whole = StreamedBatchSampler(train, 8, **SETTINGS)
        batches = [[(item.key, item.row) for item in batch] for batch in whole]
        for start in (1, 4, 7, len(batches) - 1):
            again = StreamedBatchSampler(train, 8, **SETTINGS)  # that has measured no head yet
            again.seek(0, start)
            assert len(again) == len(batches) - start
            assert [[(item.key, item.row) for item in batch] for batch in again] == batches[start:]
        assert np.isfinite(again.head_sizes[:, 0]).sum() < 0.5 * len(train)
        again.seek(0, len(batches))
        assert list(again) == []

    @pytest.mark.parametrize("buffer", [1, 8, 16])
    def test_memory_is_bounded_by_buffer_group_and_row_groups(self, train, monkeypatch, buffer):
        monkeypatch.setattr(StreamedBatchSampler, "GROUP", 2)
        sampler = StreamedBatchSampler(train, buffer, **SETTINGS)
        arrived, read = [], sampler.read

        class AtOnce(ThreadPoolExecutor):
            def submit(self, *call) -> Future:
                done = Future()
                done.set_result(call[0](*call[1:]))
                return done

        monkeypatch.setattr(streaming, "ThreadPoolExecutor", AtOnce)

        def spy(group, wanted):
            rows = read(group, wanted)
            arrived.extend(rows)
            return rows

        monkeypatch.setattr(sampler, "read", spy)
        gone, held = 0, []
        for batch in sampler:
            held.append(len(arrived) - gone)
            gone += len(batch)
        limit = buffer + 2 * 2 + (streaming.READ_AHEAD + 1) * SLICES
        assert max(held) <= limit < 0.5 * gone
        assert gone == len(arrived) == 4 * PATIENTS

    def test_processes_share_each_batch_and_no_slice_is_seen_twice(self, train):
        shares = [
            rows_of(BatchSamplerShard(StreamedBatchSampler(train, 20, **SETTINGS), 2, index, split_batches=True))
            for index in range(2)
        ]
        whole = rows_of(StreamedBatchSampler(train, 20, **SETTINGS))
        assert [one + other for one, other in zip(*shares, strict=True)] == whole
        assert len(set(np.concatenate(whole))) == sum(map(len, whole))

    def test_batches_of_like_sizes_leave_out_more_background_than_random_ones(self, train):
        sampler = StreamedBatchSampler(train, 40, **SETTINGS | {"image_size": 256, "batch_size": 4})
        batches = rows_of(sampler)
        areas = [np.prod(sampler.crop_size(batch)) for batch in batches]
        heads = [sampler.head_sizes[batch].prod(axis=1).mean() for batch in batches[: sampler.GROUP]]
        assert heads != sorted(heads)
        mixed = np.random.default_rng(0).permutation(np.concatenate(batches)).reshape(-1, 4)
        assert np.mean(areas) < np.mean([np.prod(sampler.crop_size(batch)) for batch in mixed])


class TestTraining:
    """train.py --streaming; `run` trains a tiny U-Net in this process."""

    def test_killed_and_resumed_it_ends_as_one_that_never_was(self, run, monkeypatch):
        arguments = ("--streaming", "10", "--checkpoint_minutes", "0")
        whole = run(*arguments, folder="whole")
        validated = read_log(whole)[-1]["validation_dice"]
        assert len(validated) == 2

        loss, steps = loop.segmentation_loss, itertools.count(1)

        def killed_at_the_ninth_step(*tensors):
            if next(steps) == 9:
                raise KeyboardInterrupt
            return loss(*tensors)

        monkeypatch.setattr(loop, "segmentation_loss", killed_at_the_ninth_step)
        with pytest.raises(SystemExit, match="stopped"):
            run(*arguments, folder="killed")
        killed = run(*arguments, "--resume", folder="killed")
        for name in ("best", "last"):
            expected, resumed = (load_file(folder / name / "model.safetensors") for folder in (whole, killed))
            assert all(torch.equal(expected[key], resumed[key]) for key in expected)
        assert without_seconds(read_log(whole)) == without_seconds(read_log(killed))

    def test_a_stream_that_breaks_off_ends_the_run_which_goes_on(self, run, monkeypatch):
        read, reads = streaming.StreamedSplit._read_shard, itertools.count(1)

        def broken(split, stream, group):
            if split.where.startswith("The split 'train'") and next(reads) == 12:
                raise StreamError(f"{split.where} cannot be read any further: 503")
            return read(split, stream, group)

        monkeypatch.setattr(streaming.StreamedSplit, "_read_shard", broken)
        with pytest.raises(SystemExit, match=r"503\. With --resume, the same command goes on"):
            run("--streaming")
        assert len(read_log(run("--streaming", "--resume"))) == 2

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--streaming", "0"], "at least 1 slice"),
            (["--streaming", "--folds", "2", "--fold", "0"], "leave out --streaming"),
            (["--streaming", "--dry_run"], "leave out --streaming"),
        ],
    )
    def test_what_does_not_go_with_it(self, run, capsys, arguments, message):
        with pytest.raises(SystemExit, match="2"):
            run(*arguments)
        assert message in capsys.readouterr().err

    def test_what_cannot_be_learnt_from_or_scored_is_refused_before_training(self, run, tmp_path):
        rows = make_rows(2)
        rows[3]["mask"] = None
        (tmp_path / "data").mkdir()
        for name in ("train", "validation"):
            write_split(tmp_path / "data" / f"{name}.parquet", rows)
        with pytest.raises(SystemExit, match=r"1 slices in the split 'train' of .* have no mask"):
            run("--streaming", "--dataset", str(tmp_path / "data"))
        rows = make_rows(2)
        write_split(tmp_path / "data" / "train.parquet", rows)
        rows[1]["slice_index"] = 1
        write_split(tmp_path / "data" / "validation.parquet", rows)
        with pytest.raises(SystemExit, match="Slice 1 of patient P00 is in the split twice"):
            run("--streaming", "--dataset", str(tmp_path / "data"))
        assert not (tmp_path / "run").exists()

    def test_two_processes_train_as_one(self, run, run_client, phantom_dataset_dir, tmp_path):
        arguments = ["--streaming", "10", "--optimizer", "sgd", "--learning_rate", "0.05", "--image_size", "48"]
        arguments += ["--epochs", "1"]
        one = read_log(run(*arguments))
        arguments += ["--model", "tiny", "--dataset", phantom_dataset_dir, "--output_dir", tmp_path / "two"]
        arguments += ["--batch_size", "4", "--num_workers", "0"]
        done = run_client("tests/as_two_processes.py", "tests/tiny_training.py", *arguments)
        assert done.returncode == 0, done.stderr
        assert "processes: 2 on cpu" in done.stdout
        two = read_log(tmp_path / "two")
        for row, row_of_two in zip(one, two, strict=True):
            assert row_of_two["train_loss"] == pytest.approx(row["train_loss"], rel=1e-5)
            assert row_of_two["validation_dice"].keys() == row["validation_dice"].keys()


def without_seconds(rows: list[dict]) -> list[dict]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


WATCH_AND_TRAIN = """
import sys
sys.path.append("tests")
from huggingface_hub import HfApi
import tiny_training, train
from hub_dataset.streaming import stream_splits
from modeling import PRESETS

print({name: len(split) for name, split in stream_splits("alice/lgg").items()})
HfApi().whoami()  # tells the server that from here on images are read
PRESETS.update(tiny_training.TINY_PRESETS)
train.main(sys.argv[1:])
"""


def test_trains_from_the_hub_without_downloading_the_dataset(hub, run_client, tmp_path, monkeypatch):
    """A private dataset, read through a server that fails now and then."""
    data = tmp_path / "dataset" / "data"
    data.mkdir(parents=True)
    write_split(data / "train.parquet", make_rows(4, size=256))
    write_split(data / "validation.parquet", make_rows(1, seed=1))
    hub.put("datasets", "alice/lgg", tmp_path / "dataset", private=True)
    images = (data / "train.parquet").stat().st_size
    served, answer_file = [], Handler.answer_file

    def spy(request, path, headers):
        first, last = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range", "bytes=0-0")).groups()
        served.append((len(hub.requests), min(int(last) + 1, path.stat().st_size) - int(first)))
        answer_file(request, path, headers)

    monkeypatch.setattr(Handler, "answer_file", spy)
    hub.fail_next("GET .*/resolve/.*parquet", 503)
    arguments = ["--model", "tiny", "--dataset", "alice/lgg", "--streaming", "4", "--output_dir", str(tmp_path / "run")]
    arguments += ["--image_size", "32", "--batch_size", "4", "--epochs", "2", "--num_workers", "1"]
    done = run_client("-c", WATCH_AND_TRAIN, *arguments)
    assert done.returncode == 0, done.stderr
    assert "{'train': 24, 'validation': 6}" in done.stdout
    assert len(read_log(tmp_path / "run")) == 2

    start = hub.requests.index("GET /api/whoami-v2")
    before, after = (sum(n for at, n in served if (at > start) == late) for late in (False, True))
    assert before < 0.5 * images  # footers and small columns alone
    assert after > 2 * images
    kept = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert not [path.name for path in kept if path.stat().st_size > 0.1 * images]
