"""A tiny U-Net and a processor for tests of inference."""

import pytest
import torch

from modeling import BrainMRIImageProcessor, UNetConfig, UNetForSemanticSegmentation


@pytest.fixture
def processor() -> BrainMRIImageProcessor:
    return BrainMRIImageProcessor(size_divisor=4)


@pytest.fixture
def tiny_unet() -> UNetForSemanticSegmentation:
    torch.manual_seed(0)
    return UNetForSemanticSegmentation(UNetConfig(hidden_sizes=[4, 6, 8], encoder_depths=[1, 1, 1])).eval()
