"""The sections of a model card, each a function from what was measured to Markdown."""

import shlex
import textwrap
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from transformers import AutoModelForSemanticSegmentation, PreTrainedConfig

from .card_inputs import LGG, PHANTOM, ImageSource, Results, TrainingRun, shorten_command, shorten_path
from .pretrained import EFFICIENTNET_LITE0

REPOSITORY = "USER/NAME"  # stands for the repository's name until `modeling.publish` knows it
CHANNELS = {"all": "all three", "flair": "FLAIR alone"}
CHANNEL_WORDS = {"all": "all three channels", "flair": "FLAIR alone"}
STEMS = {
    "lgg_conv_stem": "a plain convolutional stem",
    "lgg_efficientnet_lite": "an EfficientNet-Lite0 stem",
    "bit": "a ResNet-v2 (BiT) stem",
}
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
POOR = 0.5  # Dice of a patient under which the outline is of little use
EXTREMES = 3  # patients named at either end

LGG_CITATION = """```bibtex
@article{buda2019association,
  title   = {Association of genomic subtypes of lower-grade gliomas with shape features automatically extracted by a
             deep learning algorithm},
  author  = {Buda, Mateusz and Saha, Ashirbani and Mazurowski, Maciej A.},
  journal = {Computers in Biology and Medicine},
  volume  = {109},
  pages   = {218--225},
  year    = {2019},
  doi     = {10.1016/j.compbiomed.2019.05.002}
}
```"""


def fill(*sentences: str) -> str:
    """A paragraph of these sentences, broken into lines."""
    return textwrap.fill(" ".join(sentences), 120, break_long_words=False, break_on_hyphens=False)


def count(number: int, noun: str) -> str:
    """`3, "patient"` -> `three patients`."""
    return f"{NUMBERS[number] if number < len(NUMBERS) else f'{number:,}'} {noun}{'' if number == 1 else 's'}"


def capitalized(text: str) -> str:
    """With a capital first letter, the rest as it is."""
    return text[:1].upper() + text[1:]


def architecture_name(config: PreTrainedConfig) -> str:
    if config.model_type == "lgg_unet":
        return f"U-Net, {count(len(config.hidden_sizes), 'level')}"
    return f"TransUNet on {STEMS[config.backbone_config.model_type]}"


def describe_architecture(config: PreTrainedConfig) -> str:
    """What the network is, with its trainable parameters counted."""
    with torch.device("meta"):
        model = AutoModelForSemanticSegmentation.from_config(config)
    parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    if config.model_type == "lgg_unet":
        depths = ", ".join(map(str, config.encoder_depths))
        text = (
            f"A U-Net of {count(len(config.hidden_sizes), 'level')} with {', '.join(map(str, config.hidden_sizes))} "
            f"channels; 3x3 convolutions per level: {depths} on the way down, {config.decoder_depth} on the way up; "
            f"batch normalisation"
        )
    else:
        text = (
            f"A TransUNet: {STEMS[config.backbone_config.model_type]} down to 1/{config.size_divisor} of the slice's "
            f"size, {count(config.num_hidden_layers, 'transformer layer')} of width {config.hidden_size} with "
            f"{count(config.num_attention_heads, 'head')}, and a decoder of "
            f"{', '.join(map(str, config.decoder_hidden_sizes))} channels with skip connections"
        )
    calibrated = f", divided by a temperature of {config.temperature:g}" if config.temperature != 1 else ""
    return f"{text}; one logit per pixel{calibrated}. {parameters:,} trainable parameters."


def introduction(config: PreTrainedConfig, runs: Sequence[TrainingRun] = ()) -> str:
    of_flair = bool(runs) and runs[-1].arguments.get("channels") == "flair"
    return f"""# {architecture_name(config)}, for lower-grade glioma on brain MR

{
        fill(
            "Outlines the FLAIR abnormality on axial slices (pre-contrast T1, FLAIR, post-contrast T1, or FLAIR "
            "alone).",
            *(["It was trained on FLAIR alone, which was in the T1 sequences' place, too."] if of_flair else []),
            describe_architecture(config),
            "**Research only, not a medical device.**",
        )
    }"""


