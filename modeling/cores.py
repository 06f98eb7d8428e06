"""CPU cores: how many there are for this process, and PyTorch on all of them."""

import os
from pathlib import Path

import torch

QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container, in control groups version 2


def available_cores() -> int:
    """The CPU cores this process may use, counting a container's quota, which PyTorch's own count overlooks."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = QUOTA.read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def use_cores(num_processes: int = 1) -> None:
    """Let PyTorch compute with this process's share of the cores, unless OMP_NUM_THREADS says otherwise.

    Launchers set that to 1 where nobody set it, which would leave cores idle; so under a launcher, 1 says nothing.

    Args:
        num_processes: how many compute together; where a launcher says how many of them are on this machine, those
            share its cores.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ or "LOCAL_WORLD_SIZE" in os.environ
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads is None or (launched and threads == "1"):
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", num_processes))
        torch.set_num_threads(max(1, available_cores() // processes))
