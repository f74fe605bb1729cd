"""The command line, through real runs on the embedded digits."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from hebmtool.run import checkpoint
from hebmtool.train import prior as train_prior

TINY = [
    *("--set", "generator.layers_per_scale=1", "--set", "generator.latent_channels=2"),
    *("--set", "generator.encoder_channels=4", "--set", "generator.decoder_channels=4"),
    *("--set", "train_vae.batch_size=16", "--set", "train_vae.log_every=2", "--set", "train_vae.sample_every=1000"),
    *(
        "--set",
        "train_prior.batch_size=8",
        "--set",
        "train_prior.log_every=2",
        "--set",
        "train_prior.sample_every=1000",
    ),
    *("--set", "prior.energy.width=8", "--set", "prior.steps=2", "--set", "evaluate.samples=32"),
    *("--set", "train_vae.iterations=12", "--set", "train_prior.iterations=6"),
]


def spawn(*arguments: object, **options) -> subprocess.Popen:
    """Run the command in a process of its own."""
    command = [sys.executable, "-m", "hebmtool.cli", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder of runs holding `digits`, its generator and both trained priors."""
    root = tmp_path_factory.mktemp("runs")
    for stage in (["train-vae"], ["train-prior"], ["train-prior", "--set", "prior.kind=ebm"]):
        process = spawn(*stage, "digits", "--runs", root, *TINY)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err.decode()
    return root


def one_sentence(err: str) -> str:
    """The message, after checking that it is one line without a traceback."""
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1, err
    assert lines[0].startswith("hebm: ") and "Traceback" not in err
    return lines[0]


def equal_weights(a: Path, b: Path) -> bool:
    left, right = safetensors.torch.load_file(a), safetensors.torch.load_file(b)
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def copy_generator(runs: Path, folder: Path) -> None:
    """A run in `folder` with the generator of `digits`, and no prior yet."""
    folder.mkdir(parents=True)
    for name in ("recipe.yaml", "generator.safetensors"):
        shutil.copy(runs / "digits" / name, folder)


# Training


def test_training_leaves_a_whole_run(runs):
    run = runs / "digits"
    assert (run / "recipe.yaml").is_file()
    assert list((run / "samples").glob("generator-*.png")) and list((run / "samples").glob("diffusion-ebm-*.png"))
    stages = {json.loads(line)["stage"] for line in (run / "metrics.jsonl").read_text().splitlines()}
    assert stages == {"train-vae", "train-vae-test", "train-prior diffusion-ebm", "train-prior ebm"}
    header = checkpoint.header(run / "prior-diffusion-ebm.safetensors")
    assert header.kind == "diffusion-ebm" and header.step == 6 and header.recipe["prior"]["steps"] == 2


def test_train_prior_ends_with_the_closure_on_stdout(hebm, runs, tmp_path):
    os.symlink(runs / "digits", tmp_path / "digits")
    status, out, err = hebm("train-prior", "digits", "--runs", tmp_path, "--resume", *TINY)
    assert status == 0, err
    closure = json.loads(out)["closure"]
    hole = closure["fd_gaussian"] - closure["fd_reconstruction"]
    # A generator trained for 12 updates may have no hole to close.
    expected = None if hole <= 0 else pytest.approx((closure["fd_gaussian"] - closure["fd_prior"]) / hole)
    assert closure["closure"] == expected and closure["fd_prior"] > 0
    assert "prior-hole closure" in err


