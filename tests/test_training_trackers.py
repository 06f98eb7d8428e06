"""--report_to: the numbers of a run arrive in a tracker, and one that is not installed is refused before training."""

import struct
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate import tracking
from accelerate.tracking import GeneralTracker
from accelerate.utils import LoggerType
from tensorboardX.proto.event_pb2 import Event
from tiny_training import read_log

from training.trackers import start_tracker

pytest_plugins = ["training_fixtures"]


def read_events(path: Path) -> Iterator[Event]:
    """Records of a file of TensorBoard: length (8 bytes), checksum (4), event, checksum (4)."""
    content = path.read_bytes()
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        yield Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]


def test_tensorboard_gets_every_step_and_every_validation(run):
    folder = run("--report_to", "tensorboard")
    (path,) = (folder / "tensorboard").glob("events.out.tfevents.*")
    scalars = {}
    for event in read_events(path):
        for value in event.summary.value:
            scalars.setdefault(value.tag, {})[event.step] = value.simple_value
    rows = read_log(folder)
    steps = len(scalars["loss"])
    assert list(scalars["loss"]) == list(range(1, steps + 1))
    first, second = (list(scalars["loss"].values())[part] for part in (slice(steps // 2), slice(steps // 2, None)))
    for losses, row in zip((first, second), rows, strict=True):
        assert sum(losses) / len(losses) == pytest.approx(row["train_loss"], rel=1e-5)
    assert scalars["validation_dice_mean"] == {
        step: pytest.approx(row["validation_dice_mean"], rel=1e-5)
        for step, row in zip((steps // 2, steps), rows, strict=True)
    }


class RecordingTracker(GeneralTracker):
    """Stands in for a service: keeps what it is given."""

    name = "trackio"
    requires_logging_directory = False
    main_process_only = True
    started: list["RecordingTracker"]

    def __init__(self, run_name: str, **settings):
        super().__init__()
        self.project, self.settings, self.config, self.steps = run_name, settings, {}, []
        self.finished = False
        self.started.append(self)

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values: dict) -> None:
        self.config |= values

    def log(self, values: dict, step: int | None = None, **_) -> None:
        self.steps.append(step)

    def finish(self) -> None:
        self.finished = True


def test_trackio_goes_on_with_the_same_run_on_resume(run, monkeypatch):
    monkeypatch.setattr(tracking, "_available_trackers", [LoggerType.TRACKIO])
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "trackio", RecordingTracker)
    monkeypatch.setattr(RecordingTracker, "started", [], raising=False)
    run("--report_to", "trackio", "--epochs", "1")
    run("--report_to", "trackio", "--epochs", "2", "--resume")
    first, second = RecordingTracker.started
    assert first.project == second.project == "lgg-segmentation"
    assert first.settings == second.settings == {"name": "run", "resume": "allow"}
    assert first.config["model"] == "tiny"
    assert first.config["learning_rate"] == 0.001
    assert first.finished
    assert second.finished
    assert second.steps[0] == first.steps[-1] + 1


def test_tensorboard_forgets_what_a_killed_process_logged_after_its_state(tmp_path):
    started = []
    accelerator = SimpleNamespace(init_trackers=lambda *_, init_kwargs, **__: started.append(init_kwargs))
    start_tracker(accelerator, Namespace(report_to="tensorboard", output_dir=tmp_path), 12)
    assert started[0]["tensorboard"] == {"purge_step": 13}  # the first step that is forgotten


@pytest.mark.parametrize("name", ["tensorboard", "trackio"])
def test_a_tracker_that_is_not_installed_is_refused_before_training(run, monkeypatch, capsys, tmp_path, name):
    monkeypatch.setattr(tracking, "_available_trackers", [])
    with pytest.raises(SystemExit, match="2"):
        run("--report_to", name)
    assert f"{name} is not installed. `pip install {name}`" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_nothing_is_reported_unless_asked_for(run, monkeypatch):
    monkeypatch.setattr(GeneralTracker, "__init__", lambda *_: pytest.fail("a tracker was started"))
    folder = run("--epochs", "1")
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"best", "last", "checkpoints"}
