"""Two-sample tests: silent on equal laws, and able to find what differs, where it differs."""

import math

import pytest
import torch
from toys import toy_prior

from hebmtool import recipe
from hebmtool.errors import HebmError
from hebmtool.metrics import two_sample
from hebmtool.noise import Noise
from hebmtool.prior import JointEBM, make_prior

N = 600


def fours(error):
    return 4 * error + 1e-9


def dependent(generator, n, strength=0.95):
    """Each layer N(0, I), but one pixel of four of the bottom one follows the top one's."""
    top, bottom = generator.split(torch.randn(n, generator.D))
    bottom[:, :, ::2, ::2] = strength * top + math.sqrt(1 - strength**2) * bottom[:, :, ::2, ::2]
    return generator.join([top, bottom])


def test_equal_laws_cannot_be_told_apart(generator):
    found = two_sample.test(generator, torch.randn(N, generator.D), torch.randn(N, generator.D))
    assert found.accuracy.shape == (2, generator.L)
    assert ((found.accuracy - 0.5).abs() < fours(found.error)).all()
    assert torch.allclose(found.error, torch.full_like(found.error, 0.5 / math.sqrt(2 * N)), rtol=0.05)
    gain, error = found.gain()
    assert (gain.abs() < fours(error)).all()


@pytest.mark.parametrize("l", [0, 1])
def test_a_shift_is_found_in_its_layer(generator, l):
    q, p = torch.randn(N, generator.D), torch.randn(N, generator.D)
    q[:, generator.slices[l]] += 0.8
    found = two_sample.test(generator, q, p)
    joint, alone = found.accuracy
    assert alone[l] > 0.8 and abs(alone[1 - l] - 0.5) < fours(found.error[1, 1 - l])
    assert joint[-1] > 0.8
    gain, error = found.gain()
    assert gain[l] > 0.25
    assert abs(gain.sum() - (joint[-1] - 0.5)) < 1e-6
    if l == 1:
        assert abs(joint[0] - 0.5) < fours(found.error[0, 0])


def test_dependence_between_layers_is_found_though_no_layer_shows_it(generator):
    q, p = dependent(generator, 2 * N), torch.randn(2 * N, generator.D)
    found = two_sample.test(generator, q, p)
    joint, alone = found.accuracy
    assert ((alone - 0.5).abs() < fours(found.error[1])).all()
    assert abs(joint[0] - 0.5) < fours(found.error[0, 0])
    assert joint[1] > 0.5 + 5 * found.error[0, 1]


def test_what_is_known_is_used_and_its_weight_told(generator):
    """The log ratio of the laws, as a known feature of the layer it is about, gets weight 1."""
    q, p = torch.randn(N, generator.D), torch.randn(N, generator.D)
    one = generator.slices[1].start
    q[:, one] += 1.5

    def ratio(u):
        return torch.stack([0 * u[:, one], 1.5 * u[:, one] - 1.5**2 / 2], dim=1)

    best = torch.distributions.Normal(0.0, 1.0).cdf(torch.tensor(0.75)).item()
    found = two_sample.test(generator, q, p, (ratio(q), ratio(p)))
    assert found.accuracy[0, 1].item() == pytest.approx(best, abs=fours(found.error[0, 1].item()))
    assert found.a[1].item() == pytest.approx(1, abs=0.35)
    # What tells the laws apart costs the loss log 2 less their divergence.
    assert found.loss[0, 1] < math.log(2) - 0.1


def test_the_test_is_a_function_of_its_seed(generator, short):
    q, p = torch.randn(40, generator.D) + 0.3, torch.randn(40, generator.D)
    state = torch.get_rng_state()
    first, again = (two_sample.test(generator, q, p, seed=1) for _ in range(2))
    assert torch.equal(first.right, again.right) and torch.equal(first.loss, again.loss)
    assert torch.equal(state, torch.get_rng_state())


def test_too_few_or_broken_draws_are_said(generator):
    u = torch.randn(30, generator.D)
    with pytest.raises(HebmError, match="at least 20 draws"):
        two_sample.test(generator, u[:10], u)
    with pytest.raises(HebmError, match="not finite"):
        two_sample.test(generator, u, u / 0)


# Moments


def test_moments_are_those_of_the_laws(generator):
    n, (top, bottom) = 40_000, generator.slices
    u = torch.randn(n, generator.D)
    u[:, top] = torch.distributions.Exponential(1.0).sample((n, top.stop)) * 2 + 3
    u[:, bottom.start + 1] = 0.6 * u[:, bottom.start] + 0.8 * u[:, bottom.start + 1]
    mean, std, skewness, kurtosis, correlation = two_sample.moments(u, generator)
    assert mean[0].item() == pytest.approx(5, rel=0.01)
    assert std[0].item() == pytest.approx(2, rel=0.01)
    assert skewness[0].item() == pytest.approx(2, rel=0.05)
    assert kurtosis[0].item() == pytest.approx(6, rel=0.15)
    assert std[1].item() == pytest.approx(1, rel=0.01)
    assert correlation[1].item() == pytest.approx(0.6, abs=0.02)
    assert max(mean[1], skewness[1], abs(kurtosis[1])) < 0.05


