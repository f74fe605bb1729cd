"""The energy: which latents each term sees, spectral norms, constant weights during chains, gradients."""

import dataclasses
import re

import pytest
import torch
from toys import ENERGY_KINDS

from hebmtool import recipe
from hebmtool.errors import UsageError
from hebmtool.generator import TopDown
from hebmtool.prior import make_prior
from hebmtool.prior.energy import Energy, LayerEnergy
from hebmtool.prior.spectral import SpectralConv
from hebmtool.train.loop import Ema

READS = ["z", "z+state"]
READOUTS = ["sum", "strided"]


def make_energy(generator, reads="z", trained=True, **keys) -> Energy:
    """A small energy; `trained`: its heads are not zero, and its power iterations have settled."""
    energy = Energy(generator, recipe.Energy(reads=reads, width=6, blocks=1, **keys))
    energy.calibrate(generator.walk(torch.randn(64, generator.D)))
    if trained:
        wake(energy, 1.0)
        for _ in range(50):
            energy.advance()
    return energy


def wake(module: torch.nn.Module, std: float) -> None:
    """Give what starts at zero values of size `std`."""
    for p in module.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=std)


def convolutions(module) -> list[SpectralConv]:
    return [m for m in module.modules() if isinstance(m, SpectralConv)]


@pytest.fixture
def deep(make_generator):
    """Four layers, two at each of two scales."""
    return make_generator(layers_per_scale=2)


# What it reads


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("reads", READS)
def test_energy_starts_at_zero_with_sane_weights(generator, reads, readout):
    energy = make_energy(generator, reads, trained=False, readout=readout)
    u = 3 * torch.randn(5, generator.D)
    assert (energy(generator.walk(u), torch.tensor([0, 1, 2, 0, 5])) == 0).all()
    # The first estimate of a norm, though rough, blows no weight up.
    assert max(conv.weight().flatten(1).norm().item() for conv in convolutions(energy)) < 100


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("reads", READS)
def test_one_term_per_layer_and_the_cut_is_its_prefix(deep, reads, readout):
    energy, u, t = make_energy(deep, reads, readout=readout), torch.randn(5, deep.D), torch.arange(5) % 3
    whole = energy(deep.walk(u), t)
    assert whole.shape == (5, 4, 1) and whole.std(0).min() > 0
    for k in range(1, 5):
        assert torch.allclose(energy(deep.walk(u, k), t), whole[:, :k], atol=1e-6)
        top = u[:, : deep.slices[k - 1].stop]
        assert torch.allclose(energy(deep.walk(top, k), t), whole[:, :k], atol=1e-6)


def test_each_term_is_its_network_on_its_own_map(deep):
    energy, u, t = make_energy(deep), torch.randn(5, deep.D), torch.tensor([0, 0, 1, 2, 2])
    z = deep.split(deep.T(u))
    alone = torch.stack([f(z_i, None, LayerEnergy.embed(t)) for f, z_i in zip(energy.layers, z, strict=True)], dim=1)
    assert torch.allclose(energy(deep.walk(u), t), alone, atol=1e-6)


@pytest.mark.parametrize("kind", ENERGY_KINDS)
@pytest.mark.parametrize("objective", ["cnce", "telescope"])
def test_layers_that_have_no_term_have_zero(deep, kind, objective):
    """Layers 1 and 3, numbered from the bottom, of four: F is theirs alone, whichever layers a walk has reached."""
    if (kind, objective) == ("ebm", "telescope"):
        pytest.skip("a joint EBM has no levels to telescope")
    config = recipe.Prior(kind=kind, objective=objective)
    config.energy = recipe.Energy(reads="z+state", width=6, blocks=1, layers=[3, 1, 3])
    prior = make_prior(deep, config)
    wake(prior, 1.0)
    u, t = torch.randn(3, deep.D), torch.zeros(3, dtype=torch.long)
    f = prior.energies(u)
    assert f.shape == (3, 4) and (f[:, [0, 2]] == 0).all() and (f[:, [1, 3]] != 0).all()
    if prior.T == 1:
        assert torch.equal(f[:, [1, 3]], prior.energy(deep.walk(u), t)[..., 0])
    assert torch.allclose(prior.F(u), f.sum(1))
    for layers in (1, 2, 3):
        cut = prior.energies(u, layers=layers)
        assert cut.shape == (3, layers) and torch.allclose(cut, f[:, :layers])
        assert prior.log_ratio(u, layers=layers).shape == (3, layers)
    F, slope = prior.slope(t)(u)
    assert F.isfinite().all() and slope.any(0).all(), "what layer 1 reads depends on all of u"


def test_a_layer_that_is_not_there_has_no_term(deep):
    config = recipe.Prior(energy=recipe.Energy(layers=[1, 7]))
    with pytest.raises(UsageError, match=re.escape("prior.energy.layers names layer 7, but the generator has 1 to 4")):
        make_prior(deep, config)


def test_reading_z_depends_on_no_other_layer(deep):
    energy = make_energy(deep)
    walk = deep.walk(torch.randn(3, deep.D))
    z = [z_i.detach().requires_grad_(True) for z_i in walk.z]
    terms = energy(dataclasses.replace(walk, z=z), torch.zeros(3, dtype=torch.long))
    for i in range(deep.L):
        slopes = torch.autograd.grad(terms[:, i].sum(), z, retain_graph=True, allow_unused=True)
        for j, slope in enumerate(slopes):
            assert (slope is None or not slope.any()) if j != i else slope.any()


