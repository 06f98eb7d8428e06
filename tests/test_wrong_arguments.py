"""benchmarks/ and examples/: arguments that cannot be used end in a sentence that names them, not in a traceback."""

import importlib
import sys

import pytest

NEEDED = {
    "benchmarks.inference": ["--checkpoint", "./nowhere", "--dataset", "{dataset}"],
    "benchmarks.training_speed": ["--dataset", "{dataset}"],
    "benchmarks.training_memory": ["--dataset", "{dataset}"],
    "benchmarks.upper_bounds": ["--dataset", "{dataset}"],
    "examples.trainer": ["--dataset", "{dataset}", "--output_dir", "{folder}/run"],
}
SMALL = ["--batch_size", "999", "--image_size", "32", "--num_workers", "0", "--threads", "1"]


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        ("benchmarks.inference", ["--dataset", "./nowhere"], "no dataset folder './nowhere'"),
        ("benchmarks.inference", ["--split", "nope"], "The split 'nope' is absent"),
        ("benchmarks.inference", [], "The checkpoint './nowhere' cannot be loaded"),
        ("benchmarks.inference", ["--patients", "0"], "--patients: '0' is no whole number from 1 on"),
        ("benchmarks.inference", ["--repeats", "0"], "--repeats: '0' is no whole number from 1 on"),
        ("benchmarks.inference", ["--repeats", "few"], "--repeats: 'few' is no whole number from 1 on"),
        ("benchmarks.training_speed", ["--dataset", "./nowhere"], "no dataset folder './nowhere'"),
        ("benchmarks.training_speed", ["--image_size", "4"], "--image_size: '4' is no whole number from 32 on"),
        ("benchmarks.training_speed", ["--steps", "0"], "--steps: '0' is no whole number from 1 on"),
        ("benchmarks.training_speed", SMALL, "fewer than one batch of 999"),
        ("benchmarks.training_memory", ["--measure", "--dataset", "./nowhere"], "no dataset folder './nowhere'"),
        ("benchmarks.training_memory", ["--model", "nope"], "--model: invalid choice: 'nope'"),
        ("benchmarks.training_memory", ["--patients", "0"], "--patients: '0' is no whole number from 1 on"),
        ("benchmarks.large_models_memory", ["--batch_size", "0"], "--batch_size: '0' is no whole number from 1 on"),
        ("benchmarks.space_load", ["--num_slices", "0"], "--num_slices: '0' is no whole number from 4 on"),
        ("benchmarks.space_load", ["--url", "http://127.0.0.1:9"], "no server of app.py answers at http://127.0.0.1:9"),
        ("benchmarks.upper_bounds", ["--predictions", 300 * "x"], "name too long"),
        ("benchmarks.compare_timm", ["--weights", "nowhere.pth"], "there is no file nowhere.pth"),
        ("benchmarks.compare_timm", [], "--help says where this runs"),
        ("examples.make_examples", ["somewhere"], "unrecognized arguments: somewhere"),
        ("examples.make_figure", ["--checkpoint", "./nowhere"], "The checkpoint './nowhere' cannot be loaded"),
        ("examples.make_figure", ["--output", "{file}/figure.png"], "exists"),
        ("examples.trainer", ["--dataset", "./nowhere"], "no dataset folder './nowhere'"),
        ("examples.trainer", ["--output_dir", "{file}"], "is a file; name a folder"),
        ("examples.trainer", ["--num_train_epochs", "0"], "--num_train_epochs: '0' is no whole number from 1 on"),
    ],
)
def test_is_refused(module, arguments, message, phantom_dataset_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "timm", None)  # cannot be imported
    (tmp_path / "file").touch()
    places = {"dataset": phantom_dataset_dir, "folder": tmp_path, "file": tmp_path / "file"}
    arguments = [argument.format(**places) for argument in (*NEEDED.get(module, []), *arguments)]
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(module).main(arguments)
    assert message in f"{capsys.readouterr().err}{ended.value.code}"


def test_a_measurement_that_fails_in_its_own_process_says_why_without_a_traceback(capfd):
    from benchmarks import training_memory

    with pytest.raises(SystemExit, match="exit code 1 with 20 patients"):
        training_memory.main(["--dataset", "./nowhere"])
    said = capfd.readouterr().err
    assert "benchmarks.training_memory: error: There is no dataset folder './nowhere'" in said
    assert "Traceback" not in said


def test_a_measurement_that_is_killed_is_named(monkeypatch):
    from benchmarks import large_models_memory

    monkeypatch.setattr(sys, "executable", "false")  # fails, whatever its arguments
    with pytest.raises(SystemExit, match="error: exit code 1 of transunet-conv, train"):
        large_models_memory.main([])


def test_help_of_the_comparison_needs_no_timm(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.delitem(sys.modules, "benchmarks.compare_timm", raising=False)
    with pytest.raises(SystemExit) as ended:
        importlib.import_module("benchmarks.compare_timm").main(["--help"])
    assert ended.value.code == 0
    assert "-c requirements.txt" in capsys.readouterr().out
