"""Models on the Hub: what is pushed, that anyone can load it, and what failures leave behind."""

import json
import shutil
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from forked_commands import ForkedCommands
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image
from tiny_models import randomized, tiny_model
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from modeling import BrainMRIImageProcessor
from modeling.checkpoints import load_complete
from modeling.export import export_checkpoint, load_average
from modeling.hub import HubError, explain, upload_folder
from modeling.inference import load_model
from modeling.publish import main, publish_model, stage_model

SHARED = {"README.md", "config.json", "preprocessor_config.json", "image_processing_brain_mri.py"}
CODE = {
    "unet-4level": {"configuration_unet.py", "modeling_unet.py", "layers.py", "losses.py"},
    "transunet-small": {"configuration_transunet.py", "modeling_transunet.py", "stems.py", "layers.py", "losses.py"},
}
# What a user's program does, on a machine that has nothing of this repository.
LOAD = """
import sys, numpy as np, torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline
repo, revision, image, out = sys.argv[1:]
assert "modeling" not in sys.modules
options = {"trust_remote_code": True} | ({"revision": revision} if revision else {})
model = AutoModelForSemanticSegmentation.from_pretrained(repo, **options)
processor = AutoImageProcessor.from_pretrained(repo, **options)
with torch.no_grad():
    logits = model(**processor(images=Image.open(image), return_tensors="pt")).logits
np.save(out, logits.float().numpy())
segments = pipeline("image-segmentation", model=repo, **options)(image)
print(sorted(segment["label"] for segment in segments), segments[0]["mask"].size)
"""


def save_checkpoint(folder, preset="unet-4level", seed=0, **options):
    randomized(tiny_model(preset), seed).save_pretrained(folder, **options)
    BrainMRIImageProcessor().save_pretrained(folder)
    return folder


@pytest.fixture
def checkpoint(tmp_path):
    return save_checkpoint(tmp_path / "checkpoint")


@pytest.fixture
def publish(run_client):
    def run(checkpoint, repo_id, *arguments, **options):
        return run_client("-m", "modeling.publish", checkpoint, repo_id, *arguments, **options)

    return run


@pytest.fixture(scope="module")
def strangers(hub_server, tmp_path_factory):
    """Processes of clients of the Hub that have `transformers` imported, in an empty folder without this repository."""
    folder, place = (tmp_path_factory.mktemp(name) for name in ("strangers", "alone"))
    environment = {"PYTHONPATH": ""} | hub_server.environment(folder / "home")
    with ForkedCommands(folder, environment, ["transformers.pipelines"], place) as commands:
        yield commands


@pytest.fixture
def load_alone(strangers, tmp_path):
    """Load a repository in a process of its own, with a cache for each `home`: (logits, what it printed)."""

    def run(repo_id, revision="", home="home"):
        image, logits = tmp_path / "slice.png", tmp_path / "logits.npy"
        Image.fromarray(example()).save(image)
        arguments = ["-c", LOAD, repo_id, revision, str(image), str(logits)]
        done = strangers.run(arguments, tmp_path / home, {"HF_TOKEN": "hf_alice"}, timeout=300)
        assert done.returncode == 0, done.stderr
        return np.load(logits), done.stdout

    return run


def example():
    pixels = np.random.default_rng(0).integers(0, 40, (48, 40, 3))
    pixels[8:40, 8:32] += 90
    return pixels.astype(np.uint8)


def logits_of(checkpoint):
    model = AutoModelForSemanticSegmentation.from_pretrained(checkpoint)
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    with torch.no_grad():
        return model(**processor(images=Image.fromarray(example()), return_tensors="pt")).logits.numpy()


@pytest.mark.parametrize("preset", list(CODE))
def test_anyone_loads_it_without_this_repository(preset, tmp_path, hub, publish, load_alone):
    checkpoint = save_checkpoint(tmp_path / "checkpoint", preset)
    (checkpoint / "metrics.json").write_text("{}")  # what a run leaves beside the weights stays at home
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "README.md").write_text("To come")
    hub.put("models", "alice/model", tmp_path / "begun")  # as the Hub's page makes a repository
    done = publish(checkpoint, "alice/model")
    assert done.returncode == 0, done.stderr
    assert set(hub.names("models", "alice/model")) == SHARED | CODE[preset] | {"model.safetensors"}
    logits, printed = load_alone("alice/model", home="another")
    np.testing.assert_array_equal(logits, logits_of(checkpoint))
    assert printed.startswith("['background'") or printed.startswith("['FLAIR abnormality'")
    assert "(40, 48)" in printed


