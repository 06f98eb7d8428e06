import json
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from huggingface_hub import DatasetCard
from kaggle_files import OTHER_PATIENT, PATIENT, write_source
from PIL import Image

from hub_dataset import build, shards
from hub_dataset.build import build_dataset, download_source, main
from hub_dataset.card import make_card
from hub_dataset.phantom import write_phantom
from hub_dataset.source import CLINICAL_COLUMNS, read_clinical, read_slice, scan_source
from hub_dataset.splits import ALL_PATIENTS, SPLITS, split_of

COLUMNS = [
    "image",
    "mask",
    "patient_id",
    "slice_index",
    "num_slices",
    "institution",
    "has_lesion",
    "lesion_pixels",
    *CLINICAL_COLUMNS,
]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def dataset(phantom_dataset_dir):
    return load_dataset(str(phantom_dataset_dir))


@pytest.fixture
def small_source(tmp_path):
    """Three patients, one in each split, of four slices."""
    write_phantom(tmp_path / "source", 3, seed=1, num_slices=4, size=32)
    return tmp_path / "source"


def test_splits_and_columns_are_those_of_the_contract(dataset):
    assert tuple(dataset) == SPLITS
    for split in dataset.values():
        assert split.column_names == COLUMNS
    features = dataset["train"].features
    assert features["image"].dtype == features["mask"].dtype == "PIL.Image.Image"
    assert features["has_lesion"].dtype == "bool"
    assert features["slice_index"].dtype == features["lesion_pixels"].dtype == "int32"


def test_every_row_holds_exactly_the_pixels_of_its_files(dataset, phantom_dir):
    files = {
        (patient.patient_id, slice_files.index): slice_files
        for patient in scan_source(phantom_dir).patients
        for slice_files in patient.slices
    }
    for split in dataset.values():
        for row in split:
            image, mask = read_slice(files.pop((row["patient_id"], row["slice_index"])))
            assert (row["image"].mode, row["mask"].mode) == ("RGB", "L")
            assert np.array_equal(np.asarray(row["image"]), image)
            assert np.array_equal(np.asarray(row["mask"]), mask)
            assert row["lesion_pixels"] == np.count_nonzero(mask)
            assert row["has_lesion"] == mask.any()
    assert not files, "every slice of the source is in the dataset, once"


def test_rows_carry_patient_and_clinical_data(dataset, phantom_dir):
    clinical = read_clinical(phantom_dir / "data.csv")
    for name, split in dataset.items():
        table = split.remove_columns(["image", "mask"]).to_list()
        assert [(row["patient_id"], row["slice_index"]) for row in table] == sorted(
            (row["patient_id"], row["slice_index"]) for row in table
        )
        for row in table:
            assert split_of(row["patient_id"]) == name
            assert row["institution"] == "PH"
            assert row["num_slices"] == 10
            assert {column: row[column] for column in CLINICAL_COLUMNS} == clinical[row["patient_id"][:-9]]


def test_no_patient_is_in_two_splits(dataset):
    patients = [set(split["patient_id"]) for split in dataset.values()]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 8


def test_the_dataset_streams(phantom_dataset_dir, dataset):
    streamed = load_dataset(str(phantom_dataset_dir), split="validation", streaming=True)
    row, expected = next(iter(streamed)), dataset["validation"][0]
    assert np.array_equal(np.asarray(row.pop("image")), np.asarray(expected.pop("image")))
    assert np.array_equal(np.asarray(row.pop("mask")), np.asarray(expected.pop("mask")))
    assert row == expected
    assert sum(1 for _ in streamed) == len(dataset["validation"])


def test_a_row_group_is_one_patient(phantom_dataset_dir):
    for file in phantom_dataset_dir.glob("data/*.parquet"):
        parquet = pq.ParquetFile(file)
        for group in range(parquet.num_row_groups):
            patients = parquet.read_row_group(group, columns=["patient_id"])["patient_id"].to_pylist()
            assert len(set(patients)) == 1
            assert len(patients) == 10


