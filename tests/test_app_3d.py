"""In a real Chromium: the lesion in the head in 3-D, and a DICOM series' mask taken away as DICOM SEG."""

import re

import gradio as gr
import nibabel as nib
import numpy as np
import pytest
from app_files import free_port
from conftest import ROOT
from viewer_pictures import drawn, says
from volume_samples import SPACING, head, read_dicom_seg, save_dicom, save_zip

from space.results import new_folder
from space.viewer import write_view
from space.volume_3d import volume_3d

pytest_plugins = ["app_fixtures", "browser_fixtures"]

MM = np.array([4.0, 1.0, 1.5])  # along slices, rows and columns
LESION = np.zeros((20, 40, 30), dtype=bool)
LESION[11:17, 5:14, 17:25] = True  # off the middle along every axis
WITHOUT_WEBGL = """
const original = HTMLCanvasElement.prototype.getContext;
HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {
  return kind === "webgl2" ? null : original.call(this, kind, ...rest);
};
"""
LATE = """
const early = window.fetch;
window.waiting = [];
window.fetch = (...asked) => {
  if (!`${asked[0]}`.endsWith("view.gz")) return early(...asked);
  return new Promise((done) => waiting.push(() => done(early(...asked))));
};
window.uploads = 0;
const upload = WebGL2RenderingContext.prototype.texImage3D;
WebGL2RenderingContext.prototype.texImage3D = function (...volume) {
  window.uploads++;
  return upload.apply(this, volume);
};
"""  # the file of the 3-D view comes when `waiting` is called


