"""Whether averaging a slice's probabilities with those of mirrored and turned views (test-time augmentation) pays.

    python -m benchmarks.averaged_views --checkpoint checkpoints/transunet-small --dataset data/lgg

Prints a table in Markdown: Dice per patient after post-processing at threshold 0.5 for the slices as they are, for the
average with the mirror image, and with all of `modeling.test_time_augmentation.VIEWS`, which costs as many passes.
"""

import argparse
from itertools import accumulate, chain

import numpy as np
from tqdm import tqdm

from hub_dataset.loading import load_splits
from hub_dataset.patients import group_by_patient, read_patient
from modeling.inference import load_model, predict_volume
from modeling.metrics import VolumeScores, score_volume, summarize
from modeling.postprocessing import mask_from_probabilities
from modeling.test_time_augmentation import predict_views

PASSES = {1: "as they are", 2: "and mirrored", 4: "and two views turned by 10 degrees"}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="a saved model's folder, or USER/NAME on the Hub")
    parser.add_argument("--dataset", required=True, help="folder written by hub_dataset.build, or USER/NAME on the Hub")
    parser.add_argument("--split", default="validation")
    args = parser.parse_args(argv)

    model, processor = load_model(args.checkpoint)
    split = load_splits(args.dataset)[args.split]
    scores: dict[int, list[VolumeScores]] = {passes: [] for passes in PASSES}
    for patient_id, rows in tqdm(group_by_patient(split).items(), desc="patients"):
        patient = read_patient(split, patient_id, rows)
        slices = np.asarray(patient.slices)
        views = chain([predict_volume(model, processor, slices)], predict_views(model, processor, slices))
        for passes, total in enumerate(accumulate(views), start=1):
            if passes in PASSES:
                mask = mask_from_probabilities(total / passes)
                scores[passes].append(score_volume(mask, patient.truth, hausdorff=False))

    print("| slices | passes | Dice per patient, mean (95 % CI) | median | lesion slices | false alarms |")
    print("|---|---|---|---|---|---|")
    for passes, name in PASSES.items():
        summary = summarize(scores[passes])
        low, high = summary.dice_interval
        print(
            f"| {name} | {passes} | {summary.dice_mean:.3f} ({low:.3f} to {high:.3f}) | {summary.dice_median:.3f} "
            f"| {summary.lesion_slice_dice:.3f} | {100 * summary.false_alarm_rate:.1f} % |"
        )


if __name__ == "__main__":
    main()
