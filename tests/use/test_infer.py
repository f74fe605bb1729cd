"""Latents of whole images and of images with hidden pixels: whose density is climbed, and from where."""

import pytest
import torch
from toys import ENERGY_KINDS, Plane, grid, normalised, toy_prior

from hebmtool import data, recipe
from hebmtool.data import masks
from hebmtool.errors import HebmError
from hebmtool.noise import Noise, derive_seed
from hebmtool.recipe import Recipe
from hebmtool.use import infer
from hebmtool.use.infer import Inference, posterior_draws

SHAPE = (1, 8, 8)


def digits(n=4):
    return data.load(recipe.Data(), "test").batch(range(n))


def inference(generator, kind="ebm", likelihood="bernoulli", **keys):
    prior = toy_prior(generator, kind, weight=0.05, reads="z").eval().requires_grad_(False)
    settings = Recipe(generator=generator.config.model_copy(update={"likelihood": likelihood}))
    return Inference(prior, settings, **keys)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "mixture"])
@pytest.mark.parametrize("kind", ["gaussian", *ENERGY_KINDS])
def test_the_joint_is_the_prior_and_the_visible_pixels(make_generator, kind, likelihood):
    generator = make_generator(likelihood=likelihood)
    found = inference(generator, kind, likelihood)
    u, x, visible = torch.randn(3, generator.D), torch.rand(3, 1, 8, 8), torch.rand(3, 1, 8, 8) < 0.5
    whole = generator.log_px(generator.walk(u), x)
    prior = found.prior.log_density(u)
    assert torch.allclose(found._log_joint(u, x, None), prior + whole, atol=1e-3)
    seen, unseen = (found._log_joint(u, x, part) - prior for part in (visible, ~visible))
    assert torch.allclose(seen + unseen, whole, atol=1e-3)
    other = torch.where(visible, x, torch.rand_like(x))
    assert torch.equal(found._log_joint(u, x, visible), found._log_joint(u, other, visible))
    # Langevin needs the slope of every term.
    u.requires_grad_(True)
    slope = torch.autograd.grad(found._log_joint(u, x, visible).sum(), u)[0]
    v, h = torch.randn_like(u), 1e-2
    ahead, behind = (found._log_joint(u.detach() + sign * h * v, x, visible) for sign in (1, -1))
    assert torch.allclose((ahead - behind) / (2 * h), (slope * v).sum(1), atol=0.05, rtol=0.02)


def test_whole_images_are_encoded_and_langevin_climbs_to_the_posterior(generator):
    found = inference(generator)
    images = digits()
    u = found(images)
    assert u.shape == (4, 1, generator.D)
    x = data.prepare(images, found.recipe.data, generator.likelihood.read_grey, train=False)
    assert torch.allclose(u[:, 0], generator.encode(x, torch.zeros(4, generator.D)), atol=1e-5)
    far = torch.full_like(u[:, 0], 2.0)
    refined = Inference(found.prior, found.recipe, steps=30)(images)[:, 0]
    assert (found._log_joint(refined, x, None) > found._log_joint(far, x, None)).all()
    assert not torch.equal(refined, u[:, 0])


def test_an_image_has_latents_of_its_own_whatever_batch_and_hidden_pixels(generator, monkeypatch):
    monkeypatch.setattr(infer, "ROUNDS", 3)
    found = inference(generator, steps=3)
    images, hidden = digits(), masks.parse("left", SHAPE)(range(4))
    whole = found(images, hidden, 3)
    assert whole.shape == (4, 3, generator.D)
    monkeypatch.setattr(infer, "BATCH", 3)
    assert torch.allclose(found(images[2:], hidden[2:], 2), whole[2:, :2], atol=1e-4)
    damaged = torch.where(hidden, torch.randint(0, 256, images.shape, dtype=torch.uint8), images)
    assert torch.allclose(found(damaged, hidden, 3), whole, atol=1e-4)
    # Draws differ, and so do seeds.
    assert (whole[:, 0] - whole[:, 1]).abs().max() > 0.1
    assert not torch.allclose(Inference(found.prior, found.recipe, 3, seed=1)(images, hidden, 3), whole, atol=0.1)


def test_the_prior_trained_decides_what_is_drawn(generator, monkeypatch):
    monkeypatch.setattr(infer, "ROUNDS", 2)
    # With a sharp energy around u = 1 in place of the network, unobserved latents go there.
    found = inference(generator, steps=100)
    found.prior.log_density = lambda u, walk=None: -50 * (u - 1).square().sum(1)
    hidden = torch.ones(2, 1, 8, 8, dtype=torch.bool)
    hidden[:, :, 0, 0] = False
    u = found(digits(2), hidden, 4)
    assert u.mean().item() == pytest.approx(1, abs=0.1) and u.std().item() == pytest.approx(0.1, abs=0.05)


