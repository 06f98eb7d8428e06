"""modeling/input_files.py: hostile archives and damaged or huge files are refused before they do harm."""

import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from app_files import save_png16, save_tiff16
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile
from pydicom import dcmread
from volume_samples import head, save_dicom, save_nifti, save_pages, save_slices, save_zip

from modeling import input_files, scans
from modeling.input_files import VolumeFileError
from modeling.volume_files import read_volume

FLAIR = 1


@pytest.mark.parametrize(
    "name", ["../../etc/cron.d/x.png", "/etc/x.png", "a/../../x.png", "..\\..\\x.png", "C:\\x.png", "\\x.png", "."]
)
def test_an_archive_that_names_files_outside_itself_is_refused(tmp_path, name):
    with pytest.raises(VolumeFileError, match="names a file outside itself"):
        read_volume([save_zip(tmp_path / "slices.zip", {name: b"\x89PNG"})])
    assert list(tmp_path.iterdir()) == [tmp_path / "slices.zip"]


def test_an_archive_with_a_member_without_a_name_is_refused(tmp_path):
    path = save_zip(tmp_path / "slices.zip", {"x.png": b"\x89PNG"})
    path.write_bytes(path.read_bytes().replace(b"x.png", b"\0.png"))  # the name ends at the zero
    with pytest.raises(VolumeFileError, match="names a file outside itself"):
        read_volume([path])


def test_an_archive_of_a_later_format_is_refused(tmp_path):
    path = save_zip(tmp_path / "slices.zip", {"x.png": b"\x89PNG"})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 6] = 99  # the version that is needed to read the member
    path.write_bytes(data)
    with pytest.raises(VolumeFileError, match=r"is damaged \(zip file version 9\.9\)"):
        read_volume([path])


@pytest.mark.parametrize("name", ["9" * 5000, "t1" * 30_000, f"case/{'t1' * 30_000}/slice"])
def test_an_archive_with_an_endless_name_is_refused(tmp_path, name):
    with pytest.raises(VolumeFileError, match=r"holds a name of [\d,]+ characters"):
        read_volume([save_zip(tmp_path / "slices.zip", {f"{name}.png": b"\x89PNG"})])


def test_an_endless_description_of_a_series_is_cut(tmp_path):
    for name in ("FLAIR", "T2"):
        (tmp_path / name).mkdir()
        files = save_dicom(tmp_path / name, head().slices[..., FLAIR], description=name)
    for file in files:
        header = dcmread(file)
        del header.SeriesDescription
        header.add_new("SeriesDescription", "UT", "T2 " + "t1" * 5000)
        header.save_as(file)
    (warning,) = read_volume(tmp_path).warnings
    assert warning.startswith("Left out, being neither FLAIR nor T1 by name: 'T2 t1t1")
    assert len(warning) < 400


def test_an_archive_that_unpacks_to_too_much_is_refused_unread(tmp_path, monkeypatch):
    path = tmp_path / "bomb.zip"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.png", "w", force_zip64=True) as out,
    ):
        for _ in range(61):
            out.write(b"\0" * 10_000_000)
    many = save_zip(tmp_path / "many.zip", {f"{number}.png": b"" for number in range(input_files.MAX_FILES + 1)})
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_, **__: pytest.fail("a member was read"))
    with pytest.raises(VolumeFileError, match="unpacks to 1 files of 610 MB"):
        read_volume([path])
    with pytest.raises(VolumeFileError, match="2,001 files"):
        read_volume([many])


def test_a_member_never_unpacks_to_more_than_it_declares(tmp_path):
    path = save_zip(tmp_path / "liar.zip", {"slice_1.png": b"\x89PNG" + b"\0" * 5_000_000})
    data = path.read_bytes()
    for signature, at in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        where = data.index(signature) + at
        data = data[:where] + struct.pack("<I", 1000) + data[where + 4 :]
    path.write_bytes(data)
    with pytest.raises(VolumeFileError, match="is damaged"):
        read_volume([path])


@pytest.mark.parametrize("size", [90_000_000, int.from_bytes(b"PK\x05\x06", "little")])  # the latter as if an end
def test_a_list_of_a_million_members_is_not_even_read(tmp_path, monkeypatch, size):
    path = save_zip(tmp_path / "list.zip", {"a.png": b""})
    data = path.read_bytes()
    where = data.index(b"PK\x05\x06") + 12
    path.write_bytes(data[:where] + struct.pack("<I", size) + data[where + 4 :])
    monkeypatch.setattr(zipfile, "ZipFile", lambda *_: pytest.fail("the list was read"))
    with pytest.raises(VolumeFileError, match="lists more than"):
        read_volume([path])


