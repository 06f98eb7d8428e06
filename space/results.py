"""What people take away: masks, maps, pictures and measurements as files."""

import csv
import io
import json
import re
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from gradio.utils import get_upload_folder
from PIL import Image

PROBABILITY_STEPS = 1024  # maps are rounded to this part of 1, which compresses well
NOTICE = "Research software, not a medical device: not for diagnosis or treatment.\n"
OF_A_MODEL = "The outline is that of a model, see measurements.json for which one and how it was run.\n"
COMPARED = (
    "Two outlines, A and B, each of a model or the mask that was uploaded: see measurements.json, a and b.\n"
    "mask_a/ and mask_b/ hold them slice by slice; overlay/ has A's in orange and B's in blue; in *_agreement.nii.gz,\n"
    "1 is in both, 2 in A only, 3 in B only.\n"
)
DICOM_NOTICE = "The DICOM SEG holds the patient's and the study's data as they are in the headers of the series.\n"


def new_folder() -> Path:
    """An empty folder for the results of one request, where Gradio may serve files from; see retention.py."""
    root = Path(get_upload_folder()) / "results"
    root.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(dir=root))


def volume_measurements(mask: np.ndarray, volume, provenance: Mapping) -> dict:
    """The measurements of a mask (S, H, W) on an `MRVolume` (see `measure_volume`) after what made it."""
    from modeling.measurements import measure_volume

    return {**provenance, **measure_volume(mask, volume.spacing, volume.no_spacing)}


