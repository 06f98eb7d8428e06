"""The viewer in a real Chromium: what it draws, says and lets people do, without asking the server."""

import re

import numpy as np
from app_files import make_slice
from viewer_pictures import drawn, enlarged, has_color, is_grey, says, unpack
from volume_samples import AFFINE, SPACING, head, save_nifti

from modeling.inference import load_model, segment_slice, segment_volume
from modeling.visualization import PREDICTION_COLOR, volume_to_grey
from space.viewer import HEADROOM, write_view

pytest_plugins = ["app_fixtures", "browser_fixtures"]


def test_the_file_holds_every_voxel_once(tmp_path):
    generator = np.random.default_rng(0)
    grey = generator.integers(0, 256, (3, 5, 4), dtype=np.uint8)
    probabilities = generator.random((3, 5, 4), dtype=np.float32)
    probabilities[0, 0, :2] = 0, 1
    mask, reference = generator.random((2, 3, 5, 4)) > 0.5

    (alone,) = unpack(write_view(tmp_path, grey))
    np.testing.assert_array_equal(alone, grey)
    _, lesion = unpack(write_view(tmp_path, grey, probabilities=probabilities, mask=mask, threshold=0.5))
    np.testing.assert_array_equal(lesion >= 128, mask)
    for step in range(101):
        np.testing.assert_array_equal(lesion % 128 >= step, probabilities >= np.float32(step / 100))
    _, compared = unpack(write_view(tmp_path, grey, mask=mask, reference=reference))
    np.testing.assert_array_equal(compared, mask + 2 * reference)


def press(page, viewer: str, *keys: str) -> np.ndarray:
    """What the viewer shows after these keys."""
    for key in keys:
        page.locator(f"{viewer} canvas.picture").press(key)
    return drawn(page, viewer)


def watch_requests(page) -> list[str]:
    """What the page asks of the server from now on, but for the sign of life that Gradio keeps open."""
    asked = []

    def note(request):
        if not request.url.startswith(("data:", "blob:")) and "/heartbeat/" not in request.url:
            asked.append(request.url)

    page.on("request", note)
    return asked


