"""A latent EBM on the command line: everything that serves a flow run serves it, and its draws take Langevin steps."""

import json

import numpy as np
import pytest
from said import one_sentence
from tiny import CPU, LATENT, options

from hebmtool import api, data, recipe
from hebmtool.run.folder import Run
from hebmtool.run.open import load_prior

TRAIN = ["train-prior", "digits-flow", *options(LATENT)]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Below it the run `latent`."""
    root = tmp_path_factory.mktemp("latent")
    found = api.train_prior("digits-flow", LATENT, runs=root, device="cpu")
    assert found["latent-ebm"]["fd"] > 0 and found["latent-ebm"]["match"]["floor"] > 0
    return root


def test_what_is_learned_and_logged(root):
    run = Run(root / "latent")
    assert run.one_stage and run.priors() == ["latent-ebm"]
    last = run.metrics("train-prior latent-ebm")[-1]
    assert last["step"] == 3 and {"gap", "log_x", "z_std", "negative_std", "seconds"} <= last.keys()
    assert len(last["grad_norm"]) == 2  # of the generator and of the energy, clipped apart
    prior = load_prior(run, "latent-ebm", CPU)
    assert prior.T == 1 and prior.g.image_shape == (1, 8, 8) and not any(p.requires_grad for p in prior.parameters())


def test_rates_are_the_energys_and_the_generators(tmp_path):
    more = ["train_prior.iterations=1", "train_prior.ema=0", "train_prior.lr=0.002", "train_prior.generator_lr=0.01"]
    api.train_prior("digits-flow", [*LATENT, *more], runs=tmp_path, device="cpu")
    prior = load_prior(Run(tmp_path / "latent"), "latent-ebm", CPU)
    # Adam's first update is the rate itself, and both of these start at 0.
    assert prior.energy.layers[0].head.weight.abs().max().item() == pytest.approx(0.002, rel=1e-3)
    assert prior.g.constant.abs().max().item() == pytest.approx(0.01, rel=1e-3)


def test_it_is_drawn_by_its_chain_or_another(hebm, root, tmp_path):
    made = {}
    for name, more in (("own", []), ("few", ["--steps", 0]), ("other", ["--chain", "hmc", "--steps", 8])):
        path = tmp_path / f"{name}.npz"
        status, _, err = hebm("sample", "--run", root / "latent", "-n", 5, *more, "--out", path)
        assert status == 0, err
        made[name] = np.load(path)["images"].astype(int)
    assert made["own"].shape == (5, 8, 8)
    assert all((made["own"] != made[name]).any() for name in ("few", "other"))


def test_info_tells_the_energy(hebm, root):
    found = json.loads(hebm("info", root / "latent", "--json")[1])
    assert found["energy"] == {"width": 4, "blocks": 2, "parameters": 53, "chain": "unscaled", "steps": 2}
    assert "flow" not in found and found["langevin"]["start"] == "normal"
    out = hebm("info", root / "latent")[1]
    assert "prior latent-ebm: an energy of 2 hidden layers of 4" in out and "2 steps of the unscaled chain" in out


def test_images_are_scored_reconstructed_and_completed(hebm, root, tmp_path):
    np.save(tmp_path / "x.npy", data.load(recipe.Data(), "test").batch(range(3))[:, 0].numpy())
    for command, *more in (["ood-score"], ["reconstruct"], ["inpaint", "--mask", "left", "--draws", 2]):
        out = [] if command == "ood-score" else ["--out", tmp_path / f"{command}.npz"]
        status, lines, err = hebm(command, tmp_path / "x.npy", *more, "--run", root / "latent", *out)
        assert status == 0, err
        values = [float(line.split("\t")[0]) for line in lines.splitlines()]
        assert len(values) == 3 and len(set(values)) == 3
    match = json.loads(hebm("flow-match", root / "latent", "-n", 16, "--json", "--out", tmp_path / "m.png")[1])
    kept = Run(root / "latent").figures()["latent-ebm"]["match"]
    assert match["prior"] > 0 and match["samples"] == 16 < kept["samples"]


def test_it_is_judged_diagnosed_and_planned(hebm, root):
    status, out, err = hebm("evaluate", root / "latent", "--samples", 24, "--json")
    assert status == 0, err
    assert {"gaussian", "latent-ebm", "reconstructions"} <= {each["of"] for each in json.loads(out)["figures"]}
    status, out, err = hebm("diagnose", root / "latent", "--samples", 30, "--json")
    assert status == 0, err
    assert "latent-ebm" in {each["of"] for each in json.loads(out)["figures"]}
    [stage] = json.loads(hebm("plan", "digits-flow", *options(LATENT), "--json")[1])["stages"]
    prior = load_prior(Run(root / "latent"), "latent-ebm", CPU)
    assert stage["stage"] == "train-prior latent-ebm"
    assert stage["parameters"] == sum(p.numel() for p in prior.parameters())


@pytest.mark.parametrize(
    ("more", "status", "words"),
    [
        (["prior.objective=score-matching"], 2, "latent-ebm kind has no noise levels"),
        (["prior.labels=class"], 2, "prior.kind latent-ebm has none"),
        (["train_prior.precision=bf16"], 2, "a latent-ebm is learned in float32"),
        (["prior.whiten=true"], 2, "prior.whiten is true, but the latent-ebm kind has one vector of latents"),
        (["prior.energy.readout=strided"], 2, "prior.energy.readout is 'strided', but the latent-ebm kind"),
        (["prior.energy.reads=z+state"], 2, "prior.energy.reads is 'z+state', but the latent-ebm kind"),
        (["prior.energy.form=published"], 2, "prior.energy.form is 'published', but the latent-ebm kind"),
        (["train_prior.joint=true"], 2, "it learns its generator anyway"),
        ([], 1, "already has checkpoints"),
    ],
)
def test_what_cannot_be_trained(hebm, root, more, status, words):
    found, out, err = hebm(*TRAIN, *options(more), "--runs", root)
    assert found == status and words in one_sentence(err) and out == ""


@pytest.mark.parametrize("key", ["prior.eta=0.2", "prior.steps=3", "flow.sigma=0.5"])
def test_what_it_was_learned_with_may_not_change(hebm, root, key):
    status, out, err = hebm(*TRAIN, *options([key]), "--runs", root, "--resume")
    assert status == 1 and key.partition("=")[0] in one_sentence(err) and out == ""


def test_layers_are_not_there_to_be_resampled(hebm, root):
    status, _, err = hebm("hier-sample", "--layer", 1, "--run", root / "latent")
    assert status == 1 and "is a latent-ebm model, whose latent has one layer" in one_sentence(err)
