"""Likelihood bounds: against integrals done by brute force, and normalisers in closed form."""

import math

import pytest
import torch

from hebmtool import data, recipe
from hebmtool.chains.metropolis import Move, step_size
from hebmtool.metrics import evidence
from hebmtool.prior import JointEBM, make_prior

C, SLOPE, D = 1.5, 0.6, 6


def quadratic(u):
    """exp(G) N(u; 0, I) is N(g / (1 + c), 1 / (1 + c)) in every coordinate."""
    return SLOPE * u.sum(1) - 0.5 * C * u.square().sum(1)


LOG_Z = D * (0.5 * SLOPE**2 / (1 + C) - 0.5 * math.log(1 + C))


def exact_draws(n):
    return SLOPE / (1 + C) + torch.randn(n, D) / math.sqrt(1 + C)


def random(seed=1):
    # Not the seed of the draws above: momenta that copy positions are no momenta.
    return torch.Generator().manual_seed(seed)


# The Metropolis-adjusted chain


@pytest.mark.parametrize("theta", [0.3, 0.9])
def test_moves_leave_the_law_as_it_is_at_any_step(theta):
    move = Move(quadratic, exact_draws(4000), theta, random())
    for _ in range(6):
        move(1.0)
    assert 0.2 < move.accepted / move.proposed < 1
    n = move.u.numel()
    assert move.u.mean().item() == pytest.approx(SLOPE / (1 + C), abs=5 / math.sqrt((1 + C) * n))
    assert move.u.var().item() == pytest.approx(1 / (1 + C), rel=5 * math.sqrt(2 / n))


def test_moves_find_the_law_from_elsewhere_and_at_the_power_asked():
    move = Move(quadratic, 3 + torch.randn(3000, D), 0.4, random())
    for _ in range(30):
        move(0.5)
    k = 1 + 0.5 * C
    n = move.u.numel()
    assert move.u.mean().item() == pytest.approx(0.5 * SLOPE / k, abs=6 / math.sqrt(k * n))
    assert move.u.var().item() == pytest.approx(1 / k, rel=6 * math.sqrt(2 / n))


def test_a_step_is_as_short_as_the_energy_asks():
    assert step_size(lambda u: 0 * u.sum(1), torch.randn(50, D), random()) == 0.5
    steep = step_size(lambda u: -500 * u.square().sum(1), torch.randn(50, D) / 30, random())
    assert 1e-3 < steep < 0.1
    assert step_size(lambda u: u.sum(1) * math.nan, torch.randn(50, D), random()) is None


# Annealed importance sampling


def test_both_directions_agree_with_the_closed_form():
    up = evidence.forward(quadratic, D, 400, 30, 0.5, random())
    down = evidence.reverse(quadratic, exact_draws(400), 0, 30, 0.5, random())
    for found in (up, down):
        assert found.error < 0.05
        assert found.effective > 200
        assert abs(found.log_Z - LOG_Z) < 5 * found.error


def test_annealing_has_the_integral_of_a_law_that_is_no_gaussian():
    def G(u):
        return 2 * (2 * u[:, 0]).sin() + u[:, 0] * u[:, 1] - 0.5 * u[:, 1] ** 4

    grid = torch.linspace(-7, 7, 701, dtype=torch.float64)
    u = torch.cartesian_prod(grid, grid)
    log_Z = (torch.logsumexp(G(u) - 0.5 * u.square().sum(1), 0) + math.log(0.02**2 / (2 * math.pi))).item()
    found = evidence.forward(G, 2, 500, 20, 0.3, random())
    assert abs(found.log_Z - log_Z) < 5 * found.error < 0.4


def test_the_directions_of_the_bounds():
    # One chain at a time and two temperatures: far from converged, on either side.
    up = evidence.forward(quadratic, D, 2000, 2, 0.5, random()).log_w
    down = -evidence.reverse(quadratic, exact_draws(2000), 0, 2, 0.5, random()).log_w
    assert up.mean() + 5 * up.std() / math.sqrt(2000) < LOG_Z < down.mean() - 5 * down.std() / math.sqrt(2000)


def test_the_error_is_the_spread_of_repeated_runs():
    runs = [evidence.forward(quadratic, D, 30, 6, 0.5, random(seed)) for seed in range(1, 41)]
    spread = torch.tensor([run.log_Z for run in runs]).std().item()
    stated = sum(run.error for run in runs) / len(runs)
    assert stated == pytest.approx(spread, rel=0.4)


# Images: all sixteen binary ones of four pixels, under a generator with two latent dimensions


@pytest.fixture
def tiny(make_generator):
    generator = make_generator((1, 2, 2), scales=1, layers_per_scale=2, latent_channels=1)
    assert (generator.L, generator.D) == (2, 2)
    # A decoder that says something about its latents.
    with torch.no_grad():
        for p in generator.image_head.parameters():
            p.mul_(40)
    prior = make_prior(generator, recipe.Prior(kind="ebm", chain="underdamped"))
    for head in (layer.head for layer in prior.energy.layers):
        torch.nn.init.normal_(head.weight, std=1.0)
    return prior.requires_grad_(False)


