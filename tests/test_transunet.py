"""TransUNet's parts against the library's own modules, and what only TransUNet promises."""

import math
from unittest.mock import patch

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from test_modeling import images
from tiny_models import TINY, randomized, tiny_model
from torch import nn
from transformers import BitConfig, ViTConfig
from transformers.models.bit.modeling_bit import DynamicPad2d
from transformers.models.vit.modeling_vit import ViTLayer

from modeling import TransUNetConfig, TransUNetForSemanticSegmentation, UNetConfig, preset_config
from modeling.configuration_transunet import ConvStemConfig, EfficientNetLiteConfig
from modeling.layers import SamePaddingConv2d
from modeling.modeling_transunet import TransUNetEmbeddings, TransUNetEncoder, resize_position_embeddings, to_grid
from modeling.stems import ConvStem

TRANSUNETS = [preset for preset in TINY if preset.startswith("transunet")]
every_transunet = pytest.mark.parametrize("preset", TRANSUNETS)


# The stems


@every_transunet
@pytest.mark.parametrize("size", [(64, 64), (33, 47), (95, 32)])
def test_stem_halves_rounding_up(preset, size):
    model = tiny_model(preset)
    with torch.no_grad():
        feature_maps = model.stem(images(*size))
    expected = [
        (2, channels, *(math.ceil(length / 2 ** (level + 1)) for length in size))
        for level, channels in enumerate(model.config.feature_sizes)
    ]
    assert [tuple(feature_map.shape) for feature_map in feature_maps] == expected


def test_presets_have_the_published_features():
    assert preset_config("transunet-conv").feature_sizes == [64, 128, 256]
    assert preset_config("transunet-r50-vit-b16").feature_sizes == [64, 256, 512, 1024]
    assert preset_config("transunet-small").feature_sizes == [16, 24, 40, 112]
    for preset in TRANSUNETS:
        assert preset_config(preset).size_divisor == 16
        assert preset_config(preset).position_grid == (16, 16)


def test_conv_stem_gives_the_pooled_maps():
    stem = ConvStem(ConvStemConfig(hidden_sizes=[4])).eval()
    pixel_values = images(6, 8)
    full = stem.stages[0](pixel_values)
    (pooled,) = stem(pixel_values)
    assert torch.equal(pooled, full.unfold(2, 2, 2).unfold(3, 2, 2).amax(dim=(-2, -1)))


@pytest.mark.parametrize("size", [(32, 32), (45, 70)])
def test_bit_stem_is_the_library_s_backbone(size):
    stem = randomized(tiny_model("transunet-r50-vit-b16")).stem
    pixel_values = images(*size)
    with torch.no_grad():
        root, *stages = stem(pixel_values)
        outputs = stem.backbone(pixel_values, output_hidden_states=True)
        pooled = stem.backbone.bit.embedder.pooler(root)
    assert torch.equal(pooled, outputs.hidden_states[0])
    for stage, expected in zip(stages, outputs.hidden_states[1:], strict=True):
        assert torch.equal(stage, expected)


@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("size", [(16, 16), (15, 22), (9, 4)])
def test_same_padding(kernel_size, size):
    convolution = SamePaddingConv2d(4, 8, kernel_size, stride=2, groups=2)
    hidden_states = torch.randn(2, 4, *size)
    padded = DynamicPad2d(kernel_size, stride=2, dilation=1)(hidden_states)
    expected = nn.functional.conv2d(padded, convolution.weight, convolution.bias, stride=2, groups=2)
    assert torch.equal(convolution(hidden_states), expected)


# Tokens


def embeddings(**overrides) -> TransUNetEmbeddings:
    config = preset_config("transunet-conv", **{**TINY["transunet-conv"], **overrides})
    module = TransUNetEmbeddings(config).eval()
    nn.init.normal_(module.position_embeddings)
    return module


def test_a_token_is_one_patch_in_place():
    module = embeddings()
    feature_map = torch.randn(1, 8, 6, 10)
    tokens, grid = module(feature_map)
    assert grid == (3, 5)
    changed = feature_map.clone()
    changed[:, :, 3, 8] += 1  # in the patch of row 1, column 4
    moved = (module(changed)[0] - tokens).abs().sum(dim=(0, 2)) > 0
    assert moved.nonzero().flatten().tolist() == [1 * 5 + 4]


