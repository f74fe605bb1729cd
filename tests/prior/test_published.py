"""The published energy network: its size, its norms, and a forward pass by hand."""

import math

import pytest
import torch

from hebmtool import recipe
from hebmtool.errors import UsageError
from hebmtool.prior import make_prior
from hebmtool.prior.energy import Energy
from hebmtool.prior.published import PublishedLayerEnergy
from hebmtool.prior.spectral import spectral

SMALL = {"form": "published", "width": 6, "blocks": 1}


def make(channels=3, size=(4, 4), outputs=1, **keys) -> PublishedLayerEnergy:
    return PublishedLayerEnergy(channels, 0, size, recipe.Energy(**SMALL | keys), outputs)


def norms(module) -> list[float]:
    """The largest singular value of every layer's weight, as it is used."""
    return [torch.linalg.matrix_norm(layer.weight().flatten(1), 2).item() for layer in spectral(module)]


def test_it_has_the_published_number_of_parameters():
    with torch.device("meta"):
        network = make(20, (16, 16), width=128, blocks=4)
    assert sum(p.numel() for p in network.parameters()) == 2_116_624
    assert not any("bias" in name for name, _ in network.named_parameters())


def test_every_norm_is_1_from_the_start_and_once_settled_again():
    network = make(8, (8, 8), width=32, blocks=2)
    assert len(list(spectral(network))) == len(list(network.parameters())) == 2 * (1 + 2 + 2) + 2 + 3
    assert norms(network) == pytest.approx([1] * 15, abs=0.01)
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(torch.randn_like(p))
    assert max(norms(network)) > 1.5
    network.settle()
    assert norms(network) == pytest.approx([1] * 15, abs=0.01)


@pytest.mark.parametrize("activation", ["silu", "leaky-relu"])
def test_a_forward_pass_by_hand(activation):
    """Every kernel takes one pixel as it is, and all that the head reads is the pixel at the corner."""
    network = make(1, (4, 4), width=1, activation=activation)
    with torch.no_grad():
        for layer in spectral(network):
            w = layer.conv.weight.zero_()
            # The centre of a 3x3 kernel, what lands on the even pixels for the 4x4 one, one entry of a matrix; of the
            # embedding of level 0 (64 zeros, 64 ones) a one.  Any scale will do: it is divided out.
            w[0, -1 if w.shape[1] == network.TIME else 0, int(w.shape[2] > 1), int(w.shape[3] > 1)] = 3.0
    network.settle()
    z = torch.full((1, 1, 4, 4), 50.0)
    z[0, 0, 0, 0] = -3.0

    def act(x: float) -> float:
        return x / (1 + math.exp(-x)) if activation == "silu" else max(x, 0.2 * x)

    x = -3.0 + 1
    x = x + act(act(x) + 1)
    x = act(x) + 1
    by_hand = act(act(x) + 1)
    assert network(z, None, network.embed(torch.tensor([0]))).item() == pytest.approx(by_hand, abs=1e-5)
    if activation == "leaky-relu":
        assert by_hand == pytest.approx(1.72)
    # cos(1e4 / 1e4^(63/64)) is no 1.
    later = network(z, None, network.embed(torch.tensor([10_000]))).item()
    assert later != pytest.approx(by_hand, abs=1e-3)


def test_levels_are_told_by_frequencies_from_1_to_1e4():
    level = PublishedLayerEnergy.embed(torch.tensor([0, 3]))
    assert level.shape == (2, 128) and torch.equal(level[0], torch.cat([torch.zeros(64), torch.ones(64)]))
    assert level[1, 0].item() == pytest.approx(math.sin(3))
    assert level[1, 63].item() == pytest.approx(math.sin(3 * 1e4 ** (-63 / 64)), abs=1e-7)


@pytest.mark.parametrize("size, last", [((2, 2), 4), ((3, 3), 1), ((7, 7), 1), ((8, 8), 4), ((8, 4), 8)])
def test_maps_are_halved_until_a_side_is_2(size, last):
    network = make(3, size, outputs=5)
    assert network.hidden.conv.in_channels == 6 * last
    out = network(torch.randn(4, 3, *size), None, network.embed(torch.arange(4)))
    assert out.shape == (4, 5)
    slopes = torch.autograd.grad(out.square().sum(), list(network.parameters()))
    assert all(slope.any() for slope in slopes)


def test_within_an_energy(generator):
    energy, u, t = Energy(generator, recipe.Energy(**SMALL)), torch.randn(3, generator.D), torch.tensor([0, 1, 2])
    F = energy(generator.walk(u), t)
    assert F.shape == (3, generator.L, 1) and len(energy(generator.walk(u[:1].expand(3, -1)), t).unique()) > 3
    with energy.fixed():
        assert torch.allclose(energy(generator.walk(u), t), F, atol=1e-6)
    energy.advance()
    assert norms(energy) == pytest.approx([1] * len(norms(energy)), abs=0.01)


@pytest.mark.parametrize("objective", ["recovery", "cnce", "score-matching"])
def test_it_is_learned_by_every_objective(make_generator, objective):
    generator = make_generator(layers_per_scale=1)
    keys = {"chain": "langevin", "steps": 2, "eta": 2e-4, "objective": objective}
    prior = make_prior(generator, recipe.Prior(**keys, energy=recipe.Energy(**SMALL)))
    x = torch.rand(6, *generator.image_shape)
    loss, _ = prior.loss(torch.randn(6, generator.D), x)
    loss.backward()
    assert all(p.grad.any() for p in prior.parameters())


def test_it_reads_z_alone():
    with pytest.raises(UsageError, match="published, which reads z alone, but prior.energy.reads is z.state; set it"):
        recipe.from_dict({"prior": {"energy": {"form": "published", "reads": "z+state"}}})
