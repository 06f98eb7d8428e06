"""Augmentation: the parameters are drawn as the recipe says, and applied as their names say."""

import numpy as np
import pytest
import torch

from hub_dataset.augmentation import SliceAugmentation, change_intensities, copy_flair, resample, sample_augmentation

FLAIR = 1
UNCHANGED = SliceAugmentation()


class TestAugmentation:
    def test_a_seed_repeats_and_strength_zero_changes_nothing(self):
        assert sample_augmentation(np.random.default_rng(1)) == sample_augmentation(np.random.default_rng(1))
        assert sample_augmentation(np.random.default_rng(1)) != sample_augmentation(np.random.default_rng(2))
        assert sample_augmentation(np.random.default_rng(1), strength=0) == UNCHANGED

    @pytest.mark.parametrize(("share", "highest"), [(0.0, 0.0), (0.3, 0.6), (0.5, 1.0), (0.8, 1.0)])
    def test_the_volumes_share_is_drawn_up_to_twice_that_of_testing(self, share, highest):
        generator = np.random.default_rng(0)
        shares = np.array([sample_augmentation(generator, volume_share=share).volume_share for _ in range(1000)])
        assert shares.min() >= 0
        assert shares.max() <= highest
        assert shares.mean() == pytest.approx(highest / 2, abs=0.03)
        assert sample_augmentation(generator, strength=0, volume_share=share).volume_share == share

    def test_flair_goes_into_a_channel_about_as_often_as_in_the_recipe(self):
        generator = np.random.default_rng(0)
        copies = [sample_augmentation(generator).flair_copies for _ in range(2000)]
        assert 0.12 < np.mean([bool(copy) for copy in copies]) < 0.18
        assert {copy for copy in copies if copy} == {(0,), (2,), (0, 2)}

    @pytest.mark.parametrize("strength", [0.5, 1.0, 2.0])
    def test_parameters_keep_to_their_ranges_and_fill_them(self, strength):
        generator = np.random.default_rng(0)
        drawn = [sample_augmentation(generator, strength) for _ in range(2000)]
        values = {
            "rotation": ([a.rotation for a in drawn], 20),
            "log of zoom": (np.log([a.zoom for a in drawn]), 0.2),
            "shear": ([a.shear for a in drawn], 0.08),
            "translation": ([a.translation for a in drawn], 0.04),
            "log of gamma": (np.log([a.gamma for a in drawn]), 0.25),
            "log of contrast": (np.log([a.contrast for a in drawn]), 0.15),
            "brightness": ([a.brightness for a in drawn], 0.2),
        }
        for name, (found, limit) in values.items():
            assert np.max(found) == pytest.approx(limit * strength, rel=0.01), name
            assert np.min(found) == pytest.approx(-limit * strength, rel=0.01), name
        assert np.mean([a.flip_horizontal for a in drawn]) == pytest.approx(0.5, abs=0.05)
        assert np.mean([a.flip_vertical for a in drawn]) == pytest.approx(0.25, abs=0.05)
        noise = np.array([a.noise for a in drawn])
        assert np.mean(noise > 0) == pytest.approx(0.3, abs=0.05)
        assert noise.max() == pytest.approx(0.15 * strength, rel=0.02)
        assert np.mean([bool(a.flair_copies) for a in drawn]) == pytest.approx(0.15 * strength, abs=0.03)

    def test_copying_flair_leaves_the_other_channels(self):
        image = np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)
        copied = copy_flair(image, SliceAugmentation(flair_copies=(2,)))
        np.testing.assert_array_equal(copied[..., 2], image[..., FLAIR])
        np.testing.assert_array_equal(copied[..., :2], image[..., :2])

    @pytest.fixture
    def channels(self) -> torch.Tensor:
        return torch.rand(2, 24, 30, generator=torch.Generator().manual_seed(0))

    @pytest.mark.parametrize(
        ("augmentation", "expected"),
        [
            (UNCHANGED, lambda x: x),
            (SliceAugmentation(flip_horizontal=True), lambda x: x.flip(-1)),
            (SliceAugmentation(flip_vertical=True), lambda x: x.flip(-2)),
            (SliceAugmentation(rotation=180.0), lambda x: x.flip(-1, -2)),
        ],
    )
    def test_exact_transformations(self, channels, augmentation, expected):
        result = resample(channels, augmentation, (24, 30), 1.0, (12.0, 15.0))
        torch.testing.assert_close(result, expected(channels), atol=1e-4, rtol=0)

    def test_a_quarter_turn_is_counter_clockwise(self):
        channels = torch.zeros(1, 33, 33)
        channels[0, 16, 30] = 1.0
        turned = resample(channels, SliceAugmentation(rotation=90.0), (33, 33), 1.0, (16.5, 16.5))
        assert turned[0, 2, 16] == pytest.approx(1.0, abs=1e-4)

    def test_shear_moves_each_row_by_its_distance_from_the_centre(self):
        channels = torch.zeros(1, 33, 33)
        channels[0, :, 16] = 1.0
        sheared = resample(channels, SliceAugmentation(shear=0.5), (33, 33), 1.0, (16.5, 16.5))
        for row in (6, 16, 24):
            assert sheared[0, row].argmax() == 16 - (row - 16) // 2

    @pytest.mark.parametrize("center", [(12.0, 15.0), (7.0, 20.0)])
    def test_crops_around_the_centre(self, channels, center):
        result = resample(channels, UNCHANGED, (10, 8), 1.0, center)
        top, left = int(center[0]) - 5, int(center[1]) - 4
        torch.testing.assert_close(result, channels[:, top : top + 10, left : left + 8], atol=1e-4, rtol=0)

    def test_translation_is_a_share_of_the_longer_side(self, channels):
        moved = resample(channels, SliceAugmentation(translation=(0.1, -0.2)), (10, 8), 1.0, (12.0, 15.0))
        torch.testing.assert_close(moved, channels[:, 10:20, 5:13], atol=1e-4, rtol=0)
        upright = channels.transpose(1, 2)
        moved = resample(upright, SliceAugmentation(translation=(0.1, -0.2)), (10, 8), 1.0, (15.0, 12.0))
        torch.testing.assert_close(moved, upright[:, 13:23, 2:10], atol=1e-4, rtol=0)

    @pytest.mark.parametrize(("zoom", "scale"), [(1.0, 0.5), (1.0, 0.25), (0.5, 0.5), (0.25, 1.0)])
    def test_shrinking_averages(self, channels, zoom, scale):
        times = round(1 / (zoom * scale))
        square = channels[:, :, 3:27]
        size = (24 // times, 24 // times)
        result = resample(square, SliceAugmentation(zoom=zoom), size, scale, (12.0, 12.0))
        torch.testing.assert_close(result, torch.nn.functional.avg_pool2d(square, times), atol=1e-4, rtol=0)

    def test_beyond_the_border_its_values_go_on(self):
        even = torch.full((1, 24, 30), -5.0)
        moved = resample(even, SliceAugmentation(rotation=30.0, translation=(0.3, -0.3)), (40, 40), 1.0, (2.0, 3.0))
        torch.testing.assert_close(moved, torch.full((1, 40, 40), -5.0))

    def test_zoom_enlarges_about_the_centre(self):
        channels = torch.zeros(1, 40, 40)
        channels[0, 15:25, 15:25] = 1.0
        zoomed = resample(channels, SliceAugmentation(zoom=2.0), (40, 40), 1.0, (20.0, 20.0))
        assert (zoomed > 0.5).sum() == 400

    def test_intensities_at_rest_and_the_fixed_median(self):
        image = torch.linspace(-6, 6, 300).reshape(3, 10, 10)
        assert torch.equal(change_intensities(image, UNCHANGED, 6.0), image)
        bent = change_intensities(torch.zeros(3, 4, 4), SliceAugmentation(gamma=(0.7, 1.2, 1.5)), 6.0)
        torch.testing.assert_close(bent, torch.zeros(3, 4, 4), atol=1e-6, rtol=0)

    def test_contrast_and_brightness_per_channel(self):
        image = torch.ones(3, 2, 2)
        changed = change_intensities(
            image, SliceAugmentation(contrast=(2.0, 1.0, 0.5), brightness=(0.0, 1.0, -1.0)), 6.0
        )
        torch.testing.assert_close(changed[:, 0, 0], torch.tensor([2.0, 2.0, -0.5]))

    def test_noise_repeats_with_its_seed(self):
        image = torch.zeros(3, 50, 50)
        noisy = [change_intensities(image, SliceAugmentation(noise=0.1, noise_seed=s), 6.0) for s in (1, 1, 2)]
        assert torch.equal(noisy[0], noisy[1])
        assert not torch.equal(noisy[0], noisy[2])
        assert noisy[0].std().item() == pytest.approx(0.1, rel=0.05)
