"""Cross-validation: how patients are dealt, what a fold trains on, and the summary over finished folds."""

import json
import math
import re
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny_training import read_log

from hub_dataset.folds import main, split_by_fold
from hub_dataset.loading import load_splits
from hub_dataset.splits import TEST_PATIENTS, TRAIN_PATIENTS, VALIDATION_PATIENTS, deal_folds, institution_of
from modeling.metrics import bootstrap_interval
from training import folds
from training.run_folder import RunFolder

pytest_plugins = ["training_fixtures"]
PATIENTS = TRAIN_PATIENTS + VALIDATION_PATIENTS


class TestDealing:
    @pytest.mark.parametrize("count", [2, 5, 10, 88])
    def test_every_patient_is_in_one_fold_and_folds_are_alike(self, count):
        dealt = deal_folds(PATIENTS, count)
        assert sorted(patient for fold in dealt for patient in fold) == sorted(PATIENTS)
        assert not set(TEST_PATIENTS) & {patient for fold in dealt for patient in fold}
        assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
        for institution in set(map(institution_of, PATIENTS)):
            counts = [Counter(map(institution_of, fold))[institution] for fold in dealt]
            assert max(counts) - min(counts) <= 1

    def test_names_without_an_institution_are_dealt_as_one(self):
        for patients in ([f"case-{number}" for number in range(7)], list(range(7))):
            dealt = deal_folds(patients, 3)
            assert sorted(patient for fold in dealt for patient in fold) == sorted(patients)
            assert sorted(map(len, dealt)) == [2, 2, 3]

    def test_the_order_of_the_patients_does_not_matter_but_the_seed_does(self):
        assert deal_folds(PATIENTS[::-1], 5) == deal_folds(PATIENTS, 5)
        assert deal_folds(PATIENTS, 5, seed=1) != deal_folds(PATIENTS, 5)

    @pytest.mark.parametrize("count", [1, 89])
    def test_too_few_or_too_many_folds(self, count):
        with pytest.raises(ValueError, match="between 2 and the 88 patients given"):
            deal_folds(PATIENTS, count)


class TestFoldAsDataset:
    def write(self, dataset, output, *options: str) -> None:
        main(["--dataset", str(dataset), "--output", str(output), "--folds", "3", "--fold", "1", *options])

    def test_holds_the_slices_that_a_run_of_the_fold_has(self, phantom_dataset_dir, tmp_path, capsys):
        self.write(phantom_dataset_dir, tmp_path / "new" / "fold")
        output = capsys.readouterr().out
        splits = load_splits(str(phantom_dataset_dir))
        expected, written = split_by_fold(splits, 3, 1), load_splits(str(tmp_path / "new" / "fold"))
        assert set(written) == {"train", "validation"}
        for name, split in written.items():
            assert split.remove_columns(["image", "mask"]).to_dict() == (
                expected[name].remove_columns(["image", "mask"]).to_dict()
            )
            assert f"{name}: {len(set(split['patient_id']))} patients, {len(split):,} slices" in output
            file = pq.ParquetFile(next((tmp_path / "new" / "fold" / "data").glob(f"{name}-*.parquet")))
            assert file.num_row_groups == len(set(split["patient_id"])), "which streaming reads one by one"
        for column in ("image", "mask"):
            np.testing.assert_array_equal(written["validation"][3][column], expected["validation"][3][column])

    def test_a_folder_that_is_there_is_left_alone(self, phantom_dataset_dir, tmp_path):
        (tmp_path / "kept").write_text("kept")
        with pytest.raises(SystemExit, match="is there already"):
            self.write(phantom_dataset_dir, tmp_path)
        assert [file.name for file in tmp_path.iterdir()] == ["kept"]

    def test_an_interruption_leaves_nothing(self, phantom_dataset_dir, tmp_path, monkeypatch):
        def fail(*_, **__):
            raise OSError("No space left on device")

        monkeypatch.setattr(pq.ParquetWriter, "write_table", fail)
        with pytest.raises(SystemExit, match="No space left"):
            self.write(phantom_dataset_dir, tmp_path / "fold")
        assert not list(tmp_path.iterdir())

    def test_what_cannot_be_dealt_is_refused(self, phantom_dataset_dir, tmp_path):
        with pytest.raises(SystemExit, match="between 2 and the 6 patients given"):
            self.write(phantom_dataset_dir, tmp_path / "fold", "--folds", "50")
        with pytest.raises(SystemExit, match="There is no dataset folder"):
            self.write(tmp_path / "absent", tmp_path / "fold")
        for fold in ("3", "-1"):
            with pytest.raises(SystemExit, match=f"There is no fold {fold} of 3; folds are counted from 0"):
                self.write(phantom_dataset_dir, tmp_path / "fold", "--fold", fold)
        assert not list(tmp_path.iterdir())


