"""The commands that train: what they leave behind, and what killing, resuming and mistakes do to it."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image
from said import one_sentence
from tiny import DIGITS, options

from hebmtool.run import checkpoint
from hebmtool.train import prior as train_prior

TINY = options(DIGITS)


def equal_weights(a: Path, b: Path) -> bool:
    left, right = safetensors.torch.load_file(a), safetensors.torch.load_file(b)
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_two_stages_leave_a_whole_run(hebm, tmp_path):
    status, out, err = hebm("train-vae", "digits", "--runs", tmp_path, *TINY)
    assert status == 0, err
    run = tmp_path / "digits"
    assert out == f"{run}\n" and (run / "recipe.yaml").is_file()
    for kind in ("diffusion-ebm", "ebm"):
        status, out, err = hebm("train-prior", "digits", "--runs", tmp_path, *TINY, "--set", f"prior.kind={kind}")
        assert status == 0 and "prior-hole closure" in err, err
        closure = json.loads(out)["closure"]
        hole = closure["fd_gaussian"] - closure["fd_reconstruction"]
        assert 100 < closure["fd_prior"] < 1000  # so that of the eight digits printed five are decimals
        if hole <= 0:  # which a generator trained for five updates may have
            assert closure["closure"] is None
        else:
            rounded = 2 * 0.5e-5 * (1 + abs(closure["closure"]))  # of two differences of distances
            gained = closure["fd_gaussian"] - closure["fd_prior"]
            assert closure["closure"] * hole == pytest.approx(gained, rel=0, abs=rounded)
    assert list((run / "samples").glob("generator-*.png")) and list((run / "samples").glob("diffusion-ebm-*.png"))
    stages = {json.loads(line)["stage"] for line in (run / "metrics.jsonl").read_text().splitlines()}
    assert stages == {"train-vae", "train-vae-test", "train-prior diffusion-ebm", "train-prior ebm"}
    header = checkpoint.header(run / "prior-diffusion-ebm.safetensors")
    assert header.kind == "diffusion-ebm" and header.step == 3 and header.recipe["prior"]["steps"] == 2


# Stopped on the way


DIES = """
import os, signal, sys
from hebmtool.train.loop import Updates
descend, made = Updates.descend, []
def dying(self, *arguments):
    made.append(1)
    if len(made) == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return descend(self, *arguments)
