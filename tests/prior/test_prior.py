"""What every kind of prior must do, whatever it is: draw, hold, score, refine, and say what it cannot do."""

import math

import pytest
import torch
from toys import ENERGY_KINDS, Plane, grid, toy_prior

from hebmtool import recipe
from hebmtool.chains import CHAINS
from hebmtool.errors import HebmError, UsageError
from hebmtool.generator.whitening import Whitening
from hebmtool.noise import Noise
from hebmtool.prior import KINDS, Schedule, log_standard_normal
from hebmtool.recipe import words

STAGES = {"gaussian": 1, "ebm": 2, "diffusion-ebm": 4, "flow": 5, "latent-ebm": 2}
ON_A_GENERATOR = [kind for kind, of in KINDS.items() if not of.brings_generator]
every_kind = pytest.mark.parametrize("kind", KINDS)
every_kind_of_many_layers = pytest.mark.parametrize("kind", ON_A_GENERATOR)
every_energy = pytest.mark.parametrize("kind", ENERGY_KINDS)
every_chain = pytest.mark.parametrize("chain", CHAINS)


def whitened(generator):
    """The generator in other coordinates, u = m + A w; and the whitening."""
    torch.manual_seed(3)
    factor = torch.eye(generator.D) + 0.2 * torch.randn(generator.D, generator.D).tril()
    factor = factor.tril(-1) + torch.diag(factor.diagonal().abs() + 0.2)
    generator.whitening = Whitening(0.3 * torch.randn(generator.D), factor)
    return generator


def own_density(generator, u):
    """log of the generator's own prior at u, whatever coordinates u is in."""
    scale = 0 if generator.whitening is None else generator.whitening.factor.diagonal().log().sum()
    return torch.distributions.Normal(0, 1).log_prob(generator.residuals(u)).sum(1) + scale


def test_kinds_are_those_of_the_recipe():
    assert set(words.KINDS) == set(KINDS) and list(words.KINDS)[0] == "gaussian"
    assert [kind for kind in KINDS if not KINDS[kind].learned] == ["gaussian"]
    assert {kind for kind in KINDS if KINDS[kind].brings_generator} == words.ONE_STAGE == {"flow", "latent-ebm"}


# Drawing


@every_chain
@every_kind
def test_a_trajectory_ends_in_the_sample(generator, kind, chain):
    prior = toy_prior(generator, kind, chain)
    D = prior.generator.D
    assert type(prior) is KINDS[kind] and prior.kind == kind
    stages = list(prior.trajectory(Noise(1, range(5), D)))
    assert len(stages) == STAGES[kind]
    assert all(u.shape == (5, D) and u.isfinite().all() and not u.requires_grad for u in stages)
    assert torch.equal(stages[0], Noise(1, range(5), D)())
    assert torch.equal(prior.sample(Noise(1, range(5), D)), stages[-1])
    fewer = prior.sample(Noise(1, range(5), D), K=1)
    assert torch.equal(fewer, stages[-1]) == (prior.T == 0)


@every_chain
@every_kind
def test_an_image_has_the_same_noise_and_so_the_same_draw_in_any_batch(generator, kind, chain):
    prior = toy_prior(generator, kind, chain)
    D = prior.generator.D
    whole = prior.sample(Noise(3, range(8), D))
    parts = [prior.sample(Noise(3, indices, D)) for indices in (range(3), range(3, 8))]
    assert torch.allclose(whole, torch.cat(parts), atol=1e-4)
    assert torch.equal(whole, prior.sample(Noise(3, range(8), D)))
    assert not torch.allclose(whole[:4], whole[4:], atol=1e-1)


@every_chain
@every_energy
def test_steps_may_be_told_for_each_level(generator, kind, chain):
    prior = toy_prior(generator, kind, chain)
    each = list(range(2, 2 + prior.T))
    assert prior.gradients(each) == sum(each) and prior.gradients(4) == 4 * prior.T and prior.gradients() == 3 * prior.T
    u = prior.sample(Noise(0, range(2), generator.D), each)
    # The same by hand: least noise first is the order of the list, most noise first that of the draw.
    eps = Noise(0, range(2), generator.D)
    expected = eps()
    for t in reversed(range(prior.T)):
        expected = prior.negatives(expected, torch.full((2,), t), eps, each[t])
    assert torch.equal(u, expected)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not KINDS[kind].T])
