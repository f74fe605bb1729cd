"""Weights averaged over updates, which are what is kept, sampled and judged."""

import torch
from torch import nn


class Ema:
    """Exponential moving average of a module's parameters and BatchNorm statistics; other buffers are copied.

    The decay rises to its value over the first updates, so that the start is forgotten.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.tensors = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        parameters = {name for name, _ in module.named_parameters()}
        averaged, values = [], []
        for key, value in module.state_dict().items():
            if key in parameters or key.endswith(("running_mean", "running_var")):
                averaged.append(self.tensors[key])
                values.append(value)
            else:
                self.tensors[key].copy_(value)
        if averaged:
            torch._foreach_lerp_(averaged, values, weight)  # a few kernels in place of one each
