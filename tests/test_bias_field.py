"""benchmarks/bias_field.py: a field that was put in is found again, whatever a lesion adds, and the script's table."""

import numpy as np
import pytest
from inference_samples import Brightness

from benchmarks import bias_field
from benchmarks.bias_field import AS_IT_IS, UNSUSPECTED, WHOLE, fit_field, terms_of, without_field
from modeling import BrainMRIImageProcessor
from modeling.brain_region import brain_region

SHAPE = (8, 48, 44)


@pytest.fixture
def head() -> np.ndarray:
    """An ellipsoid of even tissue with noise, dark around it: (S, H, W, 3) float32."""
    z, y, x = np.meshgrid(*(np.linspace(-1.2, 1.2, size) for size in SHAPE), indexing="ij")
    inside = z**2 + y**2 + x**2 < 1
    noise = np.random.default_rng(0).normal(1, 0.03, (*SHAPE, 3))
    return (np.where(inside[..., None], 100 * noise, 0)).astype(np.float32)


@pytest.fixture
def field() -> np.ndarray:
    """The logarithm of a field: brighter to one side and towards the edge, (S, H, W)."""
    z, y, x, *_ = terms_of(SHAPE)
    return 0.3 * x - 0.2 * y + 0.15 * x**2 + 0.1 * z * y + 0.1 * z**2


def brain_of_volume(volume: np.ndarray) -> np.ndarray:
    return np.stack(list(map(brain_region, volume)))


def unevenness(volume: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Standard deviation of the logarithm of each channel."""
    return np.log(volume[where]).std(axis=0)


def test_terms_are_those_of_the_second_order():
    terms = np.stack([np.broadcast_to(term, (3, 3, 3)).ravel() for term in terms_of((3, 3, 3))])
    assert len(terms) == 9
    assert np.linalg.matrix_rank(np.vstack([np.ones(27), terms])) == 10
    assert np.abs(terms).max() == 1


def test_a_field_is_found_and_taken_out(head, field):
    brain = brain_of_volume(head)
    shaded = head * np.exp(field)[..., None] * np.array([1, 0.5, 2])  # in channels of different scales
    np.testing.assert_allclose(
        fit_field(shaded[..., 1], brain, brain)[brain], (field - np.median(field[brain]))[brain], atol=0.02
    )
    assert (unevenness(shaded, brain) > 0.1).all()
    even = without_field(shaded)
    assert even.dtype == np.float32
    assert (unevenness(even, brain) < 0.035).all(), "the noise is left"
    np.testing.assert_allclose(np.median(even[brain], axis=0), np.median(shaded[brain], axis=0), rtol=0.05)


def test_what_is_suspected_does_not_bend_the_field(head, field):
    x = terms_of(SHAPE)[2]
    lesion = (head[..., 0] > 0) & (x > 0.2)  # a third of the brain
    shaded = head * np.exp(field)[..., None]
    shaded[lesion] *= 1.15
    brain = brain_of_volume(shaded)
    kept, bent = without_field(shaded, lesion), without_field(shaded)
    contrast = [np.median(even[brain & lesion]) / np.median(even[brain & ~lesion]) for even in (kept, bent)]
    assert contrast[0] == pytest.approx(1.15, abs=0.03)
    assert contrast[1] < 1.1


def test_a_field_has_its_limits_and_too_little_brain_has_none(head):
    x = terms_of(SHAPE)[2]
    brain = brain_of_volume(head)
    steep = fit_field(head[..., 0] * np.exp(3 * x), brain, brain)
    assert steep.max() == pytest.approx(0.7)
    assert steep.min() == pytest.approx(-0.7)
    assert not fit_field(head[..., 0], brain, np.zeros(SHAPE, dtype=bool)).any()
    black = np.zeros((*SHAPE, 3), dtype=np.uint8)
    assert not without_field(black).any()


def test_the_script_compares_each_way_with_the_volume_as_it_is(phantom_dataset_dir, monkeypatch, capsys):
    monkeypatch.setattr(bias_field, "load_model", lambda _: (Brightness(), BrainMRIImageProcessor(size_divisor=16)))
    for channels in ("all", "flair"):
        bias_field.main(["--checkpoint", "any", "--dataset", str(phantom_dataset_dir), "--channels", channels])
        title, _, header, _, *rows, _ = capsys.readouterr().out.splitlines()
        assert title == f"2 patients of validation, {channels} channels"
        assert header.startswith("| volume | Dice per patient")
        names = [AS_IT_IS, WHOLE, UNSUSPECTED, f"{WHOLE}, averaged", f"{UNSUSPECTED}, averaged"]
        assert [row.split(" | ")[0] for row in rows] == [f"| {name}" for name in names]
        assert rows[0].split(" | ")[-1].startswith("+0.000")


def test_the_script_averages_and_leaves_suspected_lesion_out(phantom_dataset_dir, monkeypatch):
    scored, suspected = [], []
    monkeypatch.setattr(bias_field, "load_model", lambda _: (None, None))
    levels = iter([0.2, 0.4, 0.8] * 2)
    monkeypatch.setattr(
        bias_field, "predict_volume", lambda *args: np.full(args[2].shape[:3], next(levels), dtype=np.float32)
    )
    monkeypatch.setattr(bias_field, "without_field", lambda volume, left_out=None: suspected.append(left_out) or volume)
    monkeypatch.setattr(bias_field, "mask_from_probabilities", lambda p: scored.append(float(p.flat[0])) or p >= 0.5)
    bias_field.main(["--checkpoint", "any", "--dataset", str(phantom_dataset_dir)])
    assert scored == pytest.approx([0.2, 0.4, 0.8, 0.3, 0.5] * 2)
    assert suspected[0] is None
    assert not suspected[1].any(), "0.2 is not suspected"


def test_what_is_missing_is_said_in_a_sentence(tmp_path):
    with pytest.raises(SystemExit, match=r"benchmarks\.bias_field: error: .*nothing"):
        bias_field.main(["--checkpoint", "any", "--dataset", str(tmp_path / "nothing")])
