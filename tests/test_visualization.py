"""Pictures: what the outline covers, what colours mean, and that figures show the numbers they are given."""

import math
import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from PIL import Image

from modeling.visualization import (
    PREDICTION_COLOR,
    REFERENCE_COLOR,
    draw_outline,
    flair_to_grey,
    outline,
    plot_dice_per_patient,
    plot_training_curves,
    probability_heatmap,
    slice_sheet,
    volume_to_grey,
)


@pytest.fixture
def brain():
    """A 48 x 40 slice: dark background, grey brain with a gradient, a bright lesion on FLAIR alone."""
    rows, columns = np.mgrid[:48, :40]
    inside = ((rows - 24) / 20) ** 2 + ((columns - 20) / 16) ** 2 < 1
    flair = np.where(inside, 80 + rows, 3)
    flair[16:24, 14:22] = 230
    return np.stack([np.full_like(flair, 9), flair, 255 - flair], axis=-1).astype(np.uint8)


@pytest.fixture
def lesion():
    mask = np.zeros((48, 40), dtype=bool)
    mask[16:24, 14:22] = True
    return mask


def has_color(picture, color):
    return (np.asarray(picture) == color).all(axis=-1)


# FLAIR in grey


def test_grey_shows_flair_from_black_to_white(brain):
    grey = flair_to_grey(brain)
    assert grey.shape == (48, 40)
    assert grey.dtype == np.uint8
    assert grey.min() == 0
    assert grey.max() == 255
    assert (grey[16:24, 14:22] > grey[30, 20]).all()
    np.testing.assert_array_equal(np.diff(grey[26:42, 20].astype(int)) > 0, True)  # the gradient is kept
    np.testing.assert_array_equal(flair_to_grey(brain[..., 1]), grey)
    np.testing.assert_array_equal(flair_to_grey(brain[..., 1:2]), grey)
    np.testing.assert_array_equal(flair_to_grey(Image.fromarray(brain)), grey)


@pytest.mark.parametrize(
    "rescale",
    [lambda x: x.astype(np.uint16) * 257, lambda x: x / 255, lambda x: x.astype(np.float32) * 40 - 1000],
    ids=["16 bit", "unit interval", "offset"],
)
def test_grey_does_not_depend_on_the_intensity_scale(brain, rescale):
    difference = flair_to_grey(rescale(brain)).astype(int) - flair_to_grey(brain)
    assert np.abs(difference).max() <= 1  # rounding


def test_a_few_bright_pixels_do_not_darken_the_brain(brain):
    bright = brain.astype(np.uint16)
    bright[20, 15:18, 1] = 60_000
    np.testing.assert_array_equal(flair_to_grey(bright)[30:40, 18:22], flair_to_grey(brain)[30:40, 18:22])


def test_background_around_the_head_does_not_brighten_it(brain):
    flair = brain[..., 1]
    np.testing.assert_array_equal(flair_to_grey(np.pad(flair, 60, mode="edge"))[60:-60, 60:-60], flair_to_grey(flair))


def test_a_constant_slice_is_black():
    assert not flair_to_grey(np.full((40, 40), 7, dtype=np.uint8)).any()


def test_slices_of_a_volume_share_one_window(brain):
    flair = brain[..., 1]
    grey = volume_to_grey(np.stack([flair, flair // 2]))
    assert grey.dtype == np.uint8
    assert grey[0, 16:24, 14:22].min() == 255
    np.testing.assert_allclose(grey[1, 30:40, 18:22], grey[0, 30:40, 18:22] / 2, atol=3)  # 3 is the background
    spread = volume_to_grey(flair[None], 2.0)
    np.testing.assert_array_equal(spread[0], flair_to_grey(flair, 2.0))
    assert not volume_to_grey(np.full((2, 40, 40), 7, dtype=np.uint8)).any()


@pytest.mark.parametrize("headroom", [2.0, 3.0])
def test_headroom_keeps_what_is_brighter_than_the_window_apart(brain, headroom):
    bright = brain.astype(np.uint16)
    bright[20, 15:17, 1] = 400, 450
    window, spread = flair_to_grey(bright), flair_to_grey(bright, headroom)
    assert window[20, 15] == window[20, 16] == 255
    assert 255 / headroom < spread[20, 15] < spread[20, 16]
    np.testing.assert_allclose(spread[30:40, 18:22] * headroom, window[30:40, 18:22], atol=headroom)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 40, 40)), r"\(4, 40, 40\)"),
        (np.zeros((0, 40)), r"\(0, 40\)"),
        (np.zeros((40, 40), dtype=bool), "bool"),
        (np.full((40, 40), np.nan), "NaN"),
    ],
)
def test_grey_refuses_what_is_no_slice(image, message):
    with pytest.raises(ValueError, match=message):
        flair_to_grey(image)


