import filecmp
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from hub_dataset import phantom
from hub_dataset.phantom import main, missing_sequence, phantom_volume, write_phantom
from hub_dataset.source import CLINICAL_COLUMNS, check_patient, read_clinical, scan_source
from hub_dataset.splits import SPLITS, split_of


def files_of(folder):
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def head_of(slices):
    return slices[..., 1] > 30


def test_a_volume_has_three_contrasts_and_a_mask():
    slices, mask = phantom_volume(0, num_slices=6, size=48)
    assert (slices.shape, slices.dtype) == ((6, 48, 48, 3), np.uint8)
    assert (mask.shape, mask.dtype) == ((6, 48, 48), bool)
    contrasts = slices[..., 0], slices[..., 1], slices[..., 2]
    assert not any(np.array_equal(contrasts[i], contrasts[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_the_same_seed_gives_the_same_volume_and_another_seed_another():
    first, again, other = (phantom_volume(seed, num_slices=5, size=40) for seed in (3, 3, 4))
    assert np.array_equal(first.slices, again.slices)
    assert np.array_equal(first.mask, again.mask)
    assert not np.array_equal(first.slices, other.slices)


def test_resolution_does_not_change_the_anatomy():
    coarse, fine = (phantom_volume(1, num_slices=8, size=size) for size in (48, 96))
    reduced = fine.slices.reshape(8, 48, 2, 48, 2, 3).mean((2, 4))
    assert np.corrcoef(coarse.slices[..., 1].ravel(), reduced[..., 1].ravel())[0, 1] > 0.95
    overlap = (coarse.mask & fine.mask[:, ::2, ::2]).sum()
    assert 2 * overlap / (coarse.mask.sum() + fine.mask[:, ::2, ::2].sum()) > 0.85


@pytest.mark.parametrize("seed", range(12))
def test_every_patient_has_a_lesion_bright_on_flair_in_some_slices(seed):
    slices, mask = phantom_volume(seed, num_slices=10, size=48)
    with_lesion = mask.any((1, 2))
    assert 0 < with_lesion.sum() < len(mask) / 2 + 3
    flair = slices[with_lesion][..., 1].astype(float)
    inside = mask[with_lesion]
    assert np.median(flair[inside]) > 1.2 * np.median(flair[head_of(slices[with_lesion]) & ~inside])


def test_the_lesion_shows_on_flair_rather_than_on_t1():
    brighter = []
    for seed in range(6):
        slices, mask = phantom_volume(seed, num_slices=10, size=64)
        brain = head_of(slices) & ~mask & mask.any((1, 2), keepdims=True)
        brighter.append([np.median(slices[mask, c]) / np.median(slices[brain, c]) for c in (0, 1)])
    t1, flair = np.mean(brighter, axis=0)
    assert flair > 1.4
    assert t1 < 1.05


def test_slices_shrink_towards_the_top_and_the_last_one_is_empty():
    slices, mask = phantom_volume(2, num_slices=20, size=64)
    area = head_of(slices).sum((1, 2))
    assert area[-1] == 0
    assert not mask[-1].any()
    assert slices[-1].any(), "noise is there also without signal"
    assert 0 < area[-3] < 0.5 * area.max()
    assert area.max() < 0.8 * 64 * 64, "the head lies within the frame"


@pytest.mark.parametrize(("missing", "channel"), [("pre", 0), ("post", 2)])
def test_a_missing_sequence_is_a_copy_of_flair(missing, channel):
    full, lacking = (phantom_volume(5, num_slices=4, size=40, missing=m) for m in (None, missing))
    assert np.array_equal(lacking.slices[..., channel], full.slices[..., 1])
    others = [c for c in range(3) if c != channel]
    assert np.array_equal(lacking.slices[..., others], full.slices[..., others])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_slices": 3}, "at least 4, got 3"),
        ({"size": 31}, "at least 32 pixels, got 31"),
        ({"missing": "t2"}, "'t2'"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        phantom_volume(0, **arguments)


def test_the_written_folder_is_a_valid_source_that_fills_all_splits(phantom_dir):
    source = scan_source(phantom_dir)
    assert source.is_phantom
    assert source.missing == ()
    assert {split_of(patient.patient_id) for patient in source.patients} == set(SPLITS)
    clinical = {tuple(list(patient.clinical.values())[1:]) for patient in source.patients}
    assert len(clinical) == len(source.patients), "each has its own"
    for patient in source.patients:
        assert [files.index for files in patient.slices] == list(range(1, 11))
        check_patient(patient)
        assert list(patient.clinical) == list(CLINICAL_COLUMNS)


def test_the_clinical_data_has_values_and_blanks(phantom_dir):
    values = [value for row in read_clinical(phantom_dir / "data.csv").values() for value in list(row.values())[1:]]
    assert 0 < values.count(None) < len(values) / 4


def test_some_patients_lack_a_sequence(phantom_dir):
    lacking = {}
    for patient in scan_source(phantom_dir).patients:
        image = np.asarray(Image.open(patient.slices[4].image))
        lacking[int(patient.patient_id.split("_")[2])] = {
            name for name, channel in (("pre", 0), ("post", 2)) if np.array_equal(image[..., channel], image[..., 1])
        }
    assert lacking == {n: {missing_sequence(n)} - {None} for n in lacking}
    assert (lacking[4], lacking[6]) == ({"post"}, {"pre"})


def test_files_beside_it_are_left_alone(tmp_path):
    (tmp_path / "phantom.partial").mkdir()
    (tmp_path / "phantom.partial" / "notes.txt").write_text("mine")
    write_phantom(tmp_path / "phantom", 1, num_slices=4, size=32)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["phantom", "phantom.partial"]
    assert (tmp_path / "phantom.partial" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "phantom").stat().st_mode == (tmp_path / "phantom.partial").stat().st_mode


def test_a_patient_does_not_depend_on_how_many_are_written(tmp_path):
    for name, count in (("one", 1), ("two", 2), ("again", 2)):
        write_phantom(tmp_path / name, count, seed=9, num_slices=4, size=32)
    one, two, again = (tmp_path / name for name in ("one", "two", "again"))
    assert files_of(two) == files_of(again)
    assert filecmp.cmpfiles(two, again, files_of(two), shallow=False)[0] == files_of(two)
    images = [file for file in files_of(one) if file.endswith(".tif")]
    assert len(images) == 8
    assert filecmp.cmpfiles(one, two, images, shallow=False)[0] == images


def test_a_folder_with_files_is_not_written_to(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not an empty folder"):
        write_phantom(tmp_path, 1)
    assert files_of(tmp_path) == ["notes.txt"]


@pytest.mark.parametrize("dest", [".", "../empty"])
def test_the_current_folder_is_not_replaced(tmp_path, monkeypatch, dest):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(ValueError, match="is the current folder, which cannot be replaced; give a new one"):
        write_phantom(dest, 1, num_slices=4, size=32)
    assert not [*(tmp_path / "empty").iterdir()]


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    volumes = iter([phantom_volume(0, num_slices=4, size=32)])
    monkeypatch.setattr(phantom, "phantom_volume", lambda *args, **kwargs: next(volumes))
    with pytest.raises(StopIteration):
        write_phantom(tmp_path / "phantom", 2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--patients", "0", "from 1 to 9999, got 0"),
        ("--seed", "-1", "0 or more, got -1"),
        ("--slices", "1", "at least 4"),
    ],
)
def test_the_program_refuses_bad_options_without_writing(tmp_path, option, value, message):
    with pytest.raises(SystemExit, match=message):
        main([str(tmp_path / "phantom"), option, value])
    assert list(tmp_path.iterdir()) == []


def test_the_program_runs_as_a_module(tmp_path):
    command = [sys.executable, "-m", "hub_dataset.phantom", str(tmp_path / "out"), "--patients", "1", "--seed", "2"]
    run = subprocess.run([*command, "--slices", "5", "--size", "40"], capture_output=True, text=True, check=True)
    assert "1 patients of 5 slices" in run.stdout
    assert len(files_of(tmp_path / "out")) == 11