def measurements_csv(measurements: Mapping, slice_names: list[str]) -> str:
    """Measurements as a table: one line for each fact, then one for each slice; for a comparison those of A, then B."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["measurement", "value"])
    of_masks = {"": measurements} | {f"{side}.": measurements[side] for side in "ab" if side in measurements}
    for prefix, facts in of_masks.items():
        for name, value in facts.items():
            if name not in ("area_per_slice_pixels", "a", "b"):
                writer.writerow([prefix + name, json.dumps(value) if isinstance(value, list | dict) else value])
    for prefix, facts in of_masks.items():
        if "area_per_slice_pixels" not in facts:
            continue
        spacing = facts["spacing_mm"]
        pixel = spacing[1] * spacing[2] if spacing else None
        writer.writerow([])
        writer.writerow(["slice", "file", f"{prefix}area_pixels", f"{prefix}area_mm2"])
        for number, (name, area) in enumerate(zip(slice_names, facts["area_per_slice_pixels"], strict=True), start=1):
            writer.writerow([number, name, area, round(area * pixel, 2) if pixel else ""])
    return text.getvalue()


def slice_names(volume) -> list[str]:
    """A name for each slice's files: the uploaded file's own where these differ, or its number from 1."""
    names = [plain(name) for name in volume.slice_names or ()]
    if len(set(names)) == len(volume.slices):
        return names
    return [f"slice_{number:03d}" for number in range(1, len(volume.slices) + 1)]


def write_masks(folder: Path, stem: str, mask: np.ndarray, volume) -> dict[str, str]:
    """The mask in the formats that suit the input: format -> path.

    `nifti` lies in the input's own space; input of image files has `tiff`, too: a page for each slice, 0 or 255.
    """
    from modeling.nifti_files import write_nifti

    paths = {"nifti": folder / f"{stem}_mask.nii.gz"}
    write_nifti(paths["nifti"], mask, volume.geometry)
    if volume.geometry.nifti_header is None and not volume.headers:
        paths["tiff"] = folder / f"{stem}_mask.tif"
        pages = [Image.fromarray(page) for page in mask.astype(np.uint8) * np.uint8(255)]
        pages[0].save(paths["tiff"], save_all=True, append_images=pages[1:], compression="tiff_deflate")
    return {name: str(path) for name, path in paths.items()}


def write_dicom_seg(folder: Path, stem: str, mask: np.ndarray, volume, provenance: Mapping) -> str:
    """The mask of a model as a DICOM SEG on the slices of a volume that came as DICOM: its path.

    Raises:
        DicomSegmentationError: the headers do not do for one.
    """
    from modeling.dicom_segmentation import write_dicom_segmentation

    path = folder / f"{stem}_mask_seg.dcm"
    write_dicom_segmentation(
        path,
        mask,
        volume.headers,
        volume.geometry,
        model=provenance["model"],
        weights_sha256=provenance["weights_sha256"],
        parameters={"threshold": provenance["threshold"], **(provenance["postprocessing"] or {})},
    )
    return str(path)


def write_volume_zip(
    path: Path,
    stem: str,
    grey: np.ndarray,
    volume,
    masks: Mapping[str, str],
    mask: np.ndarray,
    maps: Mapping[str, np.ndarray],
    measurements: Mapping,
    reference: np.ndarray | None = None,
) -> str:
    """Everything of a volume in one archive.

    Args:
        grey: (S, H, W) uint8, FLAIR as shown.
        masks: files to include, from `write_masks` and `write_dicom_seg`.
        mask, reference: (S, H, W) bool, A and B of a comparison with a reference; their outlines are drawn on the
            slices that have any.
        maps: name -> (S, H, W) float32 in [0, 1], written as NIfTI.
    """
    from modeling.nifti_files import write_nifti
    from modeling.visualization import draw_outline

    names = slice_names(volume)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in masks.values():
            archive.write(file, Path(file).name, zipfile.ZIP_STORED)
        for kind, array in maps.items():
            file = path.parent / f"{stem}_{kind}.nii.gz"
            write_nifti(file, rounded(array), volume.geometry)
            archive.write(file, file.name, zipfile.ZIP_STORED)
            file.unlink()
        pictured = {"mask": mask} if reference is None else {"mask_a": mask, "mask_b": reference}
        for index, name in enumerate(names):
            for kind, array in pictured.items():
                archive.writestr(f"{kind}/{name}_mask.png", png(array[index].astype(np.uint8) * np.uint8(255)))
            if mask[index].any() or (reference is not None and reference[index].any()):
                outlines = draw_outline(
                    grey[index], mask[index], reference=None if reference is None else reference[index], scale=2
                )
                archive.writestr(f"overlay/{name}.png", png(outlines))
        archive.writestr("measurements.json", json.dumps(measurements, indent=2))
        archive.writestr("measurements.csv", measurements_csv(measurements, names))
        what = OF_A_MODEL if reference is None else COMPARED
        archive.writestr("README.txt", NOTICE + what + (DICOM_NOTICE if "dicom_seg" in masks else ""))
    return str(path)


def write_slice_zip(path: Path, stem: str, pictures: Mapping[str, Image.Image | np.ndarray], measurements) -> str:
    """Everything of a slice in one archive; `pictures` by the end of their names."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for kind, picture in pictures.items():
            archive.writestr(f"{stem}_{kind}.png", png(picture), zipfile.ZIP_STORED)
        archive.writestr("measurements.json", json.dumps(measurements, indent=2))
        archive.writestr("measurements.csv", measurements_csv(measurements, []))
        archive.writestr("README.txt", NOTICE + OF_A_MODEL)
    return str(path)


def rounded(array: np.ndarray) -> np.ndarray:
    return np.rint(array * PROBABILITY_STEPS).astype(np.float32) / np.float32(PROBABILITY_STEPS)


def png(picture: Image.Image | np.ndarray) -> bytes:
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def first_path(paths) -> str | Path:
    """The path itself, or the first of several, after which results are named."""
    return paths if isinstance(paths, str | Path) else next(iter(paths))


def file_stem(path: str | Path) -> str:
    """A name for results, from an upload's."""
    name = Path(path).name
    return plain(name[:-7] if name.lower().endswith(".nii.gz") else Path(name).stem)


def plain(name: str) -> str:
    """A name that is safe as a file's on any system."""
    return re.sub(r"[^\w.+-]", "_", name)[:100]
