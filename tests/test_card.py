"""Model cards: every figure comes from what was measured, and huggingface_hub's classes read the card back."""

import json
import shlex
import shutil

import pytest
from huggingface_hub import ModelCard
from tiny_models import tiny_model
from transformers import SegformerConfig

import evaluate
from hub_dataset.phantom import write_phantom
from hub_dataset.splits import ALL_PATIENTS
from modeling import BrainMRIImageProcessor
from modeling.card import main, write_card
from modeling.card_inputs import LGG_PATIENT, PHANTOM_PATIENT, read_run, shorten_command
from modeling.card_text import wrap_command
from training.arguments import parse_args

TRAINED, VALIDATED = ["TCGA_CS_4942_19970222"], ["TCGA_CS_4941_19960909", "TCGA_CS_6665_20010817"]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model("unet-4level").save_pretrained(folder)
    BrainMRIImageProcessor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def phantom_results(model_dir, phantom_dataset_dir, tmp_path_factory):
    """What evaluate.py writes about the phantom, the figure included."""
    output = tmp_path_factory.mktemp("results") / "phantom.json"
    arguments = ["--checkpoint", str(model_dir), "--dataset", str(phantom_dataset_dir), "--output", str(output)]
    evaluate.main(arguments)
    return output


@pytest.fixture
def copied(model_dir, tmp_path):
    return shutil.copytree(model_dir, tmp_path / "tiny")


@pytest.fixture
def real_results(phantom_results, tmp_path):
    """The phantom's results under real patients' names, with one lesion missed."""
    report = json.loads(phantom_results.read_text())
    for patient, name in zip(report["patients"], VALIDATED, strict=True):
        patient["patient_id"] = name
        patient["postprocessed"]["dice"] = 0.0 if name == VALIDATED[1] else 0.8125
    report["summary"]["postprocessed"] |= {"dice_mean": 0.40625, "dice_interval": [0.0, 0.8125], "dice_median": None}
    (tmp_path / "all.json").write_text(json.dumps(report))
    shutil.copy(phantom_results.with_suffix(".png"), tmp_path / "all.png")
    return tmp_path / "all.json"