def test_the_card_describes_what_was_built(phantom_dataset_dir, dataset):
    card = DatasetCard.load(phantom_dataset_dir / "README.md")
    (config,) = card.data.configs
    assert [entry["split"] for entry in config["data_files"]] == list(SPLITS)
    assert {s["name"]: s["num_examples"] for s in card.data.dataset_info["splits"]} == dataset.num_rows
    assert card.data.task_categories == ["image-segmentation"]
    assert (card.data.license, card.data.annotations_creators) == ("apache-2.0", ["machine-generated"])
    for rows, size in ((80, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (3929, "1K<n<10K"), (10_000, "10K<n<100K")):
        split = {"num_examples": rows, "num_bytes": 1, "num_patients": 1, "num_lesion_slices": 1}
        made = make_card(shards.FEATURES, {"train": split}, download_size=1, sha256="")
        assert made.data.size_categories == [size]
    assert "No patient's image is in it" in card.text
    for name, split in dataset.items():
        patients, lesions = len(set(split["patient_id"])), sum(split["has_lesion"])
        assert 0 < lesions < len(split)
        assert f"| `{name}` | {patients} | {len(split)} | {lesions} |" in card.text


def test_an_incomplete_source_is_built_and_says_what_is_missing(tmp_path, caplog):
    source = write_source(tmp_path / "source", patients=(PATIENT, OTHER_PATIENT))
    report = build_dataset(source, tmp_path / "dataset")
    assert set(report.missing) == set(ALL_PATIENTS) - {PATIENT, OTHER_PATIENT}
    card = DatasetCard.load(tmp_path / "dataset" / "README.md")
    for text in (caplog.text, card.text):
        assert all(patient in text for patient in report.missing)
    assert "lacks 108 patients" in caplog.text
    assert f"{PATIENT} lacks the slices 3, 4, 5, 6, 7, 8, 9" in caplog.text
    assert "built from 2 of the dataset's 110" in card.text
    assert (card.data.license, card.data.annotations_creators) == ("cc-by-nc-sa-4.0", ["expert-generated"])

    dataset = load_dataset(str(tmp_path / "dataset"))
    assert dataset.num_rows == {"train": 3, "validation": 3}
    assert dataset["validation"]["slice_index"][:] == [1, 2, 10]
    assert set(dataset["validation"]["num_slices"]) == {3}
    assert set(dataset["validation"]["institution"]) == {"CS"}
    assert dataset["validation"]["gender"][:] == [None] * 3
    assert "No patient of `test` was in the source" in card.text


def test_building_again_elsewhere_gives_the_same_bytes(phantom_dir, phantom_dataset_dir, tmp_path):
    build_dataset(phantom_dir, tmp_path / "again", num_workers=1)
    assert contents(tmp_path / "again") == contents(phantom_dataset_dir)


def test_a_second_run_keeps_what_is_complete_and_of_the_same_format(small_source, tmp_path, monkeypatch):
    first = build_dataset(small_source, tmp_path / "dataset")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "dataset" / "data").iterdir()}
    monkeypatch.setenv("HOME", str(tmp_path))
    second = build_dataset("~/source", "~/dataset")
    assert len(first.written) == len(second.kept) == 3
    assert not first.kept
    assert not second.written
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "dataset" / "data").iterdir()} == before
    monkeypatch.setattr(shards, "_FORMAT", "of a later version")
    assert len(build_dataset(small_source, tmp_path / "dataset").written) == 3


def test_only_shards_whose_source_changed_are_written_again(small_source, tmp_path):
    build_dataset(small_source, tmp_path / "dataset")
    patient = scan_source(small_source).patients[0]
    mask = np.zeros((32, 32), np.uint8)
    mask[3:5, 3:5] = 255
    Image.fromarray(mask).save(patient.slices[0].mask)

    report = build_dataset(small_source, tmp_path / "dataset")
    split = split_of(patient.patient_id)
    assert report.written == (f"data/{split}-00000-of-00001.parquet",)
    assert len(report.kept) == 2
    assert load_dataset(str(tmp_path / "dataset"), split=split)[0]["lesion_pixels"] == 4


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-100], lambda content: b"\0" + content[1:], lambda _: None]
)
def test_a_damaged_or_missing_shard_is_written_again(small_source, tmp_path, damage):
    build_dataset(small_source, tmp_path / "dataset")
    before = contents(tmp_path / "dataset")
    shard = tmp_path / "dataset" / "data" / "test-00000-of-00001.parquet"
    damaged = damage(shard.read_bytes())
    shard.unlink()
    if damaged is not None:
        shard.write_bytes(damaged)
    report = build_dataset(small_source, tmp_path / "dataset")
    assert report.written == ("data/test-00000-of-00001.parquet",)
    assert contents(tmp_path / "dataset") == before


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"shards": {"data/test-00000-of-00001.parquet": {}}}'])
def test_a_damaged_manifest_means_building_anew(small_source, tmp_path, text):
    build_dataset(small_source, tmp_path / "dataset")
    before = contents(tmp_path / "dataset")
    (tmp_path / "dataset" / "manifest.json").write_text(text)
    assert len(build_dataset(small_source, tmp_path / "dataset").written) == 3
    assert contents(tmp_path / "dataset") == before