def test_tokens_are_scaled_linear_maps_of_patches_plus_positions():
    module = embeddings(image_size=[48, 80])
    feature_map = torch.randn(2, 8, 6, 10)
    tokens, grid = module(feature_map)
    weight, bias = module.projection.weight.flatten(1), module.projection.bias
    patches = feature_map.unfold(2, 2, 2).unfold(3, 2, 2)  # (B, C, 3, 5, 2, 2)
    patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(2, 15, -1)
    expected = (patches @ weight.T + bias) * math.sqrt(24) + module.position_embeddings.flatten(2).mT
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(to_grid(tokens, grid)[:, :, 2, 1], tokens[:, 2 * 5 + 1])


def test_an_incomplete_patch_is_filled_with_zeros():
    module = embeddings()
    feature_map = torch.randn(1, 8, 5, 7)
    tokens, grid = module(feature_map)
    filled = torch.zeros(1, 8, 6, 8)
    filled[..., :5, :7] = feature_map
    assert grid == (3, 4)
    assert torch.equal(tokens, module(filled)[0])


def test_positions_are_interpolated_to_any_grid():
    rows = torch.linspace(0, 1, 8)[:, None].expand(8, 4)
    columns = torch.linspace(0, 1, 4)[None].expand(8, 4)
    positions = torch.stack([rows, columns])[None]  # (1, 2, 8, 4): each cell knows where it is
    assert resize_position_embeddings(positions, (8, 4)) is positions
    resized = resize_position_embeddings(positions, (5, 9))
    assert resized.shape == (1, 2, 5, 9)
    assert (resized[0, 0].diff(dim=0) > 0).all()
    assert (resized[0, 1].diff(dim=1) > 0).all()
    torch.testing.assert_close(resized[0, 0], resized[0, 0, :, :1].expand(5, 9), atol=1e-6, rtol=0)
    torch.testing.assert_close(resized[0, 1], resized[0, 1, :1].expand(5, 9), atol=1e-6, rtol=0)
    half = resize_position_embeddings(positions.to(torch.bfloat16), (5, 9))
    assert half.dtype == torch.bfloat16


# The encoder


def encoder(**overrides) -> TransUNetEncoder:
    config = TransUNetConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=4, head_dim=6, intermediate_size=32, **overrides
    )
    config._attn_implementation = "sdpa"
    return randomized(TransUNetEncoder(config)).eval()


