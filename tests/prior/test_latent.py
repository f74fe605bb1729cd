"""The latent EBM: its two chains against closed forms, its gradient against that of the likelihood."""

import pytest
import torch
from torch import nn
from toys import Linear

from hebmtool import recipe
from hebmtool.noise import Noise
from hebmtool.prior import LatentEBM
from hebmtool.prior.base import log_standard_normal

N = 10_000


class Quadratic(nn.Module):
    """F(z) = b z - sum q_i z_i^2 / 2, so that p(z) ~ exp(F) N(0, I) is normal, of precision I + diag(q)."""

    def __init__(self, b, q):
        super().__init__()
        self.b, self.q = nn.Parameter(torch.tensor(b)), torch.tensor(q)

    @staticmethod
    def embed(t):
        return t

    def forward(self, z, state, level, standard=None):
        z = z.flatten(1)
        return (z @ self.b - 0.5 * z.square() @ self.q)[:, None]


def make(shape=(1, 8, 8), steps=3, eta=0.16, **keys) -> LatentEBM:
    own = recipe.Prior(kind="latent-ebm", chain="unscaled", steps=steps, eta=eta, energy=recipe.Energy(width=6))
    flow = recipe.Flow(**{"latent": 5, "width": 4} | keys)
    return LatentEBM.from_recipe(recipe.Recipe(prior=own, flow=flow), shape)


def quadratic(steps=3, eta=0.16):
    """(prior, x, precision and potential of p(z), of p(z | x)): with potential h, log p = h z - z P z / 2 + const."""
    prior = make(steps=steps, eta=eta, latent=2, sigma=0.5)
    prior.energy.layers[0] = Quadratic([0.8, -0.5], [0.5, 2.0])
    A = torch.tensor([[1.0, 0.4], [-0.3, 0.8], [0.5, -0.5]])
    prior.g, x = Linear(A, 0.5), torch.tensor([0.9, 0.3, 0.6]).view(1, 1, 1, 3)
    P, h = torch.diag(torch.tensor([1.5, 3.0])), torch.tensor([0.8, -0.5])
    return prior, x, (P, h), (P + A.T @ A / 0.25, h + A.T @ (2 * x.flatten() - 1) / 0.25)


def after(steps, s, P, h):
    """Mean and covariance of z <- z + s^2/2 (h - P z) + s eps, so many times from N(0, I)."""
    mean, covariance = torch.zeros(2), torch.eye(2)
    shrink = torch.eye(2) - s**2 / 2 * P
    for _ in range(steps):
        mean = shrink @ mean + s**2 / 2 * h
        covariance = shrink @ covariance @ shrink + s**2 * torch.eye(2)
    return mean, covariance


def close(z, mean, covariance):
    """To what so many draws know: 1% and 1.4% of a standard deviation and of a variance, and four times that."""
    scale = covariance.diagonal().sqrt()
    assert ((z.mean(0) - mean) / scale).abs().max() < 0.04
    assert ((torch.cov(z.T) - covariance) / scale.outer(scale)).abs().max() < 0.06


@pytest.mark.parametrize("steps", [1, 3, 60])
def test_both_chains_are_so_many_langevin_steps_from_n_0_i(steps):
    """With a quadratic energy and a linear generator every step keeps the law normal, and it is told exactly."""
    prior, x, of_prior, of_posterior = quadratic(steps)
    close(prior.sample(lambda: torch.randn(N, 2)), *after(steps, 0.4, *of_prior))
    z = prior.infer(x.expand(N, -1, -1, -1), prior.start(torch.randn(N, 2)), steps, lambda: torch.randn(N, 2))
    close(z, *after(steps, prior.inference.step_size, *of_posterior))


def test_without_noise_a_chain_climbs_to_the_mode():
    prior, x, _, (P, h) = quadratic()
    z = prior.infer(x.expand(8, -1, -1, -1), 3 * torch.randn(8, 2), 600, None)
    assert torch.allclose(z, torch.linalg.solve(P, h).expand(8, -1), atol=1e-3)


