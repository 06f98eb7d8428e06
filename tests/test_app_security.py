"""The app on a real server under attack: what it refuses, what it keeps private, and to whom it is open."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import httpx
import nibabel as nib
import numpy as np
import pytest
from app_files import call_raw, free_port, make_slice
from gradio_client import handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from pydicom import dcmread
from pydicom.uid import JPEGLossless, RLELossless
from volume_samples import as_nifti, head, save_dicom, save_zip

import app
from space.retention import PREFIX, sweep

pytest_plugins = ["app_fixtures"]

ROOT = Path(app.__file__).parent
HALF_AN_UPLOAD = (
    b"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2000000\r\n"
    b"Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
    b'Content-Disposition: form-data; name="files"; filename="patient.nii"\r\n\r\n' + b"p" * 1_000_000
)


def test_paths_that_were_not_uploaded_are_refused(server, slice_path, upload_folder):
    address, _ = server
    meta = {"meta": {"_type": "gradio.FileData"}}
    outside = str(slice_path)
    for file in (
        outside,
        {"path": outside},
        {"path": outside} | meta,
        {"path": outside, "orig_name": "slice.svg"},
        {"path": outside, "orig_name": "slice.svg"} | meta,
        {"path": f"{upload_folder}/../{slice_path.parent.name}/slice.png"} | meta,
        {"path": f"file://{outside}"} | meta,
        {"path": "/etc/passwd"} | meta,
        {"path": "app.py"} | meta,
    ):
        answer = call_raw(address, [file, "tiny-a", 0.5])
        assert answer.startswith("event: error"), file
        assert "The call cannot be read" in answer or "does not lead to an uploaded file" in answer, file
        assert outside not in answer
        assert "root:" not in answer
        assert "event: complete" not in answer
    inside = upload_folder / "inside.png"
    inside.write_bytes(slice_path.read_bytes())
    outside, inside = ({"path": str(path)} | meta for path in (slice_path, inside))
    for endpoint, data in (
        ("segment_slice", [inside, "tiny-a", 0.5, outside]),
        ("segment_slice", [inside, "tiny-a", 0.5, None, outside]),
        ("segment_volume", [[outside], "tiny-a", 0.5]),
        ("compare", [[outside], "tiny-a", "tiny-b", None, 0.5]),
        ("compare", [[inside], "tiny-a", None, [outside], 0.5]),
    ):
        answer = call_raw(address, data, endpoint)
        assert answer.startswith("event: error"), data
        assert "event: complete" not in answer


def test_calls_of_another_form_come_back_as_sentences(server, upload):
    address, _ = server
    file = {"path": str(upload("slice.png", make_slice())), "meta": {"_type": "gradio.FileData"}}
    for endpoint, data, why in (
        ("segment_slice", [7, "tiny-a", 0.5], "The call cannot be read"),
        ("segment_slice", [{}, "tiny-a", 0.5], "The call cannot be read"),
        ("segment_slice", [[file, file], "tiny-a", 0.5], "The call cannot be read"),
        ("segment_volume", [file, "tiny-a", 0.5], "The call cannot be read"),
        ("segment_volume", [[[file]], "tiny-a", 0.5], "The call cannot be read"),
        ("segment_slice", [file, ["tiny-a"], 0.5], "Choose one of: tiny-a"),
        ("segment_slice", [file, "tiny-a", {"threshold": 0.5}], "must be a number between 0 and 1"),
        ("segment_slice", [file, "tiny-a", "0.5"], "must be a number between 0 and 1"),
    ):
        answer = call_raw(address, data, endpoint)
        assert answer.startswith("event: error"), data
        assert why in answer, data
    names = httpx.post(
        f"{address}/gradio_api/upload", files=[("files", (name, b"x")) for name in ("../../evil.png", "..\\evil.png")]
    ).json()
    assert len(names) == 2
    assert all(Path(name).resolve().is_relative_to(Path(file["path"]).parents[1].resolve()) for name in names)


def hostile_files(folder: Path) -> dict[str, tuple[str, str, str]]:
    """What is sent -> the endpoint, the file's name in `folder` and what is said of it."""
    slices = head().slices
    flair = np.asarray(as_nifti(slices[..., 1]).dataobj).astype(np.float32)
    (folder / "report.png").write_text("Patient report")
    Image.fromarray(make_slice()).save(folder / "whole.png")
    (folder / "half.png").write_bytes((folder / "whole.png").read_bytes()[:4000])
    Image.new("L", (10_000, 10_000)).save(folder / "huge.png")
    save_zip(folder / "traversal.zip", {"../../outside.png": folder / "whole.png"})
    declared = bytearray(save_zip(folder / "bomb.zip", {"slice_1.png": bytes(1000)}).read_bytes())
    at = declared.index(b"PK\x01\x02") + 24
    declared[at : at + 4] = (4_000_000_000).to_bytes(4, "little")
    (folder / "bomb.zip").write_bytes(declared)
    arrays = {
        "time.nii.gz": np.stack([flair] * 5, axis=-1),
        "nan.nii.gz": np.where(flair == flair.max(), np.nan, flair),
        "constant.nii.gz": np.full((40, 40, 8), 7, np.float32),
        "long.nii.gz": np.ones((32, 32, 2000), np.uint8),
    }
    for name, array in arrays.items():
        nib.save(nib.Nifti1Image(array, np.eye(4)), folder / name)
    series = {}
    for number in (7, 8):
        (folder / str(number)).mkdir()
        series[number] = save_dicom(folder / str(number), slices[..., 1], PatientID=str(number))
    save_zip(folder / "mixed.zip", {f"{path.parent.name}/{path.name}": path for path in series[7] + series[8]})
    for path in series[7]:
        header = dcmread(path)
        header.compress(RLELossless)
        header.file_meta.TransferSyntaxUID = JPEGLossless
        header.save_as(path)
    save_zip(folder / "compressed.zip", {path.name: path for path in series[7]})
    return {
        "text renamed to .png": ("segment_slice", "report.png", "not an image, whatever its name says"),
        "a truncated image": ("segment_slice", "half.png", "damaged or incomplete"),
        "100 megapixels": ("segment_slice", "huge.png", "10000×10000 pixels, which is too large"),
        "an archive that leaves its folder": ("segment_volume", "traversal.zip", "names a file outside itself"),
        "a zip bomb": ("segment_volume", "bomb.zip", "unpacks to 1 files of 4,000 MB"),
        "4-D": ("segment_volume", "time.nii.gz", "4 dimensions"),
        "NaN": ("segment_volume", "nan.nii.gz", "NaN or infinite"),
        "constant": ("segment_volume", "constant.nii.gz", "every voxel is 7"),
        "2,000 slices": ("segment_volume", "long.nii.gz", "32×32×2000 voxels, which is too large"),
        "two patients": ("segment_volume", "mixed.zip", "belong to 2 patients"),
        "a compression without a decoder": ("segment_volume", "compressed.zip", "compressed as JPEG Lossless"),
    }


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_hostile_files_get_their_sentence_and_the_server_stays_up(client, tmp_path, upload_folder):
    for what, (endpoint, name, why) in hostile_files(tmp_path).items():
        file = handle_file(tmp_path / name)
        with pytest.raises(AppError) as refusal:
            client.predict(file if endpoint == "segment_slice" else [file], api_name=f"/{endpoint}")
        assert why in str(refusal.value), what
        assert str(upload_folder) not in str(refusal.value), what
    assert not list(upload_folder.parent.rglob("outside.png"))
    *_, measurements = client.predict(handle_file(tmp_path / "whole.png"), api_name="/segment_slice")
    assert measurements["lesion_pixels"]