def usage() -> str:
    return f"""## How to use it

```python
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline

model = AutoModelForSemanticSegmentation.from_pretrained("{REPOSITORY}", trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained("{REPOSITORY}", trust_remote_code=True)
image = Image.open("slice.png")
outputs = model(**processor(images=image, return_tensors="pt"))
(mask,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[(image.height, image.width)])

segments = pipeline("image-segmentation", model="{REPOSITORY}", trust_remote_code=True)("slice.png")
```

{
        fill(
            "A slice is RGB in the dataset's channel order (pre-contrast T1, FLAIR, post-contrast T1) or one grey "
            "FLAIR channel, at least 32x32 pixels, and shows the whole head. The processor normalises it by its own "
            "brain pixels, and a slice of a volume in part by the volume's, where they are given as "
            "`volume_intensities`; `segment_volume`, `predict.py` and the app do so.",
            "`pipeline` brings images to 8 bits before the processor sees them, which spoils grey ones of 16 bits: "
            "give those to the processor.",
        )
    }"""


def number(value: float | None, digits: int = 3, scale: float = 1.0) -> str:
    return "–" if value is None else f"{scale * value:.{digits}f}"


def scores(results: Sequence[Results], runs: Sequence[TrainingRun]) -> str:
    """The scores on patients and, apart, on the phantom; what the masks were; who did worst and best."""
    real = [result for result in results if result.source != PHANTOM]
    phantom = [result for result in results if result.source == PHANTOM]
    parts = ["## How well it does"]
    if real:
        parts += [score_table(real), reading_guide(real)]
        parts += [fill(role_of_split(result, runs)) for result in first_of_each(real, "split")]
        parts += [extremes(result) for result in first_of_each(real, "split", "channels")]
    else:
        parts.append("It has not been measured on patients' images.")
        if runs and runs[-1].best:
            parts.append(validation_while_training(runs[-1]))
    if phantom:
        parts += [
            "On generated heads, which say whether the program works and nothing about patients:",
            score_table(phantom),
        ]
        if not real:
            parts.append(reading_guide(phantom))
    if results:
        commands = "\n".join(wrap_command(shorten_command(result.command)) for result in results)
        parts.append(f"```bash\n{commands}\n```")
    return "\n\n".join(parts)


def first_of_each(results: Sequence[Results], *keys: str) -> list[Results]:
    """The first result for every combination of these attributes."""
    return list({tuple(getattr(result, key) for key in keys): result for result in reversed(results)}.values())[::-1]