# Outlines


def test_an_outline_is_the_edge_inside_or_outside(lesion):
    inner, outer = outline(lesion), outline(lesion, outside=True)
    assert inner.sum() == 4 * 8 - 4
    assert outer.sum() == 4 * 8  # no corners
    assert not (inner & ~lesion).any()
    assert not (outer & lesion).any()
    np.testing.assert_array_equal(outline(lesion, width=4), lesion)  # 8 pixels wide, 4 from either side
    assert outline(lesion, width=3).sum() == 64 - 4


def test_an_outline_closes_at_the_frame_and_keeps_single_pixels():
    corner = np.zeros((6, 6), dtype=bool)
    corner[:4, :4] = True
    assert outline(corner).sum() == 12
    pixel = np.zeros((6, 6), dtype=bool)
    pixel[3, 3] = True
    np.testing.assert_array_equal(outline(pixel), pixel)
    assert not outline(np.zeros((6, 6), dtype=bool)).any()


@pytest.mark.parametrize("scale", [1, 3])
def test_the_drawn_outline_is_the_masks_and_the_rest_is_grey(brain, lesion, scale):
    picture = draw_outline(brain, lesion, scale=scale)
    assert picture.mode == "RGB"
    assert picture.size == (40 * scale, 48 * scale)
    enlarged = np.kron(lesion, np.ones((scale, scale))).astype(bool)
    drawn = has_color(picture, PREDICTION_COLOR)
    np.testing.assert_array_equal(drawn, outline(enlarged))
    rest = np.asarray(picture)[~drawn]
    assert (rest == rest[:, :1]).all()


def test_equal_masks_show_both_lines(brain, lesion):
    picture = draw_outline(brain, lesion, reference=lesion)
    np.testing.assert_array_equal(has_color(picture, PREDICTION_COLOR), outline(lesion))
    np.testing.assert_array_equal(has_color(picture, REFERENCE_COLOR), outline(lesion, outside=True))


def test_lines_have_the_colours_and_the_width_asked_for(brain, lesion):
    other = np.roll(lesion, 12, axis=0)
    red, blue = (255, 0, 0), (0, 0, 255)
    picture = draw_outline(brain, lesion, red, other, blue, width=2)
    np.testing.assert_array_equal(has_color(picture, red), outline(lesion, 2))
    np.testing.assert_array_equal(has_color(picture, blue), outline(other, 2, outside=True))


def test_the_masks_line_lies_on_the_references(brain, lesion):
    beside = np.roll(lesion, 8, axis=1)  # its line on the outside runs where the mask's runs inside
    picture = draw_outline(brain, lesion, reference=beside)
    np.testing.assert_array_equal(has_color(picture, PREDICTION_COLOR), outline(lesion))


def test_an_empty_mask_draws_no_line(brain, lesion):
    picture = np.asarray(draw_outline(brain, np.zeros_like(lesion), color=(255, 0, 0)))
    np.testing.assert_array_equal(picture, np.repeat(flair_to_grey(brain)[..., None], 3, axis=-1))


def test_drawing_writes_into_no_argument(brain, lesion):
    copies = brain.copy(), lesion.copy()
    draw_outline(brain, lesion, reference=lesion, scale=2, width=2)
    np.testing.assert_array_equal(brain, copies[0])
    np.testing.assert_array_equal(lesion, copies[1])


def test_drawing_refuses_masks_and_sizes_that_do_not_fit(brain, lesion):
    with pytest.raises(ValueError, match=r"mask must have the slice's size \(48, 40\), got \(40, 48\)"):
        draw_outline(brain, lesion.T)
    with pytest.raises(ValueError, match=r"reference must be an \(H, W\) bool array, got uint8"):
        draw_outline(brain, lesion, reference=lesion.astype(np.uint8))
    with pytest.raises(ValueError, match="scale"):
        draw_outline(brain, lesion, scale=0)
    with pytest.raises(ValueError, match="width"):
        draw_outline(brain, lesion, width=0)


# Probabilities


def test_a_higher_probability_is_always_lighter():
    colors = np.asarray(probability_heatmap(np.linspace(0, 1, 256, dtype=np.float32)[None]))[0]
    lightness = colors @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) > -0.5).all()  # colours have 8 bits
    assert (np.diff(lightness[::8]) > 0).all()
    assert lightness[0] < 5
    assert lightness[-1] > 230


