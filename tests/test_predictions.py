"""Predictions of many patients on disk."""

import hashlib
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from tiny_models import tiny_model

from modeling import BrainMRIImageProcessor
from modeling.inference import predict_volume
from modeling.predictions import PredictionStore, model_fingerprint, segment_dataset, weights_sha256

PATIENTS = ["c", "a", "b"]
MADE_WITH = {"weights": "0", "channels": "all"}


@pytest.fixture(scope="module")
def volumes() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.integers(0, 255, (3, 40, 36, 3)).astype(np.uint8) for name in PATIENTS}


@pytest.fixture(scope="module")
def model():
    return tiny_model("unet-4level")


@pytest.fixture
def processor():
    return BrainMRIImageProcessor()


def readers(volumes, read: list) -> dict:
    return {name: lambda name=name: read.append(name) or volumes[name] for name in volumes}


def test_each_patient_is_predicted_as_by_itself(model, processor, volumes, tmp_path):
    store = PredictionStore(tmp_path, MADE_WITH)
    names = segment_dataset(model, processor, readers(volumes, []), store, crop_margin=None)
    assert names == sorted(PATIENTS)
    for name in PATIENTS:
        expected = predict_volume(model, processor, volumes[name], crop_margin=None)
        np.testing.assert_array_equal(store.read(name), expected)
        assert store.read(name).dtype == np.float32


def test_what_is_there_is_not_computed_again(model, processor, volumes, tmp_path):
    store = PredictionStore(tmp_path, MADE_WITH)
    store.write("b", np.ones((3, 40, 36), np.float32), volumes["b"])
    segment_dataset(model, processor, readers(volumes, []), store)
    assert store.read("b").min() == 1
    assert store.read("a").min() < 1


def test_what_is_there_of_other_images_is_refused(model, processor, volumes, tmp_path):
    store = PredictionStore(tmp_path, MADE_WITH)
    changed = volumes["b"].copy()
    changed[1, 5, 5] += 1
    store.write("b", np.ones((3, 40, 36), np.float32), changed)
    failures = {}
    names = segment_dataset(model, processor, readers(volumes, []), store, failures=failures)
    assert (names, list(failures)) == (["a", "c"], ["b"])
    assert "of other images under this name" in failures["b"]
    assert "b.npz" in failures["b"]
    assert store.read("b").min() == 1, "what was there is kept"


def test_processes_share_the_patients(model, processor, volumes, tmp_path):
    store, shares = PredictionStore(tmp_path, MADE_WITH), []
    for index in range(2):
        read = []
        segment_dataset(model, processor, readers(volumes, read), store, process_index=index, num_processes=2)
        shares.append(read)
    assert shares == [["a", "c"], ["b"]]
    assert all(name in store for name in PATIENTS)


def test_predictions_of_different_origin_do_not_mix(tmp_path):
    slices, other = np.zeros((2, 8, 8)), MADE_WITH | {"weights": "1", "options": {"views": 2}}
    PredictionStore(tmp_path, other)  # nothing came of it, so that it binds nobody
    store = PredictionStore(tmp_path, MADE_WITH | {"options": {"views": 1}})
    store.write("a", slices, slices)
    PredictionStore(tmp_path, dict(store.made_with))
    with pytest.raises(ValueError, match=r"another options\.views, weights\."):
        PredictionStore(tmp_path, other)
    (tmp_path / "a.npz").unlink()
    PredictionStore(tmp_path, other)
    with pytest.raises(ValueError, match="another options"):
        store.write("a", slices, slices)


def test_what_is_damaged_is_computed_again_and_a_damaged_record_is_named(tmp_path):
    slices = np.random.default_rng(0).random((2, 8, 8))
    store = PredictionStore(tmp_path, MADE_WITH)
    store.write("a", slices, slices)
    assert store.holds("a", slices)
    with pytest.raises(ValueError, match="other images"):
        store.holds("a", slices + 1)
    with pytest.raises(ValueError, match="other images"):
        store.holds("a", slices.reshape(4, 4, 8))
    with pytest.raises(ValueError, match="other images"):
        store.holds("a", slices.view(np.int64))
    kept = (tmp_path / "a.npz").read_bytes()
    method = kept.index(b"PK\x01\x02") + 10
    unknown_method = kept[:method] + b"\xff\xff" + kept[method + 2 :]
    encrypted = kept[: method - 2] + b"\1" + kept[method - 1 :]
    for damaged in (kept[:100], kept[:-200], b"", kept[:400] + bytes(20) + kept[420:], unknown_method, encrypted):
        (tmp_path / "a.npz").write_bytes(damaged)
        assert not store.holds("a", slices)
    for damaged in ("", "[]"):
        (tmp_path / "made_with.json").write_text(damaged)
        with pytest.raises(ValueError, match=r"made_with\.json is damaged"):
            PredictionStore(tmp_path, MADE_WITH)


