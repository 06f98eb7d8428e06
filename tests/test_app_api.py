"""The app on a real server, without a browser: its endpoints, what it refuses, and how it is served."""

import gzip
import io
import json
import os
import subprocess
import sys
import threading
import urllib.request
import zipfile
from pathlib import Path

import httpx
import nibabel as nib
import numpy as np
import pytest
from app_files import free_port, make_slice
from gradio.route_utils import delete_files_created_by_app
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from pydicom import dcmread
from pydicom.uid import JPEGLossless, RLELossless
from volume_samples import as_nifti, head, save_dicom, save_nifti, save_zip

import app
from modeling.inference import load_model, segment_volume
from modeling.metrics import confusion_counts, dice
from space.code_tab import ADDRESS, examples
from space.results import sweep

pytest_plugins = ["app_fixtures"]

ROOT = Path(app.__file__).parent


@pytest.fixture(scope="module")
def client(server):
    client = Client(server[0], verbose=False, download_files=False)
    yield client
    client.close()


@pytest.fixture
def slice_path(tmp_path):
    path = tmp_path / "slice.png"
    Image.fromarray(make_slice()).save(path)
    return path


def download(address: str, file: dict | str) -> bytes:
    path = file["path"] if isinstance(file, dict) else file
    return httpx.get(f"{address}/gradio_api/file={path}").content


def fetch(address: str, file: dict | str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(download(address, file))))


def call_raw(address: str, data: list, endpoint: str = "segment_slice") -> str:
    """What the queue answers to a payload that no well-behaved client sends."""
    base = f"{address}/gradio_api/call/{endpoint}"
    response = httpx.post(base, json={"data": data})
    assert response.status_code == 200
    return httpx.get(f"{base}/{response.json()['event_id']}", timeout=60).text


def test_the_public_endpoints_have_named_parameters(client):
    api = client.view_api(return_format="dict")
    assert not api["unnamed_endpoints"]
    assert set(api["named_endpoints"]) == {"/segment_slice", "/segment_volume", "/compare", "/list_models"}
    segment = api["named_endpoints"]["/segment_slice"]
    parameters = {item["parameter_name"]: item["parameter_default"] for item in segment["parameters"]}
    assert list(parameters) == ["image", "model", "threshold", "pre_contrast", "post_contrast"]
    assert parameters == {
        "image": None, "model": "tiny-a", "threshold": 0.5, "pre_contrast": None, "post_contrast": None,
    }  # fmt: skip
    assert [item["label"] for item in segment["returns"]] == ["mask", "outline", "probability map", "measurements"]
    segment = api["named_endpoints"]["/segment_volume"]
    parameters = {item["parameter_name"]: item["parameter_default"] for item in segment["parameters"]}
    assert parameters == {"files": None, "model": "tiny-a", "threshold": 0.5}
    assert [item["label"] for item in segment["returns"]] == ["mask", "everything", "measurements"]
    compare = api["named_endpoints"]["/compare"]
    parameters = {item["parameter_name"]: item["parameter_default"] for item in compare["parameters"]}
    assert parameters == {"files": None, "model": "tiny-a", "other_model": None, "mask": None, "threshold": 0.5}
    assert [item["label"] for item in compare["returns"]] == ["agreement", "everything", "measurements"]


def test_a_volume_is_segmented_over_the_wire(client, server, models, tmp_path):
    flair = head().slices[..., 1]
    path = save_nifti(tmp_path / "case.nii.gz", flair)
    mask, everything, measurements = client.predict(
        files=[handle_file(path)], model="tiny-b", threshold=0.45, api_name="/segment_volume"
    )
    expected = segment_volume(*load_model(models["tiny-b"]), flair, threshold=0.45).mask
    assert expected.any()
    written = nib.Nifti1Image.from_bytes(gzip.decompress(download(server[0], mask)))
    np.testing.assert_array_equal(np.asarray(written.dataobj), np.asarray(as_nifti(expected).dataobj))
    assert measurements["lesion_voxels"] == expected.sum()
    with zipfile.ZipFile(io.BytesIO(download(server[0], everything))) as archive:
        assert json.loads(archive.read("measurements.json")) == measurements