def make_run(folder, arguments=None, train=TRAINED, validation=VALIDATED, seconds=(600.0, 7200.0), dice=(0.725, 0.6)):
    folder.mkdir(parents=True)
    defaults = {
        "model": "unet-4level",
        "init_from": None,
        "dataset": "/somewhere/else/data/lgg",
        "image_size": [[0.0, 128], [0.6, 192]],
        "resume": True,
        "loss": "dice_bce",
        "changed_on_resume": [],
    }
    (folder / "args.json").write_text(json.dumps(defaults | (arguments or {})))
    (folder / "split.json").write_text(json.dumps({"train": train, "validation": validation}))
    rows = [
        {"epoch": epoch, "image_size": size, "seconds": s, "validation_dice_mean": score}
        for epoch, (size, s, score) in enumerate(zip((128, 192), seconds, dice, strict=True), start=1)
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_metadata_are_the_measured_scores_and_are_read_back(copied, real_results, phantom_results, tmp_path):
    write_card(copied, results=[real_results, phantom_results], runs=[make_run(tmp_path / "runs" / "a")])
    data = ModelCard.load(copied / "README.md").data
    assert (data.license, data.library_name, data.pipeline_tag) == (
        "cc-by-nc-sa-4.0",
        "transformers",
        "image-segmentation",
    )
    assert data.model_name == "tiny"
    measured = {(r.dataset_name, r.dataset_split, r.metric_name): r.metric_value for r in data.eval_results}
    real = {label: value for (name, _, label), value in measured.items() if name == "LGG MRI segmentation"}
    assert real["Dice per patient, mean"] == 0.406
    assert "Dice per patient, median" not in real  # undefined
    summary = json.loads(phantom_results.read_text())["summary"]["postprocessed"]
    key = ("Brain MR phantom", "validation", "Dice of slices with a lesion")
    assert measured[key] == round(summary["lesion_slice_dice"], 3)


@pytest.mark.parametrize("name", ["best", "last"])
def test_a_model_of_a_run_has_the_runs_name(copied, phantom_results, tmp_path, name):
    model = copied.rename(tmp_path / name)
    write_card(model, results=[phantom_results])
    assert ModelCard.load(model / "README.md").data.model_name == tmp_path.name


@pytest.mark.parametrize("names", [("MUELLER_ANNA_0", "MUELLER_ANNA_1"), (19410, 19411)], ids=["names", "numbers"])
def test_what_is_private_stays_out(copied, real_results, names):
    report = json.loads(real_results.read_text())
    for patient, name in zip(report["patients"], names, strict=True):
        patient["patient_id"] = name
    report["command"] = "python evaluate.py --checkpoint=/home/anna/secret/best --dataset /home/anna/clinic/lgg"
    real_results.write_text(json.dumps(report))
    write_card(copied, results=[real_results])
    text = (copied / "README.md").read_text()
    assert not any(str(name) in text for name in names)
    assert "/home/anna" not in text
    assert "worst 0.00; best 0.81" in " ".join(text.split())
    assert "--checkpoint=secret/best" in text


def test_scores_on_flair_alone_are_read_back_apart(copied, real_results, tmp_path):
    flair = tmp_path / "flair.json"
    flair.write_text(json.dumps(json.loads(real_results.read_text()) | {"channels": "flair"}))
    write_card(copied, results=[real_results, flair], runs=[make_run(tmp_path / "runs" / "a")])
    names = [r.dataset_name for r in ModelCard.load(copied / "README.md").data.eval_results]
    assert sorted(set(names)) == ["LGG MRI segmentation", "LGG MRI segmentation, FLAIR alone"]
    assert names.count("LGG MRI segmentation") == len(names) / 2


def test_text_tells_extremes_and_how_the_patients_were_used(copied, real_results, tmp_path):
    write_card(copied, results=[real_results], runs=[make_run(tmp_path / "runs" / "a")], hardware="two cores")
    text = " ".join(ModelCard.load(copied / "README.md").text.split())
    assert "| yes | 0.406 (0.000 to 0.812) | – |" in text
    assert f"worst {VALIDATED[1]} (0.00); best {VALIDATED[0]} (0.81)" in text
    assert "One patient of 2 under a Dice of 0.5, one lesion missed altogether." in text
    assert "chose the epoch" in text
    assert "Epoch 1 had the highest mean validation Dice, 0.725." in text
    assert "under 50 % of the largest, extends what is left to the probability" in text
    assert "removes what then has under 400 voxels." in text
    assert "It took 2.0 hours on two cores." in text
    assert "--image_size 128 192@60%" in text
    assert "/somewhere" not in text
    assert "--resume" not in text


def test_a_single_validation_chose_no_epoch(copied, real_results, tmp_path):
    run = make_run(tmp_path / "runs" / "a", dice=(None, 0.6))
    write_card(copied, results=[real_results], runs=[run])
    text = " ".join(ModelCard.load(copied / "README.md").text.split())
    assert "none was trained on, and none chose anything." in text
    assert "Epoch 2, the only one validated, had a mean validation Dice of 0.600." in text
    write_card(copied, runs=[run])
    text = " ".join(ModelCard.load(copied / "README.md").text.split())
    assert "epoch 2 had a mean Dice of 0.600 (median –) on the 2 validation patients, in the only validation." in text


@pytest.mark.parametrize(
    ("arguments", "ways"),
    [
        ({}, "noise, and FLAIR in place of another channel."),
        ({"volume_share": 0.25}, "another channel, and the volume's share in normalisation, from 0 to 0.5."),
        ({"volume_share": 0.75}, "another channel, and the volume's share in normalisation, from 0 to 1."),
    ],
)
def test_augmentation_of_the_normalisation_is_told(copied, tmp_path, arguments, ways):
    write_card(copied, runs=[make_run(tmp_path / "run", {"augmentation": 1.0} | arguments)])
    assert ways in " ".join((copied / "README.md").read_text().split())


@pytest.mark.parametrize(
    "options",
    [
        ["--num_workers", "0", "--low_memory", "--image_size", "128", "192@57%"],
        ["--streaming", "64", "--config", "decoder_depth=1", "encoder_depths=[1, 2, 2, 2]", "--init_from", "a b/best"],
    ],
)
def test_command_gives_the_same_arguments_again(tmp_path, options):
    arguments = parse_args(["--model", "unet-4level", "--dataset", "data", "--output_dir", "runs/a", *options], "")
    recorded = json.loads(json.dumps(vars(arguments), default=str))
    *_, program, rest = read_run(make_run(tmp_path / "run", recorded)).command.partition("train.py ")
    assert program == "train.py "
    assert parse_args(shlex.split(rest), "") == arguments


@pytest.mark.parametrize(("precision", "launcher"), [("no", ""), ("bf16", "--mixed_precision bf16 ")])
def test_command_gives_the_launchers_precision_to_the_launcher(tmp_path, precision, launcher):
    command = read_run(make_run(tmp_path / "run", {"mixed_precision": precision})).command
    assert command.startswith(f"accelerate launch {launcher}train.py --model unet-4level")
    assert command.count("--mixed_precision") == bool(launcher)


def test_trained_patients_are_no_measurement(copied, real_results, tmp_path):
    run = make_run(tmp_path / "run", train=VALIDATED, validation=TRAINED)
    later = make_run(tmp_path / "later", {"init_from": str(tmp_path / "chosen" / "last")}, validation=TRAINED)
    for runs in ([run], [run, later]):
        write_card(copied, results=[real_results], runs=runs)
        assert "2 of them were **trained on**" in (copied / "README.md").read_text()
    write_card(copied, results=[real_results], runs=[make_run(tmp_path / "chosen"), later])
    text = " ".join((copied / "README.md").read_text().split())
    assert "none was trained on, but they chose the epoch" in text
    assert "not recorded here" not in text


def test_runs_that_follow_each_other_add_up(copied, tmp_path):
    first, second = tmp_path / "runs" / "a", tmp_path / "runs" / "b"
    make_run(first, {"init_from": "efficientnet-lite0"}, seconds=(10.0, 1800.0))
    changes = [{"after_epochs": 1, "epochs": [1, 2]}]
    make_run(second, {"init_from": str(first / "best"), "changed_on_resume": changes}, seconds=(10.0, 5400.0))
    write_card(copied, runs=[first, second])
    text = " ".join((copied / "README.md").read_text().split())
    assert "`runs/a`: the stem from ImageNet weights, all else fresh, two epochs in 30 minutes" in text
    assert "`runs/b`: from the weights of `a/best`, two epochs in 1.5 hours" in text
    assert "Together 2.0 hours; the hardware is not recorded." in text
    assert "epoch 1 had a mean Dice of 0.725" in text
    assert "EfficientNet-Lite0 (Google; converted to PyTorch by ML Illustrated" in text
    assert text.count("so the command alone does not give these weights") == 1
    assert "trained on FLAIR alone" not in text
    arguments = {"channels": "flair", "init_from": "timm/resnetv2_50x1_bit"}
    write_card(copied, runs=[make_run(tmp_path / "runs" / "c", arguments)])
    text = (copied / "README.md").read_text()
    assert "trained on FLAIR alone" in text
    assert "ImageNet-21k weights of AugReg" in text
    assert "ML Illustrated" not in text
    assert "the command alone" not in text


def test_a_figure_of_patients_never_reaches_the_card(copied, real_results, phantom_results):
    write_card(copied, results=[real_results])
    assert sorted(path.suffix for path in copied.iterdir()) == [".json", ".json", ".md", ".safetensors"]
    write_card(copied, results=[real_results, phantom_results])
    assert (copied / "phantom.png").read_bytes() == phantom_results.with_suffix(".png").read_bytes()
    assert "(phantom.png)" in (copied / "README.md").read_text()
    beside = shutil.copy(phantom_results, copied / "phantom.json")  # evaluate.py puts its figure where the card's is
    write_card(copied, results=[beside])
    assert (copied / "phantom.png").read_bytes() == phantom_results.with_suffix(".png").read_bytes()


def test_a_model_of_the_phantom_claims_no_patients(copied, tmp_path):
    patients = ["TCGA_PH_0001_20000101"]
    write_card(copied, runs=[make_run(tmp_path / "run", train=patients, validation=patients)])
    card = ModelCard.load(copied / "README.md")
    assert card.data.license == "apache-2.0"
    assert "Buda" not in card.text
    # But weights that once saw patients stay bound by their licence, and are those patients'.
    first = make_run(tmp_path / "first", {"dataset": "alice/lgg"}, train=VALIDATED, validation=TRAINED)
    write_card(copied, runs=[first, tmp_path / "run"])
    card = ModelCard.load(copied / "README.md")
    assert card.data.license == "cc-by-nc-sa-4.0"
    assert card.data.datasets == ["alice/lgg"]
    assert "On the 2 training patients of LGG MRI segmentation" in " ".join(card.text.split())


@pytest.mark.parametrize("origin", ["init_from", "teacher"])
def test_what_a_model_came_from_is_not_claimed_to_be_free_or_unseen(copied, real_results, tmp_path, origin):
    generated = ["TCGA_PH_0001_20000101"]
    arguments = {origin: "/home/me/checkpoints/unet-5level", "teacher_weight": 0.7}
    run = make_run(tmp_path / "unet-5level", arguments, train=generated, validation=generated)
    write_card(copied, results=[real_results], runs=[run])
    card = ModelCard.load(copied / "README.md")
    text = " ".join(card.text.split())
    assert card.data.license == "other"
    assert "never seen a patient" not in text
    assert "and by that of `checkpoints/unet-5level`, which they come from" in text
    assert "none was trained on in these runs, and none chose anything there" in text
    assert "What `checkpoints/unet-5level` had been trained on is not recorded here." in text


def test_how_scores_came_about_is_said(copied, real_results):
    write_card(copied, results=[real_results])
    assert "averages over" not in (copied / "README.md").read_text()
    assert "the first" not in (copied / "README.md").read_text()
    assert "temperature" not in (copied / "README.md").read_text()
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"temperature": 1.25}))
    real_results.write_text(json.dumps(json.loads(real_results.read_text()) | {"views": 2, "limit": 2}))
    write_card(copied, results=[real_results])
    assert "averages over 2 views" in " ".join((copied / "README.md").read_text().split())
    assert "| validation, the first 2 |" in (copied / "README.md").read_text()
    assert "divided by a temperature of 1.25" in " ".join((copied / "README.md").read_text().split())
    assert ModelCard.load(copied / "README.md").data.eval_results[0].dataset_args["views"] == 2


