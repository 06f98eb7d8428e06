"""MR volumes from the files people have: NIfTI, DICOM series, multi-page TIFFs, numbered slices, and zips of these.

    volume = read_volume(["flair.nii.gz", "t1_post.nii.gz"])           # or a folder, or a zip archive
    result = segment_volume(model, processor, volume.slices, spacing=volume.spacing)
    write_nifti(Path("mask.nii.gz"), result.mask, volume.geometry)     # from nifti_files, in the input's own space

Voxels are only permuted and flipped, never resampled. Several sequences are told apart by their names.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from .dicom_files import examined_apart, read_scan, read_series
from .image_stacks import read_stacks
from .input_files import IMAGE_KINDS, InputFile, VolumeFileError, open_inputs
from .nifti_files import has_orientation, read_nifti
from .scans import Scan
from .volume_geometry import Geometry

SEQUENCES = {"pre": "pre-contrast T1", "flair": "FLAIR", "post": "post-contrast T1"}  # in the order of the channels
NAMING = (
    "Name the files after their sequences, such as t1_pre.nii.gz, flair.nii.gz and t1_post.nii.gz, or give FLAIR alone."
)
MASK_NAME = re.compile(r"(?i)(^|[_\-. ])(mask|masks|seg|segmentation|label|labels|roi)\d*($|[_\-. ])")
T1 = r"(t1|mprage|spgr)"
LOCALIZER = r"(?<![a-z])(loc|scout|survey|perf|angio|tof)"
DIFFUSION = r"(?<![a-z])(dwi|adc|dti|bold|swi|pdw?(?![a-z0-9]))"
# Short words of contrast may have a number after the sequence's name, as in T1_GD2 and T1CE3D; before it, C01 and GD12
# are patients.
CONTRAST = r"(contr(?!ol)|gad|enhanc|(gd|ce|km|c)(?![a-z0-9]))"
NUMBERED = r"(?<![a-z])(gd|ce|km|c)\d*(mm|d)?(?![a-z])"
NEGATED = r"(?<![a-z&+])(without|w[/_\-. ]?o|ohne|sans|non?|un)[_\-. ]*(iv[_\-. ]*)?"
# After "pre" and "post": they are of contrast, and not of surgery, treatment or processing.
OF_CONTRAST = r"(?![_\-. ]?(op|surg|treat|therap|rad|rt(?![a-z])|proc))"
# Asked in this order: FLAIR after contrast is FLAIR, unless it is a T1 by fluid-attenuated inversion recovery, and a T1
# is pre-contrast where nothing speaks of contrast.
SEQUENCE_NAMES = (
    ("flair", re.compile(r"(?<!t1)(?<!t1[_\-. ])flair|^(?!.*t1).*(dark.?fluid|tirm)|t2f(?![a-z])")),
    ("other", re.compile(rf"^(?!.*{T1}).*(t2|{LOCALIZER}|{DIFFUSION})")),  # a T2 after contrast is no T1
    (
        "pre",
        re.compile(
            rf"(?<![a-z])pre{OF_CONTRAST}|nativ|{NEGATED}{CONTRAST}|t1n(?![a-z])|{T1}.*(?<![a-z])c-(?![a-z0-9])"
        ),
    ),
    (
        "post",
        re.compile(
            rf"gad|contr(?!ol)|enhanc|(?<![a-z])(gd|ce|km)(?![a-z0-9])|post{OF_CONTRAST}"
            rf"|\+ ?c(?![a-z])|(?<![a-z])c ?\+|{T1}.*{NUMBERED}"
        ),
    ),
    ("other", re.compile(rf"t2|{LOCALIZER}|{DIFFUSION}(?![a-z0-9])")),
    ("pre", re.compile(T1)),
)


@dataclass(frozen=True)
class MRVolume:
    """A volume ready for `inference.segment_volume`.

    Attributes:
        slices: `(S, H, W, 3)` in the order pre-contrast T1, FLAIR, post-contrast T1, or `(S, H, W)` FLAIR alone; axial,
            from the feet to the head where the input says so. Any real dtype; finite.
        geometry: where the voxels lie in the input, and the way back there.
        spacing: distance between neighbours along (S, H, W) in mm, or None.
        no_spacing: why `spacing` is None, as the end of a sentence.
        description: one line for people.
        warnings: sentences on what was found odd, and what was left out.
        slice_names: names of the slices' files without suffix, where each slice has one.
        headers: DICOM data sets of the FLAIR series without pixels, in the order of `geometry`'s own slices.
    """

    slices: np.ndarray
    geometry: Geometry
    spacing: tuple[float, float, float] | None
    no_spacing: str
    description: str
    warnings: tuple[str, ...] = ()
    slice_names: tuple[str, ...] | None = None
    headers: tuple = ()

    @property
    def flair(self) -> np.ndarray:
        """`(S, H, W)`, the intensities as they came."""
        return self.slices[..., 1] if self.slices.ndim == 4 else self.slices


def read_volume(paths: str | Path | Iterable[str | Path]) -> MRVolume:
    """Read one patient's volume from its files, or all files in a folder and its subfolders.

    Raises:
        VolumeFileError: files that do not make up one volume; the text says what came and what to do.
        FileNotFoundError: no such file or folder.
    """
    with open_inputs(paths) as (files, left_out):
        masks = [file for file in files if is_mask(file)]
        if len(masks) == len(files):
            raise VolumeFileError(f"By their names all files are masks ({files[0].name!r}, …); add the images.")
        scans, warnings = read_scans([file for file in files if file not in masks])
    if masks:
        warnings.append(f"{len(masks)} mask file(s) were left out, such as {masks[0].name!r}.")
    if left_out:
        warnings.append(f"{len(left_out)} file(s) that are no images were left out, such as {left_out[0]!r}.")
    return combine(scans, warnings)


def read_mask(paths: str | Path | Iterable[str | Path], volume: MRVolume) -> np.ndarray:
    """Read a mask that was drawn on `volume`: `(S, H, W)` bool, all values above 0 being lesion.

    Raises:
        VolumeFileError: no mask, several, or one of other voxels than the volume's.
        FileNotFoundError: no such file or folder.
    """
    with open_inputs(paths) as (files, _):
        named = [file for file in files if is_mask(file)]
        scans, _ = read_scans(named or files, mask=True)
    if len(scans) > 1:
        names = ", ".join(repr(scan.name) for scan in scans[:5])
        raise VolumeFileError(f"{len(scans)} masks came ({names}); give one, as one file or as numbered slices.")
    (scan,) = scans
    voxels = scan.voxels.max(axis=-1) if scan.voxels.ndim == 4 else scan.voxels
    header = scan.geometry.nifti_header
    if volume.geometry.affine is None and header is not None and not has_orientation(header):
        voxels = scan.geometry.from_axial(voxels).transpose(2, 1, 0)  # as `write_nifti` lays out such a volume's
    values = np.unique(voxels)
    if len(values) > 16:
        raise VolumeFileError(
            f"{scan.name!r} has {len(values):,} different values, so it is an image rather than a mask. A mask has 0 "
            f"outside the lesion and one value, or a few labels, inside."
        )
    if not scan.geometry.same_space(volume.geometry):
        expected, came = ("×".join(map(str, shape)) for shape in (volume.slices.shape[:3], voxels.shape))
        sizes = f"{came} voxels instead of {expected} (slices×rows×columns)"
        why = sizes if came != expected else "another position or orientation"
        raise VolumeFileError(
            f"The mask {scan.name!r} does not lie on the volume's voxels: it has {why}. "
            f"Export it in the space of the FLAIR image."
        )
    return voxels > 0


def is_mask(file: InputFile) -> bool:
    return bool(MASK_NAME.search(file.stem))


def read_scans(files: Sequence[InputFile], *, mask: bool = False) -> tuple[list[Scan], list[str]]:
    """The sequences in files of one kind, and sentences on what was left out."""
    kinds = {"image" if file.kind in IMAGE_KINDS else file.kind for file in files}
    if len(kinds) > 1:
        raise VolumeFileError(
            f"Files of different kinds came together ({', '.join(sorted(kinds))}). Give one volume: NIfTI files, one "
            f"DICOM study, or image slices."
        )
    if kinds == {"nifti"}:
        if len(files) > 12:
            raise VolumeFileError(f"{len(files)} NIfTI files came; give one patient's, one per sequence. {NAMING}")
        return [read_nifti(file, mask=mask) for file in files], []
    if kinds == {"dicom"}:
        if mask:
            raise VolumeFileError("A mask is not read from DICOM. Give it as NIfTI, TIFF or numbered slices.")
        return read_study(files)
    return read_stacks(files, mask=mask), []


def read_study(files: Sequence[InputFile]) -> tuple[list[Scan], list[str]]:
    """The series of a DICOM study that may serve, and sentences on those that cannot be read though they might.

    A study holds much besides, such as localisers, which need not make up volumes; only FLAIR must.
    """
    series = read_series(files)
    if len(series) == 1:
        return [read_scan(*item) for item in series.items()], []
    named = [(sequence_of(name), name) for name in series]
    check_one_flair(named)
    scans, warnings = [], []
    others = [name for sequence, name in named if sequence not in SEQUENCES]
    if others:
        warnings.append(left_out_by_name(others))
    (flair,) = (name for sequence, name in named if sequence == "flair")
    for sequence, name in named:
        if name in others:
            continue
        if why := examined_apart(series[name][0], series[flair][0]):
            warnings.append(f"{name!r} is left out: {why} than {flair!r}. Register it to FLAIR to have it used.")
            continue
        try:
            scans.append(read_scan(name, series[name]))
        except VolumeFileError as error:
            if sequence == "flair":
                raise
            warnings.append(f"{name!r} is left out: {error}")
    return scans, warnings


def sequence_of(name: str) -> str | None:
    """The sequence that a file's name, or else its folder's, speaks of: "pre", "flair", "post", "other" or None."""
    path = PurePosixPath(name.lower())
    for part in (path.name, path.parent.name):
        for sequence, pattern in SEQUENCE_NAMES:
            if pattern.search(part):
                return sequence
    return None


def combine(scans: Sequence[Scan], warnings: Sequence[str] = ()) -> MRVolume:
    """One volume from a patient's scans: FLAIR, and the others where they lie on its voxels.

    Raises:
        VolumeFileError: several scans, of which not exactly one is FLAIR by its name or two are of one kind.
    """
    warnings = list(warnings)
    grey = list(map(in_grey, scans))
    if len(scans) == 1 and grey[0] is not scans[0]:
        warnings.append(f"The three channels of {scans[0].name!r} are the same: it is read as FLAIR alone.")
    roles = assign(grey, warnings)
    flair = roles["flair"]
    warnings += flair.warnings
    slices = flair.voxels
    used = ["flair"]
    if len(roles) > 1:
        channels = {"flair": slices}
        for role in ("pre", "post"):
            if (scan := roles.get(role)) is None:
                continue
            if scan.voxels.ndim == 4:
                warnings.append(f"{scan.name!r} is in colour, so it is left out. Give it in grey to have it used.")
            elif not scan.geometry.same_space(flair.geometry):
                warnings.append(
                    f"{scan.name!r} does not lie on the voxels of {flair.name!r}, so it is left out. Resample it to "
                    f"FLAIR to have it used."
                )
            else:
                channels[role] = scan.voxels
        used = [role for role in SEQUENCES if role in channels]
        if len(used) > 1:
            slices = np.stack([channels.get(role, channels["flair"]) for role in SEQUENCES], axis=-1)
    if slices.ndim == 4 and len(used) == 1:
        used = list(SEQUENCES)
    missing = [name for role, name in SEQUENCES.items() if role not in used]
    if len(missing) == 1:
        warnings.append(f"There is no {missing[0]}: FLAIR is copied into its place, as in the training data.")
    return MRVolume(
        slices=slices,
        geometry=flair.geometry,
        spacing=flair.spacing,
        no_spacing=flair.no_spacing,
        description=describe(slices, flair.spacing, used),
        warnings=tuple(warnings),
        slice_names=flair.slice_names,
        headers=flair.headers,
    )


def in_grey(scan: Scan) -> Scan:
    """A scan of grey slices that were saved in colour with one channel; any other as it is."""
    grey = scan.voxels.ndim == 4 and (scan.voxels == scan.voxels[..., :1]).all()
    return replace(scan, voxels=scan.voxels[..., 0]) if grey else scan


def assign(scans: Sequence[Scan], warnings: list[str]) -> dict[str, Scan]:
    """Which scan is which sequence; appends to `warnings` what was left out or looks wrong."""
    named = [(sequence_of(scan.name), scan) for scan in scans]
    if len(scans) == 1:
        sequence = named[0][0]
        if sequence not in (None, "flair") and scans[0].voxels.ndim == 3:
            warnings.append(
                f"{scans[0].name!r} does not sound like FLAIR, but is read as FLAIR, being the only sequence."
            )
        return {"flair": scans[0]}
    check_one_flair([(sequence, scan.name) for sequence, scan in named])
    roles = {}
    for sequence, scan in named:
        if sequence in SEQUENCES:
            roles.setdefault(sequence, []).append(scan)
    for sequence, found in roles.items():
        if len(found) > 1:
            names = ", ".join(repr(scan.name) for scan in found[:4])
            raise VolumeFileError(f"{len(found)} sequences are {SEQUENCES[sequence]} by name ({names}). {NAMING}")
    others = [scan.name for sequence, scan in named if sequence not in SEQUENCES]
    if others:
        warnings.append(left_out_by_name(others))
    if roles["flair"][0].voxels.ndim == 4:
        raise VolumeFileError(
            f"{roles['flair'][0].name!r} has three channels already. Give it alone, or grey sequences."
        )
    return {sequence: found[0] for sequence, found in roles.items()}


def check_one_flair(named: Sequence[tuple[str | None, str]]) -> None:
    """Refuse scans of which not exactly one is FLAIR: of each its sequence, as `sequence_of` finds it, and its name."""
    count = [sequence for sequence, _ in named].count("flair")
    if count != 1:
        listed = ", ".join(repr(name) for _, name in named[:6]) + (", …" if len(named) > 6 else "")
        raise VolumeFileError(
            f"{len(named)} sequences came ({listed}), and {count or 'none'} of them {'are' if count else 'is'} "
            f"FLAIR by name; exactly one must be. {NAMING}"
        )


def left_out_by_name(names: Sequence[str]) -> str:
    return f"Left out, being neither FLAIR nor T1 by name: {', '.join(map(repr, names[:6]))}."


def describe(slices: np.ndarray, spacing: tuple[float, ...] | None, used: Sequence[str]) -> str:
    count, height, width = slices.shape[:3]
    size = f"{count} axial slice{'s' if count > 1 else ''} of {height}×{width} pixels"
    lengths = f", {spacing[0]:.1f}×{spacing[1]:.2f}×{spacing[2]:.2f} mm" if spacing else ", spacing unknown"
    return (
        f"{size}{lengths}, {'FLAIR only' if list(used) == ['flair'] else ' + '.join(SEQUENCES[role] for role in used)}"
    )
