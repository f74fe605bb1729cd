"""Hierarchical sampling: what is held stays, what is drawn again follows its conditional prior."""

import math

import numpy as np
import pytest
import torch
from toys import ENERGY_KINDS, Plane, Twins, toy_prior

from hebmtool import picture
from hebmtool.chains import CHAINS
from hebmtool.errors import HebmError, UsageError
from hebmtool.noise import Noise
from hebmtool.prior import KINDS
from hebmtool.use import hierarchy
from hebmtool.use.sample import sample

ON_A_GENERATOR = [kind for kind, of in KINDS.items() if not of.brings_generator]


def make(generator, kind="diffusion-ebm", chain="preconditioned", **keys):
    return toy_prior(generator, kind, chain, weight=0.1, **{"steps": 2} | keys)


@pytest.fixture
def vivid(make_generator):
    """A generator of three layers whose random images are not nearly grey."""
    generator = make_generator(scales=1, layers_per_scale=3)
    head = generator.image_head[1]
    head.folded = 30 * head.folded
    return generator


# Which layers


@pytest.mark.parametrize(
    ("text", "vary", "expected"),
    [
        ("4", "above", [6, 5]),
        ("4", "below", [3, 2, 1]),
        ("4", "only", [4]),
        ("2:4", "only", [4, 3, 2]),
        ("4:2", "only", [4, 3, 2]),
        ("2:4", "above", [6, 5]),
        ("2:4", "below", [1]),
    ],
)
def test_layers_are_chosen_around_those_named(text, vary, expected):
    assert hierarchy.varied(hierarchy.parse(text), vary, 6) == expected


@pytest.mark.parametrize("text", ["", "two", "-1", "1:", ":3", "1:2:3", "1-3", "1.5"])
def test_what_names_no_layers(text):
    with pytest.raises(UsageError, match="as 2:5"):
        hierarchy.parse(text)


@pytest.mark.parametrize(
    ("text", "vary", "words"),
    [
        ("7", "only", ["no layer 7", "1, 2, 3, 4, 5, 6"]),
        ("0", "above", ["no layer 0", "1, 2, 3, 4, 5, 6"]),
        ("3:9", "only", ["no layer 9", "1, 2, 3, 4, 5, 6"]),
        ("6", "above", ["layer 6 is the top", "above", "vary only"]),
        ("1", "below", ["layer 1 is the bottom", "below"]),
        ("3", "beside", ["beside", "above, below, only"]),
    ],
)
def test_layers_that_are_not_there(text, vary, words):
    with pytest.raises(UsageError) as raised:
        hierarchy.varied(hierarchy.parse(text), vary, 6)
    assert all(word in str(raised.value) for word in words)


def test_the_whole_hierarchy_in_parts():
    assert hierarchy.blocks(2) == [[2], [1]]
    assert hierarchy.blocks(6) == [[6], [5], [4], [3], [2], [1]]
    for L in (7, 30, 35):
        parts = hierarchy.blocks(L)
        assert sum(parts, []) == list(range(L, 0, -1))
        assert len(parts) == 6 and max(map(len, parts)) - min(map(len, parts)) <= 1
    assert [hierarchy.title(part) for part in ([3], [6, 5])] == ["layer 3", "layers 5-6"]


def test_coordinates_are_those_of_the_layers(vivid):
    top, bottom = (hierarchy.coordinates(vivid, [number]) for number in (3, 1))
    maps = vivid.split(top[None])
    assert maps[0].all() and not maps[1].any() and not maps[2].any()
    assert vivid.split(bottom[None])[2].all() and bottom.sum() == bottom[vivid.slices[2]].sum()


# What is drawn again


R = 0.8
PAIRS = 3


def couple(prior, monkeypatch):
    """Give the prior the energy of u_0 ~ N(0, C): three of the four coordinates of either layer correlated 0.8 in
    pairs, all else independent.  Level t's exact energy is the log ratio of N(0, abar^2 C + sbar^2 I) to N(0, I)."""
    C = torch.eye(2)
    C[0, 1] = C[1, 0] = R
    levels = [C]
    if prior.T > 1:
        s = prior.schedule
        levels = [(s.abar[t] ** 2 * C + s.sbar[t] ** 2 * torch.eye(2)).float() for t in range(s.T)]
    excess = torch.stack([torch.linalg.inv(c) - torch.eye(2) for c in levels])

    def F(u, t):
        top, bottom = u[:, TOP], u[:, BOTTOM]
        own, cross = excess[t, 0, 0, None], excess[t, 0, 1, None]
        return -0.5 * prior.scale(t) * (own * (top * top + bottom * bottom) + 2 * cross * top * bottom).sum(1)

    if prior.T:
        monkeypatch.setattr(prior, "F", F)