def test_two_outlines_are_compared_over_the_wire(client, server, models, tmp_path):
    slices, lesion = head()
    image = handle_file(save_nifti(tmp_path / "case.nii.gz", slices[..., 1]))
    expert = handle_file(save_nifti(tmp_path / "expert.nii.gz", lesion))
    a, b = (segment_volume(*load_model(models[name]), slices[..., 1]).mask for name in ("tiny-a", "tiny-b"))
    assert a.any()
    assert b.any()
    for arguments, reference in (({"other_model": "tiny-b"}, b), ({"mask": [expert]}, lesion)):
        drawn, everything, measurements = client.predict([image], "tiny-a", **arguments, api_name="/compare")
        assert measurements["dice"] == pytest.approx(dice(confusion_counts(a, reference)), abs=1e-6)
        assert fetch(server[0], drawn).shape[:2] == (64 * 12, 48 * 12)
        with zipfile.ZipFile(io.BytesIO(download(server[0], everything))) as archive:
            assert json.loads(archive.read("measurements.json")) == measurements
    for arguments, message in (
        ({}, "Neither of other_model and mask came"),
        ({"other_model": "unknown"}, "Choose one of"),
        ({"mask": [image]}, "an image rather than a mask"),
    ):
        with pytest.raises(AppError, match=message):
            client.predict([image], "tiny-a", **arguments, api_name="/compare")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"files": None}, "There is no file yet"), ({"model": "unknown"}, "Choose one of"), ({"threshold": 0}, "between")],
)
def test_bad_arguments_for_a_volume_come_back_as_sentences(client, slice_path, arguments, message):
    with pytest.raises(AppError, match=message):
        client.predict(**{"files": [handle_file(slice_path)]} | arguments, api_name="/segment_volume")


def test_the_code_that_the_page_shows_gives_the_mask(server, models, slice_path, expected_mask, monkeypatch):
    codes = {name: code.replace(ADDRESS, server[0]) for name, code in examples(models).items()}
    expected = expected_mask(make_slice())
    monkeypatch.chdir(slice_path.parent)
    # A folder outside the repository is named without its place.
    Path("tiny-a").symlink_to(models["tiny-a"])

    done = subprocess.run(["bash", "-euc", codes["curl"]], capture_output=True, text=True, timeout=60, check=True)
    assert f'"lesion_pixels": {expected.sum()}' in done.stdout
    np.testing.assert_array_equal(np.asarray(Image.open("mask.png")), expected * np.uint8(255))

    called, loaded = {}, {}
    exec(codes["gradio_client"], called)
    called["client"].close()
    assert called["measurements"]["lesion_pixels"] == expected.sum()
    np.testing.assert_array_equal(np.asarray(Image.open(called["mask"])), expected * np.uint8(255))
    exec(codes["transformers"], loaded)
    assert (loaded["mask"].numpy() != expected).mean() < 0.001  # the server folds the batch norms


def test_models_of_the_hub_are_shown_with_their_code():
    code = examples({"someone/their-unet": "someone/their-unet"})["transformers"]
    assert 'source = "someone/their-unet"' in code
    assert code.count("trust_remote_code=True") == 2
    assert "import modeling" not in code


def test_list_models(client):
    assert client.predict(api_name="/list_models") == {
        "models": ["tiny-a", "tiny-b", "tiny-trans"],
        "default": "tiny-a",
    }


def test_a_slice_is_segmented_over_the_wire(client, server, slice_path, expected_mask):
    mask, outline, probability_map, measurements = client.predict(
        image=handle_file(slice_path), model="tiny-b", threshold=0.45, api_name="/segment_slice"
    )
    expected = expected_mask(make_slice(), "tiny-b", 0.45)
    np.testing.assert_array_equal(fetch(server[0], mask), expected * np.uint8(255))
    assert fetch(server[0], outline).shape == fetch(server[0], probability_map).shape
    assert measurements["lesion_pixels"] == expected.sum()
    assert (measurements["model"], measurements["threshold"]) == ("tiny-b", 0.45)


