"""`hebm diagnose`: real runs on the digits, and mistakes."""

import json
import math

import pytest
from PIL import Image

from hebmtool import recipe
from hebmtool.compute import pick_device
from hebmtool.judge import diagnose
from hebmtool.metrics.figures import Figure
from hebmtool.run.folder import Run
from hebmtool.train.prior import train_prior
from hebmtool.train.vae import train_vae

TINY = [
    *("generator.layers_per_scale=1", "generator.latent_channels=2", "generator.encoder_channels=4"),
    *("generator.decoder_channels=4", "train_vae.batch_size=16", "train_vae.iterations=8", "train_prior.batch_size=8"),
    *("train_prior.iterations=4", "prior.energy.width=8", "prior.steps=2", "evaluate.samples=32"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root, settings = tmp_path_factory.mktemp("runs"), recipe.load("digits", TINY)
    with Run.create(root, settings) as run:
        train_vae(settings, run, pick_device("cpu"))
        train_prior(settings, run, pick_device("cpu"))
    return root


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """The same diagnostics on less."""
    whole = diagnose.evidence.figures, diagnose.chains.diagnose
    monkeypatch.setattr(diagnose.evidence, "figures", lambda *a, **k: whole[0](*a, **k, images=8, draws=4, chains=6))
    for least in ("LEAST_UPDATES", "LEAST_FRESH"):
        monkeypatch.setattr(diagnose.two_sample, least, 4)
    monkeypatch.setattr(diagnose.chains, "diagnose", lambda *a, **k: whole[1](*a, **k, images=5, chain=30))


def test_everything_as_json_with_a_picture(hebm, runs, tmp_path):
    out = tmp_path / "diag.png"
    code, stdout, err = hebm("diagnose", "--runs", runs, "--samples", 40, "--json", "--out", out)
    assert code == 0, err
    found = json.loads(stdout)
    assert found["prior"] == "diffusion-ebm" and found["seed"] == 0 and "diagnose" in found["command"]
    names = {figure["name"] for figure in found["figures"]}
    assert {"ELBO", "log Z", "two-sample accuracy", "posterior std", "G drift", "autocorrelation time"} <= names
    assert all(figure["value"] is not None for figure in found["figures"])
    with Image.open(out) as drawn:
        assert drawn.size == (1755, 962)
        assert len(drawn.convert("RGB").getcolors(10**7)) > 100
    code, _, err = hebm("diagnose", "--runs", runs, "--out", out)
    assert code == 1 and "exists" in err


def test_the_same_figures_as_a_table(hebm, runs):
    arguments = ("diagnose", "--runs", runs, "--samples", 40, "--only", "two-sample")
    code, first, err = hebm(*arguments)
    assert code == 0, err
    assert first == hebm(*arguments)[1]
    assert "layer 2" in first and "gain given above" in first and "ELBO" not in first
    code, other, _ = hebm(*arguments, "--seed", 1)
    assert code == 0 and other != first


def test_the_gaussian_prior_has_no_chains(hebm, runs, tmp_path):
    code, out, err = hebm("diagnose", "--runs", runs, "--samples", 30, "--prior", "gaussian", "--json")
    assert code == 0, err
    assert {figure["of"] for figure in json.loads(out)["figures"]} == {"gaussian", "generator"}
    code, _, err = hebm("diagnose", "--runs", runs, "--prior", "gaussian", "--out", tmp_path / "x.png")
    assert code == 2 and "no" in err and "chains" in err


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--only", "chain"], 2, "did you mean 'chains'"),
        (["--only", "likelihood", "--out", "x.png"], 2, "add --only chains"),
        (["--out", "x.npz"], 2, "give a .png"),
        (["--prior", "ebm"], 1, "train-prior"),
        (["--samples", "3"], 2, "samples"),
        (["nowhere"], 1, "no run 'nowhere'"),
    ],
)
def test_mistakes_are_one_sentence(hebm, runs, tmp_path, monkeypatch, arguments, status, words):
    monkeypatch.chdir(tmp_path)
    code, out, err = hebm("diagnose", "--runs", runs, *arguments)
    assert code == status and out == ""
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("hebm: ") and words in lines[0]


def test_what_is_not_finite_is_undefined_not_invalid_json():
    found = diagnose._plain(Figure("G", math.nan, math.inf, note="of three"))
    assert (found.value, found.error, found.note) == (None, None, "not finite; of three")
    assert "undefined" in diagnose.table([found])
