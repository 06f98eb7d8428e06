"""PyTorch on the cores there are, whatever a launcher set where nobody else did."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from modeling import cores
from modeling.cores import available_cores, use_cores

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def twelve_cores(monkeypatch):
    threads = torch.get_num_threads()
    for name in ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cores, "available_cores", lambda: 12)
    torch.set_num_threads(5)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("environment", "processes", "threads"),
    [
        ({}, 1, 12),
        ({}, 4, 3),
        ({}, 24, 1),
        ({"OMP_NUM_THREADS": "1"}, 1, 5),  # as PyTorch took it when it was imported
        ({"OMP_NUM_THREADS": "1", "ACCELERATE_MIXED_PRECISION": "no"}, 1, 12),
        ({"OMP_NUM_THREADS": "4", "ACCELERATE_MIXED_PRECISION": "no"}, 1, 5),
        ({"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "2"}, 4, 6),  # two machines with two processes each
    ],
)
def test_processes_share_the_cores_of_their_machine(environment, processes, threads, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    use_cores(processes)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(("quota", "expected"), [("max 100000", 7), ("250000 100000", 2), ("50000 100000", 1)])
def test_a_containers_quota_counts(quota, expected, monkeypatch, tmp_path):
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(cores, "QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(7)), raising=False)
    assert available_cores() == expected


def test_a_launched_process_computes_on_all_of_them(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import torch\nfrom modeling.cores import available_cores, use_cores\nbefore = torch.get_num_threads()\n"
        "use_cores()\nprint(before, torch.get_num_threads() == available_cores())"
    )
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", str(script)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("OMP_NUM_THREADS", None)
    printed = subprocess.run(launch, env=environment, capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["1", "True"]
