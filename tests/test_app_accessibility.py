"""The page for people who use a keyboard, a screen reader or strong contrast: axe in every state, and the way by keys.

axe-core is in the package axe-playwright-python and runs in the page; it asks nothing of the network.
"""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from app_files import make_slice
from PIL import Image
from viewer_pictures import says
from volume_samples import head, save_nifti

axe = pytest.importorskip("axe_playwright_python.base", reason="axe-playwright-python is not installed")

pytest_plugins = ["app_fixtures", "browser_fixtures"]

WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
STILL = "*, *::before, *::after { animation: none !important; transition: none !important; caret-color: transparent }"
QUIET = """() => new Promise((done) => {
  let timer = setTimeout(done, 500);
  new MutationObserver(() => {
    clearTimeout(timer);
    timer = setTimeout(done, 500);
  }).observe(document.body, {childList: true, subtree: true});
})"""
FADED_IN = """() => {
  for (let part = document.querySelector('.toast-title'); part; part = part.parentElement) {
    if (getComputedStyle(part).opacity < 1) return false;
  }
  return !document.getAnimations().some((animation) => animation.effect.target?.closest?.('.toast-body'));
}"""
SEEN = 20  # pixels; what has the focus differs from itself without in at least so many, and clearly


@pytest.fixture
def page(open_page):
    page = open_page(**DESKTOP)
    page.evaluate(QUIET)  # parts that are put in late would take the focus with them
    page.add_style_tag(content=STILL)
    page.evaluate(axe.AXE_SCRIPT)
    return page


@pytest.fixture
def check(page):
    """Run axe on the page as it stands: in the light theme, on a phone, and in the dark theme."""

    def run(state: str):
        found = []
        for theme, size in (("light", DESKTOP), ("light", PHONE), ("dark", PHONE), ("dark", DESKTOP)):
            page.set_viewport_size(size)
            page.evaluate("dark => document.body.classList.toggle('dark', dark)", theme == "dark")
            # The themes differ in nothing but colours.
            chosen = {"type": "tag", "values": WCAG} if theme == "light" else ["color-contrast"]
            options = {"runOnly": chosen, "resultTypes": ["violations"]}
            violations = page.evaluate("options => axe.run(document, options)", options)["violations"]
            found += [
                f"{theme}, {size['width']} pixels: {violation['id']}, {node['target']}: {node['failureSummary']}"
                for violation in violations
                for node in violation["nodes"]
            ]
        page.evaluate("document.body.classList.remove('dark')")
        assert not found, f"{state}\n" + "\n".join(found)

    return run


@pytest.fixture
def files(tmp_path):
    """Slices and volumes that are shown with a warning, an expert's mask, and a text that calls itself an image."""
    slices, lesion = head()
    Image.fromarray(255 - make_slice()[..., 1]).save(tmp_path / "inverted.png")
    save_nifti(tmp_path / "inverted.nii.gz", 255 - slices[..., 1])
    save_nifti(tmp_path / "expert.nii.gz", lesion)
    (tmp_path / "report.png").write_text("not an image")
    return tmp_path


def upload(page, place: str, path: Path) -> None:
    page.set_input_files(f"{place} input[type=file]", path)


def open_tab(page, name: str) -> None:
    page.get_by_role("tab", name=name).click()
    page.get_by_role("tab", name=name, selected=True).wait_for()


def wait_for_warning(page, place: str) -> None:
    # In a live region, as it appears far from where the focus is
    page.locator(f"{place}[role=status]").get_by_text("the contrast looks inverted").wait_for()


def wait_for_download(page, button: str) -> None:
    page.locator(f"{button}:enabled").wait_for()


def open_accordions(page) -> None:
    while (closed := page.locator("button.label-wrap:not(.open):visible")).count():
        closed.first.click()


def test_axe_finds_what_it_should(page, check):
    page.evaluate("document.querySelector('#header h1').style.color = 'silver'")
    page.evaluate("document.querySelector('#run').innerHTML = ''")
    with pytest.raises(AssertionError) as caught:
        check("broken")
    assert "light, 390 pixels: color-contrast, ['h1']" in str(caught.value)
    assert "light, 1280 pixels: button-name, ['#run']" in str(caught.value)


