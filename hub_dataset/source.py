"""Finding, validating and reading the dataset's original form, the `kaggle_3m` folder.

    kaggle_3m/
    ├── data.csv                                one row of clinical data per patient
    └── TCGA_CS_4941_19960909/                  one folder per patient
        ├── TCGA_CS_4941_19960909_1.tif         RGB: pre-contrast T1, FLAIR, post-contrast T1
        └── TCGA_CS_4941_19960909_1_mask.tif    L, 0 or 255

Nothing is repaired or skipped in silence: what departs from this form raises a `ValueError` that names the file.
"""

import csv
import hashlib
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .splits import ALL_PATIENTS, is_phantom, split_of

SLICE_SIZE = (256, 256)  # height, width
MIN_PHANTOM_SIDE = 32

CLINICAL_COLUMNS = (
    "Patient",
    "RNASeqCluster",
    "MethylationCluster",
    "miRNACluster",
    "CNCluster",
    "RPPACluster",
    "OncosignCluster",
    "COCCluster",
    "histological_type",
    "neoplasm_histologic_grade",
    "tumor_tissue_site",
    "laterality",
    "tumor_location",
    "gender",
    "age_at_initial_pathologic",
    "race",
    "ethnicity",
    "death01",
)

# Where a patient folder may lie below the path given. The Kaggle archive holds the same images twice, in the last two;
# only the first of these that holds patients is read.
_ROOTS = (".", "kaggle_3m", "lgg-mri-segmentation/kaggle_3m")
_ARCHIVE_FOLDERS = {"kaggle_3m", "lgg-mri-segmentation", "__MACOSX"}


@dataclass(frozen=True)
class SliceFiles:
    """One slice: its number as in the file name, its image and its mask."""

    index: int
    image: Path
    mask: Path


@dataclass(frozen=True)
class Patient:
    """One patient folder: slices in ascending order, and the row of data.csv (None where it is blank)."""

    patient_id: str
    slices: tuple[SliceFiles, ...]
    clinical: dict[str, str | int | None]

    @property
    def absent_slices(self) -> list[int]:
        """Numbers from 1 to the last slice for which there is no file."""
        present = {s.index for s in self.slices}
        return [index for index in range(1, max(present)) if index not in present]


@dataclass(frozen=True)
class Source:
    """A scanned folder: patients sorted by name, and the dataset's patients that it lacks (a phantom lacks none)."""

    root: Path
    patients: tuple[Patient, ...]
    missing: tuple[str, ...]

    @property
    def is_phantom(self) -> bool:
        return is_phantom(self.patients[0].patient_id)


def find_root(path: str | Path) -> Path:
    """The folder that holds the patient folders: `path` itself, or the `kaggle_3m` inside an unpacked archive.

    Raises:
        FileNotFoundError: There is no folder `path`.
        ValueError: It holds no patient folders.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        raise FileNotFoundError(f"the source {path} is not a folder; give the unpacked kaggle_3m folder or archive")
    for candidate in (path / root for root in _ROOTS):
        if candidate.is_dir() and any(entry.is_dir() for entry in candidate.glob("TCGA_*")):
            return candidate
    raise ValueError(
        f"no patient folders (TCGA_<institution>_<patient>_<yyyymmdd>) in {path}, nor in kaggle_3m/ below it; "
        f"give the kaggle_3m folder or the unpacked archive that holds it"
    )


def scan_source(path: str | Path) -> Source:
    """List and check the names of all files below `path`; pixels are checked by `read_slice`.

    Raises:
        FileNotFoundError: There is no such folder, or no data.csv in it.
        ValueError: An unknown patient, a phantom among real patients, an image without a mask or a mask without an
            image, a slice that is there twice, a file that is named otherwise, or a data.csv that lacks a patient or
            column or holds another value than whole numbers.
    """
    root = find_root(path)
    folders = sorted(
        entry
        for entry in root.iterdir()
        if entry.is_dir() and not entry.name.startswith(".") and entry.name not in _ARCHIVE_FOLDERS
    )
    for folder in folders:
        try:
            split_of(folder.name)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from None
    names = [folder.name for folder in folders]
    phantoms = [name for name in names if is_phantom(name)]
    if phantoms and len(phantoms) < len(names):
        raise ValueError(f"{root} mixes phantom patients ({phantoms[0]}, ...) with real ones; build them separately")

    clinical = read_clinical(root / "data.csv")
    patients = []
    for folder in folders:
        case = folder.name.rsplit("_", 1)[0]
        if case not in clinical:
            raise ValueError(f"{root / 'data.csv'} has no row for {case} (folder {folder.name}); restore the row")
        patients.append(Patient(folder.name, _scan_patient(folder), clinical[case]))
    missing = () if phantoms else tuple(sorted(set(ALL_PATIENTS) - set(names)))
    return Source(root, tuple(patients), missing)


def _scan_patient(folder: Path) -> tuple[SliceFiles, ...]:
    pattern = re.compile(rf"{re.escape(folder.name)}_([0-9]{{1,4}})(_mask)?\.tif")
    images: dict[int, Path] = {}
    masks: dict[int, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.name.startswith(".") or file.suffix.lower() not in {".tif", ".tiff"}:
            continue
        match = pattern.fullmatch(file.name)
        if not match or int(match[1]) < 1:
            raise ValueError(
                f"{file} is not named as a slice of this patient; expected {folder.name}_<slice>.tif or "
                f"{folder.name}_<slice>_mask.tif with slices numbered from 1 to 9999"
            )
        files = masks if match[2] else images
        if other := files.get(int(match[1])):
            raise ValueError(f"slice {int(match[1])} is there twice: {other} and {file.name}; remove one")
        files[int(match[1])] = file

    for index in sorted(images.keys() - masks.keys()):
        raise ValueError(f"{images[index]} has no mask; expected {folder / f'{folder.name}_{index}_mask.tif'}")
    for index in sorted(masks.keys() - images.keys()):
        raise ValueError(
            f"{masks[index]} is a mask without its image; expected {folder / f'{folder.name}_{index}.tif'}"
        )
    if not images:
        raise ValueError(f"the patient folder {folder} holds no slices; expected {folder.name}_<slice>.tif")
    return tuple(SliceFiles(index, images[index], masks[index]) for index in sorted(images))


def read_clinical(path: str | Path) -> dict[str, dict[str, str | int | None]]:
    """data.csv as {`Patient`: row}, with whole numbers as int and None where blank.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A column is missing, unknown or there twice, a patient has two rows, or a value is no whole number.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; it is part of kaggle_3m and holds the clinical columns")
    try:
        path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); save it as such") from None
    rows: dict[str, dict[str, str | int | None]] = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        if sorted(columns) != sorted(CLINICAL_COLUMNS):
            raise ValueError(
                f"{path} must have the columns {', '.join(CLINICAL_COLUMNS)}, once each; "
                f"missing: {', '.join(sorted(set(CLINICAL_COLUMNS) - set(columns))) or 'none'}, "
                f"unknown: {', '.join(sorted(set(columns) - set(CLINICAL_COLUMNS))) or 'none'}"
            )
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row or None in row.values():
                raise ValueError(f"{where}: expected {len(CLINICAL_COLUMNS)} values")
            if not any(value.strip() for value in row.values()):
                continue
            case = row["Patient"].strip()
            if not case:
                raise ValueError(f"{where}: Patient is blank")
            if case in rows:
                raise ValueError(f"{where}: second row for {case}; keep one")
            rows[case] = {"Patient": case}
            for column in CLINICAL_COLUMNS[1:]:
                value = row[column].strip()
                if value and not (re.fullmatch(r"-?\d{1,10}", value) and abs(int(value)) < 2**31):
                    raise ValueError(f"{where}: {column} must be a whole number of 32 bits or blank, got {value!r}")
                rows[case][column] = int(value) if value else None
    return rows


