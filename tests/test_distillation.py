"""train.py --teacher: a model learns from another."""

import pytest
import torch
from scipy.special import logit
from tiny_training import TINY_PRESETS, read_log
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from hub_dataset.loading import load_splits
from modeling import BrainMRIImageProcessor
from modeling.card_inputs import read_run
from modeling.card_text import describe_run
from training import loop

pytest_plugins = ["training_fixtures"]


PROBABILITY = 0.8


@pytest.fixture
def save_teacher(tmp_path):
    """Saves a checkpoint that gives every pixel `PROBABILITY`, of another architecture and with larger crops."""

    def save(**processor_options) -> str:
        torch.manual_seed(0)
        model = AutoModelForSemanticSegmentation.from_config(TINY_PRESETS["tiny-transunet"])
        (head,) = (module for module in model.head.modules() if isinstance(module, torch.nn.Conv2d))
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.constant_(head.bias, logit(PROBABILITY))
        model.save_pretrained(tmp_path / "teacher")
        processor = BrainMRIImageProcessor(size_divisor=model.config.size_divisor, **processor_options)
        processor.save_pretrained(tmp_path / "teacher")
        return str(tmp_path / "teacher")

    return save


def mean_probability(folder, dataset_dir) -> float:
    model = AutoModelForSemanticSegmentation.from_pretrained(folder / "last")
    processor = AutoImageProcessor.from_pretrained(folder / "last")
    rows = load_splits(str(dataset_dir))["validation"][4:8]
    with torch.no_grad():
        return model(**processor(images=rows["image"], return_tensors="pt")).logits.sigmoid().mean().item()


def test_the_teacher_alone_is_learnt_and_not_the_labels(run, save_teacher, phantom_dataset_dir):
    common = (
        "--epochs",
        "4",
        "--validate_every",
        "4",
        "--learning_rate",
        "0.02",
        "--loss",
        "bce",
        "--ema_decay",
        "0.9",
    )
    taught = run(*common, "--teacher", save_teacher(), "--teacher_weight", "1", folder="taught")
    assert mean_probability(taught, phantom_dataset_dir) == pytest.approx(PROBABILITY, abs=0.1)
    assert mean_probability(run(*common, folder="alone"), phantom_dataset_dir) < 0.5
    assert read_log(taught)[-1]["train_loss"] < 0.1 * read_log(taught)[0]["train_loss"]


def test_the_weight_shares_the_loss(run, save_teacher):
    teacher = ("--teacher", save_teacher())
    # Crops are the same in all, multiples of what the teacher takes, so one with next to no weight is as good as none.
    losses = {
        weight: read_log(
            run("--epochs", "1", "--learning_rate", "0", *teacher, "--teacher_weight", weight, folder=weight)
        )[0]["train_loss"]
        for weight in ("1e-9", "0.25", "1")
    }
    difference = losses["1"] - losses["1e-9"]
    assert abs(difference) > 0.1
    assert losses["0.25"] == pytest.approx(losses["1e-9"] + 0.25 * difference, rel=1e-4)


def test_a_run_tells_of_its_teacher(run, save_teacher, monkeypatch):
    sides, logits = set(), loop.teacher_logits

    def spy(teacher, pixel_values, accelerator):
        sides.update(side % teacher.config.size_divisor for side in pixel_values.shape[-2:])
        return logits(teacher, pixel_values, accelerator)

    monkeypatch.setattr(loop, "teacher_logits", spy)
    taught = read_run(run("--epochs", "1", "--teacher", save_teacher()))
    assert sides == {0}, "crops are such as the teacher takes"
    assert "--teacher_weight 0.7" in taught.command
    assert "A share of 0.7 of the loss is distillation" in " ".join(describe_run(taught, [taught]).split())
    alone = read_run(run("--epochs", "1", folder="alone"))
    assert "teacher" not in alone.command + describe_run(alone, [alone])


def test_a_dry_run_tells_what_it_leaves_out(run, save_teacher, capsys):
    run("--dry_run", "--teacher", save_teacher())
    assert "the teacher's own, and its memory, are not counted; its time is" in capsys.readouterr().out
    run("--dry_run")
    assert "teacher" not in capsys.readouterr().out


class TestRefusals:
    @pytest.fixture(autouse=True)
    def nothing_is_left(self, tmp_path):
        yield
        assert not (tmp_path / "run").exists()

    def test_a_teacher_that_is_not_there(self, run, tmp_path):
        with pytest.raises(SystemExit, match=r"^train\.py: error: The checkpoint '.*nowhere' cannot be loaded; "):
            run("--teacher", str(tmp_path / "nowhere"))

    def test_a_teacher_of_other_slices(self, run, save_teacher):
        with pytest.raises(SystemExit, match=r"does not take the slices of this model: it has clip 3\.0, not "):
            run("--teacher", save_teacher(clip=3.0))
        with pytest.raises(SystemExit, match=r"it has volume_share 0\.25, not 0\.5"):
            run("--teacher", save_teacher(volume_share=0.25))
