"""What every chain must do, whatever it is: hold, count, be watched, and sample the law it is handed."""

import math

import pytest
import torch

from hebmtool import recipe
from hebmtool.chains import CHAINS, GaussianExact, hold, make_chain, value_and_gradient
from hebmtool.errors import UsageError
from hebmtool.prior import Schedule
from hebmtool.recipe import words

FINE = {"eta": 1e-3, "h": 0.05, "theta": 0.15, "persistence": 0.7}
"""Small steps, whose bias is below what the tests here can see."""
N, D = 3000, 8
every_chain = pytest.mark.parametrize("word", CHAINS)
of_the_gaussian_exact = pytest.mark.parametrize(
    "word", [word for word, of in CHAINS.items() if issubclass(of, GaussianExact) or of.exact]
)


def chain_of(word, **keys):
    return make_chain(recipe.Prior(chain=word, **FINE | keys))


def noise(n=N, d=D):
    return lambda: torch.randn(n, d)


def slope_of(F):
    return lambda u: value_and_gradient(F, u)


def levels(t, n=N):
    return torch.full((n,), t)


def silent(u):
    """F = 0."""
    return 0 * u[:, 0], torch.zeros_like(u)


def quadratic(c, g, scale):
    """F = scale (g . u - c |u|^2 / 2), in the scale of a chain, [N]."""
    return lambda u: (scale * (g * u.sum(1) - 0.5 * c * u.square().sum(1)), scale[:, None] * (g - c * u))


def uneven(u):
    return 0.3 * (u.sin().sum(1) - 0.3 * u[:, 0] * u[:, 1].square())


def check_moments(u, mean, variance, bias=0.0):
    assert (u.mean().item() - mean) == pytest.approx(0, abs=5 * math.sqrt(variance / u.numel()) + bias)
    assert u.var(0).mean().item() == pytest.approx(variance, rel=5 * math.sqrt(2 / u.numel()) + bias)


# Words


def test_chains_are_those_of_the_recipe():
    assert set(words.CHAINS) == set(CHAINS)
    with pytest.raises(UsageError, match="prior.chain is 'langevn', but must be one of .*did you mean 'langevin'"):
        recipe.from_dict({"prior": {"chain": "langevn"}})


@every_chain
def test_equal_settings_make_equal_chains(word):
    assert chain_of(word) == chain_of(word) and chain_of(word).word == word
    other = {
        "langevin": {"eta": 0.5},
        "unscaled": {"eta": 0.5},
        "preconditioned": {"h": 0.6},
        "underdamped": {"theta": 0.3},
        "hmc": {"theta": 0.3},
    }[word]
    assert chain_of(word) != chain_of(word, **other)
    assert type(chain_of(word)) is CHAINS[word]


# No steps, held coordinates, noise


@of_the_gaussian_exact
def test_without_steps_it_draws_the_gaussian(word):
    schedule, chain = Schedule(3), chain_of(word)
    assert chain.leaves_out_levels
    for t in range(3):
        a, sigma = (float(c) for c in schedule.conditional(torch.tensor([t])))
        u_next = torch.linspace(-3, 3, N)[:, None].expand(N, D)
        u = chain(silent, u_next, schedule, levels(t), 0, noise())
        check_moments(u - a * u_next, 0.0, sigma**2)


def test_without_steps_the_published_chain_stays_where_it_is():
    chain, u = chain_of("langevin"), torch.randn(4, D)
    assert not chain.leaves_out_levels
    assert torch.equal(chain(silent, u, Schedule(3), levels(1, 4), 0, noise(4)), u)


def test_one_step_of_the_joint_ebms_published_chain():
    """u + s/2 grad(F + log p_0) + sqrt(s) eps, F unscaled."""
    chain, u, eps = chain_of("unscaled", eta=0.04), torch.randn(4, D), torch.randn(4, D)
    assert torch.equal(chain.scale(Schedule.joint(), levels(0, 4)), torch.ones(4))
    found = chain(slope_of(uneven), u, Schedule.joint(), levels(0, 4), 1, lambda: eps)
    slope = value_and_gradient(lambda u: uneven(u) - 0.5 * u.square().sum(1), u)[1]
    assert torch.allclose(found, u + 0.02 * slope + 0.2 * eps, atol=1e-6)


