"""Hierarchical sampling: what is held stays, what is drawn again follows its conditional prior, and the command."""

import io
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hebmtool import picture, recipe
from hebmtool.cli import main
from hebmtool.errors import HebmError, UsageError
from hebmtool.noise import Noise
from hebmtool.prior.kinds import KINDS, make_prior
from hebmtool.run.folder import Run
from hebmtool.train.prior import train_prior
from hebmtool.train.vae import train_vae
from hebmtool.use import hierarchy
from hebmtool.use.sample import sample

CHAINS = ["langevin", "preconditioned", "underdamped"]


def make(generator, kind="diffusion-ebm", chain="preconditioned", **keys):
    """A prior whose energy is not zero, as if it had been trained."""
    config = recipe.Prior(kind=kind, chain=chain, **{"steps": 2, "eta": 1e-2} | keys)
    config.energy = recipe.Energy(reads="z+state", width=6, blocks=1)
    prior = make_prior(generator, config)
    for p in prior.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.1)
    return prior


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
        ("6", "above", ["layer 6 is the top", "above"]),
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


# What is held


@pytest.mark.parametrize("given", [False, True], ids=["sample", "image"])
@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("kind", KINDS)
def test_held_layers_are_the_bases_bit_for_bit_at_every_stage(vivid, kind, chain, given):
    prior, n = make(vivid, kind, chain), 3
    noise = Noise(0, range(n), vivid.D)
    base = prior.stages(torch.randn(n, vivid.D), noise) if given else list(prior.trajectory(noise))
    for layers in ([3], [2], [2, 1]):
        vary = hierarchy.coordinates(vivid, layers)
        stages = list(hierarchy.resample(prior, base, vary, Noise(1, range(n), vivid.D)))
        relaxed = kind == "diffusion-ebm"
        assert len(stages) == len(base) + relaxed
        for u, at_base in zip(stages, [*base, base[-1]] if relaxed else base, strict=True):
            assert torch.equal(u[:, ~vary], at_base[:, ~vary])
            assert (u[:, vary] != at_base[:, vary]).all()


@pytest.mark.parametrize("chain", CHAINS)
def test_an_image_stays_the_last_stage_of_its_trajectory(vivid, chain):
    # What is held in the end is u_0 of the image itself.
    u_0 = torch.randn(2, vivid.D)
    for kind in KINDS:
        assert torch.equal(make(vivid, kind, chain).stages(u_0, Noise(0, range(2), vivid.D))[-1], u_0)


# What is drawn again


R = 0.8
PAIRS = 8


def couple(prior, monkeypatch):
    """Give the prior the energy of u_0 ~ N(0, C): the top layer's eight coordinates correlated 0.8 with eight of the
    bottom's, all else independent.  Level t's exact energy is the log ratio of N(0, abar^2 C + sbar^2 I) to N(0, I)."""
    C = torch.eye(2)
    C[0, 1] = C[1, 0] = R
    levels = [C]
    if prior.kind == "diffusion-ebm":
        s = prior.schedule
        levels = [(s.abar[t] ** 2 * C + s.sbar[t] ** 2 * torch.eye(2)).float() for t in range(s.T)]
    excess = torch.stack([torch.linalg.inv(c) - torch.eye(2) for c in levels])

    def F(u, t):
        pairs = torch.stack([u[:, :PAIRS], u[:, PAIRS : 2 * PAIRS]], dim=2)
        return -0.5 * prior.scale(t) * torch.einsum("npi,nij,npj->n", pairs, excess[t], pairs)

    if prior.kind != "gaussian":
        monkeypatch.setattr(prior, "F", F)


def draw_pairs(n, D):
    """u_0 ~ N(0, C), [n, D]."""
    u = torch.randn(n, D)
    u[:, PAIRS : 2 * PAIRS] = R * u[:, :PAIRS] + math.sqrt(1 - R**2) * u[:, PAIRS : 2 * PAIRS]
    return u


CASES = {
    "ebm preconditioned": ("ebm", {"h": 0.05, "steps": 60}),
    "ebm langevin": ("ebm", {"chain": "langevin", "eta": 0.04, "steps": 120}),
    "diffusion-ebm preconditioned": ("diffusion-ebm", {"h": 0.05, "steps": 40}),
    "diffusion-ebm langevin": ("diffusion-ebm", {"chain": "langevin", "eta": 0.04, "steps": 80}),
}


