"""What the page's viewers show and say, for the tests in a real Chromium."""

import base64
import io

import numpy as np
from PIL import Image

NEXT_FRAME = "new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)))"


def drawn(page, viewer: str) -> np.ndarray:
    """What a viewer's canvas shows: (H, W, 3), black where nothing is drawn."""
    page.evaluate(NEXT_FRAME)
    address = page.locator(f"{viewer} canvas.picture").evaluate("(canvas) => canvas.toDataURL()")
    picture = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))
    return np.asarray(Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture).convert("RGB"))


def says(page, label) -> None:
    """Wait until a viewer's picture has this text alternative, or begins with it."""
    page.get_by_role("img", name=label).wait_for()


def is_grey(pixels: np.ndarray) -> bool:
    return bool((pixels == pixels[..., :1]).all())


def has_color(pixels: np.ndarray, color: tuple[int, int, int]) -> bool:
    return bool((pixels == color).all(axis=-1).any())
