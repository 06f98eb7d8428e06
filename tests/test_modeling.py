"""What every preset's model promises, whatever its architecture; at tiny sizes unless the size is the point."""

import json
import math

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from tiny_models import TINY, randomized, tiny_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForSemanticSegmentation

from modeling import PRESETS, UNetConfig, build_model, preset_config
from modeling.layers import DecoderBlock
from modeling.losses import LOSSES, segmentation_loss

# Trainable parameters; with the batch norms' running means and variances.
VALUES = {
    "unet-5level": (7_767_201, 7_774_049),
    "unet-4level": (10_655_809, 10_663_873),
    "transunet-conv": (98_474_177, 98_477_889),
    "transunet-r50-vit-b16": (105_322_001, 105_324_881),
    "transunet-small": (4_610_689, 4_627_841),
}

every_preset = pytest.mark.parametrize("preset", PRESETS)


def images(*size: int, batch: int = 2, seed: int = 0) -> torch.Tensor:
    """Normalised slices, (batch, 3, *size)."""
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


def disks(*size: int, batch: int = 2) -> torch.Tensor:
    """Labels (batch, *size): a disk of another radius in each slice."""
    rows, columns = torch.meshgrid(*(torch.linspace(-1, 1, length) for length in size), indexing="ij")
    radius = torch.linspace(0.3, 0.7, batch)[:, None, None]
    return (rows**2 + columns**2 < radius**2).long()


def test_tiny_sizes_exist_for_every_preset():
    assert set(TINY) == set(PRESETS) == set(VALUES)


@every_preset
def test_number_of_values(preset):
    with torch.device("meta"):
        model = build_model(preset)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    statistics = sum(buffer.numel() for name, buffer in model.named_buffers() if "num_batches" not in name)
    assert (trainable, trainable + statistics) == VALUES[preset]


def test_the_small_transunet_stays_within_its_budget():
    with torch.device("meta"):
        model = build_model("transunet-small").eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, 256, 256))
    assert VALUES["transunet-small"][0] <= 6_000_000
    assert counter.get_total_flops() <= 8e9


@every_preset
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 40), (63, 129), (97, 32)])
def test_any_size(preset, size):
    model = tiny_model(preset)
    with torch.no_grad():
        logits = model(images(*size)).logits
    assert logits.shape == (2, 1, *size)
    assert logits.isfinite().all()


@every_preset
def test_every_pixel_of_an_odd_image_is_seen(preset):
    """Halving with rounding down would cut off the last row and column."""
    model = randomized(tiny_model(preset))
    pixel_values = images(65, 49, batch=1).requires_grad_()
    model(pixel_values).logits.square().sum().backward()
    assert (pixel_values.grad.abs().amax(dim=(0, 1)) > 0).all()