@pytest.mark.parametrize(
    ("stage", "weights"), [("train-vae", "generator.safetensors"), ("train-prior", "prior-diffusion-ebm.safetensors")]
)
def test_killed_and_resumed_is_bit_identical(tmp_path, stage, weights, runs):
    # The uninterrupted run.
    longer = [*TINY, "--set", "train_vae.iterations=40", "--set", "train_prior.iterations=40"]
    longer += ["--set", "train_vae.save_every=5", "--set", "train_prior.save_every=5"]
    roots = [tmp_path / "whole", tmp_path / "killed"]
    if stage == "train-prior":
        for root in roots:
            copy_generator(runs, root / "digits")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    whole = spawn(stage, "digits", "--runs", roots[0], *longer, env=environment)
    killed = spawn(stage, "digits", "--runs", roots[1], *longer, env=environment)
    training = weights.replace(".safetensors", ".train.safetensors")
    saved = roots[1] / "digits" / training
    deadline = time.monotonic() + 120
    while not saved.is_file() and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    killed.kill()
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert 0 < checkpoint.header(saved).step < 40
    _, err = whole.communicate(timeout=120)
    assert whole.returncode == 0, err.decode()

    resumed = spawn(stage, "digits", "--runs", roots[1], *longer, "--resume", env=environment)
    _, err = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, err.decode()
    for name in (weights, training):
        assert equal_weights(roots[0] / "digits" / name, roots[1] / "digits" / name)
    steps = [
        [record["step"] for record in map(json.loads, (root / "digits/metrics.jsonl").read_text().splitlines())]
        for root in roots
    ]
    assert steps[0] == steps[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_save_and_stop(tmp_path, number):
    process = spawn("train-vae", "digits", "--runs", tmp_path, *TINY, "--set", "train_vae.iterations=100000")
    metrics = tmp_path / "digits" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not metrics.is_file() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    message = one_sentence(err.decode())
    assert signal.Signals(number).name in message and "--resume" in message
    assert checkpoint.header(tmp_path / "digits" / "generator.train.safetensors").step > 0


def test_a_finished_run_is_not_written_over(hebm, runs):
    before = (runs / "digits" / "generator.safetensors").read_bytes()
    status, _, err = hebm("train-vae", "digits", "--runs", runs, *TINY)
    assert status == 1 and "--resume" in one_sentence(err)
    assert (runs / "digits" / "generator.safetensors").read_bytes() == before


# Sampling


@pytest.mark.parametrize("kind", ["gaussian", "ebm", "diffusion-ebm"])
def test_sample_every_output_holds_the_same_images(hebm, runs, tmp_path, kind):
    common = ("sample", "--runs", runs, "--prior", kind, "-n", 5, "--seed", 3)
    for out in ("grid.png", "images.npz", "folder"):
        status, stdout, err = hebm(*common, "--out", tmp_path / out)
        assert status == 0, err
        assert stdout.strip() == str(tmp_path / out)
    images = np.load(tmp_path / "images.npz")["images"]
    assert images.shape == (5, 8, 8) and images.dtype == np.uint8
    files = sorted((tmp_path / "folder").iterdir())
    assert len(files) == 5
    assert all(np.array_equal(np.asarray(Image.open(f)), image) for f, image in zip(files, images, strict=True))
    assert Image.open(tmp_path / "grid.png").mode == "RGB"


def test_sample_does_not_depend_on_the_batch_size(hebm, runs, tmp_path):
    for size in (1, 3, 7):
        status, _, err = hebm(
            "sample", "--runs", runs, "-n", 7, "--batch-size", size, "--out", tmp_path / f"{size}.npz"
        )
        assert status == 0, err
    sets = [np.load(tmp_path / f"{size}.npz")["images"].astype(int) for size in (1, 3, 7)]
    assert sets[0].std() > 0
    assert max(np.abs(sets[0] - other).max() for other in sets[1:]) <= 1


def test_sample_options_change_what_is_drawn(hebm, runs, tmp_path):
    drawn = {}
    for name, options in {
        "plain": (),
        "seed": ("--seed", 1),
        "temperature": ("--temperature", 0.5),
        "steps": ("--steps", 7),
    }.items():
        status, _, err = hebm("sample", "--runs", runs, "-n", 4, *options, "--out", tmp_path / f"{name}.npz")
        assert status == 0, err
        drawn[name] = np.load(tmp_path / f"{name}.npz")["images"]
    assert all(not np.array_equal(drawn["plain"], drawn[name]) for name in drawn if name != "plain")


def test_progressive_strip_has_a_column_per_level(hebm, runs, tmp_path):
    status, _, err = hebm("sample", "--runs", runs, "-n", 3, "--progressive", "--out", tmp_path / "strip.npz")
    assert status == 0, err
    assert len(np.load(tmp_path / "strip.npz")["images"]) == 3 * 4  # u_3, u_2, u_1, u_0


def test_sample_to_stdout_is_a_png(runs):
    process = spawn("sample", "--runs", runs, "-n", "4", "--out", "-")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and err == b"", err.decode()
    assert out.startswith(b"\x89PNG")


def test_sample_uses_the_newest_run_and_writes_into_it(hebm, runs):
    status, out, _ = hebm("sample", "--runs", runs, "-n", 4)
    assert status == 0
    path = Path(out.strip())
    assert path.is_file() and path.parent == runs / "digits" / "samples"
    assert "diffusion-ebm" in path.name


# Looking


def test_info_shows_layers_and_priors(hebm, runs):
    status, out, _ = hebm("info", "--runs", runs, "--json")
    found = json.loads(out)
    assert status == 0
    assert [layer["layer"] for layer in found["layers"]] == [2, 1]
    assert [layer["resolution"] for layer in found["layers"]] == [[2, 2], [4, 4]]
    assert all(layer["kl"] is not None for layer in found["layers"])
    assert [prior["kind"] for prior in found["priors"]] == ["gaussian", "ebm", "diffusion-ebm"]
    status, out, _ = hebm("info", "digits", "--runs", runs)
    assert status == 0 and "KL (nats)" in out and "prior diffusion-ebm: 6 updates" in out


def test_recipes_are_listed_and_shown(hebm):
    status, out, _ = hebm("recipes")
    names = [line.split("\t")[0] for line in out.splitlines()]
    assert status == 0 and {"digits", "mnist", "cifar10", "celeba64", "celebahq256", "lsun64"} <= set(names)
    status, out, _ = hebm("recipes", "show", "digits")
    assert status == 0 and "# " in out and "prior:" in out


@pytest.mark.parametrize(
    "command",
    [
        "",
        "train-vae",
        "train-prior",
        "sample",
        "hier-sample",
        "controllable",
        "ood-score",
        "info",
        "evaluate",
        "compare",
    ],
)
def test_help(hebm, command):
    status, out, _ = hebm(*filter(None, [command, "--help"]))
    assert status == 0 and "Usage" in out


def test_a_reader_that_went_away_is_no_failure():
    ours, theirs = os.pipe()
    os.close(ours)
    command = [sys.executable, "-u", "-m", "hebmtool.cli", "recipes", "show", "mnist"]
    done = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, timeout=60)
    os.close(theirs)
    assert done.returncode == 0 and done.stderr == b""


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["train-vae", "digits", "--set", "prior.levls=4"], 2, ["prior.levls", "levels"]),
        (["train-vae", "digits", "--set", "train_vae.lr=fast"], 2, ["train_vae.lr", "fast"]),
        (["train-vae", "nosuch.yaml"], 2, ["nosuch.yaml"]),
        (["train-vae", "digit"], 2, ["digit", "digits"]),
        (["train-vae"], 2, ["RECIPE"]),
        (["train-vea", "digits"], 2, ["train-vea"]),
        (["sample", "--sed", "3"], 2, ["--sed"]),
        (["sample", "-n", "0"], 2, ["1"]),
        (["sample", "-n", "many"], 2, ["integer"]),
        (["sample", "--temperature", "0"], 2, ["--temperature", "above 0"]),
        (["sample", "--prior", "difusion-ebm"], 2, ["difusion-ebm", "diffusion-ebm"]),
        (["sample", "--run", "nosuch"], 1, ["nosuch"]),
        (["sample", "--out", "picture.jpg"], 2, [".jpg", ".png"]),
        (["sample", "--device", "gpu"], 2, ["gpu", "cuda"]),
        (["info", "nosuch"], 1, ["nosuch"]),
        (["recipes", "show", "mnits"], 2, ["mnits", "mnist"]),
        (["train-prior", "digits", "--set", "prior.kind=gaussian"], 2, ["gaussian", "no training"]),
        (["train-prior", "mnist"], 1, ["hebm train-vae mnist"]),
    ],
)
def test_mistakes_are_one_sentence(hebm, runs, arguments, status, words):
    arguments = [*arguments, "--runs", runs] if arguments[0] != "recipes" else arguments
    found, out, err = hebm(*arguments)
    message = one_sentence(err)
    assert found == status, message
    assert all(word in message for word in words), message
    assert out == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_without_a_gpu(hebm, runs):
    status, _, err = hebm("sample", "--device", "cuda", "--runs", runs)
    assert status == 1 and "--device cpu" in one_sentence(err)


