"""An energy learned with one chain and drawn by another: the same density; and what is told of every gradient."""

import pytest
import torch
from toys import ENERGY_KINDS, Plane, grid, normalised, toy_prior

from hebmtool.chains import CHAINS, value_and_gradient
from hebmtool.errors import UsageError
from hebmtool.noise import Noise

every_energy = pytest.mark.parametrize("kind", ENERGY_KINDS)
every_chain = pytest.mark.parametrize("chain", CHAINS)
learned_with_every_chain = pytest.mark.parametrize("learned_with", CHAINS)


def noise(generator, n=4):
    return Noise(0, range(n), generator.D)


# Another chain, the same law


@every_chain
@learned_with_every_chain
@every_energy
def test_another_chain_climbs_the_same_density(generator, kind, learned_with, chain):
    """What is handed to the chain in use is F in its scale: F / scale and its slope are those of log_tilt."""
    prior = toy_prior(generator, kind, learned_with, weight=0.1)
    twin = prior.using(chain=chain)
    u = torch.randn(4, generator.D)
    for level in range(prior.T):
        t = torch.full((4,), level)
        F, slope = twin.slope(t)(u)
        scale = twin.chain.scale(twin.schedule, t)
        tilt, expected = value_and_gradient(lambda u, level=level: prior.log_tilt(u, level), u)
        assert torch.allclose(F / scale, tilt, rtol=1e-5)
        assert torch.allclose(slope / scale[:, None], expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
        # Its own view of itself is the one learned: scores do not depend on what it is drawn with.
        assert torch.equal(twin.log_tilt(u, level), prior.log_tilt(u, level))
        assert torch.equal(twin.scale(t), prior.scale(t))


@every_energy
def test_the_published_chain_with_another_step_is_another_scale(generator, kind):
    prior = toy_prior(generator, kind, "langevin", eta=1e-2, weight=0.1)
    twin, u, t = prior.using(eta=3e-2), torch.randn(4, generator.D), torch.zeros(4, dtype=torch.long)
    assert torch.allclose(twin.slope(t)(u)[1], 3 * prior.slope(t)(u)[1], rtol=1e-4)
    assert torch.equal(twin.log_density(u), prior.log_density(u))


@every_chain
@every_energy
def test_the_same_chain_draws_the_same_bits(generator, kind, chain):
    prior = toy_prior(generator, kind, chain)
    # A theta that is given is not adapted.
    same = {"steps": 3, "eta": 1e-2, "h": 0.3} | ({} if prior.chain.exact else {"theta": 0.5})
    for twin in (prior.using(), prior.using(chain=chain), prior.using(chain=chain, **same)):
        assert torch.equal(twin.sample(noise(generator)), prior.sample(noise(generator)))
        assert twin.energy is prior.energy and twin.generator is prior.generator
    # A setting of another chain changes nothing, one of its own does.
    other = {
        "langevin": {"h": 0.7},
        "preconditioned": {"theta": 0.1},
        "underdamped": {"eta": 0.5},
        "hmc": {"eta": 0.5},
        "unscaled": {"h": 0.7},
    }[chain]
    assert torch.equal(prior.using(**other).sample(noise(generator)), prior.sample(noise(generator)))
    own = {
        "langevin": {"eta": 0.02},
        "preconditioned": {"h": 0.1},
        "underdamped": {"theta": 0.1},
        "hmc": {"theta": 0.1},
        "unscaled": {"eta": 0.02},
    }[chain]
    assert not torch.equal(prior.using(**own).sample(noise(generator)), prior.sample(noise(generator)))
    # And the prior itself is as it was.
    assert prior.chain == prior.learned_with and prior.K == 3


@every_energy
def test_its_steps_are_what_it_draws_with(generator, kind):
    prior = toy_prior(generator, kind)
    twin = prior.using(steps=7)
    assert twin.gradients() == 7 * prior.T
    assert torch.equal(twin.sample(noise(generator)), prior.sample(noise(generator), K=7))
    twice = twin.using(chain="underdamped", theta=0.3).using(theta=0.2)
    assert twice.chain.word == "preconditioned" and twice.K == 3  # each starts from what was trained


def test_conditions_and_another_chain_do_not_disturb_each_other(generator):
    prior = toy_prior(generator, chain="langevin", weight=0.1)

    def condition(walk, t):
        return generator.join(walk.u).sum(1)

    given_then_using, using_then_given = (
        prior.given([condition]).using(chain="underdamped"),
        prior.using(chain="underdamped").given([condition]),
    )
    assert torch.equal(given_then_using.sample(noise(generator)), using_then_given.sample(noise(generator)))
    u = torch.randn(3, generator.D)
    added = given_then_using.log_density(u) - prior.log_density(u)
    assert torch.allclose(added, u.sum(1), atol=1e-3)


@pytest.mark.parametrize(
    ("sampler", "words"),
    [
        ({"chian": "langevin"}, "a chain has no setting chian; choose of chain, steps, .*did you mean 'chain'"),
        ({"levels": 4}, "a chain has no setting levels; choose of chain, steps, eta, h, theta, persistence, renew"),
        ({"chain": "underdampd"}, "chain is 'underdampd', but must be one of .*did you mean 'underdamped'"),
        ({"steps": 0}, "steps is 0, but must be a whole number of at least 1"),
        ({"h": -1.0}, "h is -1.0, but must be a number above 0"),
        ({"theta": 2.0}, "theta is 2.0, but must be a number above 0 and below 1.6"),
        ({"persistence": "half"}, "persistence is 'half', but must be a number"),
    ],
)
def test_what_is_no_chain_is_a_sentence(generator, sampler, words):
    with pytest.raises(UsageError, match=words) as raised:
        toy_prior(generator).using(**sampler)
    assert "\n" not in str(raised.value)


# The laws themselves, summed over a grid

SAMPLERS = {
    "langevin": {"eta": 0.08, "steps": 80},
    "preconditioned": {"h": 0.12, "steps": 30},
    "underdamped": {"theta": 0.3, "persistence": 0.7, "steps": 22},
    "hmc": {"theta": 0.4, "steps": 41},
    "unscaled": {"eta": 0.08, "steps": 80},
}
N = 3000
of_either_scale = pytest.mark.parametrize("learned_with", ["langevin", "preconditioned"])


def sharp(kind, chain, **keys):
    """A prior on the plane whose energy is a few nats: far from N(0, I)."""
    torch.manual_seed(5)
    prior = toy_prior(Plane(), kind, chain, weight=1.0, **keys).requires_grad_(False)
    ratio = torch.stack([prior.log_tilt(torch.randn(500, 2), t) for t in range(prior.T)])
    for layer in prior.energy.layers:
        layer.head.weight.mul_(1.5 / ratio.std(1).max())
    return prior


def moments(share, points):
    """Means of u_2, u_1, u_2^2, u_1^2, u_2 u_1 under shares [..., M] of the points of a grid [M, 2]."""
    return share @ features(points).double()


def features(u):
    return torch.cat([u, u.square(), u.prod(1, keepdim=True)], dim=1)


def check(u, expected, bias=0.03):
    """Means over draws within five standard errors and what a chain of finite steps is off by."""
    found = features(u).double()
    error = 5 * found.std(0) / len(u) ** 0.5 + bias * (1 + expected.abs())
    assert ((found.mean(0) - expected).abs() < error).all(), (found.mean(0), expected)


@every_chain
@of_either_scale
def test_a_joint_energy_is_drawn_from_its_density_by_any_chain(learned_with, chain):
    prior = sharp("ebm", learned_with, **SAMPLERS[learned_with])
    points, _ = grid()
    law = moments(normalised(prior.log_density(points)), points)
    u = prior.using(chain=chain, **SAMPLERS[chain]).sample(lambda: torch.randn(N, 2))
    check(u, law)
    # It is no Gaussian, or this would show nothing.
    normal = torch.tensor([0.0, 0, 1, 1, 0], dtype=torch.float64)
    assert (law - normal).abs().max() > 0.3


@pytest.mark.parametrize("chain", ["preconditioned", "underdamped", "hmc"])
@of_either_scale
def test_levels_are_drawn_from_their_densities_by_any_chain(learned_with, chain):
    """Every conditional p(u_t | u_{t+1}) as a matrix over the grid; their product has the law of u_0.

    Chains that are exact for the Gaussian alone: the published one takes hundreds of steps a level to forget its start.
    """
    prior = sharp("diffusion-ebm", learned_with, **{"eta": 1e-2})
    points, _ = grid(4.5, 41)
    share = normalised(-0.5 * points.square().sum(1))
    for t in reversed(range(prior.T)):
        a, sigma = (float(c) for c in prior.schedule.conditional(torch.tensor([t])))
        gaussian = -0.5 * ((points[None] - a * points[:, None]) / sigma).square().sum(2)
        share = share @ normalised(prior.log_tilt(points, t) + gaussian)
    u = prior.using(chain=chain, **SAMPLERS[chain]).sample(lambda: torch.randn(N, 2))
    check(u, moments(share, points), bias=0.05)


@every_chain
def test_refining_leaves_the_density_of_u_0_as_it_is(chain):
    """From draws of p(u_0) itself, taken from the grid, to draws of p(u_0)."""
    prior = sharp("diffusion-ebm", chain, **SAMPLERS[chain])
    points, area = grid()
    share = normalised(prior.log_density(points))
    start = points[torch.multinomial(share, N, replacement=True)] + area**0.5 * (torch.rand(N, 2) - 0.5)
    check(prior.refine(start, lambda: torch.randn(N, 2), 20), moments(share, points))


# Watching


@every_chain
@learned_with_every_chain
@every_energy
def test_every_gradient_is_told_in_nats(generator, kind, learned_with, chain):
    prior, seen = toy_prior(generator, kind, learned_with, weight=0.1).using(chain=chain), []
    alone = prior.sample(noise(generator), K=2)
    *_, watched = prior.trajectory(noise(generator), 2, watch=lambda *told: seen.append(told))
    assert torch.equal(alone, watched)
    assert len(seen) == prior.gradients(2)
    assert [level for level, *_ in seen] == [t for t in reversed(range(prior.T)) for _ in range(2)]
    for level, u, G, slope, _ in seen:
        assert u.shape == (4, generator.D)
        expected, expected_slope = value_and_gradient(lambda u, level=level: prior.log_tilt(u, level), u)
        assert torch.allclose(G, expected, rtol=1e-4, atol=1e-5)
        assert torch.allclose(slope, expected_slope, rtol=1e-3, atol=1e-4 * expected_slope.abs().max().item())


@every_chain
@every_energy
def test_refining_and_holding_are_watched_too(generator, kind, chain):
    prior, seen = toy_prior(generator, kind, chain), []
    tell = lambda *told: seen.append(told[0])  # noqa: E731
    prior.refine(torch.randn(4, generator.D), noise(generator), 5, watch=tell)
    assert seen == [0] * 5
    seen.clear()
    held = torch.arange(generator.D) < 8, prior.stages(torch.randn(4, generator.D), noise(generator))
    for _ in prior.trajectory(noise(generator), 2, held=held, watch=tell):
        pass
    # With coordinates held the diffusion goes on for as many steps on p(u_0) itself.
    assert len(seen) == prior.gradients(2) * (2 if prior.T > 1 else 1)


@pytest.mark.parametrize("kind", ["gaussian", "flow"])
def test_without_steps_there_is_nothing_to_watch(generator, kind):
    prior, seen = toy_prior(generator, kind), []
    for _ in prior.trajectory(Noise(0, range(2), prior.generator.D), watch=lambda *told: seen.append(told)):
        pass
    assert seen == []


@every_energy
def test_a_watcher_that_fails_leaves_the_prior_whole(generator, kind):
    prior = toy_prior(generator, kind)
    before = prior.sample(noise(generator))

    def fail(*_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(prior.trajectory(noise(generator), watch=fail))
    assert torch.equal(prior.sample(noise(generator)), before)
    assert all(p.requires_grad for p in prior.parameters())


# An exact chain


def test_steps_are_adapted_once_to_the_energies_and_taken_along():
    prior = sharp("diffusion-ebm", "underdamped", objective="nce", theta=0.25)
    twin = prior.using(chain="hmc", steps=21)
    assert twin.chain.by_level is None
    taken = []

    def watch(t, u, G, slope, moved):
        taken.extend([] if moved is None else [moved.float()])

    u = twin.sample(lambda: torch.randn(500, 2), watch=watch)
    theta = twin.chain.by_level.tolist()
    assert theta[0] > 0.4 and 0.5 < torch.stack(taken).mean() < 0.97
    # Those of a level at which no step is made stay as they were.
    assert theta[1:] == pytest.approx([0.25, 0.25]) and u.shape == (500, 2)
    again = prior.using(chain="hmc")
    again.stepping(None)
    assert again.chain.by_level.tolist() == theta
    again.stepping([0.1, 0.2, 0.3])
    assert again.given([]).using(chain="hmc", steps=5).chain.by_level.tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert prior.using(chain="hmc", theta=0.4).chain.by_level.tolist() == pytest.approx([0.4] * 3)
    assert prior.chain.word == "underdamped"


def test_what_no_chain_taught_is_drawn_from_its_own_density():
    """Level 0's moves are made on p(u_0) itself, from N(0, I), and are all the steps there are."""
    prior = sharp("diffusion-ebm", "underdamped", objective="nce").using(chain="hmc", steps=61, theta=0.6)
    assert prior.ends_on_marginal and prior.gradients() == 61 and prior.gradients([61, 5, 0]) == 66
    points, _ = grid()
    law = moments(normalised(prior.log_density(points)), points)
    check(prior.sample(lambda: torch.randn(N, 2)), law, bias=0.0)


def test_an_exact_chain_may_draw_level_0_given_the_level_above():
    """As published: u_0 stays by a_1 u_1, and its law is p(u_0 | u_1)."""
    prior = sharp("diffusion-ebm", "hmc", objective="nce", conditional=True, theta=0.6, steps=61)
    assert not prior.ends_on_marginal and prior.gradients() == 61 * prior.T
    # Without moves of its own a level is its Gaussian conditional.
    above, u_0 = list(prior.trajectory(lambda: torch.randn(N, 2), [0, 9, 9]))[-2:]
    a, sigma = prior.schedule.conditional(torch.zeros(1, dtype=torch.long))
    assert (u_0 - a * above).std(0).tolist() == pytest.approx([sigma.item()] * 2, rel=0.05)
    u_1 = torch.tensor([0.7, -0.4])
    points, _ = grid()
    share = normalised(prior.log_tilt(points) - ((points - a * u_1) / sigma).square().sum(1) / 2)
    *_, u_0 = prior.descend(u_1.expand(N, 2), 1, lambda: torch.randn(N, 2))
    check(u_0, moments(share, points), bias=0.0)


def test_steps_on_the_marginal_are_as_long_as_those_given_the_level_above():
    """Of a prior that draws level 0 given u_1, whose steps are in units of sigma_1; both are taken about as often."""
    prior, taken = sharp("diffusion-ebm", "hmc", objective="nce", conditional=True, theta=0.6, steps=41), []
    u = prior.sample(lambda: torch.randn(500, 2))

    def watch(t, u, F, slope, accepted):
        if accepted is not None:
            taken.append(accepted.float().mean().item())

    prior.refine(u, lambda: torch.randn(500, 2), watch=watch)
    assert len(taken) == 10 and min(taken) > 0.6


def test_with_a_layer_held_the_exact_chain_follows_the_conditional():
    prior = sharp("diffusion-ebm", "underdamped", objective="nce").using(chain="hmc", steps=61, theta=0.6)
    mask, value = torch.tensor([True, False]), 0.8
    points = torch.linspace(-5, 5, 801)[:, None]
    line = torch.cat([torch.full_like(points, value), points], 1)
    share = normalised(prior.log_density(line))
    base = prior.stages(torch.full((N, 2), value), lambda: torch.randn(N, 2))
    *_, u = prior.trajectory(lambda: torch.randn(N, 2), held=(mask, base))
    assert (u[:, 0] == torch.tensor(value)).all()
    check(u, moments(share, line), bias=1e-4)


def test_steps_follow_the_energies_while_learning():
    """Levels that a batch does not have keep theirs; the others lengthen where all is taken."""
    prior = sharp("diffusion-ebm", "hmc", objective="recovery", theta=0.1)
    u, t = torch.randn(64, 2), torch.tensor([0, 2]).repeat(32)
    for _ in range(10):
        prior.negatives(u, t, lambda: torch.randn(64, 2), K=9, learning=True)
    assert prior.steps[0] > 0.12 and prior.steps[2] > 0.12 and prior.steps[1] == pytest.approx(0.1)
    assert not prior.ends_on_marginal  # chains from u_1 are what F is learned by
