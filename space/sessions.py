"""What a visitor's files in a tab are by now: work on former ones ends, and its results are not shown.

Work takes a while, or waits for its turn, and the files may change, or the page be closed, meanwhile.
"""

from collections import OrderedDict
from dataclasses import dataclass

import gradio as gr

from .handlers import Outdated, Progress
from .uploads import InputError

CHANGED = "The files were changed before the run's turn came. Run it again for those that are there now."
INTERRUPTED = "The connection to the page was interrupted, which ended the run. Run it again."
MAX_SESSIONS = 1000  # remembered at a time; those that changed their files last


@dataclass
class Files:
    """The files that a session has in a tab."""

    paths: object  # as the tab's components give them
    current: bool = True  # whether they are still the ones
    outlined: bool = False  # whether a model's result on them is shown
    closed: bool = False  # whether the page was closed, or its connection broke off, which looks the same


class Sessions:
    """The files of all sessions in one tab."""

    def __init__(self):
        self._files: OrderedDict[str, Files] = OrderedDict()

    def change(self, request: gr.Request, paths: object) -> None:
        """The session's files are these from now on."""
        if former := self._files.pop(request.session_hash, None):
            former.current = False
        self._files_of(request, paths)

    def close(self, request: gr.Request) -> None:
        """Nobody looks at the session's files any more."""
        if former := self._files.pop(request.session_hash, None):
            former.closed = True

    def outlined(self, request: gr.Request) -> bool:
        """Whether a model's result on the session's files is shown."""
        files = self._files.get(request.session_hash)
        return files is not None and files.outlined

    def begin_preview(self, request: gr.Request, paths: object) -> "Work":
        """The preview of these files.

        Raises:
            Outdated: the session has others by now.
        """
        files = self._files_of(request, paths)
        if files.paths != paths:
            raise Outdated
        return Work(files)

    def _files_of(self, request: gr.Request, paths: object) -> Files:
        """What is known of the session's files; these, where nothing is."""
        files = self._files.setdefault(request.session_hash, Files(paths))
        while len(self._files) > MAX_SESSIONS:
            self._files.popitem(last=False)
        return files

    def begin(self, request: gr.Request, paths: object) -> "Work":
        """A model's work on these files, which somebody asked for.

        Raises:
            InputError: the session has others by now.
        """
        try:
            return self.begin_preview(request, paths)
        except Outdated:
            raise InputError(CHANGED) from None


class Work:
    """What is being done about some files. Methods raise `Outdated` where nobody needs it any more.

    Where the page is closed, they raise an `InputError`, for those who look at it all the same.
    """

    def __init__(self, files: Files):
        self._files = files

    def watch(self, progress: Progress) -> Progress:
        """`progress` that ends the work where the files have changed."""

        def tell(done: float, desc: str) -> None:
            self.check()
            progress(done, desc=desc)

        return tell

    def check(self) -> None:
        if not self._files.current:
            raise Outdated
        if self._files.closed:
            raise InputError(INTERRUPTED)

    def finish_preview(self) -> None:
        """Called before a preview is shown, which must not take a result away."""
        self.check()
        if self._files.outlined:
            raise Outdated

    def finish(self) -> None:
        """Called before a result is shown."""
        self.check()
        self._files.outlined = True