def test_an_interrupted_build_goes_on_with_what_it_finished(small_source, tmp_path, monkeypatch):
    output = tmp_path / "dataset"
    encode_slice = shards.encode_slice

    def interrupted(patient, files):
        if split_of(patient.patient_id) == "test":
            raise KeyboardInterrupt
        return encode_slice(patient, files)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "encode_slice", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build_dataset(small_source, output)
    assert [entry.name for entry in output.iterdir()] == [".incomplete"], "nothing that could be taken for a dataset"
    assert not list(output.rglob("*.tmp"))

    report = build_dataset(small_source, output)
    assert report.written == ("data/test-00000-of-00001.parquet",)
    build_dataset(small_source, tmp_path / "clean")
    assert contents(output) == contents(tmp_path / "clean")
    assert sorted(entry.name for entry in output.iterdir()) == ["README.md", "data", "manifest.json"]


def test_a_build_that_stopped_while_publishing_is_taken_up(small_source, tmp_path, monkeypatch):
    output = tmp_path / "dataset"
    with monkeypatch.context() as patch:
        patch.setattr(build, "make_card", lambda *args, **kwargs: pytest.fail("stop"))
        with pytest.raises(pytest.fail.Exception):
            build_dataset(small_source, output)
    assert len(build_dataset(small_source, output).kept) == 3
    build_dataset(small_source, tmp_path / "clean")
    assert contents(output) == contents(tmp_path / "clean")


def test_a_build_that_fails_at_once_leaves_nothing(small_source, tmp_path, monkeypatch):
    def disk_full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(shards, "encode_slice", disk_full)
    with pytest.raises(OSError, match="no space left"):
        build_dataset(small_source, tmp_path / "dataset")
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


def test_a_change_that_leaves_all_sizes_as_they_were_is_loaded(small_source, tmp_path):
    build_dataset(small_source, tmp_path / "dataset")
    assert load_dataset(str(tmp_path / "dataset"))["train"]["gender"][0] == 2
    file = small_source / "data.csv"
    rows = [line.split(",") for line in file.read_text().splitlines()]
    rows[1][rows[0].index("gender")] = "3"
    file.write_text("\n".join(map(",".join, rows)) + "\n")
    build_dataset(small_source, tmp_path / "dataset")
    assert load_dataset(str(tmp_path / "dataset"))["train"]["gender"][0] == 3


def test_a_fault_in_the_source_leaves_an_earlier_dataset_as_it_was(small_source, tmp_path):
    build_dataset(small_source, tmp_path / "dataset")
    before = contents(tmp_path / "dataset")
    scan_source(small_source).patients[1].slices[2].mask.unlink()
    with pytest.raises(ValueError, match="has no mask"):
        build_dataset(small_source, tmp_path / "dataset")
    assert contents(tmp_path / "dataset") == before


@pytest.mark.parametrize("damaged", [False, True])
def test_shards_of_patients_that_left_the_source_are_removed(small_source, tmp_path, damaged):
    build_dataset(small_source, tmp_path / "dataset")
    if damaged:
        (tmp_path / "dataset" / "manifest.json").write_text("")
    gone = scan_source(small_source).patients[2].patient_id
    shutil.rmtree(small_source / gone)
    build_dataset(small_source, tmp_path / "dataset")
    assert set(load_dataset(str(tmp_path / "dataset"))) == set(SPLITS) - {split_of(gone)}
    assert len(list((tmp_path / "dataset" / "data").iterdir())) == 2


def test_patients_are_dealt_over_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "PATIENTS_PER_SHARD", 2)
    write_phantom(tmp_path / "source", 6, num_slices=4, size=32)
    report = build_dataset(tmp_path / "source", tmp_path / "dataset")
    assert [name for name in report.shards if "train" in name] == [
        "data/train-00000-of-00002.parquet",
        "data/train-00001-of-00002.parquet",
    ]
    train = load_dataset(str(tmp_path / "dataset"), split="train")
    assert list(dict.fromkeys(train["patient_id"])) == [f"TCGA_PH_{n:04d}_20000101" for n in (1, 4, 5, 6)]