def test_the_page_says_its_language_and_its_state_whatever_the_browser_speaks(open_page, files):
    page = open_page(locale="de-DE")
    page.set_input_files("#slice input[type=file]", files / "inverted.png")
    says(page, "FLAIR slice, not outlined yet")
    page.click("#run")
    page.get_by_text("at threshold 0.50").wait_for()
    page.get_by_role("status").get_by_text("Done").first.wait_for(state="attached")
    assert page.evaluate("document.documentElement.lang") == "en"
    assert "common.complete" not in page.get_by_role("status").all_text_contents()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_boxes_that_are_not_ticked_stand_out(open_page, theme):
    """WCAG 1.4.11, which axe does not measure: 3 to 1 against what is beside them."""
    page = open_page(theme)
    line, ground = page.locator("#layer input:not(:checked)").first.evaluate(
        """box => {
          const painted = (part) => getComputedStyle(part).backgroundColor;
          let beside = box.parentElement;
          while (painted(beside) === "rgba(0, 0, 0, 0)") beside = beside.parentElement;
          return [getComputedStyle(box).borderColor, painted(beside)];
        }"""
    )

    def luminance(colour):
        share = np.array(re.findall(r"\d+", colour)[:3], dtype=float) / 255
        linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    dark, light = sorted((luminance(line), luminance(ground)))
    assert (light + 0.05) / (dark + 0.05) >= 3


def test_colours_with_a_meaning_stay_where_the_system_sets_the_others(open_page):
    page = open_page(forced_colors="active")
    colours = page.evaluate(
        """() => {
          const key = '<ul class="key"><li class="a">A</li><li class="b">B</li></ul>';
          document.body.insertAdjacentHTML("beforeend", key);
          const colour = (side) => getComputedStyle(document.querySelector(`.key .${side}`), "::before").borderColor;
          return ["a", "b"].map(colour);
        }"""
    )
    assert colours == ["rgb(230, 159, 0)", "rgb(86, 180, 233)"]
    chosen, other = (page.get_by_role("tab", name=name) for name in ("Slice", "Volume"))
    backgrounds = [tab.evaluate("tab => getComputedStyle(tab).backgroundColor") for tab in (chosen, other)]
    assert backgrounds[0] != backgrounds[1]
    assert page.locator("#run").evaluate("button => getComputedStyle(button).borderTopWidth") == "1px"


def test_axe_on_slices(page, check, files):
    check("Slice, empty")
    open_accordions(page)
    upload(page, "#slice", files / "inverted.png")
    wait_for_warning(page, "#measurements")
    check("Slice, previewed, with a warning and open accordions")
    page.click("#run")
    wait_for_download(page, "#mask")
    check("Slice, outlined")
    page.locator("#slice").get_by_label("Clear").click()
    upload(page, "#slice", files / "report.png")
    page.locator(".toast-body.error").wait_for()
    page.wait_for_function(FADED_IN)
    check("Slice, refused")


def test_axe_on_volumes(page, check, files):
    open_tab(page, "Volume")
    check("Volume, empty")
    open_accordions(page)
    upload(page, "#volume", files / "inverted.nii.gz")
    wait_for_warning(page, "#volume-measurements")
    check("Volume, previewed, with a warning")
    page.click("#volume-run")
    wait_for_download(page, "#volume-mask")
    open_accordions(page)
    check("Volume, outlined")


def test_axe_on_comparisons(page, check, files):
    open_tab(page, "Compare")
    check("Compare, empty")
    page.get_by_role("radio", name="An expert's mask").check()
    upload(page, "#compare-files", files / "inverted.nii.gz")
    upload(page, "#compare-mask", files / "expert.nii.gz")
    for place in ("#compare-files", "#compare-mask"):
        page.locator(place).get_by_role("link").wait_for()  # there once the file has arrived, unlike its name
    page.click("#compare-run")
    wait_for_download(page, "#compare-zip")
    page.locator("#compare-facts[role=status]").get_by_text("Dice").wait_for()
    check("Compare, with a mask")


