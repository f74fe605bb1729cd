"""A normalizing flow over a latent of one layer ("A Tale of Two Latent Flows", "LFBM", Xie et al. 2023,
https://arxiv.org/abs/2301.09300).

    z_0 ~ N(0, I),   z = f(z_0)
    log p(z) = log N(f^-1(z); 0, I) + log |det df^-1/dz|
    log p(z, x) = log p(z) + log p(x | z)

f is a stack of couplings (RealNVP, https://arxiv.org/abs/1605.08803; splines, https://arxiv.org/abs/1906.04032) from
zuko.  Its latents, "u" elsewhere, are z: `hebmtool.generator.one_layer` has the generator, whose T is the identity.
Inference is a short Langevin run (`hebmtool.chains.short_run`).
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from zuko.flows.coupling import GeneralCouplingTransform
from zuko.transforms import MonotonicAffineTransform, MonotonicRQSTransform

from hebmtool import recipe as recipes
from hebmtool.chains.short_run import short_run
from hebmtool.errors import HebmError
from hebmtool.generator import OneLayer, TopDown
from hebmtool.prior.base import Eps, HeldStages, Prior, Steps, Watch, log_standard_normal

BINS = 8
COUPLINGS = {
    "affine": {"univariate": MonotonicAffineTransform, "shapes": [(), ()]},
    "spline": {"univariate": MonotonicRQSTransform, "shapes": [(BINS,), (BINS,), (BINS - 1,)]},
}


class FlowPrior(Prior, kind="flow"):
    """A flow over the latent of a one-layer generator that it is learned with; one checkpoint holds both.

    Arguments:
        generator: its g.
        config: the recipe's `flow` part.
    """

    brings_generator = True

    def __init__(self, generator: OneLayer, config: recipes.Flow):
        super().__init__(generator)
        self.config, self.g, D = config, generator, config.latent
        couplings = []
        for i in range(config.transforms):
            if i % 2 == 0:
                mask = torch.randperm(D) % 2 == 0
            coupling = GeneralCouplingTransform(
                D,
                mask=mask if i % 2 == 0 else ~mask,
                hidden_features=(config.hidden,) * 2,
                **COUPLINGS[config.coupling],
            )
            # The identity, so that learning starts from N(0, I).
            nn.init.zeros_(coupling.hyper[-1].weight)
            nn.init.zeros_(coupling.hyper[-1].bias)
            couplings.append(coupling)
        self.couplings = nn.ModuleList(couplings)

    @classmethod
    def from_recipe(cls, recipe: recipes.Recipe, image_shape: tuple[int, int, int]) -> "FlowPrior":
        """Flow and generator, for images of (C, H, W)."""
        return cls(OneLayer(recipe.flow, image_shape), recipe.flow)

    @property
    def generator(self) -> OneLayer:
        return self.g

    # The flow

    def to_base(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(f^-1(z) [N, D], log |det df^-1/dz| [N])."""
        total = z.new_zeros(len(z))
        for coupling in self.couplings:
            z, ladj = coupling().call_and_ladj(z)
            total = total + ladj
        return z, total

    def from_base(self, z_0: Tensor) -> Tensor:
        """z = f(z_0), [N, D]."""
        *_, z = self._passed(z_0)
        return z

    def _passed(self, z: Tensor) -> Iterator[Tensor]:
        yield z
        for coupling in reversed(self.couplings):
            z = coupling().inv(z)
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

    # The joint model

    def log_joint(self, z: Tensor, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """log p(z, x) up to a constant, [N]; arguments as those of `Generator.log_px`."""
        return self.log_density(z) + self.g.log_px(self.g.walk(z), x, visible)

    @torch.no_grad()
    def start(self, z_0: Tensor, step: int | None = None) -> Tensor:
        """Where a chain starts, from z_0 ~ N(0, I), [N, D].

        Arguments:
            step: of learning; None afterwards.  In the first `warmup` steps it is z_0 itself: while g knows nothing,
                its slopes carry all chains far away, the flow follows them, and chains that start from the flow would
                start from there the next time.
        """
        warming = step is not None and step < self.config.warmup
        return z_0 if warming or self.config.start == "normal" else self.from_base(z_0)

    def infer(self, x: Tensor, z: Tensor, steps: int, eps: Eps, visible: Tensor | None = None) -> Tensor:
        """The short run from z towards p(z | x_visible), [N, D]."""
        return short_run(lambda z: self.log_joint(z, x, visible), z, steps, self.config.step_size, eps)

    def loss(self, u_0: Tensor, x: Tensor, visible: Tensor | None = None) -> tuple[Tensor, dict]:
        """-log p(z, x) / (C H W) at inferred z, averaged, and its parts in nats per image."""
        log_z, log_x = self.log_density(u_0).mean(), self.g.log_px(self.g.walk(u_0), x, visible).mean()
        return -(log_z + log_x) / math.prod(x.shape[1:]), {"log_z": log_z.item(), "log_x": log_x.item()}
