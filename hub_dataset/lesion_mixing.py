"""Mixing lesions: a part of one training slice, with its lesion, is put into another one.

After CarveMix (Zhang et al. 2021, arXiv 2108.06883; 2023, doi 10.1016/j.neuroimage.2023.120041), slice by slice.
"""

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt

from modeling.image_processing_brain_mri import FLAIR

TISSUE = 2.0  # normalised FLAIR of brain lies within this of its median, 0
ON_TISSUE = 0.8  # share of the part that must come to lie on brain or lesion


def carve(lesion: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The lesion, shrunk by up to half of its depth or, as often, grown by up to the whole of it.

    Args:
        lesion: (H, W) bool, not empty.

    Returns:
        (H, W) bool: where the signed distance to the outline, negative within, is under a random limit (section 2.2 of
        the paper). The innermost voxels always belong to it.
    """
    distance = distance_transform_edt(~lesion) - distance_transform_edt(lesion)
    depth = -distance.min()
    limit = generator.uniform(-depth / 2, 0) if generator.random() < 0.5 else generator.uniform(0, depth)
    return distance <= limit


def mix_lesion(
    sample: dict[str, torch.Tensor], donor: dict[str, torch.Tensor], generator: np.random.Generator
) -> dict[str, torch.Tensor]:
    """`sample` with a part of `donor` in place of its own, intensities and labels alike.

    The part is `carve` of the donor's lesion and stays where it is in the frame. Where too little of it would lie on
    brain, or the donor has no lesion, `sample` is returned as it is. A channel that is FLAIR in one of the two becomes
    FLAIR in both.

    Args:
        sample, donor: items of `TrainingSlices`, of the same height and width. They are not written to.
    """
    lesion = donor["labels"].numpy() > 0
    if not lesion.any():
        return sample
    part = torch.from_numpy(carve(lesion, generator))
    tissue = (sample["pixel_values"][FLAIR].abs() < TISSUE) | (sample["labels"] > 0)
    if tissue[part].float().mean() < ON_TISSUE:
        return sample
    copies = sample["flair_copies"] | donor["flair_copies"]
    own, given = (
        torch.where(copies[:, None, None], pixels[FLAIR], pixels)
        for pixels in (sample["pixel_values"], donor["pixel_values"])
    )
    return sample | {
        "pixel_values": torch.where(part, given, own),
        "labels": torch.where(part, donor["labels"], sample["labels"]),
        "flair_copies": copies,
    }
