"""What the page's viewers show and say, for the tests in a real Chromium."""

import base64
import gzip
import io
from pathlib import Path

import numpy as np
from PIL import Image

NEXT_FRAME = "new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)))"


def unpack(view: dict) -> list[np.ndarray]:
    """The bytes of a viewer's file: FLAIR, then the outline if there is one, each of the view's shape."""
    content = gzip.decompress(Path(view["file"]["path"]).read_bytes())
    return list(np.frombuffer(content, dtype=np.uint8).reshape(-1, *view["shape"]))


def drawn(page, viewer: str, canvas: str = "picture") -> np.ndarray:
    """What a viewer's canvas shows: (H, W, 3), black where nothing is drawn."""
    page.evaluate(NEXT_FRAME)
    address = page.locator(f"{viewer} canvas.{canvas}").evaluate("(canvas) => canvas.toDataURL()")
    picture = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))
    return np.asarray(Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture).convert("RGB"))


def enlarged(plane: np.ndarray, size: tuple[int, int], aspect: float = 1.0) -> np.ndarray:
    """A slice's plane (H, W) as a canvas of `size` (height, width) shows it at first: it fits; 0 beside it.

    Args:
        aspect: how many times as high as wide a pixel is.
    """
    fit = min(size[0] / (plane.shape[0] * aspect), size[1] / plane.shape[1])
    rows, columns = (
        np.clip((np.arange(pixels) + 0.5 - pixels / 2) / step + length / 2 + 1, 0, length + 1).astype(int)
        for pixels, step, length in zip(size, (fit * aspect, fit), plane.shape, strict=True)
    )
    return np.pad(plane, 1)[rows[:, None], columns]


def says(page, label) -> None:
    """Wait until a viewer's picture has this text alternative, or begins with it."""
    page.get_by_role("img", name=label).wait_for()


def is_grey(pixels: np.ndarray) -> bool:
    return bool((pixels == pixels[..., :1]).all())


def has_color(pixels: np.ndarray, color: tuple[int, int, int]) -> bool:
    return bool((pixels == color).all(axis=-1).any())
