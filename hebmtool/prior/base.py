"""What a prior over u is: it draws, it scores, it says what learning minimises.

    p(u) = exp(log_ratio(u)) p_0(u) / Z         p_0: the generator's own prior, N(0, I) on residuals

All latents are u, flat [N, D]; the generator turns them into images.  T is the number of noise levels that have an
energy: 0 for a prior without one, 1 for a joint EBM.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Self

import torch
from torch import Tensor, nn

from hebmtool.chains import Held, hold
from hebmtool.errors import HebmError, UsageError
from hebmtool.generator import Generator, TopDown
from hebmtool.recipe import words

Steps = int | Sequence[int] | None
"""K: steps of a chain at every level, or at each, least noise first; the prior's own when None."""

HeldStages = tuple[Tensor, Sequence[Tensor]]
"""Coordinates of a trajectory that follow another one: (mask, bool [D]; that trajectory's stages, [N, D] each)."""

Eps = Callable[[], Tensor]
"""Standard normal [N, D] at each call, such as `hebmtool.noise.Noise`."""

Condition = Callable[[TopDown, Tensor], Tensor]
"""What a condition on a label adds to F: (walk, t [N]) -> [N] (`hebmtool.prior.labels.Condition`)."""

Watch = Callable[[int, Tensor, Tensor, Tensor, Tensor | None], None]
"""Told of every gradient a draw takes: (level t, u [N, D], G(u) [N], grad G(u) [N, D], taken), G = log_tilt of level t;
taken [N]: as chains tell it (`hebmtool.chains.Watch`)."""

KINDS: dict[str, type["Prior"]] = {}
"""By the recipe's word, `prior.kind`."""


def at(held: HeldStages | None, stage: int) -> Held | None:
    """What is held at one stage of a trajectory."""
    return None if held is None else (held[0], held[1][stage])


def log_standard_normal(u: Tensor) -> Tensor:
    """log N(u; 0, I), [N, D] -> [N] nats."""
    return -0.5 * u.square().sum(1) - 0.5 * u.shape[1] * math.log(2 * math.pi)


def not_finite(kind: str) -> HebmError:
    """What to raise where a draw of the prior has left the numbers."""
    return HebmError(
        f"the {kind} prior's chain diverged: latents are not finite; take fewer steps, a lower temperature, or a prior "
        "trained with a smaller step size"
    )


