"""Learning: what each objective is least at, and that it reaches every parameter."""

import math

import pytest
import torch
from torch import nn
from toys import ENERGY_KINDS, Twins, toy_prior

from hebmtool import recipe, rows
from hebmtool.chains import CHAINS
from hebmtool.errors import UsageError
from hebmtool.prior import OBJECTIVES, Schedule, make_prior
from hebmtool.prior.itself import VISIT, KeptChains, OwnDraws, own_draws
from hebmtool.prior.objectives import RUN_CHAINS
from hebmtool.recipe import words
from hebmtool.train.prior import check_finish

every_energy = pytest.mark.parametrize("kind", ENERGY_KINDS)
every_chain = pytest.mark.parametrize("chain", CHAINS)
LEARNED_BY = [
    (kind, objective)
    for kind in ENERGY_KINDS
    for objective in OBJECTIVES
    if kind != "ebm" or objective not in ("score-matching", "telescope")
]


def test_objectives_are_those_of_the_recipe():
    assert list(words.OBJECTIVES) == list(OBJECTIVES)
    assert sorted(RUN_CHAINS) == ["recovery"]
    with pytest.raises(UsageError, match="the ebm kind has no noise levels to match"):
        recipe.from_dict({"prior": {"kind": "ebm", "objective": "score-matching"}})
    with pytest.raises(UsageError, match="the ebm kind has no noise levels to take the ratios of; use nce"):
        recipe.from_dict({"prior": {"kind": "ebm", "objective": "telescope"}})


@pytest.mark.parametrize("reads", ["z", "z+state"])
@every_chain
@pytest.mark.parametrize(("kind", "objective"), LEARNED_BY)
def test_every_parameter_receives_a_gradient(generator, kind, objective, chain, reads):
    # The head's bias moves positives and negatives alike: only the penalty sees it.
    config = recipe.Prior(kind=kind, objective=objective, chain=chain, steps=2, penalty=0.1)
    config.energy = recipe.Energy(reads=reads, readout="strided" if "nce" in objective else "sum", width=6, blocks=1)
    prior = make_prior(generator, config)
    for p in prior.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=1e-3)
    loss, figures = prior.loss(torch.randn(16, generator.D), torch.rand(16, *generator.image_shape))
    loss.backward()
    numbers = [value for value in figures.values() if not isinstance(value, torch.Tensor) or not value.dim()]
    assert loss.isfinite() and figures and len(numbers) == len(figures)
    assert all(math.isfinite(value) for value in figures.values())
    for name, p in prior.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.any(), name
    assert all(p.grad is None for p in generator.parameters())


@pytest.mark.parametrize(("kind", "objective"), LEARNED_BY)
def test_the_power_iterations_advance_once_an_update(generator, monkeypatch, kind, objective):
    prior, advanced = toy_prior(generator, kind, objective=objective), []
    advance = prior.energy.advance
    monkeypatch.setattr(prior.energy, "advance", lambda: advanced.append(1) or advance())
    prior.loss(torch.randn(4, generator.D), torch.rand(4, *generator.image_shape))
    assert advanced == [1]


# Recovery likelihood


@every_chain
@every_energy
def test_gradient_of_the_loss_holds_the_negatives(generator, monkeypatch, kind, chain):
    prior, seen = toy_prior(generator, kind, chain, penalty=0.1), {}
    negatives, pairs = prior.negatives, prior.pairs

    def record_negatives(*arguments, **keys):
        seen["negative"] = negatives(*arguments, **keys)
        return seen["negative"]

    def record_pairs(u_0):
        seen["positive"], u_next, seen["t"] = pairs(u_0)
        return seen["positive"], u_next, seen["t"]

    monkeypatch.setattr(prior, "negatives", record_negatives)
    monkeypatch.setattr(prior, "pairs", record_pairs)
    loss, figures = prior.loss(torch.randn(32, generator.D), torch.rand(32, 1, 8, 8))
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


