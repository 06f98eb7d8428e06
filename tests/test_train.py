"""train.py: a run's folder, going on with one, early stopping, and the real command."""

import argparse
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.utils import set_seed
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from PIL import Image
from safetensors.torch import load_file
from tiny_training import read_log
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

import train
from evaluate import evaluate_split
from hub_dataset.folds import write_splits
from hub_dataset.loading import load_splits
from modeling.card_inputs import read_run
from modeling.image_processing_brain_mri import FLAIR
from modeling.layers import Recomputing
from training import loop
from training.arguments import parse_args
from training.recipe import ema_update, image_size_at, make_optimizer, parse_stage
from training.run_folder import RunFolder

ROOT = Path(__file__).resolve().parent.parent


pytest_plugins = ["training_fixtures"]


@pytest.fixture
def optimizers(monkeypatch) -> list[torch.optim.Optimizer]:
    """Those of the runs of this test, in their order."""
    made, make = [], loop.make_optimizer
    monkeypatch.setattr(loop, "make_optimizer", lambda *args: made.append(make(*args)) or made[-1])
    return made


class TestRun:
    def test_folder_tells_everything(self, run, phantom_dataset_dir):
        folder = run(figures=True)
        rows = read_log(folder)
        assert [row["epoch"] for row in rows] == [1, 2]
        assert [row["image_size"] for row in rows] == [48, 64]
        assert all(math.isfinite(row["train_loss"]) and 0 <= row["validation_dice_mean"] <= 1 for row in rows)
        assert rows[-1]["validation_patients"] == 2
        arguments = json.loads((folder / "args.json").read_text())
        assert arguments["model"] == "tiny"
        assert arguments["image_size"] == [[0.0, 48], [0.5, 64]]
        splits = load_splits(str(phantom_dataset_dir))
        recorded = json.loads((folder / "split.json").read_text())
        assert {name: set(patients) for name, patients in recorded.items()} == {
            name: set(split["patient_id"]) for name, split in splits.items()
        }
        for name in ("curves.png", "validation.png"):
            assert (folder / name).read_bytes().startswith(b"\x89PNG")
        assert not list(folder.rglob("*unfinished*"))
        for name in ("best", "last"):
            model = AutoModelForSemanticSegmentation.from_pretrained(folder / name)
            processor = AutoImageProcessor.from_pretrained(folder / name)
            assert processor.size_divisor == model.config.size_divisor == 2
        assert json.loads((folder / "last" / "metrics.json").read_text())["epoch"] == 2

    def test_a_preset_with_another_configuration(self, run):
        folder = run("--epochs", "1", "--config", "hidden_sizes=[4, 6, 8]", "encoder_depths=[1, 2, 1]")
        config = AutoModelForSemanticSegmentation.from_pretrained(folder / "best").config
        assert (config.hidden_sizes, config.encoder_depths) == ([4, 6, 8], [1, 2, 1])
        assert AutoImageProcessor.from_pretrained(folder / "best").size_divisor == config.size_divisor == 4
        one_by_one = ["--config", "hidden_sizes=[4, 6, 8]", "--config", "encoder_depths=[1, 2, 1]"]
        run("--epochs", "1", *one_by_one, folder="same")

    def test_the_volumes_share_shapes_training_and_stays_with_the_model(self, run):
        options = ["--epochs", "1", "--loss", "bce"]
        folders = [run(*options, "--volume_share", share, folder=share) for share in ("0", "0.5")]
        shares = [AutoImageProcessor.from_pretrained(folder / "last").volume_share for folder in folders]
        assert shares == [0, 0.5]
        losses = [read_log(folder)[0]["train_loss"] for folder in folders]
        assert losses[0] != losses[1]

    def test_flair_alone_shapes_training_and_validation(self, run):
        every, flair = (run("--epochs", "1", "--channels", name, folder=name) for name in ("all", "flair"))
        for key in ("train_loss", "validation_dice_mean"):
            assert read_log(every)[0][key] != read_log(flair)[0][key]

    def test_grey_flair_trains_as_flair_in_every_channel(self, run, phantom_dataset_dir, tmp_path):
        splits = load_splits(str(phantom_dataset_dir))

        def grey(row: dict) -> dict:
            flair = np.asarray(row["image"])[..., FLAIR].copy()
            flair[:4] = flair[:, :4] = 0  # as much of a slice around the head is
            return {"image": Image.fromarray(flair)}

        def colour(row: dict) -> dict:
            return {"image": Image.fromarray(np.repeat(np.asarray(row["image"])[..., None], 3, axis=-1))}

        rows = []
        for name, change in (("grey", grey), ("colour", colour)):
            splits = splits.map(change)
            write_splits(splits, tmp_path / name)
            rows += read_log(run("--epochs", "1", "--dataset", str(tmp_path / name), folder=f"of_{name}"))
        for row in rows:
            del row["seconds"]
        assert rows[0] == rows[1]
        assert rows[0]["train_loss"] > 0.1

    def test_an_undefined_score_is_null_in_the_log(self, run, phantom_dataset_dir, tmp_path):
        splits = load_splits(str(phantom_dataset_dir))
        splits["validation"] = splits["validation"].filter(lambda row: row["has_lesion"])  # no empty slice
        write_splits(splits, tmp_path / "data")
        folder = run("--epochs", "1", "--dataset", str(tmp_path / "data"), figures=True)
        for path in (folder / "log.jsonl", folder / "best" / "metrics.json"):
            row = json.loads(path.read_text(), parse_constant=pytest.fail)
            assert row["validation_false_alarm_rate"] is None

    def test_logged_scores_are_those_of_the_models_that_are_kept(self, run, phantom_dataset_dir):
        folder = run("--epochs", "1")
        split, (row,) = load_splits(str(phantom_dataset_dir))["validation"], read_log(folder)
        for name in ("best", "last"):
            model = AutoModelForSemanticSegmentation.from_pretrained(folder / name)
            processor = AutoImageProcessor.from_pretrained(folder / name)
            result = evaluate_split(model, processor, split, hausdorff=False)
            dice = {patient.patient_id: patient.postprocessed.dice for patient in result.patients}
            assert row["validation_dice"] == dice, name
            assert row["validation_dice_mean"] == result.postprocessed.dice_mean != result.raw.dice_mean

    def test_each_epoch_draws_its_slices_anew(self, run):
        still = ("--learning_rate", "0", "--image_size", "48", "--validate_every", "2")
        first, second = read_log(run(*still))
        assert first["train_loss"] != second["train_loss"]

    def test_states_come_at_their_interval_and_seconds_count_once(self, run, monkeypatch):
        clock, loss = SimpleNamespace(now=0.0), loop.segmentation_loss

        def loss_after_a_minute(*arguments):
            clock.now += 60
            return loss(*arguments)

        monkeypatch.setattr(loop, "segmentation_loss", loss_after_a_minute)
        monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: clock.now))
        folder = run("--epochs", "1", "--checkpoint_minutes", "2.5", "--keep_checkpoints", "100")
        *between, last = (int(path.name.removeprefix("step_")) for path in sorted((folder / "checkpoints").iterdir()))
        assert len(between) > 1
        assert between == list(range(3, last, 3))
        assert read_log(folder)[-1]["seconds"] == 60 * last

    def test_training_lowers_the_loss(self, run):
        rows = read_log(run("--epochs", "6", "--learning_rate", "0.01", "--validate_every", "6", "--loss", "bce"))
        assert rows[-1]["train_loss"] < 0.7 * rows[0]["train_loss"]

    def test_gradient_checkpointing_trains_to_the_same_weights(self, run, monkeypatch):
        calls, recompute = [], Recomputing.recomputed
        monkeypatch.setattr(Recomputing, "recomputed", lambda *args: calls.append(1) or recompute(*args))
        expected = run("--epochs", "1", folder="expected") / "last" / "model.safetensors"
        assert not calls
        recomputed = (
            run("--epochs", "1", "--gradient_checkpointing", folder="recomputed") / "last" / "model.safetensors"
        )
        assert calls
        assert recomputed.read_bytes() == expected.read_bytes()

    def test_each_part_of_the_recipe_shapes_the_weights(self, run, monkeypatch):
        # Weights begin alike whatever the seed, which then draws slices and augmentation alone.
        for module in (train, loop):
            monkeypatch.setattr(module, "set_seed", lambda _, **options: set_seed(0, **options))
        common = ("--epochs", "1", "--optimizer", "sgd", "--loss", "bce")  # each step is as long as the gradient
        options = [(), ("--max_grad_norm", "0.001"), ("--warmup_ratio", "0.9"), ("--seed", "1"), ("--loss", "dice")]
        options += [("--augmentation", "0"), ("--empty_ratio", "0.5"), ("--ema_decay", "0")]
        folders = [run(*common, *changed, folder=f"of_{number}") for number, changed in enumerate(options)]
        assert len({(folder / "last" / "model.safetensors").read_bytes() for folder in folders}) == len(options)

    def test_schedule_and_average_take_a_step_where_gradients_are_applied(self, run, monkeypatch):
        moved, update = [], loop.AveragedModel.update_parameters
        monkeypatch.setattr(
            loop.AveragedModel, "update_parameters", lambda self, model: moved.append(1) or update(self, model)
        )
        folder = run("--epochs", "2", "--gradient_accumulation_steps", "3", "--warmup_ratio", "0.5")
        batches = int(min((folder / "checkpoints").iterdir()).name.removeprefix("step_"))
        assert len(moved) == 2 * math.ceil(batches / 3)
        rates = [row["learning_rate"] for row in read_log(folder)]
        assert rates == pytest.approx([0.001, 0], abs=1e-9), "at the end of warm-up, and of all"

    def test_only_the_newest_states_are_kept(self, run):
        folder = run("--checkpoint_minutes", "0", "--keep_checkpoints", "3")
        states = sorted(path.name for path in (folder / "checkpoints").iterdir())
        assert len(states) == 3
        batches = int(states[-1].removeprefix("step_"))
        assert states == [f"step_{step:08d}" for step in range(batches - 2, batches + 1)]

    def test_stops_early(self, run, monkeypatch):
        scores = iter([0.5, 0.6, 0.55, 0.6, 0.9])
        monkeypatch.setattr(loop, "validation_scores", lambda *_: {"validation_dice_mean": next(scores)})
        folder = run("--epochs", "10", "--patience", "2", "--validate_every", "2")
        assert [row.get("validation_dice_mean") for row in read_log(folder)][1::2] == [0.5, 0.6, 0.55, 0.6]
        assert json.loads((folder / "best" / "metrics.json").read_text())["epoch"] == 4

    def test_validates_every_nth_epoch_and_the_last(self, run):
        folder = run("--epochs", "3", "--validate_every", "2", figures=True)
        assert ["validation_dice_mean" in row for row in read_log(folder)] == [False, True, True]

    def test_does_not_end_at_an_epoch_that_was_not_validated(self, run):
        folder = run("--epochs", "3", "--validate_every", "3")
        shutil.rmtree(max((folder / "checkpoints").iterdir()))
        with pytest.raises(SystemExit, match=r"has 2 epochs already, and .* not validated.* Give --epochs over 2"):
            run("--epochs", "2", "--resume")
        assert len(read_log(folder)) == 3

    def test_starts_from_a_checkpoint_at_a_lower_rate(self, run, optimizers):
        source = run("--epochs", "1", folder="source") / "last"
        run("--epochs", "1", "--init_from", str(source), "--pretrained_lr_factor", "0.1", "--learning_rate", "0.01")
        assert {group["initial_lr"] for group in optimizers[-1].param_groups} == {0.001}


