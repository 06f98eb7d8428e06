"""Score a checkpoint on one split of the dataset, patient by patient, with and without 3-D post-processing.

    python evaluate.py --checkpoint checkpoints/unet-5level --dataset USER/NAME --split test --output results.json
    python evaluate.py --checkpoint RUN/best --dataset DIR --split validation --channels flair --output flair.json
    accelerate launch evaluate.py --checkpoint RUN/best --dataset DIR --predictions predictions --output results.json

Prints a table and writes the results as JSON, with a figure beside it (results.png): Dice of each patient, and the
slices that went worst and best. All scores of a patient come from one prediction of the whole volume; an undefined
score is null (see `modeling.metrics`). Under `accelerate launch`, the processes share the patients. With
`--predictions` the probabilities of each patient are kept in a folder as they come; the same command then goes on where
it was stopped.
"""

import argparse
import importlib.metadata
import io
import json
import math
import platform
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from tqdm import tqdm
from transformers import BaseImageProcessor, PreTrainedModel

from hub_dataset.loading import load_split
from hub_dataset.patients import COLUMNS, Patient, group_by_patient, read_patient
from modeling.command_line import command_parser, whole_number
from modeling.commands import add_inference_arguments, load_checkpoint
from modeling.cores import use_cores
from modeling.files import write_atomically
from modeling.inference import predict_volume
from modeling.metrics import Summary, VolumeScores, score_volume, slice_dice, summarize
from modeling.postprocessing import (
    KEEP_FRACTION,
    MIN_VOXELS,
    check_component_limits,
    check_threshold,
    mask_from_probabilities,
)
from modeling.predictions import PredictionStore, model_fingerprint, segment_dataset
from modeling.visualization import new_figure, plot_dice_per_patient, slice_sheet

CHANNELS = ("all", "flair")
NUM_EXAMPLES = 3  # worst slices, and best slices, kept for the figure
VERSIONS_OF = ("accelerate", "datasets", "numpy", "scipy", "torch", "transformers")


@dataclass(frozen=True)
class PatientResult:
    patient_id: str
    raw: VolumeScores
    postprocessed: VolumeScores


@dataclass(frozen=True)
class SliceExample:
    """A slice with its post-processed prediction: `image` (H, W, 3) or (H, W), masks (H, W) bool."""

    patient_id: str
    slice_index: int
    dice: float
    wrong_pixels: int
    image: np.ndarray
    prediction: np.ndarray
    truth: np.ndarray

    @property
    def quality(self) -> tuple[float, int]:
        """Sorts slices from worst to best; of equal Dice, the one with more wrong pixels is worse."""
        return self.dice, -self.wrong_pixels


@dataclass(frozen=True)
class EvaluationResult:
    """Result of `evaluate_split`; `worst` and `best` hold at most one slice per patient, worst or best first."""

    patients: list[PatientResult]
    raw: Summary
    postprocessed: Summary
    worst: list[SliceExample]
    best: list[SliceExample]

    def to_dict(self) -> dict:
        """Summary and patients as JSON types; NaN becomes None."""
        return without_nan(
            {
                "num_patients": len(self.patients),
                "summary": {"raw": asdict(self.raw), "postprocessed": asdict(self.postprocessed)},
                "patients": [asdict(patient) for patient in self.patients],
            }
        )


