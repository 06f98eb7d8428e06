"""The published split of the dataset, by patient.

`test` holds 22 of the 110 patients (one fifth, stratified by institution, among them the ten validation patients of the
reference implementation); it never chooses anything. `validation` holds 11 of the other 88, `train` the remaining 77.
Patients are named by their folder in `kaggle_3m`: `TCGA_<institution>_<patient>_<yyyymmdd>`.

Every patient of the dataset is listed here, so a folder that is not listed is a mistake and never joins a split by
accident. The exception is the phantom (`hub_dataset.phantom`), whose patients are dealt by their number.
"""

import hashlib
import re
from collections.abc import Iterable
from fractions import Fraction
from typing import Literal

Split = Literal["train", "validation", "test"]

SPLITS: tuple[Split, ...] = ("train", "validation", "test")

VALIDATION_COUNT = 11
VALIDATION_SEED = 0

# Tissue source sites as named by Buda et al. 2019.
INSTITUTIONS = {
    "CS": "Thomas Jefferson University",
    "DU": "Henry Ford Hospital",
    "EZ": "UNC",
    "FG": "Case Western",
    "HT": "Case Western - St. Joseph's",
}

PHANTOM_INSTITUTION = "PH"

TEST_PATIENTS = (
    "TCGA_CS_4944_20010208",
    "TCGA_CS_6667_20011105",
    "TCGA_CS_6668_20011025",
    "TCGA_DU_5851_19950428",
    "TCGA_DU_5871_19941206",
    "TCGA_DU_6404_19850629",
    "TCGA_DU_6408_19860521",
    "TCGA_DU_7014_19860618",
    "TCGA_DU_7309_19960831",
    "TCGA_DU_8167_19970402",
    "TCGA_DU_A5TS_19970726",
    "TCGA_DU_A5TY_19970709",
    "TCGA_FG_5962_20000626",
    "TCGA_FG_7634_20000128",
    "TCGA_FG_A4MT_20020212",
    "TCGA_HT_7605_19950916",
    "TCGA_HT_7616_19940813",
    "TCGA_HT_7686_19950629",
    "TCGA_HT_7690_19960312",
    "TCGA_HT_7692_19960724",
    "TCGA_HT_7879_19981009",
    "TCGA_HT_8113_19930809",
)

# The result of select_validation_patients() on the 88 patients outside the test split, written out so that the split
# is data rather than the outcome of a program.
VALIDATION_PATIENTS = (
    "TCGA_CS_4941_19960909",
    "TCGA_CS_6665_20010817",
    "TCGA_DU_6405_19851005",
    "TCGA_DU_6407_19860514",
    "TCGA_DU_7302_19911203",
    "TCGA_DU_7304_19930325",
    "TCGA_DU_8162_19961029",
    "TCGA_FG_6689_20020326",
    "TCGA_HT_7602_19951103",
    "TCGA_HT_7882_19970125",
    "TCGA_HT_A616_19991226",
)

TRAIN_PATIENTS = (
    "TCGA_CS_4942_19970222",
    "TCGA_CS_4943_20000902",
    "TCGA_CS_5393_19990606",
    "TCGA_CS_5395_19981004",
    "TCGA_CS_5396_20010302",
    "TCGA_CS_5397_20010315",
    "TCGA_CS_6186_20000601",
    "TCGA_CS_6188_20010812",
    "TCGA_CS_6290_20000917",
    "TCGA_CS_6666_20011109",
    "TCGA_CS_6669_20020102",
    "TCGA_DU_5849_19950405",
    "TCGA_DU_5852_19950709",
    "TCGA_DU_5853_19950823",
    "TCGA_DU_5854_19951104",
    "TCGA_DU_5855_19951217",
    "TCGA_DU_5872_19950223",
    "TCGA_DU_5874_19950510",
    "TCGA_DU_6399_19830416",
    "TCGA_DU_6400_19830518",
    "TCGA_DU_6401_19831001",
    "TCGA_DU_7008_19830723",
    "TCGA_DU_7010_19860307",
    "TCGA_DU_7013_19860523",
    "TCGA_DU_7018_19911220",
    "TCGA_DU_7019_19940908",
    "TCGA_DU_7294_19890104",
    "TCGA_DU_7298_19910324",
    "TCGA_DU_7299_19910417",
    "TCGA_DU_7300_19910814",
    "TCGA_DU_7301_19911112",
    "TCGA_DU_7306_19930512",
    "TCGA_DU_8163_19961119",
    "TCGA_DU_8164_19970111",
    "TCGA_DU_8165_19970205",
    "TCGA_DU_8166_19970322",
    "TCGA_DU_8168_19970503",
    "TCGA_DU_A5TP_19970614",
    "TCGA_DU_A5TR_19970726",
    "TCGA_DU_A5TT_19980318",
    "TCGA_DU_A5TU_19980312",
    "TCGA_DU_A5TW_19980228",
    "TCGA_EZ_7264_20010816",
    "TCGA_FG_5964_20010511",
    "TCGA_FG_6688_20020215",
    "TCGA_FG_6690_20020226",
    "TCGA_FG_6691_20020405",
    "TCGA_FG_6692_20020606",
    "TCGA_FG_7637_20000922",
    "TCGA_FG_7643_20021104",
    "TCGA_FG_8189_20030516",
    "TCGA_FG_A4MU_20030903",
    "TCGA_FG_A60K_20040224",
    "TCGA_HT_7473_19970826",
    "TCGA_HT_7475_19970918",
    "TCGA_HT_7608_19940304",
    "TCGA_HT_7680_19970202",
    "TCGA_HT_7684_19950816",
    "TCGA_HT_7693_19950520",
    "TCGA_HT_7694_19950404",
    "TCGA_HT_7855_19951020",
    "TCGA_HT_7856_19950831",
    "TCGA_HT_7860_19960513",
    "TCGA_HT_7874_19950902",
    "TCGA_HT_7877_19980917",
    "TCGA_HT_7881_19981015",
    "TCGA_HT_7884_19980913",
    "TCGA_HT_8018_19970411",
    "TCGA_HT_8105_19980826",
    "TCGA_HT_8106_19970727",
    "TCGA_HT_8107_19980708",
    "TCGA_HT_8111_19980330",
    "TCGA_HT_8114_19981030",
    "TCGA_HT_8563_19981209",
    "TCGA_HT_A5RC_19990831",
    "TCGA_HT_A61A_20000127",
    "TCGA_HT_A61B_19991127",
)

