"""experiments/: variants of the dataset, trainings that go on where they stood, tables of their scores."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import load_dataset

from experiments import plateau, report, run
from experiments.run import Experiment, Score
from hub_dataset.folds import split_by_fold, write_splits
from hub_dataset.loading import load_splits
from modeling.metrics import bootstrap_interval

TINY = ("--model", "unet-5level", "--config", "hidden_sizes=[4, 8]", "encoder_depths=[1, 1]", "--epochs", "1")


def slices_of(split) -> set[tuple[str, int]]:
    return set(zip(split["patient_id"], split["slice_index"], strict=True))


def test_variants_differ_in_the_leak_alone(phantom_dataset_dir, tmp_path):
    run.write_variants(str(phantom_dataset_dir), tmp_path)
    apart, leaking = (load_dataset(str(tmp_path / name)) for name in ("by-patient", "by-slice"))
    held_out = set(apart["validation"]["patient_id"])
    assert held_out.isdisjoint(apart["train"]["patient_id"])
    assert held_out == set(leaking["validation"]["patient_id"])
    assert {index % 2 for index in leaking["validation"]["slice_index"]} == {0}
    assert slices_of(leaking["validation"]) <= slices_of(apart["validation"])

    assert slices_of(leaking["train"]).isdisjoint(slices_of(leaking["validation"]))
    assert slices_of(apart["validation"]) - slices_of(leaking["validation"]) <= slices_of(leaking["train"])
    for column in ("has_lesion", "image"):
        assert len(leaking["train"]) == len(apart["train"]) == len(leaking["train"][column])
    assert sum(leaking["train"]["has_lesion"]) == sum(apart["train"]["has_lesion"])

    source = split_by_fold(load_splits(str(phantom_dataset_dir)), run.FOLDS, 0)["validation"]
    np.testing.assert_array_equal(apart["validation"][3]["image"], source[3]["image"])


def test_the_data_of_another_dataset_are_not_taken_for_its_own(phantom_dataset_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "run", lambda *_: pytest.fail("trains on what is there"))
    run.write_variants(str(phantom_dataset_dir), tmp_path / "data")
    kept = sorted((tmp_path / "data").rglob("*"))
    run.write_variants(str(phantom_dataset_dir), tmp_path / "data")
    splits = load_splits(str(phantom_dataset_dir))
    first = splits["train"]["patient_id"][0]
    others = {
        "patients": splits["train"].filter(lambda patient: patient != first, input_columns="patient_id"),
        "slices": splits["train"].select(range(1, len(splits["train"]))),
    }
    for name, train in others.items():
        write_splits({"train": train, "validation": splits["validation"]}, tmp_path / name)
        with pytest.raises(SystemExit, match=r"by-patient was made of another dataset .* Choose an empty --output"):
            run.main(["--dataset", str(tmp_path / name), "--output", str(tmp_path)])
    assert sorted((tmp_path / "data").rglob("*")) == kept


def test_skulls_are_off_and_brains_are_left(phantom_dataset_dir, tmp_path):
    run.write_variants(str(phantom_dataset_dir), tmp_path)
    whole, brains = (load_dataset(str(tmp_path / name), split="validation") for name in ("by-patient", "stripped"))
    assert slices_of(whole) == slices_of(brains)
    kept = []
    for before, after in zip(whole, brains, strict=True):
        image, stripped = np.asarray(before["image"]), np.asarray(after["image"])
        brain = stripped.any(-1)
        np.testing.assert_array_equal(stripped[brain], image[brain])
        np.testing.assert_array_equal(np.asarray(before["mask"]), np.asarray(after["mask"]))
        if before["has_lesion"]:
            kept.append(brain[np.asarray(before["mask"]) > 0].mean())
            assert 0.05 < brain.mean() < 0.6
    assert np.mean(kept) > 0.95


def test_black_slices_stay_black():
    assert not run.strip_skull(np.zeros((40, 40, 3), np.uint8)).any()


def test_runs_what_is_missing_and_reports_it(phantom_dataset_dir, forked_commands, tmp_path, monkeypatch, capsys):
    commands = []

    def run_in_fork(command: list[str], cwd: Path) -> subprocess.CompletedProcess:
        commands.append(command)
        script = next(part for part in command if part.endswith(".py"))
        return forked_commands.run(command[command.index(script) :], tmp_path / "home", {}, timeout=300)

    monkeypatch.setattr(run, "subprocess", SimpleNamespace(run=run_in_fork))
    experiments = {"small": Experiment(TINY), "leaking": Experiment((*TINY, "--loss", "dice"), "by-slice")}
    monkeypatch.setattr(run, "EXPERIMENTS", experiments)
    scores = (Score("small"), Score("small", variant="by-slice"), Score("leaking", variant="by-slice"))
    monkeypatch.setattr(run, "SCORES", scores)
    monkeypatch.setattr(run, "SMALL", ("--image_size", "32", "--batch_size", "4", "--num_workers", "0"))
    arguments = ["--dataset", str(phantom_dataset_dir), "--output", str(tmp_path)]
    run.main([*arguments, "--only", "small"])
    assert sorted(file.name for file in (tmp_path / "scores").glob("*.json")) == [
        "small.all.by-patient.json",
        "small.all.by-slice.json",
    ]
    tables = (
        report.Table("Leak", {"by patient (reference)": scores[1], "by slice": scores[2]}),
        report.Table("Never made", {"(reference)": Score("another")}),
    )
    monkeypatch.setattr(report, "TABLES", tables)
    with pytest.raises(SystemExit, match=r"leaking\.all\.by-slice\.json is missing"):
        report.main(["--output", str(tmp_path)])

    commands.clear()
    run.main(arguments)
    training, evaluation = commands
    assert training[:3] == [sys.executable, "-m", "accelerate.commands.launch"]
    assert "train.py" in training
    assert evaluation[:2] == [sys.executable, "evaluate.py"]
    assert json.loads((tmp_path / "leaking" / "best" / "config.json").read_text())["loss"] == "dice"

    capsys.readouterr()
    report.main(["--output", str(tmp_path), "--only", "Leak", "--figure", str(tmp_path / "figure.png")])
    lines = capsys.readouterr().out.splitlines()
    reference, leaking = (
        json.loads((tmp_path / "scores" / f"{score.name}.json").read_text())["summary"]["postprocessed"]["dice_mean"]
        for score in scores[1:]
    )
    assert lines[2].startswith(f"| by patient (reference) | {reference:.3f} (")
    assert lines[3].startswith(f"| by slice | {leaking:.3f} (")
    assert f"| {leaking - reference:+.3f} (" in lines[3]
    assert (tmp_path / "figure.png").stat().st_size > 1000


def test_a_teacher_is_trained_first(tmp_path, monkeypatch):
    experiments = {"pupil": Experiment(TINY, teacher="master"), "master": Experiment((*TINY, "--loss", "bce"))}
    monkeypatch.setattr(run, "EXPERIMENTS", experiments)
    commands = []

    def finish(*command: str) -> None:
        commands.append(command)
        last = Path(command[command.index("--output_dir") + 1]) / "last"
        last.mkdir(parents=True)
        (last / "model.safetensors").touch()

    monkeypatch.setattr(run, "run", finish)
    (tmp_path / "master").mkdir()
    (tmp_path / "master" / "args.json").touch()
    run.train("pupil", tmp_path, tmp_path / "data", "no")
    master, pupil = commands
    assert "--teacher" not in master
    assert ["--resume" in command for command in commands] == [True, False]
    assert all(command[command.index("--volume_share") + 1] == "0" for command in commands)
    assert master[-1] == str(tmp_path / "master")
    assert pupil[pupil.index("--teacher") + 1] == str(tmp_path / "master" / "last")
    assert pupil[-1] == str(tmp_path / "pupil")
    run.train("pupil", tmp_path, tmp_path / "data", "no")
    assert len(commands) == 2


def test_predictions_are_kept_of_the_slices_as_they_are(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(run, "run", lambda *command: commands.append(command))
    for what in (Score("one"), Score("one", channels="flair"), Score("one", variant="stripped")):
        run.score(what, tmp_path, tmp_path / "data")
    assert ["--predictions" in command for command in commands] == [True, False, False]
    assert [command[command.index("--channels") + 1] for command in commands] == ["all", "flair", "all"]
    variants = [command[command.index("--dataset") + 1] for command in commands]
    assert variants == [str(tmp_path / "data" / name) for name in ("by-patient", "by-patient", "stripped")]


def test_scores_of_different_patients_are_not_compared():
    one, other = report.Scores({"a": 0.5, "b": 0.7}, {}), report.Scores({"a": 0.6, "b": 0.4}, {})
    np.testing.assert_allclose(report.differences(one, other), [-0.1, 0.3])
    with pytest.raises(ValueError, match="different patients"):
        report.differences(one, report.Scores({"a": 0.6}, {}))


class TestReport:
    @pytest.fixture
    def folder(self, tmp_path, monkeypatch):
        (tmp_path / "scores").mkdir()
        rows = {"one (reference)": Score("one"), "other": Score("other")}
        monkeypatch.setattr(report, "TABLES", (report.Table("Question", rows),))
        return tmp_path

    def write(self, folder, name, dice):
        patients = [{"patient_id": str(i), "postprocessed": {"dice": value}} for i, value in enumerate(dice)]
        summary = {"dice_median": None, "lesion_slice_dice": 0.25, "false_alarm_rate": 0.1}
        summary |= {"lesion_slices": 0, "empty_slices": 30}
        content = {"patients": patients, "summary": {"postprocessed": summary}}
        (folder / "scores" / f"{name}.all.by-patient.json").write_text(json.dumps(content))

    @pytest.mark.filterwarnings("error")
    def test_patients_without_a_dice_are_left_out(self, folder, capsys):
        self.write(folder, "one", [0.5, None, 0.7, 0.9])
        self.write(folder, "other", [0.6, 0.1, None, 0.8])
        report.main(["--output", str(folder), "--figure", str(folder / "figure.png")])
        one, other = capsys.readouterr().out.splitlines()[2:4]
        low, high = bootstrap_interval([0.5, 0.7, 0.9])
        assert one == f"| one (reference) | 0.700 ({low:.3f} to {high:.3f}) |  | - | 0.250 | 10.0 % |"
        assert other.startswith("| other | 0.500 (")
        assert "| +0.000 (-0.100 to +0.100) |" in other
        assert (folder / "figure.png").is_file()

    @pytest.mark.filterwarnings("error")
    def test_no_patient_may_have_a_dice(self, folder, capsys):
        self.write(folder, "one", [None, None])
        self.write(folder, "other", [0.5, None])
        report.main(["--output", str(folder), "--figure", str(folder / "figure.png")])
        assert capsys.readouterr().out.splitlines()[2:4] == [
            "| one (reference) | - |  | - | 0.250 | 10.0 % |",
            "| other | 0.500 | - | - | 0.250 | 10.0 % |",
        ]

    @pytest.mark.parametrize(
        "content",
        ["[]", '{"patients": []}', '{"patients": [{}], "summary": {"postprocessed": {}}}', '{"patients": [', "\xff"],
    )
    def test_a_file_of_another_kind_is_named(self, folder, content):
        (folder / "scores" / "one.all.by-patient.json").write_bytes(content.encode("latin-1"))
        with pytest.raises(SystemExit, match=r"one\.all\.by-patient\.json holds no scores of evaluate\.py\. Delete it"):
            report.main(["--output", str(folder)])


class TestPlateau:
    LOG = (0.5, None, 0.7, 0.69, 0.7, 0.71, 0.70)

    def write(self, folder, values):
        folder.mkdir()
        rows = [{"epoch": epoch, "seconds": 60.0 * epoch} for epoch in range(1, len(values) + 1)]
        for row, dice in zip(rows, values, strict=True):
            row |= {} if dice is None else {"validation_dice_mean": dice}
        (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder / "log.jsonl"

    def test_tells_where_patience_would_have_stopped(self, tmp_path, capsys):
        plateau.main([str(self.write(tmp_path / "run", self.LOG)), "--patience", "1", "2", "3"])
        cells = [cell.strip() for cell in capsys.readouterr().out.splitlines()[2].split("|")[1:-1]]
        assert cells[:4] == ["run", "7", "0.710 (6)", "3, 3 of 7 minutes"]
        assert cells[4:] == ["4, 0.700 (3)", "5, 0.700 (3)", "7, 0.710 (6)"]

    def test_a_log_without_validation_is_refused(self, tmp_path):
        with pytest.raises(SystemExit, match=r"No epoch of .* was validated"):
            plateau.main([str(self.write(tmp_path / "run", [None, None]))])
        (tmp_path / "other.jsonl").write_text('{"loss": 1}\n')
        with pytest.raises(SystemExit, match=r"other\.jsonl is no log of train\.py"):
            plateau.main([str(tmp_path / "other.jsonl")])

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ('{"epoch": 1, "seconds": null, "validation_dice_mean": 0.5}', "an epoch and its seconds, two numbers"),
            ('{"epoch": 1, "seconds": 60, "validation_dice_mean": "high"}', "the Dice of epoch 1 is no number"),
            ('{"epoch": 1, "seconds": 60, "validation_dice_mean": NaN}', "the Dice of epoch 1 is no number"),
        ],
    )
    def test_a_log_with_something_else_than_numbers_is_refused(self, tmp_path, row, message):
        (tmp_path / "log.jsonl").write_text(row + "\n")
        with pytest.raises(SystemExit, match=rf"log\.jsonl is .*{message}"):
            plateau.main([str(tmp_path / "log.jsonl")])

    @pytest.mark.parametrize("arguments", [["--close", "-0.1"], ["--close", "nan"], ["--patience", "1", "0"]])
    def test_limits_that_make_no_sense_are_refused(self, tmp_path, arguments, capsys):
        with pytest.raises(SystemExit):
            plateau.main([str(self.write(tmp_path / "run", self.LOG)), *arguments])
        assert f"{arguments[0]} must be at least" in capsys.readouterr().err
