"""A run's folder: complete states to go on from, models, the log; each replaced as a whole or left as it was."""

import argparse
import io
import json
import math
import os
import re
import shutil
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from accelerate import Accelerator
from filelock import FileLock, Timeout
from matplotlib.figure import Figure
from safetensors import SafetensorError
from transformers import PreTrainedModel

from evaluate import without_nan
from hub_dataset.streaming import first_line
from modeling import BrainMRIImageProcessor
from modeling.card_inputs import read_json, read_log
from modeling.files import write_atomically

# Arguments that must stay as they are on resume: the model, which weights were loaded, and what the schedule and the
# states count in.
FIXED = ("model", "config", "init_from", "optimizer", "batch_size", "gradient_accumulation_steps", "empty_ratio")
# What a killed process was writing: see `write_atomically`.
UNFINISHED = re.compile(r"\..*\.\d+\.((args|split|not_finite)\.json|log\.jsonl|(curves|validation)\.png)")
# Arguments that may differ on resume without a word: they do not shape the result.
HARMLESS = {
    *("resume", "output_dir", "num_workers", "low_memory", "checkpoint_minutes", "keep_checkpoints"),
    *("push_to_hub", "hub_model_id", "hub_private_repo", "report_to", "dry_run"),
}


class Progress:
    """Where the run stands; saved and loaded with each state."""

    def __init__(self, num_batches: int):
        self.num_batches = num_batches  # of an epoch
        self.epoch = 0  # epochs completed
        self.batch = 0  # batches of the current epoch completed
        self.loss_sum = 0.0  # over those batches
        self.seconds = 0.0  # spent training, over all sessions
        self.best_dice = -math.inf
        self.validations_since_best = 0

    def state_dict(self) -> dict:
        return vars(self).copy()

    def load_state_dict(self, state: dict) -> None:
        vars(self).update(state)


