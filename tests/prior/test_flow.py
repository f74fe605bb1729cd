"""The flow prior: densities against autograd, and inference against closed forms."""

import math

import pytest
import torch
from toys import Linear

from hebmtool import recipe
from hebmtool.chains.short_run import adjusted
from hebmtool.generator import OneLayer
from hebmtool.noise import Noise
from hebmtool.prior import FlowPrior


def make(shape=(1, 8, 8), *, spread=0.3, dtype=torch.float64, **keys) -> FlowPrior:
    """A flow whose couplings are no longer the identity."""
    flow = recipe.Flow(**{"latent": 5, "transforms": 4, "hidden": 8, "width": 4} | keys)
    prior = FlowPrior.from_recipe(recipe.Recipe(flow=flow), shape).to(dtype)
    for coupling in prior.couplings:
        torch.nn.init.normal_(coupling.hyper[-1].weight, std=spread)
        torch.nn.init.normal_(coupling.hyper[-1].bias, std=spread)
    for mixing in prior.mixings:
        for p in mixing.parameters():
            p.data += spread * torch.randn_like(p)
    return prior


# The flow


@pytest.mark.parametrize(("coupling", "mixing"), [("affine", "none"), ("spline", "none"), ("affine", "linear")])
def test_density_and_inverse_against_autograds_jacobian(coupling, mixing):
    prior = make(coupling=coupling, mixing=mixing)
    z_0 = torch.randn(6, 5, dtype=torch.float64)
    z = prior.from_base(z_0).detach()
    assert not torch.allclose(z, z_0, atol=0.1)
    back, ladj = prior.to_base(z)
    assert torch.allclose(back, z_0, atol=1e-9)
    for i in range(6):
        inverse = torch.autograd.functional.jacobian(lambda z: prior.to_base(z[None])[0][0], z[i])
        forward = torch.autograd.functional.jacobian(lambda z: prior.from_base(z[None])[0], z_0[i])
        assert torch.linalg.slogdet(inverse).logabsdet.item() == pytest.approx(ladj[i].item(), abs=1e-9)
        # Change of variables with f itself: log p(z) = log N(z_0) - log |det df/dz_0|.
        normal = -0.5 * z_0[i].square().sum() - 2.5 * math.log(2 * math.pi)
        expected = (normal - torch.linalg.slogdet(forward).logabsdet).item()
        assert prior.log_density(z)[i].item() == pytest.approx(expected, abs=1e-9)


def test_density_of_two_dimensions_integrates_to_one():
    prior = make(latent=2, spread=0.2)
    side = torch.linspace(-9, 9, 401, dtype=torch.float64)
    points = torch.cartesian_prod(side, side)
    total = prior.log_density(points).exp().sum() * (side[1] - side[0]) ** 2
    assert total.item() == pytest.approx(1, abs=1e-3)


def test_an_untrained_flow_is_the_identity_and_no_couplings_are_a_gaussian_prior():
    z = torch.randn(7, 5)
    normal = torch.distributions.Normal(0, 1).log_prob(z).sum(1)
    for transforms in (0, 4):
        prior = FlowPrior(OneLayer(flow := recipe.Flow(latent=5, transforms=transforms, hidden=8), (1, 8, 8)), flow)
        assert torch.allclose(prior.log_density(z), normal, atol=1e-5)
        assert torch.allclose(prior.log_ratio(z), torch.zeros(7, 1), atol=1e-5)
        noise = Noise(3, range(4), 5)
        assert torch.allclose(prior.sample(Noise(3, range(4), 5)), noise(), atol=1e-6)


