"""training/cpu.py: memory is kept between steps, and each kind of model gets its layout."""

import subprocess
import sys

import pytest
import torch
from tiny_models import tiny_model

from training.cpu import memory_format_for

# Page faults of forty buffers of 64 MiB, each freed before the next, with or without `keep_freed_memory`.
FAULTS = """
import resource, sys, torch
from training.cpu import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(40):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator is set, which Linux has")
def test_freed_memory_is_reused_without_asking_the_system():
    kept, returned = (
        int(subprocess.run([sys.executable, "-c", FAULTS, way], capture_output=True, text=True, check=True).stdout)
        for way in ("keep", "return")
    )
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
