"""benchmarks/training_speed.py: what it prints fits together."""

import re

import pytest
from tiny_models import TINY

from benchmarks import training_speed
from modeling import PRESETS, preset_config
from training.cost import model_of_shapes, step_cost


def test_threads_are_those_of_a_containers_quota(tmp_path, monkeypatch):
    monkeypatch.setattr("modeling.cores.QUOTA", tmp_path / "cpu.max")
    (tmp_path / "cpu.max").write_text("100000 100000\n", encoding="utf-8")
    assert training_speed.parse_args(["--dataset", "data/lgg"]).threads == 1


def test_rates_follow_from_the_timed_steps(phantom_dataset_dir, monkeypatch, capsys):
    monkeypatch.setitem(PRESETS, "unet-5level", preset_config("unet-5level", **TINY["unet-5level"]))
    settings = ["--image_size", "96", "--batch_size", "4", "--steps", "2", "--num_workers", "0", "--threads", "1"]
    monkeypatch.setattr("sys.argv", ["training_speed", "--dataset", str(phantom_dataset_dir), *settings])
    training_speed.main()
    output = capsys.readouterr().out
    steps = re.findall(r"^ +(\d+)x(\d+) +([\d.]+) +([\d.]+)% +([\d.]+) +([\d.]+)$", output, re.MULTILINE)
    assert len(steps) == 2
    shapes = model_of_shapes(PRESETS["unet-5level"])
    for height, width, _, waiting, gflop, _ in steps:
        assert (height, width) == ("96", "96")
        assert float(gflop) == pytest.approx(step_cost(shapes, 4, int(height), int(width)).flops / 1e9, abs=0.06)
        assert 0 <= float(waiting) < 100
    slices, rate, share, possible = (
        float(re.search(pattern, output)[1])
        for pattern in (r"([\d.]+) slices/s", r"([\d.]+) GFLOP/s,", r"(\d+)% of the fastest", r"product's ([\d.]+)")
    )
    assert share == pytest.approx(100 * rate / possible, abs=1)
    assert slices > 0