def test_a_slice_is_windowed_zoomed_and_thresholded_in_the_browser(open_page, slice_file, models):
    page = open_page()
    page.set_input_files("#slice input[type=file]", slice_file())
    says(page, "FLAIR slice, not outlined yet")
    assert page.locator("#view").get_by_role("group", name="Overlay").is_hidden(), "there is none yet"
    page.click("#run")
    page.get_by_text("at threshold 0.50").wait_for()
    probabilities = segment_slice(*load_model(models["tiny-a"]), make_slice()).probabilities
    says(page, f"FLAIR slice, lesion {(probabilities >= 0.5).sum():,} pixels")
    page.locator("#beside img").wait_for()
    asked = watch_requests(page)

    # Threshold: outline and area follow, and what is still of the old one is said
    first = drawn(page, "#view")
    page.locator("#threshold input[type=range]").fill("0.45")
    area = (probabilities >= 0.45).sum()
    assert area != (probabilities >= 0.5).sum()
    says(page, f"FLAIR slice, lesion {area:,} pixels")
    status, note = page.locator("#view .status"), page.locator("#view .preview")
    assert f"{area:,} pixels, {100 * area / 6300:.2f} % of the slice · threshold 0.45" in status.inner_text()
    assert "Measurements and files are still those of 0.50" in note.inner_text()
    assert (drawn(page, "#view") != first).any()
    page.locator("#threshold input[type=number]").fill("0.4")
    says(page, f"FLAIR slice, lesion {(probabilities >= 0.4).sum():,} pixels")
    page.locator("#threshold input[type=number]").fill("5")
    page.wait_for_timeout(300)  # what is half typed changes nothing, and nothing tells that it did not
    assert "threshold 0.40" in status.inner_text()
    page.locator("#threshold input[type=range]").fill("0.5")
    note.wait_for(state="hidden")
    np.testing.assert_array_equal(drawn(page, "#view"), first)

    # Overlay, by keys and by buttons
    bare = press(page, "#view", "o")
    assert is_grey(bare)
    assert page.get_by_role("button", name="Overlay").get_attribute("aria-pressed") == "false"
    assert page.get_by_role("button", name="Fill").is_disabled()
    page.get_by_role("button", name="Overlay").click()
    filled = press(page, "#view", "l")
    assert not has_color(filled, PREDICTION_COLOR)
    assert not is_grey(filled)
    np.testing.assert_array_equal(press(page, "#view", "f"), bare)
    page.get_by_label("Opacity").fill("100")
    assert has_color(drawn(page, "#view"), PREDICTION_COLOR), "the fill, wholly opaque"
    np.testing.assert_array_equal(press(page, "#view", "r"), first)

    # Window and level
    box = page.locator("#view canvas.picture").bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    press(page, "#view", "o")
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0], middle[1] + 60, steps=3)
    assert drawn(page, "#view").mean() < 0.8 * bare.mean(), "a higher level is darker"
    page.mouse.move(middle[0] - 80, middle[1], steps=3)
    page.mouse.up()
    narrow = drawn(page, "#view")
    assert narrow.std() > bare.std(), "a narrower window has more contrast"
    assert int(page.get_by_label("Window").input_value()) < 170
    page.get_by_label("Level").fill("0")
    assert drawn(page, "#view").mean() > narrow.mean()
    np.testing.assert_array_equal(press(page, "#view", "r"), first)

    # Zoom and pan
    larger = press(page, "#view", "+")
    assert "1.5×" in page.inner_text("#view .setting")
    assert (press(page, "#view", "Shift+ArrowDown") != larger).any()
    assert (press(page, "#view", "Shift+ArrowUp") == larger).all()
    page.keyboard.down("Shift")
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + 30, middle[1] + 30)
    page.mouse.up()
    page.keyboard.up("Shift")
    assert (drawn(page, "#view") != larger).any()
    page.get_by_role("button", name="Zoom out").click()
    np.testing.assert_array_equal(drawn(page, "#view"), first)
    np.testing.assert_array_equal(press(page, "#view", "-"), first, err_msg="no smaller than that")
    page.keyboard.down("Control")
    page.mouse.move(*middle)
    page.mouse.wheel(0, -100)
    page.keyboard.up("Control")
    assert (drawn(page, "#view") != first).any()
    press(page, "#view", "r")

    # The cross and its probability
    page.mouse.click(box["x"] + 3, middle[1])
    assert "row" not in status.inner_text(), "there is nothing beside the slice"
    press(page, "#view", "ArrowUp", "ArrowLeft")
    row, column = 45 - 1, 35 - 1
    assert f"row {row}, column {column}: probability {np.floor(100 * probabilities[row, column]) / 100:.2f}" in (
        status.inner_text()
    )
    page.mouse.wheel(0, 100)
    with page.expect_download() as started:
        page.get_by_role("button", name="Save PNG").click()
    assert started.value.suggested_filename == "slice.png"
    assert asked == []

    # Running at the threshold that was tried
    page.locator("#threshold input[type=range]").fill("0.45")
    page.get_by_role("button", name="Run at 0.45").press("Enter")
    page.get_by_text("at threshold 0.45").wait_for()
    page.locator("#view .preview").wait_for(state="hidden")
    assert page.evaluate("document.activeElement.closest('#view') !== null"), "the keyboard's place is not lost"
    assert f"{area:,} px" in page.inner_text("#measurements")
    note.wait_for(state="hidden")


