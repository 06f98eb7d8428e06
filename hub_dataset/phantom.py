"""A generated stand-in for the dataset: MR-like heads with a lesion, in the `kaggle_3m` layout.

    python -m hub_dataset.phantom phantom --patients 10 --seed 0
    python -m hub_dataset.build --source phantom --output phantom-dataset

Each patient has one irregular lesion that is bright on FLAIR and that the mask outlines. The anatomy is that of
`phantom_anatomy`; the scanner adds a point spread, a smooth bias field and Rician noise. Everything is drawn from the
seed.
"""

import argparse
import csv
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage
from tqdm.auto import tqdm

from .phantom_anatomy import Grid, Signal, make_head, paint_brain, paint_lesion, paint_skull, smooth_noise
from .source import CLINICAL_COLUMNS, MIN_PHANTOM_SIDE
from .splits import PHANTOM_INSTITUTION

MissingSequence = Literal["pre", "post"]

MIN_SLICES = 4
MAX_PATIENTS = 9999

# Values of the clinical columns as they occur in the dataset: (lowest, highest), both possible.
_CLINICAL_RANGES = {
    "RNASeqCluster": (1, 4),
    "MethylationCluster": (1, 5),
    "miRNACluster": (1, 4),
    "CNCluster": (1, 3),
    "RPPACluster": (1, 4),
    "OncosignCluster": (1, 3),
    "COCCluster": (1, 3),
    "histological_type": (1, 3),
    "neoplasm_histologic_grade": (1, 2),
    "tumor_tissue_site": (1, 1),
    "laterality": (1, 3),
    "tumor_location": (1, 6),
    "gender": (1, 2),
    "age_at_initial_pathologic": (20, 75),
    "race": (2, 3),
    "ethnicity": (1, 2),
    "death01": (0, 1),
}
_BLANK_PROBABILITY = 0.08


class PhantomVolume(NamedTuple):
    """`slices` (S, H, W, 3) uint8, channels T1 before contrast, FLAIR, T1 after contrast; `mask` (S, H, W) bool."""

    slices: np.ndarray
    mask: np.ndarray


def phantom_volume(
    seed: int | Sequence[int],
    *,
    num_slices: int = 24,
    size: int = 256,
    missing: MissingSequence | None = None,
) -> PhantomVolume:
    """Generate one head with a lesion; the same arguments give the same bytes.

    Slices run from below the temporal lobes to above the head, where the last one is empty but for noise. The anatomy
    depends on `seed` alone: other numbers of slices or pixels sample the same head, with the lesion moved up or down so
    that a slice meets its center.

    Args:
        seed: Seed as `numpy.random.default_rng` takes it.
        num_slices: Number of axial slices, at least 4.
        size: Height and width in pixels, at least 32.
        missing: T1 sequence that was not acquired: its channel is a copy of FLAIR, the dataset's own rule.

    Raises:
        ValueError: An argument is out of range.
    """
    if num_slices < MIN_SLICES:
        raise ValueError(f"num_slices must be at least {MIN_SLICES}, got {num_slices}")
    if size < MIN_PHANTOM_SIDE:
        raise ValueError(f"size must be at least {MIN_PHANTOM_SIDE} pixels, got {size}")
    if missing not in (None, "pre", "post"):
        raise ValueError(f"missing must be 'pre', 'post' or None, got {missing!r}")

    anatomy, lesion, scanner = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3))
    centers = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
    grid = Grid(np.linspace(-0.62, 1.06, num_slices, dtype=np.float32), centers, centers)

    head = make_head(anatomy, grid)
    signal = Signal(grid, edge=3 / size)
    paint_skull(signal, anatomy, grid, head)
    ventricles = paint_brain(signal, anatomy, grid, head)
    mask = paint_lesion(signal, lesion, grid, head, ventricles)
    slices = _acquire(signal.values, scanner, grid, size)
    if missing:
        slices[..., {"pre": 0, "post": 2}[missing]] = slices[..., 1]
    return PhantomVolume(slices, mask)