def test_the_same_probability_has_the_same_colour_in_every_picture():
    alone = probability_heatmap(np.full((4, 5), 0.3))
    beside_one = probability_heatmap(np.array([[0.3, 1.0]]))
    assert alone.size == (5, 4)
    assert alone.getpixel((0, 0)) == beside_one.getpixel((0, 0))


@pytest.mark.parametrize(
    ("probabilities", "message"),
    [
        (np.array([[-3.0, 4.0]]), "-3 to 4.*sigmoid"),
        (np.array([[np.nan, 0.5]]), "nan"),
        (np.zeros((2, 3, 3)), r"\(2, 3, 3\)"),
        (np.zeros((3, 3), dtype=np.uint8), "uint8"),
    ],
)
def test_a_heatmap_refuses_what_is_no_probability(probabilities, message):
    with pytest.raises(ValueError, match=message):
        probability_heatmap(probabilities)


# Figures


def rendered(figure, tmp_path):
    figure.savefig(tmp_path / "figure.png")
    return matplotlib.image.imread(tmp_path / "figure.png")


def test_a_sheet_shows_every_slice_with_both_lines(brain, lesion, tmp_path):
    figure = slice_sheet([brain] * 4, [lesion] * 4, [lesion] * 4, ["a", "b", "c", "$d_{$"])
    shown = [ax for ax in figure.axes if ax.images]
    assert [ax.get_title() for ax in shown] == ["a", "b", "c", "$d_{$"]
    for ax in shown:
        assert has_color(ax.images[0].get_array(), PREDICTION_COLOR).any()
        assert has_color(ax.images[0].get_array(), REFERENCE_COLOR).any()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["prediction", "reference"]
    assert rendered(figure, tmp_path).std() > 0.1


@pytest.mark.parametrize(("count", "columns", "grid"), [(5, 2, (3, 2)), (2, 3, (1, 2)), (3, 3, (1, 3))])
def test_a_sheet_goes_row_by_row(brain, lesion, count, columns, grid):
    slices = [np.roll(brain, i, axis=0) for i in range(count)]
    masks = [np.roll(lesion, i, axis=1) for i in range(count)]
    figure = slice_sheet(slices, masks, masks[::-1], columns=columns)
    assert figure.axes[0].get_subplotspec().get_gridspec().get_geometry() == grid
    shown = [ax for ax in figure.axes if ax.images]
    places = [divmod(i, grid[1]) for i in range(count)]
    assert [(spec.rowspan.start, spec.colspan.start) for spec in (ax.get_subplotspec() for ax in shown)] == places
    assert not any(ax.axison for ax in figure.axes), "empty places have no frame either"
    for ax, image, mask, reference in zip(shown, slices, masks, masks[::-1], strict=True):
        expected = draw_outline(image, mask, reference=reference, scale=4, width=4)
        np.testing.assert_array_equal(ax.images[0].get_array(), np.asarray(expected))


def test_figures_are_drawn_into_the_one_that_is_given(brain, lesion):
    figure = Figure()
    left, right = figure.subfigures(1, 2)
    assert slice_sheet([brain], [lesion], figure=left) is left
    assert plot_dice_per_patient({"a": 0.5}, figure=right) is right
    assert len(left.axes) == len(right.axes) == 1


def test_a_sheet_without_reference_has_no_reference_in_its_legend(brain, lesion):
    figure = slice_sheet([brain], [lesion])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["prediction"]
    assert not has_color(figure.axes[0].images[0].get_array(), REFERENCE_COLOR).any()


def test_a_sheet_refuses_unequal_numbers(brain, lesion):
    with pytest.raises(ValueError, match="2 images but 1 masks"):
        slice_sheet([brain] * 2, [lesion])
    with pytest.raises(ValueError, match="1 images but 2 references"):
        slice_sheet([brain], [lesion], [lesion] * 2)
    with pytest.raises(ValueError, match="1 images but 0 titles"):
        slice_sheet([brain], [lesion], titles=[])
    with pytest.raises(ValueError, match="one column, got 1 and 0"):
        slice_sheet([brain], [lesion], columns=0)
    with pytest.raises(ValueError, match="at least one slice"):
        slice_sheet([], [])


def test_the_dice_plot_sorts_patients_and_states_the_mean(tmp_path):
    figure = plot_dice_per_patient(
        {"b": 0.9, "a": 0.5, "none": math.nan, "$c_{$": 0.7},
        interval=(0.55, 0.85),
        baseline={"a": 0.4, "b": 0.9, "$c_{$": 0.6, "none": math.nan},
    )
    (ax,) = figure.axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["none", "a", "$c_{$", "b"]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "mean 0.700 (95 % CI 0.550 to 0.850)" in legend
    assert {"raw", "post-processed"} <= set(legend)
    assert [(text.get_position()[1], text.get_text()) for text in ax.texts] == [
        (0, "undefined: no lesion, none predicted")
    ]
    rendered(figure, tmp_path)


