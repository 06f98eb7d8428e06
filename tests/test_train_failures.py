"""train.py where something is wrong: one sentence, an exit code that is not zero, and nothing half-written."""

import json
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import DatasetDict, Value
from safetensors.torch import load_file
from tiny_training import read_log

from hub_dataset.folds import write_splits
from hub_dataset.loading import TrainingSlices, load_splits
from hub_dataset.patients import DamagedSlice
from modeling import PRESETS, UNetConfig

pytest_plugins = ["training_fixtures"]


@pytest.fixture
def splits(phantom_dataset_dir) -> DatasetDict:
    return load_splits(str(phantom_dataset_dir))


def write_dataset(splits: dict, folder: Path) -> str:
    write_splits(splits, folder)
    return str(folder)


class TestArguments:
    def test_a_folder_with_a_run_is_not_overwritten(self, run):
        run("--epochs", "1")
        with pytest.raises(SystemExit, match="already holds a run"):
            run()

    def test_a_place_for_no_folder_is_named_before_data_are_read(self, run, tmp_path):
        (tmp_path / "file").write_text("kept")
        for folder in ("file", "file/run"):
            with pytest.raises(SystemExit, match=r"--output_dir .*/file is a file\. Choose another"):
                run("--dataset", "nowhere", folder=folder)
        assert (tmp_path / "file").read_text() == "kept"

    def test_nothing_to_resume(self, run):
        with pytest.raises(SystemExit, match="holds no run"):
            run("--resume")

    def test_a_run_of_another_model(self, run, monkeypatch):
        run("--epochs", "1")
        monkeypatch.setitem(PRESETS, "other", UNetConfig(hidden_sizes=[4, 6], encoder_depths=[1, 1]))
        with pytest.raises(SystemExit, match="holds a run of --model tiny, not of other"):
            run("--model", "other", "--resume")

    def test_a_run_of_another_configuration(self, run):
        run("--epochs", "1")
        with pytest.raises(SystemExit, match=r"holds a run of --config {}, not of {'hidden_sizes': \[4, 6\]}"):
            run("--config", "hidden_sizes=[4, 6]", "--resume")

    def test_a_run_in_other_steps(self, run):
        run("--epochs", "1")
        for name, before, now in (
            ("batch_size", "4", "8"),
            ("gradient_accumulation_steps", "1", "2"),
            ("empty_ratio", "1.0", "0.5"),
            ("optimizer", "adamw", "sgd"),
        ):
            with pytest.raises(SystemExit, match=rf"holds a run of --{name} {before}, not of {now}.*--init_from"):
                run(f"--{name}", now, "--resume")

    def test_a_run_of_other_slices_of_the_same_patients(self, run, splits, tmp_path):
        splits["train"] = splits["train"].select(range(0, len(splits["train"]), 2))
        other = write_dataset(splits, tmp_path / "other")
        folder = run("--epochs", "1", "--dataset", other)
        before = read_log(folder)
        with pytest.raises(SystemExit, match=r"epochs of \d+ batches, this dataset of \d+: its slices are others"):
            run("--resume")
        assert read_log(folder) == before
        assert len(read_log(run("--resume", "--dataset", other))) == 2

    def test_a_run_that_forgets_where_its_weights_came_from(self, run):
        source = run("--epochs", "1", folder="source") / "best"
        run("--epochs", "1", "--init_from", str(source))
        with pytest.raises(SystemExit, match=r"holds a run of --init_from .*best, not of None\. Give the same"):
            run("--resume")
        run("--epochs", "1", "--init_from", str(source / ".." / "best"), "--resume")

    def test_a_folder_in_which_another_process_trains(self, run, tmp_path):
        folder = run("--epochs", "1")
        before = read_log(folder)
        code = "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print(flush=True); input()"
        for name, options in (("run", ["--resume"]), ("new", [])):
            (tmp_path / name).mkdir(exist_ok=True)
            command = [sys.executable, "-c", code, str(tmp_path / name / "lock")]
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
                other.stdout.readline()
                with pytest.raises(SystemExit, match=f"another process trains in .*{name}"):
                    run("--epochs", "2", *options, folder=name)
                other.communicate("\n")
        assert read_log(folder) == before
        assert len(read_log(run("--epochs", "2", "--resume"))) == 2

    def test_half_precision_that_a_cpu_would_not_compute_in(self, run, monkeypatch):
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
        with pytest.raises(SystemExit, match="fp16 needs an accelerator"):
            run()

    @pytest.mark.parametrize(
        ("precision", "capability", "warned"),
        [("bf16", "AVX2", True), ("bf16", "AVX512", False), ("no", "AVX2", False)],
    )
    def test_a_precision_that_a_cpu_would_be_slow_in(self, run, monkeypatch, capsys, precision, capability, warned):
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
        run("--epochs", "1")
        assert ("Leave out --mixed_precision" in capsys.readouterr().err) is warned

    def test_a_run_whose_states_were_deleted(self, run):
        folder = run("--epochs", "2")
        shutil.rmtree(folder / "checkpoints")
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for arguments, message in ((["--resume"], "none of its states"), ([], "already holds a run")):
            with pytest.raises(SystemExit, match=message):
                run("--epochs", "2", *arguments)
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--seed", "-1"], "from 0 to 4294967295, not -1"),
            (["--num_workers", "-1"], "--num_workers must be finite and not negative"),
            (["--learning_rate", "nan"], "--learning_rate must be finite and not negative, but is nan"),
            (["--config", "num_channels=1"], "slices have three channels"),
            (["--image_size", "256", "128"], "two stages that start at the same time"),
            (["--model", "resnet"], "invalid choice: 'resnet'"),
            (["--config", "depth"], "'depth' is not NAME=VALUE"),
            (["--config", "depth=3"], "UNetConfig has no depth; it has "),
            (["--config", "hidden_sizes=8"], "expected"),
            (["--config", "loss=bce"], "an option of its own, --loss"),
            (["--image_size", "large"], "not PIXELS"),
            (["--image_size", "192@60%"], "first stage"),
            (["--image_size", "16"], "at least 32 pixels"),
            (["--image_size", "128", "192@100%"], "from 0% to under 100%"),
            (["--epochs", "0"], "at least 1"),
            (["--batch_size", "0"], "--batch_size must be at least 1"),
            (["--gradient_accumulation_steps", "0"], "--gradient_accumulation_steps must be at least 1"),
            (["--validate_every", "0"], "--validate_every must be at least 1"),
            (["--keep_checkpoints", "0"], "--keep_checkpoints must be at least 1"),
            (["--patience", "-1"], "--patience must be finite and not negative"),
            (["--checkpoint_minutes", "nan"], "--checkpoint_minutes must be finite and not negative"),
            (["--ema_decay", "1"], "--ema_decay must be from 0 to under 1"),
            (["--folds", "1", "--fold", "0"], "at least 2 folds"),
            (["--hub_private_repo"], "go with --push_to_hub"),
            (["--volume_share", "1.5"], "--volume_share must be from 0 to 1"),
            (["--folds", "5"], "--folds and --fold go together"),
            (["--folds", "5", "--fold", "5"], "counted from 0"),
            (["--dry_run", "--resume"], "leave out --resume"),
            (["--teacher_weight", "0.5"], "goes with --teacher"),
            (["--teacher", "anything", "--teacher_weight", "0"], "from over 0 to 1, not 0.0"),
            (["--teacher", "anything", "--teacher_weight", "1.5"], "from over 0 to 1, not 1.5"),
        ],
    )
    def test_unusable_arguments(self, run, tmp_path, capsys, arguments, message):
        with pytest.raises(SystemExit) as error:
            run(*arguments)
        assert error.value.code == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "run").exists()


