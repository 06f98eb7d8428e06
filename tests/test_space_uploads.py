"""space/uploads.py: what is read from an uploaded slice, and what is refused in a sentence."""

import contextlib
import io

import numpy as np
import pytest
from app_files import make_slice, save_png16, save_tiff16
from PIL import Image

from space import uploads
from space.uploads import InputError, read_slice

pytest_plugins = ["app_fixtures"]


def image_bytes(pixels: np.ndarray, mode: str | None = None, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["slice.png", "slice.tif", "SLICE.TIFF"])
def test_lossless_colour_slices_come_back_pixel_for_pixel(upload, name):
    pixels = make_slice()
    np.testing.assert_array_equal(read_slice(upload(name, pixels)), pixels)


def test_jpeg_is_read(upload):
    pixels = make_slice()
    read = read_slice(upload("slice.jpg", pixels))
    assert read.shape == pixels.shape
    assert np.abs(read.astype(int) - pixels).mean() < 8


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_slices_keep_their_bit_depth(upload, suffix, dtype):
    flair = make_slice()[..., 1].astype(dtype) * np.iinfo(dtype).max // 255
    read = read_slice(upload(f"flair.{suffix}", flair))
    np.testing.assert_array_equal(read, flair)


def test_sixteen_bit_colour_keeps_the_low_bytes(upload_folder):
    # 12 significant bits, as scanners give them: their high bytes alone would be 16 shades of grey.
    pixels = make_slice().astype(np.uint16) * 16 + 5
    for path in (
        save_png16(upload_folder / "deep.png", pixels),
        save_tiff16(upload_folder / "little.tif", pixels, "<"),
        save_tiff16(upload_folder / "big.tif", pixels, ">"),
        save_tiff16(upload_folder / "little_deflate.tif", pixels, "<", deflate=True),
        save_tiff16(upload_folder / "big_deflate.tif", pixels, ">", deflate=True),
    ):
        np.testing.assert_array_equal(read_slice(path), pixels, err_msg=path.name)


def test_an_opaque_alpha_channel_and_a_palette_do_no_harm(upload):
    pixels = make_slice()
    np.testing.assert_array_equal(read_slice(upload("rgba.png", image_bytes(pixels, "RGBA"))), pixels)
    shades = pixels // 64 * 64
    read = read_slice(upload("palette.png", image_bytes(shades, "P")))
    assert read.shape == pixels.shape


def nan_slice() -> np.ndarray:
    pixels = make_slice()[..., 1].astype(np.float32)
    pixels[3, 4] = np.nan
    return pixels


def two_pages() -> bytes:
    buffer = io.BytesIO()
    page = Image.fromarray(make_slice())
    page.save(buffer, "TIFF", save_all=True, append_images=[page])
    return buffer.getvalue()


def odd_second_page() -> bytes:
    entry = b"\x03\x01\x03\x00\x01\x00\x00\x00"  # 259, compression: one short
    before, _, after = two_pages().rpartition(entry)
    return before + entry + b"\x98\x87" + after[2:]  # JPEG 2000


def transparent() -> bytes:
    image = Image.fromarray(make_slice()).convert("RGBA")
    image.putalpha(100)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


UNUSABLE = {
    "text": ("renamed.png", b"Patient report\n" * 40, "not an image"),
    "empty": ("empty.png", b"", "is empty"),
    "dicom": ("slice.png", b"\0" * 128 + b"DICM" + b"\0" * 200, "DICOM"),
    "nifti": ("brain.nii.tif", b"\0" * 344 + b"n+1\0" + b"\0" * 100, "NIfTI.*Volume tab"),
    "gzip": ("brain.nii.gz", b"\x1f\x8b\x08" + b"\0" * 100, "gzip"),
    "gif": ("slice.gif", image_bytes(make_slice(), kind="GIF"), "a GIF image"),
    "bmp": ("slice.png", image_bytes(make_slice(), kind="BMP"), "a BMP image"),
    "png header": ("header.png", image_bytes(make_slice())[:20], "damaged PNG|damaged or incomplete"),
    "tiff without a size": ("size.tif", b"II*\0\x08\0\0\0\0\0" + b"\0" * 16, "damaged"),
    "truncated png": ("half.png", image_bytes(make_slice())[:4000], "damaged or incomplete"),
    "small": ("small.png", make_slice(31, 64), "31x64 pixels, too small"),
    "constant": ("constant.png", np.full((64, 64), 80, np.uint8), "constant"),
    "nan": ("nan.tif", nan_slice(), "NaN"),
    "pages": ("pages.tif", two_pages(), "several pages.*Volume tab"),
    "odd second page": ("pages.tif", odd_second_page(), "damaged or incomplete"),
    "transparent": ("alpha.png", transparent(), "transparency"),
    "cmyk": ("cmyk.jpg", image_bytes(make_slice(), "CMYK", "JPEG"), "4 channels of the colour space CMYK"),
    "black and white": ("bilevel.png", image_bytes(make_slice()[..., 1], "1"), "black and white"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_unusable_files_are_refused_in_a_sentence(upload, case):
    name, content, what_came = UNUSABLE[case]
    path = upload(name, content)
    with pytest.raises(InputError, match=what_came) as refusal:
        read_slice(path)
    assert str(path.parent) not in str(refusal.value), "the server's folders are nobody's business"
    assert "array (H, W" not in str(refusal.value), "people upload files, not arrays"


def test_too_large_an_image_is_refused_before_it_is_decoded(upload, monkeypatch):
    just_above = upload("large.png", np.zeros((uploads.MAX_SIDE, uploads.MAX_SIDE + 1), np.uint8))
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(InputError, match="1025×1024 pixels, which is too large"):
        read_slice(just_above)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_000, 14_000])  # below and above the limit that Pillow has by itself
def test_a_hundred_megapixel_image_is_refused(upload_folder, side):
    path = upload_folder / "huge.png"
    Image.new("L", (side, side)).save(path)
    with pytest.raises(InputError, match="too large"):
        read_slice(path)


def test_only_uploads_are_read(upload_folder, tmp_path):
    outside = tmp_path / "slice.png"
    Image.fromarray(make_slice()).save(outside)
    link = upload_folder / "link.png"
    link.symlink_to(outside)
    elsewhere = upload_folder / ".." / outside.relative_to(upload_folder.parent)
    for path in (outside, elsewhere, link, "/etc/hostname", upload_folder / (300 * "x")):
        with pytest.raises(InputError, match="does not lead to an uploaded file"):
            read_slice(path)
    link.unlink()


def test_an_upload_that_was_deleted_is_said_to_be_gone(upload):
    path = upload("slice.png", make_slice())
    path.unlink()
    with pytest.raises(InputError, match="no longer on the server"):
        read_slice(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_no_damaged_file_gets_past_the_reader(upload, suffix):
    intact = upload(f"slice.{suffix}", make_slice(40, 36)).read_bytes()
    generator = np.random.default_rng(0)
    path = upload(f"damaged.{suffix}", intact)
    for _ in range(150):
        damaged = bytearray(intact)
        for position in generator.integers(0, len(damaged), 6):
            damaged[position] = generator.integers(256)
        path.write_bytes(bytes(damaged[: generator.integers(1, len(damaged) + 1)]))
        with contextlib.suppress(InputError):  # now and then the damage is in pixels only, and the slice is read
            read_slice(path)