def test_a_volume_is_scrolled_and_thresholded_in_the_browser(open_page, models, tmp_path):
    flair = head().slices[..., 1]
    page = open_page()
    page.get_by_role("tab", name="Volume").click()
    page.set_input_files("#volume input[type=file]", save_nifti(tmp_path / "case.nii.gz", flair))
    says(page, "FLAIR slice 7 of 12, not outlined yet")
    seen = drawn(page, "#volume-view")
    windowed = np.minimum(volume_to_grey(flair, HEADROOM)[6] * HEADROOM, 255).round()
    expected = enlarged(windowed, seen.shape[:2], aspect=SPACING[1] / SPACING[2])
    assert np.abs(seen[..., 0] - expected).mean() < 6, "it is smoothed"
    page.click("#volume-run")
    page.locator("#volume-measurements").get_by_text("voxels").wait_for()
    run = segment_volume(*load_model(models["tiny-a"]), flair)
    raw = run.probabilities >= 0.45
    areas, raw_areas = run.mask.sum(axis=(1, 2)), raw.sum(axis=(1, 2))
    largest = int(areas.argmax())
    says(page, f"FLAIR slice {largest + 1} of 12, lesion {areas[largest]:,} pixels")
    asked = watch_requests(page)

    def at(number):
        says(page, f"FLAIR slice {number} of 12, lesion {areas[number - 1]:,} pixels")

    picture = page.locator("#volume-view canvas.picture")
    picture.hover()
    for keys, number in (
        (("Home",), 1),
        (("ArrowRight", "ArrowDown"), 3),
        (("m",), largest + 1),
        (("Home", "ArrowRight", "ArrowDown"), 3),
        (("PageDown", "ArrowUp"), 7),
        (("End", "ArrowRight"), 12),
        (("PageUp",), 7),
        (("PageDown", "ArrowLeft"), 11),
    ):
        press(page, "#volume-view", *keys)
        at(number)
    page.mouse.wheel(0, -100)
    at(10)
    page.mouse.wheel(0, 100)
    at(11)
    picture.dispatch_event("wheel", {"deltaY": -3, "deltaMode": 1})  # lines, as Firefox tells
    at(10)
    slider = page.locator("#volume-view").get_by_role("slider", name="Slice")
    slider.press("Home")
    at(1)
    assert slider.get_attribute("aria-valuetext") == f"FLAIR slice 1 of 12, lesion {areas[0]:,} pixels"
    bars = page.locator("#volume-view canvas.profile").bounding_box()
    page.mouse.click(bars["x"] + bars["width"] * 8.5 / 12, bars["y"] + 5)
    at(9)
    page.mouse.down()
    page.mouse.move(bars["x"] + bars["width"] * 2.5 / 12, bars["y"] + 5)
    page.mouse.up()
    at(3)
    page.mouse.move(5, 5)
    page.mouse.down()
    page.mouse.move(bars["x"] + bars["width"] * 8.5 / 12, bars["y"] + 5, steps=2)
    page.mouse.up()
    assert slider.input_value() == "3", "what is dragged from elsewhere turns no slices"
    page.evaluate(
        """Object.assign(CanvasRenderingContext2D.prototype, {
          strokeText: () => {}, fillText: (text) => (window.written = text),
        })"""
    )
    page.locator("#volume-view").get_by_role("button", name="Largest slice").click()
    at(largest + 1)
    colored = (drawn(page, "#volume-view", "profile") == PREDICTION_COLOR).all(axis=-1)
    height, width = colored.shape
    shown = colored[:, (width * (np.arange(12) + 0.5) / 12).astype(int)].sum(axis=0)
    np.testing.assert_allclose(shown, areas / areas.max() * height, atol=0.15 * height)
    assert page.evaluate("window.written") == f"largest: slice {largest + 1}, {areas[largest]:,} pixels"
    with page.expect_download() as started:
        page.locator("#volume-view").get_by_role("button", name="Save PNG").click()
    assert started.value.suggested_filename == f"slice_{largest + 1}.png"
    status, note = page.locator("#volume-view .status"), page.locator("#volume-view .preview")
    volume, pixel = np.prod(SPACING) / 1000, SPACING[1] * SPACING[2]
    assert status.inner_text().split(" · ") == [
        f"FLAIR slice {largest + 1} of 12, lesion {areas[largest]:,} pixels ({areas[largest] * pixel:,.0f} mm²)",
        f"{areas.sum() * volume:,.1f} ml in all",
        "threshold 0.50",
        "after 3-D post-processing",
    ]
    assert note.is_hidden()

    page.locator("#volume-threshold input[type=range]").fill("0.45")
    says(page, f"FLAIR slice {largest + 1} of 12, lesion {raw_areas[largest]:,} pixels")
    assert f"{raw.sum() * volume:,.1f} ml in all · threshold 0.45" in status.inner_text()
    assert "without the 3-D post-processing" in note.inner_text()
    assert "after" not in status.inner_text()
    assert page.locator("#volume-measurements").get_by_text("at threshold 0.50").is_visible()

    # The pixel under the mouse
    box = picture.bounding_box()

    def under(x, y, click=True):
        if click:
            page.mouse.click(box["x"] + x, box["y"] + y)
        return tuple(map(int, re.findall(r"(?:row|column) (\d+)", status.inner_text())))

    numbers = enlarged(np.arange(flair[0].size).reshape(flair[0].shape), seen.shape[:2], SPACING[1] / SPACING[2])
    place = (15, 24)  # in the middle from left to right, as the picture is narrower than its stage
    y, x = np.argwhere(numbers == place[0] * flair.shape[2] + place[1]).max(axis=0) - 2  # near its lower right corner
    assert under(x, y) == place
    page.keyboard.down("Control")
    for _ in range(3):
        page.mouse.wheel(0, -100)
        drawn(page, "#volume-view")
    page.keyboard.up("Control")
    assert under(x, y) == place, "it stays where it is when the picture is zoomed"
    page.keyboard.down("Shift")
    page.mouse.down()
    page.mouse.move(box["x"] + x + 20, box["y"] + y + 30, steps=2)
    page.mouse.up()
    page.keyboard.up("Shift")
    assert under(x + 20, y + 30) == place, "it goes with the mouse that moves the picture"
    press(page, "#volume-view", "Shift+ArrowRight")
    assert under(x + 20, y + 30)[1] > place[1]
    chosen = under(x, y)
    page.mouse.move(5, 5)
    page.mouse.down()
    page.mouse.move(box["x"] + x + 20, box["y"] + y + 30)
    page.mouse.up()
    assert under(x, y, click=False) == chosen, "what is pressed elsewhere and released here chooses nothing"
    assert asked == []


