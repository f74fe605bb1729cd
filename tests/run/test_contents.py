"""Which model a checkpoint holds, however its file was written."""

import json
import shutil

import torch

from hebmtool import files, recipe
from hebmtool.run import checkpoint, header

RECIPE = recipe.load("digits")


def saved(path, tensors, **more):
    keys = {"kind": "generator", "recipe": RECIPE, "step": 3, "extra": {"image_shape": [1, 8, 8]}} | more
    checkpoint.save(path, tensors, **keys)
    return path


def test_the_same_checkpoint_is_the_same_file(tmp_path):
    tensors = {name: torch.randn(3, 2) for name in "cab"}
    a, b = (saved(tmp_path / name, dict(sorted(tensors.items(), reverse=name == "b"))) for name in "ab")
    assert a.read_bytes() == b.read_bytes()
    loaded, _ = checkpoint.load(a)
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_contents_follow_what_is_held_and_nothing_else(tmp_path):
    tensors = {"w": torch.randn(3, 2), "b": torch.zeros(2)}
    first = header.contents(saved(tmp_path / "a", tensors))
    assert header.contents(saved(tmp_path / "b", tensors, step=9)) == first
    housekeeping = recipe.load("digits", ["train_vae.save_every=7", "name=other"])
    assert header.contents(saved(tmp_path / "c", tensors, recipe=housekeeping)) == first
    changed = {
        "value": {"tensors": tensors | {"b": torch.tensor([0.0, 1e-7])}},
        "name": {"tensors": {"w": tensors["w"], "c": tensors["b"]}},
        "shape": {"tensors": tensors | {"w": tensors["w"].reshape(2, 3)}},
        "type": {"tensors": tensors | {"b": torch.zeros(2, dtype=torch.int32)}},
        "architecture": {"recipe": recipe.load("digits", ["generator.mixtures=4"])},
        "images": {"extra": {"image_shape": [1, 8, 9]}},
    }
    for name, change in changed.items():
        path = saved(tmp_path / name, change.pop("tensors", tensors), **change)
        assert header.contents(path) != first, name


def test_digests_of_files_recorded_by_older_versions_still_hold(tmp_path):
    path = saved(tmp_path / "a", {"w": torch.randn(2)})
    assert header.is_of(files.digest(path), path) and header.is_of(header.contents(path), path)
    assert not header.is_of("0" * 64, path) and not header.is_of(None, path)
    other = saved(tmp_path / "b", {"w": torch.randn(2)})
    assert not header.is_of(header.contents(path), other)


def test_resuming_a_finished_generator_leaves_its_priors_usable(hebm, tmp_path, tiny):
    shutil.copytree(tiny, tmp_path / "runs")
    run = tmp_path / "runs" / "digits"
    before = {path.name: path.read_bytes() for path in run.glob("*.safetensors")}
    settings = run / "recipe.yaml"
    status, _, err = hebm("train-vae", settings, "--runs", tmp_path / "runs", "--resume")
    assert status == 0, err
    assert {path.name: path.read_bytes() for path in run.glob("*.safetensors")} == before
    status, _, err = hebm("sample", "--run", run, "-n", 1, "--out", tmp_path / "a.png")
    assert status == 0, err
    # Trained on, it is another generator.
    status, _, err = hebm("train-vae", settings, "--runs", tmp_path / "runs", "--set", "name=again")
    assert status == 0, err
    shutil.copy(tmp_path / "runs" / "again" / "generator.safetensors", run / "generator.safetensors")
    status, _, err = hebm("sample", "--run", run, "-n", 1, "--out", tmp_path / "b.png")
    assert status == 0, err  # the same seed made the same weights
    tensors, head = checkpoint.load(run / "generator.safetensors")
    tensors["constant"] += 1
    kept = json.loads(json.dumps(head.extra))
    checkpoint.save(
        run / "generator.safetensors", tensors, kind="generator", recipe=head.recipe, step=head.step, extra=kept
    )
    status, _, err = hebm("sample", "--run", run, "-n", 1, "--out", tmp_path / "c.png")
    assert status == 1 and "trained on another generator" in err
