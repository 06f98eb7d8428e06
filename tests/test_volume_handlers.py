"""The handlers of volumes as plain functions: uploads in, arrays, numbers and files out."""

import csv
import gzip
import hashlib
import io
import json
import zipfile
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from viewer_pictures import unpack
from volume_samples import (
    SPACING,
    as_nifti,
    head,
    read_dicom_seg,
    save_dicom,
    save_nifti,
    save_pages,
    save_slices,
    save_zip,
)

from hub_dataset.phantom import phantom_volume
from modeling.inference import load_model
from modeling.inference import segment_volume as run_model
from modeling.input_checks import warnings_of
from modeling.postprocessing import outline_threshold
from modeling.visualization import flair_to_grey
from space import results, uploads
from space.comparison import compare_models, compare_with_mask
from space.handlers import heatmap, segment
from space.uploads import InputError
from space.viewer import HEADROOM, write_view
from space.volume_handlers import open_volume, segment_volume

pytest_plugins = ["app_fixtures"]

ORIENTATION = ((2, -1), (0, 1), (1, -1))


@pytest.fixture
def nifti(folder):
    return str(save_nifti(folder / "case_flair.nii.gz", head().slices[..., 1], orientation=ORIENTATION))


def middle(models) -> float:
    """A threshold that random weights reach at a part of the voxels."""
    network, processor = load_model(models["tiny-a"])
    return float(np.quantile(run_model(network, processor, head().slices[..., 1]).probabilities, 0.9))


def members(path: str) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def test_a_volume_is_shown_before_any_model_runs(nifti):
    preview = open_volume([nifti])
    (shown,) = unpack(preview.view)
    assert shown.shape == head().mask.shape
    assert preview.view["spacing"] == preview.spacing
    assert preview.spacing == pytest.approx(SPACING)
    assert preview.description.startswith("12 axial slices of 64×48 pixels, 5.0×0.75×0.80 mm")
    # One window for all slices: what is brighter in one slice than in another is shown so.
    flair = head().slices[..., 1]
    order = np.argsort(flair, axis=None)
    assert (np.diff(shown.ravel()[order].astype(int)) >= 0).all()
    assert np.abs(shown[6].astype(int) - flair_to_grey(flair[6], HEADROOM)).mean() < 20


def test_the_result_is_the_models_and_goes_back_into_the_inputs_space(nifti, models, upload_folder):
    threshold, flair = middle(models), head().slices[..., 1]
    result = segment_volume([nifti], "tiny-a", threshold, models)
    expected = run_model(*load_model(models["tiny-a"]), flair, threshold=threshold)
    assert expected.mask.any()
    np.testing.assert_allclose(result.probabilities, expected.probabilities, atol=1e-5)
    np.testing.assert_array_equal(result.mask, expected.mask)
    assert result.uncertainty is None
    assert set(result.masks) == {"nifti"}
    assert result.view["start"] == expected.mask.sum(axis=(1, 2)).argmax()

    written = nib.load(result.masks["nifti"])
    expected_image = as_nifti(expected.mask, ORIENTATION)
    np.testing.assert_array_equal(np.asarray(written.dataobj), np.asarray(expected_image.dataobj))
    np.testing.assert_allclose(written.affine, nib.load(nifti).affine)
    for path in (*result.masks.values(), result.zip_path):
        assert Path(path).is_relative_to(upload_folder)


def test_measurements_name_the_model_and_how_it_was_run(nifti, models):
    threshold = middle(models)
    result = segment_volume(nifti, "tiny-a", threshold, models)
    measured = json.loads(json.dumps(result.measurements))
    areas = result.mask.sum(axis=(1, 2))
    assert measured["model"] == "tiny-a"
    assert (
        measured["weights_sha256"]
        == hashlib.sha256((Path(models["tiny-a"]) / "model.safetensors").read_bytes()).hexdigest()
    )
    assert measured["threshold"] == threshold
    assert measured["postprocessing"] == {
        "min_voxels": 400,
        "keep_fraction": 0.5,
        "fill_holes": True,
        "outline_threshold": pytest.approx(outline_threshold(result.probabilities, threshold), abs=1e-4),
    }
    assert measured["num_slices"] == 12
    assert measured["spacing_mm"] == pytest.approx(SPACING)
    assert measured["volume_ml"] == pytest.approx(areas.sum() * np.prod(SPACING) / 1000, abs=1e-3)
    assert measured["largest_slice"] == areas.argmax() + 1
    assert measured["area_per_slice_pixels"] == areas.tolist()
    long, short = measured["diameters_mm"]
    assert 0 < short <= long < np.hypot(64 * 0.75, 48 * 0.8)
    assert measured["reason"] is None
    assert measured["warnings"] == result.warnings


def test_a_viewer_may_start_at_the_first_slice(tmp_path):
    grey = np.zeros((5, 8, 8), dtype=np.uint8)
    assert [write_view(tmp_path, grey, start=start)["start"] for start in (0, None)] == [0, 2]


