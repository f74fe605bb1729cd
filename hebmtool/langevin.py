"""Langevin chains in u-space, as pure functions.

All sample the conditional of level t, with a = a_{t+1} and sigma = sigma_{t+1}, given u_{t+1}:

published (Gao et al. 2021, arXiv 2012.08125; HEBM, arXiv 2405.13910), F scaled by 1/b^2, started at u_{t+1}:

    log p = F(T(u)) / b^2 - ||u||^2 / 2 - r ||u_{t+1} - a u||^2 / (2 sigma^2) + const
    u <- u + 1/2 grad F - 1/2 b^2 [u + r a (a u - u_{t+1}) / sigma^2] + b eps

preconditioned, F unscaled, started at the exact Gaussian conditional N(m, sigma^2), m = a u_{t+1}:

    log p = F(T(u)) + log N(u; m, sigma^2) + const
    u <- m + rho (u - m) + (1 - rho) sigma^2 grad F + sigma sqrt(1 - rho^2) eps,      rho = exp(-h)

underdamped, of the same law: u is given a momentum v ~ N(0, sigma^2), which F kicks and the Gaussian part turns,

    v <- v + theta/2 sigma^2 grad F;   (u - m, v) <- rotation by theta of (u - m, v);   v <- v + theta/2 sigma^2 grad F
    v <- c v + sigma sqrt(1 - c^2) eps

(kinetic Langevin, split so that the Gaussian part is exact; Beskos et al. 2011, "Hybrid Monte Carlo on Hilbert
spaces").  With F = 0 the last two are stationary at any step size.  Momentum carries u further per gradient, and the
split is of second order in the step where the preconditioned chain is of first.

The Gaussian terms have these closed forms; only F needs autograd.  `temperature` tau multiplies every eps, which
samples p^(1/tau^2).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Held = tuple[Tensor, Tensor]
"""Coordinates a chain must not move: (mask, bool [D], True where held; the values held there, [N, D])."""


def hold(u: Tensor, held: Held | None) -> Tensor:
    """u [N, D] with the held coordinates set to their values, bit for bit."""
    return u if held is None else torch.where(held[0], held[1], u)


def value_and_gradient(F: Callable[[Tensor], Tensor], u: Tensor) -> tuple[Tensor, Tensor]:
    """(F(u), grad_u F(u)).  F maps [N, D] to [N]; u is [N, D]; so is the gradient."""
    with torch.enable_grad():
        u = u.detach().requires_grad_(True)
        value = F(u)
        return value.detach(), torch.autograd.grad(value.sum(), u)[0]


def gradient(F: Callable[[Tensor], Tensor], u: Tensor) -> Tensor:
    """grad_u F(u), [N, D]."""
    return value_and_gradient(F, u)[1]


@torch.no_grad()
def langevin(
    F: Callable[[Tensor], Tensor],
    u_next: Tensor,
    steps: int,
    b: Tensor,
    a: Tensor,
    sigma: Tensor,
    r: Tensor,
    noise: Callable[[], Tensor],
    temperature: float = 1.0,
    held: Held | None = None,
) -> Tensor:
    """The published chain: `steps` updates from u_{t+1}.

    Arguments:
        F: [N, D] -> [N].
        u_next: u_{t+1}, [N, D].
        b, a, sigma, r: coefficients per image, [N, 1]; r is 0 at the topmost level, else 1.
        noise: returns standard normal [N, D] at each call.
        held: coordinates kept at given values; the others then follow their conditional.
    """
    u = hold(u_next, held)
    for _ in range(steps):
        pull = u + r * a * (a * u - u_next) / sigma.square()
        u = hold(u + 0.5 * gradient(F, u) - 0.5 * b.square() * pull + temperature * b * noise(), held)
    return u


@torch.no_grad()
def preconditioned(
    F: Callable[[Tensor], Tensor],
    m: Tensor,
    sigma: Tensor,
    steps: int,
    h: float,
    noise: Callable[[], Tensor],
    temperature: float = 1.0,
    held: Held | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """The preconditioned chain: a draw of N(m, sigma^2), then `steps` updates of size h.

    Arguments:
        F: [N, D] -> [N].
        m: [N, D] mean of the Gaussian conditional.
        sigma: [N, 1] its standard deviation.
        noise: returns standard normal [N, D] at each call.
        held: coordinates kept at given values; the others then follow their conditional.
        start: where to start instead of that draw, [N, D].
    """
    rho = math.exp(-h)
    u = hold(m + temperature * sigma * noise() if start is None else start, held)
    for _ in range(steps):
        drift = (1 - rho) * sigma.square() * gradient(F, u)
        u = hold(m + rho * (u - m) + drift + temperature * math.sqrt(1 - rho**2) * sigma * noise(), held)
    return u


@torch.no_grad()
def underdamped(
    F: Callable[[Tensor], Tensor],
    m: Tensor,
    sigma: Tensor,
    steps: int,
    theta: float,
    persistence: float,
    noise: Callable[[], Tensor],
    temperature: float = 1.0,
    held: Held | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """The underdamped chain: a draw of N(m, sigma^2), then `steps` turns by the angle theta, a gradient each.

    Arguments:
        F: [N, D] -> [N].
        m: [N, D] mean of the Gaussian conditional.
        sigma: [N, 1] its standard deviation.
        theta: radians.
        persistence: c, the part of the momentum that survives a step, in [0, 1).
        noise: returns standard normal [N, D] at each call.
        held: coordinates kept at given values; the others then follow their conditional.
        start: where to start instead of that draw, [N, D].
    """
    u = hold(m + temperature * sigma * noise() if start is None else start, held)
    if not steps:
        return u
    v = temperature * sigma * noise()
    kick = 0.5 * theta * sigma.square()
    slope = gradient(F, u)
    for step in range(1, steps + 1):
        v = v + kick * slope
        from_m = u - m
        u = hold(m + math.cos(theta) * from_m + math.sin(theta) * v, held)
        if step == steps:  # what follows would move v alone
            break
        v = math.cos(theta) * v - math.sin(theta) * from_m
        slope = gradient(F, u)
        v = persistence * (v + kick * slope) + temperature * math.sqrt(1 - persistence**2) * sigma * noise()
    return u
