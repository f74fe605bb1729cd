"""The chains as functions: their drift, their noise, and the laws they sample in closed form."""

import math

import pytest
import torch

from hebmtool.chains import value_and_gradient
from hebmtool.chains.langevin import langevin, preconditioned, underdamped

N, D = 4000, 10


def slope_of(F):
    """F as chains are handed it."""
    return lambda u: value_and_gradient(F, u)


def flat(u):
    """F = 0."""
    return 0 * u[:, 0], torch.zeros_like(u)


def quadratic(c, g):
    """F(u) = g . u - c |u|^2 / 2."""
    return slope_of(lambda u: (g * u).sum(1) - 0.5 * c * u.square().sum(1))


def uneven(u):
    """No Gaussian, with cross terms."""
    return u.sin().sum(1) + u.prod(1) - 0.3 * u[:, 0] * u[:, 1].square()


wavy = slope_of(uneven)


def gradient(F, u):
    return value_and_gradient(F, u)[1]


def column(value):
    return torch.full((N, 1), float(value))


def noise():
    return torch.randn(N, D)


def check_moments(u, mean, variance):
    """Every draw N(mean, variance), independent: pooled moments within five standard errors."""
    assert (u - mean).mean().abs().item() < 5 * math.sqrt(variance / u.numel())
    assert (u - mean).square().mean().item() == pytest.approx(variance, rel=5 * math.sqrt(2 / u.numel()))


def test_gradient_is_autograds_and_leaves_its_argument_alone():
    u = torch.randn(5, 3)
    expected = torch.autograd.functional.jacobian(lambda v: uneven(v).sum(), u)
    with torch.no_grad():
        value, slope = value_and_gradient(uneven, u)
        assert torch.allclose(slope, expected) and torch.equal(value, uneven(u))
    assert not (u.requires_grad or value.requires_grad or slope.requires_grad)


# One step


@pytest.mark.parametrize("a", [0.0, 0.8])
def test_published_drift_is_half_b_squared_times_the_score(a):
    # b differs from image to image; one step without noise.
    u_next = torch.randn(6, 3, dtype=torch.float64)
    b = torch.rand(6, 1, dtype=torch.float64) + 0.1
    sigma, a = torch.full_like(b, 0.6), torch.full_like(b, a)

    def log_p(u):
        recovery = (u_next - a * u).square().sum(1) / (2 * sigma[:, 0] ** 2)
        return uneven(u) / b[:, 0] ** 2 - 0.5 * u.square().sum(1) - recovery

    out = langevin(wavy, u_next, a, sigma, b, 1, lambda: torch.zeros_like(u_next))
    assert torch.allclose(out - u_next, 0.5 * b**2 * gradient(log_p, u_next), rtol=1e-12)
    # A second step, from elsewhere than u_{t+1}; the same from there as a start.
    twice = langevin(wavy, u_next, a, sigma, b, 2, lambda: torch.zeros_like(u_next))
    assert torch.allclose(twice - out, 0.5 * b**2 * gradient(log_p, out), rtol=1e-12)
    assert torch.equal(langevin(wavy, u_next, a, sigma, b, 1, lambda: torch.zeros_like(u_next), start=out), twice)


@pytest.mark.parametrize("h", [0.01, 0.3, 2.0])
def test_preconditioned_drift_is_the_exact_integrators(h):
    m = torch.randn(6, 3, dtype=torch.float64)
    sigma = torch.rand(6, 1, dtype=torch.float64) + 0.2
    start = torch.randn(6, 3, dtype=torch.float64)
    draws = iter([start, torch.zeros_like(m)])

    def log_p(u):
        return uneven(u) - 0.5 * ((u - m) / sigma).square().sum(1)

    u = m + sigma * start
    out = preconditioned(wavy, m, sigma, h, 1, lambda: next(draws))
    assert torch.allclose(out - u, (1 - math.exp(-h)) * sigma**2 * gradient(log_p, u), rtol=1e-10)


