"""Files that are there as a whole or not at all."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a path beside `path`, with the same suffix, to write to; it then takes its place.

    An interruption leaves the former file or none, never half of one. Several processes, also of several machines on
    one file system, do not meet.
    """
    unfinished = path.with_name(f".{platform.node()}.{os.getpid()}.{path.name}")
    try:
        yield unfinished
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())  # else a power cut may leave the name without the content
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file as `replacing` does."""
    with replacing(path) as unfinished:
        unfinished.write_bytes(content)
