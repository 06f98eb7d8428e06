"""Runs of train.py in this process, on the phantom with a tiny U-Net."""

import os
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from matplotlib.figure import Figure

import train
from modeling import PRESETS, UNetConfig


@pytest.fixture
def run(phantom_dataset_dir, tmp_path, monkeypatch):
    """Runs `train.main` with these arguments; gives the run's folder.

    With `figures=True` what it plots is drawn, too, which takes longer than the rest of such a run.
    """
    monkeypatch.setitem(PRESETS, "tiny", UNetConfig(hidden_sizes=[4, 8], encoder_depths=[1, 1]))
    # One thread: more gain nothing on a model this small, and wait for each other where other processes want the cores.
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)

    def run(*arguments: str, folder: str = "run", figures: bool = False) -> Path:
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        output_dir = tmp_path / folder
        settings = ["--model", "tiny", "--dataset", str(phantom_dataset_dir), "--output_dir", str(output_dir)]
        settings += ["--image_size", "48", "64@50%", "--batch_size", "4", "--epochs", "2", "--num_workers", "0"]
        threads = torch.get_num_threads()
        undrawn = patch.object(Figure, "savefig", lambda _, file, **options: file.write(b"a figure"))
        try:
            with nullcontext() if figures else undrawn:
                train.main([*settings, *arguments])
        finally:
            torch.set_num_threads(threads)
        return output_dir

    return run