def score_table(results: Sequence[Results]) -> str:
    lines = [
        "| split | channels | patients | slices, with a lesion | post-processed | Dice per patient, mean (95 % CI) "
        "| median | IoU | HD95 in pixels, median | Dice on lesion slices | false alarms |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        for name, cleaned in (("postprocessed", "yes"), ("raw", "no")):
            summary = result.summary[name]
            low, high = summary["dice_interval"]
            cells = (
                result.split + (f", the first {result.limit}" if result.limit else ""),
                CHANNELS.get(result.channels, result.channels),
                str(len(result.patients)),
                f"{summary['lesion_slices'] + summary['empty_slices']:,}, {summary['lesion_slices']:,}",
                cleaned,
                f"{number(summary['dice_mean'])} ({number(low)} to {number(high)})",
                number(summary["dice_median"]),
                number(summary["iou_mean"]),
                number(summary["hausdorff95_median"], 1),
                number(summary["lesion_slice_dice"]),
                f"{number(summary['false_alarm_rate'], 1, 100)} %",
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def reading_guide(results: Sequence[Results]) -> str:
    thresholds = list(dict.fromkeys(str(result.threshold) for result in results))
    cleaning = list(dict.fromkeys(components_removed(result.postprocessing) for result in results))
    checkpoints = list(dict.fromkeys(shorten_path(result.checkpoint) for result in results))
    views = {result.views for result in results}
    return fill(
        f"Measured on `{'`, `'.join(checkpoints)}` in single precision, probabilities from "
        f"{' and '.join(thresholds)} counting as lesion.",
        "Dice of a patient is that of the whole volume; the interval is a bootstrap over patients. False alarms are "
        "the slices without a lesion on which any pixel is marked.",
        f"Post-processing fills holes, then removes 3-D components of under {'; '.join(cleaning)}.",
        f"Probabilities are averages over {' or '.join(map(str, sorted(views)))} views of a slice."
        if views != {1}
        else "",
    )


def components_removed(postprocessing: dict) -> str:
    """What goes on after "removes 3-D components of under", from a result's `postprocessing`."""
    voxels = f"{postprocessing['min_voxels']} voxels"
    share = f"{100 * postprocessing['keep_fraction']:g} % of the largest"
    if not postprocessing.get("extend"):
        return f"{voxels}, or under {share}"
    return (
        f"{share}, extends what is left to the probability that promises the best Dice and removes what then has under "
        f"{voxels}"
    )


# Public weights to start from: what `--init_from` begins with -> whose they are.
PRETRAINED = {
    EFFICIENTNET_LITE0: (
        "The stem began with the ImageNet weights of EfficientNet-Lite0 (Google; converted to PyTorch by ML "
        "Illustrated, github.com/ml-illustrated/EfficientNet-Lite-PyTorch), which are Apache-2.0."
    ),
    "timm/": (
        "The encoder began with ImageNet-21k weights of AugReg (Steiner et al. 2021, Google; converted by timm), which "
        "are Apache-2.0."
    ),
}


def unrecorded_models(runs: Sequence[TrainingRun]) -> list[str]:
    """Trained models that runs started from, or learnt from, and that none of these runs gave.

    What those were trained on is unknown here. Weights of ImageNet are none of them.
    """
    names = [name for run in runs for name in (run.start, run.teacher) if name]
    given = {(run.path.resolve().name, model) for run in runs for model in ("best", "last")}
    return [
        name
        for name in dict.fromkeys(names)
        if name != EFFICIENTNET_LITE0 and not name.startswith("timm/") and not given & set(pairwise(Path(name).parts))
    ]


def role_of_split(result: Results, runs: Sequence[TrainingRun]) -> str:
    """Whether these patients were trained on, or chose the epoch."""
    patients = set(result.patient_ids)
    trained = {patient for run in runs for patient in run.split.get("train", ())}
    chose = {patient for run in runs if len(run.validated) > 1 for patient in run.split.get("validation", ())}
    name = f"The {len(patients)} patients of `{result.split}`"
    if not runs:
        return f"{name}: what they were used for in training is not recorded."
    if patients & trained:
        return f"{name}: {len(patients & trained)} of them were **trained on**, so these scores are no measurement."
    ancestors = unrecorded_models(runs)
    here, unknown = "", ""
    if ancestors:
        here, unknown = " in these runs", f" What {quoted(ancestors)} had been trained on is not recorded here."
    if patients & chose:
        return (
            f"{name}: none was trained on{here}, but they chose the epoch that was kept, so the scores are a little "
            f"hopeful.{unknown}"
        )
    return f"{name}: none was trained on{here}, and none chose anything{here and ' there'}.{unknown}"


def quoted(names: Sequence[str]) -> str:
    return " and ".join(f"`{shorten_path(name)}`" for name in names)


def extremes(result: Results) -> str:
    """Who did worst and best, in words."""
    dice = {
        patient["patient_id"]: patient["postprocessed"]["dice"]
        for patient in result.patients
        if patient["postprocessed"]["dice"] is not None
    }
    ranked = sorted(dice, key=dice.get)
    if not ranked:
        return f"No patient of `{result.split}` has a Dice: there is no lesion, and none was outlined."
    ends = min(EXTREMES, len(ranked) // 2) or 1
    missed = [patient for patient in ranked if dice[patient] == 0]
    poor = [patient for patient in ranked if dice[patient] < POOR]
    # Only patients whose names are public are named.
    name = named if result.source in (LGG, PHANTOM) else scored
    return fill(
        f"On `{result.split}`, {CHANNEL_WORDS.get(result.channels, result.channels)}, post-processed: worst",
        f"{name(ranked[:ends], dice)}; best {name(ranked[: -ends - 1 : -1], dice)}.",
        f"{capitalized(count(len(poor), 'patient'))} of {len(ranked)} under a Dice of {POOR}"
        + (f", {count(len(missed), 'lesion')} missed altogether." if missed else "."),
    )


def named(patients: Sequence[str], dice: dict[str, float]) -> str:
    return ", ".join(f"{patient} ({dice[patient]:.2f})" for patient in patients)


def scored(patients: Sequence[str], dice: dict[str, float]) -> str:
    return ", ".join(f"{dice[patient]:.2f}" for patient in patients)


def validation_while_training(run: TrainingRun) -> str:
    best = run.best
    rank = "the highest of the epochs that were validated" if len(run.validated) > 1 else "in the only validation"
    return fill(
        f"While training, epoch {best['epoch']} had a mean Dice of {best['validation_dice_mean']:.3f} "
        f"(median {number(best.get('validation_dice_median'))}) on the {len(run.split.get('validation', ()))} "
        f"validation patients, {rank}."
    )


def figure(name: str) -> str:
    return f"""![Dice of each generated patient, and the slices that went worst and best]({name})

*Generated heads, not patients: the Dice of each, and the slices that went worst and best.*"""


def training(runs: Sequence[TrainingRun], hardware: str | None, source: ImageSource | None) -> str:
    """Data, what each run did and took, and its command."""
    if not runs:
        return "## How it was trained\n\nNot recorded."
    of_source = next(run for run in reversed(runs) if run.source.name == source.name)
    split = {name: len(patients) for name, patients in of_source.split.items()}
    parts = [
        "## How it was trained",
        fill(
            f"On the {split['train']} training patients of {source.name}"
            + (" (Buda et al. 2019)," if source == LGG else ","),
            f"with {split['validation']} for validation"
            + (f"; the {split['test']} test patients chose nothing." if "test" in split else "."),
            "The split is by patient.",
        ),
    ]
    parts += [
        f"{describe_run(run, runs)}\n\n```bash\n{wrap_command(shorten_command(run.command))}\n```" for run in runs
    ]
    seconds = sum(run.seconds for run in runs)
    total = "Together " if len(runs) > 1 else "It took "
    parts.append(
        fill(
            f"{total}{duration(seconds)}" + (f" on {hardware}." if hardware else "; the hardware is not recorded."),
            "Energy and emissions were not measured.",
        )
    )
    return "\n\n".join(parts)


def describe_run(run: TrainingRun, runs: Sequence[TrainingRun]) -> str:
    arguments = run.arguments
    sizes = list(dict.fromkeys(str(row["image_size"]) for row in run.log if "image_size" in row))
    text = f"{describe_start(run.start)}, {count(len(run.log), 'epoch')} in {duration(run.seconds)}"
    if sizes:
        text += f", slices {', then '.join(sizes)} pixels long"
    text = f"`{shorten_path(str(run.path))}`: {text}." if len(runs) > 1 else f"{capitalized(text)}."
    optimizer = {"adamw": "AdamW", "sgd": "SGD"}.get(arguments.get("optimizer", "adamw"))
    details = [f"Loss `{arguments['loss']}`, {optimizer}, warm-up and cosine." if "loss" in arguments else ""]
    if arguments.get("teacher"):
        details.append(
            f"A share of {arguments['teacher_weight']:g} of the loss is distillation: the divergence from the "
            f"probabilities of a trained model, `{shorten_path(arguments['teacher'])}`."
        )
    if arguments.get("ema_decay"):
        details.append(f"The weights are a moving average (decay {arguments['ema_decay']:g}).")
    if arguments.get("augmentation"):
        ways = ["geometry", "intensity", "noise", "FLAIR in place of another channel"]
        if share := min(2 * arguments.get("volume_share", 0), 1):  # as `hub_dataset.augmentation` draws it
            ways.append(f"the volume's share in normalisation, from 0 to {share:g}")
        details.append(f"Slices were augmented: {', '.join(ways[:-1])}, and {ways[-1]}.")
    if run.best:
        epoch, dice = run.best["epoch"], f"{run.best['validation_dice_mean']:.3f}"
        details.append(
            f"Epoch {epoch} had the highest mean validation Dice, {dice}."
            if len(run.validated) > 1
            else f"Epoch {epoch}, the only one validated, had a mean validation Dice of {dice}."
        )
    if run.changes:
        details.append("Arguments were changed when it was resumed, so the command alone does not give these weights.")
    return fill(text, *(detail for detail in details if detail))


def describe_start(start: str | None) -> str:
    if start is None:
        return "from fresh weights"
    if start == EFFICIENTNET_LITE0:
        return "the stem from ImageNet weights, all else fresh"
    return f"from the weights of `{shorten_path(start)}`"


def duration(seconds: float) -> str:
    if seconds < 90:
        return count(round(seconds), "second")
    return count(round(seconds / 60), "minute") if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def wrap_command(command: str) -> str:
    """A shell command broken into lines before options, as in documentation."""
    lines = [""]
    for word in shlex.split(command):
        if word.startswith("--") and len(lines[-1]) > 90:
            lines.append("   ")
        lines[-1] += f" {shlex.quote(word)}"
    return " \\\n".join(lines).removeprefix(" ")


def limits(source: ImageSource | None) -> str:
    sentences = [
        "For research on segmentation, for teaching, and as a starting point for training; never for diagnosis or "
        "treatment, nor on images that identify a person.",
        "Small and faint lesions are missed or outlined in part, and other bright regions on FLAIR may be outlined.",
    ]
    if source == LGG:
        sentences.append(
            "Trained on preoperative examinations from five institutions of one country; everyone in them has a "
            "glioma, so nothing is known about healthy brains, other diseases, or brains after surgery. Axial slices "
            "with the whole head only. BraTS holds most of these patients: do not measure this model on it."
        )
    elif source == PHANTOM:
        sentences.append(
            "Trained on generated heads: it has never seen a patient's image, and is for trying things out."
        )
    return f"## Intended use and limits\n\n{fill(*sentences)}"


def licence(source: ImageSource | None, runs: Sequence[TrainingRun] = ()) -> str:
    """The weights' licence, and those of the weights that they started from."""
    stems = [text for start, text in PRETRAINED.items() if any((run.start or "").startswith(start) for run in runs)]
    return "\n\n".join([licence_of_images(source, unrecorded_models(runs)), *map(fill, stems)])


def licence_of_images(source: ImageSource | None, ancestors: Sequence[str]) -> str:
    if source == LGG:
        text = fill(
            "The dataset is CC BY-NC-SA 4.0, and these weights were trained on it: use them for non-commercial "
            "purposes only, name the source, and share what you derive from them under the same licence. The code is "
            "Apache-2.0. Please cite the dataset's authors, and name this model:"
        )
        return f"## Licence and citation\n\n{text}\n\n{LGG_CITATION}"
    if source == PHANTOM:
        return "## Licence\n\nThe generated images and the code are Apache-2.0, and so are these weights."
    text = "The code is Apache-2.0; the weights are bound by the licence of the images they were trained on"
    text += f", and by that of {quoted(ancestors)}, which they come from." if ancestors else "."
    return f"## Licence\n\n{text}"
