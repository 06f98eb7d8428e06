"""Compare the import of timm's R50-ViT-B/16 with timm's own forward pass, stage by stage; exit 1 where they part.

timm needs torchvision, so this runs in an environment of its own:

    python -m venv timm-env
    timm-env/bin/pip install -c requirements.txt torch torchvision timm transformers safetensors
    timm-env/bin/python -m benchmarks.compare_timm

Without `--weights`, timm builds the model with random weights. Its state dict goes through `initialize_from` as a file
would, and both networks get the same images, in float32: the stem at several sizes, then the tokens and the blocks
without the class token on both sides. The last lines say how much the class token changes, which TransUNet does not
have.
"""

import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from modeling import build_model
from modeling.command_line import command_parser
from modeling.modeling_transunet import to_grid
from modeling.pretrained import initialize_from

MODEL = "vit_base_r50_s16_224"
TOLERANCE = 1e-4
SIZES = [(224, 224), (256, 256), (97, 131), (32, 33)]


def randomize(model: torch.nn.Module) -> None:
    """Move norms, biases, class token and positions off the constants of a fresh model, which would hide mistakes."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim <= 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.cls_token.normal_(std=0.5)
        model.pos_embed.normal_(std=0.5)


class Comparison:
    """Prints the largest difference of each pair of tensors and remembers whether all stayed within the tolerance."""

    def __init__(self):
        self.agrees = True
        print(f"{'':44s}{'largest value':>14s}{'difference':>12s}")

    def __call__(self, name: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
        if ours.shape != theirs.shape:
            raise ValueError(f"{name}: {tuple(ours.shape)} here, {tuple(theirs.shape)} in timm.")
        difference = (ours - theirs).abs().max().item()
        self.agrees &= difference <= TOLERANCE
        print(f"{name:44s}{theirs.abs().max():14.3f}{difference:12.1e}{'' if difference <= TOLERANCE else '  <--'}")


@torch.no_grad()
def main(argv: list[str] | None = None) -> None:
    parser = command_parser(__doc__, "benchmarks.compare_timm")
    parser.add_argument("--weights", help="checkpoint of that model to compare on: a file that timm can read")
    args = parser.parse_args(argv)
    if args.weights and not Path(args.weights).is_file():
        parser.error(f"there is no file {args.weights}; --weights takes a checkpoint of {MODEL} that timm can read")
    try:
        import timm
        from timm.layers import resample_abs_pos_embed
    except ImportError as error:
        parser.error(f"{error}; --help says where this runs")
    torch.manual_seed(0)

    theirs = timm.create_model(MODEL, checkpoint_path=args.weights or "", num_classes=0).eval()
    if not args.weights:
        randomize(theirs)
    ours = build_model("transunet-r50-vit-b16", image_size=224).eval()
    at_256 = build_model("transunet-r50-vit-b16").eval()
    with tempfile.TemporaryDirectory() as folder:
        save_file(theirs.state_dict(), Path(folder) / "model.safetensors")
        print(initialize_from(ours, folder))
        print(initialize_from(at_256, folder))

    compare = Comparison()
    backbone = theirs.patch_embed.backbone
    for height, width in SIZES:
        pixel_values = torch.randn(2, 3, height, width)
        hidden_states = backbone.stem.norm(backbone.stem.conv(pixel_values))
        expected = [hidden_states]
        hidden_states = backbone.stem.pool(hidden_states)
        for stage in backbone.stages:
            hidden_states = stage(hidden_states)
            expected.append(hidden_states)
        for index, (feature_map, reference) in enumerate(zip(ours.stem(pixel_values), expected, strict=True)):
            compare(f"stem at 1/{2 ** (index + 1)}, image {height}x{width}", feature_map, reference)

    pixel_values = torch.randn(2, 3, 224, 224)
    patches = theirs.patch_embed(pixel_values)
    compare("patch embeddings", ours.embeddings.projection(ours.stem(pixel_values)[-1]).flatten(2).mT, patches)
    tokens, _ = ours.embeddings(ours.stem(pixel_values)[-1])
    expected = patches + theirs.pos_embed[:, 1:]
    compare("tokens with positions", tokens, expected)
    encoded, hidden_states, _ = ours.encoder(tokens)
    for index, block in enumerate(theirs.blocks):
        expected = block(expected)
        compare(f"block {index + 1}, without class token", hidden_states[index + 1], expected)
    expected = theirs.norm(expected)
    compare("after the last norm, without class token", encoded, expected)
    resampled = resample_abs_pos_embed(theirs.pos_embed, [16, 16], num_prefix_tokens=1)[:, 1:]
    compare(
        "positions resized from 14x14 to 16x16",
        at_256.embeddings.position_embeddings,
        to_grid(resampled, (16, 16)),
    )

    with_class_token = theirs.forward_features(pixel_values)[:, 1:]
    change = (with_class_token - expected).norm() / expected.norm()
    print("\nWhere the architectures differ: timm's other tokens also attend to a class token, which TransUNet leaves")
    print(f"out; on these weights that changes the encoded tokens by {100 * change:.1f} % of their norm.")
    sys.exit(0 if compare.agrees else f"Some differences exceed {TOLERANCE}.")


if __name__ == "__main__":
    main()
