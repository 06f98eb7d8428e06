"""What makes training fast on CPUs: memory that stays with the process, and the layout the kernels are quickest in."""

import ctypes
import sys

import torch
from torch import nn

from modeling import UNetForSemanticSegmentation

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


def keep_freed_memory() -> bool:
    """Have glibc reuse freed memory instead of returning it to the system; whether this C library can.

    A training step allocates gigabytes of activations and frees them all. By default each large block comes from the
    system anew, page by page and zeroed. Blocks of different sizes do not fill each other's places, so the peak rises.
    `benchmarks/training_speed.py` measures both.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))


def memory_format_for(model: nn.Module, device: torch.device) -> torch.memory_format:
    """The layout of weights and activations in which `model` trains fastest on `device`.

    channels_last, as PyTorch advises, but for the U-Nets on CPUs with AVX2 alone. These models spend most of a step on
    the gradients of 3x3 kernels, which oneDNN's AVX2 kernels compute up to four times faster from contiguous tensors
    where slices are large; its AVX-512 kernels prefer channels_last. `benchmarks/training_speed.py` measures both.
    """
    if has_avx2_alone(device) and isinstance(model, UNetForSemanticSegmentation):
        return torch.contiguous_format
    return torch.channels_last


def has_avx2_alone(device: torch.device) -> bool:
    """Whether `device` is a CPU whose widest vectors are AVX2's, on which bf16 is far slower than float32."""
    return device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"