def test_urls_are_not_fetched(server):
    reached = []
    listening = True

    def watch(event, arguments):
        if listening and event in ("socket.connect", "socket.getaddrinfo"):
            reached.append(str(arguments))

    sys.addaudithook(watch)
    answer = call_raw(
        server[0], [{"path": "http://example.invalid/slice.png", "meta": {"_type": "gradio.FileData"}}, "tiny-a", 0.5]
    )
    url = {"path": "http://example.invalid/mask.png", "meta": {"_type": "gradio.FileData"}}
    others = [
        call_raw(server[0], [[url], "tiny-a", 0.5], "segment_volume"),
        call_raw(server[0], [[url], "tiny-a", "tiny-b", None, 0.5], "compare"),
        call_raw(server[0], [None, "tiny-a", None, [url], 0.5], "compare"),
        call_raw(server[0], [None, "tiny-a", 0.5, url]),
        call_raw(server[0], [None, "tiny-a", 0.5, None, url]),
    ]
    listening = False
    assert "A URL came instead of a file" in answer
    assert ["A URL came instead of a file" in other for other in others] == [True] * 5
    assert reached, "the test's own connection shows that the hook works"
    assert not [where for where in reached if "example" in where]


def test_an_upload_above_the_limit_is_refused(server):
    content = bytes(101 * 1024**2)
    response = httpx.post(f"{server[0]}/gradio_api/upload", files={"files": ("big.png", content)}, timeout=60)
    assert response.status_code == 413