def test_the_dice_plot_puts_each_patients_values_on_its_line():
    figure = plot_dice_per_patient(
        {"b": 0.9, "a": 0.5, "c": 0.85}, interval=(0.55, 0.85), baseline={"a": 0.4, "b": 0.95, "c": 0.6}
    )
    (ax,) = figure.axes
    np.testing.assert_array_equal(ax.get_yticks(), [0, 1, 2])
    dots = {dots.get_label(): dots.get_offsets().tolist() for dots in ax.collections if dots.get_offsets().size > 2}
    assert dots == {"raw": [[0.4, 0], [0.6, 1], [0.95, 2]], "post-processed": [[0.5, 0], [0.85, 1], [0.9, 2]]}
    (joints,) = (lines for lines in ax.collections if isinstance(lines, LineCollection))
    np.testing.assert_allclose(
        joints.get_segments(), [[(0.4, 0), (0.5, 0)], [(0.6, 1), (0.85, 1)], [(0.95, 2), (0.9, 2)]]
    )
    (mean,), (band,) = ax.lines, ax.patches
    np.testing.assert_allclose(mean.get_xdata(), 0.75)
    np.testing.assert_allclose(band.get_extents().transformed(ax.transData.inverted()).intervalx, (0.55, 0.85))
    lowest, highest = ax.get_xlim()
    assert lowest == 0
    assert 1 < highest < 1.05


def test_the_dice_plot_without_baseline_names_the_mean_alone():
    figure = plot_dice_per_patient({"a": 0.5, "b": 0.75})
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["mean 0.625"]


def test_the_dice_plot_of_undefined_patients_alone_has_no_mean(tmp_path):
    figure = plot_dice_per_patient({"a": math.nan}, interval=(math.nan, math.nan))
    assert not figure.axes[0].lines
    rendered(figure, tmp_path)


def test_the_dice_plot_refuses_no_patients_and_other_baselines():
    with pytest.raises(ValueError, match="no patient"):
        plot_dice_per_patient({})
    with pytest.raises(ValueError, match="same patients"):
        plot_dice_per_patient({"a": 0.5}, baseline={"b": 0.5})


def test_training_curves_show_what_the_log_has(tmp_path):
    rows = [
        {"epoch": 1, "train_loss": 0.9, "learning_rate": 1e-4},
        {
            "epoch": 2,
            "train_loss": 0.5,
            "learning_rate": 1e-3,
            "validation_dice_mean": 0.6,
            "validation_dice_median": 0.7,
        },
        {"epoch": 3, "train_loss": None, "validation_dice_mean": 0.8, "note": "more keys do no harm"},
        {"epoch": 4, "train_loss": 0.3, "validation_dice_mean": math.nan},
        {"train_loss": 0.2},
    ]
    figure = plot_training_curves(rows)
    loss, dice, rate = figure.axes
    np.testing.assert_allclose(loss.lines[0].get_xydata(), [(1, 0.9), (2, 0.5), (4, 0.3)])
    np.testing.assert_allclose(dice.lines[0].get_xydata(), [(2, 0.6), (3, 0.8)])
    np.testing.assert_allclose(rate.lines[0].get_ydata(), [1e-4, 1e-3])
    labels = [text.get_text() for text in dice.get_legend().get_texts()]
    assert labels == ["mean", "best mean, 0.800 in epoch 3", "median"]
    assert dice.lines[1].get_xdata() == [3, 3]
    np.testing.assert_allclose(dice.lines[2].get_xydata(), [(2, 0.7)])
    assert [ax.get_ylabel() for ax in figure.axes] == ["training loss", "validation Dice by patient", "learning rate"]
    assert rate.get_ylim()[0] == 0
    assert rate.get_xlabel() == "epoch"
    rendered(figure, tmp_path)


def test_training_curves_drop_panels_without_values():
    figure = plot_training_curves([{"epoch": 0, "train_loss": 1.0}])
    assert [ax.get_ylabel() for ax in figure.axes] == ["training loss"]
    with pytest.raises(ValueError, match="nothing to plot"):
        plot_training_curves([{"epoch": 1, "train_loss": math.nan}, {}])


def test_importing_the_module_does_not_import_matplotlib():
    code = "import sys, modeling.visualization; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