def test_a_margin_turns_the_push_round_where_the_chain_overshoots(generator):
    """The loss falls with the gap down to -margin and rises again below it, image by image."""
    made = toy_prior(generator, "ebm", steps=1, margin=3.0)
    gaps = torch.tensor([2.0, -2.0, -3.0, -5.0]).requires_grad_(True)
    made.negatives = lambda u_next, t, eps, learning: torch.zeros_like(u_next)
    made.F = lambda u, t: torch.cat([torch.zeros(4), gaps])
    loss, figures = made.loss(torch.randn(4, generator.D), torch.rand(4, 1, 8, 8))
    assert loss.item() == pytest.approx((2.0 - 2.0 - 3.0 + (-5.0 + 2 * 2.0)) / 4)
    assert figures["overshot"] == 0.25
    slope = torch.autograd.grad(loss, gaps)[0] * 4
    assert slope[0] == slope[1] == 1 and slope[3] == -1


# The levels


def test_a_joint_energy_learns_from_the_posterior_against_the_gaussian(generator):
    u_0 = torch.full((2000, generator.D), 2.0)
    u, u_next, t = toy_prior(generator, "ebm").pairs(u_0)
    assert u is u_0 and (t == 0).all()
    assert u_next.mean().item() == pytest.approx(0, abs=0.02) and u_next.std().item() == pytest.approx(1, abs=0.02)


def test_diffusion_learns_all_levels(generator):
    prior = toy_prior(generator, levels=3)
    u_0 = torch.full((600, generator.D), 2.0)
    u_t, u_next, t = prior.pairs(u_0)
    s = prior.schedule
    for level in range(3):
        chosen = t == level
        assert 130 < chosen.sum() < 270
        assert u_t[chosen].mean().item() == pytest.approx(2 * s.abar[level].item(), abs=0.06)
        assert u_next[chosen].mean().item() == pytest.approx(2 * s.abar[level + 1].item(), abs=0.06)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_levels_are_drawn_by_their_power(generator, power):
    t = toy_prior(generator, levels=4, level_power=power).levels(40_000)
    # P(floor(T U^p) <= k) = ((k + 1) / T)^(1/p).
    for k in range(4):
        assert (t <= k).float().mean().item() == pytest.approx(((k + 1) / 4) ** (1 / power), abs=0.01)


# Where each is least


@every_chain
def test_score_matching_is_least_at_the_true_marginals(generator, monkeypatch, chain):
    """u_0 ~ N(0, v): level t's marginal is N(0, abar^2 v + sbar^2), and F_t = w (log of its ratio to N(0, 1))."""
    prior, v = toy_prior(generator, chain=chain, objective="score-matching"), 0.25
    monkeypatch.setattr(generator, "posterior_score", lambda u, x: -u / v)
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
        loss, figures = prior.loss(u_0, u_0)
        return torch.autograd.grad(loss, w)[0], figures

    below, _ = slope_at(0.8)
    there, figures = slope_at(1.0)
    above, _ = slope_at(1.2)
    assert (below < 0).all() and (above > 0).all()
    assert (there.abs() < 0.15 * torch.minimum(-below, above)).all()
    assert figures["explained_0"] == pytest.approx((1 / v - 1) ** 2 * v, rel=0.05)


def test_score_matching_asks_the_posterior_of_the_images(generator, monkeypatch):
    asked, score = [], generator.posterior_score
    monkeypatch.setattr(generator, "posterior_score", lambda *given: asked.append(given) or score(*given))
    u_0, x = torch.randn(4, generator.D), torch.rand(4, 1, 8, 8)
    for objective in OBJECTIVES:
        toy_prior(generator, objective=objective).loss(u_0, x)
    [(u, seen)] = asked  # no other objective does
    assert u is u_0 and seen is x


