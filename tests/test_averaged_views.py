"""benchmarks/averaged_views.py: the first row is what evaluate.py gives; views are brought back in place."""

import numpy as np
import pytest
from tiny_models import tiny_model

from benchmarks import averaged_views
from evaluate import evaluate_split
from hub_dataset.loading import load_splits
from modeling import BrainMRIImageProcessor, test_time_augmentation
from modeling.inference import load_model


@pytest.fixture
def checkpoint(tmp_path):
    model = tiny_model("unet-5level")
    model.save_pretrained(tmp_path)
    BrainMRIImageProcessor(size_divisor=model.config.size_divisor).save_pretrained(tmp_path)
    return tmp_path


def test_without_views_it_is_evaluation(checkpoint, phantom_dataset_dir, capsys):
    averaged_views.main(["--checkpoint", str(checkpoint), "--dataset", str(phantom_dataset_dir)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[2].strip() for line in lines[2:]] == ["1", "2", "4"]
    split = load_splits(str(phantom_dataset_dir))["validation"]
    summary = evaluate_split(*load_model(checkpoint), split, hausdorff=False).postprocessed
    assert lines[2].split("|")[3].strip().startswith(f"{summary.dice_mean:.3f} (")


def test_views_come_back_in_place(monkeypatch):
    """A model that says how bright FLAIR is says the same of every view, but for the corners that a turn cuts off."""
    rows, columns = np.mgrid[:64, :64]
    blob = np.exp(-((rows - 24) ** 2 + (columns - 40) ** 2) / 60).astype(np.float32)
    slices = np.repeat(blob[None, ..., None], 3, axis=-1)
    monkeypatch.setattr(
        test_time_augmentation, "predict_volume", lambda model, processor, slices, progress: np.array(slices[..., 1])
    )
    for view in test_time_augmentation.predict_views(None, None, slices):
        np.testing.assert_allclose(view[0], blob, atol=0.02)