def test_the_published_flow_is_actnorm_linear_map_and_coupling_and_starts_as_a_rotation():
    keys = {"latent": 6, "transforms": 2, "hidden": 8, "mixing": "linear"}
    prior = FlowPrior.from_recipe(recipe.Recipe(flow=recipe.Flow(**keys)), (1, 8, 8))
    z = torch.randn(7, 6)
    normal = torch.distributions.Normal(0, 1).log_prob(z).sum(1)
    assert torch.allclose(prior.log_density(z), normal, atol=1e-4)
    assert not torch.allclose(prior.from_base(z), z, atol=0.1)
    first = prior.mixings[0]
    first.shift.data, first.log_scale.data = torch.randn(6), torch.randn(6)
    by_hand = first.linear @ (first.log_scale.exp() * (z[0] + first.shift))
    assert torch.allclose(first(z)[0][0], by_hand, atol=1e-5)
    # The couplings know one half, and both halves move: the linear maps exchange them.
    assert all(torch.equal(c.mask, prior.couplings[0].mask) and c.mask.sum() == 3 for c in prior.couplings)
    assert len(list(prior.trajectory(Noise(1, range(3), 6)))) == 3
    loss, _ = prior.loss(z, torch.rand(7, 1, 8, 8))
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for m in prior.mixings for p in m.parameters())


def test_draws_have_the_density():
    # E[log p] under draws of p is minus its entropy: that of N(0, I) plus the mean log-determinant of f.
    prior = make(spread=0.2)
    z_0 = torch.randn(20000, 5, dtype=torch.float64)
    z = prior.from_base(z_0).detach()
    ladj = -prior.to_base(z)[1]
    expected = -(2.5 * (1 + math.log(2 * math.pi)) + ladj.mean())
    assert prior.log_density(z).mean().item() == pytest.approx(expected.item(), abs=0.05)


def test_trajectory_passes_every_coupling():
    prior = make(dtype=torch.float32)
    stages = list(prior.trajectory(Noise(1, range(6), 5)))
    assert len(stages) == 5
    z = Noise(1, range(6), 5)()
    for stage, coupling in zip(stages, [None, *reversed(prior.couplings)], strict=True):
        z = z if coupling is None else coupling().inv(z)
        assert torch.allclose(stage, z, atol=1e-6)
    assert torch.allclose(stages[-1], prior.from_base(stages[0]), atol=1e-6)


# The joint model


def test_the_loss_reaches_every_parameter_and_is_the_joint():
    prior = make(dtype=torch.float32)
    z, x = torch.randn(6, 5), torch.rand(6, 1, 8, 8)
    loss, figures = prior.loss(z, x)
    assert loss.item() == pytest.approx(-prior.log_joint(z, x).mean().item() / 64, rel=1e-5)
    assert loss.item() == pytest.approx(-(figures["log_z"] + figures["log_x"]).item() / 64, rel=1e-5)
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in prior.parameters())


def test_pixels_not_observed_do_not_count():
    prior = make(dtype=torch.float32)
    z, x, other = torch.randn(3, 5), torch.rand(3, 1, 8, 8), torch.rand(3, 1, 8, 8)
    observed = torch.rand(3, 1, 8, 8) < 0.5
    damaged = torch.where(observed, x, other)
    assert torch.equal(prior.log_joint(z, x, observed), prior.log_joint(z, damaged, observed))
    assert torch.equal(prior.loss(z, x, observed)[0], prior.loss(z, damaged, observed)[0])
    walk = prior.g.walk(z)
    both = prior.g.log_px(walk, x, observed) + prior.g.log_px(walk, x, ~observed)
    assert torch.allclose(both, prior.g.log_px(walk, x), atol=1e-3)
    assert torch.allclose(prior.log_joint(z, x), prior.log_density(z) + both, atol=1e-3)


def test_where_chains_start():
    z_0 = torch.randn(4, 5)
    flow, normal = make(dtype=torch.float32, warmup=3), make(dtype=torch.float32, start="normal")
    for step in (3, 50, None):
        assert torch.allclose(flow.start(z_0, step), flow.from_base(z_0))
        assert torch.equal(normal.start(z_0, step), z_0)
    assert all(torch.equal(flow.start(z_0, step), z_0) for step in range(3))


