"""The page in a real Chromium when things do not come in turn: nothing of former files is shown, nothing is lost."""

import threading

import pytest
from viewer_pictures import says
from volume_samples import head, save_nifti

from space import slice_tab, volume_tab
from space.handlers import Outdated
from space.uploads import InputError

pytest_plugins = ["app_fixtures", "browser_fixtures"]


class Held:
    """Stands in for a function that reads or segments files: those whose name holds `name` wait until released."""

    def __init__(self, function, name: str):
        self.function, self.name = function, name
        self.begun, self.released, self.stopped = (threading.Event() for _ in range(3))

    def __call__(self, paths, *args, **options):
        if self.name in str(paths):
            self.begun.set()
            while not self.released.wait(0.05):
                for progress in filter(callable, args):
                    try:
                        progress(0.5, desc="Half of it")
                    except (Outdated, InputError):
                        self.stopped.set()
                        raise
        return self.function(paths, *args, **options)


def until(page, event: threading.Event) -> None:
    """Wait for an event while the page, whose requests pass through this thread, goes on."""
    for _ in range(600):
        if event.is_set():
            return
        page.wait_for_timeout(100)
    pytest.fail("it did not happen within a minute")


@pytest.fixture
def hold(monkeypatch):
    held = []

    def replace(module, function: str, name: str) -> Held:
        held.append(Held(getattr(module, function), name))
        monkeypatch.setattr(module, function, held[-1])
        return held[-1]

    yield replace
    for function in held:
        function.released.set()


def test_what_belongs_to_a_former_volume_is_not_shown(open_page, hold, tmp_path):
    slices = head().slices[..., 1]
    former, latter = save_nifti(tmp_path / "former.nii", slices), save_nifti(tmp_path / "latter.nii", slices[2:])
    page = open_page()
    page.get_by_role("tab", name="Volume").click()

    def replace() -> None:
        page.locator("#volume").get_by_label("Clear").click()
        page.set_input_files("#volume input[type=file]", latter)

    # A preview
    reading = hold(volume_tab, "open_volume", "former")
    page.set_input_files("#volume input[type=file]", former)
    until(page, reading.begun)
    replace()
    page.get_by_text("10 axial slices").wait_for()
    reading.released.set()
    page.wait_for_timeout(1000)
    assert "10 axial slices" in page.inner_text("#volume-measurements")

    # A result
    page.locator("#volume").get_by_label("Clear").click()
    page.set_input_files("#volume input[type=file]", former)
    page.get_by_text("12 axial slices").wait_for()
    segmenting = hold(volume_tab, "segment_volume", "former")
    page.click("#volume-run")
    until(page, segmenting.begun)
    replace()
    page.get_by_text("10 axial slices").wait_for()
    page.locator("#volume-view .status").get_by_text("not outlined yet").wait_for()
    until(page, segmenting.stopped)
    page.click("#volume-run")
    page.get_by_text("at threshold 0.50").wait_for()
    assert "10 axial slices" in page.inner_text("#volume-measurements")
    with page.expect_download() as started:
        page.locator("#volume-mask").click()
    assert started.value.suggested_filename == "latter_mask.nii.gz"


def test_a_run_whose_files_changed_before_its_turn_is_not_shown(open_page, hold, tmp_path):
    slices = head().slices[..., 1]
    ahead, page = open_page(), open_page()
    for each, name in ((ahead, "ahead"), (page, "former")):
        each.get_by_role("tab", name="Volume").click()
        each.set_input_files("#volume input[type=file]", save_nifti(tmp_path / f"{name}.nii", slices))
        each.get_by_text("12 axial slices").wait_for()
    segmenting = hold(volume_tab, "segment_volume", "ahead")
    ahead.click("#volume-run")
    until(ahead, segmenting.begun)
    page.click("#volume-run")
    page.wait_for_timeout(1000)  # it waits for the model now
    page.locator("#volume").get_by_label("Clear").click()
    page.set_input_files("#volume input[type=file]", save_nifti(tmp_path / "latter.nii", slices[2:]))
    page.get_by_text("10 axial slices").wait_for()
    segmenting.released.set()
    page.get_by_text("The files were changed before the run's turn came").wait_for()
    assert "10 axial slices" in page.inner_text("#volume-measurements")
    assert page.locator("#volume-mask").is_disabled()


