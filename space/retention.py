"""How long uploads and results stay: in a folder of the process's own, for less than an hour, and no longer than it.

Gradio deletes what it has served, on a schedule; not uploads that were broken off, nor anything once it has ended.
"""

import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "lgg-segmentation-"
LIFETIME = 45 * 60  # seconds; with the sweeper's interval, under an hour
SWEEP_EVERY = 10 * 60  # seconds


class StartError(Exception):
    """The page cannot be served here. The text says why, and what to do."""


@contextmanager
def private_upload_folder() -> Iterator[Path]:
    """Gradio's upload folder, in the one that GRADIO_TEMP_DIR or else the system names; deleted at the end.

    Old files in it are deleted while it is there, and those that processes left which were killed. SIGTERM and SIGHUP
    raise SystemExit meanwhile, so that they reach the end.

    Raises:
        StartError: no folder can be made there.
    """
    before = os.environ.get("GRADIO_TEMP_DIR")
    parent = Path(before or tempfile.gettempdir())
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent)).resolve()
    except OSError as error:
        raise StartError(
            f"No folder for uploads can be made in {parent} ({error.strerror}). Set GRADIO_TEMP_DIR to a folder that "
            "may be written to."
        ) from None
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    handlers = {
        number: signal.signal(number, lambda number, _: sys.exit(128 + number))
        for number in numbers
        if signal.getsignal(number) is not signal.SIG_IGN  # as nohup leaves it
    }
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    ended = threading.Event()
    sweeper = threading.Thread(target=keep_swept, args=(folder, ended), name="sweeper", daemon=True)
    sweeper.start()
    try:
        yield folder
    finally:
        ended.set()
        sweeper.join()
        shutil.rmtree(folder, ignore_errors=True)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if before is None:
            del os.environ["GRADIO_TEMP_DIR"]
        else:
            os.environ["GRADIO_TEMP_DIR"] = before


def keep_swept(folder: Path, ended: threading.Event) -> None:
    """Sweep this folder and its siblings until the event is set."""
    while True:
        with suppress(OSError):
            os.utime(folder)  # one that is in use is never old itself
            for sibling in folder.parent.glob(f"{PREFIX}*"):
                if sibling.lstat().st_uid == folder.lstat().st_uid:
                    sweep(sibling)
        if ended.wait(SWEEP_EVERY):
            return


def sweep(folder: Path, lifetime: float = LIFETIME) -> None:
    """Delete what is older than `lifetime` seconds in a folder, and itself where it is; links are not followed."""
    with suppress(OSError):  # gone by now, or somebody else's
        if folder.is_symlink():
            return
        aged = is_old(folder, lifetime)  # before its entries are deleted, which makes it new
        for entry in folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                sweep(entry, lifetime)
            elif is_old(entry, lifetime):
                with suppress(OSError):
                    entry.unlink()
        if aged:
            folder.rmdir()  # fails where something is left


def is_old(path: Path, lifetime: float) -> bool:
    return time.time() - path.lstat().st_mtime > lifetime
