"""A prior, a chain, an objective and a likelihood defined here, outside the package, go through training, sampling,
scoring and evaluation like its own: what docs/extend.md says of adding one, done word for word."""

import json
import shutil

import numpy as np
import pytest
import torch
from tiny import DIGITS, options
from torch import Tensor, nn
from torch.nn.functional import softplus

from hebmtool.chains import CHAINS, GaussianExact, hold
from hebmtool.data import SOURCES, Images, source
from hebmtool.generator import LIKELIHOODS, Likelihood
from hebmtool.prior import KINDS, OBJECTIVES, Prior, objective
from hebmtool.prior.base import at
from hebmtool.prior.objectives import RUN_CHAINS
from hebmtool.recipe import words

pytestmark = pytest.mark.usefixtures("short")


@pytest.fixture(scope="module", autouse=True)
def added():
    """The toys, known while this module runs."""
    registers = (KINDS, CHAINS, OBJECTIVES, LIKELIHOODS, SOURCES)
    lists = (words.KINDS, words.CHAINS, words.OBJECTIVES, words.LIKELIHOODS, words.SOURCES)
    before = [dict(each) for each in registers], [list(each) for each in lists], set(RUN_CHAINS)

    class Diagonal(Prior, kind="diagonal"):
        """p(u) = N(m, s^2) with a mean and a scale per coordinate: layers are independent, and draws exact."""

        def __init__(self, generator, config):
            super().__init__(generator)
            self.m, self.log_s = (nn.Parameter(torch.zeros(generator.D)) for _ in range(2))

        def trajectory(self, eps, K=None, tau=1.0, held=None, watch=None):
            yield hold(self.m + tau * self.log_s.exp() * eps(), at(held, 0))

        def log_ratio(self, u: Tensor, t: int = 0, layers: int | None = None) -> Tensor:
            terms = 0.5 * (u.square() - ((u - self.m) / self.log_s.exp()).square()) - self.log_s
            return torch.stack([terms[:, s].sum(1) for s in self.generator.slices[:layers]], dim=1)

        def loss(self, u_0: Tensor, x: Tensor, visible: Tensor | None = None):
            nats = self.log_ratio(u_0).sum(1).mean()
            return -nats, {"nats": nats.item()}

    class Euler(GaussianExact, word="euler"):
        """u <- u - h (u - m) + h sigma^2 grad F + sigma sqrt(2 h) eps, from a draw of N(m, sigma^2)."""

        def __init__(self, h: float):
            self.h = h

        @classmethod
        def from_recipe(cls, config):
            return cls(config.h)

        def run(self, slope, m, sigma, shorter, K, eps, tau, held, start=None):
            h = self.h * shorter
            u = hold(m + tau * sigma * eps() if start is None else start, held)
            for _ in range(K):
                drift = sigma.square() * slope(u)[1] - (u - m)
                u = hold(u + h * drift + tau * sigma * (2 * h) ** 0.5 * eps(), held)
            return u

    @objective("hinge")
    def hinge(prior, u_0, x):
        """F above 1 at posterior draws, below -1 at draws of N(0, I)."""
        prior.energy.advance()
        u, _, t = prior.pairs(u_0)
        F = prior.F(torch.cat([u, torch.randn_like(u)]), torch.cat([t, t]))
        positive, negative = F.chunk(2)
        return softplus(1 - positive).mean() + softplus(1 + negative).mean(), {
            "gap": (negative - positive).mean().item()
        }

    class Laplace(Likelihood, word="laplace"):
        """p(x | z) = exp(-|2x - 1 - m| / b) / 2b with b = 0.1 for every pixel."""

        b = 0.1

        def parameters(self, channels: int) -> int:
            return channels

        def read(self, v: Tensor, bits: int) -> Tensor:
            return v / (2**bits - 1)

        def pixels(self, logits: Tensor, x: Tensor) -> Tensor:
            return (-(2 * x - 1 - logits).abs() / self.b - torch.log(torch.tensor(2 * self.b))).sum(1)

        def mean(self, logits: Tensor) -> Tensor:
            return ((logits + 1) / 2).clamp(0, 1)

        def sample(self, logits: Tensor) -> Tensor:
            return self.mean(logits + torch.distributions.Laplace(0.0, self.b).sample(logits.shape).to(logits))

    @source("stripes")
    def stripes(config, split):
        """64 images of one bright row each; the label is the row."""
        rows = torch.arange(64) % 8
        pixels = torch.where(torch.arange(8)[None, :, None] == rows[:, None, None], 240, 10).expand(64, 8, 8)
        keep = slice(0, 48) if split == "train" else slice(48, 64)
        images = pixels[keep, None].to(torch.uint8)
        return Images(len(images), (1, 8, 8), lambda indices: images[indices], labels=rows[keep])

    yield
    for register, kept in zip(registers, before[0], strict=True):
        register.clear()
        register.update(kept)
    for each, kept in zip(lists, before[1], strict=True):
        each._words[:] = kept
    RUN_CHAINS.clear()
    RUN_CHAINS.update(before[2])


