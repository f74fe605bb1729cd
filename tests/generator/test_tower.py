"""NVAE's tower: its layout, T over many layers, its posterior's KL, freezing, and that every weight is used."""

import math

import pytest
import torch
from torch import nn

from hebmtool import recipe
from hebmtool.errors import UsageError
from hebmtool.generator.batchnorm import readjust_batchnorm
from hebmtool.generator.layers import SqueezeExcitation
from hebmtool.generator.likelihood import log_normal
from hebmtool.generator.tower import Tower, layers_at_each_scale


def make(shape=(1, 8, 8), *, gain: float = 1.0, bits: int = 8, **keys) -> Tower:
    """A tiny generator in evaluation mode whose BatchNorm statistics are not the initial ones.

    gain: factor on every weight's size.
    """
    small = {"scales": 1, "layers_per_scale": 2, "latent_channels": 2, "encoder_channels": 4, "decoder_channels": 4}
    small |= {"preprocess_cells": 1, "postprocess_cells": 1, "likelihood": "bernoulli", "mixtures": 2}
    generator = Tower(recipe.Generator(**small | keys), shape, bits)
    with torch.no_grad():
        for module in generator.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.1)
            if isinstance(module, SqueezeExcitation):
                module.down.bias.fill_(1.0)  # of so few hidden units all may be off by chance
            if getattr(module, "g", None) is not None:
                module.g.add_(math.log(gain))
    return generator.eval()


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


# Layout


@pytest.mark.parametrize(
    ("keys", "counts"),
    [
        ({"scales": 1, "layers_per_scale": 30}, [30]),
        ({"scales": 3, "layers_per_scale": 4}, [4, 4, 4]),
        ({"scales": 3, "layers_per_scale": 20, "halve": True}, [5, 10, 20]),
        ({"scales": 5, "layers_per_scale": 16, "halve": True, "min_layers_per_scale": 4}, [4, 4, 4, 8, 16]),
    ],
)
def test_layers_at_each_scale(keys, counts):
    assert layers_at_each_scale(recipe.Generator(**keys)) == counts


@pytest.mark.parametrize(
    ("shape", "preprocess", "padded", "margins"),
    [
        ((1, 28, 28), 2, (32, 32), (2, 2)),
        ((1, 28, 28), 0, (32, 32), (2, 2)),
        ((3, 32, 32), 1, (32, 32), (0, 0)),
        ((1, 7, 9), 1, (8, 12), (0, 1)),
    ],
)
def test_padding_is_centred_and_cropped_back(shape, preprocess, padded, margins):
    generator = make(shape, scales=2, preprocess_blocks=preprocess, postprocess_blocks=preprocess)
    assert generator.padded_size == padded and generator.margins == margins
    x = torch.rand(2, *shape)
    seen = []
    generator.stem.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    posterior = generator.posterior(x)
    inside = (seen[0] + 1) / 2
    (top, left), (_, height, width) = margins, shape
    assert inside.shape[2:] == padded
    assert torch.allclose(inside[:, :, top : top + height, left : left + width], x, atol=1e-6)
    assert inside.sum().item() == pytest.approx(x.sum().item(), rel=1e-5)
    logits = generator.decode(posterior.walk)
    assert logits.shape == (2, *shape)

    walk = posterior.walk
    whole = generator.image_head(generator.postprocess(generator._descend(generator.L - 1, walk.h[-1], walk.z[-1])))
    assert torch.allclose(logits, whole[:, :, top : top + height, left : left + width])


# T


@pytest.mark.parametrize("gain", [1.0, 4.0])
def test_T_and_its_inverse_over_thirty_layers(gain):
    generator = make(layers_per_scale=30, gain=gain)
    u = torch.randn(4, generator.D)
    with torch.no_grad():
        walk = generator.walk(u)
        z = generator.join(walk.z)
        assert (generator.T_inverse(z) - u).abs().max() < 1e-4
        assert relative(generator.T(generator.T_inverse(z)), z) < 1e-4
    sigma = generator.join(walk.sigma)
    if gain > 1:
        assert sigma.max() / sigma.min() > 50, "sigma does not vary enough to test anything"