class TestDataset:
    def test_no_such_dataset(self, run, tmp_path):
        with pytest.raises(SystemExit, match="There is no dataset folder"):
            run("--dataset", str(tmp_path / "nowhere"))

    def test_a_dataset_without_validation(self, run, splits, tmp_path):
        data = write_dataset({"train": splits["train"]}, tmp_path / "data")
        with pytest.raises(SystemExit, match="no split 'validation', only train"):
            run("--dataset", data)

    def test_a_dataset_without_masks(self, run, splits, tmp_path):
        data = write_dataset(splits.remove_columns("mask"), tmp_path / "data")
        with pytest.raises(SystemExit, match="has no column mask"):
            run("--dataset", data)

    def test_slices_without_a_mask(self, run, splits, tmp_path):
        features = splits["train"].features
        partly = splits["train"].map(lambda row, i: {"mask": row["mask"] if i else None}, with_indices=True)
        data = write_dataset({**splits, "train": partly.cast(features)}, tmp_path / "data")
        with pytest.raises(SystemExit, match=r"1 slices in the split 'train' of .* have no mask"):
            run("--dataset", data)

    @pytest.mark.parametrize("name", ["train", "validation"])
    def test_an_empty_split(self, run, splits, tmp_path, name):
        data = write_dataset({**splits, name: splits[name].select([])}, tmp_path / "data")
        with pytest.raises(SystemExit, match=f"every split needs at least one slice.*{name}"):
            run("--dataset", data)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda row: {"slice_index": 1}, r"Slice 1 of patient TCGA_PH\w+ is in the split twice"),
            (
                lambda row: {key: row[key].resize((48, 40)) for key in ("image", "mask")},
                r"has 48x40 pixels, and the patient's first image 64x64",
            ),
        ],
        ids=["twice", "size"],
    )
    def test_what_makes_up_no_volume_is_found_before_training(self, run, splits, tmp_path, change, message):
        odd = {
            name: split.map(lambda row, i: change(row) if i == 1 else {}, with_indices=True)
            for name, split in splits.items()
        }
        data = write_dataset({**splits, "validation": odd["validation"]}, tmp_path / "data")
        with pytest.raises(SystemExit, match=message):
            run("--dataset", data)
        data = write_dataset({**splits, "train": odd["train"]}, tmp_path / "train")
        with pytest.raises(SystemExit, match=message):
            run("--dataset", data, "--folds", "3", "--fold", "0")
        run("--dataset", data, "--epochs", "1")  # slices by themselves are trained on all the same
        shutil.rmtree(tmp_path / "run")

    @pytest.mark.parametrize("name", ["train", "validation"])
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda row: {"mask": row["mask"].resize((50, 64))}, r"64x64 pixels, its mask 50x64"),
            (lambda row: {"image": row["image"].convert("L").convert("LA")}, r"has the colour mode LA"),
            (lambda row: {key: row[key].resize((30, 40)) for key in ("image", "mask")}, r"30x40 pixels, under 32"),
        ],
        ids=["mask", "alpha", "small"],
    )
    def test_odd_slices_are_found_before_training(self, run, splits, tmp_path, name, change, message):
        odd = splits[name].map(lambda row, i: change(row) if i == 1 else {}, with_indices=True)
        data = write_dataset({**splits, name: odd}, tmp_path / "data")
        with pytest.raises(SystemExit, match=message):
            run("--dataset", data)

    @pytest.mark.parametrize("streaming", [[], ["--streaming"]], ids=["whole", "streamed"])
    @pytest.mark.parametrize(
        ("column", "values", "message"),
        [
            ("patient_id", Value("string"), "A slice in the split 'train' of .* has no patient_id"),
            ("has_lesion", Value("bool"), "has_lesion of the split 'train' .* but holds None"),
            ("has_lesion", Value("int32"), "has_lesion of the split 'train' .* but holds 0, 1. .* cast it to bool"),
        ],
        ids=["no patient", "no has_lesion", "numbers"],
    )
    def test_odd_columns_are_found_before_training(self, run, splits, tmp_path, streaming, column, values, message):
        """Numbers as `has_lesion` would give slices with a lesion among those without, too."""
        kept = list(splits["train"][column])
        kept = list(map(int, kept)) if values.dtype == "int32" else [None, *kept[1:]]
        odd = splits["train"].remove_columns(column).add_column(column, kept, feature=values)
        data = write_dataset({**splits, "train": odd}, tmp_path / "data")
        with pytest.raises(SystemExit, match=message):
            run("--dataset", data, *streaming)

    def test_a_validation_split_without_a_lesion(self, run, splits, tmp_path):
        empty = splits["validation"].filter(lambda row: not row["has_lesion"])
        data = write_dataset({**splits, "validation": empty}, tmp_path / "data")
        with pytest.raises(SystemExit, match=r"No slice of the validation patients .* has a lesion"):
            run("--dataset", data)

    def test_batches_larger_than_the_dataset(self, run):
        with pytest.raises(SystemExit, match="fewer than one batch of 512"):
            run("--batch_size", "512")

    @pytest.fixture(autouse=True)
    def nothing_is_left(self, tmp_path):
        yield
        assert not (tmp_path / "run").exists()


