"""Losses for binary segmentation, as pure functions of logits and labels, or of two models' logits.

Every function takes `logits` (B, 1, H, W), any float dtype, and, unless it says otherwise, `labels` (B, H, W) with the
values 0 and 1, and returns a float32 scalar tensor.
"""

from collections.abc import Callable

import torch
from torch.nn import functional as F

SMOOTHING = 1.0  # one pixel: keeps the overlap terms defined on images without a lesion


def bce_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy, mean over all pixels."""
    return F.binary_cross_entropy_with_logits(logits.float().squeeze(1), labels.float())


def dice_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """One minus soft Dice (Milletari et al. 2016, arXiv 1606.04797, section 3, without the squares).

    The mean of two estimates: per image, which gives small lesions the weight of large ones and punishes false alarms
    on empty slices, and over the batch as one volume, whose gradient does not jump where an image has no lesion.
    """
    probabilities, labels = logits.float().squeeze(1).sigmoid(), labels.float()
    intersection = (probabilities * labels).sum(dim=(1, 2))  # (B,)
    total = probabilities.sum(dim=(1, 2)) + labels.sum(dim=(1, 2))  # (B,)
    per_image = (2 * intersection + SMOOTHING) / (total + SMOOTHING)
    whole_batch = (2 * intersection.sum() + SMOOTHING) / (total.sum() + SMOOTHING)
    return 1 - (per_image.mean() + whole_batch) / 2


def dice_bce_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum of `bce_loss` and `dice_loss`."""
    return bce_loss(logits, labels) + dice_loss(logits, labels)


def focal_tversky_loss(
    logits: torch.Tensor, labels: torch.Tensor, alpha: float = 0.7, gamma: float = 0.75
) -> torch.Tensor:
    """Focal Tversky loss per image (Abraham and Khan 2019, arXiv 1810.07842, section 2).

    `alpha` weighs missed lesion pixels against false alarms (1 - alpha); `gamma` is the exponent of
    (1 - Tversky index), which the paper writes 1/gamma with gamma = 4/3.
    """
    probabilities, labels = logits.float().squeeze(1).sigmoid(), labels.float()
    true_positive = (probabilities * labels).sum(dim=(1, 2))
    false_negative = ((1 - probabilities) * labels).sum(dim=(1, 2))
    false_positive = (probabilities * (1 - labels)).sum(dim=(1, 2))
    tversky = (true_positive + SMOOTHING) / (
        true_positive + alpha * false_negative + (1 - alpha) * false_positive + SMOOTHING
    )
    # The power's slope is infinite at zero, where the prediction is perfect.
    return (1 - tversky).clamp_min(1e-6).pow(gamma).mean()


def distillation_loss(logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence of the model's lesion probabilities from a teacher's, mean over all pixels.

    Hinton et al. 2015 (arXiv 1503.02531, section 2) for two classes. `teacher_logits` has the shape of `logits`, and
    no gradient flows into it. Where both are equal the loss is zero.
    """
    teacher_logits = teacher_logits.detach().float()
    probabilities = teacher_logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(teacher_logits, probabilities)
    return F.binary_cross_entropy_with_logits(logits.float(), probabilities) - entropy


LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "dice_bce": dice_bce_loss,
    "dice": dice_loss,
    "bce": bce_loss,
    "focal_tversky": focal_tversky_loss,
}


def check_loss_name(name: str) -> None:
    """Raise `ValueError` unless `name` is a key of `LOSSES`."""
    if name not in LOSSES:
        raise ValueError(f"Unknown loss {name!r}; choose one of {', '.join(LOSSES)}.")


def segmentation_loss(logits: torch.Tensor, labels: torch.Tensor, kind: str = "dice_bce") -> torch.Tensor:
    """The loss named `kind` (a key of `LOSSES`) of `logits` (B, 1, H, W) against `labels` (B, H, W), 0 or 1.

    Raises:
        ValueError: an unknown `kind`, labels of another shape than the logits, or, in eager mode, with other values
            than 0 and 1.
    """
    check_loss_name(kind)
    if labels.shape != (logits.shape[0], *logits.shape[-2:]):
        raise ValueError(
            f"labels must have shape {(logits.shape[0], *logits.shape[-2:])}, (batch, height, width) as the pixel "
            f"values, but have {tuple(labels.shape)}."
        )
    # A compiled or exported graph cannot branch on values.
    if not torch.compiler.is_compiling() and not ((labels == 0) | (labels == 1)).all():
        raise ValueError(
            f"labels must be 0 (background) or 1 (lesion), but range from {labels.min().item()} to "
            f"{labels.max().item()}. Masks stored as 0/255 need `mask > 0` first."
        )
    return LOSSES[kind](logits, labels)