def read_slice(files: SliceFiles) -> tuple[np.ndarray, np.ndarray]:
    """Read a slice: image (H, W, 3) uint8 and mask (H, W) uint8 with the values 0 and 255.

    Raises:
        ValueError: A file is unreadable, not RGB (image) or L (mask), not 256 x 256, or the mask holds another value.
            A phantom may be of any size from 32 pixels, the same for image and mask.
    """
    return _decode_slice(files, files.image.read_bytes(), files.mask.read_bytes())


def check_patient(patient: Patient) -> str:
    """Check all pixels of a patient and digest what was read: SHA-256 over the file contents and the clinical row.

    Raises:
        ValueError: As `read_slice`, or slices of a phantom that differ in size.
    """
    digest = hashlib.sha256(json.dumps([patient.patient_id, patient.clinical]).encode())
    first_shape = None
    for files in patient.slices:
        image, mask = files.image.read_bytes(), files.mask.read_bytes()
        shape = _decode_slice(files, image, mask)[1].shape
        first_shape = first_shape or shape
        if shape != first_shape:
            raise ValueError(f"{files.image} is {_size(shape)}, but the patient's first slice is {_size(first_shape)}")
        digest.update(files.index.to_bytes(4, "big"))
        digest.update(hashlib.sha256(image).digest())
        digest.update(hashlib.sha256(mask).digest())
    return digest.hexdigest()


def _decode_slice(files: SliceFiles, image_bytes: bytes, mask_bytes: bytes) -> tuple[np.ndarray, np.ndarray]:
    image = _decode(files.image, image_bytes, "RGB")
    mask = _decode(files.mask, mask_bytes, "L")
    expected = SLICE_SIZE
    if is_phantom(files.image.parent.name):
        expected = image.shape[:2]
        if min(expected) < MIN_PHANTOM_SIDE:
            raise ValueError(
                f"{files.image} is {_size(expected)}; a phantom has at least {MIN_PHANTOM_SIDE} pixels a side"
            )
    for file, pixels in ((files.image, image), (files.mask, mask)):
        if pixels.shape[:2] != expected:
            raise ValueError(f"{file} is {_size(pixels.shape)} pixels; expected {_size(expected)}")
    if others := np.setdiff1d(mask, [0, 255]).tolist():
        raise ValueError(
            f"{files.mask} holds the values {', '.join(map(str, others[:5]))}; a mask holds only 0 and 255"
        )
    return image, mask


def _decode(file: Path, content: bytes, mode: str) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(content)) as image:
            frames, found = getattr(image, "n_frames", 1), image.mode
            pixels = np.asarray(image)
    except (OSError, EOFError, SyntaxError, TypeError, ValueError, KeyError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file} cannot be read as an image ({error}); restore it from the archive") from error
    if frames != 1:
        raise ValueError(f"{file} holds {frames} images; expected one")
    if found != mode:
        raise ValueError(f"{file} has the mode {found}; expected {mode} with 8 bits a channel")
    return pixels


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"