class TestWeights:
    def test_starting_weights_of_another_architecture(self, run, monkeypatch, tmp_path):
        monkeypatch.setitem(PRESETS, "other", UNetConfig(hidden_sizes=[4, 6, 8], encoder_depths=[1, 1, 1]))
        source = run("--model", "other", "--epochs", "1", folder="source") / "best"
        with pytest.raises(SystemExit, match=r"^train\.py: error: .*source/best"):
            run("--init_from", str(source))
        assert not (tmp_path / "run").exists()

    def test_a_state_of_another_architecture_is_refused_and_kept(self, run, monkeypatch):
        folder = run("--epochs", "1")
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        monkeypatch.setitem(PRESETS, "tiny", UNetConfig(hidden_sizes=[4, 6], encoder_depths=[1, 1]))
        with pytest.raises(SystemExit, match=r"step_\d{8} cannot be loaded: .*another architecture"):
            run("--resume")
        assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    @pytest.mark.parametrize("file", ["scheduler.bin", "optimizer.bin", "random_states_0.pkl"])
    def test_a_state_of_which_a_power_cut_left_the_name(self, run, file):
        folder = run("--epochs", "2")
        *_, before, newest = sorted((folder / "checkpoints").iterdir())
        (newest / file).write_bytes(b"")
        with pytest.raises(SystemExit, match=rf"{newest.name} cannot be loaded: \w.*is damaged"):
            run("--resume")
        shutil.rmtree(newest)
        assert len(read_log(run("--resume"))) == 2
        assert before.exists()

    @pytest.mark.parametrize("name", ["args.json", "log.jsonl"])
    def test_lost_files_are_named(self, run, name):
        folder = run("--epochs", "1")
        (folder / name).unlink()
        with pytest.raises(SystemExit, match=rf"{re.escape(name)} is damaged or lost.*--init_from"):
            run("--epochs", "1", "--resume")
        assert not (folder / name).exists()

    def test_damaged_files_are_named(self, run):
        folder = run("--epochs", "1")
        for name, damaged in (("args.json", ""), ("args.json", "[]"), ("log.jsonl", '{"ep'), ("split.json", "{")):
            before = (folder / name).read_bytes()
            (folder / name).write_text(damaged)
            with pytest.raises(SystemExit, match=rf"{re.escape(name)} is damaged or lost.*--init_from"):
                run("--resume")
            (folder / name).write_bytes(before)

    def test_a_slice_that_cannot_be_decoded_ends_the_run_with_a_sentence(self, run, monkeypatch):
        def damaged(*_, **__):
            raise ValueError("Slice 2 is damaged.")

        def damaged_in_a_worker(*_):
            raise DamagedSlice("Caught in a worker process.\nTraceback:\nslice 2 is damaged")

        monkeypatch.setattr("training.loop.evaluate_split", damaged)
        with pytest.raises(SystemExit, match=r"^train\.py: error: Slice 2 is damaged\.$"):
            run(folder="validating")
        monkeypatch.setattr(TrainingSlices, "__getitem__", damaged_in_a_worker)
        with pytest.raises(SystemExit, match=r"^train\.py: error: slice 2 is damaged\. With --resume"):
            run(folder="training")

    def test_stopping_it_by_hand_says_how_to_go_on(self, run, monkeypatch):
        def stopped(*_, **__):
            raise KeyboardInterrupt

        run("--epochs", "1")
        monkeypatch.setattr("training.loop.evaluate_split", stopped)
        with pytest.raises(SystemExit, match=r"^train\.py: stopped\. With --resume, .* from step_\d{8}\.$"):
            run("--resume", "--epochs", "2")
        with pytest.raises(SystemExit, match=r"^train\.py: stopped\.$"):
            run(folder="new")

    def test_a_loss_that_is_not_finite_names_the_slices(self, run, tmp_path):
        with pytest.raises(SystemExit, match=r"the loss is (nan|inf).*not_finite\.json"):
            run("--learning_rate", "1e30", "--warmup_ratio", "0", "--max_grad_norm", "0", "--epochs", "6")
        slices = json.loads((tmp_path / "run" / "not_finite.json").read_text())["patient_id:slice_index"]
        assert len(set(slices)) == 4
        assert all(re.fullmatch(r"TCGA_PH_\d{4}_\d{8}:\d+", name) for name in slices)


