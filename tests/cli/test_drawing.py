"""`hebm sample`, and ways of drawing that every command that draws takes."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from said import one_sentence


@pytest.mark.parametrize("kind", ["gaussian", "ebm", "diffusion-ebm"])
def test_every_output_holds_the_same_images(hebm, tiny, tmp_path, kind):
    common = ("sample", "--run", tiny / "digits", "--prior", kind, "-n", 5, "--seed", 3)
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


def test_images_do_not_depend_on_the_batch_size(hebm, tiny, tmp_path):
    for size in (1, 3, 7):
        out = tmp_path / f"{size}.npz"
        status, _, err = hebm("sample", "--run", tiny / "digits", "-n", 7, "--batch-size", size, "--out", out)
        assert status == 0, err
    sets = [np.load(tmp_path / f"{size}.npz")["images"].astype(int) for size in (1, 3, 7)]
    assert sets[0].std() > 0
    assert max(np.abs(sets[0] - other).max() for other in sets[1:]) <= 1


def test_options_change_what_is_drawn(hebm, tiny, tmp_path):
    ways = {
        "plain": (),
        "seed": ("--seed", 1),
        "temperature": ("--temperature", 0.5),
        "steps": ("--steps", 7),
        "chain": ("--chain", "underdamped"),
        "theta": ("--chain", "underdamped", "--theta", 0.3),
        "persistence": ("--chain", "underdamped", "--persistence", 0.1),
        "preconditioned": ("--chain", "preconditioned"),
        "h": ("--chain", "preconditioned", "--h", 0.1),
        "langevin": ("--chain", "langevin"),
        "eta": ("--chain", "langevin", "--eta", 1e-3),
        "unscaled": ("--chain", "unscaled"),
        "hmc": ("--chain", "hmc"),
        "renew": ("--chain", "hmc", "--renew", 0.7),
        "pixels": ("--pixels", "sample"),
        "readjusted": ("--readjust-bn", "--readjust-temperature", 0.7),
    }
    drawn = {}
    for name, options in ways.items():
        out = tmp_path / f"{name}.npz"
        status, _, err = hebm("sample", "--run", tiny / "digits", "-n", 4, *options, "--out", out)
        assert status == 0, err
        drawn[name] = np.load(out)["images"].tobytes()
    # The chain it was learned with draws the same, and every other way something else.
    own = [name for name in drawn if drawn[name] == drawn["plain"] and name != "plain"]
    assert own == ["chain"] and len(set(drawn.values())) == len(drawn) - 1


@pytest.mark.parametrize(
    "command",
    [
        ("hier-sample", "--layer", 1, "-n", 2, "--columns", 2),
        ("controllable", "--class", 3, "-n", 4, "--no-report"),
    ],
)
def test_pictures_are_drawn_by_the_chain_asked_for(hebm, tiny, tmp_path, command):
    pictures = []
    for i, chain in enumerate(([], ["--chain", "underdamped", "--steps", 3, "--theta", 0.3])):
        out = tmp_path / f"{i}.png"
        status, _, err = hebm(*command, "--run", tiny / "digits", *chain, "--out", out)
        assert status == 0, err
        pictures.append(out.read_bytes())
    assert pictures[0] != pictures[1]


def test_figures_are_measured_by_the_chain_asked_for(hebm, copied):
    chain = ("--chain", "underdamped", "--steps", 3, "--theta", 0.3, "--json")
    status, out, err = hebm("evaluate", "digits", "--runs", copied, "--prior", "ebm", "--samples", 24, *chain)
    assert status == 0, err
    found = json.loads(out)["provenance"]
    assert found["sampler"] == {"chain": "underdamped", "theta": 0.3} and found["steps"] == 3
    told = []
    for way in (chain, ("--steps", 3, "--json")):
        status, out, err = hebm("diagnose", "digits", "--runs", copied, "--samples", 20, "--only", "chains", *way)
        assert status == 0, err
        told.append(json.loads(out)["figures"])
    assert told[0] != told[1]


def test_a_prior_without_steps_has_no_chain_to_choose(hebm, tiny):
    for run, kind in (("digits", "gaussian"), ("flow", "flow")):
        status, _, err = hebm("sample", "--runs", tiny, "--run", run, "--prior", kind, "--chain", "underdamped")
        assert status == 2 and "no Langevin steps" in one_sentence(err)


def test_a_progressive_strip_has_a_column_per_level(hebm, tiny, tmp_path):
    out = tmp_path / "strip.npz"
    status, _, err = hebm("sample", "--run", tiny / "digits", "-n", 3, "--progressive", "--out", out)
    assert status == 0, err
    assert len(np.load(out)["images"]) == 3 * 4  # u_3, u_2, u_1, u_0


def test_a_picture_on_stdout(spawn, tiny):
    status, out, err = spawn("sample", "--run", tiny / "digits", "-n", 4, "--out", "-", text=False).finish()
    assert status == 0 and err == b"", err
    assert out.startswith(b"\x89PNG")


def test_the_newest_run_is_taken_and_the_picture_kept_in_it(hebm, copied):
    status, out, _ = hebm("sample", "--runs", copied, "-n", 4)
    assert status == 0
    path = Path(out.strip())
    assert path.is_file() and path.parent == copied / "flow" / "samples" and path.name == "sample-flow-n4-seed0.png"
    status, out, _ = hebm("sample", "--runs", copied, "--run", "digits", "-n", 4)
    assert Path(out.strip()) == copied / "digits" / "samples" / "sample-diffusion-ebm-n4-seed0.png"


def test_existing_output_is_not_replaced_without_force(hebm, tiny, tmp_path):
    target = tmp_path / "mine.png"
    target.write_bytes(b"precious")
    status, _, err = hebm("sample", "--run", tiny / "digits", "-n", 1, "--out", target)
    assert status == 1 and "--force" in one_sentence(err) and target.read_bytes() == b"precious"
    status, _, _ = hebm("sample", "--run", tiny / "digits", "-n", 1, "--out", target, "--force")
    assert status == 0 and target.read_bytes() != b"precious"


def test_a_prior_that_is_not_trained(hebm, stage_one, tmp_path):
    stage_one()
    status, _, err = hebm("sample", "--prior", "ebm", "--runs", tmp_path)
    message = one_sentence(err)
    assert status == 1 and "ebm" in message and "hebm train-prior" in message and "gaussian" in message


def test_noise_is_drawn_from_the_streams_asked_for_in_any_batches(hebm, tiny, tmp_path):
    def drawn(name, *options):
        out = tmp_path / f"{name}.npz"
        status, _, err = hebm("sample", "--run", tiny / "digits", "-n", 5, "--out", out, *options)
        assert status == 0, err
        return np.load(out)["images"]

    usual, philox = drawn("usual"), drawn("philox", "--noise", "philox")
    assert np.array_equal(philox, drawn("batches", "--noise", "philox", "--batch-size", 2))
    assert not np.array_equal(philox, usual) and np.array_equal(usual, drawn("again", "--noise", "torch"))
    status, out, err = hebm("sample", "--run", tiny / "digits", "--noise", "filox")
    assert status == 2 and not out and "--noise is 'filox'; choose of torch, philox; did you mean 'philox'?" in err
