"""What a model card is made from: evaluate.py's results and the folders of train.py's runs, read and checked."""

import json
import math
import re
import shlex
from dataclasses import dataclass, fields
from pathlib import Path

PHANTOM_PATIENT = re.compile(r"TCGA_PH_\d{4}_\d{8}")  # as hub_dataset.phantom names generated patients
LGG_PATIENT = re.compile(r"TCGA_(?!PH)\w{2}_\w{4}_\d{8}")


@dataclass(frozen=True)
class ImageSource:
    """Where images come from: a name for people, the identifier for `model-index`, and the licence (None: unknown)."""

    name: str
    identifier: str
    license: str | None


LGG = ImageSource("LGG MRI segmentation", "mateuszbuda/lgg-mri-segmentation", "cc-by-nc-sa-4.0")
PHANTOM = ImageSource("Brain MR phantom", "brain-mr-phantom", "apache-2.0")


def source_of(patient_ids: list[str], dataset: str) -> ImageSource:
    """The source of these patients' images, told by their names; `dataset` is where they were loaded from."""
    for pattern, source in ((PHANTOM_PATIENT, PHANTOM), (LGG_PATIENT, LGG)):
        if patient_ids and all(pattern.fullmatch(str(patient_id)) for patient_id in patient_ids):  # it may be a number
            return source
    name = shorten_path(dataset)
    return ImageSource(name, name, None)


@dataclass(frozen=True)
class Results:
    """A JSON of evaluate.py; the fields are its keys, `path` the file. Undefined scores are None."""

    path: Path
    checkpoint: str
    model_type: str
    dataset: str
    split: str
    limit: int | None
    channels: str
    threshold: float
    postprocessing: dict
    command: str
    device: str
    versions: dict[str, str]
    summary: dict[str, dict]
    patients: list[dict]
    views: int = 1

    @property
    def patient_ids(self) -> list[str]:
        return [patient["patient_id"] for patient in self.patients]

    @property
    def source(self) -> ImageSource:
        return source_of(self.patient_ids, self.dataset)

    @property
    def figure(self) -> Path:
        """Where evaluate.py puts its figure; it shows patients, so a card may only have it of the phantom."""
        return self.path.with_suffix(".png")


def read_results(path: Path) -> Results:
    """Read a JSON of evaluate.py.

    Raises:
        OSError: no such file.
        ValueError: not such a JSON.
    """
    names = [field.name for field in fields(Results) if field.name != "path"]
    report = read_json(path)
    missing = [name for name in names if name not in report and not hasattr(Results, name)]
    if missing or not report["patients"]:
        raise ValueError(
            f"{path} is no result of evaluate.py: it lacks {', '.join(missing) or 'patients'}. "
            f"`python evaluate.py --checkpoint DIR --dataset DIR --split validation --output {path}` writes one."
        )
    return Results(path=path, **{name: report[name] for name in names if name in report})


@dataclass(frozen=True)
class TrainingRun:
    """A folder of train.py: `arguments` of args.json, `split` name -> patients, `log` one dict per epoch."""

    path: Path
    arguments: dict
    split: dict[str, list[str]]
    log: list[dict]

    @property
    def source(self) -> ImageSource:
        return source_of(self.split["train"], self.arguments["dataset"])

    @property
    def seconds(self) -> float:
        return self.log[-1]["seconds"]

    @property
    def validated(self) -> list[dict]:
        """The epochs with a mean Dice of the validation patients."""
        return [row for row in self.log if row.get("validation_dice_mean") is not None]

    @property
    def best(self) -> dict | None:
        """The epoch with the highest mean Dice of the validation patients; None where none was validated."""
        return max(self.validated, key=lambda row: row["validation_dice_mean"], default=None)

    @property
    def start(self) -> str | None:
        """`--init_from`: where the first weights came from."""
        return self.arguments.get("init_from")

    @property
    def teacher(self) -> str | None:
        """`--teacher`: whose probabilities were learnt beside the labels."""
        return self.arguments.get("teacher")

    @property
    def changes(self) -> list:
        """What was changed when the run was resumed; where there is something, the command alone does not repeat it."""
        return self.arguments.get("changed_on_resume") or []

    @property
    def command(self) -> str:
        """The command with all of the run's arguments, also those left at their defaults."""
        mixed_precision = self.arguments.get("mixed_precision", "no")
        launcher = [] if mixed_precision == "no" else ["--mixed_precision", mixed_precision]
        words = ["accelerate", "launch", *launcher, "train.py"]
        for name, value in self.arguments.items():
            unset = value is None or value is False or value == {}
            if name not in ("resume", "changed_on_resume", "mixed_precision") and not unset:
                words += [f"--{name}", *argument_words(value)]
        return shlex.join(words)


def read_run(folder: Path) -> TrainingRun:
    """Read what train.py left in a run's folder.

    Raises:
        OSError: no such folder, or a file is missing.
        ValueError: a file is damaged, or no epoch was completed.
    """
    log = read_log(folder / "log.jsonl")
    if not log:
        raise ValueError(f"{folder} has completed no epoch yet; its log.jsonl is empty.")
    return TrainingRun(folder, read_json(folder / "args.json"), read_json(folder / "split.json"), log)


def read_json(path: Path) -> dict:
    """A JSON object. Raises `OSError` where there is no file, `ValueError` where it holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a JSON object.")
    return content


def read_log(path: Path) -> list[dict]:
    """The epochs of a log of train.py, each with its number in `epoch` and `seconds`, from the run's start.

    Raises:
        OSError: there is no file.
        ValueError: a line is damaged.
    """
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if all(is_number(row[key]) for row in rows for key in ("epoch", "seconds")):
            return rows
    except (ValueError, KeyError, TypeError, IndexError):
        pass
    raise ValueError(f"{path} is no log of train.py: every line of one has an epoch and its seconds, two numbers.")


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def argument_words(value) -> list[str]:
    """The words of a command line that give `value`.

    Pairs of a share and a size become stages, such as 192@60%, and a configuration's fields NAME=VALUE.
    """
    if value is True:
        return []
    if isinstance(value, dict):
        return [f"{name}={json.dumps(field)}" for name, field in value.items()]
    if not isinstance(value, list):
        return [str(value)]
    return [
        f"{item[1]}@{100 * item[0]:g}%" if item[0] else str(item[1]) if isinstance(item, list) else str(item)
        for item in value
    ]


def shorten_path(word: str) -> str:
    """An absolute path's last two parts, as the rest is the author's machine alone; anything else as it is."""
    return "/".join(Path(word).parts[-2:]) if Path(word).is_absolute() else word


def shorten_command(command: str) -> str:
    """A command whose absolute paths are shortened, also in `--option=PATH`."""
    words = (word.partition("=") if word.startswith("--") else (word, "", "") for word in shlex.split(command))
    return shlex.join(shorten_path(before) + equals + shorten_path(after) for before, equals, after in words)
