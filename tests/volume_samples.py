"""Volumes of the phantom as the files people have: NIfTI and DICOM in any orientation, slices, stacks, zips."""

import itertools
import zipfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from hub_dataset.phantom import PhantomVolume, phantom_volume

SPACING = (5.0, 0.75, 0.8)  # mm along slice, row and column
ORIENTATIONS = [  # as nibabel has them: of each axis, which one it becomes, and 1 or -1
    tuple(zip(axes, flips, strict=True))
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]
AXIAL, CORONAL, SAGITTAL = (  # of DICOM's columns, rows and slices, in the same way
    ((0, -1), (1, -1), (2, 1)),
    ((0, -1), (2, 1), (1, -1)),
    ((2, 1), (1, -1), (0, 1)),
)
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


def save_dicom(
    folder: Path,
    axial: np.ndarray,
    orientation=AXIAL,
    description: str = "AX T2 FLAIR",
    study: str = "1.2.3",
    **attributes,
) -> list[Path]:
    """A series of axial slices (S, H, W), one file for each slice of the array as `as_nifti` lays it out.

    Names and instance numbers run in an order that is not the slices'. `attributes` replace those of every header;
    None leaves one out.
    """
    image = as_nifti(axial, orientation)
    array, affine = np.asarray(image.dataobj).astype(np.uint16), np.diag([-1, -1, 1, 1]) @ image.affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    to_columns, to_rows, _ = (affine[:3, :3] / spacing).T
    series, paths = generate_uid(), []
    for index, number in enumerate(np.random.default_rng(0).permutation(array.shape[2])):
        header = Dataset()
        header.SOPClassUID, header.SOPInstanceUID = MRImageStorage, generate_uid()
        header.StudyInstanceUID, header.SeriesInstanceUID, header.FrameOfReferenceUID = study, series, f"{study}.4"
        header.SpecificCharacterSet = "ISO_IR 100"
        header.PatientName, header.PatientID, header.PatientSex, header.PatientBirthDate = "Müller^Änne", "7", "F", ""
        header.StudyDate, header.StudyTime, header.AccessionNumber, header.StudyID = "20200102", "101500", "", "1"
        header.Modality, header.SeriesDescription, header.SeriesNumber = "MR", description, 3
        header.InstanceNumber = int(number) + 1
        header.ImageOrientationPatient = [float(value) for value in (*to_columns, *to_rows)]
        header.ImagePositionPatient = [float(value) for value in (affine @ [0, 0, index, 1])[:3]]
        header.PixelSpacing = [float(spacing[1]), float(spacing[0])]
        header.SliceThickness = float(spacing[2])
        header.Columns, header.Rows = array.shape[:2]
        header.SamplesPerPixel, header.PhotometricInterpretation, header.PixelRepresentation = 1, "MONOCHROME2", 0
        header.BitsAllocated, header.BitsStored, header.HighBit = 16, 12, 11
        header.PixelData = np.ascontiguousarray(array[:, :, index].T).tobytes()
        for keyword, value in attributes.items():
            if value is None:
                delattr(header, keyword)
            else:
                setattr(header, keyword, value)
        header.file_meta = FileMetaDataset()
        header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        paths.append(folder / f"{description.replace(' ', '_')}_{number:03d}")
        header.save_as(paths[-1], enforce_file_format=True)
    return paths


def read_dicom_seg(path: Path, sources: list[Path]) -> np.ndarray:
    """(S, H, W) bool: what a DICOM SEG holds at the pixels of each slice of a series, from the feet to the head."""
    from highdicom.seg import segread

    headers = sorted(map(dcmread, sources), key=lambda header: header.ImagePositionPatient[2])
    return (
        segread(path)
        .get_pixels_by_source_instance(
            [header.SOPInstanceUID for header in headers], combine_segments=True, assert_missing_frames_are_empty=True
        )
        .astype(bool)
    )


def save_pages(path: Path, slices: np.ndarray) -> Path:
    pages = [Image.fromarray(pixels) for pixels in slices]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    return path


def save_zip(path: Path, members: Mapping[str, bytes | Path]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content if isinstance(content, bytes) else content.read_bytes())
    return path
