"""How fast a model trains on this machine: slices per second, the input's share, and arithmetic against the possible.

    python -m benchmarks.training_speed --dataset data/lgg [--model unet-5level] [--image_size 256] [--batch_size 16]

The dataset, worker processes, memory layout, loss, optimiser and moving average of train.py take a few steps, after
some that are not timed. Slices are whole unless `--crop` cuts them to the head, as train.py does. Prints, for each step
and in all:

- the share of the time that training waits for a batch, and the workers' processor time as a share of the cores' time;
- the rate of the convolutions and matrix products, and that as a share of the fastest float32 matrix product of the
  same run, which bf16 may exceed;
- the peak memory of the training process and its workers, as in benchmarks/training_memory.py.
"""

import argparse
import sys
import time

import numpy as np
import psutil
import torch
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from benchmarks.machine import PeakMemory, matrix_product_rate
from hub_dataset.loading import LesionBatchSampler, TrainingSlices, load_split
from hub_dataset.slice_measures import relative_head_sizes
from modeling import PRESETS, BrainMRIImageProcessor, build_model
from modeling.command_line import command_parser, whole_number
from modeling.cores import available_cores
from modeling.image_processing_brain_mri import MINIMUM_SIZE
from training.cost import model_of_shapes, step_cost
from training.cpu import keep_freed_memory, memory_format_for
from training.recipe import ema_update

MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
WARM_UP = 2  # steps: the workers start, and the kernels for the shape are chosen


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__, "benchmarks.training_speed")
    parser.add_argument("--dataset", required=True, help="folder written by hub_dataset.build, or USER/NAME on the Hub")
    parser.add_argument("--model", default="unet-5level", choices=list(PRESETS), help="preset")
    parser.add_argument("--image_size", type=whole_number(MINIMUM_SIZE), default=256, help="pixels")
    parser.add_argument("--batch_size", type=whole_number(1), default=16, help="slices per step")
    parser.add_argument("--steps", type=whole_number(1), default=5, help="timed ones")
    parser.add_argument("--crop", action="store_true", help="crop to the head")
    parser.add_argument("--num_workers", type=whole_number(0), default=2, help="as in train.py")
    parser.add_argument(
        "--memory_format", choices=list(MEMORY_FORMATS), help="train.py's own for the model if left out"
    )
    parser.add_argument("--mixed_precision", choices=("no", "bf16"), default="no", help="as of `accelerate launch`")
    parser.add_argument("--gradient_checkpointing", action="store_true", help="as in train.py")
    parser.add_argument("--low_memory", action="store_true", help="as in train.py")
    parser.add_argument("--threads", type=whole_number(1), default=available_cores(), help="of PyTorch")
    return parser.parse_args(argv)


def processor_seconds_of_workers() -> float:
    times = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return sum(time.user + time.system for time in times)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    try:
        measure(args)
    except (OSError, ValueError) as error:
        sys.exit(f"benchmarks.training_speed: error: {error}")


def measure(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    if not args.low_memory:
        keep_freed_memory()
    torch.manual_seed(0)
    split = load_split(args.dataset, "train")
    model = build_model(args.model).train()
    memory_format = MEMORY_FORMATS.get(args.memory_format) or memory_format_for(model, model.device)
    model = model.to(memory_format=memory_format)
    if args.gradient_checkpointing:
        model.activation_checkpointing_enable()
    average = AveragedModel(model, multi_avg_fn=ema_update(0.995), use_buffers=True)
    optimizer = torch.optim.AdamW(model.parameters())
    sampler = LesionBatchSampler(
        np.asarray(split["has_lesion"]),
        relative_head_sizes(split) if args.crop else np.ones((len(split), 2)),
        args.batch_size,
        args.image_size,
        model.config.size_divisor,
    )
    slices = TrainingSlices(split, BrainMRIImageProcessor(size_divisor=model.config.size_divisor))
    workers = {"num_workers": args.num_workers, "prefetch_factor": 4 if args.num_workers else None}
    possible = matrix_product_rate()
    steps, processor_seconds = [], 0.0
    batches = iter(DataLoader(slices, batch_sampler=sampler, **workers))
    with PeakMemory() as peak:
        for step in range(min(WARM_UP + args.steps, sampler.num_batches)):
            if step == WARM_UP:
                processor_seconds = processor_seconds_of_workers()
            started = time.perf_counter()
            batch = next(batches)
            waited = time.perf_counter() - started
            pixel_values = batch["pixel_values"].contiguous(memory_format=memory_format)
            with torch.autocast("cpu", torch.bfloat16, enabled=args.mixed_precision == "bf16"):
                loss = model(pixel_values=pixel_values, labels=batch["labels"]).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            average.update_parameters(model)
            steps.append((*pixel_values.shape[-2:], waited, time.perf_counter() - started))
    processor_seconds = processor_seconds_of_workers() - processor_seconds
    if len(steps) <= WARM_UP:
        raise ValueError(f"An epoch has {len(steps)} batches, none beyond the {WARM_UP} that are not timed.")
    possible = max(possible, matrix_product_rate())

    shapes = model_of_shapes(PRESETS[args.model])
    print(f"{args.model}, {memory_format}, batches of {args.batch_size}, {args.threads} threads")
    print(f"{'crop':>9}{'s/step':>9}{'waiting':>10}{'GFLOP/step':>12}{'GFLOP/s':>10}")
    total = total_waited = total_gflop = 0.0
    for height, width, waited, duration in steps[WARM_UP:]:
        gflop = step_cost(shapes, args.batch_size, height, width).flops / 1e9
        total, total_waited, total_gflop = total + duration, total_waited + waited, total_gflop + gflop
        crop = f"{height}x{width}"
        print(f"{crop:>9}{duration:9.2f}{waited / duration:10.1%}{gflop:12.1f}{gflop / duration:10.1f}")
    rate = total_gflop / total
    print(
        f"\n{args.batch_size * (len(steps) - WARM_UP) / total:.2f} slices/s\n"
        f"waiting for input: {total_waited / total:.1%} of the time; workers' processor time: "
        f"{processor_seconds / total / available_cores():.1%} of the cores'\n"
        f"{rate:.1f} GFLOP/s, {rate / possible:.0%} of the fastest matrix product's {possible:.1f}\n"
        f"peak memory, workers included: {peak.resident / 1024:.2f} GiB"
    )


if __name__ == "__main__":
    main()
