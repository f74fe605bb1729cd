"""What stage two minimises, one function per objective: (prior, u_0 [N, D], x [N, C, H, W]) -> (loss, figures).

All learn F of an energy-based prior on posterior draws u_0; `prior.pairs` takes these to the levels t they are learned
on.  The power iterations advance once per update.  `figures` are worth logging, and stay on the device until they are.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import softplus

from hebmtool import rows
from hebmtool.compute import compiled
from hebmtool.recipe import words

if TYPE_CHECKING:
    from hebmtool.prior.ebm import EnergyPrior

Objective = Callable[["EnergyPrior", Tensor, Tensor], tuple[Tensor, dict]]

OBJECTIVES: dict[str, Objective] = {}
"""By the recipe's word, `prior.objective`."""

RUN_CHAINS: set[str] = set()
"""Those that run the prior's chain while learning, so that F depends on it."""


BRIDGES: set[str] = set()
"""Those by which the energies of level t learn log p(u_t) / p(u_{t+1}), so that F is their sum from there up."""


def objective(word: str, runs_chain: bool = False, bridges: bool = False) -> Callable[[Objective], Objective]:
    """Makes a function what `prior.objective` calls by this word."""

    def added(function: Objective) -> Objective:
        OBJECTIVES[word] = function
        words.OBJECTIVES.add(word)
        if runs_chain:
            RUN_CHAINS.add(word)
        if bridges:
            BRIDGES.add(word)
        return function

    return added


@objective("recovery", runs_chain=True)
def recovery(prior: "EnergyPrior", u_0: Tensor, x: Tensor) -> tuple[Tensor, dict]:
    """Maximum likelihood with short-run negatives: F(u^-) - F(u^+), HEBM's Algorithm 1
    (https://arxiv.org/abs/2405.13910)."""
    prior.energy.advance()
    config = prior.config
    positive, u_next, t = prior.pairs(u_0)
    negative = prior.negatives(u_next, t, lambda: rows.randn_like(u_0), learning=True)
    both = compiled(prior.F)(torch.cat([positive, negative]), torch.cat([t, t]))
    F_positive, F_negative = both.chunk(2)
    scale = prior.scale(t)
    gap = (F_negative - F_positive) / scale
    loss = gap.mean()
    if config.margin:
        # Negatives far less likely than their positives mean that F has grown too steep for the chain's step,
        # which then overshoots; pushing them further down would make it worse, so turn round.
        loss = loss + 2 * torch.relu(-config.margin - gap).mean()
    penalty = (both / torch.cat([scale, scale])).square().mean()
    figures = {
        "gap": gap.detach().mean(),
        "overshot": (gap.detach() < -config.margin).float().mean() if config.margin else 0.0,
        "energy_positive": F_positive.detach().mean(),
        "energy_negative": F_negative.detach().mean(),
        "negative_std": negative.std(),
        "positive_std": positive.std(),
    }
    return loss + config.penalty * penalty, figures


@objective("nce")
def noise_contrast(prior: "EnergyPrior", u_0: Tensor, x: Tensor) -> tuple[Tensor, dict]:
    """Noise-contrastive estimation: F learns, by logistic regression, to tell u from draws of N(0, I).

    Its optimum is F = log q(u) / N(u; 0, I), which makes exp(F) N(u; 0, I) the aggregate posterior (at level t of
    the diffusion: that of u_t).  No chain is run ("A Contrastive Learning Approach for Training Variational
    Autoencoder Priors", Aneja et al. 2021, https://arxiv.org/abs/2010.02917).
    """
    prior.energy.advance()
    positive, _, t = prior.pairs(u_0)
    F_positive, F_negative, size = _contrasted(prior, positive, rows.randn_like(positive), t)
    loss = softplus(-F_positive).mean() + softplus(F_negative).mean()
    right = 0.5 * ((F_positive > 0).float().mean() + (F_negative < 0).float().mean())
    # The mean of F at the positives is the hole found so far, in nats.
    figures = {"nats": F_positive.detach().mean(), "accuracy": right}
    return loss + prior.config.penalty * size, figures


