"""The mathematics of the error analysis, and its figure."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from benchmarks.error_analysis import (
    BINS,
    brain,
    calibration_error,
    check_figure,
    cross_entropy,
    draw_reliability,
    fit_temperature,
    irregularity,
    lesion_brightness,
    main,
    postprocessing_rows,
    reliability,
    scale,
    scale_by_the_others,
)
from hub_dataset.patients import Patient
from hub_dataset.phantom import phantom_volume
from modeling.image_processing_brain_mri import brain_mask


def disc(radius: float, size: int = 101) -> np.ndarray:
    rows, columns = np.ogrid[:size, :size]
    return (rows - size // 2) ** 2 + (columns - size // 2) ** 2 <= radius**2


@pytest.mark.parametrize("radius", [10, 20, 40])
def test_a_disc_is_regular(radius):
    assert irregularity(disc(radius)) == pytest.approx(1, abs=0.08)


def test_an_outline_with_teeth_is_irregular_and_place_does_not_matter():
    comb = disc(40)
    comb[:, ::4] &= disc(20)[:, ::4]
    assert irregularity(comb) > 3 * irregularity(disc(40))
    shape = disc(9, 25)
    assert irregularity(np.pad(shape, ((0, 40), (3, 7)))) == pytest.approx(irregularity(shape))


def test_calibrated_probabilities_have_no_error_and_overconfident_ones_a_temperature_above_1():
    rng = np.random.default_rng(0)
    honest = rng.uniform(0.02, 0.98, 200_000)
    truth = rng.random(honest.size) < honest
    count, mean, share = reliability(honest, truth)
    assert count.sum() == honest.size
    np.testing.assert_allclose(mean, share, atol=0.02)
    assert calibration_error(count, mean, share) < 0.01
    assert fit_temperature(honest, truth) == pytest.approx(1, abs=0.03)

    logits = np.log(honest / (1 - honest))
    overconfident = 1 / (1 + np.exp(-2 * logits))
    assert calibration_error(*reliability(overconfident, truth)) > 0.05
    assert fit_temperature(overconfident, truth) == pytest.approx(2, abs=0.1)


def test_a_patient_is_scaled_by_what_fits_the_others():
    rng = np.random.default_rng(0)
    honest = [rng.uniform(0.02, 0.98, 50_000) for _ in range(3)]
    truths = [rng.random(p.size) < p for p in honest]
    overconfident = [scale(p, 1 / factor) for p, factor in zip(honest, (2, 2, 5), strict=True)]
    scaled = scale_by_the_others(overconfident, truths)
    np.testing.assert_allclose(scaled[2], scale(overconfident[2], 2), atol=0.03)
    assert cross_entropy(scaled[2], truths[2]) < cross_entropy(overconfident[2], truths[2])
    between = fit_temperature(np.concatenate(overconfident[1:]), np.concatenate(truths[1:]))
    assert 2.2 < between < 5
    np.testing.assert_allclose(scaled[0], scale(overconfident[0], between))


def test_empty_bins_are_undefined():
    count, _, share = reliability(np.array([0.05, 1.0]), np.array([False, True]))
    assert count.tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    assert np.isnan(share[1:9]).all()
    assert share[9] == 1


def test_the_brain_is_found_in_slices_with_a_head_and_nowhere_else():
    slices, mask = phantom_volume(0, num_slices=6, size=64)
    slices[0] = 0
    found = brain(Patient("phantom", list(range(1, 7)), slices, mask))
    assert found.shape == mask.shape
    assert not found[0].any()
    assert 0.05 < found[3].mean() < 0.5


def test_neighbouring_slices_bridge_a_gap_and_outvote_a_single_slice():
    truth = np.zeros((12, 40, 40), bool)
    truth[2:7, 5:26, 5:26] = True
    probabilities = np.where(truth, 0.9, 0.0)
    probabilities[4] *= 0.5  # a slice of the lesion that is missed
    probabilities[9, 5:26, 5:26] = 0.9  # a false alarm on one slice, large enough to be kept as an island
    rows = {row[1]: row for row in postprocessing_rows("m", [probabilities], [truth], [np.ones_like(truth)])}
    found = rows["holes filled, islands under a tenth out"]
    averaged = rows["neighbouring slices averaged, then the default"]
    assert (found[4], found[5]) == ("0.800", "14.3 %")
    assert (averaged[4], averaged[5]) == ("1.000", "0.0 %")
    default = rows["the default: holes filled, islands under half out, outlines extended"]
    assert averaged[6] == f"{float(averaged[2].split()[0]) - float(default[2].split()[0]):+.3f}"
    assert default[6] == "+0.000", "one patient has no interval"


def test_a_faint_lesion_is_less_bright_whatever_the_scale_of_the_slice():
    slices, mask = phantom_volume(0, num_slices=12, size=128)
    index = mask.sum(axis=(1, 2)).argmax()
    image, lesion = slices[index].astype(np.float64), mask[index]
    tissue = np.median(image[..., 1][brain_mask(image)])
    faint = image.copy()
    faint[lesion, 1] = tissue + 0.3 * (image[lesion, 1] - tissue)
    assert lesion_brightness(image, lesion) > 2 * lesion_brightness(faint, lesion) > 0
    assert lesion_brightness(7 * image + 3, lesion) == pytest.approx(lesion_brightness(image, lesion), rel=1e-5)


def test_the_figure_has_a_line_of_its_own_for_each_of_many_models(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, _: drawn.append(figure))
    names = [f"model {number}" for number in range(9)]
    draw_reliability({name: (np.full(BINS, 0.5), np.full(BINS, 0.5)) for name in names}, tmp_path / "figure.png")
    lines = drawn[0].axes[0].get_lines()[1:]
    assert [line.get_label() for line in lines] == names
    assert len({(line.get_marker(), line.get_color()) for line in lines}) == len(names)


def test_a_figure_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path, capsys):
    (tmp_path / "file").write_text("kept")
    for figure, message in (
        (tmp_path / "figure.xyz", "--figure must name a file that ends in .png"),
        (tmp_path / "figure", "--figure must name a file that ends in .png"),
        (tmp_path / "file" / "figure.png", "exists"),
        (tmp_path, "--figure must name a file"),
    ):
        with pytest.raises(SystemExit):
            main(["--dataset", "./nowhere", "--predictions", "./nowhere", "--figure", str(figure)])
        assert message in capsys.readouterr().err
    check_figure(tmp_path / "new" / "figure.PDF")
    (tmp_path / "new" / "figure.svg").write_text("kept")
    check_figure(tmp_path / "new" / "figure.svg")
    assert [file.read_text() for file in (tmp_path / "new").iterdir()] == ["kept"]
