"""Whitened latents u = m + A w: the same generator in other coordinates, and densities that say so."""

import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from hebmtool import data, recipe
from hebmtool.errors import HebmError
from hebmtool.generator import Tower, Whitening
from hebmtool.judge.sources import same
from hebmtool.metrics import evidence, two_sample
from hebmtool.noise import Noise
from hebmtool.prior import Prior, make_prior
from hebmtool.train.prior import whitening_of
from hebmtool.use.score import Scorer

KEYS = {"chain": "underdamped", "steps": 2, "objective": "cnce", "energy": {"width": 4, "blocks": 1}}


@pytest.fixture
def plain(make_generator):
    return make_generator()


@pytest.fixture
def whitening(plain):
    torch.manual_seed(3)
    factor = torch.eye(plain.D) + 0.2 * torch.randn(plain.D, plain.D).tril()
    return Whitening(0.3 * torch.randn(plain.D), factor.tril(-1) + torch.diag(factor.diagonal().abs() + 0.2))


@pytest.fixture
def white(make_generator, whitening):
    return make_generator().whiten(whitening)


def held_images(x: torch.Tensor) -> data.Images:
    return data.Images(len(x), tuple(x.shape[1:]), lambda indices: x[indices])


def prior(generator, kind, **keys) -> Prior:
    return make_prior(generator, recipe.Prior(kind=kind, **KEYS | keys)).eval().requires_grad_(False)


