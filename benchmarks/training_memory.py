"""Peak memory of a training epoch, for few and for many patients: loading is lazy, so the two should agree.

    python -m benchmarks.training_memory --dataset data/lgg [--patients 20 88] [--batch_size 16] [--image_size 256]

Every measurement is a process of its own: the same sampler, dataset, worker processes and optimiser as in train.py run
one epoch over that many patients of the splits for training and validation together. The model is trained on the
`--steps` largest batches, which decide its memory; the others are loaded and thrown away. Prints the peak resident set
of the training process and its workers (a page that they share counts once), and the part of it that is not a mapping
of the dataset's file.
"""

import argparse
import subprocess
import sys

import numpy as np
import torch
from datasets import concatenate_datasets
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from benchmarks.machine import PeakMemory
from hub_dataset.loading import LesionBatchSampler, TrainingSlices, load_split
from hub_dataset.slice_measures import relative_head_sizes
from modeling import PRESETS, BrainMRIImageProcessor, build_model
from modeling.command_line import command_parser, whole_number
from modeling.image_processing_brain_mri import MINIMUM_SIZE
from training.cpu import keep_freed_memory, memory_format_for
from training.recipe import ema_update


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser(__doc__, "benchmarks.training_memory")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--model", default="unet-5level", choices=list(PRESETS), help="preset")
    parser.add_argument(
        "--patients", type=whole_number(1), nargs="+", default=[20, 88], help="patients in an epoch (default: 20 88)"
    )
    parser.add_argument("--batch_size", type=whole_number(1), default=16, help="slices per step")
    parser.add_argument("--image_size", type=whole_number(MINIMUM_SIZE), default=256, help="pixels")
    parser.add_argument("--gradient_checkpointing", action="store_true", help="as in train.py")
    parser.add_argument("--low_memory", action="store_true", help="as in train.py")
    parser.add_argument("--steps", type=whole_number(1), default=3, help="batches that are trained on")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def measure(args: argparse.Namespace) -> None:
    slices = concatenate_datasets([load_split(args.dataset, name) for name in ("train", "validation")])
    patients = np.asarray(slices["patient_id"])
    chosen = sorted(set(patients))[: args.patients[0]]
    slices = slices.select(np.flatnonzero(np.isin(patients, chosen)))
    if not args.low_memory:
        keep_freed_memory()
    model = build_model(args.model)
    memory_format = memory_format_for(model, model.device)
    model = model.to(memory_format=memory_format)
    if args.gradient_checkpointing:
        model.activation_checkpointing_enable()
    sampler = LesionBatchSampler(
        np.asarray(slices["has_lesion"]),
        relative_head_sizes(slices),
        args.batch_size,
        args.image_size,
        model.config.size_divisor,
    )
    dataset = TrainingSlices(slices, BrainMRIImageProcessor(size_divisor=model.config.size_divisor))
    average = AveragedModel(model, multi_avg_fn=ema_update(0.995), use_buffers=True)
    optimizer = torch.optim.AdamW(model.parameters())
    areas = [batch[0].height * batch[0].width for batch in sampler]
    to_train = set(np.argsort(areas)[-args.steps :].tolist())
    loader = DataLoader(dataset, batch_sampler=sampler, num_workers=2, prefetch_factor=4)
    with PeakMemory() as peak:
        for number, batch in enumerate(loader):
            if number in to_train:
                pixel_values = batch["pixel_values"].contiguous(memory_format=memory_format)
                model(pixel_values=pixel_values, labels=batch["labels"]).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                average.update_parameters(model)
    print(f"{len(chosen)} {len(slices)} {len(areas)} {peak.resident:.0f} {peak.private:.0f}")


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.measure:
        try:
            return measure(args)
        except (OSError, ValueError) as error:
            sys.exit(f"benchmarks.training_memory: error: {error}")
    print(f"{args.model}, batches of {args.batch_size} at {args.image_size} pixels, MiB")
    print(f"{'patients':>8} {'slices':>8} {'batches':>8} {'peak':>8} {'without mapped files':>21}")
    for count in args.patients:
        command = [
            sys.executable,
            "-m",
            "benchmarks.training_memory",
            *(sys.argv[1:] if argv is None else argv),
            "--measure",
            "--patients",
            str(count),
        ]
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if result.returncode:  # why has been said, unless it was killed
            sys.exit(f"benchmarks.training_memory: error: exit code {result.returncode} with {count} patients.")
        patients, slices, batches, peak, private = result.stdout.split()[-5:]
        print(f"{patients:>8} {slices:>8} {batches:>8} {peak:>8} {private:>21}", flush=True)


if __name__ == "__main__":
    main()
