"""`train.py --report_to`: the run's numbers in TensorBoard or Trackio, through accelerate's trackers."""

import argparse

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers

TRACKERS = ("none", "tensorboard", "trackio")
PROJECT = "lgg-segmentation"  # Trackio's runs lie side by side in it; TensorBoard's files lie in the run's folder


def check_tracker(name: str) -> None:
    """Raise `ValueError` where the tracker's package is not installed."""
    if name != "none" and name not in map(str, get_available_trackers()):
        raise ValueError(f"{name} is not installed. `pip install {name}`, or leave --report_to out.")


def start_tracker(accelerator: Accelerator, args: argparse.Namespace, step: int) -> None:
    """Start what `--report_to` names; `step` batches are done, and what a killed process logged of later ones goes."""
    if args.report_to == "none":
        return
    settings = {
        name: value if isinstance(value, (bool, int, float)) else str(value) for name, value in vars(args).items()
    }
    accelerator.init_trackers(
        "tensorboard" if args.report_to == "tensorboard" else PROJECT,
        config=settings,
        init_kwargs={
            "tensorboard": {"purge_step": step + 1},
            "trackio": {"name": args.output_dir.resolve().name, "resume": "allow"},
        },
    )