def test_half_precision_and_shards_load_and_a_revision_pins(tmp_path, hub, publish, load_alone):
    sharded = save_checkpoint(tmp_path / "sharded", max_shard_size="10KB")
    export_checkpoint([str(sharded)], tmp_path / "half")
    assert publish(sharded, "alice/model").returncode == 0
    assert len([name for name in hub.names("models", "alice/model") if name.endswith(".safetensors")]) > 1
    repo = hub.repositories["models", "alice/model"]
    first = repo.refs["v1"] = repo.refs["main"]

    assert publish(tmp_path / "half", "alice/model").returncode == 0
    assert repo.refs["main"] != first
    weights = [name for name in hub.names("models", "alice/model") if "safetensors" in name]
    assert weights == ["model.safetensors"]  # no shard of the former is left
    assert json.loads(hub.read("models", "alice/model", "config.json"))["dtype"] == "float32"

    np.testing.assert_array_equal(load_alone("alice/model")[0], logits_of(tmp_path / "half"))
    np.testing.assert_array_equal(load_alone("alice/model", "v1")[0], logits_of(sharded))


def test_a_half_written_cache_is_completed(checkpoint, tmp_path, hub, load_alone):
    """What a process leaves that is killed while it downloads."""
    (tmp_path / "staged").mkdir()
    stage_model(checkpoint, tmp_path / "staged", "alice/model")
    repo = hub.put("models", "alice/model", tmp_path / "staged")
    cache = tmp_path / "home" / "hub" / "models--alice--model"
    snapshot, config, weights = (
        cache / "snapshots" / repo.refs["main"],
        repo.files()["config.json"],
        repo.files()["model.safetensors"],
    )
    for folder in (snapshot, cache / "blobs", cache / "refs"):
        folder.mkdir(parents=True)
    (cache / "refs" / "main").write_text(repo.refs["main"])
    (cache / "blobs" / config.oid).write_bytes(config.path.read_bytes())
    (snapshot / "config.json").symlink_to(Path("..", "..", "blobs", config.oid))
    (cache / "blobs" / f"{weights.oid}.incomplete").write_bytes(weights.path.read_bytes()[: weights.size // 2])
    np.testing.assert_array_equal(load_alone("alice/model")[0], logits_of(checkpoint))


def test_a_name_that_is_taken_is_left_alone(checkpoint, tmp_path, hub, publish):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "weights.bin").write_text("somebody's")
    hub.put("models", "alice/model", tmp_path / "other")
    done = publish(checkpoint, "alice/model")
    assert done.returncode == 1
    assert "alice/model is taken: it holds weights.bin" in done.stderr
    assert hub.names("models", "alice/model") == ["weights.bin"]


def test_the_card_names_the_repository_and_a_private_one_stays_private(checkpoint, hub, publish, run_client):
    assert publish(checkpoint, "alice/model", "--private").returncode == 0
    card = ModelCard(hub.read("models", "alice/model", "README.md").decode())
    assert card.data.library_name == "transformers"
    assert 'from_pretrained("alice/model", trust_remote_code=True)' in card.text
    assert "USER/NAME" not in card.text
    download = ("-c", "from huggingface_hub import hf_hub_download as get; get('alice/model', 'config.json')")
    assert run_client(*download).returncode == 0
    stranger = run_client(*download, token="hf_bob", home="bob")
    assert stranger.returncode != 0
    assert "RepositoryNotFound" in stranger.stderr


def test_what_is_to_be_private_does_not_go_into_a_public_repository(checkpoint, tmp_path, hub, publish):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "README.md").write_text("To come")
    hub.put("models", "alice/model", tmp_path / "old")
    done = publish(checkpoint, "alice/model", "--private")
    assert done.returncode == 1
    assert "alice/model is public. Make it private in its settings first" in done.stderr
    assert hub.names("models", "alice/model") == ["README.md"]


