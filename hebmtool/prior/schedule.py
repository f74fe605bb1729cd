"""Noise levels of the diffusion over u (Gao et al. 2021, https://arxiv.org/abs/2012.08125, appendix).

A discretisation with 1000 steps, beta linear from 1e-4 to 0.02, is thinned to T levels: keep the indices
k_t = t floor(1000 / (2 (T - 1))) for t < T, and k_T = 999.  Then

    a_t     = product of sqrt(1 - beta) over the steps k_{t-1}+1 .. k_t (from 0 for t = 0)
    sigma_t = sqrt(1 - a_t^2),      abar_t = a_0 ... a_t,      sbar_t = sqrt(1 - abar_t^2)

    u_t     = abar_t u_0 + sbar_t eps
    u_{t+1} = a_{t+1} u_t + sigma_{t+1} eps'
"""

import copy
from typing import Self

import numpy as np
import torch
from torch import Tensor

from hebmtool import rows

STEPS = 1000
BETA_FIRST, BETA_LAST = 1e-4, 0.02


class Schedule:
    """Coefficients of the T + 1 levels t = 0..T, each a float64 tensor [T + 1].

    Arguments:
        T: number of levels with an energy, at least 1.
    """

    def __init__(self, T: int):
        if T < 1:
            raise ValueError(f"the schedule needs T >= 1 level, got {T}")
        beta = np.linspace(BETA_FIRST, BETA_LAST, STEPS)
        kept = [t * (STEPS // (2 * max(T - 1, 1))) for t in range(T)] + [STEPS - 1]
        log_alpha = np.concatenate([[0.0], np.cumsum(0.5 * np.log1p(-beta))])
        log_abar = torch.from_numpy(log_alpha[np.array(kept) + 1])
        log_a = torch.cat([log_abar[:1], log_abar.diff()])
        # -expm1(2 log a) = 1 - a^2 without cancellation near a = 1.
        sigma, sbar = (-torch.expm1(2 * log_a)).sqrt(), (-torch.expm1(2 * log_abar)).sqrt()
        self._set(log_a.exp(), sigma, log_abar.exp(), sbar)

    def _set(self, a: Tensor, sigma: Tensor, abar: Tensor, sbar: Tensor) -> None:
        self.T, self.a, self.sigma, self.abar, self.sbar = len(a) - 1, a, sigma, abar, sbar
        self._copies: dict[torch.device, Self] = {a.device: self}

    def on(self, device: torch.device) -> Self:
        """The same with its coefficients there: copied once, for a copy makes the device wait."""
        if device not in self._copies:
            there = self._copies[device] = copy.copy(self)
            there.a, there.sigma, there.abar, there.sbar = (
                c.to(device) for c in (self.a, self.sigma, self.abar, self.sbar)
            )
        return self._copies[device]

    @classmethod
    def joint(cls) -> "Schedule":
        """One level without noise, below N(0, I) itself: what a joint EBM is learned and drawn by."""
        schedule, clean, noise = cls.__new__(cls), *torch.eye(2, dtype=torch.float64)
        schedule._set(clean, noise, clean, noise)
        return schedule

    def conditional(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(a, sigma), float32 [N, 1], of the Gaussian part N(u_t; a u_{t+1}, sigma^2) of p(u_t | u_{t+1}).

        N(0, I) reversed in time, so a_{t+1} and sigma_{t+1}; at the topmost level, where there is nothing to recover
        from, N(0, I) itself.

        Arguments:
            t: level per image, long [N].
        """
        top = (t == self.T - 1)[:, None]
        here = self.on(t.device)
        a, sigma = (c.float()[t + 1][:, None] for c in (here.a, here.sigma))
        return torch.where(top, 0.0, a), torch.where(top, 1.0, sigma)

    def diffuse(self, u_0: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Draw (u_t, u_{t+1}).

        Arguments:
            u_0: [N, D].
            t: level per image, long [N] in 0..T-1.
        """

        def at(coefficients: Tensor, level: Tensor) -> Tensor:
            return coefficients.to(u_0)[level][:, None]

        here = self.on(u_0.device)
        u_t = at(here.abar, t) * u_0 + at(here.sbar, t) * rows.randn_like(u_0)
        u_next = at(here.a, t + 1) * u_t + at(here.sigma, t + 1) * rows.randn_like(u_0)
        return u_t, u_next