def test_without_steps_there_are_no_gradients_and_nothing_to_do_faster(generator, kind):
    prior = toy_prior(generator, kind)
    assert prior.T == 0 and prior.gradients() == prior.gradients(7) == 0
    with pytest.raises(UsageError, match=f"the {kind} prior takes none"):
        prior.fast_steps()
    with pytest.raises(UsageError, match=f"the {kind} prior takes no Langevin steps"):
        prior.using(steps=3)
    with pytest.raises(HebmError, match=f"the {kind} prior has no energy"):
        prior.given([])


def test_faster_is_the_first_level_alone_where_a_level_may_be_left_out(generator):
    assert toy_prior(generator, "ebm").fast_steps() is None
    assert toy_prior(generator).fast_steps() == [3, 0, 0]
    assert toy_prior(generator, fast=[5, 1, 0]).fast_steps() == [5, 1, 0]
    with pytest.raises(UsageError, match="steps of the langevin chain are what takes a level to the next"):
        toy_prior(generator, chain="langevin").fast_steps()


@every_kind
def test_the_gaussian_part_shrinks_with_the_temperature(generator, kind):
    # Without energy, or a flow that does anything, each draw is linear in its noise.
    prior = toy_prior(generator, kind, weight=0)
    D = prior.generator.D
    cold, warm = (prior.sample(Noise(0, range(3), D), tau=tau) for tau in (0.5, 1.0))
    assert torch.allclose(cold, 0.5 * warm, atol=1e-5)


# Holding


@pytest.mark.parametrize("given", [False, True], ids=["sample", "image"])
@every_chain
@every_kind_of_many_layers
def test_held_coordinates_are_those_of_the_other_trajectory_bit_for_bit(generator, kind, chain, given):
    prior, n = toy_prior(generator, kind, chain), 3
    eps = Noise(0, range(n), generator.D)
    base = prior.stages(torch.randn(n, generator.D), eps) if given else list(prior.trajectory(eps))
    for layer in range(generator.L):
        mask = torch.ones(generator.D, dtype=torch.bool)
        mask[generator.slices[layer]] = False
        stages = list(prior.trajectory(Noise(1, range(n), generator.D), held=(mask, base)))
        # The diffusion ends with steps on p(u_0) itself: `DiffusionEBM` says why.
        expected = [*base, base[-1]] if prior.T > 1 else base
        assert len(stages) == len(expected)
        for u, at_base in zip(stages, expected, strict=True):
            assert torch.equal(u[:, mask], at_base[:, mask])
            assert (u[:, ~mask] != at_base[:, ~mask]).all()


def test_of_one_layer_nothing_can_be_held(generator):
    prior = toy_prior(generator, "flow")
    with pytest.raises(HebmError, match="has one layer, of which nothing can be held"):
        next(prior.trajectory(Noise(0, range(2), 5), held=(torch.ones(5, dtype=torch.bool), [torch.zeros(2, 5)])))


@every_kind
def test_stages_end_in_the_given_latents(generator, kind):
    prior = toy_prior(generator, kind)
    u_0 = torch.randn(2, prior.generator.D)
    stages = prior.stages(u_0, Noise(0, range(2), prior.generator.D))
    assert stages[-1] is u_0 and (kind == "flow" or len(stages) == STAGES[kind])


def test_stages_of_the_diffusion_are_noised_as_its_levels_are(generator):
    prior, n = toy_prior(generator), 3000
    s = prior.schedule
    stages = prior.stages(torch.full((n, generator.D), 2.0), lambda: torch.randn(n, generator.D))
    # u_0 stands for the least noisy level; from there, u_t = a_t u_{t-1} + sigma_t eps.
    mean, variance = 2.0, 0.0
    for t, u in zip(range(1, s.T + 1), reversed(stages[:-1]), strict=True):
        mean, variance = s.a[t].item() * mean, s.a[t].item() ** 2 * variance + s.sigma[t].item() ** 2
        assert u.mean().item() == pytest.approx(mean, abs=5 * math.sqrt(variance / u.numel()))
        assert u.var().item() == pytest.approx(variance, rel=5 * math.sqrt(2 / u.numel()))


# Refining


@every_kind
def test_refining_is_the_identity_where_there_is_nothing_to_refine(generator, kind):
    prior = toy_prior(generator, kind)
    D = prior.generator.D
    u, values = torch.randn(2, 4, D)
    mask = torch.arange(D) % 2 == 0
    for K in (0, None) if prior.T == 0 else (0,):
        assert torch.equal(prior.refine(u, Noise(0, range(4), D), K), u)
        held = prior.refine(u, Noise(0, range(4), D), K, held=(mask, values))
        assert torch.equal(held, torch.where(mask, values, u))


