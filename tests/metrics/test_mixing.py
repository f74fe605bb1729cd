"""Langevin diagnostics: they leave the chains alone, and read off what closed forms say."""

import math

import pytest
import torch

from hebmtool import recipe
from hebmtool.metrics import mixing
from hebmtool.noise import Noise
from hebmtool.prior import KINDS, make_prior

CHAINS = ["langevin", "preconditioned", "underdamped"]


def configured(kind, chain, **keys):
    config = recipe.Prior(kind=kind, chain=chain, **{"steps": 4, "eta": 1e-2, "levels": 3} | keys)
    config.energy = recipe.Energy(reads="z+state", width=6, blocks=1)
    return config


def make(generator, kind="diffusion-ebm", chain="underdamped", **keys):
    prior = make_prior(generator, configured(kind, chain, **keys)).requires_grad_(False)
    for layer in prior.energy.layers:
        torch.nn.init.normal_(layer.head.weight, std=1e-2)
    return prior


def known(generator, F, kind="diffusion-ebm", chain="underdamped"):
    """A prior whose energy is F(u), [N, D] -> [N]."""

    class Known(KINDS[kind]):
        def F(self, u, t=None, walk=None):
            return F(u)

    return Known(generator, configured(kind, chain)).requires_grad_(False)


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("kind", ["ebm", "diffusion-ebm"])
def test_recording_leaves_the_chain_alone(generator, kind, chain):
    prior = make(generator, kind, chain)
    alone = prior.sample(Noise(0, range(3), generator.D))
    trace, watched = mixing.trajectory(prior, Noise(0, range(3), generator.D), 4)
    assert torch.equal(alone, watched)
    levels = [2] * 4 + [1] * 4 + [0] * 4 if kind == "diffusion-ebm" else [0] * 4
    assert trace.level.tolist() == levels
    for rows in (trace.G, trace.energy, trace.slope, trace.norm):
        assert rows.shape == (len(levels), 3) and rows.isfinite().all()


def test_rows_are_what_the_energy_says(generator):
    prior = known(generator, lambda u: -0.5 * 0.3 * u.square().sum(1))
    trace, _ = mixing.trajectory(prior, Noise(0, range(5), generator.D), 3)
    squared = trace.norm * generator.D
    assert torch.allclose(trace.G, -0.15 * squared, rtol=1e-5)
    assert torch.allclose(trace.slope, 0.3 * squared.sqrt(), rtol=1e-5)


@pytest.mark.parametrize("chain", CHAINS[1:])
def test_without_an_energy_every_coordinate_has_half_a_nat(generator, chain):
    """The conditional is Gaussian, and the energy half a chi-squared."""
    prior = known(generator, lambda u: 0 * u.sum(1), chain=chain)
    trace, _ = mixing.trajectory(prior, Noise(0, range(200), generator.D), 5)
    for level in range(3):
        last = trace.energy[trace.level == level][-1]
        n = last.numel() * generator.D
        assert (2 * last.mean() / generator.D).item() == pytest.approx(1, abs=5 * math.sqrt(2 / n))


# Autocorrelation


def ar1(phi, steps, n):
    x = [torch.randn(n, dtype=torch.float64)]
    for _ in range(steps - 1):
        x.append(phi * x[-1] + math.sqrt(1 - phi**2) * torch.randn(n, dtype=torch.float64))
    return torch.stack(x)


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9, -0.5])
def test_the_autocorrelation_of_an_autoregression(phi):
    each = mixing.autocovariance(ar1(phi, 2000, 40))
    rho = each.mean(1)
    assert torch.allclose(rho[:6], phi ** torch.arange(6, dtype=torch.float64), atol=0.03)
    tau, resolved = mixing.autocorrelation_time(rho)
    assert resolved
    assert tau == pytest.approx((1 + phi) / (1 - phi), rel=0.12)


def test_coordinates_are_averaged_each_about_its_own_mean():
    series = torch.stack([ar1(0.5, 1000, 20), 7 + 3 * ar1(0.9, 1000, 20)], dim=2)
    rho = mixing.autocovariance(series).mean(1)
    assert rho[1].item() == pytest.approx(0.7, abs=0.03)


def test_chains_stuck_in_different_places_do_not_look_mixed():
    stuck = ar1(0.2, 400, 20) + 3 * torch.randn(20)
    assert not mixing.autocorrelation_time(mixing.autocovariance(stuck).mean(1))[1]
    slow = mixing._time("time", ar1(0.999, 60, 20), "ebm", None)
    assert "too short" in slow.note


# All of it


@pytest.mark.parametrize("chain", CHAINS)
def test_diagnostics(generator, chain):
    prior = make(generator, chain=chain)
    d = mixing.diagnose(prior, torch.randn(30, generator.D), images=6, chain=40)
    assert (d.steps, len(d.short.G), len(d.long.G), len(d.relaxed.G)) == (4, 12, 120, 40)
    assert [len(columns) for columns in d.layers] == [8, 32]
    assert d.relaxed.u.shape == (40, 6, 40)
    found = {(f.name, f.layer): f for f in mixing.figures(d)}
    assert found["G at 4 steps", None].value == pytest.approx(d.short_G.mean().item())
    assert found["RMS of u at 40 steps", None].value == pytest.approx(d.long_u.square().mean(1).sqrt().mean().item())
    drift = found["G at 40 steps", None].value - found["G at 4 steps", None].value
    assert found["G drift", None].value == pytest.approx(drift, abs=1e-5)
    assert {layer for name, layer in found if name == "autocorrelation time"} == {1, 2}
    again = mixing.diagnose(prior, torch.randn(30, generator.D), images=6, chain=40)
    assert torch.equal(again.relaxed.G, d.relaxed.G)


def test_a_chain_that_runs_away_shows_as_drift(generator):
    """G grows without bound in every direction, faster than the Gaussian holds it."""
    prior = known(generator, lambda u: 0.55 * u.square().sum(1), "ebm")
    d = mixing.diagnose(prior, torch.randn(20, generator.D), images=8, chain=20)
    found = {f.name: f for f in mixing.figures(d)}
    assert found["RMS drift"].value > 5 * found["RMS drift"].error > 0
