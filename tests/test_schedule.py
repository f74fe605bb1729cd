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
