"""Where a token of a TransUNet attends: the weights of one query, and their picture over the slice."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from .visualization import REFERENCE_COLOR, flair_to_grey, heatmap_colors, outline


def attention_from_point(
    attentions: Sequence[np.ndarray],
    point: tuple[int, int],
    image_size: tuple[int, int],
    token_size: int,
    layer: int | None = None,
) -> np.ndarray:
    """Where the token under a point of the slice attends.

    Args:
        attentions: one slice's weights from every layer, `(heads, N, N)` each: `[a[i] for a in outputs.attentions]` of
            a TransUNet called with `output_attentions=True`.
        point: `(row, column)` in pixels of the slice.
        image_size: `(height, width)` of the slice in pixels, before the processor's padding.
        token_size: side of a token in pixels, the model's `config.size_divisor`.
        layer: which layer's weights, averaged over its heads; by default averaged over the layers too.

    Returns:
        `(rows, columns)` float64 over the grid of tokens, 0 or more, summing to 1.

    Raises:
        ValueError: weights that do not fit the slice's grid, or a point outside the slice.
        IndexError: no such layer.
    """
    rows, columns = (-(-length // token_size) for length in image_size)
    row, column = _check_point(point, image_size)
    weights = np.stack([np.asarray(item, dtype=np.float64) for item in attentions])  # (layers, heads, N, N)
    if weights.ndim != 4 or weights.shape[-2:] != (rows * columns,) * 2:
        raise ValueError(
            f"attentions must be (heads, {rows * columns}, {rows * columns}) per layer for a slice of "
            f"{image_size[0]}x{image_size[1]} pixels in tokens of {token_size}, got {weights.shape[1:]}."
        )
    weights = weights.mean(axis=0) if layer is None else weights[layer]
    token = row // token_size * columns + column // token_size
    return weights[:, token].mean(axis=0).reshape(rows, columns)


def draw_attention(
    image: np.ndarray | Image.Image,
    attention: np.ndarray,
    point: tuple[int, int],
    token_size: int,
    *,
    scale: int = 1,
) -> Image.Image:
    """FLAIR in grey, coloured where a token attends, with a square around that token.

    Colour and opacity grow with the weight, in the colours of `probability_heatmap`, up to the largest weight of this
    picture: they compare places within a picture, not pictures.

    Args:
        image: a slice, as for `flair_to_grey`.
        attention: `(rows, columns)`, 0 or more, from `attention_from_point`.
        point: `(row, column)` in pixels of the slice, in the token that attends.
        token_size: side of a token in pixels.
        scale: enlargement, a whole number.

    Returns:
        RGB image of `(scale * W, scale * H)` pixels.

    Raises:
        ValueError: weights that do not cover the slice, are negative or all 0, a point outside the slice, or a `scale`
            below 1.
    """
    grey = flair_to_grey(image)
    height, width = grey.shape
    row, column = _check_point(point, grey.shape)
    if scale < 1:
        raise ValueError(f"scale must be a whole number from 1, got {scale}.")
    attention = np.asarray(attention, dtype=np.float64)
    grid = (-(-height // token_size), -(-width // token_size))
    if attention.shape != grid or not (attention >= 0).all() or attention.max() == 0:
        raise ValueError(f"attention must be {grid} weights of 0 or more, not all 0, got {attention.shape}.")

    canvas = Image.fromarray(grey).resize((width * scale, height * scale), Image.Resampling.BICUBIC)
    weights = Image.fromarray((attention / attention.max()).astype(np.float32))
    cell = token_size * scale
    weights = weights.resize((grid[1] * cell, grid[0] * cell), Image.Resampling.BILINEAR)
    weights = np.asarray(weights)[: height * scale, : width * scale, None]  # without the padding
    colors = heatmap_colors(0.25 + 0.75 * weights[..., 0])  # black would darken, not colour
    opacity = 0.75 * weights
    pixels = np.rint((1 - opacity) * np.asarray(canvas)[..., None] + opacity * colors).astype(np.uint8)

    token = np.zeros(pixels.shape[:2], dtype=bool)
    top, left = row // token_size * cell, column // token_size * cell
    token[top : top + cell, left : left + cell] = True
    pixels[outline(token, width=scale)] = REFERENCE_COLOR
    return Image.fromarray(pixels)


def _check_point(point: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    row, column = point
    if not (0 <= row < size[0] and 0 <= column < size[1]):
        raise ValueError(f"The point (row, column) = ({row}, {column}) lies outside the slice of {size[0]}x{size[1]}.")
    return int(row), int(column)
