"""Priors and generators small enough to know everything about: what the tests of several rooms are made of."""

import torch
from torch import Tensor, nn

from hebmtool import recipe
from hebmtool.generator import Generator, TopDown
from hebmtool.generator.likelihood import FixedGaussian
from hebmtool.prior import KINDS, EnergyPrior, Prior, make_prior
from hebmtool.prior.labels import LabelEnergy

FLOW = {"latent": 5, "transforms": 4, "hidden": 8, "width": 4}
ENERGY_KINDS = [kind for kind, of in KINDS.items() if issubclass(of, EnergyPrior) and not of.brings_generator]
"""Those on a generator of many layers."""


def toy_prior(generator, kind="diffusion-ebm", chain="preconditioned", weight=1e-2, reads="z+state", **keys) -> Prior:
    """A prior whose parameters are of size `weight` where they start at zero, as if it had been trained.

    A kind that brings its generator gets one for images of the same shape; `keys` are those of the recipe's part, which
    for these is `flow`.
    """
    if KINDS[kind].brings_generator:
        energy = recipe.Energy(width=6, blocks=1)
        own = recipe.Prior(kind=kind, chain=chain, steps=3, eta=1e-2, energy=energy)
        settings = recipe.Recipe(prior=own, flow=recipe.Flow(**FLOW | keys))
        prior = KINDS[kind].from_recipe(settings, generator.image_shape)
    else:
        config = recipe.Prior(kind=kind, chain=chain, **{"steps": 3, "eta": 1e-2} | keys)
        config.energy = recipe.Energy(reads=reads, width=6, blocks=1)
        prior = make_prior(generator, config)
    with torch.no_grad():
        for p in prior.parameters():
            if not p.any() and weight:
                nn.init.normal_(p, std=weight)
    prior.settle()
    return prior


def toy_label(generator, name="class", values=("a", "b", "c"), layers=None, levels=3) -> LabelEnergy:
    """A label whose networks have random weights where they start at zero, as if it had been trained."""
    energy = recipe.Energy(reads="z+state", width=6, blocks=1)
    label = LabelEnergy(name, values, generator, recipe.Prior(levels=levels, energy=energy, label_layers=layers))
    for p in label.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.1)
    label.energy.settle()
    label.energy.fix()
    return label.eval()


class Plane(Generator):
    """Two layers of one coordinate each, so that every integral over u is a sum over a grid:

    z_2 = u_2,   z_1 = sin(2 z_2) + exp(z_2 / 3) u_1,   h_1 = (z_2, z_2^2),   2x - 1 = tanh(z_1 + z_2) + 0.5 eps
    """

    def __init__(self):
        super().__init__()
        self.image_shape, self.latent_shapes, self.state_channels = (1, 1, 1), [(1, 1, 1)] * 2, [1, 2]
        self.likelihood = FixedGaussian(0.5)
        self.one = nn.Parameter(torch.ones(1), requires_grad=False)

    def walk(self, u: Tensor, layers: int | None = None) -> TopDown:
        walk, state = TopDown(), u.new_ones(len(u), 1, 1, 1)
        mu, sigma = torch.zeros_like(state), torch.ones_like(state)
        for u_i in self.split(self.residuals(u))[:layers]:
            z = mu + sigma * u_i
            for found, value in zip(
                (walk.z, walk.u, walk.mu, walk.sigma, walk.h), (z, u_i, mu, sigma, state), strict=True
            ):
                found.append(value)
            mu, sigma, state = (2 * z).sin(), (z / 3).exp(), torch.cat([z, z.square()], dim=1)
        return walk

    def T_inverse(self, z: Tensor) -> Tensor:
        top, bottom = z.split(1, dim=1)
        return self.whitened(torch.cat([top, (bottom - (2 * top).sin()) / (top / 3).exp()], dim=1))

    def decode(self, walk: TopDown) -> Tensor:
        return (walk.z[0] + walk.z[1]).tanh()


class Twins(Generator):
    """Two layers of four coordinates each and no more: T is the identity, and each layer's state the map above it."""

    def __init__(self):
        super().__init__()
        self.image_shape, self.latent_shapes, self.state_channels = (1, 2, 2), [(1, 2, 2)] * 2, [1, 1]
        self.likelihood = FixedGaussian(0.5)
        self.one = nn.Parameter(torch.ones(1), requires_grad=False)

    def walk(self, u: Tensor, layers: int | None = None) -> TopDown:
        maps = self.split(u)[:layers]
        states = [torch.ones_like(maps[0]), *maps[:-1]]
        return TopDown(maps, maps, [torch.zeros_like(m) for m in maps], [torch.ones_like(m) for m in maps], states)

    def T_inverse(self, z: Tensor) -> Tensor:
        return z

    def decode(self, walk: TopDown) -> Tensor:
        return (walk.z[0] + walk.z[1]).tanh()


class Linear(Generator):
    """2x - 1 = A z + sigma eps, as an image of one row: whose posterior is known where the prior is Gaussian.

    Arguments:
        A: [pixels, D].
    """

    has_encoder = False

    def __init__(self, A: Tensor, sigma: float):
        super().__init__()
        self.A, self.likelihood = nn.Parameter(A), FixedGaussian(sigma)
        self.image_shape, self.latent_shapes, self.state_channels = (1, 1, len(A)), [(A.shape[1], 1, 1)], [1]

    def walk(self, u: Tensor, layers: int | None = None) -> TopDown:
        z = u[:, :, None, None]
        return TopDown([z], [z], [torch.zeros_like(z)], [torch.ones_like(z)], [z])

    def T_inverse(self, z: Tensor) -> Tensor:
        return z

    def decode(self, walk: TopDown) -> Tensor:
        return (walk.z[0].flatten(1) @ self.A.T)[:, None, None]


def grid(reach: float = 5.0, points: int = 61) -> tuple[Tensor, float]:
    """(points of a square grid over the plane [points^2, 2], the area each stands for)."""
    side = torch.linspace(-reach, reach, points)
    return torch.cartesian_prod(side, side), float(side[1] - side[0]) ** 2


def normalised(log_density: Tensor) -> Tensor:
    """Shares of the points of a grid, summing to 1 over the last dimension."""
    return log_density.double().softmax(-1)
