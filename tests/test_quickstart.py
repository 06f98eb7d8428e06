"""docs/quickstart.ipynb, run from top to bottom as a reader would."""

import base64
import io
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from conftest import ROOT
from nbclient import NotebookClient
from PIL import Image

NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_the_file_holds_no_output_and_says_what_it_is_not_for(notebook):
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    for cell in notebook.cells:
        assert not cell.metadata
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
    assert "Research software, not a medical device." in notebook.cells[0].source


@pytest.mark.parametrize("folder", [ROOT, ROOT / "docs"], ids=["root", "docs"])
def test_the_first_cell_finds_the_clone(notebook, folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend("elsewhere")  # sys.path is put back, too
    first = next(cell.source for cell in notebook.cells if cell.cell_type == "code")
    exec(first.replace("%matplotlib inline", ""), {})
    assert Path.cwd() == ROOT


def test_it_runs_and_shows_pictures_and_numbers(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    resources = {"metadata": {"path": str(NOTEBOOK.parent)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()

    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 3  # outline, probabilities, slices of the volume
    for picture in pictures:
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")).astype(int)
        assert np.ptp(pixels, axis=-1).max() > 50  # colours on the grey

    text = "".join(output.text for output in outputs if output.get("name") == "stdout")

    def numbers(pattern: str) -> list[float]:
        return [float(number) for number in re.search(pattern, text).groups()]

    share, highest = numbers(r"([\d.]+)% of the pixels outlined, highest probability ([\d.]+)")
    assert share > 1
    assert highest > 0.9
    volume, dice = numbers(r"Lesion: ([\d.]+) ml, Dice ([\d.]+)")
    assert volume > 1
    assert dice > 0.8
    steps, first, last = numbers(r"(\d+) steps; loss ([\d.]+) in the first ten, ([\d.]+) in the last")
    assert steps >= 40
    assert last < 0.8 * first
    for name in ("shipped", "tuned"):
        (dice,) = numbers(rf"{name} +Dice per validation patient ([\d.]+)")
        assert dice > 0.7
    assert not list(tmp_path.glob("tmp*"))  # its temporary folder
