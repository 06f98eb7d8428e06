"""Predictions of many patients: kept on disk as they come, so that what was interrupted goes on where it stood."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
from transformers import BaseImageProcessor, PreTrainedModel
from transformers.utils import cached_file

from .inference import predict_volume

logger = logging.getLogger(__name__)

MADE_WITH = "made_with.json"
NO_MATTER = ("transformers_version", "architectures", "dtype")  # of a configuration, to what comes out


def model_fingerprint(model: PreTrainedModel) -> str:
    """SHA-256 of a model's configuration, parameters and statistics, as 64 hexadecimal digits."""
    config = {name: value for name, value in model.config.to_diff_dict().items() if name not in NO_MATTER}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(np.ascontiguousarray(tensor.detach().float().cpu().numpy()))
    return digest.hexdigest()


def volume_fingerprint(slices: np.ndarray) -> str:
    """SHA-256 of a volume's intensities, shape and dtype, as 64 hexadecimal digits."""
    digest = hashlib.sha256(f"{slices.dtype} {slices.shape}".encode())
    digest.update(np.ascontiguousarray(slices))
    return digest.hexdigest()


@lru_cache(maxsize=16)
def weights_sha256(name_or_path: str) -> str:
    """SHA-256 of a checkpoint's model.safetensors as it is stored, of shards one after another in order of their names.

    Args:
        name_or_path: a saved model's folder, or its name on the Hub.

    Raises:
        OSError: no such model, or other weights than safetensors.
    """
    names = ["model.safetensors"]
    if not cached_file(name_or_path, names[0], _raise_exceptions_for_missing_entries=False):
        index = json.loads(Path(cached_file(name_or_path, f"{names[0]}.index.json")).read_text())
        names = sorted(set(index["weight_map"].values()))
    digest = hashlib.sha256()
    for name in names:
        with Path(cached_file(name_or_path, name)).open("rb") as file:
            while chunk := file.read(2**20):
                digest.update(chunk)
    return digest.hexdigest()


class PredictionStore:
    """A folder with the lesion probabilities of one patient per file, all made by one model with the same options.

    `NAME.npz` holds `probabilities` (S, H, W) float32 and `volume`, the fingerprint of the slices that they were made
    of; `made_with.json` says what made them. A file is written under another name first, so that several processes,
    also of several machines on one file system, may fill the folder together, and an interruption leaves no half of a
    patient.

    Args:
        folder: made where it does not exist.
        made_with: whatever the probabilities depend on, as JSON types.

    Raises:
        ValueError: the folder holds predictions that were made with something else.
    """

    def __init__(self, folder: str | os.PathLike, made_with: dict):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        record = self.folder / MADE_WITH
        if not record.exists():
            self._replace(record, lambda file: file.write(json.dumps(made_with, indent=2).encode() + b"\n"))
        before = json.loads(record.read_text())
        if before != json.loads(json.dumps(made_with)):
            differing = sorted(key for key in before.keys() | made_with.keys() if before.get(key) != made_with.get(key))
            raise ValueError(
                f"{self.folder} holds predictions that were made with another {', '.join(differing)}. Choose another "
                f"folder, or delete this one."
            )

    @classmethod
    def open(cls, folder: str | os.PathLike) -> "PredictionStore":
        """The predictions in a folder, whatever made them.

        Raises:
            FileNotFoundError: there are none.
        """
        record = Path(folder, MADE_WITH)
        if not record.is_file():
            raise FileNotFoundError(f"{folder} holds no predictions; `evaluate.py --predictions {folder}` makes them.")
        return cls(folder, json.loads(record.read_text()))

    def __contains__(self, name: str) -> bool:
        return self._path(name).exists()

    def holds(self, name: str, slices: np.ndarray) -> bool:
        """Whether the probabilities of this patient are there.

        Raises:
            ValueError: there are some of other slices under this name.
        """
        if name not in self:
            return False
        with np.load(self._path(name)) as file:
            if str(file.get("volume")) != volume_fingerprint(slices):
                raise ValueError(
                    f"{self.folder} holds probabilities of other images under this name. Choose another folder, or "
                    f"delete its {name}.npz to have these computed instead."
                )
        return True

    def read(self, name: str) -> np.ndarray:
        """(S, H, W) float32 probabilities."""
        with np.load(self._path(name)) as file:
            return file["probabilities"]

    def write(self, name: str, probabilities: np.ndarray, slices: np.ndarray) -> None:
        """Keep probabilities (S, H, W) of these slices."""
        arrays = {"probabilities": probabilities, "volume": volume_fingerprint(slices)}
        self._replace(self._path(name), lambda file: np.savez_compressed(file, **arrays))

    def _path(self, name: str) -> Path:
        if not name or Path(name).name != name:
            raise ValueError(f"A patient's name becomes that of a file, which {name!r} cannot.")
        return self.folder / f"{name}.npz"

    def _replace(self, path: Path, write: Callable) -> None:
        unfinished = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}")
        try:
            with unfinished.open("wb") as file:
                write(file)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)


def segment_dataset(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    volumes: Mapping[str, Callable[[], np.ndarray]],
    store: PredictionStore,
    *,
    process_index: int = 0,
    num_processes: int = 1,
    failures: dict[str, str] | None = None,
    finish: Callable[[str], None] | None = None,
    progress: Callable[[Iterable], Iterable] | None = None,
    **options,
) -> list[str]:
    """Predict many patients into `store`; those already there are not computed again.

    Args:
        volumes: name of each patient -> a function that reads the slices, an array that `predict_volume` takes; it is
            called when the patient's turn comes, so one patient at a time is in memory.
        process_index, num_processes: this process computes every `num_processes`-th patient, from the
            `process_index`-th; all processes together compute all.
        failures: patients that cannot be read, computed or finished are entered here, with the reason, and the others
            go on; without it the first one is raised.
        finish: called with the name of each patient that is in `store`, whether computed now or before.
        progress: wraps the iterable of this process's patients, such as `tqdm.tqdm`.
        options: go to `predict_volume`.

    Returns:
        The names of this process's patients that are done, sorted.

    Raises:
        ValueError: a patient that cannot be read or computed, or whose name in `store` has probabilities of other
            slices; with its name.
    """
    names, done = sorted(volumes)[process_index::num_processes], []
    for name in progress(names) if progress else names:
        try:
            slices = volumes[name]()
            if not store.holds(name, slices):
                store.write(name, predict_volume(model, processor, slices, **options), slices)
            if finish:
                finish(name)
        except (OSError, ValueError) as error:
            if failures is None:
                raise ValueError(f"{name}: {error}") from error
            failures[name] = str(error)
        except Exception as error:
            if failures is None:
                raise
            # Nobody foresaw it, but hours of other patients should not be lost to it.
            logger.exception("%s", name)
            failures[name] = f"{type(error).__name__}: {error}"
        else:
            done.append(name)
    return done
