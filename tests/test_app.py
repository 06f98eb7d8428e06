"""The app's handlers as plain functions, without a server."""

import hashlib
import io
import json
import logging
import re
import shutil
import socket
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
import yaml
from app_files import make_slice, save_png16, save_tiff16
from PIL import Image
from viewer_pictures import unpack

import app
from hub_dataset.phantom import phantom_volume
from modeling.card_inputs import PHANTOM
from modeling.inference import load_model, segment_slice
from modeling.uncertainty import disagreement
from modeling.visualization import REFERENCE_COLOR, flair_to_grey
from space import about_tab, handlers, uploads
from space.about_tab import Scores, read_scores, scores_table
from space.compare_tab import describe_comparison
from space.comparison import Comparison
from space.components import warnings_list
from space.models import default_model, find_models
from space.slice_tab import EXAMPLE_NAMES, describe_result
from space.uploads import InputError, read_slice
from space.viewer import HEADROOM

pytest_plugins = ["app_fixtures"]

ROOT = Path(app.__file__).parent
THRESHOLD = 0.5


def test_preview_shows_flair_with_room_above_its_window(upload):
    pixels = make_slice()
    preview = handlers.preview_slice(upload("slice.png", pixels))
    assert not preview.warnings
    assert preview.view["kind"] == "flair"
    assert preview.view["shape"] == (1, 90, 70)
    (grey,) = unpack(preview.view)
    np.testing.assert_array_equal(grey[0], flair_to_grey(pixels, HEADROOM))
    low, high = preview.view["window"]
    windowed = np.clip((grey[0].astype(float) - low) / (high - low), 0, 1) * 255
    np.testing.assert_allclose(windowed, flair_to_grey(pixels), atol=1)


def test_files_of_single_sequences_are_the_same_as_one_of_all(upload, models):
    pixels = make_slice()
    pre, flair, post = (upload(f"{name}.png", pixels[..., index]) for index, name in enumerate(("t1", "flair", "t1ce")))
    whole = handlers.segment(upload("slice.png", pixels), "tiny-a", THRESHOLD, models)
    apart = handlers.segment(flair, "tiny-a", THRESHOLD, models, pre=pre, post=post)
    assert Path(apart.mask_path).read_bytes() == Path(whole.mask_path).read_bytes()
    assert not apart.warnings

    without_post = handlers.segment(flair, "tiny-a", THRESHOLD, models, pre=pre)
    copied = handlers.segment(upload("copied.png", pixels[..., [0, 1, 1]]), "tiny-a", THRESHOLD, models)
    assert Path(without_post.mask_path).read_bytes() == Path(copied.mask_path).read_bytes()
    (said,) = without_post.warnings
    assert said.startswith("There is no post-contrast T1: FLAIR is copied")
    assert handlers.preview_slice(flair, pre).warnings == without_post.warnings == without_post.measurements["warnings"]

    with pytest.raises(InputError, match="There is no FLAIR slice"):
        handlers.preview_slice(None, pre, post)
    with pytest.raises(InputError, match="differ in size"):
        handlers.preview_slice(flair, upload("other.png", make_slice(64, 64)[..., 0]))
    with pytest.raises(InputError, match="pre-contrast T1 slice is in colour"):
        handlers.preview_slice(flair, upload("colour.png", pixels))


def test_what_looks_wrong_is_said_before_and_after(upload, models):
    path = upload("inverted.png", 255 - make_slice())
    warnings = handlers.preview_slice(path).warnings
    assert ["inverted" in warning for warning in warnings] == [True]
    assert handlers.segment(path, "tiny-a", THRESHOLD, models).warnings == warnings


