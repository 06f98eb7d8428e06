"""Write the slices that the page offers as examples, from the phantom; no image here comes from a patient.

python -m examples.make_examples
"""

from pathlib import Path

import numpy as np
from PIL import Image

from hub_dataset.phantom import phantom_volume
from modeling.command_line import command_parser

NUM_SLICES = 24


def main(argv: list[str] | None = None) -> None:
    parser = command_parser(__doc__, "examples.make_examples")
    parser.parse_args(argv)
    folder = Path(__file__).parent
    slices, area = head(1)
    save(slices[area.argmax()], folder / "lesion.png")
    slices, area = head(7)
    save(slices[np.flatnonzero(area)[1]], folder / "small_lesion.png")
    slices, area = head(4)
    # The whole 16-bit range, so that browsers show the file, too.
    save(slices[area.argmax(), ..., 1].astype(np.uint16) * 257, folder / "flair_only_16bit.png")
    save(slices[np.flatnonzero(area)[0] - 2], folder / "no_lesion.png")


def head(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(S, H, W, 3) uint8 slices of one head, and the area of the lesion in each, in pixels."""
    volume = phantom_volume(seed, num_slices=NUM_SLICES)
    return volume.slices, volume.mask.sum(axis=(1, 2))


def save(pixels: np.ndarray, path: Path) -> None:
    Image.fromarray(pixels).save(path, optimize=True)
    print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
