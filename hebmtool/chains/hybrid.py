"""Hybrid Monte Carlo with the Gaussian part exact: a chain that leaves its law as it is, whatever its step.

A move gives u a fresh momentum v ~ N(0, sigma^2), which F kicks and the Gaussian part turns, `KICKS` times,

    v <- v + theta/2 sigma^2 grad F;   (u - m, v) <- rotation by theta of (u - m, v);   v <- v + theta/2 sigma^2 grad F

and takes where that leads with probability min(1, exp(-(H' - H))), or stays,

    H(u, v) = -F(T(u)) + (||u - m||^2 + ||v||^2) / (2 sigma^2)

The steps keep volume and are their own reverse once v is turned round, so that exp(F) N(u; m, sigma^2) is left exactly
as it is (Beskos et al. 2011, "Hybrid Monte Carlo on Hilbert spaces", https://doi.org/10.1016/j.spa.2011.06.003).  A
step too long shows in what is refused, where the chains without a test run on another law.

Between moves u may jump: noise takes the place of a part of it, and where that leads is tested by F alone,

    u' = m + sqrt(1 - r) (u - m) + sqrt(r) sigma eps,     taken with probability min(1, exp(F(T(u')) - F(T(u))))

which leaves the law as it is, too (the preconditioned Crank-Nicolson proposal, Cotter et al. 2013,
https://arxiv.org/abs/1202.0709), and carries mass between modes that no gradient leads between.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from hebmtool import recipe as recipes
from hebmtool.chains.base import Chain, Eps, Held, Slope, Watch, hold

KICKS = 4  # of a move; eight are slower for a gradient
ACCEPTED = 0.75
"""The share of moves that steps are adapted to take: between the 0.65 and 0.85 within which little is lost."""

ADAPTING, MOVES = 32, 24
"""Trajectories, and moves of each at a level, on which steps are adapted."""

GAIN = 0.1  # of a move made while learning

LONGEST = 1.5  # radians: near pi/2, where a step forgets where it was


@torch.no_grad()
def hybrid(
    slope: Slope,
    m: Tensor,
    sigma: Tensor,
    theta: Callable[[], Tensor],
    K: int,
    eps: Eps,
    tau: float = 1.0,
    held: Held | None = None,
    start: Tensor | None = None,
    watch: Watch | None = None,
    r: float = 0.0,
) -> Tensor:
    """A draw of N(m, sigma^2), or `start`, then moves, the last of which may be shorter, for K gradients in all.

    The first of them is that where the chain starts, so that K = 1 moves nothing.

    Arguments:
        theta: () -> the angle of the steps of the next move, [N, 1] radians.
        watch: told of every step where the chain then stands, and of the last one of a move what was taken.
        r: share of u that a jump before every move, one gradient more, draws anew; 0 for none.
    """
    u = hold(m + tau * sigma * eps() if start is None else start, held)
    if not K:
        return u
    F, push = slope(u)
    if watch is not None:
        watch(u, F, push, None)
    left = K - 1
    while left:
        if r:
            u, F, push = jump(slope, u, F, push, m, sigma, r, eps, tau, held)
            left -= 1
            if watch is not None:
                watch(u, F, push, None)
        kicks = min(KICKS, left)
        left -= kicks
        if not kicks:
            break
        u, F, push, taken = move(slope, u, F, push, m, sigma, theta(), kicks, eps, tau, held)
        for more in reversed(range(kicks)):
            if watch is not None:
                watch(u, F, push, None if more else taken)
    return u


@torch.no_grad()
def move(
    slope: Slope,
    u: Tensor,
    F: Tensor,
    push: Tensor,
    m: Tensor,
    sigma: Tensor,
    theta: Tensor,
    kicks: int,
    eps: Eps,
    tau: float = 1.0,
    held: Held | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One move from u [N, D], where F [N] and its gradient `push` [N, D] are known: (u, F, push) there, and who was
    taken, bool [N]."""
    at_rest = torch.zeros_like(u)
    v = hold(tau * sigma * eps(), held and (held[0], at_rest))
    log_uniform = _log_uniform(eps)
    before = _hamiltonian(u, v, F, m, sigma)
    new, F_new, push_new = u, F, push
    for _ in range(kicks):
        new, F_new, push_new, v = step(slope, new, v, push_new, m, sigma, theta, held)
    change = (_hamiltonian(new, v, F_new, m, sigma) - before) / tau**2
    taken = log_uniform < -change  # False where the energy is not finite
    return *_there(taken, (new, F_new, push_new), (u, F, push)), taken


