"""Evaluation of a split: grouping, the numbers and the errors."""

import dataclasses
import json
import math

import numpy as np
import pytest
from datasets import Dataset, Features, Image, Value
from evaluate_samples import FEATURES, SIZE, make_patient
from PIL import Image as PILImage

import evaluate
from evaluate import evaluate_split, format_table, plot_result, worst_and_best
from hub_dataset.patients import Patient, group_by_patient, read_patient
from modeling.inference import predict_volume
from modeling.metrics import confusion_counts, dice, hausdorff95
from modeling.postprocessing import mask_from_probabilities
from modeling.predictions import PredictionStore

pytest_plugins = ["evaluate_fixtures"]


@pytest.fixture
def predictions(monkeypatch, split):
    """Replaces the network by masks that the test sets: patient -> (S, H, W) bool, the truth to begin with."""
    truths = {}
    for row in sorted(split, key=lambda row: row["slice_index"]):
        truths.setdefault(row["patient_id"], []).append(np.asarray(row["mask"]) > 0)
    masks = {patient: np.stack(slices) for patient, slices in truths.items()}
    turns = iter(sorted(masks))

    def predict(model, processor, slices, **options):
        mask = masks[next(turns)]
        assert len(mask) == len(slices)
        return mask.astype(np.float32)

    monkeypatch.setattr(evaluate, "predict_volume", predict)
    return masks


def replace(split, row, **values):
    """The split with some values of one row changed."""
    rows = list(split)
    rows[row] = {**rows[row], **values}
    return Dataset.from_list(rows, features=FEATURES)


# The numbers


def test_slices_are_ordered_as_numbers_within_each_patient(split):
    groups = group_by_patient(split)
    assert {patient: len(rows) for patient, rows in groups.items()} == {
        "TCGA_AA_0001": 11,
        "TCGA_BB_0002": 6,
        "TCGA_CC_0003": 4,
    }
    for patient, rows in groups.items():
        assert [split[row]["slice_index"] for row in rows] == list(range(1, len(rows) + 1))
        assert {split[row]["patient_id"] for row in rows} == {patient}


@pytest.mark.parametrize(("extend", "views"), [(True, 1), (False, 1), (True, 2)])
def test_the_scores_agree_with_direct_computation(extend, views, split, model, processor):
    options = {"threshold": 0.45, "min_voxels": 20, "keep_fraction": 0.2, "extend": extend}
    result = evaluate_split(model, processor, split, **options, batch_size=3, views=views)
    assert [patient.patient_id for patient in result.patients] == ["TCGA_AA_0001", "TCGA_BB_0002", "TCGA_CC_0003"]
    for patient in result.patients:
        rows = sorted((r for r in split if r["patient_id"] == patient.patient_id), key=lambda r: r["slice_index"])
        truth = np.stack([np.asarray(row["mask"]) == 255 for row in rows])
        slices = np.stack([np.asarray(row["image"]) for row in rows])
        probabilities = predict_volume(model, processor, slices, views=views)
        raw = probabilities >= 0.45
        assert raw.any()  # a case that says something
        cleaned = mask_from_probabilities(probabilities, **options)
        assert (cleaned != raw).any()
        for mask, scores in ((raw, patient.raw), (cleaned, patient.postprocessed)):
            assert scores.counts == confusion_counts(mask, truth)
            assert scores.dice == dice(scores.counts)
            assert scores.hausdorff95 == pytest.approx(hausdorff95(mask, truth), nan_ok=True)
    means = [patient.postprocessed.dice for patient in result.patients]
    assert result.postprocessed.dice_mean == pytest.approx(np.nanmean(means))


def test_a_perfect_prediction_scores_perfectly(split, model, processor, predictions):
    result = evaluate_split(model, processor, split)
    for summary in (result.raw, result.postprocessed):
        assert (summary.dice_mean, summary.dice_median, summary.dice_interval) == (1.0, 1.0, (1.0, 1.0))
        assert (summary.hausdorff95_mean, summary.hausdorff95_patients) == (0.0, 2)
        assert (summary.lesion_slices, summary.lesion_slice_dice) == (7, 1.0)
        assert (summary.empty_slices, summary.false_alarm_rate) == (14, 0.0)
    assert math.isnan(result.patients[2].raw.dice)  # no lesion, and none predicted