ALL_PATIENTS = tuple(sorted(TRAIN_PATIENTS + VALIDATION_PATIENTS + TEST_PATIENTS))

_SPLIT_OF: dict[str, Split] = {
    **dict.fromkeys(TRAIN_PATIENTS, "train"),
    **dict.fromkeys(VALIDATION_PATIENTS, "validation"),
    **dict.fromkeys(TEST_PATIENTS, "test"),
}
_PHANTOM_NAME = re.compile(rf"TCGA_{PHANTOM_INSTITUTION}_(\d{{4}})_\d{{8}}")


def institution_of(patient_id: str) -> str:
    """Institution code of a patient folder's name, e.g. "DU" for "TCGA_DU_6399_19830416"."""
    return patient_id.split("_")[1]


def is_phantom(patient_id: str) -> bool:
    """Whether the name is that of a generated patient, e.g. "TCGA_PH_0001_20000101"."""
    return _PHANTOM_NAME.fullmatch(patient_id) is not None


def split_of(patient_id: str) -> Split:
    """Split to which a patient belongs: "train", "validation" or "test".

    Phantom patients are dealt by their number modulo five: 2 to validation, 3 to test, the others to train. Three
    patients fill all three splits, and five are dealt 3 : 1 : 1.

    Raises:
        ValueError: The name is neither one of the dataset's 110 patients nor a phantom's.
    """
    if split := _SPLIT_OF.get(patient_id):
        return split
    if phantom := _PHANTOM_NAME.fullmatch(patient_id):
        return {2: "validation", 3: "test"}.get(int(phantom[1]) % 5, "train")
    raise ValueError(
        f"unknown patient {patient_id!r}: expected the folder name of one of the dataset's {len(ALL_PATIENTS)} "
        f"patients, such as {ALL_PATIENTS[0]!r} (all are listed in hub_dataset/splits.py), or that of a phantom, such "
        f"as 'TCGA_{PHANTOM_INSTITUTION}_0001_20000101'"
    )


def select_validation_patients(
    patients: Iterable[str] = TRAIN_PATIENTS + VALIDATION_PATIENTS,
    count: int = VALIDATION_COUNT,
    seed: int = VALIDATION_SEED,
) -> tuple[str, ...]:
    """Choose `count` of `patients`, stratified by institution; the rule behind `VALIDATION_PATIENTS`.

    Every institution gets its proportional share, rounded by the largest remainder (ties to the earlier code). Within
    an institution patients are taken in the order of the SHA-256 of "<seed>/<folder name>", which does not depend on a
    random generator's version. Returns the names sorted.

    Raises:
        ValueError: `count` is not between 0 and the number of patients.
    """
    by_institution: dict[str, list[str]] = {}
    for patient in sorted(set(patients)):
        by_institution.setdefault(institution_of(patient), []).append(patient)
    total = sum(map(len, by_institution.values()))
    if not 0 <= count <= total:
        raise ValueError(f"count must be between 0 and the {total} patients given, got {count}")

    shares = {code: Fraction(count * len(members), total) for code, members in by_institution.items()}
    quotas = {code: int(share) for code, share in shares.items()}
    by_remainder = sorted(shares, key=lambda code: (quotas[code] - shares[code], code))
    for code in by_remainder[: count - sum(quotas.values())]:
        quotas[code] += 1

    chosen = (
        sorted(members, key=lambda patient: draw_order(patient, seed))[: quotas[code]]
        for code, members in by_institution.items()
    )
    return tuple(sorted(patient for members in chosen for patient in members))


def deal_folds(patients: Iterable[str], folds: int, seed: int = VALIDATION_SEED) -> list[tuple[str, ...]]:
    """Deal patients to `folds` folds, stratified by institution where their names have one, as TCGA's do.

    Institution by institution, and within one in the order of `draw_order`, each patient goes to the next fold in turn:
    neither the sizes of two folds nor their shares of an institution differ by more than one patient. The order of
    `patients` does not matter. Returns the names of each fold, sorted.

    Raises:
        ValueError: `folds` is not between 2 and the number of patients.
    """
    ordered = sorted(set(patients), key=lambda patient: (stratum(patient), draw_order(patient, seed)))
    if not 2 <= folds <= len(ordered):
        raise ValueError(f"folds must be between 2 and the {len(ordered)} patients given, got {folds}")
    return [tuple(sorted(ordered[fold::folds])) for fold in range(folds)]


def stratum(patient: str) -> str:
    return institution_of(patient) if str(patient).startswith("TCGA_") else ""


def draw_order(patient: str, seed: int) -> str:
    """A key that sorts patients in a random order, the same on every machine."""
    return hashlib.sha256(f"{seed}/{patient}".encode()).hexdigest()
