"""Half precision on disk, float32 in memory."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from modeling import BrainMRIImageProcessor, UNetConfig, UNetForSemanticSegmentation
from modeling.export import export_checkpoint, main


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    model = UNetForSemanticSegmentation(UNetConfig(hidden_sizes=[4, 8], encoder_depths=[1, 1]))
    model.save_pretrained(tmp_path / "source")
    BrainMRIImageProcessor(size_divisor=2).save_pretrained(tmp_path / "source")
    return tmp_path / "source"


def test_stores_float16_and_loads_as_float32(checkpoint, tmp_path, capsys):
    target = tmp_path / "checkpoints" / "small"
    main([str(checkpoint), str(target)])
    assert "MiB of weights" in capsys.readouterr().out
    stored = load_file(target / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values() if tensor.is_floating_point()} == {torch.float16}
    original = AutoModelForSemanticSegmentation.from_pretrained(checkpoint).eval()
    loaded = AutoModelForSemanticSegmentation.from_pretrained(target).eval()
    assert loaded.dtype == torch.float32
    assert AutoImageProcessor.from_pretrained(target).size_divisor == 2
    values = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(loaded(values).logits, original(values).logits, rtol=0.02, atol=0.02)


def test_a_card_beside_the_weights_stays(checkpoint, tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "README.md").write_text("card")
    export_checkpoint([str(checkpoint)], tmp_path / "target")
    assert sorted(path.name for path in (tmp_path / "target").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    assert (tmp_path / "target" / "README.md").read_text() == "card"
    assert not list(tmp_path.glob(".target-*"))


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"error: There is no folder '.*/none'; a checkpoint on the Hub is named"):
        main([str(tmp_path / "none"), str(tmp_path / "target")])
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("value", [1e6, float("nan")])
def test_values_beyond_half_precision_are_refused(checkpoint, tmp_path, value):
    model = AutoModelForSemanticSegmentation.from_pretrained(checkpoint)
    with torch.no_grad():
        model.head.weight[0, 0, 0, 0] = value
    model.save_pretrained(checkpoint)
    with pytest.raises(ValueError, match=r"head\.weight"):
        export_checkpoint([str(checkpoint)], tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_no_checkpoint(tmp_path):
    with pytest.raises(SystemExit, match="error"):
        main([str(tmp_path / "nothing"), str(tmp_path / "target")])


def test_shards_of_former_weights_do_not_stay(checkpoint, tmp_path):
    folder = tmp_path / "exported"
    AutoModelForSemanticSegmentation.from_pretrained(checkpoint).save_pretrained(folder, max_shard_size="2KB")
    assert list(folder.glob("model-*.safetensors"))
    export_checkpoint([str(checkpoint)], folder)
    assert [path.name for path in folder.glob("model*")] == ["model.safetensors"]


def test_several_are_averaged(checkpoint, tmp_path):
    first = load_file(checkpoint / "model.safetensors")
    sources = [str(checkpoint)]
    for factor in (2.0, 6.0):
        model = AutoModelForSemanticSegmentation.from_pretrained(checkpoint)
        model.load_state_dict({name: factor * tensor for name, tensor in model.state_dict().items()})
        model.save_pretrained(tmp_path / f"{factor}")
        sources.append(str(tmp_path / f"{factor}"))
    main([*sources, str(tmp_path / "mean")])
    for name, tensor in load_file(tmp_path / "mean" / "model.safetensors").items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor.float(), 3 * first[name], rtol=1e-3, atol=1e-4)


def test_a_copy_from_the_hub_is_averaged_with_others(checkpoint, tmp_path):
    published = tmp_path / "published"
    shutil.copytree(checkpoint, published)
    for name in ("config.json", "preprocessor_config.json"):  # as `modeling.publish` writes them
        content = json.loads((published / name).read_text())
        (published / name).write_text(json.dumps(content | {"auto_map": {"AutoConfig": "somewhere.Else"}}))
    for sources in ([checkpoint, published], [published, checkpoint]):
        main([*map(str, sources), str(tmp_path / "mean")])
        for name in ("config.json", "preprocessor_config.json"):
            assert "auto_map" not in (tmp_path / "mean" / name).read_text(), "there is no code in this folder"


def test_a_temperature_is_stored_and_applied(checkpoint, tmp_path):
    main([str(checkpoint), str(tmp_path / "calibrated"), "--temperature", "1.25"])
    original, calibrated = (
        AutoModelForSemanticSegmentation.from_pretrained(folder, dtype=torch.float32).eval()
        for folder in (checkpoint, tmp_path / "calibrated")
    )
    values = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(1.25 * calibrated(values).logits, original(values).logits, rtol=0.02, atol=0.02)
    with pytest.raises(SystemExit, match="temperature must be positive, but is 0"):
        main([str(checkpoint), str(tmp_path / "frozen"), "--temperature", "0"])


def test_an_average_has_the_temperature_and_loss_of_its_first_source(checkpoint, tmp_path):
    model = AutoModelForSemanticSegmentation.from_pretrained(checkpoint)
    model.config.temperature, model.config.loss = 1.25, "bce"
    model.save_pretrained(tmp_path / "first")
    BrainMRIImageProcessor().save_pretrained(tmp_path / "first")
    main([str(tmp_path / "first"), str(checkpoint), str(tmp_path / "mean")])
    config = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "mean").config
    assert (config.temperature, config.loss) == (1.25, "bce")


def test_other_architectures_are_not_averaged(checkpoint, tmp_path):
    UNetForSemanticSegmentation(UNetConfig(hidden_sizes=[4, 6], encoder_depths=[1, 1])).save_pretrained(tmp_path / "b")
    with pytest.raises(SystemExit, match="different configurations"):
        main([str(checkpoint), str(tmp_path / "b"), str(tmp_path / "target")])
    assert not (tmp_path / "target").exists()