@every_chain
@pytest.mark.parametrize("objective", ["nce", "cnce"])
def test_the_contrast_is_least_at_the_log_ratio(generator, monkeypatch, objective, chain):
    """u_0 ~ N(m, I): F / scale = w (m . u - m^2 D / 2) + c is told from noise best at w = 1 (and, for nce, c = 0)."""
    prior, m, D = toy_prior(generator, "ebm", chain, objective=objective), 0.25, generator.D
    u_0 = m + torch.randn(20_000, D)

    def slope_at(weight, c=0.0):
        w, shift = (torch.tensor(value, requires_grad=True) for value in (weight, c))
        exact = lambda u: m * u.sum(1) - m**2 * D / 2  # noqa: E731
        monkeypatch.setattr(prior, "F", lambda u, t: prior.scale(t) * (w * exact(u) + shift))
        torch.manual_seed(1)
        loss, _ = prior.loss(u_0, u_0)
        return torch.stack(torch.autograd.grad(loss, (w, shift), allow_unused=False))

    below, there, above = (slope_at(w) for w in (0.7, 1.0, 1.3))
    assert below[0] < 0 < above[0] and there[0].abs() < 0.25 * torch.minimum(-below[0], above[0])
    low, high = slope_at(1.0, -0.3)[1], slope_at(1.0, 0.3)[1]
    if objective == "nce":
        assert low < 0 < high and there[1].abs() < 0.15 * torch.minimum(-low, high)
    else:
        assert max(low.abs(), high.abs(), there[1].abs()) < 1e-6  # a constant is not seen


def test_several_copies_are_as_many_contrasts_of_one_positive(generator):
    """By hand from the same random numbers."""
    prior, u_0 = toy_prior(generator, "ebm", objective="cnce", copies=3, penalty=0.1), torch.randn(8, generator.D)
    torch.manual_seed(5)
    loss, figures = prior.loss(u_0, u_0)
    torch.manual_seed(5)
    prior.pairs(u_0)
    F, copies = prior.F(u_0), []
    for _ in range(3):
        rho = torch.rand(8, 1)
        copies.append(prior.F(rho * u_0 + (1 - rho**2).sqrt() * torch.randn_like(u_0)))
    gaps = torch.stack(copies) - F
    size = torch.cat([F, *copies]).square().mean()
    assert loss.item() == pytest.approx((gaps.exp().log1p().mean() + 0.1 * size).item(), rel=1e-4)
    assert figures["gap"].item() == pytest.approx(gaps.mean().item(), rel=1e-3, abs=1e-6)


# Learned on a law that is known


