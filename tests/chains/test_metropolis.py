"""The chain with a Metropolis test: exact at any step, and able to find a step."""

import math

import pytest
import torch

from hebmtool.chains.metropolis import ACCEPTED, THETA, Move, step_size

N, D = 4000, 3


def uneven(u):
    return 2 * u.sin().sum(1)


def random(seed=100):
    return torch.Generator().manual_seed(seed)


def density(line, b):
    """Shares of the points of a line under exp(2 b sin u) N(u; 0, 1)."""
    return (2 * b * line.sin() - 0.5 * line**2).softmax(0)


@pytest.mark.parametrize("theta", [0.2, 0.9])
@pytest.mark.parametrize("b", [0.0, 0.5, 1.0])
def test_it_samples_the_tilted_law_at_any_step(b, theta):
    line = torch.linspace(-7, 7, 4001, dtype=torch.float64)
    share = density(line, b)
    mean = float((share * line).sum())
    variance = float((share * (line - mean) ** 2).sum())
    move = Move(uneven, torch.randn(N, D), theta, random())
    for _ in range(40 if theta > 0.5 else 60):
        move(b)
    assert 0.3 < move.accepted / move.proposed <= 1
    assert move.u.mean().item() == pytest.approx(mean, abs=5 * math.sqrt(variance / (N * D)))
    assert move.u.var().item() == pytest.approx(variance, rel=0.06)
    assert torch.equal(move.G_u, uneven(move.u))
    assert torch.allclose(move.slope, 2 * move.u.cos(), atol=1e-6)


def test_the_stationary_law_is_kept_to_the_letter():
    """Started in the law itself, taken from the line, and moved with a step at which half of all is refused."""
    line = torch.linspace(-7, 7, 4001, dtype=torch.float64)
    share = density(line, 1.0)
    torch.manual_seed(3)
    start = line[torch.multinomial(share, 20_000, replacement=True)].float()[:, None]
    move = Move(uneven, start, 1.3, random(), steps=4)
    for _ in range(5):
        move(1.0)
    assert 0.3 < move.accepted / move.proposed < 0.95
    for f in (lambda u: u, lambda u: u**2, torch.sin):
        exact = float((share * f(line)).sum())
        spread = float((share * (f(line) - exact) ** 2).sum() ** 0.5)
        assert f(move.u).mean().item() == pytest.approx(exact, abs=5 * spread / 20_000**0.5)


def test_moves_depend_on_their_generator_alone():
    u = torch.randn(6, D)
    found = []
    for seed in (4, 5):
        torch.manual_seed(seed)
        move = Move(uneven, u, 0.5, random(2))
        for _ in range(4):
            move(1.0)
        found.append(move.u)
    assert torch.equal(*found)


def test_what_is_not_finite_is_refused():
    def cliff(u):
        return torch.where(u[:, 0] > 0.5, float("nan"), 0 * u[:, 0])

    start = torch.full((200, D), -0.5)
    move = Move(cliff, start, 1.0, random())
    for _ in range(5):
        move(1.0)
    assert (move.u[:, 0] <= 0.5).all() and move.u.isfinite().all() and 0 < move.accepted < move.proposed


def test_step_size_is_halved_until_proposals_are_accepted():
    u = torch.randn(300, D)
    assert step_size(lambda u: 0 * u.sum(1), u, random()) == THETA
    steep = step_size(lambda u: -200 * u.square().sum(1), 0.05 * u, random())
    assert steep < THETA and math.log2(THETA / steep).is_integer()
    move = Move(lambda u: -200 * u.square().sum(1), 0.05 * u, steep, random(1))
    for _ in range(3):
        move(1.0)
    assert move.accepted >= (ACCEPTED - 0.1) * move.proposed
    assert step_size(lambda u: torch.full_like(u[:, 0], float("nan")) * u.sum(1), u, random()) is None
