"""Publish the Space: the page, the modules it imports, its examples and its weights.

    python -m space.publish USER/NAME                              # with the weights in checkpoints/
    python -m space.publish USER/NAME --model_ids USER/A,USER/B    # weights from the Hub, by the variable MODEL_IDS

Publishing again replaces what has changed, removes what is no longer needed and uploads nothing else.
"""

import ast
import re
import shutil
import sys
import tempfile
from pathlib import Path

from huggingface_hub import RepoCard, SpaceCardData

from modeling.command_line import command_parser
from modeling.hub import HubError, check_destination, is_model, upload_folder

from .models import with_weights

ROOT = Path(__file__).resolve().parents[1]
MARK = "space/handlers.py"
# Beside the modules: what they read at run time.
DATA = ("LICENSE", "space/*.css", "space/*.js", "examples/*.png")
WEIGHTS = ("config.json", "preprocessor_config.json", "model*.safetensors", "model.safetensors.index.json", "README.md")
NOT_NEEDED = {"accelerate", "datasets", "filelock", "kagglehub", "pyarrow", "tqdm"}  # for training and evaluation alone

ABOUT = """# Lower-grade glioma on brain MR

Outlines the FLAIR abnormality of a lower-grade glioma on axial MR slices. **Research software, not a medical device**:
not for diagnosis or treatment; use anonymised images only. Uploads and results are deleted within the hour.

The code is Apache-2.0; the weights were trained on the LGG dataset (Buda et al. 2019) and are CC BY-NC-SA 4.0.
"""


def publish_space(repo_id: str, *, model_ids: str | None = None, private: bool = False) -> str:
    """Upload the Space and return the commit's address.

    Args:
        model_ids: Hub ids, separated by commas, of the models to load; None bundles the weights in checkpoints/.
        private: whether a new Space is private; one that is there and public is refused.

    Raises:
        FileNotFoundError: there are no weights to bundle.
        ValueError: `model_ids` names none, or what is no model on the Hub.
        HubError: see `modeling.hub.is_model` and `upload_folder`.
    """
    check_destination(repo_id)
    names = [name.strip() for name in (model_ids or "").split(",") if name.strip()]
    if model_ids is not None and not names:
        raise ValueError(f"model_ids is {model_ids!r}, which names no model; leave it out to bundle the weights here.")
    for name in names:
        if not is_model(name):
            raise ValueError(f"{name!r} is no model on the Hub that this account can read; give USER/NAME of one.")
    with tempfile.TemporaryDirectory() as folder:
        stage_space(Path(folder), names)
        return upload_folder(
            folder,
            repo_id,
            repo_type="space",
            mark=MARK,
            private=private,
            delete_patterns=["*"],
            message="Publish the Space",
            variables={"MODEL_IDS": ",".join(names) or None},
        )


def stage_space(folder: Path, model_ids: list[str]) -> None:
    """Write into `folder` exactly what the Space's repository gets; see `publish_space`."""
    files = [*needed_modules("app.py"), *(path for pattern in DATA for path in ROOT.glob(pattern))]
    if not model_ids:
        files += bundled_weights()
    for path in files:
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    requirements = space_requirements((ROOT / "requirements.txt").read_text(encoding="utf-8"))
    (folder / "requirements.txt").write_text(requirements, encoding="utf-8")
    front_matter = RepoCard.load(ROOT / "README.md").data.to_dict()
    data = SpaceCardData(**front_matter | ({"models": model_ids} if model_ids else {}))
    (folder / "README.md").write_text(f"---\n{data.to_yaml()}\n---\n\n{ABOUT}", encoding="utf-8")


def needed_modules(start: str) -> list[Path]:
    """The repository's source files that the script `start` imports, directly or not, and itself."""
    waiting, reached = [ROOT / start], set()
    while waiting:
        path = waiting.pop()
        if path in reached:
            continue
        reached.add(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                waiting += [file for alias in node.names for file in module_files(alias.name.split("."))]
            elif isinstance(node, ast.ImportFrom):
                package = list(path.relative_to(ROOT).parts[:-1]) if node.level else []
                module = [*package, *(node.module or "").split(".")] if node.module else package
                waiting += module_files(module)
                waiting += [file for alias in node.names for file in module_files([*module, alias.name])]
    return sorted(reached)


def module_files(parts: list[str]) -> list[Path]:
    """The file of a module of this repository with the files of its packages; none for a library's."""
    packages = [ROOT.joinpath(*parts[: end + 1], "__init__.py") for end in range(len(parts))]
    return [path for path in [*packages, ROOT.joinpath(*parts).with_suffix(".py")] if path.is_file()]


def bundled_weights() -> list[Path]:
    """The files of the checkpoints in checkpoints/ that hold weights.

    Raises:
        FileNotFoundError: none does.
    """
    folders = with_weights(ROOT / "checkpoints")
    if not folders:
        raise FileNotFoundError(
            "checkpoints/ holds no weights: fetch them with `git lfs pull`, or name models of the Hub with --model_ids."
        )
    return [path for folder in folders for pattern in WEIGHTS for path in sorted(folder.glob(pattern))]


def space_requirements(requirements: str) -> str:
    """The repository's requirements without those of training."""
    lines = [line for line in requirements.splitlines() if re.split(r"[<>=!~\[; ]", line)[0] not in NOT_NEEDED]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = command_parser(__doc__, "space.publish")
    parser.add_argument("repo_id", metavar="USER/NAME", help="the Space, created where there is none")
    parser.add_argument(
        "--model_ids",
        metavar="USER/NAME,...",
        help="load these models from the Hub; bundle none (private ones need the secret HF_TOKEN in the Space)",
    )
    parser.add_argument("--private", action="store_true", help="make a new Space private; refuse a public one")
    args = parser.parse_args(argv)
    try:
        print(publish_space(args.repo_id, model_ids=args.model_ids, private=args.private))
    except (OSError, ValueError, HubError) as error:
        sys.exit(f"space.publish: error: {error}")


if __name__ == "__main__":
    main()