@pytest.mark.parametrize(
    ("kind", "objective"),
    [
        *(case for case in LEARNED_BY if case[1] in ("recovery", "nce")),
        # Least where nce is: see above.
        *(pytest.param(*case, marks=pytest.mark.slow) for case in LEARNED_BY if case[1] == "cnce"),
    ],
)
def test_learns_the_dependence_between_layers(kind, objective):
    """Two layers of posterior u, each standard normal, correlated 0.7: about half of it in 60 updates."""
    generator = Twins()

    def draw(n):
        top, other = torch.randn(2, n, 4)
        return torch.cat([top, 0.7 * top + math.sqrt(1 - 0.7**2) * other], dim=1)

    def correlation(u):
        return torch.corrcoef(torch.stack([layer.flatten() for layer in generator.split(u)]))[0, 1].item()

    config = recipe.Prior(kind=kind, objective=objective, chain="preconditioned", steps=6, h=0.3)
    config.penalty = 1e-3 if objective == "recovery" else 0.0
    config.energy = recipe.Energy(reads="z+state", width=8, blocks=1)
    prior = make_prior(generator, config)
    prior.calibrate(generator.walk(torch.randn(256, generator.D)))
    before = prior.sample(lambda: torch.randn(2000, generator.D))
    optimizer = torch.optim.Adam(prior.parameters(), lr=2e-2, betas=(0.9, 0.99))
    for i in range(60):
        optimizer.param_groups[0]["lr"] = 2e-2 * (1 - i / 60)
        loss, _ = prior.loss(draw(128), torch.empty(128, 0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # Short-run negatives learn an energy for their own number of steps, the log ratio one that is to be converged to.
    after = prior.sample(lambda: torch.randn(2000, generator.D), K=6 if objective == "recovery" else 20)
    assert abs(correlation(before)) < 0.05
    assert 0.3 < correlation(after) < 0.8
    assert after.std().item() == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("objective", ["nce", "cnce"])
def test_noise_contrast_finds_the_log_ratio(objective):
    """u shifted by m in every coordinate: F at its optimum is m . u - |m|^2 / 2, its mean |m|^2 / 2.  The conditional
    kind finds it up to a constant."""
    generator = Twins()
    config = recipe.Prior(kind="ebm", objective=objective, chain="preconditioned")
    config.energy = recipe.Energy(reads="z", width=16, blocks=1, spectral_norm=False)
    prior, m = make_prior(generator, config), 0.6
    optimizer = torch.optim.Adam(prior.parameters(), lr=1e-2)
    for i in range(100):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - i / 100)
        loss, _ = prior.loss(torch.randn(128, generator.D) + m, torch.empty(128, 0))
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


# Telescoping ratios


class Rungs(nn.Module):
    """Energies of two layers of four coordinates: f_i = d_t / 2 - c_t |u_i|^2 / 2 v_t, which log ratios of Gaussians
    are, v_t [T] being a variance at hand."""

    def __init__(self, v):
        super().__init__()
        self.v, self.c, self.d = v.float(), nn.Parameter(torch.zeros(len(v))), nn.Parameter(torch.zeros(len(v)))

    def forward(self, walk, t):
        squares = torch.stack([u.flatten(1).square().sum(1) for u in walk.u], 1)
        return (0.5 * self.d[t][:, None] - 0.5 * (self.c / self.v)[t][:, None] * squares)[..., None]

    def by_layer(self, walk, t):
        return self(walk, t)[..., 0]

    def advance(self):
        pass


def test_the_telescope_finds_a_ratio_that_one_contrast_cannot():
    """u_0 ~ N(0, v I) in 8 dimensions, v = 0.01: 14.4 nats from N(0, I), of which no draw comes near u_0."""
    generator, v, T = Twins(), 0.01, 8
    D, u_0 = generator.D, math.sqrt(v) * torch.randn(20_000, generator.D)

    def loss_of(prior):
        torch.manual_seed(1)  # one draw of the noise
        return prior.loss(u_0, u_0)[0]

    single = toy_prior(generator, "ebm", objective="nce").requires_grad_(False)
    single.energy = Rungs(torch.tensor([v]))
    for nats in (-5, 0, 5):  # the ratio itself, and what is far from it, are all the same to it
        with torch.no_grad():
            single.energy.c[0], single.energy.d[0] = 1 - v, -0.5 * D * math.log(v) + nats
        assert loss_of(single) < 0.01

    prior = toy_prior(generator, objective="telescope", levels=T)
    variance = prior.schedule.abar**2 * v + prior.schedule.sbar**2
    prior.energy = Rungs(variance[:-1])
    optimizer = torch.optim.LBFGS(prior.energy.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = loss_of(prior)
        loss.backward()
        return loss

    optimizer.step(closure)
    for t in (0, 3, T - 1):
        u = math.sqrt(variance[t]) * torch.randn(4000, D)
        # Of level t, as a whole and by its coefficient: c_t / v_t + ... + c_{T-1} / v_{T-1} = 1 / v_t - 1 / v_T.
        expected = 0.5 * D * (variance[t] - 1 - variance[t].log())
        assert prior.log_tilt(u, t).mean().item() == pytest.approx(expected.item(), rel=0.1, abs=0.05)
        c = (prior.energy.c / prior.energy.v)[t:].sum().item()
        assert c == pytest.approx((1 / variance[t] - 1 / variance[T]).item(), rel=0.1, abs=0.05)
        assert torch.allclose(prior.log_ratio(u, t).sum(1), prior.log_tilt(u, t), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("chain", ["langevin", "underdamped"])
def test_bridges_add_up_from_a_level_upwards(generator, chain):
    prior, u = toy_prior(generator, chain=chain, objective="telescope", weight=0.1), torch.randn(6, generator.D)
    t = torch.tensor([0, 1, 2, 2, 1, 0])
    expected = [sum(prior.bridge(u[i : i + 1], torch.tensor([s])) for s in range(int(t[i]), 3)) for i in range(6)]
    assert torch.allclose(prior.F(u, t), prior.scale(t) * torch.cat(expected), rtol=1e-4)


# Finishing against the prior's own draws


def own(prior, gaps):
    """The loss of learning against itself where draws lie so many nats above posterior u, and its slope at each."""
    gaps = torch.tensor(gaps).requires_grad_(True)
    prior.refine = lambda u_0, eps, learning: torch.zeros_like(u_0)
    prior.F = lambda u, t: torch.cat([torch.zeros(len(gaps)), gaps])
    loss, figures = prior.finish(torch.randn(len(gaps), prior.generator.D), torch.empty(0))
    return loss.item() * len(gaps), torch.autograd.grad(loss, gaps)[0] * len(gaps), figures


@every_energy
def test_no_draw_of_its_own_decides_an_update_alone(generator, kind):
    loss, slope, figures = own(toy_prior(generator, kind, "hmc"), [3.0, -3.0, 4000.0, -40.0, -60.0])
    assert torch.allclose(slope, torch.tensor([1.0, 1.0, 1 / 3991, 1 / 31, 0.0]), rtol=1e-3)
    assert loss == pytest.approx(10 + math.log(3991) - 10 - math.log(31), rel=1e-4)
    assert figures["trimmed"] == pytest.approx(0.2)


@every_energy
def test_a_prior_that_is_its_posterior_is_left_as_it_is(generator, kind):
    """F = 0 and u_0 ~ N(0, I): its draws are of the same law, and the gradient is noise; of u_0 shifted it is not."""
    prior = toy_prior(generator, kind, "hmc", weight=0.0, steps=5).requires_grad_(True)

    prior.stepping(1.5)
    heads = [layer.head.weight for layer in prior.energy.layers]

    def pull(shift):
        torch.manual_seed(0)
        loss, _ = prior.finish(torch.randn(400, generator.D) + shift, torch.empty(0))
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, heads)]).norm().item()

    assert pull(0.0) < 0.3 * pull(0.5)


