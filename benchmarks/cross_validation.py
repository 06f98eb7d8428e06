"""All patients of train and validation, each scored by the model of the fold that did not train on it.

    accelerate launch train.py --folds 4 --fold 0 --output_dir runs/fold0 --dataset data/lgg ...    # and on to --fold 3
    python -m benchmarks.cross_validation --dataset data/lgg --predictions predictions/folds runs/fold*

Takes the last weights of every fold that has finished, which no score chose. Predictions are kept, so that what was
interrupted goes on where it stood. Prints tables in Markdown, for all channels and for FLAIR alone:

- scores before post-processing, with outlines as the threshold found them, and with outlines extended (the default);
  with `--views`, also with slices averaged over so many views (`modeling.inference.predict_volume`), extended;
  the last column is the difference from the default, patient by patient, with its 95 % interval;
- Dice by default of each fold's patients, of those of the dataset's own `train` and `validation`, of each institution,
  and of the patients in three equal groups by the volume of the lesion, as the reader outlined it.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from datasets import DatasetDict
from tqdm import tqdm

from evaluate import CHANNELS, PatientResult, evaluate_split
from hub_dataset.folds import split_by_fold
from hub_dataset.loading import load_splits
from hub_dataset.splits import institution_of
from modeling.card_inputs import TrainingRun
from modeling.command_line import command_parser
from modeling.inference import load_model
from modeling.metrics import VolumeScores
from modeling.predictions import PredictionStore, model_fingerprint
from modeling.views import VIEWS
from training.folds import read_folds

from .tables import SCORES, mean_and_interval, score_cells, table

DEFAULT = "outlines extended (the default)"
NAMES = {"all": "all three", "flair": "FLAIR alone"}


def score_fold(
    run: TrainingRun, splits: DatasetDict, folder: Path, views: Sequence[int] = ()
) -> dict[tuple[str, str], dict[str, VolumeScores]]:
    """`(channels, variant) -> patient -> scores` of the patients that a run was validated on.

    Args:
        folder: where predictions are kept.
        views: also score slices averaged over so many views.

    Raises:
        ValueError: the dataset deals other patients to the fold than the run had.
    """
    own = split_by_fold(splits, run.arguments["folds"], run.arguments["fold"])["validation"]
    if sorted(set(own["patient_id"])) != sorted(run.split["validation"]):
        raise ValueError(f"{run.path} was validated on other patients than the dataset has in this fold. Give its own.")
    model, processor = load_model(run.path / "last")
    fingerprint = model_fingerprint(model)

    def score(channels: str, number: int, extend: bool) -> list[PatientResult]:
        made_with = {"model": fingerprint, "processor": processor.to_dict(), "channels": channels, "views": number}
        name = f"fold{run.arguments['fold']}-{channels}" + (f"-{number}-views" if number > 1 else "")
        return evaluate_split(
            model,
            processor,
            own,
            channels=channels,
            views=number,
            extend=extend,
            hausdorff=False,
            predictions=PredictionStore(folder / name, made_with),
            progress=partial(tqdm, desc=f"{run.path}, {NAMES[channels]}, views: {number}", unit="patient"),
        ).patients

    scores = {}
    variants = {1: DEFAULT} | {number: f"{number} views averaged, extended" for number in views}
    for channels in CHANNELS:
        as_found = score(channels, 1, extend=False)
        scores[channels, "none"] = {patient.patient_id: patient.raw for patient in as_found}
        scores[channels, "outlines as found"] = {patient.patient_id: patient.postprocessed for patient in as_found}
        for number, name in variants.items():
            extended = score(channels, number, extend=True)
            scores[channels, name] = {patient.patient_id: patient.postprocessed for patient in extended}
    return scores


def lesion_voxels(score: VolumeScores) -> int:
    return score.counts.tp + score.counts.fn


def groups_of(
    runs: Sequence[TrainingRun], splits: DatasetDict, scores: dict[str, VolumeScores]
) -> dict[str, Sequence[str]]:
    """Name of each group of patients -> its patients, those of `scores`."""
    groups = {f"fold {run.arguments['fold']}": run.split["validation"] for run in runs}
    for name in ("train", "validation"):
        groups[f"the dataset's `{name}`"] = sorted(scores.keys() & set(splits[name]["patient_id"]))
    for institution in sorted(set(map(institution_of, scores))):
        groups[f"institution {institution}"] = [name for name in scores if institution_of(name) == institution]
    by_volume = sorted(scores, key=lambda name: lesion_voxels(scores[name]))
    for third in filter(len, np.array_split(by_volume, 3)):
        smallest, largest = (lesion_voxels(scores[third[end]]) for end in (0, -1))
        groups[f"lesions of {smallest:,} to {largest:,} voxels"] = third.tolist()
    return groups


def main(argv: Sequence[str] | None = None) -> None:
    parser = command_parser(__doc__, "benchmarks.cross_validation")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of train.py --folds")
    parser.add_argument("--dataset", required=True, help="what the runs were trained on: a folder, or USER/NAME")
    parser.add_argument("--predictions", required=True, type=Path, help="folder to keep probabilities in")
    parser.add_argument(
        "--views",
        nargs="+",
        type=int,
        choices=range(2, len(VIEWS) + 1),
        default=[],
        help="also average over so many views, see evaluate.py",
    )
    args = parser.parse_args(argv)
    try:
        runs, unfinished = read_folds(args.runs)
        splits = load_splits(args.dataset)
        scores: dict[tuple[str, str], dict[str, VolumeScores]] = {}
        for run in runs:
            for row, of in score_fold(run, splits, args.predictions, args.views).items():
                scores.setdefault(row, {}).update(of)
    except (OSError, ValueError) as error:
        sys.exit(f"benchmarks.cross_validation: error: {error}")

    default = {channels: scores[channels, DEFAULT] for channels in CHANNELS}
    patients = default["all"]
    slices = sum(score.lesion_slices + score.empty_slices for score in patients.values())
    print(f"{len(patients)} patients of {len(runs)} of {runs[0].arguments['folds']} folds, {slices:,} slices\n")
    if unfinished:
        print(f"not finished: {', '.join(str(run.path) for run in unfinished)}\n")
    rows = [
        [NAMES[channels], variant, *score_cells(list(of.values()), list(default[channels].values()))]
        for (channels, variant), of in scores.items()
    ]
    print(table(["channels", "post-processing", *SCORES], rows))
    rows = []
    for group, members in filter(lambda item: item[1], groups_of(runs, splits, patients).items()):
        dice = [[of[member].dice for member in members] for of in default.values()]
        cells = [cell for values in dice for cell in (mean_and_interval(values), f"{np.nanmedian(values):.3f}")]
        rows.append([group, str(len(members)), *cells])
    header = [f"{NAMES[channels]}, {what}" for channels in CHANNELS for what in ("mean (95 % CI)", "median")]
    print(table(["patients", "number", *header], rows))


if __name__ == "__main__":
    main()
