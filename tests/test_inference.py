"""Slices and volumes through model and processor."""

import json
import multiprocessing
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from inference_samples import Brightness, make_volume
from tiny_models import randomized, tiny_model
from torch import nn

from modeling import PRESETS, inference
from modeling.image_processing_brain_mri import FLAIR
from modeling.inference import (
    SCREENING_LEVEL,
    fold_batch_norm,
    head_window,
    load_model,
    measure_intensities,
    predict_probabilities,
    predict_volume,
    segment_slice,
    segment_volume,
    signal_mask,
)
from modeling.postprocessing import mask_from_probabilities

pytest_plugins = ["inference_fixtures"]


def test_a_model_that_gives_nan_finds_no_lesion_absent(tiny_unet, processor):
    nn.init.constant_(tiny_unet.head.bias, np.nan)
    volume, _ = make_volume()
    for segment, images in ((segment_slice, volume[3]), (segment_volume, volume)):
        with pytest.raises(ValueError, match="The model gives NaN"):
            segment(tiny_unet, processor, images)
    outputs = tiny_unet(**processor(images=volume[3], return_tensors="pt"))
    with pytest.raises(ValueError, match="The model gives NaN"):
        processor.post_process_semantic_segmentation(outputs)


class TestSlice:
    def test_gives_the_models_probabilities_without_padding(self, tiny_unet, processor):
        image = make_volume()[0][3]
        with torch.no_grad():
            logits = tiny_unet(**processor(images=image, return_tensors="pt")).logits
        result = segment_slice(tiny_unet, processor, image)
        assert result.probabilities.dtype == np.float32
        assert result.mask.dtype == bool
        np.testing.assert_allclose(result.probabilities, logits[0, 0, :90, :75].sigmoid().numpy(), atol=1e-6)
        np.testing.assert_array_equal(result.mask, result.probabilities >= 0.5)

    def test_a_model_in_half_precision_gives_single_precision_and_nearly_the_same(self, tiny_unet, processor):
        image = make_volume()[0][3]
        expected = segment_slice(tiny_unet, processor, image).probabilities
        probabilities = segment_slice(tiny_unet.bfloat16(), processor, image).probabilities
        assert probabilities.dtype == np.float32
        np.testing.assert_allclose(probabilities, expected, atol=0.05)

    def test_a_higher_threshold_keeps_less(self, tiny_unet, processor):
        image = make_volume()[0][3]
        low, high = (segment_slice(tiny_unet, processor, image, threshold=t).mask for t in (0.4, 0.6))
        assert (low & high == high).all()
        assert low.sum() > high.sum()

    @pytest.mark.parametrize("threshold", [0, 1, -0.2, 50])
    def test_threshold_outside_0_and_1_is_refused(self, tiny_unet, processor, threshold):
        with pytest.raises(ValueError, match="threshold"):
            segment_slice(tiny_unet, processor, make_volume()[0][3], threshold=threshold)