@pytest.mark.parametrize("K", [0, 2, 5])
@every_chain
def test_refining_starts_where_it_is_told(word, K):
    torch.manual_seed(0)
    u = torch.randn(4, D)
    found = chain_of(word).refine(slope_of(uneven), u, Schedule(3), K, noise(4))
    assert torch.equal(found, u) == (K == 0) and found.shape == u.shape


@pytest.mark.parametrize("K", [0, 1, 4])
@every_chain
def test_what_is_held_never_moves_and_is_seen_by_every_gradient(word, K):
    mask, values = torch.arange(D) % 3 == 0, torch.randn(4, D)
    chain, seen = chain_of(word), []

    def slope(u):
        seen.append(u)
        return value_and_gradient(uneven, u)

    for move in (
        lambda: chain(slope, torch.randn(4, D), Schedule(3), levels(1, 4), K, noise(4), held=(mask, values)),
        lambda: chain.refine(slope, torch.randn(4, D), Schedule(3), K, noise(4), held=(mask, values)),
    ):
        seen.clear()
        u = move()
        assert len(seen) == K
        for at in [*seen, u]:
            assert torch.equal(at[:, mask], values[:, mask])
        if not CHAINS[word].exact:  # which stands where it saw, or where it stood before
            assert len(torch.cat(seen + [u])[:, ~mask].unique()) == len(torch.cat(seen + [u])[:, ~mask].flatten())


def test_hold_is_bit_for_bit():
    u, values = torch.randn(2, 3, D)
    mask = torch.arange(D) < 3
    assert hold(u, None) is u
    assert torch.equal(hold(u, (mask, values)), torch.cat([values[:, :3], u[:, 3:]], dim=1))


@pytest.mark.parametrize("tau", [0.5, 2.0])
@every_chain
def test_the_temperature_multiplies_every_noise(word, tau):
    """Without F a chain is linear in its noise and its start: both by tau, and so is what comes of it."""
    chain, u_next = chain_of(word), torch.randn(4, D)
    draws = [torch.randn(4, D) for _ in range(20)]

    def moved(t, tau, start):
        eps = iter(draws)
        return chain(silent, start, Schedule(3), levels(t, 4), 5, lambda: next(eps), tau)

    for t in range(3):
        assert torch.allclose(moved(t, tau, tau * u_next), tau * moved(t, 1.0, u_next), rtol=1e-4, atol=1e-5)


@every_chain
def test_no_graph_is_kept(word):
    u = torch.randn(4, D, requires_grad=True)
    chain = chain_of(word)
    assert not chain(slope_of(uneven), u, Schedule(3), levels(0, 4), 2, noise(4)).requires_grad
    assert not chain.refine(slope_of(uneven), u, Schedule(3), 2, noise(4)).requires_grad


# Watching


@pytest.mark.parametrize("K", [0, 1, 5])
@every_chain
def test_every_gradient_is_told_once_and_changes_nothing(word, K):
    chain, u_next, told = chain_of(word), torch.randn(4, D), []
    for move in (chain, chain.refine):
        arguments = (Schedule(3), levels(1, 4), K) if move is chain else (Schedule(3), K)
        told.clear()
        torch.manual_seed(1)
        alone = move(slope_of(uneven), u_next, *arguments, noise(4))
        torch.manual_seed(1)
        watched = move(slope_of(uneven), u_next, *arguments, noise(4), watch=lambda *each: told.append(each))
        assert torch.equal(alone, watched) and len(told) == K
        assert [taken is not None for *_, taken in told] == [k == 4 and chain.exact for k in range(K)]
        for u, value, gradient, _ in told:
            expected, slope = value_and_gradient(uneven, u)
            assert torch.equal(value, expected) and torch.equal(gradient, slope)


# The laws


@pytest.mark.parametrize("t", [0, 1, 2])
@of_the_gaussian_exact
def test_without_F_it_is_stationary_at_any_step(word, t):
    schedule = Schedule(3)
    a, sigma = (float(c) for c in schedule.conditional(torch.tensor([t])))
    for coarse in ({}, {"h": 3.0, "theta": 1.4, "persistence": 0.0}):
        u_next = torch.full((N, D), 1.5)
        u = chain_of(word, **coarse)(silent, u_next, schedule, levels(t), 6, noise())
        check_moments(u, a * 1.5, sigma**2)


