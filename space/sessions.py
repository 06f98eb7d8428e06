"""What a visitor's files in a tab are by now: work on former ones ends, and its results are not shown.

Work takes a while, and the files may change, or the page be closed, meanwhile.
"""

from collections import OrderedDict
from dataclasses import dataclass

import gradio as gr

from .handlers import Outdated, Progress

MAX_SESSIONS = 1000  # remembered at a time; those that changed their files last


@dataclass
class Files:
    """The files that a session has in a tab."""

    current: bool = True  # whether they are still the ones
    outlined: bool = False  # whether a model's result on them is shown


class Sessions:
    """The files of all sessions in one tab."""

    def __init__(self):
        self._files: OrderedDict[str, Files] = OrderedDict()

    def change(self, request: gr.Request) -> None:
        """The session's files have changed, or its page was closed."""
        if former := self._files.pop(request.session_hash, None):
            former.current = False

    def begin(self, request: gr.Request) -> "Work":
        """Work on the files that the session has now."""
        files = self._files.setdefault(request.session_hash, Files())
        while len(self._files) > MAX_SESSIONS:
            self._files.popitem(last=False)
        return Work(files)


class Work:
    """What is being done about some files. Methods raise `Outdated` where nobody needs it any more."""

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

    def finish_preview(self) -> None:
        """Called before a preview is shown, which must not take a result away."""
        self.check()
        if self._files.outlined:
            raise Outdated

    def finish(self) -> None:
        """Called before a result is shown."""
        self.check()
        self._files.outlined = True
