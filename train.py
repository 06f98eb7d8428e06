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
import json
import math
import shlex
import sys
import time
from functools import partial

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from datasets import Dataset, DatasetDict
from huggingface_hub import ModelCard
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import AutoModelForSemanticSegmentation, get_cosine_schedule_with_warmup

from evaluate import EvaluationResult, evaluate_split, plot_result
from hub_dataset.folds import split_by_fold
from hub_dataset.loading import LesionBatchSampler, TrainingSlices, check_slices, load_splits
from hub_dataset.patients import DamagedSlice, group_by_patient
from hub_dataset.slice_measures import relative_head_sizes
from hub_dataset.streaming import StreamedBatchSampler, StreamedSlices, StreamedSplit, StreamError, stream_splits
from modeling import BrainMRIImageProcessor
from modeling.card import write_card
from modeling.cores import use_cores
from modeling.hub import HubError
from modeling.losses import distillation_loss, segmentation_loss
from modeling.pretrained import initialize_from
from modeling.publish import publish_model
from modeling.visualization import plot_training_curves
from training.arguments import parse_args
from training.cpu import has_avx2_alone, keep_freed_memory, memory_format_for
from training.distillation import load_teacher, teacher_logits
from training.distributed import launched_alone, synchronize_batch_norm, whole_batch
from training.dry_run import print_estimate
from training.recipe import ema_update, image_size_at, make_optimizer, model_config, set_hyperparameters
from training.run_folder import FIXED, Progress, RunFolder
from training.trackers import start_tracker


def prepare_data(args: argparse.Namespace) -> tuple[DatasetDict | dict[str, StreamedSplit], LesionBatchSampler]:
    """The dataset's splits, and the sampler of training batches.

    Raises:
        OSError, ValueError: no such dataset, a split, column or mask missing, too few patients for the folds, no lesion
            in validation, or too few slices for a batch.
    """
    splits = stream_splits(args.dataset) if args.streaming else load_splits(args.dataset)
    for name in ("train", "validation"):
        if name not in splits:
            raise ValueError(f"{args.dataset} has no split {name!r}, only {', '.join(splits)}; training needs both.")
        split = splits[name]
        if missing := (split.missing_masks if args.streaming else split.data.column("mask").null_count):
            raise ValueError(f"{missing} slices in the split {name!r} of {args.dataset} have no mask to learn from.")
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


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv, __doc__)
    run = RunFolder(args.output_dir)
    try:
        train(args, run)
    except (DamagedSlice, StreamError) as error:
        reason = str(error).splitlines()[-1]  # a worker process's comes after its traceback
        sys.exit(f"train.py: error: {reason}. With --resume, the same command goes on from the newest state.")
    finally:
        run.unlock()


