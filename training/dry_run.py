"""`train.py --dry_run`: what a run would cost, from a few of its real steps."""

import math
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from itertools import islice

import numpy as np
from torch.utils.data import DataLoader

from .cost import model_of_shapes, step_cost
from .loop import Training
from .recipe import image_size_at, model_config

TIMED_STEPS = 3
OPTIMIZER_COPIES = {"adamw": 2, "sgd": 1}  # values kept per parameter


def print_estimate(training: Training) -> None:
    """Print operations, steps, memory and duration of a run, for each image size and in all.

    Takes `TIMED_STEPS` real steps at each size, after one that is not timed, and validates one patient; all processes
    must call this.
    """
    args, accelerator, sampler = training.args, training.accelerator, training.sampler
    num_patients = len(training.patients["validation"])
    shapes = model_of_shapes(model_config(args))
    if args.gradient_checkpointing:
        shapes.activation_checkpointing_enable()
    share = args.batch_size // accelerator.num_processes
    num_parameters = sum(parameter.numel() for parameter in shapes.parameters())
    resident = 4 * num_parameters * (3 + OPTIMIZER_COPIES[args.optimizer])  # weights, gradients, moving average
    accelerator.print(
        f"{'pixels':>6}{'epochs':>8}{'steps':>8}{'typical crop':>14}{'GFLOP/slice':>13}{'GFLOP/step':>12}"
        f"{'s/step':>9}{'slices/s':>10}{'duration':>16}"
    )
    steps, training_seconds, activations = 0, 0.0, 0
    for size, epochs in Counter(image_size_at(args.image_size, e, args.epochs) for e in range(args.epochs)).items():
        sampler.image_size = size
        sampler.seek(0)
        crops = np.array([(batch[0].height, batch[0].width) for batch in sampler])
        by_area = crops[np.argsort(crops.prod(axis=1), kind="stable")]
        typical = step_cost(shapes, args.batch_size, *by_area[len(by_area) // 2].tolist())
        activations = max(activations, step_cost(shapes, share, *by_area[-1].tolist()).activation_bytes)

        seconds = seconds_per_pixel(training.loader, training.train_step) * crops.prod(axis=1).mean()
        stage_seconds = seconds * sampler.num_batches * epochs
        stage_steps = epochs * math.ceil(sampler.num_batches / args.gradient_accumulation_steps)
        steps, training_seconds = steps + stage_steps, training_seconds + stage_seconds
        accelerator.print(
            f"{size:6}{epochs:8}{stage_steps:8}{'{}x{}'.format(*by_area[len(by_area) // 2]):>14}"
            f"{typical.forward_flops / args.batch_size / 1e9:13.2f}{typical.flops / 1e9:12.1f}{seconds:9.2f}"
            f"{args.batch_size / seconds:10.1f}{duration(stage_seconds):>16}"
        )
    started = time.perf_counter()
    training.validate(limit=1)
    seconds_per_patient = time.perf_counter() - started
    validations = math.ceil(args.epochs / args.validate_every)
    validation_seconds = seconds_per_patient * math.ceil(num_patients / accelerator.num_processes) * validations
    uncounted = "  the teacher's own, and its memory, are not counted; its time is\n" if args.teacher else ""
    kept = ""
    if accelerator.device.type == "cpu" and not args.low_memory:
        kept = "  freed memory is kept, which adds up to half; --low_memory returns it\n"
    accelerator.print(
        f"GFLOP/slice: one forward pass. GFLOP/step: forward and backward of {args.batch_size} slices.\n"
        f"{uncounted}"
        f"parameters: {num_parameters:,}; steps: {steps:,}\n"
        f"memory per process, in float32, beside the libraries' own: {gib(resident + activations)}\n"
        f"  weights, gradients, optimiser, moving average: {gib(resident)}\n"
        f"  activations of {share} slices at the largest crop: {gib(activations)}\n"
        f"{kept}expected duration: {duration(training_seconds + validation_seconds)}\n"
        f"  training: {duration(training_seconds)}\n"
        f"  validation, {validations} x {num_patients} patients: {duration(validation_seconds)}"
    )


def seconds_per_pixel(loader: DataLoader, train_step: Callable[[dict], float]) -> float:
    """Wall time of a step divided by the pixels of a slice's crop, waiting for the batch included."""
    timed = []
    started = time.perf_counter()
    for batch in islice(loader, 1 + TIMED_STEPS):
        train_step(batch)
        finished = time.perf_counter()
        timed.append((finished - started, math.prod(batch["pixel_values"].shape[-2:])))
        started = finished
    timed = timed[1:] or timed  # the first waits for the workers to start
    return sum(seconds for seconds, _ in timed) / sum(pixels for _, pixels in timed)


def duration(seconds: float) -> str:
    return str(timedelta(seconds=math.ceil(seconds)))


def gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
