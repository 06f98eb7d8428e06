"""Train with `transformers.Trainer`: dataset, models and processor are the usual classes, and the model has its loss.

    python -m examples.trainer --dataset data/lgg --output_dir runs/trainer

The shortest way to a model. train.py has what makes a good one: augmentation, crops, batches with enough lesions, a
moving average of the weights, and validation by patient.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from transformers import Trainer, TrainingArguments

from hub_dataset.loading import load_splits
from hub_dataset.slice_measures import is_empty, pixels_of
from modeling import PRESETS, BrainMRIImageProcessor, build_model
from modeling.command_line import command_parser, whole_number


def train(preset: str, dataset: str, **arguments) -> Trainer:
    """Train on the dataset's split for it and save model and processor; `arguments` go to `TrainingArguments`.

    Raises:
        OSError: no such dataset, or the output's folder cannot be made.
        ValueError: a dataset that lacks something, or arguments that cannot be used.
    """
    splits = load_splits(dataset)
    if missing := {"train", "validation"} - splits.keys():
        raise ValueError(f"{dataset} has no split {', '.join(sorted(missing))}; training takes both.")
    # Slices beyond the head show nothing to normalise or to learn from.
    splits = splits.filter(lambda image: not is_empty(pixels_of(image)), input_columns="image")
    model = build_model(preset)
    processor = BrainMRIImageProcessor(size_divisor=model.config.size_divisor)

    def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
        inputs = processor(images=[row["image"] for row in rows], return_tensors="pt")
        labels = torch.zeros(len(rows), *inputs["pixel_values"].shape[-2:], dtype=torch.long)
        for label, row in zip(labels, rows, strict=True):  # the processor pads at the bottom and on the right
            label[: row["mask"].height, : row["mask"].width] = torch.from_numpy(np.asarray(row["mask"]) > 0)
        return {**inputs, "labels": labels}

    trainer = Trainer(
        model,
        TrainingArguments(remove_unused_columns=False, report_to="none", **arguments),
        data_collator=collate,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        processing_class=processor,
    )
    trainer.train()
    trainer.save_model()
    return trainer


def main(argv: list[str] | None = None) -> None:
    parser = command_parser(__doc__, "examples.trainer")
    parser.add_argument("--model", default="unet-5level", choices=list(PRESETS), help="preset")
    parser.add_argument("--dataset", required=True, help="folder written by hub_dataset.build, or USER/NAME on the Hub")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--num_train_epochs", type=whole_number(1), default=3, help="epochs")
    parser.add_argument("--per_device_train_batch_size", type=whole_number(1), default=8, help="slices per step")
    arguments = vars(parser.parse_args(argv))
    if Path(arguments["output_dir"]).is_file():
        parser.error(f"--output_dir {arguments['output_dir']} is a file; name a folder")
    try:
        trainer = train(arguments.pop("model"), arguments.pop("dataset"), **arguments)
    except (OSError, ValueError) as error:
        sys.exit(f"examples.trainer: error: {error}")
    print(trainer.evaluate())


if __name__ == "__main__":
    main()
