"""What a training step costs, counted without computing it: on tensors that have shapes but no values."""

from typing import NamedTuple

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSemanticSegmentation, PreTrainedConfig, PreTrainedModel

# A step as a multiple of its forward pass: the backward pass takes a product for the gradients of the inputs and one
# for those of the weights. (PyTorch's counter gets the latter wrong for grouped convolutions.)
STEP = 3


class StepCost(NamedTuple):
    """Cost of a training step on one batch.

    Attributes:
        forward_flops: floating-point operations of the forward pass's convolutions and matrix products.
        activation_bytes: what the forward pass keeps for the backward pass, in float32.
    """

    forward_flops: int
    activation_bytes: int

    @property
    def flops(self) -> int:
        """Floating-point operations of forward and backward pass."""
        return STEP * self.forward_flops


def model_of_shapes(config: PreTrainedConfig) -> PreTrainedModel:
    """A model on the `meta` device, in training mode: parameters without values."""
    with torch.device("meta"):
        return AutoModelForSemanticSegmentation.from_config(config).train()


def step_cost(model: PreTrainedModel, batch_size: int, height: int, width: int) -> StepCost:
    """Cost of a step of a model from `model_of_shapes` on a batch of this shape, in pixels."""
    parameters = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()  # several operations may keep views of one tensor
        if storage._cdata not in parameters:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    pixel_values = torch.empty(batch_size, model.config.num_channels, height, width, device="meta")
    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(pixel_values=pixel_values).logits  # referred to, so that the storages live and stay distinct
    del logits
    return StepCost(counter.get_total_flops(), sum(kept.values()))