def _acquire(values: np.ndarray, rng: np.random.Generator, grid: Grid, size: int) -> np.ndarray:
    """The scanner: point spread, bias field, Rician noise and gain. (3, S, H, W) signal to (S, H, W, 3) uint8."""
    slices = np.empty((*values.shape[1:], 3), dtype=np.uint8)
    coil = np.exp(-1.5 * np.clip(-0.50 - grid.z, 0, None))[:, None, None]
    for channel, signal in enumerate(values):
        gain, noise = rng.uniform(150, 235), rng.uniform(0.010, 0.022)
        bias = np.exp(0.09 * smooth_noise(rng, grid, 0.9, 1.2)) * coil
        blurred = ndimage.gaussian_filter(signal, (0, size / 420, size / 420)) * bias
        real, imaginary = np.float32(noise) * rng.standard_normal((2, *signal.shape), dtype=np.float32)
        slices[..., channel] = np.clip(gain * np.hypot(blurred + real, imaginary), 0, 255).astype(np.uint8)
    return slices


def missing_sequence(number: int) -> MissingSequence | None:
    """Sequence that phantom patient `number` lacks: of eight patients the fourth "post", the sixth "pre"."""
    return {4: "post", 6: "pre"}.get(number % 8)


def write_phantom(
    dest: str | Path, num_patients: int, *, seed: int = 0, num_slices: int = 24, size: int = 256
) -> list[str]:
    """Write phantom patients and their data.csv in the `kaggle_3m` layout and return the patients' names.

    Patients are numbered from 1; the same number and seed give the same files, however many patients are written.

    Raises:
        ValueError: `dest` exists and is not an empty folder or is the current one, or an argument is out of range.
    """
    dest = Path(dest).expanduser()
    if not 1 <= num_patients <= MAX_PATIENTS:
        raise ValueError(f"the number of patients must be from 1 to {MAX_PATIENTS}, got {num_patients}")
    if seed < 0:
        raise ValueError(f"the seed must be 0 or more, got {seed}")
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise ValueError(f"{dest} exists and is not an empty folder; give a new one")
    if dest.exists() and dest.samefile(Path.cwd()):
        raise ValueError(f"{dest} is the current folder, which cannot be replaced; give a new one")

    dest.parent.mkdir(parents=True, exist_ok=True)
    unfinished = tempfile.mkdtemp(dir=dest.parent, prefix=f".{dest.name}-")
    partial = Path(unfinished, dest.name)
    partial.mkdir()
    try:
        names, rows = [], []
        for number in tqdm(range(1, num_patients + 1), desc="Phantom", unit="patient"):
            name = f"TCGA_{PHANTOM_INSTITUTION}_{number:04d}_20000101"
            volume = phantom_volume((seed, number), num_slices=num_slices, size=size, missing=missing_sequence(number))
            _write_patient(partial / name, volume)
            names.append(name)
            rows.append(_clinical_row(name, np.random.default_rng((seed, number, 1))))
        with (partial / "data.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, CLINICAL_COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        if dest.exists():
            dest.rmdir()
        partial.rename(dest)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return names


def _write_patient(folder: Path, volume: PhantomVolume) -> None:
    folder.mkdir()
    for index, (image, mask) in enumerate(zip(*volume, strict=True), start=1):
        Image.fromarray(image).save(folder / f"{folder.name}_{index}.tif")
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{folder.name}_{index}_mask.tif")


def _clinical_row(name: str, rng: np.random.Generator) -> dict[str, str | int]:
    row: dict[str, str | int] = {"Patient": name.rsplit("_", 1)[0]}
    for column, (low, high) in _CLINICAL_RANGES.items():
        value = int(rng.integers(low, high + 1))
        row[column] = "" if rng.random() < _BLANK_PROBABILITY else value
    return row


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m hub_dataset.phantom", description=__doc__.splitlines()[0])
    parser.add_argument("dest", type=Path, help="new folder to write to")
    parser.add_argument("--patients", type=int, default=10, help="number of patients (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all that is drawn (default: %(default)s)")
    parser.add_argument("--slices", type=int, default=24, help="slices per patient (default: %(default)s)")
    parser.add_argument("--size", type=int, default=256, help="pixels a side (default: %(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    try:
        names = write_phantom(args.dest, args.patients, seed=args.seed, num_slices=args.slices, size=args.size)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"{args.dest}: {len(names)} patients of {args.slices} slices")


if __name__ == "__main__":
    main()