@pytest.mark.parametrize("tau", [0.5, 2.0])
def test_temperature_multiplies_every_noise(tau):
    one = torch.ones(6, 1)
    u = torch.randn(6, 3)
    eps = torch.randn(6, 3)
    still = langevin(wavy, u, 0.8 * one, 0.6 * one, 0.3 * one, 1, lambda: 0 * eps)
    moved = langevin(wavy, u, 0.8 * one, 0.6 * one, 0.3 * one, 1, lambda: eps, tau)
    assert torch.allclose(moved - still, tau * 0.3 * eps, atol=1e-6)
    # The first draw of the preconditioned chain is noise as well.
    assert torch.allclose(preconditioned(wavy, u, 0.6 * one, 0.3, 0, lambda: eps, tau), u + tau * 0.6 * eps)
    start, zero = 0.6 * tau * eps, 0 * eps
    draws = iter([eps, eps])
    moved = preconditioned(flat, zero, 0.6 * one, 0.3, 1, lambda: next(draws), tau)
    rho = math.exp(-0.3)
    assert torch.allclose(moved, rho * start + math.sqrt(1 - rho**2) * start, atol=1e-6)


@pytest.mark.parametrize("steps", [0, 1, 7])
def test_noise_is_drawn_once_a_step_and_once_to_start_the_preconditioned_chain(steps):
    drawn = []

    def count():
        drawn.append(1)
        return torch.randn(2, 3)

    one = torch.ones(2, 1)
    langevin(flat, torch.zeros(2, 3), one, one, one, steps, count)
    assert len(drawn) == steps
    preconditioned(flat, torch.zeros(2, 3), one, 0.3, steps, count)
    assert len(drawn) == 2 * steps + 1


def test_no_graph_is_kept():
    u = torch.zeros(2, 3, requires_grad=True)
    one = torch.ones(2, 1)
    assert not langevin(wavy, u, one, one, one, 2, lambda: torch.randn(2, 3)).requires_grad
    assert not preconditioned(wavy, u, one, 0.3, 2, lambda: torch.randn(2, 3)).requires_grad


# Long chains


@pytest.mark.parametrize("h", [0.05, 0.3, 3.0])
@pytest.mark.parametrize("steps", [0, 1, 20])
def test_preconditioned_is_stationary_at_any_step_size_without_energy(h, steps):
    torch.manual_seed(0)
    m = torch.linspace(-2, 2, N)[:, None].expand(N, D)
    u = preconditioned(flat, m, column(0.7), h, steps, noise)
    check_moments(u, m, 0.49)


@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_preconditioned_reaches_the_gaussian_posterior(tau):
    # p ~ exp(g u - c u^2 / 2) N(u; m, s^2), to the power 1 / tau^2.
    torch.manual_seed(0)
    c, g, m, s, h = 2.0, 1.5, -0.5, 0.8, 0.05
    precision = 1 / s**2 + c
    mean = (m / s**2 + g) / precision
    u = preconditioned(quadratic(c, g), torch.full((N, D), m), column(s), h, 150, noise, tau)
    # The discrete chain is an AR(1): its mean has no bias at any h, its variance tends to tau^2 / precision.
    rho = math.exp(-h)
    decay = rho - (1 - rho) * s**2 * c
    variance = tau**2 * s**2 * (1 - rho**2) / (1 - decay**2)
    assert variance == pytest.approx(tau**2 / precision, rel=0.04)
    check_moments(u, mean, variance)


