"""Training samples: which slices, in which batches, cropped and augmented how."""

import inspect
import io
import re
import shutil
import struct
import zlib

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from hub_dataset.augmentation import SliceAugmentation, sample_augmentation
from hub_dataset.loading import (
    LesionBatchSampler,
    SampleKey,
    TrainingSlices,
    check_slice,
    check_slices,
    find_dataset,
    load_splits,
    make_sample,
    training_sample,
)
from hub_dataset.patients import DamagedSlice, group_by_patient, read_patient
from hub_dataset.slice_measures import (
    head_box,
    intensities_by_patient,
    measure_slice,
    measure_split,
    relative_head_size,
    relative_head_sizes,
)
from modeling import BrainMRIImageProcessor
from modeling.inference import measure_intensities

FLAIR = 1
UNCHANGED = SliceAugmentation()


def make_slice() -> tuple[np.ndarray, np.ndarray]:
    """A noisy rectangle of signal with a bright spot: image (64, 80, 3) uint8, mask (64, 80) uint8, 0/255."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 3, (64, 80, 3)).astype(np.uint8)
    image[10:50, 20:52] = rng.integers(60, 120, (40, 32, 3))
    mask = np.zeros((64, 80), dtype=np.uint8)
    mask[30:40, 24:32] = 255
    image[mask > 0, FLAIR] = 220
    return image, mask


def png_that_claims(side: int) -> bytes:
    """A PNG of a few bytes whose header gives `side` pixels a side."""
    file = io.BytesIO()
    Image.new("L", (64, 64)).save(file, format="PNG")
    content = bytearray(file.getvalue())
    content[16:24] = struct.pack(">II", side, side)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


class TestSampler:
    @pytest.fixture
    def has_lesion(self) -> np.ndarray:
        return np.random.default_rng(0).random(100) < 0.3

    @pytest.fixture
    def head_sizes(self) -> np.ndarray:
        return np.random.default_rng(1).uniform(0.2, 1.0, (100, 2))

    def sampler(self, has_lesion, head_sizes, **kwargs) -> LesionBatchSampler:
        settings = {"batch_size": 4, "image_size": 128, "size_divisor": 16, "seed": 3} | kwargs
        return LesionBatchSampler(has_lesion, head_sizes, **settings)

    def test_an_epoch_has_every_lesion_slice_once_and_as_many_empty_ones(self, has_lesion, head_sizes):
        sampler = self.sampler(has_lesion, head_sizes, batch_size=1)
        indices = [key.index for batch in sampler for key in batch]
        assert len(indices) == len(set(indices)) == 2 * has_lesion.sum()
        assert set(np.flatnonzero(has_lesion)) < set(indices)

    @pytest.mark.parametrize(("ratio", "empty"), [(0.0, 0), (0.5, 0.5), (100.0, None)])
    def test_empty_ratio(self, has_lesion, head_sizes, ratio, empty):
        sampler = self.sampler(has_lesion, head_sizes, batch_size=1, empty_ratio=ratio)
        chosen = np.array([key.index for batch in sampler for key in batch])
        expected = (~has_lesion).sum() if empty is None else round(empty * has_lesion.sum())
        assert (~has_lesion[chosen]).sum() == expected

    def test_epochs_differ_and_repeat_exactly(self, has_lesion, head_sizes):
        first, second = self.sampler(has_lesion, head_sizes), self.sampler(has_lesion, head_sizes)
        epochs = []
        for epoch in range(2):
            first.seek(epoch)
            second.seek(epoch)
            epochs.append(list(first))
            assert epochs[-1] == list(second)
        other = self.sampler(has_lesion, head_sizes, seed=4)
        other.seek(1)
        epochs.append(list(other))
        empty = [{key.index for batch in epoch for key in batch if not has_lesion[key.index]} for epoch in epochs]
        for one, two in ((0, 1), (1, 2)):
            assert epochs[one] != epochs[two]
            assert len(empty[one] - empty[two]) > 4, "the same slices without a lesion"
        seeds = [key.seed for epoch in epochs for batch in epoch for key in batch]
        assert len(set(seeds)) == len(seeds), "two samples are augmented alike"

    def test_an_interrupted_epoch_goes_on_where_it_stopped(self, has_lesion, head_sizes):
        sampler = self.sampler(has_lesion, head_sizes)
        sampler.seek(5)
        whole = list(sampler)
        assert len(sampler) == len(whole) == sampler.num_batches
        sampler.seek(5, start_batch=6)
        assert list(sampler) == whole[6:]
        assert len(sampler) == len(whole) - 6

    @pytest.mark.parametrize("image_size", [64, 128, 250])
    def test_crops_hold_the_heads_in_multiples_of_the_divisor(self, has_lesion, head_sizes, image_size):
        sampler = self.sampler(has_lesion, head_sizes, image_size=image_size)
        for batch in sampler:
            (size,) = {(key.height, key.width) for key in batch}
            heads = head_sizes[[key.index for key in batch]].max(axis=0) * image_size
            for side, head in zip(size, heads, strict=True):
                assert side % 16 == 0
                assert 32 <= side <= -(-image_size // 16) * 16
                assert side >= head

    def test_batches_of_like_sizes_leave_out_more_background_than_random_ones(self, has_lesion, head_sizes):
        sampler = self.sampler(has_lesion, head_sizes, batch_size=8)
        bucketed = np.mean([batch[0].height * batch[0].width for batch in sampler])
        order = np.random.default_rng(0).permutation(100)
        unsorted = [np.prod(sampler.crop_size(order[start : start + 8])) for start in range(0, 96, 8)]
        assert bucketed < np.mean(unsorted)

    def test_an_epoch_mixes_slices_with_and_without_a_lesion_and_crops_of_all_sizes(self, has_lesion):
        batches = list(self.sampler(has_lesion, np.full((100, 2), 0.5)))
        with_lesion = [has_lesion[[key.index for key in batch]].sum() for batch in batches]
        assert sum(0 < count < 4 for count in with_lesion) > len(batches) / 2
        squares = np.repeat(np.linspace(0.2, 0.9, 100)[:, None], 2, axis=1)
        areas = [batch[0].height * batch[0].width for batch in self.sampler(has_lesion, squares)]
        steps = np.sign(np.diff(areas[: LesionBatchSampler.GROUP]))
        assert {-1, 1} <= set(steps), "sorted by size, one kind of slice after the other"

    def test_too_few_slices_for_a_batch(self, head_sizes):
        with pytest.raises(ValueError, match="fewer than one batch of 8"):
            self.sampler(np.arange(100) < 2, head_sizes, batch_size=8)
        assert len(self.sampler(np.arange(100) < 4, head_sizes, batch_size=8)) == 1


class TestSample:
    def key(self, **kwargs) -> SampleKey:
        return SampleKey(**({"index": 0, "seed": (0,), "height": 64, "width": 80, "image_size": 80} | kwargs))

    def test_without_augmentation_it_is_the_processors_slice_centred_on_the_head(self):
        image, mask = make_slice()
        sample = make_sample(image, mask, self.key(height=48, width=32), UNCHANGED, clip=6.0)
        expected = BrainMRIImageProcessor(clip=6.0)(images=image, return_tensors="pt")["pixel_values"][0]
        # The head is rows 10 to 49 and columns 20 to 51, so its centre is (30, 36).
        torch.testing.assert_close(sample["pixel_values"], expected[:, 6:54, 20:52], rtol=0, atol=1e-3)
        assert torch.equal(sample["labels"], torch.from_numpy(mask > 0)[6:54, 20:52].long())

    def test_so_it_is_in_a_volume_with_flair_copied(self):
        image, mask = make_slice()
        volume = np.array([[50, 20], [70, 30], [90, 40]], dtype=np.float32)
        augmentation = SliceAugmentation(flair_copies=(2,), volume_share=0.25)
        sample = make_sample(image, mask, self.key(height=48, width=32), augmentation, 6.0, volume)
        processor = BrainMRIImageProcessor(clip=6.0, volume_share=0.25)
        expected = processor(images=image[..., [0, 1, 1]], volume_intensities=volume[[0, 1, 1]], return_tensors="pt")[
            "pixel_values"
        ][0]
        torch.testing.assert_close(sample["pixel_values"], expected[:, 6:54, 20:52], rtol=0, atol=1e-3)

    def test_flair_alone_is_in_every_channel(self):
        image, mask = make_slice()
        row = {"image": Image.fromarray(image), "mask": Image.fromarray(mask)}
        volume = np.array([[50, 20], [70, 30], [90, 40]], dtype=np.float32)
        of_all, of_flair = (
            training_sample(row, volume, self.key(), BrainMRIImageProcessor(), 0.0, channels)["pixel_values"]
            for channels in ("all", "flair")
        )
        torch.testing.assert_close(of_flair, of_all[FLAIR].expand(3, -1, -1))
        assert not torch.equal(of_all[0], of_all[FLAIR])

    @pytest.mark.parametrize("factor", [0.5, 2])
    def test_the_lesion_shrinks_and_grows_with_the_image_size(self, factor):
        image, mask = make_slice()
        height, width = int(64 * factor), int(80 * factor)
        sample = make_sample(image, mask, self.key(height=height, width=width, image_size=width), UNCHANGED, clip=6.0)
        assert sample["labels"].sum() == (mask > 0).sum() * factor**2
        upright = self.key(height=width, width=height, image_size=width)
        sample = make_sample(image.transpose(1, 0, 2), mask.T, upright, UNCHANGED, clip=6.0)
        assert sample["labels"].sum() == (mask > 0).sum() * factor**2

    def test_masks_of_0_and_1_are_those_of_0_and_255(self):
        image, mask = make_slice()
        ones, full = (make_sample(image, form, self.key(), UNCHANGED, 6.0)["labels"] for form in (mask // 255, mask))
        assert full.any()
        assert torch.equal(ones, full)

    def test_an_empty_slice_is_zero(self):
        image, mask = make_slice()
        image[..., FLAIR] = 7
        for empty in (np.zeros_like(image), image):
            sample = make_sample(empty, mask, self.key(), UNCHANGED, 6.0)
            assert not sample["pixel_values"].any()
            assert not sample["labels"].any()
            assert relative_head_size(empty) == (0, 0)

    def test_strong_augmentation_stays_finite_binary_and_within_the_clip(self):
        image, mask = make_slice()
        for seed in range(30):
            augmentation = sample_augmentation(np.random.default_rng(seed), strength=2.0)
            sample = make_sample(image, mask, self.key(), augmentation, clip=6.0)
            assert sample["pixel_values"].isfinite().all()
            assert sample["pixel_values"].abs().max() <= 6.0
            assert set(sample["labels"].unique().tolist()) <= {0, 1}

    def test_arguments_are_not_written_to(self):
        image, mask = make_slice()
        before = image.copy(), mask.copy()
        make_sample(image, mask, self.key(), sample_augmentation(np.random.default_rng(0), 2.0), clip=6.0)
        np.testing.assert_array_equal(image, before[0])
        np.testing.assert_array_equal(mask, before[1])


class TestIntensities:
    def test_rows_of_a_patient_share_those_of_its_slices_and_empty_ones_do_not_count(self):
        rng = np.random.default_rng(0)
        patients = ["b", "a", "b", "a", "c", "b"]
        slices = [(level * make_slice()[0].astype(np.float32) + rng.normal(size=3)) for level in range(1, 7)]
        slices[2] = slices[4] = np.zeros((64, 80, 3))
        intensities = intensities_by_patient(patients, [measure_slice(image) for image in slices])
        assert intensities.shape == (6, 3, 2)
        for patient, rows in (("a", [1, 3]), ("b", [0, 5])):
            expected = measure_intensities(np.stack([slices[row] for row in rows]))
            for row in np.flatnonzero(np.array(patients) == patient):
                np.testing.assert_array_equal(intensities[row], expected)
        assert not intensities[4].any()

    @pytest.mark.parametrize("measure", [measure_split, relative_head_sizes])
    def test_those_in_the_cache_are_of_the_same_code(self, phantom_dataset_dir, monkeypatch, measure):
        split = load_splits(str(phantom_dataset_dir))["train"]
        map_, source, results = datasets.Dataset.map, inspect.getsource, []

        def spy(*args, **options):
            results.append(map_(*args, **options))
            return results[-1]

        monkeypatch.setattr(datasets.Dataset, "map", spy)
        measure(split)
        measure(split)
        monkeypatch.setattr(inspect, "getsource", lambda module: source(module) + "# changed")
        measure(split)
        first, second, changed = (result.cache_files for result in results)
        assert first == second != changed

    @pytest.mark.parametrize("measure", [measure_split, relative_head_sizes])
    def test_an_image_that_is_cut_off_is_named(self, phantom_dataset_dir, measure):
        split = load_splits(str(phantom_dataset_dir))["train"]
        row = split.cast_column("image", datasets.Image(decode=False))[2]
        row["image"]["bytes"] = row["image"]["bytes"][:-60]
        where = f"slice {row['slice_index']} of patient {row['patient_id']}"
        with pytest.raises(DamagedSlice, match=f"The image or the mask of {where} is damaged"):
            measure(datasets.Dataset.from_list([row], features=split.features))

    def test_those_of_a_split_are_those_that_inference_measures(self, phantom_dataset_dir):
        split = load_splits(str(phantom_dataset_dir))["train"]
        intensities = measure_split(split)
        for patient_id, rows in group_by_patient(split).items():
            expected = measure_intensities(read_patient(split, patient_id, rows).slices)
            np.testing.assert_array_equal(intensities[rows], np.broadcast_to(expected, (len(rows), 3, 2)))


class TestDataset:
    def test_head_box(self):
        image, _ = make_slice()
        assert head_box(image.astype(np.float32)) == (30.0, 36.0, 40, 32)
        assert relative_head_size(image) == (40 / 80, 32 / 80)
        faint = np.zeros((64, 80, 3), np.float32)
        faint[0, 0] = 1
        assert head_box(faint) == (32, 40, 32, 40)

    def test_batches_from_the_built_dataset(self, phantom_dataset_dir):
        splits = load_splits(str(phantom_dataset_dir))
        train = splits["train"]
        sizes = relative_head_sizes(train)
        assert sizes.shape == (len(train), 2)
        assert ((sizes >= 0) & (sizes <= 1)).all()
        sampler = LesionBatchSampler(np.asarray(train["has_lesion"]), sizes, 4, 64, 16)
        loader = DataLoader(TrainingSlices(train, BrainMRIImageProcessor()), batch_sampler=sampler)
        seen = 0
        for batch, keys in zip(loader, sampler, strict=True):
            assert batch["pixel_values"].shape == (4, 3, keys[0].height, keys[0].width)
            assert batch["labels"].shape == (4, keys[0].height, keys[0].width)
            assert batch["index"].tolist() == [key.index for key in keys]
            seen += int(batch["labels"].any(dim=(1, 2)).sum())
        assert seen > 0

    def test_a_copy_in_the_cache_that_was_cut_off_is_named(self, phantom_dataset_dir, tmp_path, monkeypatch):
        cache = tmp_path / "cache"
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
        load_splits(str(phantom_dataset_dir))
        copy = next(cache.rglob("*-train.arrow"))
        copy.write_bytes(copy.read_bytes()[:-1000])
        with pytest.raises(ValueError, match=f"{cache} that was cut off must be removed"):
            load_splits(str(phantom_dataset_dir))
        shutil.rmtree(cache)
        assert len(load_splits(str(phantom_dataset_dir))["train"]) == 40

    @pytest.mark.parametrize("damage", ["cut off", "fewer rows"])
    def test_a_damaged_file_is_said_to_be_so(self, phantom_dataset_dir, tmp_path, monkeypatch, damage):
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        folder = shutil.copytree(phantom_dataset_dir, tmp_path / "dataset")
        file = folder / "data" / "train-00000-of-00001.parquet"
        if damage == "cut off":
            file.write_bytes(file.read_bytes()[:-1000])
        else:
            pq.write_table(pq.read_table(file).slice(0, 5), file)
        reason = "Parquet magic bytes" if damage == "cut off" else "num_examples=5"
        with pytest.raises(ValueError, match=f"{folder} cannot be loaded.*{reason}"):
            load_splits(str(folder))

    @pytest.mark.parametrize(
        ("column", "content"),
        [
            ("image", None),
            ("mask", None),
            ("image", {"bytes": b"none", "path": None}),
            ("image", {"bytes": png_that_claims(20_000), "path": None}),
        ],
    )
    def test_a_slice_that_is_missing_or_damaged_is_named(self, phantom_dataset_dir, column, content):
        split = load_splits(str(phantom_dataset_dir))["validation"]
        rows = [split[row] for row in range(3)]
        rows[1][column] = content
        with pytest.raises(ValueError, match=r"mask of slice 2 of patient TCGA_PH_\w+ is missing or damaged"):
            check_slices(datasets.Dataset.from_list(rows, features=split.features), as_volumes=True)

    def test_a_slice_that_cannot_be_decoded_is_named(self, phantom_dataset_dir):
        split = load_splits(str(phantom_dataset_dir))["train"]
        rows = [split[row] for row in range(2)]
        file = io.BytesIO()
        rows[1]["mask"].save(file, format="PNG")
        rows[1]["mask"] = {"bytes": file.getvalue()[:-30], "path": None}
        damaged = datasets.Dataset.from_list(rows, features=split.features)
        check_slices(damaged, as_volumes=True)
        message = r"The image or the mask of slice 2 of patient TCGA_PH_0001_20000101 is damaged"
        with pytest.raises(DamagedSlice, match=message):
            TrainingSlices(damaged, BrainMRIImageProcessor())[SampleKey(1, (0,), 64, 64, 64)]
        with pytest.raises(ValueError, match=message):
            read_patient(damaged, rows[0]["patient_id"], [0, 1])

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
    def test_a_grey_slice_may_be_of_any_depth(self, dtype):
        encoded = io.BytesIO()
        Image.fromarray(np.zeros((32, 40), dtype)).save(encoded, format="TIFF")
        row = {name: {"bytes": encoded.getvalue(), "path": None} for name in ("image", "mask")}
        assert check_slice(row | {"patient_id": "a", "slice_index": 1}) == (40, 32)

    def test_a_folder_may_be_given_as_shells_do(self, tmp_path, monkeypatch):
        (tmp_path / "lgg").mkdir()
        (tmp_path / "lgg" / "train.parquet").touch()
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.chdir(tmp_path)
        assert find_dataset("~/lgg") == str(tmp_path / "lgg")
        assert find_dataset("./lgg") == "lgg"
        with pytest.raises(FileNotFoundError, match=r"no dataset folder '\./none'"):
            find_dataset("./none")

    @pytest.mark.parametrize("name", ["lgg [v2]", "lgg::v2"])
    def test_a_path_that_would_be_taken_for_a_pattern_is_named(self, tmp_path, monkeypatch, name):
        (tmp_path / name / "data" / "lgg").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / name)
        for given in ("data/lgg", str(tmp_path / name)):
            with pytest.raises(ValueError, match=rf"from {re.escape(str(tmp_path / name))}.* Rename the folder"):
                load_splits(given)

    def test_missing_folder_and_missing_columns(self, phantom_dataset_dir, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"hub_dataset\.build"):
            load_splits(str(tmp_path / "nothing"))
        with pytest.raises(FileNotFoundError, match=r"is empty\..*hub_dataset\.build"):
            load_splits(str(tmp_path))
        with pytest.raises(ValueError, match=r"There is no dataset folder 'data/nothing'\..*hub_dataset\.build"):
            load_splits("data/nothing")  # the Hub, which is asked for it, cannot be reached here
        load_splits(str(phantom_dataset_dir))["train"].remove_columns("mask").to_parquet(tmp_path / "train.parquet")
        with pytest.raises(ValueError, match="no column mask"):
            load_splits(str(tmp_path))