def test_an_island_counts_before_post_processing_and_not_after(split, model, processor, predictions):
    predictions["TCGA_CC_0003"][1, 5:8, 5:8] = True
    predictions["TCGA_AA_0001"][7, 38:45, 38:45] = True
    result = evaluate_split(model, processor, split)
    assert (result.raw.false_alarms, result.postprocessed.false_alarms) == (2, 0)
    assert result.patients[2].raw.dice == 0.0
    assert math.isnan(result.patients[2].postprocessed.dice)
    assert result.patients[0].raw.dice < result.patients[0].postprocessed.dice == 1.0
    assert result.patients[0].raw.hausdorff95 > result.patients[0].postprocessed.hausdorff95 == 0.0


def test_the_examples_are_the_worst_and_best_slices_one_per_patient(split, model, processor, predictions):
    predictions["TCGA_AA_0001"][[3, 4]] = False  # slices 4 and 5 missed
    predictions["TCGA_AA_0001"][4, 30:40, 8:40] = True  # and slice 5 wrong by more pixels
    predictions["TCGA_BB_0002"][1, 15:18] = False
    result = evaluate_split(model, processor, split, min_voxels=0, keep_fraction=0)
    assert [(e.patient_id, e.slice_index) for e in result.worst] == [("TCGA_AA_0001", 5), ("TCGA_BB_0002", 2)]
    assert result.worst[0].dice < 0.7
    assert [e.patient_id for e in result.best] == ["TCGA_AA_0001", "TCGA_BB_0002"]
    assert [e.dice for e in result.best] == [1.0, 1.0]
    example = result.worst[1]
    np.testing.assert_array_equal(example.prediction, predictions["TCGA_BB_0002"][1])
    assert example.truth.sum() == 14 * 15
    assert example.image.shape == (SIZE, SIZE, 3)


def test_slices_of_equal_dice_are_ordered_by_their_wrong_pixels():
    truth = np.zeros((3, 4, 4), dtype=bool)
    truth[:, 0, 0] = True
    prediction = np.zeros_like(truth)
    prediction[0, 1] = True  # all are missed, and the first is wrong beside
    patient = Patient("a", [2, 5, 11], np.zeros((3, 4, 4, 3), np.uint8), truth)
    best, worst = worst_and_best(patient, prediction)
    assert (best.slice_index, best.wrong_pixels) == (5, 1)
    assert (worst.slice_index, worst.wrong_pixels) == (2, 5)
    assert evaluate.keep_worst([best, worst]) == evaluate.keep_best([best, worst])[::-1] == [worst, best]


def test_flair_alone_is_the_same_as_images_of_three_flair_channels(split, model, processor):
    copied = split.map(
        lambda row: {"image": PILImage.fromarray(np.repeat(np.asarray(row["image"])[..., 1:2], 3, axis=-1))}
    )
    alone = evaluate_split(model, processor, split, channels="flair")
    assert alone.to_dict() == evaluate_split(model, processor, copied).to_dict()
    assert alone.to_dict() != evaluate_split(model, processor, split).to_dict()


def test_one_patient_at_a_time_is_decoded(split, model, processor):
    encoded = split.cast_column("image", Image(decode=False)).cast_column("mask", Image(decode=False))
    rows = [
        row if row["patient_id"] == "TCGA_AA_0001" else {**row, "image": {"bytes": b"not an image", "path": None}}
        for row in encoded
    ]
    damaged = Dataset.from_list(rows, features=FEATURES)
    started = []

    def progress(patients):
        for patient in patients:
            started.append(patient)
            yield patient

    assert len(evaluate_split(model, processor, damaged, limit=1).patients) == 1
    with pytest.raises(ValueError, match=r"mask of slice 1 of patient TCGA_BB_0002 is damaged \(cannot identify"):
        evaluate_split(model, processor, damaged, progress=progress)
    assert started == ["TCGA_AA_0001", "TCGA_BB_0002"]