@objective("cnce")
def conditional_noise_contrast(prior: "EnergyPrior", u_0: Tensor, x: Tensor) -> tuple[Tensor, dict]:
    """Conditional noise-contrastive estimation: F learns which of u and a noisier copy of it came first.

    The copy is u' = rho u + sqrt(1 - rho^2) eps, rho ~ U(0, 1) per image.  This kernel is reversible under
    N(0, I), so the odds of (u, u') against (u', u) are exp(F(u) - F(u')) at the same optimum as
    `noise_contrast`, up to a constant.  Against draws of N(0, I) alone the copies near u teach F its slope where
    a chain at data runs (Ceylan & Gutmann 2018, https://arxiv.org/abs/1806.03664).
    """
    prior.energy.advance()
    positive, _, t = prior.pairs(u_0)
    copies = []
    for _ in range(prior.config.copies):
        rho = rows.rand(len(u_0), 1, device=u_0.device)
        copies.append(rho * positive + (1 - rho.square()).sqrt() * rows.randn_like(positive))
    F_positive, F_negative, size = _contrasted(prior, positive, torch.cat(copies), t)
    gap = F_negative - F_positive.repeat(len(copies))
    figures = {"gap": gap.detach().mean(), "accuracy": (gap < 0).float().mean()}
    return softplus(gap).mean() + prior.config.penalty * size, figures


def _contrasted(prior: "EnergyPrior", positive: Tensor, negative: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """F / scale at positives [N] and at negatives, [N] or several times as many in the same order, and its mean square
    over all."""
    sets = 1 + len(negative) // len(positive)
    F = compiled(prior.F)(torch.cat([positive, negative]), t.repeat(sets)) / prior.scale(t).repeat(sets)
    return F[: len(t)], F[len(t) :], F.square().mean()


@objective("score-matching")
def score_matching(prior: "EnergyPrior", u_0: Tensor, x: Tensor) -> tuple[Tensor, dict]:
    """Denoising score matching of the levels' marginals, p(u_t) ~ exp(F_t / b_t^2) N(u_t; 0, I).

    Level t >= 1 regresses on the score of the noise, -eps / sbar_t, weighted by sbar_t^2.  At level 0 there is next
    to no noise; the posterior's own spread takes its place, and the target is grad log q(u_0 | x).
    """
    schedule, score = prior.schedule, prior.generator.posterior_score(u_0, x)
    prior.energy.advance()
    t = prior.levels(len(u_0), u_0.device)
    here = schedule.on(t.device)
    abar, sbar = (c.float()[t][:, None] for c in (here.abar, here.sbar))
    eps = rows.randn_like(u_0)
    clean = (t == 0)[:, None]
    u = torch.where(clean, u_0, abar * u_0 + sbar * eps).requires_grad_(True)
    target, weight = torch.where(clean, score, -eps / sbar), torch.where(clean, 1.0, sbar)
    F = prior.F(u, t)
    slope = torch.autograd.grad((F / prior.scale(t)).sum(), u, create_graph=True)[0]
    error = (weight * (slope - u - target)).square().mean(1)
    # What predicting the Gaussian's own score would cost; the part of it that is explained is worth watching.
    baseline = (weight * (u + target)).square().mean(1).detach()
    explained = (baseline - error).detach()
    figures = {}
    for level in range(schedule.T):
        there = (t == level).float()
        figures[f"explained_{level}"] = (explained * there).sum() / there.sum()
    return error.mean() + prior.config.penalty * (F / prior.scale(t)).square().mean(), figures


@objective("telescope", bridges=True)
def telescope(prior: "EnergyPrior", u_0: Tensor, x: Tensor) -> tuple[Tensor, dict]:
    """Telescoping density-ratio estimation: logistic regression tells u_t from u_{t+1}, at all levels of the diffusion,

        log p(u_0) / N(u; 0, I) = sum_t log p(u_t) / p(u_{t+1})

    (Rhodes, Xu & Gutmann 2020, https://arxiv.org/abs/2006.12204).  Where the law of u is many nats from the Gaussian,
    one contrast tells them apart at a glance and learns no more; adjacent levels are alike.  F at level t, the sum from
    there up, takes T - t evaluations of the energies.
    """
    prior.energy.advance()
    positive, noisier, t = prior.pairs(u_0)
    ratio = prior.bridge(torch.cat([positive, noisier]), torch.cat([t, t]))
    there, above = ratio.chunk(2)
    figures = {
        "nats": there.detach().mean(),
        "accuracy": 0.5 * ((there > 0).float().mean() + (above < 0).float().mean()),
    }
    return softplus(-there).mean() + softplus(above).mean() + prior.config.penalty * ratio.square().mean(), figures
