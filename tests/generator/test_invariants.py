"""What every generator does, whatever its architecture and coordinates: T is a bijection, layers follow one another.

A new class is covered by a line in `MAKE`.
"""

from itertools import pairwise
from math import prod

import pytest
import torch
from toys import Plane

from hebmtool import recipe
from hebmtool.generator import Generator, OneLayer, Tower, Whitening

SMALL = {"encoder_channels": 4, "decoder_channels": 4, "preprocess_cells": 1, "postprocess_cells": 1, "mixtures": 2}
N = 3


def tower(shape=(1, 8, 8), **keys) -> Tower:
    return Tower(recipe.Generator(**SMALL | {"layers_per_scale": 1, "latent_channels": 2} | keys), shape).frozen()


def whitened(generator: Generator) -> Generator:
    factor = torch.eye(generator.D) + 0.1 * torch.randn(generator.D, generator.D).tril()
    whitening = Whitening(0.3 * torch.randn(generator.D), factor)
    if isinstance(generator, Tower):
        return generator.whiten(whitening)
    generator.whitening = whitening
    return generator


MAKE = {
    "tower": tower,
    "tower of one scale": lambda: tower(scales=1, layers_per_scale=3, likelihood="bernoulli"),
    "tower of colours": lambda: tower((3, 8, 8), likelihood="gaussian"),
    "tower with flows, cropped": lambda: tower((1, 7, 9), flows=1, preprocess_blocks=2, postprocess_blocks=2),
    "whitened tower": lambda: whitened(tower()),
    "one layer": lambda: OneLayer(recipe.Flow(latent=5, width=4), (1, 8, 8)),
    "one layer of colours, cropped": lambda: OneLayer(recipe.Flow(latent=5, width=4), (3, 9, 10)),
    "plane": Plane,
    "whitened plane": lambda: whitened(Plane()),
}


@pytest.fixture(params=MAKE)
def g(request) -> Generator:
    torch.manual_seed(0)
    return MAKE[request.param]().requires_grad_(False)


@pytest.fixture
def u(g) -> torch.Tensor:
    return torch.randn(N, g.D)


@pytest.fixture
def x(g) -> torch.Tensor:
    v = torch.randint(256, (N, *g.image_shape)).float()
    return g.likelihood.read(v, 8)


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_every_class_is_looked_at():
    ours = {of for of in Generator.__subclasses__() if of.__module__.startswith("hebmtool.")}
    assert ours == {Tower, OneLayer} <= {type(make()) for make in MAKE.values()}


# Layout


def test_layers_are_numbered_from_the_bottom(g):
    assert [g.layer_number(l) for l in range(g.L)] == list(range(g.L, 0, -1))
    assert all(g.layer_number(g.layer_number(l)) == l for l in range(g.L))


def test_slices_follow_each_other_through_all_coordinates(g):
    assert [s.stop - s.start for s in g.slices] == [prod(shape) for shape in g.latent_shapes]
    assert g.slices[0].start == 0 and g.slices[-1].stop == g.D == sum(map(prod, g.latent_shapes))
    assert all(above.stop == below.start for above, below in pairwise(g.slices))


def test_split_gives_views_and_join_is_its_inverse(g, u):
    maps = g.split(u)
    assert [tuple(m.shape[1:]) for m in maps] == g.latent_shapes
    assert torch.equal(g.join(maps), u)
    assert all(torch.equal(m.flatten(1), u[:, s]) for m, s in zip(maps, g.slices, strict=True))
    maps[0].fill_(7)
    assert (u[:, g.slices[0]] == 7).all()
    top = g.split(u[:, : g.slices[0].stop])  # of the first layers alone
    assert len(top) == 1 and torch.equal(top[0], maps[0])


# T


def test_T_is_a_bijection(g, u):
    close(g.T_inverse(g.T(u)), u)
    z = g.T(torch.randn(N, g.D))
    close(g.T(g.T_inverse(z)), z)


def test_T_is_the_walks_z_and_z_is_mu_plus_sigma_u(g, u):
    walk = g.walk(u)
    assert torch.equal(g.join(walk.z), g.T(u))
    for z, mu, sigma, u_i in zip(walk.z, walk.mu, walk.sigma, walk.u, strict=True):
        assert (sigma > 0).all()
        close(z, mu + sigma * u_i)
    close(g.join(walk.u), g.residuals(u))
    close(g.latents(walk), u)