@pytest.mark.parametrize("training", [True, False])
def test_the_models_mode_is_left_as_it_was(split, model, processor, training):
    model.train(training)
    try:
        result = evaluate_split(model, processor, split, hausdorff=False, limit=1)
        assert model.training is training
    finally:
        model.eval()
    assert result.patients[0].raw.counts == evaluate_split(model, processor, split, limit=1).patients[0].raw.counts
    assert math.isnan(result.raw.hausdorff95_mean)


def test_the_results_are_valid_json_with_null_for_undefined(split, model, processor, predictions):
    result = evaluate_split(model, processor, split)
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert data["num_patients"] == 3
    assert data["summary"]["raw"]["dice_interval"] == [1.0, 1.0]
    assert data["patients"][2]["raw"]["dice"] is None
    assert data["patients"][0]["postprocessed"]["counts"]["tp"] == 5 * 14 * 15


def test_the_table_and_the_figure_hold_every_patient(split, model, processor, predictions, tmp_path):
    predictions["TCGA_BB_0002"][1] = False
    predictions["TCGA_AA_0001"][7, 38:45, 38:45] = True  # an island, of which post-processing leaves nothing
    result = evaluate_split(model, processor, split)
    table = format_table(result)
    false_alarms = {"TCGA_AA_0001": ["1", "0"], "TCGA_BB_0002": ["0", "0"], "TCGA_CC_0003": ["0", "0"]}
    for patient in result.patients:
        (line,) = [line for line in table.splitlines() if line.startswith(patient.patient_id)]
        scores = (patient.raw.dice, patient.postprocessed.dice)
        scores += (patient.raw.iou, patient.postprocessed.iou)
        assert line.split()[3:7] == ["-" if math.isnan(score) else f"{score:.3f}" for score in scores]
        assert line.split()[-2:] == false_alarms[patient.patient_id]
    assert result.patients[0].raw.dice < result.patients[0].postprocessed.dice
    assert f"{result.raw.dice_mean:.3f}" in table
    assert result.raw.precision_mean != result.raw.recall_mean
    for name in ("iou", "precision", "recall"):
        (line,) = [line for line in table.splitlines() if line.lower().startswith(f"{name}, mean")]
        means = (getattr(summary, f"{name}_mean") for summary in (result.raw, result.postprocessed))
        assert line.split()[2:] == [f"{mean:.3f}" for mean in means]
    assert "7.1 % (1/14)" in table
    figure = plot_result(result)
    figure.savefig(tmp_path / "figure.png")
    labels = {label.get_text() for ax in figure.axes for label in ax.get_yticklabels()}
    assert labels >= {patient.patient_id for patient in result.patients}
    assert sum(bool(ax.images) for ax in figure.axes) == len(result.worst) + len(result.best) == 4
    titles = [ax.get_title() for ax in figure.axes if ax.images]
    assert titles[0].startswith(f"worst: {result.worst[0].patient_id}\nslice {result.worst[0].slice_index}, ")
    assert titles[-1].startswith(f"best: {result.best[-1].patient_id}\n")


def test_a_split_without_any_lesion_still_gives_a_table_and_a_figure(split, model, processor, predictions):
    healthy = split.filter(lambda row: row["patient_id"] == "TCGA_CC_0003")
    predictions.update({"TCGA_AA_0001": predictions["TCGA_CC_0003"]})  # the first turn
    result = evaluate_split(model, processor, healthy)
    assert not result.worst
    assert "0.0 % (0/4)" in format_table(result)
    plot_result(result)


def test_scores_are_plain_numbers(split, model, processor):
    patient = evaluate_split(model, processor, split, limit=1).patients[0]
    for name, value in dataclasses.asdict(patient.raw).items():
        assert name == "counts" or type(value) in (int, float), name


# The errors


