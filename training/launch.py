"""How train.py was launched: the accelerator, and whether processes and precision suit the machine and the run."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DataLoaderConfiguration, gather_object

from .cpu import has_avx2_alone


def start_accelerator(args: argparse.Namespace) -> Accelerator:
    """The accelerator of a run; ends the process where the launcher's choices do not suit it."""
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # processes on CPUs find each other only if this is said
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        # Every process takes its share of the same batches, whatever the number of processes.
        dataloader_config=DataLoaderConfiguration(split_batches=True),
        log_with=None if args.report_to == "none" else args.report_to,
        project_dir=args.output_dir,
    )
    check_precision(accelerator)
    if launched_alone():
        print(
            "train.py: warning: `accelerate launch --cpu` has started one process only. For several on the CPU: "
            "accelerate launch --config_file examples/accelerate/two_cpu_processes.yaml train.py ...",
            file=sys.stderr,
        )
    if args.batch_size % accelerator.num_processes:
        sys.exit(
            f"--batch_size {args.batch_size} cannot be shared by {accelerator.num_processes} processes; it must be a "
            f"multiple of their number."
        )
    return accelerator


@contextmanager
def ending_together(accelerator: Accelerator) -> Iterator[None]:
    """Where an OSError or ValueError ends the block in any process, all end, and the main one says the first, once.

    All processes must enter it, and those that fail must leave none waiting for them within.
    """
    problem = None
    try:
        yield
    except (OSError, ValueError) as error:
        problem = str(error)
    if problems := [said for said in gather_object([problem]) if said is not None]:
        sys.exit(f"train.py: error: {problems[0]}" if accelerator.is_main_process else 1)


def check_precision(accelerator: Accelerator) -> None:
    """End the process where its device cannot compute in the precision asked for; warn where that is slow."""
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        sys.exit("train.py: error: fp16 needs an accelerator; on a CPU, PyTorch would compute in float32. Use bf16.")
    if accelerator.mixed_precision == "bf16" and has_avx2_alone(accelerator.device):
        accelerator.print(
            "train.py: warning: this CPU has no AVX-512, without which PyTorch computes bf16 many times slower than "
            "float32. Leave out --mixed_precision.",
            file=sys.stderr,
        )


def launched_alone() -> bool:
    """Whether the launcher was asked for several processes but started this one only.

    `accelerate launch --cpu` leaves it to MPI to start the others: it announces where they meet, not how many.
    """
    return "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ and PartialState().num_processes == 1