def test_everything_of_a_slice_is_in_the_archive(upload, models):
    path = upload("slice.png", make_slice())
    plain = handlers.segment(path, "tiny-a", THRESHOLD, models)
    assert plain.uncertainty_map is None
    result = handlers.segment(path, "tiny-a", THRESHOLD, models, uncertainty=True)
    assert Path(result.mask_path).read_bytes() == Path(plain.mask_path).read_bytes()
    network, processor = load_model(models["tiny-a"])
    probabilities = segment_slice(network, processor, make_slice()).probabilities
    spread = disagreement(network, processor, make_slice()[None], probabilities[None])[0]
    assert result.peak == np.unravel_index(probabilities.argmax(), probabilities.shape)
    assert np.ptp(np.asarray(result.uncertainty_map)) > 0
    with zipfile.ZipFile(result.zip_path) as archive:
        assert json.loads(archive.read("measurements.json")) == result.measurements
        assert archive.read("slice_mask.png")
        for name, expected in (("probability", probabilities), ("uncertainty", spread)):
            stored = np.asarray(Image.open(io.BytesIO(archive.read(f"slice_{name}.png"))))
            np.testing.assert_allclose(stored / 65535, expected, atol=1e-4)
        outline = np.asarray(Image.open(io.BytesIO(archive.read("slice_outline.png"))))
        np.testing.assert_array_equal(outline, np.asarray(result.outline))
    assert (
        hashlib.sha256((Path(models["tiny-a"]) / "model.safetensors").read_bytes()).hexdigest()
        == (result.measurements["weights_sha256"])
    )


def test_attention_is_a_transunets_and_marks_the_point(upload, models):
    path = upload("slice.png", make_slice())
    drawn = np.asarray(handlers.attention(path, "tiny-trans", (40, 50), models))
    scale = handlers.display_scale((90, 70))
    assert drawn.shape == (90 * scale, 70 * scale, 3)
    rows, columns = np.nonzero((drawn == REFERENCE_COLOR).all(axis=-1))
    assert (rows.min(), rows.max() + 1) == (32 * scale, 48 * scale)  # the token of 16 x 16 pixels under the point
    assert (columns.min(), columns.max() + 1) == (48 * scale, 64 * scale)
    with pytest.raises(InputError, match=r"tiny-a has no attention to show.* Choose a TransUNet"):
        handlers.attention(path, "tiny-a", (40, 50), models)
    for point in ((90, 0), (0, 70), (-1, 0)):
        with pytest.raises(InputError, match="outside the slice of 90×70 pixels"):
            handlers.attention(path, "tiny-trans", point, models)
    with pytest.raises(InputError, match="up to 512×512"):
        handlers.attention(upload("large.png", make_slice(530, 530)), "tiny-trans", (0, 0), models)


@pytest.mark.parametrize("size", [(90, 70), (33, 47), (64, 64)])
def test_the_mask_file_is_the_models_mask_bit_for_bit(upload, models, expected_mask, upload_folder, size):
    pixels = make_slice(*size)
    result = handlers.segment(upload("slice.png", pixels), "tiny-a", THRESHOLD, models)
    mask = np.asarray(Image.open(result.mask_path))
    expected = expected_mask(pixels)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, expected * np.uint8(255))
    assert Path(result.mask_path).is_relative_to(upload_folder)
    assert Path(result.mask_path).name == "slice_mask.png"
    assert result.measurements["lesion_pixels"] == expected.sum()
    assert result.measurements["lesion_percent"] == pytest.approx(100 * expected.mean())
    assert (result.measurements["height"], result.measurements["width"]) == size


def test_model_and_threshold_are_obeyed(upload, models, expected_mask):
    path, pixels = upload("slice.png", make_slice()), make_slice()
    for model, threshold in (("tiny-a", 0.45), ("tiny-b", 0.5)):
        result = handlers.segment(path, model, threshold, models)
        mask = np.asarray(Image.open(result.mask_path)) > 0
        np.testing.assert_array_equal(mask, expected_mask(pixels, model, threshold))
        assert result.view["threshold"] == threshold


def test_eight_and_sixteen_bit_give_the_same_mask(upload, upload_folder, models):
    pixels = make_slice()
    flair = pixels[..., 1]
    colour = [
        upload("rgb8.png", pixels),
        save_png16(upload_folder / "rgb16.png", pixels.astype(np.uint16) * 257),
        save_tiff16(upload_folder / "rgb12.tif", pixels.astype(np.uint16) * 16),
    ]
    grey = [
        upload("grey8.png", flair),
        upload("grey16.png", flair.astype(np.uint16) * 257),
        upload("grey12.tif", flair.astype(np.uint16) * 16),
    ]
    for paths in (colour, grey):
        results = [handlers.segment(path, "tiny-a", THRESHOLD, models) for path in paths]
        masks = [np.asarray(Image.open(result.mask_path)) for result in results]
        assert masks[0].any()
        for mask in masks[1:]:
            np.testing.assert_array_equal(mask, masks[0])


