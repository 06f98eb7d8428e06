"""The dataset's card: the README.md that makes a folder of Parquet files a dataset of the Hub."""

from collections.abc import Mapping, Sequence

from datasets import DatasetInfo, Features, SplitDict, SplitInfo
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCard, DatasetCardData

from .splits import ALL_PATIENTS, INSTITUTIONS, SPLITS, VALIDATION_SEED

_SIZE_CATEGORIES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"))

_COLUMNS = """## Columns

| column | type | meaning |
|---|---|---|
| `image` | image, RGB, 8 bits | one axial slice; red: T1 before contrast, green: FLAIR, blue: T1 after contrast |
| `mask` | image, L | 255 inside the FLAIR abnormality, 0 elsewhere |
| `patient_id` | string | `TCGA_<institution>_<patient>_<yyyymmdd>`, the folder's name |
| `slice_index` | int | number of the slice within the patient, from 1, as in the file name |
| `num_slices` | int | number of slices of the patient |
| `institution` | string | institution code, the second part of `patient_id` |
| `has_lesion` | bool | whether the mask is not empty |
| `lesion_pixels` | int | number of pixels inside the mask |
| `Patient` | string | `patient_id` without the date, the key of `data.csv` |
| the other columns | int | `data.csv` under its own column names and codes, null where it is blank |

Rows are sorted by patient and slice. Images are lossless WebP and masks PNG: decoded pixels equal those of the source.
Each row group of the Parquet files is one patient, so a whole volume is read at once and a filter on `patient_id` skips
the rest.

FLAIR is there for every patient. A T1 sequence that is missing is replaced by a copy of FLAIR in its channel.

```python
from datasets import load_dataset

dataset = load_dataset("USER/NAME")  # this dataset's name on the Hub, or the path of its folder
```
"""

_REAL = """# Lower-grade glioma in brain MR: FLAIR abnormality segmentation

Axial slices of preoperative brain MR examinations of patients with lower-grade glioma, each with a mask of the FLAIR
abnormality outlined by hand, and the patients' genomic clusters and clinical data.

{contents}
{columns}
## Where it comes from

The images were acquired for The Cancer Genome Atlas lower-grade glioma collection, are published by The Cancer Imaging
Archive (TCIA), and were selected, outlined and published by Buda et al. (2019). This dataset is their Kaggle dataset
[`mateuszbuda/lgg-mri-segmentation`](https://www.kaggle.com/datasets/mateuszbuda/lgg-mri-segmentation) in another
container, with validated content and fixed splits; no pixel is changed. `manifest.json` holds the digests of the files.

Institutions: {institutions}.

Over all 110 patients, the T1 sequence after contrast is missing in nine and the one before contrast in six.

The Kaggle archive holds every image twice (`kaggle_3m/` and `lgg-mri-segmentation/kaggle_3m/`): a recursive search for
TIFF files doubles each slice, and a random split then puts copies on both sides. Here each slice is there once.

## Splits

By patient. Neighbouring slices of one patient are near-copies, so a split by slice would measure memory.

- `test`: 22 patients, one fifth of the dataset, stratified by institution. It contains the ten validation patients of
  the reference implementation `mateuszbuda/brain-segmentation-pytorch`, so results can be compared. It is for the final
  measurement only: no training, no tuning, no early stopping.
- `validation`: 11 of the other 88 patients. Each institution has its proportional share (largest remainder); within an
  institution patients are ordered by the SHA-256 of `{seed}/<patient_id>` and the first are taken.
- `train`: all others.

## Limits

Research only: not a medical device, and nothing to base a diagnosis or treatment on. The patients come from five
institutions of one country; protocols, slice thickness and contrast vary, and pixel spacing is not part of the data.
Everyone in it has a glioma, so it says nothing about healthy brains or other diseases. BraTS contains most of these
patients: models trained on BraTS have seen them.

## License and citation

CC BY-NC-SA 4.0, as the source. Cite:

```bibtex
@article{{buda2019association,
  title   = {{Association of genomic subtypes of lower-grade gliomas with shape features automatically extracted by a
             deep learning algorithm}},
  author  = {{Buda, Mateusz and Saha, Ashirbani and Mazurowski, Maciej A.}},
  journal = {{Computers in Biology and Medicine}},
  volume  = {{109}},
  pages   = {{218--225}},
  year    = {{2019}},
  doi     = {{10.1016/j.compbiomed.2019.05.002}}
}}
```
"""