def test_axe_on_text(page, check):
    for tab in ("Code", "About"):
        open_tab(page, tab)
        open_accordions(page)
        check(tab)


FOCUSED = """() => {
  const focused = document.activeElement;
  if (!focused || focused === document.body) return null;
  focused.scrollIntoView({block: "center"});
  const box = focused.getBoundingClientRect();
  window.lastFocused = focused;
  return {
    id: focused.id, box: [box.x, box.y, box.width, box.height], markup: focused.outerHTML.slice(0, 150),
    places: [...function* () { for (let at = focused; at; at = at.parentElement) if (at.id) yield at.id }()],
  };
}"""


@pytest.fixture
def press_tab(page):
    """Where the next press of Tab leads to, after making sure that it is seen there."""
    seen = set()

    def press() -> dict:
        page.keyboard.press("Tab")
        focused = page.evaluate(FOCUSED)
        assert focused, "the focus left the page"
        x, y, width, height = focused["box"]
        assert min(width, height) >= 1, f"not on the screen: {focused['markup']}"
        if focused["markup"] in seen:
            return focused
        seen.add(focused["markup"])
        left, top, bottom = max(0, x - 6), max(0, y - 6), min(y + height + 6, DESKTOP["height"])
        clip = {"x": left, "y": top, "width": x + width + 6 - left, "height": bottom - top}

        def picture() -> np.ndarray:
            with Image.open(io.BytesIO(page.screenshot(clip=clip))) as shot:
                return np.asarray(shot.convert("RGB")).astype(int)

        with_focus = picture()
        page.evaluate("window.lastFocused.blur()")
        without = picture()
        page.evaluate("window.lastFocused.focus({focusVisible: true})")
        differing = (np.abs(with_focus - without).max(axis=-1) > 40).sum()
        assert differing >= SEEN, f"the focus cannot be seen on {focused['markup']}"
        return focused

    return press


@pytest.fixture
def walk_to(press_tab):
    """Press Tab until the focus is in the element of an id; all stops on the way."""

    def walk(place: str) -> list[dict]:
        stops = []
        while not stops or place not in stops[-1]["places"]:
            assert len(stops) < 60, f"{place} is not reached: {[stop['markup'] for stop in stops]}"
            stops.append(press_tab())
        return stops

    return walk


def test_a_slice_is_outlined_and_taken_away_by_keyboard_alone(page, walk_to, files):
    # The browser hands its dialogs over from here on; asked for together with the key, it may be too late.
    page.on("filechooser", lambda _: None)
    walk_to("slice")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(files / "inverted.png")
    wait_for_warning(page, "#measurements")

    stops = walk_to("run")
    assert any("model" in stop["places"] for stop in stops), "the model is chosen on the way"
    page.keyboard.press("Enter")
    wait_for_download(page, "#mask")
    page.locator("#view canvas[tabindex='0']").wait_for()  # drawn anew, with the outline
    stops = walk_to("mask")
    assert any("view" in stop["places"] for stop in stops), "the picture is reached before the downloads"
    beside = [stop["markup"] for stop in stops if "beside" in stop["places"]]
    assert len(beside) == 3, f"full screen, the download, which is a link around a button, and the picture: {beside}"
    with page.expect_download() as started:
        page.keyboard.press("Enter")
    assert started.value.suggested_filename == "inverted_mask.png"
    walk_to("zip")


def test_every_stop_of_every_tab_is_seen(page, press_tab):
    for name in ("Volume", "Compare", "Code"):
        page.locator("h1").first.click()  # from the top
        while f">{name}</button>" not in press_tab()["markup"]:
            pass
        page.keyboard.press("Enter")
        page.get_by_role("tab", name=name, selected=True).wait_for()
        stops = []
        while not stops or 'class="settings' not in stops[-1]["markup"]:  # the last of the footer's links
            assert len(stops) < 60, f"Tab goes in circles: {[stop['markup'] for stop in stops]}"
            stops.append(press_tab())
        if name in ("Volume", "Compare"):
            assert any(f"{name.lower()}-run" in stop["places"] for stop in stops)
