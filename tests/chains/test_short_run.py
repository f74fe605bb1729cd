"""Inference by Langevin dynamics: the published update, where it must not go, and the adjusted one's exactness."""

import pytest
import torch

from hebmtool.chains.short_run import ACCEPTANCE, adjusted, short_run


def test_short_run_is_the_published_update():
    calls = iter([torch.full((2, 3), 1.0), torch.full((2, 3), -2.0)])
    z = short_run(lambda z: -2 * z.square().sum(1), torch.ones(2, 3), 2, 0.1, lambda: next(calls))
    first = 1 + 0.005 * -4 + 0.1
    assert torch.allclose(z, torch.full((2, 3), first - 0.005 * 4 * first - 0.2))


def test_short_run_without_noise_climbs():
    z = short_run(lambda z: -2 * (z - 1).square().sum(1), torch.zeros(2, 3), 2, 0.1, None)
    assert torch.allclose(z, torch.full((2, 3), 0.02 + 0.02 * 0.98))
    assert torch.allclose(
        short_run(lambda z: -2 * (z - 1).square().sum(1), z, 500, 0.1, None), torch.ones(2, 3), atol=1e-3
    )


def test_short_run_stays_in_the_numbers_where_the_slope_is_too_steep():
    z = short_run(lambda z: -1e6 * z.square().sum(1), torch.ones(4, 3), 500, 0.1, lambda: torch.randn(4, 3))
    assert z.norm(dim=1).max() < 2 * 3**0.5


def test_short_run_of_no_steps_is_the_start():
    z = torch.randn(4, 3)
    assert torch.equal(short_run(lambda z: z.sum(1), z, 0, 0.1, lambda: torch.randn(4, 3)), z)


@pytest.mark.parametrize("s", [0.02, 2.0])
def test_adjusted_samples_a_law_that_is_no_gaussian_whatever_step_it_starts_with(s):
    """exp(2 sin z) N(z; 0, 1) in each of two coordinates, against sums over a line."""
    line = torch.linspace(-7, 7, 4001, dtype=torch.float64)
    share = (2 * line.sin() - 0.5 * line**2).softmax(0)
    mean = float((share * line).sum())
    variance = float((share * (line - mean) ** 2).sum())
    n = 6000
    z, taken = adjusted(
        lambda z: 2 * z.sin().sum(1) - 0.5 * z.square().sum(1), torch.randn(n, 2), 150, s, lambda: torch.randn(n, 3)
    )
    assert z.mean().item() == pytest.approx(mean, abs=5 * (variance / (2 * n)) ** 0.5)
    assert z.var().item() == pytest.approx(variance, rel=0.05)
    assert taken.mean().item() == pytest.approx(ACCEPTANCE, abs=0.15)


def test_adjusted_never_takes_what_is_not_finite():
    def cliff(z):
        return torch.where(z[:, 0] > 1, float("-inf"), -0.5 * z.square().sum(1))

    z, taken = adjusted(cliff, torch.zeros(500, 2), 60, 1.0, lambda: torch.randn(500, 3))
    assert z.isfinite().all() and z[:, 0].max() <= 1 and taken.isfinite().all()


def test_each_chain_finds_its_own_step():
    """Two laws a hundred times as wide as one another, side by side."""
    width = torch.where(torch.arange(400) < 200, 0.05, 5.0)[:, None]
    z, taken = adjusted(
        lambda z: -0.5 * (z / width).square().sum(1), torch.zeros(400, 2), 300, 0.3, lambda: torch.randn(400, 3)
    )
    for rows, sigma in ((slice(200), 0.05), (slice(200, 400), 5.0)):
        assert z[rows].std().item() == pytest.approx(sigma, rel=0.2)
        assert 0.3 < taken[rows].mean() < 0.85
