"""The page in a real Chromium: what a visitor does, sees and takes away."""

import io
import re
import shutil
import zipfile

import nibabel as nib
import numpy as np
import pytest
from app_files import make_slice, save_png16
from PIL import Image
from viewer_pictures import drawn, enlarged, has_color, is_grey, says
from volume_samples import SPACING, as_nifti, head, save_nifti, save_pages

from modeling import metrics
from modeling.inference import load_model
from modeling.inference import segment_volume as run_model
from modeling.measurements import measure_volume
from modeling.visualization import PREDICTION_COLOR, REFERENCE_COLOR
from space.comparison import AGREEMENT_COLOR

pytest_plugins = ["app_fixtures", "browser_fixtures"]

FILE_INPUT = "#slice input[type=file]"


def shown(page, place: str) -> np.ndarray:
    """The pixels of the picture in `place`, once it is there: (H, W, 3)."""
    image = page.locator(f"{place} img")
    image.wait_for()
    response = page.request.get(image.get_attribute("src"))
    return np.asarray(Image.open(io.BytesIO(response.body())).convert("RGB"))


def choose_model(page, place: str, name: str) -> None:
    page.locator(f"{place} input").click()
    page.get_by_role("option", name=name).click()


def test_from_upload_to_downloaded_mask(open_page, slice_file, expected_mask, upload_folder, tmp_path):
    page = open_page()
    download = page.locator("#mask")
    assert download.is_disabled()
    page.click("#run")
    page.get_by_text("Upload one or pick an example first").wait_for()

    page.set_input_files(FILE_INPUT, slice_file())
    says(page, "FLAIR slice, not outlined yet")
    assert is_grey(drawn(page, "#view"))
    assert page.locator("#beside img").count() == 0

    page.click("#run")
    page.get_by_text("Lesion area").wait_for()
    expected = expected_mask(make_slice())
    assert f"{expected.sum():,} px" in page.inner_text("#measurements")
    assert f"{100 * expected.mean():.2f} %" in page.inner_text("#measurements")
    says(page, f"FLAIR slice, lesion {expected.sum():,} pixels")
    assert has_color(drawn(page, "#view"), PREDICTION_COLOR)
    assert not is_grey(shown(page, "#beside"))

    with page.expect_download() as started:
        download.click()
    assert started.value.suggested_filename == "slice_mask.png"
    started.value.save_as(tmp_path / "mask.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "mask.png")), expected * np.uint8(255))
    with page.expect_download() as started:
        page.locator("#zip").click()
    assert started.value.suggested_filename == "slice_results.zip"
    started.value.save_as(tmp_path / "everything.zip")
    with zipfile.ZipFile(tmp_path / "everything.zip") as archive:
        assert archive.read("slice_mask.png") == (tmp_path / "mask.png").read_bytes()
    assert page.get_by_role("alert").count() == 0

    shutil.rmtree(upload_folder / "results")  # as an hour later
    for _ in range(2):
        download.click()
        page.get_by_role("alert").get_by_text("no longer on the server").wait_for()
        page.wait_for_timeout(300)
    assert page.get_by_role("alert").count() == 1


def test_every_format_is_shown_at_once(open_page, slice_file, tmp_path):
    flair = make_slice()[..., 1]
    page = open_page()
    for path in (
        slice_file("slice.jpg"),
        slice_file("slice.tif"),
        slice_file("grey16.png", flair.astype(np.uint16) * 257),
        slice_file("grey12.tif", flair.astype(np.uint16) * 16),
        save_png16(tmp_path / "rgb16.png", make_slice().astype(np.uint16) * 257),
    ):
        page.set_input_files(FILE_INPUT, path)
        says(page, "FLAIR slice, not outlined yet")
        pixels = drawn(page, "#view")
        assert is_grey(pixels), path.name
        assert pixels.std() > 20, f"{path.name} is shown with contrast"
        page.locator("#slice").get_by_label("Clear").click()
        page.locator("#view .empty").wait_for()
        assert page.locator("#view .setting").is_hidden(), "there is nothing that it could be said of"

    page.get_by_role("button", name="T1 in files of their own").click()
    page.set_input_files("#pre input[type=file]", slice_file("t1.png", make_slice()[..., 0]))
    page.set_input_files(FILE_INPUT, slice_file("inverted.png", 255 - flair))
    page.get_by_text("There is no post-contrast T1: FLAIR is copied").wait_for()
    page.get_by_text("the contrast looks inverted").wait_for()
    page.click("#run")
    page.get_by_text("Lesion area").wait_for()
    assert page.locator("#measurements .warnings li").count() == 2, "said after the run, too"


def test_the_second_picture_shows_uncertainty_and_attention(open_page, slice_file, server, expected_mask):
    page = open_page()
    page.set_input_files(FILE_INPUT, slice_file())
    says(page, "FLAIR slice, not outlined yet")
    page.click("#run")
    page.get_by_text("at threshold 0.50").wait_for()
    _, demo = server
    demo.state_holder.session_data.clear()  # as after 200 other sessions
    page.get_by_role("radio", name="Uncertainty").check()
    page.get_by_alt_text("Uncertainty, as colours").wait_for()
    assert not is_grey(shown(page, "#beside"))
    page.get_by_role("radio", name="Attention").check()
    page.get_by_text("tiny-a has no attention to show").wait_for()
    page.get_by_alt_text("Lesion probability, as colours").wait_for()
    choose_model(page, "#model", "tiny-trans")
    page.get_by_alt_text("Attention, as colours").wait_for()
    says(page, f"FLAIR slice, lesion {expected_mask(make_slice(), 'tiny-trans').sum():,} pixels")
    scale = shown(page, "#beside").shape[0] // 90
    box = page.locator("#view canvas.picture").bounding_box()  # the picture is 90 x 70 in a square
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] * 8 / 90)
    page.get_by_alt_text(re.compile(r"^Attention from row [78], column 3[45],")).wait_for()
    rows, columns = np.nonzero((shown(page, "#beside") == REFERENCE_COLOR).all(axis=-1))
    assert (rows.min() // scale, columns.min() // scale) == (0, 32), "the token under the click is marked"
    box = page.locator("#beside img").bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] * 0.7)
    page.get_by_alt_text(re.compile(r"^Attention from row 6[234], column 3[45],")).wait_for()
    page.locator("#view canvas.picture").press("ArrowDown")
    (place,) = re.findall(r"row \d+, column \d+", page.inner_text("#view .status"))
    page.locator("#view canvas.picture").press("Enter")
    page.get_by_alt_text(f"Attention from {place},").wait_for()


