"""Every training, stopped by a signal in the middle and resumed, ends where it would have ended."""

import os
import signal

import numpy as np
import pytest
import safetensors.torch
import torch
from tiny import CPU, DIGITS, FLOW, LATENT

from hebmtool import recipe
from hebmtool.errors import HebmError
from hebmtool.run import checkpoint
from hebmtool.run.folder import Run
from hebmtool.train.joint import train_joint
from hebmtool.train.labels import train_labels
from hebmtool.train.loop import Updates
from hebmtool.train.one_stage import train_one_stage
from hebmtool.train.prior import train_prior
from hebmtool.train.vae import train_vae

FINISH = ["prior.chain=hmc", "prior.steps=5"]
"""Stopped after update 4, the finish begins afterwards (0.3) or has begun (0.6)."""
ODD = "data.attributes={odd: [1, 3, 5, 7, 9]}"


def one_stage(settings, run, resume):
    train_one_stage(settings, run, CPU, resume)


CASES = {
    "vae": (
        ("digits", DIGITS, ["train_vae.iterations=6", "train_vae.save_every=3"]),
        lambda settings, run, resume: train_vae(settings, run, CPU, resume),
        ["generator.safetensors", "generator.train.safetensors"],
    ),
    "joint energy": (
        (
            "digits",
            DIGITS,
            [
                "prior.kind=ebm",
                "train_prior.iterations=6",
                "train_prior.readjust_bn=1",
                *FINISH,
                "train_prior.finish=0.3",
            ],
        ),
        lambda settings, run, resume: train_prior(settings, run, CPU, resume),
        ["prior-ebm.safetensors", "prior-ebm.train.safetensors"],
    ),
    "whitened diffusion": (
        (
            "digits",
            DIGITS,
            [
                "prior.whiten=true",
                "train_prior.iterations=6",
                "train_prior.lr_decay=0.9",
                *FINISH,
                "train_prior.finish=0.6",
                "train_prior.redraw=4",
            ],
        ),
        lambda settings, run, resume: train_prior(settings, run, CPU, resume),
        ["prior-diffusion-ebm.safetensors", "prior-diffusion-ebm.train.safetensors"],
    ),
    "diffusion with kept chains": (
        (
            "digits",
            DIGITS,
            ["train_prior.iterations=6", *FINISH, "train_prior.finish=0.9", "train_prior.buffer=20"],
        ),
        lambda settings, run, resume: train_prior(settings, run, CPU, resume),
        ["prior-diffusion-ebm.safetensors", "prior-diffusion-ebm.train.safetensors"],
    ),
    "generator and energy jointly": (
        ("digits", DIGITS, ["prior.kind=ebm", "train_prior.iterations=6", "train_prior.joint=true"]),
        lambda settings, run, resume: train_joint(settings, run, CPU, resume),
        ["prior-ebm.safetensors", "prior-ebm.train.safetensors"],
    ),
    "label": (
        ("digits", DIGITS, ["prior.labels=[odd]", ODD, "train_prior.label_iterations=6"]),
        lambda settings, run, resume: train_labels(settings, run, CPU, resume),
        ["label-odd.safetensors", "label-odd.train.safetensors"],
    ),
    "flow": (
        ("digits-flow", FLOW, ["train_prior.iterations=6", "flow.coupling=spline"]),
        one_stage,
        ["prior-flow.safetensors", "prior-flow.train.safetensors"],
    ),
    "latent energy": (
        ("digits-flow", LATENT, ["train_prior.iterations=6", "train_prior.generator_lr=1e-3"]),
        one_stage,
        ["prior-latent-ebm.safetensors", "prior-latent-ebm.train.safetensors"],
    ),
    "persistent flow of missing pixels": (
        (
            *("digits-flow", FLOW),
            ["train_prior.iterations=6", "data.limit=32", "flow.persistent=true", "data.missing=0.5"],
        ),
        one_stage,
        ["prior-flow.safetensors", "prior-flow.train.safetensors"],
    ),
}


def of_stage_one(tiny, root, priors):
    """A run with the tiny generator, and whatever else a case stands on."""
    (root / "digits").mkdir(parents=True)
    for name in ("recipe.yaml", "generator.safetensors", *priors):
        (root / "digits" / name).write_bytes((tiny / "digits" / name).read_bytes())


