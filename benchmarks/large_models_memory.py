"""Peak memory of the large TransUNets on the CPU: one training step and one forward pass at 256x256.

    python -m benchmarks.large_models_memory [--batch_size 2] [--gradient_checkpointing]

Each measurement is a process of its own, whose highest resident set size counts, PyTorch and all. Exits with 1 where
one goes over `--limit`.
"""

import argparse
import json
import subprocess
import sys
import time

import torch

from benchmarks.machine import peak_resident
from modeling import build_model
from modeling.command_line import command_parser, whole_number

PRESETS = ("transunet-conv", "transunet-r50-vit-b16")
SIZE = 256  # pixels


def measure(preset: str, work: str, batch_size: int, gradient_checkpointing: bool) -> dict[str, float]:
    """Do the `work`, "train" or "forward", in this process: its duration in seconds and the process's peak in GB."""
    torch.manual_seed(0)
    model = build_model(preset).to(memory_format=torch.channels_last)
    pixel_values = torch.randn(batch_size, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(batch_size, SIZE, SIZE, dtype=torch.long)
    labels[:, 96:160, 96:160] = 1
    started = time.perf_counter()
    if work == "forward":
        with torch.inference_mode():
            model.eval()(pixel_values)
    else:
        model.train()
        if gradient_checkpointing:
            model.activation_checkpointing_enable()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        loss = model(pixel_values, labels=labels).loss
        loss.backward()
        optimizer.step()
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "gigabytes": peak_resident() / 1e9}


def main(argv: list[str] | None = None) -> None:
    parser = command_parser(__doc__, "benchmarks.large_models_memory")
    parser.add_argument("--batch_size", type=whole_number(1), default=2, help="slices per step")
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument("--limit", type=float, default=12.0, help="GB")
    parser.add_argument("--only", nargs=2, metavar=("PRESET", "WORK"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.only:
        print(json.dumps(measure(*args.only, args.batch_size, args.gradient_checkpointing)))
        return

    peaks = []
    print(f"{'preset':24s}{'work':10s}{'peak':>10s}{'time':>10s}   batch of {args.batch_size}, {SIZE}x{SIZE}")
    for preset in PRESETS:
        for work in ("train", "forward"):
            command = [sys.executable, "-m", "benchmarks.large_models_memory"]
            command += [*(sys.argv[1:] if argv is None else argv), "--only", preset, work]
            ended = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            if ended.returncode:  # why has been said, unless it was killed
                sys.exit(f"benchmarks.large_models_memory: error: exit code {ended.returncode} of {preset}, {work}.")
            result = json.loads(ended.stdout.splitlines()[-1])
            peaks.append(result["gigabytes"])
            print(f"{preset:24s}{work:10s}{result['gigabytes']:7.2f} GB{result['seconds']:8.1f} s")
    sys.exit(0 if max(peaks) <= args.limit else f"A peak of {max(peaks):.2f} GB exceeds {args.limit:g} GB.")


if __name__ == "__main__":
    main()
