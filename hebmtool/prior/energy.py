"""The energy F_w(z, t) = sum_i f_i(z_i, t): one small network per latent layer.

F is the negative of an energy in the physicist's sign: high means likely (HEBM, arXiv 2405.13910, section 3).
With `reads: z+state`, f_i sees besides z_i the top-down state h_i(z_{>i}) and the residual u_i, both of which the
walk through T has computed already, so F remains a function of z; it sees directly the dependence between layers,
where the prior hole is.

Convolutions are spectral-normalised (Miyato et al. 2018, arXiv 1802.05957).  The power iteration is advanced once
per update by `advance`, never by a forward pass, and `fixed` holds the normalised weights while a chain runs.

An energy computes in its generator's precision, latents, readouts and sums in float32.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hebmtool import recipe as recipes
from hebmtool.compute import autocast
from hebmtool.generator import Generator, TopDown
from hebmtool.generator.layers import FixedConvolution, transposed

TIME_FEATURES = 32
SETTLING = 20
CALIBRATION_DRAWS = 512


def sinusoidal(t: Tensor) -> Tensor:
    """Sinusoidal embedding of levels t [N] -> [N, TIME_FEATURES]."""
    half = TIME_FEATURES // 2
    frequencies = torch.exp(-math.log(100.0) * torch.arange(half, device=t.device) / half)
    angles = t[:, None].float() * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class SpectralConv(nn.Module):
    """Convolution divided by its largest singular value ([c_out, rest]); plain where `norm` is off."""

    def __init__(self, c_in: int, c_out: int, kernel: int, norm: bool, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, stride=stride)
        self.norm = norm
        self.register_buffer("left", F.normalize(torch.randn(c_out), dim=0))
        self.register_buffer("right", torch.zeros(c_in * kernel * kernel))
        self.fixed: tuple[Tensor, Tensor, Tensor] | None = None
        # Between vectors that have not met w the estimate is near 0, and would blow the weight up.
        self.advance()

    @torch.no_grad()
    def advance(self) -> None:
        """One step of the power iteration."""
        w = self.conv.weight.flatten(1)
        self.right.copy_(F.normalize(w.T @ self.left, dim=0))
        self.left.copy_(F.normalize(w @ self.right, dim=0))

    def weight(self) -> Tensor:
        w = self.conv.weight
        return w / (self.left @ w.flatten(1) @ self.right).clamp(min=1e-6) if self.norm else w

    def constants(self, standard: "Standard | None" = None) -> tuple[Tensor, Tensor]:
        """(weight, bias); with `standard`, of a 1x1 kernel that reads x and sees (x - mean) / scale."""
        w, bias = self.weight(), self.conv.bias
        if standard is not None:
            mean, scale = standard
            w = w / scale
            bias = bias - w.flatten(1) @ mean.flatten()
        return w, bias

    def fix(self, dtype: torch.dtype, standard: "Standard | None" = None) -> None:
        w, bias = (c.detach().to(dtype) for c in self.constants(standard))
        self.fixed = w.contiguous(memory_format=torch.channels_last), bias, transposed(w)

    def forward(self, x: Tensor, standard: "Standard | None" = None) -> Tensor:
        if self.fixed is None:
            return F.conv2d(x, *self.constants(standard), self.conv.stride, self.conv.padding)
        w, bias, back = self.fixed
        x = x.to(w.dtype)
        if self.conv.stride == (1, 1):
            return FixedConvolution.apply(x, w, bias, back, 1)
        return F.conv2d(x, w, bias, self.conv.stride, self.conv.padding)


Standard = tuple[Tensor, Tensor]
"""(mean, scale) of each channel of a state, [C, 1, 1]."""


class LayerEnergy(nn.Module):
    """f_i: latent map [N, Z, h, w], optional state [N, C, h, w], level embedding -> [N, outputs].

    Arguments:
        channels: channels read beside the state.
        state: channels of h_i, or 0 when it is not read.
        size: (h, w).
    """

    def __init__(self, channels: int, state: int, size: tuple[int, int], config: recipes.Energy, outputs: int = 1):
        super().__init__()
        width, norm = config.width, config.spectral_norm
        self.read = SpectralConv(channels, width, 3, norm)
        self.read_state = SpectralConv(state, width, 1, norm) if state else None
        self.first = nn.ModuleList(SpectralConv(width, width, 3, norm) for _ in range(config.blocks))
        self.second = nn.ModuleList(SpectralConv(width, width, 3, norm) for _ in range(config.blocks))
        self.level = nn.ModuleList(nn.Linear(TIME_FEATURES, width) for _ in range(config.blocks))
        down, features = [], width
        if config.readout == "strided":
            h, w = size
            while max(h, w) > 2:
                down.append(SpectralConv(features if not down else 2 * width, 2 * width, 3, norm, stride=2))
                h, w, features = (h + 1) // 2, (w + 1) // 2, 2 * width
            self.last = h, w
            features *= h * w
        self.strided = config.readout == "strided"
        self.down = nn.ModuleList(down)
        self.head = nn.Linear(features, outputs)
        # F starts at 0: the prior starts at the Gaussian.
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, z: Tensor, state: Tensor | None, level: Tensor, standard: Standard | None = None) -> Tensor:
        x = self.read(z)
        if self.read_state is not None:
            x = x + self.read_state(state, standard)
        for first, second, shift in zip(self.first, self.second, self.level, strict=True):
            x = x + second(F.silu(first(F.silu(x)) + shift(level)[:, :, None, None].to(x.dtype)))
        x = F.silu(x)
        for down in self.down:
            x = F.silu(down(x))
        # Read so that the gradient of x comes in the layout of x.
        w = self.head.weight
        if self.strided:
            x = x.permute(0, 2, 3, 1).flatten(1)
            w = w.unflatten(1, (-1, *self.last)).permute(0, 2, 3, 1).flatten(1)
        else:
            x = x.sum((2, 3))
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), w, self.head.bias)


class Energy(nn.Module):
    """All f_i of a generator.

    Arguments:
        generator: only its shapes and precision are used, and draws of its states for standardising them.
        outputs: numbers that each f_i gives: 1, or one per class (`hebmtool.prior.labels`).
        chosen: list indices of the layers that have an f_i; all by default.
    """

    def __init__(
        self, generator: Generator, config: recipes.Energy, outputs: int = 1, chosen: Sequence[int] | None = None
    ):
        super().__init__()
        self.precision = generator.precision
        self.chosen = list(range(generator.L)) if chosen is None else sorted(chosen)
        self.reads_state = config.reads == "z+state"
        widths, channels = generator.state_channels, [shape[0] for shape in generator.latent_shapes]
        self.layers = nn.ModuleList(
            # The top state is a constant and says nothing.
            LayerEnergy(
                2 * channels[l] if self.reads_state else channels[l],
                widths[l] if self.reads_state and l > 0 else 0,
                generator.latent_shapes[l][1:],
                config,
                outputs,
            )
            for l in self.chosen
        )
        self.to(memory_format=torch.channels_last)
        if self.reads_state:
            for l, width in enumerate(widths):
                self.register_buffer(f"state_mean_{l}", torch.zeros(width, 1, 1))
                self.register_buffer(f"state_scale_{l}", torch.ones(width, 1, 1))

    @torch.no_grad()
    def calibrate(self, walk: TopDown) -> None:
        """Set the affine that standardises each channel of h_i, from a walk over draws of N(0, I), as u."""
        if self.reads_state:
            for l, h in enumerate(walk.h):
                mean, scale = self.standard(l)
                mean.copy_(h.float().mean((0, 2, 3))[:, None, None])
                scale.copy_(h.float().std((0, 2, 3)).clamp(min=1e-3)[:, None, None])

    def standard(self, l: int) -> Standard | None:
        """What standardises h of list index l, where energies read it."""
        return (getattr(self, f"state_mean_{l}"), getattr(self, f"state_scale_{l}")) if self.reads_state else None

    def forward(self, walk: TopDown, t: Tensor) -> Tensor:
        """f_i per image and layer, [N, layers, outputs], top first.

        Arguments:
            walk: through the first layers, or all of them; the layers it has not reached are left out.
            t: level per image, [N].
        """
        level = sinusoidal(t)
        out = []
        with autocast(t.device, self.precision):
            for l, layer in zip(self.chosen, self.layers, strict=True):
                if l >= len(walk.z):
                    break
                if self.reads_state:
                    z, state = torch.cat([walk.z[l], walk.u[l]], dim=1), walk.h[l]
                else:
                    z, state = walk.z[l], None
                out.append(layer(z, state, level, self.standard(l)))
        return torch.stack(out, dim=1)

    def advance(self) -> None:
        """One step of every power iteration; call once per update."""
        for module in self.modules():
            if isinstance(module, SpectralConv):
                module.advance()

    def settle(self) -> None:
        """Let the power iterations converge, after the weights were replaced by others (averaged ones, say)."""
        for _ in range(SETTLING):
            self.advance()

    def fix(self) -> None:
        """Make the weights constants, normalised once, for good."""
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        for l, layer in zip(self.chosen, self.layers, strict=True):
            for conv in layer.modules():
                if isinstance(conv, SpectralConv):
                    conv.fix(dtype, self.standard(l) if conv is layer.read_state else None)
        self.requires_grad_(False)

    @contextmanager
    def fixed(self) -> Iterator[None]:
        """Within the block the weights are constants, normalised once: no gradient reaches the parameters."""
        required = [p.requires_grad for p in self.parameters()]
        try:
            self.fix()
            yield
        finally:
            for conv in self.modules():
                if isinstance(conv, SpectralConv):
                    conv.fixed = None
            for p, flag in zip(self.parameters(), required, strict=True):
                p.requires_grad_(flag)
