"""The handlers that compare two outlines, as plain functions."""

import csv
import gzip
import io
import json
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from viewer_pictures import unpack
from volume_samples import SPACING, as_nifti, head, save_nifti, save_slices

from modeling import metrics
from modeling.inference import load_model, segment_slice, segment_volume
from modeling.visualization import PREDICTION_COLOR, REFERENCE_COLOR, volume_to_grey
from space.comparison import AGREEMENT_COLOR, compare_either, compare_models, compare_with_mask, draw_agreement
from space.handlers import no_progress
from space.uploads import InputError

pytest_plugins = ["app_fixtures"]


@pytest.fixture
def nifti(folder):
    return str(save_nifti(folder / "flair.nii.gz", head().slices[..., 1]))


@pytest.fixture(scope="module")
def threshold(models):
    """One that the random weights of both models reach at a part of the voxels."""
    flair = head().slices[..., 1]
    volumes = [segment_volume(*load_model(models[name]), flair).probabilities for name in ("tiny-a", "tiny-b")]
    return float(min(np.quantile(volume, 0.9) for volume in volumes))


def enlarged(plane: np.ndarray, scale: int) -> np.ndarray:
    return plane.repeat(scale, axis=0).repeat(scale, axis=1)


def inner_edge(mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask (H, W) that have a side in common with what is outside."""
    return mask & ~ndimage.binary_erosion(mask)


def test_two_models_are_compared_as_the_metrics_do(nifti, models, threshold):
    result = compare_models(nifti, "tiny-a", "tiny-b", threshold, models)
    flair = head().slices[..., 1]
    a, b = (segment_volume(*load_model(models[name]), flair, threshold=threshold).mask for name in ("tiny-a", "tiny-b"))
    assert a.any()
    assert b.any()
    assert (a != b).any()
    np.testing.assert_array_equal(result.mask_a, a)
    np.testing.assert_array_equal(result.mask_b, b)
    counts = metrics.confusion_counts(a, b)
    assert result.dice == pytest.approx(metrics.dice(counts), abs=1e-6)
    assert result.iou == pytest.approx(metrics.iou(counts), abs=1e-6)
    assert result.hd95_pixels == pytest.approx(metrics.hausdorff95(a, b), abs=1e-6)
    assert result.hd95_mm == pytest.approx(metrics.hausdorff95(a, b, SPACING), abs=1e-5)
    measured = json.loads(json.dumps(result.measurements))
    assert (measured["a"]["model"], measured["b"]["model"]) == ("tiny-a", "tiny-b")
    assert measured["voxels_in_both"] + measured["voxels_in_a_only"] == a.sum()
    assert measured["reason"] is None
    _, outlines = unpack(result.view)
    np.testing.assert_array_equal(outlines, a + 2 * b.astype(np.uint8))
    shown = (a | b).sum(axis=(1, 2)).argmax()
    assert result.view["start"] == shown
    picture = np.asarray(result.picture)
    scale = len(picture) // a.shape[1]
    edge = inner_edge(enlarged(a[shown], scale))
    assert (picture[edge] == PREDICTION_COLOR).all(), "A's line, in A's colour"


def test_a_model_and_the_same_mask_agree(nifti, folder, models, threshold):
    flair = head().slices[..., 1]
    mask = segment_volume(*load_model(models["tiny-a"]), flair, threshold=threshold).mask
    path = save_nifti(folder / "expert.nii.gz", mask, orientation=((1, -1), (2, 1), (0, 1)))
    result = compare_with_mask([nifti], "tiny-a", [str(path)], threshold, models)
    assert (result.dice, result.iou, result.hd95_pixels, result.hd95_mm) == (1, 1, 0, 0)
    assert result.measurements["b"]["mask"] == "expert.nii.gz"


def test_a_slice_is_compared_in_two_dimensions(folder, models):
    pixels, mask = head().slices[6], np.zeros((64, 48), dtype=bool)
    mask[20:40, 10:30] = True
    Image.fromarray(pixels).save(folder / "slice.png")
    Image.fromarray(mask).save(folder / "slice_mask.png")  # black and white, one bit
    probabilities = segment_slice(*load_model(models["tiny-a"]), pixels).probabilities
    threshold = float(np.quantile(probabilities, 0.8))
    result = compare_with_mask(str(folder / "slice.png"), "tiny-a", str(folder / "slice_mask.png"), threshold, models)
    assert result.hd95_pixels == pytest.approx(metrics.hausdorff95(probabilities >= threshold, mask), abs=1e-6)
    assert result.hd95_mm is None
    assert "image files do not give it" in result.measurements["reason"]


def test_distances_on_one_slice_are_in_its_own_plane(folder, models):
    flair, mask = head().slices[6:7, ..., 1], np.zeros((1, 64, 48), dtype=bool)
    mask[0, 20:40, 10:30] = True
    paths = [str(save_nifti(folder / f"{name}.nii", axial)) for name, axial in (("flair", flair), ("mask", mask))]
    probabilities = segment_volume(*load_model(models["tiny-a"]), flair, postprocess=False).probabilities[0]
    threshold = float(np.quantile(probabilities, 0.8))
    result = compare_with_mask(paths[0], "tiny-a", paths[1], threshold, models)
    expected = metrics.hausdorff95(probabilities >= threshold, mask[0], SPACING[1:])
    assert result.hd95_mm == pytest.approx(expected, abs=1e-5)


def test_empty_outlines_have_no_scores_but_a_reason(nifti, folder, models, threshold):
    both = compare_models(nifti, "tiny-a", "tiny-b", 0.9999, models)
    assert both.dice is both.iou is both.hd95_pixels is both.hd95_mm is None
    assert "Both outlines are empty" in both.measurements["reason"]
    empty = save_nifti(folder / "mask.nii", np.zeros(head().mask.shape, dtype=bool))
    one = compare_with_mask(nifti, "tiny-a", str(empty), threshold, models)
    assert (one.dice, one.hd95_mm) == (0, None)
    assert "One of the outlines is empty" in one.measurements["reason"]
    lesion = np.roll(head().mask, 2, axis=0)
    missed = compare_with_mask(nifti, "tiny-a", str(save_nifti(folder / "lesion.nii", lesion)), 0.9999, models)
    assert (both.view["start"], missed.view["start"]) == (6, lesion.sum(axis=(1, 2)).argmax())
    assert missed.view["start"] != 6, "not the middle"
    with zipfile.ZipFile(missed.zip_path) as archive:
        drawn = [f"overlay/slice_{number:03d}.png" in archive.namelist() for number in range(1, 13)]
    assert drawn == lesion.any(axis=(1, 2)).tolist(), "also where only B outlines something"


def test_the_archive_holds_both_masks_and_the_outlines(nifti, models, threshold, upload_folder):
    result = compare_models(nifti, "tiny-a", "tiny-b", threshold, models)
    assert Path(result.zip_path).is_relative_to(upload_folder)
    with zipfile.ZipFile(result.zip_path) as archive:
        for name, mask in (("flair_a_tiny-a", result.mask_a), ("flair_b_tiny-b", result.mask_b)):
            stored = nib.Nifti1Image.from_bytes(gzip.decompress(archive.read(f"{name}_mask.nii.gz")))
            np.testing.assert_array_equal(np.asarray(stored.dataobj), np.asarray(as_nifti(mask).dataobj))
        assert json.loads(archive.read("measurements.json")) == result.measurements
        for side, mask in (("a", result.mask_a), ("b", result.mask_b)):
            pages = [archive.read(f"mask_{side}/slice_{number:03d}_mask.png") for number in range(1, len(mask) + 1)]
            np.testing.assert_array_equal([np.asarray(Image.open(io.BytesIO(page))) > 0 for page in pages], mask)
        rows = list(csv.reader(io.StringIO(archive.read("measurements.csv").decode())))
        facts = dict(row for row in rows if len(row) == 2)
        assert float(facts["dice"]) == result.dice
        assert float(facts["b.volume_ml"]) == result.measurements["b"]["volume_ml"]
        assert ["slice", "file", "b.area_pixels", "b.area_mm2"] in rows
        assert "Two outlines, A and B" in archive.read("README.txt").decode()
        agreement = nib.Nifti1Image.from_bytes(gzip.decompress(archive.read("flair_agreement.nii.gz")))
        labels = np.asarray(agreement.dataobj)
        assert len(np.unique(labels)) > 2
        for part, name in (
            (result.mask_a & result.mask_b, "both"),
            (result.mask_a & ~result.mask_b, "a_only"),
            (result.mask_b & ~result.mask_a, "b_only"),
        ):
            expected = np.asarray(as_nifti(part).dataobj) > 0
            np.testing.assert_array_equal(labels == result.measurements["agreement_labels"][name], expected)
        largest = int(result.mask_a.sum(axis=(1, 2)).argmax())
        overlay = np.asarray(Image.open(io.BytesIO(archive.read(f"overlay/slice_{largest + 1:03d}.png"))))
        on_a, on_b = ((overlay == color).all(axis=-1) for color in (PREDICTION_COLOR, REFERENCE_COLOR))
        np.testing.assert_array_equal(on_a, inner_edge(enlarged(result.mask_a[largest], 2)))
        assert on_b.any()
        assert not enlarged(result.mask_b[largest], 2)[on_b].any(), "B's line runs outside of its edge"
        grey = enlarged(volume_to_grey(head().slices[..., 1])[largest], 2)
        off = ~(on_a | on_b)
        assert np.corrcoef(overlay[off][:, 0], grey[off])[0, 1] > 0.95, "drawn over its own slice"


def test_agreement_and_difference_have_colours_of_their_own():
    flair = np.full((40, 40), 100, dtype=np.uint8)
    flair[0, 0] = 0
    a, b = np.zeros((2, 40, 40), dtype=bool)
    a[8:32, 4:24] = b[8:32, 16:36] = True
    drawn = np.asarray(draw_agreement(flair, a, b))
    scale = drawn.shape[0] // 40
    only_a, both, only_b, neither = (drawn[20 * scale, column * scale].astype(int) for column in (10, 20, 30, 38))
    assert len(set(neither)) == 1, "grey"
    for colour, of in ((only_a, PREDICTION_COLOR), (both, AGREEMENT_COLOR), (only_b, REFERENCE_COLOR)):
        assert np.corrcoef(colour - neither, np.subtract(of, neither))[0, 1] > 0.99
    assert (drawn[8 * scale, 10 * scale] == PREDICTION_COLOR).all(), "A is outlined inside its edge"
    assert (drawn[8 * scale - 1, 30 * scale] == REFERENCE_COLOR).all(), "B outside its own"


def test_either_a_model_or_a_mask_is_compared_with(nifti, models):
    for other_model, mask, said in ((None, None, "Neither"), ("", [], "Neither"), ("tiny-b", [nifti], "Both")):
        with pytest.raises(InputError, match=f"{said} of other_model and mask came"):
            compare_either(nifti, "tiny-a", other_model, mask, 0.5, models, no_progress)


def test_the_dataset_with_its_own_masks(folder, models, threshold):
    slices, mask = head()
    images = [str(path) for path in save_slices(folder, slices)]
    masks = save_slices(folder, mask.astype(np.uint8) * 255, "TCGA_CS_4941_19960909_{}_mask.tif")
    result = compare_with_mask(images, "tiny-a", [str(path) for path in masks], threshold, models)
    np.testing.assert_array_equal(result.mask_b, mask)


def test_what_cannot_be_compared_is_refused(nifti, folder, models):
    other = str(save_nifti(folder / "short.nii", head().mask[:-2]))
    for mask, why in (
        (None, "no mask to compare with"),
        ([], "no mask"),
        ([nifti], "an image rather"),
        ([other], "10×64"),
    ):
        with pytest.raises(InputError, match=why):
            compare_with_mask(nifti, "tiny-a", mask, 0.5, models)
    with pytest.raises(InputError, match="does not lead to an uploaded file"):
        compare_with_mask(nifti, "tiny-a", ["/etc/hostname"], 0.5, models)
    with pytest.raises(InputError, match="Choose one of"):
        compare_models(nifti, "tiny-a", "tiny-c", 0.5, models)
    with pytest.raises(InputError, match="between 0 and 1"):
        compare_models(nifti, "tiny-a", "tiny-b", 1.5, models)