@pytest.mark.parametrize("scales", [1, 2])
def test_log_determinant_of_T_is_the_sum_of_log_sigma(scales):
    generator = make((1, 4, 4), scales=scales, layers_per_scale=2, gain=2.0).double()
    u = torch.randn(1, generator.D, dtype=torch.double)
    j = torch.autograd.functional.jacobian(lambda u: generator.T(u)[0], u)[:, 0]
    walk = generator.walk(u)
    sign, log_det = torch.linalg.slogdet(j)
    assert sign == 1
    # mu and sigma are float32 whatever the weights are.
    assert log_det.item() == pytest.approx(sum(s.double().log().sum().item() for s in walk.sigma), abs=1e-5)
    assert torch.equal(torch.triu(j, diagonal=1), torch.zeros_like(j))
    assert torch.allclose(torch.diagonal(j), generator.join(walk.sigma)[0].double(), rtol=1e-6)
    assert torch.tril(j, diagonal=-1).abs().max() > 1e-3, "layers do not depend on those above"


def test_top_prior_is_a_normal_of_scale_1_01():
    walk = make().walk(torch.zeros(1, make().D))
    assert torch.all(walk.mu[0] == 0) and torch.allclose(walk.sigma[0], torch.tensor(1.01))


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_a_walk_of_some_layers_is_the_prefix_of_the_whole_one(k):
    generator = make(scales=2, layers_per_scale=2)
    u = torch.randn(2, generator.D)
    whole = generator.walk(u)
    with torch.no_grad():  # what is below must not matter
        for part in [*generator.decoder[k:], generator.postprocess, generator.image_head]:
            for p in part.parameters():
                p.fill_(float("nan"))
    for given in (u, u[:, : generator.slices[k - 1].stop]):
        some = generator.walk(given, layers=k)
        for name in ("z", "u", "mu", "sigma", "h"):
            found, expected = getattr(some, name), getattr(whole, name)[:k]
            assert len(found) == k
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_walk_of_no_layers_is_empty():
    generator = make()
    assert generator.walk(torch.randn(2, generator.D), layers=0).z == []


# Posterior


@pytest.mark.parametrize("residual", [True, False])
def test_analytic_kl_is_the_mean_of_the_log_ratio(residual):
    """Flows that shift by nothing make `posterior` estimate the same KL from its draws."""
    keys = {"layers_per_scale": 3, "residual_posterior": residual, "gain": 2.0}
    analytic, sampled = make(**keys), make(**keys, flows=1)
    missing, _ = sampled.load_state_dict(analytic.state_dict(), strict=False)
    assert all(key.startswith("flows.") for key in missing)
    with torch.no_grad():
        for layer in sampled.flows:
            for flow in layer:
                flow.mu.v.zero_()
                flow.mu.bias.zero_()
        x = torch.rand(1, 1, 8, 8).expand(4000, -1, -1, -1)
        noise = torch.randn(4000, analytic.D)
        expected, found = analytic.posterior(x, noise), sampled.posterior(x, noise)
    assert torch.allclose(expected.walk.z[-1], found.walk.z[-1], atol=1e-5)
    assert expected.kl.min() >= 0
    error = (expected.kl - found.kl).mean(0) / ((expected.kl - found.kl).std(0) / 4000**0.5)
    assert error.abs().max() < 4.5
    assert (expected.kl - found.kl).abs().max() > 0.1, "the estimate is the closed form itself"


def test_analytic_kl_is_torchs():
    generator = make(gain=2.0)
    with torch.no_grad():
        x = torch.rand(2, 1, 8, 8)
        mean = generator.posterior(x, torch.zeros(2, generator.D))
        plus = generator.posterior(x, torch.ones(2, generator.D))
    mu, sigma = mean.walk.z[0], plus.walk.z[0] - mean.walk.z[0]
    prior = torch.distributions.Normal(mean.walk.mu[0], mean.walk.sigma[0])
    expected = torch.distributions.kl_divergence(torch.distributions.Normal(mu, sigma), prior)
    assert torch.allclose(mean.kl[:, 0], expected.flatten(1).sum(1), rtol=1e-4)


@pytest.mark.parametrize("flows", [1, 2])
def test_importance_weights_average_to_one_with_flows(flows):
    """E_q[p(z) / q(z)] = 1, which fails when the flows' volume or the density's argument is wrong."""
    generator = make((1, 4, 4), latent_channels=1, layers_per_scale=2, flows=flows)
    with torch.no_grad():
        for layer in generator.flows:
            for flow in layer:
                flow.mu.g.add_(1.0)
        x = torch.rand(1, 1, 4, 4).expand(20_000, -1, -1, -1)
        posterior = generator.posterior(x)
        ratio = (-posterior.kl.sum(1)).exp()
    assert ratio.std() > 0.05, "q is p: nothing is tested"
    assert ratio.mean().item() == pytest.approx(1, abs=5 * ratio.std().item() / 20_000**0.5)
    assert ratio.std().item() / 20_000**0.5 < 0.03