@pytest.mark.parametrize("case", CASES)
def test_stopped_and_resumed_is_bit_identical(tiny, tmp_path, monkeypatch, case):
    (word, overrides, more), train, files = CASES[case]
    settings = recipe.load(word, [*overrides, *more])
    stages = {}
    for name in ("whole", "stopped"):
        root = tmp_path / name
        if word == "digits" and case != "vae":
            of_stage_one(tiny, root, ["prior-diffusion-ebm.safetensors"] if case == "label" else [])

        def opened(root=root, resume=False):
            there = (root / settings.name / "generator.safetensors").is_file()
            return Run(root / settings.name).lock() if there and case != "vae" else Run.create(root, settings, resume)

        if name == "whole":
            with opened() as run:
                train(settings, run, False)
        else:
            descend, made = Updates.descend, []

            def stopping(self, *arguments, descend=descend, made=made):
                made.append(1)
                if len(made) == 4:
                    os.kill(os.getpid(), signal.SIGTERM)
                return descend(self, *arguments)

            with monkeypatch.context() as patch, opened() as run:
                patch.setattr(Updates, "descend", stopping)
                with pytest.raises(HebmError, match="stopped by SIGTERM after update 4; saved, resume it to continue"):
                    train(settings, run, False)
            assert checkpoint.header(run.path / files[1]).step == 4
            torch.manual_seed(99)  # nothing of this process is needed
            with opened(resume=True) as run:
                train(settings, run, True)
        stages[name] = [(each["stage"], each["step"]) for each in run.metrics()]
    for file in files:
        a, b = (safetensors.torch.load_file(tmp_path / name / settings.name / file) for name in stages)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a), [key for key in a if not torch.equal(a[key], b[key])]
    assert stages["whole"] == stages["stopped"]


@pytest.mark.parametrize("case", [case for case in CASES if "label" not in case])
def test_there_must_be_something_to_resume(tiny, tmp_path, case):
    (word, overrides, more), train, _ = CASES[case]
    settings = recipe.load(word, [*overrides, *more])
    if word == "digits":
        of_stage_one(tiny, tmp_path, [])
    with pytest.raises(HebmError, match="no .*to resume in .*; start a new one instead") as raised:
        train(settings, Run(tmp_path / settings.name), True)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("case", "override"),
    [
        ("vae", "generator.latent_channels=3"),
        ("vae", "seed=5"),
        ("whitened diffusion", "prior.whiten=false"),
        ("joint energy", "prior.energy.width=6"),
        ("joint energy", "train_prior.batch_size=9"),
        ("flow", "flow.sigma=0.5"),
        ("flow", "data.limit=50"),
    ],
)
def test_resuming_is_held_to_what_was_trained(tiny, tmp_path, case, override):
    (word, overrides, more), train, files = CASES[case]
    short = [each.replace("iterations=6", "iterations=1") for each in more]
    settings = recipe.load(word, [*overrides, *short])
    if word == "digits" and case != "vae":
        of_stage_one(tiny, tmp_path, [])
    run = Run(tmp_path / settings.name)
    train(settings, run, False)
    before = {file: (run.path / file).read_bytes() for file in files}
    changed = recipe.load(word, [*overrides, *short, override])
    key = override.partition("=")[0]
    with pytest.raises(HebmError, match=f"was trained with {key}") as raised:
        train(changed, run, True)
    assert "\n" not in str(raised.value)
    assert before == {file: (run.path / file).read_bytes() for file in files}


def test_more_updates_go_on_from_a_finished_prior(tiny, tmp_path):
    of_stage_one(tiny, tmp_path, [])
    run = Run(tmp_path / "digits")
    for iterations, *more in ((2,), (5, *FINISH, "train_prior.finish=0.4")):
        settings = recipe.load("digits", [*DIGITS, "prior.kind=ebm", f"train_prior.iterations={iterations}", *more])
        train_prior(settings, run, CPU, resume=bool(more))
        assert checkpoint.header(run.prior_path("ebm")).step == iterations
    losses = [record["loss"] for record in run.metrics("train-prior ebm")]
    assert len(losses) >= 3 and np.isfinite(losses).all()
    # It may also be finished against its own draws, which it had not been; the chain that did so is then its own.
    assert ["own_gap" in record for record in run.metrics("train-prior ebm")] == [False, True, True]
    settings.prior.steps = 4
    with pytest.raises(HebmError, match="was trained with prior.steps"):
        train_prior(settings, run, CPU, True)


def test_a_finished_prior_takes_another_sampler(tiny, tmp_path):
    of_stage_one(tiny, tmp_path, [])
    run = Run(tmp_path / "digits")
    path, found, other = (
        run.prior_path("diffusion-ebm"),
        [],
        ["prior.chain=hmc", "prior.conditional=true", "prior.fast=[5, 0, 0]"],
    )
    for i, sampler in enumerate(([], other, other)):
        settings = recipe.load("digits", [*DIGITS, "prior.objective=cnce", "train_prior.iterations=2", *sampler])
        train_prior(settings, run, CPU, resume=bool(i))
        found.append((path.read_bytes(), checkpoint.load(path)[0]))
    header = checkpoint.header(path)
    assert header.recipe["prior"]["chain"] == "hmc" and header.recipe["prior"]["fast"] == [5, 0, 0]
    assert header.recipe["prior"]["conditional"]
    assert len(header.extra["steps"]) == settings.prior.levels, "adapted to the energies"
    assert all(found[0][1][key].equal(found[1][1][key]) for key in found[0][1]), "nothing was trained"
    assert found[0][0] != found[1][0] and found[1][0] == found[2][0], "written where it changed, and only there"