class Prior(nn.Module, ABC):
    """A subclass with a `kind` in its definition is what `prior.kind` then calls by it.

    Arguments:
        generator: frozen; priors read T(u) through it.

    T: noise levels with an energy.  learned: whether it has anything to learn.  brings_generator: whether it is learned
    together with its generator, in whose checkpoint both then are.  ends_on_marginal: whether a draw ends with steps on
    p(u_0) itself where others make them on p(u_0 | u_1).  posterior_tilt: (mean, standard error) of `log_tilt` on
    posterior u, nats, where learning has measured it: what draws should come to.
    """

    kind = ""
    T = 0
    learned = True
    brings_generator = False
    ends_on_marginal = False
    posterior_tilt: tuple[float, float] | None = None

    def __init_subclass__(cls, kind: str | None = None, **keys):
        super().__init_subclass__(**keys)
        if kind is not None:
            cls.kind = kind
            KINDS[kind] = cls
            words.KINDS.add(kind)
            if cls.brings_generator:
                words.ONE_STAGE.add(kind)

    def __init__(self, generator: Generator):
        super().__init__()
        # In a tuple, so that it is no submodule: a prior's checkpoint is its own.
        self._generator = (generator,)

    @property
    def generator(self) -> Generator:
        return self._generator[0]

    def __repr__(self) -> str:
        parameters = sum(p.numel() for p in self.parameters())
        levels = f", {self.T} level{'s' * (self.T > 1)}" if self.T else ""
        return f"<{self.kind} prior over {self.generator.D} dimensions{levels}, {parameters:,} parameters>"

    @property
    def highest(self) -> int:
        """The highest layer that it knows anything about, 1 = bottom."""
        return self.generator.L

    # Drawing

    @abstractmethod
    def trajectory(
        self, eps: Eps, K: Steps = None, tau: float = 1.0, held: HeldStages | None = None, watch: Watch | None = None
    ) -> Iterator[Tensor]:
        """Draw, yielding every stage on the way, the last being the sample u_0 [N, D].

        Arguments:
            eps: one stream of noise per image.
            K: steps of the chain.
            tau: temperature, above 0; samples p^(1/tau^2), 1 being the prior itself.
            held: coordinates that follow another trajectory instead, stage by stage: the others are then drawn from
                their conditional.
        """

    def sample(self, eps: Eps, K: Steps = None, tau: float = 1.0, watch: Watch | None = None) -> Tensor:
        """The last stage of `trajectory`: u_0, [N, D]."""
        *_, u_0 = self.trajectory(eps, K, tau, watch=watch)
        return u_0

    def stages(self, u_0: Tensor, eps: Eps) -> list[Tensor]:
        """A trajectory that ends in the given u_0 [N, D], as `trajectory` would have yielded it: what to hold on to
        when u_0 is not a draw of the prior but comes from an image."""
        return [u_0]

    def refine(
        self,
        u_0: Tensor,
        eps: Eps,
        K: int | None = None,
        tau: float = 1.0,
        held: Held | None = None,
        watch: Watch | None = None,
    ) -> Tensor:
        """Further steps on p(u_0) itself, from u_0 [N, D]; with coordinates held, on their conditional.  Where there
        are no steps to make, u_0 as it is but for what is held."""
        return hold(u_0, held)

    def gradients(self, K: Steps = None) -> int:
        """Gradients of F that a trajectory takes."""
        return 0

    def fast_steps(self) -> Steps:
        """Steps that draw much the same with fewer gradients, where levels of noise can be left out.

        Raises:
            UsageError: there is nothing this prior could do faster.
        """
        raise UsageError(
            f"drawing fast leaves out Langevin steps, and the {self.kind} prior takes none that could be; draw as usual"
        )

    def given(self, conditions: Sequence[Condition]) -> Self:
        """This prior, sharing its weights, under conditions on labels: F(z, t) + sum_a w_a log p(y_a | z, t).

        Raises:
            HebmError: it has no energy that labels could be coupled to.
        """
        raise HebmError(f"the {self.kind} prior has no energy that labels could be coupled to; train diffusion-ebm")

    def using(self, **sampler) -> Self:
        """This prior, sharing its weights, drawn by another chain: keys of the recipe's `prior` part (chain, steps,
        eta, h, theta, persistence, renew), whose values take the place of those it was trained with.

        Raises:
            UsageError: it takes no steps, or a key or value is none.
        """
        raise UsageError(f"the {self.kind} prior takes no Langevin steps, so there is no chain to choose; leave it out")

    def stepping(self, theta: Sequence[float] | float | None) -> None:
        """Take these steps, one or each level's, [T] radians, where a chain adapts its own; adapt them when None."""

    @property
    def steps(self) -> list[float] | None:
        """The adapted steps of a chain at each level, [T] radians; None where there is none."""
        return None

    # Scoring

    @abstractmethod
    def log_ratio(self, u: Tensor, t: int = 0, layers: int | None = None) -> Tensor:
        """log p(u) / p_0(u) up to a constant, by layer, [N, layers] nats, top first; differentiable in u.

        Arguments:
            u: [N, D].
            t: of the law of u_t, where there are levels.
            layers: only this many layers from the top.
        """

    def log_tilt(self, u: Tensor, t: int = 0, walk: TopDown | None = None) -> Tensor:
        """log p(u) / N(u; 0, I) up to a constant, [N] nats: `log_ratio` of all layers together in the coordinates that
        chains move in, where `log_ratio` stays the same in whitened ones.

        Arguments:
            walk: that of u down the generator, where it is known already.
        """
        return (self.log_ratio(u, t) - self.generator.whitening_ratio(u)).sum(1)

    def log_density(self, u: Tensor, walk: TopDown | None = None) -> Tensor:
        """log p(u) at level 0, up to a constant for energy-based priors, [N] nats; differentiable."""
        return self.log_tilt(u, walk=walk) + log_standard_normal(u)

    def scale(self, t: Tensor) -> Tensor:
        """Units of F in a nat of `log_ratio`, [N], at levels t [N]; 1 where there is no F of another scale."""
        return torch.ones(len(t), device=t.device)

    # Learning

    @abstractmethod
    def loss(self, u_0: Tensor, x: Tensor, visible: Tensor | None = None) -> tuple[Tensor, dict]:
        """What learning minimises, and figures worth logging.

        Arguments:
            u_0: posterior draws, [N, D].
            x: the images they were drawn given, [N, C, H, W].
            visible: bool [N, 1, H, W], the pixels that are known; all when None.
        """

    finish: Callable[[Tensor, Tensor], tuple[Tensor, dict]] | None = None
    """(u_0, x) -> (loss, figures), as `loss`, of learning's last updates against the prior's own draws (the recipe's
    `train_prior.finish`); None where there is no chain to draw them by."""

    def calibrate(self, walk: TopDown) -> None:
        """Before learning: look at a walk over draws of N(0, I), as u."""

    def settle(self) -> None:
        """Make what follows from the weights follow from them, after they were replaced by others."""

    def fixed(self) -> AbstractContextManager:
        """Within it the weights are constants: no gradient reaches them, what follows from them is computed once."""
        return nullcontext()

    def _twin(self, **changes) -> Self:
        twin = copy.copy(self)
        for name, value in changes.items():
            setattr(twin, name, value)
        return twin


class Gaussian(Prior, kind="gaussian"):
    """p_0, the generator's own: N(0, I) on residuals.  There is nothing to learn."""

    learned = False

    def __init__(self, generator: Generator, config: object = None):
        super().__init__(generator)

    def trajectory(
        self, eps: Eps, K: Steps = None, tau: float = 1.0, held: HeldStages | None = None, watch: Watch | None = None
    ) -> Iterator[Tensor]:
        yield hold(self.generator.whitened(tau * eps()), at(held, 0))

    def log_ratio(self, u: Tensor, t: int = 0, layers: int | None = None) -> Tensor:
        return u.new_zeros(len(u), self.generator.L if layers is None else layers)

    def loss(self, u_0: Tensor, x: Tensor, visible: Tensor | None = None) -> tuple[Tensor, dict]:
        raise NotImplementedError("the gaussian prior is the generator's own and is not trained")
