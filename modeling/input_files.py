"""Files, those in folders and members of zip archives alike: names, kinds and bytes. Nothing is unpacked to disk."""

import gzip
import io
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

MAX_FILES = 2000  # chosen together or in one archive: three sequences of 400 slices, with masks
MAX_BYTES = 600_000_000  # of all files together, once unpacked
MAX_DIRECTORY_BYTES = MAX_FILES * 512  # of a zip's list of members, which is read whole before it can be counted
END_BYTES = 22  # of a zip's end without its comment
MAX_NAME = 255  # characters, as on disk; longer ones take long to look through for a sequence
HEADER_BYTES = 540  # a NIfTI-2 header, the longest that tells a kind

ACCEPTED = (
    "Accepted are NIfTI files (.nii, .nii.gz; one, or one per sequence), a DICOM series, a multi-page TIFF, and slices "
    "as TIFF, PNG or JPEG, each also in a zip archive."
)
SIGNATURES = (  # kind, offset, bytes
    ("dicom", 128, b"DICM"),
    ("nifti", 344, b"n+1\0"),
    ("nifti", 4, b"n+2\0"),
    ("nifti pair", 344, b"ni1\0"),
    ("nifti pair", 4, b"ni2\0"),
    ("tiff", 0, b"II*\0"),
    ("tiff", 0, b"MM\0*"),
    ("tiff", 0, b"II+\0"),
    ("tiff", 0, b"MM\0+"),
    ("png", 0, b"\x89PNG"),
    ("jpeg", 0, b"\xff\xd8\xff"),
    ("zip", 0, b"PK\x03\x04"),
    ("zip", 0, b"PK\x05\x06"),
    ("gzip", 0, b"\x1f\x8b"),
    ("nrrd", 0, b"NRRD"),
    ("pdf", 0, b"%PDF"),
    ("rar", 0, b"Rar!"),
    ("7z", 0, b"7z\xbc\xaf"),
)
IMAGE_KINDS = {"tiff", "png", "jpeg"}
SUFFIXES = {".nii", ".gz", ".dcm", ".ima", ".tif", ".tiff", ".png", ".jpg", ".jpeg"}  # of what can be read
LITTER = {"__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini", "DICOMDIR"}


class VolumeFileError(ValueError):
    """Files that cannot be read as one volume. The text says what came, what is accepted and what to do."""


@dataclass(frozen=True)
class InputFile:
    """A file, or one in a folder or an archive: `name`, with its path there, and `kind` by its first bytes, or ""."""

    name: str
    kind: str
    read: Callable[[], bytes]

    @property
    def stem(self) -> str:
        name = PurePosixPath(self.name).name
        return name[:-7] if name.lower().endswith(".nii.gz") else PurePosixPath(name).stem

    @property
    def folder(self) -> str:
        return PurePosixPath(self.name).parent.name


@contextmanager
def open_inputs(paths: str | Path | Iterable[str | Path]) -> Iterator[tuple[list[InputFile], list[str]]]:
    """The readable files among `paths` and inside the folders and zip archives among them, and the names of the others.

    Inside a folder or an archive other files are left out; a file that was chosen by itself must be of a known kind.

    Raises:
        VolumeFileError: no file, too many or too large ones, an archive that is damaged, encrypted, too large or names
            files outside itself, or a file of another kind.
        FileNotFoundError: no such file or folder.
    """
    files, left_out, size = [], [], 0
    with ExitStack() as archives:
        for path, name, chosen in list_files([paths] if isinstance(paths, str | os.PathLike) else paths):
            kind = kind_of(path.open)
            if kind == "zip":
                archive = archives.enter_context(open_archive(path))
                found = list(archive_files(archive, path.name))
                unpacked = sum(member.file_size for member in archive.infolist())
                if not found:
                    raise VolumeFileError(f"The archive {path.name!r} holds no files. {ACCEPTED}")
            else:
                found, unpacked = [InputFile(name, kind, path.read_bytes)], path.stat().st_size
            before = len(files)
            for file in found:
                if is_readable(file, chosen=chosen and kind != "zip"):
                    files.append(file)
                else:
                    left_out.append(file.name)
            if len(files) > before:
                size += unpacked
        if not files:
            what = f" ({', '.join(left_out[:3])})" if left_out else ""
            raise VolumeFileError(f"There is no image among the files{what}. {ACCEPTED}")
        if len(files) > MAX_FILES:
            raise VolumeFileError(f"{len(files):,} files came; at most {MAX_FILES:,} are read at a time.")
        if size > MAX_BYTES:
            raise VolumeFileError(
                f"The files have {size / 1e6:,.0f} MB together; at most {MAX_BYTES / 1e6:.0f} MB are read."
            )
        yield files, left_out


def list_files(paths: Iterable[str | Path]) -> Iterator[tuple[Path, str, bool]]:
    """(path, name, whether it was chosen by itself) of each file, and of those in folders that are no litter.

    Raises:
        VolumeFileError: no path, or a folder without files.
        FileNotFoundError: no such file or folder.
    """
    paths = [Path(path) for path in paths]
    if not paths:
        raise VolumeFileError("There is no file yet. Choose the files of one volume.")
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"There is no file or folder {str(path)!r}.")
        if not path.is_dir():
            yield path, path.name, True
            continue
        found = [(file, file.relative_to(path)) for file in sorted(path.rglob("*")) if file.is_file()]
        above = Path(path.name if len(paths) > 1 else "")  # which may tell sequences apart
        found = [(file, (above / name).as_posix(), False) for file, name in found if not is_litter(name.parts)]
        if not found:
            raise VolumeFileError(f"The folder {path.name!r} holds no files. {ACCEPTED}")
        yield from found