def test_posterior_noise_of_zeros_gives_the_means_and_draws_vary():
    generator = make(flows=1)
    x = torch.rand(2, 1, 8, 8)
    zeros = torch.zeros(2, generator.D)
    one, two = generator.encode(x, zeros), generator.encode(x, zeros)
    assert torch.equal(one, two)
    assert not torch.equal(generator.encode(x), generator.encode(x))


def test_encode_is_T_inverse_of_the_draw():
    generator = make(scales=2, flows=1, gain=2.0)
    with torch.no_grad():
        posterior = generator.posterior(torch.rand(2, 1, 8, 8))
        z = generator.join(posterior.walk.z)
        assert torch.allclose(generator.T_inverse(z), generator.join(posterior.walk.u), atol=1e-5)
        assert torch.allclose(generator.T(generator.join(posterior.walk.u)), z, atol=1e-4)


# Use


def test_frozen_equals_evaluation_mode_and_is_a_copy():
    generator = make(scales=2, flows=1, cells="res_mbconv", gain=2.0)
    frozen = generator.frozen()
    assert not frozen.training and not any(p.requires_grad for p in frozen.parameters())
    assert all(p.requires_grad for p in generator.parameters())
    x, noise = torch.rand(2, 1, 8, 8), torch.randn(2, generator.D)
    with torch.no_grad():
        one, two = generator.posterior(x, noise), frozen.posterior(x, noise)
        assert relative(frozen.join(two.walk.u), generator.join(one.walk.u)) < 1e-5
        assert relative(frozen.images(noise), generator.images(noise)) < 1e-5
        for p in generator.parameters():
            p.zero_()
        assert relative(frozen.posterior(x, noise).kl, two.kl) < 1e-6
    assert norms(generator) and not norms(frozen)


def test_frozen_of_a_training_generator_leaves_it_training():
    generator = make().train()
    assert not generator.frozen().training and generator.training


def test_bits_per_dim():
    generator = make((3, 8, 8), likelihood="mixture")
    assert generator.bits_per_dim(torch.tensor([-192 * math.log(2)])).item() == pytest.approx(1)
    generator = make((3, 8, 8), likelihood="gaussian", bits=5)
    uniform = torch.tensor([192 * math.log(0.5)])  # the uniform density on [-1, 1]
    assert generator.bits_per_dim(uniform).item() == pytest.approx(5, abs=1e-5)


CASES = [
    *({"cells": cells, "scales": 2} for cells in ("res_bnswish", "res_mbconv", "mbconv_sep")),
    {"scales": 5, "layers_per_scale": 1, "preprocess_blocks": 0, "postprocess_blocks": 0, "shape": (1, 16, 16)},
    {"scales": 1, "layers_per_scale": 1},
    {"scales": 2, "flows": 2, "cells": "res_mbconv"},
    {"scales": 3, "halve": True, "layers_per_scale": 4, "preprocess_blocks": 0, "postprocess_blocks": 0},
    {"likelihood": "gaussian", "shape": (3, 8, 8)},
    {"likelihood": "mixture", "shape": (3, 8, 8), "flows": 1, "cells": "mbconv_sep"},
    {"likelihood": "mixture", "shape": (1, 8, 8), "mixtures": 1, "bits": 4},
    {"encoder_channels": 6, "decoder_channels": 4, "scales": 2, "squeeze_excitation": False},
    {"residual_posterior": False, "encoder_cells": 2, "decoder_cells": 2, "postprocess_cells": 3},
    {"preprocess_blocks": 2, "postprocess_blocks": 2, "preprocess_cells": 2, "shape": (1, 7, 9)},
]


def name(case: dict) -> str:
    return " ".join(f"{key}={value}" for key, value in case.items())


@pytest.mark.parametrize("case", CASES, ids=name)
def test_invariants_of_every_geometry(case):
    generator = make(**case, gain=1.5)
    shape = generator.image_shape
    x, u = torch.rand(3, *shape).round(), torch.randn(3, generator.D)
    with torch.no_grad():
        assert (generator.T_inverse(generator.T(u)) - u).abs().max() < 1e-4
        images = generator.images(u)
        assert images.shape == (3, *shape) and images.min() >= 0 and images.max() <= 1
        # An image's figures are its own, whatever the batch.
        posterior = generator.posterior(x, u)
        alone = generator.posterior(x[1:2], u[1:2])
        assert torch.allclose(posterior.kl[1:2], alone.kl, rtol=1e-3, atol=1e-4)
        assert posterior.kl.shape == (3, generator.L)
        log_px = generator.likelihood.log_prob(generator.decode(posterior.walk), x)
        assert log_px.shape == (3,) and log_px.isfinite().all()
        twin = Tower(generator.config, shape, generator.bits).eval()
        twin.load_state_dict(generator.state_dict())
        assert torch.equal(twin.images(u), images)


