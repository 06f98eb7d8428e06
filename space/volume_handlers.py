"""Handlers of volumes: uploaded files, a model's name and a threshold in, arrays, numbers and files out."""

from collections.abc import Iterator, Sized
from dataclasses import dataclass

import numpy as np

from .handlers import Progress, check_request, load, no_progress
from .results import (
    file_stem,
    first_path,
    new_folder,
    volume_measurements,
    write_dicom_seg,
    write_masks,
    write_volume_zip,
)
from .uploads import read_uploaded_volume
from .viewer import HEADROOM, write_view


@dataclass(frozen=True)
class VolumePreview:
    """An uploaded volume before any model ran."""

    view: dict  # FLAIR for the viewer, axial, see `write_view`
    spacing: tuple[float, float, float] | None  # mm along (S, H, W)
    warnings: list[str]  # sentences on what looks wrong and what was left out
    description: str  # one line


@dataclass(frozen=True)
class VolumeResult:
    """One segmented volume, ready to show; files lie in the upload folder."""

    view: dict  # FLAIR, mask and probabilities for the viewer, axial, see `write_view`
    probabilities: np.ndarray  # (S, H, W) float32 in [0, 1]
    mask: np.ndarray  # (S, H, W) bool, after post-processing
    uncertainty: np.ndarray | None  # (S, H, W) float32 in [0, 1], see `uncertainty.disagreement`
    measurements: dict  # see `results.volume_measurements`
    warnings: list[str]
    description: str
    masks: dict[str, str]  # format -> path, see `results.write_masks`; with "dicom_seg" where the input is DICOM
    zip_path: str


@dataclass(frozen=True)
class Prediction:
    """What one model says of a volume."""

    probabilities: np.ndarray
    mask: np.ndarray
    provenance: dict  # the model, its weights and how it was run
    removed: str | None  # which island post-processing left out, in a sentence, where it is a large one


def open_volume(paths) -> VolumePreview:
    """Read an uploaded volume; no model runs.

    Args:
        paths: one path or several, in Gradio's upload folder.

    Raises:
        InputError: files that do not make up one volume.
    """
    from modeling.input_checks import warnings_of
    from modeling.visualization import volume_to_grey

    volume = read_uploaded_volume(paths)
    view = write_view(new_folder(), volume_to_grey(volume.flair, HEADROOM), volume.spacing)
    return VolumePreview(view, volume.spacing, warnings_of(volume), volume.description)


def segment_volume(
    paths,
    model: str,
    threshold: float,
    models: dict[str, str],
    progress: Progress = no_progress,
    uncertainty: bool = False,
) -> VolumeResult:
    """Outline the lesion in an uploaded volume.

    Args:
        paths: one path or several, in Gradio's upload folder.
        model: a name in `models` (see `find_models`).
        threshold: probability from which a voxel belongs to the lesion, between 0 and 1, exclusive.
        progress: called with the part done, 0 to 1, and `desc`.
        uncertainty: whether to measure how sure the model is, in four times the time.

    Raises:
        InputError: files that do not make up one volume, an unknown model, or a threshold out of range.
    """
    check_request(model, threshold, models)
    progress(0, desc="Reading the files")
    volume = read_uploaded_volume(paths)

    from modeling.dicom_segmentation import DicomSegmentationError
    from modeling.input_checks import warnings_of
    from modeling.measurements import largest_slice
    from modeling.uncertainty import disagreement
    from modeling.views import VIEWS
    from modeling.visualization import volume_to_grey

    share = 0.9 / len(VIEWS) if uncertainty else 0.9  # of the progress, for one pass through the model
    prediction = predict(volume, model, threshold, models, progress, 0.0, share)
    spread = None
    if uncertainty:
        passes = iter(range(1, len(VIEWS)))

        def watch(slices):
            done = next(passes)
            return by_slice(slices, progress, done * share, share, f"View {done + 1} of {len(VIEWS)}: slice")

        network, processor, _ = load(models[model])
        spread = disagreement(network, processor, volume.slices, prediction.probabilities, progress=watch)
    progress(0.92, desc="Writing the results")
    grey = volume_to_grey(volume.flair)
    folder, stem = new_folder(), file_stem(first_path(paths))
    masks = write_masks(folder, stem, prediction.mask, volume)
    maps = {"probability": prediction.probabilities} | ({} if spread is None else {"uncertainty": spread})
    warnings = warnings_of(volume)
    if prediction.removed:
        warnings.append(prediction.removed)
    if volume.headers:
        try:
            masks["dicom_seg"] = write_dicom_seg(folder, stem, prediction.mask, volume, prediction.provenance)
        except DicomSegmentationError as error:
            warnings.append(str(error))
    measurements = volume_measurements(prediction.mask, volume, prediction.provenance) | {"warnings": warnings}
    return VolumeResult(
        view=write_view(
            folder,
            volume_to_grey(volume.flair, HEADROOM),
            volume.spacing,
            largest_slice(prediction.mask),
            probabilities=prediction.probabilities,
            mask=prediction.mask,
            threshold=threshold,
            postprocessed=prediction.provenance["postprocessing"] is not None,
        ),
        probabilities=prediction.probabilities,
        mask=prediction.mask,
        uncertainty=spread,
        measurements=measurements,
        warnings=warnings,
        description=volume.description,
        masks=masks,
        zip_path=write_volume_zip(
            folder / f"{stem}_results.zip", stem, grey, volume, masks, prediction.mask, maps, measurements
        ),
    )


def predict(volume, model: str, threshold: float, models, progress: Progress, start: float, share: float) -> Prediction:
    """One model's probabilities and mask of an `MRVolume`; takes `progress` from `start` on by `share`."""
    from modeling import inference, postprocessing

    progress(start, desc=f"Loading {model}")
    network, processor, weights = load(models[model])
    whole = len(volume.slices) > 1  # islands and their sizes are a matter of three dimensions
    segmentation = inference.segment_volume(
        network,
        processor,
        volume.slices,
        threshold=threshold,
        postprocess=whole,
        progress=lambda slices: by_slice(slices, progress, start, share, f"{model}: slice"),
    )
    cleaning = {
        "min_voxels": postprocessing.MIN_VOXELS,
        "keep_fraction": postprocessing.KEEP_FRACTION,
        "fill_holes": True,
        "outline_threshold": round(postprocessing.outline_threshold(segmentation.probabilities, threshold), 4),
    }
    provenance = {
        "model": model,
        "weights_sha256": weights,
        "threshold": threshold,
        "postprocessing": cleaning if whole else None,
    }
    removed = postprocessing.describe_removed(segmentation.probabilities >= threshold, segmentation.mask)
    return Prediction(segmentation.probabilities, segmentation.mask, provenance, removed)


def by_slice(slices: Sized, progress: Progress, start: float, share: float, what: str) -> Iterator:
    """The slices as they are computed, with `progress` told of each."""
    for done, computed in enumerate(slices):
        progress(start + share * done / len(slices), desc=f"{what} {done + 1} of {len(slices)}")
        yield computed