@pytest.mark.usefixtures("capsys")  # pytest's own file of the output must not fill up
class TestFullDisk:
    """A limit on the size of files, which stops writing in the middle of one as a full disk does."""

    @pytest.fixture
    def run_with_files_up_to(self, run):
        def run_limited(size: int, *arguments: str) -> None:
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
            try:
                run(*arguments, figures=True)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

        run("--dry_run")  # what `datasets` writes lies in its cache from here on
        return run_limited

    @pytest.mark.parametrize(("size", "file"), [(500, "args.json"), (6000, "best"), (30_000, "(png|step_)")])
    def test_stops_and_goes_on_when_there_is_room(self, run_with_files_up_to, run, tmp_path, size, file):
        with pytest.raises(SystemExit, match=rf"{file}\S* cannot be written: .*Make room") as error:
            run_with_files_up_to(size)
        assert ("--resume" in error.value.code) == (tmp_path / "run" / "args.json").exists()
        assert isinstance(error.value.code, str)  # printed, and exits with 1
        files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
        assert not [path for path in files if "unfinished" in str(path) or path.name.startswith(".")]
        arguments = ["--resume"] if (tmp_path / "run" / "args.json").exists() else []
        assert read_log(run(*arguments))[-1]["epoch"] == 2

    def test_a_state_that_cannot_be_written_leaves_the_one_before(self, run_with_files_up_to, run):
        folder = run("--epochs", "1")
        (state,) = (folder / "checkpoints").iterdir()
        before = load_file(state / "model.safetensors").keys()
        with pytest.raises(SystemExit, match=f"--resume goes on from {state.name}"):
            run_with_files_up_to(6000, "--resume")
        assert [path.name for path in (folder / "checkpoints").iterdir()] == [state.name]
        assert load_file(state / "model.safetensors").keys() == before
        assert read_log(run("--resume"))[-1]["epoch"] == 2
