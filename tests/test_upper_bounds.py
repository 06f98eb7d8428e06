"""The best Dice that thresholds can give, against trying all of them, and the script on kept predictions."""

import shutil
from itertools import product

import numpy as np
import pytest
from PIL import Image

from benchmarks.kept_predictions import read_probabilities
from benchmarks.upper_bounds import best_dice, main, threshold_counts
from hub_dataset.build import build_dataset
from hub_dataset.folds import write_splits
from hub_dataset.loading import load_splits
from hub_dataset.patients import group_by_patient, read_patient
from hub_dataset.phantom import write_phantom
from modeling.predictions import PredictionStore


def dice_at(probabilities: np.ndarray, truth: np.ndarray, thresholds: np.ndarray) -> float:
    marked = probabilities >= thresholds
    return 2 * (marked & truth).sum() / (marked.sum() + truth.sum())


@pytest.fixture
def slices() -> tuple[np.ndarray, np.ndarray]:
    """Three small slices whose probabilities, of few values, tell something of their truth."""
    generator = np.random.default_rng(3)
    truth = generator.random((3, 4, 5)) < np.array([0.6, 0.2, 0.0])[:, None, None]
    return np.round(np.clip(0.3 * truth + 0.7 * generator.random(truth.shape), 0, 1), 1), truth


def test_voxels_of_equal_probability_are_marked_together():
    marked, found = threshold_counts(np.array([[0.2, 0.9], [0.2, 0.2]]), np.array([[True, False], [False, True]]))
    np.testing.assert_array_equal(marked, [0, 1, 4])
    np.testing.assert_array_equal(found, [0, 0, 2])


def test_one_threshold_for_the_volume_is_the_best_of_all(slices):
    probabilities, truth = slices
    tried = [dice_at(probabilities, truth, threshold) for threshold in np.append(np.unique(probabilities), 2)]
    assert best_dice([probabilities], [truth]) == pytest.approx(max(tried))


def test_thresholds_of_slices_are_the_best_of_all_combinations(slices):
    probabilities, truth = slices
    values = np.append(np.unique(probabilities), 2)
    tried = [
        dice_at(probabilities, truth, np.reshape(thresholds, (3, 1, 1))) for thresholds in product(values, repeat=3)
    ]
    assert best_dice(probabilities, truth) == pytest.approx(max(tried))
    assert best_dice(probabilities, truth) > best_dice([probabilities], [truth])


def test_probabilities_that_know_the_truth_reach_one_and_no_lesion_has_no_dice(slices):
    _, truth = slices
    assert best_dice(0.1 + 0.2 * truth, truth) == 1
    assert np.isnan(best_dice(slices[0], np.zeros_like(truth)))


def test_the_script_sets_models_beside_the_reader_and_one_another(tmp_path, capsys):
    source, dataset = tmp_path / "kaggle_3m", str(tmp_path / "dataset")
    write_phantom(source, 8, seed=0, num_slices=10, size=128)  # lesions that are large enough to be kept
    build_dataset(source, dataset)
    split = load_splits(dataset)["validation"]
    for name, shift in (("exact", 0), ("moved", 3)):
        store = PredictionStore(tmp_path / name, {})
        for patient_id, rows in group_by_patient(split).items():
            patient = read_patient(split, patient_id, rows)
            store.write(patient_id, np.roll(patient.truth, shift, axis=2).astype(np.float32), patient.slices)
    refused = {
        "absent from": ["--split", "val", "--predictions", str(tmp_path / "exact")],
        "both be called 'exact'": ["--predictions", str(tmp_path / "exact"), str(tmp_path / "other" / "exact")],
        "holds no predictions": ["--predictions", str(tmp_path)],
        "no predictions of 1 of the": ["--predictions", str(tmp_path / "short")],
    }
    for folder in ("other/exact", "short"):
        shutil.copytree(tmp_path / "exact", tmp_path / folder)
    next((tmp_path / "short").glob("*.npz")).unlink()
    for why, arguments in refused.items():
        with pytest.raises(SystemExit):
            main(["--dataset", dataset, *arguments])
        assert why in capsys.readouterr().err
    store, (patient_id, rows) = PredictionStore.open(tmp_path / "short"), min(group_by_patient(split).items())
    patient = read_patient(split, patient_id, rows)
    for name in group_by_patient(split):
        store.write(name, patient.truth.astype(np.float32), patient.slices + 1)
    with pytest.raises(SystemExit, match=rf"^error: {patient_id}: .*probabilities of other images"):
        main(["--dataset", dataset, "--predictions", str(tmp_path / "short")])
    (tmp_path / "short" / f"{patient_id}.npz").write_bytes(b"")
    with pytest.raises(SystemExit, match=rf"the probabilities of {patient_id} are damaged"):
        main(["--dataset", dataset, "--predictions", str(tmp_path / "short")])
    (flair := PredictionStore(tmp_path / "flair", {"channels": "flair"})).write(
        patient_id, patient.truth.astype(np.float32), patient.slices_given("flair")
    )
    np.testing.assert_array_equal(read_probabilities(flair, patient), patient.truth)
    main(["--dataset", dataset, "--predictions", str(tmp_path / "exact")])
    assert "average" not in capsys.readouterr().out
    folders = [str(tmp_path / name) for name in ("exact", "moved")]
    main(["--dataset", dataset, "--predictions", *folders])
    printed = capsys.readouterr().out
    assert "| exact | 1.000 (1.000 to 1.000) | 1.000 (1.000 to 1.000) | 1.000 (1.000 to 1.000) |" in printed
    average = printed.split("| average of the 2 |")[1].split("|")[0]
    reader, moved, between = printed.splitlines()[-2].split("|")[2:5]
    assert float(reader.split()[0]) == 1
    assert 0 < float(moved.split()[0]) < 1
    assert float(moved.split()[0]) < float(average.split()[0]) < 1, "it finds all of the lesion, and some beside it"
    assert between == moved, "what is exact agrees with the other model as the reader does"


def test_all_columns_are_over_the_patients_with_a_lesion(phantom_dataset_dir, tmp_path, capsys):
    split = load_splits(str(phantom_dataset_dir))["validation"]
    ill = split["patient_id"][0]
    outline = np.zeros((64, 64), np.uint8)
    outline[20:40, 20:40] = 255

    def write(name: str, patients: list[str]) -> str:
        def draw(row):
            has_lesion = row["patient_id"] in patients
            return {"mask": Image.fromarray(outline * has_lesion), "has_lesion": has_lesion}

        write_splits({"validation": split.map(draw, features=split.features)}, tmp_path / name)
        return str(tmp_path / name)

    store = PredictionStore(tmp_path / "model", {})
    for patient_id, rows in group_by_patient(split).items():
        slices = read_patient(split, patient_id, rows).slices
        store.write(patient_id, np.broadcast_to(outline > 0, slices.shape[:3]).astype(np.float32), slices)
    main(["--dataset", write("one", [ill]), "--predictions", str(store.folder)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("2 patients of validation, 1 with a lesion; ")
    assert lines[4] == "| model | 1.000 | 1.000 | 1.000 |"
    assert "| mean (95 % CI) | 0.500 " in lines[-2], "agreement is of all patients"
    with pytest.raises(SystemExit):
        main(["--dataset", write("none", []), "--predictions", str(store.folder)])
    assert "No patient of 'validation' has a lesion" in capsys.readouterr().err
