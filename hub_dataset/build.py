"""Build the Hugging Face dataset from the `kaggle_3m` folder: validated, split by patient, in Parquet with a card.

    python -m hub_dataset.build --source kaggle_3m --output data/lgg
    python -m hub_dataset.build --output data/lgg                              # downloads the source from Kaggle first
    python -m hub_dataset.build --source kaggle_3m --output data/lgg --push-to-hub USER/NAME

All of the source is checked before anything is written. Shards are finished in `.incomplete` inside the output and
published together at the end. A further run keeps every shard whose digest and whose source's digest are the recorded
ones, and writes byte-identical files with the same library versions.
"""

import argparse
import contextlib
import hashlib
import logging
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from modeling.files import write_atomically
from modeling.hub import HubError, check_destination, upload_folder

from .card import make_card
from .shards import (
    FEATURES,
    MANIFEST,
    Shard,
    ShardRecord,
    find_complete,
    has_digest,
    plan_shards,
    read_records,
    write_records,
    write_shard,
)
from .source import Patient, check_patient, scan_source
from .splits import SPLITS

logger = logging.getLogger(__name__)

KAGGLE_DATASET = "mateuszbuda/lgg-mri-segmentation"
STAGING = ".incomplete"
SHARDS = "*-of-*.parquet"


@dataclass(frozen=True)
class BuildReport:
    """What a build found and did: patients missing from the source, shards kept and written, the manifest's records."""

    missing: tuple[str, ...]
    kept: tuple[str, ...]
    written: tuple[str, ...]
    shards: dict[str, ShardRecord]

    def num_rows(self, split: str) -> int:
        return sum(record.num_rows for record in self.shards.values() if record.split == split)


def build_dataset(source: str | Path, output: str | Path, *, num_workers: int | None = None) -> BuildReport:
    """Build the dataset in `output` from the `kaggle_3m` folder (or unpacked archive) `source`.

    `datasets.load_dataset(output)` then gives those of the splits train, validation and test that have patients, with
    the columns `FEATURES`. What the source lacks is logged, returned and written on the card. An interrupted build
    leaves finished shards in `.incomplete`, which the next one takes over; a failed check leaves nothing.

    Args:
        num_workers: Threads that check and encode; None for one per processor.

    Raises:
        FileNotFoundError, ValueError: As `scan_source` and `read_slice`; or `output` holds other files, or lies in
            `source`.
    """
    source = scan_source(source)
    output = Path(output).expanduser()
    _check_output(output, source.root)
    if source.missing:
        logger.warning("The source lacks %d patients: %s", len(source.missing), ", ".join(source.missing))
    for patient in source.patients:
        if absent := patient.absent_slices:
            logger.warning("%s lacks the slices %s", patient.patient_id, ", ".join(map(str, absent)))

    pool = ThreadPoolExecutor(num_workers or os.cpu_count())
    try:
        shards = plan_shards(source.patients, _check_patients(source.patients, pool))
        records = find_complete(shards, output, output / STAGING)
        to_write = [shard for shard in shards if shard.path not in records]
        if to_write:
            records |= _write_shards(output / STAGING, to_write, pool)
    finally:
        pool.shutdown(cancel_futures=True)

    report = BuildReport(
        missing=source.missing,
        kept=tuple(shard.path for shard in shards if shard not in to_write),
        written=tuple(shard.path for shard in to_write),
        shards={shard.path: records[shard.path] for shard in shards},
    )
    _publish(output, report, phantom=source.is_phantom)
    return report


def _check_patients(patients: tuple[Patient, ...], pool: ThreadPoolExecutor) -> dict[str, str]:
    digests = tqdm(pool.map(check_patient, patients), desc="Checking", total=len(patients), unit="patient")
    return {patient.patient_id: digest for patient, digest in zip(patients, digests, strict=True)}


def _write_shards(staging: Path, shards: list[Shard], pool: ThreadPoolExecutor) -> dict[str, ShardRecord]:
    staging.mkdir(parents=True, exist_ok=True)
    num_slices = sum(len(patient.slices) for shard in shards for patient in shard.patients)
    try:
        with tqdm(total=num_slices, desc="Encoding", unit="slice") as progress:
            return {
                shard.path: write_shard(staging / Path(shard.path).name, shard, pool.map, progress.update)
                for shard in shards
            }
    except BaseException:
        with contextlib.suppress(OSError):  # raised for a folder that is not empty: it holds finished shards
            staging.rmdir()
            staging.parent.rmdir()
        raise


