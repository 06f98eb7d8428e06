"""Files that are there as a whole or not at all."""

from pathlib import Path

import pytest

from modeling.files import write_atomically


def test_an_interrupted_write_leaves_the_former_file(tmp_path, monkeypatch):
    output = tmp_path / "results.json"
    output.write_bytes(b"former")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomically(output, b"new")
    assert output.read_bytes() == b"former"
    assert list(tmp_path.iterdir()) == [output]