def test_a_file_that_is_no_image_is_refused_in_words_and_takes_old_results_away(open_page, slice_file, tmp_path):
    page = open_page()
    page.set_input_files(FILE_INPUT, slice_file())
    says(page, "FLAIR slice, not outlined yet")
    page.click("#run")
    page.get_by_text("Lesion area").wait_for()
    page.locator("#slice").get_by_label("Clear").click()
    page.locator("#view .empty").wait_for()

    report = tmp_path / "report.png"
    report.write_text("not an image")
    page.set_input_files(FILE_INPUT, report)
    page.get_by_text("not an image, whatever its name says").wait_for()
    assert page.locator("#view .empty").is_visible()
    assert page.locator("#beside img").count() == 0
    assert "Lesion area" not in page.inner_text("#measurements")
    assert page.locator("#mask").is_disabled()


def test_a_volume_from_upload_to_downloaded_mask(open_page, models, tmp_path):
    flair = head().slices[..., 1]
    path = save_nifti(tmp_path / "case.nii.gz", flair)
    page = open_page()
    page.get_by_role("tab", name="Volume").click()
    page.set_input_files("#volume input[type=file]", path)
    says(page, "FLAIR slice 7 of 12, not outlined yet")
    assert is_grey(drawn(page, "#volume-view"))
    assert page.locator("button:not([role=group]) button").count() == 0, "no button in a button"
    assert page.locator(".empty[aria-label]:not([role])").count() == 0

    page.click("#volume-run")
    expected = run_model(*load_model(models["tiny-a"]), flair)
    areas = expected.mask.sum(axis=(1, 2))
    largest = int(areas.argmax())
    assert 0 < areas[largest] < expected.mask[0].size
    says(page, f"FLAIR slice {largest + 1} of 12, lesion {areas[largest]:,} pixels")
    assert has_color(drawn(page, "#volume-view"), PREDICTION_COLOR)
    facts = page.inner_text("#volume-measurements")
    assert f"{areas.sum():,} voxels" in facts
    assert f"{areas.sum() * np.prod(SPACING) / 1000:.1f} ml" in facts
    long, short = measure_volume(expected.mask, SPACING, None)["diameters_mm"]
    assert f"{long:.0f} × {short:.0f} mm" in facts
    assert page.locator("#volume-tiff").is_hidden()

    with page.expect_download() as started:
        page.locator("#volume-mask").click()
    started.value.save_as(tmp_path / "mask.nii.gz")
    written = np.asarray(nib.load(tmp_path / "mask.nii.gz").dataobj)
    np.testing.assert_array_equal(written, np.asarray(as_nifti(expected.mask).dataobj))

    report = tmp_path / "report.nii.gz"
    report.write_text("not a volume")
    page.locator("#volume").get_by_label("Clear").click()
    page.locator("#volume-view .empty").wait_for()
    page.set_input_files("#volume input[type=file]", report)
    page.locator(".toast-body.error").wait_for()
    assert page.locator("#volume-mask").is_disabled()

    page.locator("#volume").get_by_label("Clear").click()
    page.set_input_files("#volume input[type=file]", save_pages(tmp_path / "stack.tif", flair))
    says(page, "FLAIR slice 7 of 12, not outlined yet")
    page.click("#volume-run")
    with page.expect_download() as started:
        page.locator("#volume-tiff").click()
    started.value.save_as(tmp_path / "mask.tif")
    with Image.open(tmp_path / "mask.tif") as pages:
        pages.seek(largest)
        np.testing.assert_array_equal(np.asarray(pages), expected.mask[largest] * np.uint8(255))


