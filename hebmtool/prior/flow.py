"""A normalizing flow over a latent of one layer ("A Tale of Two Latent Flows", "LFBM", Xie et al. 2023,
https://arxiv.org/abs/2301.09300).

    z_0 ~ N(0, I),   z = f(z_0)
    log p(z) = log N(f^-1(z); 0, I) + log |det df^-1/dz|

f is a stack of couplings (RealNVP, https://arxiv.org/abs/1605.08803; splines, https://arxiv.org/abs/1906.04032) from
zuko; as published each comes after an actnorm and an invertible linear map (Glow, https://arxiv.org/abs/1807.03039),
which mix what it then halves.  It is learned with its generator, as `hebmtool.prior.one_stage` says.
"""

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from hebmtool import recipe as recipes
from hebmtool.errors import HebmError, not_installed
from hebmtool.generator import OneLayer, TopDown
from hebmtool.prior.base import Eps, HeldStages, Steps, Watch, log_standard_normal
from hebmtool.prior.one_stage import OneStage


class Mixing(nn.Module):
    """Actnorm, then an invertible linear map: z' = W (exp(s) (z + b)).  It starts as a random rotation, which leaves
    N(0, I) as it is, so the actnorm needs no look at data to begin with.

    Arguments:
        D: dimensions of z.
    """

    def __init__(self, D: int):
        super().__init__()
        self.shift, self.log_scale = nn.Parameter(torch.zeros(D)), nn.Parameter(torch.zeros(D))
        self.linear = nn.Parameter(nn.init.orthogonal_(torch.empty(D, D)))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(z' [N, D], log |det dz'/dz|, the same for all)."""
        z = (self.log_scale.exp() * (z + self.shift)) @ self.linear.T
        return z, self.log_scale.sum() + torch.linalg.slogdet(self.linear)[1]

    def inverse(self, z: Tensor) -> Tensor:
        return torch.linalg.solve(self.linear, z.T).T * (-self.log_scale).exp() - self.shift


def _coupling(config: recipes.Flow, mask: Tensor) -> nn.Module:
    """One of zuko's, which only this prior needs.  Raises HebmError when it is not installed."""
    try:
        from hebmtool.prior.couplings import COUPLINGS, Coupling
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "zuko":
            raise
        raise not_installed("a flow prior needs", "zuko", "flow") from None
    return Coupling(len(mask), mask=mask, hidden_features=(config.hidden,) * 2, **COUPLINGS[config.coupling])


class FlowPrior(OneStage, kind="flow"):
    """A flow over the latent of a one-layer generator that it is learned with; one checkpoint holds both.

    Arguments:
        generator: its g.
        config: the recipe's `flow` part.
    """

    def __init__(self, generator: OneLayer, config: recipes.Flow):
        super().__init__(generator)
        self.inference, self.g, D = config, generator, config.latent
        couplings, mixes = [], config.mixing == "linear"
        for i in range(config.transforms):
            if mixes:
                # Which half is one to a coupling whose coordinates were mixed.
                mask = torch.arange(D) < D // 2
            elif i % 2 == 0:
                mask = torch.randperm(D) % 2 == 0
            coupling = _coupling(config, mask if mixes or i % 2 == 0 else ~mask)
            # The identity, so that learning starts from N(0, I).
            nn.init.zeros_(coupling.hyper[-1].weight)
            nn.init.zeros_(coupling.hyper[-1].bias)
            couplings.append(coupling)
        self.couplings = nn.ModuleList(couplings)
        self.mixings = nn.ModuleList(Mixing(D) for _ in couplings if mixes)

    @classmethod
    def from_recipe(cls, recipe: recipes.Recipe, image_shape: tuple[int, int, int]) -> "FlowPrior":
        return cls(OneLayer(recipe.flow, image_shape), recipe.flow)

    def networks(self, config: recipes.TrainPrior) -> list[tuple[nn.Module, float]]:
        flow = nn.ModuleList([self.couplings, self.mixings])
        return [(part, config.lr) for part in (self.g, flow) if len(list(part.parameters()))]

    def about(self) -> dict[str, dict[str, Any]]:
        config, parts = self.inference, (self.couplings, self.mixings)
        parameters = sum(p.numel() for part in parts for p in part.parameters())
        return {"flow": {"transforms": config.transforms, "coupling": config.coupling, "parameters": parameters}}

    # The flow

    def to_base(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(f^-1(z) [N, D], log |det df^-1/dz| [N])."""
        total = z.new_zeros(len(z))
        for coupling, mixing in zip_longest(self.couplings, self.mixings):
            if mixing is not None:
                z, ladj = mixing(z)
                total = total + ladj
            z, ladj = coupling().call_and_ladj(z)
            total = total + ladj
        return z, total

    def from_base(self, z_0: Tensor) -> Tensor:
        """z = f(z_0), [N, D]."""
        *_, z = self._passed(z_0)
        return z

    def _passed(self, z: Tensor) -> Iterator[Tensor]:
        yield z
        for coupling, mixing in zip_longest(reversed(self.couplings), reversed(self.mixings)):
            z = coupling().inv(z)
            if mixing is not None:
                z = mixing.inverse(z)
            yield z

    def log_ratio(self, u: Tensor, t: int = 0, layers: int | None = None) -> Tensor:
        return (self.log_density(u) - log_standard_normal(u))[:, None]

    def log_density(self, u: Tensor, walk: TopDown | None = None) -> Tensor:
        """log p(z), normalised, [N] nats."""
        z_0, ladj = self.to_base(u)
        return log_standard_normal(z_0) + ladj

    def trajectory(
        self, eps: Eps, K: Steps = None, tau: float = 1.0, held: HeldStages | None = None, watch: Watch | None = None
    ) -> Iterator[Tensor]:
        """z_0 ~ N(0, tau^2), then what each coupling makes of it.  There are no Langevin steps in a draw."""
        if held is not None:
            raise HebmError("a flow's latent has one layer, of which nothing can be held while the rest is drawn")
        with torch.no_grad():
            yield from self._passed(tau * eps())

    # Learning

    @property
    def starts_from(self) -> str:
        return self.inference.start

    @torch.no_grad()
    def start(self, z_0: Tensor, step: int | None = None) -> Tensor:
        """In the first `warmup` steps it is z_0 itself: while g knows nothing, its slopes carry all chains far away,
        the flow follows them, and chains that start from the flow would start from there the next time."""
        warming = step is not None and step < self.inference.warmup
        return z_0 if warming or self.inference.start == "normal" else self.from_base(z_0)

    def prior_loss(self, u_0: Tensor, x: Tensor) -> tuple[Tensor, dict]:
        log_z = self.log_density(u_0).mean()
        return -log_z, {"log_z": log_z.detach()}
