"""What a run is made of before its first step: the data, the model with its starting weights, the teacher."""

import argparse
import math
from typing import NamedTuple

import numpy as np
from accelerate import Accelerator
from datasets import DatasetDict
from torch.utils.data import Dataset
from transformers import AutoModelForSemanticSegmentation, PreTrainedModel

from hub_dataset.folds import split_by_fold
from hub_dataset.loading import LesionBatchSampler, TrainingSlices, check_slices, load_splits
from hub_dataset.patients import group_by_patient
from hub_dataset.slice_measures import relative_head_sizes
from hub_dataset.streaming import StreamedBatchSampler, StreamedSlices, StreamedSplit, stream_splits
from modeling import BrainMRIImageProcessor
from modeling.pretrained import initialize_from

from .distillation import load_teacher
from .recipe import model_config


class Parts(NamedTuple):
    """
    Attributes:
        splits: patients to train on and to validate on, by the split's name.
        slices: `splits["train"]`, normalised and augmented, for the indices that `sampler` gives.
        pretrained: names of the model's parameters that `--init_from` loaded.
    """

    splits: DatasetDict | dict[str, StreamedSplit]
    sampler: LesionBatchSampler
    slices: Dataset
    processor: BrainMRIImageProcessor
    model: PreTrainedModel
    pretrained: set[str]
    teacher: PreTrainedModel | None


def load_parts(args: argparse.Namespace, accelerator: Accelerator) -> Parts:
    """The parts that `args` describe; prints what `--init_from` loaded.

    Raises:
        OSError, ValueError: as `load_data`, `initialize_from` and `load_teacher`.
    """
    problem = None
    with accelerator.local_main_process_first():
        try:
            splits, sampler = load_data(args)
            processor = BrainMRIImageProcessor(size_divisor=sampler.size_divisor, volume_share=args.volume_share)
            recipe = (processor, args.augmentation, args.channels)
            slices = StreamedSlices(*recipe) if args.streaming else TrainingSlices(splits["train"], *recipe)
        except (OSError, ValueError) as error:  # an exception that left the block would leave the others waiting at it
            problem = error
    if problem:
        raise problem
    model = AutoModelForSemanticSegmentation.from_config(model_config(args))
    report = initialize_from(model, args.init_from) if args.init_from else None
    teacher = load_teacher(args.teacher, model, processor, accelerator) if args.teacher else None
    if report:
        accelerator.print(report)
    if teacher:  # crops that both models take
        sampler.size_divisor = math.lcm(sampler.size_divisor, teacher.config.size_divisor)
    return Parts(splits, sampler, slices, processor, model, set(report.loaded) if report else set(), teacher)


def load_data(args: argparse.Namespace) -> tuple[DatasetDict | dict[str, StreamedSplit], LesionBatchSampler]:
    """The dataset's splits, and the sampler of training batches.

    Raises:
        OSError, ValueError: no such dataset, a split, column, mask or patient missing, `has_lesion` other than true or
            false, too few patients for the folds, no lesion in validation, or too few slices for a batch.
    """
    splits = stream_splits(args.dataset) if args.streaming else load_splits(args.dataset)
    for name in ("train", "validation"):
        if name not in splits:
            raise ValueError(f"{args.dataset} has no split {name!r}, only {', '.join(splits)}; training needs both.")
        split = splits[name]
        if missing := (split.missing_masks if args.streaming else split.data.column("mask").null_count):
            raise ValueError(f"{missing} slices in the split {name!r} of {args.dataset} have no mask to learn from.")
        if None in split["patient_id"]:
            raise ValueError(f"A slice in the split {name!r} of {args.dataset} has no patient_id.")
        if other := {repr(value) for value in split["has_lesion"] if not isinstance(value, bool)}:
            raise ValueError(
                f"The column has_lesion of the split {name!r} of {args.dataset} must be true or false for every slice, "
                f"but holds {', '.join(sorted(other)[:3])}. Fill it in, and cast it to bool."
            )
        if not args.streaming:
            check_slices(split, as_volumes=name == "validation" or args.folds is not None)
        elif name == "validation":
            group_by_patient(split)  # raises where a slice comes twice
    if args.folds is not None:
        splits = split_by_fold(splits, args.folds, args.fold)
    if not any(splits["validation"]["has_lesion"]):
        raise ValueError(f"No slice of the validation patients in {args.dataset} has a lesion, so none has a Dice.")
    slices = splits["train"]
    settings = {
        "batch_size": args.batch_size,
        "image_size": args.image_size[0][1],
        "size_divisor": model_config(args).size_divisor,
        "empty_ratio": args.empty_ratio,
        "seed": args.seed,
    }
    if args.streaming:
        return splits, StreamedBatchSampler(slices, args.streaming, **settings)
    return splits, LesionBatchSampler(np.asarray(slices["has_lesion"]), relative_head_sizes(slices), **settings)
