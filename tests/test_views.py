"""Slices mirrored and turned: back in place, averaged, and compared to measure uncertainty."""

import numpy as np
import pytest
from inference_samples import Brightness, make_volume

from modeling.inference import predict_volume, segment_volume
from modeling.uncertainty import disagreement
from modeling.views import VIEWS

pytest_plugins = ["inference_fixtures"]


def test_views_come_back_in_place():
    rows, columns = np.mgrid[:64, :64]
    blob = np.exp(-((rows - 24) ** 2 + (columns - 40) ** 2) / 60).astype(np.float32)[None]
    seen = [view.of(blob) for view in VIEWS]
    assert len({image.tobytes() for image in seen}) == len(VIEWS)
    for view, image in zip(VIEWS, seen, strict=True):
        np.testing.assert_allclose(view.undo(image), blob, atol=0.02)
        np.testing.assert_allclose(view.of(np.stack([blob] * 3, axis=-1))[..., 1], image, atol=1e-6)


def test_views_bring_in_what_is_at_the_edge():
    even = np.full((1, 40, 48), 7, dtype=np.float32)
    for view in VIEWS:
        np.testing.assert_allclose(view.of(even), even, atol=1e-5)
        np.testing.assert_allclose(view.undo(even), even, atol=1e-5)


@pytest.mark.parametrize("views", [2, 3, 4])
def test_views_are_averaged_where_that_is_more_than_one_alone(tiny_unet, processor, views):
    volume, _ = make_volume()
    processor.volume_share = 0
    whole = {"crop_margin": None, "screening_stride": 1}
    alone = predict_volume(tiny_unet, processor, volume, **whole)
    each = [view.undo(predict_volume(tiny_unet, processor, view.of(volume), **whole)) for view in VIEWS[:views]]
    averaged = predict_volume(tiny_unet, processor, volume, views=views, **whole)
    np.testing.assert_allclose(averaged, np.maximum(alone, np.mean(each, axis=0)), atol=1e-6)
    assert (averaged > alone).any()
    np.testing.assert_array_equal(
        segment_volume(tiny_unet, processor, volume, views=views, **whole).probabilities, averaged
    )


def test_views_are_computed_where_one_suspects_a_lesion_and_beside_it(processor):
    volume, cube = make_volume(slices=12)
    lesion = np.flatnonzero(cube.any(axis=(1, 2)))
    steps = []

    def watch(slices):
        steps.append(len(slices))
        return slices

    for batch_size in (1, 2):
        model = Brightness()
        options = {"screening_stride": 1, "batch_size": batch_size, "progress": watch}
        predict_volume(model, processor, volume, views=3, **options)
        assert sum(shape[0] for shape in model.shapes) == 10 + 2 * (len(lesion) + 2)
    assert steps == [30, 30]


def test_views_are_cropped_where_each_shows_the_head(processor):
    volume, _ = (np.roll(array, -18, axis=2) for array in make_volume())  # the head lies on one side
    options = {"views": 2, "screening_stride": 1}
    cropped, whole = (
        predict_volume(Brightness(), processor, volume, crop_margin=margin, **options) for margin in (0, None)
    )
    lesion_and_around = np.s_[2:5, 25:45, 14:30]
    np.testing.assert_allclose(cropped[lesion_and_around], whole[lesion_and_around], atol=1e-3)


@pytest.mark.parametrize(("options", "computed"), [({}, 5), ({"crop_margin": None}, 7)], ids=["cropped", "whole"])
def test_views_disagree_by_twice_their_standard_deviation(tiny_unet, processor, options, computed):
    volume, _ = make_volume()
    each = [view.undo(predict_volume(tiny_unet, processor, view.of(volume), **options)) for view in VIEWS]
    steps = []
    spread = disagreement(
        tiny_unet, processor, volume, each[0], progress=lambda slices: steps.append(len(slices)) or slices, **options
    )
    assert steps == [computed] * 3, "in three views, the slices that show something"
    np.testing.assert_allclose(spread, 2 * np.std(each, axis=0), atol=2e-3)
    assert spread.max() > 0.01


def test_views_of_a_slice_that_shows_nothing_when_turned_change_nothing(processor):
    volume, cube = make_volume(slices=12)
    last = np.flatnonzero(cube.any(axis=(1, 2)))[-1] + 1
    volume[last] = 0
    volume[last, -3:, -3:] = 200
    assert not VIEWS[1].of(volume[last : last + 1]).any(), "the turn cuts it off"
    whole = {"crop_margin": None, "screening_stride": 1}
    alone = predict_volume(Brightness(), processor, volume, **whole)
    averaged = predict_volume(Brightness(), processor, volume, views=2, **whole)
    np.testing.assert_array_equal(averaged[last], alone[last])


@pytest.mark.parametrize("views", [0, 5])
def test_no_other_number_of_views_is_taken(processor, views):
    with pytest.raises(ValueError, match=rf"views must lie in 1 to 4, but is {views}"):
        predict_volume(Brightness(), processor, make_volume()[0], views=views)