def test_it_is_the_same_generator_in_other_coordinates(plain, white, whitening):
    w, x, noise = torch.randn(5, plain.D), torch.rand(5, 1, 8, 8), torch.randn(5, plain.D)
    u = whitening.mean + w @ whitening.factor.T
    torch.testing.assert_close(white.T(w), plain.T(u))
    torch.testing.assert_close(white.images(w), plain.images(u))
    torch.testing.assert_close(white.T_inverse(white.T(w)), w, rtol=1e-4, atol=1e-4)
    encoded = white.encode(x, noise)
    torch.testing.assert_close(whitening.to_u(encoded), plain.encode(x, noise), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(white.join(white.walk(w).u), u)
    assert same(plain, white)


def test_layers_depend_on_no_layer_below(plain, white):
    w = torch.randn(4, plain.D)
    top = plain.slices[0].stop
    changed = torch.cat([w[:, :top], torch.randn(4, plain.D - top)], 1)
    for found in (white.walk(changed), white.walk(w[:, :top], layers=1)):
        torch.testing.assert_close(found.z[0], white.walk(w).z[0], rtol=0, atol=1e-6)


def test_the_posterior_score_follows_the_chain_rule(plain, white, whitening):
    x, w = torch.rand(3, 1, 8, 8), torch.randn(3, plain.D)
    expected = plain.posterior_score(whitening.to_u(w), x) @ whitening.factor
    torch.testing.assert_close(white.posterior_score(w, x), expected, rtol=1e-4, atol=1e-4)


def test_the_ratio_is_that_of_two_normal_laws(plain, white, whitening):
    w = torch.randn(6, plain.D)
    u = whitening.to_u(w)
    fitted = MultivariateNormal(whitening.mean, scale_tril=whitening.factor)
    own = MultivariateNormal(torch.zeros(plain.D), torch.eye(plain.D))
    ratio = white.whitening_ratio(w)
    torch.testing.assert_close(ratio.sum(1), fitted.log_prob(u) - own.log_prob(u), rtol=1e-4, atol=1e-3)
    # The top layer's share is the ratio of its own marginals, and the rest is the layers' given those above.
    top = plain.slices[0].stop
    marginal = MultivariateNormal(whitening.mean[:top], scale_tril=whitening.factor[:top, :top])
    expected = marginal.log_prob(u[:, :top]) - MultivariateNormal(torch.zeros(top), torch.eye(top)).log_prob(u[:, :top])
    torch.testing.assert_close(ratio[:, 0], expected, rtol=1e-4, atol=1e-3)
    assert not plain.whitening_ratio(u).any()
    torch.testing.assert_close(whitening.nats, kl_divergence(fitted, own).item(), rtol=1e-4, atol=1e-3)


def test_the_gaussian_prior_stays_the_generators_own(plain, white, whitening):
    drawn = [prior(g, "gaussian").sample(Noise(1, range(4), g.D)) for g in (plain, white)]
    torch.testing.assert_close(white.images(drawn[1]), plain.images(drawn[0]), rtol=1e-4, atol=1e-5)
    expected = prior(plain, "gaussian").log_density(drawn[0]) + whitening.factor.diagonal().log().sum()
    torch.testing.assert_close(prior(white, "gaussian").log_density(drawn[1]), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", ["ebm", "diffusion-ebm"])
def test_a_prior_that_has_learned_nothing_is_the_fitted_normal(white, whitening, kind):
    n = 4000
    walk = white.walk(prior(white, kind).sample(Noise(0, range(n), white.D)))
    u = white.join(walk.u)
    covariance = whitening.factor @ whitening.factor.T
    assert ((u.mean(0) - whitening.mean).abs() < 6 * (covariance.diagonal() / n).sqrt()).all()
    deviation = (covariance.diagonal()[:, None] * covariance.diagonal() / n).sqrt()
    assert ((torch.cov(u.T) - covariance).abs() < 7 * deviation).all()


def test_weights_of_draws_are_tilted_by_what_whitening_knows(white, whitening):
    images = held_images(torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8))
    settings = recipe.Recipe(generator=white.config)
    found = evidence.weigh(prior(white, "ebm"), images, settings, 5, 2)
    u = whitening.to_u(found.u)
    fitted = MultivariateNormal(whitening.mean, scale_tril=whitening.factor)
    own = MultivariateNormal(torch.zeros(white.D), torch.eye(white.D))
    expected = (fitted.log_prob(u) - own.log_prob(u)).double()
    torch.testing.assert_close(found.tilt[:, 0], expected, rtol=1e-4, atol=1e-3)


def learned(p: Prior) -> Prior:
    """With heads that are not 0."""
    torch.manual_seed(11)
    for layer in p.energy.layers:
        layer.head.weight.copy_(torch.randn_like(layer.head.weight))
    return p


@pytest.mark.parametrize("chain", ["langevin", "underdamped"])
def test_the_energy_score_is_the_log_ratio_to_the_own_prior(white, whitening, chain):
    p = learned(prior(white, "diffusion-ebm", chain=chain))
    scorer = Scorer(p, recipe.Recipe(generator=white.config), score="energy", draws=1)
    seen = []
    encode = white.latents
    white.latents = lambda walk: seen.append(encode(walk)) or seen[-1]
    found = scorer(torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8), [0, 1])
    [w] = seen
    u, top = whitening.to_u(w), white.slices[0].stop
    zero = torch.zeros(6, dtype=torch.long)
    for cut, d in ((0, white.D), (1, top)):
        fitted = MultivariateNormal(whitening.mean[:d], scale_tril=whitening.factor[:d, :d])
        own = MultivariateNormal(torch.zeros(d), torch.eye(d))
        f = p.energies(w)[:, : 2 - cut].sum(1) / p.scale(zero)
        expected = f + fitted.log_prob(u[:, :d]) - own.log_prob(u[:, :d])
        torch.testing.assert_close(found[:, cut] / p.scale(zero), expected.double(), rtol=1e-3, atol=1e-2)


def test_bounds_are_those_of_the_generator_in_whatever_coordinates(plain, white):
    images = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    for score in ("likelihood", "llr"):
        found = [
            Scorer(prior(g, "ebm"), recipe.Recipe(generator=g.config), score=score, draws=2)(images)
            for g in (plain, white)
        ]
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-3)


