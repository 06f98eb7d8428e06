"""What the tests of the page in a real Chromium share.

Loaded as a pytest plugin by the modules that need it, after `app_fixtures`.
"""

from pathlib import Path

import pytest
from app_files import make_slice
from PIL import Image

CHROMIUM = Path("/usr/bin/chromium")
SLOW = 60_000  # ms to wait at most, on machines that do other work, too
# A viewer's picture comes well after the words about it, so that a test which does not wait for it fails every time.
LATE_PICTURES = """
const { fetch } = window;
window.fetch = async (address, ...options) => {
  if (String(address).endsWith("/view.gz")) await new Promise((resolve) => setTimeout(resolve, 500));
  return fetch(address, ...options);
};
"""


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"there is no {CHROMIUM}")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser, server):
    """Open the page; at the end nothing may have been asked of another machine, and no script may have failed."""
    address, _ = server
    contexts, elsewhere, failures = [], [], []

    def answer(route):
        if route.request.url.startswith((address, "data:", "blob:")):
            route.continue_()
        else:
            elsewhere.append(route.request.url)
            route.abort()

    def visit(theme="light", width=1280, height=900, **options):
        context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True, **options)
        context.set_default_timeout(SLOW)
        context.route("**/*", answer)
        context.add_init_script(LATE_PICTURES)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.goto(f"{address}/?__theme={theme}")
        page.locator("#run").wait_for()
        page.locator("#measurements[role=status]").wait_for(state="attached")  # the page's own script has begun
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not elsewhere
    assert not failures


@pytest.fixture
def slice_file(tmp_path):
    def save(name="slice.png", pixels=None):
        path = tmp_path / name
        Image.fromarray(make_slice() if pixels is None else pixels).save(path)
        return path

    return save