def test_a_fault_midway_leaves_nothing_half_and_the_command_goes_on(checkpoint, hub, publish):
    hub.fail_next("PUT /blobs/", 503)  # the client itself tries that again
    hub.fail_next("POST .*/commit/", 503, times=20)
    done = publish(checkpoint, "alice/model")
    assert done.returncode == 1
    assert "The same command goes on where it stopped" in done.stderr
    assert "Traceback" not in done.stderr
    assert hub.names("models", "alice/model") == []
    assert sum(request.startswith("PUT") for request in hub.requests) > 1
    hub.faults.clear()
    hub.requests.clear()
    assert publish(checkpoint, "alice/model").returncode == 0
    assert "model.safetensors" in hub.names("models", "alice/model")
    assert not any(request.startswith("PUT") for request in hub.requests)  # the weights had arrived before

    published = hub.repositories["models", "alice/model"].refs["main"]
    assert publish(checkpoint, "alice/model").returncode == 0
    assert hub.repositories["models", "alice/model"].refs["main"] == published  # nothing has changed: no commit
    assert not any(request.startswith("PUT") for request in hub.requests)


@pytest.mark.parametrize(
    ("token", "repo_id", "message"),
    [
        ("hf_nobody", "alice/model", "the Hub does not know this token"),
        ("hf_alice_read", "alice/model", "this token may not write there"),
        ("hf_alice", "bob/model", "this token may not write there"),
    ],
)
def test_refusals_say_what_to_do(checkpoint, hub, publish, token, repo_id, message):
    done = publish(checkpoint, repo_id, token=token)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not hub.repositories


@pytest.mark.parametrize(
    ("token", "repo_id", "message"),
    [
        ("", "alice/model", "There is no token: run `hf auth login`"),
        ("hf_alice", "model", "give USER/NAME"),
        ("hf_alice", "alice/a--b", "no name of a repository"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_read(token, repo_id, message, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(SystemExit, match=message):
        main([str(tmp_path / "nothing"), repo_id])


def test_without_a_network_nothing_is_lost(checkpoint, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        upload_folder(checkpoint, "alice/model", mark="config.json")
    assert "cannot be reached" in explain(ConnectionError("refused"))


def test_a_refusal_of_one_file_is_explained_as_one():
    response = httpx.Response(403, request=httpx.Request("PUT", "http://127.0.0.1/upload"))
    failed = RuntimeError("Error while uploading 'model.safetensors' to the Hub.")
    failed.__cause__ = HfHubHTTPError("Forbidden", response=response)
    assert "this token may not write there" in explain(failed)


def test_an_incomplete_checkpoint_is_not_published(checkpoint, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    sharded = save_checkpoint(checkpoint.parent / "sharded", max_shard_size="10KB")
    next(sharded.glob("*.safetensors")).unlink()
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"decoder_depth": 3}))
    for folder in (sharded, checkpoint, checkpoint.parent / "nothing"):
        with pytest.raises((OSError, ValueError), match=folder.name):  # before the Hub is asked, which is offline here
            publish_model(folder, "alice/model")


def test_of_two_kinds_of_weights_those_that_load_are_published(checkpoint, tmp_path):
    tiny_model("unet-4level").save_pretrained(tmp_path / "shards", max_shard_size="2KB")
    for shard in (tmp_path / "shards").glob("model*"):
        shutil.copy(shard, checkpoint)
    (tmp_path / "staged").mkdir()
    stage_model(checkpoint, tmp_path / "staged", "alice/model")
    assert [path.name for path in (tmp_path / "staged").glob("model*.safetensors*")] == ["model.safetensors"]


def test_a_downloaded_card_names_the_new_repository_and_keeps_what_it_says(checkpoint, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for source, folder in ((checkpoint, first), (first, second)):
        folder.mkdir()
        stage_model(source, folder, f"alice/{folder.name}")
        if folder == first:
            (first / "phantom.png").write_bytes(b"figure")
            with (first / "README.md").open("a") as card:
                card.write("\n![Dice of each patient](phantom.png)\n")
    text = (second / "README.md").read_text()
    assert "alice/first" not in text
    assert text.count('"alice/second"') == 3
    assert "![Dice of each patient](phantom.png)" in text
    assert (second / "phantom.png").read_bytes() == b"figure"


def test_pickled_weights_are_not_loaded(checkpoint):
    model = tiny_model("unet-4level")
    torch.save(model.state_dict(), checkpoint / "pytorch_model.bin")
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(OSError, match="safetensors"):
        load_complete(checkpoint)


@pytest.mark.parametrize("load", [load_complete, load_model, lambda folder: load_average([folder])])
def test_damaged_and_missing_weights_are_explained(checkpoint, load):
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"decoder_depth": config["decoder_depth"] + 1}))
    with pytest.raises(ValueError, match="missing keys"):
        load(checkpoint)
    (checkpoint / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="git lfs pull"):
        load(checkpoint)
