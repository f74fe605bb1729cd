"""Generator, encoder and energy learned together: every gradient against that of the bound itself, on a plane."""

import math

import pytest
import torch
from tiny import CPU, DIGITS
from torch import nn
from toys import Plane, grid

from hebmtool import recipe
from hebmtool.errors import HebmError, UsageError
from hebmtool.generator import Posterior, TopDown
from hebmtool.generator.likelihood import log_normal
from hebmtool.prior import Gaussian, make_prior
from hebmtool.run import checkpoint
from hebmtool.run.folder import Run
from hebmtool.run.open import load_generator, load_prior
from hebmtool.train.joint import joint_loss, train_joint

JOINT = ["prior.kind=ebm", "train_prior.joint=true", "train_prior.generator_lr=1e-2"]


class Learned(Plane):
    """`Plane` with parameters and an encoder: z_1 = a sin(2 z_2) + b exp(z_2 / 3) u_1, q(z | x) = N(c x, 1/4)."""

    has_encoder = True

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(torch.tensor(v)) for v in (0.8, 1.2, [0.7, -0.4]))

    def through(self, z=None, u=None) -> TopDown:
        walk, state = TopDown(), (z if u is None else u).new_ones(len(z if u is None else u), 1, 1, 1)
        mu, sigma = torch.zeros_like(state), torch.ones_like(state)
        for given in self.split(z if u is None else u):
            z_i = given if u is None else mu + sigma * given
            parts = (z_i, (z_i - mu) / sigma, mu, sigma, state)
            for found, value in zip((walk.z, walk.u, walk.mu, walk.sigma, walk.h), parts, strict=True):
                found.append(value)
            mu, sigma = self.a * (2 * z_i).sin(), self.b * (z_i / 3).exp()
            state = torch.cat([self.a * z_i, z_i.square()], dim=1)
        return walk

    def walk(self, u, layers=None):
        return self.through(u=u)

    def T_inverse(self, z):
        return self.join(self.through(z=z).u)

    def posterior(self, x, noise=None):
        mean = x.flatten(1) * self.c
        z = mean + 0.5 * torch.randn(len(x), 2)
        walk = self.through(z=z)
        log_q = log_normal(z, mean, torch.full_like(mean, 0.5)).sum(1)
        ratio = log_q - walk.log_p_0()
        kl = torch.stack([ratio, torch.zeros_like(ratio)], dim=1)
        return Posterior(walk, kl, kl)


@pytest.mark.parametrize("reads", ["z", "z+state"])
def test_generator_encoder_and_energy_get_the_gradients_of_the_bound(reads, monkeypatch):
    torch.manual_seed(3)
    generator = Learned()
    config = recipe.Prior(kind="ebm", objective="recovery", chain="preconditioned", steps=1)
    config.energy = recipe.Energy(reads=reads, width=4, blocks=1, spectral_norm=False)
    prior = make_prior(generator, config)
    for p in prior.parameters():
        nn.init.normal_(p, std=0.3)
    points, area = grid()
    x = torch.rand(4000, 1, 1, 1)

    # The bound, log Z being a sum over the plane at given z: every z has a density under any a and b.
    z = generator.T(points).detach()

    def log_density():
        walk = generator.through(z=z)
        return walk.log_p_0() + prior.log_tilt(points, walk=walk)

    volume = torch.cat(generator.through(z=z).sigma, 1).flatten(1).prod(1).detach() * area  # of z around each point
    log_Z = (log_density() + volume.log()).logsumexp(0)
    torch.manual_seed(5)
    posterior = generator.posterior(x)
    F = prior.log_tilt(generator.latents(posterior.walk), walk=posterior.walk)
    bound = (generator.log_px(posterior.walk, x) - posterior.kl.sum(1) + F).mean() - log_Z
    own = [generator.a, generator.b, generator.c]
    expected = torch.autograd.grad(bound, own, retain_graph=True)
    of_energy = torch.autograd.grad((bound + posterior.kl.mean()), list(prior.parameters()), allow_unused=True)

    # Draws of p(z) in place of its chain's: the points themselves, each as often as it is likely.
    share = (log_density() + volume.log()).softmax(0).detach()
    drawn = points[torch.multinomial(share, 60_000, replacement=True)]
    monkeypatch.setattr(prior, "sample", lambda eps: drawn)
    monkeypatch.setattr(prior, "negatives", lambda *given, learning: drawn[: len(x)])
    torch.manual_seed(5)
    loss, figures = joint_loss(generator, prior, x)
    loss.backward()
    for p, exact in zip(own, expected, strict=True):
        assert torch.allclose(-p.grad, exact, rtol=0.05, atol=0.02), (p.grad, exact)
    # The energy's is that of its own objective: here F(z+) - E F(z-), of few draws.
    agreed = [
        torch.nn.functional.cosine_similarity(-p.grad.flatten(), exact.flatten(), dim=0)
        for p, exact in zip(prior.parameters(), of_energy, strict=True)
        if exact is not None and exact.abs().max() > 0.02
    ]
    assert agreed and min(agreed) > 0.8
    assert all(math.isfinite(v) for v in figures.values())
    assert float(figures["elbo"]) == pytest.approx(float(figures["log_px"] - figures["kl"]), rel=1e-4)


