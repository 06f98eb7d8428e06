"""Write a checkpoint's model card from what was measured.

    python -m modeling.card checkpoints/unet-5level --results all.json flair.json phantom.json \\
        --runs runs/first runs/second --hardware "two CPU cores"

The scores come from evaluate.py's JSON, training from the folders of train.py's runs, in the order they followed each
other, and the architecture from the checkpoint's config.json. The card is README.md beside the weights. Results on the
phantom are told by their patients' names and kept apart; their figure, if it lies beside the JSON, goes into the card.
"""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedConfig

from . import card_text
from .card_inputs import PHANTOM, ImageSource, Results, TrainingRun, read_results, read_run
from .checkpoints import read_config
from .command_line import command_parser
from .configuration_transunet import TransUNetConfig
from .configuration_unet import UNetConfig
from .hub import is_repo_id

CARD = "README.md"
FIGURE = "phantom.png"
METRICS = {  # key of a summary in evaluate.py's JSON -> type and name in `model-index`
    "dice_mean": ("dice", "Dice per patient, mean"),
    "dice_median": ("dice", "Dice per patient, median"),
    "iou_mean": ("iou", "IoU per patient, mean"),
    "precision_mean": ("precision", "Precision per patient, mean"),
    "recall_mean": ("recall", "Recall per patient, mean"),
    "hausdorff95_median": ("hausdorff95", "HD95 per patient in pixels, median"),
    "lesion_slice_dice": ("dice", "Dice of slices with a lesion"),
    "false_alarm_rate": ("false_alarm_rate", "Share of slices without a lesion on which any pixel is marked"),
}


def make_card(
    config: PreTrainedConfig,
    name: str,
    *,
    results: Sequence[Results] = (),
    runs: Sequence[TrainingRun] = (),
    hardware: str | None = None,
    figure: str | None = None,
) -> ModelCard:
    """A model card, its metadata validated by `huggingface_hub`'s classes.

    Args:
        config: the model's configuration.
        name: the model's name in `model-index`.
        results: scores, the most important first.
        runs: the training runs that led to the weights, oldest first.
        hardware: what the runs ran on, in words; it ends a sentence.
        figure: file name, beside the card, of a picture of the phantom.

    Raises:
        ValueError: results of another architecture, or two on the same images.
    """
    for result in results:
        if result.model_type != config.model_type:
            raise ValueError(
                f"{result.path} scores a {result.model_type}, but the checkpoint is a {config.model_type}."
            )
    source, ancestors = training_source(runs), card_text.unrecorded_models(runs)
    if ancestors and source == PHANTOM:  # they may have seen patients, whose images have another licence
        source = replace(source, license=None)
    data = ModelCardData(
        license=(source.license or "other") if source else None,
        library_name="transformers",
        pipeline_tag="image-segmentation",
        tags=["medical", "mri", "brain", "glioma", config.model_type.removeprefix("lgg_")],
        datasets=list(dict.fromkeys(filter(is_hub_id, (run.arguments["dataset"] for run in runs)))) or None,
        metrics=list(dict.fromkeys(kind for kind, _ in METRICS.values())) if results else None,
        model_name=name,
        eval_results=evaluations(results) or None,
    )
    sections = [
        card_text.introduction(config, runs),
        card_text.scores(results, runs),
        card_text.figure(figure) if figure else "",
        card_text.usage(),
        card_text.training(runs, hardware, source),
        card_text.limits(source),
        card_text.licence(source, runs),
    ]
    body = "\n\n".join(section for section in sections if section)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n")


def training_source(runs: Sequence[TrainingRun]) -> ImageSource | None:
    """Where the runs' images came from, patients' before generated ones; None without a run."""
    sources = [run.source for run in runs]
    return next((source for source in reversed(sources) if source != PHANTOM), sources[-1] if sources else None)


def evaluations(results: Sequence[Results]) -> list[EvalResult]:
    """Every score of the post-processed masks for `model-index`, to three decimals as Dice and IoU in the text.

    Raises:
        ValueError: two results for the same images, which `model-index` could not tell apart.
    """
    found, seen = [], {}
    for result in results:
        name = result.source.name + (", FLAIR alone" if result.channels == "flair" else "")
        other = seen.setdefault((name, result.split), result.path)
        if other != result.path:
            raise ValueError(f"{other} and {result.path} are both of {name}, split {result.split!r}; give one of them.")
        found += [
            EvalResult(
                task_type="image-segmentation",
                dataset_type=result.source.identifier,
                dataset_name=name,
                dataset_config="flair" if result.channels == "flair" else None,  # else read back as one with the other
                dataset_split=result.split,
                dataset_args={
                    "patients": len(result.patients),
                    "threshold": result.threshold,
                    **({"views": result.views} if result.views > 1 else {}),
                },
                metric_type=kind,
                metric_name=label,
                metric_value=round(result.summary["postprocessed"][key], 3),
            )
            for key, (kind, label) in METRICS.items()
            if result.summary["postprocessed"][key] is not None
        ]
    return found


def is_hub_id(dataset: str) -> bool:
    """Whether a dataset was named as USER/NAME, not as a folder."""
    return is_repo_id(dataset) and not Path(dataset).is_dir()


def write_card(
    checkpoint: Path,
    *,
    results: Sequence[Path] = (),
    runs: Sequence[Path] = (),
    hardware: str | None = None,
) -> Path:
    """Write README.md, and the phantom's figure if there is one, into a checkpoint's folder; see `make_card`.

    Raises:
        OSError: a folder or file is missing.
        ValueError: a file is not what it should be, or the results do not fit the checkpoint.
    """
    if not (checkpoint / "config.json").is_file():
        raise FileNotFoundError(f"{checkpoint} holds no config.json; give the folder of a saved model.")
    config = read_config(checkpoint)
    if config.model_type not in (UNetConfig.model_type, TransUNetConfig.model_type):
        raise ValueError(f"{checkpoint} holds a {config.model_type!r} model, which is none of this package.")
    folder = checkpoint.resolve()
    read = [read_results(path) for path in results]
    picture = next((result.figure for result in read if result.source == PHANTOM and result.figure.is_file()), None)
    card = make_card(
        config,
        (folder.parent if folder.name in ("best", "last") else folder).name,  # of a run's models, the run's
        results=read,
        runs=[read_run(folder) for folder in runs],
        hardware=hardware,
        figure=FIGURE if picture else None,
    )
    if picture and picture.resolve() != (checkpoint / FIGURE).resolve():
        shutil.copyfile(picture, checkpoint / FIGURE)
    card.save(checkpoint / CARD)
    return checkpoint / CARD


def main(argv: list[str] | None = None) -> None:
    parser = command_parser(__doc__, "modeling.card")
    parser.add_argument("checkpoint", type=Path, help="folder with config.json and weights; README.md is replaced")
    parser.add_argument("--results", type=Path, nargs="+", default=[], metavar="JSON", help="files of evaluate.py")
    parser.add_argument(
        "--runs", type=Path, nargs="+", default=[], metavar="RUN", help="folders of train.py, the oldest first"
    )
    parser.add_argument("--hardware", metavar="TEXT", help='what the runs ran on, for instance "two CPU cores"')
    args = parser.parse_args(argv)
    try:
        print(write_card(args.checkpoint, results=args.results, runs=args.runs, hardware=args.hardware))
    except (OSError, ValueError) as error:
        sys.exit(f"modeling.card: error: {error}")


if __name__ == "__main__":
    main()