def test_without_spacing_lengths_are_refused_with_the_reason(folder, models):
    paths = [str(path) for path in save_slices(folder, head().slices)]
    measured = segment_volume(paths, "tiny-a", middle(models), models).measurements
    assert measured["spacing_mm"] is measured["volume_ml"] is measured["diameters_mm"] is None
    assert "image files do not give it" in measured["reason"]


def test_where_no_voxel_reaches_the_threshold_there_are_no_diameters(nifti, models):
    result = segment_volume(nifti, "tiny-a", 0.9999, models)
    assert not result.mask.any()
    assert result.measurements["volume_ml"] == 0
    assert result.measurements["diameters_mm"] is None
    assert "no lesion was outlined" in result.measurements["reason"]
    assert result.measurements["largest_slice"] is None


def test_a_large_island_that_is_left_out_is_told_of(nifti, folder, models, monkeypatch):
    def two_components(model, processor, slices, **_):
        probabilities = np.zeros(slices.shape[:3], dtype=np.float32)
        probabilities[3:7, 5:15, 5:15] = 0.9
        probabilities[8:10, 25:35, 20:25] = 0.8
        return probabilities

    monkeypatch.setattr("modeling.inference.predict_volume", two_components)
    sentence = "an island of 100 voxels on slices 9 to 10 of 12"
    result = segment_volume(nifti, "tiny-a", 0.5, models)
    assert result.mask.sum() == 400
    assert sentence in result.warnings[-1]
    compared = compare_models(nifti, "tiny-a", "tiny-b", 0.5, models)
    told = [warning for warning in compared.warnings if sentence in warning]
    assert [warning.partition(":")[0] for warning in told] == ["tiny-a", "tiny-b"]
    mask = str(save_nifti(folder / "mask.nii", head().mask))
    compared = compare_with_mask(nifti, "tiny-a", mask, 0.5, models)
    told = [warning for warning in compared.warnings if sentence in warning]
    assert [warning.partition(":")[0] for warning in told] == ["tiny-a"]


def test_everything_is_in_the_archive(nifti, models):
    result = segment_volume(nifti, "tiny-a", middle(models), models, uncertainty=True)
    files = members(result.zip_path)
    assert json.loads(files["measurements.json"]) == result.measurements
    table = list(csv.reader(io.StringIO(files["measurements.csv"].decode())))
    assert ["model", "tiny-a"] in table
    areas = result.measurements["area_per_slice_pixels"]
    assert [row[0] for row in table[-12:]] == [str(number) for number in range(1, 13)]
    assert [row[2] for row in table[-12:]] == [str(area) for area in areas]
    assert [float(row[3]) for row in table[-12:]] == pytest.approx([area * 0.75 * 0.8 for area in areas], abs=0.01)
    assert files["case_flair_mask.nii.gz"] == Path(result.masks["nifti"]).read_bytes()
    for index in range(12):
        mask = np.asarray(Image.open(io.BytesIO(files[f"mask/slice_{index + 1:03d}_mask.png"])))
        np.testing.assert_array_equal(mask, result.mask[index] * np.uint8(255))
        assert (f"overlay/slice_{index + 1:03d}.png" in files) == result.mask[index].any()
    for name, expected in (("probability", result.probabilities), ("uncertainty", result.uncertainty)):
        image = nib.Nifti1Image.from_bytes(gzip.decompress(files[f"case_flair_{name}.nii.gz"]))
        stored = image.get_fdata()
        axial = as_nifti(expected, ORIENTATION).get_fdata()
        np.testing.assert_allclose(stored, axial, atol=0.5 / results.PROBABILITY_STEPS + 1e-6)
    assert b"not a medical device" in files["README.txt"]


def test_slices_keep_their_names_in_the_archive(folder, models):
    archive = save_zip(folder / "case.zip", {f"p/{path.name}": path for path in save_slices(folder, head().slices)})
    result = segment_volume(str(archive), "tiny-a", middle(models), models)
    files = members(result.zip_path)
    assert "mask/TCGA_CS_4941_19960909_12_mask.png" in files
    assert files["case_mask.tif"] == Path(result.masks["tiff"]).read_bytes()
    with Image.open(result.masks["tiff"]) as pages:
        for index in range(pages.n_frames):
            pages.seek(index)
            np.testing.assert_array_equal(np.asarray(pages), result.mask[index] * np.uint8(255))
        assert pages.n_frames == 12


def test_a_dicom_series_gives_a_dicom_seg_or_the_reason_why_not(folder, models):
    flair, threshold = head().slices[..., 1], middle(models)
    sources = save_dicom(folder, flair)
    path = save_zip(folder / "study.zip", {file.name: file for file in sources})
    result = segment_volume([str(path)], "tiny-a", threshold, models)
    assert set(result.masks) == {"nifti", "dicom_seg"}
    files = members(result.zip_path)
    assert files["study_mask_seg.dcm"] == Path(result.masks["dicom_seg"]).read_bytes()
    assert b"patient's and the study's data" in files["README.txt"]
    np.testing.assert_array_equal(read_dicom_seg(result.masks["dicom_seg"], sources), result.mask)
    (algorithm,) = dcmread(result.masks["dicom_seg"]).SegmentSequence[0].SegmentationAlgorithmIdentificationSequence
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("tiny-a", result.measurements["weights_sha256"])
    assert f"threshold={threshold}" in algorithm.AlgorithmParameters.split(",")

    files = save_dicom(folder, flair, FrameOfReferenceUID=None)
    result = segment_volume(list(map(str, files)), "tiny-a", threshold, models)
    assert set(result.masks) == {"nifti"}
    assert result.mask.any()
    assert [warning for warning in result.warnings if "no DICOM SEG" in warning and "FrameOfReferenceUID" in warning]


