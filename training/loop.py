"""The epochs of a run: steps, validations, and what is kept of them in its folder."""

import argparse
import json
import math
import sys
import time
from functools import partial

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import get_cosine_schedule_with_warmup

from evaluate import EvaluationResult, evaluate_split, plot_result
from modeling.losses import distillation_loss, segmentation_loss
from modeling.visualization import plot_training_curves

from .cpu import memory_format_for
from .distillation import teacher_logits
from .distributed import synchronize_batch_norm, whole_batch
from .parts import Parts
from .recipe import ema_update, image_size_at, make_optimizer, set_hyperparameters
from .run_folder import Progress, RunFolder
from .trackers import start_tracker


class Training:
    """A run on its way from the first epoch, or the newest state, to the last. All processes must make the same calls.

    Attributes:
        patients: split -> its patients, sorted.
        progress: how far the run is.
    """

    def __init__(self, args: argparse.Namespace, run: RunFolder, accelerator: Accelerator, parts: Parts):
        self.args, self.run, self.accelerator = args, run, accelerator
        self.splits, self.sampler = parts.splits, parts.sampler
        self.processor, self.teacher = parts.processor, parts.teacher
        self.patients = {name: sorted(set(split["patient_id"])) for name, split in self.splits.items()}
        self.progress = Progress(self.sampler.num_batches)
        self.log: list[dict] = []
        self.timed = self.saved = 0.0  # when seconds were last counted, and a state saved

        self.memory_format = memory_format_for(parts.model, accelerator.device)
        model = synchronize_batch_norm(parts.model, accelerator.device).to(memory_format=self.memory_format)
        if args.gradient_checkpointing:
            model.activation_checkpointing_enable()
        self.ema = AveragedModel(model, multi_avg_fn=ema_update(args.ema_decay), use_buffers=True).to(
            accelerator.device
        )
        optimizer = make_optimizer(model, parts.pretrained, args)
        steps = args.epochs * math.ceil(self.sampler.num_batches / args.gradient_accumulation_steps)
        scheduler = get_cosine_schedule_with_warmup(optimizer, round(args.warmup_ratio * steps), steps)
        loader = DataLoader(
            parts.slices,
            batch_sampler=self.sampler,
            num_workers=args.num_workers,
            prefetch_factor=4 if args.num_workers else None,
            persistent_workers=args.num_workers > 0,
            # Its own: starting an epoch, twice where one is resumed, must not move dropout's.
            generator=torch.Generator(),
        )
        self.model, self.optimizer, self.loader, self.scheduler = accelerator.prepare(
            model, optimizer, loader, scheduler
        )
        accelerator.register_for_checkpointing(self.ema, self.progress)
        set_seed(args.seed, device_specific=True)  # dropout of its own on each process

    def __str__(self) -> str:
        parameters = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        return (
            f"{self.args.model}: {parameters:,} trainable parameters; "
            f"epochs: {self.args.epochs}, batches in each: {self.sampler.num_batches}, slices in a batch: "
            f"{self.args.batch_size}; patients: {len(self.patients['train'])} to train on, "
            f"{len(self.patients['validation'])} to validate on; "
            f"processes: {self.accelerator.num_processes} on {self.accelerator.device.type}, mixed precision: "
            f"{self.accelerator.mixed_precision}"
        )

    @property
    def batches_done(self) -> int:
        """Over all epochs."""
        return self.progress.epoch * self.sampler.num_batches + self.progress.batch

    def train_step(self, batch: dict) -> float:
        """The batch's loss, after a step of the weights and their average where enough gradients have come together."""
        with self.accelerator.accumulate(self.model):
            pixel_values = batch["pixel_values"].contiguous(memory_format=self.memory_format)
            logits = whole_batch(self.model(pixel_values=pixel_values).logits)
            loss = segmentation_loss(logits, whole_batch(batch["labels"]), self.args.loss)
            if self.teacher:
                taught = whole_batch(teacher_logits(self.teacher, pixel_values, self.accelerator))
                loss = torch.lerp(loss, distillation_loss(logits, taught), self.args.teacher_weight)
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients and self.args.max_grad_norm:
                self.accelerator.clip_grad_norm_(self.model.parameters(), self.args.max_grad_norm)
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()
        if self.accelerator.sync_gradients:
            self.ema.update_parameters(self.accelerator.unwrap_model(self.model))
        return loss.item()

    def validate(self, **options) -> EvaluationResult:
        """Scores of the averaged weights, with further `options` of `evaluate_split`; each process takes its share.

        Raises:
            ValueError: a damaged slice, or a model that gives NaN.
        """
        return evaluate_split(
            self.ema.module,
            self.processor,
            self.splits["validation"],
            channels=self.args.channels,
            hausdorff=False,
            **options,
        )

    def open(self) -> None:
        """Take the run's folder, and with `--resume` go to where the run stood; ends the process where that fails."""
        if self.accelerator.is_main_process:
            self.run.lock()
            self.run.check_start(self.args)
        self.accelerator.wait_for_everyone()
        if self.args.resume and self.run.states:
            self._load_newest_state()
        self.log = self.run.read_log(self.progress.epoch)
        if self.log and self.progress.epoch >= self.args.epochs and "validation_dice_mean" not in self.log[-1]:
            sys.exit(
                f"--resume: the run in {self.args.output_dir} has {self.progress.epoch} epochs already, and the last "
                f"one was not validated, as the end of a run is. Give --epochs over {self.progress.epoch}."
            )
        if self.accelerator.is_main_process:
            self.run.open(self.args, self.progress.epoch)
            self.run.write_json("split.json", self.patients)
            self.run.write_log(self.log)
        start_tracker(self.accelerator, self.args, self.batches_done)

    def _load_newest_state(self) -> None:
        self.run.check_patients(self.patients)
        hyperparameters = [
            {name: value for name, value in group.items() if name != "params"} for group in self.optimizer.param_groups
        ]
        self.run.load_state(self.accelerator)
        if self.progress.num_batches != self.sampler.num_batches:
            sys.exit(
                f"--resume: the run in {self.args.output_dir} has epochs of {self.progress.num_batches} batches, this "
                f"dataset of {self.sampler.num_batches}: its slices are others. Give the run its own, or choose "
                f"another --output_dir."
            )
        set_hyperparameters(self.optimizer, self.scheduler.scheduler, hyperparameters)
        self.accelerator.print(
            f"Resuming from {self.run.states[-1].name}; epochs done: {self.progress.epoch}, batches of the next one: "
            f"{self.progress.batch}"
        )

    def fit(self) -> None:
        """Train until the last epoch, or until `--patience` is at its end; best/ and last/ are then complete."""
        self.timed = self.saved = time.monotonic()
        while self.progress.epoch < self.args.epochs and not self._out_of_patience():
            self._train_epoch()
            self._end_epoch()
        if self.accelerator.is_main_process:
            self.run.save_model("last", self.ema.module, self.processor, self.log[-1])
        if self.progress.epoch < self.args.epochs:
            self.accelerator.print(f"Stopped: no better validation Dice within --patience {self.args.patience}.")
        best = self.args.output_dir / "best"
        self.accelerator.print(f"Best mean validation Dice {self.progress.best_dice:.4f}; model in {best}")

    def _out_of_patience(self) -> bool:
        return 0 < self.args.patience <= self.progress.validations_since_best

    def _train_epoch(self) -> None:
        """The epoch's batches, or what is left of them."""
        progress = self.progress
        self.sampler.image_size = image_size_at(self.args.image_size, progress.epoch, self.args.epochs)
        self.sampler.seek(progress.epoch, start_batch=progress.batch)
        self.model.train()
        bar = tqdm(
            self.loader,
            desc=f"epoch {progress.epoch + 1}/{self.args.epochs} at {self.sampler.image_size} px",
            initial=progress.batch,
            total=self.sampler.num_batches,
            disable=not self.accelerator.is_main_process,
        )
        for batch in bar:
            loss = self.train_step(batch)
            if not math.isfinite(loss):
                self._stop_at_loss(loss, whole_batch(batch["index"]).tolist())
            progress.batch += 1
            progress.loss_sum += loss
            scalars = {"loss": loss, "learning_rate": max(self.scheduler.get_last_lr())}
            self.accelerator.log(scalars, step=self.batches_done)
            bar.set_postfix(loss=f"{progress.loss_sum / progress.batch:.4f}")
            since_saved = time.monotonic() - self.saved
            if self.accelerator.is_main_process and since_saved > 60 * self.args.checkpoint_minutes:
                self.accelerator.set_trigger()  # clocks differ between processes
            last = progress.batch == self.sampler.num_batches  # the epoch's own state follows
            if self.accelerator.sync_gradients and not last and self.accelerator.check_trigger():
                self._count_seconds()
                self._save_state()

    def _stop_at_loss(self, loss: float, rows: list[int]) -> None:
        """End the process, naming the slices of the batch, which are these `rows` of the training split."""
        split = self.splits["train"]
        names = [f"{split['patient_id'][row]}:{split['slice_index'][row]}" for row in rows]
        if self.accelerator.is_main_process:
            self.run.write_json("not_finite.json", {"loss": str(loss), "patient_id:slice_index": names})
        self.accelerator.wait_for_everyone()
        sys.exit(
            f"train.py: error: the loss is {loss}; the batch's slices are listed in "
            f"{self.run.path / 'not_finite.json'}. Lower --learning_rate, or --resume from the last state to see "
            f"whether it comes again."
        )

    def _end_epoch(self) -> None:
        """Validation where it is due, the best model, log, curves, and a state."""
        self._count_seconds()
        progress = self.progress
        row = {
            "epoch": progress.epoch + 1,
            "image_size": self.sampler.image_size,
            "train_loss": progress.loss_sum / self.sampler.num_batches,
            "learning_rate": max(self.scheduler.get_last_lr()),
            "seconds": round(progress.seconds, 1),
        }
        progress.epoch, progress.batch, progress.loss_sum = progress.epoch + 1, 0, 0.0
        if progress.epoch % self.args.validate_every == 0 or progress.epoch == self.args.epochs:
            row |= self._validate_and_keep_best(row)
        self.log.append(row)
        if self.accelerator.is_main_process:
            self.run.write_log(self.log)
            self.run.write_figure("curves.png", plot_training_curves(self.log))
        scalars = {name: value for name, value in row.items() if not isinstance(value, dict)}
        self.accelerator.print(json.dumps(scalars))
        self.accelerator.log(scalars, step=self.batches_done)
        self._save_state()

    def _validate_and_keep_best(self, row: dict) -> dict:
        """The validation's scores; best/ is written with them and the epoch's `row` where there were none better."""
        try:
            result = self.validate(progress=partial(tqdm, desc="validation"))
        except ValueError as error:
            sys.exit(f"train.py: error: {error}")
        scores = validation_scores(result)
        self.progress.validations_since_best += 1
        if scores["validation_dice_mean"] > self.progress.best_dice:
            self.progress.best_dice, self.progress.validations_since_best = scores["validation_dice_mean"], 0
            if self.accelerator.is_main_process:
                self.run.save_model("best", self.ema.module, self.processor, row | scores)
                self.run.write_figure("validation.png", plot_result(result))
        return scores

    def _count_seconds(self) -> None:
        now = time.monotonic()
        self.progress.seconds += now - self.timed
        self.timed = now

    def _save_state(self) -> None:
        self.run.save_state(self.accelerator, self.batches_done, self.args.keep_checkpoints)
        self.saved = time.monotonic()


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