TOP, BOTTOM = slice(0, PAIRS), slice(4, 4 + PAIRS)


def draw_pairs(n):
    """u_0 ~ N(0, C), [n, 8]."""
    u = torch.randn(n, 8)
    u[:, BOTTOM] = R * u[:, TOP] + math.sqrt(1 - R**2) * u[:, BOTTOM]
    return u


CASES = {
    "ebm preconditioned": ("ebm", {"h": 0.05, "steps": 60}),
    "ebm langevin": ("ebm", {"chain": "langevin", "eta": 0.04, "steps": 120}),
    "diffusion-ebm preconditioned": ("diffusion-ebm", {"h": 0.05, "steps": 40}),
    "diffusion-ebm langevin": ("diffusion-ebm", {"chain": "langevin", "eta": 0.04, "steps": 80}),
}


@pytest.mark.parametrize("layer", [2, 1])
@pytest.mark.parametrize("case", CASES)
def test_resampled_layers_follow_the_conditional_and_not_the_marginal(monkeypatch, case, layer):
    """u_0 ~ N(0, C), so p(u_V | u_H) is N(0.8 u_H, 0.36) in three pairs of coordinates; the marginal is N(0, 1).

    Sample size: 10,000 images, 30,000 pairs.  Regressing u_V on u_H, the slope's standard error is sqrt(0.36 / 30000) =
    0.0035.  Tolerance: five of them, 0.017 (a correct sampler fails once in two million), so a slope of 0.776, that is
    3% of the dependence lost, is missed once in fifty; the marginal's slope of 0 is 230 standard errors away, and that
    of the trajectory without further steps on p(u_0) (0.66) about 40.  The variance's standard error is 0.8%, beside a
    bias of the discrete chain of at most 5%; tolerance 8%, where the marginal's is 178% off.  Coordinates that no held
    one is coupled to are standard normal, and the new u_V knows nothing of the base's beyond u_H: correlation within
    five errors of 0.
    """
    kind, keys = CASES[case]
    generator, n = Twins(), 10_000
    prior = make(generator, kind, **keys)
    couple(prior, monkeypatch)
    base = prior.stages(draw_pairs(n), lambda: torch.randn(n, 8))
    vary = hierarchy.coordinates(generator, [layer])
    *_, u = prior.trajectory(lambda: torch.randn(n, 8), held=(~vary, base))

    of_v, of_h = (TOP, BOTTOM) if layer == 2 else (BOTTOM, TOP)
    u_v, u_h, before = u[:, of_v], base[-1][:, of_h], base[-1][:, of_v]
    error = 5 * math.sqrt((1 - R**2) / u_v.numel())
    slope = ((u_v * u_h).mean() / u_h.square().mean()).item()
    assert slope == pytest.approx(R, abs=error)
    assert u_v.mean().item() == pytest.approx(0, abs=5 / math.sqrt(u_v.numel()))
    rest = u_v - R * u_h
    assert rest.square().mean().item() == pytest.approx(1 - R**2, rel=0.08)
    assert abs(torch.corrcoef(torch.stack([rest.flatten(), (before - R * u_h).flatten()]))[0, 1]) < 0.03
    free = u[:, of_v.stop]
    assert free.std().item() == pytest.approx(1, abs=0.05)
    assert abs((free[:, None] * u_h).mean()) < 0.03


def test_without_refinement_the_held_trajectory_comes_only_near(monkeypatch):
    """What further steps on p(u_0) are for: the trajectory itself has lost a sixth of the dependence (40 errors)."""
    prior, n = make(Twins(), h=0.05, steps=40), 10_000
    couple(prior, monkeypatch)
    base = prior.stages(draw_pairs(n), lambda: torch.randn(n, 8))
    vary = hierarchy.coordinates(prior.generator, [2])
    *_, held, refined = prior.trajectory(lambda: torch.randn(n, 8), held=(~vary, base))
    u_h = base[-1][:, BOTTOM]
    slopes = [((u[:, TOP] * u_h).mean() / u_h.square().mean()).item() for u in (held, refined)]
    assert 0.6 < slopes[0] < 0.75 and abs(slopes[1] - R) < 0.02


