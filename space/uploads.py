"""Uploaded files -> the pixels of one slice, or a sentence that says why not."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from gradio.utils import get_upload_folder
from PIL import Image, UnidentifiedImageError

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
MAX_SIDE = 1024  # pixels; the model takes a slice as a whole, so its memory and time grow with the area
MAX_PIXELS = MAX_SIDE**2
MAX_FILE_SIZE = "100mb"  # per file; a volume of MAX_VOXELS at 16 bit, compressed, or a zip of one
MAX_TOTAL_SIZE = 300_000_000  # bytes, of all files of a volume
FORMATS = ("PNG", "JPEG", "TIFF")
ACCEPTED = (
    f"Accepted is one slice as PNG, JPEG or TIFF, 8 or 16 bit, from 32×32 to {MAX_SIDE}×{MAX_SIDE} pixels: RGB in the "
    "order pre-contrast T1, FLAIR, post-contrast T1, or one grey FLAIR image."
)
VOLUMES = "Volumes (NIfTI, DICOM, ZIP, TIFF stacks) go into the Volume tab, or to /segment_volume."
ELSEWHERE = "The path does not lead to an uploaded file. Upload the slice or volume, then run the model on it."
GONE = "The uploaded file is no longer on the server, which deletes uploads within the hour. Upload it again."
SIGNATURES = (  # what a file is that Pillow does not open, with the offset and the bytes that show it
    ("a damaged PNG image", 0, b"\x89PNG"),
    ("a damaged JPEG image", 0, b"\xff\xd8\xff"),
    ("a TIFF image, but damaged or of an unusual kind", 0, b"II*\0"),
    ("a TIFF image, but damaged or of an unusual kind", 0, b"MM\0*"),
    ("a WebP image", 8, b"WEBP"),
    ("a GIF image", 0, b"GIF8"),
    ("a BMP image", 0, b"BM"),
    ("a DICOM file", 128, b"DICM"),
    ("a NIfTI file", 344, b"n+1\0"),
    ("a gzip archive", 0, b"\x1f\x8b"),
    ("a ZIP archive", 0, b"PK\x03\x04"),
    ("a PDF document", 0, b"%PDF"),
)


class InputError(ValueError):
    """What came cannot be used. The text says what came, what is accepted and what to do, and is shown to people."""


def read_slice(path: str | os.PathLike | None) -> np.ndarray:
    """The pixels of an uploaded slice at their own bit depth: (H, W) or (H, W, 3), uint8, uint16, int32 or float32.

    Raises:
        InputError: no file, a file that was not uploaded (nor is an example), or anything but one usable slice.
    """
    from modeling import image_processing_brain_mri as processing

    if not path:
        raise InputError("There is no slice yet. Upload one or pick an example first.")
    path = uploaded(path)
    try:
        pixels = decode(path)
        processing.to_channels(pixels)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(GONE) from None
    except ValueError as error:  # the processor's own words, but what it accepts beside files means nothing here
        raise InputError(str(error).replace(processing.ACCEPTED, ACCEPTED)) from None
    return pixels


def uploaded(path: str | os.PathLike) -> Path:
    """The resolved path of an uploaded file or an example.

    Raises:
        InputError: any other path.
    """
    try:
        path = Path(path).resolve()
        is_folder = path.is_dir()  # fails where a name is too long
    except (TypeError, ValueError, OSError, RuntimeError):
        raise InputError(ELSEWHERE) from None
    if is_folder or not any(path.is_relative_to(folder) for folder in (Path(get_upload_folder()).resolve(), EXAMPLES)):
        raise InputError(ELSEWHERE)
    return path


def read_channels(flair, pre=None, post=None) -> tuple[np.ndarray, list[str]]:
    """One slice from a file per sequence, or from a single file, and what people should know of it.

    Args:
        flair: path of the slice, RGB or grey FLAIR; grey where `pre` or `post` is given, too.
        pre, post: paths of the grey T1 slices before and after contrast, where there are any.

    Returns:
        The pixels, (H, W) or (H, W, 3), and sentences.

    Raises:
        InputError: as `read_slice`, T1 without FLAIR, or files that differ in size or are not grey.
    """
    from modeling.image_stacks import LOSSY, mixes_sequences

    if not (pre or post):
        pixels = read_slice(flair)
        with Image.open(flair) as image:
            lossy = mixes_sequences(pixels) and image.format == "JPEG"
        return pixels, [f"The slice is JPEG in colour. {LOSSY}"] if lossy else []
    if not flair:
        raise InputError("There is no FLAIR slice. The lesion is outlined on FLAIR; T1 slices only add to it.")
    channels = {}
    for name, path in (("pre-contrast T1", pre), ("FLAIR", flair), ("post-contrast T1", post)):
        if path:
            channels[name] = grey(read_slice(path), name)
    sizes = {f"{pixels.shape[1]}×{pixels.shape[0]}" for pixels in channels.values()}
    if len(sizes) > 1:
        raise InputError(
            f"The slices differ in size ({', '.join(sorted(sizes))} pixels). Give the same slice of each sequence, on "
            f"the voxels of FLAIR."
        )
    missing = [name for name in ("pre-contrast T1", "post-contrast T1") if name not in channels]
    stack = [channels.get(name, channels["FLAIR"]) for name in ("pre-contrast T1", "FLAIR", "post-contrast T1")]
    notes = [f"There is no {name}: FLAIR is copied into its place, as in the training data." for name in missing]
    return np.stack(stack, axis=-1), notes


def grey(pixels: np.ndarray, name: str) -> np.ndarray:
    """(H, W) of a grey slice, also where it was saved in colour."""
    if pixels.ndim == 3 and not (pixels == pixels[..., :1]).all():
        raise InputError(
            f"The {name} slice is in colour, but a slice of one sequence is grey. Give a slice that holds all three as "
            f"its channels by itself, without the others."
        )
    return pixels[..., 0] if pixels.ndim == 3 else pixels


def read_uploaded_volume(paths):
    """The `MRVolume` in uploaded files: one path or several.

    Raises:
        InputError: no file, a file that was not uploaded, too many bytes, or files that do not make up a volume.
    """
    from modeling.volume_files import read_volume

    with uploaded_volume(paths) as files:
        return read_volume(files)


def read_uploaded_mask(paths, volume) -> np.ndarray:
    """The mask in uploaded files, (S, H, W) bool, on the voxels of `volume`.

    Raises:
        InputError: as `read_uploaded_volume`, or a mask that does not lie on these voxels.
    """
    from modeling.volume_files import read_mask

    with uploaded_volume(paths) as files:
        return read_mask(files, volume)


@contextmanager
def uploaded_volume(paths) -> Iterator[list[Path]]:
    """The checked paths, and the readers' refusals as `InputError`."""
    from modeling.input_files import VolumeFileError

    paths = [paths] if isinstance(paths, str | os.PathLike) else list(paths or [])
    if not paths:
        raise InputError("There is no file yet. Upload the files of one volume first.")
    files = [uploaded(path) for path in paths]
    try:
        if (total := sum(file.stat().st_size for file in files)) > MAX_TOTAL_SIZE:
            raise InputError(
                f"The files have {total / 1e6:,.0f} MB together; at most {MAX_TOTAL_SIZE / 1e6:.0f} MB are taken. "
                f"Leave out what is not needed, or compress them into a zip archive."
            )
        yield files
    except FileNotFoundError:
        raise InputError(GONE) from None
    except VolumeFileError as error:
        raise InputError(str(error)) from None


