"""Several processes train as one: the same samples in the same order, the same losses and weights up to rounding."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import psutil
import pytest
import torch
import yaml
from accelerate.commands import launch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.data_loader import BatchSamplerShard
from conftest import LAUNCH_PORT
from safetensors.torch import load_file
from tiny_training import TINY_PRESETS

from hub_dataset.loading import LesionBatchSampler
from modeling import BrainMRIImageProcessor, UNetForSemanticSegmentation
from training.distributed import GatheredBatchNorm2d

pytest_plugins = ["training_fixtures"]

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "examples" / "accelerate"


def launch_two(dataset: Path, output_dir: Path, *arguments: str) -> tuple[int, str, str]:
    """A real `accelerate launch` of the tiny preset as two processes on the CPU; gives exit status, output, errors."""
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(CONFIGS / "two_cpu_processes.yaml"), "--main_process_port", LAUNCH_PORT]
    command += ["tests/tiny_training.py", "--model", "tiny", "--dataset", str(dataset), "--output_dir", str(output_dir)]
    command += ["--image_size", "48", "--batch_size", "4", "--epochs", "3", "--num_workers", "0", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONFAULTHANDLER": "1"}
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes) as launcher:
        try:
            printed, errors = launcher.communicate(timeout=300)
        except subprocess.TimeoutExpired:
            running = psutil.Process(launcher.pid)
            for process in [*running.children(recursive=True), running]:
                process.send_signal(signal.SIGABRT)  # which makes each say where it stands
            pytest.fail(launcher.communicate()[1])
    return launcher.returncode, printed, errors


def test_two_processes_train_as_one(run, phantom_dataset_dir, tmp_path):
    # SGD, because AdamW scales up even the gradients that are rounding errors around zero: those of the biases before
    # batch norm. They change no loss, but the weights would differ.
    arguments = ["--optimizer", "sgd", "--learning_rate", "0.05", "--gradient_accumulation_steps", "2"]
    torch.manual_seed(0)
    UNetForSemanticSegmentation(TINY_PRESETS["tiny"]).save_pretrained(tmp_path / "teacher")
    BrainMRIImageProcessor().save_pretrained(tmp_path / "teacher")
    arguments += ["--teacher", str(tmp_path / "teacher"), "--checkpoint_minutes", "0"]
    one = run("--image_size", "48", "--epochs", "3", *arguments)
    two = tmp_path / "two"
    status, printed, errors = launch_two(phantom_dataset_dir, two, *arguments)
    assert status == 0, errors
    assert "processes: 2 on cpu" in printed
    rows, rows_of_two = (
        [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()] for folder in (one, two)
    )
    assert len(rows) == len(rows_of_two) == 3
    for row, row_of_two in zip(rows, rows_of_two, strict=True):
        assert row_of_two["train_loss"] == pytest.approx(row["train_loss"], rel=1e-5)
        assert row_of_two["learning_rate"] == row["learning_rate"]
        assert row_of_two["validation_patients"] == row["validation_patients"] == 2
        assert row_of_two["validation_dice_mean"] == pytest.approx(row["validation_dice_mean"], abs=0.01)
    weights, weights_of_two = (load_file(folder / "last" / "model.safetensors") for folder in (one, two))
    assert weights.keys() == weights_of_two.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(weights_of_two[name], tensor, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("wrong", ["dataset", "init_from"])
def test_what_ends_two_processes_is_said_once(wrong, phantom_dataset_dir, tmp_path):
    missing = tmp_path / "missing"
    arguments = ["--init_from", str(missing)] if wrong == "init_from" else []
    dataset = missing if wrong == "dataset" else phantom_dataset_dir
    status, _, errors = launch_two(dataset, tmp_path / "run", *arguments)
    assert status == 1
    (said,) = [line for line in errors.splitlines() if line.startswith("train.py: error: ")]
    assert str(missing) in said
    assert "[rank1]" not in errors  # how PyTorch begins the lines of a process's traceback


def test_processes_share_each_batch_in_order():
    rng = np.random.default_rng(0)
    sampler = LesionBatchSampler(rng.random(60) < 0.5, rng.uniform(0.2, 0.9, (60, 2)), 4, 128, 16)
    shards = [list(BatchSamplerShard(sampler, 2, index, split_batches=True)) for index in range(2)]
    assert [first + second for first, second in zip(*shards, strict=True)] == list(sampler)


def test_batch_norm_keeps_the_statistics_of_the_whole_batch(monkeypatch):
    batch = torch.randn(2, 3, 2, 2) * 3 + 1  # so small a batch that n and n - 1 differ clearly
    own, other = batch.chunk(2)
    variance, mean = torch.var_mean(other, dim=(0, 2, 3), correction=0)
    monkeypatch.setattr(
        "training.distributed.whole_batch", lambda tensor: torch.cat([tensor, torch.stack([mean, variance])[None]])
    )
    gathered, whole = GatheredBatchNorm2d(3), torch.nn.BatchNorm2d(3)
    torch.testing.assert_close(gathered(own), whole(batch)[:1])
    for name, statistic in whole.named_buffers():
        torch.testing.assert_close(gathered.get_buffer(name), statistic, msg=name)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_configurations_are_ones_that_accelerate_knows(path):
    config = load_config_from_file(str(path))
    assert config.num_processes % config.num_machines == 0
    assert config.num_processes > 1
    # accelerate warns of keys that it does not know, and drops them.
    known = config.to_dict()
    assert {key for key in yaml.safe_load(path.read_text()) if key not in known} == set()


def test_a_launch_that_starts_one_process_of_two_says_so(run, monkeypatch, capsys):
    arguments = launch.launch_command_parser().parse_args(["--cpu", "--num_processes", "2", "train.py"])
    with monkeypatch.context() as patch:
        started = Mock(**{"return_value.returncode": 0})
        patch.setattr(launch, "subprocess", SimpleNamespace(Popen=started))
        launch.launch_command(arguments)
    started.assert_called_once()
    for name, value in started.call_args.kwargs["env"].items():
        monkeypatch.setenv(name, value)
    run("--epochs", "1")
    assert "has started one process only" in capsys.readouterr().err