def test_pre_norm_layers_are_vit_s():
    ours = encoder(hidden_act="gelu")
    config = ViTConfig(
        hidden_size=24, num_attention_heads=4, intermediate_size=32, layer_norm_eps=1e-6, hidden_act="gelu"
    )
    config._attn_implementation = "eager"
    hidden_states = torch.randn(2, 10, 24)
    with torch.no_grad():
        encoded, states, _ = ours(hidden_states)
        for index, layer in enumerate(ours.layers):
            theirs = ViTLayer(config).eval()
            theirs.attention.load_state_dict(layer.attention.state_dict())
            theirs.mlp.load_state_dict(layer.mlp.state_dict())
            theirs.layernorm_before.load_state_dict(layer.attention_norm.state_dict())
            theirs.layernorm_after.load_state_dict(layer.mlp_norm.state_dict())
            hidden_states = theirs(hidden_states)
            torch.testing.assert_close(states[index + 1], hidden_states, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(encoded, ours.norm(hidden_states), atol=1e-5, rtol=1e-5)


def test_post_norm_layers_are_the_original_transformer_s():
    ours = encoder(pre_norm=False, hidden_act="relu", layer_norm_eps=1e-5)
    hidden_states = torch.randn(2, 10, 24)
    with torch.no_grad():
        encoded, _, _ = ours(hidden_states)
        for layer in ours.layers:
            theirs = nn.TransformerEncoderLayer(24, nhead=4, dim_feedforward=32, batch_first=True).eval()
            attention, projections = layer.attention, ("q_proj", "k_proj", "v_proj")
            theirs.self_attn.in_proj_weight.copy_(torch.cat([getattr(attention, name).weight for name in projections]))
            theirs.self_attn.in_proj_bias.copy_(torch.cat([getattr(attention, name).bias for name in projections]))
            theirs.self_attn.out_proj.load_state_dict(attention.o_proj.state_dict())
            theirs.linear1.load_state_dict(layer.mlp.fc1.state_dict())
            theirs.linear2.load_state_dict(layer.mlp.fc2.state_dict())
            theirs.norm1.load_state_dict(layer.attention_norm.state_dict())
            theirs.norm2.load_state_dict(layer.mlp_norm.state_dict())
            hidden_states = theirs(hidden_states)
    torch.testing.assert_close(encoded, hidden_states, atol=1e-5, rtol=1e-5)


# Attention weights and hidden states


@every_transunet
def test_attention_weights(preset):
    model, pixel_values = randomized(tiny_model(preset)), images(33, 80)
    with torch.no_grad():
        plain = model(pixel_values)
        outputs = model(pixel_values, output_attentions=True)
    assert plain.attentions is None
    torch.testing.assert_close(outputs.logits, plain.logits, atol=1e-4, rtol=1e-4)
    assert len(outputs.attentions) == model.config.num_hidden_layers
    for weights in outputs.attentions:
        assert weights.shape == (2, model.config.num_attention_heads, 3 * 5, 3 * 5)
        assert (weights >= 0).all()
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, model.config.num_attention_heads, 15))


def test_attention_weights_are_those_that_mix_the_values():
    layer = encoder().layers[0].attention
    hidden_states = torch.randn(2, 10, 24)
    with torch.no_grad():
        context, weights = layer(hidden_states, output_attentions=True)
        values = layer.v_proj(hidden_states).view(2, 10, 4, 6)
        mixed = torch.einsum("bhqk,bkhd->bqhd", weights, values).flatten(2)
    torch.testing.assert_close(context, layer.o_proj(mixed), atol=1e-5, rtol=1e-5)


def test_fused_attention_runs_unless_weights_are_asked_for():
    model, pixel_values = tiny_model("transunet-small"), images(32, 32)
    fused = nn.functional.scaled_dot_product_attention
    with torch.no_grad(), patch.object(nn.functional, "scaled_dot_product_attention", side_effect=fused) as spy:
        model(pixel_values)
        assert spy.call_count == model.config.num_hidden_layers
        model(pixel_values, output_attentions=True)
        assert spy.call_count == model.config.num_hidden_layers


@every_transunet
def test_hidden_states_are_token_grids(preset):
    model, pixel_values = tiny_model(preset), images(33, 80)
    with torch.no_grad():
        outputs = model(pixel_values, output_hidden_states=True)
        tokens, grid = model.embeddings(model.stem(pixel_values)[-1])
    assert grid == (3, 5)
    assert [tuple(states.shape) for states in outputs.hidden_states] == [(2, 24, 3, 5)] * 3
    torch.testing.assert_close(outputs.hidden_states[0], to_grid(tokens, grid))


def test_attention_weights_by_configuration():
    model = tiny_model("transunet-small")
    model.set_attn_implementation("eager")
    model.config.output_attentions = True
    with torch.no_grad():
        logits, attentions = model(images(32, 32), return_dict=False)
    assert logits.shape == (2, 1, 32, 32)
    assert len(attentions) == model.config.num_hidden_layers


# Training


@every_transunet
def test_dropout_is_for_training_only(preset):
    model, pixel_values = randomized(tiny_model(preset, hidden_dropout_prob=0.5)), images(32, 32)
    for module in model.modules():  # so that dropout is the only thing that differs between the modes
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    with torch.no_grad():
        assert torch.equal(model(pixel_values).logits, model(pixel_values).logits)
        model.train()
        assert not torch.allclose(model(pixel_values).logits, model(pixel_values).logits)


# Configuration

