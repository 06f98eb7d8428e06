"""Parts of the training recipe: changes to a preset, stages of image size, optimiser, moving average of the weights."""

import argparse
import json
import math
from collections.abc import Callable, Sequence

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedConfig, PreTrainedModel

from modeling.presets import preset_config

OPTIMIZERS = ("adamw", "sgd")


def parse_stage(text: str) -> tuple[float, int]:
    """`192@60%` -> (0.6, 192): from this share of the epochs on, this image size in pixels."""
    size, _, percent = text.partition("@")
    try:
        stage = (float(percent.removesuffix("%")) / 100 if percent else 0.0, int(size))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not PIXELS or PIXELS@PERCENT%, such as 256 or 192@60%") from None
    if not 0 <= stage[0] < 1 or stage[1] < 32:
        raise argparse.ArgumentTypeError(f"{text!r}: at least 32 pixels, from 0% to under 100%")
    return stage


def parse_override(text: str) -> tuple[str, object]:
    """`num_hidden_layers=2` -> ("num_hidden_layers", 2): a field of a configuration and its value, in JSON or text."""
    name, found, value = text.partition("=")
    if not found or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE, such as num_hidden_layers=2")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def model_config(args: argparse.Namespace) -> PreTrainedConfig:
    """The configuration of the model that `args` describe.

    Raises:
        ValueError, StrictDataclassError: as `preset_config`.
    """
    return preset_config(args.model, **args.config, loss=args.loss)


def image_size_at(stages: list[tuple[float, int]], epoch: int, epochs: int) -> int:
    """Image size in pixels of an epoch, counted from 0, for stages sorted by their start."""
    return [size for start, size in stages if epoch >= math.floor(start * epochs + 1e-9)][-1]  # 0.29 * 100 < 29


def make_optimizer(model: PreTrainedModel, pretrained: set[str], args: argparse.Namespace) -> torch.optim.Optimizer:
    """`args.optimizer`; weight decay on kernels and matrices only, a lower learning rate for names in `pretrained`."""
    # By what they are, not by their values, so that a state fits where --resume comes with other values.
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault((name in pretrained, parameter.ndim > 1), []).append(parameter)
    parameters = [
        {
            "params": group,
            "lr": args.learning_rate * (args.pretrained_lr_factor if loaded else 1.0),
            "weight_decay": args.weight_decay if decays else 0.0,
        }
        for (loaded, decays), group in groups.items()
    ]
    if args.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=args.momentum, nesterov=args.momentum > 0)
    return torch.optim.AdamW(parameters, betas=(args.momentum, args.beta2))


def set_hyperparameters(optimizer: torch.optim.Optimizer, scheduler: LambdaLR, groups: Sequence[dict]) -> None:
    """Give a loaded optimiser other options of its parameter groups than the state was saved with.

    Args:
        scheduler: stands where it was loaded; the learning rates there follow from the groups' `initial_lr`.
        groups: all options of each group, such as `weight_decay`, without `params`.
    """
    for group, options in zip(optimizer.param_groups, groups, strict=True):
        group.update(options)
    scheduler.base_lrs = [options["initial_lr"] for options in groups]
    factors = [factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
    scheduler._last_lr = [rate * factor for rate, factor in zip(scheduler.base_lrs, factors, strict=True)]
    for group, learning_rate in zip(optimizer.param_groups, scheduler.get_last_lr(), strict=True):
        group["lr"] = learning_rate


def ema_update(decay: float) -> Callable:
    """Update rule for `AveragedModel`: `decay` once warm, less in the first steps, when the weights still move far."""

    @torch.no_grad()
    def update(averaged: list[torch.Tensor], current: list[torch.Tensor], count: torch.Tensor | int) -> None:
        weight = 1 - min(decay, (1 + float(count)) / (10 + float(count)))
        for average, value in zip(averaged, current, strict=True):
            if average.is_floating_point():
                average.lerp_(value.to(average.dtype), weight)
            else:
                average.copy_(value)

    return update