def test_the_determinant_of_T_is_the_product_of_the_sigmas(g):
    u = torch.randn(1, g.D)
    jacobian = torch.autograd.functional.jacobian(lambda u: g.T(u[None])[0], u[0])
    expected = g.join(g.walk(u).sigma).log().sum()
    if g.whitening is not None:
        expected = expected + g.whitening.log_scale.sum()
    found = torch.linalg.slogdet(jacobian.double()).logabsdet.float()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_a_walk_holds_every_layers_maps_and_states(g, u):
    walk = g.walk(u)
    for met in (walk.z, walk.u, walk.mu, walk.sigma):
        assert [tuple(m.shape) for m in met] == [(N, *shape) for shape in g.latent_shapes]
    states = [(N, c, *shape[1:]) for c, shape in zip(g.state_channels, g.latent_shapes, strict=True)]
    assert [tuple(h.shape) for h in walk.h] == states


def test_a_walk_of_the_first_layers_is_the_beginning_of_a_whole_one(g, u):
    whole = g.walk(u)
    for layers in range(1, g.L + 1):
        for part in (g.walk(u, layers), g.walk(u[:, : g.slices[layers - 1].stop], layers)):
            assert len(part.z) == layers
            for name in ("z", "u", "mu", "sigma", "h"):
                for a, b in zip(getattr(part, name), getattr(whole, name), strict=False):
                    close(a, b)


def test_a_layer_depends_on_no_layer_below(g, u):
    for l, layer in enumerate(g.slices[:-1]):
        changed = torch.cat([u[:, : layer.stop], torch.randn(N, g.D - layer.stop)], dim=1)
        a, b = g.walk(u), g.walk(changed)
        for met in ("z", "mu", "sigma", "h"):
            close(getattr(a, met)[l], getattr(b, met)[l])
        close(a.h[l + 1], b.h[l + 1])  # a state is a function of the layers above it
        assert not torch.allclose(a.z[l + 1], b.z[l + 1])


# Coordinates


def test_whitening_is_a_change_of_coordinates_and_its_ratio_that_of_two_normal_laws(g, u):
    close(g.residuals(g.whitened(u)), u)
    close(g.whitened(g.residuals(u)), u)
    ratio = g.whitening_ratio(u)
    assert ratio.shape == (N, g.L)
    if g.whitening is None:
        assert g.whitening_digest is None and not ratio.any() and torch.equal(g.residuals(u), u)
    else:
        assert g.whitening_digest == g.whitening.digest
        # log N(w; 0, I) - log N(u; 0, I) - log |du / dw|
        expected = 0.5 * (g.residuals(u).square() - u.square()).sum(1) - g.whitening.log_scale.sum()
        torch.testing.assert_close(ratio.sum(1), expected, rtol=1e-3, atol=1e-3)


# Pixels


def test_images_are_the_likelihoods_means(g, u):
    images = g.images(u)
    assert images.shape == (N, *g.image_shape) and images.min() >= 0 and images.max() <= 1
    walk = g.walk(u)
    assert torch.equal(images, g.likelihood.mean(g.decode(walk)))
    assert g.decode(walk).shape == (N, g.likelihood.parameters(g.image_shape[0]), *g.image_shape[1:])
    close(g.images(u[1:2]), images[1:2])  # an image is its own, whatever the batch


def test_log_px_counts_the_visible_pixels(g, u, x):
    walk = g.walk(u)
    log_px = g.log_px(walk, x)
    assert log_px.shape == (N,) and log_px.isfinite().all()
    seen = torch.rand(N, 1, *g.image_shape[1:]) < 0.5
    torch.testing.assert_close(g.log_px(walk, x, seen) + g.log_px(walk, x, ~seen), log_px, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(g.log_px(walk, x, torch.ones_like(seen)), log_px)
    assert torch.equal(g.bits_per_dim(log_px), g.likelihood.bits_per_dim(log_px, prod(g.image_shape)))


@pytest.mark.parametrize("g", [name for name in MAKE if "tower" in name], indirect=True)
def test_what_is_encoded_is_a_draw_of_the_posterior(g, x):
    assert g.has_encoder
    noise = torch.randn(N, g.D)
    posterior = g.posterior(x, noise)
    assert posterior.kl.shape == posterior.log_ratio.shape == (N, g.L)
    u = g.encode(x, noise)
    close(u, g.latents(posterior.walk))
    close(g.T(u), g.join(posterior.walk.z))
    assert not torch.equal(g.encode(x), g.encode(x))


@pytest.mark.parametrize("g", [name for name in MAKE if "one layer" in name], indirect=True)
def test_without_an_encoder_there_is_no_posterior(g):
    assert not g.has_encoder and not hasattr(g, "encode") and not hasattr(g, "posterior")


# As a module


def test_a_state_dict_makes_a_twin():
    for make in (lambda: Tower(recipe.Generator(**SMALL), (1, 8, 8)).eval(), MAKE["one layer"]):
        one, other = make(), make()
        u = torch.randn(N, one.D)
        assert not torch.equal(one.images(u), other.images(u))
        other.load_state_dict(one.state_dict())
        assert torch.equal(one.images(u), other.images(u))


def test_the_device_is_that_of_the_parameters(g):
    assert g.device == next(g.parameters()).device
