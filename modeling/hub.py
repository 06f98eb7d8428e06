"""The Hub: names, files of weights, and uploads that can be repeated, with errors that say what to do."""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from huggingface_hub import HfApi, file_exists, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id
from transformers.utils import cached_file

WEIGHTS = "model.safetensors"
NEUTRAL_FILES = {".gitattributes", "README.md", "LICENSE"}  # such as the Hub makes with a new repository


class HubError(RuntimeError):
    """The Hub cannot be reached or refuses; the message says what to do."""


def is_repo_id(name: str) -> bool:
    """Whether a name is USER/NAME, as the Hub takes it."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name


def check_destination(repo_id: str) -> None:
    """Find what is wrong with a destination before any work is done for it.

    Raises:
        HubError: not a USER/NAME, or there is no token.
    """
    if not is_repo_id(repo_id):
        raise HubError(
            f"{repo_id!r} is no name of a repository; give USER/NAME, of letters, digits, '-', '_' and '.' within."
        )
    if get_token() is None:
        raise HubError("There is no token: run `hf auth login`, or set HF_TOKEN. It must be allowed to write.")


def is_model(name: str) -> bool:
    """Whether the Hub has a model of this name, with a config.json, that this account can read.

    Raises:
        HubError: the Hub cannot be reached or refuses.
    """
    try:
        return is_repo_id(name) and file_exists(name, "config.json")
    except Exception as error:  # the client passes on whatever its HTTP library raises
        raise HubError(f"Could not look for {name}: {explain(error)}") from error


def upload_folder(
    folder: str | Path,
    repo_id: str,
    *,
    repo_type: str = "model",
    mark: str,
    private: bool = False,
    allow_patterns: Sequence[str] | None = None,
    delete_patterns: Sequence[str] | None = None,
    message: str = "Upload",
    variables: dict[str, str | None] | None = None,
) -> str:
    """Upload `folder` in one commit, creating the repository where there is none, and return the commit's address.

    What the repository already holds is not sent again, and files are complete or absent in it: after any failure the
    same call goes on. Unchanged content makes no commit.

    Args:
        repo_type: `model`, `dataset` or `space` (of Gradio).
        mark: a file that every such upload holds. A repository with other files but without this one is somebody's
            work under the same name, and is refused.
        private: whether a new repository is private; one that is there and public is refused.
        allow_patterns: what to upload; None uploads all.
        delete_patterns: files of the repository that go unless they are uploaded.
        variables: of a Space, name -> value, set before the upload starts it; None removes one.

    Raises:
        HubError: as `check_destination`; or the Hub cannot be reached or refuses.
    """
    check_destination(repo_id)
    api, before = HfApi(), {}
    try:
        repo = api.create_repo(
            repo_id,
            repo_type=repo_type,
            private=private,
            exist_ok=True,
            space_sdk="gradio" if repo_type == "space" else None,
        )
        if private and not api.repo_info(repo.repo_id, repo_type=repo_type).private:
            raise HubError(f"{repo_id} is public. Make it private in its settings first, or choose another name.")
        present = set(api.list_repo_files(repo.repo_id, repo_type=repo_type)) - NEUTRAL_FILES
        if present and mark not in present:
            raise HubError(
                f"{repo_id} is taken: it holds {', '.join(sorted(present)[:3])} and no {mark}. Choose another name."
            )
        if variables:
            before = set_variables(api, repo.repo_id, variables)
        commit = api.upload_folder(
            repo_id=repo.repo_id,
            repo_type=repo_type,
            folder_path=folder,
            allow_patterns=allow_patterns,
            delete_patterns=delete_patterns,
            commit_message=message,
        )
    except HubError:
        raise
    except Exception as error:  # the client passes on whatever its HTTP library raises
        if before:
            with suppress(Exception):  # what is there goes on as it was, if the Hub can still be reached
                set_variables(api, repo_id, before)
        raise HubError(f"Could not upload to {repo_id}: {explain(error)}") from error
    return commit.commit_url


def set_variables(api: HfApi, repo_id: str, variables: dict[str, str | None]) -> dict[str, str | None]:
    """Set a Space's variables, name -> value; None removes one. Returns what the same names had before."""
    known = api.get_space_variables(repo_id)
    before = {key: known[key].value if key in known else None for key in variables}
    for key, value in variables.items():
        if value is not None:
            api.add_space_variable(repo_id, key, value)
        elif key in known:
            api.delete_space_variable(repo_id, key)
    return before


def explain(error: Exception) -> str:
    """What an error of the Hub's client means, and what to do about it."""
    if isinstance(error, LocalTokenNotFoundError):
        return "there is no token. Run `hf auth login`, or set HF_TOKEN."
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set. Unset it to upload."
    if not isinstance(error, HfHubHTTPError) and isinstance(error.__cause__, HfHubHTTPError):
        error = error.__cause__  # a failed transfer of one file comes wrapped
    if not isinstance(error, HfHubHTTPError):
        return f"the Hub cannot be reached ({error}). The same command goes on later; nothing was lost."
    status = error.response.status_code
    if status == 401:
        return "the Hub does not know this token. Run `hf auth login`, or set HF_TOKEN to a valid one."
    if status == 403:
        return (
            "this token may not write there. Use a token that may write, and a name of your own account or "
            f"organisation. {error}"
        )
    if status >= 500:
        return f"the Hub had a fault ({status}). The same command goes on where it stopped; nothing was lost."
    return str(error)


def weight_files(name_or_path: str) -> list[Path]:
    """model.safetensors of a folder or a Hub repository, or its shards in order of their names.

    Raises:
        OSError: there is neither.
    """
    if whole := cached_file(name_or_path, WEIGHTS, _raise_exceptions_for_missing_entries=False):
        return [Path(whole)]
    index = json.loads(Path(cached_file(name_or_path, f"{WEIGHTS}.index.json")).read_text(encoding="utf-8"))
    return [Path(cached_file(name_or_path, name)) for name in sorted(set(index["weight_map"].values()))]
