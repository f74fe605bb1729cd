"""Scores of images: against brute force at every cut, of an image alone, and what has none."""

import hashlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, Normal, kl_divergence
from toys import toy_prior

from hebmtool import data, recipe
from hebmtool.chains import CHAINS
from hebmtool.errors import HebmError, UsageError
from hebmtool.generator import Whitening
from hebmtool.noise import Noise, derive_seed
from hebmtool.prior import make_prior
from hebmtool.use import score as scoring
from hebmtool.use.score import PosteriorScorer, Scorer, make_scorer


@pytest.fixture
def tower(make_generator):
    """Three layers, L = 3."""
    return make_generator(scales=1, layers_per_scale=3)


def make(generator, kind="diffusion-ebm", **keys):
    """A prior whose energy is not zero, and a recipe that reads 8x8 images as ink."""
    prior = toy_prior(generator, kind, weight=0.1, **({} if kind == "flow" else {"steps": 2}) | keys)
    settings = recipe.Recipe(name="x")
    settings.generator.likelihood = "bernoulli"
    return prior, settings


def grey(n, shape=(1, 8, 8), seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8))


def first_draw(images, generator, seed=0):
    """The binary image and the noise stream of each image's first draw, as documented: seeded by its pixels."""
    codes = [int.from_bytes(hashlib.blake2b(i.numpy().tobytes(), digest_size=8).digest()) for i in images]
    x = []
    for image, code in zip(images, codes, strict=True):
        torch.manual_seed(derive_seed(seed, "prepare", code, 0))
        x.append(torch.bernoulli(image / 255))
    return torch.stack(x), Noise(derive_seed(seed, "score"), codes, generator.D)


# Scores against brute force


def test_joint_is_log_p_of_image_and_latents(tower):
    prior, settings = make(tower, "ebm")
    images = grey(4)
    scorer = Scorer(prior, settings, "joint", draws=1)
    x, noise = first_draw(images, tower)
    walk = tower.posterior(x, noise()).walk
    expected = tower.log_px(walk, x) + prior.energies(tower.latents(walk)).sum(1)
    for z, mu, sigma in zip(walk.z, walk.mu, walk.sigma, strict=True):
        expected = expected + Normal(mu, sigma).log_prob(z).sum((1, 2, 3))
    assert scorer.cuts == [0] and torch.allclose(scorer(images)[:, 0], expected.double(), atol=1e-4)


def test_energy_adds_the_layers_above_the_cut(tower):
    prior, settings = make(tower)
    images = grey(4)
    found = Scorer(prior, settings, draws=1)(images)
    x, noise = first_draw(images, tower)
    f = prior.energies(tower.encode(x, noise()))
    assert found.shape == (4, 3)
    for k in range(3):
        above = [f[:, l] for l in range(3) if tower.layer_number(l) > k]
        assert torch.allclose(found[:, k], sum(above).double(), atol=1e-5)
    assert f.std(0).min() > 0  # else the sums above would prove little


def test_an_energy_has_no_cut_above_the_layers_that_have_one(tower):
    """Whitening knows something of every layer, whichever has an f_i."""
    _, settings = make(tower)
    settings.prior.energy.layers = [2, 1]
    scorer = Scorer(make_prior(tower, settings.prior), settings, draws=1)
    assert scorer.cuts == [0, 1] and scorer(grey(2)).shape == (2, 2)
    assert Scorer(scorer.prior, settings, "likelihood").cuts == [0, 1, 2]
    with pytest.raises(UsageError, match="from 0 to 1, for no layer above layer 2 has an energy"):
        scorer.check(2)
    tower.whiten(Whitening.identity(tower.D))
    assert scorer.cuts == [0, 1, 2]


@pytest.mark.parametrize("level", [1, 2])
def test_diffusion_scores_what_the_levels_bring_back(tower, level):
    prior, settings = make(tower)
    images = grey(3)
    found = Scorer(prior, settings, scheme="diffusion", level=level, draws=1)(images)
    x, noise = first_draw(images, tower)
    u, s = tower.encode(x, noise()), prior.schedule
    eps = [noise() for _ in range(s.T)]
    for t in range(1, level + 1):
        u = s.a[t].item() * u + s.sigma[t].item() * eps[t - 1]
    for t in reversed(range(level)):
        u = prior.negatives(u, torch.full((3,), t), noise)
    f = prior.energies(u)
    expected = torch.stack([f.sum(1), f[:, :2].sum(1), f[:, 0]], dim=1)
    assert torch.allclose(found, expected.double(), atol=1e-4)
    assert not torch.allclose(found, Scorer(prior, settings, draws=1)(images), atol=1e-3)


