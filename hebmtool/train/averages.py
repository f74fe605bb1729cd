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
        averaged = {name for name, _ in module.named_parameters()}
        for key, value in module.state_dict().items():
            if key in averaged or key.endswith(("running_mean", "running_var")):
                self.tensors[key].lerp_(value, weight)
            else:
                self.tensors[key].copy_(value)
