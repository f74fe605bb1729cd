"""OOD scores: against brute force, at every cut; the figures of merit; the battery; the command in pipelines."""

import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hebmtool.prior.kinds import make_prior
from PIL import Image
from torch.distributions import Bernoulli, Normal, kl_divergence

from hebmtool import data, recipe
from hebmtool.data import anywhere
from hebmtool.errors import HebmError, UsageError
from hebmtool.noise import Noise, derive_seed
from hebmtool.run.folder import Run
from hebmtool.train.prior import train_prior
from hebmtool.train.vae import train_vae
from hebmtool.use import score as scoring
from hebmtool.use.score import Scorer

TINY = [
    *("generator.layers_per_scale=1", "generator.latent_channels=2", "generator.encoder_channels=4"),
    *("generator.decoder_channels=4", "generator.preprocess_cells=1", "generator.postprocess_cells=1"),
    *("train_vae.batch_size=16", "train_vae.iterations=4", "train_prior.batch_size=8", "train_prior.iterations=2"),
    *("prior.energy.width=8", "prior.energy.blocks=1", "prior.steps=2", "evaluate.samples=2"),
]


@pytest.fixture
def tower(make_generator):
    """Three layers, L = 3."""
    return make_generator(scales=1, layers_per_scale=3)


def make(generator, kind="diffusion-ebm"):
    """A prior whose energy is not zero, and a recipe that reads 8x8 images as ink."""
    config = recipe.Prior(kind=kind, chain="preconditioned", steps=2)
    config.energy = recipe.Energy(reads="z+state", width=6, blocks=1)
    prior = make_prior(generator, config)
    for p in prior.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.1)
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
        log_p = Bernoulli(logits=tower.decode(tower.top_down(mixed))).log_prob(x).flatten(1).sum(1)
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
    images = grey(6)
    many = [Scorer(prior, settings, draws=d, seed=s)(images)[:, 0] for d in (1, 16) for s in range(8)]
    spread = [torch.stack(part).std(0).mean() for part in (many[:8], many[8:])]
    assert spread[1] < 0.5 * spread[0]  # a quarter, in the mean


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


# Images from anywhere


@pytest.fixture
def imgs(tmp_path):
    """Three images in nested folders, a damaged one, an .npz and an .npy; none of the run's size but one."""
    folder = tmp_path / "imgs"
    (folder / "deep" / "er").mkdir(parents=True)
    Image.fromarray(grey(1)[0, 0].numpy()).save(folder / "a.png")
    colour = grey(1, (3, 20, 31))[0].permute(1, 2, 0).contiguous().numpy()
    Image.fromarray(colour).save(folder / "deep" / "b.jpg")
    Image.fromarray(grey(1, (1, 5, 9))[0, 0].numpy()).save(folder / "deep" / "er" / "c.png")
    (folder / "bad.png").write_bytes(b"no image")
    np.savez(tmp_path / "set.npz", images=grey(2, (3, 16, 16)).permute(0, 2, 3, 1).numpy())
    np.save(tmp_path / "set.npy", grey(3)[:, 0].numpy())
    return folder


def test_read_takes_files_folders_and_arrays(imgs, tmp_path):
    failed = []
    paths = [
        imgs,
        tmp_path / "set.npz",
        imgs / "a.png",
        tmp_path / "absent.png",
        tmp_path / "set.npy",
        tmp_path / "x.npz",
    ]
    found = list(anywhere.read(map(str, paths), recipe.Recipe(name="x"), (1, 8, 8), failed.append))
    names = [name.removeprefix(f"{tmp_path}/") for name, _ in found]
    inside = ["imgs/a.png", "imgs/deep/b.jpg", "imgs/deep/er/c.png"]
    assert names == [*inside, "set.npz#0", "set.npz#1", "imgs/a.png", "set.npy#0", "set.npy#1", "set.npy#2"]
    assert all(x.shape == (1, 8, 8) and x.dtype == torch.uint8 for _, x in found)
    assert torch.equal(found[0][1], grey(1)[0]) and torch.equal(found[-1][1], grey(3)[2])
    assert len(failed) == 3
    assert all(name in str(error) for name, error in zip(("bad.png", "absent.png", "x.npz"), failed, strict=True))


