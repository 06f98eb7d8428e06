"""Dataset, models and processor with `transformers.Trainer`, as examples/trainer.py puts them together."""

import numpy as np
import pytest
from tiny_models import TINY

from examples.trainer import train
from hub_dataset.loading import load_splits
from modeling import PRESETS, preset_config
from modeling.inference import load_model, segment_slice


@pytest.mark.parametrize("preset", ["unet-5level", "transunet-small"])
def test_trainer_lowers_the_loss_and_leaves_a_checkpoint(preset, phantom_dataset_dir, tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, preset, preset_config(preset, **TINY[preset]))
    trainer = train(
        preset,
        str(phantom_dataset_dir),
        output_dir=str(tmp_path / "run"),
        num_train_epochs=4,
        per_device_train_batch_size=8,
        learning_rate=0.01,
        logging_strategy="epoch",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(losses) == 4
    assert losses[-1] < 0.9 * losses[0]
    evaluation = trainer.evaluate()
    assert np.isfinite(evaluation["eval_loss"])

    model, processor = load_model(str(tmp_path / "run"))
    image = np.asarray(load_splits(str(phantom_dataset_dir))["validation"][5]["image"])
    probabilities = segment_slice(model, processor, image).probabilities
    assert probabilities.shape == image.shape[:2]
    assert ((probabilities > 0) & (probabilities < 1)).all()
