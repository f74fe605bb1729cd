"""The priors: every kind draws, scores and learns; the laws they sample, in closed form where there is one."""

import math

import pytest
import torch

from hebmtool import recipe
from hebmtool.noise import Noise
from hebmtool.prior.base import Prior
from hebmtool.prior.ebm import DiffusionEBM
from hebmtool.prior.kinds import KINDS, make_prior
from hebmtool.prior.schedule import Schedule

TRAINED = [kind for kind in KINDS if kind != "gaussian"]
CHAINS = ["langevin", "preconditioned", "underdamped"]


def make(generator, kind="diffusion-ebm", chain="preconditioned", weight=1e-2, **keys) -> Prior:
    """A prior whose energy has weights of size `weight` where they start at zero, as if it had been trained."""
    config = recipe.Prior(kind=kind, chain=chain, **{"steps": 3, "eta": 1e-2} | keys)
    config.energy = recipe.Energy(reads="z+state", width=6, blocks=1)
    prior = make_prior(generator, config)
    for p in prior.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=weight)
    return prior


# Noise


def test_noise_of_an_image_depends_on_the_seed_and_its_index_alone():
    whole = Noise(5, range(8), 400)
    parts = [Noise(5, range(4), 400), Noise(5, range(4, 8), 400)]
    assert len(whole) == 8
    for _ in range(3):
        assert torch.equal(whole(), torch.cat([part() for part in parts]))
    a, b = Noise(5, range(8), 400), Noise(6, range(8), 400)
    first, second = a(), a()
    # Eight images, two draws, two seeds: nothing repeats, all is standard normal.
    draws = torch.cat([first, second, b(), b()])
    correlation = torch.corrcoef(draws) - torch.eye(32)
    assert correlation.abs().max() < 0.3
    assert draws.mean().item() == pytest.approx(0, abs=0.05) and draws.std().item() == pytest.approx(1, abs=0.05)


