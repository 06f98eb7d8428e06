"""Draw the README's picture: slices of the generated phantom, with a model's outline and the true one.

python -m examples.make_figure [--checkpoint checkpoints/transunet-small] [--output docs/figures/phantom.png]
"""

import sys
from pathlib import Path

import numpy as np

from hub_dataset.phantom import phantom_volume
from modeling.command_line import command_parser
from modeling.commands import load_checkpoint
from modeling.inference import segment_volume
from modeling.visualization import slice_sheet

SEEDS = (1, 4, 7, 9)
NUM_SLICES = 24


def main(argv: list[str] | None = None) -> None:
    parser = command_parser(__doc__, "examples.make_figure")
    parser.add_argument("--checkpoint", default="checkpoints/transunet-small", help="a folder, or USER/NAME")
    parser.add_argument("--output", type=Path, default="docs/figures/phantom.png", help="the picture")
    args = parser.parse_args(argv)
    try:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        draw(args.checkpoint, args.output)
    except (OSError, ValueError) as error:
        sys.exit(f"examples.make_figure: error: {error}")


def draw(checkpoint: str, path: Path) -> None:
    """Write the picture.

    Raises:
        OSError: it cannot be written.
        ValueError: no such checkpoint, or a suffix that matplotlib does not know.
    """
    model, processor = load_checkpoint(checkpoint)
    images, predictions, truths = [], [], []
    for seed in SEEDS:
        volume = phantom_volume(seed, num_slices=NUM_SLICES)
        index = int(np.argmax(volume.mask.sum(axis=(1, 2))))
        images.append(volume.slices[index])
        predictions.append(segment_volume(model, processor, volume.slices).mask[index])
        truths.append(volume.mask[index])
    slice_sheet(images, predictions, truths, columns=len(SEEDS)).savefig(path, dpi=110)


if __name__ == "__main__":
    main()