_PHANTOM = """# Brain MR phantom

Generated slices in the form of the lower-grade glioma dataset of Buda et al. (2019): an ellipsoid head in three MR
contrasts with, in some slices, a bright lesion on FLAIR. No patient's image is in it. It serves to try and test
programs; figures measured on it say nothing about real images. The clinical columns are drawn at random.

{contents}
{columns}
## Splits

By patient: the number in the name modulo five sends 2 to `validation`, 3 to `test` and the others to `train`.
"""


def make_card(
    features: Features,
    splits: Mapping[str, Mapping],
    *,
    download_size: int,
    sha256: str,
    missing: Sequence[str] = (),
    phantom: bool = False,
) -> DatasetCard:
    """The card of a built dataset.

    Args:
        features: The columns.
        splits: For each split that is not empty its `num_examples`, `num_bytes` (as Arrow), `num_patients` and
            `num_lesion_slices`.
        download_size: Size of the Parquet files in bytes.
        sha256: Digest of the Parquet files. `datasets` knows its copy of a folder by the folder's name and card alone.
        missing: The dataset's patients that the source lacked.
        phantom: Whether the images are generated.
    """
    info = DatasetInfo(
        features=features,
        splits=SplitDict(
            {
                name: SplitInfo(name=name, num_bytes=split["num_bytes"], num_examples=split["num_examples"])
                for name, split in splits.items()
            }
        ),
        download_size=download_size,
        dataset_size=sum(split["num_bytes"] for split in splits.values()),
    )
    num_examples = sum(split["num_examples"] for split in splits.values())
    data = DatasetCardData(
        pretty_name="Brain MR phantom" if phantom else "LGG MRI segmentation",
        license="apache-2.0" if phantom else "cc-by-nc-sa-4.0",
        task_categories=["image-segmentation"],
        task_ids=["semantic-segmentation"],
        annotations_creators=["machine-generated" if phantom else "expert-generated"],
        size_categories=[next((name for limit, name in _SIZE_CATEGORIES if num_examples < limit), "n>100K")],
        tags=["medical", "mri", "brain"] + (["synthetic"] if phantom else ["glioma", "tcga"]),
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": name, "path": f"data/{name}-*"} for name in splits],
            }
        ],
    )
    DatasetInfosDict({"default": info}).to_dataset_card_data(data)
    data["dataset_info"]["description"] = f"SHA-256 of the Parquet files: {sha256}"
    body = (_PHANTOM if phantom else _REAL).format(
        contents=_contents(splits, missing),
        columns=_COLUMNS,
        institutions=", ".join(f"{code} {name}" for code, name in INSTITUTIONS.items()),
        seed=VALIDATION_SEED,
    )
    return DatasetCard(f"---\n{data.to_yaml()}\n---\n\n{body}")


def _contents(splits: Mapping[str, Mapping], missing: Sequence[str]) -> str:
    lines = ["| split | patients | slices | with a lesion |", "|---|---|---|---|"]
    for name, split in splits.items():
        lines.append(f"| `{name}` | {split['num_patients']} | {split['num_examples']} | {split['num_lesion_slices']} |")
    if missing:
        present = len(ALL_PATIENTS) - len(missing)
        lines += [
            "",
            f"**Incomplete**: built from {present} of the dataset's {len(ALL_PATIENTS)} patients. The source lacked "
            f"{', '.join(missing)}.",
        ]
    if absent := [name for name in SPLITS if name not in splits]:
        lines += ["", f"No patient of `{'`, `'.join(absent)}` was in the source: there is no such split here."]
    return "\n".join(lines) + "\n"
