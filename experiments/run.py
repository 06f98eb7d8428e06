"""Small trainings at equal budgets, each with one thing changed, whose scores docs/results.md compares.

    python -m experiments.run --dataset data/lgg --output runs/experiments [--only baseline loss-dice ...]
    python -m experiments.report --output runs/experiments

Of the patients of `train` and `validation`, a quarter is held out, the first of four folds stratified by institution;
`test` is left alone. Nothing is chosen by those held out: each training ends after its epochs and its last weights are
scored. A training that was interrupted goes on, and one that is complete is not repeated.

The trainings that compare architectures take about as long as `baseline` does on two cores (with bf16, on AVX-512).
"""

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import DatasetDict, concatenate_datasets
from PIL import Image

from hub_dataset.folds import split_by_fold, write_splits
from hub_dataset.loading import load_splits
from hub_dataset.patients import group_by_patient
from modeling.brain_region import brain_region
from modeling.command_line import command_parser

ROOT = Path(__file__).resolve().parent.parent
FOLDS = 4
# Of post-processing, which extends no outline here: what the tables of docs/results.md were made with.
KEEP_FRACTION, MIN_VOXELS = 0.1, 50
SMALL = ("--image_size", "128", "--batch_size", "8", "--learning_rate", "1.5e-3")
TRANSUNET = ("--model", "transunet-small", "--init_from", "efficientnet-lite0", "--epochs", "5")
UNET_BCE = ("--model", "unet-5level", "--epochs", "4", "--loss", "bce")


@dataclass(frozen=True)
class Experiment:
    """A training: its options of train.py, the dataset's variant that it learns from, see `write_variants`, and the
    experiment whose last weights teach it, if any."""

    options: tuple[str, ...]
    variant: str = "by-patient"
    teacher: str | None = None


@dataclass(frozen=True)
class Score:
    """A model's scores: of which experiment, on the channels it is given, on the held-out slices of which variant."""

    experiment: str
    channels: str = "all"
    variant: str = "by-patient"

    @property
    def name(self) -> str:
        return f"{self.experiment}.{self.channels}.{self.variant}"


EXPERIMENTS = {
    "baseline": Experiment(TRANSUNET),
    "loss-dice": Experiment((*TRANSUNET, "--loss", "dice")),
    "loss-bce": Experiment((*TRANSUNET, "--loss", "bce")),
    "flair": Experiment((*TRANSUNET, "--channels", "flair")),
    "by-slice": Experiment(TRANSUNET, "by-slice"),
    "stripped": Experiment(TRANSUNET, "stripped"),
    "no-attention": Experiment((*TRANSUNET, "--config", "num_hidden_layers=0")),
    "unet-5level": Experiment(("--model", "unet-5level", "--epochs", "4")),
    "unet-4level": Experiment(("--model", "unet-4level", "--epochs", "2")),
    "unet-5level-bce": Experiment(UNET_BCE),
    "unet-5level-taught": Experiment(UNET_BCE, teacher="loss-bce"),
}
SCORES = (
    *(Score(name) for name, experiment in EXPERIMENTS.items() if experiment.variant == "by-patient"),
    Score("baseline", channels="flair"),
    Score("flair", channels="flair"),
    Score("baseline", variant="by-slice"),
    Score("by-slice", variant="by-slice"),
    Score("baseline", variant="stripped"),
    Score("stripped", variant="stripped"),
    Score("stripped"),
    Score("unet-5level-bce", channels="flair"),
    Score("unet-5level-taught", channels="flair"),
)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__, "experiments.run")
    parser.add_argument("--dataset", required=True, help="folder written by hub_dataset.build, or USER/NAME on the Hub")
    parser.add_argument("--output", required=True, type=Path, help="folder of the runs and results")
    parser.add_argument("--only", nargs="+", choices=list(EXPERIMENTS), default=list(EXPERIMENTS), metavar="NAME")
    parser.add_argument("--mixed_precision", choices=("no", "bf16"), default="no", help="of `accelerate launch`")
    return parser.parse_args(argv)


def by_slice(splits: DatasetDict, seed: int = 0) -> DatasetDict:
    """The split that leaks: neighbours of the slices that are scored are trained on.

    `validation` keeps the patients' even slices. Their odd ones go to `train`, which loses as many slices of its own,
    with and without a lesion, so that both variants train on equally many of each.
    """
    train, held_out = splits["train"], splits["validation"]
    even = np.asarray(held_out["slice_index"]) % 2 == 0
    generator = np.random.default_rng(seed)
    kept, added = np.ones(len(train), dtype=bool), np.zeros(len(held_out), dtype=bool)
    for lesion in (True, False):
        candidates = np.flatnonzero(~even & (np.asarray(held_out["has_lesion"]) == lesion))
        replaced = np.flatnonzero(np.asarray(train["has_lesion"]) == lesion)
        count = min(len(candidates), len(replaced))
        added[generator.choice(candidates, count, replace=False)] = True
        kept[generator.choice(replaced, count, replace=False)] = False
    leaking = concatenate_datasets([train.select(np.flatnonzero(kept)), held_out.select(np.flatnonzero(added))])
    return DatasetDict(train=leaking, validation=held_out.select(np.flatnonzero(even)))


