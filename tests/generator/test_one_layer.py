"""The generator of one layer: its network, and T as the identity."""

import pytest
import torch

from hebmtool import recipe
from hebmtool.generator import OneLayer


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 50, 34), (1, 4, 4)])
def test_network_shapes(shape):
    net = OneLayer(recipe.Flow(latent=3, width=2), shape)
    images = net.images(torch.randn(2, 3))
    assert images.shape == (2, *shape) and images.min() >= 0 and images.max() <= 1
    first = net.constant.shape
    assert first[0] == 2 * 2 ** (len(net.ups) - 1) and min(first[1:]) >= min(4, min(shape[1:]) // 2)


def test_latents_are_their_own_residuals():
    net, z = OneLayer(recipe.Flow(latent=3, width=2), (1, 8, 8)), torch.randn(4, 3)
    assert (net.L, net.D, net.has_encoder) == (1, 3, False)
    walk = net.walk(z)
    assert torch.equal(net.T(z), z) and torch.equal(net.T_inverse(z), z) and torch.equal(net.latents(walk), z)
    assert torch.equal(net.decode(walk), net(z))


def test_pixels_are_normal_around_the_network():
    net, z, x = (
        OneLayer(recipe.Flow(latent=3, width=2, sigma=0.4), (1, 8, 8)),
        torch.randn(4, 3),
        torch.rand(4, 1, 8, 8),
    )
    exact = torch.distributions.Normal(net(z), 0.4).log_prob(2 * x - 1).flatten(1).sum(1)
    log_px = net.log_px(net.walk(z), x)
    # Up to one constant.
    assert torch.allclose(log_px - log_px[0], exact - exact[0], atol=1e-3)
