"""What this machine can do, measured in the same run as the benchmark that is compared with it."""

import resource
import sys
import threading
import time
from collections.abc import Callable

import psutil
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


def peak_resident() -> int:
    """Bytes: the highest resident set size of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class PeakMemory(threading.Thread):
    """Highest memory of this process and its children while the `with` block runs, looked at every `interval` seconds.

    Attributes:
        resident: MiB of this process, mapped files and shared pages included, and what the children hold for
            themselves: a page that they share counts once.
        private: the same without mapped files.
    """

    def __init__(self, interval: float = 0.01, children_every: int = 100):
        super().__init__(daemon=True)
        self.interval, self.children_every = interval, children_every
        self.resident = self.private = 0.0
        self.stopped = threading.Event()

    def __enter__(self) -> "PeakMemory":
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.stopped.set()
        self.join()

    def run(self) -> None:
        process, of_children, looks = psutil.Process(), 0.0, 0
        while not self.stopped.wait(self.interval):
            if looks % self.children_every == 0:  # walks their page tables, which takes time
                of_children = sum(memory_of_child(child) for child in process.children(recursive=True))
            looks += 1
            info = process.memory_info()
            self.resident = max(self.resident, info.rss / 2**20 + of_children)
            self.private = max(self.private, (info.rss - info.shared) / 2**20 + of_children)


def memory_of_child(process: psutil.Process) -> float:
    """MiB that a process shares with no other; 0 once it has ended."""
    try:
        return process.memory_full_info().uss / 2**20
    except psutil.NoSuchProcess:
        return 0.0