@pytest.mark.parametrize("case", CASES, ids=name)
def test_every_parameter_receives_a_gradient(case):
    generator = make(**case).train()
    x = torch.rand(4, *generator.image_shape)
    posterior = generator.posterior(x)
    elbo = generator.likelihood.log_prob(generator.decode(posterior.walk), x) - posterior.kl.sum(1)
    elbo.mean().backward()
    without = [key for key, p in generator.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []
    dead = {key for key, p in generator.named_parameters() if not p.grad.any()}
    assert dead == set()


# BatchNorm statistics


def norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]


def statistics(generator: Tower) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in generator.state_dict().items() if "running_" in key}


def test_readjusted_statistics_are_the_average_over_generated_batches():
    generator = make(scales=2, cells="res_mbconv", postprocess_cells=2)
    first = norms(generator.decoder)[0]
    inputs = []
    handle = first.register_forward_hook(lambda module, given, output: inputs.append(given[0]))
    readjust_batchnorm(generator, batches=5, batch_size=8)
    handle.remove()
    assert len(inputs) == 5 and len(inputs[0]) == 8
    mean = torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0)
    var = torch.stack([x.var((0, 2, 3)) for x in inputs]).mean(0)
    assert torch.allclose(first.running_mean, mean, atol=1e-5)
    assert torch.allclose(first.running_var, var, rtol=1e-4, atol=1e-7)


def test_readjusting_touches_nothing_but_the_decoders_statistics():
    generator = make(scales=2)
    before = {key: value.clone() for key, value in generator.state_dict().items()}
    generator.encoder.train()
    readjust_batchnorm(generator, batches=2, batch_size=4)
    decoding, moving = ("decoder.", "postprocess."), ("running_mean", "running_var", "num_batches_tracked")
    for key, value in generator.state_dict().items():
        moved = key.startswith(decoding) and key.endswith(moving)
        assert torch.equal(value, before[key]) != moved, key
    assert {bn.momentum for bn in norms(generator)} == {0.05}
    assert generator.encoder.training and not any(bn.training for bn in norms(generator.decoder))


def test_readjusting_is_deterministic_and_leaves_the_global_draws_alone():
    generator = make()
    state = torch.get_rng_state()
    results = []
    for seed, temperature in ((1, 1.0), (1, 1.0), (2, 1.0), (1, 0.5)):
        readjust_batchnorm(generator, batches=2, batch_size=4, temperature=temperature, seed=seed)
        results.append(statistics(generator))
    assert torch.equal(torch.get_rng_state(), state)
    key = next(key for key in results[0] if key.startswith("decoder"))
    assert torch.equal(results[0][key], results[1][key])
    assert not torch.equal(results[0][key], results[2][key])
    assert not torch.equal(results[0][key], results[3][key])


def test_readjusting_restores_the_modes_after_a_failure(monkeypatch):
    generator = make()
    monkeypatch.setattr(generator, "decode", lambda walk: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        readjust_batchnorm(generator, batches=1, batch_size=2)
    assert {bn.momentum for bn in norms(generator)} == {0.05} and not any(bn.training for bn in norms(generator))


@pytest.mark.parametrize(
    ("change", "word"),
    [({"batches": 0}, "batches"), ({"batch_size": 1}, "batch size"), ({"temperature": 0.0}, "temperature")],
)
def test_readjusting_with_a_number_out_of_range(change, word):
    with pytest.raises(UsageError, match=word):
        readjust_batchnorm(make(), **change)


def test_readjusting_a_frozen_generator_is_refused():
    with pytest.raises(ValueError, match="frozen"):
        readjust_batchnorm(make(scales=2).frozen(), batches=1)


def test_log_normal_integrates_to_one():
    t = torch.linspace(-30, 30, 100_001, dtype=torch.double)
    density = log_normal(t, torch.tensor(0.7, dtype=torch.double), torch.tensor(1.3, dtype=torch.double)).exp()
    assert torch.trapezoid(density, t).item() == pytest.approx(1, abs=1e-9)
