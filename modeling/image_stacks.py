"""Multi-page TIFFs and numbered slices -> scans."""

import io
import re
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice, pairwise, starmap

import numpy as np
from PIL import Image

from .image_processing_brain_mri import raw_mode, read_image
from .input_files import InputFile, VolumeFileError
from .scans import LIMITS, MAX_SIDE, MAX_SLICES, Scan, check_intensities, check_size
from .volume_geometry import Geometry

NO_SPACING = "image files do not give it"
LOSSY = "JPEG mixes the sequences of neighbouring pixels, which moves the outline: give PNG or TIFF if there is one."
SEQUENCE_DIGIT = re.compile(r"(?i)t[12](?=[a-z_+\-. ]|$)")  # the number in T1 or T2 is no slice's
NUMBER = re.compile(r"\d+")
NO_NUMBER = -1  # of a file whose name has none


def slice_number(stem: str) -> tuple[str, int | None]:
    """A slice's file name without its number, and the number: the last whole number in it, None where there is none."""
    hidden = SEQUENCE_DIGIT.sub(lambda match: match[0][0] + "#", stem)
    numbers = list(NUMBER.finditer(hidden))
    if not numbers:
        return stem, None
    start, end = numbers[-1].span()
    return stem[:start] + "*" + stem[end:], int(stem[start:end])


def read_stacks(files: Sequence[InputFile], *, mask: bool = False) -> list[Scan]:
    """Slices, sorted by their numbers, and multi-page TIFFs -> one scan per folder and name.

    Args:
        mask: all-zero slices are fine.

    Raises:
        VolumeFileError: a damaged image, slices that differ in size or kind, a slice that is there twice, too many or
            too few pixels, NaN, or one intensity everywhere.
    """
    groups = defaultdict(list)
    for file in files:
        name, number = slice_number(file.stem)
        folder = file.name.rpartition("/")[0]
        groups[folder, name].append((NO_NUMBER if number is None else number, file))
    return [
        read_stack(f"{folder}/{name}" if folder else name, sorted(members, key=lambda item: item[0]), mask)
        for (folder, name), members in groups.items()
    ]


def read_stack(name: str, members: list[tuple[int, InputFile]], mask: bool) -> Scan:
    numbers = [number for number, _ in members]
    if twice := {number for number in numbers if numbers.count(number) > 1}:
        same = [file.name for number, file in members if number == min(twice)]
        what = repr(name) if min(twice) == NO_NUMBER else f"The slice {min(twice)}"
        raise VolumeFileError(f"{what} is there {len(same)} times: {', '.join(same[:3])}. Leave one in.")
    label = members[0][1].name if len(members) == 1 else name
    pages, names = [], []
    for left, (_, file) in zip(range(len(members) - 1, -1, -1), members, strict=True):
        for page in read_pages(file, mask):
            if pages and (page.shape, page.dtype) != (pages[0].shape, pages[0].dtype):
                raise VolumeFileError(
                    f"The slices do not belong together: {names[0]!r} is {describe_pixels(pages[0])}, {file.name!r} "
                    f"{describe_pixels(page)}. Give the slices of one volume, all of one size and kind."
                )
            pages.append(page)
            names.append(file.name)
            check_size(label, (len(pages) + left, *page.shape[:2]))
    voxels = np.stack(pages)
    check_intensities(label, voxels, mask=mask)
    warnings = []
    absent = list(islice((number for gap in starmap(range, pairwise(numbers)) for number in gap[1:]), 6))
    if absent:
        shown = ", ".join(map(str, absent[:5])) + (", …" if len(absent) > 5 else "")
        warnings.append(f"Between the slices {numbers[0]} and {numbers[-1]} of {label!r} some are missing: {shown}.")
    if any(file.kind == "jpeg" for _, file in members) and any(map(mixes_sequences, pages)):
        warnings.append(f"{label!r} is JPEG in colour. {LOSSY}")
    stems = tuple(file.stem for _, file in members) if len(members) == len(pages) else None
    return Scan(label, voxels, Geometry(voxels.shape[:3]), None, NO_SPACING, tuple(warnings), stems)


def mixes_sequences(page: np.ndarray) -> bool:
    """Whether lossy compression would mix sequences: (H, W, 3) whose channels differ."""
    return page.ndim == 3 and not (page == page[..., :1]).all()


def describe_pixels(page: np.ndarray) -> str:
    colour = "colour" if page.ndim == 3 else "grey"
    return f"{page.shape[0]}×{page.shape[1]} pixels, {colour}, {page.dtype}"


def read_pages(file: InputFile, mask: bool = False) -> list[np.ndarray]:
    """The pages of an image file: `(H, W)` or `(H, W, 3)` each, at their own bit depth; opaque alpha is dropped.

    Raises:
        VolumeFileError: a damaged image, too many pages or pixels, transparency, or other than grey or RGB.
    """
    data = io.BytesIO(file.read())
    pages = []
    try:
        with Image.open(data, formats=("PNG", "JPEG", "TIFF")) as image:
            count = count_pages(image, MAX_SLICES + 1)
            if count > MAX_SLICES:
                raise VolumeFileError(f"{file.name!r} has over {MAX_SLICES} pages, which is too large: {LIMITS}")
            for index in range(count):
                image.seek(index)
                check_page(file.name, image, count, mask)
                if raw_mode(image).startswith("RGB;16"):
                    if count > 1:
                        raise VolumeFileError(
                            f"{file.name!r} has pages of 16 bits per colour channel. Save each as a file of its own."
                        )
                    pages.append(read_image(image))
                else:
                    pages.append(read_image(image.copy()))  # a copy has one page
    except VolumeFileError:
        raise
    except Image.DecompressionBombError:
        raise VolumeFileError(f"{file.name!r} has too many pixels; at most {MAX_SIDE}×{MAX_SIDE} are read.") from None
    except (OSError, EOFError, SyntaxError, TypeError, ValueError, KeyError) as error:  # all from Pillow's decoders
        raise VolumeFileError(f"{file.name!r} is damaged or incomplete ({error}). Export it again.") from None
    return pages


def check_page(name: str, image: Image.Image, count: int, mask: bool) -> None:
    """Refuse, before it is decoded, what would be too much or holds no MR intensities, nor a mask where it is one."""
    check_size(name, (count, image.height, image.width))
    modes = ("L", "I", "F", "P", "RGB", "RGBA", "LA", "PA", *(["1"] if mask else []))
    if image.mode not in modes and not image.mode.startswith("I;16"):
        raise VolumeFileError(
            f"{name!r} is of the colour space {image.mode}; accepted are grey and RGB slices of 8 or 16 bits."
        )
    if has_transparency(image, raw_mode(image)):
        raise VolumeFileError(f"{name!r} has a transparency (alpha) channel, which is not read. Save it without.")


def count_pages(image: Image.Image, most: int) -> int:
    """Pages or frames of an opened file, of a TIFF up to `most`: in a crowded one Pillow is at it for hours."""
    if image.format != "TIFF":
        return getattr(image, "n_frames", 1)
    pages = 1
    with suppress(EOFError):
        while pages < most:
            image.seek(pages)
            pages += 1
    image.seek(0)
    return pages


def has_transparency(image: Image.Image, mode: str) -> bool:
    """Whether an opened file has alpha that is not opaque, or that Pillow cuts to 8 bits; `mode` as from `raw_mode`."""
    return "A" in image.getbands() and (";16" in mode or image.getchannel("A").getextrema()[0] < 255)
