"""Segment the examinations of many patients: NIfTI, DICOM series, numbered slices, TIFF stacks, or zips of these.

    python predict.py --checkpoint checkpoints/unet-5level --output masks scans/*
    accelerate launch predict.py --checkpoint checkpoints/unet-5level --output masks scans/*

Each argument is one patient: a folder with the files of one examination, or a single file. The output then holds, for
each, NAME_mask.nii.gz in the input's own space, for a DICOM series NAME_mask_seg.dcm, a DICOM SEG on its slices, too,
and NAME.json with the measurements, as they come; measurements.csv with a line for each patient whose results are in
the folder, also from former runs; and probabilities/. Slices are counted from 1, from the feet where the input says
where they lie. Under `accelerate launch`, also on several machines with one file system, the processes share the
patients. The same command goes on where it was stopped. Patients that cannot be read are listed at the end, with the
reason, and the exit code is then 1. Research only, not a medical device.
"""

import argparse
import csv
import io
import json
import os
import sys
from collections.abc import Iterable, Sequence
from datetime import timedelta
from functools import lru_cache, partial
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm

from modeling.command_line import command_parser, whole_number
from modeling.commands import add_inference_arguments, load_checkpoint
from modeling.cores import use_cores
from modeling.dicom_segmentation import DicomSegmentationError, write_dicom_segmentation
from modeling.files import replacing, write_atomically
from modeling.inference import CROP_MARGIN, SCREENING_STRIDE
from modeling.input_checks import warnings_of
from modeling.measurements import measure_volume
from modeling.nifti_files import write_nifti
from modeling.postprocessing import check_threshold, describe_removed, mask_from_probabilities, outline_threshold
from modeling.predictions import PredictionStore, model_fingerprint, segment_dataset, weights_sha256
from modeling.volume_files import MRVolume, read_volume

PROBABILITIES = "probabilities"
TABLE_FILE = "measurements.csv"
TABLE = (
    "patient", "num_slices", "lesion_voxels", "volume_ml", "long_mm", "short_mm", "largest_slice", "threshold",
    "postprocessing", "warnings",
)  # fmt: skip


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument("patients", nargs="+", type=Path, metavar="PATIENT", help="a folder or a file, one per patient")
    parser.add_argument("--checkpoint", required=True, help="a saved model's folder, or USER/NAME on the Hub")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="made where it does not exist")
    add_inference_arguments(parser)
    parser.add_argument(
        "--no_postprocessing", action="store_true", help="take the voxels that reach the threshold as they are"
    )
    parser.add_argument(
        "--screening_stride",
        type=whole_number(1),
        default=SCREENING_STRIDE,
        metavar="N",
        help="compute every N-th slice first, then those beside a lesion; 1 computes every slice",
    )
    parser.add_argument(
        "--whole_frame", action="store_true", help="compute whole slices instead of the window around the head"
    )
    return parser.parse_args(argv)


def patient_name(path: Path) -> str:
    """What results are called after: a folder's name, or a file's without its suffix."""
    path = Path(os.path.abspath(path))  # noqa: PTH100 (`resolve` would follow links, whose own names tell patients apart)
    return path.name if path.is_dir() else path.name.removesuffix(".gz").rpartition(".")[0] or path.name


def name_patients(paths: Sequence[Path]) -> dict[str, Path]:
    """Name -> path of each patient.

    Raises:
        ValueError: two patients of one name, or a name that is no text.
    """
    named: dict[str, Path] = {}
    for path in paths:
        name = patient_name(path)
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ValueError(f"The name {path.name!r} is not in UTF-8, so no table can hold it; rename it.") from None
        if (other := named.setdefault(name, path)) != path:
            raise ValueError(f"{other} and {path} would both be called {name!r}; rename one.")
    return named


def result_files(folder: Path, name: str) -> tuple[Path, Path, Path]:
    """Where a patient's mask, DICOM SEG and measurements go."""
    return folder / f"{name}_mask.nii.gz", folder / f"{name}_mask_seg.dcm", folder / f"{name}.json"


