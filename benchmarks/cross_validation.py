"""All patients of train and validation, each scored by the model of the fold that did not train on it.

    accelerate launch train.py --folds 4 --fold 0 --output_dir runs/fold0 --dataset data/lgg ...    # and on to --fold 3
    python -m benchmarks.cross_validation --dataset data/lgg --predictions predictions/folds runs/fold*

Takes the last weights of every fold that has finished, which no score chose. Predictions are kept, so that what was
interrupted goes on where it stood. Prints tables in Markdown, for all channels and for FLAIR alone:

- scores before post-processing, with outlines as the threshold found them, and with outlines extended (the default);
  the last column is the difference from the default, patient by patient, with its 95 % interval;
- Dice by default of each fold's patients, of those of the dataset's own `train` and `validation`, of each institution,
  and of the patients in three equal groups by the volume of the lesion, as the reader outlined it.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from datasets import DatasetDict
from tqdm import tqdm

from evaluate import CHANNELS, evaluate_split
from hub_dataset.folds import split_by_fold
from hub_dataset.loading import load_splits
from hub_dataset.splits import institution_of
from modeling.card_inputs import TrainingRun
from modeling.inference import load_model
from modeling.metrics import VolumeScores, bootstrap_interval, summarize
from modeling.predictions import PredictionStore, weights_fingerprint
from training.folds import read_folds

from .error_analysis import table

DEFAULT = "outlines extended (the default)"
NAMES = {"all": "all three", "flair": "FLAIR alone"}
VARIANTS = ("none", "outlines as found", DEFAULT)


def score_fold(
    run: TrainingRun, splits: DatasetDict, folder: Path, channels: str
) -> dict[str, dict[str, VolumeScores]]:
    """`variant -> patient -> scores` of the patients that a run was validated on.

    Raises:
        ValueError: the dataset deals other patients to the fold than the run had.
    """
    own = split_by_fold(splits, run.arguments["folds"], run.arguments["fold"])["validation"]
    if sorted(set(own["patient_id"])) != sorted(run.split["validation"]):
        raise ValueError(f"{run.path} was validated on other patients than the dataset has in this fold. Give its own.")
    model, processor = load_model(run.path / "last")
    made_with = {"weights": weights_fingerprint(model), "processor": processor.to_dict(), "channels": channels}
    store = PredictionStore(folder / f"fold{run.arguments['fold']}-{channels}", made_with)
    progress = partial(tqdm, desc=f"{run.path}, {NAMES[channels]}", unit="patient")
    scores = partial(
        evaluate_split, model, processor, own, channels=channels, hausdorff=False, predictions=store, progress=progress
    )
    as_found, extended = scores(extend=False).patients, scores(extend=True).patients
    return {
        "none": {patient.patient_id: patient.raw for patient in as_found},
        "outlines as found": {patient.patient_id: patient.postprocessed for patient in as_found},
        DEFAULT: {patient.patient_id: patient.postprocessed for patient in extended},
    }


def score_row(channels: str, variant: str, scores: dict[str, VolumeScores], default: dict[str, VolumeScores]) -> list:
    summary = summarize(list(scores.values()))
    change = np.array([score.dice - default[patient].dice for patient, score in scores.items()])
    return [
        NAMES[channels],
        variant,
        "{:.3f} ({:.3f} to {:.3f})".format(summary.dice_mean, *summary.dice_interval),
        f"{summary.dice_median:.3f}",
        f"{summary.lesion_slice_dice:.3f}",
        f"{100 * summary.false_alarm_rate:.1f} %",
        "{:+.3f} ({:+.3f} to {:+.3f})".format(np.nanmean(change), *bootstrap_interval(change)),
    ]


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


def group_row(name: str, patients: Sequence[str], scores: dict[str, dict[str, VolumeScores]]) -> list[str]:
    cells = []
    for of in scores.values():
        summary = summarize([of[patient] for patient in patients])
        interval = " ({:.3f} to {:.3f})".format(*summary.dice_interval) if len(patients) > 1 else ""
        cells += [f"{summary.dice_mean:.3f}{interval}", f"{summary.dice_median:.3f}"]
    return [name, str(len(patients)), *cells]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of train.py --folds")
    parser.add_argument("--dataset", required=True, help="what the runs were trained on: a folder, or USER/NAME")
    parser.add_argument("--predictions", required=True, type=Path, help="folder to keep probabilities in")
    args = parser.parse_args(argv)
    try:
        runs, unfinished = read_folds(args.runs)
        if not runs:
            raise ValueError(f"None of {', '.join(map(str, args.runs))} has finished; train.py --resume goes on.")
        splits = load_splits(args.dataset)
        scores: dict[str, dict[str, dict[str, VolumeScores]]] = {}
        for channels in CHANNELS:
            scores[channels] = {variant: {} for variant in VARIANTS}
            for run in runs:
                for variant, of in score_fold(run, splits, args.predictions, channels).items():
                    scores[channels][variant] |= of
    except (OSError, ValueError) as error:
        sys.exit(f"benchmarks.cross_validation: error: {error}")

    default = {channels: of[DEFAULT] for channels, of in scores.items()}
    patients = default["all"]
    slices = sum(score.lesion_slices + score.empty_slices for score in patients.values())
    print(f"{len(patients)} patients of {len(runs)} of {runs[0].arguments['folds']} folds, {slices:,} slices\n")
    if unfinished:
        print(f"not finished: {', '.join(str(run.path) for run in unfinished)}\n")
    header = ["channels", "post-processing", "Dice per patient, mean (95 % CI)", "median", "lesion slices"]
    rows = [
        score_row(channels, variant, scores[channels][variant], default[channels])
        for channels in scores
        for variant in VARIANTS
    ]
    print(table([*header, "false alarms", "mean against the default"], rows))
    header = [f"{NAMES[channels]}, {what}" for channels in scores for what in ("mean (95 % CI)", "median")]
    groups = groups_of(runs, splits, patients)
    print(table(["patients", "number", *header], [group_row(*group, default) for group in groups.items() if group[1]]))


if __name__ == "__main__":
    main()
