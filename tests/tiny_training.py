"""train.py with tiny presets, for processes of their own: `accelerate launch tests/tiny_training.py --model tiny ...`.

The repository's root must be in PYTHONPATH.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from tiny_models import TINY

import train
from modeling import PRESETS, UNetConfig, preset_config
from training import loop

TINY_PRESETS = {
    "tiny": UNetConfig(hidden_sizes=[4, 8], encoder_depths=[1, 1]),
    "tiny-transunet": preset_config("transunet-small", **TINY["transunet-small"]),  # with dropout
}

# What Python announces before it touches a file, in the folder of a run or on the way to replacing one.
FILE_EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}


def train_until(moment: int | None, argv: list[str], folder: str) -> None:
    """Train, but kill this process at a moment: a step, or an access to a file of `folder`, counted together from 1."""
    passed = 0

    def tick() -> None:
        nonlocal passed
        passed += 1
        if passed == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_audit(event: str, arguments: tuple) -> None:
        if event in FILE_EVENTS and (event != "open" or str(arguments[0]).startswith(folder)):
            tick()

    def segmentation_loss(*arguments):
        tick()
        return original(*arguments)

    original, loop.segmentation_loss = loop.segmentation_loss, segmentation_loss
    PRESETS.update(TINY_PRESETS)
    torch.set_num_threads(1)
    sys.addaudithook(on_audit)
    train.main(argv)


def read_log(folder: Path) -> list[dict]:
    """The log of a run, a row per epoch."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


if __name__ == "__main__":
    PRESETS.update(TINY_PRESETS)
    train.main()
