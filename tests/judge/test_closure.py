"""The prior-hole closure: its two ends, what it is made of, and where there is none."""

import pytest
import torch
from torch import nn

from hebmtool import data, recipe
from hebmtool.errors import HebmError
from hebmtool.judge.closure import closure, prior_images, reconstructions
from hebmtool.metrics.features import Features
from hebmtool.prior import Gaussian, make_prior

CPU = torch.device("cpu")


class FromPosterior(Gaussian):
    """A perfect prior: u of fresh posterior draws."""

    def trajectory(self, eps, K=None, tau=1.0, held=None, watch=None):
        images, drawn = data.load(recipe.Data(), "train"), eps()
        x = images.batch(torch.randint(len(images), (len(drawn),))).float() / 255
        yield self.generator.encode(x, drawn)


@pytest.fixture
def setting(make_generator):
    """A random generator on digits whose posterior is far from N(0, I), a recipe, and features that see it."""
    generator = make_generator()
    with torch.no_grad():
        for layer in generator.encoder:
            layer.head.bias.add_(1.5)
            layer.head.fold()
    settings = recipe.Recipe(generator=generator.config)
    # Centred and enlarged, for the images of a random generator are nearly grey.
    features = Features(lambda x: (nn.functional.avg_pool2d(x.float(), 2) / 255 - 0.5).flatten(1) * 10, "pooled", CPU)
    return generator, settings, features


def measure(prior, settings, features, samples=600):
    images, test = data.load(settings.data, "train"), data.load(settings.data, "test")
    return closure(prior, images, test, settings, features, samples)


def test_closure_of_the_gaussian_prior_is_zero(setting):
    generator, settings, features = setting
    found = measure(Gaussian(generator), settings, features)
    assert found.closure == 0 and found.fd_prior == found.fd_gaussian and found.kind == "gaussian"
    assert (found.samples, found.reference, found.features) == (600, len(data.load(settings.data, "test")), "pooled")
    assert found.fd_gaussian != pytest.approx(found.fd_reconstruction, rel=0.01)
    assert found.figures()["closure"] == 0 and "0.000" in found.sentence() and "pooled" in found.sentence()


def test_closure_of_posterior_draws_is_one(setting):
    generator, settings, features = setting
    found = measure(FromPosterior(generator), settings, features)
    expected = (found.fd_gaussian - found.fd_prior) / (found.fd_gaussian - found.fd_reconstruction)
    assert found.closure == pytest.approx(expected)
    assert found.closure == pytest.approx(1, abs=0.15)
    assert 0 < found.error < 0.2


def test_closure_measures_no_more_images_than_there_are_and_repeats_itself(setting):
    generator, settings, features = setting
    settings.data.limit = 40
    prior = make_prior(generator, recipe.Prior(kind="ebm", steps=2))
    first, second = (measure(prior, settings, features) for _ in range(2))
    assert first == second and first.samples == 40


def test_reconstructions_leave_the_random_state_alone(setting):
    generator, settings, _ = setting
    images = data.load(settings.data, "train")
    state = torch.get_rng_state()
    first = reconstructions(Gaussian(generator), images, settings, 20)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.dtype == torch.uint8 and first.shape == (20, 1, 8, 8)
    torch.randn(3)
    assert torch.equal(reconstructions(Gaussian(generator), images, settings, 20), first)


def test_prior_images_are_the_same_whatever_their_number(setting, monkeypatch):
    generator, settings, _ = setting
    prior = Gaussian(generator)
    few = prior_images(prior, 5, seed=1)
    monkeypatch.setattr("hebmtool.judge.closure.BATCH", 4)
    many = prior_images(prior, 9, seed=1)
    assert few.dtype == torch.uint8 and many.shape == (9, 1, 8, 8)
    assert (many[:5].int() - few.int()).abs().max() <= 1  # the last bit of a matrix product
    assert not torch.equal(prior_images(prior, 5, seed=2), few)


def test_closure_needs_images(setting):
    generator, settings, features = setting
    prior, images = Gaussian(generator), data.load(settings.data, "train")
    one = data.Images(1, images.shape, lambda indices: images.batch(indices))
    with pytest.raises(HebmError, match="1 held out, but needs at least 2"):
        closure(prior, images, one, settings, features, 20)
    with pytest.raises(HebmError, match="1 training image"):
        closure(prior, one, images, settings, features, 20)


def test_there_is_no_closure_where_the_features_see_no_hole(setting):
    generator, settings, _ = setting
    blind = Features(lambda x: torch.zeros(len(x), 3), "blind", CPU)
    found = measure(Gaussian(generator), settings, blind, 20)
    assert found.closure is None and found.error is None
    assert "undefined" in found.sentence()
