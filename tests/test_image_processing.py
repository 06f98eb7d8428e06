"""The image processor: accepted inputs, normalisation, padding and its inverse, errors."""

import io
import zlib

import numpy as np
import pytest
import torch
from app_files import save_png16
from PIL import Image
from transformers import AutoImageProcessor
from transformers.modeling_outputs import SemanticSegmenterOutput

from modeling import BrainMRIImageProcessor
from modeling.image_processing_brain_mri import (
    FLAIR,
    SliceIntensities,
    slice_intensities,
    to_channels,
    volume_intensities,
)


@pytest.fixture
def head(rng) -> np.ndarray:
    """A textured ellipse with a bright spot on a noisy background: (70, 53, 3) uint8, three different contrasts."""
    rows, columns = np.mgrid[:70, :53]
    inside = ((rows - 35) / 30) ** 2 + ((columns - 26) / 22) ** 2 < 1
    contrasts = np.stack([60 + rows, 40 + 2 * columns, 150 - rows], axis=-1)
    image = np.where(inside[..., None], contrasts, 2) + rng.integers(0, 4, (70, 53, 3))
    image[20:28, 20:28, FLAIR] = 230
    return image.astype(np.uint8)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def pixel_values(image, **kwargs) -> torch.Tensor:
    return BrainMRIImageProcessor(**kwargs)(images=image, return_tensors="pt")["pixel_values"]


def logits_of(masks: torch.Tensor) -> SemanticSegmenterOutput:
    return SemanticSegmenterOutput(logits=torch.where(masks.bool(), 3.0, -3.0)[:, None])


class TestInputs:
    def test_output_is_float32_and_padded_to_the_divisor(self, head):
        values = pixel_values(head)
        assert values.dtype == torch.float32
        assert values.shape == (1, 3, 80, 64)
        assert pixel_values(head, size_divisor=32).shape == (1, 3, 96, 64)

    def test_all_forms_of_one_slice_give_the_same_tensor(self, head, tmp_path):
        expected = pixel_values(head)
        Image.fromarray(head).save(tmp_path / "slice.png")
        Image.fromarray(head).save(tmp_path / "slice.tif")
        forms = [
            [head],
            head[None],
            head.transpose(2, 0, 1),
            torch.from_numpy(head),
            Image.fromarray(head),
            Image.fromarray(head).convert("RGBA"),
            str(tmp_path / "slice.png"),
            tmp_path / "slice.tif",
            head.astype(np.int64),
        ]
        for form in forms:
            torch.testing.assert_close(pixel_values(form), expected, rtol=0, atol=0)

    def test_grey_flair_is_copied_into_all_channels(self, head, tmp_path):
        grey = head[..., FLAIR]
        expected = pixel_values(np.repeat(grey[..., None], 3, axis=-1))
        Image.fromarray(grey).save(tmp_path / "grey.png")
        for form in (grey, grey[..., None], grey[None], Image.fromarray(grey), tmp_path / "grey.png"):
            torch.testing.assert_close(pixel_values(form), expected, rtol=0, atol=0)
        assert torch.equal(expected[:, 0], expected[:, FLAIR])

    def test_flair_replaces_a_constant_channel(self, head):
        missing, copied = head.copy(), head.copy()
        missing[..., 2] = 0
        copied[..., 2] = head[..., FLAIR]
        torch.testing.assert_close(pixel_values(missing), pixel_values(copied), rtol=0, atol=0)

    def test_a_batch_of_several_sizes_is_padded_to_the_largest(self, head):
        values = pixel_values([head, head[:40, :50]])
        assert values.shape == (2, 3, 80, 64)
        torch.testing.assert_close(values[:1], pixel_values(head), rtol=0, atol=0)
        torch.testing.assert_close(values[1:, :, :40, :50], pixel_values(head[:40, :50])[..., :40, :50], rtol=0, atol=0)

    def test_arguments_are_not_written_to(self, head):
        head[..., 2] = 7
        before = head.astype(np.float32)
        given = before.copy()
        pixel_values(given)
        np.testing.assert_array_equal(given, before)


