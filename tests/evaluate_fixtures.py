"""A small split of made-up heads, a small model and its processor, for the tests of evaluation."""

import pytest
import torch
from datasets import Dataset
from evaluate_samples import FEATURES, make_patient

from modeling import BrainMRIImageProcessor, UNetConfig, UNetForSemanticSegmentation


@pytest.fixture(scope="module")
def split():
    """Three patients, one of them without a lesion, rows in no order."""
    rows = [
        *make_patient("TCGA_AA_0001", 11, {3, 4, 5, 9, 10}, seed=1),
        *make_patient("TCGA_BB_0002", 6, {2, 3}, seed=2),
        *make_patient("TCGA_CC_0003", 4, set(), seed=3),
    ]
    return Dataset.from_list(rows, features=FEATURES).shuffle(seed=0)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = UNetConfig(hidden_sizes=[4, 8], encoder_depths=[1, 1], decoder_depth=1)
    return UNetForSemanticSegmentation(config).eval()


@pytest.fixture(scope="module")
def processor():
    return BrainMRIImageProcessor()
