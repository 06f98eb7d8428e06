"""evaluate.py as a command: what it writes, how processes share it, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

import evaluate
from evaluate import evaluate_split, format_table
from hub_dataset.loading import load_splits
from modeling import BrainMRIImageProcessor

ROOT = Path(evaluate.__file__).parent

pytest_plugins = ["evaluate_fixtures"]


@pytest.fixture(scope="module")
def checkpoint(model, processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dataset_dir(split, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset")
    (folder / "data").mkdir()
    split.to_parquet(folder / "data" / "validation-00000-of-00001.parquet")
    return folder


def test_the_command_writes_the_results_that_the_function_gives(
    run_client, model, checkpoint, phantom_dataset_dir, tmp_path
):
    output = tmp_path / "new" / "results.json"
    command = ["evaluate.py", "--checkpoint", checkpoint, "--dataset", phantom_dataset_dir]
    command += ["--split", "test", "--output", output, "--threshold", "0.45", "--min_voxels", "20", "--no_extend"]
    command += ["--volume_share", "0.25", "--views", "2"]
    run = run_client(*command)
    assert run.returncode == 0, run.stderr
    results = json.loads(output.read_text())
    split = load_splits(str(phantom_dataset_dir))["test"]
    processor = BrainMRIImageProcessor(volume_share=0.25)
    expected = evaluate_split(model, processor, split, threshold=0.45, views=2, min_voxels=20, extend=False)
    assert results["num_patients"] == 2
    assert {key: results[key] for key in expected.to_dict()} == expected.to_dict()
    assert (results["split"], results["threshold"], results["channels"]) == ("test", 0.45, "all")
    assert (results["volume_share"], results["views"]) == (0.25, 2)
    assert results["postprocessing"] == {"min_voxels": 20, "keep_fraction": 0.5, "fill": True, "extend": False}
    assert results["command"].startswith("python evaluate.py --checkpoint")
    assert format_table(expected) in run.stdout
    assert run.stdout.endswith(f"\nResults in {output} and {output.with_suffix('.png')}\n")
    with PILImage.open(output.with_suffix(".png")) as figure:
        assert figure.format == "PNG"
    assert sorted(path.name for path in output.parent.iterdir()) == ["results.json", "results.png"]


def test_processes_share_the_patients_and_go_on_with_what_is_kept(
    run_client, checkpoint, phantom_dataset_dir, tmp_path
):
    arguments = ["--checkpoint", checkpoint, "--dataset", phantom_dataset_dir, "--split", "test", "--no_figure"]
    run_main(*arguments, "--output", tmp_path / "one.json")
    kept = tmp_path / "kept"
    command = ["tests/as_two_processes.py", "evaluate.py", *arguments, "--predictions", kept]
    run = run_client(*command, "--output", tmp_path / "two.json")
    assert run.returncode == 0, run.stderr
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert (one["patients"], one["summary"]) == (two["patients"], two["summary"])
    assert run.stdout.count("95 % CI") == 1

    files = sorted(kept.glob("*.npz"))
    assert len(files) == 2
    with np.load(files[0]) as file:
        np.savez(files[0], probabilities=np.zeros_like(file["probabilities"]), volume=file["volume"])
    run_main(*arguments, "--predictions", kept, "--output", tmp_path / "again.json")
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["patients"][0]["raw"]["counts"]["tp"] == 0
    assert again["patients"][1] == one["patients"][1]
    with pytest.raises(SystemExit, match="another processor"):
        run_main(*arguments, "--volume_share", 0, "--predictions", kept, "--output", tmp_path / "alone.json")
    with pytest.raises(SystemExit, match="another views"):
        run_main(*arguments, "--views", 2, "--predictions", kept, "--output", tmp_path / "views.json")
    with pytest.raises(SystemExit, match="another channels"):
        run_main(*arguments, "--channels", "flair", "--predictions", kept, "--output", tmp_path / "flair.json")


def run_main(*arguments):
    evaluate.main([str(argument) for argument in arguments])


def test_the_options_of_the_command_are_those_of_the_function(checkpoint, dataset_dir, tmp_path, monkeypatch):
    passed = {}

    def evaluate_split(*_, **options):
        passed.update(options)
        raise ValueError("enough")

    monkeypatch.setattr(evaluate, "evaluate_split", evaluate_split)
    arguments = ["--threshold", 0.4, "--batch_size", 3, "--views", 2, "--channels", "flair", "--min_voxels", 7]
    arguments += ["--keep_fraction", 0.2, "--no_extend", "--limit", 1]
    with pytest.raises(SystemExit, match="enough"):
        run_main("--checkpoint", checkpoint, "--dataset", dataset_dir, "--output", tmp_path / "r.json", *arguments)
    expected = {"threshold": 0.4, "batch_size": 3, "views": 2, "channels": "flair", "min_voxels": 7}
    assert passed.items() >= (expected | {"keep_fraction": 0.2, "extend": False, "limit": 1}).items()


def test_the_command_replaces_results_and_writes_no_figure_when_told(checkpoint, dataset_dir, tmp_path):
    output = tmp_path / "results.json"
    output.write_text("old")
    run_main("--checkpoint", checkpoint, "--dataset", dataset_dir, "--output", output, "--no_figure", "--limit", 1)
    results = json.loads(output.read_text())
    assert results["num_patients"] == results["limit"] == 1
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"--split": "test"}, "The split 'test' is absent from .*; it has validation"),
        (
            {"--checkpoint": "no/such/checkpoint"},
            "checkpoint 'no/such/checkpoint' cannot be loaded; it must be a folder",
        ),
        ({"--dataset": "./no_such_dataset"}, "no_such_dataset"),
        ({"--threshold": 1.5}, "threshold is a probability"),
        ({"--volume_share": 1.5}, r"volume_share must lie in \[0, 1\]"),
    ],
)
def test_the_command_says_what_is_wrong_and_writes_nothing(changed, message, checkpoint, dataset_dir, tmp_path):
    arguments = {"--checkpoint": checkpoint, "--dataset": dataset_dir, "--output": tmp_path / "results.json"} | changed
    with pytest.raises(SystemExit, match=message):
        run_main(*(part for pair in arguments.items() for part in pair))
    assert not list(tmp_path.iterdir())


def test_results_that_cannot_be_written_end_with_a_message(checkpoint, dataset_dir, tmp_path):
    (tmp_path / "results.png").mkdir()
    with pytest.raises(SystemExit, match=r"the results cannot be written: .*results\.png"):
        run_main("--checkpoint", checkpoint, "--dataset", dataset_dir, "--output", tmp_path / "results.json")


def test_the_output_must_be_json(tmp_path, capsys):
    (tmp_path / "folder.json").mkdir()
    for output in ("results.txt", tmp_path / "folder.json"):
        with pytest.raises(SystemExit):
            run_main("--checkpoint", "c", "--dataset", "d", "--output", output)
        assert f"must name a .json file, got {output}" in capsys.readouterr().err