@pytest.mark.parametrize("kind", ["gaussian", "diffusion-ebm"])
def test_bounds_and_ratio_against_their_definition(tower, kind):
    prior, settings = make(tower, kind)
    images = grey(4)
    likelihood = Scorer(prior, settings, "likelihood", draws=1)(images)
    ratio = Scorer(prior, settings, "llr", draws=1)
    x, noise = first_draw(images, tower)
    eps, fresh = noise(), noise()
    z = tower.posterior(x, eps).walk.z
    # KL_i(z_{>i}) in closed form; q(z_i | z_{>i}, x) is read off by drawing layer i at 0 and 1 standard deviations.
    kl = []
    for l, s in enumerate(tower.slices):
        ends = []
        for value in (0.0, 1.0):
            moved = eps.clone()
            moved[:, s] = value
            ends.append(tower.posterior(x, moved).walk)
        mu_q = ends[0].z[l]
        q = Normal(mu_q, ends[1].z[l] - mu_q)
        kl.append(kl_divergence(q, Normal(ends[0].mu[l], ends[0].sigma[l])).flatten(1).sum(1))
    u = tower.T_inverse(tower.join(z))
    L = []
    for k in range(3):
        mixed = u.clone()
        for l, s in enumerate(tower.slices):
            if tower.layer_number(l) <= k:
                mixed[:, s] = fresh[:, s]  # z_i ~ p(z_i | z_{>i})
        log_p = Bernoulli(logits=tower.decode(tower.walk(mixed))).log_prob(x).flatten(1).sum(1)
        L.append(log_p - sum(kl[l] for l in range(3) if tower.layer_number(l) > k))
    assert torch.allclose(likelihood, torch.stack(L, dim=1).double(), atol=1e-3)
    assert ratio.cuts == [1, 2]
    assert torch.allclose(ratio(images), torch.stack([L[1] - L[0], L[2] - L[0]], dim=1).double(), atol=1e-3)


def test_a_score_depends_on_the_image_alone(tower):
    prior, settings = make(tower)
    images, order = grey(5), [3, 1, 4, 0, 2]
    for scorer in (Scorer(prior, settings), Scorer(prior, settings, "llr", draws=2)):
        found = scorer(images)
        torch.manual_seed(99)
        assert torch.allclose(scorer(images[order]), found[order], atol=1e-5)
        assert torch.allclose(scorer(images[2:3]), found[2:3], atol=1e-5)
        assert torch.allclose(scorer(images, [1])[:, 0], found[:, scorer.cuts.index(1)], atol=1e-5)
    assert not torch.allclose(Scorer(prior, settings, seed=1)(images), Scorer(prior, settings)(images), atol=1e-4)


def test_draws_are_averaged(tower):
    prior, settings = make(tower)
    images = grey(3)
    many = [Scorer(prior, settings, draws=d, seed=s)(images)[:, 0] for d in (1, 9) for s in range(6)]
    spread = [torch.stack(part).std(0).mean() for part in (many[:6], many[6:])]
    assert spread[1] < 0.6 * spread[0]  # a third, in the mean


def test_what_a_scorer_refuses(tower):
    gaussian, settings = make(tower, "gaussian")
    joint, _ = make(tower, "ebm")
    diffusion, _ = make(tower)
    with pytest.raises(HebmError, match="needs a trained prior"):
        Scorer(gaussian, settings)
    with pytest.raises(HebmError, match="levels of a diffusion-ebm"):
        Scorer(joint, settings, scheme="diffusion")
    with pytest.raises(UsageError, match="levels are 1 to 3"):
        Scorer(diffusion, settings, scheme="diffusion", level=4)
    with pytest.raises(UsageError, match="did you mean 'energy'"):
        Scorer(joint, settings, "enrgy")
    with pytest.raises(UsageError, match="is of the energy score"):
        Scorer(diffusion, settings, "llr", "diffusion")
    with pytest.raises(UsageError, match="from 1 to 2"):
        Scorer(gaussian, settings, "llr").check(0)
    with pytest.raises(UsageError, match="of 3, .* from 0 to 2"):
        Scorer(joint, settings).check(3)


# Choosing a cut


class Toy:
    """A score that tells the model's own draws from dark images at cut 1 only."""

    cuts, seed, score, scheme, name, level, draws = [0, 1, 2], 0, "toy", "inference", "toy", 1, 1

    def __init__(self, generator):
        self.prior = SimpleNamespace(generator=generator)
        self.recipe = recipe.Recipe(name="x")

    def __call__(self, images, cuts=None):
        dark = -images.double().mean((1, 2, 3))
        return torch.stack([torch.zeros_like(dark), dark, -dark], dim=1)


def test_the_cut_is_the_one_that_finds_the_models_own_outliers(tower):
    dark = grey(30) // 8
    cut, by = scoring.blind_cut(Toy(tower), dark)
    assert cut == 1 and by[0] == 0.5 and by[1] > 0.99 and by[2] < 0.01


def test_with_too_few_test_images_no_cut_can_be_chosen(tower):
    prior, settings = make(tower)

    class Images(list):
        def batch(self, indices):
            raise AssertionError("nothing is drawn")

    with pytest.raises(HebmError, match="choosing a cut takes at least 6 test images, and there are 5; name a layer"):
        scoring.default_cut(Scorer(prior, settings), Images(range(5)))