@pytest.mark.parametrize("layer", [2, 1])
@pytest.mark.parametrize("case", CASES)
def test_resampled_layers_follow_the_conditional_and_not_the_marginal(generator, monkeypatch, case, layer):
    """u_0 ~ N(0, C), so p(u_V | u_H) is N(0.8 u_H, 0.36) in eight pairs of coordinates; the marginal is N(0, 1).

    Sample size: 4000 images, 32,000 pairs.  Regressing u_V on u_H, the slope's standard error is sqrt(0.36 / 32000) =
    0.0034.  Tolerance: five of them, 0.017 (a correct sampler fails once in two million), so a slope of 0.776, that is
    3% of the dependence lost, is missed once in fifty; the marginal's slope of 0 is 240 standard errors away, and that
    of the trajectory without relaxation (0.66) about 40.  The variance's standard error is 0.8%, beside a bias of the
    discrete chain of at most 5%; tolerance 8%, where the marginal's is 178% off.  Layers that no held one is coupled to
    are standard normal, and the new u_V knows nothing of the base's beyond u_H: correlation within five errors of 0.
    """
    kind, keys = CASES[case]
    prior, n = make(generator, kind, **keys), 4000
    couple(prior, monkeypatch)
    base = prior.stages(draw_pairs(n, generator.D), lambda: torch.randn(n, generator.D))
    vary = hierarchy.coordinates(generator, [layer])
    *_, u = hierarchy.resample(prior, base, vary, lambda: torch.randn(n, generator.D))

    top, bottom = slice(0, PAIRS), slice(PAIRS, 2 * PAIRS)
    of_v, of_h = (top, bottom) if layer == 2 else (bottom, top)
    u_v, u_h, before = u[:, of_v], base[-1][:, of_h], base[-1][:, of_v]
    error = 5 * math.sqrt((1 - R**2) / u_v.numel())
    slope = ((u_v * u_h).mean() / u_h.square().mean()).item()
    assert slope == pytest.approx(R, abs=error)
    assert u_v.mean().item() == pytest.approx(0, abs=5 / math.sqrt(u_v.numel()))
    rest = u_v - R * u_h
    assert rest.square().mean().item() == pytest.approx(1 - R**2, rel=0.08)
    assert abs(torch.corrcoef(torch.stack([rest.flatten(), (before - R * u_h).flatten()]))[0, 1]) < 0.03
    if layer == 1:
        free = u[:, 2 * PAIRS :]
        assert free.std().item() == pytest.approx(1, abs=0.03)
        assert abs((free[:, :PAIRS] * u_h).mean()) < 0.03


def test_without_relaxation_the_held_trajectory_comes_only_near(generator, monkeypatch):
    """What the relaxation is for: the trajectory's own last stage has lost a sixth of the dependence (40 errors)."""
    prior, n = make(generator, h=0.05, steps=40), 4000
    couple(prior, monkeypatch)
    base = prior.stages(draw_pairs(n, generator.D), lambda: torch.randn(n, generator.D))
    vary = hierarchy.coordinates(generator, [2])
    *_, held, relaxed = hierarchy.resample(prior, base, vary, lambda: torch.randn(n, generator.D))
    u_h = base[-1][:, PAIRS : 2 * PAIRS]
    slopes = [((u[:, :PAIRS] * u_h).mean() / u_h.square().mean()).item() for u in (held, relaxed)]
    assert 0.6 < slopes[0] < 0.75 and abs(slopes[1] - R) < 0.02


def test_the_gaussian_priors_layers_are_independent(generator):
    prior, n = make(generator, "gaussian"), 4000
    base = prior.stages(draw_pairs(n, generator.D), lambda: torch.randn(n, generator.D))
    vary = hierarchy.coordinates(generator, [2])
    *_, u = hierarchy.resample(prior, base, vary, lambda: torch.randn(n, generator.D))
    assert abs((u[:, :PAIRS] * base[-1][:, PAIRS : 2 * PAIRS]).mean()) < 5 / math.sqrt(8 * n)


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("kind", ["ebm", "diffusion-ebm"])
def test_relaxation_keeps_the_law_of_level_0(generator, monkeypatch, kind, chain):
    """Without anything held, p(u_0) is where it starts and where it ends."""
    prior, n = make(generator, kind, chain, h=0.05, theta=0.1, eta=0.04), 4000
    couple(prior, monkeypatch)
    u = prior.relax(draw_pairs(n, generator.D), lambda: torch.randn(n, generator.D), steps=40)
    top, bottom = u[:, :PAIRS], u[:, PAIRS : 2 * PAIRS]
    assert (top * bottom).mean().item() == pytest.approx(R, abs=0.03)
    assert u.square().mean().item() == pytest.approx(1, abs=0.03)


# Drawing


