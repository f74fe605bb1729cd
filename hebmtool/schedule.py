"""Noise levels of the diffusion over u (Gao et al. 2021, https://arxiv.org/abs/2012.08125, appendix).

A discretisation with 1000 steps, beta linear from 1e-4 to 0.02, is thinned to T levels: keep the indices
k_t = t floor(1000 / (2 (T - 1))) for t < T, and k_T = 999.  Then

    a_t     = product of sqrt(1 - beta) over the steps k_{t-1}+1 .. k_t (from 0 for t = 0)
    sigma_t = sqrt(1 - a_t^2),      abar_t = a_0 ... a_t,      sbar_t = sqrt(1 - abar_t^2)

    u_t     = abar_t u_0 + sbar_t eps
    u_{t+1} = a_{t+1} u_t + sigma_{t+1} eps'
"""

import numpy as np
import torch
from torch import Tensor

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
        self.T = T
        beta = np.linspace(BETA_FIRST, BETA_LAST, STEPS)
        kept = [t * (STEPS // (2 * max(T - 1, 1))) for t in range(T)] + [STEPS - 1]
        log_alpha = np.concatenate([[0.0], np.cumsum(0.5 * np.log1p(-beta))])
        log_abar = torch.from_numpy(log_alpha[np.array(kept) + 1])
        log_a = torch.cat([log_abar[:1], log_abar.diff()])
        self.a, self.abar = log_a.exp(), log_abar.exp()
        # -expm1(2 log a) = 1 - a^2 without cancellation near a = 1.
        self.sigma, self.sbar = (-torch.expm1(2 * log_a)).sqrt(), (-torch.expm1(2 * log_abar)).sqrt()

    def diffuse(self, u_0: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Draw (u_t, u_{t+1}).

        Arguments:
            u_0: [N, D].
            t: level per image, long [N] in 0..T-1.
        """

        def at(coefficients: Tensor, level: Tensor) -> Tensor:
            return coefficients.to(u_0)[level][:, None]

        u_t = at(self.abar, t) * u_0 + at(self.sbar, t) * torch.randn_like(u_0)
        u_next = at(self.a, t + 1) * u_t + at(self.sigma, t + 1) * torch.randn_like(u_0)
        return u_t, u_next
