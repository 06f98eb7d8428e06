"""train.py --dry_run: what it prints agrees with what is counted and measured otherwise, and nothing is left."""

import math
import re
from types import SimpleNamespace

import pytest
import torch
from tiny_models import TINY
from torch import nn

from modeling import PRESETS, build_model, preset_config
from training import loop
from training.cost import model_of_shapes, step_cost
from training.dry_run import duration, seconds_per_pixel

pytest_plugins = ["training_fixtures"]


class TestRun:
    def test_tells_steps_memory_and_duration_and_leaves_no_folder(self, run, capsys, monkeypatch):
        validated, evaluate = [], loop.evaluate_split
        monkeypatch.setattr(
            loop,
            "evaluate_split",
            lambda *args, limit, **options: validated.append(limit) or evaluate(*args, limit=limit, **options),
        )
        folder = run("--dry_run", "--epochs", "5", "--gradient_accumulation_steps", "2", "--validate_every", "2")
        assert not folder.exists()
        output = capsys.readouterr().out
        batches = int(re.search(r"epochs: 5, batches in each: (\d+), slices in a batch: 4;", output)[1])
        parameters = sum(parameter.numel() for parameter in build_model("tiny").parameters())
        stages = [line.split() for line in output.splitlines() if re.match(r" +(48|64) ", line)]
        assert [stage[:3] for stage in stages] == [
            ["48", "2", str(2 * math.ceil(batches / 2))],
            ["64", "3", str(3 * math.ceil(batches / 2))],
        ]
        assert f"parameters: {parameters:,}; steps: {5 * math.ceil(batches / 2)}" in output
        assert re.search(r"expected duration: \d:\d\d:\d\d\n.*\n  validation, 3 x 2 patients: ", output)
        assert all(float(stage[6]) < 5 for stage in stages)  # seconds per step
        assert validated == [1], "one patient stands for all"

    def test_memory_and_duration_are_those_of_the_whole_run(self, run, capsys, monkeypatch):
        for name, stand_in in (("gib", str), ("duration", str), ("seconds_per_pixel", lambda *_: 1.0)):
            monkeypatch.setattr(f"training.dry_run.{name}", stand_in)
        calls = []
        monkeypatch.setattr("train.keep_freed_memory", lambda: calls.append(1))
        run("--dry_run", "--epochs", "5")
        output = capsys.readouterr().out
        batches = int(re.search(r"epochs: 5, batches in each: (\d+), slices in a batch: 4;", output)[1])
        parameters = sum(parameter.numel() for parameter in build_model("tiny").parameters())
        assert f"moving average: {4 * parameters * (3 + 2)}\n" in output  # Adam keeps two values of each
        stages = [line.split() for line in output.splitlines() if re.match(r" +(48|64) ", line)]
        assert len(stages) == 2
        for stage in stages:
            seconds_per_step, epochs = float(stage[6]), int(stage[1])
            assert float(stage[8]) == pytest.approx(seconds_per_step * batches * epochs, rel=1e-4)
        typical = map(int, stages[-1][3].split("x"))
        kept = step_cost(model_of_shapes(preset_config("tiny")), 4, *typical).activation_bytes
        largest = int(re.search(r"largest crop: (\d+)", output)[1])
        assert largest > kept
        assert "--low_memory returns it" in output
        assert len(calls) == 1
        less = ["--gradient_checkpointing", "--low_memory", "--optimizer", "sgd"]
        run("--dry_run", "--epochs", "1", "--image_size", "64", *less)
        output = capsys.readouterr().out
        assert f"moving average: {4 * parameters * (3 + 1)}\n" in output
        assert int(re.search(r"largest crop: (\d+)", output)[1]) < 0.8 * largest
        assert "--low_memory" not in output
        assert len(calls) == 1

    def test_a_run_that_is_there_stays_as_it_is(self, run):
        folder = run("--epochs", "1")
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        run("--dry_run", "--batch_size", "8")
        assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    @pytest.mark.parametrize(("times", "steps", "expected"), [((0, 100, 101, 103, 106), 9, 0.2), ((0, 100), 1, 10)])
    def test_the_first_step_is_timed_only_where_there_is_no_other(self, monkeypatch, times, steps, expected):
        clock = iter(times)
        monkeypatch.setattr("training.dry_run.time", SimpleNamespace(perf_counter=lambda: next(clock)))
        batch = {"pixel_values": torch.zeros(1, 3, 2, 5)}
        assert seconds_per_pixel([batch] * steps, lambda _: 0.0) == pytest.approx(expected)

    def test_durations_are_read_as_times(self):
        assert duration(59.2) == "0:01:00"
        assert duration(90061) == "1 day, 1:01:01"


class TestCost:
    @pytest.mark.parametrize("name", ["unet-5level", "transunet-small"])
    def test_operations_are_those_of_the_layers(self, name, monkeypatch):
        """Counted layer by layer on a real forward pass; two per product and sum."""
        monkeypatch.setitem(PRESETS, name, preset_config(name, **TINY[name]))
        model, counted = build_model(name).train(), 0

        def count(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
            nonlocal counted
            if isinstance(module, nn.Conv2d):
                counted += 2 * output.numel() * module.weight[0].numel()
            elif isinstance(module, nn.ConvTranspose2d):
                counted += 2 * inputs[0].numel() * module.weight[0].numel()
            elif isinstance(module, nn.Linear):
                counted += 2 * output.numel() * module.in_features

        for module in model.modules():
            module.register_forward_hook(count)
        model(pixel_values=torch.randn(2, 3, 64, 96))
        cost = step_cost(model_of_shapes(model.config), 2, 64, 96)
        attention = cost.forward_flops - counted  # products of queries, keys and values are no layer
        assert (attention == 0) if name == "unet-5level" else (0 < attention < 0.1 * counted)
        assert cost.flops == 3 * cost.forward_flops

    def test_activations_are_those_that_a_real_forward_pass_keeps(self, monkeypatch):
        monkeypatch.setitem(PRESETS, "unet-5level", preset_config("unet-5level", **TINY["unet-5level"]))
        model = build_model("unet-5level").train()
        parameters = {parameter.data_ptr() for parameter in model.parameters()}
        kept = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        pixel_values = torch.randn(2, 3, 64, 96)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = model(pixel_values=pixel_values)
        measured = sum(size for address, size in kept.items() if address not in parameters)
        assert output.logits.shape == (2, 1, 64, 96)
        assert step_cost(model_of_shapes(model.config), 2, 64, 96).activation_bytes == pytest.approx(measured, rel=0.05)
