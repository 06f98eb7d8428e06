"""Shared fixtures, and an environment that keeps every test off the network and out of the user's caches."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

# Libraries read these at import, so they are set before any of them is imported. Child processes inherit them.
_HF_HOME = tempfile.mkdtemp(prefix="hf-home-")
os.environ |= {
    "HF_HOME": _HF_HOME,
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "MPLBACKEND": "Agg",
    "TOKENIZERS_PARALLELISM": "false",
}
os.environ.setdefault("OMP_NUM_THREADS", "1")
for _name in ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_MODULES_CACHE", "HF_ASSETS_CACHE"):
    os.environ.pop(_name, None)

ROOT = Path(__file__).resolve().parent.parent
# Where processes of one launch meet: a port of each test worker, below those that the system hands out to others.
LAUNCH_PORT = str(29500 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")))
PHANTOM_PATIENTS = 8  # four for training, two for validation, two for test
PHANTOM_SLICES = 10
PHANTOM_SIZE = 64


def pytest_unconfigure():
    shutil.rmtree(_HF_HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def phantom_dir(tmp_path_factory) -> Path:
    """A generated source in the kaggle_3m layout: 8 patients of 10 slices, 64 x 64. Not to be written to."""
    from hub_dataset.phantom import write_phantom

    folder = tmp_path_factory.mktemp("phantom") / "kaggle_3m"
    write_phantom(folder, PHANTOM_PATIENTS, seed=0, num_slices=PHANTOM_SLICES, size=PHANTOM_SIZE)
    return folder


@pytest.fixture(scope="session")
def phantom_dataset_dir(phantom_dir, tmp_path_factory) -> Path:
    """The dataset built from `phantom_dir`, with all three splits. Not to be written to."""
    from hub_dataset.build import build_dataset

    folder = tmp_path_factory.mktemp("phantom-dataset") / "dataset"
    build_dataset(phantom_dir, folder)
    return folder


@pytest.fixture(scope="session")
def lgg_data() -> Path:
    """The real dataset's kaggle_3m folder, as the environment variable LGG_DATA gives it."""
    if not (folder := os.environ.get("LGG_DATA")):
        pytest.skip("needs the LGG dataset: set LGG_DATA to its kaggle_3m folder")
    if not Path(folder).is_dir():
        pytest.fail(f"LGG_DATA={folder} is not a folder")
    return Path(folder)


@pytest.fixture
def two_threads():
    """PyTorch computes with two threads."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def hub_server(tmp_path_factory):
    """The Hub that the tests have in turn."""
    from local_hub import LocalHub

    with LocalHub(tmp_path_factory.mktemp("hub")) as running:
        yield running


@pytest.fixture
def hub(hub_server):
    """A Hub on this machine, with nothing in it."""
    yield hub_server
    unhandled = [*hub_server.unhandled]
    hub_server.clear()
    assert unhandled == []


@pytest.fixture(scope="session")
def forked_commands(hub_server, tmp_path_factory):
    """Commands of clients of the Hub, in forks of a process that has the libraries imported."""
    from forked_commands import ForkedCommands

    folder = tmp_path_factory.mktemp("commands")
    environment = {"PYTHONPATH": ""} | hub_server.environment(folder / "home")
    with ForkedCommands(folder, environment, ["hub_dataset.source", "modeling.card", "training.loop"]) as commands:
        yield commands


@pytest.fixture
def run_client(hub, forked_commands, tmp_path):
    """Run `python ...` as a client of `hub`, in the repository or, with `alone=True`, in an empty folder without it.

    A cache is kept for each `home`. Returns the finished process; its output is text. Commands of the repository whose
    environment differs in the token at most are forks.
    """
    import subprocess
    import sys

    def run(*arguments, token="hf_alice", home="home", alone=False, **environment):
        arguments = [*map(str, arguments)]
        if not alone and not environment:
            return forked_commands.run(arguments, tmp_path / home, {"HF_TOKEN": token}, timeout=300)
        folder = ROOT
        if alone:
            folder = tmp_path / "alone"
            folder.mkdir(exist_ok=True)
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": ""} | hub.environment(tmp_path / home, token) | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run