class RunFolder:
    """The folder of a run, which need not exist yet.

    Where something cannot be written, such as on a full disk, the process ends with a sentence that says so; what was
    there before stays as it was.
    """

    def __init__(self, path: Path):
        self.path = path
        self.checkpoints = path / "checkpoints"
        self._lock = FileLock(path / "lock", timeout=0)

    def check_start(self, args: argparse.Namespace) -> None:
        """End the process where a run cannot start here, or go on, before hours go into what the folder should hold."""
        self._check_place()
        if self.started and not (args.resume or args.dry_run):
            sys.exit(f"{self.path} already holds a run. Go on with --resume, or choose another --output_dir.")
        if args.resume and not self.arguments:
            if self.started:
                self._stop_at_damage(self.path / "args.json")
            sys.exit(f"--resume: {self.path} holds no run. Start it without --resume.")
        if args.resume and not self.states and len(self.read_log()) > 1:
            sys.exit(
                f"--resume: {self.path} holds a run, but none of its states in checkpoints/ to go on from. Choose "
                f"another --output_dir; `--init_from {self.path / 'best'}` starts from its weights."
            )

    def _check_place(self) -> None:
        there = next(path for path in (self.path, *self.path.absolute().parents) if path.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            reason = "may not be written" if there.is_dir() else "is a file"
            sys.exit(f"train.py: error: --output_dir {self.path}: {there} {reason}. Choose another --output_dir.")

    def lock(self) -> None:
        """Make the folder and keep other processes from training in it; ends this one where another does."""
        with self._writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire()
            except Timeout:
                sys.exit(f"train.py: error: another process trains in {self.path}. Choose another --output_dir.")

    def unlock(self) -> None:
        self._lock.release()

    @property
    def states(self) -> list[Path]:
        """Complete states, the newest last."""
        return sorted(self.checkpoints.glob("step_*"))

    @property
    def started(self) -> bool:
        """Whether there is anything of a run that a new one would overwrite."""
        return bool(self.states or self.read_log())

    @property
    def arguments(self) -> dict:
        """The recorded arguments of the run, empty before there are any."""
        return self._read_json("args.json") or {}

    def _read_json(self, name: str) -> dict | None:
        """The object in a file of the run, None where there is no such file; ends the process where it is damaged."""
        path = self.path / name
        try:
            return read_json(path) if path.is_file() else None
        except ValueError:
            self._stop_at_damage(path)

    def _stop_at_damage(self, path: Path) -> NoReturn:
        sys.exit(
            f"train.py: error: {path} is damaged or lost, so what the run was is not known. Choose another "
            f"--output_dir; `--init_from {self.path / 'best'}` starts from its weights."
        )

    def changed_arguments(self, args: argparse.Namespace) -> dict[str, tuple]:
        """Arguments that shape the result and differ from the recorded ones: name -> (before, now)."""
        before, now = self.arguments, json.loads(json.dumps(vars(args), default=str))
        names = [name for name in now if name in before and name not in HARMLESS and before[name] != now[name]]
        changed = {name: (before[name], now[name]) for name in names}
        start = changed.get("init_from", ())
        if None not in start and len(set(map(os.path.realpath, start))) == 1:  # another path to the same weights
            del changed["init_from"]
        return changed

    def check_arguments(self, args: argparse.Namespace) -> dict[str, tuple]:
        """`changed_arguments`; ends the process where one of them must stay as it was."""
        changed = self.changed_arguments(args)
        for name in filter(changed.__contains__, FIXED):
            before, now = changed[name]
            sys.exit(
                f"--resume: {self.path} holds a run of --{name} {before}, not of {now}. Give the same, or choose "
                f"another --output_dir; `--init_from {self.path / 'best'}` starts from its weights."
            )
        return changed

    def open(self, args: argparse.Namespace, after_epochs: int) -> None:
        """Make the folder, remove what a killed process left, and record the arguments with what changed in them."""
        changes = self.arguments.get("changed_on_resume", []) if args.resume else []
        if args.resume and (changed := self.changed_arguments(args)):
            changes.append({"after_epochs": after_epochs} | changed)
        with self._writing(self.path):
            self._tidy()
        self.write_json("args.json", vars(args) | {"output_dir": str(self.path), "changed_on_resume": changes})

    def _tidy(self) -> None:
        """Finish or undo what a killed process was replacing."""
        for file in self.path.iterdir():
            if UNFINISHED.fullmatch(file.name):
                file.unlink()
        for unfinished in (*self.path.glob("*.unfinished"), self.checkpoints / "unfinished"):
            shutil.rmtree(unfinished, ignore_errors=True)
        for previous in self.path.glob("previous.*"):
            final = self.path / previous.name.removeprefix("previous.")
            if final.exists():
                shutil.rmtree(previous)
            else:
                previous.rename(final)

    def read_log(self, epochs: float = math.inf) -> list[dict]:
        """Rows of the first `epochs` epochs, all of which must be there where a number is given.

        A killed process may have logged one more than its last state holds.
        """
        path = self.path / "log.jsonl"
        try:
            rows = [row for row in read_log(path) if row["epoch"] <= epochs] if path.exists() else []
        except ValueError:
            self._stop_at_damage(path)
        if len(rows) < epochs < math.inf:
            self._stop_at_damage(path)
        return rows

    def write_log(self, rows: list[dict]) -> None:
        self.write("log.jsonl", "".join(json.dumps(without_nan(row), allow_nan=False) + "\n" for row in rows).encode())

    def write_json(self, name: str, content: dict) -> None:
        self.write(name, json.dumps(content, indent=2, default=str).encode() + b"\n")

    def write_figure(self, name: str, figure: Figure) -> None:
        image = io.BytesIO()
        figure.savefig(image, format="png")
        self.write(name, image.getvalue())

    def write(self, name: str, content: bytes) -> None:
        with self._writing(self.path / name):
            write_atomically(self.path / name, content)

    def check_patients(self, patients: dict[str, list[str]]) -> None:
        """End the process where the run was trained on, or validated with, other patients than these of each split."""
        recorded = self._read_json("split.json") or patients
        if differing := [name for name in ("train", "validation") if recorded.get(name) != patients[name]]:
            sys.exit(
                f"--resume: the run in {self.path} has other patients in {' and '.join(differing)}, as its split.json "
                f"lists them. Give its own --dataset, --folds and --fold."
            )

    def load_state(self, accelerator: Accelerator) -> None:
        """Load the newest state; ends the process where it is damaged or belongs to other settings."""
        newest = self.states[-1]
        random_states = newest / f"random_states_{accelerator.process_index}.pkl"
        try:
            if random_states.exists() and not zipfile.is_zipfile(random_states):  # accelerate would pass over it
                raise ValueError(f"{random_states.name} is cut off")
            accelerator.load_state(str(newest))
        except Exception as error:  # the libraries raise whatever the damage leads to
            sys.exit(
                f"--resume: {newest} cannot be loaded: {first_line(error)}. It belongs to another architecture or "
                f"optimiser, or is damaged; without it, --resume goes on from the state before it."
            )
        if not random_states.exists():
            print(f"--resume: {newest.name} has no random numbers for process {accelerator.process_index}; new ones.")

    def save_state(self, accelerator: Accelerator, step: int, keep: int) -> None:
        """Write a complete state to checkpoints/step_N: under another name first, so that a kill loses only this save.

        All processes must call this, between optimiser steps: gradients that are being accumulated are not saved.
        """
        final, unfinished = self.checkpoints / f"step_{step:08d}", self.checkpoints / "unfinished"
        with self._writing(final, unfinished):
            if accelerator.is_main_process:
                shutil.rmtree(unfinished, ignore_errors=True)
            accelerator.wait_for_everyone()
            accelerator.save_state(str(unfinished))
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                replace_folder(unfinished, final)
                for old in self.states[:-keep]:
                    shutil.rmtree(old)

    def save_model(self, name: str, model: PreTrainedModel, processor: BrainMRIImageProcessor, metrics: dict) -> None:
        """Write model, processor and metrics.json for `from_pretrained`, replacing the folder as a whole."""
        unfinished = self.path / f"{name}.unfinished"
        with self._writing(self.path / name, unfinished):
            shutil.rmtree(unfinished, ignore_errors=True)
            model.save_pretrained(unfinished)
            processor.save_pretrained(unfinished)
            text = json.dumps(without_nan(metrics), indent=2, allow_nan=False)
            (unfinished / "metrics.json").write_text(text + "\n", encoding="utf-8")
            replace_folder(unfinished, self.path / name)

    @contextmanager
    def _writing(self, target: Path, unfinished: Path | None = None) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:  # a full disk, as the libraries report it
            if unfinished:
                shutil.rmtree(unfinished, ignore_errors=True)
            reason = first_line(error)
            then = "or choose another --output_dir"
            if self.arguments:
                then = f"--resume goes on from {self.states[-1].name if self.states else 'the start'}"
            sys.exit(f"train.py: error: {target} cannot be written: {reason}. Make room; {then}.")


def replace_folder(new: Path, final: Path) -> None:
    """Rename `new` to `final`; a folder of that name is out of the way first, and there is never half of one."""
    for path in new.rglob("*"):
        if path.is_file():
            with path.open("rb+") as file:  # Windows flushes no file that is open for reading alone
                os.fsync(file.fileno())  # else a power cut may leave the names without the content
    previous = final.with_name(f"previous.{final.name}")
    shutil.rmtree(previous, ignore_errors=True)
    if final.exists():
        final.rename(previous)
    new.rename(final)
    shutil.rmtree(previous, ignore_errors=True)