def test_the_finish_adapts_the_steps_it_draws_by(generator):
    prior = toy_prior(generator, "ebm", "hmc", steps=9)
    prior.stepping(0.3)
    loss, figures = prior.finish(torch.randn(8, generator.D), torch.empty(0))
    [theta] = prior.steps
    assert theta > 0.3  # nearly all is taken where F is next to nothing
    assert loss.isfinite() and figures["own_std"] == pytest.approx(1, abs=0.3)


def drawn_for(prior, own, n, parts=1):
    """(u^-, how high each stood when drawn) of updates 1 .. n, each in so many parts of 4 images."""
    for _ in range(n):
        found = []
        for part in rows.parts(4, parts):
            torch.manual_seed(3)
            with rows.computing(part):
                found.append(own(prior, torch.zeros(len(part), prior.generator.D)))
        u, heights = zip(*found, strict=True)
        yield torch.cat(u), None if heights[0] is None else torch.cat(heights)


@pytest.mark.parametrize("parts", [1, 2])
def test_draws_are_for_several_updates(generator, monkeypatch, parts):
    """Those of one round are the chain's, whatever the parts; the round after that is drawn anew."""
    monkeypatch.setattr("hebmtool.prior.ebm.GAIN", 0.0)  # steps are adapted after every part
    prior = toy_prior(generator, "ebm", "hmc", weight=0.1, steps=5)
    prior.stepping(0.5)
    (first, at_once), (second, height), (third, _), (other, anew) = drawn_for(prior, OwnDraws(3), 4, parts)
    torch.manual_seed(3)
    start = torch.randn(4, generator.D)
    expected = prior.refine(start, lambda: torch.randn(4, generator.D), learning=True)
    assert torch.allclose(first, expected, atol=1e-5) and not torch.allclose(expected, start, atol=0.1)
    assert torch.equal(first, second) and torch.equal(first, third) and at_once is anew is None
    assert torch.allclose(other, first, atol=1e-5) and other is not first, "drawn again, from the same seed"
    F = prior.log_tilt(torch.cat([first, torch.zeros(1, generator.D)])).detach()
    assert torch.allclose(height, F[:-1] - F[-1], atol=1e-5)