class TestNormalisation:
    def test_8_and_16_bit_files_give_the_same_tensor_to_the_bit(self, head, tmp_path):
        grey = head[..., FLAIR]
        Image.fromarray(grey).save(tmp_path / "8.png")
        Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "16.png")
        Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "16.tif")
        expected = pixel_values(tmp_path / "8.png")
        assert torch.equal(pixel_values(tmp_path / "16.png"), expected)
        assert torch.equal(pixel_values(tmp_path / "16.tif"), expected)
        assert torch.equal(pixel_values(head.astype(np.uint16) * 257), pixel_values(head))

    def test_colour_files_keep_their_16_bits(self, rng, tmp_path):
        pixels = rng.integers(1000, 1200, (40, 36, 3)).astype(np.uint16)  # all in the low byte
        save_png16(tmp_path / "deep.png", pixels)
        assert torch.equal(pixel_values(tmp_path / "deep.png"), pixel_values(pixels))
        with Image.open(tmp_path / "deep.png") as opened:
            for _ in range(2):
                assert torch.equal(pixel_values(opened), pixel_values(pixels))
        stream = io.BytesIO((tmp_path / "deep.png").read_bytes())
        assert torch.equal(pixel_values(Image.open(stream)), pixel_values(pixels))

    def test_16_bits_with_transparency_are_refused(self, tmp_path):
        # A header is enough: 16 bits of grey with alpha, which Pillow would cut to 8.
        path = save_png16(tmp_path / "deep.png", np.full((40, 36, 3), 1000, np.uint16))
        data = bytearray(path.read_bytes())
        data[25] = 4
        data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
        path.write_bytes(bytes(data))
        with pytest.raises(ValueError, match="16 bits per channel and transparency"):
            pixel_values(path)

    def test_brain_floats_and_whole_numbers_as_settings(self, head):
        expected = pixel_values(head, clip=8.0)
        assert torch.equal(BrainMRIImageProcessor()(images=head, clip=8, return_tensors="pt")["pixel_values"], expected)
        tensor = torch.from_numpy(head.astype(np.float32)).bfloat16()
        assert pixel_values(tensor).shape == expected.shape

    def test_padding_is_the_background_and_not_the_brain(self, head):
        values = pixel_values(head, size_divisor=96)[0]
        height, width = head.shape[:2]
        assert values.shape[1:] == (96, 96)
        for channel in values:
            outside = torch.cat([channel[height:].flatten(), channel[:, width:].flatten()])
            assert (outside == channel[:height, :width].min()).all()
            assert outside[0] < -1

    def test_signal_on_a_few_pixels_alone_is_normalised_by_them(self, rng):
        image = np.zeros((100, 100))
        image[50, 40:60] = rng.uniform(50, 100, 20)  # under 0.5 % of the slice
        values = pixel_values(image)[0, FLAIR, :100, :100]
        assert values[50, 40:60].median().abs() < 0.5
        assert values.isfinite().all()

    def test_a_head_that_is_all_rim_is_normalised_by_the_rim(self, rng):
        rows, columns = np.mgrid[:120, :120]
        radius = np.hypot(rows - 60, columns - 60)
        image = np.where((radius > 47) & (radius < 50), rng.normal(100, 5, (120, 120)), 0.0)
        rim = torch.from_numpy(image > 0)
        image[60, 55:65] = rng.normal(40, 5, 10)  # all that lies within
        assert pixel_values(image)[0, FLAIR, :120, :120][rim].median().abs() < 0.05

    def test_noise_on_uniform_tissue_is_not_blown_up(self, rng):
        image = np.zeros((100, 100))
        image[20:80, 20:80] = 100 + rng.normal(0, 0.01, (60, 60))
        assert pixel_values(image)[0, FLAIR, 30:70, 30:70].abs().max() < 0.1

    @pytest.mark.parametrize(("factor", "offset"), [(0.001, 0.0), (17.0, 300.0), (1.0, -1000.0)])
    def test_scale_and_offset_do_not_matter(self, head, factor, offset):
        torch.testing.assert_close(pixel_values(head * factor + offset), pixel_values(head), rtol=1e-3, atol=1e-3)

    def test_brain_pixels_have_median_zero_and_unit_spread(self, rng):
        image = np.zeros((100, 100, 3))
        image[20:80, 20:80] = rng.normal(100, 10, (60, 60, 3))
        brain = pixel_values(image)[0, :, 20:80, 20:80].flatten(1)
        torch.testing.assert_close(brain.median(dim=1).values, torch.zeros(3), rtol=0, atol=0.05)
        torch.testing.assert_close(brain.std(dim=1), torch.ones(3), rtol=0, atol=0.05)

    def test_neither_a_bright_scalp_nor_a_bright_lesion_moves_the_brain(self, rng):
        rows, columns = np.mgrid[:120, :120]
        radius = np.hypot(rows - 60, columns - 60)
        image = np.where(radius < 40, rng.normal(100, 10, (120, 120)), 0.0)
        altered = np.where((radius > 36) & (radius < 40), 400.0, image)  # a fifth of the head
        altered[50:62, 60:72] = 250
        inside = torch.from_numpy(radius < 30) & (torch.from_numpy(altered) == torch.from_numpy(image))
        before, after = (pixel_values(form)[0, FLAIR, :120, :120] for form in (image, altered))
        # Taken over the whole head, both statistics would more than double.
        assert abs(after[inside].median() - before[inside].median()) < 0.1
        assert after[inside].std().item() == pytest.approx(before[inside].std().item(), rel=0.1)
        assert after[55, 65] > 5

    def test_a_lesion_of_three_tenths_of_the_brain_is_set_aside_in_rounds(self, rng):
        rows, columns = np.mgrid[:120, :120]
        radius = np.hypot(rows - 60, columns - 60)
        healthy = np.where(radius < 40, rng.normal(100, 10, (120, 120)), 0.0)
        altered = healthy.copy()
        altered[42:79, 42:79] = rng.uniform(120, 260, (37, 37))
        before, after = (slice_intensities(to_channels(image)).statistics[FLAIR] for image in (healthy, altered))
        # In two rounds the spread would grow by seven tenths.
        np.testing.assert_allclose(after, before, rtol=0.2)

    def test_background_around_the_head_does_not_matter(self, head):
        inner = pixel_values(head)[..., :70, :53]
        wide = np.full((110, 90, 3), head.min(axis=(0, 1)))
        wide[:70, :53] = head
        torch.testing.assert_close(pixel_values(wide)[..., :70, :53], inner, rtol=0, atol=0)

    def test_a_bright_artefact_moves_nothing_else(self, head):
        marked = head.copy()
        marked[30, 30] = 255
        difference = (pixel_values(marked) - pixel_values(head)).abs()
        difference[..., 30, 30] = 0
        assert difference.max() < 0.05

    def test_a_volume_pulls_median_and_spread_towards_its_own_by_its_share(self, head):
        statistics = slice_intensities(head.astype(np.float32)).statistics
        volume = statistics + np.array([30, 10], dtype=np.float32)
        inside = head[30:40, 20:30].astype(np.float32)
        for share in (0.0, 0.25, 0.5, 1.0):
            median, spread = ((1 - share) * statistics + share * volume).T
            values = pixel_values(head, volume_intensities=volume, volume_share=share)[0, :, 30:40, 20:30]
            expected = np.clip((inside - median) / spread * 1.349, -8, 8).transpose(2, 0, 1)
            np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(pixel_values(head, volume_intensities=volume, volume_share=0.0), pixel_values(head))
        default = pixel_values(head, volume_intensities=volume)
        assert torch.equal(default, pixel_values(head, volume_intensities=volume, volume_share=0.5))

    def test_in_a_volume_8_and_16_bit_give_the_same_tensor_to_the_bit(self, head):
        volume = np.array([[60, 21], [90, 24], [120, 27]], dtype=np.float32)
        expected = pixel_values(head, volume_intensities=volume)
        assert torch.equal(pixel_values(head.astype(np.uint16) * 257, volume_intensities=volume * 257), expected)

    def test_a_volume_has_the_medians_of_its_slices_weighted_by_their_brain(self, rng):
        statistics = rng.normal(size=(9, 3, 2)).astype(np.float32)
        brain_pixels = np.array([0, 4, 9, 1, 12, 0, 5, 3, 1])
        repeated = np.sort(np.repeat(statistics, brain_pixels, axis=0), axis=0)
        only_flair = np.array([False, True, False])
        slices = [SliceIntensities(*values, 100.0, only_flair) for values in zip(statistics, brain_pixels, strict=True)]
        np.testing.assert_array_equal(volume_intensities(slices), repeated[len(repeated) // 2])
        dim = SliceIntensities(statistics[0] + 50, brain_pixels=1000, brightness=14.0, copied=only_flair)
        np.testing.assert_array_equal(volume_intensities([*slices, dim]), repeated[len(repeated) // 2])
        counted = volume_intensities([*slices, dim._replace(brightness=16.0)])
        np.testing.assert_array_equal(counted, dim.statistics)

    def test_noise_above_the_head_says_nothing_of_a_volume(self, head, rng):
        head = head.astype(np.float32)
        of_the_head = [slice_intensities(head)] * 2
        air = [slice_intensities(rng.rayleigh(8, head.shape).astype(np.float32)) for _ in range(5)]
        assert min(of_air.brain_pixels for of_air in air) > of_the_head[0].brain_pixels
        np.testing.assert_array_equal(volume_intensities([*air, *of_the_head]), of_the_head[0].statistics)

    def test_a_copy_of_flair_is_normalised_as_flair(self, head):
        volume = np.array([[600, 210], [90, 24], [1200, 270]], dtype=np.float32)  # T1 of other scales
        head[..., 0] = 7
        values = pixel_values(head, volume_intensities=volume)[0]
        assert torch.equal(values[0], values[FLAIR])
        head[..., 0] = 2 * head[..., FLAIR]
        assert not torch.equal(pixel_values(head, volume_intensities=volume)[0, 0], values[FLAIR])

    def test_copies_of_flair_say_nothing_of_the_channel_they_replace(self, head):
        head = head.astype(np.float32) * np.array([5, 1, 8], dtype=np.float32)
        whole, partial = slice_intensities(head), slice_intensities(head[..., [FLAIR, FLAIR, 2]])
        assert partial.copied.tolist() == [True, True, False]
        np.testing.assert_array_equal(volume_intensities([partial, whole, partial]), whole.statistics)
        np.testing.assert_array_equal(volume_intensities([partial, partial]), partial.statistics)

    @pytest.mark.parametrize("share", [-0.1, 1.5])
    def test_a_share_outside_0_to_1_is_refused(self, head, share):
        with pytest.raises(ValueError, match="volume_share"):
            pixel_values(head, volume_intensities=np.ones((3, 2), np.float32), volume_share=share)

    def test_a_volume_of_other_channels_is_refused(self, head):
        for shape in ((3, 1), (2, 2), (2,)):
            with pytest.raises(ValueError, match="median and spread of each channel"):
                pixel_values(head, volume_intensities=np.ones(shape, np.float32))

    @pytest.mark.parametrize("intensities", [(100, np.nan), (np.inf, 20), (100, 0), (100, -20)])
    def test_a_volume_that_would_give_nan_or_turn_the_contrast_is_refused(self, head, intensities):
        volume = np.array([(90, 20), intensities, (90, 20)], dtype=np.float32)
        with pytest.raises(ValueError, match=r"must be finite, and the spread of each channel above zero"):
            pixel_values(head, volume_intensities=volume)

    def test_values_are_clipped(self, head):
        head[0, 0] = 255
        assert pixel_values(head, clip=2.0).abs().max() == 2.0


class TestPostProcessing:
    @pytest.mark.parametrize("size", [(70, 53), (32, 32), (64, 80), (33, 47)])
    def test_undoes_the_padding(self, rng, size):
        mask = torch.from_numpy(rng.integers(0, 2, size))
        processor = BrainMRIImageProcessor()
        values = processor(images=rng.integers(0, 255, (*size, 3)).astype(np.uint8), return_tensors="pt")
        padded = torch.ones(1, *values["pixel_values"].shape[-2:])
        padded[0, : size[0], : size[1]] = mask
        (result,) = processor.post_process_semantic_segmentation(logits_of(padded), target_sizes=[size])
        assert result.dtype == torch.int64
        assert torch.equal(result, mask)

    def test_without_sizes_the_padded_mask_comes_back(self):
        masks = torch.zeros(2, 48, 64)
        masks[1, 3, 4] = 1
        results = BrainMRIImageProcessor().post_process_semantic_segmentation(logits_of(masks))
        assert torch.equal(torch.stack(results), masks.long())

    def test_threshold_is_a_probability(self):
        logits = torch.logit(torch.tensor([[0.1, 0.4, 0.6, 0.9]])).expand(1, 1, 4, 4)
        outputs = SemanticSegmenterOutput(logits=logits)
        processor = BrainMRIImageProcessor()
        counts = [
            int(processor.post_process_semantic_segmentation(outputs, threshold=threshold)[0].sum())
            for threshold in (0.05, 0.3, 0.5, 0.8, 0.95)
        ]
        assert counts == [16, 12, 8, 4, 0]

    def test_rejects_what_does_not_fit(self):
        outputs, processor = logits_of(torch.zeros(1, 32, 32)), BrainMRIImageProcessor()
        with pytest.raises(ValueError, match="threshold"):
            processor.post_process_semantic_segmentation(outputs, threshold=1.0)
        with pytest.raises(ValueError, match="1 slices but 2"):
            processor.post_process_semantic_segmentation(outputs, target_sizes=[(32, 32)] * 2)
        for size in ((33, 32), (32, 33), (-1, 32), (0, 32)):
            with pytest.raises(ValueError, match="does not fit the logits"):
                processor.post_process_semantic_segmentation(outputs, target_sizes=[size])
        for size in (32, (32.0, 32.0), (32,), (1, 32, 32)):
            with pytest.raises(ValueError, match=r"\(height, width\) in whole pixels"):
                processor.post_process_semantic_segmentation(outputs, target_sizes=[size])


class TestErrors:
    @pytest.mark.parametrize(
        ("image", "message"),
        [
            (np.full((64, 64, 3), 7, np.uint8), "constant"),
            (np.zeros((64, 64)), "constant"),
            (np.full((64, 64), np.nan), "NaN"),
            (np.where(np.eye(64), np.inf, 0.0), "NaN or infinite"),
            (np.where(np.eye(64), 3e38, -3e38), "beyond float32"),
            (np.zeros((64, 64, 2)), r"shape \(64, 64, 2\)"),
            (np.zeros((64, 64, 4)), r"shape \(64, 64, 4\)"),
            (np.zeros(64), r"shape \(64,\)"),
            (np.zeros((31, 64)), "31x64 pixels"),
            (np.zeros((64, 31, 3)), "64x31 pixels"),
            (np.zeros((64, 64), dtype=bool), "dtype bool"),
            (np.zeros((64, 64), dtype=complex), "dtype complex"),
            ({"image": 1}, "dict"),
            ([], "No image"),
            (np.zeros((0, 64, 64, 3)), "No image"),
        ],
    )
    def test_unusable_images_are_named_with_what_is_accepted(self, image, message):
        with pytest.raises(ValueError, match=message) as error:
            pixel_values(image)
        assert "Accepted is" in str(error.value) or "NaN" in str(error.value)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"do_resize": True, "size": {"height": 64, "width": 64}, "resample": 2}, "does not do do_resize"),
            ({"do_center_crop": True, "crop_size": {"height": 32, "width": 32}}, "does not do do_center_crop"),
            ({"do_rescale": True, "rescale_factor": 0.5}, "does not do do_rescale"),
            ({"do_normalize": True, "image_mean": 0.5, "image_std": 0.5}, "does not do do_normalize"),
            ({"pad_size": {"height": 128, "width": 128}}, "does not do pad_size"),
            ({"size_divisor": 0}, "must be positive"),
            ({"size_divisor": -16}, "must be positive"),
            ({"clip": 0.0}, "must be positive"),
        ],
    )
    def test_options_that_would_be_without_effect_or_sense_are_refused(self, head, options, message):
        for processor, given in ((BrainMRIImageProcessor(), options), (BrainMRIImageProcessor(**options), {})):
            with pytest.raises(ValueError, match=message):
                processor(images=head, return_tensors="pt", **given)

    def test_options_that_switch_off_what_is_not_done_change_nothing(self, head):
        off = dict.fromkeys(("do_resize", "do_rescale", "do_normalize"), False)
        given = BrainMRIImageProcessor()(images=head, return_tensors="pt", **off)["pixel_values"]
        assert torch.equal(given, pixel_values(head))

    def test_unusable_files_are_named(self, tmp_path, head):
        text, cut, pages = tmp_path / "text.png", tmp_path / "cut.png", tmp_path / "pages.tif"
        text.write_text("not an image")
        Image.fromarray(head).save(cut)
        cut.write_bytes(cut.read_bytes()[:200])
        Image.fromarray(head).save(pages, save_all=True, append_images=[Image.fromarray(head)])
        with pytest.raises(ValueError, match=r"'text\.png' is not an image"):
            pixel_values(text)
        with pytest.raises(ValueError, match=r"'cut\.png' is damaged"):
            pixel_values(cut)
        with pytest.raises(ValueError, match="2 pages"):
            pixel_values(pages)
        with pytest.raises(FileNotFoundError, match=r"none\.png"):
            pixel_values(tmp_path / "none.png")

    def test_files_on_which_pillow_raises_other_errors_are_named(self, tmp_path, head, monkeypatch):
        path = tmp_path / "slice.tif"
        Image.fromarray(head).save(path, save_all=True, append_images=[Image.fromarray(head)])
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])  # without the second page's header
        with pytest.raises(ValueError, match=r"'slice\.tif' is damaged"):
            pixel_values(path)
        path.write_bytes(whole)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        with pytest.raises(ValueError, match=r"'slice\.tif' has more pixels than Pillow reads"):
            pixel_values(path)


def test_settings_survive_saving(head, tmp_path):
    BrainMRIImageProcessor(size_divisor=8, clip=4.0).save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert isinstance(loaded, BrainMRIImageProcessor)
    assert (loaded.size_divisor, loaded.clip) == (8, 4.0)
    assert torch.equal(
        loaded(images=head, return_tensors="pt")["pixel_values"], pixel_values(head, size_divisor=8, clip=4.0)
    )