def test_it_starts_where_stage_one_ended_and_leaves_the_runs_own_generator(copied):
    run = Run(copied / "digits")
    before = run.generator_path.read_bytes()
    settings = recipe.load("digits", [*DIGITS, *JOINT])
    run.prior_path("ebm").unlink(missing_ok=True)
    run.prior_train_path("ebm").unlink(missing_ok=True)
    with run.lock():
        prior = train_joint(settings, run, CPU)
    assert run.generator_path.read_bytes() == before and checkpoint.header(run.prior_path("ebm")).step == 3
    found = load_prior(run, "ebm", CPU)
    own = load_generator(run, CPU).frozen()
    x, noise = torch.rand(4, 1, 8, 8), torch.zeros(4, own.D)
    u = found.generator.encode(x, noise)
    assert torch.allclose(u, prior.generator.encode(x, noise), atol=1e-5)
    assert not torch.allclose(u, own.encode(x, noise), atol=1e-4)
    assert torch.allclose(found.log_ratio(u), prior.log_ratio(u), atol=1e-4)
    # Other priors stand on the run's own, as before.
    assert torch.equal(load_prior(run, "diffusion-ebm", CPU).generator.encode(x, noise), own.encode(x, noise))
    [*_, last] = run.metrics("train-prior ebm")
    assert last["step"] == 3 and len(last["grad_norm"]) == 2 and last["kl"] >= 0


def test_what_cannot_be_learned_jointly(tiny):
    run = Run(tiny / "digits")
    for key, words in (
        ("prior.whiten=true", "prior.whiten"),
        ("train_prior.precision=bf16", "train_prior.precision"),
        ("train_prior.readjust_bn=2", "train_prior.readjust_bn"),
    ):
        with pytest.raises(UsageError, match=words):
            recipe.load("digits", [*DIGITS, *JOINT, key])
    with pytest.raises(UsageError, match="prior.kind"):
        recipe.load("digits-flow", ["train_prior.joint=true"])
    with pytest.raises(UsageError, match="prior.kind is 'gaussian'"):
        train_joint(recipe.load("digits", [*DIGITS, *JOINT, "prior.kind=gaussian"]), run, CPU)
    with pytest.raises(HebmError, match="already"):
        train_joint(recipe.load("digits", [*DIGITS, *JOINT, "prior.kind=diffusion-ebm"]), run, CPU)


def test_the_gaussian_prior_leaves_the_bound_as_it_is():
    """F = 0 leaves grad log Z = 0: every draw of the generator's own prior has E[grad log p_0] = 0."""
    torch.manual_seed(0)
    generator = Learned()
    drawn = torch.randn(40_000, 2)
    walk = generator.walk(generator.T_inverse(generator.T(drawn).detach()))
    for p in torch.autograd.grad(walk.log_p_0().mean(), [generator.a, generator.b]):
        assert p.abs().item() < 0.03
    assert Gaussian(generator).log_tilt(drawn[:2]).abs().max() == 0