def test_the_outline_is_drawn_in_colour_and_probabilities_beside_it(upload, models):
    result = handlers.segment(upload("slice.png", make_slice()), "tiny-a", THRESHOLD, models)
    outline = np.asarray(result.outline)
    assert (outline != outline[..., :1]).any()
    assert result.probability_map.size == result.outline.size


def test_unknown_models_and_thresholds_out_of_range_are_refused(upload, models):
    path = upload("slice.png", make_slice())
    for model in ("../tiny-a", "someone/else", None, ["tiny-a"]):
        with pytest.raises(InputError, match="Choose one of: tiny-a, tiny-b"):
            handlers.segment(path, model, THRESHOLD, models)
    for threshold in (0, 1, -0.1, 7, float("nan"), None, "0.5", True):
        with pytest.raises(InputError, match="between 0 and 1"):
            handlers.segment(path, "tiny-a", threshold, models)


def test_without_a_slice_the_message_says_what_to_do(models):
    with pytest.raises(InputError, match="Upload one or pick an example"):
        handlers.segment(None, "tiny-a", THRESHOLD, models)


def test_colour_in_jpeg_is_told_of_and_grey_is_not(upload, recwarn):
    def jpeg(pixels) -> bytes:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "jpeg")
        return file.getvalue()

    colour, grey = jpeg(make_slice()), jpeg(make_slice()[..., 1])
    assert any("JPEG mixes" in warning for warning in handlers.preview_slice(upload("a.jpg", colour)).warnings)
    assert not any("JPEG" in warning for warning in handlers.preview_slice(upload("b.jpg", grey)).warnings)
    assert not any("JPEG" in warning for warning in handlers.preview_slice(upload("c.png", make_slice())).warnings)
    assert ResourceWarning not in [warning.category for warning in recwarn], "a file was left open"


def test_the_model_in_memory_is_the_one_that_is_named(upload, models, tmp_path):
    folder = tmp_path / "replaced"
    shutil.copytree(models["tiny-a"], folder)
    path, offered = upload("slice.png", make_slice()), {"replaced": str(folder)}
    before = handlers.segment(path, "replaced", 0.5, offered).measurements
    shutil.copy(Path(models["tiny-b"]) / "model.safetensors", folder)
    assert handlers.segment(path, "replaced", 0.5, offered).measurements == before
    handlers.load.cache_clear()
    after = handlers.segment(path, "replaced", 0.5, offered).measurements
    assert after["weights_sha256"] == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert after["highest_probability"] != before["highest_probability"]


def test_markup_in_names_and_headers_stays_text():
    assert warnings_list(["'<img src=x>.png' is left out"]).count("<img") == 0
    measured = {"volume_ml": None, "lesion_voxels": 3, "threshold": 0.5}
    sides = {"a": measured | {"model": "<b>a</b>"}, "b": measured | {"mask": "<i>mask</i>.nii"}}
    result = Comparison(
        view={}, picture=None, mask_a=None, mask_b=None, dice=None, iou=None, hd95_pixels=None, hd95_mm=None,
        measurements=sides | {"reason": "<u>why</u>"}, warnings=[], description="<s>series</s>", zip_path="",
    )  # fmt: skip
    text = describe_comparison(result)
    assert not re.search("<(b|i|u|s)>", text)
    assert "&lt;i&gt;mask&lt;/i&gt;.nii" in text
    assert "3.2 px" in describe_comparison(replace(result, hd95_pixels=3.21))
    assert "4.6 mm" in describe_comparison(replace(result, hd95_pixels=3.21, hd95_mm=4.56))


def test_nothing_found_is_said_in_words():
    empty = {"model": "m", "threshold": 0.5, "width": 64, "height": 64}
    text = describe_result(empty | {"lesion_pixels": 0, "lesion_percent": 0.0, "highest_probability": 0.1})
    assert "no pixel reaches the threshold" in text
    found = describe_result(
        empty | {"model": "<i>", "lesion_pixels": 1234, "lesion_percent": 30.127, "highest_probability": 0.9}
    )
    assert "1,234 px" in found
    assert "30.13 %" in found
    assert "<i>" not in found


