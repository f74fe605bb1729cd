"""Controllable synthesis: what can be asked, and images that follow it, the same in any batch and row."""

import pytest
import torch
from toys import toy_label, toy_prior

from hebmtool import picture
from hebmtool.errors import HebmError, UsageError
from hebmtool.noise import Noise
from hebmtool.use import controllable
from hebmtool.use.controllable import Wish


@pytest.mark.parametrize(
    ("text", "wish"),
    [
        ("Smiling=1", Wish("Smiling", "1", 1.0)),
        ("Male=0:0.5", Wish("Male", "0", 0.5)),
        ("odd=all", Wish("odd", "all", 1.0)),
        ("odd=1:-2", Wish("odd", "1", -2.0)),
    ],
)
def test_parse(text, wish):
    assert controllable.parse(text) == wish


@pytest.mark.parametrize("text", ["Smiling", "=1", "Smiling=", "Smiling=1:x", "Smiling=1:", "a=1:nan"])
def test_parse_refuses(text):
    with pytest.raises(UsageError, match="NAME=VALUE:WEIGHT"):
        controllable.parse(text)


def test_rows_are_every_combination(generator):
    known = {"class": toy_label(generator), "odd": toy_label(generator, "odd", ("0", "1"))}
    found = controllable.rows([Wish("class", "all"), Wish("odd", "all", 0.5)], known)
    assert [controllable.title(row) for row in found] == [
        f"class {c}, odd {o} x0.5" for c in ("a", "b", "c") for o in ("0", "1")
    ]
    for wishes, message in (
        ([], "say what to condition on"),
        ([Wish("class", "d")], "has no value 'd'; it has a, b, c"),
        ([Wish("glasses", "1")], "no trained label 'glasses'; it has class, odd"),
        ([Wish("odd", "1"), Wish("odd", "0")], "asked for more than once"),
        ([Wish("odd", "1", 0.0)], "the weight of odd is 0"),
        ([Wish("odd", "1", float("inf"))], "the weight of odd is inf"),
    ):
        with pytest.raises(UsageError, match=message):
            controllable.rows(wishes, known)


def test_an_image_is_the_same_at_any_batch_size_and_in_any_row(generator):
    prior, known = toy_prior(generator), {"class": toy_label(generator)}
    wanted = controllable.rows([Wish("class", "all", 3.0)], known)
    whole = controllable.sample(prior, known, wanted, 4, seed=3, steps=1)
    parts = controllable.sample(prior, known, wanted, 4, seed=3, batch_size=3, steps=1)
    alone = controllable.sample(prior, known, wanted[1:2], 3, seed=3, steps=1)
    for a, b in [*zip(whole, parts, strict=True), (whole[1][:3], alone[0])]:
        assert (a.int() - b.int()).abs().max() <= 1
    assert not torch.equal(whole[0], whole[1])
    gaussian = toy_prior(generator, "gaussian")
    for draw in (
        lambda prior: controllable.sample(prior, known, wanted, 2),
        lambda prior: controllable.across_layers(prior, known, wanted[0], 2),
    ):
        with pytest.raises(HebmError, match="the gaussian prior has no energy"):
            draw(gaussian)
        with pytest.raises(HebmError, match="on 3 noise levels and the prior has 4"):
            draw(toy_prior(generator, levels=4))


def test_across_layers_moves_one_layer_at_a_time(generator, monkeypatch):
    prior, known = toy_prior(generator), {"class": toy_label(generator)}
    decoded = []
    monkeypatch.setattr(generator, "images", lambda u: decoded.append(u) or torch.zeros(len(u), 1, 8, 8))
    found = controllable.across_layers(prior, known, [Wish("class", "b")], 3)
    assert found.parts == [[2], [1], [2, 1]] and found.images.shape == (3, 3, 1, 8, 8)
    base, *resampled = decoded
    for u, part in zip(resampled, found.parts, strict=True):
        for l, (a, b) in enumerate(zip(generator.split(u), generator.split(base), strict=True)):
            assert torch.equal(a, b) == (generator.layer_number(l) not in part)


def test_an_image_is_the_priors_draw_under_its_conditions(generator):
    prior, known = toy_prior(generator, weight=0.1), {"class": toy_label(generator)}
    row = [Wish("class", "c", 2.0)]
    [images] = controllable.sample(prior, known, [row], 3, seed=5, temperature=0.8, steps=2)
    given = prior.given(controllable.conditions(row, known, 3, generator.device))
    u = given.sample(Noise(5, range(3), generator.D), K=2, tau=0.8)
    assert torch.equal(images, picture.to_uint8(generator.images(u)))
    # Another chain draws under the same conditions.
    [other] = controllable.sample(prior.using(chain="underdamped"), known, [row], 3, seed=5, temperature=0.8, steps=2)
    assert other.shape == images.shape


def test_a_heavier_wish_is_better_heard(generator):
    prior, known = toy_prior(generator, "ebm", weight=0, steps=8), {"class": toy_label(generator)}
    found = []
    for weight in (0.0, 30.0, -30.0):
        given = prior.given(controllable.conditions([Wish("class", "b", weight)], known, 60, generator.device))
        u = given.sample(Noise(0, range(60), generator.D))
        t = torch.zeros(60, dtype=torch.long)
        found.append(known["class"].log_prob(generator.walk(u), t)[:, 1].mean().item())
    plain, asked, against = found
    assert against < plain < asked


def test_labels_of_other_latents_are_refused(generator):
    prior, label = toy_prior(generator), toy_label(generator)
    label.whitening = "of other latents"
    with pytest.raises(HebmError, match="the label class was learned on other latents than this prior's"):
        controllable.sample(prior, {"class": label}, [[Wish("class", "a")]], 2)
    # To a joint energy, read at level 0 alone, no amount of noise matters.
    controllable.sample(toy_prior(generator, "ebm"), {"class": label}, [[Wish("class", "a")]], 2)


def test_a_chain_that_left_the_numbers_is_said(generator):
    prior, known = toy_prior(generator), {"class": toy_label(generator)}
    prior.F = lambda u, t: 1e20 * u.square().square().sum(1)
    with pytest.raises(HebmError, match="the chain diverged under class b x2; use a smaller weight, or fewer steps"):
        controllable.sample(prior, known, [[Wish("class", "b", 2.0)]], 1)
    # What the others are held at is drawn without the condition.
    with pytest.raises(HebmError, match="the diffusion-ebm prior's chain diverged"):
        controllable.across_layers(prior, known, [Wish("class", "b", 2.0)], 1)
