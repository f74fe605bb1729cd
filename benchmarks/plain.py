"""The prior's arithmetic done plainly, the way research code does it: what `benchmarks/langevin.py` compares with, and
what `tests/test_speed.py` holds the library to.

Every evaluation of log p runs the whole decoder to the pixels, on a generator whose convolutions normalise their
weights at every call, whose BatchNorms are BatchNorms, and whose parameters want gradients; the energies run one after
another and normalise theirs as well; the Gaussian terms are differentiated along with F.  Everything is float32, in
torch's default layout.
"""

import copy
import math
from collections.abc import Callable

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from hebmtool.generator import Tower
from hebmtool.generator.layers import ELU
from hebmtool.prior import EnergyPrior
from hebmtool.prior.energy import PERIOD, TIME_FEATURES, sinusoidal


def spectral(conv, x: Tensor) -> Tensor:
    """The convolution of an energy, its weight divided by its largest singular value."""
    w = conv.conv.weight
    if conv.norm:
        w = w / (conv.left @ w.flatten(1) @ conv.right).clamp(min=1e-6)
    return functional.conv2d(x, w, conv.conv.bias, conv.conv.stride, conv.conv.padding)


class Plain:
    """The same prior, plainly.

    Arguments:
        generator: the unfrozen one, in evaluation mode; copied.
        prior: on the frozen one; its energies are copied.
    """

    def __init__(self, generator: Tower, prior: EnergyPrior):
        self.generator = copy.deepcopy(generator).to(memory_format=torch.contiguous_format).requires_grad_(True)
        for module in list(self.generator.modules()):
            for name, child in module.named_children():
                if isinstance(child, ELU):
                    setattr(module, name, nn.ELU())
        self.prior = prior
        self.energy = copy.deepcopy(prior.energy).to(memory_format=torch.contiguous_format).requires_grad_(True)

    # T and F

    def decode(self, u: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor]:
        """z, u and the states, layer by layer, top first, and the pixels' parameters."""
        g = self.generator
        maps = [m.view(-1, *shape) for m, shape in zip(u.split(self.sizes(), dim=1), g.latent_shapes, strict=True)]
        zs, states = [], []
        s = g.constant.expand(len(u), *g.constant.shape)
        for l, layer in enumerate(g.decoder):
            s = layer.cells(s)
            if l == 0:
                mu, log_sigma = torch.zeros_like(maps[0]), torch.zeros_like(maps[0])
            else:
                mu, log_sigma = layer.head(s).chunk(2, dim=1)
            sigma = torch.exp(5 * torch.tanh(log_sigma / 5)) + 0.01
            z = 5 * torch.tanh(mu / 5) + sigma * maps[l]
            zs.append(z)
            states.append(s)
            s = layer.combine(torch.cat([s, z], dim=1))
            if layer.up is not None:
                s = layer.up(s)
        return zs, maps, states, g.image_head(g.postprocess(s))

    def sizes(self) -> list[int]:
        return [math.prod(shape) for shape in self.generator.latent_shapes]

    def f(self, l: int, z: Tensor, u: Tensor, state: Tensor, level: Tensor) -> Tensor:
        """f_i(z_i[, h_i]) for list index l, [N]."""
        layer = self.energy.layers[l]
        if self.energy.reads_state:
            z = torch.cat([z, u], dim=1)
        x = spectral(layer.read, z)
        if layer.read_state is not None:
            mean, scale = getattr(self.energy, f"state_mean_{l}"), getattr(self.energy, f"state_scale_{l}")
            x = x + spectral(layer.read_state, (state - mean) / scale)
        for first, second, shift in zip(layer.first, layer.second, layer.level, strict=True):
            y = spectral(first, functional.silu(x)) + shift(level)[:, :, None, None]
            x = x + spectral(second, functional.silu(y))
        x = functional.silu(x)
        for down in layer.down:
            x = functional.silu(spectral(down, x))
        return layer.head(x.flatten(1) if layer.strided else x.sum((2, 3)))[:, 0]

    def F(self, u: Tensor, t: Tensor) -> Tensor:
        """F(T(u), t), [N]."""
        zs, maps, states, _ = self.decode(u)
        level = sinusoidal(t, TIME_FEATURES, PERIOD)
        total = torch.zeros(len(u), device=u.device)
        for l in range(len(zs)):
            total = total + self.f(l, zs[l], maps[l], states[l], level)
        return total

    # Chains

    def slope(self, log_p: Callable[[Tensor], Tensor], u: Tensor) -> Tensor:
        u = u.detach().requires_grad_(True)
        return torch.autograd.grad(log_p(u).sum(), u)[0].detach()

    def negatives(self, u_next: Tensor, t: Tensor, noise: Callable[[], Tensor], steps: int) -> Tensor:
        """The chain of level t, as `EnergyPrior.negatives`."""
        config = self.prior.config
        a, sigma = self.prior.schedule.conditional(t)
        if config.chain == "langevin":
            b_squared = self.prior.scale(t)[:, None]

            def log_p(u: Tensor) -> Tensor:
                recovery = (a > 0) * (u_next - a * u).square() / (2 * sigma.square())
                return self.F(u, t) / b_squared[:, 0] - (u.square() / 2 + recovery).sum(1)

            u = u_next
            for _ in range(steps):
                u = u + b_squared / 2 * self.slope(log_p, u) + b_squared.sqrt() * noise()
            return u
        m = a * u_next

        def log_p(u: Tensor) -> Tensor:
            return self.F(u, t) - ((u - m).square() / (2 * sigma.square())).sum(1)

        u = m + sigma * noise()
        if config.chain == "preconditioned":
            rho = math.exp(-config.h)
            for _ in range(steps):
                drift = (1 - rho) * sigma.square() * self.slope(log_p, u)
                u = u + drift + math.sqrt(1 - rho**2) * sigma * noise()
            return u

        def slope_of_F(u: Tensor) -> Tensor:
            return self.slope(log_p, u) + (u - m) / sigma.square()

        cos, sin, c = math.cos(config.theta), math.sin(config.theta), config.persistence
        v = sigma * noise()
        v = v + config.theta / 2 * sigma.square() * slope_of_F(u)
        for step in range(steps):
            u, v = m + cos * (u - m) + sin * v, cos * v - sin * (u - m)
            if step < steps - 1:
                kick = config.theta / 2 * sigma.square() * slope_of_F(u)
                v = c * (v + kick) + math.sqrt(1 - c**2) * sigma * noise() + kick
        return u

    @torch.no_grad()
    def images(self, u: Tensor) -> Tensor:
        g = self.generator
        (top, left), (height, width) = g.margins, g.image_shape[1:]
        return g.likelihood.mean(self.decode(u)[3][:, :, top : top + height, left : left + width])

    # Stage two

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """u_0 of images [N, C, H, W], through the whole network."""
        posterior = self.generator.posterior(x)
        self.generator.decode(posterior.walk)
        return self.generator.join(posterior.walk.u)

    def loss(self, u_0: Tensor) -> Tensor:
        """Stage two's loss on posterior draws [N, D], drawing what `prior.loss` draws, in its order."""
        prior, config = self.prior, self.prior.config
        positive, u_next, t = prior.pairs(u_0)
        if config.objective == "recovery":
            negative = self.negatives(u_next, t, lambda: torch.randn_like(u_0), config.steps)
        else:
            negative = torch.randn_like(u_0)
        F = []
        for u in (positive, negative):
            with torch.no_grad():
                zs, maps, states, _ = self.decode(u)
            level = sinusoidal(t, TIME_FEATURES, PERIOD)
            F.append(sum(self.f(l, zs[l], maps[l], states[l], level) for l in range(len(zs))))
        scale = prior.scale(t)
        if config.objective == "recovery":
            return ((F[1] - F[0]) / scale).mean()
        return functional.softplus(-F[0] / scale).mean() + functional.softplus(F[1] / scale).mean()
