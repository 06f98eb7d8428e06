"""The Space: exactly what the page needs goes to the Hub, and what comes from there starts and segments."""

import ast
import os
import re
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from app_files import free_port
from conftest import ROOT
from gradio_client import Client, handle_file
from huggingface_hub import RepoCard
from PIL import Image

from space.publish import NOT_NEEDED, main, needed_modules, space_requirements, stage_space

IMPORT_NAMES = {"pillow": "PIL", "huggingface-hub": "huggingface_hub"}  # where the package is called otherwise
DOWNLOAD = """
import sys
from huggingface_hub import snapshot_download
snapshot_download(sys.argv[1], repo_type="space", local_dir=sys.argv[2])
"""


@pytest.fixture
def start(tmp_path):
    """Start a folder's app.py in a fresh environment that holds what its requirements.txt names: its address."""
    started = []

    def run(folder):
        environment = tmp_path / "environment"
        venv.create(environment, with_pip=False)
        python = environment / "bin" / "python"
        packages = next((environment / "lib").glob("python*/site-packages"))
        # The libraries of this environment serve for the new one: what is asked for is that all are named.
        (packages / "shared.pth").write_text("\n".join(site.getsitepackages()))
        install = [python, "-m", "pip", "install", "--no-index", "-q", "-r", "requirements.txt"]
        subprocess.run(install, cwd=folder, check=True, timeout=120, stdin=subprocess.DEVNULL)
        port = free_port()
        variables = {"GRADIO_SERVER_PORT": str(port), "PYTHONPATH": "", "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(
            [python, "app.py"], cwd=folder, env=os.environ | variables, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        for line in process.stdout:
            if str(port) in line:
                return f"http://127.0.0.1:{port}"
        raise AssertionError(f"app.py ended with {process.wait()}")

    yield run
    for process in started:
        process.terminate()
        process.wait(timeout=30)


def test_what_was_published_starts_in_an_empty_folder_and_segments(hub, run_client, start, tmp_path):
    done = run_client("-m", "space.publish", "alice/space", "--private")
    assert done.returncode == 0, done.stderr
    assert hub.repositories["spaces", "alice/space"].private
    published = set(hub.names("spaces", "alice/space"))
    assert {"README.md", "app.py", "requirements.txt", "examples/lesion.png", "space/page.css"} <= published
    assert "checkpoints/transunet-small/README.md" in published, "the scores that the page shows"
    assert {path.split("/")[0] for path in published if "/" in path} == {"checkpoints", "examples", "modeling", "space"}
    for path in published:
        assert path in ("README.md", "requirements.txt") or (ROOT / path).read_bytes() == hub.read(
            "spaces", "alice/space", path
        )
    assert not {"space/publish.py", "modeling/card.py", "modeling/publish.py", "examples/make_examples.py"} & published

    folder = tmp_path / "downloaded"
    done = run_client("-c", DOWNLOAD, "alice/space", folder)
    assert done.returncode == 0, done.stderr
    client = Client(start(folder), verbose=False, analytics_enabled=False)
    model = client.predict(api_name="/list_models")["default"]
    assert (folder / "checkpoints" / model).is_dir()
    lesion = str(folder / "examples" / "lesion.png")
    mask, *_, measurements = client.predict(handle_file(lesion), model, 0.5, api_name="/segment_slice")
    assert measurements["lesion_pixels"] > 0
    assert Image.open(mask).size == Image.open(lesion).size


def test_weights_from_the_hub_are_named_not_bundled(hub, run_client, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    for name in ("alice/a", "alice/b"):
        hub.put("models", name, tmp_path / "model")
    publish = ("-m", "space.publish", "alice/space", "--model_ids")
    assert run_client(*publish, "alice/a, alice/b,").returncode == 0
    refused = {"alice/a,alice/none": "'alice/none' is no model", "a model": "is no model", " , ": "names no model"}
    for names, why in refused.items():
        done = run_client(*publish, names)
        assert done.returncode == 1
        assert why in done.stderr
    assert hub.repositories["spaces", "alice/space"].variables == {"MODEL_IDS": "alice/a,alice/b"}
    assert not [name for name in hub.names("spaces", "alice/space") if name.startswith("checkpoints")]
    card = RepoCard(hub.read("spaces", "alice/space", "README.md").decode())
    assert card.data.models == ["alice/a", "alice/b"]
    hub.fail_next("/commit/", 403)
    assert "may not write there" in run_client(*publish, "alice/a").stderr
    assert hub.repositories["spaces", "alice/space"].variables == {"MODEL_IDS": "alice/a,alice/b"}, "as it was"
    space = hub.repositories["spaces", "alice/space"]
    space.commit("main", {**space.files(), "space/former.py": hub.store(b"")})
    assert run_client("-m", "space.publish", "alice/space").returncode == 0
    assert space.variables == {}, "the weights are bundled again"
    assert "space/former.py" not in hub.names("spaces", "alice/space")
    hub.fail_next("/commit/", 403)
    assert run_client(*publish, "alice/a").returncode == 1
    assert hub.repositories["spaces", "alice/space"].variables == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "the Hub cannot be reached"),
        ({"token": "hf_nobody"}, "the Hub does not know this token"),
    ],
)
def test_a_hub_that_cannot_tell_whether_there_is_a_model_is_explained(hub, run_client, options, message):
    done = run_client("-m", "space.publish", "alice/space", "--model_ids", "alice/a", **options)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not hub.repositories


