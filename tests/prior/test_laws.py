"""The equations of the energy-based priors: what a level's chain climbs, and the laws that come out in closed form."""

import math

import pytest
import torch
from toys import ENERGY_KINDS, toy_prior

from hebmtool.chains import CHAINS, GaussianExact
from hebmtool.prior import Schedule

every_energy = pytest.mark.parametrize("kind", ENERGY_KINDS)
every_chain = pytest.mark.parametrize("chain", CHAINS)


@pytest.mark.parametrize("chain", [word for word in CHAINS if word != "hmc"])  # whose one gradient is where it stands
@every_energy
def test_log_density_is_what_the_chain_climbs(generator, kind, chain):
    """One step without noise at level 0 against differences of `log_density`, plus the Gaussian tie to u_1."""
    h, eta, theta = 0.2, 1e-2, 0.05
    prior = toy_prior(generator, kind, chain, weight=0.1, h=h, theta=theta)
    t, s = torch.zeros(4, dtype=torch.long), Schedule(3)
    u_next, u_start, direction = torch.randn(3, 4, generator.D)
    direction /= direction.norm(dim=1, keepdim=True)
    tied = kind == "diffusion-ebm"
    a, sigma = (s.a[1].item(), s.sigma[1].item()) if tied else (0.0, 1.0)
    if chain in ("langevin", "unscaled"):
        b_squared = eta * (sigma**2 if chain == "langevin" else 1)
        u = u_next
        moved = prior.negatives(u_next, t, lambda: torch.zeros_like(u), K=1) - u
        slope = moved / (0.5 * b_squared)
    else:
        m = a * u_next
        draws = iter([(u_start - m) / sigma, torch.zeros_like(m)])
        u = u_start
        moved = prior.negatives(u_next, t, lambda: next(draws), K=1) - u
        # From rest, a turn by theta is a step of size theta^2 / 2, up to its square.
        slope = moved / ((1 - math.exp(-h) if chain == "preconditioned" else theta**2 / 2) * sigma**2)
    # d/du log p(u | u_1) = d/du log_density(u) + d/du log N(u_1; a u, sigma^2)
    slope = slope - a * (u_next - a * u) / sigma**2
    step = 0.02
    rise = (prior.log_density(u + step * direction) - prior.log_density(u - step * direction)) / (2 * step)
    found = (slope * direction).sum(1)
    assert torch.allclose(found, rise, rtol=2e-2, atol=2e-2 * rise.abs().max().item())
    # The energy has its part in it.
    gaussian = -(u * direction).sum(1)
    assert (rise - gaussian).abs().max() > 5 * (found - rise).abs().max()


@pytest.mark.parametrize("chain", [word for word, of in CHAINS.items() if issubclass(of, GaussianExact)])
def test_without_steps_each_level_is_its_gaussian(generator, chain):
    prior, eps = toy_prior(generator, chain=chain), torch.randn(3, generator.D)
    u_next, t = torch.full((3, generator.D), 100.0), torch.arange(3)
    a, sigma = prior.schedule.conditional(t)
    u = prior.negatives(u_next, t, lambda: eps, K=0)
    assert torch.allclose(u, a * u_next + sigma * eps)
    # At the top there is nothing to recover from: N(0, I) itself, wherever u_T is.
    assert torch.equal(u[2], eps[2])


@pytest.mark.parametrize("T", [2, 3])
@pytest.mark.parametrize(("c", "g"), [(0.0, 0.0), (1.0, 0.7)])
def test_diffusion_with_a_quadratic_energy_samples_its_closed_form_law(generator, monkeypatch, T, c, g):
    """F = (1 + t) (g sum u - c |u|^2 / 2): every conditional is Gaussian, and so is u_0."""
    prior, s, n = toy_prior(generator, levels=T, h=0.05), Schedule(T), 4000

    def F(u, t):
        return (1 + t) * (g * u.sum(1) - 0.5 * c * u.square().sum(1))

    monkeypatch.setattr(prior, "F", F)
    mean, variance, rho = 0.0, 1.0, math.exp(-0.05)
    for t in reversed(range(T)):
        a, sigma = (0.0, 1.0) if t == T - 1 else (s.a[t + 1].item(), s.sigma[t + 1].item())
        k, slope = (1 + t) * c, (1 + t) * g
        precision = 1 / sigma**2 + k
        # The chain of finite steps is an AR(1): its own variance, within 10 % of 1 / precision.
        decay = rho - (1 - rho) * sigma**2 * k
        own = sigma**2 * (1 - rho**2) / (1 - decay**2)
        assert own == pytest.approx(1 / precision, rel=0.1)
        gain = a / (sigma**2 * precision)
        mean, variance = gain * mean + slope / precision, gain**2 * variance + own
    u = prior.sample(lambda: torch.randn(n, generator.D), K=150)
    count = u.numel()
    assert u.mean().item() == pytest.approx(mean, abs=5 * math.sqrt(variance / count))
    assert u.var().item() == pytest.approx(variance, rel=5 * math.sqrt(2 / count))