@of_the_gaussian_exact
def test_without_F_refining_leaves_the_gaussian_as_it_is_at_any_step(word):
    for coarse in ({}, {"h": 0.9, "theta": 1.4, "persistence": 0.0}):
        u = chain_of(word, **coarse).refine(silent, torch.randn(N, D), Schedule(3), 6, noise())
        check_moments(u, 0.0, 1.0)


def for_level(word, t):
    """A chain and enough of its steps at this level: the published one's grow with the noise, 69-fold from 0 to 1."""
    K = {"langevin": [300, 60, 30][t], "unscaled": 300, "preconditioned": 120, "underdamped": 60, "hmc": 81}[word]
    return chain_of(word, eta=1e-3 if t > 0 and word == "langevin" else 2e-2), K


@pytest.mark.parametrize("tau", [1.0, 0.7])
@pytest.mark.parametrize("t", [0, 1, 2])
@every_chain
def test_a_quadratic_F_gives_the_gaussian_by_bayes_rule(word, t, tau):
    """log p = g u - c u^2 / 2 + log N(u; a u', sigma^2): precision c + 1 / sigma^2, whatever the chain's scale of F."""
    schedule, c, g, at = Schedule(3), 1.5, 0.8, 1.2
    chain, K = for_level(word, t)
    a, sigma = (float(x) for x in schedule.conditional(torch.tensor([t])))
    precision = c + 1 / sigma**2
    mean = (g + a * at / sigma**2) / precision
    slope = quadratic(c, g, chain.scale(schedule, levels(t)))
    u = chain(slope, torch.full((N, D), at), schedule, levels(t), K, noise(), tau)
    check_moments(u, mean, tau**2 / precision, bias=0.04)


@every_chain
def test_refining_follows_F_on_the_standard_normal(word):
    """p(u) ~ exp(F / scale) N(u; 0, I), started far from it."""
    schedule, c, g = Schedule(3), 1.5, 0.8
    chain = chain_of(word, eta=2e-2)
    slope = quadratic(c, g, chain.scale(schedule, levels(0)))
    K = {"langevin": 600, "unscaled": 600, "preconditioned": 200, "underdamped": 120, "hmc": 161}[word]
    u = chain.refine(slope, torch.full((N, D), 2.0), schedule, K, noise())
    check_moments(u, g / (1 + c), 1 / (1 + c), bias=0.04)


@pytest.mark.parametrize("t", [0, 1, 2])
@every_chain
def test_with_coordinates_held_the_others_follow_their_conditional(word, t):
    """Two coordinates that F couples: u_1 given u_0 held at 1 has its mean moved by the coupling."""
    schedule, k, at = Schedule(3), 0.8, 0.5
    chain, K = for_level(word, t)
    scale = chain.scale(schedule, levels(t))
    a, sigma = (float(x) for x in schedule.conditional(torch.tensor([t])))

    def slope(u):
        return scale * k * u[:, 0] * u[:, 1], scale[:, None] * k * u.flip(1)

    held = torch.tensor([True, False]), torch.ones(N, 2)
    u = chain(slope, torch.full((N, 2), at), schedule, levels(t), K, noise(d=2), held=held)
    assert (u[:, 0] == 1).all()
    check_moments(u[:, 1:], a * at + sigma**2 * k, sigma**2, bias=0.05)


@every_chain
def test_a_level_is_each_images_own(word):
    schedule, chain = Schedule(3), chain_of(word)
    t, u_next = torch.tensor([0, 1, 2, 1]), torch.randn(4, D)
    eps = [torch.randn(4, D) for _ in range(20)]

    def drawn(rows):
        each = iter(eps)
        return chain(slope_of(uneven), u_next[rows], schedule, t[rows], 3, lambda: next(each)[rows])

    assert torch.allclose(drawn(slice(None)), torch.cat([drawn(slice(i, i + 1)) for i in range(4)]), atol=1e-5)
    assert chain.scale(schedule, t).shape == (4,)
