"""The app on a real server, without a browser: its endpoints, and the sentences for arguments that are wrong."""

import gzip
import io
import json
import subprocess
import zipfile
from pathlib import Path

import httpx
import nibabel as nib
import numpy as np
import pytest
from app_files import call_raw, make_slice
from gradio_client import handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from volume_samples import as_nifti, head, save_nifti

import app
from modeling.inference import load_model, segment_volume
from modeling.metrics import confusion_counts, dice
from space.code_tab import ADDRESS, describe_endpoints, examples

pytest_plugins = ["app_fixtures"]

ROOT = Path(app.__file__).parent


def download(address: str, file: dict | str) -> bytes:
    path = file["path"] if isinstance(file, dict) else file
    return httpx.get(f"{address}/gradio_api/file={path}").content


def fetch(address: str, file: dict | str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(download(address, file))))


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
    examples = {item["parameter_name"]: item["example_input"] for item in compare["parameters"]}
    assert [file["path"] for file in examples["files"]] == ["volume.nii.gz"], "and no URL, which would be refused"
    assert examples["mask"] is None


def test_the_code_tab_documents_every_endpoint(server, client):
    text = describe_endpoints(server[1])
    for name, endpoint in client.view_api(return_format="dict")["named_endpoints"].items():
        shown = text.split(f"<code>{name}</code>")[1].split("</details>")[0]
        assert len(shown) > 60, name
        assert all(item["parameter_name"] in shown for item in endpoint["parameters"]), name


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
