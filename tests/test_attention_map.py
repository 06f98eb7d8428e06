"""Attention: the weights of the token under a point, and what their picture shows."""

import numpy as np
import pytest

from modeling.attention_map import attention_from_point, draw_attention
from modeling.visualization import REFERENCE_COLOR, heatmap_colors

FLAIR = np.arange(48 * 40, dtype=np.float32).reshape(48, 40)


@pytest.fixture
def attentions():
    """Weights of two layers with three heads over a 3 x 5 grid, each row summing to 1."""
    weights = np.random.default_rng(0).random((2, 3, 15, 15)).astype(np.float32)
    return list(weights / weights.sum(axis=-1, keepdims=True))


def test_attention_is_that_of_the_token_under_the_point(attentions):
    size = (45, 75)  # 3 x 5 tokens of 16 pixels, the last ones partly in the padding
    token = 1 * 5 + 4  # row 1, column 4
    one_layer = attention_from_point(attentions, (31, 64), size, 16, layer=1)
    np.testing.assert_allclose(one_layer, attentions[1][:, token].mean(axis=0).reshape(3, 5))
    all_layers = attention_from_point(attentions, (16, 74), size, 16)
    np.testing.assert_allclose(all_layers, np.mean(attentions, axis=(0, 1))[token].reshape(3, 5), rtol=1e-6)
    assert all_layers.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("point", "size", "message"),
    [
        ((45, 0), (45, 75), "lies outside the slice of 45x75"),
        ((0, -1), (45, 75), "lies outside"),
        ((0, 75), (45, 75), "lies outside"),
        ((0, 0), (45, 81), r"must be \(heads, 18, 18\) per layer"),
    ],
)
def test_attention_that_does_not_fit_the_slice_is_refused(attentions, point, size, message):
    with pytest.raises(ValueError, match=message):
        attention_from_point(attentions, point, size, 16)
    with pytest.raises(IndexError):
        attention_from_point(attentions, (0, 0), (45, 75), 16, layer=2)


def test_attention_colours_what_is_attended_to():
    attention = np.zeros((6, 5))
    attention[1, 3] = 0.5
    picture = np.asarray(draw_attention(FLAIR, attention, (43, 4), 8, scale=2))
    assert picture.shape == (96, 80, 3)
    colored = np.ptp(picture, axis=-1) > 0  # grey has three equal channels
    assert colored[16:32, 48:64].any()
    square = (picture == REFERENCE_COLOR).all(axis=-1)
    np.testing.assert_array_equal(np.argwhere(square).min(axis=0), (80, 0))
    np.testing.assert_array_equal(np.argwhere(square).max(axis=0), (95, 15))
    assert square.sum() == 16**2 - 12**2, "a line as thick as a pixel of the slice"
    far = np.ones(colored.shape, dtype=bool)
    far[0:48, 32:80] = False  # the attended token and its neighbours, over which it fades
    assert not (colored & far & ~square).any()
    doubled = draw_attention(FLAIR, 2 * attention, (43, 4), 8, scale=2)
    np.testing.assert_array_equal(np.asarray(doubled), picture)


def test_attention_covers_and_shines_the_more_the_larger_it_is():
    black = np.zeros((40, 104))  # the last tokens lie partly in the padding
    black[0, 0] = 1
    attention = np.array([[0.2, 0.5, 1, 0], [0, 0, 0, 0]])
    on_black, on_white = (
        np.asarray(draw_attention(image, attention, (39, 0), 32)).astype(int)[16, 16:96:32]
        for image in (black, 1 - black)
    )
    assert (np.diff(on_black.sum(axis=-1)) > 0).all()
    assert (np.diff((on_white - on_black).sum(axis=-1)) < 0).all()
    even = np.asarray(draw_attention(black, np.ones((2, 4)), (39, 0), 32))
    np.testing.assert_allclose(even[16, 48], 0.75 * heatmap_colors(np.ones(1))[0], atol=1)


@pytest.mark.parametrize(
    ("attention", "scale", "message"),
    [
        (np.ones((6, 6)), 1, r"attention must be \(6, 5\) weights"),
        (np.zeros((6, 5)), 1, "not all 0"),
        (-np.ones((6, 5)), 1, "0 or more"),
        (np.full((6, 5), np.nan), 1, "0 or more"),
        (np.ones((6, 5)), 0, "scale must be a whole number from 1"),
    ],
)
def test_attention_that_cannot_be_drawn_is_refused(attention, scale, message):
    with pytest.raises(ValueError, match=message):
        draw_attention(FLAIR, attention, (0, 0), 8, scale=scale)
    with pytest.raises(ValueError, match="lies outside"):
        draw_attention(FLAIR, np.ones((6, 5)), (48, 0), 8)
