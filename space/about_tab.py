"""The tab on the models: what they were trained on, how well they do, where they fail, and the licences."""

import html
import logging
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
from huggingface_hub import ModelCard

logger = logging.getLogger(__name__)

WHAT = """
<h2>What this is</h2>
<p>Models that outline the FLAIR abnormality of a lower-grade glioma, the bright region that the tumour and the oedema
around it make up, on axial MR slices of the head. <strong>Research software, not a medical device</strong>: not for
diagnosis, treatment or any decision on a patient. No authority has reviewed it.</p>
<h2>What they were trained on</h2>
<p>LGG MRI segmentation (Buda, Saha and Mazurowski, 2019): slices of patients with a lower-grade glioma from The Cancer
Imaging Archive, before surgery, from hospitals of one country, with pre-contrast T1, FLAIR and post-contrast T1. The
outlines were drawn by hand on FLAIR. Patients were split as a whole into those to train on, those to choose the best
state by, and those kept for the end.</p>
<h2>How well they do</h2>
"""
SCORES = """
<p class="hint">Read from the models' cards, each patient counting once. The split called validation also chose which
state of the model was kept, so its scores are a little hopeful; few patients make them uncertain. A dash: not in the
card.</p>
"""
NO_SCORES = "<p>None of the models has scores in its card.</p>"
LIMITS = """
<h2>Where they fail</h2>
<ul>
<li>Small and faint lesions are missed, or outlined in part. Size matters most: the larger the lesion on a slice, the
better the outline.</li>
<li>Other bright regions on FLAIR may be outlined: oedema of other causes, white matter disease, artefacts, the rim of
the ventricles.</li>
<li>A high probability is no promise. Those of the shipped models were fitted to eleven patients, or checked on them
alone; on other scans they may be too high.</li>
<li>In a volume, islands under half of the largest part are left out as false alarms, and lesions whose outline holds
under 400 voxels: a second, smaller lesion goes too. A line above the measurements tells of a large one.</li>
<li>A slice by itself and the same slice in its volume may be outlined differently: in a volume, the
brightness of its brain as a whole counts, too.</li>
<li>In a volume, lesions are found at the threshold and outlined at a lower probability where the model is unsure, so
that the outline of a faint lesion, or of a false alarm, is a generous one. On single slices it is the threshold's.</li>
<li>With FLAIR alone they do less well than with all three sequences.</li>
<li>Everyone in the training data has a glioma and has not been operated on. Nothing is known about healthy brains,
children, other diseases, or brains after surgery, radiation or with a cavity.</li>
<li>Axial slices alone, with the whole head, skull and scalp included: not sagittal, coronal, cropped or skull-stripped
ones.</li>
</ul>
<h2>Licences</h2>
<p>The code is Apache-2.0. The data set is CC BY-NC-SA 4.0, and the weights were trained on it: use them for
non-commercial purposes only, name the source, and share what you derive from them under the same licence. Please cite
Buda, Saha and Mazurowski, <cite>Association of genomic subtypes of lower-grade gliomas with shape features
automatically extracted by a deep learning algorithm</cite>, Computers in Biology and Medicine, doi
10.1016/j.compbiomed.2019.05.002.</p>
<p>TransUNet is the architecture of Chen et al. 2021 (arXiv 2102.04306), the U-Net that of Ronneberger, Fischer and Brox
2015. The stem of the small TransUNet began with the ImageNet weights of EfficientNet-Lite0 (Google; converted to
PyTorch by ML Illustrated), which are Apache-2.0.</p>
<h2>What happens to uploads</h2>
<p>They are read on the machine that serves this page, sent nowhere else, kept in no log, and deleted within the hour,
as are the results.</p>
"""
BY_PATIENT = "per patient"  # in the names of metrics that count each patient once


@dataclass(frozen=True)
class Scores:
    """What a model's card says of one set of images."""

    images: str
    metrics: dict[str, float]


def about_tab(models: dict[str, str]) -> None:
    """Fill the tab that is open; `models` as from `find_models`."""
    scores = scores_table({name: read_scores(source) for name, source in models.items()})
    gr.HTML(WHAT + scores + LIMITS, padding=False, elem_classes="prose-column")


def read_scores(source: str) -> list[Scores]:
    """The scores by patient in the card of a model, a directory or Hub id; none where they cannot be read.

    Scores of generated heads are left out, as they say nothing about patients.
    """
    from modeling.card_inputs import PHANTOM

    try:
        card = ModelCard.load(Path(source, "README.md") if Path(source).is_dir() else source)
        found: dict[str, Scores] = {}
        for result in card.data.eval_results or []:
            if BY_PATIENT not in (result.metric_name or "") or result.dataset_type == PHANTOM.identifier:
                continue
            patients = (result.dataset_args or {}).get("patients")
            parts = [result.dataset_name, result.dataset_split, f"{patients} patients" if patients else None]
            images = ", ".join(filter(None, parts))
            found.setdefault(images, Scores(images, {})).metrics[result.metric_name] = float(result.metric_value)
    except Exception:  # a card is for people: whatever is wrong with it must not keep the page from starting
        logger.warning("The card of %s cannot be read", source, exc_info=True)
        return []
    return list(found.values())


def scores_table(scores: dict[str, list[Scores]]) -> str:
    """A row for each model and set of images, a column for each metric, in HTML."""
    metrics = list(dict.fromkeys(name for of_model in scores.values() for each in of_model for name in each.metrics))
    if not metrics:
        return NO_SCORES
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in ("Model", "Images", *metrics))
    rows = ""
    for model, of_model in scores.items():
        for each in of_model or [Scores("no scores in its card", {})]:
            cells = "".join(f"<td>{readable(each.metrics.get(name))}</td>" for name in metrics)
            rows += f'<tr><th scope="row">{html.escape(model)}</th><td>{html.escape(each.images)}</td>{cells}</tr>'
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div class="scores" tabindex="0" role="region" aria-label="Scores">{table}</div>{SCORES}'


def readable(score: float | None) -> str:
    """Shares of 1 to three places, distances to one."""
    if score is None:
        return "–"
    return f"{score:.3f}" if score <= 1 else f"{score:.1f}"