class TestResume:
    def test_what_others_put_into_the_folder_stays(self, run, tmp_path):
        (tmp_path / "run").mkdir()
        for name in (".notes.2024", ".machine.4711.args.json"):
            (tmp_path / "run" / name).write_text("mine")
        folder = run("--epochs", "1")
        assert (folder / ".notes.2024").read_text() == "mine"
        assert not (folder / ".machine.4711.args.json").exists(), "what a killed process was writing"

    def test_a_card_with_scores_is_published_as_it_is(self, run, monkeypatch):
        folder = run("--epochs", "1")
        monkeypatch.setattr(train, "publish_model", lambda *_, **__: "published")
        args = argparse.Namespace(hub_model_id="alice/model", hub_private_repo=False)
        train.publish(RunFolder(folder), args)
        card = folder / "best" / "README.md"
        written = card.read_text()
        assert "# U-Net" in written
        card.write_text(written + "of a former push")
        train.publish(RunFolder(folder), args)
        assert card.read_text() == written
        result = EvalResult("image-segmentation", "lgg", "LGG", "dice", 0.5)
        data = ModelCardData(model_name="mine", eval_results=[result])
        ModelCard(f"---\n{data.to_yaml()}\n---\nwith scores\n").save(card)
        train.publish(RunFolder(folder), args)
        assert card.read_text().endswith("with scores\n")

    def test_an_interrupted_save_is_passed_over(self, run):
        folder = run()
        (folder / "checkpoints" / "unfinished").mkdir()
        (folder / "best").rename(folder / "previous.best")  # killed while replacing it
        before = load_file(folder / "last" / "model.safetensors")
        run("--resume")
        after = load_file(folder / "last" / "model.safetensors")
        assert all(torch.equal(before[key], after[key]) for key in before)
        assert (folder / "best" / "model.safetensors").is_file()
        assert not [*folder.rglob("unfinished"), *folder.rglob("previous.*")]

    def test_a_row_that_was_logged_before_its_state_was_saved_is_written_anew(self, run):
        folder = run()
        before = read_log(folder)
        shutil.rmtree(max((folder / "checkpoints").iterdir()))
        after = read_log(run("--resume"))
        for row in (before[1], after[1]):
            del row["seconds"]
        assert after == before
        folder = run("--epochs", "1", folder="first")
        shutil.rmtree(folder / "checkpoints")
        assert len(read_log(run("--epochs", "1", "--resume", folder="first"))) == 1

    def test_a_run_that_has_stopped_early_stays_stopped(self, run, monkeypatch):
        monkeypatch.setattr(loop, "validation_scores", lambda *_: {"validation_dice_mean": 0.5})
        folder = run("--epochs", "3", "--patience", "1")
        assert len(read_log(run("--epochs", "3", "--patience", "1", "--resume"))) == 2
        assert json.loads((folder / "last" / "metrics.json").read_text())["epoch"] == 2

    def test_tells_which_arguments_changed(self, run, capsys):
        run("--epochs", "1")
        folder = run("--epochs", "2", "--resume")
        assert "epochs was 1 and is now 2" in capsys.readouterr().out
        run("--epochs", "2", "--resume")
        run("--epochs", "2", "--patience", "7", "--seed", "1", "--learning_rate", "0.5", "--resume")
        arguments = json.loads((folder / "args.json").read_text())
        assert arguments["epochs"] == 2
        assert arguments["changed_on_resume"] == [
            {"after_epochs": 1, "epochs": [1, 2]},
            {"after_epochs": 2, "patience": [0, 7], "seed": [0, 1], "learning_rate": [0.001, 0.5]},
        ]

    def test_goes_on_with_other_hyperparameters(self, run, optimizers):
        run("--epochs", "1", "--learning_rate", "0.01", "--weight_decay", "0.1")
        changed = ["--learning_rate", "0.002", "--weight_decay", "0.3", "--momentum", "0.7", "--beta2", "0.9"]
        resumed = read_log(run("--epochs", "3", "--resume", *changed))
        assert {group["weight_decay"] for group in optimizers[-1].param_groups} == {0, 0.3}
        assert {group["betas"] for group in optimizers[-1].param_groups} == {(0.7, 0.9)}
        never_stopped = read_log(run("--epochs", "3", *changed, folder="other"))
        assert [row["learning_rate"] for row in resumed[1:]] == [row["learning_rate"] for row in never_stopped[1:]]

    @pytest.mark.parametrize(("before", "after"), [("0.1", "0"), ("0", "0.1")])
    def test_goes_on_with_and_without_weight_decay(self, run, before, after):
        run("--epochs", "1", "--weight_decay", before)
        assert len(read_log(run("--epochs", "2", "--weight_decay", after, "--resume"))) == 2

    def test_the_launchers_precision_is_an_argument_as_others(self, run, monkeypatch, capsys):
        run("--epochs", "1")
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")  # as `accelerate launch --mixed_precision bf16`
        folder = run("--epochs", "1", "--resume")
        assert "mixed_precision was no and is now bf16" in capsys.readouterr().out
        assert read_run(folder).command.startswith("accelerate launch --mixed_precision bf16 train.py --model tiny")