@every_preset
def test_evaluation_is_deterministic_and_by_slice(preset):
    model = randomized(tiny_model(preset))
    pixel_values = images(48, 64, batch=3)
    with torch.no_grad():
        together = model(pixel_values).logits
        assert torch.equal(together, model(pixel_values).logits)
        alone = torch.cat([model(slice_).logits for slice_ in pixel_values.split(1)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


@every_preset
def test_channels_last_gives_the_same_logits(preset):
    model, pixel_values = randomized(tiny_model(preset)), images(40, 64)
    with torch.no_grad():
        expected = model(pixel_values).logits
        model.to(memory_format=torch.channels_last)
        logits = model(pixel_values.contiguous(memory_format=torch.channels_last)).logits
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@every_preset
def test_the_temperature_divides_the_logits(preset):
    model = randomized(tiny_model(preset))
    with torch.no_grad():
        expected = model(images(40, 64)).logits / 1.5
        model.config.temperature = 1.5
        torch.testing.assert_close(model(images(40, 64)).logits, expected)


@every_preset
def test_the_gradient_reaches_every_parameter(preset):
    model = randomized(tiny_model(preset)).train()
    model(images(64, 80, batch=4), labels=disks(64, 80, batch=4)).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # A key's bias shifts every weight of a query alike, a bias before batch norm every pixel of a channel: no
        # effect, no gradient.
        if parameter.ndim > 1:
            assert parameter.grad.abs().max() > 0, name


@every_preset
def test_activation_checkpointing_changes_memory_only(preset):
    """Loss, gradients and running statistics agree to the bit; less is kept."""
    pixel_values, labels = images(64, 80), disks(64, 80)
    model = randomized(tiny_model(preset)).train()
    fresh = {name: value.clone() for name, value in model.state_dict().items()}

    def step() -> tuple[dict[str, torch.Tensor], int]:
        model.load_state_dict(fresh)
        model.zero_grad()
        torch.manual_seed(0)  # of dropout
        kept = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model(pixel_values, labels=labels).loss
        loss.backward()
        values = {"loss": loss.detach(), **{name: buffer.clone() for name, buffer in model.named_buffers()}}
        values |= {f"gradient of {name}": parameter.grad for name, parameter in model.named_parameters()}
        return values, sum(kept.values())

    expected, everything = step()
    model.activation_checkpointing_enable()
    recomputed, kept = step()
    assert kept < 0.8 * everything
    assert [name for name, value in expected.items() if not torch.equal(value, recomputed[name])] == []


@pytest.mark.parametrize("preset", ["unet-5level", "unet-4level"])
def test_activation_checkpointing_computes_no_convolution_twice(preset):
    model = tiny_model(preset).train()
    model.activation_checkpointing_enable()
    with FlopCounterMode(display=False) as forward:
        loss = model(images(64, 80), labels=disks(64, 80)).loss
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    backward_operations = backward.get_flop_counts()["Global"]
    assert forward.get_total_flops() > 0
    assert set(map(str, backward_operations)) == {"aten.convolution_backward"}


@every_preset
def test_a_batch_can_be_learnt(preset):
    torch.manual_seed(0)
    model = tiny_model(preset).train()
    pixel_values, labels = images(32, 48), disks(32, 48)
    pixel_values += 2 * labels[:, None]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = model(pixel_values, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@every_preset
@pytest.mark.parametrize("kind", LOSSES)
def test_loss_is_the_one_that_the_configuration_names(preset, kind):
    model = tiny_model(preset, loss=kind)
    labels = disks(32, 40)
    with torch.no_grad():
        outputs = model(images(32, 40), labels=labels)
    assert outputs.loss.dtype == torch.float32
    torch.testing.assert_close(outputs.loss, segmentation_loss(outputs.logits, labels, kind))


@every_preset
def test_labels_that_do_not_fit_are_refused(preset):
    model, pixel_values = tiny_model(preset), images(32, 40)
    with pytest.raises(ValueError, match=r"labels must have shape \(2, 32, 40\)"):
        model(pixel_values, labels=disks(40, 32))
    with pytest.raises(ValueError, match=r"labels must be 0 .* or 1 .* range from 0 to 255"):
        model(pixel_values, labels=255 * disks(32, 40))


@every_preset
@pytest.mark.parametrize("shape", [(2, 1, 32, 32), (3, 32, 32), (2, 3, 31, 64), (2, 3, 64, 31)])
def test_pixel_values_that_do_not_fit_are_refused(preset, shape):
    with pytest.raises(ValueError, match=r"must have shape|at least 32 pixels"):
        tiny_model(preset)(torch.zeros(shape))


@every_preset
def test_save_and_load(preset, tmp_path):
    model, pixel_values = randomized(tiny_model(preset)), images(48, 33)
    model.save_pretrained(tmp_path)
    loaded, report = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is type(model)
    assert not any(report.values())
    assert not loaded.training
    assert loaded.config.to_diff_dict() == model.config.to_diff_dict()
    with torch.no_grad():
        assert torch.equal(loaded(pixel_values).logits, model(pixel_values).logits)


@every_preset
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights(preset, dtype, tmp_path):
    """Half precision is for storage and accelerators: it loads as it is and as float32, and says nearly the same."""
    model, pixel_values = randomized(tiny_model(preset)), images(32, 32)
    with torch.no_grad():
        expected = model(pixel_values).logits
        model.to(dtype).save_pretrained(tmp_path)
        half = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
        single = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, dtype=torch.float32)
        assert {value.dtype for value in half.parameters()} == {dtype}
        assert {value.dtype for value in single.parameters()} == {torch.float32}
        tolerance = 0.1 * expected.std()
        assert (single(pixel_values).logits - expected).abs().mean() < tolerance
        logits = half(pixel_values.to(dtype)).logits
        assert logits.dtype == dtype
        assert (logits.float() - expected).abs().mean() < tolerance


@every_preset
def test_auto_classes_know_the_architecture(preset, tmp_path):
    config = preset_config(preset, **TINY[preset])
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is type(config)
    assert loaded.to_diff_dict() == config.to_diff_dict()
    model = AutoModelForSemanticSegmentation.from_config(loaded)
    assert type(model) is type(tiny_model(preset))
    assert loaded.id2label == {0: "background", 1: "FLAIR abnormality"}
    assert loaded.label2id == {"background": 0, "FLAIR abnormality": 1}


@every_preset
def test_other_labels_stay_and_there_are_two(preset, tmp_path):
    labels = {"id2label": {0: "other", 1: "lesion"}, "label2id": {"other": 0, "lesion": 1}}
    preset_config(preset, **labels).save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert {"id2label": loaded.id2label, "label2id": loaded.label2id} == labels
    assert loaded.num_labels == 2
    for wrong in ({"id2label": {0: "a", 1: "b", 2: "c"}}, {"id2label": {1: "a", 2: "b"}}):
        with pytest.raises(StrictDataclassError, match="must name the labels 0 and 1"):
            preset_config(preset, **wrong)
    with pytest.raises(StrictDataclassError, match="must name the labels 0 and 1"):
        type(loaded)(num_labels=3)


@every_preset
def test_configuration_file_holds_no_more_than_it_must(preset, tmp_path):
    """The labels are the model's, not the stem's, and the library's own defaults stay out."""
    preset_config(preset).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert "id2label" not in written.get("backbone_config", {})
    assert "chunk_size_feed_forward" not in written


@every_preset
def test_outputs_come_as_object_or_tuple(preset):
    model, pixel_values, labels = tiny_model(preset), images(32, 32), disks(32, 32)
    with torch.no_grad():
        outputs = model(pixel_values, labels=labels)
        loss, logits = model(pixel_values, labels=labels, return_dict=False)
        (only_logits,) = model(pixel_values, return_dict=False)
    assert torch.equal(loss, outputs.loss)
    assert torch.equal(logits, outputs.logits)
    assert torch.equal(only_logits, outputs.logits)
    assert outputs.hidden_states is None


@every_preset
def test_hidden_states_come_when_asked_for(preset):
    model, pixel_values = tiny_model(preset), images(33, 48)
    with torch.no_grad():
        outputs = model(pixel_values, output_hidden_states=True)
        plain = model(pixel_values)
        model.config.output_hidden_states = True
        by_configuration = model(pixel_values)
    assert torch.equal(outputs.logits, plain.logits)
    assert len(outputs.hidden_states) == len(by_configuration.hidden_states) > 1
    for states in outputs.hidden_states:
        assert states.shape[0] == 2
        assert states.ndim == 4
    heights = [states.shape[2] for states in outputs.hidden_states]
    assert heights == sorted(heights, reverse=True), "finest first"


@every_preset
def test_fresh_weights_follow_their_distributions(preset):
    """He for convolutions (a GroupNorm stem's by fan-out, as its library has it), plain for norms, zero biases."""
    model = build_model(preset, **({"num_hidden_layers": 1} if "transunet" in preset else {}))
    checked = set()
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 20_000:
            fan_in = module.weight[0].numel()
            fan = module.out_channels * module.kernel_size[0] ** 2 if "backbone" in name else fan_in
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan), rel=0.05), name
        elif isinstance(module, nn.ConvTranspose2d):
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / (module.in_channels * 4)), rel=0.05), name
        elif isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05), name
        elif isinstance(module, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)):
            assert (module.weight == 1).all(), name
        else:
            continue
        checked.add(type(module))
        assert module.bias is None or (module.bias == 0).all(), name
    assert nn.Conv2d in checked
    if "transunet" in preset:
        assert {nn.Linear, nn.LayerNorm} <= checked
        assert (model.embeddings.position_embeddings == 0).all()


