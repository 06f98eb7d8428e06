"""What makes several processes train as one: the loss and batch norm see the whole batch, not a process's share.

The overlap losses and batch norm mix the images of a batch, so averaging gradients alone, as data parallelism does,
trains another model than one process with the same batch. Here every process computes the loss of the whole batch from
the gathered logits, and batch norm its statistics from those of all processes; both pass gradients between processes.
Steps then agree with those of one process up to rounding. Dropout, of which each process draws its own, differs.
"""

import torch
from accelerate import PartialState
from accelerate.utils import gather, reduce
from torch import nn


class _Gather(torch.autograd.Function):
    """Concatenation over the processes along the first axis.

    Every process goes on to compute the same from the result. The gradients of all of these are summed, which makes
    them N times that of one process; the average over N processes by `DistributedDataParallel` takes that back.
    """

    @staticmethod
    def forward(ctx, tensor: torch.Tensor) -> torch.Tensor:
        return gather(tensor)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        state = PartialState()
        return reduce(gradient.contiguous(), "sum").chunk(state.num_processes)[state.process_index]


def whole_batch(tensor: torch.Tensor) -> torch.Tensor:
    """Every process's share (B, ...) of a batch, in order of the processes: (N * B, ...). Gradients pass through."""
    return tensor if PartialState().num_processes == 1 else _Gather.apply(tensor)


class GatheredBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the batches of all processes, for devices on which `nn.SyncBatchNorm` does not run.

    All processes must give batches of the same shape.
    """

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(features)
        variance, mean = torch.var_mean(features.float(), dim=(0, 2, 3), correction=0)  # (C,)
        means, variances = whole_batch(torch.stack([mean, variance])[None]).unbind(dim=1)  # (N, C)
        mean = means.mean(dim=0)
        variance = (variances + (means - mean) ** 2).mean(dim=0)
        with torch.no_grad():
            count = len(means) * features.numel() / features.shape[1]
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        mean, scale, shift = (
            values[:, None, None] for values in (mean, self.weight * (variance + self.eps).rsqrt(), self.bias)
        )
        return ((features - mean) * scale + shift).to(features.dtype)


def synchronize_batch_norm(model: nn.Module, device: torch.device) -> nn.Module:
    """`model` with batch norm over all processes, its parameters the same; for one process, as it is."""
    if PartialState().num_processes == 1:
        return model
    if device.type != "cpu":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for parent in list(model.modules()):
        for name, norm in parent.named_children():
            if type(norm) is nn.BatchNorm2d:
                gathered = GatheredBatchNorm2d(norm.num_features, norm.eps, norm.momentum)
                for own, tensor in (*norm.named_parameters(), *norm.named_buffers()):
                    setattr(gathered, own, tensor)
                setattr(parent, name, gathered)
    return model
