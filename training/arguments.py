"""The command line of train.py."""

import argparse
import math
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError

from evaluate import CHANNELS
from modeling import PRESETS
from modeling.command_line import command_parser
from modeling.hub import HubError, check_destination
from modeling.image_processing_brain_mri import BrainMRIImageProcessor
from modeling.losses import LOSSES
from modeling.pretrained import SOURCES

from .recipe import OPTIMIZERS, model_config, parse_override, parse_stage
from .trackers import TRACKERS, check_tracker

TEACHER_WEIGHT = 0.7


def parse_args(argv: list[str] | None, description: str) -> argparse.Namespace:
    """Arguments of a run; prints the error and exits with 2 where they cannot be used."""
    parser = command_parser(description)
    add_run(parser.add_argument_group("run"))
    add_data(parser.add_argument_group("data"))
    add_optimization(parser.add_argument_group("optimisation"))
    add_validation(parser.add_argument_group("validation and checkpoints"))
    add_hub(parser.add_argument_group("hub"))
    args = parser.parse_args(argv)
    args.config = dict(args.config)
    args.image_size = sorted(args.image_size)
    for check in (check_hub_and_tracker, check_modes, check_teacher, check_model, check_stages, check_ranges):
        check(args, parser)
    return args


def check_hub_and_tracker(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    if args.push_to_hub:
        try:
            check_destination(args.hub_model_id or "")
        except HubError as error:
            parser.error(f"--push_to_hub with --hub_model_id: {error}")
    elif args.hub_model_id or args.hub_private_repo:
        parser.error("--hub_model_id and --hub_private_repo go with --push_to_hub.")
    try:
        check_tracker(args.report_to)
    except ValueError as error:
        parser.error(f"--report_to: {error}")


def check_modes(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Options that go together, or do not."""
    if args.streaming is not None and args.streaming < 1:
        parser.error(f"--streaming {args.streaming}: at least 1 slice.")
    if args.streaming and args.folds is not None:
        parser.error("--folds deals out patients of a dataset that is there as a whole; leave out --streaming.")
    if args.streaming and args.dry_run:
        parser.error("--dry_run measures all slices first; leave out --streaming, which takes the same steps.")
    if args.dry_run and args.resume:
        parser.error("--dry_run tells what a whole run would cost; leave out --resume.")
    if (args.folds is None) != (args.fold is None):
        parser.error("--folds and --fold go together, for instance `--folds 5 --fold 0`.")
    if args.folds is not None and (args.folds < 2 or not 0 <= args.fold < args.folds):
        parser.error(f"--fold {args.fold} of --folds {args.folds}: at least 2 folds, counted from 0.")


def check_teacher(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Also gives the teacher's weight its default where there is a teacher."""
    if args.teacher_weight is not None and not args.teacher:
        parser.error("--teacher_weight goes with --teacher.")
    if args.teacher:
        args.teacher_weight = TEACHER_WEIGHT if args.teacher_weight is None else args.teacher_weight
        if not 0 < args.teacher_weight <= 1:
            parser.error(f"--teacher_weight must be from over 0 to 1, not {args.teacher_weight}.")


def check_model(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    if "loss" in args.config:
        parser.error("--config loss=...: the loss has an option of its own, --loss.")
    try:
        config = model_config(args)
    except (ValueError, StrictDataclassError) as error:
        parser.error(f"--config: {error}")
    if config.num_channels != 3:
        parser.error(
            "--config num_channels=...: slices have three channels; for FLAIR alone there is --channels flair."
        )


def check_stages(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    if len({start for start, _ in args.image_size}) < len(args.image_size):
        parser.error("--image_size has two stages that start at the same time, for instance `128 256@80%`.")
    if args.image_size[0][0] != 0:
        parser.error("--image_size needs a first stage without @, for instance `128 256@80%`.")


def check_ranges(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    for name in ("epochs", "batch_size", "gradient_accumulation_steps", "validate_every", "keep_checkpoints"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, not {getattr(args, name)}.")
    for name in (
        *("learning_rate", "pretrained_lr_factor", "weight_decay", "max_grad_norm", "augmentation", "empty_ratio"),
        *("patience", "num_workers", "checkpoint_minutes"),
    ):
        if not 0 <= getattr(args, name) < math.inf:
            parser.error(f"--{name} must be finite and not negative, but is {getattr(args, name)}.")
    for name in ("momentum", "beta2", "ema_decay", "warmup_ratio"):
        if not 0 <= getattr(args, name) < 1:
            parser.error(f"--{name} must be from 0 to under 1, not {getattr(args, name)}.")
    if not 0 <= args.seed < 2**32:
        parser.error(f"--seed must be from 0 to {2**32 - 1}, not {args.seed}.")
    if not 0 <= args.volume_share <= 1:
        parser.error(f"--volume_share must be from 0 to 1, not {args.volume_share}.")


def add_run(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--model", required=True, choices=list(PRESETS), help="preset")
    group.add_argument(
        "--config",
        nargs="+",
        action="extend",
        type=parse_override,
        default=[],
        metavar="NAME=VALUE",
        help="fields of the preset's configuration to change, such as `num_hidden_layers=2`",
    )
    group.add_argument("--init_from", metavar="SOURCE", help="starting weights: " + SOURCES.replace("%", "%%"))
    group.add_argument("--dataset", required=True, help="folder written by hub_dataset.build, or USER/NAME on the Hub")
    group.add_argument(
        "--streaming",
        nargs="?",
        const=1024,
        type=int,
        metavar="SLICES",
        help="read the dataset as it comes, anew in each epoch, instead of downloading it; shuffle among this many "
        "slices (%(const)s), of 60 KB or so, which are held in memory",
    )
    group.add_argument("--output_dir", required=True, type=Path, help="the run's folder")
    group.add_argument("--resume", action="store_true", help="go on from the newest complete state in --output_dir")
    group.add_argument(
        "--dry_run", action="store_true", help="print operations, steps, memory and expected duration, and stop"
    )
    group.add_argument("--seed", type=int, default=0, help="of weights, slices and augmentation")


def add_data(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--image_size",
        nargs="+",
        type=parse_stage,
        default=[(0.0, 256)],
        metavar="PIXELS[@PERCENT%]",
        help="length of the slice's longer side before cropping to the head, in pixels; stages such as "
        "`128 192@60%% 256@85%%` change it after that share of the epochs (default: 256)",
    )
    group.add_argument(
        "--folds",
        type=int,
        metavar="K",
        help="cross-validation: deal the patients of train and validation to K folds; see `python -m training.folds`",
    )
    group.add_argument("--fold", type=int, metavar="I", help="the fold that validates, from 0")
    group.add_argument("--channels", choices=CHANNELS, default="all", help="flair: FLAIR alone, as all three channels")
    group.add_argument("--batch_size", type=int, default=16, help="slices per step, over all processes")
    group.add_argument("--empty_ratio", type=float, default=1.0, help="slices without lesion per slice with one")
    group.add_argument("--augmentation", type=float, default=1.0, help="strength; 0 is off")
    group.add_argument(
        "--volume_share",
        type=float,
        default=BrainMRIImageProcessor.volume_share,
        metavar="SHARE",
        help="weight of a volume's median and spread beside the slice's own in normalisation, 0 to 1, kept in the "
        "model's processor; in augmented slices it is random, up to twice that",
    )
    group.add_argument("--num_workers", type=int, default=2, help="processes that decode and augment; 0: the main one")
    group.add_argument(
        "--low_memory", action="store_true", help="on a CPU, return freed memory to the system at once: slower"
    )


def add_optimization(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--loss", choices=list(LOSSES), default="dice_bce", help="dice_bce: dice + bce")
    group.add_argument(
        "--teacher",
        metavar="CHECKPOINT",
        help="a trained model of any architecture whose probabilities the new one learns beside the labels; it should "
        "not have been trained on the validation patients, or they measure nothing",
    )
    group.add_argument(
        "--teacher_weight",
        type=float,
        metavar="SHARE",
        help=f"of the teacher in the loss, from over 0 to 1, which leaves out the labels (default: {TEACHER_WEIGHT})",
    )
    group.add_argument("--epochs", type=int, default=40, help="passes over all slices with a lesion")
    group.add_argument("--optimizer", choices=OPTIMIZERS, default="adamw", help="with warm-up, then a cosine to zero")
    group.add_argument("--learning_rate", type=float, default=1e-3, help="at its peak, after the warm-up")
    group.add_argument(
        "--pretrained_lr_factor",
        type=float,
        default=0.4,
        help="of the learning rate, for the weights that --init_from loaded",
    )
    group.add_argument("--warmup_ratio", type=float, default=0.05, help="share of the steps until the peak")
    group.add_argument("--momentum", type=float, default=0.9, help="of SGD; AdamW's beta1")
    group.add_argument("--beta2", type=float, default=0.999, help="of AdamW")
    group.add_argument("--weight_decay", type=float, default=0.01, help="on convolutions and matrices")
    group.add_argument("--max_grad_norm", type=float, default=1.0, help="0 is off")
    group.add_argument("--gradient_accumulation_steps", type=int, default=1, help="batches per step")
    group.add_argument(
        "--gradient_checkpointing",
        action="store_true",
        help="keep half as many of a U-Net's activations, fewer of the others': what gradients need is computed again",
    )
    group.add_argument("--ema_decay", type=float, default=0.995, help="moving average of the weights; 0 is off")


def add_validation(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--validate_every", type=int, default=1, help="epochs; the last one is always validated")
    group.add_argument(
        "--patience", type=int, default=0, help="validations without a better one before stopping; 0: off"
    )
    group.add_argument("--checkpoint_minutes", type=float, default=5.0, help="between states; one more at each epoch")
    group.add_argument("--keep_checkpoints", type=int, default=2, help="newest states kept")
    group.add_argument("--report_to", choices=TRACKERS, default="none", help="tracker, beside the run's own log")


def add_hub(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--push_to_hub", action="store_true", help="publish the best model at the end")
    group.add_argument("--hub_model_id", metavar="USER/NAME", help="where")
    group.add_argument(
        "--hub_private_repo", action="store_true", help="make a new repository private; refuse a public one"
    )
