"""The dataset on the Hub: pushed, loaded back whole and streaming, pinned, private, and pushed again."""

import json

import pytest

LOAD = """
import json, sys
import numpy as np
from datasets import load_dataset

folder, repo, revision = sys.argv[1:]
local = load_dataset(folder)
whole = load_dataset(repo, revision=revision or None)
streaming = load_dataset(repo, revision=revision or None, streaming=True)
assert list(whole) == list(streaming) == list(local)
for name, split in local.items():
    assert whole[name].features == streaming[name].features == split.features
    for one, two, three in zip(split, whole[name], streaming[name], strict=True):
        for column in split.column_names:
            values = [np.asarray(row[column]) for row in (one, two, three)]
            assert all(np.array_equal(values[0], value) for value in values[1:]), (name, column)
print(json.dumps({name: len(split) for name, split in whole.items()}))
"""


@pytest.fixture
def push(run_client, phantom_dir, tmp_path):
    def run(repo_id="alice/lgg", *arguments, **options):
        build = ("-m", "hub_dataset.build", "--source", phantom_dir, "--output", tmp_path / "dataset")
        return run_client(*build, "--push-to-hub", repo_id, *arguments, **options)

    return run


def test_what_is_loaded_back_equals_what_was_built(hub, push, run_client, phantom_dataset_dir):
    done = push("alice/lgg", "--private")
    assert done.returncode == 0, done.stderr
    files = [path.relative_to(phantom_dataset_dir).as_posix() for path in phantom_dataset_dir.rglob("*.*")]
    assert hub.names("datasets", "alice/lgg") == sorted(files)
    for path in files:
        assert hub.read("datasets", "alice/lgg", path) == (phantom_dataset_dir / path).read_bytes()

    repo = hub.repositories["datasets", "alice/lgg"]
    repo.refs["v1"] = repo.refs["main"]
    repo.commit("main", {})  # what comes later does not change a revision
    load = ("-c", LOAD, phantom_dataset_dir, "alice/lgg", "v1")
    done = run_client(*load, home="another", alone=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"train": 40, "validation": 20, "test": 20}

    stranger = run_client(*load, token="hf_bob", home="bob", alone=True)
    assert stranger.returncode != 0
    assert "alice/lgg" in stranger.stderr


def test_an_interrupted_push_is_repeated_and_an_unchanged_one_uploads_nothing(hub, push, phantom_dataset_dir, tmp_path):
    hub.fail_next("POST .*/commit/", 503, times=20)
    done = push()
    assert done.returncode == 1
    assert "is complete but could not be pushed" in done.stderr
    assert "The same command goes on where it stopped" in done.stderr
    assert hub.names("datasets", "alice/lgg") == []
    assert any(request.startswith("PUT") for request in hub.requests)
    # A shard of a larger build is there, and here something beside the dataset.
    former = {name: hub.store(b"former") for name in ("manifest.json", "data/train-00001-of-00002.parquet")}
    hub.repositories["datasets", "alice/lgg"].commit("main", former)
    (tmp_path / "dataset" / "notes.txt").write_text("private")

    hub.faults.clear()
    hub.requests.clear()
    assert push().returncode == 0
    assert not any(request.startswith("PUT") for request in hub.requests)  # the shards had arrived before
    files = [path.relative_to(phantom_dataset_dir).as_posix() for path in phantom_dataset_dir.rglob("*.*")]
    assert hub.names("datasets", "alice/lgg") == sorted(files)
    for path in files:
        assert hub.read("datasets", "alice/lgg", path) == (phantom_dataset_dir / path).read_bytes()

    pushed = hub.repositories["datasets", "alice/lgg"].refs["main"]
    assert push().returncode == 0
    assert hub.repositories["datasets", "alice/lgg"].refs["main"] == pushed
    assert not any(request.startswith("PUT") for request in hub.requests)


def test_a_name_that_is_taken_is_left_alone(hub, push, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "train.csv").write_text("somebody's")
    hub.put("datasets", "alice/lgg", tmp_path / "other")
    done = push()
    assert done.returncode == 1
    assert "alice/lgg is taken: it holds train.csv" in done.stderr
    assert hub.names("datasets", "alice/lgg") == ["train.csv"]
