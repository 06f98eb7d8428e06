"""The README's `hf` commands, each run as it stands there, against a Hub on this machine."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from tiny_models import tiny_model

from hub_dataset.loading import load_splits
from modeling import BrainMRIImageProcessor
from modeling.inference import load_model
from modeling.publish import stage_model

COMMANDS = re.findall(r"^(hf (?!auth login).*?) *(?:#.*)?$", (ROOT / "README.md").read_text(), re.MULTILINE)


@pytest.fixture
def hf(hub, tmp_path):
    """Run an `hf` command as alice, in the folder `work`; gives what it printed."""
    work = tmp_path / "work"
    work.mkdir()

    def run(command: str) -> str:
        program, *arguments = command.replace("USER/", "alice/").replace('"', "").split()
        done = subprocess.run(
            [str(Path(sys.executable).with_name(program)), *arguments],
            cwd=work,
            env=os.environ | hub.environment(tmp_path / "home") | {"NO_COLOR": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout

    return run


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".cache" not in path.parts
    }


def test_every_command_of_the_readme_does_what_is_said(hub, hf, phantom_dataset_dir, tmp_path):
    checkpoint, staged, work = tmp_path / "checkpoint", tmp_path / "staged", tmp_path / "work"
    tiny_model("unet-4level").save_pretrained(checkpoint)
    BrainMRIImageProcessor().save_pretrained(checkpoint)
    staged.mkdir()
    stage_model(checkpoint, staged, "alice/MODEL")
    published = hub.put("models", "alice/MODEL", staged)
    hub.put("datasets", "alice/DATASET", phantom_dataset_dir)
    run = work / "runs" / "unet-5level"
    for name in ("log.jsonl", "best/model.safetensors", "checkpoints/step_00000001/optimizer.bin"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(name)

    tag, download, dataset, upload, verify, cached, remove = COMMANDS
    hf(tag)
    published.commit("main", dict(list(published.files().items())[:-1]))  # what comes later leaves v1 as it is
    hf(download)
    (snapshot,) = (tmp_path / "home" / "hub" / "models--alice--MODEL" / "snapshots").iterdir()
    assert files_of(snapshot) == files_of(staged)
    load_model(snapshot)
    hf(dataset)
    assert files_of(work / "dataset") == files_of(phantom_dataset_dir)
    assert load_splits(str(work / "dataset"))["train"].num_rows == 40

    hf(upload)
    assert hub.names("models", "alice/RUN") == ["best/model.safetensors", "log.jsonl"]
    assert hub.repositories["models", "alice/RUN"].private
    hub.requests.clear()
    hf(upload)
    assert not any(request.startswith("PUT") or "/commit/" in request for request in hub.requests)  # nothing is new

    assert "All checksums match" in hf(verify)
    assert "model/alice/MODEL" in hf(cached)
    hf(remove)
    assert "alice/MODEL" not in hf(cached)
