"""The generator p(x, z) = p(x | z) p(z) as the rest of the package sees it, and the bijection T.

    p(z) = p(z_L) prod_{i<L} p(z_i | z_{>i}),        p(z_i | z_{>i}) = N(mu_i, sigma_i^2)
    T:    z_i = mu_i(z_{>i}) + sigma_i(z_{>i}) u_i          u ~ N(0, I) under p_0, the generator's own prior
    T^-1: u_i = (z_i - mu_i(z_{>i})) / sigma_i(z_{>i})

Layer L is the top (coarsest, drawn first), layer 1 the bottom.  Inside the code lists run top first, so list index
l is layer L - l; `layer_number` is the one place that converts.  u and z travel as flat tensors [N, D], the
layers' maps one after another, top first; `split` gives the views [N, Z, h, w].

A generator may be whitened for a prior: what goes in and comes out as flat u is then w of u = m + A w, in which the
aggregate posterior has mean 0 and covariance I.  Everything said of u and T holds for w and the bijection w -> z; the
walks go on holding the residuals u_i themselves.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from math import prod

import torch
from torch import Tensor, nn

from hebmtool.generator.likelihood import Likelihood, log_normal
from hebmtool.generator.whitening import Whitening


@dataclass
class TopDown:
    """What one walk down the layers met, lists top first, one entry per layer walked.

    z, mu, sigma, u: [N, Z, h, w].  h: the top-down state at the layer, [N, C, h, w], a function of z_{>i}.
    """

    z: list[Tensor] = field(default_factory=list)
    u: list[Tensor] = field(default_factory=list)
    mu: list[Tensor] = field(default_factory=list)
    sigma: list[Tensor] = field(default_factory=list)
    h: list[Tensor] = field(default_factory=list)

    def log_p_0(self) -> Tensor:
        """log p_0(z), [N] nats, of the layers walked."""
        maps = zip(self.z, self.mu, self.sigma, strict=True)
        return sum(log_normal(z, mu, sigma).flatten(1).sum(1) for z, mu, sigma in maps)


@dataclass
class Posterior:
    """A draw z ~ q(z | x) and what training needs of it.

    walk: the walk that drew it.  kl: [N, L] nats per layer, top first.  log_ratio: log q(z_i | z_{>i}, x) / p(z_i |
    z_{>i}) at the draw itself, [N, L], of which kl is the mean (and which it is where flows leave it no closed form).
    """

    walk: TopDown
    kl: Tensor
    log_ratio: Tensor


class Generator(nn.Module, ABC):
    """`L` layers, `D` latent dimensions; images are [N, C, H, W] in [0, 1].

    image_shape: (C, H, W).  latent_shapes: (Z, h, w) of every layer, and state_channels: channels of its h, top first.
    has_encoder: whether there is a q(z | x), with `posterior` and `encode`; latents are inferred by a chain otherwise.
    precision: "float32" or "bf16", of states and weights; latents and their densities are in float32.
    """

    has_encoder = True
    likelihood: Likelihood
    image_shape: tuple[int, int, int]
    latent_shapes: list[tuple[int, int, int]]
    state_channels: list[int]
    precision = "float32"

    def __init__(self) -> None:
        super().__init__()
        self.whitening: Whitening | None = None

    # Layout ---------------------------------------------------------------------------------------------------------

    @property
    def L(self) -> int:
        return len(self.latent_shapes)

    @property
    def D(self) -> int:
        return sum(map(prod, self.latent_shapes))

    @property
    def slices(self) -> list[slice]:
        """The coordinates of every layer in flat latents, top first."""
        return [slice(*ends) for ends in pairwise(accumulate(map(prod, self.latent_shapes), initial=0))]

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def layer_number(self, l: int) -> int:
        """Layer number (1 = bottom, L = top) of list index l (0 = top), and the other way round."""
        return self.L - l

    def split(self, flat: Tensor) -> list[Tensor]:
        """Flat latents [N, D] (or their first layers') -> views [N, Z, h, w], top first."""
        sizes = [s.stop - s.start for s in self.slices if s.stop <= flat.shape[1]]
        # Not slice by slice, whose gradients would each be as large as all of u.
        maps = flat[:, : sum(sizes)].split(sizes, dim=1)
        return [m.unflatten(1, shape) for m, shape in zip(maps, self.latent_shapes, strict=False)]

    @staticmethod
    def join(maps: list[Tensor]) -> Tensor:
        """The inverse of `split`."""
        return torch.cat([m.flatten(1) for m in maps], dim=1)

    # T, and what becomes of z ---------------------------------------------------------------------------------------

    @abstractmethod
    def walk(self, u: Tensor, layers: int | None = None) -> TopDown:
        """Walk down with z = T(u).

        Arguments:
            u: [N, D], or only as many of the top layers as `layers` asks for.
            layers: walk only this many layers from the top; all of them by default.  Pixels are never computed.
        """

    @abstractmethod
    def T_inverse(self, z: Tensor) -> Tensor:
        """u = T^-1(z).  [N, D] -> [N, D]."""

    @abstractmethod
    def decode(self, walk: TopDown) -> Tensor:
        """Parameters of p(x | z), [N, P, H, W], from a whole walk."""

    def T(self, u: Tensor) -> Tensor:
        """z = T(u).  [N, D] -> [N, D]."""
        return self.join(self.walk(u).z)

    def log_px(self, walk: TopDown, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """log p(x | z), [N] nats, from a whole walk.

        Arguments:
            x: [N, C, H, W], as the likelihood reads pixels.
            visible: bool [N, 1, H, W], the pixels that count; all when None.
        """
        return self.likelihood.log_prob(self.decode(walk), x, visible)

    def images(self, u: Tensor) -> Tensor:
        """Mean images of p(x | T(u)).  [N, D] -> [N, C, H, W] in [0, 1]."""
        return self.likelihood.mean(self.decode(self.walk(u)))

    def drawn(self, u: Tensor, seeds: Sequence[int]) -> Tensor:
        """Images of p(x | T(u)), one each by a seed of its own, [N, C, H, W] in [0, 1] and on the CPU, where they are
        drawn.  torch's random state is put back."""
        images = []
        with torch.random.fork_rng(devices=[]):
            for logits, seed in zip(self.decode(self.walk(u)).float().cpu(), seeds, strict=True):
                torch.manual_seed(seed)
                images.append(self.likelihood.sample(logits[None]))
        return torch.cat(images)

    def bits_per_dim(self, log_px: Tensor) -> Tensor:
        """Bits per dimension from a log-likelihood (or bound) in nats, [N] -> [N]."""
        return self.likelihood.bits_per_dim(log_px, prod(self.image_shape))

    # Whitened latents -----------------------------------------------------------------------------------------------

    @property
    def whitening_digest(self) -> str | None:
        """Which latents these are: `Whitening.digest`, None where nothing is whitened."""
        return None if self.whitening is None else self.whitening.digest

    def residuals(self, u: Tensor) -> Tensor:
        """What `whitened` made u of, or the first dimensions' of it, [N, d]."""
        return u if self.whitening is None else self.whitening.to_u(u)

    def latents(self, walk: TopDown) -> Tensor:
        """u of a whole walk, [N, D]."""
        return self.whitened(self.join(walk.u))

    def whitened(self, residuals: Tensor) -> Tensor:
        """u for residuals [N, D], such as draws of N(0, I), this generator's own prior."""
        return residuals if self.whitening is None else self.whitening.to_w(residuals)

    def whitening_ratio(self, u: Tensor) -> Tensor:
        """What whitening alone knows, by layer: log of N(0, I) in w over N(0, I) in the residuals, densities of one law
        over the other's in the same coordinates.  u: [N, D] -> [N, L] nats, top first; 0 where nothing is whitened."""
        if self.whitening is None:
            return u.new_zeros(len(u), self.L)
        terms = 0.5 * (self.residuals(u).square() - u.square()) - self.whitening.log_scale
        return torch.stack([terms[:, s].sum(1) for s in self.slices], dim=1)