def decode(path: Path) -> np.ndarray:
    """The pixels of an image file, as `read_slice` returns them.

    Raises:
        InputError: not an image, a damaged one, or one that `check_header` refuses.
        FileNotFoundError: no such file.
    """
    from modeling.image_processing_brain_mri import raw_mode, read_image

    try:
        with Image.open(path, formats=FORMATS) as image:
            check_header(image, raw_mode(image))
            return read_image(image)
    except (InputError, FileNotFoundError):
        raise
    except UnidentifiedImageError:
        raise InputError(f"The file is {describe(path)}. {ACCEPTED} {VOLUMES}") from None
    except Image.DecompressionBombError:  # Pillow's own limit, far above ours
        raise InputError(f"The image has more than {MAX_PIXELS:,} pixels, which is too large. {ACCEPTED}") from None
    except (OSError, EOFError, SyntaxError, TypeError, ValueError, KeyError) as error:  # all from Pillow's decoders
        raise InputError(
            f"The image is damaged or incomplete ({error}). Export the slice again and upload the new file."
        ) from None


def describe(path: Path) -> str:
    """What a file that Pillow does not know is, as far as its first bytes tell."""
    with path.open("rb") as file:
        header = file.read(512)
    if not header:
        return "empty"
    return next(
        (name for name, offset, magic in SIGNATURES if header[offset : offset + len(magic)] == magic),
        "not an image, whatever its name says",
    )


def check_header(image: Image.Image, raw_mode: str) -> None:
    """Refuse what would be too much, or not MR intensities, once decoded; `raw_mode` is how its samples are read."""
    from modeling.image_stacks import count_pages, has_transparency

    if image.width * image.height > MAX_PIXELS:
        raise InputError(f"The image has {image.width}×{image.height} pixels, which is too large. {ACCEPTED}")
    if count_pages(image, 2) > 1:
        raise InputError(f"The file has several pages. Save the page with the slice by itself. {ACCEPTED} {VOLUMES}")
    if image.mode == "1":
        raise InputError(f"The image is black and white only (1 bit per pixel), so it has no intensities. {ACCEPTED}")
    if has_transparency(image, raw_mode):
        raise InputError(f"The image has a transparency (alpha) channel. Save it without. {ACCEPTED}")
    if image.mode not in ("L", "I", "F", "P", "RGB", "RGBA", "LA", "PA") and not image.mode.startswith("I;16"):
        raise InputError(f"The image has {len(image.getbands())} channels of the colour space {image.mode}. {ACCEPTED}")
