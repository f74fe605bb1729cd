"""Sliced Wasserstein distances, and whether latents have a flow's law."""

import math

import pytest
import torch

from hebmtool import recipe
from hebmtool.metrics import flow_match
from hebmtool.noise import Noise
from hebmtool.prior import FlowPrior


def test_sliced_wasserstein_of_a_shift():
    a, shift = torch.randn(4000, 6), torch.tensor([1.0, 0, 0, 2.0, 0, 0])
    assert flow_match.sliced_wasserstein(a, a) == 0
    expected = shift.norm().item() / math.sqrt(6)
    assert flow_match.sliced_wasserstein(a, a + shift) == pytest.approx(expected, rel=0.1)


def test_match_tells_the_priors_draws_from_others():
    keys = ["flow.latent=5", "flow.transforms=4", "flow.hidden=8", "flow.width=4"]
    prior = FlowPrior.from_recipe(recipe.load("digits-flow", keys), (1, 8, 8)).eval().requires_grad_(False)
    for coupling in prior.couplings:
        torch.nn.init.normal_(coupling.hyper[-1].weight, std=0.5)
        torch.nn.init.normal_(coupling.hyper[-1].bias, std=0.5)
    own = prior.sample(Noise(9, range(500), 5))
    found = flow_match.match(prior, own)
    assert found.prior < 1.5 * found.floor < 0.5 * found.normal and found.samples == 500
    away = flow_match.match(prior, own + 1)
    assert away.prior > 2 * found.prior and away.floor == found.floor
    assert flow_match.figure(prior, own, found).startswith(b"\x89PNG")