def evaluate_split(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    dataset: Dataset,
    *,
    threshold: float = 0.5,
    batch_size: int = 1,
    views: int = 1,
    channels: str = "all",
    min_voxels: int = MIN_VOXELS,
    keep_fraction: float = KEEP_FRACTION,
    extend: bool = True,
    hausdorff: bool = True,
    limit: int | None = None,
    predictions: PredictionStore | None = None,
    progress: Callable[[Iterable], Iterable] | None = None,
) -> EvaluationResult:
    """Predict and score a split, holding one patient in memory at a time. The model's training mode is left as it was.

    Where accelerate runs several processes, all must call this; each scores its share of the patients, and all get the
    whole result.

    Args:
        model, processor: as from `modeling.inference.load_model`; the model may be on any device.
        dataset: one split with the columns `image`, `mask`, `patient_id` and `slice_index`, rows in any order.
        threshold: probability in (0, 1) from which a pixel counts as lesion.
        batch_size, views: as in `modeling.inference.predict_volume`.
        channels: `all`, or `flair` to give the model FLAIR alone, as all three channels.
        min_voxels, keep_fraction, extend: see `mask_from_probabilities`.
        hausdorff: whether HD95 is computed, the costliest of the scores.
        limit: score only this many patients, the first in order of their names; None scores all.
        predictions: where probabilities are kept, and taken from if they are there.
        progress: wraps the iterable of patients of the main process, such as `tqdm.tqdm`.

    Raises:
        ValueError: a column or a mask is missing, a slice comes twice, a patient's slices differ in size, no row, or an
            argument out of its range.
    """
    check_threshold(threshold)
    check_component_limits(min_voxels, keep_fraction)
    if channels not in CHANNELS:
        raise ValueError(f"channels must be one of {', '.join(CHANNELS)}, got {channels!r}.")
    for name, value in (("batch_size", batch_size), ("limit", limit)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    rows_of = group_by_patient(dataset)
    dataset = dataset.select_columns(list(COLUMNS))
    patient_ids = sorted(rows_of)[:limit]

    state = PartialState()
    own = patient_ids[state.process_index :: state.num_processes]

    scored, worst, best = [], [], []
    options = {"batch_size": batch_size, "views": views}
    was_training = model.training
    model.eval()
    try:
        for patient_id in progress(own) if progress and state.is_main_process else own:
            patient = read_patient(dataset, patient_id, rows_of[patient_id])
            slices = patient.slices_given(channels)
            if predictions is None:
                probabilities = predict_volume(model, processor, slices, **options)
            else:
                name = str(patient_id)  # which may be a number
                segment_dataset(model, processor, {name: partial(np.asarray, slices)}, predictions, **options)
                probabilities = predictions.read(name)
            raw = probabilities >= threshold
            cleaned = mask_from_probabilities(
                probabilities, threshold=threshold, min_voxels=min_voxels, keep_fraction=keep_fraction, extend=extend
            )
            scored.append(
                PatientResult(
                    patient_id=patient_id,
                    raw=score_volume(raw, patient.truth, hausdorff=hausdorff),
                    postprocessed=score_volume(cleaned, patient.truth, hausdorff=hausdorff),
                )
            )
            examples = worst_and_best(patient, cleaned)
            worst, best = keep_worst(worst + examples[-1:]), keep_best(best + examples[:1])
    finally:
        model.train(was_training)

    scored = sorted(gather_object(scored), key=lambda patient: patient.patient_id)
    return EvaluationResult(
        patients=scored,
        raw=summarize([patient.raw for patient in scored]),
        postprocessed=summarize([patient.postprocessed for patient in scored]),
        worst=keep_worst(gather_object(worst)),
        best=keep_best(gather_object(best)),
    )


def keep_worst(examples: list[SliceExample]) -> list[SliceExample]:
    return sorted(examples, key=lambda example: example.quality)[:NUM_EXAMPLES]


def keep_best(examples: list[SliceExample]) -> list[SliceExample]:
    return sorted(examples, key=lambda example: example.quality, reverse=True)[:NUM_EXAMPLES]


def worst_and_best(patient: Patient, prediction: np.ndarray) -> list[SliceExample]:
    """The patient's best and worst slice among those that have a Dice; empty if none has one.

    Slices of equal Dice, such as complete misses, are ordered by the number of wrong pixels.
    """
    dice = slice_dice(prediction, patient.truth)
    wrong = np.count_nonzero(prediction ^ patient.truth, axis=(1, 2))
    scored = sorted(np.flatnonzero(~np.isnan(dice)), key=lambda i: (-dice[i], wrong[i]))
    return [
        SliceExample(
            patient_id=patient.patient_id,
            slice_index=patient.slice_indices[i],
            dice=float(dice[i]),
            wrong_pixels=int(wrong[i]),
            # Copies: views would keep the whole volumes in memory.
            image=patient.slices[i].copy(),
            prediction=prediction[i].copy(),
            truth=patient.truth[i].copy(),
        )
        for i in (scored[:1] + scored[-1:])
    ]


def format_table(result: EvaluationResult) -> str:
    """The scores of each patient and of all, raw and post-processed, as text."""
    columns = (
        ("Dice", "dice", 3),
        ("IoU", "iou", 3),
        ("HD95 (px)", "hausdorff95", 1),
        ("slice Dice", "lesion_slice_dice", 3),
    )
    lines = [
        f"{'':22}{'slices':>14}" + "".join(f"{title:>17}" for title, *_ in (*columns, ("false alarms",))),
        f"{'patient':22}{'lesion':>7}{'empty':>7}" + f"{'raw':>10}{'post':>7}" * (len(columns) + 1),
    ]
    for patient in result.patients:
        raw, post = patient.raw, patient.postprocessed
        scores = [
            f"{_number(getattr(s, name), digits):>{w}}"
            for _, name, digits in columns
            for s, w in ((raw, 10), (post, 7))
        ]
        lines.append(
            f"{patient.patient_id:22}{raw.lesion_slices:7}{raw.empty_slices:7}{''.join(scores)}"
            f"{raw.false_alarms:10}{post.false_alarms:7}"
        )
    lines += ["", f"{len(result.patients)} patients, {result.raw.lesion_slices + result.raw.empty_slices} slices"]
    lines.append(f"{'':36}{'raw':>22}{'post-processed':>22}")
    for label, describe in (
        ("Dice, mean", lambda s: _number(s.dice_mean)),
        ("Dice, 95 % CI of the mean", lambda s: f"{_number(s.dice_interval.low)} to {_number(s.dice_interval.high)}"),
        ("Dice, median", lambda s: _number(s.dice_median)),
        ("IoU, mean", lambda s: _number(s.iou_mean)),
        ("precision, mean", lambda s: _number(s.precision_mean)),
        ("recall, mean", lambda s: _number(s.recall_mean)),
        ("HD95 in pixels, mean", lambda s: _number(s.hausdorff95_mean, 1)),
        ("HD95 in pixels, median", lambda s: _number(s.hausdorff95_median, 1)),
        ("patients with an HD95", lambda s: str(s.hausdorff95_patients)),
        ("Dice of slices with a lesion", lambda s: f"{_number(s.lesion_slice_dice)} ({s.lesion_slices} slices)"),
        (
            "false alarms on empty slices",
            lambda s: f"{_number(100 * s.false_alarm_rate, 1)} % ({s.false_alarms}/{s.empty_slices})",
        ),
    ):
        lines.append(f"{label:36}{describe(result.raw):>22}{describe(result.postprocessed):>22}")
    return "\n".join(lines)


def plot_result(result: EvaluationResult):
    """A figure: Dice of each patient, and the worst and best post-processed slices outlined over FLAIR."""
    sheet_height = 7.4  # inches, as `slice_sheet` has it for two rows of this width
    height = max(sheet_height, 1.3 + 0.2 * len(result.patients))
    figure = new_figure(15, height)
    left, right = figure.subfigures(1, 2, width_ratios=(6, 9))
    if height > sheet_height:
        right, _ = right.subfigures(2, 1, height_ratios=(sheet_height, height - sheet_height))
    plot_dice_per_patient(
        {patient.patient_id: patient.postprocessed.dice for patient in result.patients},
        interval=result.postprocessed.dice_interval,
        baseline={patient.patient_id: patient.raw.dice for patient in result.patients},
        figure=left,
    )
    if result.worst:
        examples = [(name, example) for name in ("worst", "best") for example in getattr(result, name)]
        slice_sheet(
            [example.image for _, example in examples],
            [example.prediction for _, example in examples],
            [example.truth for _, example in examples],
            [f"{name}: {e.patient_id}\nslice {e.slice_index}, Dice {e.dice:.3f}" for name, e in examples],
            columns=len(result.worst),
            figure=right,
        )
    return figure


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument("--checkpoint", required=True, help="a saved model's folder, or USER/NAME on the Hub")
    parser.add_argument("--dataset", required=True, help="folder written by hub_dataset.build, or USER/NAME on the Hub")
    parser.add_argument("--split", default="validation", help="train, validation or test")
    parser.add_argument("--output", required=True, type=Path, metavar="JSON", help="results; the figure lies beside it")
    parser.add_argument("--channels", choices=CHANNELS, default="all", help="flair: give FLAIR as all three channels")
    add_inference_arguments(parser)
    parser.add_argument(
        "--volume_share",
        type=float,
        metavar="SHARE",
        help="weight of a patient's median and spread beside the slice's own in normalisation, 0 to 1 (default: the "
        "processor's)",
    )
    parser.add_argument(
        "--min_voxels", type=whole_number(0), default=MIN_VOXELS, help="post-processing: smallest component, 0 is off"
    )
    parser.add_argument(
        "--keep_fraction",
        type=float,
        default=KEEP_FRACTION,
        help="post-processing: smallest component as a fraction of the largest, 0 is off",
    )
    parser.add_argument(
        "--no_extend", action="store_true", help="post-processing: leave outlines at the threshold that found them"
    )
    parser.add_argument("--limit", type=whole_number(1), metavar="N", help="score the first N patients only")
    parser.add_argument("--predictions", type=Path, metavar="DIR", help="keep probabilities here, and go on with those")
    parser.add_argument("--no_figure", action="store_true", help="write the JSON only")
    args = parser.parse_args(argv)
    if args.output.suffix != ".json" or args.output.is_dir():
        parser.error(f"--output must name a .json file, got {args.output}")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    try:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        split = load_split(args.dataset, args.split)
        model, processor = load_checkpoint(args.checkpoint, args.engine)
        if args.volume_share is not None:
            processor.volume_share = args.volume_share
        # Processes on CPUs find each other only if this is said, and one may be done long before the others.
        state = PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=1))
        use_cores(state.num_processes)
        if args.engine == "torch":
            model.to(state.device)
        predictions = None
        if args.predictions:
            # Neither device nor engine, which change no more than the rounding.
            made_with = {
                "model": model_fingerprint(model),
                "processor": processor.to_dict(),
                "channels": args.channels,
                "views": args.views,
                "batch_size": args.batch_size,  # slices of a batch share a window
            }
            predictions = PredictionStore(args.predictions, made_with)
        result = evaluate_split(
            model,
            processor,
            split,
            threshold=args.threshold,
            batch_size=args.batch_size,
            views=args.views,
            channels=args.channels,
            min_voxels=args.min_voxels,
            keep_fraction=args.keep_fraction,
            extend=not args.no_extend,
            limit=args.limit,
            predictions=predictions,
            progress=partial(tqdm, desc=args.split, unit="patient"),
        )
    except (OSError, ValueError) as error:
        sys.exit(f"evaluate.py: error: {error}")

    if not state.is_main_process:
        return
    print(
        f"{args.checkpoint} on {args.split} of {args.dataset}, threshold {args.threshold}, channels: {args.channels}\n"
    )
    print(format_table(result))
    report = {
        "checkpoint": args.checkpoint,
        "model_type": model.config.model_type,
        "dataset": args.dataset,
        "split": args.split,
        "limit": args.limit,
        "channels": args.channels,
        "threshold": args.threshold,
        "volume_share": processor.volume_share,
        "views": args.views,
        "postprocessing": {
            "min_voxels": args.min_voxels,
            "keep_fraction": args.keep_fraction,
            "fill": True,
            "extend": not args.no_extend,
        },
        "command": shlex.join(["python", "evaluate.py", *(sys.argv[1:] if argv is None else argv)]),
        "device": str(model.device),
        "engine": args.engine,
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in VERSIONS_OF}
        | {args.engine: importlib.import_module(args.engine).__version__},
        **result.to_dict(),
    }
    written, figure = [args.output], args.output.with_suffix(".png")
    try:
        write_atomically(args.output, json.dumps(report, indent=2, allow_nan=False).encode() + b"\n")
        if not args.no_figure:
            buffer = io.BytesIO()
            plot_result(result).savefig(buffer, format="png")
            write_atomically(figure, buffer.getvalue())
            written.append(figure)
    except OSError as error:
        sys.exit(f"evaluate.py: error: the results cannot be written: {error}")
    print(f"\nResults in {' and '.join(map(str, written))}")


def _number(value: float, digits: int = 3) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def without_nan(value):
    """JSON has no NaN: an undefined score becomes null."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


if __name__ == "__main__":
    main()