def test_a_volume_is_made_smaller_without_losing_any_of_its_mask(browser):
    page = browser.new_page()
    script = (ROOT / "space" / "volume_3d.js").read_text(encoding="utf-8")
    page.add_script_tag(
        content="const MAX_SIDE = 4;" + script[script.index("function shrink") : script.index("function upload")]
    )
    generator = np.random.default_rng(0)
    voxels, mask = generator.integers(0, 256, (3, 9, 6)), generator.random((3, 9, 6)) < 0.05
    mask[-1, -1, -1] = True
    blocks = [np.add.reduceat, np.maximum.reduceat]
    for values, block, is_mask in ((voxels, blocks[0], False), (255 * mask, blocks[1], True)):
        expected, counts = values, np.ones(values.shape)
        for axis, step in enumerate((1, 3, 2)):
            starts = range(0, values.shape[axis], step)
            expected, counts = block(expected, starts, axis=axis), np.add.reduceat(counts, starts, axis=axis)
        small = page.evaluate(
            "([voxels, shape, isMask]) => { const s = shrink(voxels, shape, isMask); return [[...s.data], s.shape] }",
            [values.ravel().tolist(), list(values.shape), is_mask],
        )
        np.testing.assert_array_equal(np.reshape(*small), expected if is_mask else expected // counts)
    page.close()


@pytest.fixture
def scene(browser, upload_folder):
    """Open a page with nothing but the 3-D view of a ball with `LESION` in it."""
    places = np.stack(np.meshgrid(*[np.linspace(-1, 1, length) for length in LESION.shape], indexing="ij"))
    grey = np.where(np.linalg.norm(places, axis=0) < 0.95, np.uint8(100), np.uint8(0))
    value = {}

    def write(mask, spacing):
        probabilities = mask.astype(np.float32)
        return write_view(new_folder(), grey, spacing, probabilities=probabilities, mask=mask, threshold=0.5)

    with gr.Blocks(analytics_enabled=False) as demo:
        demo.load(lambda: value, None, volume_3d("volume-3d"))
    _, address, _ = demo.launch(
        server_port=free_port(), prevent_thread_lock=True, quiet=True, css_paths=[ROOT / "space" / "volume_3d.css"]
    )
    contexts = []

    def visit(script="", mask=LESION, spacing=tuple(MM), **options):
        value.update(write(mask, spacing))
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.add_init_script(script)
        page.goto(address)
        page.get_by_role("button", name="Show in 3-D").click()
        return page

    yield visit
    for context in contexts:
        context.close()
    demo.close()


def projected(up: int, across: int, shape: tuple[int, int], mm: np.ndarray = MM) -> np.ndarray:
    """Where the view's picture (H, W) shows the lesion, seen along its third axis: bool, with its rows downwards."""
    half = 0.85 * np.linalg.norm(LESION.shape * mm) / 2  # mm of half the picture

    def inside(pixels, axis):
        voxels = (((np.arange(pixels) + 0.5) / pixels * 2 - 1) * half / mm[axis]) + LESION.shape[axis] / 2
        first, *_, last = np.flatnonzero(LESION.any(axis=tuple({0, 1, 2} - {axis})))
        return (voxels >= first) & (voxels < last + 1)

    return inside(shape[0], up)[::-1, None] & inside(shape[1], across)


def test_the_lesion_is_seen_where_it_lies_and_the_head_turned_and_cut(scene):
    page = scene()
    view, canvas = page.locator("#volume-3d"), page.locator("#volume-3d canvas")
    volume = LESION.sum() * MM.prod() / 1000
    page.get_by_role("img", name="The head in 3-D with the lesion in orange, turned by 25° from the front").wait_for()
    assert f"The lesion: {volume:.1f} ml, 12×9×24 mm across, back and up, in slices 12 to 17 of 20" in (
        view.locator(".status").inner_text()
    )

    head_slider, cut_slider = (page.get_by_role("slider", name=name) for name in ("Head", "Cut"))
    head_slider.fill("0")
    for name, axes in {"Front": (0, 2), "Side": (0, 1), "Top": (1, 2)}.items():  # upwards, and to the right
        view.get_by_role("button", name=name).click()
        page.get_by_role("img", name=f"seen from the {name.lower()}").wait_for()
        page.wait_for_timeout(500)  # after which it is drawn finely
        seen = drawn(page, "#volume-3d").any(axis=-1)
        expected = projected(*axes, seen.shape)
        expected = expected[:, ::-1] if name == "Side" else expected  # there, the head looks to the right
        assert (seen & expected).sum() > 0.8 * (seen | expected).sum(), name

    # The head in front of the lesion lets it through; a cut takes it away. Only the lesion has no blue.
    view.get_by_role("button", name="Front").click()
    assert not drawn(page, "#volume-3d")[..., 2].any()
    head_slider.fill("100")
    solid = drawn(page, "#volume-3d")
    assert (solid[..., 2] > 20).mean() > 0.2
    assert (solid[..., 0] > solid[..., 2] + 40).any(), "the lesion is still seen"
    cut_slider.fill("50")
    assert 0 < (drawn(page, "#volume-3d")[..., 2] > 20).mean() < 1
    cut_slider.fill("100")
    assert not drawn(page, "#volume-3d")[..., 2].any()

    canvas.press("ArrowLeft")
    canvas.press("ArrowUp")
    page.get_by_role("img", name="turned by -10° from the front, 10° from below").wait_for()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + 140, box["y"] + 80, steps=2)
    page.mouse.up()
    page.get_by_role("img", name="turned by 10° from the front, 20° from below").wait_for()

    def covered():
        return drawn(page, "#volume-3d").any(axis=-1).mean()

    small = covered()
    canvas.press("+")
    assert (larger := covered()) > 1.2 * small
    view.get_by_role("button", name="Zoom out").click()
    assert covered() < larger / 1.2
    canvas.hover()
    page.keyboard.down("Control")
    page.mouse.wheel(0, -60)
    page.wait_for_timeout(300)
    page.keyboard.up("Control")
    assert covered() > 1.2 * small
    for _ in range(12):
        canvas.press("ArrowDown")
    page.get_by_role("img", name="turned by 10° from the front, 90° from above").wait_for()
    view.get_by_role("button", name="Reset").click()
    page.get_by_role("img", name="turned by 25° from the front, 15° from above").wait_for()
    canvas.press("ArrowLeft")
    canvas.press("r")
    page.get_by_role("img", name="turned by 25° from the front, 15° from above").wait_for()

    page.get_by_role("button", name="Close the 3-D view").click()
    assert canvas.is_hidden()
    page.get_by_role("button", name="Show in 3-D").click()
    page.get_by_role("img", name="turned by 25°").wait_for()
    assert (drawn(page, "#volume-3d")[..., 2] > 20).any(), "drawn anew"


def test_an_unknown_spacing_and_an_empty_outline_are_said(scene):
    page = scene(spacing=None)
    said = page.locator("#volume-3d .status")
    said.get_by_text(f"The lesion: {LESION.sum():,} voxels, in slices 12 to 17 of 20").wait_for()
    assert "The height is a guess: the distance between slices is unknown." in said.inner_text()
    page.get_by_role("slider", name="Head").fill("0")
    page.get_by_role("button", name="Front").click()
    page.wait_for_timeout(500)
    seen = drawn(page, "#volume-3d").any(axis=-1)
    expected = projected(0, 2, seen.shape, np.array([0.7 * 30 / 20, 1, 1]))
    assert (seen & expected).sum() > 0.8 * (seen | expected).sum(), "as high as a head is"

    page = scene(mask=np.zeros_like(LESION))
    page.locator("#volume-3d .status").get_by_text("There is no lesion at this threshold").wait_for()