@every_chain
@every_energy
def test_refining_moves_what_is_not_held(generator, kind, chain):
    prior = toy_prior(generator, kind, chain)
    u, values = torch.randn(2, 4, generator.D)
    mask = torch.arange(generator.D) % 2 == 0
    found = prior.refine(u, Noise(0, range(4), generator.D), 2, held=(mask, values))
    assert torch.equal(found[:, mask], values[:, mask]) and (found[:, ~mask] != u[:, ~mask]).all()
    own = prior.refine(u, Noise(0, range(4), generator.D))
    assert torch.equal(own, prior.refine(u, Noise(0, range(4), generator.D), prior.K))


# Scoring


@pytest.mark.parametrize("white", [False, True], ids=["plain", "whitened"])
@every_chain
@every_kind
def test_the_log_ratio_is_the_density_over_the_generators_own(make_generator, kind, chain, white):
    """By layer, [N, L]: of any coordinates, since it is a ratio of two densities in the same ones."""
    generator = make_generator()
    generator = whitened(generator) if white else generator
    prior = toy_prior(generator, kind, chain, weight=0.3)
    g = prior.generator
    u = torch.randn(6, g.D)
    ratio = prior.log_ratio(u)
    assert ratio.shape == (6, g.L) and ratio.isfinite().all()
    assert bool(ratio.any()) == prior.learned
    own = own_density(g, u)
    assert torch.allclose(prior.log_density(u), ratio.sum(1) + own, rtol=1e-4, atol=1e-3)
    # In the coordinates that chains move in: over N(0, I) of u itself.
    assert torch.allclose(prior.log_tilt(u), prior.log_density(u) - log_standard_normal(u), rtol=1e-4, atol=1e-3)
    if not white:
        assert torch.allclose(prior.log_tilt(u), ratio.sum(1), rtol=1e-4, atol=1e-4)
    assert torch.equal(prior.log_density(u, g.walk(u)), prior.log_density(u))
    for layers in range(1, g.L + 1):
        assert torch.allclose(prior.log_ratio(u, layers=layers), ratio[:, :layers], rtol=1e-4, atol=1e-4)
    for t in range(1, prior.T):
        assert torch.allclose(
            prior.log_tilt(u, t), (prior.log_ratio(u, t) - g.whitening_ratio(u)).sum(1), rtol=1e-4, atol=1e-3
        )


def test_a_log_ratio_of_a_law_is_one_number_in_any_coordinates(make_generator):
    """One law, written on the plain generator and on the whitened one: p(w) = p(u) |du/dw|, the ratio is unmoved."""
    plain, white = make_generator(), whitened(make_generator())
    w = torch.randn(5, white.D)
    u = white.whitening.to_u(w)
    law = toy_prior(plain, "ebm", weight=0.3)
    same = toy_prior(white, "ebm", weight=0.3)

    def F(w, t, walk=None):
        """What exp(F) N(w; 0, I) is the plain prior's law for."""
        u = white.residuals(w)
        return law.log_density(u) + white.whitening.log_scale.sum() - log_standard_normal(w)

    same.F = F
    in_w, in_u = same.log_density(w), law.log_density(u)
    assert torch.allclose(in_w, in_u + white.whitening.log_scale.sum(), atol=1e-3)
    ratio = same.log_tilt(w) + same.generator.whitening_ratio(w).sum(1)
    assert torch.allclose(ratio, law.log_ratio(u).sum(1), atol=1e-3)
    # And the Gaussian, the generator's own prior, has none in either.
    for g, x in ((plain, u), (white, w)):
        assert not toy_prior(g, "gaussian").log_ratio(x).any()
    drawn = [toy_prior(g, "gaussian").sample(Noise(1, range(4), g.D)) for g in (plain, white)]
    assert torch.allclose(white.images(drawn[1]), plain.images(drawn[0]), rtol=1e-4, atol=1e-5)


@every_kind
def test_log_density_is_differentiable_and_its_slope_is_that_of_differences(generator, kind):
    prior = toy_prior(generator, kind, weight=0.3)
    u = torch.randn(4, prior.generator.D, requires_grad=True)
    slope = torch.autograd.grad(prior.log_density(u).sum(), u)[0]
    direction, h = torch.randn_like(u), 1e-2
    ahead, behind = (prior.log_density(u.detach() + sign * h * direction) for sign in (1, -1))
    assert torch.allclose((ahead - behind) / (2 * h), (slope * direction).sum(1), rtol=2e-2, atol=0.05)


