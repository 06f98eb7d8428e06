"""Train a segmentation model on the LGG dataset.

    python -m hub_dataset.build --source KAGGLE_3M_DIR --output data/lgg
    accelerate launch train.py --model unet-5level --dataset data/lgg --output_dir runs/unet-5level
    accelerate launch train.py --model unet-5level --dataset data/lgg --output_dir runs/unet-5level --resume
    accelerate launch train.py --model unet-5level --dataset USER/NAME --streaming --output_dir runs/unet-5level
    accelerate launch train.py --model unet-5level --dataset data/lgg --output_dir runs/unet-5level --dry_run
    accelerate launch train.py --model unet-5level --teacher checkpoints/transunet-small --dataset data/lgg ...

RUN (`--output_dir`) holds args.json, split.json (the patients of each split), log.jsonl (one line per epoch),
curves.png, validation.png (the best model's scores and slices), best/ and last/ (models for `from_pretrained`), and
checkpoints/ (complete states for `--resume`).
"""

import argparse
import shlex
import sys

from accelerate.utils import set_seed
from huggingface_hub import ModelCard

from hub_dataset.patients import DamagedSlice
from hub_dataset.streaming import StreamError
from modeling.card import write_card
from modeling.cores import use_cores
from modeling.hub import HubError
from modeling.publish import publish_model
from training.arguments import parse_args
from training.cpu import keep_freed_memory
from training.dry_run import print_estimate
from training.launch import ending_together, start_accelerator
from training.loop import Training
from training.parts import load_parts
from training.run_folder import RunFolder


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv, __doc__)
    run = RunFolder(args.output_dir)
    try:
        train(args, run)
    except (DamagedSlice, StreamError) as error:
        reason = str(error).splitlines()[-1]  # a worker process's comes after its traceback
        sys.exit(f"train.py: error: {reason}. With --resume, the same command goes on from the newest state.")
    except KeyboardInterrupt:
        saved = run.states and not args.dry_run
        then = f" With --resume, the same command goes on from {run.states[-1].name}." if saved else ""
        sys.exit(f"train.py: stopped.{then}")
    finally:
        run.unlock()


def train(args: argparse.Namespace, run: RunFolder) -> None:
    run.check_start(args)
    accelerator = start_accelerator(args)
    args.mixed_precision = accelerator.mixed_precision  # the launcher's choice, recorded with the others
    if args.resume:
        for name, (before, now) in run.check_arguments(args).items():
            accelerator.print(f"--resume: {name} was {before} and is now {now}")
    set_seed(args.seed)
    if accelerator.device.type == "cpu":
        use_cores(accelerator.num_processes)
        if not args.low_memory:
            keep_freed_memory()
    with ending_together(accelerator):
        parts = load_parts(args, accelerator)
    training = Training(args, run, accelerator, parts)
    accelerator.print(training)
    if args.dry_run:
        print_estimate(training)
    else:
        training.open()
        training.fit()
        if args.push_to_hub and accelerator.is_main_process:
            publish(run, args)
    accelerator.end_training()


def publish(run: RunFolder, args: argparse.Namespace) -> None:
    """Upload the best model with a card made from the run's folder; ends the process where that fails."""
    best = run.path / "best"
    try:
        card = best / "README.md"
        if not (card.exists() and ModelCard.load(card).data.eval_results):  # one that has scores stays
            write_card(best, runs=[run.path])
        print(publish_model(best, args.hub_model_id, private=args.hub_private_repo))
    except (OSError, ValueError, HubError) as error:
        private = ["--private"] if args.hub_private_repo else []
        again = shlex.join(["python", "-m", "modeling.publish", str(best), args.hub_model_id, *private])
        sys.exit(f"train.py: error: {error}\nThe run is complete; `{again}` tries again.")


if __name__ == "__main__":
    main()