def test_expected_faults_reach_people_and_unexpected_ones_only_the_log(caplog):
    @handlers.shown_to_people
    def refuse():
        raise InputError("A sentence with <b>markup</b>.")

    @handlers.shown_to_people
    def crash():
        raise RuntimeError("secret path")

    with pytest.raises(gr.Error) as refusal:
        refuse()
    assert refusal.value.message == "A sentence with &lt;b&gt;markup&lt;/b&gt;."
    with caplog.at_level(logging.ERROR), pytest.raises(gr.Error) as fault:
        crash()
    error_id = re.search(r"error ([0-9a-f]{8})", fault.value.message).group(1)
    assert error_id in caplog.text
    assert "secret path" in caplog.text
    assert "secret" not in fault.value.message


# Models on offer


def checkpoint(folder: Path, size: int = 4096) -> Path:
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"\0" * size)
    (folder / "config.json").write_text("{}")
    return folder


def test_models_come_from_checkpoints_and_the_environment(tmp_path, monkeypatch):
    monkeypatch.setattr("space.models.CHECKPOINTS", tmp_path / "checkpoints")
    monkeypatch.delenv("MODEL_IDS", raising=False)
    assert find_models() == {}
    for name in ("unet-4level", "unet-5level"):
        checkpoint(tmp_path / "checkpoints" / name)
    checkpoint(tmp_path / "checkpoints" / "pointer", size=130)
    assert list(find_models()) == ["unet-4level", "unet-5level"]
    assert default_model(find_models()) == "unet-5level"

    checkpoint(tmp_path / "mine")
    monkeypatch.setenv("MODEL_IDS", f" {tmp_path / 'mine'}, someone/their-unet,")
    assert list(find_models()) == ["unet-4level", "unet-5level", "mine", "someone/their-unet"]
    checkpoint(tmp_path / "checkpoints" / "transunet-small")
    assert default_model(find_models()) == "transunet-small"

    checkpoint(tmp_path / "elsewhere" / "unet-5level")
    monkeypatch.setenv("MODEL_IDS", str(tmp_path / "elsewhere" / "unet-5level"))
    with pytest.raises(ValueError, match="Two models are called 'unet-5level'"):
        find_models()
    monkeypatch.setenv("MODEL_IDS", f"{tmp_path}/checkpoints/../checkpoints/unet-5level/,{tmp_path / 'mine'}/")
    assert list(find_models()) == ["transunet-small", "unet-4level", "unet-5level", "mine"]
    for wrong in (str(tmp_path / "typo"), str(tmp_path), "unet", "https://host/user/name"):
        monkeypatch.setenv("MODEL_IDS", wrong)
        with pytest.raises(ValueError, match=r"neither a directory with a model .* nor USER/NAME"):
            find_models()
        with pytest.raises(SystemExit, match="MODEL_IDS names"):
            app.main()


def test_a_model_that_cannot_be_loaded_is_said_to_be_so(tmp_path, caplog):
    source = str(checkpoint(tmp_path / "broken"))
    with pytest.raises(InputError, match=r"cannot be loaded at the moment\. Choose another"):
        handlers.load(source)
    assert source in caplog.text


@pytest.mark.parametrize("score", ["0.842 ± 0.01", None, [1]])
def test_an_odd_card_does_not_keep_the_page_from_starting(tmp_path, score):
    metric = {"type": "dice", "name": "Dice per patient, mean", "value": score}
    result = {"task": {"type": "t"}, "dataset": {"type": "d", "name": "images", "args": [1]}, "metrics": [metric]}
    text = yaml.safe_dump({"model-index": [{"name": "odd", "results": [result]}]})
    (tmp_path / "README.md").write_text(f"---\n{text}---\n")
    assert about_tab.scores_table({"odd": about_tab.read_scores(str(tmp_path))}) == about_tab.NO_SCORES


def test_without_any_model_the_app_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr("space.models.CHECKPOINTS", tmp_path)
    monkeypatch.delenv("MODEL_IDS", raising=False)
    with pytest.raises(SystemExit) as end:
        app.main()
    assert end.value.code not in (None, 0)
    assert "MODEL_IDS=" in str(end.value.code)


def test_a_port_that_cannot_be_had_is_named(models, monkeypatch):
    monkeypatch.setattr(app, "find_models", lambda: models)
    monkeypatch.setattr("modeling.cores.use_cores", lambda: None)
    monkeypatch.delenv("GRADIO_SERVER_NAME", raising=False)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        for port in (other.getsockname()[1], 99999):
            monkeypatch.setenv("GRADIO_SERVER_PORT", str(port))
            with pytest.raises(SystemExit, match=f"error: No page can be served at .*, port {port}: .*SERVER_PORT"):
                app.main()