def test_an_empty_folder_is_a_failure(tmp_path):
    failed = []
    assert list(anywhere.read([str(tmp_path)], recipe.Recipe(name="x"), (1, 8, 8), failed.append)) == []
    assert "no images" in str(failed[0])


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 6, 10), (3, 12, 5)])
def test_any_image_is_brought_to_the_runs_shape(shape):
    for size in ((3, 8, 8), (1, 40, 7), (3, 5, 33)):
        assert data.fit_to(grey(2, size), shape, recipe.Data(crop=12)).shape == (2, *shape)
    # What the recipe itself would make of an image, where it can.
    config, x = recipe.Data(crop=20, size=8, channels=1), grey(2, (3, 24, 30))
    assert torch.equal(data.fit_to(x, (1, 8, 8), config), data._fit(x, config))


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


def test_reading_keeps_nothing(tmp_path):
    image = tmp_path / "big.png"
    Image.fromarray(grey(1, (1, 300, 300))[0, 0].numpy()).save(image)  # 90 kB decoded
    images = anywhere.read([str(image)] * 80, recipe.Recipe(name="x"), (1, 8, 8), pytest.fail)
    next(images)
    tracemalloc.start()
    for _ in images:
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * 90_000


# The command


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder of runs holding `digits`, its two-layer generator and a diffusion prior."""
    root = tmp_path_factory.mktemp("runs")
    settings = recipe.load("digits", TINY)
    with Run.create(root, settings) as run:
        train_vae(settings, run, torch.device("cpu"))
        train_prior(settings, run, torch.device("cpu"))
    return root


def pipe(script: str, **variables) -> subprocess.CompletedProcess:
    """A shell pipeline in which `hebm` is the command; its exit status is that of `hebm`."""
    command = f"hebm() {{ '{sys.executable}' -m hebmtool.cli \"$@\"; }}; {script}; exit ${{PIPESTATUS[1]}}"
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | {k: str(v) for k, v in variables.items()}
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment, timeout=120)


def test_pipelines_work_and_survive_a_closed_pipe(runs, imgs):
    (imgs / "bad.png").unlink()
    done = pipe(
        'yes "$IMGS/a.png" | hebm ood-score - --layer 0 --batch-size 2 --draws 1 | head -1', HEBM_RUNS=runs, IMGS=imgs
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    score, path = done.stdout.splitlines()[0].split("\t")
    assert np.isfinite(float(score)) and path == str(imgs / "a.png") and done.stdout.count("\n") == 1


def test_unreadable_files_are_named_and_tell_in_the_status(runs, imgs):
    done = pipe('find "$IMGS" -type f | hebm ood-score - --layer 1 | sort -n', HEBM_RUNS=runs, IMGS=imgs)
    assert done.returncode == 1
    paths = [line.split("\t")[1] for line in done.stdout.splitlines()]
    assert sorted(Path(path).name for path in paths) == ["a.png", "b.jpg", "c.png"]
    (line,) = done.stderr.splitlines()
    assert line.startswith("hebm: ") and "bad.png" in line
    scores = [float(line.split("\t")[0]) for line in done.stdout.splitlines()]
    assert scores == sorted(scores)


def test_json_lines_and_the_cut_chosen(hebm, runs, imgs):
    status, out, err = hebm("ood-score", imgs / "a.png", imgs / "deep", "--json", "--runs", runs)
    assert status == 0, err
    lines = [json.loads(line) for line in out.splitlines()]
    assert [set(line) for line in lines] == [{"path", "score", "method", "layer"}] * 3
    cut, method = lines[0]["layer"], lines[0]["method"]
    assert cut in (0, 1) and method == "energy (inference)"
    status, out, err = hebm("ood-score", imgs / "a.png", "--layer", cut, "--runs", runs)
    assert status == 0 and float(out.split("\t")[0]) == pytest.approx(lines[0]["score"], rel=1e-4)


@pytest.mark.parametrize("options", [("--score", "likelihood"), ("--score", "llr"), ("--scheme", "diffusion")])
def test_every_score(hebm, runs, imgs, options):
    status, out, err = hebm("ood-score", imgs / "a.png", *options, "--draws", 1, "--runs", runs)
    assert status == 0 and len(out.splitlines()) == 1, err


def test_a_gaussian_run_has_likelihoods_but_no_energy(hebm, runs, imgs):
    gaussian = ("--prior", "gaussian", "--runs", runs)
    status, _, err = hebm("ood-score", imgs / "a.png", *gaussian)
    assert status == 1 and err.count("\n") == 1 and "--score likelihood" in err
    for score in ("likelihood", "llr"):
        status, out, err = hebm("ood-score", imgs / "a.png", "--score", score, "--layer", 1, *gaussian)
        assert status == 0 and out.count("\n") == 1, err


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ((), 2, "say what to score"),
        (("x.png", "--auroc"), 2, "give it by --ood"),
        (("x.png", "--ood", "y"), 2, "--ood belongs to --auroc"),
        (("x.png", "--layer", 2), 2, "of 2, so for --score energy it is from 0 to 1"),
        (("x.png", "--layer", 0, "--score", "llr"), 2, "from 1 to 1"),
        (("x.png", "--scheme", "difusion"), 2, "did you mean 'diffusion'"),
        (("x.png", "--run", "absent"), 1, "no run 'absent'"),
        (("x.png", "--layer", 0), 1, "x.png does not exist"),
        (("--auroc", "--out", "a.npz"), 2, "give a .png"),
        (("--auroc", "--ood", "absent", "-n", 6), 1, "absent"),
    ],
)
def test_mistakes_are_sentences(hebm, runs, arguments, status, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found, out, err = hebm("ood-score", *arguments, "--runs", runs)
    assert (found, out) == (status, "") and words in err and "Traceback" not in err
    assert all(line.startswith("hebm: ") for line in err.splitlines())


def test_nothing_on_standard_input_and_an_empty_folder(hebm, runs, tmp_path, monkeypatch):
    for given in ("", "\n\n"):
        with open(tmp_path / "in", "w+") as stdin:
            stdin.write(given)
            stdin.seek(0)
            monkeypatch.setattr(sys, "stdin", stdin)
            status, out, err = hebm("ood-score", "-", "--layer", 0, "--runs", runs)
        assert (status, out) == (1, "") and "no image was named" in err and err.count("\n") == 1
    (tmp_path / "empty").mkdir()
    status, out, err = hebm("ood-score", tmp_path / "empty", "--layer", 0, "--runs", runs)
    assert (status, out) == (1, "") and "no images in" in err and err.count("\n") == 1


# Leaving classes out


def test_excluded_classes_leave_the_training_split_alone():
    whole, test = data.load(recipe.Data(), "train"), data.load(recipe.Data(), "test")
    config = recipe.Data(exclude=[3, "7"], limit=50, attributes={"odd": ["1", "3"]})
    left = data.load(config, "train")
    kept = [i for i, y in enumerate(whole.labels.tolist()) if y not in (3, 7)][:50]
    assert len(left) == 50 and left.labels.tolist() == whole.labels[kept].tolist()
    assert torch.equal(left.batch(range(50)), whole.batch(kept)) and left.classes == whole.classes
    assert torch.equal(left.attributes["odd"], left.labels == 1)
    assert torch.equal(data.load(config, "test").labels, test.labels)


def test_what_cannot_be_excluded(tmp_path):
    with pytest.raises(HebmError, match="data.exclude names the class '10'"):
        data.load(recipe.Data(exclude=[10]), "train")
    with pytest.raises(HebmError, match="leaves no image"):
        data.load(recipe.Data(exclude=list(range(10))), "train")
    np.save(tmp_path / "x.npy", grey(9)[:, 0].numpy())
    with pytest.raises(HebmError, match="data.exclude names classes, but these images have no labels"):
        data.load(recipe.Data(source="array", path=str(tmp_path / "x.npy"), exclude=[1]), "train")


def test_the_anomaly_benchmark_runs(tmp_path, capsys):
    path = Path(__file__).parent.parent / "benchmarks" / "anomaly.py"
    spec = importlib.util.spec_from_file_location("anomaly", path)
    anomaly = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(anomaly)
    tiny = [part for override in TINY for part in ("--set", override)]
    arguments = ["--recipe", "digits", *tiny, "--digits", "3", "--runs", str(tmp_path), "--draws", "1"]
    anomaly.main(arguments)
    out = capsys.readouterr().out
    rows = dict(re.findall(r"^\| (.+?) \| (.*) \|$", out, re.MULTILINE))
    assert rows["VAE, published"] == ""
    for name in ("energy", "energy, best cut", "likelihood", "llr", "llr, best cut"):
        assert 0 < float(rows[name]) <= 1
    run = Run(tmp_path / "anomaly-3")
    assert 3 not in data.load(run.recipe().data, "train").labels
    before = {file: file.stat().st_mtime_ns for file in run.checkpoints()}
    anomaly.main(arguments)  # what is trained is not trained again
    assert before == {file: file.stat().st_mtime_ns for file in run.checkpoints()} and capsys.readouterr().out == out