def test_no_runs_at_all(hebm, tmp_path):
    status, _, err = hebm("sample", "--runs", tmp_path)
    assert status == 1 and "hebm train-vae" in one_sentence(err)


def test_a_prior_that_is_not_trained(hebm, runs, tmp_path):
    copy_generator(runs, tmp_path / "digits")
    status, _, err = hebm("sample", "--prior", "ebm", "--runs", tmp_path)
    message = one_sentence(err)
    assert status == 1 and "ebm" in message and "hebm train-prior" in message and "gaussian" in message


@pytest.mark.parametrize("damage", ["truncated", "foreign", "empty"])
def test_a_damaged_checkpoint(hebm, runs, tmp_path, damage):
    (tmp_path / "digits").mkdir()
    whole = (runs / "digits" / "generator.safetensors").read_bytes()
    (tmp_path / "digits" / "recipe.yaml").write_bytes((runs / "digits" / "recipe.yaml").read_bytes())
    damaged = {"truncated": whole[: len(whole) // 2], "foreign": b"PK\x03\x04 not ours" * 50, "empty": b""}[damage]
    (tmp_path / "digits" / "generator.safetensors").write_bytes(damaged)
    for arguments in (["sample"], ["info"], ["train-prior", "digits", *TINY]):
        status, _, err = hebm(*arguments, "--runs", tmp_path)
        assert status == 1 and "generator.safetensors" in one_sentence(err)
    assert (tmp_path / "digits" / "generator.safetensors").read_bytes() == damaged


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


def test_a_full_disk_while_saving_loses_nothing(hebm, tmp_path, monkeypatch):
    status, _, err = hebm("train-vae", "digits", "--runs", tmp_path, *TINY)
    assert status == 0, err
    path = tmp_path / "digits" / "generator.safetensors"
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    monkeypatch.setattr(os, "fsync", full)
    status, _, err = hebm("train-vae", "digits", "--runs", tmp_path, *TINY, "--resume")
    monkeypatch.undo()
    assert status == 1 and "space" in err and "Traceback" not in err
    assert path.read_bytes() == before
    assert not list((tmp_path / "digits").glob(".*.tmp"))


def test_existing_output_is_not_replaced_without_force(hebm, runs, tmp_path):
    target = tmp_path / "mine.png"
    target.write_bytes(b"precious")
    status, _, err = hebm("sample", "--runs", runs, "-n", 1, "--out", target)
    assert status == 1 and "--force" in one_sentence(err) and target.read_bytes() == b"precious"
    status, _, _ = hebm("sample", "--runs", runs, "-n", 1, "--out", target, "--force")
    assert status == 0 and target.read_bytes() != b"precious"


def test_debug_shows_the_traceback(hebm, tmp_path):
    status, _, err = hebm("sample", "--runs", tmp_path, "--debug")
    assert status == 1 and "Traceback" in err and "hebm: " in err


# What a run holds together


@pytest.fixture
def copied(runs, tmp_path) -> Path:
    """A folder of runs of the test's own, with the same run in it."""
    shutil.copytree(runs / "digits", tmp_path / "runs" / "digits")
    return tmp_path / "runs"


def test_a_prior_belongs_to_its_generators_weights(hebm, copied):
    path = copied / "digits" / "generator.safetensors"
    tensors, header = checkpoint.load(path)
    tensors["constant"] += 1
    checkpoint.save(path, tensors, kind=header.kind, recipe=header.recipe, step=header.step, extra=header.extra)
    status, _, err = hebm("sample", "--runs", copied, "--prior", "ebm")
    assert status == 1 and "another generator" in one_sentence(err)
    status, _, err = hebm("train-prior", "digits", "--runs", copied, *TINY, "--resume")
    assert status == 1 and "another generator" in one_sentence(err)
    status, _, err = hebm("sample", "--runs", copied, "--prior", "gaussian", "-n", 1)
    assert status == 0, err


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (["train-vae", "--resume", "--set", "train_vae.lr=0.5"], "train_vae.lr"),
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
    status, _, err = hebm(arguments[0], recipe, "--runs", copied, *arguments[1:])
    assert status == 1 and key in one_sentence(err)
    assert before == {path.name: path.read_bytes() for path in (copied / "digits").glob("*.safetensors")}


def test_a_finished_prior_is_not_written_over(hebm, copied):
    (copied / "digits" / "prior-ebm.safetensors").unlink()  # as after a kill between the two files of a save
    for kind in ("ebm", "diffusion-ebm"):
        status, _, err = hebm("train-prior", "digits", "--runs", copied, *TINY, "--set", f"prior.kind={kind}")
        assert status == 1 and "--resume" in one_sentence(err)


def test_a_gradient_that_is_not_finite_never_reaches_a_checkpoint(hebm, copied, monkeypatch):
    for path in (copied / "digits").glob("prior-*"):
        path.unlink()
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(float("nan")))
    status, _, err = hebm("train-prior", "digits", "--runs", copied, *TINY, "--set", "train_prior.save_every=1")
    assert status == 1 and "diverged" in one_sentence(err)
    assert not list((copied / "digits").glob("prior-*"))


def test_features_are_tried_before_training(hebm, copied):
    for path in (copied / "digits").glob("prior-*"):
        path.unlink()
    recipe = (copied / "digits" / "recipe.yaml").read_text()
    status, _, err = hebm("train-prior", "digits", "--runs", copied, *TINY, "--set", "evaluate.features=absent.pt")
    assert status == 1 and "absent.pt" in one_sentence(err)
    assert not list((copied / "digits").glob("prior-*"))
    assert (copied / "digits" / "recipe.yaml").read_text() == recipe


@pytest.mark.parametrize("line", ['{"stage": "train-vae", "step": "x"}', "[1]", '"text"', '{"stage": "train-v'])
def test_a_foreign_line_in_the_metrics_does_no_harm(hebm, copied, line):
    with open(copied / "digits" / "metrics.jsonl", "a") as file:
        file.write(line)
    status, _, err = hebm("train-vae", "digits", "--runs", copied, *TINY, "--resume")
    assert status == 0, err


def test_readjusted_statistics_are_kept_with_the_prior(hebm, copied, tmp_path):
    (copied / "digits" / "prior-ebm.safetensors").unlink()
    (copied / "digits" / "prior-ebm.train.safetensors").unlink()
    settings = [*TINY, "--set", "prior.kind=ebm", "--set", "train_prior.readjust_bn=3"]
    status, _, err = hebm("train-prior", "digits", "--runs", copied, *settings)
    assert status == 0, err
    kept, _ = checkpoint.load(copied / "digits" / "prior-ebm.safetensors")
    generator, _ = checkpoint.load(copied / "digits" / "generator.safetensors")
    names = [name for name in kept if name.startswith("generator.")]
    assert names and any(not torch.equal(kept[n], generator[n.removeprefix("generator.")]) for n in names)
    status, _, err = hebm("sample", "--runs", copied, "--prior", "ebm", "-n", 2, "--out", tmp_path / "a.npz")
    assert status == 0, err
    drawn = ("sample", "--runs", copied, "--prior", "gaussian", "-n", 2)
    for name, options in (("plain", ()), ("adjusted", ("--readjust-bn", "--readjust-temperature", 0.7))):
        status, _, err = hebm(*drawn, *options, "--out", tmp_path / f"{name}.npz")
        assert status == 0, err
    plain, adjusted = (np.load(tmp_path / f"{name}.npz")["images"] for name in ("plain", "adjusted"))
    assert not np.array_equal(plain, adjusted)


def test_a_whitened_prior_is_resumed_bit_for_bit_and_used_like_any_other(hebm, runs, tmp_path):
    for name in ("whole", "parts"):
        copy_generator(runs, tmp_path / name)
        keys = (*TINY, "--set", f"name={name}", "--set", "prior.whiten=true")
        for updates in (6,) if name == "whole" else (3, 6):
            resume = ["--resume"] * (updates == 6 and name == "parts")
            again = ("--set", f"train_prior.iterations={updates}")
            status, _, err = hebm("train-prior", "digits", "--runs", tmp_path, *keys, *again, *resume)
            assert status == 0, err
    weights = [tmp_path / name / "prior-diffusion-ebm.safetensors" for name in ("whole", "parts")]
    assert equal_weights(*weights) and "whitening.factor" in safetensors.torch.load_file(weights[0])

    drawn = {}
    for kind in ("gaussian", "diffusion-ebm"):
        out = tmp_path / f"{kind}.npz"
        status, _, err = hebm("sample", "--runs", tmp_path, "--run", "whole", "--prior", kind, "-n", 2, "--out", out)
        assert status == 0, err
        drawn[kind] = np.load(out)["images"]
    # The Gaussian prior is the generator's own, as if nothing had been whitened.
    status, _, err = hebm("sample", "--runs", runs, "--prior", "gaussian", "-n", 2, "--out", tmp_path / "own.npz")
    assert status == 0, err
    assert np.array_equal(drawn["gaussian"], np.load(tmp_path / "own.npz")["images"])
    assert not np.array_equal(drawn["gaussian"], drawn["diffusion-ebm"])
    for command in (
        ("hier-sample", "--run", "whole", "--layer", 1, "-n", 2, "--out", tmp_path / "hier.png"),
        ("ood-score", "--run", "whole", "--auroc", "-n", 20),
        ("diagnose", "whole", "--samples", 40),
    ):
        status, out, err = hebm(*command, "--runs", tmp_path)
        assert status == 0, err
    status, out, err = hebm("evaluate", "whole", "--runs", tmp_path, "--json")
    assert status == 0, err
    # Gaussian samples and reconstructions are the generator's own, in whatever coordinates.
    assert {figure["of"] for figure in json.loads(out)["figures"]} == {"gaussian", "diffusion-ebm", "reconstructions"}


def test_labels_belong_to_the_latents_they_were_learned_on(hebm, runs, tmp_path):
    for name, whiten in (("digits", "true"), ("plain", "false")):
        copy_generator(runs, tmp_path / name)
        keys = (*TINY, "--set", f"name={name}", "--set", f"prior.whiten={whiten}")
        assert hebm("train-prior", "digits", "--runs", tmp_path, *keys)[0] == 0
    shutil.copy(tmp_path / "plain" / "prior-diffusion-ebm.safetensors", tmp_path / "unwhitened")
    # Which latents they are is the prior's to know, whatever the recipe says now.
    label = (*TINY, "--set", "prior.labels=class", "--set", "train_prior.label_iterations=2")
    status, _, err = hebm("train-prior", "digits", "--runs", tmp_path, "--finetune", *label)
    assert status == 0, err
    ask = ("controllable", "--run", "digits", "--runs", tmp_path, "--class", 3, "-n", 2, "--steps", 1)
    status, _, err = hebm(*ask, "--out", tmp_path / "a.png")
    assert status == 0, err
    status, _, err = hebm(*ask, "--out", tmp_path / "b.png", "--prior", "gaussian")
    assert status == 1 and "no energy" in one_sentence(err)
    shutil.move(tmp_path / "unwhitened", tmp_path / "digits" / "prior-diffusion-ebm.safetensors")
    status, _, err = hebm(*ask, "--out", tmp_path / "c.png")
    assert status == 1 and "other latents" in one_sentence(err)


def test_more_dimensions_than_can_be_whitened_are_refused_and_the_recipe_kept(hebm, runs, tmp_path, monkeypatch):
    monkeypatch.setattr(train_prior, "MOST_WHITENED", 39)
    shutil.copytree(runs / "digits", tmp_path / "digits")
    (tmp_path / "digits" / "prior-ebm.safetensors").unlink()
    (tmp_path / "digits" / "prior-ebm.train.safetensors").unlink()
    before = (tmp_path / "digits" / "recipe.yaml").read_text()
    keys = (*TINY, "--set", "prior.kind=ebm", "--set", "prior.whiten=true")
    status, _, err = hebm("train-prior", "digits", "--runs", tmp_path, *keys)
    assert status == 2 and "at most 39 can be whitened" in one_sentence(err)
    assert (tmp_path / "digits" / "recipe.yaml").read_text() == before


def test_another_seed_learns_another_prior_on_the_same_generator(hebm, runs, tmp_path):
    weights = {}
    for name, seed in (("none", "null"), ("same", 0), ("other", 1)):
        copy_generator(runs, tmp_path / name)
        keys = ("--set", f"name={name}", "--set", f"train_prior.seed={seed}", "--set", "prior.objective=cnce")
        status, _, err = hebm("train-prior", "digits", "--runs", tmp_path, *TINY, *keys)
        assert status == 0, err
        weights[name] = tmp_path / name / "prior-diffusion-ebm.safetensors"
    assert equal_weights(weights["none"], weights["same"]) and not equal_weights(weights["none"], weights["other"])


def test_a_full_standard_output_is_a_sentence(runs):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "hebmtool.cli", "info", "--runs", str(runs)]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, timeout=60)
    assert done.returncode == 1 and "No space left" in one_sentence(done.stderr.decode())


def test_a_prior_learned_without_chains_may_change_its_sampler(hebm, runs, tmp_path):
    folder = tmp_path / "digits"
    copy_generator(runs, folder)
    command = ["train-prior", "digits", "--runs", tmp_path, *TINY, "--set", "prior.objective=nce"]
    status, _, err = hebm(*command)
    assert status == 0, err
    learned = safetensors.torch.load_file(folder / "prior-diffusion-ebm.safetensors")
    status, _, err = hebm(*command, "--resume", "--set", "prior.chain=underdamped")
    assert status == 0, err
    path = folder / "prior-diffusion-ebm.safetensors"
    assert checkpoint.header(path).recipe["prior"]["chain"] == "underdamped"
    assert all(torch.equal(v, learned[k]) for k, v in safetensors.torch.load_file(path).items())
    # F is scaled for the published chain; and recovery learns with the chain it is sampled by.
    status, _, err = hebm(*command, "--resume", "--set", "prior.chain=langevin")
    assert status == 1 and "prior.chain = underdamped" in one_sentence(err)
    status, _, err = hebm(*command, "--resume", "--set", "prior.objective=recovery")
    assert status == 1 and "prior.objective = nce" in one_sentence(err)
