"""The noise levels: published numbers, the identities they must obey, and the draws made with them."""

import math

import pytest
import torch

from hebmtool.prior.schedule import Schedule

LEVELS = [1, 2, 3, 6, 10]


@pytest.mark.parametrize("T", LEVELS)
def test_coefficients_rederived_step_by_step(T):
    beta = [1e-4 + (0.02 - 1e-4) * i / 999 for i in range(1000)]
    gap = math.floor(1000 / (2 * (T - 1))) if T > 1 else 0
    kept = [t * gap for t in range(T)] + [999]
    a, before = [], -1
    for k in kept:
        product = 1.0
        for step in range(before + 1, k + 1):
            product *= math.sqrt(1 - beta[step])
        a.append(product)
        before = k
    assert Schedule(T).a.tolist() == pytest.approx(a, rel=1e-12)


def test_three_levels_are_the_published_ones():
    assert Schedule(3).a.tolist() == pytest.approx([0.99995, 0.7221, 0.3863, 0.0228], abs=5e-5)


@pytest.mark.parametrize("T", LEVELS)
def test_identities(T):
    s = Schedule(T)
    assert s.T == T
    for c in (s.a, s.sigma, s.abar, s.sbar):
        assert c.shape == (T + 1,) and c.dtype == torch.float64 and (c > 0).all() and (c < 1).all()
    assert torch.allclose(s.a**2 + s.sigma**2, torch.ones(T + 1, dtype=torch.float64), rtol=0, atol=1e-14)
    assert torch.allclose(s.abar**2 + s.sbar**2, torch.ones(T + 1, dtype=torch.float64), rtol=0, atol=1e-14)
    assert torch.allclose(s.a.cumprod(0), s.abar, rtol=1e-12, atol=0)
    # Two noisings in a row are one: variance a^2 sbar_t^2 + sigma^2.
    assert torch.allclose(s.a[1:] ** 2 * s.sbar[:-1] ** 2 + s.sigma[1:] ** 2, s.sbar[1:] ** 2, rtol=1e-12, atol=0)
    assert (s.abar.diff() < 0).all()


@pytest.mark.parametrize("T", LEVELS)
def test_small_noise_is_exact(T):
    # sigma_0^2 = beta_0 = 1e-4 to the last digits, which 1 - a^2 would not give.
    assert Schedule(T).sigma[0].item() == pytest.approx(1e-2, rel=1e-13)


def test_diffuse_has_the_stated_moments():
    s, n, d = Schedule(3), 2000, 50
    for level in range(3):
        u_0 = torch.full((n, d), 3.0)
        u_t, u_next = s.diffuse(u_0, torch.full((n,), level))
        assert u_t.shape == u_next.shape == (n, d) and u_t.dtype == torch.float32
        for u, at in ((u_t, level), (u_next, level + 1)):
            mean, spread = 3 * s.abar[at].item(), s.sbar[at].item()
            assert u.mean().item() == pytest.approx(mean, abs=5 * spread / math.sqrt(n * d))
            assert u.std().item() == pytest.approx(spread, rel=5 / math.sqrt(2 * n * d))
        a, sigma = s.a[level + 1].item(), s.sigma[level + 1].item()
        residual = (u_next - a * u_t) / sigma
        assert residual.mean().item() == pytest.approx(0, abs=5 / math.sqrt(n * d))
        assert residual.std().item() == pytest.approx(1, rel=5 / math.sqrt(2 * n * d))
        # The two noises are drawn independently of each other.
        first = (u_t - 3 * s.abar[level].item()) / s.sbar[level].item()
        assert (first * residual).mean().item() == pytest.approx(0, abs=5 / math.sqrt(n * d))


def test_diffuse_reads_each_images_own_level():
    s = Schedule(6)
    t = torch.arange(6).repeat(500)
    u_t, _ = s.diffuse(torch.full((3000, 40), 100.0), t)
    for level in range(6):
        assert u_t[t == level].mean().item() == pytest.approx(100 * s.abar[level].item(), abs=0.05)


def test_no_level_is_refused():
    with pytest.raises(ValueError, match="T >= 1"):
        Schedule(0)


# What is left of u_t once u_{t+1} is known


@pytest.mark.parametrize("T", LEVELS)
def test_the_conditional_is_the_gaussians_posterior_by_bayes_rule(T):
    """N(0, 1) u_t and u_{t+1} = a u_t + sigma eps: p(u_t | u_{t+1}) has precision 1 + a^2 / sigma^2."""
    s = Schedule(T)
    a, sigma = s.conditional(torch.arange(T))
    assert a.shape == sigma.shape == (T, 1) and a.dtype == sigma.dtype == torch.float32
    for t in range(T - 1):
        forward, noise = s.a[t + 1].item(), s.sigma[t + 1].item()
        precision = 1 + forward**2 / noise**2
        # The mean is a u_{t+1}, with a from completing the square; numerically, from densities on a line as well.
        assert a[t].item() == pytest.approx(forward / noise**2 / precision, rel=1e-6)
        assert sigma[t].item() == pytest.approx(precision**-0.5, rel=1e-6)
        line, u_next = torch.linspace(-6, 6, 200_001, dtype=torch.float64), 1.3
        share = (-0.5 * line**2 - 0.5 * ((u_next - forward * line) / noise) ** 2).softmax(0)
        mean = (share * line).sum()
        assert mean.item() == pytest.approx(a[t].item() * u_next, abs=1e-5)
        assert (share * (line - mean) ** 2).sum().sqrt().item() == pytest.approx(sigma[t].item(), abs=1e-5)


@pytest.mark.parametrize("T", LEVELS)
def test_at_the_top_there_is_nothing_to_recover_from(T):
    a, sigma = Schedule(T).conditional(torch.tensor([T - 1, T - 1]))
    assert a.tolist() == [[0], [0]] and sigma.tolist() == [[1], [1]]


def test_the_conditional_reads_each_images_own_level():
    s = Schedule(3)
    a, sigma = s.conditional(torch.tensor([2, 0, 1, 0]))
    _, a_1, a_2, _ = s.a.tolist()
    _, sigma_1, sigma_2, _ = s.sigma.tolist()
    assert a[:, 0].tolist() == pytest.approx([0, a_1, a_2, a_1], rel=1e-6)
    assert sigma[:, 0].tolist() == pytest.approx([1, sigma_1, sigma_2, sigma_1], rel=1e-6)


def test_the_joint_schedule_is_one_level_without_noise_below_the_gaussian():
    s = Schedule.joint()
    assert s.T == 1
    for c in (s.a, s.sigma, s.abar, s.sbar):
        assert c.shape == (2,) and c.dtype == torch.float64
    # u_0 is itself, u_1 is all noise: nothing is known of u_0 from it.
    u_0 = torch.randn(2000, 30)
    u_t, u_next = s.diffuse(u_0, torch.zeros(2000, dtype=torch.long))
    assert torch.equal(u_t, u_0) and abs((u_next * u_0).mean()) < 5 / math.sqrt(u_0.numel())
    assert u_next.std().item() == pytest.approx(1, abs=0.02)
    a, sigma = s.conditional(torch.zeros(3, dtype=torch.long))
    assert not a.any() and (sigma == 1).all()
    assert torch.allclose(s.a**2 + s.sigma**2, torch.ones(2, dtype=torch.float64))
