"""What priors share that are learned together with a generator of one layer, in one stage and without an encoder.

    log p(z, x) = log p(z) + log p(x | z)

Latents of images are inferred by a short Langevin run towards p(z | x) (`hebmtool.chains.short_run`; Pang et al. 2020,
https://arxiv.org/abs/2006.08205; Xie et al. 2023, https://arxiv.org/abs/2301.09300); prior and generator both learn on
what it comes to.  Its latents, "u" elsewhere, are z: T is the identity (`hebmtool.generator.one_layer`).
"""

import math
from abc import abstractmethod
from typing import Any, Self

from torch import Tensor, nn

from hebmtool import recipe as recipes
from hebmtool.chains.short_run import short_run
from hebmtool.compute import compiled
from hebmtool.generator import OneLayer
from hebmtool.prior.base import Eps, Prior


class OneStage(Prior):
    """A prior in whose checkpoint its generator is, too.

    g: the generator, a submodule.  inference: the recipe's `flow` part, which says how latents are inferred.
    of_recipe: what of a recipe a training that goes on must not change.  knobs: the keys to lower where it ran away.
    """

    brings_generator = True
    of_recipe: tuple[str, ...] = ("prior.kind", "flow")
    knobs = "flow.step_size or train_prior.lr"
    g: OneLayer
    inference: recipes.Flow

    @classmethod
    @abstractmethod
    def from_recipe(cls, recipe: recipes.Recipe, image_shape: tuple[int, int, int]) -> Self:
        """Prior and generator, for images of (C, H, W)."""

    @abstractmethod
    def networks(self, config: recipes.TrainPrior) -> list[tuple[nn.Module, float]]:
        """What is learned, generator first, each with its learning rate."""

    @abstractmethod
    def about(self) -> dict[str, dict[str, Any]]:
        """What the prior is made of, as JSON has it, under a word for it."""

    @abstractmethod
    def prior_loss(self, u_0: Tensor, x: Tensor) -> tuple[Tensor, dict]:
        """What has the gradient of -log p(z), averaged, in nats, at inferred z [N, D]; and figures worth logging."""

    @property
    def starts_from(self) -> str:
        """Where chains start: "normal" is N(0, I), "prior" a draw of the prior."""
        return "normal"

    @property
    def generator(self) -> OneLayer:
        return self.g

    def log_joint(self, z: Tensor, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """log p(z, x) up to a constant, [N]; arguments as those of `Generator.log_px`."""
        walk = self.g.walk(z)
        return self.log_density(z, walk) + self.g.log_px(walk, x, visible)

    def start(self, z_0: Tensor, step: int | None = None) -> Tensor:
        """Where a chain starts, from z_0 ~ N(0, I), [N, D].

        Arguments:
            step: of learning; None afterwards.
        """
        return z_0

    def infer(self, x: Tensor, z: Tensor, steps: int, eps: Eps | None, visible: Tensor | None = None) -> Tensor:
        """The short run from z towards p(z | x_visible), [N, D]; uphill without noise, towards a mode, where eps is
        None."""
        log_joint = compiled(self.log_joint)
        with self.fixed():
            return short_run(lambda z: log_joint(z, x, visible), z, steps, self.inference.step_size, eps)

    def loss(self, u_0: Tensor, x: Tensor, visible: Tensor | None = None) -> tuple[Tensor, dict]:
        """-log p(z, x) / (C H W) at inferred z, averaged, or what has its gradient; and its parts in nats per image."""
        of_prior, figures = self.prior_loss(u_0, x)
        log_x = self.g.log_px(self.g.walk(u_0), x, visible).mean()
        return (of_prior - log_x) / math.prod(x.shape[1:]), figures | {"log_x": log_x.detach()}