def test_the_manifest_lists_patients_and_digests(phantom_dataset_dir):
    manifest = json.loads((phantom_dataset_dir / "manifest.json").read_text())["shards"]
    assert sum(len(record["patients"]) for record in manifest.values()) == 8
    assert sum(record["num_rows"] for record in manifest.values()) == 80
    assert {name: record["size"] for name, record in manifest.items()} == {
        f"data/{file.name}": file.stat().st_size for file in (phantom_dataset_dir / "data").iterdir()
    }


@pytest.mark.parametrize("name", ["README.md", "manifest.json"])
def test_an_output_folder_with_other_files_is_refused(small_source, tmp_path, monkeypatch, name):
    (tmp_path / name).write_text('{"name": "mine"}')
    with pytest.raises(ValueError, match="holds files that are not of this program"):
        build_dataset(small_source, tmp_path)
    monkeypatch.chdir(small_source)
    with pytest.raises(ValueError, match="lies in the source"):
        build_dataset(small_source, "dataset")
    with pytest.raises(ValueError, match="is a file"):
        build_dataset(small_source, tmp_path / name)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [name, "source"]


def test_an_encoder_that_changes_pixels_is_noticed(small_source, tmp_path, monkeypatch):
    monkeypatch.setitem(shards.IMAGE_ENCODING, "lossless", False)
    with pytest.raises(RuntimeError, match="does not keep pixels in WEBP"):
        build_dataset(small_source, tmp_path / "dataset")


def test_the_program_runs_as_a_module(small_source, tmp_path):
    command = [sys.executable, "-m", "hub_dataset.build", "--source", str(small_source)]
    run = subprocess.run([*command, "--output", str(tmp_path / "out")], capture_output=True, text=True, check=True)
    assert "train: 4 slices" in run.stdout
    assert "3 shards written, 0 kept" in run.stdout
    (small_source / "data.csv").unlink()
    with pytest.raises(SystemExit, match=r"^error: .*data\.csv is missing"):
        main(["--source", str(small_source), "--output", str(tmp_path / "none")])
    assert not (tmp_path / "none").exists()


def test_without_a_source_the_archive_is_downloaded(tmp_path, monkeypatch, capsys):
    asked = []
    write_phantom(tmp_path / "archive" / "kaggle_3m", 1, num_slices=4, size=32)
    shutil.copytree(tmp_path / "archive" / "kaggle_3m", tmp_path / "archive" / "lgg-mri-segmentation" / "kaggle_3m")
    kagglehub = types.SimpleNamespace(dataset_download=lambda name: asked.append(name) or str(tmp_path / "archive"))
    monkeypatch.setitem(sys.modules, "kagglehub", kagglehub)
    main(["--output", str(tmp_path / "dataset")])
    assert asked == ["mateuszbuda/lgg-mri-segmentation"]
    assert "train: 4 slices" in capsys.readouterr().out


def test_a_download_that_cannot_be_done_says_what_to_do_instead(monkeypatch):
    def offline(_):
        raise ConnectionError("no route to host")

    monkeypatch.setitem(sys.modules, "kagglehub", types.SimpleNamespace(dataset_download=offline))
    with pytest.raises(RuntimeError, match=r"no route to host\. Or unpack .* pass its folder as --source"):
        download_source()
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(RuntimeError, match="pip install kagglehub"):
        download_source()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--push-to-hub", "someone/lgg"], "There is no token"),
        (["--push-to-hub", "some one/lgg"], "no name of a repository"),
        (["--private"], "--private goes with --push-to-hub"),
        (["--num-workers", "0"], "at least 1, got 0"),
    ],
)
def test_bad_options_are_refused_before_any_work(small_source, tmp_path, capsys, options, message):
    with pytest.raises(SystemExit, match="2"):
        main(["--source", str(small_source), "--output", str(tmp_path / "dataset"), *options])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "dataset").exists()


def test_a_push_that_fails_keeps_the_dataset_and_says_so(small_source, tmp_path, monkeypatch):
    """The tests' environment is offline, so the client refuses."""
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    command = ["--source", str(small_source), "--output", str(tmp_path / "dataset"), "--push-to-hub", "someone/lgg"]
    with pytest.raises(SystemExit, match="is complete but could not be pushed to someone/lgg"):
        main(command)
    assert load_dataset(str(tmp_path / "dataset")).num_rows == {"train": 4, "validation": 4, "test": 4}
