"""Inference by Langevin dynamics: z ~ p(z | x) without, or starting from, an encoder.

short run (Nijkamp et al. 2020, https://arxiv.org/abs/1912.01909; "A Tale of Two Latent Flows", Xie et al. 2023,
https://arxiv.org/abs/2301.09300): K steps of a fixed size s, unadjusted,

    z <- z + s^2 / 2 grad log p(z, x) + s eps

and noise-free, without its last term, for tests (the same paper), where it climbs to a mode.  In either
 a drift longer than sqrt(D), the radius of N(0, I), is cut to that: on images like none that were learned the
slope may be too steep for the step, and the run would leave the numbers.

adjusted (MALA; Roberts & Tweedie 1996, "Exponential convergence of Langevin distributions"): the same proposal, taken
with probability min(1, p(z', x) q(z | z') / (p(z, x) q(z' | z))), so that p(z | x) is left exactly as it is at any s;
each chain finds its own s in the first half of the steps.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from hebmtool.chains.base import value_and_gradient

LogDensity = Callable[[Tensor], Tensor]
"""log p(z, x) up to a constant, [N, D] -> [N]."""


ACCEPTANCE = 0.574
"""The share of proposals to take that is best in many dimensions (Roberts & Rosenthal 1998)."""


@torch.no_grad()
def short_run(log_density: LogDensity, z: Tensor, steps: int, s: float, noise: Callable[[], Tensor] | None) -> Tensor:
    """`steps` unadjusted updates of size s from z, [N, D] -> [N, D].

    Arguments:
        noise: returns standard normal [N, D] at each call; None takes the updates without noise.
    """
    radius = z.shape[1] ** 0.5
    for _ in range(steps):
        drift = 0.5 * s**2 * value_and_gradient(log_density, z)[1]
        z = z + drift * (radius / drift.norm(dim=1, keepdim=True)).clamp(max=1)
        if noise is not None:
            z = z + s * noise()
    return z


@torch.no_grad()
def adjusted(
    log_density: LogDensity, z: Tensor, steps: int, s: float, noise: Callable[[], Tensor]
) -> tuple[Tensor, Tensor]:
    """`steps` Metropolis-adjusted updates from z; (z [N, D], the share of the later half's proposals taken, [N]).

    Arguments:
        s: size of each chain's first step; adapted in the first half of the steps, then held.
        noise: returns standard normal [N, D + 1] at each call; the last one decides.
    """

    log_s = torch.full((len(z), 1), s, device=z.device).log()
    value, slope = value_and_gradient(log_density, z)
    taken = torch.zeros(len(z), device=z.device)
    for step in range(steps):
        s_squared, e = (2 * log_s).exp(), noise()
        eps, uniform = e[:, :-1], torch.special.ndtr(e[:, -1])
        z_new = z + 0.5 * s_squared * slope + s_squared.sqrt() * eps
        value_new, slope_new = value_and_gradient(log_density, z_new)
        # log q(z | z') - log q(z' | z), both normal with variance s^2.
        back = (z - z_new - 0.5 * s_squared * slope_new).square() / s_squared
        log_ratio = value_new - value + 0.5 * (eps.square() - back).sum(1)
        accept = log_ratio.exp().clamp(max=1).nan_to_num(0)
        take = uniform < accept
        z = torch.where(take[:, None], z_new, z)
        value, slope = torch.where(take, value_new, value), torch.where(take[:, None], slope_new, slope)
        if step < steps // 2:
            log_s = log_s + (accept - ACCEPTANCE)[:, None] / (step + 1) ** 0.5
        else:
            taken += accept
    return z, taken / (steps - steps // 2)