class TestRuns:
    def test_folds_validate_every_patient_once_and_the_summary_is_over_all(self, run, phantom_dataset_dir, capsys):
        folders = [run("--folds", "3", "--fold", str(fold), "--epochs", "1", folder=f"fold{fold}") for fold in range(3)]
        splits = load_splits(str(phantom_dataset_dir))
        pool = {*splits["train"]["patient_id"], *splits["validation"]["patient_id"]}
        recorded = [json.loads((folder / "split.json").read_text()) for folder in folders]
        assert sorted(patient for split in recorded for patient in split["validation"]) == sorted(pool)
        for split, folder in zip(recorded, folders, strict=True):
            assert set(split["train"]) == pool - set(split["validation"])
            assert set(split["test"]) == set(splits["test"]["patient_id"])
            assert read_log(folder)[-1]["validation_dice"].keys() == set(split["validation"])

        capsys.readouterr()
        folds.main(list(map(str, folders)))
        scores = [dice for folder in folders for dice in read_log(folder)[-1]["validation_dice"].values()]
        output = capsys.readouterr().out
        assert "6 patients of 3 of 3 folds" in output
        assert f"last epoch: {folds.describe(np.array(scores))}" in output

    def test_a_fold_does_not_go_on_with_the_patients_of_another(self, run):
        run("--folds", "3", "--fold", "0", "--epochs", "1", folder="fold0")
        for arguments in (["--folds", "3", "--fold", "1"], []):
            with pytest.raises(SystemExit, match="has other patients in train and validation"):
                run(*arguments, "--resume", folder="fold0")

    def test_more_folds_than_patients(self, run):
        with pytest.raises(SystemExit, match="between 2 and the 6 patients given, got 7"):
            run("--folds", "7", "--fold", "0")


class TestSummary:
    @pytest.fixture
    def write_run(self, tmp_path):
        """Writes what the summary reads of a run: two epochs, the first of them better by 0.1."""

        def write_run(name: str, scores: list[float], finished: bool = True, **arguments) -> str:
            folder = tmp_path / name
            (folder / "last").mkdir(parents=True)
            if finished:
                (folder / "last" / "metrics.json").write_text('{"epoch": 2}')
            run = RunFolder(folder)
            run.write_json("args.json", {"model": "tiny", "folds": 3, "fold": 0, "epochs": 2} | arguments)
            run.write_json("split.json", {})
            run.write_log(
                [
                    {
                        "epoch": epoch,
                        "seconds": 60.0 * epoch,
                        "validation_dice_mean": np.nanmean(scores) + gain,
                        "validation_dice": {f"{name}-{i}": score + gain for i, score in enumerate(scores)},
                    }
                    for epoch, gain in ((1, 0.1), (2, 0.0))
                ]
            )
            return str(folder)

        return write_run

    def test_is_over_the_patients_of_all_folds(self, write_run, capsys):
        runs = [write_run("b", [0.5, 0.6], fold=1, low_memory=True), write_run("a", [0.2, 0.9, math.nan], fold=0)]
        folds.main(runs)
        output = capsys.readouterr().out
        assert re.search(
            r"^ +0 +3 +0\.550 \(2\) +0\.650 \(1\)\n +1 +2 +0\.550 \(2\) +0\.650 \(1\)$", output, re.MULTILINE
        )
        assert "5 patients of 2 of 3 folds" in output
        low, high = bootstrap_interval([0.2, 0.9, 0.5, 0.6])
        assert f"last epoch: mean 0.550 (95 % CI {low:.3f} to {high:.3f}), median 0.550" in output
        assert f"best epoch: mean 0.650 (95 % CI {low + 0.1:.3f} to {high + 0.1:.3f}), median 0.650" in output

    def test_names_folds_that_are_missing_or_unfinished(self, write_run, capsys):
        training = write_run("training", [0.9], fold=1, finished=False)
        folds.main([write_run("done", [0.5, 0.7], fold=2), training])
        output = capsys.readouterr().out
        assert "2 patients of 1 of 3 folds" in output
        assert f"not finished: {training}" in output
        assert "not given: fold 0" in output
        with pytest.raises(SystemExit, match=r"None of .* has finished"):
            folds.main([training])

    def test_a_fold_that_was_extended_is_not_finished_before_its_new_end(self, write_run, tmp_path):
        early = write_run("early", [0.5], epochs=30)
        interrupted = write_run("interrupted", [0.5])
        (tmp_path / "interrupted" / "last" / "metrics.json").write_text('{"epoch": 1}')
        for fold in (early, interrupted):
            with pytest.raises(SystemExit, match=r"None of .* has finished"):
                folds.main([fold])
        folds.main([write_run("stopped", [0.5], epochs=30, patience=1)])

    @pytest.mark.parametrize(
        ("content", "message"), [("{}", "names no epoch"), ("[]", "holds a list"), ('{"epo', "is not JSON")]
    )
    def test_a_damaged_fold_is_named(self, write_run, tmp_path, content, message):
        fold = write_run("fold", [0.5])
        (tmp_path / "fold" / "last" / "metrics.json").write_text(content)
        with pytest.raises(SystemExit, match=rf"metrics\.json .*{message}"):
            folds.main([fold])

    def test_refuses_runs_that_do_not_belong_together(self, write_run, tmp_path):
        fold = write_run("fold", [0.5])
        for other, message in (
            (fold, "are both fold 0"),
            (write_run("plain", [0.5], folds=None, fold=None), "was trained without --folds"),
            (write_run("other", [0.5], fold=1, model="large"), "they differ in --model"),
            (write_run("seeded", [0.5], fold=1, seed=1), "they differ in --seed"),
            (str(tmp_path / "nowhere"), "nowhere"),
        ):
            with pytest.raises(SystemExit, match=message):
                folds.main([fold, other])


def test_a_patient_without_dice_is_left_out():
    assert folds.describe(np.array([0.5, math.nan, 0.7])).startswith(
        "mean 0.600 (95 % CI 0.500 to 0.700), median 0.600"
    )
    assert folds.describe(np.array([0.5])) == "mean 0.500, median 0.500"
    assert folds.describe(np.array([math.nan])) == "no patient has a Dice"