def test_a_list_whose_size_has_64_bits_is_not_even_read(tmp_path, monkeypatch):
    path = save_zip(tmp_path / "list.zip", {"a.png": b""})
    data = path.read_bytes()
    end = data.index(b"PK\x05\x06")
    record = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, 90_000_000, 0)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, end, 1)
    path.write_bytes(data[:end] + record + locator + data[end:])
    monkeypatch.setattr(zipfile, "ZipFile", lambda *_: pytest.fail("the list was read"))
    with pytest.raises(VolumeFileError, match="lists more than"):
        read_volume([path])


def test_archives_as_other_programs_make_them_are_read(tmp_path):
    slices, path = head().slices, tmp_path / "case.zip"
    (tmp_path / "slices").mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("case/", b"")
        for channel, name in enumerate(("t1", "flair", "t1c")):
            for file in save_slices(tmp_path / "slices", slices[..., channel], "{}.png"):
                archive.write(file, f"case\\{name}\\{file.name}")
        archive.comment = b"made on Windows" * 1000
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.slices, slices)
    assert volume.slice_names == tuple(map(str, range(1, 13)))
    assert volume.warnings == ()


def test_tiffs_of_any_byte_order_and_size_are_read(tmp_path):
    pixels = head().slices[5]
    Image.fromarray(pixels).save(tmp_path / "big.tif", big_tiff=True)
    np.testing.assert_array_equal(read_volume(tmp_path / "big.tif").slices, pixels[None])
    for order in "<>":
        volume = read_volume(save_tiff16(tmp_path / "slice.tif", pixels.astype(np.uint16) * 257, order))
        np.testing.assert_array_equal(volume.slices, pixels[None].astype(np.uint16) * 257)


def test_opaque_alpha_is_dropped_but_refused_at_sixteen_bits(tmp_path):
    pixels = np.dstack([head().slices[5], np.full((64, 48), 255, np.uint8)])
    Image.fromarray(pixels).save(tmp_path / "opaque.png")
    np.testing.assert_array_equal(read_volume(tmp_path / "opaque.png").slices, pixels[None, ..., :3])
    with pytest.raises(VolumeFileError, match=r"'deep\.png' has a transparency \(alpha\) channel"):
        read_volume(save_png16(tmp_path / "deep.png", pixels.astype(np.uint16) * 257))


def test_pages_of_sixteen_bits_a_colour_are_refused(tmp_path):
    path = save_tiff16(tmp_path / "stack.tif", head().slices[5].astype(np.uint16) * 257)
    data = path.read_bytes()
    directory = data[struct.unpack("<I", data[4:8])[0] :]
    path.write_bytes(data[:-4] + struct.pack("<I", len(data)) + directory)  # a second page, of the same pixels
    with pytest.raises(VolumeFileError, match=r"'stack\.tif' has pages of 16 bits per colour channel"):
        read_volume(path)


def test_too_many_files_or_bytes_are_refused_unread(tmp_path, monkeypatch):
    save_slices(tmp_path, head().slices)
    (tmp_path / "notes.bin").write_bytes(b"1" * 1_000_000)  # not read, so it does not count
    size = sum(path.stat().st_size for path in tmp_path.glob("*.tif"))
    monkeypatch.setattr(input_files, "MAX_FILES", 12)
    monkeypatch.setattr(input_files, "MAX_BYTES", size)
    assert read_volume(tmp_path).slices.shape[0] == 12
    monkeypatch.setattr("modeling.volume_files.read_stacks", lambda *_, **__: pytest.fail("read"))
    monkeypatch.setattr(input_files, "MAX_BYTES", size - 1)
    with pytest.raises(VolumeFileError, match="MB together"):
        read_volume(tmp_path)
    monkeypatch.setattr(input_files, "MAX_BYTES", size)
    monkeypatch.setattr(input_files, "MAX_FILES", 11)
    with pytest.raises(VolumeFileError, match="12 files came; at most 11"):
        read_volume(tmp_path)