def is_litter(parts: Sequence[str]) -> bool:
    """Whether a path is hidden, or one that a system adds by itself."""
    return any(part in LITTER or part.startswith(".") for part in parts)


def is_readable(file: InputFile, chosen: bool) -> bool:
    """Whether a file is of a kind that is read here; raises where one that should be is not."""
    if file.kind in IMAGE_KINDS | {"nifti", "dicom"}:
        return True
    if file.kind == "nifti pair":
        raise VolumeFileError(
            f"{file.name!r} is the header of a NIfTI pair (.hdr and .img). Convert the pair to one .nii file."
        )
    if chosen or PurePosixPath(file.name).suffix.lower() in SUFFIXES:
        what = {
            "": "of no kind that is known here, whatever its name says",
            "gzip": "gzip, but no NIfTI file",
            "empty": "empty: it has no bytes",
        }
        raise VolumeFileError(f"{file.name!r} is {what.get(file.kind, f'a file of kind {file.kind}')}. {ACCEPTED}")
    return False


def kind_of(opener: Callable[..., io.BufferedIOBase]) -> str:
    """A file's kind by its first bytes, looking into gzip; "empty" without any, "" where they tell nothing."""
    with opener("rb") as file:
        header = file.read(HEADER_BYTES)
        if not header:
            return "empty"
        if header.startswith(b"\x1f\x8b"):
            try:
                header = zlib.decompressobj(wbits=31).decompress(header + file.read(4096), HEADER_BYTES)
            except zlib.error:
                return "gzip"
            kind = kind_of_header(header)
            return kind if kind.startswith("nifti") else "gzip"
    return kind_of_header(header)


def kind_of_header(header: bytes) -> str:
    return next((kind for kind, start, magic in SIGNATURES if header[start : start + len(magic)] == magic), "")


def unzip_bytes(data: bytes, limit: int) -> bytes:
    """At most `limit` bytes of what a gzip file holds.

    Raises:
        OSError, EOFError, zlib.error: a damaged or truncated file.
    """
    with gzip.open(io.BytesIO(data)) as file:
        return file.read(limit)


def open_archive(path: Path) -> zipfile.ZipFile:
    """Open a zip archive whose list of members is of a size worth reading."""
    size = directory_size(path)
    if size is None or size > MAX_DIRECTORY_BYTES:
        raise VolumeFileError(
            f"The archive {path.name!r} is damaged, or lists more than the {MAX_FILES:,} files that are read at a time."
        )
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise VolumeFileError(f"The archive {path.name!r} is damaged ({error}). Make it again.") from None


def directory_size(path: Path) -> int | None:
    """Bytes of a zip's list of members as its end says, None for one without a whole end or with 64-bit sizes."""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - 65_600, 0))  # the longest end, with a comment, and what precedes it
        tail = file.read()
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) < end + END_BYTES or b"PK\x06\x07" in tail[max(end - 20, 0) : end]:
        return None
    return int.from_bytes(tail[end + 12 : end + 16], "little")


def archive_files(archive: zipfile.ZipFile, archive_name: str) -> Iterator[InputFile]:
    """The members of an archive that are no litter of the system that made it."""
    # Not `is_dir`, which some versions of Python cannot ask of a member without a name.
    members = [member for member in archive.infolist() if not member.filename.endswith("/")]
    total = sum(member.file_size for member in members)
    if len(members) > MAX_FILES or total > MAX_BYTES:
        raise VolumeFileError(
            f"The archive {archive_name!r} unpacks to {len(members):,} files of {total / 1e6:,.0f} MB; at most "
            f"{MAX_FILES:,} files and {MAX_BYTES / 1e6:,.0f} MB are read. Leave out what is not needed."
        )
    for member in members:
        name = member.filename.replace("\\", "/")  # as some programs write folders on Windows
        parts = PurePosixPath(name).parts
        if not parts or ".." in parts or parts[0] == "/" or ":" in parts[0]:
            raise VolumeFileError(
                f"The archive {archive_name!r} names a file outside itself ({name[:80]!r}), which is not read. Make "
                f"the archive again, from the folder itself."
            )
        if len(longest := max(parts, key=len)) > MAX_NAME:
            raise VolumeFileError(
                f"The archive {archive_name!r} holds a name of {len(longest):,} characters ({longest[:40]!r}…); at "
                f"most {MAX_NAME} are read. Rename it, and make the archive again."
            )
        if is_litter(parts):
            continue
        if member.flag_bits & 1:
            raise VolumeFileError(f"The archive {archive_name!r} is encrypted. Make it again without a password.")

        def read(member=member) -> bytes:
            # zipfile yields no more than the declared size, whatever the member unpacks to, and checks the sum.
            with readable(archive_name), archive.open(member) as file:
                return file.read()

        with readable(archive_name):
            kind = kind_of(lambda mode, member=member: archive.open(member))
        yield InputFile(name, kind, read)


@contextmanager
def readable(archive_name: str) -> Iterator[None]:
    """Say what is wrong with an archive whose member does not unpack."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError) as error:
        raise VolumeFileError(f"The archive {archive_name!r} is damaged ({error}). Make it again.") from None
