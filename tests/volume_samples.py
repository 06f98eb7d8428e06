"""Volumes of the phantom as the files people have: NIfTI in any orientation, numbered slices, TIFF stacks, zips."""

import zipfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

from hub_dataset.phantom import PhantomVolume, phantom_volume

SPACING = (5.0, 0.75, 0.8)  # mm along slice, row and column
AFFINE = np.array([[0.8, 0, 0, -25], [0, 0.75, 0, -24], [0, 0, 5.0, -30], [0, 0, 0, 1]])  # to right, anterior, superior


@cache
def head() -> PhantomVolume:
    """A head of 12 slices, 64 x 48: its height and width differ, so that a transposition shows."""
    slices, mask = phantom_volume(1, num_slices=12, size=64)
    assert mask.any()
    return PhantomVolume(slices[:, :, 8:56], mask[:, :, 8:56])


def as_nifti(axial: np.ndarray, orientation=((0, 1), (1, 1), (2, 1)), affine: np.ndarray = AFFINE) -> nib.Nifti1Image:
    """Axial slices (S, H, W) as a NIfTI image, with its axes permuted and flipped as nibabel's `orientation` says."""
    to_right_anterior_superior = axial[:, ::-1, ::-1].transpose(2, 1, 0)
    array = to_right_anterior_superior.astype(np.uint8 if axial.dtype == bool else axial.dtype)
    return nib.Nifti1Image(array, affine).as_reoriented(np.array(orientation))


def save_nifti(path: Path, axial: np.ndarray, **options) -> Path:
    as_nifti(axial, **options).to_filename(path)
    return path


def save_slices(folder: Path, slices: np.ndarray, pattern: str = "TCGA_CS_4941_19960909_{}.tif") -> list[Path]:
    """One file per slice, numbered from 1, in an order that is not the slices'."""
    paths = [folder / pattern.format(number) for number in range(1, len(slices) + 1)]
    for path, pixels in zip(paths, slices, strict=True):
        Image.fromarray(pixels).save(path)
    return sorted(paths)


def save_pages(path: Path, slices: np.ndarray) -> Path:
    pages = [Image.fromarray(pixels) for pixels in slices]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    return path


def save_zip(path: Path, members: Mapping[str, bytes | Path]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content if isinstance(content, bytes) else content.read_bytes())
    return path