@pytest.fixture
def sixteen():
    codes = torch.arange(16)[:, None] >> torch.arange(4) & 1
    images = 255 * codes.reshape(16, 1, 2, 2).to(torch.uint8)
    return data.Images(16, (1, 2, 2), lambda indices: images[indices])


def settings():
    return recipe.Recipe(generator=recipe.Generator(likelihood="bernoulli"))


@torch.no_grad()
def brute_force(prior, x):
    """(log p(x) under the Gaussian prior, under the energy, log Z) by summing over a grid of u."""
    grid = torch.linspace(-6, 6, 161)
    u, generator = torch.cartesian_prod(grid, grid), prior.generator
    log_cell = 2 * math.log(12 / 160) - math.log(2 * math.pi)
    log_N, G = log_cell - 0.5 * u.square().sum(1).double(), prior.log_tilt(u).double()
    logits = generator.decode(generator.walk(u))
    log_px = torch.stack([generator.likelihood.log_prob(logits, one.expand(len(u), -1, -1, -1)) for one in x]).double()
    log_Z = torch.logsumexp(G + log_N, 0)
    return torch.logsumexp(log_px + log_N, 1), torch.logsumexp(log_px + G + log_N, 1) - log_Z, log_Z.item()


def test_bounds_close_on_the_integral(tiny, sixteen):
    x = sixteen.batch(range(16)).float() / 255
    gaussian, ebm, log_Z = brute_force(tiny, x)
    assert abs(log_Z) > 0.05 and (ebm - gaussian).abs().max() > 0.02  # there is something to tell
    w = evidence.weigh(tiny, sixteen, settings(), 16, 400)
    assert torch.allclose(w.without_energy().bound(), gaussian, atol=0.1)
    assert torch.allclose(w.bound(log_Z), ebm, atol=0.1)
    # Sixteen images are all there are.
    assert w.bound(log_Z).exp().sum().item() == pytest.approx(1, abs=0.03)
    assert (w.without_energy().elbo() < gaussian + 0.02).all()
    assert (w.elbo(log_Z) < ebm + 0.02).all()
    found = evidence.forward(tiny.log_tilt, 2, 300, 20, 0.5, random())
    assert abs(found.log_Z - log_Z) < 5 * found.error < 0.1


def test_figures_are_the_bounds_means(tiny, sixteen):
    x = sixteen.batch(range(16)).float() / 255
    gaussian, ebm, log_Z = brute_force(tiny, x)
    found = {(f.of, f.name, f.layer): f for f in evidence.figures(tiny, sixteen, settings(), 16, 200, chains=200)}
    for of, truth in (("gaussian", gaussian), ("ebm", ebm)):
        nats, bits = found[of, "IW-200", None], found[of, "bits/dim (IW-200)", None]
        assert nats.value == pytest.approx(truth.mean().item(), abs=0.1)
        assert bits.value == pytest.approx(-nats.value / 4 / math.log(2), abs=1e-6)
        assert bits.error == pytest.approx(nats.error / 4 / math.log(2), rel=1e-4)
        assert found[of, "ELBO", None].value < nats.value
    rates = [found["gaussian", "rate", layer].value for layer in (1, 2)]
    assert sum(rates) == pytest.approx(found["gaussian", "rate", None].value, abs=1e-6)
    for name in ("log Z", "log Z (reverse)"):
        z = found["ebm", name, None]
        assert abs(z.value - log_Z) < 5 * z.error < 0.2
    assert found["ebm", "gain over gaussian", None].value == pytest.approx((ebm - gaussian).mean().item(), abs=0.1)


def test_an_image_is_weighed_alike_in_whatever_set(tiny, sixteen):
    few, all_of_them = (evidence.weigh(tiny, sixteen, settings(), n, 3) for n in (5, 16))
    assert torch.allclose(few.bound(), all_of_them.bound()[:5], atol=1e-5)


@pytest.mark.parametrize("flows", [0, 1])
def test_the_ratio_at_a_draw_has_the_rate_as_its_mean(make_generator, flows):
    generator = make_generator(flows=flows, latent_channels=2)
    x = torch.rand(1, 1, 8, 8).expand(3000, -1, -1, -1)
    with torch.no_grad():
        found = generator.posterior(x)
    if flows:
        assert torch.equal(found.kl, found.log_ratio)
    error = found.log_ratio.std(0) / math.sqrt(3000)
    assert ((found.log_ratio.mean(0) - found.kl.mean(0)).abs() < 5 * error + 1e-5).all()


class Broken(JointEBM):
    def F(self, u, t=None, walk=None):
        return u.sum(1) * math.nan


def test_an_energy_too_steep_for_any_step_is_said(tiny, sixteen):
    broken = Broken(tiny.generator, tiny.config).requires_grad_(False)
    found = {f.name: f for f in evidence.figures(broken, sixteen, settings(), 4, 2) if f.of == "ebm"}
    assert list(found) == ["log Z"]
    assert found["log Z"].value is None
    assert "too steep" in found["log Z"].note