def test_draws_of_earlier_weights_count_for_less_where_they_are_unlikelier_now(generator):
    """w = p(u^-) / p_then(u^-), at most 1, log Z changing as the mean of F at posterior u does."""
    prior, own = toy_prior(generator, "ebm", "hmc"), OwnDraws(2)
    gaps = torch.tensor([3.0, -3.0, 0.0]).requires_grad_(True)
    prior.refine = lambda u_0, eps, learning: torch.zeros_like(u_0)
    prior.log_tilt = lambda u: torch.full((len(u),), 5.0)
    prior.F = lambda u, t: torch.cat([torch.full((3,), 7.0), 7 + gaps])
    for weights in ([1.0, 1.0, 1.0], [1.0, math.exp(-3), 1.0]):
        loss, figures = prior.finish(torch.randn(3, generator.D), torch.empty(0), own)
        assert torch.allclose(torch.autograd.grad(loss, gaps)[0] * 3, torch.tensor(weights), rtol=1e-4)
        assert figures["own_weight"].item() == pytest.approx(sum(weights) / 3, rel=1e-4)


def test_a_round_is_gone_on_with(generator):
    prior = toy_prior(generator, "ebm", "hmc", steps=5)
    own, again = OwnDraws(3), OwnDraws(3)
    [(u, _)] = drawn_for(prior, own, 1)
    again.restore(own.tensors(), u.device)
    assert all(torch.equal(u, found) and height is not None for found, height in drawn_for(prior, again, 2))
    assert not again.tensors(), "the next update draws anew"
    again = OwnDraws(1)
    again.restore(own.tensors(), u.device)
    [(_, height)] = drawn_for(prior, again, 1)
    assert height is None, "where every update is to draw anew, it does"


def test_kept_chains_go_on_and_some_begin_anew(generator):
    """Until there are all of them every draw is fresh; then they go on from where they stood, but for every third
    update, which draws anew."""
    prior, own, ran = toy_prior(generator, "ebm", "hmc"), KeptChains(10, 0.3), []

    def refine(u, eps, K=None, learning=False):
        ran.append((K, len(u), learning))
        return u + (100.0 if K is None else 1.0)

    prior.refine, u_0 = refine, torch.zeros(4, generator.D)
    for filled in (4, 8, 10):
        u, height = own(prior, u_0)
        assert ran.pop() == (None, 4, True) and not ran and height is None and own.filled == filled
        assert u.mean().round() == 100 and u.std() > 0.5, "from N(0, I)"
    for update in range(1, 20):
        before = own.u.clone()
        u, _ = own(prior, u_0)
        assert ran.pop() == (VISIT if update % 3 else None, 4, True) and not ran
        at = [(own.u == each).all(1).nonzero().item() for each in u]
        assert len(set(at)) == 4, "chains are visited once an update"
        assert (u - before[at]).allclose(torch.ones(())) == bool(update % 3)
        others = [i for i in range(10) if i not in at]
        assert torch.equal(own.u[others], before[others])