class TestVolume:
    def test_finds_the_lesion_at_its_place(self, processor):
        volume, cube = make_volume()
        result = segment_volume(Brightness(), processor, volume)
        np.testing.assert_array_equal(result.mask, cube)
        assert result.probabilities.shape == cube.shape
        assert result.probabilities.dtype == np.float32

    def test_computes_only_the_head(self, processor):
        volume, _ = make_volume()
        model = Brightness()
        probabilities = predict_volume(model, processor, volume, batch_size=2)
        assert sum(shape[0] for shape in model.shapes) == 5  # the first and last slices are empty
        assert max(shape[0] for shape in model.shapes) == 2
        assert all(shape[2] < 90 and shape[3] < 75 for shape in model.shapes)
        assert not probabilities[[0, -1]].any()

    def test_slices_side_by_side_are_what_they_are_one_after_the_other(self, tiny_unet, processor, two_threads):
        volume, _ = make_volume(slices=16)
        probabilities = predict_volume(tiny_unet, processor, volume, screening_stride=1)
        assert torch.get_num_threads() == 2
        with ThreadPoolExecutor(1) as new:
            assert new.submit(torch.get_num_threads).result() == 2
        torch.set_num_threads(1)
        expected = predict_volume(tiny_unet, processor, volume, screening_stride=1)
        np.testing.assert_allclose(probabilities, expected, atol=1e-6)

    def test_side_by_side_shares_the_threads(self, processor, two_threads):
        counts = []

        class Counting(Brightness):
            def forward(self, pixel_values):
                counts.append((threading.current_thread().name, torch.get_num_threads()))
                time.sleep(0.01)  # so that no worker computes everything
                return super().forward(pixel_values)

        predict_volume(Counting(), processor, make_volume(slices=12)[0], screening_stride=1)
        assert len({name for name, _ in counts}) == 2
        assert {count for _, count in counts} == {1}

    def test_large_slices_are_computed_one_after_the_other(self, processor, two_threads):
        volume = np.pad(make_volume()[0], ((0, 0), (0, 430), (0, 445), (0, 0)))  # 520 x 520
        threads = set()

        class Recorder(Brightness):
            def forward(self, pixel_values):
                threads.add(threading.current_thread())
                return super().forward(pixel_values)

        predict_volume(Recorder(), processor, volume, screening_stride=1)
        assert threads == {threading.current_thread()}

    def test_no_core_is_left_over(self, monkeypatch, two_threads):
        monkeypatch.setattr(inference, "MAX_WORKERS", 2)
        together = threading.Barrier(2)
        with inference.worker_pool.__wrapped__(3) as pool:
            counts = list(pool.map(lambda _: (together.wait(), torch.get_num_threads())[1], range(2)))
        assert sorted(counts) == [1, 2]

    @pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system forks no processes")
    @pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
    def test_a_forked_process_has_workers_of_its_own(self, processor, two_threads):
        arguments = (Brightness(), processor, make_volume()[0])
        predict_volume(*arguments)  # whose threads a forked process does not get
        process = multiprocessing.get_context("fork").Process(target=predict_volume, args=arguments)
        process.start()
        process.join(60)
        process.kill()
        assert process.exitcode == 0

    def test_a_stopped_volume_computes_no_further_slices(self, processor, two_threads):
        class Slow(Brightness):
            def forward(self, pixel_values):
                time.sleep(0.02)
                return super().forward(pixel_values)

        class Stop(Exception):
            pass

        def stop_at_the_third(slices):
            for count, index in enumerate(slices):
                if count == 2:
                    raise Stop
                yield index

        model = Slow()
        with pytest.raises(Stop) as stopped:
            predict_volume(model, processor, make_volume(slices=60)[0], screening_stride=1, progress=stop_at_the_third)
        computed = len(model.shapes)
        time.sleep(0.2)
        assert len(model.shapes) <= computed + torch.get_num_threads()  # those that had begun
        del stopped  # whose traceback keeps all that was there, as the log of a server may

    def test_agrees_with_slice_by_slice_inside_the_head(self, processor):
        volume, _ = make_volume()
        processor.volume_share = 0
        probabilities = predict_volume(Brightness(), processor, volume)
        for index in range(1, 6):
            single = segment_slice(Brightness(), processor, volume[index]).probabilities
            np.testing.assert_allclose(probabilities[index, 20:60, 30:60], single[20:60, 30:60], atol=1e-6)

    def test_slices_are_normalised_by_the_volume_as_far_as_the_processor_says(self, processor):
        volume, _ = make_volume()
        volume[3] //= 2  # its own statistics follow, those of the volume do not
        intensities = measure_intensities(volume)
        for processor.volume_share in (0.0, 0.5, 1.0):
            inputs = processor(images=volume[3], volume_intensities=intensities, return_tensors="pt")
            expected = predict_probabilities(Brightness(), inputs["pixel_values"])[0].numpy()
            found = predict_volume(Brightness(), processor, volume)[3]
            np.testing.assert_allclose(found[20:60, 30:60], expected[20:60, 30:60], atol=1e-6)

    def test_a_volume_of_one_slice_is_the_slice(self, processor):
        volume, _ = make_volume()
        found = predict_volume(Brightness(), processor, volume[3:4])
        np.testing.assert_array_equal(found[0], segment_slice(Brightness(), processor, volume[3]).probabilities)

    def test_intensities_are_those_of_slices_with_brain(self):
        volume, _ = make_volume()
        np.testing.assert_array_equal(measure_intensities(volume), measure_intensities(volume[1:-1]))
        flair = measure_intensities(volume[..., FLAIR])
        np.testing.assert_array_equal(flair, np.repeat(measure_intensities(volume)[[FLAIR]], 3, axis=0))
        assert measure_intensities(np.zeros((4, 40, 40))) is None

    @pytest.mark.parametrize("batch_size", [1, 3, 64])
    def test_batch_size_does_not_matter(self, tiny_unet, processor, batch_size):
        volume, _ = make_volume()
        expected = predict_volume(tiny_unet, processor, volume, batch_size=2)
        np.testing.assert_allclose(
            predict_volume(tiny_unet, processor, volume, batch_size=batch_size), expected, atol=1e-6
        )

    @pytest.mark.parametrize("size", [(32, 32), (33, 47), (90, 75), (61, 32)])
    def test_any_size(self, tiny_unet, processor, size):
        volume = make_volume()[0][:, : size[0], : size[1]]
        assert predict_volume(tiny_unet, processor, volume).shape == (7, *size)

    def test_flair_alone_equals_flair_in_every_channel(self, processor):
        flair = make_volume()[0][..., FLAIR]
        alone = predict_volume(Brightness(), processor, flair)
        np.testing.assert_array_equal(alone, predict_volume(Brightness(), processor, np.stack([flair] * 3, axis=-1)))

    def test_floats_and_integers_of_any_range_give_the_same_mask(self, processor):
        volume, cube = make_volume()
        full_range = (volume.astype(np.int32) * 257 - 2**15).astype(np.int16)
        for form in (volume / 255.0, volume.astype(np.uint16) * 257, full_range):
            np.testing.assert_array_equal(signal_mask(form), signal_mask(volume))
            np.testing.assert_array_equal(segment_volume(Brightness(), processor, form).mask, cube)

    @pytest.mark.parametrize("views", [2, 4])
    def test_views_of_a_volume_without_a_suspicion_add_nothing(self, tiny_unet, processor, views):
        assert not predict_volume(tiny_unet, processor, np.full((4, 40, 40), 7), views=views).any()
        volume, cube = make_volume()
        volume[cube] = 90
        alone = predict_volume(Brightness(), processor, volume)
        assert 0 < alone.max() < SCREENING_LEVEL
        np.testing.assert_array_equal(predict_volume(Brightness(), processor, volume, views=views), alone)

    def test_constant_and_empty_slices_have_no_lesion(self, processor):
        volume, _ = make_volume()
        volume[0], volume[3] = 0, 40
        assert not predict_volume(Brightness(), processor, np.zeros_like(volume)).any()
        probabilities = predict_volume(Brightness(), processor, volume, screening_stride=1)
        assert not probabilities[[0, 3]].any()
        assert probabilities[2].max() > 0.5
        resampled = volume + 1000.0  # float64, with what interpolation leaves in a slice of one value
        resampled[0] += np.random.default_rng(0).uniform(0, 1e-9, resampled[0].shape)
        np.testing.assert_allclose(
            predict_volume(Brightness(), processor, resampled, screening_stride=1), probabilities, atol=1e-3
        )

    def test_a_slice_of_little_brain_is_computed(self, processor):
        volume, _ = make_volume()
        volume[5] = volume[0]
        volume[5, 30:39, 35:44] = 100 + volume[1, 30:39, 35:44] // 20  # 1.2 % of the slice
        volume[5, 33:36, 38:41, FLAIR] = 250
        assert predict_volume(Brightness(), processor, volume, screening_stride=1)[5].max() > 0.5

    def test_postprocessing_is_the_rooms_own_and_can_be_switched_off(self, processor):
        volume, _ = make_volume()
        volume[2, 50, 50, FLAIR] = 250
        raw = segment_volume(Brightness(8.0), processor, volume, threshold=0.3, postprocess=False)
        np.testing.assert_array_equal(raw.mask, raw.probabilities >= 0.3)
        assert (raw.mask != (raw.probabilities >= 0.5)).any()
        assert raw.mask[2, 50, 50]
        cleaned = segment_volume(Brightness(), processor, volume, threshold=0.4)
        np.testing.assert_array_equal(cleaned.mask, mask_from_probabilities(cleaned.probabilities, threshold=0.4))
        assert cleaned.mask.any()
        assert not cleaned.mask[2, 50, 50]

    def test_spacing_and_affine_are_kept_and_give_the_volume(self, processor):
        volume, cube = make_volume()
        affine = np.diag([1.0, 2.0, 3.0, 1.0])
        result = segment_volume(Brightness(), processor, volume, spacing=(5.0, 0.5, 0.8), affine=affine)
        assert result.spacing == (5.0, 0.5, 0.8)
        np.testing.assert_array_equal(result.affine, affine)
        assert result.volume_ml == pytest.approx(cube.sum() * 5.0 * 0.5 * 0.8 / 1000)
        assert segment_volume(Brightness(), processor, volume).volume_ml is None

    def test_progress_sees_every_slice_with_brain(self, processor):
        seen = []

        def progress(slices):
            assert len(slices) == 12
            for index in slices:
                seen.append(index)
                yield index

        segment_volume(Brightness(), processor, make_volume(slices=14)[0], batch_size=2, progress=progress)
        assert sorted(seen) == list(range(1, 13))

    @pytest.mark.parametrize(
        ("volume", "message"),
        [
            (np.zeros((5, 64)), r"\(5, 64\)"),
            (np.zeros((5, 64, 64, 2)), r"\(5, 64, 64, 2\)"),
            (np.zeros((0, 64, 64)), r"\(0, 64, 64\)"),
            (np.full((5, 64, 64), np.nan), "NaN"),
            (np.zeros((4, 31, 64)), "31x64 pixels, too small"),
            (np.zeros((5, 64, 64), dtype=complex), "complex128"),
            (np.zeros((5, 64, 64), dtype=object), "object"),
        ],
    )
    def test_unusable_volumes_are_refused(self, processor, volume, message):
        with pytest.raises(ValueError, match=message):
            segment_volume(Brightness(), processor, volume)

    @pytest.mark.parametrize("batch_size", [0, -1])
    def test_unusable_batch_size_is_refused(self, processor, batch_size):
        with pytest.raises(ValueError, match="batch_size"):
            predict_volume(Brightness(), processor, make_volume()[0], batch_size=batch_size)

    def test_unusable_spacing_is_refused(self, processor):
        for spacing in ((1.0, 1.0), (1.0, 0.0, 1.0), 1.0):
            with pytest.raises(ValueError, match="spacing"):
                segment_volume(Brightness(), processor, make_volume()[0], spacing=spacing)


