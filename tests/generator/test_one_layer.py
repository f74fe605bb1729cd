"""The generator of one layer: T the identity, no encoder, a network of transposed convolutions to any size of image."""

import pytest
import torch

from hebmtool import recipe
from hebmtool.generator import OneLayer

FLOW = recipe.Flow(latent=5, width=4, sigma=0.2)


def test_T_is_the_identity():
    g = OneLayer(FLOW, (1, 8, 8))
    u = torch.randn(3, 5)
    assert (g.L, g.D, g.latent_shapes, g.state_channels) == (1, 5, [(5, 1, 1)], [1])
    assert torch.equal(g.T(u), u) and torch.equal(g.T_inverse(u), u)


def test_a_walk_is_that_of_a_standard_normal_layer():
    g = OneLayer(FLOW, (1, 8, 8))
    u = torch.randn(3, 5)
    walk = g.walk(u)
    assert len(walk.z) == 1 and torch.equal(g.join(walk.z), u) and torch.equal(g.join(walk.u), u)
    assert not walk.mu[0].any() and (walk.sigma[0] == 1).all() and not walk.h[0].any()


@pytest.mark.parametrize("visible", [False, True])
def test_log_px_is_the_squared_error_of_what_is_seen(visible):
    g = OneLayer(FLOW, (3, 8, 8))
    u, x = torch.randn(3, 5), torch.rand(3, 3, 8, 8)
    seen = torch.rand(3, 1, 8, 8) < 0.5 if visible else None
    error = (2 * x - 1 - g(u)).square() * (1 if seen is None else seen)
    torch.testing.assert_close(g.log_px(g.walk(u), x, seen), -error.sum((1, 2, 3)) / (2 * 0.2**2))


def test_images_are_in_the_unit_interval():
    g = OneLayer(FLOW, (3, 8, 8))
    u = 10 * torch.randn(3, 5)
    assert torch.equal(g.images(u), (g(u) + 1) / 2)
    assert g.images(u).min() >= 0 and g.images(u).max() <= 1


@pytest.mark.parametrize(
    ("shape", "constant", "layers"),
    [
        ((1, 8, 8), (4, 4, 4), 1),
        ((1, 4, 4), (4, 2, 2), 1),
        ((3, 32, 32), (16, 4, 4), 3),
        ((1, 28, 28), (8, 7, 7), 2),
        ((3, 9, 30), (4, 5, 15), 1),
        ((3, 64, 64), (32, 4, 4), 4),
    ],
)
def test_images_of_any_size(shape, constant, layers):
    g = OneLayer(FLOW, shape)
    assert (tuple(g.constant.shape), len(g.ups)) == (constant, layers)
    assert g.images(torch.randn(2, 5)).shape == (2, *shape)


@pytest.mark.parametrize(
    ("keys", "shape", "constant", "channels"),
    [
        ({"width": 128}, (3, 32, 32), (512, 4, 4), [256, 128, 3]),  # SVHN, as published
        ({"width": 512, "first_map": 8, "head": "conv"}, (3, 32, 32), (1024, 8, 8), [512, 256]),  # CIFAR-10
        ({"width": 128}, (3, 64, 64), (1024, 4, 4), [512, 256, 128, 3]),  # CelebA
        ({"width": 128, "even": True, "head": "conv"}, (1, 28, 28), (128, 7, 7), [128, 128]),  # MNIST, of a latent EBM
    ],
)
def test_the_published_widths(keys, shape, constant, channels):
    with torch.device("meta"):
        g = OneLayer(recipe.Flow(**keys), shape)
        assert tuple(g.constant.shape) == constant and [up.out_channels for up in g.ups] == channels
        assert (g.head is None) == ("head" not in keys)
        assert g.images(torch.empty(2, 100)).shape == (2, *shape)


def test_every_parameter_receives_a_gradient():
    g = OneLayer(FLOW.model_copy(update={"head": "conv"}), (3, 9, 16))
    g.log_px(g.walk(torch.randn(4, 5)), torch.rand(4, 3, 9, 16)).mean().backward()
    assert [key for key, p in g.named_parameters() if p.grad is None or not p.grad.any()] == []