def test_slices_whose_long_names_differ_at_the_end_have_a_mask_each(folder, models):
    files = save_slices(folder, head().slices, "x" * 100 + "_{:03d}.png")
    result = segment_volume([str(path) for path in files], "tiny-a", 0.5, models)
    names = [name for name in members(result.zip_path) if name.startswith("mask/")]
    assert sorted(names) == [f"mask/slice_{number:03d}_mask.png" for number in range(1, 13)]


def test_uncertainty_is_asked_for_and_does_not_change_the_mask(nifti, models):
    threshold = middle(models)
    plain = segment_volume(nifti, "tiny-a", threshold, models)
    result = segment_volume(nifti, "tiny-a", threshold, models, uncertainty=True)
    np.testing.assert_array_equal(result.mask, plain.mask)
    assert result.uncertainty.shape == result.mask.shape
    assert result.uncertainty.dtype == np.float32
    assert 0 <= result.uncertainty.min() < result.uncertainty.max() <= 1


def test_progress_counts_the_slices_and_never_goes_back(nifti, models):
    seen = []
    segment_volume(nifti, "tiny-a", 0.5, models, lambda done, desc: seen.append((done, desc)), uncertainty=True)
    fractions = [done for done, _ in seen]
    assert fractions == sorted(fractions)
    assert fractions[0] >= 0
    assert fractions[-1] < 1
    slices = [desc for _, desc in seen if desc.startswith("tiny-a: slice")]
    assert slices == [f"tiny-a: slice {number} of {len(slices)}" for number in range(1, len(slices) + 1)]
    assert any(desc.startswith("View 4 of 4: slice") for _, desc in seen)


def test_pixels_that_are_no_squares_look_like_a_head_by_their_spacing():
    slices = np.repeat(phantom_volume(0, num_slices=24, size=128).slices, 2, axis=2)
    unknown, known = (
        SimpleNamespace(slices=slices, warnings=(), spacing=spacing) for spacing in (None, (5.0, 2.0, 1.0))
    )
    assert warnings_of(unknown)
    assert not warnings_of(known)


def test_a_volume_of_one_slice_is_the_slice(folder, models):
    Image.fromarray(head().slices[6]).save(folder / "slice.png")
    threshold = middle(models)
    result = segment_volume(str(folder / "slice.png"), "tiny-a", threshold, models, uncertainty=True)
    assert result.mask.shape == (1, 64, 48)
    alone = segment(folder / "slice.png", "tiny-a", threshold, models, uncertainty=True)
    np.testing.assert_array_equal(result.mask[0], np.asarray(Image.open(alone.mask_path)) > 0)
    of_the_slice = heatmap(result.uncertainty[0], alone.uncertainty_map.size)
    np.testing.assert_array_equal(np.asarray(alone.uncertainty_map), np.asarray(of_the_slice))
    assert result.measurements["postprocessing"] is None
    np.testing.assert_array_equal(result.mask[0], result.probabilities[0] >= threshold)


def test_requests_that_cannot_be_served_are_refused_in_a_sentence(nifti, folder, models):
    for model in ("../tiny-a", None, ["tiny-a"]):
        with pytest.raises(InputError, match="Choose one of: tiny-a, tiny-b"):
            segment_volume([nifti], model, 0.5, models)
    for threshold in (0, 1, float("nan"), None, "0.5"):
        with pytest.raises(InputError, match="between 0 and 1"):
            segment_volume([nifti], "tiny-a", threshold, models)
    for nothing in (None, []):
        with pytest.raises(InputError, match="Upload the files"):
            open_volume(nothing)
    (folder / "notes.nii").write_bytes(b"report" * 100)
    with pytest.raises(InputError, match="of no kind that is known"):
        open_volume([str(folder / "notes.nii")])
    with pytest.raises(InputError, match="no longer on the server"):
        open_volume([str(folder / "gone.nii")])


def test_only_uploads_are_read(folder, tmp_path):
    outside = save_pages(tmp_path / "stack.tif", head().slices)
    link = folder / "link.tif"
    link.symlink_to(outside)
    for path in (outside, link, folder, folder / ".." / ".." / outside.name, "/etc/hostname", "\0", 7):
        with pytest.raises(InputError, match="does not lead to an uploaded file"):
            open_volume([path])
    link.unlink()


def test_too_many_bytes_are_refused_unread(nifti, monkeypatch):
    monkeypatch.setattr(uploads, "MAX_TOTAL_SIZE", 100)
    with pytest.raises(InputError, match="MB together"):
        open_volume([nifti])
