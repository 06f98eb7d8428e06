"""How long uploads and results stay on the server."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

import app
from space import retention
from space.retention import LIFETIME, PREFIX, SWEEP_EVERY, keep_swept, private_upload_folder, sweep


def put(path: Path, minutes: float) -> Path:
    """A file of this age, in a folder of this age."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"patient")
    for changed in (path, path.parent):
        os.utime(changed, 2 * (time.time() - 60 * minutes,))
    return path


def test_what_is_old_goes_wherever_it_lies(tmp_path):
    outside = put(tmp_path / "elsewhere" / "scan.nii", 600)
    root = tmp_path / "uploads"
    old = [put(root / name, 46) for name in ("tmpcut0ff", "hash/flair.png", "results/x/mask.png")]
    new = [put(root / name, 44) for name in ("tmpg0ing", "hash2/flair.png", "results/y/mask.png")]
    (root / "results" / "y" / "link.nii").symlink_to(outside)
    (root / "link").symlink_to(outside.parent)
    sweep(root)
    sweep(root / "link")
    assert not any(path.exists() for path in old)
    assert not old[1].parent.exists()
    assert all(path.exists() for path in new)
    assert outside.exists()
    assert LIFETIME + SWEEP_EVERY < 3600


def test_a_process_has_a_folder_of_its_own_and_takes_it_along(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr(retention, "SWEEP_EVERY", 0.01)
    killed = put(tmp_path / f"{PREFIX}killed" / "flair.nii", 600)
    running = put(tmp_path / f"{PREFIX}running" / "flair.nii", 1)
    foreign = put(tmp_path / "another-program" / "flair.nii", 600)
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    with pytest.raises(SystemExit) as end, private_upload_folder() as folder:  # noqa: PT012 (it ends with the signal)
        assert os.environ["GRADIO_TEMP_DIR"] == str(folder)
        assert folder.stat().st_mode & 0o077 == 0, "nobody else may read it"
        upload = put(folder / "hash" / "flair.nii", 46)
        put(folder / "hash2" / "flair.nii", 1)
        patience = time.monotonic() + 60
        while killed.exists() or killed.parent.exists() or upload.exists():
            assert time.monotonic() < patience
            time.sleep(0.01)
        assert (folder / "hash2" / "flair.nii").exists()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    assert end.value.code == 128 + signal.SIGTERM
    assert os.environ["GRADIO_TEMP_DIR"] == str(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {running.parent.name, foreign.parent.name}
    assert foreign.exists()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == handlers


def test_a_place_where_no_folder_can_be_made_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(app, "find_models", lambda: {"tiny": "nowhere"})
    monkeypatch.setattr("modeling.cores.use_cores", lambda: None)
    (tmp_path / "file").touch()
    for place in ("file", "file/folder"):
        monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / place))
        with pytest.raises(SystemExit, match=f"error: No folder .* in {tmp_path / place} .*Set GRADIO_TEMP_DIR"):
            app.main()


def test_a_folder_in_use_stays_although_nothing_came_for_long(tmp_path):
    folder = tmp_path / f"{PREFIX}idle"
    folder.mkdir()
    os.utime(folder, 2 * (time.time() - 2 * LIFETIME,))
    once = threading.Event()
    once.set()
    keep_swept(folder, once)
    assert folder.is_dir()


def test_what_nohup_ignores_stays_ignored(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "not" / "there yet"))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with private_upload_folder():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
