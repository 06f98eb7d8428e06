"""What this machine can do, measured in the same run as the benchmark that is compared with it."""

import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode


def matrix_product_rate(size: int = 2048, repeats: int = 5) -> float:
    """Float32 GFLOP/s of the fastest of several (size, size) matrix products, with PyTorch's threads."""
    a, b = torch.randn(2, size, size)
    return 2 * size**3 / min(seconds(lambda: a @ b) for _ in range(repeats)) / 1e9


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def gflop(work: Callable[[], object]) -> float:
    """Floating-point operations of the convolutions and matrix products in a call, in 10^9."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 1e9