Updates.descend = dying
from hebmtool.cli.main import main
main()
"""


@pytest.mark.parametrize(
    ("stage", "weights"),
    [
        ("train-vae", "generator.safetensors"),
        # Every training, stopped in this process, is resumed to the bit in tests/train/test_resuming.py.
        pytest.param("train-prior", "prior-diffusion-ebm.safetensors", marks=pytest.mark.slow),
    ],
)
def test_killed_and_resumed_is_bit_identical(hebm, child, stage_one, tmp_path, stage, weights):
    """What is killed, in the middle of update 7, is a process; what it is compared with and what goes on from it are as
    good in this one.  tests/kill_sweep.py kills at any time."""
    longer = [*TINY, "--set", "train_vae.iterations=12", "--set", "train_prior.iterations=12"]
    longer += ["--set", "train_vae.save_every=4", "--set", "train_prior.save_every=4"]
    roots = [tmp_path / "whole", tmp_path / "killed"]
    if stage == "train-prior":
        for root in roots:
            stage_one(root=root)
    killed = child(sys.executable, "-c", DIES, stage, "digits", "--runs", roots[1], *longer)
    status, _, err = killed.finish()
    assert status == -signal.SIGKILL, err
    training = weights.replace(".safetensors", ".train.safetensors")
    assert checkpoint.header(roots[1] / "digits" / training).step == 4

    for root, more in zip(roots, ([], ["--resume"]), strict=True):
        status, _, err = hebm(stage, "digits", "--runs", root, *longer, *more)
        assert status == 0, err
    for name in (weights, training):
        assert equal_weights(roots[0] / "digits" / name, roots[1] / "digits" / name)
    steps = [
        [record["step"] for record in map(json.loads, (root / "digits/metrics.jsonl").read_text().splitlines())]
        for root in roots
    ]
    assert steps[0] == steps[1]


def test_an_interrupt_saves_and_stops(spawn, tmp_path):
    """A real one; of every training, and of SIGTERM and SIGHUP, it is tested in this process (tests/train)."""
    process = spawn("train-vae", "digits", "--runs", tmp_path, *TINY, "--set", "train_vae.iterations=1000000")
    process.until((tmp_path / "digits" / "metrics.jsonl").is_file)
    process.send_signal(signal.SIGINT)
    status, _, err = process.finish()
    assert status == 1
    message = one_sentence(err)
    assert "SIGINT" in message and "resume" in message
    assert checkpoint.header(tmp_path / "digits" / "generator.train.safetensors").step > 0


def test_a_full_disk_while_saving_loses_nothing(hebm, copied, monkeypatch):
    path = copied / "digits" / "generator.safetensors"
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    monkeypatch.setattr(os, "fsync", full)
    more = ("--set", "train_vae.iterations=7")
    status, _, err = hebm("train-vae", "digits", "--runs", copied, *TINY, *more, "--resume")
    monkeypatch.undo()
    assert status == 1 and "space" in err and "Traceback" not in err
    assert path.read_bytes() == before
    assert not list((copied / "digits").glob(".*.tmp"))


def test_a_gradient_that_is_not_finite_never_reaches_a_checkpoint(hebm, stage_one, tmp_path, monkeypatch):
    run = stage_one()
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(float("nan")))
    status, _, err = hebm("train-prior", "digits", "--runs", tmp_path, *TINY, "--set", "train_prior.save_every=1")
    assert status == 1 and "diverged" in one_sentence(err)
    assert not list(run.glob("prior-*"))


# What is there already


def test_a_finished_run_is_not_written_over(hebm, tiny):
    before = (tiny / "digits" / "generator.safetensors").read_bytes()
    status, _, err = hebm("train-vae", "digits", "--runs", tiny, *TINY)
    assert status == 1 and "resume" in one_sentence(err)
    assert (tiny / "digits" / "generator.safetensors").read_bytes() == before


def test_a_finished_prior_is_not_written_over(hebm, copied):
    (copied / "digits" / "prior-ebm.safetensors").unlink()  # as after a kill between the two files of a save
    for kind in ("ebm", "diffusion-ebm"):
        status, _, err = hebm("train-prior", "digits", "--runs", copied, *TINY, "--set", f"prior.kind={kind}")
        assert status == 1 and "resume" in one_sentence(err)


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (["train-vae", "--resume", "--set", "train_vae.batch_size=7"], "train_vae.batch_size"),
        (["train-vae", "--resume", "--set", "data.test_fraction=0.5"], "data.test_fraction"),
        (["train-prior", "--resume", "--set", "prior.level_power=1"], "prior.level_power"),
        (["train-prior", "--resume", "--set", "data.test_fraction=0.5"], "data.test_fraction"),
        (["train-prior", "--resume", "--set", "generator.latent_channels=3"], "generator.latent_channels"),
    ],
)
def test_resuming_is_held_to_what_was_trained(hebm, copied, arguments, key):
    # Even where recipe.yaml has been edited meanwhile: the checkpoint's own recipe counts.
    recipe = copied / "digits" / "recipe.yaml"
    before = {path.name: path.read_bytes() for path in (copied / "digits").glob("*.safetensors")}
    kind = ("--set", "prior.kind=diffusion-ebm")
    status, _, err = hebm(arguments[0], recipe, "--runs", copied, *arguments[1:], *kind)
    assert status == 1 and key in one_sentence(err)
    assert before == {path.name: path.read_bytes() for path in (copied / "digits").glob("*.safetensors")}


@pytest.mark.parametrize("line", ['{"stage": "train-vae", "step": "x"}', "[1]", '"text"', '{"stage": "train-v'])
def test_a_foreign_line_in_the_metrics_does_no_harm(hebm, copied, line):
    with open(copied / "digits" / "metrics.jsonl", "a") as file:
        file.write(line)
    status, _, err = hebm("train-vae", "digits", "--runs", copied, *TINY, "--resume")
    assert status == 0, err


# What cannot be trained


def test_bad_image_folders(hebm, tmp_path):
    def train(folder: Path) -> tuple[int, str]:
        status, _, err = hebm(
            *("train-vae", "digits", "--runs", tmp_path / "runs", *TINY),
            *("--set", "data.source=folder", "--set", f"data.path={folder}"),
        )
        return status, one_sentence(err)

    empty = tmp_path / "empty"
    empty.mkdir()
    status, message = train(empty)
    assert status == 1 and str(empty) in message

    text = tmp_path / "text"
    text.mkdir()
    (text / "notes.png").write_text("not an image")
    status, message = train(text)
    assert status == 1 and "notes.png" in message

    mixed = tmp_path / "mixed"
    mixed.mkdir()
    Image.new("L", (8, 8)).save(mixed / "a.png")
    Image.new("L", (9, 8)).save(mixed / "b.png")
    status, message = train(mixed)
    assert status == 1 and "data.size" in message

    status, message = train(tmp_path / "absent")
    assert status in (1, 2) and "absent" in message


def test_features_are_tried_before_training(hebm, stage_one, tmp_path):
    run = stage_one()
    recipe = (run / "recipe.yaml").read_text()
    status, _, err = hebm("train-prior", "digits", "--runs", tmp_path, *TINY, "--set", "evaluate.features=absent.pt")
    assert status == 1 and "absent.pt" in one_sentence(err)
    assert not list(run.glob("prior-*"))
    assert (run / "recipe.yaml").read_text() == recipe


def test_more_dimensions_than_can_be_whitened_are_refused_and_the_recipe_kept(hebm, stage_one, tmp_path, monkeypatch):
    monkeypatch.setattr(train_prior, "MOST_WHITENED", 39)
    run = stage_one()
    before = (run / "recipe.yaml").read_text()
    keys = (*TINY, "--set", "prior.kind=ebm", "--set", "prior.whiten=true")
    status, _, err = hebm("train-prior", "digits", "--runs", tmp_path, *keys)
    assert status == 2 and "at most 39 can be whitened" in one_sentence(err)
    assert (run / "recipe.yaml").read_text() == before


# Priors on one generator


def test_another_seed_learns_another_prior_on_the_same_generator(hebm, stage_one, tmp_path):
    weights = {}
    for name, seed in (("none", "null"), ("same", 0), ("other", 1)):
        run = stage_one(name)
        keys = ("--set", f"name={name}", "--set", f"train_prior.seed={seed}", "--set", "prior.objective=cnce")
        status, _, err = hebm("train-prior", "digits", "--runs", tmp_path, *TINY, *keys)
        assert status == 0, err
        weights[name] = run / "prior-diffusion-ebm.safetensors"
    assert equal_weights(weights["none"], weights["same"]) and not equal_weights(weights["none"], weights["other"])


def test_a_prior_learned_without_chains_may_change_its_sampler(hebm, stage_one, tmp_path):
    path = stage_one() / "prior-diffusion-ebm.safetensors"
    command = ["train-prior", "digits", "--runs", tmp_path, *TINY, "--set", "prior.objective=nce"]
    status, _, err = hebm(*command)
    assert status == 0, err
    learned = safetensors.torch.load_file(path)
    status, _, err = hebm(*command, "--resume", "--set", "prior.chain=underdamped")
    assert status == 0, err
    assert checkpoint.header(path).recipe["prior"]["chain"] == "underdamped"
    assert all(torch.equal(v, learned[k]) for k, v in safetensors.torch.load_file(path).items())
    # F is scaled for the published chain; and recovery learns with the chain it is sampled by.
    status, _, err = hebm(*command, "--resume", "--set", "prior.chain=langevin")
    assert status == 1 and "prior.chain = underdamped" in one_sentence(err)
    status, _, err = hebm(*command, "--resume", "--set", "prior.objective=recovery")
    assert status == 1 and "prior.objective = nce" in one_sentence(err)


def test_a_whitened_prior_is_resumed_bit_for_bit_and_used_like_any_other(hebm, tiny, stage_one, tmp_path):
    for name, updates in (("whole", [6]), ("parts", [3, 6])):
        stage_one(name)
        keys = (*TINY, "--set", f"name={name}", "--set", "prior.whiten=true")
        for i, iterations in enumerate(updates):
            again = ("--set", f"train_prior.iterations={iterations}", *["--resume"] * i)
            status, _, err = hebm("train-prior", "digits", "--runs", tmp_path, *keys, *again)
            assert status == 0, err
    weights = [tmp_path / name / "prior-diffusion-ebm.safetensors" for name in ("whole", "parts")]
    assert equal_weights(*weights) and "whitening.factor" in safetensors.torch.load_file(weights[0])

    drawn = {}
    for name, where, kind in (
        ("gaussian", tmp_path / "whole", "gaussian"),
        ("whitened", tmp_path / "whole", "diffusion-ebm"),
        ("own", tiny / "digits", "gaussian"),
    ):
        out = tmp_path / f"{name}.npz"
        status, _, err = hebm("sample", "--run", where, "--prior", kind, "-n", 2, "--out", out)
        assert status == 0, err
        drawn[name] = out.read_bytes()
    # The Gaussian prior is the generator's own, as if nothing had been whitened.
    assert drawn["gaussian"] == drawn["own"] != drawn["whitened"]
    for command in (
        ("hier-sample", "--run", "whole", "--layer", 1, "-n", 2, "--out", tmp_path / "hier.png"),
        ("ood-score", "--run", "whole", "--auroc", "-n", 20),
        ("diagnose", "whole", "--samples", 40),
    ):
        status, _, err = hebm(*command, "--runs", tmp_path)
        assert status == 0, err
    status, out, err = hebm("evaluate", "whole", "--runs", tmp_path, "--json")
    assert status == 0, err
    # Gaussian samples and reconstructions are the generator's own, in whatever coordinates.
    assert {figure["of"] for figure in json.loads(out)["figures"]} == {"gaussian", "diffusion-ebm", "reconstructions"}


def test_labels_belong_to_the_latents_they_were_learned_on(hebm, stage_one, tmp_path):
    for name, whiten in (("digits", "true"), ("plain", "false")):
        stage_one(name)
        keys = (*TINY, "--set", f"name={name}", "--set", f"prior.whiten={whiten}")
        assert hebm("train-prior", "digits", "--runs", tmp_path, *keys)[0] == 0
    # Which latents they are is the prior's to know, whatever the recipe says now.
    status, _, err = hebm(
        "train-prior", "digits", "--runs", tmp_path, "--finetune", *TINY, "--set", "prior.labels=class"
    )
    assert status == 0, err
    ask = ("controllable", "--run", "digits", "--runs", tmp_path, "--class", 3, "-n", 2, "--steps", 1, "--force")
    ask = (*ask, "--no-report", "--out", tmp_path / "a.png")
    status, _, err = hebm(*ask)
    assert status == 0, err
    status, _, err = hebm(*ask, "--prior", "gaussian")
    assert status in (1, 2) and "gaussian prior" in one_sentence(err)
    name = "prior-diffusion-ebm.safetensors"
    shutil.move(tmp_path / "plain" / name, tmp_path / "digits" / name)
    status, _, err = hebm(*ask)
    assert status == 1 and "other latents" in one_sentence(err)


def test_readjusted_statistics_are_kept_with_the_prior(hebm, stage_one, tmp_path):
    run = stage_one()
    keys = [*TINY, "--set", "prior.kind=ebm", "--set", "train_prior.readjust_bn=3"]
    status, _, err = hebm("train-prior", "digits", "--runs", tmp_path, *keys)
    assert status == 0, err
    kept, _ = checkpoint.load(run / "prior-ebm.safetensors")
    generator, _ = checkpoint.load(run / "generator.safetensors")
    names = [name for name in kept if name.startswith("generator.")]
    assert names and any(not torch.equal(kept[n], generator[n.removeprefix("generator.")]) for n in names)
    status, _, err = hebm("sample", "--runs", tmp_path, "--prior", "ebm", "-n", 2, "--out", tmp_path / "a.png")
    assert status == 0, err


def test_a_prior_belongs_to_its_generators_weights(hebm, copied):
    path = copied / "digits" / "generator.safetensors"
    tensors, header = checkpoint.load(path)
    tensors["constant"] += 1
    checkpoint.save(path, tensors, kind=header.kind, recipe=header.recipe, step=header.step, extra=header.extra)
    digits = ("--runs", copied, "--run", "digits")
    status, _, err = hebm("sample", *digits, "--prior", "ebm")
    assert status == 1 and "another generator" in one_sentence(err)
    status, _, err = hebm("train-prior", "digits", "--runs", copied, *TINY, "--resume")
    assert status == 1 and "another generator" in one_sentence(err)
    status, _, err = hebm("sample", *digits, "--prior", "gaussian", "-n", 1)
    assert status == 0, err


@pytest.mark.parametrize("damage", ["truncated", "foreign", "empty"])
def test_a_damaged_checkpoint(hebm, stage_one, tmp_path, damage):
    path = stage_one() / "generator.safetensors"
    whole = path.read_bytes()
    damaged = {"truncated": whole[: len(whole) // 2], "foreign": b"PK\x03\x04 not ours" * 50, "empty": b""}[damage]
    path.write_bytes(damaged)
    for arguments in (["sample"], ["info"], ["train-prior", "digits", *TINY]):
        status, _, err = hebm(*arguments, "--runs", tmp_path)
        assert status == 1 and "generator.safetensors" in one_sentence(err)
    assert path.read_bytes() == damaged
