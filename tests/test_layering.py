"""Who may import whom, and what travels to the Hub with the weights."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = {
    "modeling": set(),
    "hub_dataset": {"modeling"},
    "evaluate": {"modeling", "hub_dataset"},
    "predict": {"modeling"},
    "training": {"modeling", "hub_dataset", "evaluate"},
    "train": {"modeling", "hub_dataset", "evaluate", "training"},
    "space": {"modeling"},
    "app": {"modeling", "space"},
    "examples": {"modeling", "hub_dataset"},
    "benchmarks": {"modeling", "hub_dataset", "evaluate", "training"},
    "experiments": {"modeling", "hub_dataset"},
}
ARRAYS = {"postprocessing", "metrics"}  # rooms of modeling that hold functions of arrays alone
TRAVELLING_LIBRARIES = {"torch", "numpy", "PIL", "transformers", "huggingface_hub"}


def files_of(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py")) if (ROOT / room).is_dir() else [ROOT / f"{room}.py"]


def imports_of(path: Path) -> list[tuple[int, str]]:
    """(level, module) of every import in a file; the level counts the dots of a relative import."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or ""))
    return found


def travelling_files() -> list[Path]:
    """What the Hub copies: the files of configurations, models and processor, and what those import relatively."""
    patterns = ("configuration_*", "modeling_*", "image_processing_*")
    waiting = [path for pattern in patterns for path in (ROOT / "modeling").glob(f"{pattern}.py")]
    reached = set()
    while waiting:
        path = waiting.pop()
        if path not in reached:
            reached.add(path)
            waiting += [path.with_name(f"{module}.py") for level, module in imports_of(path) if level == 1]
    return sorted(reached)


@pytest.mark.parametrize("room", ALLOWED)
def test_rooms_import_only_those_they_may(room):
    assert files_of(room)
    for path in files_of(room):
        others = {module.split(".")[0] for level, module in imports_of(path) if level == 0} & ALLOWED.keys() - {room}
        assert others <= ALLOWED[room], f"{path.relative_to(ROOT)} imports {others - ALLOWED[room]}"


@pytest.mark.parametrize("room", ["modeling", "hub_dataset", "training"])
def test_packages_are_flat(room):
    assert [path for path in files_of(room) if path.parent != ROOT / room] == []


@pytest.mark.parametrize("path", travelling_files(), ids=lambda path: path.name)
def test_files_that_travel_import_only_what_is_there_where_they_arrive(path):
    for level, module in imports_of(path):
        top = module.split(".")[0]
        if level:
            # The loader follows `from .sibling import name` alone: no sub-package, no `from . import name`.
            assert level == 1
            assert (path.parent / f"{module}.py").is_file(), f"{path.name} imports .{module}"
        else:
            assert top in TRAVELLING_LIBRARIES or top in sys.stdlib_module_names, f"{path.name} imports {top}"


def test_only_visualisation_draws_and_nothing_in_modeling_serves():
    for path in files_of("modeling"):
        tops = {module.split(".")[0] for level, module in imports_of(path) if level == 0}
        assert not tops & {"gradio", "datasets", "accelerate"}, path.name
        assert path.name == "visualization.py" or "matplotlib" not in tops, path.name


@pytest.mark.parametrize("name", sorted(ARRAYS))
def test_rooms_of_arrays_know_no_model(name):
    imports = imports_of(ROOT / "modeling" / f"{name}.py")
    assert not {module.split(".")[0] for level, module in imports if level == 0} & {"torch", "transformers"}
    assert {module for level, module in imports if level} <= ARRAYS, "by way of a sibling they would know one"