BIT = {"layer_type": "bottleneck", "global_padding": "same", "embedding_dynamic_padding": True, "depths": [1, 1, 1, 1]}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"backbone_config": {"model_type": "resnet"}}, "model_type 'resnet'; choose one of lgg_conv_stem"),
        ({"backbone_config": {"hidden_sizes": [8]}}, "model_type None; choose one of"),
        ({"backbone_config": UNetConfig()}, "is a UNetConfig; choose one of ConvStemConfig"),
        ({"backbone_config": BitConfig(**{**BIT, "layer_type": "preactivation"})}, "A BiT stem needs"),
        ({"backbone_config": BitConfig(**{**BIT, "global_padding": None})}, "A BiT stem needs"),
        ({"backbone_config": BitConfig(**{**BIT, "embedding_dynamic_padding": False})}, "A BiT stem needs"),
        ({"backbone_config": BitConfig(**BIT, output_stride=16)}, "A BiT stem needs"),
        ({"image_size": [256, 256, 3]}, "image_size must be one number or height and width"),
        ({"image_size": 0}, "must be positive"),
        ({"patch_size": 3}, "patch_size must be 1 or 2"),
        ({"num_attention_heads": 0}, "must be positive"),
        ({"input_skip_size": 0}, "must be positive"),
        ({"projection_size": 8, "projection_kernel_size": 2}, "projection_kernel_size must be odd"),
        ({"decoder_hidden_sizes": [32, 16, 8]}, "tokens lie at 1/16 .* double it 3 times: 8"),
        ({"head_hidden_size": 8}, "tokens lie at 1/16 .* double it 5 times: 32"),
        ({"decoder_hidden_sizes": [32, 16, 8], "head_hidden_size": 8}, "input_skip_size needs a decoder block"),
        ({"decoder_upsampling": "nearest"}, "must be 'bilinear' or 'transposed', not 'nearest'"),
        ({"loss": "mse"}, "Unknown loss 'mse'"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"hidden_act": "foo"}, "hidden_act must be one of .*gelu.*, but is 'foo'"),
        ({"hidden_dropout_prob": 2.0}, "hidden_dropout_prob must be from 0 to under 1"),
        ({"initializer_range": -1.0}, "initializer_range must not be negative"),
        ({"projection_kernel_size": -1}, "projection_kernel_size must be odd and positive"),
        ({"num_channels": 1}, "num_channels is the stem's"),
        (
            {"backbone_config": ConvStemConfig(hidden_sizes=[8]), "decoder_hidden_sizes": [], "head_hidden_size": 8},
            "decoder_hidden_sizes must have one entry",
        ),
    ],
)
def test_configurations_that_do_not_fit_are_refused(overrides, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        TransUNetConfig(**overrides)


def test_channels_of_the_input_cannot_be_set_past_the_stem():
    with pytest.raises(ValueError, match="num_channels is the stem's"):
        TransUNetConfig().num_channels = 1


@pytest.mark.parametrize("input_skip_size", [None, 8])
def test_a_stem_of_one_map_leaves_the_decoder_no_skip(input_skip_size):
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "head_dim": 4, "intermediate_size": 8, "num_hidden_layers": 1}
    stem = ConvStemConfig(hidden_sizes=[8])
    config = TransUNetConfig(backbone_config=stem, decoder_hidden_sizes=[8], input_skip_size=input_skip_size, **sizes)
    model = TransUNetForSemanticSegmentation(config).eval()
    assert model(torch.randn(1, 3, 75, 93)).logits.shape == (1, 1, 75, 93)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"depths": [1, 2]}, "one entry per stage"),
        ({"strides": [1, 2, 3, 2, 1]}, "strides must be 1 or 2"),
        ({"kernel_sizes": [3, 3, 4, 3, 5]}, "kernel_sizes must be odd"),
        ({"depths": [1, 2, 2, 3, 0]}, "must be positive"),
    ],
)
def test_stem_configurations_that_do_not_fit_are_refused(overrides, message):
    with pytest.raises(StrictDataclassError, match=message):
        EfficientNetLiteConfig(**overrides)
    with pytest.raises(StrictDataclassError, match="at least one stage"):
        ConvStemConfig(hidden_sizes=[])