@every_energy
def test_the_log_ratio_is_the_sum_of_the_layers_networks(kind):
    """By brute force, on a generator of two coordinates: each f_i by hand, over the scale of its chain."""
    plane = Plane()
    for chain in CHAINS:
        prior = toy_prior(plane, kind, chain, weight=0.5)
        u_2, u_1 = torch.randn(2, 7)
        z_1 = (2 * u_2).sin() + (u_2 / 3).exp() * u_1
        h_1 = torch.stack([u_2, u_2.square()], dim=1)[..., None, None]
        for t in range(prior.T):
            top, bottom = prior.energy.layers
            level = top.embed(torch.full((7,), t))
            read = [torch.stack(pair, dim=1)[..., None, None] for pair in ((u_2, u_2), (z_1, u_1))]
            f = [top(read[0], None, level), bottom(read[1], h_1, level, prior.energy.standard(1))]
            scale = prior.chain.scale(prior.schedule, torch.tensor([t]))
            found = prior.log_ratio(torch.stack([u_2, u_1], dim=1), t)
            assert torch.allclose(found, torch.cat(f, dim=1) / scale, rtol=1e-4, atol=1e-4)


def test_the_gaussian_is_the_generators_own(generator):
    prior = toy_prior(generator, "gaussian")
    noise = Noise(0, range(3), generator.D)()
    for tau in (0.5, 1.0, 2.0):
        assert torch.equal(prior.sample(Noise(0, range(3), generator.D), tau=tau), tau * noise)
    expected = torch.distributions.Normal(0, 1).log_prob(noise).sum(1)
    assert torch.allclose(prior.log_density(noise), expected, rtol=1e-6)
    with pytest.raises(NotImplementedError, match="gaussian"):
        prior.loss(noise, noise)


def test_a_plane_is_a_generator():
    """What the brute force here stands on: T and T^-1 of the toy agree, whitened or not."""
    for plane in (Plane(), whitened(Plane())):
        u = torch.randn(50, 2)
        assert torch.allclose(plane.T_inverse(plane.T(u)), u, atol=1e-4)
        points, area = grid()
        assert (own_density(plane, points).exp().sum() * area).item() == pytest.approx(1, abs=1e-2)


# What it says of itself


@every_kind
def test_what_it_shows_of_itself(generator, kind):
    prior = toy_prior(generator, kind)
    shown = repr(prior)
    assert shown.startswith(f"<{kind} prior over {prior.generator.D} dimensions") and shown.endswith("parameters>")
    assert ("level" in shown) == (prior.T > 0)


@every_kind
def test_a_checkpoint_of_the_prior_is_its_own(generator, kind):
    prior = toy_prior(generator, kind)
    keys = prior.state_dict().keys()
    if prior.brings_generator:
        assert {key.split(".")[0] for key in keys} == {"g", "energy" if prior.T else "couplings"}
    else:
        assert prior.generator is generator
        assert all(key.startswith("energy.") for key in keys)
    other = toy_prior(generator, kind, weight=0.5)
    other.load_state_dict(prior.state_dict())
    u = torch.randn(3, prior.generator.D)
    assert torch.equal(other.log_density(u), prior.log_density(u))


@every_energy
def test_terms_of_the_energy_add_up_and_can_be_cut(generator, kind):
    prior, u = toy_prior(generator, kind, weight=1.0), torch.randn(4, generator.D)
    t = torch.tensor([0, 1, 2, 0]) % prior.T
    terms = prior.energies(u, t)
    assert terms.shape == (4, generator.L)
    assert torch.allclose(prior.F(u, t), terms[:, 0] + terms[:, 1])
    assert torch.allclose(prior.energies(u, t, layers=1), terms[:, :1], atol=1e-6)
    assert torch.equal(prior.F(u), prior.F(u, torch.zeros(4, dtype=torch.long)))


@pytest.mark.parametrize("T", [2, 3, 6])
def test_published_step_sizes(generator, T):
    prior, s = toy_prior(generator, chain="langevin", levels=T, eta=3e-5), Schedule(T)
    b_squared = [3e-5 * s.sbar[t].item() / s.sbar[0].item() * s.sigma[t + 1].item() ** 2 for t in range(T)]
    assert prior.scale(torch.arange(T)).tolist() == pytest.approx(b_squared, rel=1e-6)
    joint = toy_prior(generator, "ebm", "langevin", eta=3e-5)
    assert joint.scale(torch.zeros(2, dtype=torch.long)).tolist() == pytest.approx([3e-5] * 2, rel=1e-6)
    assert toy_prior(generator, levels=T).scale(torch.arange(T)).tolist() == [1] * T


def test_an_unknown_kind_is_a_sentence():
    with pytest.raises(UsageError, match="prior.kind is 'difusion-ebm', but must be one of .*did you mean"):
        recipe.from_dict({"prior": {"kind": "difusion-ebm"}})
