"""The fast path computes what the plain one does (chains, losses, gradients; bf16 within its rounding); --fast."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from hebmtool import recipe
from hebmtool.chains import CHAINS
from hebmtool.errors import HebmError, UsageError
from hebmtool.generator import Tower, layers
from hebmtool.generator.layers import Cell, Conv, FixedConvolution, transposed
from hebmtool.noise import Noise
from hebmtool.prior import make_prior, spectral

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from plain import Plain

ENERGIES = {
    "published": {"reads": "z", "spectral_norm": True},
    "state": {"reads": "z+state", "readout": "strided", "spectral_norm": False},
}
STEPS = 3


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def pair(chain="preconditioned", energy="state", cells="res_bnswish", precision="float32", **keys):
    """(prior on a frozen tiny generator, the same plainly), every weight and statistic random."""
    torch.manual_seed(0)
    size = {"scales": 2, "layers_per_scale": 2, "latent_channels": 2, "encoder_channels": 8, "decoder_channels": 8}
    blocks = {"preprocess_cells": 1, "postprocess_cells": 1, "decoder_cells": 2, "likelihood": "bernoulli"}
    generator = Tower(recipe.Generator(**size | blocks, cells=cells), (1, 16, 16)).eval()
    for module in generator.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    config = recipe.Prior(chain=chain, eta=1e-2, **{"steps": STEPS} | keys)
    config.energy = recipe.Energy(width=6, blocks=1, **ENERGIES[energy])
    prior = make_prior(generator.frozen(precision), config)
    for name, p in prior.named_parameters():
        if "head" in name:
            nn.init.normal_(p, std=0.3)
    prior.energy.calibrate(generator.walk(torch.randn(32, generator.D)))
    return prior, Plain(generator, prior)


def images(n: int) -> torch.Tensor:
    return torch.rand(n, 1, 16, 16).round()


def noise(shape, seed=1):
    draws = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(shape, generator=draws)


# Equality


@pytest.mark.parametrize("cells", ["res_bnswish", "res_mbconv"])
@pytest.mark.parametrize("energy", ENERGIES)
@pytest.mark.parametrize("chain", ["langevin", "preconditioned", "underdamped"])  # those that the comparator has
def test_chains_equal_the_plain_ones(chain, energy, cells):
    prior, plain = pair(chain, energy, cells)
    u, t = torch.randn(3, prior.generator.D), torch.tensor([0, 1, 2])
    found = prior.negatives(u, t, noise(u.shape))
    expected = plain.negatives(u, t, noise(u.shape), STEPS)
    assert relative(found, expected) < STEPS * 1e-5
    with prior.energy.fixed():
        _, slope = prior.slope(t)(u)
    assert slope.norm() > 0.1 and relative(slope, plain.slope(lambda u: plain.F(u, t), u)) < 1e-5
    assert not torch.allclose(found, prior.negatives(u, t, noise(u.shape), 0))


def test_images_equal_the_plain_ones():
    prior, plain = pair(cells="res_mbconv")
    u = torch.randn(3, prior.generator.D)
    assert (prior.generator.images(u) - plain.images(u)).abs().max() < 1e-5


@pytest.mark.parametrize("objective", ["recovery", "nce"])
def test_losses_and_their_gradients_equal_the_plain_ones(objective):
    prior, plain = pair("preconditioned", objective=objective)
    u_0, x = torch.randn(8, prior.generator.D), images(8)
    torch.manual_seed(1)
    prior.energy.advance = lambda: None  # the power iteration, which the plain loss leaves alone
    loss, _ = prior.loss(u_0, x)
    torch.manual_seed(1)
    expected = plain.loss(u_0)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-5)
    loss.backward()
    expected.backward()
    theirs = dict(plain.energy.named_parameters())
    for name, p in prior.energy.named_parameters():
        if theirs[name].grad.norm() > 1e-6:
            assert relative(p.grad, theirs[name].grad) < 1e-3, name


def test_bf16_is_near_and_keeps_latents_in_float32():
    prior, plain = pair("underdamped", precision="bf16")
    u, t = torch.randn(16, prior.generator.D), torch.zeros(16, dtype=torch.long)
    walk = prior.generator.walk(u)
    assert {m.dtype for m in (*walk.z, *walk.mu, *walk.sigma)} == {torch.float32}
    assert walk.h[-1].dtype == torch.bfloat16 and prior.generator.images(u).dtype == torch.float32
    assert relative(prior.generator.T(u), torch.cat([z.flatten(1) for z in plain.decode(u)[0]], dim=1)) < 0.02
    with prior.energy.fixed():
        _, slope = prior.slope(t)(u)
    assert slope.dtype == torch.float32
    assert relative(slope, plain.slope(lambda u: plain.F(u, t), u)) < 0.05
    found, expected = prior.negatives(u, t, noise(u.shape)), plain.negatives(u, t, noise(u.shape), STEPS)
    assert found.dtype == torch.float32 and relative(found, expected) < 0.02


@pytest.mark.parametrize("objective", ["recovery", "nce", "score-matching"])
def test_learning_in_bf16_gives_nearly_the_same_gradient(objective):
    slopes = []
    for precision in ("float32", "bf16"):
        prior, _ = pair(precision=precision, objective=objective)
        torch.manual_seed(1)
        u_0 = torch.randn(32, prior.generator.D)
        prior.loss(u_0, images(32))[0].backward()
        assert all(p.dtype == torch.float32 and p.grad.dtype == torch.float32 for p in prior.parameters())
        slopes.append(torch.cat([p.grad.flatten() for p in prior.parameters()]))
    assert torch.cosine_similarity(*slopes, dim=0) > 0.99


def test_noise_contrast_keeps_no_graph_of_the_walk(monkeypatch):
    prior, _ = pair(objective="nce")
    met, forward = [], prior.energy.forward
    monkeypatch.setattr(prior.energy, "forward", lambda walk, t: (met.append(walk), forward(walk, t))[1])
    prior.loss(torch.randn(4, prior.generator.D), images(4))[0].backward()
    assert len(met) == 1 and not any(m.requires_grad for m in (*met[0].z, *met[0].h))


# Frozen convolutions


@pytest.mark.parametrize(("c_in", "c_out", "kernel", "groups"), [(3, 4, 3, 1), (4, 4, 5, 4), (4, 6, 1, 2)])
def test_a_fixed_convolution_is_torchs_and_so_are_its_derivatives(c_in, c_out, kernel, groups):
    conv = nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, groups=groups).double().requires_grad_(False)
    back = transposed(conv.weight, groups)
    x = torch.randn(2, c_in, 4, 5, dtype=torch.double, requires_grad=True)

    def fixed(x):
        return FixedConvolution.apply(x, conv.weight, conv.bias, back, groups)

    assert torch.allclose(fixed(x), conv(x))
    g = torch.randn_like(conv(x))
    expected = torch.autograd.grad(conv(x), x, g)[0]
    assert torch.allclose(torch.autograd.grad(fixed(x), x, g)[0], expected)
    assert torch.autograd.gradgradcheck(fixed, x, atol=1e-6)


@pytest.mark.parametrize("kind", ["normal", "down", "up"])
def test_a_folded_cell_keeps_a_batchnorm_only_before_its_residual_branch(kind):
    for ops, left in ((["mconv_e3k5g0"], 0), (["res_bnswish"] * 2, 1), (["mconv_e3k5g0", "res_bnswish"], 0)):
        cell = Cell(kind, ops, 8, 8, True).eval().requires_grad_(False)
        for bn in (m for m in cell.modules() if isinstance(m, nn.BatchNorm2d)):
            nn.init.normal_(bn.running_mean)
            nn.init.uniform_(bn.running_var, 0.5, 2)
            nn.init.normal_(bn.bias)
        x = torch.randn(2, 8, 6, 6)
        before = cell(x)
        for conv in (m for m in cell.modules() if isinstance(m, Conv)):
            conv.fold()
        cell.fold()
        assert torch.allclose(cell(x), before, atol=1e-5)
        assert sum(isinstance(m, nn.BatchNorm2d) for m in cell.modules()) == left


def test_freezing_twice_is_refused(generator):
    with pytest.raises(ValueError, match="frozen already"):
        generator.frozen()


def test_the_gradient_keeps_the_layout_of_the_states(monkeypatch):
    """Maps in the other layout would be brought back at every convolution."""
    prior, _ = pair(cells="res_mbconv")
    seen = []
    forward = FixedConvolution.forward

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            return forward(ctx, *inputs)

        @staticmethod
        def backward(ctx, slope):
            seen.append(slope.shape[1] == 1 or slope.stride(1) == 1)
            return FixedConvolution.backward(ctx, slope)

    for module in (spectral, layers):
        monkeypatch.setattr(module, "FixedConvolution", Watched)
    with prior.energy.fixed():
        prior.slope(torch.zeros(2, dtype=torch.long))(torch.randn(2, prior.generator.D))
    assert len(seen) > 20 and all(seen)


# Fewer steps


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize(
    ("steps", "each"), [(None, [STEPS] * 3), (2, [2] * 3), ([4, 1, 0], [4, 1, 0]), ([0] * 3, [0] * 3)]
)
def test_a_trajectory_takes_as_many_gradients_as_it_says(chain, steps, each):
    prior, _ = pair(chain)
    prior.stepping(0.2)  # given, for adapting an exact chain's takes thousands of gradients more
    levels = []
    *_, u = prior.trajectory(Noise(0, range(2), prior.generator.D), steps, watch=lambda t, *_: levels.append(t))
    assert u.isfinite().all()
    assert [levels.count(t) for t in range(3)] == each and prior.gradients(steps) == len(levels)


def test_fast_takes_the_steps_of_the_level_with_least_noise_or_those_of_the_recipe():
    prior, _ = pair("underdamped")
    assert prior.fast_steps() == [STEPS, 0, 0]
    prior, _ = pair("underdamped", fast=[5, 1, 0])
    assert prior.fast_steps() == [5, 1, 0]
    with pytest.raises(UsageError, match="the langevin chain"):
        pair("langevin")[0].fast_steps()
    joint, gaussian = (make_prior(prior.generator, recipe.Prior(kind=kind, steps=7)) for kind in ("ebm", "gaussian"))
    assert joint.gradients(joint.fast_steps()) == 7
    with pytest.raises(UsageError, match="the gaussian prior"):
        gaussian.fast_steps()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("[10, 0]", "one number of steps for each of the 3 levels"),
        ("10", "prior.fast is 10, but must be null or a list of whole numbers"),
        ("[a, 0, 0]", "prior.fast"),
        ("[-1, 0, 0]", "prior.fast"),
    ],
)
def test_a_wrong_list_of_steps_is_named(value, said):
    with pytest.raises(HebmError) as caught:
        recipe.load("digits", [f"prior.fast={value}"])
    assert said in str(caught.value)


def test_fast_and_steps_exclude_each_other(hebm, tmp_path):
    for command in (["sample"], ["hier-sample", "--all"], ["controllable", "--class", "3"]):
        status, out, err = hebm(*command, "--fast", "--steps", 3, "--runs", tmp_path)
        assert status == 2 and not out and "--fast" in err


# The benchmark


def test_the_benchmarks_variants_compute_the_same():
    from langevin import Variant  # benchmarks/langevin.py

    changes = ["generator.layers_per_scale=1", "prior.energy.width=8"]
    variants = {v: Variant("digits", v, "cpu", 1, 4, changes) for v in ("plain", "float32", "bf16")}
    slope, losses = variants["plain"].result()
    for name, bound in (("float32", 1e-5), ("bf16", 0.05)):
        found, found_losses = variants[name].result()
        assert relative(torch.tensor(found), torch.tensor(slope)) < bound
        for objective, loss in losses.items():
            assert found_losses[objective] == pytest.approx(loss, rel=bound * 10, abs=bound * 10)
    assert variants["bf16"].flop() > 1e6 and variants["bf16"].run("step") > 0 and variants["float32"].run("draw") > 0
