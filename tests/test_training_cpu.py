"""training/cpu.py: memory is kept between steps, and each kind of model gets its layout."""

import subprocess
import sys

import pytest
import torch
from tiny_models import tiny_model

from training.cpu import memory_format_for

# Page faults of twenty buffers of 64 MiB, each freed before the next, without and with `keep_freed_memory`.
FAULTS = """
import resource, torch
from training.cpu import keep_freed_memory

def faults():
    torch.ones(2**24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

returned = faults()
assert keep_freed_memory()
print(returned, faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator is set, which Linux has")
def test_freed_memory_is_reused_without_asking_the_system():
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    returned, kept = map(int, done.stdout.split())
    assert kept < returned / 10


@pytest.mark.parametrize(
    ("preset", "device", "capability", "expected"),
    [
        ("unet-5level", "cpu", "AVX2", torch.contiguous_format),
        ("unet-4level", "cpu", "AVX2", torch.contiguous_format),
        ("unet-4level", "cpu", "AVX512", torch.channels_last),
        ("transunet-small", "cpu", "AVX2", torch.channels_last),
        ("unet-5level", "cuda", "AVX2", torch.channels_last),
    ],
)
def test_layout_follows_model_and_device(preset, device, capability, expected, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert memory_format_for(tiny_model(preset), torch.device(device)) is expected