def test_without_a_network_nobody_can_tell_whether_there_is_a_model(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    with pytest.raises(SystemExit, match="HF_HUB_OFFLINE is set"):
        main(["alice/space", "--model_ids", "alice/a"])


def test_a_name_that_is_taken_is_left_alone(hub, run_client, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "index.html").write_text("x")
    hub.put("spaces", "alice/space", tmp_path / "other")
    done = run_client("-m", "space.publish", "alice/space")
    assert done.returncode == 1
    assert "alice/space is taken: it holds index.html" in done.stderr
    assert hub.names("spaces", "alice/space") == ["index.html"]


def test_requirements_name_every_library_the_space_imports(tmp_path):
    stage_space(tmp_path, [])
    named = {
        IMPORT_NAMES.get(name, name)
        for line in (tmp_path / "requirements.txt").read_text().splitlines()
        if (name := re.split(r"[<>=]", line)[0]) and not line.startswith("--")
    }
    own = {path.name.removesuffix(".py") for path in ROOT.iterdir()}
    along = {"gradio_client"}  # part of gradio
    imported = set()
    for path in tmp_path.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.split(".")[0])
    assert imported - own - along - set(sys.stdlib_module_names) <= named


def test_requirements_for_training_are_left_out():
    text = space_requirements("torch>=2.9,<2.14\ndatasets>=5.2\nkagglehub\ndatasets-extra>=1\n")
    assert text.splitlines() == ["torch>=2.9,<2.14", "datasets-extra>=1"]
    assert {"datasets", "kagglehub"} <= NOT_NEEDED


def test_modules_are_found_by_their_imports():
    names = {str(path.relative_to(ROOT)) for path in needed_modules("app.py")}
    assert {"app.py", "space/handlers.py", "modeling/__init__.py", "modeling/inference.py"} <= names
    assert not any(Path(name).parts[0] in ("hub_dataset", "tests") for name in names)


def test_without_weights_nothing_is_published(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    monkeypatch.setattr("space.publish.ROOT", tmp_path)
    (tmp_path / "app.py").write_text("")
    pointer = tmp_path / "checkpoints" / "unet" / "model.safetensors"
    pointer.parent.mkdir(parents=True)
    pointer.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(SystemExit, match="git lfs pull"):
        main(["alice/space"])
