import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from kaggle_files import OTHER_PATIENT, PATIENT, slice_pixels, write_clinical, write_source
from PIL import Image

from hub_dataset.build import build_dataset
from hub_dataset.phantom import write_phantom
from hub_dataset.source import CLINICAL_COLUMNS, check_patient, find_root, read_clinical, read_slice, scan_source
from hub_dataset.splits import ALL_PATIENTS


def save(file: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(file)
    return file


def test_slices_are_sorted_as_numbers(tmp_path):
    (patient,) = scan_source(write_source(tmp_path, indices=(10, 9, 2, 1))).patients
    assert [files.index for files in patient.slices] == [1, 2, 9, 10]
    assert [files.image.name for files in patient.slices] == [f"{PATIENT}_{i}.tif" for i in (1, 2, 9, 10)]
    assert patient.absent_slices == [3, 4, 5, 6, 7, 8]


def test_pixels_are_read_as_they_are(tmp_path):
    (patient,) = scan_source(write_source(tmp_path, indices=(3,))).patients
    for read, written in zip(read_slice(patient.slices[0]), slice_pixels(3), strict=True):
        assert read.dtype == np.uint8
        assert np.array_equal(read, written)


def test_the_source_names_the_patients_it_lacks(tmp_path):
    source = scan_source(write_source(tmp_path, patients=(PATIENT, OTHER_PATIENT)))
    assert [patient.patient_id for patient in source.patients] == [PATIENT, OTHER_PATIENT]
    assert set(source.missing) == set(ALL_PATIENTS) - {PATIENT, OTHER_PATIENT}


@pytest.mark.parametrize("below", [".", "kaggle_3m", "lgg-mri-segmentation/kaggle_3m"])
def test_the_root_is_found_in_an_unpacked_archive(tmp_path, below):
    write_source(tmp_path / below)
    assert find_root(tmp_path).resolve() == (tmp_path / below).resolve()


@pytest.mark.parametrize("given", [".", "kaggle_3m"])
def test_the_doubled_archive_counts_once(tmp_path, given):
    write_source(tmp_path / "kaggle_3m")
    shutil.copytree(tmp_path / "kaggle_3m", tmp_path / "lgg-mri-segmentation" / "kaggle_3m")
    shutil.copytree(tmp_path / "kaggle_3m", tmp_path / "kaggle_3m" / "kaggle_3m")
    (patient,) = scan_source(tmp_path / given).patients
    assert len(patient.slices) == 3


def test_files_of_operating_systems_are_passed_over(tmp_path):
    write_source(tmp_path)
    for name in (".DS_Store", f"{PATIENT}/Thumbs.db", f"{PATIENT}/._{PATIENT}_1.tif"):
        (tmp_path / name).write_bytes(b"\0")
    for name in ("__MACOSX", ".git"):
        (tmp_path / name).mkdir()
    assert len(scan_source(tmp_path).patients[0].slices) == 3


def no_mask(folder):
    (folder / f"{PATIENT}_2_mask.tif").unlink()
    return rf"{PATIENT}_2\.tif has no mask"


def no_image(folder):
    (folder / f"{PATIENT}_2.tif").unlink()
    return rf"{PATIENT}_2_mask\.tif is a mask without its image"


def image_too_small(folder):
    save(folder / f"{PATIENT}_2.tif", slice_pixels(2, size=128)[0])
    return rf"{PATIENT}_2\.tif is 128 x 128 pixels; expected 256 x 256"


def mask_of_another_size(folder):
    save(folder / f"{PATIENT}_2_mask.tif", slice_pixels(2)[1][:200])
    return rf"{PATIENT}_2_mask\.tif is 256 x 200 pixels; expected 256 x 256"


def image_of_another_width(folder):
    save(folder / f"{PATIENT}_2.tif", slice_pixels(2)[0][:, :200])
    return rf"{PATIENT}_2\.tif is 200 x 256 pixels; expected 256 x 256"


def mask_of_ones(folder):
    save(folder / f"{PATIENT}_1_mask.tif", slice_pixels(1)[1] // 255)
    return rf"{PATIENT}_1_mask\.tif holds the values 1; a mask holds only 0 and 255"


def mask_resampled(folder):
    mask = Image.fromarray(slice_pixels(1)[1])
    mask.resize((300, 300), Image.BILINEAR).resize((256, 256), Image.BILINEAR).save(folder / f"{PATIENT}_1_mask.tif")
    return rf"{PATIENT}_1_mask\.tif holds the values \d+, "


def image_twice(folder):
    shutil.copy(folder / f"{PATIENT}_2.tif", folder / f"{PATIENT}_02.tif")
    return rf"slice 2 is there twice: .*{PATIENT}_02\.tif and {PATIENT}_2\.tif"


def mask_twice(folder):
    shutil.copy(folder / f"{PATIENT}_2_mask.tif", folder / f"{PATIENT}_002_mask.tif")
    return rf"slice 2 is there twice: .*{PATIENT}_002_mask\.tif"


def grey_image(folder):
    save(folder / f"{PATIENT}_2.tif", slice_pixels(2)[0][..., 0])
    return rf"{PATIENT}_2\.tif has the mode L; expected RGB"


def sixteen_bit_mask(folder):
    save(folder / f"{PATIENT}_2_mask.tif", slice_pixels(2)[1].astype(np.uint16))
    return rf"{PATIENT}_2_mask\.tif has the mode I;16; expected L"


def colour_mask(folder):
    save(folder / f"{PATIENT}_2_mask.tif", slice_pixels(2)[0])
    return rf"{PATIENT}_2_mask\.tif has the mode RGB; expected L"


def not_an_image(folder):
    (folder / f"{PATIENT}_10.tif").write_bytes(b"no image")
    return rf"{PATIENT}_10\.tif cannot be read as an image"


def truncated_image(folder):
    file = folder / f"{PATIENT}_10.tif"
    file.write_bytes(file.read_bytes()[:5000])
    return rf"{PATIENT}_10\.tif cannot be read as an image"


def several_images_in_a_file(folder):
    pages = [Image.fromarray(slice_pixels(i)[0]) for i in (1, 2)]
    pages[0].save(folder / f"{PATIENT}_10.tif", save_all=True, append_images=pages[1:])
    return rf"{PATIENT}_10\.tif holds 2 images"


def several_images_cut_off(folder):
    file = folder / f"{PATIENT}_10.tif"
    several_images_in_a_file(folder)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return rf"{PATIENT}_10\.tif cannot be read as an image"


def slice_of_another_patient(folder):
    (folder / f"{PATIENT}_2.tif").rename(folder / f"{OTHER_PATIENT}_2.tif")
    return rf"{OTHER_PATIENT}_2\.tif is not named as a slice of this patient"


def another_suffix(folder):
    for kind in ("", "_mask"):
        (folder / f"{PATIENT}_10{kind}.tif").rename(folder / f"{PATIENT}_10{kind}.TIF")
    return rf"{PATIENT}_10\.TIF is not named"


def slice_zero(folder):
    shutil.copy(folder / f"{PATIENT}_2.tif", folder / f"{PATIENT}_0.tif")
    return rf"{PATIENT}_0\.tif is not named"


def slice_number_that_is_a_date(folder):
    for kind in ("", "_mask"):
        shutil.copy(folder / f"{PATIENT}_2{kind}.tif", folder / f"{PATIENT}_19960909{kind}.tif")
    return rf"{PATIENT}_19960909\.tif is not named"


def empty_folder(folder):
    for file in folder.iterdir():
        file.unlink()
    return rf"{PATIENT} holds no slices"


def unknown_patient(folder):
    folder.rename(folder.with_name("TCGA_XX_0000_20000101"))
    return r"TCGA_XX_0000_20000101: unknown patient"


def folder_that_is_no_patient(folder):
    (folder.parent / "masks").mkdir()
    return r"masks: unknown patient 'masks'"


def phantom_among_patients(folder):
    write_phantom(folder.parent / "phantom", 1, num_slices=4, size=32)
    (folder.parent / "phantom" / "TCGA_PH_0001_20000101").rename(folder.parent / "TCGA_PH_0001_20000101")
    shutil.rmtree(folder.parent / "phantom")
    return "mixes phantom patients"


def no_clinical_data(folder):
    (folder.parent / "data.csv").unlink()
    return r"data\.csv is missing"


def patient_without_clinical_row(folder):
    write_clinical(folder.parent, [OTHER_PATIENT])
    return rf"data\.csv has no row for TCGA_CS_4941 \(folder {PATIENT}\)"


def clinical_row_twice(folder):
    write_clinical(folder.parent, [PATIENT, PATIENT])
    return r"data\.csv, line 3: second row for TCGA_CS_4941"


def clinical_column_missing(folder):
    path = folder.parent / "data.csv"
    path.write_text(path.read_text().replace(",gender", ",sex"))
    return r"data\.csv must have the columns .*missing: gender, unknown: sex"


def clinical_column_twice(folder):
    header, row = (folder.parent / "data.csv").read_text().splitlines()[:2]
    (folder.parent / "data.csv").write_text(f"{header},gender\n{row},2\n")
    return r"data\.csv must have the columns .* once each"


def clinical_value_in_words(folder):
    write_clinical(folder.parent, [PATIENT], gender="female")
    return r"data\.csv, line 2: gender must be a whole number of 32 bits or blank, got 'female'"


def clinical_value_too_large(folder):
    write_clinical(folder.parent, [PATIENT], gender="2147483648")
    return r"data\.csv, line 2: gender must be a whole number of 32 bits or blank, got '2147483648'"


def clinical_data_in_another_encoding(folder):
    path = write_clinical(folder.parent, [PATIENT])
    path.write_bytes(path.read_bytes() + "é".encode("latin-1"))
    return r"data\.csv is not UTF-8"


def clinical_row_without_a_patient(folder):
    write_clinical(folder.parent, ["_"], gender="1")
    return r"data\.csv, line 2: Patient is blank"


def clinical_row_too_short(folder):
    (folder.parent / "data.csv").write_text(",".join(CLINICAL_COLUMNS) + "\nTCGA_CS_4941,1\n")
    return r"data\.csv, line 2: expected 18 values"


FAULTS = [
    no_mask,
    no_image,
    image_too_small,
    mask_of_another_size,
    image_of_another_width,
    mask_of_ones,
    mask_resampled,
    image_twice,
    mask_twice,
    grey_image,
    sixteen_bit_mask,
    colour_mask,
    not_an_image,
    truncated_image,
    several_images_in_a_file,
    several_images_cut_off,
    slice_of_another_patient,
    another_suffix,
    slice_zero,
    slice_number_that_is_a_date,
    empty_folder,
    unknown_patient,
    folder_that_is_no_patient,
    phantom_among_patients,
    no_clinical_data,
    patient_without_clinical_row,
    clinical_row_twice,
    clinical_column_missing,
    clinical_column_twice,
    clinical_value_in_words,
    clinical_value_too_large,
    clinical_data_in_another_encoding,
    clinical_row_without_a_patient,
    clinical_row_too_short,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_faulty_source_is_an_error_that_names_the_file_and_writes_nothing(tmp_path, fault):
    source = write_source(tmp_path / "kaggle_3m")
    message = fault(source / PATIENT)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        build_dataset(source, tmp_path / "dataset")
    assert [entry.name for entry in tmp_path.iterdir()] == ["kaggle_3m"]


def test_a_phantom_may_be_of_any_size_but_of_one(tmp_path):
    write_phantom(tmp_path / "phantom", 1, num_slices=4, size=40)
    (patient,) = scan_source(tmp_path / "phantom").patients
    check_patient(patient)
    for file in (patient.slices[2].image, patient.slices[2].mask):
        save(file, np.asarray(Image.open(file))[:36])
    with pytest.raises(ValueError, match=r"_3\.tif is 40 x 36, but the patient's first slice is 40 x 40"):
        check_patient(patient)
    for file in (patient.slices[0].image, patient.slices[0].mask):
        save(file, np.asarray(Image.open(file))[:31])
    with pytest.raises(ValueError, match=r"_1\.tif is 40 x 31; a phantom has at least 32 pixels a side"):
        check_patient(patient)


def test_the_digest_changes_with_a_pixel_the_names_and_the_clinical_data(tmp_path):
    def digest():
        return check_patient(scan_source(tmp_path).patients[0])

    write_source(tmp_path)
    digests = [digest(), digest()]
    image = slice_pixels(2)[0]
    image[0, 0] += 1
    save(tmp_path / PATIENT / f"{PATIENT}_2.tif", image)
    digests.append(digest())
    write_clinical(tmp_path, [PATIENT], gender="1")
    digests.append(digest())
    for kind in ("", "_mask"):
        (tmp_path / PATIENT / f"{PATIENT}_10{kind}.tif").rename(tmp_path / PATIENT / f"{PATIENT}_11{kind}.tif")
    digests.append(digest())
    digests.append(check_patient(replace(scan_source(tmp_path).patients[0], patient_id=OTHER_PATIENT)))
    assert digests[0] == digests[1]
    assert len(set(digests)) == 5


def test_clinical_data_is_whole_numbers_or_none(tmp_path):
    path = write_clinical(tmp_path, [PATIENT], gender="2", age_at_initial_pathologic=" 67 ")
    blank = "," * (len(CLINICAL_COLUMNS) - 1)
    path.write_text(path.read_text() + blank + "\n", encoding="utf-8-sig")  # as Excel does
    row = read_clinical(path)["TCGA_CS_4941"]
    assert list(row) == list(CLINICAL_COLUMNS)
    assert {name: value for name, value in row.items() if value is not None} == {
        "Patient": "TCGA_CS_4941",
        "gender": 2,
        "age_at_initial_pathologic": 67,
    }


def test_a_folder_without_patients_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no patient folders"):
        find_root(tmp_path)
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        find_root(tmp_path / "absent")


def test_the_real_dataset_is_valid(lgg_data):
    source = scan_source(lgg_data)
    names = {patient.patient_id for patient in source.patients}
    assert names | set(source.missing) == set(ALL_PATIENTS)
    assert not any(patient.absent_slices for patient in source.patients)
    for patient in source.patients[::20]:
        check_patient(patient)
