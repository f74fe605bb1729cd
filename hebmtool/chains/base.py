"""What a chain is to a prior: one way of drawing from p(u_t | u_{t+1}) ~ exp(F(u) / scale) N(u; m, sigma^2).

The Gaussian is the diffusion's (`Schedule.conditional`: m = a u_{t+1}), whatever the chain; `scale` is what the chain
divides F by in the log density, its own parametrisation of F: an energy learned with one chain is handed to another in
that one's scale (`hebmtool.prior.ebm`).

Symbols: a, sigma are [N, 1]; eps() returns standard normal [N, D] at each call; tau multiplies every eps, which samples
p^(1/tau^2); K counts steps, a gradient of F each.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from hebmtool import recipe as recipes
from hebmtool.recipe import words

Held = tuple[Tensor, Tensor]
"""Coordinates a chain must not move: (mask, bool [D], True where held; the values held there, [N, D])."""

Slope = Callable[[Tensor], tuple[Tensor, Tensor]]
"""u [N, D] -> (F(u) [N], grad_u F(u) [N, D])."""

Eps = Callable[[], Tensor]
"""Standard normal [N, D] at each call."""

Watch = Callable[[Tensor, Tensor, Tensor, Tensor | None], None]
"""Told of every gradient a chain takes: (u [N, D], F(u) [N], grad F(u) [N, D], taken).

A chain that tests its moves tells of where it stands after the move that a gradient is of, and at the last one of each
who was taken, bool [N]; else `taken` is None.
"""


class Levels(Protocol):
    """What a chain asks of a schedule (`hebmtool.prior.schedule`)."""

    sbar: Tensor
    sigma: Tensor

    def on(self, device: torch.device) -> "Levels":
        """The same with its coefficients on that device."""

    def conditional(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(a, sigma) of the Gaussian part of p(u_t | u_{t+1}), each [N, 1]."""


def hold(u: Tensor, held: Held | None) -> Tensor:
    """u [N, D] with the held coordinates set to their values, bit for bit."""
    return u if held is None else torch.where(held[0], held[1], u)


def value_and_gradient(F: Callable[[Tensor], Tensor], u: Tensor) -> tuple[Tensor, Tensor]:
    """(F(u), grad_u F(u)).  F maps [N, D] to [N]; u is [N, D]; so is the gradient."""
    with torch.enable_grad():
        u = u.detach().requires_grad_(True)
        value = F(u)
        return value.detach(), torch.autograd.grad(value.sum(), u)[0]


def watched(slope: Slope, watch: Watch | None) -> Slope:
    """`slope`, telling `watch` of every gradient."""
    if watch is None:
        return slope

    def told(u: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = slope(u)
        watch(u, value, gradient, None)
        return value, gradient

    return told


CHAINS: dict[str, type["Chain"]] = {}
"""By the recipe's word, `prior.chain`."""


class Chain(ABC):
    """A subclass with a `word` in its definition is what `prior.chain` then calls by it.

    leaves_out_levels: whether with K = 0 it draws the Gaussian conditional exactly, so that a level may be left out.
    exact: whether it leaves its law as it is whatever its step, of which each level then has its own (`stepping`).
    """

    word = ""
    leaves_out_levels = True
    exact = False

    def __init_subclass__(cls, word: str | None = None, **keys):
        super().__init_subclass__(**keys)
        if word is not None:
            cls.word = word
            CHAINS[word] = cls
            words.CHAINS.add(word)

    @classmethod
    @abstractmethod
    def from_recipe(cls, config: recipes.Prior) -> "Chain":
        """The one that the recipe's `prior` part describes."""

    def scale(self, schedule: Levels, t: Tensor) -> Tensor:
        """What divides F in the log density, [N], at levels t [N]."""
        return torch.ones(len(t), device=t.device)

    def __call__(
        self,
        slope: Slope,
        u_next: Tensor,
        schedule: Levels,
        t: Tensor,
        K: int,
        eps: Eps,
        tau: float = 1.0,
        held: Held | None = None,
        watch: Watch | None = None,
    ) -> Tensor:
        """Draw u_t given u_{t+1}.

        Arguments:
            slope: of F at level t, in this chain's scale.
            u_next: u_{t+1}, [N, D].
            t: level per image, long [N].
            K: steps.
            held: coordinates kept at given values; the others then follow their conditional.
        """
        a, sigma = schedule.conditional(t)
        return self.draw_told(watch, slope, u_next, a, sigma, schedule, t, K, eps, tau, held)

    def refine(
        self,
        slope: Slope,
        u_0: Tensor,
        schedule: Levels,
        K: int,
        eps: Eps,
        tau: float = 1.0,
        held: Held | None = None,
        watch: Watch | None = None,
    ) -> Tensor:
        """K more steps from u_0 [N, D] on p(u_0) ~ exp(F(u_0) / scale) N(u_0; 0, I) itself, level 0's marginal."""
        t, one = torch.zeros(len(u_0), dtype=torch.long, device=u_0.device), u_0.new_ones(len(u_0), 1)
        return self.draw_told(watch, slope, u_0, 0 * one, one, schedule, t, K, eps, tau, held, u_0)

    def draw_told(self, watch: Watch | None, slope: Slope, *given) -> Tensor:
        """`draw`, of whose gradients `watch` is told; one that tests its moves has more to tell."""
        return self.draw(watched(slope, watch), *given)

    @abstractmethod
    def draw(
        self,
        slope: Slope,
        u_next: Tensor,
        a: Tensor,
        sigma: Tensor,
        schedule: Levels,
        t: Tensor,
        K: int,
        eps: Eps,
        tau: float,
        held: Held | None,
        start: Tensor | None = None,
    ) -> Tensor:
        """K steps on exp(F / scale) N(u; a u_next, sigma^2), F being level t's: what both of the above come to.

        Arguments:
            start: u_0 to go on from, [N, D], where the Gaussian is level 0's marginal; the chain's own start when None.
        """


def make_chain(config: recipes.Prior) -> Chain:
    """The chain that a recipe's `prior` part names."""
    return CHAINS[config.chain].from_recipe(config)