def test_sequences_in_files_of_their_own_over_the_wire(client, server, tmp_path, upload, expected_mask):
    pixels = make_slice()
    paths = [tmp_path / f"{name}.png" for name in ("pre", "flair", "post")]
    for channel, path in enumerate(paths):
        Image.fromarray(pixels[..., channel]).save(path)
    pre, flair, post = map(handle_file, paths)
    for arguments, order in (
        ({"pre_contrast": pre, "post_contrast": post}, (0, 1, 2)),
        ({"post_contrast": post}, (1, 1, 2)),
        ({}, (1, 1, 1)),
    ):
        mask, *_, measurements = client.predict(flair, **arguments, api_name="/segment_slice")
        expected = expected_mask(pixels[..., order])
        np.testing.assert_array_equal(fetch(server[0], mask), expected * np.uint8(255))
        copied = [warning for warning in measurements["warnings"] if warning.startswith("There is no ")]
        assert len(copied) == (1 if order[0] and order[2] == 2 else 0)
    larger = handle_file(upload("larger.png", make_slice(96, 96)[..., 0]))
    with pytest.raises(AppError, match="differ in size"):
        client.predict(flair, pre_contrast=larger, api_name="/segment_slice")
    with pytest.raises(AppError, match="no FLAIR slice"):
        client.predict(None, pre_contrast=pre, api_name="/segment_slice")


def test_a_raw_call_may_leave_out_the_last_parameters(server, upload):
    file = {"path": str(upload("slice.png", make_slice())), "meta": {"_type": "gradio.FileData"}}
    answers = [call_raw(server[0], [file, "tiny-b", 0.45][:given]) for given in (3, 1, 0)]
    assert [answer.split("\n")[0] for answer in answers] == ["event: complete"] * 2 + ["event: error"]
    assert '"threshold": 0.45' in answers[0]
    assert '"model": "tiny-a"' in answers[1]
    assert "There is no slice yet" in answers[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "unknown"}, "Choose one of: tiny-a, tiny-b"),
        ({"threshold": 1.5}, "between 0 and 1"),
        ({"threshold": None}, "between 0 and 1"),
        ({"image": None}, "There is no slice yet"),
    ],
)
def test_bad_arguments_come_back_as_sentences(client, slice_path, arguments, message):
    with pytest.raises(AppError, match=message):
        client.predict(**{"image": handle_file(slice_path)} | arguments, api_name="/segment_slice")


def test_a_file_that_is_no_image_comes_back_as_a_sentence(client, tmp_path):
    path = tmp_path / "report.png"
    path.write_text("not an image")
    with pytest.raises(AppError, match="not an image, whatever its name says"):
        client.predict(image=handle_file(path), api_name="/segment_slice")


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
        return {path for path in upload_folder.rglob("*") if path.is_file() and path.stat().st_size}

    before = files()
    path = tmp_path / "patient.png"
    Image.fromarray(make_slice(seed=7)).save(path)
    client.predict(image=handle_file(path), api_name="/segment_slice")
    new = files() - before
    assert {"patient.png", "patient_mask.png"} <= {path.name for path in new}
    delete_files_created_by_app(server[1], age=None)  # what `delete_cache` calls, there with an age
    sweep(upload_folder / "results", lifetime=0)  # what the sweeper calls
    assert not files() & new


def test_the_command_serves_on_this_machine_only(models, upload_folder):
    port = free_port()
    environment = os.environ | {"MODEL_IDS": models["tiny-a"], "GRADIO_SERVER_PORT": str(port), "OMP_NUM_THREADS": "1"}
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
    finally:
        stuck.cancel()
        process.terminate()  # SIGINT may be ignored where the tests run in the background
        process.communicate(timeout=30)


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