def test_the_gaussian_priors_layers_are_independent():
    prior, n = make(Twins(), "gaussian"), 10_000
    base = prior.stages(draw_pairs(n), lambda: torch.randn(n, 8))
    vary = hierarchy.coordinates(prior.generator, [2])
    *_, u = prior.trajectory(lambda: torch.randn(n, 8), held=(~vary, base))
    assert abs((u[:, TOP] * base[-1][:, BOTTOM]).mean()) < 5 / math.sqrt(PAIRS * n)


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("kind", ENERGY_KINDS)
def test_refining_keeps_the_law_of_level_0(monkeypatch, kind, chain):
    """Without anything held, p(u_0) is where it starts and where it ends."""
    prior, n = make(Twins(), kind, chain, h=0.05, theta=0.1, eta=0.04), 8000
    couple(prior, monkeypatch)
    u = prior.refine(draw_pairs(n), lambda: torch.randn(n, 8), K=40)
    assert (u[:, TOP] * u[:, BOTTOM]).mean().item() == pytest.approx(R, abs=0.04)
    assert u.square().mean().item() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("chain", CHAINS)
def test_a_held_coordinate_leaves_the_conditional_of_the_other(monkeypatch, chain):
    """Nothing Gaussian, F = 1.5 sin(u_2 + u_1) with u_2 held, against sums along the line through it."""
    keys = dict.fromkeys(("langevin", "unscaled"), {"eta": 0.05, "steps": 200})
    keys["preconditioned"] = {"h": 0.05, "steps": 120}
    prior = toy_prior(Plane(), "ebm", chain, **keys.get(chain, {"theta": 0.2, "steps": 60}))
    monkeypatch.setattr(prior, "F", lambda u, t: 1.5 * prior.scale(t) * (u[:, 0] + u[:, 1]).sin())
    line, n, found = torch.linspace(-6, 6, 2001, dtype=torch.float64), 3000, []
    for at in (-1.0, 2.0):
        held = torch.tensor([True, False]), [torch.full((n, 2), at)] * 2
        *_, u = prior.trajectory(lambda: torch.randn(n, 2), held=held)
        share = (1.5 * (at + line).sin() - 0.5 * line**2).softmax(0)
        mean = float(share @ line)
        variance = float(share @ (line - mean).square())
        assert (u[:, 0] == at).all()
        assert u[:, 1].mean().item() == pytest.approx(mean, abs=5 * math.sqrt(variance / n) + 0.03)
        assert u[:, 1].var().item() == pytest.approx(variance, rel=5 * math.sqrt(2 / n) + 0.04)
        found.append(mean)
    assert abs(found[0] - found[1]) > 0.3  # u_1 depends on u_2


# Drawing


@pytest.mark.parametrize("given", [False, True], ids=["sample", "image"])
@pytest.mark.parametrize("kind", ON_A_GENERATOR)
def test_a_resample_is_the_same_at_any_batch_size_and_number(vivid, kind, given):
    prior, parts = make(vivid, kind, steps=1), [[3], [2, 1]]
    x = torch.rand(3, 1, 8, 8) if given else None
    whole = hierarchy.draw(prior, parts, 3, 3, seed=5, x=x)
    assert whole.images.shape == (2, 3, 3, 1, 8, 8) and whole.base.shape == (3, 1, 8, 8) and whole.parts == parts
    for size in (2, 5):
        found = hierarchy.draw(prior, parts, 3, 3, seed=5, batch_size=size, x=x)
        assert torch.allclose(found.images, whole.images, atol=1e-4)
        assert torch.allclose(found.base, whole.base, atol=1e-4)
    fewer = hierarchy.draw(prior, parts[1:], 2, 2, seed=5, x=x)
    assert torch.allclose(fewer.images[0], whole.images[1, :2, :2], atol=1e-4)
    other = hierarchy.draw(prior, parts, 3, 3, seed=6, x=x)
    assert not torch.allclose(other.images, whole.images, atol=1e-2)
    # No two resamples of a base are alike, nor like the base.
    pictures = torch.cat([whole.base[:, None], whole.images[0]], dim=1)
    assert min((pictures[:, i] - pictures[:, j]).abs().max() for i in range(4) for j in range(i)) > 1e-3


@pytest.mark.parametrize("kind", ON_A_GENERATOR)
def test_only_the_layers_of_a_part_are_drawn_again(vivid, monkeypatch, kind):
    prior, decoded = make(vivid, kind, steps=1), []
    monkeypatch.setattr(vivid, "images", lambda u: decoded.append(u) or torch.zeros(len(u), 1, 8, 8))
    parts = [[3], [2], [2, 1]]
    hierarchy.draw(prior, parts, 2, 2)
    *resampled, base = decoded
    for u, part in zip(resampled, parts, strict=True):
        for l, (a, b) in enumerate(zip(vivid.split(u), vivid.split(base.repeat_interleave(2, 0)), strict=True)):
            assert torch.equal(a, b) == (vivid.layer_number(l) not in part)