class TestSchedule:
    def test_a_stage_starts_at_its_share_of_the_epochs_to_the_epoch(self):
        for percent, epochs in ((29, 100), (57, 100), (58, 50), (70, 90), (60, 12), (34, 5)):
            stages = [(0.0, 128), parse_stage(f"192@{percent}%")]
            sizes = [image_size_at(stages, epoch, epochs) for epoch in range(epochs)]
            assert sizes.index(192) == percent * epochs // 100, (percent, epochs)

    def test_stages_of_image_size(self):
        stages = [parse_stage(text) for text in ("128", "192@60%", "256@85%")]
        sizes = [image_size_at(stages, epoch, 20) for epoch in range(20)]
        assert sizes == [128] * 12 + [192] * 5 + [256] * 3
        needed = ["--model", "unet-5level", "--dataset", "data", "--output_dir", "run"]
        args = parse_args([*needed, "--image_size", "256@85%", "128", "192@60%"], "train")
        assert args.image_size == stages, "in whatever order they are given"

    def test_optimisers_and_their_groups(self):
        model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
        options = {
            "learning_rate": 0.1,
            "pretrained_lr_factor": 0.5,
            "weight_decay": 0.01,
            "momentum": 0.8,
            "beta2": 0.9,
        }
        sgd, still, adamw = (
            make_optimizer(model, {"0.weight"}, argparse.Namespace(**options | {"optimizer": name} | changed))
            for name, changed in (("sgd", {}), ("sgd", {"momentum": 0.0}), ("adamw", {}))
        )
        assert [(group["lr"], group["weight_decay"], len(group["params"])) for group in sgd.param_groups] == [
            (0.05, 0.01, 1),
            (0.1, 0.0, 3),
        ]
        assert [(found.defaults["momentum"], found.defaults["nesterov"]) for found in (sgd, still)] == [
            (0.8, True),
            (0.0, False),
        ]
        assert adamw.defaults["betas"] == (0.8, 0.9)

    def test_moving_average_warms_up_to_its_decay(self):
        update = ema_update(0.9)
        average = [torch.zeros(1), torch.zeros(1, dtype=torch.long)]
        update(average, [torch.ones(1), torch.full((1,), 7)], 0)
        assert average[0].item() == pytest.approx(0.9)  # decay (1 + 0) / (10 + 0)
        assert average[1].item() == 7
        update(average, [torch.zeros(1), torch.full((1,), 8)], 10_000)
        assert average[0].item() == pytest.approx(0.81)


def test_the_command_of_the_readme(phantom_dataset_dir, tmp_path):
    """A real launch of a real preset, with worker processes."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "train.py"]
    command += ["--model", "unet-5level", "--dataset", str(phantom_dataset_dir), "--output_dir", str(tmp_path / "run")]
    command += ["--image_size", "32", "--batch_size", "8", "--epochs", "1", "--num_workers", "1"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=600)
    assert result.returncode == 0, result.stderr
    assert "7,767,201 trainable parameters" in result.stdout
    assert (tmp_path / "run" / "best" / "model.safetensors").is_file()