@pytest.mark.parametrize("given", [False, True], ids=["sample", "image"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_resample_is_the_same_at_any_batch_size_and_number(vivid, kind, given):
    prior, parts = make(vivid, kind), [[3], [2, 1]]
    x = torch.rand(4, 1, 8, 8) if given else None
    whole = hierarchy.draw(prior, parts, 4, 3, seed=5, x=x)
    assert whole.images.shape == (2, 4, 3, 1, 8, 8) and whole.base.shape == (4, 1, 8, 8) and whole.parts == parts
    for size in (1, 2, 5):
        found = hierarchy.draw(prior, parts, 4, 3, seed=5, batch_size=size, x=x)
        assert torch.allclose(found.images, whole.images, atol=1e-4)
        assert torch.allclose(found.base, whole.base, atol=1e-4)
    fewer = hierarchy.draw(prior, parts[1:], 2, 2, seed=5, x=x)
    assert torch.allclose(fewer.images[0], whole.images[1, :2, :2], atol=1e-4)
    other = hierarchy.draw(prior, parts, 4, 3, seed=6, x=x)
    assert not torch.allclose(other.images, whole.images, atol=1e-2)
    # No two resamples of a base are alike, nor like the base.
    pictures = torch.cat([whole.base[:, None], whole.images[0]], dim=1)
    assert min((pictures[:, i] - pictures[:, j]).abs().max() for i in range(4) for j in range(i)) > 1e-3


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


# The command


TINY = [
    *("generator.layers_per_scale=1", "generator.latent_channels=2", "generator.encoder_channels=4"),
    *("generator.decoder_channels=4", "train_vae.batch_size=16", "train_vae.iterations=6"),
    *("train_prior.batch_size=8", "train_prior.iterations=2", "prior.energy.width=4", "prior.steps=2"),
    "evaluate.samples=16",
]


def spawn(*arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "hebmtool.cli", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.fixture
def hebm(monkeypatch, capsys):
    """Run the command in this process; (exit status, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hebm", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main.main()
        out, err = capsys.readouterr()
        return stopped.value.code, out, err

    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder of runs holding `digits`, its two-layer generator and a diffusion prior."""
    root = tmp_path_factory.mktemp("runs")
    settings = recipe.load("digits", TINY)
    with Run.create(root, settings) as run:
        train_vae(settings, run, torch.device("cpu"))
        train_prior(settings, run, torch.device("cpu"))
    return root


def size(path) -> tuple[int, int]:
    with Image.open(path) as image:
        assert image.format == "PNG" and image.mode == "RGB"
        return image.size


CELL = 48 + picture.GAP  # a digit, enlarged


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--layer", 1), "layer-2"),
        (("--layer", 2, "--vary", "below"), "layer-1"),
        (("--layer", 2, "--vary", "only"), "layer-2"),
        (("--layer", "1:2"), "layers-1-2"),
        (("--all",), "all"),
    ],
)
def test_pictures_land_in_the_newest_run(hebm, runs, options, words):
    status, out, err = hebm("hier-sample", *options, "--runs", runs, "-n", 2, "--columns", 3)
    assert status == 0 and err == "", err
    path = Path(out.strip())
    assert path.parent == runs / "digits" / "samples" and path.is_file()
    assert path.name == f"hier-sample-diffusion-ebm-{words}-seed0.png"
    width, height = size(path)
    assert 4 * CELL < width < 5 * CELL
    blocks = 2 if words == "all" else 1
    assert blocks * 2 * CELL < height < blocks * (2 * CELL + 50)


def test_json_reports_each_part(hebm, runs, tmp_path):
    out_path = tmp_path / "all.png"
    status, out, err = hebm(
        "hier-sample", "--all", "--runs", runs, "-n", 3, "--columns", 2, "--json", "--out", out_path
    )
    assert status == 0, err
    found = json.loads(out)
    assert found["picture"] == str(out_path) and out_path.is_file()
    assert (found["prior"], found["rows"], found["columns"], found["seed"]) == ("diffusion-ebm", 3, 2, 0)
    assert found["features"] == "embedded"
    assert [entry["layers"] for entry in found["parts"]] == [[2], [1]]
    for entry in found["parts"]:
        assert entry["pixel_distance"] > 0 and entry["pixel_error"] > 0
        assert entry["feature_distance"] > 0 and entry["feature_error"] > 0
    top, bottom = found["parts"]
    falls = all(top[k] > bottom[k] for k in ("pixel_distance", "feature_distance"))
    assert found["falls"] is falls and ("does not fall" in err) is not falls

    # The same numbers when one part is asked for alone; there is nothing to fall.
    status, out, err = hebm(
        *("hier-sample", "--layer", 1, "--vary", "only", "--runs", runs, "-n", 3, "--columns", 2, "--json"),
        *("--out", tmp_path / "one.png"),
    )
    alone = json.loads(out)
    assert status == 0 and alone["falls"] is None and err == ""
    assert alone["parts"][0]["pixel_distance"] == pytest.approx(bottom["pixel_distance"], rel=1e-3)


def test_real_images_start_a_row_each(hebm, runs, tmp_path):
    # Of any size and colour.
    paths = [tmp_path / "grey.png", tmp_path / "colour.jpg"]
    Image.fromarray(np.random.default_rng(0).integers(256, size=(8, 8), dtype=np.uint8)).save(paths[0])
    Image.fromarray(np.random.default_rng(1).integers(256, size=(30, 40, 3), dtype=np.uint8)).save(paths[1])
    common = ("hier-sample", "--layer", 1, "--runs", runs, "--columns", 2)
    status, out, err = hebm(*common, "--from", paths[0], "--from", paths[1], "--out", tmp_path / "a.png")
    assert status == 0 and out.strip() == str(tmp_path / "a.png"), err
    assert 2 * CELL < size(tmp_path / "a.png")[1] < 3 * CELL
    # The first row does not depend on the second.
    status, _, err = hebm(*common, "--from", paths[0], "--batch-size", 1, "--out", tmp_path / "b.png")
    assert status == 0, err
    a, b = (np.asarray(Image.open(tmp_path / name)).astype(int) for name in ("a.png", "b.png"))
    rows = slice(0, b.shape[0] - 20)
    assert np.abs(a[rows] - b[rows]).max() <= 1
    assert np.abs(a[CELL:, CELL:] - a[:-CELL, CELL:]).max() > 10


def test_options_change_what_is_drawn(hebm, runs, tmp_path):
    options = {
        "plain": (),
        "seed": ("--seed", 1),
        "prior": ("--prior", "gaussian"),
        "temperature": ("--temperature", 0.5),
        "steps": ("--steps", 5),
    }
    for name, given in options.items():
        common = (
            "hier-sample",
            "--layer",
            1,
            "--runs",
            runs,
            "-n",
            1,
            "--columns",
            1,
            "--out",
            tmp_path / f"{name}.png",
        )
        status, _, err = hebm(*common, *given)
        assert status == 0, err
    drawn = {name: np.asarray(Image.open(tmp_path / f"{name}.png")) for name in options}
    assert all(not np.array_equal(drawn["plain"], drawn[name]) for name in options if name != "plain")


def test_a_picture_on_stdout(runs):
    process = spawn("hier-sample", "--layer", 1, "--runs", runs, "-n", 1, "--columns", 1, "--out", "-")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and err == b"", err.decode()
    assert size(io.BytesIO(out))[0] > 2 * CELL


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (("--layer", 9), 2, ["no layer 9", "1, 2"]),
        (("--layer", 0), 2, ["no layer 0", "1, 2"]),
        (("--layer", "1:3"), 2, ["no layer 3", "1, 2"]),
        (("--layer", 2), 2, ["layer 2 is the top", "--vary only"]),
        (("--layer", "top"), 2, ["top", "as 2:5"]),
        (("--layer", 1, "--vary", "up"), 2, ["up", "above, below, only"]),
        ((), 2, ["--layer", "--all", "neither"]),
        (("--layer", 1, "--all"), 2, ["both"]),
        (("--all", "--vary", "only"), 2, ["--vary", "--all"]),
        (("--layer", 1, "--from", "absent.png"), 1, ["absent.png", "does not exist"]),
        (("--layer", 1, "--from", "a.png", "-n", 2), 2, ["-n", "--from"]),
        (("--layer", 1, "--json", "--out", "-"), 2, ["--json", "--out -"]),
        (("--layer", 1, "--out", "images.npz"), 2, ["images.npz", ".png"]),
        (("--layer", 1, "--temperature", 0), 2, ["--temperature"]),
        (("--layer", 1, "--prior", "ebm"), 1, ["'ebm'", "hebm train-prior"]),
        (("--layer", 1, "--columns", 0), 2, ["--columns"]),
    ],
)
def test_mistakes_are_one_sentence(hebm, runs, tmp_path, monkeypatch, options, status, words):
    monkeypatch.chdir(tmp_path)
    found, out, err = hebm("hier-sample", *options, "--runs", runs)
    assert found == status and out == "", err
    lines = err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("hebm: "), err
    assert all(word in err for word in words), err


def test_what_is_no_image_is_named(hebm, runs, tmp_path):
    (tmp_path / "notes.png").write_text("not an image")
    status, _, err = hebm("hier-sample", "--layer", 1, "--from", tmp_path / "notes.png", "--runs", runs)
    assert status == 1 and "notes.png" in err and len(err.splitlines()) == 1


def test_existing_output_is_not_replaced_without_force(hebm, runs, tmp_path):
    target = tmp_path / "mine.png"
    target.write_bytes(b"precious")
    common = ("hier-sample", "--layer", 1, "--runs", runs, "-n", 1, "--columns", 1, "--out", target)
    status, _, err = hebm(*common)
    assert status == 1 and "--force" in err and target.read_bytes() == b"precious"
    status, _, err = hebm(*common, "--force")
    assert status == 0 and target.read_bytes() != b"precious", err
