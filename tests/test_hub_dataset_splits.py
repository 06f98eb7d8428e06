import hashlib
from collections import Counter

import pytest

from hub_dataset.splits import (
    ALL_PATIENTS,
    INSTITUTIONS,
    TEST_PATIENTS,
    TRAIN_PATIENTS,
    VALIDATION_PATIENTS,
    institution_of,
    is_phantom,
    select_validation_patients,
    split_of,
)

REFERENCE_VALIDATION = (
    "TCGA_CS_4944_20010208",
    "TCGA_CS_6667_20011105",
    "TCGA_CS_6668_20011025",
    "TCGA_DU_5851_19950428",
    "TCGA_DU_6404_19850629",
    "TCGA_DU_6408_19860521",
    "TCGA_DU_7014_19860618",
    "TCGA_HT_7616_19940813",
    "TCGA_HT_7692_19960724",
    "TCGA_HT_7879_19981009",
)


def test_every_patient_is_in_exactly_one_split():
    assert [len(TRAIN_PATIENTS), len(VALIDATION_PATIENTS), len(TEST_PATIENTS)] == [77, 11, 22]
    assert len(set(ALL_PATIENTS)) == len(ALL_PATIENTS) == 110


def test_patients_per_institution_are_those_of_the_paper():
    assert Counter(map(institution_of, ALL_PATIENTS)) == {"CS": 16, "DU": 45, "EZ": 1, "FG": 14, "HT": 34}
    assert set(INSTITUTIONS) == set(map(institution_of, ALL_PATIENTS))


def test_the_published_test_split_has_not_changed():
    names = "\n".join(sorted(TEST_PATIENTS)).encode()
    assert hashlib.sha256(names).hexdigest() == "c1be69744dbe4f27a68bfc18df0d2533b007029c23d2297683148d9831226121"
    assert set(REFERENCE_VALIDATION) <= set(TEST_PATIENTS)


def test_the_published_validation_split_is_what_the_documented_rule_selects():
    assert select_validation_patients() == VALIDATION_PATIENTS
    assert Counter(map(institution_of, VALIDATION_PATIENTS)) == {"CS": 2, "DU": 5, "FG": 1, "HT": 3}


def test_the_rule_is_stratified_seedable_and_independent_of_order():
    patients = TRAIN_PATIENTS + VALIDATION_PATIENTS
    chosen = select_validation_patients(patients, count=22, seed=1)
    assert chosen == select_validation_patients(reversed(patients), count=22, seed=1)
    assert chosen != select_validation_patients(patients, count=22, seed=2)
    shares = Counter(map(institution_of, patients))
    for code, number in Counter(map(institution_of, chosen)).items():
        assert abs(number - shares[code] / 4) < 1
    with pytest.raises(ValueError, match="between 0 and the 88"):
        select_validation_patients(count=89)


@pytest.mark.parametrize(
    ("patients", "split"),
    [(TRAIN_PATIENTS, "train"), (VALIDATION_PATIENTS, "validation"), (TEST_PATIENTS, "test")],
)
def test_split_of_knows_every_patient(patients, split):
    assert {split_of(patient) for patient in patients} == {split}


def test_five_phantom_patients_fill_all_splits():
    names = [f"TCGA_PH_{number:04d}_20000101" for number in range(1, 6)]
    assert all(map(is_phantom, names))
    assert Counter(map(split_of, names)) == {"train": 3, "validation": 1, "test": 1}


@pytest.mark.parametrize(
    "name",
    ["TCGA_CS_4941", "TCGA_CS_9999_19960909", "TCGA_CS_4941_19960910", "TCGA_PH_1_20000101", "patient", ""],
)
def test_an_unknown_patient_is_an_error_that_names_it(name):
    with pytest.raises(ValueError, match=f"unknown patient '{name}'"):
        split_of(name)
