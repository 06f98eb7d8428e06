"""ONNX graphs beside the PyTorch models they come from: every preset, any batch, height and width."""

import json

import numpy as np
import onnxruntime
import pytest
import torch
from tiny_models import TINY, randomized, tiny_model
from transformers import ViTConfig, ViTModel

from modeling import (
    PRESETS,
    BrainMRIImageProcessor,
    UNetConfig,
    UNetForSemanticSegmentation,
    onnx_export,
    preset_config,
)
from modeling.configuration_transunet import EfficientNetLiteConfig
from modeling.onnx_export import export_onnx, main, preset_name

# Batch, height, width: multiples of every divisor and of none, square and not, the position embeddings' own grid
# (64x64), coarser and finer ones, and the smallest size.
SHAPES = [(1, 64, 64), (3, 32, 33), (2, 96, 128), (1, 65, 47), (4, 127, 50), (1, 75, 201)]
# The exporter takes its time for every layer, so there are few that repeat another.
FEW_LAYERS = {
    "unet-5level": {"encoder_depths": [1, 1, 1, 1, 1], "decoder_depth": 1},
    "unet-4level": {"encoder_depths": [1, 1, 1, 2], "decoder_depth": 1},
    "transunet-conv": {"num_hidden_layers": 1},
    "transunet-r50-vit-b16": {"num_hidden_layers": 1, "decoder_depth": 1},
    "transunet-small": {
        "num_hidden_layers": 1,
        "decoder_depth": 1,
        "backbone_config": EfficientNetLiteConfig(
            embedding_size=8, hidden_sizes=[4, 6, 8, 10, 12], depths=[1, 2, 1, 1, 1], expand_ratios=[1, 2, 2, 2, 2]
        ),
    },
}


@pytest.fixture
def small_unet():
    torch.manual_seed(0)
    return UNetForSemanticSegmentation(UNetConfig(hidden_sizes=[4, 8], encoder_depths=[1, 1]))


@pytest.mark.parametrize("preset", TINY)
def test_every_preset_gives_the_same_logits_at_any_size(preset, tmp_path, capsys):
    model = randomized(tiny_model(preset, **FEW_LAYERS[preset]))
    model.save_pretrained(tmp_path / "checkpoint")
    processor = BrainMRIImageProcessor(size_divisor=model.config.size_divisor, clip=6.0)
    processor.save_pretrained(tmp_path / "checkpoint")
    path = tmp_path / "new" / "model.onnx"
    main([str(tmp_path / "checkpoint"), str(path)])
    assert "Largest difference of the logits from PyTorch's, at 1x256x256 and 2x131x93: " in capsys.readouterr().out
    assert list(path.parent.iterdir()) == [path]

    session = onnxruntime.InferenceSession(path)
    assert [(value.name, value.type, value.shape) for value in session.get_inputs()] == [
        ("pixel_values", "tensor(float)", ["batch", 3, "height", "width"])
    ]
    assert [(value.name, value.type, value.shape) for value in session.get_outputs()] == [
        ("logits", "tensor(float)", ["batch", 1, "height", "width"])
    ]
    generator = torch.Generator().manual_seed(1)
    for batch, height, width in SHAPES:
        pixel_values = torch.randn(batch, 3, height, width, generator=generator)
        with torch.no_grad():
            expected = model(pixel_values).logits
        (logits,) = session.run(None, {"pixel_values": pixel_values.numpy()})
        assert expected.std() > 0.1  # else any graph would agree
        torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-4, atol=1e-4)

    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata["threshold"] == "0.5"
    assert metadata["size_divisor"] == str(model.config.size_divisor)
    assert json.loads(metadata["preprocessor_config"])["clip"] == 6.0
    assert "median of its brain pixels" in metadata["normalization"]
    assert str(onnx_export.__file__).encode() not in path.read_bytes()


def test_the_processor_and_a_graph_give_the_mask_of_the_model(small_unet, tmp_path):
    processor = BrainMRIImageProcessor(size_divisor=2)
    image = np.random.default_rng(0).integers(0, 255, (61, 47, 3), dtype=np.uint8)
    inputs = processor(images=image, return_tensors="pt")
    small_unet.train()
    before = {name: value.clone() for name, value in small_unet.state_dict().items()}
    difference = export_onnx(small_unet, tmp_path / "model.onnx", processor=processor)
    assert 0 <= difference < 1e-4
    assert small_unet.training
    torch.testing.assert_close(small_unet.state_dict(), before, rtol=0, atol=0)

    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (logits,) = session.run(None, {"pixel_values": inputs["pixel_values"].numpy()})
    with torch.no_grad():
        outputs = small_unet.eval()(**inputs)
    (expected,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[(61, 47)])
    mask = 1 / (1 + np.exp(-logits[0, 0, :61, :47])) >= 0.5
    assert 0 < mask.sum() < mask.size
    np.testing.assert_array_equal(mask, expected)
    assert session.get_modelmeta().custom_metadata_map["preset"] == "custom"


def test_a_graph_that_differs_is_not_kept_and_an_older_file_stays(small_unet, tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"older")
    monkeypatch.setattr(onnx_export, "simplify", lambda graph: graph.head.weight.data.mul_(1.1))
    with pytest.raises(RuntimeError, match=r"differ from PyTorch's by .* at 256x256"):
        export_onnx(small_unet, path)
    assert path.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [path]


def test_a_graph_that_onnx_runtime_cannot_compute_is_not_kept(small_unet, tmp_path, monkeypatch):
    def fail(*args, **options):
        raise Exception("Concat of 64 and 63")

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    with pytest.raises(RuntimeError, match=r"cannot compute the graph \(Concat of .*not kept.*torch \(from 2.10 on\)"):
        export_onnx(small_unet, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_known_by_their_architecture(name):
    assert preset_name(preset_config(name, loss="dice", temperature=1.3)) == name
    assert preset_name(preset_config(name, **TINY[name])) is None


def test_without_the_exporter_the_error_names_what_to_install(small_unet, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: None)
    small_unet.save_pretrained(tmp_path / "checkpoint")
    BrainMRIImageProcessor(size_divisor=2).save_pretrained(tmp_path / "checkpoint")
    with pytest.raises(SystemExit, match=r"pip install onnx onnxscript$"):
        main([str(tmp_path / "checkpoint"), str(tmp_path / "model.onnx")])


def test_other_errors_say_what_came(small_unet, tmp_path):
    with pytest.raises(SystemExit, match=r"modeling\.onnx_export: error: .*nothing"):
        main([str(tmp_path / "nothing"), str(tmp_path / "model.onnx")])
    with pytest.raises(IsADirectoryError, match="is a folder"):
        export_onnx(small_unet, tmp_path)
    vit = ViTModel(ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8))
    with pytest.raises(ValueError, match="ViTModel"):
        export_onnx(vit, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
