"""The command that segments many examinations."""

import csv
import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from tiny_models import tiny_model
from volume_samples import AFFINE, SPACING, head, read_dicom_seg, save_dicom, save_nifti, save_slices, save_zip

from hub_dataset.phantom import phantom_volume
from modeling import BrainMRIImageProcessor
from modeling.inference import CROP_MARGIN, load_model, segment_slice, segment_volume
from modeling.measurements import volume_ml
from modeling.postprocessing import outline_threshold
from predict import main

THRESHOLD = 0.45  # a random network's probabilities lie on both sides of it


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_model("unet-4level").save_pretrained(folder)
    BrainMRIImageProcessor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    """Four patients: a folder with one NIfTI file per sequence, one FLAIR file, a zip of slices, a DICOM series."""
    folder = tmp_path_factory.mktemp("scans")
    (folder / "anna").mkdir()
    for channel, name in enumerate(("t1_pre", "flair", "t1_post")):
        save_nifti(folder / "anna" / f"{name}.nii.gz", head().slices[..., channel])
    save_nifti(folder / "bert.nii", head().slices[..., 1], orientation=((1, -1), (2, 1), (0, 1)))
    (folder / "slices").mkdir()
    save_zip(folder / "cleo.zip", {path.name: path for path in save_slices(folder / "slices", head().slices)})
    (folder / "dora").mkdir()
    save_dicom(folder / "dora", head().slices[..., 1])
    return folder


def predict(scans: Path, checkpoint: Path, output: Path, *names: str, options: tuple[str, ...] = ()) -> None:
    options = ("--threshold", str(THRESHOLD), "--no_postprocessing", *options)
    main(["--checkpoint", str(checkpoint), "--output", str(output), *options, *(str(scans / name) for name in names)])


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def table_in(folder: Path) -> list[dict[str, str]]:
    with (folder / "measurements.csv").open() as file:
        return list(csv.DictReader(file))