def test_importing_the_app_brings_in_neither_model_libraries_nor_other_rooms():
    heavy_or_foreign = {"torch", "transformers", "hub_dataset", "evaluate", "train"}
    code = f"import sys, app; assert not {heavy_or_foreign} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_shipped_weights_outline_the_lesion_of_a_phantom(upload):
    checkpoint = ROOT / "checkpoints" / "unet-5level"
    if not (checkpoint / "model.safetensors").is_file():
        pytest.skip("checkpoints/unet-5level is not there")
    slices, lesion = phantom_volume(1, num_slices=24)
    index = lesion.sum(axis=(1, 2)).argmax()
    result = handlers.segment(upload("slice.png", slices[index]), "unet-5level", 0.5, {"unet-5level": str(checkpoint)})
    mask = np.asarray(Image.open(result.mask_path)) > 0
    assert 2 * (mask & lesion[index]).sum() / (mask.sum() + lesion[index].sum()) > 0.6


@pytest.mark.parametrize("name", EXAMPLE_NAMES.values())
def test_examples_are_usable_slices(name):
    pixels = read_slice(uploads.EXAMPLES / name)
    assert pixels.shape[:2] == (256, 256)
    assert pixels.dtype == (np.uint16 if "16bit" in name else np.uint8)
    assert pixels.ndim == (2 if "flair_only" in name else 3)


# Scores on the page


def card(folder: Path, results: list[dict]) -> str:
    folder.mkdir()
    front_matter = {"model-index": [{"name": folder.name, "results": results}]}
    (folder / "README.md").write_text(f"---\n{json.dumps(front_matter)}\n---\n# {folder.name}\n")
    return str(folder)


def measured(dataset: dict, *metrics: tuple[str, str, float]) -> dict:
    listed = [{"type": kind, "name": name, "value": value} for kind, name, value in metrics]
    return {"task": {"type": "image-segmentation"}, "dataset": dataset, "metrics": listed}


def test_the_scores_by_patient_come_from_the_cards(tmp_path, caplog):
    dice, distance = "Dice per patient, mean", "HD95 per patient in pixels, median"
    lgg = {"name": "LGG", "type": "lgg", "split": "validation", "args": {"patients": 7}}
    source = card(
        tmp_path / "one",
        [
            measured(
                lgg,
                ("dice", dice, 0.4321),
                ("dice", "Dice of slices", 0.9),
                ("hd", distance, 12.34),
            ),
            measured(lgg | {"name": "LGG, FLAIR alone", "config": "flair"}, ("dice", dice, 0.1)),
            measured({"name": "Phantom", "type": PHANTOM.identifier, "split": "test"}, ("dice", dice, 0.99)),
        ],
    )
    scores, flair_alone = read_scores(source)
    assert scores == Scores("LGG, validation, 7 patients", {dice: 0.4321, distance: 12.34})
    assert flair_alone == Scores("LGG, FLAIR alone, validation, 7 patients", {dice: 0.1})
    (tmp_path / "none").mkdir()
    broken = card(tmp_path / "broken", [])
    (Path(broken) / "README.md").write_text("---\nmodel-index: 7\n---\n")
    assert read_scores(str(tmp_path / "none")) == read_scores(broken) == []
    assert "The card of" in caplog.text
    odd = Scores("<b>LGG</b>", {dice: 0.1})
    assert "<b>" not in scores_table({"one": [odd]})
    table = scores_table({"one": [scores], "<two>": []})
    cells = re.findall(r"<td>(.*?)</td>", table)
    assert cells == ["LGG, validation, 7 patients", "0.432", "12.3", "no scores in its card", "–", "–"]
    assert "<two>" not in table
    assert "None of the models has scores" in scores_table({"two": []})


@pytest.mark.parametrize("folder", sorted((ROOT / "checkpoints").iterdir()), ids=lambda folder: folder.name)
def test_the_shipped_cards_have_scores_by_patient(folder):
    assert all(0 < scores.metrics["Dice per patient, mean"] < 1 for scores in read_scores(str(folder)))
    assert read_scores(str(folder))