def read_report(path: Path) -> dict | None:
    """What this program wrote of a patient; None where the file is not there, or somebody else's."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    ours = isinstance(report, dict) and {"patient", "weights_sha256", "diameters_mm"} <= report.keys()
    return report if ours else None


def check_output(folder: Path, names: Iterable[str]) -> None:
    """Raise `ValueError` where results would take the place of files that this program did not write."""
    table = folder / TABLE_FILE
    foreign = [table] if table.is_file() and not table.read_bytes().startswith(b"patient,num_slices,") else []
    for name in names:
        *masks, json_ = result_files(folder, name)
        ours = (folder / PROBABILITIES / f"{name}.npz").exists() or read_report(json_)
        foreign += [path for path in (*masks, json_) if path.exists() and not ours]
    if foreign:
        raise ValueError(f"{foreign[0]} is there already, and not by predict.py. Choose another --output.")


def write_patient(
    name: str, volume: MRVolume, store: PredictionStore, args: argparse.Namespace, provenance: dict
) -> None:
    """The masks and the measurements of a patient whose probabilities are in `store`."""
    probabilities = store.read(name)
    mask = reached = probabilities >= args.threshold
    outlined_at = args.threshold
    postprocessed = not args.no_postprocessing and len(mask) > 1  # islands are a matter of three dimensions
    if postprocessed:
        mask = mask_from_probabilities(probabilities, threshold=args.threshold)
        outlined_at = round(outline_threshold(probabilities, args.threshold), 4)
    nifti, dicom, json_ = result_files(args.output, name)
    with replacing(nifti) as unfinished:
        write_nifti(unfinished, mask, volume.geometry)
    removed = describe_removed(reached, mask)
    warnings = [*warnings_of(volume), *([removed] if removed else [])]
    dicom.unlink(missing_ok=True)  # of other headers or another threshold, should there be none now
    if volume.headers:
        try:
            with replacing(dicom) as unfinished:
                write_dicom_segmentation(
                    unfinished,
                    mask,
                    volume.headers,
                    volume.geometry,
                    model=Path(args.checkpoint).resolve().name,
                    weights_sha256=provenance["weights_sha256"],
                    parameters={
                        "threshold": args.threshold,
                        "outline_threshold": outlined_at,
                        "postprocessing": postprocessed,
                    },
                )
        except DicomSegmentationError as error:
            warnings.append(str(error))
    report = {
        "patient": name,
        **provenance,
        "threshold": args.threshold,
        "outline_threshold": outlined_at,
        "postprocessing": postprocessed,
        **measure_volume(mask, volume.spacing, volume.no_spacing),
        "description": volume.description,
        "warnings": warnings,
    }
    write_atomically(json_, json.dumps(report, indent=2).encode() + b"\n")


def write_table(folder: Path) -> None:
    """measurements.csv: a line for each patient in `folder` with a mask, from the JSON files."""
    text = io.StringIO()
    table = csv.DictWriter(text, TABLE, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    for json_ in sorted(folder.glob("*.json")):
        mask, *_ = result_files(folder, json_.stem)
        if not mask.is_file() or (report := read_report(json_)) is None:
            continue
        long, short = report["diameters_mm"] or (None, None)
        table.writerow(report | {"long_mm": long, "short_mm": short, "warnings": " ".join(report["warnings"])})
    write_atomically(folder / TABLE_FILE, text.getvalue().encode())


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    # Processes on CPUs find each other only if this is said, and one may be done long before the others.
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=1))
    use_cores(state.num_processes)
    try:
        check_threshold(args.threshold)
        paths = name_patients(args.patients)
        model, processor = load_checkpoint(args.checkpoint, args.engine)
        if args.engine == "torch":
            model.to(state.device)
        options = {
            "batch_size": args.batch_size,
            "screening_stride": args.screening_stride,
            "views": args.views,
            "crop_margin": None if args.whole_frame else CROP_MARGIN,
        }
        # Neither device nor engine, which change no more than the rounding.
        recipe = {"processor": processor.to_dict(), "options": options}
        check_output(args.output, paths)
        store = PredictionStore(args.output / PROBABILITIES, {"model": model_fingerprint(model), **recipe})
        provenance = {"checkpoint": args.checkpoint, "weights_sha256": weights_sha256(args.checkpoint), **recipe}
    except (OSError, ValueError) as error:
        sys.exit(f"predict.py: error: {error}")

    @lru_cache(maxsize=1)  # read once for the model and for the mask's space
    def read(name: str) -> MRVolume:
        return read_volume(paths[name])

    failures: dict[str, str] = {}
    done = segment_dataset(
        model,
        processor,
        {name: lambda name=name: read(name).slices for name in paths},
        store,
        process_index=state.process_index,
        num_processes=state.num_processes,
        failures=failures,
        finish=lambda name: write_patient(name, read(name), store, args, provenance),
        progress=partial(tqdm, desc="patients", unit="patient", disable=not state.is_main_process),
        **options,
    )
    done, failed = sorted(gather_object(done)), sorted(gather_object(list(failures.items())))
    if not state.is_main_process:
        return
    try:
        write_table(args.output)
    except OSError as error:
        sys.exit(f"predict.py: error: the table cannot be written: {error}. The same command goes on from here.")
    print(f"{len(done)} of {len(paths)} patients segmented; {args.output / TABLE_FILE}")
    if failed:
        sys.exit("\n".join(f"{name}: {reason}" for name, reason in failed))


if __name__ == "__main__":
    main()