@torch.no_grad()
def jump(
    slope: Slope,
    u: Tensor,
    F: Tensor,
    push: Tensor,
    m: Tensor,
    sigma: Tensor,
    r: float,
    eps: Eps,
    tau: float = 1.0,
    held: Held | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """One jump from u [N, D], where F [N] and its gradient `push` [N, D] are known: (u, F, push) there."""
    new = hold(m + (1 - r) ** 0.5 * (u - m) + r**0.5 * tau * sigma * eps(), held)
    log_uniform = _log_uniform(eps)
    F_new, push_new = slope(new)
    taken = log_uniform < (F_new.double() - F.double()) / tau**2  # False where F is not finite
    return _there(taken, (new, F_new, push_new), (u, F, push))


def _log_uniform(eps: Eps) -> Tensor:
    """The logarithm of each image's own uniform number, [N]: by the first coordinate of one more draw of its stream."""
    return torch.special.log_ndtr(eps()[:, 0].double())


def _there(taken: Tensor, new: tuple[Tensor, ...], old: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """(u, F, push) of who was taken from `new`, of the others from `old`."""
    row = taken[:, None]
    return tuple(torch.where(which, n, o) for which, n, o in zip((row, taken, row), new, old, strict=True))


def step(
    slope: Slope,
    u: Tensor,
    v: Tensor,
    push: Tensor,
    m: Tensor,
    sigma: Tensor,
    theta: Tensor,
    held: Held | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Kick, rotation, kick: (u, F(u), grad F(u), v)."""
    at_rest = held and (held[0], torch.zeros_like(u))
    kick, cos, sin = 0.5 * theta * sigma.square(), theta.cos(), theta.sin()
    v = hold(v + kick * push, at_rest)
    from_m = u - m
    u, v = hold(m + cos * from_m + sin * v, held), hold(cos * v - sin * from_m, at_rest)
    F, push = slope(u)
    return u, F, push, hold(v + kick * push, at_rest)


def _hamiltonian(u: Tensor, v: Tensor, F: Tensor, m: Tensor, sigma: Tensor) -> Tensor:
    """H [N], in double precision: what is compared are small differences of large numbers."""
    squares = ((u - m).double().square() + v.double().square()) / sigma.double().square()
    return 0.5 * squares.sum(1) - F.double()


def longer(theta: Tensor, acceptance: Tensor, gain: float) -> Tensor:
    """Steps that are to be taken as often as ACCEPTED says, after a look at how often they were."""
    return (theta * (gain * (acceptance - ACCEPTED)).exp()).clamp(max=LONGEST)


@dataclass(frozen=True)
class Hybrid(Chain, word="hmc"):
    """`hybrid`, with steps of theta, or of each level's own.

    by_level: angles [T], which whoever owns them may adapt between moves; they belong to the energies, not to the
    chain's settings, and take no part in whether two chains are the same.
    renew: r, the share of u that jumps draw anew.
    """

    theta: float
    by_level: Tensor | None = field(default=None, compare=False)
    renew: float = 0.0
    exact = True

    @classmethod
    def from_recipe(cls, config: recipes.Prior) -> "Hybrid":
        return cls(config.theta, renew=config.renew)

    def stepping(self, by_level: Tensor) -> "Hybrid":
        """The same with steps of each level's own, [T] radians."""
        return replace(self, by_level=by_level)

    def draw_told(self, watch: Watch | None, slope: Slope, *given) -> Tensor:
        return self.draw(slope, *given, watch=watch)

    def draw(self, slope, u_next, a, sigma, schedule, t, K, eps, tau, held, start=None, watch=None) -> Tensor:
        return hybrid(slope, a * u_next, sigma, self._angle(t), K, eps, tau, held, start, watch, self.renew)

    def _angle(self, t: Tensor) -> Callable[[], Tensor]:
        if self.by_level is None:
            return lambda: torch.full((len(t), 1), self.theta, device=t.device)
        return lambda: self.by_level[t][:, None]
