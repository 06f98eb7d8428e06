"""What the tests of the app share: Gradio's upload folder, checkpoints with random weights, a server on them, and a
client of it.

Loaded as a pytest plugin by the modules that need it.
"""

import pytest
from app_files import free_port, make_slice
from gradio_client import Client
from PIL import Image


@pytest.fixture(scope="session")
def upload_folder(tmp_path_factory):
    """Gradio's upload folder, empty and on its own; set before any component is built."""
    folder = tmp_path_factory.mktemp("uploads")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        yield folder


@pytest.fixture
def folder(upload_folder, tmp_path):
    """A folder of the test's own among the uploads."""
    path = upload_folder / tmp_path.name
    path.mkdir()
    return path


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Tiny checkpoints with random weights, two U-Nets and a TransUNet, by name."""
    import torch

    from modeling import (
        BrainMRIImageProcessor,
        TransUNetConfig,
        TransUNetForSemanticSegmentation,
        UNetConfig,
        UNetForSemanticSegmentation,
    )

    def tiny_unet():
        config = UNetConfig(hidden_sizes=[4, 8], encoder_depths=[1, 1], decoder_depth=1)
        return UNetForSemanticSegmentation(config)

    def tiny_transunet():
        stem = {"model_type": "lgg_efficientnet_lite", "embedding_size": 4, "hidden_sizes": [4, 4, 4, 4, 8]}
        config = TransUNetConfig(
            backbone_config=stem | {"depths": [1, 1, 1, 1, 1]}, hidden_size=16, num_hidden_layers=1,
            num_attention_heads=2, head_dim=8, intermediate_size=16, decoder_channels=[4, 4, 4, 4],
        )  # fmt: skip
        return TransUNetForSemanticSegmentation(config)

    found = {}
    for seed, (name, build) in enumerate(
        {"tiny-a": tiny_unet, "tiny-b": tiny_unet, "tiny-trans": tiny_transunet}.items()
    ):
        torch.manual_seed(seed)
        folder = tmp_path_factory.mktemp("checkpoints") / name
        build().save_pretrained(folder)
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


@pytest.fixture(scope="module")
def client(server):
    """A client of the server."""
    client = Client(server[0], verbose=False, download_files=False)
    yield client
    client.close()


@pytest.fixture
def slice_path(tmp_path):
    """A made-up slice as a PNG."""
    path = tmp_path / "slice.png"
    Image.fromarray(make_slice()).save(path)
    return path