def test_bases_are_the_samples_of_the_seed(vivid):
    prior = make(vivid)
    drawn = hierarchy.draw(prior, [[1]], 3, 1, seed=7, temperature=0.8, steps=1)
    expected = torch.cat(list(sample(prior, 3, seed=7, temperature=0.8, steps=1)))
    assert (picture.to_uint8(drawn.base).int() - expected.int()).abs().max() <= 1


def test_the_base_of_an_image_is_its_posterior_draw(vivid):
    prior, x = make(vivid), torch.rand(2, 1, 8, 8)
    drawn = hierarchy.draw(prior, [[2]], 2, 1, seed=3, x=x)
    u_0 = vivid.encode(x, Noise(3, range(2), vivid.D)())
    assert torch.allclose(drawn.base, vivid.images(u_0), atol=1e-5)


@pytest.mark.parametrize("columns", [0, 1001])
def test_so_many_resamples_are_not_drawn(vivid, columns):
    with pytest.raises(UsageError, match=f"columns is {columns}, but must be from 1 to 1000"):
        hierarchy.draw(make(vivid), [[1]], 1, columns)


def test_a_diverged_chain_is_said(vivid):
    prior = make(vivid)
    prior.F = lambda u, t: 1e20 * u.square().square().sum(1)
    with pytest.raises(HebmError, match="diverged"):
        hierarchy.draw(prior, [[1]], 1, 1)


# Measuring and showing


def hand_made(images):
    return hierarchy.Resampled([[2], [1]], torch.zeros(len(images[0]), 1, 4, 4), torch.as_tensor(images))


def test_changes_are_means_with_errors_over_bases():
    # Two bases, two columns; every pixel of a resample is off by the same amount.
    off = torch.tensor([[[0.5, 0.3], [0.1, 0.3]], [[0.2, 0.2], [0.2, 0.2]]])
    drawn = hand_made(off[..., None, None, None].expand(-1, -1, -1, 1, 4, 4))

    def features(images):
        return np.stack([images.flatten(1).double().mean(1).numpy(), np.ones(len(images))], axis=1)

    top, bottom = hierarchy.changes(drawn, features)
    assert top["layers"] == [2] and bottom["layers"] == [1]
    assert top["pixel_distance"] == pytest.approx(0.3) and top["pixel_error"] == pytest.approx(0.1)
    assert bottom["pixel_distance"] == pytest.approx(0.2) and bottom["pixel_error"] == pytest.approx(0)
    assert top["feature_distance"] == pytest.approx(0.3 * 255, abs=0.5)
    assert "feature_distance" not in hierarchy.changes(drawn)[0]
    single = hierarchy.Resampled(drawn.parts, drawn.base[:1], drawn.images[:, :1])
    assert hierarchy.changes(single)[0]["pixel_error"] is None


def test_a_rise_is_said():
    def entries(pixel, feature):
        return [
            {"layers": [3 - i], "pixel_distance": p, "pixel_error": None, "feature_distance": f, "feature_error": 0.25}
            for i, (p, f) in enumerate(zip(pixel, feature, strict=True))
        ]

    assert hierarchy.rises(entries([0.3, 0.2, 0.1], [9, 8, 7])) == []
    (sentence,) = hierarchy.rises(entries([0.3, 0.2, 0.1], [9, 10, 7]))
    assert "feature" in sentence and "layer 2 10 ± 0.25" in sentence
    assert len(hierarchy.rises(entries([0.3, 0.3, 0.1], [9, 10, 7]))) == 2
    assert hierarchy.rises([{"layers": [1], "pixel_distance": 0.3}]) == []


def test_the_figure_frames_the_base(vivid):
    drawn = hierarchy.draw(make(vivid, "gaussian"), [[3], [2], [1]], 2, 3)
    pixels = np.asarray(hierarchy.figure(drawn)).astype(int)
    framed = (pixels == np.array(hierarchy.BASE)).all(2)
    ys, xs = framed.nonzero()
    # 48-pixel cells: the frame surrounds the first column alone, in each of the three blocks' two rows.
    assert xs.max() - xs.min() + 1 == 48 + 2 * picture.GAP
    assert framed[:, (xs.min() + xs.max()) // 2].sum() == 3 * (3 * picture.GAP)
    cell = picture.to_uint8(drawn.base[0])[0, 0, 0].item()
    assert tuple(pixels[ys.min() + picture.GAP, xs.min() + picture.GAP]) == (cell,) * 3


def test_several_blocks_show_a_few_rows_each(vivid):
    many, few = (hierarchy.draw(make(vivid, "gaussian"), [[2], [1]], n, 1) for n in (20, hierarchy.SHOWN_ROWS))
    assert hierarchy.figure(many).size == hierarchy.figure(few).size
    alone = hierarchy.Resampled([[2]], many.base, many.images[:1])
    assert hierarchy.figure(alone).height > 20 * 48