@pytest.mark.parametrize("parts", [2, 4])
def test_kept_chains_are_the_same_in_parts(generator, monkeypatch, parts):
    monkeypatch.setattr("hebmtool.prior.ebm.GAIN", 0.0)  # steps are adapted after every part
    prior = toy_prior(generator, "ebm", "hmc", weight=0.1, steps=5)
    prior.stepping(0.5)
    whole, apart = KeptChains(8, 0.3), KeptChains(8, 0.3)
    for (u, _), (found, _) in zip(drawn_for(prior, whole, 6), drawn_for(prior, apart, 6, parts), strict=True):
        assert torch.allclose(u, found, atol=1e-5)
    assert torch.allclose(whole.u, apart.u, atol=1e-5)


def test_kept_chains_come_to_a_law_that_fresh_ones_do_not_reach(generator, monkeypatch):
    """F(u) = 6 u_1 shifts u_1 to N(6, 1): one move from N(0, I) is not there, thirty visits are."""
    monkeypatch.setattr("hebmtool.prior.ebm.GAIN", 0.0)  # steps that grow until a move is half a turn mix nothing
    prior = toy_prior(generator, "ebm", "hmc", steps=5)
    prior.F = lambda u, t, walk=None: 6 * u[:, 0]
    prior.stepping(0.3)
    u_0 = torch.zeros(64, generator.D)
    torch.manual_seed(0)
    fresh, own = OwnDraws(), KeptChains(128, 0.02)
    assert fresh(prior, u_0)[0][:, 0].mean() < 4
    for _ in range(60):
        own(prior, u_0)
    assert own.u[:, 0].mean().item() == pytest.approx(6, abs=0.5)
    assert own.u[:, 0].std().item() == pytest.approx(1, abs=0.4) and abs(own.u[:, 1:].mean()) < 0.1


def test_kept_chains_are_gone_on_with(generator):
    prior = toy_prior(generator, "ebm", "hmc", steps=5)
    for updates in (1, 3):  # while they are being filled, and afterwards
        own, again, fewer = KeptChains(8, 0.3), KeptChains(8, 0.3), KeptChains(4, 0.3)
        *_, (u, _) = drawn_for(prior, own, updates)
        again.restore(own.tensors(), u.device)
        fewer.restore(own.tensors(), u.device)
        assert torch.equal(own.u, again.u) and again.filled == own.filled and torch.equal(fewer.u, own.u[:4])
        for (u, _), (found, _) in zip(drawn_for(prior, own, 4), drawn_for(prior, again, 4), strict=True):
            assert torch.equal(u, found)
    assert not KeptChains(8, 0.3).tensors()
    again.restore(OwnDraws(3).tensors(), u.device)
    OwnDraws(3).restore(own.tensors(), u.device)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"buffer": 100, "redraw": 2}, "keeps chains that go on at every update, and train_prior.redraw is 2.*remove"),
        (
            {"buffer": 63},
            "train_prior.buffer is 63, fewer chains than an update .* at least train_prior.batch_size, 64",
        ),
    ],
)
def test_a_buffer_holds_a_batch_of_chains_that_go_on(keys, words):
    with pytest.raises(UsageError, match=words) as raised:
        recipe.from_dict({"train_prior": keys})
    assert "\n" not in str(raised.value)
    kept = own_draws(recipe.TrainPrior(buffer=64, fresh=0.2))
    assert (kept.size, kept.every) == (64, 5) and isinstance(own_draws(recipe.TrainPrior()), OwnDraws)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"prior": {"chain": "underdamped"}}, "draws by an exact chain, and prior.chain is underdamped; set it to hmc"),
        (
            {"prior": {"kind": "flow"}},
            "for priors learned on a generator that is there, and prior.kind is flow; remove",
        ),
        ({"train_prior": {"joint": True}}, "train_prior.finish is 0.1: it learns against draws of its prior anyway"),
    ],
)
def test_a_finish_needs_an_exact_chain(settings, words):
    settings["train_prior"] = {"finish": 0.1} | settings.get("train_prior", {})
    with pytest.raises(UsageError, match=words) as raised:
        check_finish(recipe.from_dict(settings))
    assert "\n" not in str(raised.value)
    check_finish(recipe.from_dict({"prior": {"chain": "hmc"}, "train_prior": {"finish": 0.1}}))