def test_what_chance_gives_is_what_independent_normals_give(generator):
    n = 500
    found = two_sample.moments(torch.randn(n, generator.D), generator)
    for l, s in enumerate(generator.slices):
        mean, std, skewness, kurtosis, correlation = two_sample.chance(n, s.stop - s.start)
        assert found[0, l].item() == pytest.approx(mean, rel=0.6)
        assert found[1, l].item() == pytest.approx(std, abs=0.05)
        assert found[2, l].item() == pytest.approx(skewness, rel=0.6)
        assert abs(found[3, l].item() - kurtosis) < 5 * math.sqrt(24 / n / (s.stop - s.start))
        assert found[4, l].item() == pytest.approx(correlation, rel=0.4)


# Of a prior


@pytest.fixture
def short(monkeypatch):
    """Few updates: what is found does not matter, only what is told."""
    for least in ("LEAST_UPDATES", "LEAST_FRESH"):
        monkeypatch.setattr(two_sample, least, 4)


def test_figures_of_a_diffusion_prior(generator, short):
    config = recipe.Prior(kind="diffusion-ebm", levels=3, steps=2, chain="underdamped")
    prior = make_prior(generator, config).requires_grad_(False)
    q = 0.5 * torch.randn(80, generator.D)
    found = two_sample.figures(prior, q, "thirty images")
    # F = 0 throughout: the prior is Gaussian, so both must be told from the posterior alike, and no energy has a gap.
    tests = {f.of: f for f in found if f.name == "two-sample accuracy"}
    assert list(tests) == ["gaussian", "diffusion-ebm", "diffusion-ebm (adjusted)"]
    assert "80 posterior draws (thirty images)" in tests["gaussian"].note
    assert all(f.value == f.error == 0 for f in found if f.name == "energy gap")
    assert {f.name for f in found if "level" in f.name} == {f"two-sample accuracy, level {t}" for t in (1, 2)}
    for of in tests:
        layers = {(f.name, f.layer) for f in found if f.of == of and f.layer}
        for name in ("accuracy, u_i alone", "accuracy, top to i", "gain given above"):
            assert {(name, 1), (name, 2)} <= layers
    assert {f.of for f in found if f.name.endswith("correlation")} == {"generator", "diffusion-ebm"}
    assert all(math.isfinite(f.value) for f in found)
    assert found == two_sample.figures(prior, q, "thirty images")


def test_a_flow_is_tested_on_its_one_layer_and_once_for_its_draws_are_exact(generator, short):
    prior = toy_prior(generator, "flow", weight=0.3).requires_grad_(False)
    found = two_sample.figures(prior, torch.randn(60, prior.generator.D), "sixty images")
    assert [f.of for f in found if f.name == "two-sample accuracy"] == ["gaussian", "flow"]
    assert {f.layer for f in found} == {None, 1}
    assert not any(word in f.name for f in found for word in ("gap", "level"))
    assert {f.of for f in found if f.name.endswith("correlation")} == {"generator", "flow"}


def test_what_a_flow_has_learned_is_known_to_its_test(generator):
    """Draws of the flow against N(0, I): no answer is better than that by its log ratio."""
    prior = toy_prior(generator, "flow", weight=0.5).requires_grad_(False)
    q, p = prior.sample(Noise(0, range(N), prior.generator.D)), torch.randn(N, prior.generator.D)
    ratios = prior.log_ratio(q), prior.log_ratio(p)
    best = 0.5 * ((ratios[0] > 0).double().mean() + (ratios[1] < 0).double().mean())
    found = two_sample.test(prior.generator, q, p, ratios)
    assert best > 0.6 and found.accuracy[0, 0].item() == pytest.approx(best.item(), abs=4 * found.error[0, 0].item())


class Known(JointEBM):
    """F quadratic: p(u) is N(1/3, 2/3) in every coordinate."""

    def F(self, u, t=None, walk=None):
        return 0.5 * u.sum(1) - 0.25 * u.square().sum(1)


def test_adjusted_draws_follow_the_density_the_chain_missed(generator):
    prior = Known(generator, recipe.Prior(kind="ebm", chain="underdamped")).requires_grad_(False)
    u, how = two_sample.adjusted(prior, torch.randn(400, generator.D), 0)
    assert u.mean().item() == pytest.approx(1 / 3, abs=5 / math.sqrt(1.5 * u.numel()))
    assert u.var().item() == pytest.approx(1 / 1.5, rel=5 * math.sqrt(2 / u.numel()))
    assert "accepted" in how
