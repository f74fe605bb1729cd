"""Flow runs, whose latent has one layer, on the command line: what serves them, and what has no meaning there."""

import argparse
import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from said import one_sentence
from tiny import FLOW, options

from hebmtool import data, picture, recipe
from hebmtool.data import masks
from hebmtool.prior import FlowPrior
from hebmtool.use.reconstruct import errors

TRAIN = ["train-prior", "digits-flow", *options(FLOW)]


def test_sample_info_and_score(hebm, tiny, tmp_path):
    at = ["--run", tiny / "flow"]
    status, out, err = hebm("sample", *at, "-n", 9, "--out", tmp_path / "a.npz")
    assert status == 0, err
    status, _, _ = hebm("sample", *at, "-n", 5, "--batch-size", 2, "--out", tmp_path / "b.npz")
    a, b = (np.load(tmp_path / name)["images"].astype(int) for name in ("a.npz", "b.npz"))
    assert a.shape == (9, 8, 8) and np.abs(a[:5] - b).max() <= 1
    assert hebm("sample", *at, "--progressive", "-n", 2, "--out", tmp_path / "p.png")[0] == 0
    status, out, _ = hebm("info", tiny / "flow", "--json")
    found = json.loads(out)
    assert found["latent_dimensions"] == 6 and found["priors"][0]["step"] == 3 and found["flow"]["transforms"] == 3
    status, out, _ = hebm("info", tiny / "flow")
    assert status == 0 and "6 latent dimensions" in out and "3 updates" in out
    images = data.load(recipe.Data(), "test").batch(range(3))[:, 0].numpy()
    np.save(tmp_path / "x.npy", images)
    status, out, err = hebm("ood-score", *at, tmp_path / "x.npy")
    assert status == 0, err
    scores = [float(line.split("\t")[0]) for line in out.splitlines()]
    assert len(scores) == 3 and len(set(scores)) == 3
    arguments = ["--auroc", "-n", 20, "--ood", tmp_path / "x.npy", "--json", "--out", tmp_path / "ood.png"]
    status, out, err = hebm("ood-score", *at, *arguments)
    assert status == 0, err
    (method,) = json.loads(out)["methods"]
    assert (method["score"], method["cuts"], method["cut"], method["draws"]) == ("posterior", [0], 0, 1)
    assert 0 <= method["rows"][0]["auroc"] <= 1 and Image.open(tmp_path / "ood.png").size[1] > 300


def test_flow_match(hebm, tiny, tmp_path):
    status, out, err = hebm("flow-match", tiny / "flow", "--out", tmp_path / "m.png", "--json")
    assert status == 0, err
    found = json.loads(out)
    assert found["floor"] > 0 and found["prior"] > 0 and Image.open(tmp_path / "m.png").size[0] > 800