def test_the_own_prior_is_told_from_the_posterior_by_what_was_whitened(white, whitening):
    """The posterior is the fitted normal here, on which nothing is left for energies to learn."""
    n = 400
    p, q = prior(white, "ebm"), torch.randn(n, white.D, generator=torch.Generator().manual_seed(1))
    own = white.whitened(torch.randn(n, white.D, generator=torch.Generator().manual_seed(2)))
    assert two_sample._against(p, q, own, 0, 0, own=True).accuracy[0, -1] > 0.8
    drawn = torch.randn(n, white.D, generator=torch.Generator().manual_seed(3))
    assert two_sample._against(p, q, drawn, 0, 0).accuracy[0, -1] < 0.6


def test_moments_are_those_of_residuals(plain, white, whitening):
    w = torch.randn(300, white.D)
    of_white = two_sample.moment_figures(w, white, "generator")
    of_plain = two_sample.moment_figures(whitening.to_u(w), plain, "generator")
    for a, b in zip(of_white, of_plain, strict=True):
        assert a.value == pytest.approx(b.value, rel=1e-4, abs=1e-5)


def images_with_structure(n: int) -> data.Images:
    torch.manual_seed(5)
    ramp = torch.linspace(0, 1, 8)
    x = torch.rand(n, 1, 1, 1) * ramp + 0.3 * torch.rand(n, 1, 8, 8)
    return held_images((255 * x.clamp(0, 1)).to(torch.uint8))


def test_the_aggregate_posterior_becomes_white(make_generator):
    kept = {**make_generator().config.model_dump(), "likelihood": "gaussian"}
    settings = recipe.Recipe(generator=kept, prior={"whiten": True})
    generator = make_generator(likelihood="gaussian", seed=2)
    images = images_with_structure(3000)
    whitening = whitening_of(generator, images, settings)
    again = whitening_of(generator, images, settings)
    assert torch.equal(whitening.factor, again.factor) and torch.equal(whitening.mean, again.mean)
    x = data.prepare(images.batch(range(3000)), settings.data, generator.likelihood.read, train=False)
    torch.manual_seed(7)
    u = generator.encode(x)
    before = torch.cov(u.T) - torch.eye(generator.D)
    w = whitening.to_w(u)
    after = torch.cov(w.T) - torch.eye(generator.D)
    assert w.mean(0).abs().max() < 0.1
    assert after.abs().max() < 0.15 and after.square().sum() < 0.3 * before.square().sum()


def test_more_draws_of_an_image_know_the_covariance_better(make_generator):
    """By what other images' latents gain, log N(u; m, A A^T) - log N(u; 0, I)."""
    generator = make_generator(likelihood="gaussian", seed=2)
    others = images_with_structure(3000).batch(range(600, 3000))
    held_out = data.prepare(others, recipe.Data(), generator.likelihood.read, train=False)
    torch.manual_seed(9)
    u = generator.encode(held_out)
    gains = []
    for draws in (True, 1, 4):
        settings = recipe.Recipe(generator=generator.config, prior={"whiten": draws})
        whitening = whitening_of(generator, images_with_structure(600), settings)
        w = whitening.to_w(u)
        gains.append(0.5 * (u.square() - w.square()).sum(1).mean() - whitening.log_scale.sum())
    assert gains[0] == gains[1] < gains[2] - 0.05


def test_a_covariance_that_draws_cannot_know_is_left_alone(make_generator):
    """Fewer draws than dimensions: the factor is still a regular matrix, near a multiple of I."""
    generator = make_generator(likelihood="gaussian")
    settings = recipe.Recipe(generator=generator.config, prior={"whiten": True})
    whitening = whitening_of(generator, images_with_structure(10), settings)
    condition = torch.linalg.cond(whitening.factor)
    assert whitening.factor.isfinite().all() and condition < 10


def test_latents_that_are_not_finite_are_a_sentence(plain, monkeypatch):
    monkeypatch.setattr(plain, "encode", lambda x: torch.full((len(x), plain.D), torch.nan))
    with pytest.raises(HebmError, match="not finite"):
        whitening_of(plain, images_with_structure(4), recipe.Recipe(generator=plain.config, prior={"whiten": True}))


def test_only_a_frozen_generator_is_whitened(plain, whitening):
    with pytest.raises(ValueError, match="frozen"):
        Tower(plain.config, (1, 8, 8)).whiten(whitening)