def test_a_late_preview_does_not_take_a_result_away(open_page, hold, tmp_path):
    page = open_page()
    page.get_by_role("tab", name="Volume").click()
    reading = hold(volume_tab, "open_volume", "case")
    page.set_input_files("#volume input[type=file]", save_nifti(tmp_path / "case.nii", head().slices[..., 1]))
    until(page, reading.begun)
    page.click("#volume-run")
    page.get_by_text("at threshold 0.50").wait_for()
    reading.released.set()
    page.wait_for_timeout(1000)
    assert "at threshold 0.50" in page.inner_text("#volume-measurements")
    assert page.locator("#volume-mask").is_enabled()


def test_a_run_ends_when_its_page_is_closed(open_page, hold, tmp_path):
    page = open_page()
    page.get_by_role("tab", name="Volume").click()
    page.set_input_files("#volume input[type=file]", save_nifti(tmp_path / "case.nii", head().slices[..., 1]))
    page.get_by_text("12 axial slices").wait_for()
    segmenting = hold(volume_tab, "segment_volume", "case")
    page.click("#volume-run")
    until(page, segmenting.begun)
    page.close()
    assert segmenting.stopped.wait(60)


def test_what_belongs_to_a_former_slice_or_mask_is_not_shown(open_page, hold, tmp_path):
    page = open_page()
    page.locator("#examples button").first.click()
    says(page, "FLAIR slice, not outlined yet")
    segmenting = hold(slice_tab, "segment", "lesion.png")
    page.click("#run")
    until(page, segmenting.begun)
    page.locator("#examples button").nth(2).click()
    page.locator("#slice").get_by_text("flair_only_16bit").wait_for()
    segmenting.released.set()
    page.wait_for_timeout(1000)
    assert "Lesion area" not in page.inner_text("#measurements")
    assert page.locator("#mask").is_disabled()

    page.get_by_role("tab", name="Compare").click()
    slices, mask = head()
    page.set_input_files("#compare-files input[type=file]", save_nifti(tmp_path / "case.nii", slices[..., 1]))
    page.get_by_role("radio", name="An expert's mask").check()
    page.set_input_files("#compare-mask input[type=file]", save_nifti(tmp_path / "mask.nii", mask))
    page.get_by_text("12 axial slices").wait_for()
    page.locator("#compare-mask").get_by_role("link").wait_for()  # there once the file has arrived, unlike its name
    page.click("#compare-run")
    page.locator("#compare-facts").get_by_text("Dice").wait_for()
    page.locator("#compare-mask").get_by_label("Clear").click()
    page.locator("#compare-facts").get_by_text("The scores appear here").wait_for()
    assert page.locator("#compare-zip").is_disabled()


def test_progress_is_seen_on_the_slice_that_is_being_outlined(open_page, hold, slice_file):
    page = open_page()
    page.set_input_files("#slice input[type=file]", slice_file("held.png"))
    says(page, "FLAIR slice, not outlined yet")
    progress = page.locator("#view > .wrap:not(.hide)").get_by_text("Half of it")
    segmenting = hold(slice_tab, "segment", "held")
    page.click("#run")
    until(page, segmenting.begun)
    progress.wait_for()
    segmenting.released.set()
    page.get_by_text("tiny-a at threshold").wait_for()

    segmenting = hold(slice_tab, "segment", "held")
    page.locator("#model input").click()
    page.get_by_role("option", name="tiny-b").click()
    until(page, segmenting.begun)
    progress.wait_for()
    segmenting.released.set()
    page.get_by_text("tiny-b at threshold").wait_for()