def test_names_tell_the_phantom_from_patients(tmp_path):
    write_phantom(tmp_path, 1, seed=0, num_slices=4, size=32)
    (generated,) = (path.name for path in tmp_path.iterdir() if path.is_dir())
    assert PHANTOM_PATIENT.fullmatch(generated)
    assert not LGG_PATIENT.fullmatch(generated)
    assert all(LGG_PATIENT.fullmatch(name) for name in ALL_PATIENTS)


def test_commands_are_shortened_and_still_parse():
    command = "python evaluate.py --checkpoint /home/me/runs/a/best --dataset 'USER/with space' --output /x/y/z.json"
    short = shorten_command(command)
    assert short == "python evaluate.py --checkpoint a/best --dataset 'USER/with space' --output y/z.json"
    assert wrap_command(short).replace("\\\n   ", "") == short


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "config.json"),
        (["CHECKPOINT", "--results", "nothing.json"], "nothing.json"),
        (["CHECKPOINT", "--results", "CHECKPOINT/config.json"], "no result of evaluate.py"),
        (["CHECKPOINT", "--results", "RESULTS", "COPY"], "both of Brain MR phantom"),
        (["CHECKPOINT", "--runs", "nothing"], "log.jsonl"),
    ],
)
def test_clear_errors_and_no_card(copied, phantom_results, tmp_path, arguments, message):
    copy = shutil.copy(phantom_results, tmp_path / "copy.json")
    places = {"CHECKPOINT": str(copied), "RESULTS": str(phantom_results), "COPY": str(copy)}
    words = []
    for word in arguments:
        for place, path in places.items():
            word = word.replace(place, path)
        words.append(word)
    with pytest.raises(SystemExit, match=message):
        main(words)
    assert not (copied / "README.md").exists()


def test_results_of_another_architecture_are_refused(copied, phantom_results, tmp_path):
    report = json.loads(phantom_results.read_text()) | {"model_type": "lgg_transunet"}
    (tmp_path / "other.json").write_text(json.dumps(report))
    with pytest.raises(ValueError, match="lgg_transunet"):
        write_card(copied, results=[tmp_path / "other.json"])


def test_a_configuration_that_is_not_valid_is_refused(copied):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"temperature": 0}))
    with pytest.raises(SystemExit, match=r"is not valid.*temperature must be positive"):
        main([str(copied)])


def test_models_of_other_packages_are_refused(tmp_path):
    SegformerConfig().save_pretrained(tmp_path)
    with pytest.raises(SystemExit, match="a 'segformer' model, which is none of this package"):
        main([str(tmp_path)])
    assert not (tmp_path / "README.md").exists()


def test_a_run_without_an_epoch(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "log.jsonl").write_text("")
    with pytest.raises(ValueError, match="no epoch"):
        read_run(run)
