"""Sampling: the same images at any batch size, and every stage of the trajectory."""

import pytest
import torch
from toys import toy_prior

from hebmtool import picture
from hebmtool.errors import HebmError
from hebmtool.noise import Noise
from hebmtool.prior import KINDS
from hebmtool.use.sample import progressive, sample


def make(generator, kind="diffusion-ebm"):
    return toy_prior(generator, kind, weight=0.1, steps=2)


@pytest.fixture
def vivid(make_generator):
    """A generator whose random images are not nearly grey."""
    generator = make_generator()
    head = generator.image_head[1]
    head.folded = 30 * head.folded
    return generator


def drawn(prior, n, **options):
    return torch.cat(list(sample(prior, n, **options)))


def same(a, b):
    """Equal up to the rounding of the last bit."""
    return a.shape == b.shape and (a.int() - b.int()).abs().max() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_images_do_not_depend_on_the_batch_size(vivid, kind):
    prior = make(vivid, kind)
    images = drawn(prior, 7, seed=3)
    assert images.dtype == torch.uint8 and images.shape == (7, 1, 8, 8)
    assert images.float().std() > (0.1 if KINDS[kind].brings_generator else 10)
    assert [len(batch) for batch in sample(prior, 7, seed=3, batch_size=3)] == [3, 3, 1]
    assert same(drawn(prior, 7, seed=3, batch_size=3), images)
    assert same(drawn(prior, 4, seed=3), images[:4])
    assert not same(drawn(prior, 7, seed=4), images)


def test_images_are_the_priors_draws_decoded(vivid):
    prior = make(vivid)
    u = prior.sample(Noise(5, range(4), vivid.D), K=1, tau=0.5)
    expected = picture.to_uint8(vivid.images(u))
    assert torch.equal(drawn(prior, 4, seed=5, steps=1, temperature=0.5), expected)
    assert not same(drawn(prior, 4, seed=5, steps=1), expected)
    assert not same(drawn(prior, 4, seed=5, temperature=0.5), expected)


def test_images_come_as_they_are_drawn(vivid, monkeypatch):
    prior, asked = make(vivid, "gaussian"), []
    draw = prior.sample
    monkeypatch.setattr(prior, "sample", lambda *arguments: asked.append(1) or draw(*arguments))
    batches = sample(prior, 100, batch_size=10)
    next(batches)
    assert len(asked) == 1


def test_a_sample_of_the_pixels_is_each_images_own(vivid):
    """Drawn from p(x | z), which for binary pixels means black or white; the mean over many is the mean."""
    prior = make(vivid, "gaussian")
    pixels = drawn(prior, 6, seed=3, pixels="sample")
    assert set(pixels.unique().tolist()) == {0, 255}
    before = torch.get_rng_state()
    assert torch.equal(drawn(prior, 6, seed=3, batch_size=2, pixels="sample"), pixels)
    assert torch.equal(torch.get_rng_state(), before)
    u = torch.randn(1, vivid.D)
    many = vivid.drawn(u.expand(400, -1), range(400)).mean(0)
    assert (many - vivid.images(u)[0]).abs().max() < 5 * 0.5 / 20


@pytest.mark.parametrize(("kind", "stages"), [("gaussian", 1), ("ebm", 2), ("diffusion-ebm", 4), ("flow", 5)])
def test_progressive_runs_from_the_noise_to_the_sample(vivid, kind, stages):
    prior = make(vivid, kind)
    g = prior.generator
    strip, found = progressive(prior, 5, seed=2, batch_size=3)
    assert found == stages and strip.dtype == torch.uint8 and strip.shape == (5 * stages, 1, 8, 8)
    rows = strip.unflatten(0, (5, stages))
    assert same(rows[:, -1], drawn(prior, 5, seed=2))
    assert same(rows[:, 0], picture.to_uint8(g.images(Noise(2, range(5), g.D)())))
    if stages > 1 and kind != "flow":  # whose untrained couplings are nearly the identity
        assert not same(rows[:, 0], rows[:, -1])
    middle = list(prior.trajectory(Noise(2, range(5), g.D)))
    for stage, u in enumerate(middle):
        assert same(rows[:, stage], picture.to_uint8(g.images(u)))


def test_a_level_may_have_steps_of_its_own(vivid):
    prior = make(vivid)
    u = prior.sample(Noise(5, range(4), vivid.D), [4, 1, 0])
    assert torch.equal(drawn(prior, 4, seed=5, steps=[4, 1, 0]), picture.to_uint8(vivid.images(u)))


@pytest.mark.parametrize("kind", ["ebm", "diffusion-ebm"])
def test_a_chain_that_left_the_numbers_is_said(vivid, kind):
    prior = make(vivid, kind)
    prior.F = lambda u, t: 1e20 * u.square().square().sum(1)
    for draw in (drawn, progressive):
        with pytest.raises(HebmError, match=f"the {kind} prior's chain diverged: .*; take fewer steps") as raised:
            draw(prior, 2)
        assert "\n" not in str(raised.value)