# Inference, where the posterior is known


def linear_gaussian():
    """(prior, x, observed, posterior mean and covariance): z ~ N(m, S) by an affine flow, 2x - 1 = A z + sigma eps, of
    whose pixels one is not observed."""
    prior = make(latent=2, transforms=2, spread=0.0, sigma=0.5, step_size=0.1, dtype=torch.float32)
    for coupling in prior.couplings:
        torch.nn.init.normal_(coupling.hyper[-1].bias, std=0.5)
    ends = prior.from_base(torch.tensor([[0.0, 0.0], [1.0, 1.0]])).detach()
    m, S = ends[0].double(), torch.diag((ends[1] - ends[0]).double().square())
    A = torch.tensor([[1.0, 0.4], [-0.3, 0.8], [0.5, -0.5], [2.0, 2.0]])
    prior.g = Linear(A, 0.5)
    x = torch.tensor([0.9, 0.3, 0.6, 0.0]).view(1, 1, 1, 4)
    observed = torch.tensor([True, True, True, False]).view(1, 1, 1, 4)
    seen, y = A[:3].double(), (2 * x.flatten()[:3] - 1).double()
    precision = S.inverse() + seen.T @ seen / 0.25
    covariance = precision.inverse()
    mean = covariance @ (S.inverse() @ m + seen.T @ y / 0.25)
    return prior, x, observed, mean, covariance


N = 10_000


def test_short_run_finds_the_posterior_of_a_linear_gaussian_model():
    prior, x, observed, mean, covariance = linear_gaussian()
    torch.manual_seed(1)
    z = torch.randn(N, 2)
    x_many, observed_many = (part.expand(N, -1, -1, -1) for part in (x, observed))
    z = prior.infer(x_many, prior.start(z), 150, lambda: torch.randn(N, 2), observed_many).double()
    # Unadjusted steps of size s leave exactly the covariance (P - s^2 P^2 / 4)^-1, P being the posterior's precision;
    # 10,000 chains know a mean to 1% and a variance to 1.4% of a standard deviation and of itself.
    precision, s = covariance.inverse(), prior.inference.step_size
    stationary = (precision - s**2 * precision @ precision / 4).inverse()
    scale = covariance.diagonal().sqrt()
    # What is left of the start after so many steps: a factor e^-(150 s^2 / 2 P) on its distance, below 2%.
    assert (1 - 0.5 * s**2 * torch.linalg.eigvalsh(precision).min()) ** 150 < 0.02
    assert ((z.mean(0) - mean) / scale).abs().max() < 0.05
    found = torch.cov(z.T)
    assert ((found - stationary) / scale.outer(scale)).abs().max() < 0.06
    # So the error of inference itself is stated: within 4% of the closed form at this step size.
    assert ((stationary - covariance) / scale.outer(scale)).abs().max() < 0.04
    # And it is the observed pixels' posterior: the prior's, and that given all pixels, are elsewhere.
    assert ((mean - prior.from_base(torch.zeros(1, 2)).detach()[0]) / scale).abs().max() > 0.5


def test_adjusted_chain_has_no_bias_at_any_step_and_finds_its_own():
    prior, x, observed, mean, covariance = linear_gaussian()
    torch.manual_seed(2)
    args = x.expand(N, -1, -1, -1), observed.expand(N, -1, -1, -1)
    for s in (0.01, 3.0):
        z, taken = adjusted(lambda z: prior.log_joint(z, *args), torch.randn(N, 2), 120, s, lambda: torch.randn(N, 3))
        scale = covariance.diagonal().sqrt()
        assert ((z.double().mean(0) - mean) / scale).abs().max() < 0.05
        assert ((torch.cov(z.double().T) - covariance) / scale.outer(scale)).abs().max() < 0.07
        assert 0.4 < taken.mean() < 0.8