def test_archives_count_as_what_they_unpack_to(tmp_path, monkeypatch):
    stack = save_pages(tmp_path / "stack.tif", np.zeros((4, 64, 64), np.uint8)).read_bytes()
    paths = [save_zip(tmp_path / f"{name}.zip", {f"{name}.tif": stack}) for name in ("flair", "t1")]
    monkeypatch.setattr(input_files, "MAX_BYTES", 2 * len(stack) - 1)
    assert sum(path.stat().st_size for path in paths) < len(stack)
    with pytest.raises(VolumeFileError, match="MB together"):
        read_volume(paths)


@pytest.mark.parametrize("name", ["SLICE.PNG", "a.Dcm", "00001.IMA", "flair.nii"])
def test_a_file_in_a_folder_that_is_no_image_whatever_its_name_says_is_named(tmp_path, name):
    save_nifti(tmp_path / "flair.nii.gz", head().slices[..., FLAIR])
    (tmp_path / name).write_bytes(b"MZ not an image")
    with pytest.raises(VolumeFileError, match=f"'{name}' is of no kind"):
        read_volume(tmp_path)


def test_an_encrypted_archive_is_refused(tmp_path):
    path = save_zip(tmp_path / "secret.zip", {"slice_1.png": b"\x89PNG"})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(VolumeFileError, match="encrypted"):
        read_volume([path])


def test_an_archive_with_a_false_image_names_it(tmp_path):
    with pytest.raises(VolumeFileError, match=r"'case/slice_1.png' is of no kind"):
        read_volume([save_zip(tmp_path / "case.zip", {"case/slice_1.png": b"MZ not an image"})])


def test_two_thousand_slices_are_refused_before_all_are_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(scans, "MAX_SLICES", 8)
    decoded = []
    load = Image.Image.load
    monkeypatch.setattr(Image.Image, "load", lambda self: decoded.append(self) or load(self))
    paths = save_slices(tmp_path, head().slices)
    with pytest.raises(VolumeFileError, match=r"_\*' has 12 slices of 64×48 pixels, which is too large"):
        read_volume(paths)


def test_of_a_tiff_no_more_pages_are_looked_at_than_are_read(tmp_path, monkeypatch):
    path = save_pages(tmp_path / "stack.tif", np.resize(head().slices[..., FLAIR], (scans.MAX_SLICES + 50, 32, 32)))
    seen = []
    seek = TiffImageFile._seek
    monkeypatch.setattr(TiffImageFile, "_seek", lambda self, page: seen.append(page) or seek(self, page))
    with pytest.raises(VolumeFileError, match=r"'stack\.tif' has over 400 pages, which is too large"):
        read_volume([path])
    assert max(seen) == scans.MAX_SLICES


def test_a_hundred_megapixel_page_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    Image.new("L", (10_000, 10_000)).save(tmp_path / "huge.png")
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(VolumeFileError, match=r"10,000×10,000 pixels, which is too large"):
        read_volume([tmp_path / "huge.png"])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)  # Pillow's own limit, which such files may also exceed
    with pytest.raises(VolumeFileError, match=r"'huge\.png' has too many pixels"):
        read_volume([tmp_path / "huge.png"])


@pytest.mark.parametrize("kind", ["nifti", "nifti.gz", "dicom", "tiff", "zip"])
def test_no_damaged_file_gets_past_the_readers(tmp_path, kind):
    flair = head().slices[:3, ..., FLAIR]
    if kind.startswith("nifti"):
        path = save_nifti(tmp_path / f"flair.{kind.replace('nifti', 'nii')}", flair)
    elif kind == "dicom":
        (path,) = save_dicom(tmp_path, flair[1:2])
    elif kind == "tiff":
        path = save_pages(tmp_path / "stack.tif", flair)
    else:
        path = save_zip(tmp_path / "slices.zip", {f"s{n}.png": p for n, p in enumerate(save_slices(tmp_path, flair))})
    intact = path.read_bytes()
    random = np.random.default_rng(0)
    outcomes = set()
    for _ in range(150):
        damaged = bytearray(intact)
        for place in random.integers(0, min(len(damaged), 700) if random.random() < 0.7 else len(damaged), 4):
            damaged[place] = random.integers(256)
        path.write_bytes(damaged[: random.integers(1, len(damaged))] if random.random() < 0.3 else damaged)
        try:
            volume = read_volume([Path(path)])
        except VolumeFileError:
            outcomes.add("refused")
        else:
            outcomes.add("read")
            assert np.isfinite(volume.slices.astype(np.float32)).all()
    assert "refused" in outcomes
