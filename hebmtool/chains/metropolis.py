"""A chain on p(u) ~ exp(b G(u)) N(u; 0, I) that samples it exactly in the long run, whatever its step.

A few of the kinetic Langevin steps of `hebmtool.chains.langevin.underdamped`, which turn (u, v) under the Gaussian
exactly and let G kick v, make a proposal from a fresh momentum v ~ N(0, I).  They preserve volume, and are their own
reverse once v is turned round; so the proposal is accepted with probability exp(-change), of

    H(u, v) = -b G(u) + ||u||^2 / 2 + ||v||^2 / 2

(hybrid Monte Carlo, with the Gaussian part exact: Beskos et al. 2011, "Hybrid Monte Carlo on Hilbert spaces",
https://doi.org/10.1016/j.spa.2011.06.003).  The chains priors are sampled with make no such test: at too long a step
they run stably on a law that is not p(u).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hebmtool.chains.base import value_and_gradient

STEPS = 3
THETA = 0.5  # of the first try; halved until proposals are accepted
ACCEPTED = 0.6
HALVINGS = 14


Density = Callable[[Tensor], Tensor]
"""G: [N, D] -> [N], the log ratio of p(u) to N(u; 0, I) up to a constant (`Prior.log_tilt`)."""


class Move:
    """A transition that leaves exp(b G(u)) N(u; 0, I) invariant, of many chains at once.

    Arguments:
        G: [N, D] -> [N].
        u: where the chains start, [N, D].
        theta: radians a step turns.
        random: a generator on the CPU; the moves depend on it alone.
        steps: per proposal, a gradient each.

    `u` [N, D], `G_u` [N] and `slope` [N, D] are the state; `accepted` counts proposals taken, `proposed` those made.
    """

    def __init__(self, G: Density, u: Tensor, theta: float, random: torch.Generator, steps: int = STEPS):
        self.G, self.theta, self.steps, self.random = G, theta, steps, random
        self.u = u
        self.G_u, self.slope = value_and_gradient(G, u)
        self.accepted = self.proposed = 0

    @torch.no_grad()
    def __call__(self, b: float) -> None:
        u, G_u, slope = self.u, self.G_u, self.slope
        v = torch.randn(u.shape, generator=self.random).to(u)
        before = 0.5 * (u.double().square().sum(1) + v.double().square().sum(1)) - b * G_u.double()
        kick, cos, sin = 0.5 * self.theta * b, math.cos(self.theta), math.sin(self.theta)
        for _ in range(self.steps):
            v = v + kick * slope
            u, v = cos * u + sin * v, cos * v - sin * u
            G_u, slope = value_and_gradient(self.G, u)
            v = v + kick * slope
        after = 0.5 * (u.double().square().sum(1) + v.double().square().sum(1)) - b * G_u.double()
        threshold = torch.rand(len(u), generator=self.random, dtype=torch.float64).log().to(u.device)
        taken = threshold < before - after  # False where the energy is not finite
        self.u = torch.where(taken[:, None], u, self.u)
        self.G_u = torch.where(taken, G_u, self.G_u)
        self.slope = torch.where(taken[:, None], slope, self.slope)
        self.accepted, self.proposed = self.accepted + int(taken.sum()), self.proposed + len(u)


def step_size(G: Density, u: Tensor, random: torch.Generator) -> float | None:
    """The first of THETA, THETA/2, ... at which proposals from u [N, D] are mostly accepted at b = 1; None if none is.

    Tried on chains of its own: the step of a chain may not follow from where that chain has been.
    """
    for halvings in range(HALVINGS):
        move = Move(G, u, THETA / 2**halvings, random)
        for _ in range(3):
            move(1.0)
        if move.accepted >= ACCEPTED * move.proposed:
            return move.theta
    return None