def test_a_lost_graphics_card_is_told_of_and_the_3d_view_can_be_shown_again(scene):
    page = scene()
    canvas = page.locator("#volume-3d canvas")
    page.get_by_role("img", name="turned by 25°").wait_for()
    canvas.focus()
    canvas.evaluate("(canvas) => canvas.getContext('webgl2').getExtension('WEBGL_lose_context').loseContext()")
    page.get_by_text("The browser has taken the 3-D view's memory away").wait_for()
    assert page.locator("#volume-3d .tools").is_hidden()
    page.locator("#volume-3d .opener:focus").click()
    page.get_by_role("button", name="Show in 3-D").click()
    page.get_by_role("img", name="turned by 25°").wait_for()
    assert (drawn(page, "#volume-3d")[..., 2] > 20).any(), "drawn anew"


def test_what_was_closed_while_it_loaded_is_not_built(scene):
    page = scene(LATE)
    page.get_by_role("button", name="Close the 3-D view").click()
    page.get_by_role("button", name="Show in 3-D").click()
    page.evaluate("waiting.forEach((send) => send())")
    page.get_by_role("img", name="turned by 25°").wait_for()
    page.wait_for_timeout(500)
    assert page.evaluate("[waiting.length, uploads]") == [2, 2], "head and lesion, once"


def test_a_graphics_card_that_is_lost_while_the_file_loads_is_told_of(scene):
    page = scene(LATE)
    page.get_by_text("Loading…").wait_for()
    page.locator("#volume-3d canvas").evaluate(
        "(canvas) => canvas.getContext('webgl2').getExtension('WEBGL_lose_context').loseContext()"
    )
    told = page.get_by_text("The browser has taken the 3-D view's memory away")
    told.wait_for()
    page.evaluate("waiting.forEach((send) => send())")
    page.wait_for_timeout(500)
    assert told.is_visible()


def test_a_finger_that_is_left_when_the_view_closes_is_forgotten(scene):
    page = scene(has_touch=True)
    page.get_by_role("img", name="turned by 25°").wait_for()
    touch = page.context.new_cdp_session(page)

    def touched(kind, right=0):
        box = page.locator("#volume-3d .stage").bounding_box()
        point = {"x": box["x"] + 100 + right, "y": box["y"] + 100}
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [point]})

    touched("touchStart")
    page.evaluate("document.querySelector('#volume-3d .opener').click()")
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    page.get_by_role("button", name="Show in 3-D").click()
    page.get_by_role("img", name="turned by 25°").wait_for()
    touched("touchStart")
    for right in (20, 40, 60):
        touched("touchMove", right)
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    page.get_by_role("img", name="turned by 55° from the front").wait_for(timeout=3000)


def test_without_webgl_the_3d_view_says_so(scene):
    page = scene(WITHOUT_WEBGL)
    page.get_by_text("needs WebGL 2, which this browser does not have").wait_for()
    assert page.locator("#volume-3d .tools").is_hidden()


def test_a_dicom_series_is_outlined_taken_away_and_seen_in_3d(open_page, tmp_path):
    sources = save_dicom(tmp_path, head().slices[..., 1])
    path = save_zip(tmp_path / "study.zip", {file.name: file for file in sources})
    page = open_page(theme="dark", width=390, height=800)
    page.get_by_role("tab", name="Volume").click()
    page.set_input_files("#volume input[type=file]", path)
    page.get_by_text("12 axial slices of 64×48 pixels").wait_for()
    assert page.locator("#volume-dicom-seg").is_hidden()
    opener = page.get_by_role("button", name="3-D")
    assert opener.is_hidden(), "there is no lesion yet"
    page.click("#volume-run")
    page.get_by_text("Diameters on the largest slice").wait_for()
    says(page, re.compile(r"^FLAIR slice \d+ of 12, lesion"))

    def download(button):
        with page.expect_download() as started:
            page.locator(button).click()
        started.value.save_as(tmp_path / started.value.suggested_filename)
        return tmp_path / started.value.suggested_filename

    seg = read_dicom_seg(download("#volume-dicom-seg"), sources)
    assert seg.any()
    nifti = nib.load(download("#volume-mask"))
    np.testing.assert_array_equal(seg, np.asarray(nifti.dataobj).transpose(2, 1, 0))

    canvas = page.locator("#volume-3d canvas")
    assert canvas.is_hidden()
    asked = []
    page.on("request", lambda request: asked.append(request.url) if "heartbeat" not in request.url else None)
    opener.click()
    page.get_by_role("img", name=f"The lesion: {seg.sum() * np.prod(SPACING) / 1000:.1f} ml").wait_for()
    assert [url.rpartition("/")[2] for url in asked] == ["view.gz"], "nothing was fetched before it was opened"
    assert drawn(page, "#volume-3d").any()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390

    page.locator("#volume").get_by_label("Clear").click()
    opener.wait_for(state="hidden")
    assert canvas.is_hidden()