def test_the_gradient_is_that_of_the_log_likelihood():
    """At given z^+ and exact z^-: of log p(z), Z in closed form, by finite differences; and of log p(x | z)."""
    prior, x, (P, h), _ = quadratic(steps=150, eta=0.05)
    z = torch.randn(N, 2) + 0.3
    many = x.expand(N, -1, -1, -1)
    loss, _ = prior.loss(z, many)
    (3 * loss).backward()  # three pixels

    def nll(b):
        log_Z = 0.5 * b @ torch.linalg.solve(P, b) - 0.5 * torch.logdet(P)
        F = z @ b - 0.5 * z.square() @ prior.energy.layers[0].q
        return log_Z - (F + log_standard_normal(z)).mean()

    step = 1e-2 * torch.eye(2)
    expected = torch.stack([(nll(h + e) - nll(h - e)) / 2e-2 for e in step])
    assert torch.allclose(prior.energy.layers[0].b.grad, expected, atol=0.04) and expected.abs().min() > 0.1
    A = prior.g.A.detach()
    residual = 2 * x.flatten() - 1 - z @ A.T
    assert torch.allclose(prior.g.A.grad, -(residual.T @ z) / N / 0.25, atol=1e-4)


def test_the_loss_is_the_difference_of_energies_and_reaches_every_parameter(monkeypatch):
    prior, z_plus, z_minus, x = make(), *torch.randn(2, 6, 5), torch.rand(6, 1, 8, 8)
    for p in prior.parameters():
        nn.init.normal_(p, std=0.3)
    monkeypatch.setattr(prior, "negatives", lambda *arguments, **keys: z_minus)
    loss, figures = prior.loss(z_plus, x)
    found = torch.autograd.grad(64 * loss, list(prior.parameters()))
    by_hand = (prior.F(z_minus) - prior.F(z_plus)).mean() - prior.g.log_px(prior.g.walk(z_plus), x).mean()
    assert 64 * loss.item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert by_hand.item() == pytest.approx((figures["gap"] - figures["log_x"]).item(), rel=1e-5)
    for mine, expected in zip(found, torch.autograd.grad(by_hand, list(prior.parameters())), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-3, atol=1e-5)
    # The last bias moves F(z^+) and F(z^-) alike.
    assert [grad.abs().max().item() < 1e-6 for grad in found].count(True) == 1


def test_the_energy_is_linear_maps_between_which_one_activation_stands():
    prior = make()
    f = prior.energy.layers[0]
    assert [(m.in_features, m.out_features) for m in f.modules() if isinstance(m, nn.Linear)] == [
        (5, 6),
        (6, 6),
        (6, 1),
    ]
    z = torch.randn(4, 5)
    assert not prior.F(z).any()  # it starts as N(0, I)
    nn.init.normal_(f.head.weight)
    first, second = f.hidden
    by_hand = f.head(nn.functional.silu(second(nn.functional.silu(first(z)))))[:, 0]
    assert torch.allclose(prior.F(z), by_hand, atol=1e-6)
    assert torch.allclose(prior.log_density(z), by_hand + log_standard_normal(z), atol=1e-5)


def test_chains_start_from_n_0_i_whatever_the_recipe_says_of_flows():
    z_0 = torch.randn(4, 5)
    for start in ("prior", "normal"):
        prior = make(start=start)
        assert prior.start(z_0) is z_0 and prior.start(z_0, 3) is z_0 and prior.starts_from == "normal"


def test_inference_leaves_the_weights_as_learnable_as_they_were():
    prior = make()
    prior.infer(torch.rand(2, 1, 8, 8), torch.randn(2, 5), 2, Noise(0, range(2), 5))
    assert all(p.requires_grad for p in prior.parameters())


def test_the_energy_and_the_generator_learn_each_at_its_rate():
    prior, config = make(), recipe.TrainPrior(lr=5e-5, generator_lr=1e-4)
    assert prior.networks(config) == [(prior.g, 1e-4), (prior.energy, 5e-5)]
