"""Diagnosis of real runs on the digits: every part, of every kind of prior, by every chain; and mistakes."""

import json
import math

import pytest
import torch
from PIL import Image

from hebmtool import data
from hebmtool.errors import HebmError, UsageError
from hebmtool.judge.diagnose import PARTS, _plain, diagnose, figure, table
from hebmtool.metrics.figures import Figure
from hebmtool.prior import Gaussian
from hebmtool.run.folder import Run
from hebmtool.run.open import load_prior
from hebmtool.use.infer import posterior_draws

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("short")


def value(found, name, layer=None):
    return next(f.value for f in found.figures if (f.name, f.layer) == (name, layer))


def test_everything_as_json_with_a_picture(hebm, tiny, tmp_path):
    out = tmp_path / "diag.png"
    arguments = ("diagnose", "digits", "--runs", tiny, "--out", out)
    code, stdout, err = hebm(*arguments, "--samples", 40, "--json")
    assert code == 0, err
    found = json.loads(stdout)
    assert found["prior"] == "diffusion-ebm" and found["seed"] == 0 and "diagnose" in found["command"]
    names = {figure["name"] for figure in found["figures"]}
    assert {"ELBO", "log Z", "two-sample accuracy", "posterior std", "G drift", "autocorrelation time"} <= names
    assert all(figure["value"] is not None for figure in found["figures"])
    with Image.open(out) as drawn:
        assert drawn.size == (1755, 962)
        assert len(drawn.convert("RGB").getcolors(10**7)) > 100
    code, _, err = hebm(*arguments)
    assert code == 1 and "exists" in err


def test_the_same_figures_as_a_table(hebm, tiny):
    arguments = ("diagnose", "digits", "--runs", tiny, "--samples", 40, "--only", "two-sample")
    code, first, err = hebm(*arguments)
    assert code == 0, err
    assert first == hebm(*arguments)[1]
    assert "layer 2" in first and "gain given above" in first and "ELBO" not in first
    code, other, _ = hebm(*arguments, "--seed", 1)
    assert code == 0 and other != first


def test_what_another_chain_does_is_told_of_the_same_density(run):
    """The energy, and so what it says of the posterior, stays the same; steps and draws do not."""
    own, other = (
        diagnose(run, CPU, "ebm", parts=["chains"], chain=chain, theta=theta)
        for chain, theta in ((None, None), ("underdamped", 0.3))
    )
    assert value(own, "G on the posterior") == pytest.approx(value(other, "G on the posterior"), rel=1e-5)
    assert value(own, "G at 2 steps") != value(other, "G at 2 steps")
    assert other.chains.prior.chain.word == "underdamped"
    with pytest.raises(UsageError, match="no setting thetta"):
        diagnose(run, CPU, "ebm", parts=["chains"], thetta=0.3)


# Parts that say nothing


def test_the_gaussian_prior_has_no_chains(hebm, tiny, tmp_path, run):
    arguments = ("diagnose", "digits", "--runs", tiny, "--prior", "gaussian")
    code, out, err = hebm(*arguments, "--samples", 30, "--json")
    assert code == 0 and "no chains can be told, for a draw of the gaussian prior takes no Langevin steps" in err
    assert {figure["of"] for figure in json.loads(out)["figures"]} == {"gaussian", "generator"}
    code, _, err = hebm(*arguments, "--out", tmp_path / "x.png")
    assert code and "no" in err and "chains" in err
    with pytest.raises(HebmError, match="no chains can be told.*; ask for two-sample"):
        diagnose(run, CPU, "gaussian", parts=["chains"])
    with pytest.raises(UsageError, match="no chain to choose"):
        diagnose(run, CPU, "gaussian", chain="underdamped")


def test_a_flow_is_told_from_its_posterior_and_nothing_else(flow, capsys):
    found = diagnose(flow, CPU, samples=40)
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 2 and err[0].startswith("no likelihood can be told, for a bound on log p(x) takes an encoder")
    assert err[1] == "no chains can be told, for a draw of the flow prior takes no Langevin steps"
    assert found.chains is None and {f.of for f in found.figures} == {"gaussian", "flow", "generator"}
    assert {f.layer for f in found.figures} == {None, 1}
    assert found.figures == diagnose(flow, CPU, samples=40, parts=["two-sample"]).figures
    assert capsys.readouterr().err == ""
    with pytest.raises(HebmError, match="no chains to picture"):
        figure(found)
    for parts in (["likelihood"], ["chains"], ["chains", "likelihood"]):
        with pytest.raises(HebmError, match="can be told.*ask for two-sample"):
            diagnose(flow, CPU, parts=parts)
    with pytest.raises(UsageError, match="steps is 3, but a draw of the flow prior takes none"):
        diagnose(flow, CPU, steps=3)


def test_there_are_three_parts(run):
    assert PARTS == ("likelihood", "two-sample", "chains")
    with pytest.raises(UsageError, match="did you mean 'chains'"):
        diagnose(run, CPU, parts=["chain"])


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--only", "chain"], 2, "did you mean 'chains'"),
        (["--only", "likelihood", "--out", "x.png"], 2, "add --only chains"),
        (["--out", "x.npz"], 2, "give a .png"),
        (["--prior", "flow"], 1, "train-prior"),
        (["--samples", "3"], 2, "samples"),
        (["nowhere"], 1, "no run 'nowhere'"),
    ],
)
def test_mistakes_are_one_sentence(hebm, tiny, tmp_path, monkeypatch, arguments, status, words):
    monkeypatch.chdir(tmp_path)
    named = [] if "nowhere" in arguments else ["digits"]
    code, out, err = hebm("diagnose", "--runs", tiny, *named, *arguments)
    assert code == status and out == ""
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("hebm: ") and words in lines[0]


def test_what_is_not_finite_is_undefined_not_invalid_json():
    found = _plain(Figure("G", math.nan, math.inf, note="of three"))
    assert (found.value, found.error, found.note) == (None, None, "not finite; of three")
    assert "undefined" in table([found])


def test_posterior_draws_come_from_the_first_split_first(generator, tiny):
    settings = Run.open("digits", tiny).recipe()
    settings.generator.likelihood = "bernoulli"
    x = torch.randint(0, 256, (90, 1, 8, 8), dtype=torch.uint8)
    train, test = (
        data.Images(len(part), (1, 8, 8), lambda indices, part=part: part[indices]) for part in (x[:60], x[60:])
    )
    few, more = (posterior_draws(Gaussian(generator), (test, train), settings, n, 0) for n in (30, 45))
    assert torch.equal(few, more[:30]) and len(more) == 45


def test_a_flows_posterior_draws_are_what_inference_comes_to_in_learning(flow):
    prior, settings = load_prior(flow, "flow", CPU), flow.recipe()
    images = data.load(settings.data, "test")
    drawn = posterior_draws(prior, (images,), settings, 8, 0)
    assert drawn.shape == (8, settings.flow.latent) and torch.equal(
        drawn, posterior_draws(prior, (images,), settings, 20, 0)[:8]
    )