# Every kind


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("kind", KINDS)
def test_trajectory_and_sample(generator, kind, chain):
    prior = make(generator, kind, chain, levels=4)
    assert type(prior) is KINDS[kind] and prior.kind == kind
    stages = list(prior.trajectory(Noise(1, range(5), generator.D)))
    assert len(stages) == {"gaussian": 1, "ebm": 2, "diffusion-ebm": 5}[kind]
    assert all(u.shape == (5, generator.D) and u.isfinite().all() and not u.requires_grad for u in stages)
    assert torch.equal(stages[0], Noise(1, range(5), generator.D)())
    assert torch.equal(prior.sample(Noise(1, range(5), generator.D)), stages[-1])
    if kind != "gaussian":
        assert not torch.equal(prior.sample(Noise(1, range(5), generator.D), steps=1), stages[-1])


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("kind", KINDS)
def test_samples_do_not_depend_on_the_cut_into_batches(generator, kind, chain):
    prior = make(generator, kind, chain)
    whole = prior.sample(Noise(3, range(8), generator.D))
    parts = [prior.sample(Noise(3, indices, generator.D)) for indices in (range(4), range(4, 8))]
    assert torch.allclose(whole, torch.cat(parts), atol=1e-4)
    assert not torch.allclose(whole[:4], whole[4:], atol=1e-1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_of_the_prior_is_its_own(generator, kind):
    prior = make(generator, kind)
    assert prior.generator is generator
    assert all(key.startswith("energy.") for key in prior.state_dict())


def test_gaussian(generator):
    prior = make(generator, "gaussian")
    noise = Noise(0, range(3), generator.D)()
    for tau in (0.5, 1.0, 2.0):
        assert torch.equal(prior.sample(Noise(0, range(3), generator.D), temperature=tau), tau * noise)
    expected = torch.distributions.Normal(0, 1).log_prob(noise).sum(1)
    assert torch.allclose(prior.log_density(noise), expected, rtol=1e-6)
    with pytest.raises(NotImplementedError, match="gaussian"):
        prior.loss(noise)


@pytest.mark.parametrize("kind", TRAINED)
def test_temperature_scales_every_noise(generator, kind):
    # Without energy each chain is linear in its noise.
    prior = make(generator, kind, weight=0)
    cold, warm = (prior.sample(Noise(0, range(3), generator.D), temperature=tau) for tau in (0.5, 1.0))
    assert torch.allclose(cold, 0.5 * warm, atol=1e-5)


# The equations


@pytest.mark.parametrize("T", [2, 3, 6])
def test_published_step_sizes(generator, T):
    prior, s = make(generator, chain="langevin", levels=T, eta=3e-5), Schedule(T)
    b_squared = [3e-5 * s.sbar[t].item() / s.sbar[0].item() * s.sigma[t + 1].item() ** 2 for t in range(T)]
    assert prior.scale(torch.arange(T)).tolist() == pytest.approx(b_squared, rel=1e-6)
    ebm = make(generator, "ebm", "langevin", eta=3e-5)
    assert ebm.scale(torch.zeros(2, dtype=torch.long)).tolist() == pytest.approx([3e-5] * 2, rel=1e-6)
    assert make(generator, levels=T).scale(torch.arange(T)).tolist() == [1] * T


@pytest.mark.parametrize("chain", CHAINS)
def test_the_gaussian_each_level_tilts(generator, chain):
    prior, s = make(generator, chain=chain), Schedule(3)
    a, sigma, r = prior.conditional(torch.arange(3))
    assert a[:2, 0].tolist() == pytest.approx(s.a[1:3].tolist(), rel=1e-6)
    assert sigma[:2, 0].tolist() == pytest.approx(s.sigma[1:3].tolist(), rel=1e-6)
    assert r[:, 0].tolist() == [1, 1, 0]
    if chain != "langevin":
        # At the top there is nothing to recover from: N(0, I) itself, wherever u_T is.
        assert sigma[2] == 1
        eps, top = torch.randn(2, generator.D), torch.full((2,), 2)
        u = prior.negatives(torch.full((2, generator.D), 100.0), top, lambda: eps, steps=0)
        assert torch.equal(u, eps)


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("kind", TRAINED)
def test_log_density_is_what_the_chain_climbs(generator, kind, chain):
    """One step without noise at level 0 against differences of `log_density`, plus the Gaussian tie to u_1."""
    h, eta, theta = 0.2, 1e-2, 0.05
    prior = make(generator, kind, chain, weight=0.1, h=h, theta=theta)
    t, s = torch.zeros(4, dtype=torch.long), Schedule(3)
    u_next, u_start, direction = torch.randn(3, 4, generator.D)
    direction /= direction.norm(dim=1, keepdim=True)
    a, sigma, r = (s.a[1].item(), s.sigma[1].item(), 1) if kind == "diffusion-ebm" else (0, 1, 0)
    if chain == "langevin":
        b_squared = eta * (sigma**2 if kind == "diffusion-ebm" else 1)
        u = u_next
        moved = prior.negatives(u_next, t, lambda: torch.zeros_like(u), steps=1) - u
        slope = moved / (0.5 * b_squared)
    else:
        m = r * a * u_next
        draws = iter([(u_start - m) / sigma, torch.zeros_like(m)])
        u = u_start
        moved = prior.negatives(u_next, t, lambda: next(draws), steps=1) - u
        # From rest, a turn by theta is a step of size theta^2 / 2, up to its square.
        slope = moved / ((1 - math.exp(-h) if chain == "preconditioned" else theta**2 / 2) * sigma**2)
    # d/du log p(u | u_1) = d/du log_density(u) + d/du log N(u_1; a u, sigma^2)
    slope = slope - r * a * (u_next - a * u) / sigma**2
    step = 0.02
    rise = (prior.log_density(u + step * direction) - prior.log_density(u - step * direction)) / (2 * step)
    found = (slope * direction).sum(1)
    assert torch.allclose(found, rise, rtol=2e-2, atol=2e-2 * rise.abs().max().item())
    # The energy has its part in it.
    gaussian = -(u * direction).sum(1)
    assert (rise - gaussian).abs().max() > 5 * (found - rise).abs().max()


def test_terms_of_the_energy_add_up_and_can_be_cut(generator):
    prior, u = make(generator, weight=1.0), torch.randn(4, generator.D)
    t = torch.tensor([0, 1, 2, 0])
    terms = prior.energies(u, t)
    assert terms.shape == (4, generator.L)
    assert torch.allclose(prior.F(u, t), terms[:, 0] + terms[:, 1])
    assert torch.allclose(prior.energies(u, t, layers=1), terms[:, :1], atol=1e-6)
    assert torch.equal(prior.F(u), prior.F(u, torch.zeros(4, dtype=torch.long)))


@pytest.mark.parametrize("T", [2, 3])
@pytest.mark.parametrize(("c", "g"), [(0.0, 0.0), (1.0, 0.7)])
def test_diffusion_with_a_quadratic_energy_samples_its_closed_form_law(generator, monkeypatch, T, c, g):
    """F = (1 + t) (g sum u - c |u|^2 / 2): every conditional is Gaussian, and so is u_0."""
    prior, s, n = make(generator, levels=T, h=0.05), Schedule(T), 4000

    def F(u, t):
        return (1 + t) * (g * u.sum(1) - 0.5 * c * u.square().sum(1))

    monkeypatch.setattr(prior, "F", F)
    mean, variance, rho = 0.0, 1.0, math.exp(-0.05)
    for t in reversed(range(T)):
        a, sigma = (0.0, 1.0) if t == T - 1 else (s.a[t + 1].item(), s.sigma[t + 1].item())
        k, slope = (1 + t) * c, (1 + t) * g
        precision = 1 / sigma**2 + k
        # The chain of finite steps is an AR(1): its own variance, within 10 % of 1 / precision.
        decay = rho - (1 - rho) * sigma**2 * k
        own = sigma**2 * (1 - rho**2) / (1 - decay**2)
        assert own == pytest.approx(1 / precision, rel=0.1)
        gain = a / (sigma**2 * precision)
        mean, variance = gain * mean + slope / precision, gain**2 * variance + own
    u = prior.sample(lambda: torch.randn(n, generator.D), steps=150)
    count = u.numel()
    assert u.mean().item() == pytest.approx(mean, abs=5 * math.sqrt(variance / count))
    assert u.var().item() == pytest.approx(variance, rel=5 * math.sqrt(2 / count))


# Learning


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("kind", TRAINED)
def test_gradient_of_the_loss_holds_the_negatives(generator, monkeypatch, kind, chain):
    prior, seen = make(generator, kind, chain, penalty=0.1), {}
    negatives, pairs = prior.negatives, prior._pairs

    def record_negatives(u_next, t, noise):
        seen["negative"] = negatives(u_next, t, noise)
        return seen["negative"]

    def record_pairs(u_0):
        seen["positive"], u_next, seen["t"] = pairs(u_0)
        return seen["positive"], u_next, seen["t"]

    monkeypatch.setattr(prior, "negatives", record_negatives)
    monkeypatch.setattr(prior, "_pairs", record_pairs)
    loss, figures = prior.loss(torch.randn(32, generator.D))
    found = torch.autograd.grad(loss, list(prior.parameters()))

    assert not seen["negative"].requires_grad
    t, s = seen["t"], Schedule(3)
    if chain != "langevin":
        scale = torch.ones(32)
    elif kind == "ebm":
        scale = torch.full((32,), 1e-2)
    else:
        scale = torch.stack([1e-2 * s.sbar[k] / s.sbar[0] * s.sigma[k + 1] ** 2 for k in t.tolist()]).float()
    positive, negative = (prior.F(seen[side], t) / scale for side in ("positive", "negative"))
    expected = (negative - positive).mean() + 0.1 * (positive.square().mean() + negative.square().mean()) / 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert figures["gap"] == pytest.approx((negative - positive).mean().item(), rel=1e-4, abs=1e-4)
    for a, b in zip(found, torch.autograd.grad(expected, list(prior.parameters())), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-5 + 1e-4 * b.abs().max().item())


def test_diffusion_learns_all_levels(generator):
    prior = make(generator, levels=3)
    u_0 = torch.full((600, generator.D), 2.0)
    u_t, u_next, t = prior._pairs(u_0)
    s = prior.schedule
    for level in range(3):
        chosen = t == level
        assert 130 < chosen.sum() < 270
        assert u_t[chosen].mean().item() == pytest.approx(2 * s.abar[level].item(), abs=0.06)
        assert u_next[chosen].mean().item() == pytest.approx(2 * s.abar[level + 1].item(), abs=0.06)


@pytest.mark.parametrize("chain", CHAINS)
def test_score_matching_is_least_at_the_true_marginals(generator, monkeypatch, chain):
    """u_0 ~ N(0, v): level t's marginal is N(0, abar^2 v + sbar^2), and F_t = w (log of its ratio to N(0, 1))."""
    prior, v = make(generator, chain=chain, objective="score-matching"), 0.25
    assert prior.needs_score and not make(generator).needs_score
    s = prior.schedule
    u_0 = math.sqrt(v) * torch.randn(3000, generator.D)
    # The clean level is noised by nothing: its marginal is that of u_0.
    variance = (s.abar**2 * v + s.sbar**2).float()
    variance[0] = v

    def slope_at(weight):
        w = torch.full((3,), weight, requires_grad=True)
        ratio = 0.5 * (1 - 1 / variance)
        monkeypatch.setattr(prior, "F", lambda u, t: prior.scale(t) * w[t] * ratio[t] * u.square().sum(1))
        torch.manual_seed(1)
        loss, figures = prior.loss(u_0, -u_0 / v)
        return torch.autograd.grad(loss, w)[0], figures

    below, _ = slope_at(0.8)
    there, figures = slope_at(1.0)
    above, _ = slope_at(1.2)
    assert (below < 0).all() and (above > 0).all()
    assert (there.abs() < 0.15 * torch.minimum(-below, above)).all()
    assert figures["explained_0"] == pytest.approx((1 / v - 1) ** 2 * v, rel=0.05)


@pytest.mark.parametrize(
    ("kind", "objective", "lr"),
    [
        ("ebm", "recovery", 6e-3),
        ("diffusion-ebm", "recovery", 1e-2),
        ("ebm", "nce", 1e-2),
        ("diffusion-ebm", "nce", 1e-2),
        ("ebm", "cnce", 1e-2),
        ("diffusion-ebm", "cnce", 1e-2),
    ],
)
def test_learns_the_dependence_between_layers(make_generator, kind, objective, lr):
    """Two layers of posterior u, each standard normal, correlated 0.7: more than half of it in 150 updates."""
    generator = make_generator(scales=1, layers_per_scale=2)

    def draw(n):
        top, other = torch.randn(2, n, *generator.latent_shapes[0])
        return generator.join([top, 0.7 * top + math.sqrt(1 - 0.7**2) * other])

    def correlation(u):
        return torch.corrcoef(torch.stack([layer.flatten() for layer in generator.split(u)]))[0, 1].item()

    config = recipe.Prior(kind=kind, objective=objective, chain="preconditioned", steps=8, h=0.3)
    config.penalty = 1e-3 if objective == "recovery" else 0.0
    config.energy = recipe.Energy(reads="z+state", width=16, blocks=1)
    prior = make_prior(generator, config)
    prior.energy.calibrate(generator.top_down(torch.randn(256, generator.D)))
    before = prior.sample(lambda: torch.randn(500, generator.D))
    # Without chains an update costs a tenth.
    updates = 150 if objective == "recovery" else 400
    optimizer = torch.optim.Adam(prior.parameters(), lr=lr, betas=(0.9, 0.99))
    for i in range(updates):
        optimizer.param_groups[0]["lr"] = lr * (1 - i / updates)
        loss, _ = prior.loss(draw(64))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # Short-run negatives learn an energy for their own number of steps, the log ratio one that is to be converged to.
    after = prior.sample(lambda: torch.randn(500, generator.D), steps=8 if objective == "recovery" else 30)
    assert correlation(draw(500)) == pytest.approx(0.7, abs=0.02)
    assert abs(correlation(before)) < 0.05
    assert 0.35 < correlation(after) < 0.8
    assert after.std().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("objective", ["nce", "cnce"])
def test_noise_contrast_finds_the_log_ratio(make_generator, objective):
    """u shifted by m in every coordinate of one layer: f at its optimum is m . u - |m|^2 / 2, its mean |m|^2 / 2.
    The conditional kind finds it up to a constant."""
    generator = make_generator(scales=1, layers_per_scale=1)
    config = recipe.Prior(kind="ebm", objective=objective, chain="preconditioned")
    config.energy = recipe.Energy(reads="z", width=16, blocks=1, spectral_norm=False)
    prior, m = make_prior(generator, config), 0.4
    optimizer = torch.optim.Adam(prior.parameters(), lr=1e-2)
    for i in range(150):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - i / 150)
        loss, _ = prior.loss(torch.randn(256, generator.D) + m)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    u = torch.randn(1000, generator.D) + m
    exact = (m * u - m**2 / 2).sum(1)
    found = prior.F(u).detach()
    assert torch.corrcoef(torch.stack([found, exact]))[0, 1] > 0.95
    assert found.std().item() == pytest.approx(exact.std().item(), rel=0.2)
    if objective == "nce":
        assert found.mean().item() == pytest.approx(exact.mean().item(), rel=0.2)


def test_kinds_are_those_of_the_recipe():
    allowed = recipe.Prior.model_fields["kind"].annotation.__args__
    assert {*KINDS, "flow"} == set(allowed)  # a flow brings its generator along
    assert KINDS["diffusion-ebm"] is DiffusionEBM


def test_a_margin_turns_the_push_round_where_the_chain_overshoots(make_generator):
    """The loss falls with the gap down to -margin and rises again below it, image by image."""
    config = recipe.Prior(kind="ebm", chain="preconditioned", steps=1, margin=3.0, energy={"width": 4})
    made = make_prior(make_generator(), config)
    gaps = torch.tensor([2.0, -2.0, -3.0, -5.0]).requires_grad_(True)
    made.negatives = lambda u_next, t, noise: torch.zeros_like(u_next)
    made.F = lambda u, t: torch.cat([torch.zeros(4), gaps])
    loss, figures = made.loss(torch.randn(4, made.generator.D))
    assert loss.item() == pytest.approx((2.0 - 2.0 - 3.0 + (-5.0 + 2 * 2.0)) / 4)
    assert figures["overshot"] == 0.25
    slope = torch.autograd.grad(loss, gaps)[0] * 4
    assert slope[0] == slope[1] == 1 and slope[3] == -1
