"""A volume, and a network that stands in for a model, for tests of inference."""

from types import SimpleNamespace

import numpy as np
import torch
from torch import nn
from transformers.modeling_outputs import SemanticSegmenterOutput

from modeling.image_processing_brain_mri import FLAIR


class Brightness(nn.Module):
    """Stands in for a model: the logit is three times the normalised FLAIR intensity above 3, whatever surrounds it."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, temperature: float = 1.0):
        super().__init__()
        self.config = SimpleNamespace(temperature=temperature)
        self.shapes = []

    def forward(self, pixel_values: torch.Tensor) -> SemanticSegmenterOutput:
        self.shapes.append(tuple(pixel_values.shape))
        logits = 3 * (pixel_values[:, FLAIR : FLAIR + 1] - 3)
        return SemanticSegmenterOutput(logits=logits / self.config.temperature)


def make_volume(slices: int = 7, height: int = 90, width: int = 75) -> tuple[np.ndarray, np.ndarray]:
    """Heads with a bright cube, the first and last slices empty: (S, H, W, 3) uint8, and the cube (S, H, W) bool."""
    rng = np.random.default_rng(1)
    volume = rng.integers(0, 3, (slices, height, width, 3)).astype(np.uint8)
    volume[1:-1, 20:60, 30:60] += rng.integers(70, 110, (slices - 2, 40, 30, 3)).astype(np.uint8)
    cube = np.zeros((slices, height, width), dtype=bool)
    cube[2:5, 28:42, 35:45] = True
    volume[cube, FLAIR] = 250
    return volume, cube