def test_reading_the_state_depends_on_the_layers_above_and_never_on_those_below(deep):
    energy, u = make_energy(deep, "z+state"), torch.randn(3, deep.D, requires_grad=True)
    terms = energy(deep.walk(u), torch.zeros(3, dtype=torch.long))
    for i in range(deep.L):
        slopes = deep.split(torch.autograd.grad(terms[:, i].sum(), u, retain_graph=True)[0])
        for j, slope in enumerate(slopes):
            assert slope.any() if j <= i else not slope.any()
    # The state itself is read, not only z_i and u_i.
    walk = deep.walk(torch.randn(3, deep.D))
    h = [s.detach().requires_grad_(True) for s in walk.h]
    terms = energy(TopDown(z=walk.z, u=walk.u, h=h), torch.zeros(3, dtype=torch.long))
    slopes = torch.autograd.grad(terms.sum(), h, allow_unused=True)
    assert slopes[0] is None and all(slope.any() for slope in slopes[1:])


def test_every_level_has_its_own_energy(generator):
    energy, u = make_energy(generator), torch.randn(1, generator.D)
    values = energy(generator.walk(u.expand(6, -1)), torch.arange(6)).sum(1)
    assert len(values.unique()) == 6
    assert torch.allclose(values[3], energy(generator.walk(u), torch.tensor([3])).sum(), atol=1e-6)


def test_calibration_standardises_the_states(deep):
    energy = make_energy(deep, "z+state", trained=False)
    walk = deep.walk(torch.randn(256, deep.D))
    energy.calibrate(walk)
    for l in range(1, deep.L):
        mean, scale = getattr(energy, f"state_mean_{l}"), getattr(energy, f"state_scale_{l}")
        h = (walk.h[l] - mean) / scale
        assert h.mean((0, 2, 3)).abs().max() < 1e-3
        assert torch.allclose(h.std((0, 2, 3)), torch.ones(h.shape[1]), atol=1e-3)


# Spectral normalisation


def test_advancing_finds_the_largest_singular_value(generator):
    energy = make_energy(generator, "z+state", trained=False)
    for _ in range(300):
        energy.advance()
    for conv in convolutions(energy):
        assert torch.linalg.svdvals(conv.weight().flatten(1))[0].item() == pytest.approx(1, abs=2e-3)


def test_without_normalisation_the_weights_are_plain(generator):
    energy = make_energy(generator, spectral_norm=False)
    for conv in convolutions(energy):
        assert torch.equal(conv.weight(), conv.conv.weight)


def test_a_forward_pass_changes_no_buffer(generator):
    energy = make_energy(generator, "z+state").train()
    before = {name: buffer.clone() for name, buffer in energy.named_buffers()}
    energy(generator.walk(torch.randn(4, generator.D)), torch.zeros(4)).sum().backward()
    assert all(torch.equal(buffer, before[name]) for name, buffer in energy.named_buffers())
    energy.advance()
    assert not all(torch.equal(buffer, before[name]) for name, buffer in energy.named_buffers())


def test_fixed_gives_the_same_values_and_slopes_but_no_gradient_to_parameters(generator):
    energy, t = make_energy(generator, "z+state"), torch.tensor([0, 1, 2])
    u = torch.randn(3, generator.D, requires_grad=True)

    def slope():
        F = energy(generator.walk(u), t)
        return F, torch.autograd.grad(F.sum(), u)[0]

    expected, expected_slope = slope()
    with energy.fixed():
        found, found_slope = slope()
        assert not any(p.requires_grad for p in energy.parameters())
        assert not energy(generator.walk(u.detach()), t).requires_grad
    assert torch.allclose(found, expected, atol=1e-6) and torch.allclose(found_slope, expected_slope, atol=1e-6)


@pytest.mark.parametrize("failing", [False, True])
def test_fixed_restores_every_flag_even_after_an_exception(generator, failing):
    energy = make_energy(generator)
    odd = energy.layers[0].head.bias.requires_grad_(False)
    try:
        with energy.fixed():
            if failing:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert all(p.requires_grad for p in energy.parameters() if p is not odd) and not odd.requires_grad
    conv = convolutions(energy)[0]
    walk, t = generator.walk(torch.randn(2, generator.D)), torch.zeros(2)
    before = energy(walk, t).detach()
    with torch.no_grad():
        conv.conv.weight.mul_(torch.rand_like(conv.conv.weight))
    assert not torch.allclose(energy(walk, t), before)  # no weights of the block are left


# Averaged weights


def test_averaged_weights_are_normalised_too(generator):
    """The power iteration's vectors are directions: their average is not one, and would let the weights grow."""
    torch.manual_seed(0)
    energy = Energy(generator, recipe.Energy(width=8, spectral_norm=True))
    ema = Ema(energy, 0.95)
    for step in range(100):
        with torch.no_grad():
            for parameter in energy.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        energy.advance()
        ema.update(energy, step)
    energy.load_state_dict(ema.tensors)
    energy.settle()
    for module in energy.modules():
        if isinstance(module, SpectralConv):
            assert torch.linalg.svdvals(module.weight().detach().flatten(1))[0].item() == pytest.approx(1, abs=0.05)
