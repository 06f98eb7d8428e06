"""Pictures and plots of slices, masks and scores: arrays in, PIL images or matplotlib figures out.

Colours are from the palette of Okabe and Ito (Color Universal Design, 2008), which readers with any colour vision tell
apart. Figures are plain `matplotlib.figure.Figure` objects, which need no display and no global state; matplotlib is
imported where a figure is drawn, so that importing this module stays cheap.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from scipy import ndimage

from .image_processing_brain_mri import FLAIR, FOREGROUND, read_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure, FigureBase

PREDICTION_COLOR = (230, 159, 0)  # orange
REFERENCE_COLOR = (86, 180, 233)  # sky blue
DARK_BLUE, VERMILLION, GREY = "#0072B2", "#D55E00", "#6E6E6E"  # for lines on white

HEATMAP = "inferno"  # perceptually uniform from black (0) through red to pale yellow (1)


def flair_to_grey(image: np.ndarray | Image.Image, headroom: float = 1.0) -> np.ndarray:
    """The FLAIR channel of a slice as display grey.

    The window runs from the slice's minimum to the 99th percentile of its pixels with signal, which are the ones above
    a tenth of its bright end. Fat and vessels saturate; neither they nor the amount of background decide how bright the
    brain is.

    Args:
        image: `(H, W, 3)` in the order pre-contrast T1, FLAIR, post-contrast T1, or FLAIR alone as `(H, W)` or `(H, W,
            1)`; integers or floats in any intensity scale, array or PIL image.
        headroom: how many times as wide as that window the grey values are spread, for viewers that set a window of
            their own: the window ends at grey 255 / headroom, and what is brighter keeps its differences up to 255.

    Returns:
        `(H, W)` uint8; all 0 for a constant slice.

    Raises:
        ValueError: another shape or dtype, NaN or infinity.
    """
    array = read_image(image) if isinstance(image, Image.Image) else np.asarray(image)
    if array.dtype.kind not in "uif":
        raise ValueError(f"A slice must have integer or float intensities, got {array.dtype}.")
    if array.ndim == 3 and array.shape[2] in (1, 3):
        array = array[..., FLAIR if array.shape[2] == 3 else 0]
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"A slice must have shape (H, W), (H, W, 1) or (H, W, 3), got {array.shape}.")
    flair = array.astype(np.float64)
    if not np.isfinite(flair).all():
        raise ValueError("The slice contains NaN or infinite intensities. Replace them, for instance by zero, first.")
    return _windowed(flair, headroom)


def volume_to_grey(flair: np.ndarray, headroom: float = 1.0) -> np.ndarray:
    """A stack of FLAIR slices as display grey, in one window for all of them, chosen as in `flair_to_grey`.

    Args:
        flair: `(S, H, W)`, finite integers or floats in any intensity scale.
        headroom: as in `flair_to_grey`.

    Returns:
        `(S, H, W)` uint8; all 0 for a constant volume.
    """
    return _windowed(flair.astype(np.float32), headroom)


def _windowed(flair: np.ndarray, headroom: float) -> np.ndarray:
    """Floats -> uint8 in the window of `flair_to_grey`; changes its argument."""
    flair -= flair.min()
    signal = flair[flair > FOREGROUND * np.percentile(flair, 99.5)]
    if signal.size == 0:
        return np.zeros(flair.shape, dtype=np.uint8)
    flair /= np.percentile(signal, 99) * headroom
    return np.rint(np.minimum(flair, 1.0, out=flair) * 255).astype(np.uint8)


def outline(mask: np.ndarray, width: int = 1, *, outside: bool = False) -> np.ndarray:
    """The line along a mask's edge.

    Args:
        mask: `(H, W)` bool.
        width: thickness of the line in pixels.
        outside: draw the line on the background next to the mask instead of on the mask's own outermost pixels.

    Returns:
        `(H, W)` bool; a subset of `mask`, or with `outside` disjoint from it.

    Raises:
        ValueError: `mask` is not `(H, W)` bool, or `width` is below 1.
    """
    _check_mask("mask", mask)
    if width < 1:
        raise ValueError(f"width must be at least 1 pixel, got {width}.")
    if outside:
        return ndimage.binary_dilation(mask, iterations=width) & ~mask
    return mask & ~ndimage.binary_erosion(mask, iterations=width)


def draw_outline(
    image: np.ndarray | Image.Image,
    mask: np.ndarray,
    color: tuple[int, int, int] = PREDICTION_COLOR,
    reference: np.ndarray | None = None,
    reference_color: tuple[int, int, int] = REFERENCE_COLOR,
    *,
    scale: int = 1,
    width: int = 1,
) -> Image.Image:
    """FLAIR in grey with the mask's outline, and the reference's if given.

    The mask's line runs on the inside of its edge and the reference's on the outside of its own, so that both show
    where they agree.

    Args:
        image: a slice, as for `flair_to_grey`.
        mask: `(H, W)` bool.
        color, reference_color: RGB, 0 to 255.
        reference: `(H, W)` bool, such as a reader's outline.
        scale: enlargement, a whole number; lines follow the edges of the slice's own pixels at any scale.
        width: thickness of the lines in pixels of the result.

    Returns:
        RGB image of `(scale * W, scale * H)` pixels.

    Raises:
        ValueError: a mask that is not bool or differs from the slice in size, or a `scale` or `width` below 1.
    """
    grey = flair_to_grey(image)
    if scale < 1:
        raise ValueError(f"scale must be a whole number from 1, got {scale}.")
    canvas = Image.fromarray(grey)
    canvas = canvas.resize((grey.shape[1] * scale, grey.shape[0] * scale), Image.Resampling.BICUBIC)
    pixels = np.array(canvas.convert("RGB"))
    for name, lesion, line_color, outside in (
        ("reference", reference, reference_color, True),
        ("mask", mask, color, False),
    ):
        if lesion is None:
            continue
        _check_mask(name, lesion, grey.shape)
        enlarged = np.repeat(np.repeat(lesion, scale, axis=0), scale, axis=1)
        pixels[outline(enlarged, width, outside=outside)] = line_color
    return Image.fromarray(pixels)


def heatmap_colors(values: np.ndarray) -> np.ndarray:
    """RGB of values in [0, 1] in the colours of `HEATMAP`: any shape -> (..., 3) uint8."""
    from matplotlib import colormaps

    return colormaps[HEATMAP](values, bytes=True)[..., :3]


def probability_heatmap(probabilities: np.ndarray) -> Image.Image:
    """Lesion probabilities in colour, from black (0) through purple, red and orange to pale yellow (1).

    Args:
        probabilities: `(H, W)` floats in [0, 1].

    Returns:
        RGB image of `(W, H)` pixels; the same probability has the same colour in every picture.

    Raises:
        ValueError: another shape or dtype, or values outside [0, 1].
    """
    probabilities = np.asarray(probabilities)
    if probabilities.ndim != 2 or probabilities.dtype.kind != "f":
        raise ValueError(f"probabilities must be (H, W) floats, got {probabilities.dtype} {probabilities.shape}.")
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ValueError(
            f"probabilities must lie in [0, 1], got {probabilities.min():g} to {probabilities.max():g}. "
            "Logits go through a sigmoid first, once."
        )
    return Image.fromarray(heatmap_colors(probabilities))


def slice_sheet(
    images: Sequence[np.ndarray | Image.Image],
    masks: Sequence[np.ndarray],
    references: Sequence[np.ndarray] | None = None,
    titles: Sequence[str] | None = None,
    *,
    columns: int = 3,
    figure: "FigureBase | None" = None,
) -> "FigureBase":
    """A contact sheet of slices with their outlines.

    Args:
        images, masks, references: the slices, as for `draw_outline`, one after another.
        titles: a line above each slice.
        columns: slices per row.
        figure: the figure or subfigure to draw into; a new figure if None.

    Returns:
        The figure.

    Raises:
        ValueError: no slice, or sequences of different lengths.
    """
    from matplotlib.lines import Line2D

    count = len(images)
    if count == 0 or columns < 1:
        raise ValueError(f"A sheet needs at least one slice and one column, got {count} and {columns}.")
    for name, items in (("masks", masks), ("references", references), ("titles", titles)):
        if items is not None and len(items) != count:
            raise ValueError(f"There are {count} images but {len(items)} {name}; give one each.")
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = figure or new_figure(2.7 * columns, 3.1 * rows + 0.4)
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for i, ax in enumerate(axes.flat[:count]):
        reference = None if references is None else references[i]
        ax.imshow(draw_outline(images[i], masks[i], reference=reference, scale=4, width=4), interpolation="antialiased")
        if titles is not None:
            ax.set_title(titles[i], fontsize=8, parse_math=False)
    lines = [("prediction", PREDICTION_COLOR), ("reference", REFERENCE_COLOR)][: 1 if references is None else 2]
    handles = [Line2D([], [], color=np.divide(color, 255), linewidth=2.5, label=label) for label, color in lines]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, sizes in inches, at the resolution and with the layout of all figures here."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def plot_dice_per_patient(
    dice: Mapping[str, float],
    *,
    interval: tuple[float, float] | None = None,
    baseline: Mapping[str, float] | None = None,
    labels: tuple[str, str] = ("post-processed", "raw"),
    figure: "FigureBase | None" = None,
) -> "FigureBase":
    """Dice of each patient, sorted, with their mean.

    Args:
        dice: patient to Dice in [0, 1]; NaN (no lesion, none predicted) is shown as undefined.
        interval: confidence interval of the mean, drawn as a band.
        baseline: the same patients' Dice by another treatment, joined to the first by a line.
        labels: names of `dice` and `baseline`.
        figure: the figure or subfigure to draw into; a new figure if None.

    Returns:
        The figure.

    Raises:
        ValueError: no patient, or a baseline of other patients.
    """
    if not dice:
        raise ValueError("There is no patient to plot.")
    if baseline is not None and baseline.keys() != dice.keys():
        raise ValueError("baseline must have the same patients as dice.")
    patients = sorted(dice, key=lambda patient: (not np.isnan(dice[patient]), dice[patient]))
    values = np.array([dice[patient] for patient in patients])
    rows = np.arange(len(patients))
    figure = figure or new_figure(6.5, 1.3 + 0.2 * len(patients))
    ax = figure.subplots()

    defined = values[~np.isnan(values)]
    if defined.size:
        mean_label = f"mean {defined.mean():.3f}"
        if interval is not None and not np.isnan(interval).any():
            ax.axvspan(*interval, color=DARK_BLUE, alpha=0.15, linewidth=0)
            mean_label += f" (95 % CI {interval[0]:.3f} to {interval[1]:.3f})"
        ax.axvline(defined.mean(), color=DARK_BLUE, linewidth=1, label=mean_label)
    if baseline is not None:
        others = np.array([baseline[patient] for patient in patients])
        ax.hlines(rows, others, values, color=GREY, linewidth=0.8)
        ax.scatter(others, rows, s=22, facecolors="white", edgecolors=GREY, linewidths=1, label=labels[1], zorder=2)
    ax.scatter(values, rows, s=26, color=DARK_BLUE, label=labels[0] if baseline is not None else None, zorder=3)
    for row in rows[np.isnan(values)]:
        ax.text(0.01, row, "undefined: no lesion, none predicted", fontsize=7, color=GREY, va="center")

    ax.set_yticks(rows, patients, fontsize=7, parse_math=False)
    ax.set_ylim(-0.8, len(patients) - 0.2)
    ax.set_xlim(0, 1.015)
    ax.set_xlabel("Dice of the patient's volume")
    _style(ax)
    if ax.get_legend_handles_labels()[0]:
        figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    return figure


def plot_training_curves(rows: Sequence[Mapping[str, float]]) -> "Figure":
    """Loss, validation Dice and learning rate by epoch.

    Args:
        rows: one mapping per epoch with `epoch`, and any of `train_loss`, `validation_dice_mean`,
            `validation_dice_median`, `learning_rate`; a row may lack a value, or have None or NaN for it.

    Returns:
        The figure, one panel for each quantity that has a value.

    Raises:
        ValueError: no row has an epoch and a value.
    """
    panels = (
        ("training loss", [("train_loss", None, DARK_BLUE)]),
        (
            "validation Dice by patient",
            [("validation_dice_mean", "mean", DARK_BLUE), ("validation_dice_median", "median", VERMILLION)],
        ),
        ("learning rate", [("learning_rate", None, GREY)]),
    )
    panels = [(title, [curve for curve in curves if _points(rows, curve[0]).size]) for title, curves in panels]
    panels = [(title, curves) for title, curves in panels if curves]
    if not panels:
        raise ValueError("There is nothing to plot: no row has both an epoch and a value.")

    figure = new_figure(7, 2.1 * len(panels) + 0.4)
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for ax, (title, curves) in zip(axes, panels, strict=True):
        for key, label, color in curves:
            epochs, values = _points(rows, key)
            ax.plot(epochs, values, color=color, linewidth=1.5, marker="o", markersize=3, label=label)
            if key == "validation_dice_mean":
                best = values.argmax()
                label = f"best mean, {values[best]:.3f} in epoch {epochs[best]:g}"
                ax.axvline(epochs[best], color=color, linewidth=1, linestyle=":", label=label, zorder=1)
        if title == "learning rate":
            ax.set_ylim(bottom=0)
        ax.set_ylabel(title, fontsize=8)
        if ax.get_legend_handles_labels()[0]:
            # Above the axes, where it can hide no curve.
            ax.legend(fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False)
        _style(ax)
    axes[-1].set_xlabel("epoch")
    axes[-1].xaxis.get_major_locator().set_params(integer=True)
    return figure


def _points(rows: Sequence[Mapping[str, float]], key: str) -> np.ndarray:
    """Epochs and values `(2, N)` of the rows that have both."""
    points = [(row["epoch"], row[key]) for row in rows if row.get("epoch") is not None and row.get(key) is not None]
    array = np.array(points, dtype=np.float64).reshape(-1, 2).T
    return array[:, np.isfinite(array).all(axis=0)]


def _style(ax) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8)
    ax.grid(color="0.9", linewidth=0.6)
    ax.set_axisbelow(True)


def _check_mask(name: str, mask: np.ndarray, shape: tuple[int, int] | None = None) -> None:
    if not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.ndim != 2:
        kind = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise ValueError(f"{name} must be an (H, W) bool array, got {kind}.")
    if shape is not None and mask.shape != shape:
        raise ValueError(f"{name} must have the slice's size {shape}, got {mask.shape}.")