def test_a_dataset_without_masks_is_refused(split, model, processor):
    with pytest.raises(ValueError, match=r"has no mask, but image, patient_id.*segmented, not scored"):
        evaluate_split(model, processor, split.remove_columns("mask"))
    with pytest.raises(
        ValueError, match=f"no mask for slice {split[4]['slice_index']} of patient {split[4]['patient_id']}"
    ):
        evaluate_split(model, processor, replace(split, 4, mask=None))


def test_a_slice_that_comes_twice_is_refused(split, model, processor):
    first = group_by_patient(split)["TCGA_BB_0002"][0]
    with pytest.raises(ValueError, match="Slice 2 of patient TCGA_BB_0002 is in the split twice"):
        evaluate_split(model, processor, replace(split, first, slice_index=2))


@pytest.mark.parametrize("odd", [{"patient_id": None}, {"slice_index": None}], ids=str)
def test_a_slice_without_a_place_is_refused(split, model, processor, odd):
    with pytest.raises(ValueError, match=r"needs a patient_id and a number as its slice_index, but one has .*None"):
        evaluate_split(model, processor, replace(split, 0, **odd))


def test_numbers_as_text_are_refused(split, model, processor):
    text = split.cast_column("slice_index", Value("string"))
    with pytest.raises(ValueError, match=r"a number as its slice_index, but one has '.*' and '\d+'"):
        evaluate_split(model, processor, text)


def test_sizes_that_differ_are_refused(split, model, processor):
    small_mask = PILImage.new("L", (SIZE, SIZE - 1))
    with pytest.raises(ValueError, match=r"\(48, 48, 3\), its mask \(47, 48\)"):
        evaluate_split(model, processor, replace(split, 0, mask=small_mask))
    small = {"image": PILImage.new("RGB", (40, 40)), "mask": PILImage.new("L", (40, 40))}
    last = group_by_patient(split)["TCGA_AA_0001"][-1]
    with pytest.raises(ValueError, match=r"slice 11 of patient TCGA_AA_0001 has shape \(40, 40, 3\)"):
        evaluate_split(model, processor, replace(split, last, **small))
    grey = replace(split, last, image=split[last]["image"].convert("L"))
    with pytest.raises(ValueError, match=r"slice 11 of patient TCGA_AA_0001 has shape \(48, 48\)"):
        evaluate_split(model, processor, grey)


def test_patients_may_have_numbers_for_names(model, processor, tmp_path):
    rows = [row | {"patient_id": 7} for row in make_patient("", 2, {1}, seed=4)]
    numbered = Dataset.from_list(rows, features=Features({**FEATURES, "patient_id": Value("int32")}))
    options = {"predictions": PredictionStore(tmp_path, {}), "hausdorff": False}
    result = evaluate_split(model, processor, numbered, **options)
    assert [patient.patient_id for patient in result.patients] == [7]
    assert result.to_dict() == evaluate_split(model, processor, numbered, hausdorff=False).to_dict()


def test_any_value_above_zero_is_lesion(split):
    row = group_by_patient(split)["TCGA_AA_0001"][2]
    truth = np.asarray(split[row]["mask"]) > 0
    ones = replace(split, row, mask=PILImage.fromarray(truth.astype(np.uint8)))
    np.testing.assert_array_equal(read_patient(ones, "TCGA_AA_0001", [row]).truth, truth[None])


def test_an_empty_split_is_refused(split, model, processor):
    with pytest.raises(ValueError, match="no rows"):
        evaluate_split(model, processor, split.select([]))


@pytest.mark.parametrize(
    "argument", [{"threshold": 1.0}, {"channels": "t1"}, {"limit": 0}, {"batch_size": 0}, {"keep_fraction": 2.0}]
)
def test_arguments_out_of_range_are_refused_at_once(split, model, processor, argument, monkeypatch):
    monkeypatch.setattr("evaluate.predict_volume", lambda *_, **__: pytest.fail("a patient is computed"))
    with pytest.raises(ValueError, match=next(iter(argument))):
        evaluate_split(model, processor, split, **argument)