def test_the_queue_cannot_be_bypassed_and_the_server_shows_nothing_else(server):
    address, _ = server
    direct = httpx.post(f"{address}/gradio_api/api/segment_slice/", json={"data": [None, "tiny-a", 0.5]})
    assert direct.status_code == 404
    for route in ("/gradio_api/file=app.py", f"/gradio_api/file={ROOT / 'app.py'}", "/monitoring", "/gradio_api/runs"):
        assert httpx.get(address + route).status_code in (403, 404), route


def test_settings_that_keep_images_private(server):
    _, demo = server
    config = demo.get_config_file()
    assert demo.delete_cache == (600, 1800)
    assert not demo.analytics_enabled
    assert not demo.show_error
    assert not demo.run_history
    assert not demo.enable_monitoring
    assert not demo.share
    assert not demo.ssr_mode
    assert demo.state_session_capacity < 10_000
    assert demo._queue.max_size == 32
    on_model = [function for function in demo.fns.values() if function.concurrency_id == "model"]
    assert len(on_model) == 8
    assert {function.concurrency_limit for function in on_model} == {1}
    images = [component for component in config["components"] if component["type"] == "image"]
    assert images
    assert not any("share" in (image["props"].get("buttons") or []) for image in images)


def test_what_is_uploaded_and_made_can_be_deleted_on_schedule(client, server, tmp_path, upload_folder):
    def files():
        return {path for path in upload_folder.rglob("*") if path.is_file()}

    before = files()
    path = tmp_path / "patient.png"
    Image.fromarray(make_slice(seed=7)).save(path)
    client.predict(image=handle_file(path), api_name="/segment_slice")
    new = files() - before
    assert {"patient.png", "patient_mask.png"} <= {path.name for path in new}
    sweep(upload_folder, lifetime=0)  # what the sweeper calls
    upload_folder.mkdir(exist_ok=True)  # for the tests to come
    assert not files() & new


def test_the_command_serves_on_this_machine_only_and_leaves_no_upload(models, tmp_path):
    port = free_port()
    environment = os.environ | {"MODEL_IDS": models["tiny-a"], "GRADIO_SERVER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    environment["GRADIO_TEMP_DIR"] = str(tmp_path)
    environment.pop("SPACE_ID", None)
    process = subprocess.Popen(
        [sys.executable, "-u", "app.py"], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    stuck = threading.Timer(300, process.kill)
    stuck.start()
    try:
        line = next((line for line in process.stdout if b"Running on" in line), b"")
        assert f"http://127.0.0.1:{port}" in line.decode()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/gradio_api/info", timeout=30) as response:
            assert "/segment_slice" in json.load(response)["named_endpoints"]
        with pytest.raises(OSError, match=r"refused|unreachable|assign"):
            urllib.request.urlopen(f"http://127.0.0.2:{port}/", timeout=5)
        with socket.create_connection(("127.0.0.1", port), timeout=30) as broken_off:
            broken_off.sendall(HALF_AN_UPLOAD)
            patience = time.monotonic() + 60
            while not (left := [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size]):
                assert time.monotonic() < patience
                time.sleep(0.1)
        assert [path.parent.name.startswith(PREFIX) for path in left] == [True]
        time.sleep(1)  # what the server has to say of that, it says at once
    finally:
        stuck.cancel()
        process.terminate()  # SIGINT may be ignored where the tests run in the background
        said, _ = process.communicate(timeout=30)
    assert b"Traceback" not in said
    assert not list(tmp_path.glob(f"{PREFIX}*"))


class RecordedLaunch:
    def launch(self, **options):
        return options


def test_the_server_is_open_to_others_on_a_space_only(monkeypatch):
    for name in ("SPACE_ID", "GRADIO_SERVER_NAME", "GRADIO_SERVER_PORT"):
        monkeypatch.delenv(name, raising=False)
    options = app.launch(RecordedLaunch())
    assert (options["server_name"], options["server_port"]) == ("127.0.0.1", 7860)
    monkeypatch.setenv("SPACE_ID", "someone/space")
    monkeypatch.setenv("GRADIO_SERVER_PORT", "8123")
    options = app.launch(RecordedLaunch())
    assert (options["server_name"], options["server_port"]) == ("0.0.0.0", 8123)
    assert options["share"] is False
