"""Two outlines of one volume: of two models, or of a model and a person."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .handlers import Progress, check_request, draw, no_progress
from .results import file_stem, first_path, new_folder, plain, volume_measurements, write_masks, write_volume_zip
from .uploads import InputError, read_uploaded_mask, read_uploaded_volume
from .viewer import HEADROOM, write_view
from .volume_handlers import predict

AGREEMENT = {"both": 1, "a_only": 2, "b_only": 3}  # voxels of the map of agreement
AGREEMENT_COLOR = (0, 158, 115)  # bluish green of the palette that `modeling.visualization` uses
FILL = 0.4  # opacity of the colours of agreement


@dataclass(frozen=True)
class Comparison:
    """Two masks of one volume and how far they agree; None where a score is undefined or cannot be known."""

    view: dict  # FLAIR and both masks for the viewer, see `write_view`
    picture: Image.Image  # the slice with most lesion, see `draw_agreement`
    mask_a: np.ndarray  # (S, H, W) bool, the first model's
    mask_b: np.ndarray  # (S, H, W) bool, the second model's or the uploaded one
    dice: float | None  # None where both are empty
    iou: float | None
    hd95_pixels: float | None  # None where either is empty; a step from slice to slice counts as one pixel
    hd95_mm: float | None  # None, too, where the spacing is unknown
    measurements: dict  # ready for JSON: the scores, the voxels of each kind, and each mask's measurements
    warnings: list[str]
    description: str
    zip_path: str  # both masks, the map of agreement, pictures and measurements, in the upload folder


def compare_either(
    paths, model: str, other_model: str | None, mask_paths, threshold: float, models: dict[str, str], progress: Progress
) -> Comparison:
    """The comparison with the one that was given of a second model and a mask.

    Raises:
        InputError: both or neither, or as `compare_models` and `compare_with_mask`.
    """
    if bool(other_model) == bool(mask_paths):
        raise InputError(
            f"{'Both' if mask_paths else 'Neither'} of other_model and mask came. Give a second model's name, or the "
            f"files of a mask, to compare {model!r:.80} with."
        )
    if mask_paths:
        return compare_with_mask(paths, model, mask_paths, threshold, models, progress)
    return compare_models(paths, model, other_model, threshold, models, progress)


def compare_models(
    paths, model_a: str, model_b: str, threshold: float, models: dict[str, str], progress: Progress = no_progress
) -> Comparison:
    """Outline one volume, or slice, with two models.

    Args:
        paths: one path or several, in Gradio's upload folder.
        model_a, model_b: names in `models`.
        threshold: probability from which a voxel belongs to the lesion, for both.
        progress: called with the part done, 0 to 1, and `desc`.

    Raises:
        InputError: files that do not make up one volume, an unknown model, or a threshold out of range.
    """
    for model in (model_a, model_b):
        check_request(model, threshold, models)
    progress(0, desc="Reading the files")
    volume = read_uploaded_volume(paths)
    a = predict(volume, model_a, threshold, models, progress, 0.0, 0.45)
    b = predict(volume, model_b, threshold, models, progress, 0.45, 0.45)
    progress(0.92, desc="Comparing")
    names, removed = (model_a, model_b), (a.removed, b.removed)
    return compare(paths, volume, names, (a.mask, b.mask), (a.provenance, b.provenance), removed)


def compare_with_mask(
    paths, model: str, mask_paths, threshold: float, models: dict[str, str], progress: Progress = no_progress
) -> Comparison:
    """Outline one volume, or slice, with a model, and compare that with an uploaded mask.

    Args:
        paths, mask_paths: one path or several each, in Gradio's upload folder; the mask as NIfTI, a TIFF stack or
            numbered slices, on the volume's voxels.
        model, threshold, progress: as for `segment_volume`.

    Raises:
        InputError: as `segment_volume`, or no mask, or one that does not lie on the volume's voxels.
    """
    check_request(model, threshold, models)
    if not mask_paths:
        raise InputError("There is no mask to compare with. Upload one, drawn on the same images.")
    progress(0, desc="Reading the files")
    volume = read_uploaded_volume(paths)
    reference = read_uploaded_mask(mask_paths, volume)
    prediction = predict(volume, model, threshold, models, progress, 0.0, 0.9)
    progress(0.92, desc="Comparing")
    uploaded = {"mask": Path(first_path(mask_paths)).name}
    names, masks = (model, "reference"), (prediction.mask, reference)
    return compare(paths, volume, names, masks, (prediction.provenance, uploaded), (prediction.removed, None))


def compare(
    paths,
    volume,
    names: tuple[str, str],
    masks: tuple[np.ndarray, np.ndarray],
    provenances: tuple[dict, dict],
    removed: tuple[str | None, str | None],
) -> Comparison:
    """Score, measure and write two masks (S, H, W) of an `MRVolume`; `removed` as in `Prediction`, of each."""
    from modeling.input_checks import warnings_of
    from modeling.measurements import largest_slice
    from modeling.metrics import confusion_counts, dice, hausdorff95, iou
    from modeling.nifti_files import write_nifti
    from modeling.visualization import volume_to_grey

    a, b = masks
    counts = confusion_counts(a, b)
    # A single slice has no third dimension in which its inside would be a surface.
    flat = (a[0], b[0]) if len(a) == 1 else (a, b)
    spacing = volume.spacing[-flat[0].ndim :] if volume.spacing else None
    scores = {
        "dice": defined(dice(counts)),
        "iou": defined(iou(counts)),
        "hd95_pixels": defined(hausdorff95(*flat)),
        "hd95_mm": defined(hausdorff95(*flat, spacing)) if spacing else None,
    }
    measurements = {
        **scores,
        "reason": undefined_because(a, b, volume),
        "agreement_labels": AGREEMENT,
        "voxels_in_both": counts.tp,
        "voxels_in_a_only": counts.fp,
        "voxels_in_b_only": counts.fn,
        "a": volume_measurements(a, volume, provenances[0]),
        "b": volume_measurements(b, volume, provenances[1]),
    }
    warnings = warnings_of(volume)
    warnings += [f"{name}: {islands}" for name, islands in zip(names, removed, strict=True) if islands]
    measurements["warnings"] = warnings
    grey = volume_to_grey(volume.flair)
    folder, stem = new_folder(), file_stem(first_path(paths))
    files = {}
    for side, name, mask in zip("ab", names, masks, strict=True):
        files[side] = write_masks(folder, f"{stem}_{side}_{plain(name)}", mask, volume)["nifti"]
    agreement = np.select([a & b, a, b], [np.uint8(label) for label in AGREEMENT.values()], np.uint8(0))
    files["agreement"] = str(folder / f"{stem}_agreement.nii.gz")
    write_nifti(Path(files["agreement"]), agreement, volume.geometry)
    path = folder / f"{stem}_comparison.zip"
    index = largest_slice(a | b)
    return Comparison(
        view=write_view(folder, volume_to_grey(volume.flair, HEADROOM), volume.spacing, index, mask=a, reference=b),
        picture=draw_agreement(grey[index], a[index], b[index]),
        mask_a=a,
        mask_b=b,
        **scores,
        measurements=measurements,
        warnings=warnings,
        description=volume.description,
        zip_path=write_volume_zip(path, stem, grey, volume, files, a, {}, measurements, reference=b),
    )


def draw_agreement(flair: np.ndarray, a: np.ndarray, b: np.ndarray) -> Image.Image:
    """FLAIR (H, W) in grey with two masks (H, W) bool: filled where they agree and differ, and both outlined.

    A's outline is orange and B's blue, as is what either has alone; what they share is green.
    """
    from modeling.visualization import PREDICTION_COLOR, REFERENCE_COLOR, draw_outline

    outlined = draw(flair, a, b)
    scale = outlined.width // flair.shape[1]
    filled = np.array(draw_outline(flair, np.zeros(flair.shape, dtype=bool), scale=scale), dtype=np.float32)
    for part, color in ((a & b, AGREEMENT_COLOR), (a & ~b, PREDICTION_COLOR), (b & ~a, REFERENCE_COLOR)):
        enlarged = np.repeat(np.repeat(part, scale, axis=0), scale, axis=1)
        filled[enlarged] = (1 - FILL) * filled[enlarged] + FILL * np.array(color)
    lines = np.asarray(outlined)
    on_line = (lines != lines[..., :1]).any(axis=-1, keepdims=True)  # all else is grey
    return Image.fromarray(np.where(on_line, lines, np.rint(filled).astype(np.uint8)))


def defined(score: float) -> float | None:
    return None if math.isnan(score) else round(float(score), 6)


def undefined_because(a: np.ndarray, b: np.ndarray, volume) -> str | None:
    """Why a score of `Comparison` is None, in a sentence; None where none is."""
    if not (a.any() or b.any()):
        return "Both outlines are empty: they agree that there is no lesion, which Dice, IoU and HD95 cannot express."
    if not (a.any() and b.any()):
        return "One of the outlines is empty, so that there is no distance (HD95) between them."
    if volume.spacing is None:
        return f"No HD95 in mm: the spacing of the voxels is unknown, {volume.no_spacing}."
    return None
