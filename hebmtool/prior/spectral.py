"""What energies are made of: spectral-normalised layers, and the embedding of a level.

A weight, as a matrix [c_out, rest], is divided by its largest singular value (Miyato et al. 2018, arXiv 1802.05957),
which a power iteration follows as the weight is learned: `advance` is one step of it, `settle` its limit.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hebmtool.compute import in_place, uncast
from hebmtool.generator.layers import FixedConvolution, transposed

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "leaky-relu": partial(F.leaky_relu, negative_slope=0.2),
}


def sinusoidal(t: Tensor, features: int, period: float) -> Tensor:
    """Sinusoidal embedding of levels t [N] -> [N, features], of angular frequencies from 1 down to 1 / period."""
    half = features // 2
    frequencies = torch.exp(-math.log(period) * torch.arange(half, device=t.device) / half)
    angles = t[:, None].float() * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


Standard = tuple[Tensor, Tensor]
"""(mean, scale) of each channel of a state, [C, 1, 1]."""


class SpectralConv(nn.Module):
    """Convolution divided by its largest singular value ([c_out, rest]); plain where `norm` is off.

    Padded so that a stride of 1 keeps an odd kernel's map, and a stride of 2 halves it.
    """

    def __init__(self, c_in: int, c_out: int, kernel: int, norm: bool, stride: int = 1, bias: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, padding=(kernel - 1) // 2, stride=stride, bias=bias)
        self.norm = norm
        self.register_buffer("left", F.normalize(torch.randn(c_out), dim=0))
        self.register_buffer("right", torch.zeros(c_in * kernel * kernel))
        self.fixed: tuple[Tensor, Tensor | None, Tensor] | None = None
        self._place: tuple[Tensor, Tensor | None, Tensor] | None = None  # where they were the last time
        # Between vectors that have not met w the estimate is near 0, and would blow the weight up.
        self.advance()

    @torch.no_grad()
    def advance(self) -> None:
        """One step of the power iteration."""
        w = self.conv.weight.flatten(1)
        self.right.copy_(F.normalize(w.T @ self.left, dim=0))
        self.left.copy_(F.normalize(w @ self.right, dim=0))

    @torch.no_grad()
    def settle(self) -> None:
        """Where the power iteration converges to."""
        w = self.conv.weight.flatten(1)
        self.left.copy_(torch.linalg.eigh(w @ w.T).eigenvectors[:, -1])
        self.advance()

    def weight(self) -> Tensor:
        w = self.conv.weight
        return w / (self.left @ w.flatten(1) @ self.right).clamp(min=1e-6) if self.norm else w

    def constants(self, standard: Standard | None = None) -> tuple[Tensor, Tensor | None]:
        """(weight, bias); with `standard`, of a 1x1 kernel that reads x and sees (x - mean) / scale."""
        w, bias = self.weight(), self.conv.bias
        if standard is not None:
            mean, scale = standard
            w = w / scale
            bias = bias - w.flatten(1) @ mean.flatten()
        return w, bias

    def fix(self, dtype: torch.dtype, standard: Standard | None = None) -> None:
        w, bias = (None if c is None else c.detach().to(dtype) for c in self.constants(standard))
        constants = w.contiguous(memory_format=torch.channels_last), bias, transposed(w)
        self.fixed = self._place = in_place(self._place, constants)

    def forward(self, x: Tensor, standard: Standard | None = None) -> Tensor:
        if self.fixed is None:
            return F.conv2d(x, *self.constants(standard), self.conv.stride, self.conv.padding)
        w, bias, back = self.fixed
        x = x.to(w.dtype)
        if self.conv.stride == (1, 1):
            return FixedConvolution.apply(x, w, bias, back, 1)
        return F.conv2d(x, w, bias, self.conv.stride, self.conv.padding)


class SpectralLinear(SpectralConv):
    """The same of vectors, [N, c_in] -> [N, c_out], without a bias and in float32 always."""

    def __init__(self, c_in: int, c_out: int, norm: bool):
        super().__init__(c_in, c_out, 1, norm, bias=False)

    def fix(self, dtype: torch.dtype, standard: Standard | None = None) -> None:
        super().fix(torch.float32)

    def forward(self, x: Tensor, standard: Standard | None = None) -> Tensor:
        with uncast(x.device):
            return super().forward(x.float()[:, :, None, None])[:, :, 0, 0]


def spectral(module: nn.Module) -> Iterator[SpectralConv]:
    """All in `module`."""
    return (each for each in module.modules() if isinstance(each, SpectralConv))
