"""The engine "onnxruntime" beside PyTorch, and the graphs it keeps."""

import importlib.metadata
import json
import logging
import shutil
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from tiny_models import randomized
from volume_samples import head, save_nifti

import evaluate
import predict
from modeling import BrainMRIImageProcessor, UNetConfig, UNetForSemanticSegmentation, onnx_inference
from modeling.inference import load_model, predict_volume, segment_slice
from modeling.onnx_inference import OnnxModel, graph_fingerprint, load_onnx_model
from modeling.predictions import PredictionStore, model_fingerprint, segment_dataset

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
for name in PACKAGES:
    pytest.importorskip(name, reason=f"needs {name}: pip install {' '.join(PACKAGES)}")

import onnxruntime  # noqa: E402


def small_unet(seed: int) -> UNetForSemanticSegmentation:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = UNetForSemanticSegmentation(UNetConfig(hidden_sizes=[4, 6], encoder_depths=[1, 1]))
    return randomized(model, seed).eval()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    small_unet(seed=0).save_pretrained(folder)
    BrainMRIImageProcessor(size_divisor=2).save_pretrained(folder)
    return folder


@pytest.fixture
def new_home(tmp_path, monkeypatch) -> Path:
    """An empty HF_HOME; without this, a test takes the graph that another has exported."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def exported(monkeypatch) -> list[Path]:
    """Paths to which graphs are exported."""
    paths = []
    export = onnx_inference.export_onnx
    monkeypatch.setattr(onnx_inference, "export_onnx", lambda model, path: paths.append(path) or export(model, path))
    return paths


@pytest.fixture
def sessions(monkeypatch) -> list[int]:
    """Numbers of threads of the sessions that are made, slowly enough for another thread to come."""
    counts = []

    class Session(onnxruntime.InferenceSession):
        def __init__(self, path, options, **arguments):
            counts.append(options.intra_op_num_threads)
            time.sleep(0.05)
            super().__init__(path, options, **arguments)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    return counts


def without(monkeypatch, *names: str) -> None:
    """Let packages be absent."""
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)


def at_once(count: int, work) -> list:
    """Results of `work`, called by so many threads at the same moment."""
    ready = threading.Barrier(count)

    def call(_):
        ready.wait()
        return work()

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(call, range(count)))


def test_slices_and_volumes_have_the_probabilities_of_pytorch(checkpoint, two_threads, tmp_path):
    model, processor = load_onnx_model(checkpoint)
    reference, _ = load_model(checkpoint)
    slices = head().slices
    single = segment_slice(model, processor, slices[4]).probabilities
    expected = segment_slice(reference, processor, slices[4]).probabilities
    assert single.shape == slices.shape[1:3]
    assert single.dtype == np.float32
    assert expected.std() > 0.05  # else any graph would agree
    np.testing.assert_allclose(single, expected, rtol=0, atol=1e-4)

    expected = predict_volume(reference, processor, slices, screening_stride=1)
    volume = predict_volume(model, processor, slices, screening_stride=1)
    assert expected.std() > 0.05
    np.testing.assert_allclose(volume, expected, rtol=0, atol=1e-4)
    batches = predict_volume(model, processor, slices, screening_stride=1, batch_size=3, crop_margin=None)
    expected = predict_volume(reference, processor, slices, screening_stride=1, batch_size=3, crop_margin=None)
    np.testing.assert_allclose(batches, expected, rtol=0, atol=1e-4)
    store = PredictionStore(tmp_path, {})
    segment_dataset(model, processor, {"anna": lambda: slices}, store, screening_stride=1)
    np.testing.assert_array_equal(store.read("anna"), volume)


def test_it_stands_for_the_model_in_evaluation_mode(checkpoint):
    model, _ = load_onnx_model(checkpoint)
    reference, _ = load_model(checkpoint)
    assert model_fingerprint(model) == model_fingerprint(reference)
    assert model.config.to_dict() == reference.config.to_dict()
    assert (model.device.type, model.dtype, model.training) == ("cpu", torch.float32, False)
    assert model.eval() is model
    with pytest.raises(ValueError, match="cannot be trained"):
        model.train()


def test_threads_share_a_session_for_each_number_of_threads(checkpoint, two_threads, sessions):
    model, processor = load_onnx_model(checkpoint)
    pixel_values = torch.randn(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    assert sessions == []

    def compute():
        torch.set_num_threads(1)
        return model(pixel_values=pixel_values).logits

    first, *others = at_once(4, compute)
    assert sessions == [1]
    assert first.shape == (1, 1, 32, 48)
    for logits in others:
        torch.testing.assert_close(logits, first, rtol=0, atol=0)
    torch.set_num_threads(2)
    predict_volume(model, processor, head().slices)  # side by side, with one thread each
    assert sessions == [1]
    segment_slice(model, processor, head().slices[4])
    segment_slice(model, processor, head().slices[5])
    assert sessions == [1, 2]


def test_a_graph_is_exported_once_for_the_same_weights(checkpoint, new_home, exported, tmp_path, caplog, capsys):
    caplog.set_level(logging.INFO, logger="modeling")
    load_onnx_model(checkpoint)
    (path,) = exported
    assert path.parent.parent == new_home
    assert [record.levelname for record in caplog.records if "Exporting" in record.message] == ["INFO"]
    assert capsys.readouterr().out == ""
    before = path.stat().st_mtime_ns
    shutil.copytree(checkpoint, tmp_path / "copy")
    model, _ = load_onnx_model(tmp_path / "copy")
    assert exported == [path] == [model.path]
    assert path.stat().st_mtime_ns == before

    shutil.copytree(checkpoint, tmp_path / "other")
    small_unet(seed=1).save_pretrained(tmp_path / "other")
    other, processor = load_onnx_model(tmp_path / "other")
    assert exported == [path, other.path]
    assert other.path != path
    slices = head().slices
    expected = segment_slice(load_model(tmp_path / "other")[0], processor, slices[4]).probabilities
    np.testing.assert_allclose(segment_slice(other, processor, slices[4]).probabilities, expected, rtol=0, atol=1e-4)


def test_a_damaged_graph_is_exported_again(checkpoint, new_home, exported, caplog):
    values = torch.zeros(1, 3, 32, 32)
    model, _ = load_onnx_model(checkpoint)
    expected = model(values).logits
    model.path.write_bytes(model.path.read_bytes()[:1000])
    again, _ = load_onnx_model(checkpoint)
    torch.testing.assert_close(again(values).logits, expected)
    assert len(exported) == 2
    assert "it is made again" in caplog.text


def test_those_who_load_at_the_same_time_wait_for_one_export(new_home, monkeypatch):
    exported = []

    def slow_export(model, path):
        exported.append(path)
        time.sleep(0.2)
        path.write_bytes(b"graph")

    monkeypatch.setattr(onnx_inference, "export_onnx", slow_export)
    model = small_unet(seed=0)
    first, second = at_once(2, lambda: OnnxModel(model))
    assert exported == [first.path] == [second.path]


@pytest.mark.parametrize("source", ["onnx_export.py", "layers.py", "modeling_unet.py"])
def test_code_that_makes_another_graph_has_another_name_for_it(source, tmp_path, monkeypatch):
    model = small_unet(seed=0)
    before = graph_fingerprint(model)
    shutil.copytree(Path(onnx_inference.__file__).parent, tmp_path / "modeling")
    monkeypatch.setattr(onnx_inference, "__file__", str(tmp_path / "modeling" / "onnx_inference.py"))
    assert graph_fingerprint(model) == before
    path = tmp_path / "modeling" / source
    path.write_text(path.read_text() + "# changed\n")
    assert graph_fingerprint(model) != before


def test_another_pytorch_or_configuration_has_another_graph(monkeypatch):
    model = small_unet(seed=0)
    before = graph_fingerprint(model)
    model.config.hidden_sizes = [4, 8]
    assert graph_fingerprint(model) != before
    model.config.hidden_sizes = [4, 6]
    monkeypatch.setattr(torch, "__version__", "0.0")
    assert graph_fingerprint(model) != before


def test_without_the_packages_the_error_names_what_to_install(checkpoint, new_home, monkeypatch):
    with monkeypatch.context() as patch:
        without(patch, *PACKAGES)
        load_model(checkpoint)
        with pytest.raises(ImportError, match=r"pip install onnx onnxscript onnxruntime$"):
            load_onnx_model(checkpoint)
        assert not new_home.exists()
    load_onnx_model(checkpoint)
    with monkeypatch.context() as patch:
        without(patch, "onnx", "onnxscript")
        model, processor = load_onnx_model(checkpoint)  # the graph is there
        assert segment_slice(model, processor, head().slices[4]).probabilities.any()
        without(patch, "onnxruntime")
        with pytest.raises(ImportError, match=r"needs onnxruntime: pip install onnxruntime$"):
            load_onnx_model(checkpoint)


def test_a_folder_that_cannot_be_written_is_named(checkpoint, new_home):
    new_home.write_text("no folder")
    with pytest.raises(RuntimeError, match=r"cannot be kept in .*lgg-onnx.* Set HF_HOME"):
        load_onnx_model(checkpoint)


@pytest.fixture
def run_predict(checkpoint, tmp_path):
    """predict.py on one NIfTI file; the folder of its results."""
    save_nifti(tmp_path / "anna.nii.gz", head().slices[..., 1])

    def run(engine: str, output: str) -> Path:
        folder = tmp_path / output
        options = ["--checkpoint", checkpoint, "--output", folder, "--engine", engine]
        predict.main([str(argument) for argument in (*options, tmp_path / "anna.nii.gz")])
        return folder

    return run


def test_predict_goes_on_with_what_another_engine_computed(run_predict):
    first, second = run_predict("onnxruntime", "first"), run_predict("torch", "second")
    kept = first / "probabilities" / "anna.npz"
    with np.load(kept) as file, np.load(second / "probabilities" / "anna.npz") as expected:
        assert expected["probabilities"].std() > 0.05
        np.testing.assert_allclose(file["probabilities"], expected["probabilities"], rtol=0, atol=1e-4)
    before = kept.stat().st_mtime_ns
    run_predict("torch", "first")
    assert kept.stat().st_mtime_ns == before
    reports = [json.loads((folder / "anna.json").read_text()) for folder in (first, second)]
    assert reports[0]["weights_sha256"] == reports[1]["weights_sha256"]


def test_predict_says_what_the_engine_needs(run_predict, new_home, monkeypatch, tmp_path):
    without(monkeypatch, *PACKAGES)
    with pytest.raises(SystemExit, match=r"^predict\.py: error: .*pip install onnx onnxscript onnxruntime$"):
        run_predict("onnxruntime", "out")
    assert not (tmp_path / "out").exists()


def test_evaluate_scores_the_same_with_either_engine(checkpoint, phantom_dataset_dir, tmp_path):
    reports = {}
    for engine in ("torch", "onnxruntime"):
        output = tmp_path / f"{engine}.json"
        arguments = ["--checkpoint", checkpoint, "--dataset", phantom_dataset_dir, "--engine", engine, "--no_figure"]
        evaluate.main([str(argument) for argument in (*arguments, "--output", output)])
        reports[engine] = json.loads(output.read_text())
        assert reports[engine]["engine"] == engine
    scores = [
        [patient["raw"]["dice"] for patient in reports[engine]["patients"]] for engine in ("torch", "onnxruntime")
    ]
    assert min(scores[0]) > 0.01
    assert scores[1] == pytest.approx(scores[0], abs=1e-3)
    assert reports["onnxruntime"]["versions"]["onnxruntime"] == importlib.metadata.version("onnxruntime")
    assert "onnxruntime" not in reports["torch"]["versions"]
