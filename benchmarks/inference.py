"""How fast slices and whole patients are segmented on this machine, and what each shortcut gains.

    python -m benchmarks.inference --checkpoint checkpoints/unet-5level --dataset data/lgg [--patients 11]
    python -m benchmarks.inference --checkpoint checkpoints/unet-5level --parts slice growth options start

Parts, all in one run, so that their ratios hold on a machine that others use too:

- `patients`: uint8 slices in memory to the post-processed mask, the straightforward way (eager, NCHW, batch norm apart,
  whole frames, slice by slice) against `segment_volume`, in turns for each patient, with the Dice of both; then in
  ONNX Runtime, where it and the exporter are installed, with one shortcut less at a time, and with slices averaged over
  views. Needs `--dataset`.
- `slice`: one forward pass at 256x256, against ONNX Runtime, segmentation_models_pytorch's U-Net with a ResNet-34 and
  MONAI's BasicUNet where these are installed (the latter two in an environment of their own; weights play no part), as
  GFLOP/s and as a share of this machine's rate of matrix products.
- `growth`: time against the number of slices and the size of the image.
- `options`: time against batch size and threads.
- `start`: a new process from loading the model to its first answer, and the memory that a volume of 60 slices takes.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import time

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from tqdm import tqdm

from benchmarks.machine import gflop, matrix_product_rate, peak_resident, seconds
from hub_dataset.loading import load_split
from hub_dataset.patients import Patient, group_by_patient, read_patient
from hub_dataset.phantom import phantom_volume
from modeling.command_line import command_parser, whole_number
from modeling.commands import load_checkpoint
from modeling.image_processing_brain_mri import FLAIR
from modeling.inference import load_model, measure_intensities, segment_volume
from modeling.metrics import score_volume
from modeling.onnx_inference import OnnxModel
from modeling.postprocessing import mask_from_probabilities

PARTS = ("patients", "slice", "growth", "options", "start")
SIZE = 256  # pixels
# What `segment_volume` is told in the further ways.
OPTIONS = {
    "without screening": {"screening_stride": 1},
    "without cropping": {"crop_margin": None},
    "without either": {"crop_margin": None, "screening_stride": 1},
    "averaged over 2 views": {"views": 2},
    "averaged over 4 views": {"views": 4},
}


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__, "benchmarks.inference")
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--dataset", help="folder written by hub_dataset.build, or USER/NAME on the Hub")
    parser.add_argument("--split", default="validation", help="train, validation or test")
    parser.add_argument("--patients", type=whole_number(1), default=11, help="the first ones of the split")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure (default: all)")
    parser.add_argument("--repeats", type=whole_number(1), default=5, help="of each forward pass; the fastest counts")
    parser.add_argument("--first_answer", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if "patients" in args.parts and not args.dataset:
        parser.error("the part `patients` needs --dataset; leave it out with --parts slice growth options start")
    return args


def straightforward(model: nn.Module, processor, slices: np.ndarray) -> np.ndarray:
    """What one would write first: every slice through processor and model by itself."""
    height, width = slices.shape[1:3]
    intensities = measure_intensities(slices)
    probabilities = np.zeros((len(slices), height, width), dtype=np.float32)
    with torch.no_grad():
        for i, image in enumerate(slices):
            if image[..., FLAIR].min() == image[..., FLAIR].max():  # which the processor refuses
                continue
            logits = model(**processor(images=image, volume_intensities=intensities, return_tensors="pt")).logits
            probabilities[i] = logits[0, 0, :height, :width].sigmoid().numpy()
    return mask_from_probabilities(probabilities)


def compare_patients(
    args: argparse.Namespace,
    split: Dataset,
    plain: nn.Module,
    model: nn.Module,
    onnx_model: OnnxModel | None,
    processor,
) -> None:
    rows_of = group_by_patient(split)
    ways = {
        "straightforward": lambda slices: straightforward(plain, processor, slices),
        "segment_volume": lambda slices: segment_volume(model, processor, slices).mask,
    }
    if onnx_model:
        ways["in ONNX Runtime"] = lambda slices: segment_volume(onnx_model, processor, slices).mask
    for name, options in OPTIONS.items():
        ways[name] = lambda slices, options=options: segment_volume(model, processor, slices, **options).mask
    durations, dice = ({name: [] for name in ways} for _ in range(2))
    patients = sorted(rows_of)[: args.patients]
    num_slices = 0
    for patient_id in tqdm(patients, desc="patients", unit="patient"):
        patient: Patient = read_patient(split, patient_id, rows_of[patient_id])
        num_slices += len(patient.slices)
        for name, way in ways.items():
            start = time.perf_counter()
            mask = way(patient.slices)
            durations[name].append(time.perf_counter() - start)
            dice[name].append(score_volume(mask, patient.truth, hausdorff=False).dice)
    total = {name: sum(times) for name, times in durations.items()}
    print(f"\n{len(patients)} patients of {args.split}, {num_slices} slices, post-processed, threshold 0.5")
    print(f"{'':24}{'s/patient':>10}{'ms/slice':>10}{'times as fast':>15}{'mean Dice':>11}{'difference':>12}")
    for name in ways:
        mean = np.nanmean(dice[name])  # of a patient without a lesion, nothing outlined has no Dice
        difference = np.nanmean(np.subtract(dice[name], dice["straightforward"]))
        print(
            f"{name:24}{total[name] / len(patients):10.2f}{1000 * total[name] / num_slices:10.0f}"
            f"{total['straightforward'] / total[name]:15.2f}{mean:11.4f}{difference:+12.4f}"
        )


def fastest(work, repeats: int) -> float:
    """Seconds of the fastest of several calls, after one to warm up."""
    work()
    return min(seconds(work) for _ in range(repeats))


def compare_slices(args: argparse.Namespace, plain: nn.Module, model: nn.Module, onnx_model: OnnxModel | None) -> None:
    networks = {"straightforward": (plain, torch.contiguous_format), "load_model": (model, torch.channels_last)}
    if importlib.util.find_spec("segmentation_models_pytorch"):
        import segmentation_models_pytorch

        network = segmentation_models_pytorch.Unet("resnet34", encoder_weights=None, classes=1).eval()
        networks["smp U-Net, ResNet-34"] = (network, torch.contiguous_format)
    if importlib.util.find_spec("monai"):
        from monai.networks.nets import BasicUNet

        networks["MONAI BasicUNet"] = (
            BasicUNet(spatial_dims=2, in_channels=3, out_channels=1).eval(),
            torch.contiguous_format,
        )
    rate = matrix_product_rate()
    print(f"\nOne slice of {SIZE}x{SIZE}; matrix products run at {rate:.0f} GFLOP/s")
    print(f"{'':24}{'ms':>8}{'GFLOP':>8}{'GFLOP/s':>9}{'share':>8}")
    for name, (network, memory_format) in networks.items():
        pixel_values = torch.randn(1, 3, SIZE, SIZE).contiguous(memory_format=memory_format)

        def forward(network=network, pixel_values=pixel_values):
            with torch.inference_mode():
                return network(pixel_values)

        duration, operations = fastest(forward, args.repeats), gflop(forward)
        print(
            f"{name:24}{1000 * duration:8.0f}{operations:8.1f}{operations / duration:9.0f}"
            f"{100 * operations / duration / rate:7.0f}%"
        )
    if onnx_model:
        pixel_values = torch.randn(1, 3, SIZE, SIZE)
        duration = fastest(lambda: onnx_model(pixel_values), args.repeats)
        print(f"{'ONNX Runtime':24}{1000 * duration:8.0f}")


def phantom(num_slices: int, size: int = SIZE) -> np.ndarray:
    """(S, size, size, 3) uint8."""
    return phantom_volume(0, num_slices=num_slices, size=size).slices


def show_growth(model: nn.Module, processor) -> None:
    print(f"\nA phantom's slices of {SIZE}x{SIZE}, s: ", end="")
    segment_volume(model, processor, phantom(4))
    for num_slices in (10, 20, 40, 80):
        slices = phantom(num_slices)
        print(f"{num_slices}: {seconds(lambda slices=slices: segment_volume(model, processor, slices)):.2f}  ", end="")
    print("\n10 slices of a phantom by size, s: ", end="")
    for size in (128, 256, 384, 512):
        slices = phantom(10, size)
        duration = seconds(lambda slices=slices: segment_volume(model, processor, slices))
        print(f"{size}: {duration:.2f}  ", end="", flush=True)
    print()


def show_options(model: nn.Module, processor) -> None:
    slices, threads = phantom(24), torch.get_num_threads()
    segment_volume(model, processor, slices[:4])
    print("\n24 slices of a phantom, s, by batch size")
    for count in sorted({1, threads}):
        torch.set_num_threads(count)
        times = {
            batch_size: seconds(
                lambda batch_size=batch_size: segment_volume(model, processor, slices, batch_size=batch_size)
            )
            for batch_size in (1, 2, 4, 8, 16)
        }
        print(f"{count} threads   " + "  ".join(f"{size}: {duration:.2f}" for size, duration in times.items()))
    torch.set_num_threads(threads)


def first_answer(args: argparse.Namespace) -> None:
    """What the part `start` measures, in a process of its own."""
    slices = phantom(60)
    start = time.perf_counter()
    model, processor = load_model(args.checkpoint)
    segment_volume(model, processor, slices[30:31])
    answered = time.perf_counter() - start
    before = peak_resident()
    segment_volume(model, processor, slices)
    print(f"{answered:.2f} {(peak_resident() - before) / 2**20:.0f}")


def show_start(args: argparse.Namespace) -> None:
    command = [sys.executable, "-m", "benchmarks.inference", "--checkpoint", args.checkpoint, "--parts", "start"]
    start = time.perf_counter()
    result = subprocess.run(
        [*command, "--first_answer"], capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"}
    )
    whole = time.perf_counter() - start
    if result.returncode:
        sys.exit(result.stderr)
    answered, memory = result.stdout.split()[-2:]
    print(f"\nLoading the model to the first slice: {answered} s (the whole process, with imports: {whole:.1f} s)")
    print(f"A volume of 60 slices takes {memory} MiB beyond the loaded model and one slice")


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.first_answer:
        return first_answer(args)
    onnx_model = None
    installed = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
    try:
        split = load_split(args.dataset, args.split) if "patients" in args.parts else None
        model, processor = load_checkpoint(args.checkpoint)
        plain = load_model(args.checkpoint, fold=False)[0].to(memory_format=torch.contiguous_format)
        if installed and not {"patients", "slice"}.isdisjoint(args.parts):
            onnx_model, _ = load_checkpoint(args.checkpoint, "onnxruntime")
        print(f"{args.checkpoint} ({model.config.model_type}), {torch.get_num_threads()} threads")
        if split is not None:
            compare_patients(args, split, plain, model, onnx_model, processor)
    except (OSError, ValueError) as error:
        sys.exit(f"benchmarks.inference: error: {error}")
    if "slice" in args.parts:
        compare_slices(args, plain, model, onnx_model)
    if "growth" in args.parts:
        show_growth(model, processor)
    if "options" in args.parts:
        show_options(model, processor)
    if "start" in args.parts:
        show_start(args)


if __name__ == "__main__":
    main()
