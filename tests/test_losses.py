"""Losses against independent formulas, and their limits."""

import numpy as np
import pytest
import torch

from modeling.losses import LOSSES, SMOOTHING, distillation_loss, segmentation_loss


@pytest.fixture
def example() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (3, 1, 6, 5) and labels (3, 6, 5); the last image has no lesion."""
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(3, 6, 5, generator=generator) > 0.6).long()
    labels[2] = 0
    return torch.randn(3, 1, 6, 5, generator=generator), labels


def expected_loss(kind: str, probabilities: np.ndarray, labels: np.ndarray) -> float:
    def soft_dice(p, y):
        return (2 * (p * y).sum() + SMOOTHING) / (p.sum() + y.sum() + SMOOTHING)

    if kind == "bce":
        return -np.mean(np.where(labels == 1, np.log(probabilities), np.log(1 - probabilities)))
    if kind == "dice":
        per_image = np.mean([soft_dice(p, y) for p, y in zip(probabilities, labels, strict=True)])
        return 1 - (per_image + soft_dice(probabilities, labels)) / 2
    if kind == "dice_bce":
        return expected_loss("bce", probabilities, labels) + expected_loss("dice", probabilities, labels)
    terms = []
    for p, y in zip(probabilities, labels, strict=True):
        hit, missed, alarm = (p * y).sum(), ((1 - p) * y).sum(), (p * (1 - y)).sum()
        terms.append((1 - (hit + SMOOTHING) / (hit + 0.7 * missed + 0.3 * alarm + SMOOTHING)) ** 0.75)
    return np.mean(terms)


@pytest.mark.parametrize("kind", LOSSES)
def test_matches_the_formula(kind, example):
    logits, labels = example
    probabilities = logits.double().sigmoid()[:, 0].numpy()
    loss = segmentation_loss(logits, labels, kind)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(expected_loss(kind, probabilities, labels.numpy()), rel=1e-5)
    compiled = torch.compile(segmentation_loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(logits, labels, kind), loss)


@pytest.mark.parametrize("kind", LOSSES)
def test_perfect_logits_cost_nothing_and_wrong_ones_most(kind, example):
    _, labels = example
    perfect = ((labels[:, None] * 2 - 1) * 200.0).requires_grad_()
    loss = segmentation_loss(perfect, labels, kind)
    assert loss.item() == pytest.approx(0, abs=1e-3)
    loss.backward()
    assert perfect.grad.isfinite().all()
    assert segmentation_loss(-perfect, labels, kind) > segmentation_loss(perfect * 0, labels, kind) > 0.05


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_gradients_are_finite_and_lead_downhill(kind, scale, example):
    logits, labels = example
    logits = (logits * scale).requires_grad_()
    loss = segmentation_loss(logits, labels, kind)
    loss.backward()
    assert logits.grad.isfinite().all()
    assert segmentation_loss(logits.detach() - 0.1 * logits.grad, labels, kind) < loss


@pytest.mark.parametrize("kind", LOSSES)
def test_half_precision_logits_give_a_float32_loss(kind, example):
    logits, labels = example
    loss = segmentation_loss(logits.bfloat16(), labels, kind)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(segmentation_loss(logits, labels, kind).item(), rel=0.02)


def test_batches_without_any_lesion_are_defined(example):
    logits, labels = example
    for kind in LOSSES:
        assert segmentation_loss(logits, torch.zeros_like(labels), kind).isfinite()


def test_rejects_what_does_not_fit(example):
    logits, labels = example
    with pytest.raises(ValueError, match="Unknown loss 'hinge'; choose one of dice_bce"):
        segmentation_loss(logits, labels, "hinge")
    with pytest.raises(ValueError, match=r"shape \(3, 6, 5\)"):
        segmentation_loss(logits, labels[:, None], "bce")
    with pytest.raises(ValueError, match="range from 0 to 255"):
        segmentation_loss(logits, labels * 255, "bce")


class TestDistillation:
    def test_is_the_divergence_of_two_bernoulli_distributions(self, example):
        logits, _ = example
        teacher = logits.roll(1, dims=0)
        p, q = teacher.double().sigmoid().numpy(), logits.double().sigmoid().numpy()
        expected = np.mean(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))
        assert distillation_loss(logits, teacher).item() == pytest.approx(expected, rel=1e-5)

    def test_leads_to_the_teacher_and_is_zero_there(self, example):
        logits, _ = example
        assert distillation_loss(logits, logits).item() == pytest.approx(0, abs=1e-6)
        student, teacher = torch.zeros_like(logits).requires_grad_(), logits.clone().requires_grad_()
        distillation_loss(student, teacher).backward()
        assert teacher.grad is None
        torch.testing.assert_close(student.grad, (0.5 - teacher.detach().sigmoid()) / logits.numel())

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_a_certain_teacher_and_half_precision_stay_finite(self, dtype):
        logits = torch.tensor([-60.0, 60.0, 0.0], dtype=dtype)[None, None, None]
        loss = distillation_loss(logits, logits.flip(-1))
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)