@pytest.mark.parametrize("tau", [0.5, 1.0])
@pytest.mark.parametrize("a", [0.0, 0.8])
def test_published_reaches_the_gaussian_posterior(a, tau):
    # p ~ exp(F / b^2 - u^2 / 2 - (u' - a u)^2 / (2 sigma^2)), F = b^2 (g u - c u^2 / 2).
    torch.manual_seed(0)
    c, g, sigma, b, start = 1.0, 1.5, 0.6, 0.15, 2.0
    precision = c + 1 + a**2 / sigma**2
    mean = (g + a * start / sigma**2) / precision
    F = quadratic(b**2 * c, b**2 * g)
    steps = math.ceil(16 / (b**2 * precision))  # e^-8 of the start is left
    u = langevin(F, torch.full((N, D), start), column(a), column(sigma), column(b), steps, noise, tau)
    # An AR(1) again: no bias in the mean, O(b^2) in the variance.
    decay = 1 - 0.5 * b**2 * precision
    variance = tau**2 * b**2 / (1 - decay**2)
    assert variance == pytest.approx(tau**2 / precision, rel=0.03)
    check_moments(u, mean, variance)


def test_underdamped_is_a_second_order_integrator_of_the_hamiltonian_flow():
    """Without friction: du/ds = v, dv/ds = sigma^2 grad F - (u - m), s the angle turned, against scipy's integrator."""
    from scipy.integrate import solve_ivp

    m, sigma, start = torch.tensor([[0.3, -0.2, 0.5]]).double(), 0.7, torch.tensor([[1.0, 0.4, -0.6]]).double()
    v, angle = torch.tensor([[0.5, -1.0, 0.2]]).double(), 1.2

    def flow(_, state):
        u = torch.tensor(state[:3])[None]
        slope = sigma**2 * gradient(uneven, u) - (u - m)
        return [*state[3:], *slope[0].tolist()]

    exact = solve_ivp(flow, (0, angle), [*start[0], *v[0]], rtol=1e-10, atol=1e-10).y[:3, -1]
    errors = []
    for steps in (8, 16, 32):
        # The only draw that counts is the momentum's, the first.
        draws = iter([v / sigma, *[torch.zeros_like(v)] * steps])
        one = torch.full((1, 1), sigma, dtype=torch.float64)
        u = underdamped(wavy, m, one, angle / steps, 1.0, steps, lambda: next(draws), start=start)  # noqa: B023
        errors.append((u[0] - torch.tensor(exact)).norm().item())
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.15) and errors[1] / errors[2] == pytest.approx(4, rel=0.15)


@pytest.mark.parametrize(("theta", "persistence", "steps"), [(0.1, 0.9, 5), (0.5, 0.6, 5), (1.4, 0.0, 3)])
def test_underdamped_is_stationary_at_any_step_size_without_energy(theta, persistence, steps):
    u = underdamped(flat, torch.full((N, D), 0.5), column(0.7), theta, persistence, steps, noise)
    check_moments(u, 0.5, 0.49)


@pytest.mark.parametrize("tau", [1.0, 0.7])
def test_underdamped_reaches_the_gaussian_posterior(tau):
    c, g, m, s = 1.5, 0.8, 0.5, 0.7
    precision = 1 / s**2 + c
    u = underdamped(quadratic(c, g), torch.full((N, D), m), column(s), 0.2, 0.7, 60, noise, tau)
    check_moments(u, (m / s**2 + g) / precision, tau**2 / precision * (1 + 0.2**2 * s**2 * c / 4))


def test_more_is_reached_with_as_many_gradients():
    """Two coordinates correlated 0.8 through F: ten steps of either chain from independence."""
    C = torch.tensor([[1, 0.8], [0.8, 1]])
    A = torch.eye(2) - torch.linalg.inv(C)

    def F(u):
        return 0.5 * ((u @ A) * u).sum(1), u @ A

    found = {}
    draw, one, zero = lambda: torch.randn(20_000, 2), torch.ones(20_000, 1), torch.zeros(20_000, 2)
    found["preconditioned"] = preconditioned(F, zero, one, 0.3, 10, draw)
    found["underdamped"] = underdamped(F, zero, one, 0.5, 0.6, 10, draw)
    error = {k: (torch.cov(u.T) - C).abs().max().item() for k, u in found.items()}
    assert error["underdamped"] < 0.1 < error["preconditioned"]