def train(args: argparse.Namespace, run: RunFolder) -> None:
    run.check_place()
    if run.started and not (args.resume or args.dry_run):
        sys.exit(f"{args.output_dir} already holds a run. Go on with --resume, or choose another --output_dir.")
    if args.resume and not run.arguments:
        sys.exit(f"--resume: {args.output_dir} holds no run. Start it without --resume.")
    if args.resume:
        run.check_states()

    # 1. Accelerator and seed
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # processes on CPUs find each other only if this is said
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        # Every process takes its share of the same batches, whatever the number of processes.
        dataloader_config=DataLoaderConfiguration(split_batches=True),
        log_with=None if args.report_to == "none" else args.report_to,
        project_dir=args.output_dir,
    )
    args.mixed_precision = accelerator.mixed_precision  # the launcher's choice, recorded with the others
    changed = run.changed_arguments(args) if args.resume else {}
    for name in filter(changed.__contains__, FIXED):
        before, now = changed[name]
        sys.exit(
            f"--resume: {args.output_dir} holds a run of --{name} {before}, not of {now}. Give the same, or choose "
            f"another --output_dir; `--init_from {args.output_dir / 'best'}` starts from its weights."
        )
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        sys.exit("train.py: error: fp16 needs an accelerator; on a CPU, PyTorch would compute in float32. Use bf16.")
    if launched_alone():
        print(
            "train.py: warning: `accelerate launch --cpu` has started one process only. For several on the CPU: "
            "accelerate launch --config_file examples/accelerate/two_cpu_processes.yaml train.py ...",
            file=sys.stderr,
        )
    if accelerator.mixed_precision == "bf16" and has_avx2_alone(accelerator.device):
        accelerator.print(
            "train.py: warning: this CPU has no AVX-512, without which PyTorch computes bf16 many times slower than "
            "float32. Leave out --mixed_precision.",
            file=sys.stderr,
        )
    if args.batch_size % accelerator.num_processes:
        sys.exit(
            f"--batch_size {args.batch_size} cannot be shared by {accelerator.num_processes} processes; it must be a "
            f"multiple of their number."
        )
    set_seed(args.seed)
    if accelerator.device.type == "cpu":
        use_cores(accelerator.num_processes)
        if not args.low_memory:
            keep_freed_memory()
    for name, (before, now) in changed.items():
        accelerator.print(f"--resume: {name} was {before} and is now {now}")

    # 2. Data and model
    try:
        with accelerator.local_main_process_first():
            splits, sampler = prepare_data(args)
            processor = BrainMRIImageProcessor(size_divisor=sampler.size_divisor, volume_share=args.volume_share)
            recipe = (processor, args.augmentation, args.channels)
            slices = StreamedSlices(*recipe) if args.streaming else TrainingSlices(splits["train"], *recipe)
        model = AutoModelForSemanticSegmentation.from_config(model_config(args))
        report = initialize_from(model, args.init_from) if args.init_from else None
        teacher = load_teacher(args.teacher, model, processor, accelerator) if args.teacher else None
    except (OSError, ValueError) as error:
        sys.exit(f"train.py: error: {error}")
    if report:
        accelerator.print(report)
    if teacher:  # crops that both models take
        sampler.size_divisor = math.lcm(sampler.size_divisor, teacher.config.size_divisor)
    loader = DataLoader(
        slices,
        batch_sampler=sampler,
        num_workers=args.num_workers,
        prefetch_factor=4 if args.num_workers else None,
        persistent_workers=args.num_workers > 0,
        generator=torch.Generator(),  # its own: starting an epoch, twice where one is resumed, must not move dropout's
    )

    # 3. Optimiser, schedule, moving average
    memory_format = memory_format_for(model, accelerator.device)
    model = synchronize_batch_norm(model, accelerator.device).to(memory_format=memory_format)
    if args.gradient_checkpointing:
        model.activation_checkpointing_enable()
    ema = AveragedModel(model, multi_avg_fn=ema_update(args.ema_decay), use_buffers=True).to(accelerator.device)
    optimizer = make_optimizer(model, set(report.loaded) if report else set(), args)
    steps = args.epochs * math.ceil(sampler.num_batches / args.gradient_accumulation_steps)
    scheduler = get_cosine_schedule_with_warmup(optimizer, round(args.warmup_ratio * steps), steps)
    progress = Progress(sampler.num_batches)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    accelerator.register_for_checkpointing(ema, progress)
    set_seed(args.seed, device_specific=True)  # dropout of its own on each process

    def train_step(batch: dict) -> float:
        """The batch's loss, after a step of the weights and their average where enough gradients have come together."""
        with accelerator.accumulate(model):
            pixel_values = batch["pixel_values"].contiguous(memory_format=memory_format)
            logits = whole_batch(model(pixel_values=pixel_values).logits)
            loss = segmentation_loss(logits, whole_batch(batch["labels"]), args.loss)
            if teacher:
                taught = distillation_loss(logits, whole_batch(teacher_logits(teacher, pixel_values, accelerator)))
                loss = torch.lerp(loss, taught, args.teacher_weight)
            accelerator.backward(loss)
            if accelerator.sync_gradients and args.max_grad_norm:
                accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            ema.update_parameters(accelerator.unwrap_model(model))
        return loss.item()

    # All processes validate, each its share of the patients.
    validate = partial(
        evaluate_split, ema.module, processor, splits["validation"], channels=args.channels, hausdorff=False
    )
    patients = {name: sorted(set(split["patient_id"])) for name, split in splits.items()}
    accelerator.print(
        f"{args.model}: {sum(p.numel() for p in model.parameters() if p.requires_grad):,} trainable parameters; "
        f"{args.epochs} epochs of {sampler.num_batches} batches of {args.batch_size}; "
        f"{len(patients['train'])} patients to train on, {len(patients['validation'])} to validate on; "
        f"processes: {accelerator.num_processes} on {accelerator.device.type}, mixed precision: "
        f"{accelerator.mixed_precision}"
    )
    if args.dry_run:
        validate_one = partial(validate, limit=1)
        print_estimate(args, accelerator, sampler, loader, train_step, validate_one, len(patients["validation"]))
        return accelerator.end_training()

    # 4. The run's folder, or where it stood
    if accelerator.is_main_process:
        run.lock()
        if run.started and not args.resume:
            sys.exit(f"{args.output_dir} already holds a run. Go on with --resume, or choose another --output_dir.")
    accelerator.wait_for_everyone()
    if args.resume and run.states:
        run.check_patients(patients)
        hyperparameters = [
            {name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups
        ]
        run.load_state(accelerator)
        if progress.num_batches != sampler.num_batches:
            sys.exit(
                f"--resume: the run in {args.output_dir} has epochs of {progress.num_batches} batches, this dataset of "
                f"{sampler.num_batches}: its slices are others. Give the run its own, or choose another --output_dir."
            )
        set_hyperparameters(optimizer, scheduler.scheduler, hyperparameters)
        accelerator.print(
            f"Resuming after {progress.epoch} epochs and {progress.batch} batches ({run.states[-1].name})"
        )
    log = run.read_log(progress.epoch)
    if log and progress.epoch >= args.epochs and "validation_dice_mean" not in log[-1]:
        sys.exit(
            f"--resume: the run in {args.output_dir} has {progress.epoch} epochs already, and the last one was not "
            f"validated, as the end of a run is. Give --epochs over {progress.epoch}."
        )
    if accelerator.is_main_process:
        run.open(args, progress.epoch)
        run.write_json("split.json", patients)
        run.write_log(log)
    start_tracker(accelerator, args, progress.epoch * sampler.num_batches + progress.batch)

    # 5. Epochs
    def batches_done() -> int:
        return progress.epoch * sampler.num_batches + progress.batch

    last_save = started = time.monotonic()
    while progress.epoch < args.epochs and not (0 < args.patience <= progress.validations_since_best):
        sampler.image_size = image_size_at(args.image_size, progress.epoch, args.epochs)
        sampler.seek(progress.epoch, start_batch=progress.batch)
        model.train()
        bar = tqdm(
            loader,
            desc=f"epoch {progress.epoch + 1}/{args.epochs} at {sampler.image_size} px",
            initial=progress.batch,
            total=sampler.num_batches,
            disable=not accelerator.is_main_process,
        )
        for batch in bar:
            loss = train_step(batch)
            if not math.isfinite(loss):
                stop_at_loss(loss, accelerator, run, splits["train"], whole_batch(batch["index"]).tolist())
            progress.batch += 1
            progress.loss_sum += loss
            accelerator.log({"loss": loss, "learning_rate": max(scheduler.get_last_lr())}, step=batches_done())
            bar.set_postfix(loss=f"{progress.loss_sum / progress.batch:.4f}")
            if accelerator.is_main_process and time.monotonic() - last_save > 60 * args.checkpoint_minutes:
                accelerator.set_trigger()  # clocks differ between processes
            if accelerator.sync_gradients and progress.batch < sampler.num_batches and accelerator.check_trigger():
                progress.seconds, started = progress.seconds + time.monotonic() - started, time.monotonic()
                run.save_state(accelerator, batches_done(), args.keep_checkpoints)
                last_save = time.monotonic()

        # 6. Validation, log, best model
        progress.seconds, started = progress.seconds + time.monotonic() - started, time.monotonic()
        row = {
            "epoch": progress.epoch + 1,
            "image_size": sampler.image_size,
            "train_loss": progress.loss_sum / sampler.num_batches,
            "learning_rate": max(scheduler.get_last_lr()),
            "seconds": round(progress.seconds, 1),
        }
        progress.epoch, progress.batch, progress.loss_sum = progress.epoch + 1, 0, 0.0
        if progress.epoch % args.validate_every == 0 or progress.epoch == args.epochs:
            try:
                result = validate(progress=partial(tqdm, desc="validation"))
            except ValueError as error:  # a damaged slice, or a model that gives NaN
                sys.exit(f"train.py: error: {error}")
            row |= validation_scores(result)
            progress.validations_since_best += 1
            if row["validation_dice_mean"] > progress.best_dice:
                progress.best_dice, progress.validations_since_best = row["validation_dice_mean"], 0
                if accelerator.is_main_process:
                    run.save_model("best", ema.module, processor, row)
                    run.write_figure("validation.png", plot_result(result))
        log.append(row)
        if accelerator.is_main_process:
            run.write_log(log)
            run.write_figure("curves.png", plot_training_curves(log))
        scalars = {name: value for name, value in row.items() if not isinstance(value, dict)}
        accelerator.print(json.dumps(scalars))
        accelerator.log(scalars, step=batches_done())
        run.save_state(accelerator, batches_done(), args.keep_checkpoints)
        last_save = time.monotonic()

    if accelerator.is_main_process:
        run.save_model("last", ema.module, processor, log[-1])
    if progress.epoch < args.epochs:
        accelerator.print(f"Stopped: no better validation Dice for {args.patience} validations.")
    accelerator.print(f"Best mean validation Dice {progress.best_dice:.4f}; model in {args.output_dir / 'best'}")
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


def validation_scores(result: EvaluationResult) -> dict:
    """Scores of the validation patients after post-processing, as they are logged."""
    summary = result.postprocessed
    return {
        "validation_dice_mean": summary.dice_mean,
        "validation_dice_median": summary.dice_median,
        "validation_lesion_slice_dice": summary.lesion_slice_dice,
        "validation_false_alarm_rate": summary.false_alarm_rate,
        "validation_patients": len(result.patients),
        "validation_dice": {patient.patient_id: patient.postprocessed.dice for patient in result.patients},
    }


def stop_at_loss(
    loss: float, accelerator: Accelerator, run: RunFolder, split: Dataset | StreamedSplit, rows: list[int]
) -> None:
    """End the run, naming the slices of the batch."""
    names = [f"{split['patient_id'][row]}:{split['slice_index'][row]}" for row in rows]
    if accelerator.is_main_process:
        run.write_json("not_finite.json", {"loss": str(loss), "patient_id:slice_index": names})
    accelerator.wait_for_everyone()
    sys.exit(
        f"train.py: error: the loss is {loss}; the batch's slices are listed in {run.path / 'not_finite.json'}. Lower "
        f"--learning_rate, or --resume from the last state to see whether it comes again."
    )


if __name__ == "__main__":
    main()
