"""What a visitor's files are by now: work on former ones ends, and nothing of it is shown."""

from types import SimpleNamespace

import pytest

from space import sessions
from space.handlers import Outdated, no_progress
from space.sessions import Sessions
from space.uploads import InputError

ANNA, BERT, CLARA = (SimpleNamespace(session_hash=name) for name in ("anna", "bert", "clara"))


@pytest.fixture
def tab() -> Sessions:
    tab = Sessions()
    tab.change(ANNA, ["former"])
    return tab


@pytest.mark.parametrize(
    ("leave", "error", "text"),
    [
        (lambda tab: tab.change(ANNA, ["latter"]), Outdated, "^$"),
        (lambda tab: tab.close(ANNA), InputError, "connection to the page was interrupted"),
    ],
)
def test_work_on_former_files_ends_at_whatever_it_does_next(tab, leave, error, text):
    work, preview = tab.begin(ANNA, ["former"]), tab.begin_preview(ANNA, ["former"])
    watched = work.watch(no_progress)
    tab.change(BERT, ["his"])  # which is nothing to the others
    tab.close(BERT)
    watched(0.1, desc="")
    leave(tab)
    for proceed in (work.check, work.finish, preview.finish_preview, lambda: watched(0.5, desc="")):
        with pytest.raises(error, match=text):
            proceed()
    tab.begin(ANNA, ["latter"]).finish()


def test_what_begins_with_former_files_is_told_or_passed_over(tab):
    tab.change(ANNA, ["latter"])
    with pytest.raises(InputError, match="The files were changed before the run's turn came"):
        tab.begin(ANNA, ["former"])
    with pytest.raises(Outdated):
        tab.begin_preview(ANNA, ["former"])
    tab.begin(ANNA, ["latter"]).finish()


def test_a_preview_takes_no_result_away_until_files_are_given_again(tab):
    late = tab.begin_preview(ANNA, ["former"])
    tab.begin(ANNA, ["former"]).finish()
    with pytest.raises(Outdated):
        late.finish_preview()
    tab.change(ANNA, ["former"])
    tab.begin_preview(ANNA, ["former"]).finish_preview()


def test_those_who_changed_their_files_last_are_remembered(tab, monkeypatch):
    monkeypatch.setattr(sessions, "MAX_SESSIONS", 2)
    tab.change(BERT, ["former"])
    tab.change(ANNA, ["former"])
    tab.change(CLARA, ["former"])
    for request in (ANNA, CLARA):
        with pytest.raises(InputError):
            tab.begin(request, ["latter"])
    tab.begin(BERT, ["latter"])  # nothing is known of him that contradicts it