@every_preset
def test_weights_missing_from_a_checkpoint_are_initialised(preset, tmp_path):
    """Loading builds the model without memory: what the file lacks must not stay uninitialised."""
    model = randomized(tiny_model(preset))
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    missing = ("head.", "encoder.", "embeddings.")
    kept = {name: value for name, value in weights.items() if not name.startswith(missing)}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, report = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert set(report["missing_keys"]) >= {name for name in weights if name not in kept}
    for name, value in loaded.state_dict().items():
        assert value.isfinite().all(), name
        if name in kept:
            assert torch.equal(value, model.state_dict()[name]), name
        elif name.endswith(("bias", "position_embeddings")):
            assert (value == 0).all(), name
        elif value.ndim > 1:
            assert 0 < value.std() < 1, name


def test_presets_are_not_changed_by_what_is_built_from_them():
    config = preset_config("unet-5level")
    config.hidden_sizes.append(1024)
    assert list(PRESETS["unet-5level"].hidden_sizes) == [32, 64, 128, 256, 512]
    assert preset_config("transunet-small", hidden_dropout_prob=0.3).hidden_dropout_prob == 0.3
    assert PRESETS["transunet-small"].hidden_dropout_prob == 0.1


@every_preset
def test_a_temperature_that_is_not_positive_is_refused(preset):
    for temperature in (0, -1.0, math.nan, math.inf):
        with pytest.raises(StrictDataclassError, match="temperature must be positive"):
            preset_config(preset, temperature=temperature)


