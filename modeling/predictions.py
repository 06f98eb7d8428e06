"""Predictions of many patients: kept on disk as they come, so that what was interrupted goes on where it stood."""

import hashlib
import json
import logging
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from transformers import BaseImageProcessor, PreTrainedModel

from .card_inputs import read_json
from .files import replacing, write_atomically
from .hub import weight_files
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


def weights_sha256(name_or_path: str) -> str:
    """SHA-256 of a checkpoint's model.safetensors as it is stored, of shards one after another in order of their names.

    Args:
        name_or_path: a saved model's folder, or its name on the Hub.

    Raises:
        OSError: no such model, or other weights than safetensors.
    """
    digest = hashlib.sha256()
    for path in weight_files(name_or_path):
        with path.open("rb") as file:
            while chunk := file.read(2**20):
                digest.update(chunk)
    return digest.hexdigest()


def read_record(folder: Path) -> dict:
    """What the predictions in a folder were made with, as it was recorded; {} where nothing was.

    Raises:
        ValueError: a damaged record.
    """
    record = folder / MADE_WITH
    try:
        return read_json(record) if record.exists() else {}
    except ValueError:
        raise ValueError(f"{record} is damaged. Delete {folder}, whose predictions may be of any model.") from None


def differences(one: dict, other: dict, prefix: str = "") -> list[str]:
    """The names, in sorted order, under which two records differ; of parts that are records, `part.name`."""
    found = []
    for key in sorted(one.keys() | other.keys()):
        parts = one.get(key), other.get(key)
        if all(isinstance(part, dict) for part in parts):
            found += differences(*parts, f"{prefix}{key}.")
        elif parts[0] != parts[1]:
            found.append(prefix + key)
    return found


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
        self.made_with = json.loads(json.dumps(made_with))
        if any(self.folder.glob("[!.]*.npz")):
            self._check()
        else:
            write_atomically(self.folder / MADE_WITH, json.dumps(made_with, indent=2).encode() + b"\n")

    @classmethod
    def open(cls, folder: str | os.PathLike) -> "PredictionStore":
        """The predictions in a folder, whatever made them.

        Raises:
            FileNotFoundError: there are none.
        """
        if not Path(folder, MADE_WITH).is_file():
            raise FileNotFoundError(f"{folder} holds no predictions; `evaluate.py --predictions {folder}` makes them.")
        return cls(folder, read_record(Path(folder)))

    def __contains__(self, name: str) -> bool:
        return self._path(name).exists()

    def holds(self, name: str, slices: np.ndarray) -> bool:
        """Whether the probabilities of this patient are there.

        Raises:
            ValueError: there are some of other slices under this name.
        """
        if name not in self:
            return False
        try:
            with np.load(self._path(name)) as file:
                volume = str(file["volume"])
                file["probabilities"]  # checks that they are whole
        except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error):
            logger.warning("%s is damaged; it is computed again.", self._path(name))
            return False
        if volume != volume_fingerprint(slices):
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
        """Keep probabilities (S, H, W) of these slices.

        Raises:
            ValueError: the folder was meanwhile begun with something else.
        """
        self._check()
        arrays = {"probabilities": probabilities, "volume": volume_fingerprint(slices)}
        with replacing(self._path(name)) as unfinished, unfinished.open("wb") as file:
            np.savez_compressed(file, **arrays)

    def _check(self) -> None:
        if differing := differences(read_record(self.folder), self.made_with):
            raise ValueError(
                f"{self.folder} holds predictions that were made with another {', '.join(differing)}. Choose another "
                f"folder, or delete this one."
            )

    def _path(self, name: str) -> Path:
        if name.startswith(".") or not name or Path(name).name != name:  # hidden files are those being written
            raise ValueError(f"A patient's name becomes that of a file that is not hidden, which {name!r} cannot.")
        return self.folder / f"{name}.npz"


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
