"""benchmarks/cross_validation.py: every patient is scored with the predictions of its own fold, and none is lost."""

import numpy as np
import pytest

from benchmarks.cross_validation import main
from hub_dataset.build import build_dataset
from hub_dataset.folds import split_by_fold, write_splits
from hub_dataset.loading import load_splits
from hub_dataset.patients import group_by_patient, read_patient
from hub_dataset.phantom import write_phantom
from modeling.image_processing_brain_mri import FLAIR
from modeling.inference import load_model
from modeling.metrics import score_volume, summarize
from modeling.postprocessing import mask_from_probabilities
from modeling.predictions import PredictionStore, model_fingerprint

pytest_plugins = ["training_fixtures"]


@pytest.fixture
def dataset(tmp_path):
    """A phantom whose lesions are large enough to be kept."""
    write_phantom(tmp_path / "kaggle_3m", 9, seed=0, num_slices=10, size=128)
    build_dataset(tmp_path / "kaggle_3m", tmp_path / "dataset")
    return str(tmp_path / "dataset")


def keep_predictions(run, fold: int, dataset: str, folder, shift: int) -> dict:
    """Keeps the readers' outlines, moved sideways and with a faint border, as the fold's; gives the scores they have.

    FLAIR alone is predicted without fault.
    """
    model, processor = load_model(run / "last")
    own = split_by_fold(load_splits(dataset), 2, fold)["validation"]
    scores = {}
    for channels in ("all", "flair"):
        made_with = {
            "model": model_fingerprint(model),
            "processor": processor.to_dict(),
            "channels": channels,
            "views": 1,
        }
        store = PredictionStore(folder / f"fold{fold}-{channels}", made_with)
        for patient_id, rows in group_by_patient(own).items():
            patient = read_patient(own, patient_id, rows)
            truth = patient.truth
            slices = patient.slices if channels == "all" else patient.slices[..., FLAIR]
            probabilities = truth.astype(np.float32)
            if channels == "all":
                probabilities = np.maximum(probabilities, 0.499 * np.roll(truth, 1, axis=1))
                probabilities = np.roll(probabilities, shift, axis=2)
                scores[patient_id] = [
                    score_volume(mask_from_probabilities(probabilities, extend=extend), truth, hausdorff=False)
                    for extend in (False, True)
                ]
            store.write(patient_id, probabilities, slices)
    return scores


def test_pools_the_folds_and_groups_their_patients(run, dataset, tmp_path, capsys):
    runs = [
        run("--folds", "2", "--fold", str(fold), "--epochs", "1", "--dataset", dataset, folder=f"fold{fold}")
        for fold in range(2)
    ]
    by_fold = [keep_predictions(runs[fold], fold, dataset, tmp_path / "kept", shift=4 * fold) for fold in range(2)]
    scores = by_fold[0] | by_fold[1]
    capsys.readouterr()
    main(["--dataset", dataset, "--predictions", str(tmp_path / "kept"), *map(str, reversed(runs))])
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert lines[0] == f"{len(scores)} patients of 2 of 2 folds, {10 * len(scores)} slices"

    rows = {(row[0], row[1]): row[2:] for row in cells}
    as_found, extended = (summarize([pair[i] for pair in scores.values()]) for i in (0, 1))
    assert as_found.dice_mean > extended.dice_mean + 0.001, "the border makes a difference"
    default = rows["all three", "outlines extended (the default)"]
    low, high = extended.dice_interval
    assert default[0] == f"{extended.dice_mean:.3f} ({low:.3f} to {high:.3f})"
    assert default[1:3] == [f"{extended.dice_median:.3f}", f"{extended.lesion_slice_dice:.3f}"]
    change = as_found.dice_mean - extended.dice_mean
    assert rows["all three", "outlines as found"][-1].startswith(f"{change:+.3f} (")
    assert rows["FLAIR alone", "none"][0] == "1.000 (1.000 to 1.000)"

    groups = {row[0]: row[1:] for row in cells}
    for fold in range(2):
        mean = summarize([pair[1] for pair in by_fold[fold].values()]).dice_mean
        number, dice = groups[f"fold {fold}"][:2]
        assert int(number) == len(by_fold[fold])
        assert dice.startswith(f"{mean:.3f} ")
    assert len(scores) == sum(int(groups[f"the dataset's `{name}`"][0]) for name in ("train", "validation"))
    assert len(scores) == sum(int(row[0]) for name, row in groups.items() if name.startswith("lesions of"))
    assert int(groups["institution PH"][0]) == len(scores)


def test_computes_what_is_not_kept_and_names_folds_that_are_not_finished(run, phantom_dataset_dir, tmp_path, capsys):
    runs = [run("--folds", "3", "--fold", str(fold), "--epochs", "1", folder=f"fold{fold}") for fold in range(2)]
    (runs[1] / "last" / "metrics.json").unlink()
    arguments = ["--dataset", str(phantom_dataset_dir), "--predictions", str(tmp_path / "kept"), *map(str, runs)]
    capsys.readouterr()
    main([*arguments, "--views", "2"])
    output = capsys.readouterr().out
    assert output.startswith("2 patients of 1 of 3 folds")
    assert f"not finished: {runs[1]}" in output
    assert output.count("| 2 views averaged, extended |") == 2
    kept = {path.parent.name: path.stem for path in (tmp_path / "kept").glob("*/*.npz")}
    assert sorted(kept) == ["fold0-all", "fold0-all-2-views", "fold0-flair", "fold0-flair-2-views"]
    for name in ("fold0-all", "fold0-flair"):
        alone, averaged = (
            np.load(tmp_path / "kept" / f / f"{kept[name]}.npz")["probabilities"] for f in (name, f"{name}-2-views")
        )
        assert (averaged >= alone).all()
        assert (averaged > alone).any()
    with pytest.raises(SystemExit, match=r"None of .*fold1 has finished"):
        main([*arguments[:4], str(runs[1])])


def test_refuses_a_dataset_of_other_patients(run, dataset, phantom_dataset_dir, tmp_path):
    fold = run("--folds", "3", "--fold", "0", "--epochs", "1", "--dataset", dataset)
    write_splits({"test": load_splits(dataset)["test"]}, tmp_path / "test")
    with pytest.raises(SystemExit, match=r"no split train, validation; folds are dealt from both"):
        main(["--dataset", str(tmp_path / "test"), "--predictions", str(tmp_path / "kept"), str(fold)])
    with pytest.raises(SystemExit, match="was validated on other patients than the dataset has in this fold"):
        main(["--dataset", str(phantom_dataset_dir), "--predictions", str(tmp_path / "kept"), str(fold)])
    assert not (tmp_path / "kept").exists()
