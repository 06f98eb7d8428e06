"""Files that are there as a whole or not at all."""

import os
from pathlib import Path

import pytest

from modeling.files import write_atomically
from training.run_folder import replace_folder


def test_an_interrupted_write_leaves_the_former_file(tmp_path, monkeypatch):
    output = tmp_path / "results.json"
    output.write_bytes(b"former")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomically(output, b"new")
    assert output.read_bytes() == b"former"
    assert list(tmp_path.iterdir()) == [output]


def test_what_is_flushed_is_open_for_writing(tmp_path, monkeypatch):
    """Else Windows refuses."""
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda file: flushed.append(os.write(file, b"")))  # refused where it only reads
    (tmp_path / "new").mkdir()
    write_atomically(tmp_path / "new" / "file", b"content")
    replace_folder(tmp_path / "new", tmp_path / "final")
    assert len(flushed) == 2
    assert (tmp_path / "final" / "file").read_bytes() == b"content"