def settings(**keys) -> list[str]:
    named = [f"{key.replace('__', '.')}={value}" for key, value in keys.items()]
    return options([*DIGITS, "data.test_fraction=0.03", *named])


@pytest.fixture(scope="module")
def root(added, tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def run(hebm, root):
    """A run whose generator has the toy's likelihood, trained once."""

    def ok(*arguments) -> str:
        status, out, err = hebm(*arguments)
        assert status == 0, err
        return out

    if not (root / "digits").is_dir():
        ok("train-vae", "digits", "--runs", root, *settings(generator__likelihood="laplace"))
    return ok


def test_a_likelihood_is_learned_with_and_read_by(run, root, tmp_path):
    found = json.loads(run("info", root / "digits", "--json"))
    assert found["likelihood"] == "laplace" and np.isfinite(found["bits_per_dim"])
    images = tmp_path / "images.npy"
    np.save(images, np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8))
    for command in ("reconstruct", "inpaint"):
        out = tmp_path / f"{command}.npz"
        run(command, images, "--run", root / "digits", "--steps", 2, "--out", out)
        assert len(np.load(out)["images"])
    assert (
        len(run("ood-score", images, "--run", root / "digits", "--score", "likelihood", "--layer", 0).splitlines()) == 3
    )


def test_a_prior_is_trained_drawn_scored_and_judged(run, root, tmp_path):
    trained = json.loads(
        run("train-prior", "digits", "--runs", root, *settings(generator__likelihood="laplace", prior__kind="diagonal"))
    )
    assert trained["closure"]["kind"] == "diagonal"
    assert (root / "digits" / "prior-diagonal.safetensors").is_file()
    grid = ["--run", root / "digits", "--prior", "diagonal"]
    run("sample", *grid, "-n", 4, "--out", tmp_path / "a.npz")
    run("sample", *grid, "-n", 4, "--batch-size", 2, "--out", tmp_path / "b.npz")
    assert (np.load(tmp_path / "a.npz")["images"] == np.load(tmp_path / "b.npz")["images"]).all()
    run("hier-sample", *grid, "--layer", 1, "-n", 2, "--columns", 2, "--out", tmp_path / "h.png")
    auroc = json.loads(run("ood-score", *grid, "--auroc", "-n", 12, "--json", "--out", tmp_path / "o.png"))
    assert auroc["methods"][0]["score"] == "energy" and auroc["methods"][0]["cuts"] == [0, 1]
    figures = json.loads(
        run("evaluate", root / "digits", "--prior", "diagonal", "--json", "--likelihood", "--diagnose")
    )
    judged = {figure["name"]: figure for figure in figures["figures"] if figure["of"] == "diagonal"}
    assert judged["FD"]["value"] > 0 and "gain over gaussian" in judged and "two-sample accuracy" in judged
    # Its log ratio is normalised already, which annealed importance sampling has to find out.
    assert abs(judged["log Z"]["value"]) < 4 * judged["log Z"]["error"] + 0.05
    assert "closure" in json.loads(run("info", root / "digits", "--json"))["priors"][-1]
    run("report", root / "digits", "--out", tmp_path / "report.html")


def test_a_chain_is_learned_with_and_chosen_at_use(run, root, tmp_path):
    keys = settings(generator__likelihood="laplace", prior__chain="euler", prior__objective="recovery", prior__h=0.1)
    run("train-prior", "digits", "--runs", root, *keys)
    grid = ["--run", root / "digits", "--prior", "diffusion-ebm", "-n", 2]
    for name, chosen_by in {
        "own": [],
        "chosen": ["--chain", "euler", "--h", 0.1],
        "other": ["--chain", "underdamped"],
    }.items():
        run("sample", *grid, *chosen_by, "--out", tmp_path / f"{name}.npz")
    own, chosen, other = (np.load(tmp_path / f"{name}.npz")["images"] for name in ("own", "chosen", "other"))
    assert (own == chosen).all() and (own != other).any()
    run("diagnose", root / "digits", "--prior", "diffusion-ebm", "--only", "chains", "--steps", 2, "--json")


def test_an_objective_is_what_is_minimised(run, root, tmp_path):
    shutil.copytree(root / "digits", tmp_path / "hinged")
    for path in (tmp_path / "hinged").glob("prior-*"):
        path.unlink()
    run(
        "train-prior",
        "digits",
        "--runs",
        tmp_path,
        *settings(generator__likelihood="laplace", name="hinged", prior__objective="hinge"),
    )
    records = [json.loads(line) for line in (tmp_path / "hinged" / "metrics.jsonl").read_text().splitlines()]
    assert any("gap" in record and record["stage"] == "train-prior diffusion-ebm" for record in records)


def test_a_source_is_trained_on(run, root):
    keys = settings(name="stripes", data__source="stripes", generator__likelihood="laplace")
    run("train-vae", "digits", "--runs", root, *keys)
    assert json.loads(run("info", root / "stripes", "--json"))["data"] == "stripes"


def test_an_unknown_word_is_still_a_mistake(hebm, root):
    status, _, err = hebm("train-vae", "digits", "--runs", root, "--set", "generator.likelihood=laplac")
    assert status == 2 and "did you mean 'laplace'" in err
