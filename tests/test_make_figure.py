"""The README's picture, beside the one that today's code and weights draw."""

import numpy as np
from conftest import ROOT
from PIL import Image
from scipy import ndimage

from examples.make_figure import main


def test_the_readme_shows_the_outlines_of_today(tmp_path):
    main(["--checkpoint", str(ROOT / "checkpoints" / "transunet-small"), "--output", str(tmp_path / "drawn.png")])
    shown, drawn = (
        np.asarray(Image.open(path).convert("RGB")).astype(int)
        for path in (ROOT / "docs" / "figures" / "phantom.png", tmp_path / "drawn.png")
    )
    assert shown.shape == drawn.shape
    shown, drawn = (picture[..., 0] - picture[..., 2] > 80 for picture in (shown, drawn))  # the prediction is orange
    assert shown.sum() > 1000
    for one, other in ((shown, drawn), (drawn, shown)):
        # Versions of matplotlib place and smooth lines differently, by a pixel or two.
        beside = one & ~ndimage.binary_dilation(other, iterations=2)
        assert beside.sum() < 0.02 * one.sum()