def test_fingers_zoom_move_and_turn_slices(open_page, tmp_path):
    page = open_page(width=390, height=844, has_touch=True, device_scale_factor=2)
    page.get_by_role("tab", name="Volume").click()
    high = save_nifti(tmp_path / "case.nii.gz", head().slices[..., 1], affine=AFFINE @ np.diag([1, 2, 1, 1]))
    page.set_input_files("#volume input[type=file]", high)  # its pixels are about twice as high as wide
    says(page, "FLAIR slice 7 of 12, not outlined yet")
    picture = page.locator("#volume-view canvas.picture")
    picture.scroll_into_view_if_needed()
    box = picture.bounding_box()
    touch = page.context.new_cdp_session(page)

    def move(*fingers):
        """Fingers go from a point to another, each of two fractions of the picture's side."""
        for kind, part in (
            ("touchStart", 0),
            ("touchMove", 0.2),
            ("touchMove", 0.6),
            ("touchMove", 1),
            ("touchEnd", 1),
        ):
            places = [np.multiply(start, 1 - part) + np.multiply(end, part) for start, end in fingers]
            points = [{"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"]} for x, y in places]
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [] if kind == "touchEnd" else points})
        return drawn(page, "#volume-view")

    move(((0.7, 0.5), (0.5, 0.5)))
    page.get_by_role("img", name="FLAIR slice 7 of 12").wait_for(state="detached")
    turned = int(page.locator("#volume-view .position").input_value())
    assert turned < 7, "a swipe to the left, as if the slices lay side by side"
    larger = move(((0.45, 0.5), (0.25, 0.5)), ((0.55, 0.5), (0.75, 0.5)))
    assert float(page.inner_text("#volume-view .setting").split()[-1].rstrip("×")) > 2
    assert larger.shape[:2] == (2 * round(box["height"]), 2 * round(box["width"])), "as sharp as the screen is"

    def touched(x, y):
        move(((x, y), (x, y)))
        return np.array(re.findall(r"(?:row|column) (\d+)", page.inner_text("#volume-view .status")), dtype=int)

    place = touched(0.5, 0.4)
    move(((0.3, 0.3), (0.4, 0.6)))
    assert np.abs(touched(0.6, 0.7) - place).max() <= 1, "the picture goes with the finger"
    place = touched(0.5, 0.25)
    move(((0.5, 0.2), (0.5, 0.1)), ((0.5, 0.3), (0.5, 0.4)))
    assert np.abs(touched(0.5, 0.25) - place).max() <= 1, "what is between the fingers stays there"
    assert int(page.locator("#volume-view .position").input_value()) == turned, "one finger moves what is enlarged"
    page.locator("#volume-view").get_by_role("button", name="Reset").click()
    assert "1.0×" in page.inner_text("#volume-view .setting")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
