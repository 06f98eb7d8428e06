"""Distillation: a trained model, the teacher, gives each pixel of the training slices a probability to learn."""

import torch
from accelerate import Accelerator
from transformers import BaseImageProcessor, PreTrainedModel

from modeling.commands import load_checkpoint


def load_teacher(
    name_or_path: str, student: PreTrainedModel, processor: BaseImageProcessor, accelerator: Accelerator
) -> PreTrainedModel:
    """A trained checkpoint, frozen, on the accelerator's device.

    Args:
        name_or_path: the checkpoint's folder, or its name on the Hub.
        processor: the student's, which normalises the slices of both.

    Raises:
        ValueError: a checkpoint that cannot be loaded, of other channels, or whose slices are normalised otherwise.
    """
    teacher, own_processor = load_checkpoint(name_or_path)
    settings = {
        "num_channels": (teacher.config.num_channels, student.config.num_channels),
        "clip": (getattr(own_processor, "clip", None), processor.clip),
        "volume_share": (getattr(own_processor, "volume_share", None), processor.volume_share),
    }
    if differences := [f"{name} {own}, not {ours}" for name, (own, ours) in settings.items() if own != ours]:
        raise ValueError(
            f"The teacher {name_or_path!r} does not take the slices of this model: it has {', '.join(differences)}. "
            f"Choose a checkpoint that was trained on slices like them."
        )
    return teacher.requires_grad_(False).to(accelerator.device)


@torch.no_grad()
def teacher_logits(teacher: PreTrainedModel, pixel_values: torch.Tensor, accelerator: Accelerator) -> torch.Tensor:
    """The teacher's (B, 1, H, W) float32 for the student's own augmented crops (B, C, H, W), in the run's precision.

    Both answer the same question, which is what makes a teacher consistent (Beyer et al. 2022, arXiv 2106.05237,
    section 3); the teacher's temperature, if it has one, softens its answer.
    """
    with accelerator.autocast():
        return teacher(pixel_values=pixel_values).logits.float()
