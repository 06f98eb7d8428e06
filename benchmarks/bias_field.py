"""What a volume's bias field costs a model: Dice with the smooth shading of the receiver coils taken out.

    python -m benchmarks.bias_field --checkpoint checkpoints/transunet-small --dataset data/lgg [--channels flair]
    python -m hub_dataset.folds --dataset data/lgg --folds 4 --fold 0 --output data/fold0     # patients of a fold
    python -m benchmarks.bias_field --checkpoint runs/fold0/last --dataset data/fold0

Where a coil lies near, a brain is brighter, which may pass for a lesion. The field of each channel is taken to be a
polynomial of the second order in the logarithm of the intensities (as in Van Leemput et al., IEEE Transactions on
Medical Imaging 18(10), 1999), fitted to the brain, with Tukey's weights against outliers. Prints scores of the volumes
as they are; with the field of the whole brain taken out; with that of the brain without what the model suspects to be
lesion in the volume as it is; and of the average of the probabilities of the first and of each of the others. The last
column of the table is the difference from the first row, patient by patient, with its 95 % interval.
"""

import sys
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from evaluate import CHANNELS
from hub_dataset.loading import load_split
from hub_dataset.patients import group_by_patient, read_patient
from modeling.brain_region import brain_region
from modeling.command_line import command_parser
from modeling.image_processing_brain_mri import FLAIR
from modeling.inference import load_model, predict_volume
from modeling.metrics import VolumeScores, score_volume
from modeling.postprocessing import mask_from_probabilities

from .tables import SCORES, score_cells, table

SUSPECTED = 0.3  # probability from which a voxel is left out of the fit
ITERATIONS = 12  # of the weighted fit
TUKEY = 2.5  # robust standard deviations from which a voxel has no weight
SAMPLE = 40_000  # voxels of the fit
LIMIT = 0.7  # of the field's logarithm, a factor of two
AS_IT_IS, WHOLE, UNSUSPECTED = "as it is", "field of the whole brain out", "field without suspected lesion out"


def terms_of(shape: tuple[int, int, int]) -> list[np.ndarray]:
    """The products of up to two coordinates from -1 to 1, each (S, H, W) by broadcasting; not the constant."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, size, dtype=np.float32) for size in shape), indexing="ij", sparse=True)
    return [z, y, x, z * z, y * y, x * x, z * y, z * x, y * x]


def fit_field(channel: np.ndarray, brain: np.ndarray, where: np.ndarray) -> np.ndarray:
    """The logarithm of one channel's bias field.

    Args:
        channel: (S, H, W) intensities.
        brain: (S, H, W) bool, in which the field's median is 0.
        where: (S, H, W) bool, the voxels that it is fitted to; those without signal do not count.

    Returns:
        (S, H, W) float32 within `LIMIT`; 0 where there is too little to fit.
    """
    indices = np.flatnonzero(where & (channel > 0))
    terms = terms_of(channel.shape)
    if len(indices) < 100 * len(terms):
        return np.zeros(channel.shape, dtype=np.float32)
    indices = np.random.default_rng(0).choice(indices, min(SAMPLE, len(indices)), replace=False)
    values = np.log(channel.ravel()[indices].astype(np.float64))
    columns = [np.broadcast_to(term, channel.shape).ravel()[indices] for term in terms]
    design = np.stack([np.ones(len(values)), *columns], axis=1)
    weights = np.ones(len(values))
    for _ in range(ITERATIONS):
        root = np.sqrt(weights)
        coefficients = np.linalg.lstsq(design * root[:, None], values * root)[0]
        residuals = values - design @ coefficients
        residuals -= np.median(residuals)
        spread = max(1.4826 * np.median(np.abs(residuals)), 1e-6)
        weights = np.clip(1 - (residuals / (TUKEY * spread)) ** 2, 0, None) ** 2
    field = sum(factor * term for factor, term in zip(coefficients[1:].astype(np.float32), terms, strict=True))
    return np.clip(field - np.median(field[brain]), -LIMIT, LIMIT)


def without_field(volume: np.ndarray, suspected: np.ndarray | None = None) -> np.ndarray:
    """A volume with the bias field of each channel taken out.

    Args:
        volume: (S, H, W, 3) in any scale in which 0 is no signal.
        suspected: (S, H, W) bool, voxels that the field is not fitted to.

    Returns:
        (S, H, W, 3) float32.
    """
    brain = np.stack(list(map(brain_region, volume)))
    where = brain if suspected is None else brain & ~suspected
    fields = [fit_field(channel, brain, where) for channel in np.moveaxis(volume, -1, 0)]
    return volume.astype(np.float32) * np.exp(-np.stack(fields, axis=-1))


def main(argv: Sequence[str] | None = None) -> None:
    parser = command_parser(__doc__, "benchmarks.bias_field")
    parser.add_argument("--checkpoint", required=True, help="a saved model's folder, or USER/NAME on the Hub")
    parser.add_argument("--dataset", required=True, help="folder written by hub_dataset.build, or USER/NAME on the Hub")
    parser.add_argument("--split", default="validation", help="train, validation or test")
    parser.add_argument("--channels", choices=CHANNELS, default="all", help="given to the model")
    args = parser.parse_args(argv)
    try:
        split = load_split(args.dataset, args.split)
        rows_of = group_by_patient(split)
        model, processor = load_model(args.checkpoint)
    except (OSError, ValueError) as error:
        sys.exit(f"benchmarks.bias_field: error: {error}")

    scores: dict[str, list[VolumeScores]] = {}
    for patient_id in tqdm(sorted(rows_of), desc="patients"):
        patient = read_patient(split, patient_id, rows_of[patient_id])

        def predict(volume: np.ndarray) -> np.ndarray:
            return predict_volume(model, processor, volume if args.channels == "all" else volume[..., FLAIR])

        as_it_is = predict(patient.slices)
        whole = predict(without_field(patient.slices))
        unsuspected = predict(without_field(patient.slices, as_it_is >= SUSPECTED))
        variants = {
            AS_IT_IS: as_it_is,
            WHOLE: whole,
            UNSUSPECTED: unsuspected,
            f"{WHOLE}, averaged": (as_it_is + whole) / 2,
            f"{UNSUSPECTED}, averaged": (as_it_is + unsuspected) / 2,
        }
        for name, probabilities in variants.items():
            mask = mask_from_probabilities(probabilities)
            scores.setdefault(name, []).append(score_volume(mask, patient.truth, hausdorff=False))
    print(f"{len(rows_of)} patients of {args.split}, {args.channels} channels\n")
    print(table(["volume", *SCORES], [[name, *score_cells(of, scores[AS_IT_IS])] for name, of in scores.items()]))


if __name__ == "__main__":
    main()