def test_figures_are_kept_and_those_of_missing_pixels_too(hebm, tiny, tmp_path):
    kept = json.loads((tiny / "flow" / "figures.json").read_text())["flow"]
    assert kept["fd"] > 0 and kept["step"] == 3
    assert kept["psnr"] == pytest.approx(-10 * np.log10(kept["mse"]), abs=2)
    assert (tiny / "flow" / "samples" / "flow-match.png").is_file()
    status, out, err = hebm(*TRAIN, "--runs", tmp_path, *options(["data.missing=0.4", "data.limit=40"]))
    assert status == 0, err
    found = json.loads(out)["flow"]
    assert found["recovery"]["hidden"] == pytest.approx(0.4, abs=0.05)
    assert Image.open(tmp_path / "flow/samples/recovered.png").size[0] > 100


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["hier-sample", "--layer", "1"], 1, "layers of a hierarchical generator"),
        (["controllable", "--class", "3"], 1, "layers of a hierarchical generator"),
        (["sample", "--prior", "ebm"], 1, "has no 'ebm' prior"),
        (["sample", "--steps", "5"], 2, "takes no"),
        (["sample", "--readjust-bn"], 2, "no BatchNorm"),
        (["ood-score", "x.png", "--score", "llr"], 2, "posterior"),
        (["ood-score", "x.png", "--scheme", "diffusion"], 2, "inference"),
    ],
)
def test_what_has_no_meaning_for_one_layer(hebm, tiny, tmp_path, monkeypatch, arguments, status, words):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save("x.png")
    found, out, err = hebm(*arguments, "--run", tiny / "flow")
    assert found == status and words in one_sentence(err) and out == ""


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (TRAIN, 1, "already has checkpoints"),
        ([*TRAIN, "--set", "flow.sigma=0.5", "--resume"], 1, "flow.sigma"),
        ([*TRAIN, "--set", "prior.labels=class"], 2, "prior.labels"),
        (["train-prior", "digits", "--set", "data.missing=0.5"], 2, "prior.kind flow"),
        ([*TRAIN, "--set", "data.missing=1.5"], 2, "above 0 and below 1"),
        ([*TRAIN, "--set", "data.missing=0.5", "--set", "data.flip=true"], 2, "data.flip"),
        ([*TRAIN, "--set", "flow.persistent=true", "--set", "data.flip=true"], 2, "data.flip"),
        ([*TRAIN, "--set", "train_prior.precision=bf16"], 2, "train_prior.precision"),
        ([*TRAIN, "--set", "name=n", "--set", "data.missing=no.npy"], 1, "no.npy does not exist"),
        ([*TRAIN, "--set", "name=n", "--set", "data.test_fraction=0.0003"], 1, "test images"),
        ([*TRAIN, "--set", "flow.coupling=splines"], 2, "did you mean 'spline'"),
    ],
)
def test_what_cannot_be_trained(hebm, copied, arguments, status, words):
    found, out, err = hebm(*arguments, "--runs", copied)
    assert found == status and words in one_sentence(err) and out == ""
    assert not list((copied / "n").glob("*.safetensors"))


def test_features_that_do_not_fit_are_known_before_training(hebm, tmp_path):
    torch.jit.trace(torch.nn.Linear(5, 3), torch.zeros(1, 5)).save(tmp_path / "features.pt")
    features = options([f"evaluate.features={tmp_path / 'features.pt'}"])
    status, _, err = hebm(*TRAIN, "--runs", tmp_path / "runs", *features)
    assert status == 1 and "features.pt" in one_sentence(err)
    assert not list((tmp_path / "runs" / "flow").glob("*.safetensors"))


def test_the_oracle_of_the_flow_benchmark_finds_an_image_its_generator_made(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent.parent / "benchmarks")
    benchmark = importlib.import_module("flow")
    torch.manual_seed(0)
    settings = recipe.load("digits-flow", [*FLOW, "flow.sigma=0.1"])
    model = FlowPrior.from_recipe(settings, (1, 8, 8)).eval().requires_grad_(False)
    model.g.constant.data.normal_(std=2.0)
    model.g.project.weight.data.normal_()
    hidden = masks.parse("center:0.5", (1, 8, 8))(range(4))
    made = picture.to_uint8(model.g.images(model.from_base(torch.randn(4, model.g.D))))
    found = benchmark.oracle(model, settings, made, hidden)
    assert errors(found, made, hidden).pooled() > 25
    other = torch.randint(0, 256, made.shape, dtype=torch.uint8)  # what it cannot draw
    assert errors(benchmark.oracle(model, settings, other, hidden), other, hidden).pooled() < 20


def test_the_flow_benchmark_trains_what_a_row_says_whatever_is_set(tmp_path, monkeypatch):
    """Of N(0, I) no setting of the flow makes a flow; what is not a row's own may be set."""
    monkeypatch.syspath_prepend(Path(__file__).parent.parent.parent / "benchmarks")
    benchmark, trained = importlib.import_module("flow"), []
    monkeypatch.setattr(benchmark.api, "train_prior", lambda settings, **_: trained.append(settings))
    options = argparse.Namespace(recipe="digits-flow", features=None, runs=tmp_path, device="cpu")
    options.set = ["flow.transforms=5", "flow.width=16"]
    benchmark.trained(options, "normal", "flow.width=8", "flow.steps=7", asked=["flow.transforms=0", "seed=3"])
    [settings] = trained
    assert (settings.flow.transforms, settings.flow.width, settings.flow.steps) == (0, 16, 7)
    assert (settings.name, settings.seed) == ("normal", 3)