def test_the_first_test_images_choose_the_cut_and_no_more_than_a_third(tower):
    prior, settings = make(tower)
    asked = []
    images = data.Images(30, (1, 8, 8), lambda indices: asked.append(list(indices)) or grey(30)[list(indices)])
    cut, by = scoring.default_cut(Scorer(prior, settings, draws=3), images)
    assert asked == [list(range(10))] and len(by) == 3 and by[cut] == max(by)
    # Of the energy at u_0, for either scheme.
    other, _ = scoring.default_cut(Scorer(prior, settings, scheme="diffusion", draws=1), images)
    assert other == cut


# Which scorer


def test_the_scorer_is_that_of_the_generator(tower):
    prior, settings = make(tower)
    assert make_scorer(prior, settings) == Scorer(prior, settings, "energy", "inference", 1, 4, 0)
    given = make_scorer(prior, settings, "llr", None, 1, 2, 7)
    assert (given.score, given.scheme, given.draws, given.seed) == ("llr", "inference", 2, 7)
    flow, _ = make(tower, "flow")
    found = make_scorer(flow, settings)
    assert isinstance(found, PosteriorScorer) and (found.name, found.draws, found.cuts) == ("posterior", 1, [0])
    for words, message in (
        ({"score": "energy"}, "a run without an encoder has one score, posterior"),
        ({"scheme": "diffusion"}, "a run without an encoder has one scheme, inference"),
    ):
        with pytest.raises(UsageError, match=message):
            make_scorer(flow, settings, **words)
    with pytest.raises(UsageError, match="layer is 1; .* of 1"):
        found.check(1)
    assert scoring.default_cut(found, None) == (0, None)


def test_the_posterior_score_is_the_log_joint_at_the_inferred_latent(tower):
    prior, settings = make(tower, "flow", test_steps=3)
    images = grey(4)
    scorer = make_scorer(prior, settings)
    scores = scorer(images)
    assert scores.shape == (4, 1) and torch.allclose(scores[2:], scorer(images[2:]), atol=1e-3)
    z = scorer.inference(images)[:, 0]
    error = (2 * images.double() / 255 - 1 - prior.g(z).double()).square().flatten(1).sum(1)
    expected = prior.log_density(z).double() - error / (2 * prior.inference.sigma**2)
    assert torch.allclose(scores[:, 0], expected, rtol=1e-3)
    each = scorer.inference(images, draws=3)
    averaged = make_scorer(prior, settings, draws=3)(images)[:, 0]
    by_hand = [prior.log_joint(each[:, k], images / 255.0) for k in range(3)]
    assert torch.allclose(averaged, torch.stack(by_hand).mean(0).double(), rtol=1e-3)


# In units of F


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("kind", ["ebm", "diffusion-ebm"])
def test_an_energy_is_in_the_units_it_was_learned_in_whatever_draws_it(tower, kind, chain):
    """S = sum of f_i as published: the log ratio times the scale of the chain it was learned with."""
    prior, settings = make(tower, kind, chain=chain)
    images, zero = grey(3), torch.zeros(1, dtype=torch.long)
    found = Scorer(prior, settings, draws=1)(images)
    x, noise = first_draw(images, tower)
    u = tower.encode(x, noise())
    assert torch.allclose(found[:, 0], prior.F(u).double(), rtol=1e-4, atol=1e-6)
    assert torch.allclose(found[:, 0], (prior.scale(zero) * prior.log_ratio(u).sum(1)).double(), rtol=1e-4, atol=1e-6)
    for other in CHAINS:
        assert torch.equal(Scorer(prior.using(chain=other), settings, draws=1)(images), found)


def test_a_score_that_is_not_finite_is_said(tower):
    prior, settings = make(tower)
    prior.log_ratio = lambda u, t=0, layers=None: torch.full((len(u), 3), float("nan"))
    with pytest.raises(HebmError, match=r"the energy \(inference\) score of an image is not finite"):
        Scorer(prior, settings, draws=1)(grey(2))


# Many images


def test_many_images_are_scored_in_batches(tower, monkeypatch):
    prior, settings = make(tower)
    scorer = Scorer(prior, settings, draws=1)
    monkeypatch.setattr(scoring, "BATCH", 3)
    found = scoring.in_batches(scorer, grey(7), [0, 2])
    assert found.shape == (7, 2) and found.dtype == np.float64
    assert np.allclose(found, scorer(grey(7), [0, 2]).numpy(), atol=1e-5)


def test_scores_stream(tower):
    prior, settings = make(tower)
    pulled = 0

    def endless():
        nonlocal pulled
        while True:
            pulled += 1
            yield f"{pulled}", grey(1, seed=pulled)[0]

    found = scoring.stream(Scorer(prior, settings, draws=1), endless(), 0, batch_size=4)
    first = [next(found) for _ in range(4)]
    assert [name for name, _ in first] == ["1", "2", "3", "4"] and pulled == 4
    next(found)
    assert pulled == 8
    expected = Scorer(prior, settings, draws=1)(torch.stack([grey(1, seed=i)[0] for i in range(1, 5)]))[:, 0]
    assert [value for _, value in first] == pytest.approx(expected.tolist())