class TestShortcuts:
    def test_without_them_every_slice_is_computed_whole(self, tiny_unet, processor):
        volume, _ = make_volume()
        volume[0] = 0  # constant: nothing to normalise
        processor.volume_share = 0
        probabilities = predict_volume(tiny_unet, processor, volume, crop_margin=None, screening_stride=1)
        assert not probabilities[0].any()
        for index in range(1, len(volume)):
            single = segment_slice(tiny_unet, processor, volume[index]).probabilities
            np.testing.assert_allclose(probabilities[index], single, atol=1e-6)

    def test_slices_between_two_without_a_lesion_are_left_out(self, processor):
        volume, _ = make_volume(slices=20)
        cube = np.zeros(volume.shape[:3], dtype=bool)
        cube[9:12, 28:42, 35:45] = True
        volume[2:5, 28:42, 35:45, FLAIR] = volume[13, 28:42, 35:45, FLAIR]  # no lesion where `make_volume` puts one
        volume[cube, FLAIR] = 250
        model = Brightness()
        result = segment_volume(model, processor, volume, screening_stride=4)
        np.testing.assert_array_equal(result.mask, cube)
        # Of slices 1 to 18, which have a head, 1, 5, 9, 13, 17 and 18; then 8 and 10, beside slice 9, then 11 and 12.
        assert sum(shape[0] for shape in model.shapes) == 10
        computed = np.flatnonzero(result.probabilities.max(axis=(1, 2)))
        np.testing.assert_array_equal(computed, [1, 5, 8, 9, 10, 11, 12, 13, 17, 18])

    def test_a_temperature_changes_neither_the_slices_computed_nor_what_is_found(self, processor):
        volume, _ = make_volume(slices=20)
        results = {}
        for temperature in (1.0, 4.0):
            model = Brightness(temperature)
            results[temperature] = segment_volume(model, processor, volume, postprocess=False), len(model.shapes)
        (sure, computed), (calibrated, computed_calibrated) = results.values()
        assert computed == computed_calibrated < 18  # slices with a head
        assert sure.mask.any()
        np.testing.assert_array_equal(calibrated.mask, sure.mask)
        assert (calibrated.probabilities[sure.mask] < sure.probabilities[sure.mask]).all()

    def test_a_stride_of_1_computes_every_slice(self, processor):
        model = Brightness()
        predict_volume(model, processor, make_volume(slices=12)[0], screening_stride=1)
        assert sum(shape[0] for shape in model.shapes) == 10

    @pytest.mark.parametrize(("option", "value"), [("crop_margin", -1), ("screening_stride", 0)])
    def test_options_out_of_range_are_refused(self, processor, option, value):
        with pytest.raises(ValueError, match=option):
            predict_volume(Brightness(), processor, make_volume()[0], **{option: value})

    @pytest.mark.parametrize("preset", PRESETS)
    def test_folding_batch_norm_changes_no_output(self, preset):
        model = randomized(tiny_model(preset))
        pixel_values = torch.randn(2, 3, 45, 64, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected = model(pixel_values=pixel_values).logits
            fold_batch_norm(model)
            logits = model(pixel_values=pixel_values).logits
        assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


class TestWindow:
    def test_stray_pixels_are_no_head(self):
        signal = np.zeros((2, 96, 96), dtype=bool)
        signal[:, 40:60, 30:70] = True
        rows, columns = head_window(signal, margin=4, divisor=4)
        signal[0, 5, 5] = signal[1, 90, 93] = True
        assert head_window(signal, margin=4, divisor=4) == (rows, columns)

    @pytest.mark.parametrize("divisor", [4, 16, 32])
    @pytest.mark.parametrize("head", [(0, 90, 0, 75), (0, 10, 60, 75), (40, 44, 30, 50), (80, 90, 0, 3)])
    def test_holds_the_head_in_multiples_of_the_divisor(self, divisor, head):
        top, bottom, left, right = head
        signal = np.zeros((4, 90, 75), dtype=bool)
        signal[:, top:bottom, left:right] = True
        rows, columns = head_window(signal, margin=5, divisor=divisor)
        for window, first, last, size in ((rows, top, bottom, 90), (columns, left, right, 75)):
            assert (window.stop - window.start) % divisor == 0
            assert 0 <= window.start <= max(first - 5, 0)
            assert window.stop >= min(last + 5, size)
            assert window.stop <= -(-size // divisor) * divisor

    def test_signal_follows_the_volumes_own_intensities(self):
        volume, _ = make_volume()
        expected = np.zeros(volume.shape[:3], dtype=bool)
        expected[1:-1, 20:60, 30:60] = True
        np.testing.assert_array_equal(signal_mask(volume), expected)
        np.testing.assert_array_equal(signal_mask(volume[..., FLAIR] * 3.5 - 40), expected)


def test_load_model_gives_a_ready_float32_model(tiny_unet, processor, tmp_path):
    tiny_unet.half().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    model, loaded_processor = load_model(str(tmp_path))
    assert model.dtype == torch.float32
    assert not model.training
    assert loaded_processor.size_divisor == 4
    assert segment_slice(model, loaded_processor, make_volume()[0][3]).mask.shape == (90, 75)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("temperature", 0, "temperature must be positive"), ("decoder_depth", "two", "'decoder_depth' expected int")],
)
def test_a_config_that_is_not_valid_is_named(tiny_unet, processor, tmp_path, field, value, message):
    tiny_unet.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {field: value}))
    with pytest.raises(ValueError, match=rf"config\.json of .* is not valid\. .*{message}"):
        load_model(str(tmp_path))
