"""Langevin chains in u-space.

All sample the conditional of level t, with a = a_{t+1} and sigma = sigma_{t+1}, given u_{t+1}:

published (Gao et al. 2021, arXiv 2012.08125; HEBM, arXiv 2405.13910), F scaled by 1/b^2, started at u_{t+1}:

    log p = F(T(u)) / b^2 - ||u||^2 / 2 - ||u_{t+1} - a u||^2 / (2 sigma^2) + const
    u <- u + 1/2 grad F - 1/2 b^2 [u + a (a u - u_{t+1}) / sigma^2] + b eps
    b_t^2 = eta (sbar_t / sbar_0) sigma_{t+1}^2

(at the topmost level a = 0: there is nothing to recover from).  Since a^2 + sigma^2 = 1, its Gaussian is
N(a u_{t+1}, sigma^2), as it is for the others.

unscaled, a joint EBM's published chain (Cui, Wu & Han 2023, arXiv 2306.06323): the same walk with b^2 = s a constant,
and F as it is,

    u <- u + s/2 [grad F - u - a (a u - u_{t+1}) / sigma^2] + sqrt(s) eps,        s = eta

preconditioned, F unscaled, started at the exact Gaussian conditional N(m, sigma^2), m = a u_{t+1}:

    log p = F(T(u)) + log N(u; m, sigma^2) + const
    u <- m + rho (u - m) + (1 - rho) sigma^2 grad F + sigma sqrt(1 - rho^2) eps,      rho = exp(-h)

underdamped, of the same law: u is given a momentum v ~ N(0, sigma^2), which F kicks and the Gaussian part turns,

    v <- v + theta/2 sigma^2 grad F;   (u - m, v) <- rotation by theta of (u - m, v);   v <- v + theta/2 sigma^2 grad F
    v <- c v + sigma sqrt(1 - c^2) eps

(kinetic Langevin, split so that the Gaussian part is exact; Beskos et al. 2011, "Hybrid Monte Carlo on Hilbert
spaces").  With F = 0 the last two are stationary at any step size.  Momentum carries u further per gradient, and the
split is of second order in the step where the preconditioned chain is of first.

The Gaussian terms have these closed forms; only F needs autograd.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from hebmtool import recipe as recipes
from hebmtool.chains.base import Chain, Eps, Held, Levels, Slope, hold


@torch.no_grad()
def langevin(
    slope: Slope,
    u_next: Tensor,
    a: Tensor,
    sigma: Tensor,
    b: Tensor,
    K: int,
    eps: Eps,
    tau: float = 1.0,
    held: Held | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """The published chain: K updates from u_{t+1}, or from `start`.  b: [N, 1]."""
    u = hold(u_next if start is None else start, held)
    for _ in range(K):
        pull = u + a * (a * u - u_next) / sigma.square()
        u = hold(u + 0.5 * slope(u)[1] - 0.5 * b.square() * pull + tau * b * eps(), held)
    return u


@torch.no_grad()
def preconditioned(
    slope: Slope,
    m: Tensor,
    sigma: Tensor,
    h: float,
    K: int,
    eps: Eps,
    tau: float = 1.0,
    held: Held | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """The preconditioned chain: a draw of N(m, sigma^2), or `start`, then K updates of size h."""
    rho = math.exp(-h)
    u = hold(m + tau * sigma * eps() if start is None else start, held)
    for _ in range(K):
        drift = (1 - rho) * sigma.square() * slope(u)[1]
        u = hold(m + rho * (u - m) + drift + tau * math.sqrt(1 - rho**2) * sigma * eps(), held)
    return u


@torch.no_grad()
def underdamped(
    slope: Slope,
    m: Tensor,
    sigma: Tensor,
    theta: float,
    c: float,
    K: int,
    eps: Eps,
    tau: float = 1.0,
    held: Held | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """The underdamped chain: a draw of N(m, sigma^2), or `start`, then K turns by the angle theta (radians).

    c is the part of the momentum that survives a step, in [0, 1).
    """
    u = hold(m + tau * sigma * eps() if start is None else start, held)
    if not K:
        return u
    v = tau * sigma * eps()
    kick = 0.5 * theta * sigma.square()
    push = slope(u)[1]
    for step in range(1, K + 1):
        v = v + kick * push
        from_m = u - m
        u = hold(m + math.cos(theta) * from_m + math.sin(theta) * v, held)
        if step == K:  # what follows would move v alone
            break
        v = math.cos(theta) * v - math.sin(theta) * from_m
        push = slope(u)[1]
        v = c * (v + kick * push) + tau * math.sqrt(1 - c**2) * sigma * eps()
    return u


@dataclass(frozen=True)
class Langevin(Chain):
    """`langevin`, with the step size eta; subclasses say what it is a step of."""

    eta: float
    leaves_out_levels = False

    @classmethod
    def from_recipe(cls, config: recipes.Prior) -> Self:
        return cls(config.eta)


class Published(Langevin, word="langevin"):
    """F scaled by 1 / b_t^2, and steps of b_t^2."""

    def scale(self, schedule: Levels, t: Tensor) -> Tensor:
        """b_t^2."""
        here = schedule.on(t.device)
        sbar = here.sbar[:-1]
        growth = torch.where(torch.arange(len(sbar), device=t.device) == 0, 1.0, sbar / sbar[0])
        return (self.eta * growth * here.sigma[1:].square()).float()[t]

    def draw(self, slope, u_next, a, sigma, schedule, t, K, eps, tau, held, start=None) -> Tensor:
        b = self.scale(schedule, t).sqrt()[:, None]
        return langevin(slope, u_next, a, sigma, b, K, eps, tau, held, start)


class Unscaled(Langevin, word="unscaled"):
    """F as it is, all steps being of size s = eta."""

    def draw(self, slope, u_next, a, sigma, schedule, t, K, eps, tau, held, start=None) -> Tensor:
        def pushed(u: Tensor) -> tuple[Tensor, Tensor]:
            value, gradient = slope(u)
            return value, self.eta * gradient

        return langevin(pushed, u_next, a, sigma, torch.full_like(sigma, self.eta**0.5), K, eps, tau, held, start)


class GaussianExact(Chain):
    """A chain that is exact for the Gaussian part, started at a draw of it; subclasses say how F moves u.

    In `refine` the Gaussian is N(0, I), wider than level 0's conditional; F, learned under that one, gets steps whose
    drift is no longer.
    """

    @abstractmethod
    def run(
        self,
        slope: Slope,
        m: Tensor,
        sigma: Tensor,
        shorter: float,
        K: int,
        eps: Eps,
        tau: float,
        held: Held | None,
        start: Tensor | None = None,
    ) -> Tensor:
        """K steps on exp(F) N(u; m, sigma^2), the weight of F's gradient in a step being `shorter` times as much."""

    def draw(self, slope, u_next, a, sigma, schedule, t, K, eps, tau, held, start=None) -> Tensor:
        shorter = 1.0
        if start is not None:
            # Level 0's, read where it costs no wait for the device.
            shorter = float(schedule.conditional(torch.zeros(1, dtype=torch.long))[1].square().sum()) or 1.0
        return self.run(slope, a * u_next, sigma, shorter, K, eps, tau, held, start)


@dataclass(frozen=True)
class Preconditioned(GaussianExact, word="preconditioned"):
    """`preconditioned`, with steps of size h."""

    h: float

    @classmethod
    def from_recipe(cls, config: recipes.Prior) -> "Preconditioned":
        return cls(config.h)

    def run(self, slope, m, sigma, shorter, K, eps, tau, held, start=None) -> Tensor:
        h = -math.log1p((math.exp(-self.h) - 1) * shorter)
        return preconditioned(slope, m, sigma, h, K, eps, tau, held, start)


@dataclass(frozen=True)
class Underdamped(GaussianExact, word="underdamped"):
    """`underdamped`, with turns by theta after which the part `persistence` of the momentum is kept."""

    theta: float
    persistence: float

    @classmethod
    def from_recipe(cls, config: recipes.Prior) -> "Underdamped":
        return cls(config.theta, config.persistence)

    def run(self, slope, m, sigma, shorter, K, eps, tau, held, start=None) -> Tensor:
        return underdamped(slope, m, sigma, self.theta * math.sqrt(shorter), self.persistence, K, eps, tau, held, start)