def test_a_failure_names_the_patient_and_keeps_the_others(model, processor, volumes, tmp_path):
    store = PredictionStore(tmp_path, MADE_WITH)
    broken = volumes | {"b": np.zeros((3, 40))}
    with pytest.raises(ValueError, match=r"b: A volume has shape"):
        segment_dataset(model, processor, readers(broken, []), store)
    assert "a" in store
    assert "b" not in store
    failures = {}
    assert segment_dataset(model, processor, readers(broken, []), store, failures=failures) == ["a", "c"]
    assert list(failures) == ["b"]
    assert "(3, 40)" in failures["b"]


def test_what_nobody_foresaw_stops_one_patient_alone(model, processor, volumes, tmp_path, caplog):
    def finish(name):
        if name == "b":
            raise ZeroDivisionError("by zero")

    store, failures = PredictionStore(tmp_path, MADE_WITH), {}
    names = segment_dataset(model, processor, readers(volumes, []), store, failures=failures, finish=finish)
    assert (names, failures) == (["a", "c"], {"b": "ZeroDivisionError: by zero"})
    assert "in finish" in caplog.text, "the log says where"
    with pytest.raises(ZeroDivisionError):
        segment_dataset(model, processor, readers(volumes, []), store, finish=finish)


@pytest.mark.parametrize("name", ["", "../a", "a/b", ".a"])
def test_names_stay_within_the_folder_and_in_sight(tmp_path, name):
    with pytest.raises(ValueError, match="becomes that of a file"):
        PredictionStore(tmp_path / "store", MADE_WITH).write(name, *np.zeros((2, 1, 32, 32), np.float32))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_kill_leaves_whole_files_only(tmp_path):
    script = (
        "import sys, numpy as np; from modeling.predictions import PredictionStore\n"
        f"store = PredictionStore(sys.argv[1], {MADE_WITH!r}); rng = np.random.default_rng(0)\n"
        "print('ready', flush=True)\n"
        "while True: store.write('a', *rng.random((2, 60, 64, 64), dtype=np.float32))"
    )
    process = subprocess.Popen([sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE, text=True)
    store = PredictionStore(tmp_path, MADE_WITH)
    assert process.stdout.readline() == "ready\n"
    while "a" not in store and process.poll() is None:
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert store.read("a").shape == (60, 64, 64)
    assert json.loads((tmp_path / "made_with.json").read_text()) == MADE_WITH


def test_the_hash_of_weights_is_that_of_their_files(model, tmp_path):
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    whole = (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert weights_sha256(str(tmp_path / "whole")) == hashlib.sha256(whole).hexdigest()
    shards = sorted((tmp_path / "shards").glob("*.safetensors"))
    assert len(shards) > 1
    expected = hashlib.sha256(b"".join(shard.read_bytes() for shard in shards)).hexdigest()
    assert weights_sha256(str(tmp_path / "shards")) == expected
    with pytest.raises(OSError, match="missing"):
        weights_sha256(str(tmp_path / "missing"))


def test_the_fingerprint_follows_weights_and_configuration(model, tmp_path):
    fingerprint = model_fingerprint(model)
    assert len(fingerprint) == 64
    assert fingerprint == model_fingerprint(tiny_model("unet-4level"))
    assert fingerprint != model_fingerprint(tiny_model("unet-4level", seed=1))
    model.save_pretrained(tmp_path)
    assert fingerprint == model_fingerprint(type(model).from_pretrained(tmp_path))
    assert fingerprint != model_fingerprint(type(model).from_pretrained(tmp_path, temperature=2.0))