def test_masks_and_measurements_of_all_kinds_of_input(scans, checkpoint, tmp_path):
    predict(scans, checkpoint, tmp_path, "anna", "bert.nii", "cleo.zip", "dora")
    names = ("anna", "bert", "cleo", "dora")
    expected = {"measurements.csv", "probabilities/made_with.json", "dora_mask_seg.dcm"}
    for name in names:
        expected |= {f"{name}_mask.nii.gz", f"{name}.json", f"probabilities/{name}.npz"}
    assert files_in(tmp_path) == expected

    model, processor = load_model(checkpoint)
    mask = segment_volume(model, processor, head().slices, threshold=THRESHOLD, postprocess=False).mask
    assert mask.any()
    image = nib.load(tmp_path / "anna_mask.nii.gz")
    np.testing.assert_allclose(image.affine, AFFINE)
    np.testing.assert_array_equal(np.asarray(image.dataobj), mask[:, ::-1, ::-1].transpose(2, 1, 0))
    bert = nib.load(tmp_path / "bert_mask.nii.gz")
    assert nib.aff2axcodes(bert.affine) == nib.aff2axcodes(nib.load(scans / "bert.nii").affine)
    dora = np.asarray(nib.load(tmp_path / "dora_mask.nii.gz").dataobj).transpose(2, 1, 0)
    assert dora.any()
    seg = read_dicom_seg(tmp_path / "dora_mask_seg.dcm", list((scans / "dora").iterdir()))
    (segment,) = dcmread(tmp_path / "dora_mask_seg.dcm").SegmentSequence
    (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
    assert algorithm.AlgorithmVersion == hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
    assert f"threshold={THRESHOLD}" in algorithm.AlgorithmParameters.split(",")
    np.testing.assert_array_equal(seg, dora)

    report = json.loads((tmp_path / "anna.json").read_text())
    assert report["volume_ml"] == pytest.approx(volume_ml(mask, SPACING), abs=1e-3)
    assert report["threshold"] == THRESHOLD
    rows = table_in(tmp_path)
    assert [row["patient"] for row in rows] == list(names)
    assert float(rows[0]["volume_ml"]) == report["volume_ml"]
    assert int(rows[2]["lesion_voxels"]) == mask.sum()
    assert rows[2]["volume_ml"] == "", "numbered slices have no spacing"
    assert int(rows[0]["largest_slice"]) == mask.sum(axis=(1, 2)).argmax() + 1, "counted from 1, like the files"


def test_a_linked_folder_is_called_as_the_link_and_a_failed_start_binds_nobody(scans, checkpoint, tmp_path):
    (tmp_path / "dora").symlink_to(scans / "anna")
    output = ["--output", str(tmp_path / "out"), "--checkpoint", str(checkpoint), str(tmp_path / "dora")]
    with pytest.raises(SystemExit, match="missing"):
        main(["--views", "2", *output[:-1], str(tmp_path / "missing")])
    main(output)
    assert (tmp_path / "out" / "dora_mask.nii.gz").is_file()


def test_one_slice_is_computed_as_the_page_does_and_not_post_processed(checkpoint, tmp_path):
    pixels = head().slices[6]
    Image.fromarray(pixels).save(tmp_path / "one.png")
    main(["--output", str(tmp_path), "--checkpoint", str(checkpoint), str(tmp_path / "one.png")])
    with np.load(tmp_path / "probabilities" / "one.npz") as kept:
        expected = segment_slice(*load_model(checkpoint), pixels).probabilities
        np.testing.assert_allclose(kept["probabilities"][0], expected, atol=1e-6)
    assert json.loads((tmp_path / "one.json").read_text())["postprocessing"] is False


@pytest.mark.parametrize("option", ["--batch_size", "--screening_stride", "--views"])
def test_options_out_of_their_range_are_named_before_any_patient_is_read(scans, checkpoint, tmp_path, option, capsys):
    with pytest.raises(SystemExit):
        predict(scans, checkpoint, tmp_path / "out", "anna", options=(option, "0"))
    assert f"{option}: '0' is no whole number from 1 " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_table_keeps_the_patients_of_former_runs(scans, checkpoint, tmp_path):
    predict(scans, checkpoint, tmp_path, "anna")
    predict(scans, checkpoint, tmp_path, "bert.nii", options=("--threshold", "0.4"))
    rows = table_in(tmp_path)
    assert [(row["patient"], float(row["threshold"])) for row in rows] == [("anna", THRESHOLD), ("bert", 0.4)]


def test_whole_slices_are_computed_when_asked_for(scans, checkpoint, tmp_path):
    predict(scans, checkpoint, tmp_path, "anna", options=("--whole_frame",))
    with np.load(tmp_path / "probabilities" / "anna.npz") as kept:
        probabilities = kept["probabilities"]
    model, processor = load_model(checkpoint)
    whole, cropped = (
        segment_volume(model, processor, head().slices, crop_margin=margin).probabilities
        for margin in (None, CROP_MARGIN)
    )
    np.testing.assert_allclose(probabilities, whole, atol=1e-6)
    assert not np.allclose(cropped, whole, atol=1e-6)


def test_views_are_averaged_when_asked_for(scans, checkpoint, tmp_path):
    predict(scans, checkpoint, tmp_path, "anna", options=("--views", "2"))
    with np.load(tmp_path / "probabilities" / "anna.npz") as kept:
        probabilities = kept["probabilities"]
    model, processor = load_model(checkpoint)
    alone, averaged = (segment_volume(model, processor, head().slices, views=views).probabilities for views in (1, 2))
    np.testing.assert_allclose(probabilities, averaged, atol=1e-6)
    assert (averaged > alone).any()
    assert json.loads((tmp_path / "anna.json").read_text())["options"]["views"] == 2


def test_a_large_island_that_is_left_out_is_told_of(scans, checkpoint, tmp_path):
    predict(scans, checkpoint, tmp_path, "anna")
    kept = tmp_path / "probabilities" / "anna.npz"
    with np.load(kept) as file:
        volume, probabilities = file["volume"], np.zeros_like(file["probabilities"])
    probabilities[3:7, 5:15, 5:15] = 0.47  # over this threshold, under that of the default
    probabilities[8:10, 25:35, 20:25] = 0.8
    np.savez_compressed(kept, probabilities=probabilities, volume=volume)
    predict(scans, checkpoint, tmp_path, "anna")
    whole = json.loads((tmp_path / "anna.json").read_text())
    options = ["--checkpoint", str(checkpoint), "--output", str(tmp_path), "--threshold", str(THRESHOLD)]
    main([*options, str(scans / "anna")])
    cleaned = json.loads((tmp_path / "anna.json").read_text())
    assert (whole["lesion_voxels"], cleaned["lesion_voxels"]) == (500, 400)
    assert whole["outline_threshold"] == THRESHOLD
    assert cleaned["outline_threshold"] == pytest.approx(outline_threshold(probabilities, THRESHOLD), abs=1e-4)
    assert cleaned["warnings"][:-1] == whole["warnings"]
    assert "an island of 100 voxels on slices 9 to 10 of 12" in cleaned["warnings"][-1]


def test_the_same_command_goes_on_with_what_is_there(scans, checkpoint, tmp_path):
    predict(scans, checkpoint, tmp_path, "anna")
    kept = tmp_path / "probabilities" / "anna.npz"
    before = kept.stat().st_mtime_ns
    predict(scans, checkpoint, tmp_path, "anna", "cleo.zip", options=("--threshold", "0.4"))
    assert kept.stat().st_mtime_ns == before
    assert json.loads((tmp_path / "anna.json").read_text())["threshold"] == 0.4
    for option in ("--screening_stride", "1"), ("--views", "2"):
        with pytest.raises(SystemExit, match="made with another options"):
            predict(scans, checkpoint, tmp_path, "anna", options=option)


def test_what_cannot_be_read_is_listed_and_the_others_go_on(scans, checkpoint, tmp_path):
    (tmp_path / "notes.txt").write_text("not a scan")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as stopped:
        predict(scans, checkpoint, tmp_path / "out", "anna", tmp_path / "notes.txt", tmp_path / "empty", "missing")
    lines = str(stopped.value.code).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["empty", "missing", "notes"]
    assert (tmp_path / "out" / "anna_mask.nii.gz").exists()


def test_a_table_that_cannot_be_written_ends_with_a_message(scans, checkpoint, tmp_path):
    (tmp_path / "measurements.csv").mkdir()
    with pytest.raises(SystemExit, match=r"the table cannot be written: .*measurements\.csv"):
        predict(scans, checkpoint, tmp_path, "anna")
    assert (tmp_path / "anna_mask.nii.gz").exists()


def test_another_patient_of_the_same_name_is_refused(scans, checkpoint, tmp_path):
    predict(scans, checkpoint, tmp_path / "out", "bert.nii")
    before = {name: (tmp_path / "out" / name).read_bytes() for name in ("bert.json", "bert_mask.nii.gz")}
    save_nifti(tmp_path / "bert.nii", head().slices[..., 2])
    with pytest.raises(SystemExit, match=r"bert: .* of other images under this name"):
        predict(tmp_path, checkpoint, tmp_path / "out", "bert.nii")
    assert {name: (tmp_path / "out" / name).read_bytes() for name in before} == before


def test_a_series_that_does_not_say_where_it_lies_has_a_mask_but_no_dicom_seg(checkpoint, tmp_path):
    (tmp_path / "emil").mkdir()
    save_dicom(tmp_path / "emil", head().slices[..., 1], ImageOrientationPatient=[0.0] * 6, SliceThickness=None)
    predict(tmp_path, checkpoint, tmp_path / "out", "emil")
    assert (tmp_path / "out" / "emil_mask.nii.gz").exists()
    assert not (tmp_path / "out" / "emil_mask_seg.dcm").exists()
    assert "There is no DICOM SEG" in json.loads((tmp_path / "out" / "emil.json").read_text())["warnings"][-1]


def test_images_that_look_wrong_are_told_of(checkpoint, tmp_path):
    flair = phantom_volume(0, num_slices=12, size=96).slices[..., 1]
    save_nifti(tmp_path / "upright.nii.gz", flair)
    save_nifti(tmp_path / "inverted.nii.gz", 255 - flair)
    predict(tmp_path, checkpoint, tmp_path / "out", "upright.nii.gz", "inverted.nii.gz")
    warnings = {
        name: " ".join(json.loads((tmp_path / "out" / f"{name}.json").read_text())["warnings"])
        for name in ("inverted", "upright")
    }
    assert "the contrast looks inverted" in warnings["inverted"]
    assert "inverted" not in warnings["upright"]
    assert {row["patient"]: row["warnings"] for row in table_in(tmp_path / "out")} == warnings


@pytest.mark.parametrize("name", ["anna.json", "anna_mask.nii.gz", "measurements.csv"])
def test_files_of_others_are_not_replaced(scans, checkpoint, tmp_path, name):
    (tmp_path / name).write_text('{"EchoTime": 0.1}')
    with pytest.raises(SystemExit, match=rf"{re.escape(name)} is there already, and not by predict\.py"):
        predict(scans, checkpoint, tmp_path, "anna")
    assert files_in(tmp_path) == {name}
    assert (tmp_path / name).read_text() == '{"EchoTime": 0.1}'


def test_a_dicom_object_of_former_headers_does_not_stay(checkpoint, tmp_path):
    (tmp_path / "dora").mkdir()
    files = save_dicom(tmp_path / "dora", head().slices[..., 1])
    predict(tmp_path, checkpoint, tmp_path / "out", "dora")
    assert (tmp_path / "out" / "dora_mask_seg.dcm").is_file()
    for file in files:
        header = dcmread(file)
        del header.FrameOfReferenceUID
        header.save_as(file)
    predict(tmp_path, checkpoint, tmp_path / "out", "dora")
    assert not (tmp_path / "out" / "dora_mask_seg.dcm").exists()
    assert "There is no DICOM SEG" in json.loads((tmp_path / "out" / "dora.json").read_text())["warnings"][-1]


def test_the_table_passes_over_files_of_others(scans, checkpoint, tmp_path):
    for name in ("bob.json", "bob_mask.nii.gz"):
        (tmp_path / name).write_text('{"EchoTime": 0.1}')
    predict(scans, checkpoint, tmp_path, "anna")
    assert [row["patient"] for row in table_in(tmp_path)] == ["anna"]


def test_results_without_their_probabilities_are_its_own(scans, checkpoint, tmp_path):
    predict(scans, checkpoint, tmp_path, "anna")
    shutil.rmtree(tmp_path / "probabilities")
    predict(scans, checkpoint, tmp_path, "anna")


def test_a_name_that_is_no_text_is_refused(checkpoint, tmp_path):
    name = os.fsdecode(b"M\xfcller.nii")
    with pytest.raises(SystemExit, match=r"'M\\udcfcller\.nii' is not in UTF-8"):
        predict(tmp_path, checkpoint, tmp_path / "out", name)


def test_two_patients_of_one_name_are_refused(scans, checkpoint, tmp_path):
    save_nifti(tmp_path / "anna.nii.gz", head().slices[..., 1])
    with pytest.raises(SystemExit, match="both be called 'anna'"):
        predict(scans, checkpoint, tmp_path / "out", "anna", tmp_path / "anna.nii.gz")


def test_two_processes_share_the_patients(run_client, scans, checkpoint, tmp_path):
    options = ["--checkpoint", checkpoint, "--output", tmp_path / "out", "--no_postprocessing"]
    names = ("anna", "bert.nii", "cleo.zip")
    run = run_client("tests/as_two_processes.py", "predict.py", *options, *(scans / name for name in names))
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("3 of 3 patients segmented") == 1
    assert "2/2" in run.stderr, "the first process has the first and the third"
    assert [row["patient"] for row in table_in(tmp_path / "out")] == ["anna", "bert", "cleo"]