@pytest.mark.parametrize("kind", ["gaussian", "ebm"])
def test_refined_latents_follow_the_posterior(monkeypatch, kind):
    """p(u | x) ~ p(u) p(x | T(u)) on the plane, summed over a grid, against 500 draws of one image."""
    torch.manual_seed(5)
    plane = Plane()
    monkeypatch.setattr(plane, "encode", lambda x, eps=None: 0 * eps, raising=False)
    prior = toy_prior(plane, kind, weight=1.0).requires_grad_(False)
    settings = Recipe(generator=recipe.Generator(likelihood="bernoulli"))
    found = Inference(prior, settings, steps=45)
    image = torch.full((1, 1, 1, 1), 230, dtype=torch.uint8)
    monkeypatch.setattr(infer, "BATCH", 500)
    u = found(image, draws=500)[0].double()
    points, _ = grid(6.0, 81)
    share = normalised(found._log_joint(points, torch.full((len(points), 1, 1, 1), 230 / 255), None))
    mean = share @ points.double()
    variance = share @ (points.double() - mean).square()
    error = 5 * (variance / 500).sqrt()
    assert ((u.mean(0) - mean).abs() < error + 0.02).all()
    assert ((u.var(0) / variance - 1).abs() < 5 * (2 / 500) ** 0.5 + 0.05).all()
    assert mean.abs().max() > 0.2  # the image says something


def test_a_chain_that_left_the_numbers_is_said(generator):
    found = inference(generator, steps=2)
    found.prior.log_density = lambda u, walk=None: u.sum(1) * float("nan")
    found.prior.generator.encode = lambda x, eps=None: torch.full((len(x), generator.D), float("nan"))
    with pytest.raises(HebmError, match="a Langevin chain diverged: .*; take fewer steps"):
        found(digits(2))


# Without an encoder


def flow_inference(generator, **keys):
    prior = toy_prior(generator, "flow", steps=2, test_steps=3).eval().requires_grad_(False)
    return Inference(prior, Recipe(flow=prior.inference), **keys)


def test_without_an_encoder_latents_are_a_short_run_from_the_prior(generator, monkeypatch):
    found, images = flow_inference(generator), digits()
    z = found(images, draws=2)
    assert z.shape == (4, 2, 5)
    prior, D = found.prior, 5
    x = images / 255.0
    codes = [found._code(image, 1) for image in images]
    eps = Noise(0, codes, D)
    expected = prior.infer(x, prior.start(eps()), 3, eps)
    assert torch.allclose(z[:, 1], expected, atol=1e-5)
    monkeypatch.setattr(infer, "BATCH", 3)
    assert torch.allclose(found(images[1:], draws=2), z[1:], atol=1e-5)
    more = Inference(prior, found.recipe, steps=40)(images)
    assert (prior.log_joint(more[:, 0], x) > prior.log_joint(z[:, 0], x)).all()


def test_test_chains_may_be_noise_free_and_those_of_learning_are_not(generator):
    found, images = flow_inference(generator), digits()
    noisy = found(images)
    found.prior.inference.test_noise = False
    z, x, eps = found(images), images / 255.0, Noise(0, [found._code(image, 0) for image in images], 5)
    assert torch.allclose(z[:, 0], found.prior.infer(x, found.prior.start(eps()), 3, None), atol=1e-5)
    assert not torch.allclose(z, noisy, atol=1e-2)
    learning = Inference(found.prior, found.recipe, learning=True)(images)[:, 0]
    eps = Noise(0, [found._code(image, 0) for image in images], 5)
    assert torch.allclose(learning, found.prior.infer(x, found.prior.start(eps()), 2, eps), atol=1e-5)


def test_hidden_pixels_are_not_looked_at_without_an_encoder_either(generator):
    found, images, hidden = flow_inference(generator), digits(), masks.parse("left", SHAPE)(range(4))
    damaged = torch.where(hidden, torch.randint(0, 256, images.shape, dtype=torch.uint8), images)
    assert torch.equal(found(damaged, hidden), found(images, hidden))
    assert not torch.allclose(found(images, hidden), found(images), atol=1e-3)


# Draws of the posterior


def test_posterior_draws_are_one_an_image_the_first_split_first(generator, monkeypatch):
    found = inference(generator, "gaussian")
    splits = [data.load(recipe.Data(limit=5), "train"), data.load(recipe.Data(), "test")]
    torch.manual_seed(4)
    u = posterior_draws(found.prior, splits, found.recipe, 8, seed=3)
    assert u.shape == (8, generator.D)
    torch.manual_seed(5)
    assert torch.equal(posterior_draws(found.prior, splits, found.recipe, 8, seed=3), u)
    assert torch.allclose(posterior_draws(found.prior, splits, found.recipe, 5, seed=3), u[:5], atol=1e-5)
    assert not torch.allclose(posterior_draws(found.prior, splits, found.recipe, 8, seed=4), u, atol=0.1)
    # The second split's have the noise of their own place in it.
    torch.manual_seed(derive_seed(3, "posterior", 1, 0))
    x = data.prepare(splits[1].batch(range(3)), found.recipe.data, generator.likelihood.read, train=False)
    noise = Noise(derive_seed(3, "posterior", 1), range(3), generator.D)
    assert torch.allclose(u[5:], generator.encode(x, noise()), atol=1e-5)


def test_without_an_encoder_they_are_inferred(generator):
    found = flow_inference(generator)
    test = data.load(recipe.Data(), "test")
    u = posterior_draws(found.prior, [test], found.recipe, 4, seed=3)
    expected = Inference(found.prior, found.recipe, 2, derive_seed(3, "posterior"))(test.batch(range(4)))
    assert torch.equal(u, expected[:, 0])