def _check_output(output: Path, root: Path) -> None:
    if output.exists() and not output.is_dir():
        raise ValueError(f"the output {output} is a file; give a folder")
    if output.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"the output {output} lies in the source {root}; give another folder")
    shards = any((output / "data").glob(SHARDS))  # which tell a manifest that was damaged from another's
    has_manifest = (output / MANIFEST).exists() and (shards or bool(read_records(output / MANIFEST)))
    ours = has_manifest or (output / STAGING).exists()
    if output.exists() and not ours and any(output.iterdir()):
        raise ValueError(f"the output {output} holds files that are not of this program; give a new or empty folder")


def _publish(output: Path, report: BuildReport, phantom: bool) -> None:
    """Move finished shards to their places, write manifest and card, and remove shards that are no longer part."""
    (output / "data").mkdir(parents=True, exist_ok=True)
    for name, record in report.shards.items():
        staged = output / STAGING / Path(name).name
        if not has_digest(output / name, record):
            staged.replace(output / name)
    for file in (output / "data").glob(SHARDS):
        if f"data/{file.name}" not in report.shards:
            file.unlink()

    splits = {}
    for split in SPLITS:
        records = [record for record in report.shards.values() if record.split == split]
        if records:
            splits[split] = {
                "num_examples": sum(r.num_rows for r in records),
                "num_bytes": sum(r.arrow_bytes for r in records),
                "num_patients": sum(len(r.patients) for r in records),
                "num_lesion_slices": sum(r.num_lesion_slices for r in records),
            }
    download_size = sum(record.size for record in report.shards.values())
    sha256 = hashlib.sha256("".join(record.sha256 for record in report.shards.values()).encode()).hexdigest()
    card = make_card(
        FEATURES, splits, download_size=download_size, sha256=sha256, missing=report.missing, phantom=phantom
    )
    write_atomically(output / "README.md", str(card).encode())
    write_records(output / MANIFEST, report.shards)
    shutil.rmtree(output / STAGING, ignore_errors=True)


def download_source() -> Path:
    """Download the dataset's archive from Kaggle (public, no account needed) and return the folder it is unpacked in.

    Raises:
        RuntimeError: `kagglehub` is not installed, or the download failed.
    """
    instead = f"Or unpack https://www.kaggle.com/datasets/{KAGGLE_DATASET} yourself and pass its folder as --source."
    try:
        import kagglehub
    except ImportError as error:
        raise RuntimeError(f"downloading needs kagglehub: pip install kagglehub. {instead}") from error
    try:
        return Path(kagglehub.dataset_download(KAGGLE_DATASET))
    except Exception as error:  # kagglehub passes on whatever its HTTP library raises
        raise RuntimeError(f"kagglehub could not download {KAGGLE_DATASET}: {error}. {instead}") from error


def push_to_hub(folder: str | Path, repo_id: str, *, private: bool = False) -> str:
    """Upload a built dataset, replacing the shards of an earlier one, and return the commit's address.

    Raises:
        HubError: The Hub cannot be reached or refuses; the dataset in `folder` stays as it is.
    """
    try:
        return upload_folder(
            folder,
            repo_id,
            repo_type="dataset",
            mark=MANIFEST,
            private=private,
            allow_patterns=["README.md", MANIFEST, "data/*.parquet"],
            delete_patterns=["data/*.parquet"],
            message="Upload the dataset",
        )
    except HubError as error:
        raise HubError(f"{folder} is complete but could not be pushed to {repo_id}. {error}") from error


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m hub_dataset.build", description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, help="kaggle_3m folder or unpacked archive (default: download it)")
    parser.add_argument("--output", type=Path, required=True, help="folder of the dataset; an earlier build is updated")
    parser.add_argument("--push-to-hub", metavar="USER/NAME", help="upload the result to this dataset repository")
    parser.add_argument("--private", action="store_true", help="make a new repository private; refuse a public one")
    parser.add_argument("--num-workers", type=int, help="threads that check and encode (default: one per processor)")
    args = parser.parse_args(argv)
    if args.num_workers is not None and args.num_workers < 1:
        parser.error(f"--num-workers must be at least 1, got {args.num_workers}")
    if args.private and not args.push_to_hub:
        parser.error("--private goes with --push-to-hub")
    if args.push_to_hub:
        try:
            check_destination(args.push_to_hub)
        except HubError as error:
            parser.error(f"--push-to-hub: {error}")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    logging.basicConfig(format="%(levelname)s: %(message)s")
    try:
        report = build_dataset(args.source or download_source(), args.output, num_workers=args.num_workers)
        for split in SPLITS:
            print(f"{split}: {report.num_rows(split)} slices")
        print(f"{args.output}: {len(report.written)} shards written, {len(report.kept)} kept")
        if args.push_to_hub:
            print(push_to_hub(args.output, args.push_to_hub, private=args.private))
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