@every_preset
def test_fields_given_on_loading_are_checked_too(preset, tmp_path):
    tiny_model(preset).save_pretrained(tmp_path)
    for field, message in (
        ({"temperature": -1.0}, "temperature must be positive"),
        ({"loss": "mse"}, "Unknown loss 'mse'"),
        ({"id2label": {0: "background", 1: "core", 2: "oedema"}}, "id2label must name the labels 0 and 1"),
    ):
        with pytest.raises(ValueError, match=message):
            AutoModelForSemanticSegmentation.from_pretrained(tmp_path, **field)


@every_preset
def test_modules_whose_tensors_meet_stay_on_one_device(preset):
    """Of several GPUs, by `device_map="auto"`: a sum or a concatenation needs both tensors in one place."""
    model = tiny_model(preset)
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if isinstance(module, DecoderBlock) or (own and len(own) < len(list(module.parameters()))):
            assert type(module).__name__ in model._no_split_modules


def test_unknown_presets_and_losses_are_refused_with_the_choices():
    with pytest.raises(ValueError, match="Unknown preset 'unet'; choose one of unet-5level"):
        build_model("unet")
    with pytest.raises(StrictDataclassError, match="Unknown loss 'mse'; choose one of dice_bce"):
        preset_config("transunet-small", loss="mse")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"hidden_sizes": [8, 16, 32]}, "one entry per level"),
        ({"hidden_sizes": [8], "encoder_depths": [2]}, "at least two levels"),
        ({"encoder_depths": [2, 2, 2, 2, 0]}, "must be positive"),
        ({"num_channels": 0}, "must be positive"),
    ],
)
def test_unet_configurations_that_do_not_fit_are_refused(overrides, message):
    with pytest.raises(StrictDataclassError, match=message):
        UNetConfig(**overrides)
