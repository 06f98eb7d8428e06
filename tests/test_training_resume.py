"""A run that is killed again and again ends as one that never was: to the bit, with the same log."""

import multiprocessing
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_training import read_log, train_until

TESTS = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def processes():
    """Starts processes that have train.py imported already and share nothing else with this one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tiny_training"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS.parent), str(TESTS)]))
        yield context


@pytest.fixture
def session(processes, phantom_dataset_dir, tmp_path):
    """Runs one session of a training in the folder `name` until it ends or is killed; gives its exit code."""

    def run(name: str, *arguments: str, moment: int | None = None) -> int:
        folder = tmp_path / name
        argv = ["--model", "tiny-transunet", "--dataset", str(phantom_dataset_dir), "--output_dir", str(folder)]
        argv += ["--image_size", "48", "64@50%", "--batch_size", "4", "--epochs", "2", "--num_workers", "0"]
        argv += ["--gradient_accumulation_steps", "2", *arguments]
        process = processes.Process(target=train_until, args=(moment, argv, str(folder)))
        process.start()
        process.join()
        return process.exitcode

    return run


def final_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Weights, moving average and optimiser at the end of a run, and its best model."""
    state = sorted((folder / "checkpoints").glob("step_*"))[-1]
    average = torch.load(state / "custom_checkpoint_0.pkl", weights_only=True)
    optimizer = torch.load(state / "optimizer.bin", weights_only=True)["state"]
    return {
        **{f"best.{name}": tensor for name, tensor in load_file(folder / "best" / "model.safetensors").items()},
        **{f"last.{name}": tensor for name, tensor in load_file(folder / "last" / "model.safetensors").items()},
        **{f"weights.{name}": tensor for name, tensor in load_file(state / "model.safetensors").items()},
        **{f"average.{name}": tensor for name, tensor in average.items()},
        **{f"optimizer.{i}.{name}": tensor for i, group in optimizer.items() for name, tensor in group.items()},
    }


def lasting_log(folder: Path) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in read_log(folder)]


def names_in(folder: Path) -> set[str]:
    """Files and folders of a run, whatever the steps of its states."""
    paths = (str(path.relative_to(folder)) for path in folder.rglob("*"))
    return {re.sub(r"step_\d{8}", "step", path) for path in paths}


def test_killed_at_random_moments_and_resumed(session, tmp_path):
    assert session("whole", "--checkpoint_minutes", "1000") == 0
    rng = np.random.default_rng(0)
    killed = 0
    for minutes in ("0", "1000", "0", "0", "0", "0"):  # states after every step, or at the end of an epoch only
        arguments = ["--resume"] if (tmp_path / "killed" / "args.json").exists() else []
        moment = int(rng.integers(1, 80 if minutes == "0" else 25))
        code = session("killed", "--checkpoint_minutes", minutes, *arguments, moment=moment)
        assert code in (0, -signal.SIGKILL)
        killed += code == -signal.SIGKILL
    assert killed >= 4
    assert session("killed", "--checkpoint_minutes", "1000", "--resume") == 0

    expected, resumed = final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "killed")
    assert expected.keys() == resumed.keys()
    assert [name for name in expected if not torch.equal(expected[name], resumed[name])] == []
    assert lasting_log(tmp_path / "whole") == lasting_log(tmp_path / "killed")
    assert names_in(tmp_path / "whole") == names_in(tmp_path / "killed")
