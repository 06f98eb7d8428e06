"""What the tests of the app share: Gradio's upload folder, checkpoints with random weights, and a server on them.

Loaded as a pytest plugin by the modules that need it.
"""

import pytest
from app_files import free_port
from PIL import Image


@pytest.fixture(scope="session")
def upload_folder(tmp_path_factory):
    """Gradio's upload folder, empty and on its own; set before any component is built."""
    folder = tmp_path_factory.mktemp("uploads")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        yield folder


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Two tiny checkpoints with random weights, by name."""
    import torch

    from modeling import BrainMRIImageProcessor, UNetConfig, UNetForSemanticSegmentation

    found = {}
    for seed, name in enumerate(("tiny-a", "tiny-b")):
        torch.manual_seed(seed)
        folder = tmp_path_factory.mktemp("checkpoints") / name
        config = UNetConfig(hidden_sizes=[4, 8], encoder_depths=[1, 1], decoder_depth=1)
        UNetForSemanticSegmentation(config).save_pretrained(folder)
        BrainMRIImageProcessor().save_pretrained(folder)
        found[name] = str(folder)
    return found


@pytest.fixture(scope="session")
def expected_mask(models):
    """The mask that `modeling` itself gives for pixels: (H, W) bool."""
    from modeling.inference import load_model, segment_slice

    loaded = {}

    def predict(pixels, model="tiny-a", threshold=0.5):
        if model not in loaded:
            loaded[model] = load_model(models[model])
        mask = segment_slice(*loaded[model], pixels, threshold=threshold).mask
        assert mask.any(), "an empty mask would make the comparison worthless"
        assert not mask.all(), "a full mask would make the comparison worthless"
        return mask

    return predict


@pytest.fixture
def upload(upload_folder, tmp_path_factory):
    """Put a file where Gradio puts uploads: pixels, or bytes as they are."""

    def put(name, content):
        folder = upload_folder / tmp_path_factory.mktemp("upload").name
        folder.mkdir()
        path = folder / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            Image.fromarray(content).save(path)
        return path

    return put


@pytest.fixture(scope="session")
def server(models, upload_folder):
    """(address, demo) of the page on a real server, with the settings of `python app.py`."""
    import app

    demo = app.build_demo(models)
    _, address, _ = app.launch(demo, server_port=free_port(), prevent_thread_lock=True, quiet=True)
    yield address.rstrip("/"), demo
    demo.close()
