"""Mixing lesions: which part of a slice goes into another one, whose, and where it may not."""

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt

from hub_dataset.lesion_mixing import carve, mix_lesion
from hub_dataset.loading import LesionBatchSampler, SampleKey, TrainingSlices, load_splits, relative_head_sizes
from modeling import BrainMRIImageProcessor

SIZE = 64


def disc(row: int, column: int, radius: float) -> np.ndarray:
    rows, columns = np.ogrid[:SIZE, :SIZE]
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


def make_sample(lesion: np.ndarray, seed: int = 0, copies: tuple[bool, bool, bool] = (False, True, False)) -> dict:
    """Noise about the brain's median, and a lesion 3 above it on FLAIR."""
    pixels = 0.1 * torch.randn(3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    pixels[1] += 3 * torch.from_numpy(lesion)
    copies = torch.tensor(copies)
    pixels[copies] = pixels[1].clone()
    return {"pixel_values": pixels, "labels": torch.from_numpy(lesion).long(), "flair_copies": copies, "index": seed}


class TestCarve:
    def test_it_shrinks_a_lesion_by_half_of_its_depth_at_most_and_grows_it_by_all_of_it(self):
        lesion = disc(32, 32, 10)
        inner, outer = disc(32, 32, 5), distance_transform_edt(~lesion) <= 11
        parts = [carve(lesion, np.random.default_rng(seed)) for seed in range(200)]
        assert all(not (inner & ~part).any() and not (part & ~outer).any() for part in parts)
        areas = np.array([part.sum() for part in parts])
        assert areas.min() < 1.2 * inner.sum()
        assert areas.max() > 0.8 * outer.sum()
        assert np.mean(areas <= lesion.sum()) == pytest.approx(0.55, abs=0.1)

    def test_a_lesion_of_one_pixel_is_kept(self):
        assert all(carve(disc(5, 5, 0), np.random.default_rng(seed))[5, 5] for seed in range(20))


class TestMix:
    def test_the_part_and_its_labels_are_the_donors_and_all_else_is_the_samples(self):
        sample, donor = make_sample(disc(20, 20, 8), 0), make_sample(disc(40, 36, 6), 1)
        before = sample["pixel_values"].clone(), donor["pixel_values"].clone()
        mixed = mix_lesion(sample, donor, np.random.default_rng(0))
        part = torch.from_numpy(carve(disc(40, 36, 6), np.random.default_rng(0)))
        for name in ("pixel_values", "labels"):
            assert torch.equal(mixed[name][..., part], donor[name][..., part])
            assert torch.equal(mixed[name][..., ~part], sample[name][..., ~part])
        assert mixed["labels"].sum() > sample["labels"].sum()
        assert mixed["index"] == 0
        assert torch.equal(sample["pixel_values"], before[0])
        assert torch.equal(donor["pixel_values"], before[1])

    @pytest.mark.parametrize("background", [-4.0, 5.0])
    def test_nothing_is_put_where_there_is_no_brain_unless_it_is_lesion(self, background):
        sample, donor = make_sample(disc(40, 36, 20), 0), make_sample(disc(20, 20, 6), 1)
        sample["pixel_values"][1, :32] = background
        assert mix_lesion(sample, donor, np.random.default_rng(0)) is sample
        sample["labels"][:32] = 1
        assert mix_lesion(sample, donor, np.random.default_rng(0)) is not sample

    def test_a_donor_without_a_lesion_gives_nothing(self):
        sample, donor = make_sample(disc(20, 20, 8), 0), make_sample(np.zeros((SIZE, SIZE), bool), 1)
        assert mix_lesion(sample, donor, np.random.default_rng(0)) is sample

    @pytest.mark.parametrize("swap", [False, True])
    def test_a_channel_that_is_flair_in_one_is_flair_in_both(self, swap):
        pair = [make_sample(disc(20, 20, 8), 0, (True, True, False)), make_sample(disc(40, 36, 6), 1)]
        mixed = mix_lesion(*(pair[::-1] if swap else pair), np.random.default_rng(0))
        assert torch.equal(mixed["pixel_values"][0], mixed["pixel_values"][1])
        assert not torch.equal(mixed["pixel_values"][2], mixed["pixel_values"][1])
        assert mixed["flair_copies"].tolist() == [True, True, False]


class TestDonors:
    HAS_LESION = np.arange(96) % 3 == 0

    def batches(self, probability: float, start_batch: int = 0) -> list[list[SampleKey]]:
        sizes = np.random.default_rng(1).uniform(0.3, 0.9, (96, 2))
        sampler = LesionBatchSampler(self.HAS_LESION, sizes, 8, 128, 16, mix_lesions=probability, seed=5)
        sampler.seek(2, start_batch)
        return list(sampler)

    def test_they_are_other_slices_of_the_batch_with_a_lesion_and_so_is_who_gets_them(self):
        for batch in self.batches(1.0):
            lesions = {key._replace(donor=None) for key in batch if self.HAS_LESION[key.index]}
            for key in batch:
                own = key._replace(donor=None)
                assert (key.donor in lesions - {own}) == (own in lesions and len(lesions) > 1)

    @pytest.mark.parametrize("probability", [0.0, 0.4])
    def test_as_often_as_asked_for(self, probability):
        keys = [key for batch in self.batches(probability) for key in batch if self.HAS_LESION[key.index]]
        assert np.mean([key.donor is not None for key in keys]) == pytest.approx(probability, abs=0.2 * probability)

    def test_an_epoch_repeats_exactly_wherever_it_is_entered(self):
        assert self.batches(0.5) == self.batches(0.5)
        assert self.batches(0.5, start_batch=3) == self.batches(0.5)[3:]


def test_items_hold_the_lesions_of_two_slices_in_a_frame(phantom_dataset_dir):
    split = load_splits(str(phantom_dataset_dir))["train"]
    slices = TrainingSlices(split, BrainMRIImageProcessor())
    has_lesion = np.asarray(split["has_lesion"])
    sampler = LesionBatchSampler(has_lesion, relative_head_sizes(split), 8, 64, 16, mix_lesions=1.0)
    pairs = [(slices[key], slices[key._replace(donor=None)]) for batch in sampler for key in batch if key.donor]
    changed = [not torch.equal(mixed["labels"], plain["labels"]) for mixed, plain in pairs]
    assert np.mean(changed) > 0.3
    assert all(
        mixed["index"] == plain["index"] and mixed["labels"].shape == plain["labels"].shape for mixed, plain in pairs
    )
    key = next(key for batch in sampler for key in batch if key.donor)
    assert torch.equal(slices[key]["pixel_values"], slices[key]["pixel_values"])
