"""train.py with the Hub: a dataset from there, a model to there, and what is kept without a network."""

import json

import pytest
from huggingface_hub import ModelCard

from training.arguments import parse_args

LOAD = """
from hub_dataset.loading import load_splits
print({name: len(split) for name, split in load_splits("alice/lgg").items()})
"""
TINY_RUN = ["--model", "unet-5level", "--config", "hidden_sizes=[4, 6, 8, 10, 12]", "--image_size", "32"]
TINY_RUN += ["--batch_size", "4", "--epochs", "1", "--num_workers", "0"]


def test_trains_from_the_hub_publishes_there_and_goes_on_without_a_network(
    hub, run_client, phantom_dataset_dir, tmp_path
):
    hub.put("datasets", "alice/lgg", phantom_dataset_dir)
    train = ("train.py", *TINY_RUN, "--dataset", "alice/lgg")
    publish = ("--push_to_hub", "--hub_model_id", "alice/model", "--hub_private_repo")
    hub.fail_next("POST /api/models/.*/commit/", 403)
    done = run_client(*train, "--output_dir", tmp_path / "run", *publish)
    assert done.returncode == 1
    assert "this token may not write there" in done.stderr
    command = f"python -m modeling.publish {tmp_path / 'run' / 'best'} alice/model --private"
    assert f"The run is complete; `{command}` tries again." in done.stderr
    done = run_client(*command.split()[1:])
    assert done.returncode == 0, done.stderr
    assert hub.repositories["models", "alice/model"].private
    weights = (tmp_path / "run" / "best" / "model.safetensors").read_bytes()
    assert hub.read("models", "alice/model", "model.safetensors") == weights
    card = ModelCard(hub.read("models", "alice/model", "README.md").decode())
    assert card.data.datasets == ["alice/lgg"]
    assert "It has not been measured on patients' images." in card.text
    dice = json.loads((tmp_path / "run" / "best" / "metrics.json").read_text())["validation_dice_mean"]
    assert f"mean Dice of {dice:.3f}" in card.text

    # What was loaded before is there without the Hub, the clients' own fallback.
    output = tmp_path / "results.json"
    evaluate = ("evaluate.py", "--checkpoint", "alice/model", "--dataset", "alice/lgg", "--output", output)
    assert run_client(*evaluate, "--limit", "1").returncode == 0
    done = run_client(*evaluate, "--no_figure", HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 0, done.stderr
    assert "cache" in done.stderr
    assert json.loads(output.read_text())["num_patients"] == 2
    done = run_client("-c", LOAD, HF_HUB_OFFLINE="1")
    assert "{'train': 40, 'validation': 20, 'test': 20}" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("options", "token", "message"),
    [
        (["--push_to_hub"], "hf_alice", "give USER/NAME"),
        (["--push_to_hub", "--hub_model_id", "alice/model"], "", "There is no token"),
        (["--hub_model_id", "alice/model"], "hf_alice", "go with --push_to_hub"),
    ],
)
def test_a_push_that_cannot_work_is_refused_before_training(options, token, message, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(SystemExit, match="2"):
        parse_args(["--model", "unet-5level", "--dataset", "data", "--output_dir", "run", *options], "")
    assert message in capsys.readouterr().err