def strip_skull(image: np.ndarray) -> np.ndarray:
    """A slice (H, W, 3), black outside its brain, see `brain_region`; one without FLAIR as it is."""
    brain = brain_region(image)
    return image * brain[..., None] if brain.any() else image


def stripped(splits: DatasetDict) -> DatasetDict:
    """The same slices without skull and scalp, see `strip_skull`."""
    return splits.map(
        lambda row: {"image": Image.fromarray(strip_skull(np.asarray(row["image"])))},
        features=splits["train"].features,
        keep_in_memory=True,
        load_from_cache_file=False,
        desc="skulls off",
    )


def write_variants(dataset: str, folder: Path) -> None:
    """The dataset's variants below `folder`: `by-patient`, and `by-slice` and `stripped`, see there.

    Raises:
        OSError: no such dataset, or the folder cannot be written.
        ValueError: a dataset that cannot be dealt, or another one than the variants there were made of.
    """
    splits = split_by_fold(load_splits(dataset), FOLDS, 0)
    by_patient = DatasetDict(train=splits["train"], validation=splits["validation"])
    kept = folder / "by-patient"
    if kept.exists() and slices_per_patient(load_splits(str(kept))) != slices_per_patient(by_patient):
        raise ValueError(
            f"{kept} was made of another dataset than {dataset}: its patients or their slices differ. Choose an empty "
            f"--output, or give the dataset that it was made of."
        )
    for name, change in (("by-patient", DatasetDict), ("by-slice", by_slice), ("stripped", stripped)):
        if not (folder / name).exists():
            write_splits(change(by_patient), folder / name)


def slices_per_patient(splits: DatasetDict) -> dict[str, dict[str, int]]:
    """Split -> patient -> number of slices."""
    return {
        name: {patient: len(rows) for patient, rows in group_by_patient(split).items()}
        for name, split in splits.items()
    }


def run(*command: str) -> None:
    """A Python command in the repository's root; the process ends where it fails."""
    print("python", *command, flush=True)
    if code := subprocess.run([sys.executable, *command], cwd=ROOT).returncode:
        sys.exit(f"experiments.run: error: exit code {code}. The same command goes on from here.")


def train(name: str, folder: Path, data: Path, mixed_precision: str) -> None:
    """Train an experiment to its end, from where it stood, and its teacher before it."""
    run_folder = folder / name
    if (run_folder / "last" / "model.safetensors").exists():
        return
    experiment = EXPERIMENTS[name]
    options = [*SMALL, *experiment.options, "--validate_every", "1000", "--volume_share", "0"]
    if experiment.teacher:
        train(experiment.teacher, folder, data, mixed_precision)
        options += ["--teacher", str(folder / experiment.teacher / "last")]
    options += ["--resume"] if (run_folder / "args.json").exists() else []
    launch = ["-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"]
    launch += ["--dynamo_backend", "no", "--mixed_precision", mixed_precision]
    run(*launch, "train.py", *options, "--dataset", str(data / experiment.variant), "--output_dir", str(run_folder))


def score(what: Score, folder: Path, data: Path) -> None:
    """Score an experiment's last weights on the held-out slices."""
    output = folder / "scores" / f"{what.name}.json"
    if output.exists():
        return
    options = ["--checkpoint", str(folder / what.experiment / "last"), "--dataset", str(data / what.variant)]
    options += ["--split", "validation", "--channels", what.channels, "--output", str(output)]
    options += ["--keep_fraction", str(KEEP_FRACTION), "--min_voxels", str(MIN_VOXELS), "--no_extend"]
    if what == Score(what.experiment):
        options += ["--predictions", str(folder / "predictions" / what.experiment)]
    run("evaluate.py", *options)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    folder = args.output.resolve()
    data = folder / "data"
    try:
        write_variants(args.dataset, data)
    except (OSError, ValueError) as error:
        sys.exit(f"experiments.run: error: {error}")
    for name in args.only:
        train(name, folder, data, args.mixed_precision)
        for what in SCORES:
            if what.experiment == name:
                score(what, folder, data)


if __name__ == "__main__":
    main()
