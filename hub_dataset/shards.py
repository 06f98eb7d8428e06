"""The dataset's Parquet shards: columns, encoding, and the records by which a later run knows what is done."""

import hashlib
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, Value
from PIL import Image as PILImage

from modeling.files import write_atomically

from .source import CLINICAL_COLUMNS, Patient, SliceFiles, read_slice
from .splits import SPLITS, institution_of, split_of

MANIFEST = "manifest.json"
PATIENTS_PER_SHARD = 8

# Measured on 200 slices of the dataset (Pillow 12.3, one core): lossless WebP takes 56 KB a slice and 1.8 ms to decode,
# PNG 71 KB and 1.8 ms, uncompressed TIFF 192 KB. WebP has no grey mode, so masks are PNG.
IMAGE_ENCODING = {"format": "WEBP", "lossless": True, "exact": True, "method": 4, "quality": 50}
MASK_ENCODING = {"format": "PNG", "optimize": True}

FEATURES = Features(
    {
        "image": Image(),
        "mask": Image(),
        "patient_id": Value("string"),
        "slice_index": Value("int32"),
        "num_slices": Value("int32"),
        "institution": Value("string"),
        "has_lesion": Value("bool"),
        "lesion_pixels": Value("int32"),
        "Patient": Value("string"),
        **{column: Value("int32") for column in CLINICAL_COLUMNS[1:]},
    }
)

# Part of every source digest: a change here rebuilds the shards.
_FORMAT = json.dumps([1, IMAGE_ENCODING, MASK_ENCODING, PATIENTS_PER_SHARD, FEATURES.to_dict()], sort_keys=True)


@dataclass(frozen=True)
class Shard:
    """A Parquet file to be: its place below the output, its patients, and the digest of what they consist of."""

    path: str
    split: str
    patients: tuple[Patient, ...]
    source_sha256: str


@dataclass(frozen=True)
class ShardRecord:
    """What the manifest keeps of a finished shard. `arrow_bytes` is the size of its rows in memory."""

    source_sha256: str
    sha256: str
    size: int
    arrow_bytes: int
    split: str
    num_rows: int
    num_lesion_slices: int
    patients: list[str]


def plan_shards(patients: tuple[Patient, ...], digests: dict[str, str]) -> list[Shard]:
    """Deal patients, in order, over shards of at most `PATIENTS_PER_SHARD` in each split."""
    shards = []
    for split in SPLITS:
        members = [patient for patient in patients if split_of(patient.patient_id) == split]
        groups = [members[i : i + PATIENTS_PER_SHARD] for i in range(0, len(members), PATIENTS_PER_SHARD)]
        for i, group in enumerate(groups):
            digest = hashlib.sha256("\n".join([_FORMAT, *(digests[p.patient_id] for p in group)]).encode())
            path = f"data/{split}-{i:05d}-of-{len(groups):05d}.parquet"
            shards.append(Shard(path, split, tuple(group), digest.hexdigest()))
    return shards


def encode_slice(patient: Patient, files: SliceFiles) -> dict:
    """One row of the dataset, its images encoded and verified to decode to the same pixels.

    Raises:
        RuntimeError: The installed Pillow does not encode without loss.
    """
    image, mask = read_slice(files)
    lesion_pixels = int(np.count_nonzero(mask))
    return {
        "image": {"bytes": _encode(image, IMAGE_ENCODING), "path": files.image.with_suffix(".webp").name},
        "mask": {"bytes": _encode(mask, MASK_ENCODING), "path": files.mask.with_suffix(".png").name},
        "patient_id": patient.patient_id,
        "slice_index": files.index,
        "num_slices": len(patient.slices),
        "institution": institution_of(patient.patient_id),
        "has_lesion": lesion_pixels > 0,
        "lesion_pixels": lesion_pixels,
        **patient.clinical,
    }


def _encode(pixels: np.ndarray, encoding: dict) -> bytes:
    buffer = io.BytesIO()
    PILImage.fromarray(pixels).save(buffer, **encoding)
    if not np.array_equal(np.asarray(PILImage.open(buffer)), pixels):
        raise RuntimeError(f"this Pillow ({PILImage.__version__}) does not keep pixels in {encoding['format']}")
    return buffer.getvalue()


def write_shard(path: Path, shard: Shard, map_: Callable, advance: Callable[[], object]) -> ShardRecord:
    """Write a shard, one row group per patient, and beside it its record; nothing stays of a shard that failed.

    Args:
        path: File to write.
        map_: Like the built-in `map`, e.g. an executor's.
        advance: Called after each slice.
    """
    schema = FEATURES.arrow_schema
    temporary = path.with_suffix(".tmp")
    arrow_bytes = num_rows = num_lesion_slices = 0
    try:
        with pq.ParquetWriter(
            temporary,
            schema,
            compression="snappy",
            use_dictionary=[name for name, feature in FEATURES.items() if isinstance(feature, Value)],
            write_page_index=True,
            use_content_defined_chunking=True,
        ) as writer:
            for patient in shard.patients:
                rows = []
                for row in map_(encode_slice, [patient] * len(patient.slices), patient.slices):
                    rows.append(row)
                    advance()
                table = pa.Table.from_pylist(rows, schema)
                writer.write_table(table, row_group_size=len(table))
                arrow_bytes += table.nbytes
                num_rows += len(rows)
                num_lesion_slices += sum(row["has_lesion"] for row in rows)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    record = ShardRecord(
        source_sha256=shard.source_sha256,
        sha256=_sha256(path),
        size=path.stat().st_size,
        arrow_bytes=arrow_bytes,
        split=shard.split,
        num_rows=num_rows,
        num_lesion_slices=num_lesion_slices,
        patients=[patient.patient_id for patient in shard.patients],
    )
    write_records(_record_path(path), {shard.path: record})
    return record


def find_complete(shards: Iterable[Shard], output: Path, staging: Path) -> dict[str, ShardRecord]:
    """Records of the shards that earlier runs finished from the same source, published in `output` or still staged.

    A record counts only if a file has the digest it gives.
    """
    published = read_records(output / MANIFEST)
    complete = {}
    for shard in shards:
        staged = staging / Path(shard.path).name
        for record in (published.get(shard.path), read_records(_record_path(staged)).get(shard.path)):
            same_source = record and record.source_sha256 == shard.source_sha256
            if same_source and (has_digest(output / shard.path, record) or has_digest(staged, record)):
                complete[shard.path] = record
    return complete


def has_digest(file: Path, record: ShardRecord) -> bool:
    """Whether the file is there with the content of the record."""
    return file.is_file() and file.stat().st_size == record.size and _sha256(file) == record.sha256


def read_records(path: Path) -> dict[str, ShardRecord]:
    """Records by shard path; none where the file is missing or damaged, which means building anew."""
    try:
        return {
            name: ShardRecord(**record)
            for name, record in json.loads(path.read_text(encoding="utf-8"))["shards"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def write_records(path: Path, records: dict[str, ShardRecord]) -> None:
    """Write records as JSON; no reader sees half of it."""
    shards = {name: asdict(record) for name, record in records.items()}
    write_atomically(path, json.dumps({"shards": shards}, indent=2).encode() + b"\n")


def _record_path(staged: Path) -> Path:
    return staged.with_suffix(".json")


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