def test_two_outlines_are_compared(open_page, models, tmp_path):
    slices, lesion = head()
    a, b = (run_model(*load_model(models[name]), slices[..., 1]).mask for name in ("tiny-a", "tiny-b"))
    page = open_page()
    page.get_by_role("tab", name="Compare").click()
    page.set_input_files("#compare-files input[type=file]", save_nifti(tmp_path / "case.nii.gz", slices[..., 1]))
    says(page, "FLAIR slice 7 of 12, not outlined yet")
    page.click("#compare-run")
    largest = int((a | b).sum(axis=(1, 2)).argmax())
    shared = (a & b)[largest].sum()
    in_a, in_b = (a & ~b)[largest].sum(), (b & ~a)[largest].sum()
    found = f"{shared:,} pixels in both outlines, {in_a:,} in A only, {in_b:,} in B only"
    says(page, f"FLAIR slice {largest + 1} of 12, {found}")

    # A's line runs inside of its edge, B's outside; filled is what they share and what either has alone
    canvas = page.locator("#compare-view canvas.picture")
    canvas.press("f")
    picture = drawn(page, "#compare-view")
    numbers = enlarged(np.arange(a[0].size).reshape(a[0].shape), picture.shape[:2], SPACING[1] / SPACING[2])
    labels = (a + 2 * b)[largest].ravel()[numbers]
    for color, of, inside in ((PREDICTION_COLOR, 1, True), (REFERENCE_COLOR, 2, False)):
        line = labels[(picture == color).all(axis=-1)] & of > 0
        assert line.size > 100
        assert (line == inside).mean() > 0.85, color
    canvas.press("l")
    page.locator("#compare-view").get_by_label("Opacity").fill("100")
    picture = drawn(page, "#compare-view")
    bars = drawn(page, "#compare-view", "profile")
    for label, color in ((1, PREDICTION_COLOR), (3, AGREEMENT_COLOR)):
        assert (picture[labels == label] == color).all(axis=-1).mean() > 0.95, color
        assert has_color(bars, color)
    y, x = np.argwhere(labels == 1)[(labels == 1).sum() // 2]
    box = canvas.bounding_box()
    page.mouse.click(box["x"] + x, box["y"] + y)
    page.locator("#compare-view .status").get_by_text(re.compile(r"row \d+, column \d+: in A only")).wait_for()

    facts = page.inner_text("#compare-facts")
    for side, mask in (("A", a), ("B", b)):
        assert re.search(rf"Lesion, {side}\s+{mask.sum() * np.prod(SPACING) / 1000:.1f} ml", facts)
    assert f"{metrics.dice(metrics.confusion_counts(a, b)):.3f}" in facts
    assert f"{metrics.hausdorff95(a, b, SPACING):.1f} mm" in facts
    assert "B, tiny-b" in facts

    page.get_by_role("radio", name="An expert's mask").check()
    page.locator("#compare-other").wait_for(state="hidden")
    page.set_input_files("#compare-mask input[type=file]", save_nifti(tmp_path / "expert.nii.gz", lesion))
    page.locator("#compare-mask").get_by_role("link").wait_for()  # there once the file has arrived, unlike its name
    page.click("#compare-run")
    page.get_by_text("B, expert.nii.gz").wait_for()
    assert f"{metrics.dice(metrics.confusion_counts(a, lesion)):.3f}" in page.inner_text("#compare-facts")
    with page.expect_download() as started:
        page.locator("#compare-zip").click()
    assert started.value.suggested_filename == "case_comparison.zip"
    largest = int((a | lesion).sum(axis=(1, 2)).argmax())
    says(page, f"FLAIR slice {largest + 1} of 12, {(a & lesion)[largest].sum():,} pixels in both outlines")
    canvas.press("Home")
    says(page, re.compile(r"^FLAIR slice 1 of 12, \d+ pixels in both"))


def test_an_example_is_one_click_away(open_page):
    page = open_page()
    page.locator("#examples button").first.click()
    says(page, "FLAIR slice, not outlined yet")
    assert drawn(page, "#view").std() > 20
    page.click("#run")
    page.get_by_text("Highest probability").wait_for()


def test_a_dropped_file_is_uploaded_in_its_place_and_never_opened_by_the_browser(open_page, slice_file):
    page = open_page()
    devtools = page.context.new_cdp_session(page)

    def drop(place: str) -> str:
        """Drop a file in the middle of an element; what the page lets be done with it there."""
        target = page.locator(place).first
        target.scroll_into_view_if_needed()  # which waits until it moves no more
        box = target.bounding_box()
        at = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
        data = {"items": [], "files": [str(slice_file())], "dragOperationsMask": 1}
        page.evaluate("() => { delete window.dragged; }")
        for kind in ("dragEnter", "dragOver", "drop"):
            devtools.send("Input.dispatchDragEvent", {"type": kind, **at, "data": data})
        page.wait_for_function("() => window.dragged")
        return page.evaluate("() => window.dragged.dropEffect")  # what all listeners have left

    page.evaluate("() => addEventListener('dragover', (event) => (window.dragged = event.dataTransfer), true)")
    assert drop("#slice button") == "copy"
    says(page, "FLAIR slice, not outlined yet")
    for beside in ("#view .stage", "#slice", "#header"):
        assert drop(beside) == "none", beside
        page.wait_for_timeout(500)  # in which another page would open
        assert len(page.context.pages) == 1, beside
    says(page, "FLAIR slice, not outlined yet")


@pytest.mark.parametrize(("theme", "width"), [("light", 320), ("light", 390), ("dark", 390), ("dark", 1280)])
def test_the_page_fits_and_the_warning_is_in_sight_above_the_button(open_page, theme, width):
    page = open_page(theme, width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    notice = page.get_by_text("Research only, anonymised images only.")
    assert notice.is_visible()
    above, button = notice.bounding_box(), page.locator("#run").bounding_box()
    assert above["y"] + above["height"] <= button["y"] < above["y"] + 400
    ink, size = (
        page.evaluate(f"getComputedStyle(document.querySelector('.notice')).{name}") for name in ("color", "fontSize")
    )
    assert float(size.removesuffix("px")) >= 12
    brightness = np.mean([float(value) for value in ink[ink.index("(") + 1 : -1].split(",")[:3]])
    assert brightness > 200 if theme == "dark" else brightness < 80
    for tab, sight in {
        "Volume": "Outline the lesion in the volume",
        "Compare": "Compare the outlines",
        "Code": page.url.split("?")[0].rstrip("/"),
        "About": "Where they fail",
    }.items():
        page.get_by_role("tab", name=tab).click()
        page.get_by_text(sight).first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= width, tab
    assert page.locator("footer .divider").first.is_visible() == (width >= 640)
