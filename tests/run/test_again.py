"""Training on in a run, wherever it is and whatever it is called, with what it was trained with; and where its images
are now."""

import json
import os
import shutil

import numpy as np
import pytest
import yaml
from said import one_sentence
from tiny import DIGITS, options

from hebmtool import api, recipe
from hebmtool.api.train import meant
from hebmtool.errors import HebmError
from hebmtool.recipe import expanded, located
from hebmtool.run import again, checkpoint
from hebmtool.run.folder import Run


def trained(run: Run, kind: str) -> dict:
    """The recipe in the header of the prior's training checkpoint."""
    return checkpoint.header(run.prior_train_path(kind)).recipe


@pytest.fixture
def run(copied):
    return Run.open("digits", copied)


# Which run is meant


def test_a_run_is_named_by_folder_by_its_recipe_or_by_a_name_no_recipe_has(run, copied, tmp_path):
    os.rename(copied / "digits", copied / "mine")
    mine = copied / "mine"
    for word in (mine, str(mine), f"{mine}/", "mine", mine / "recipe.yaml", Run(mine)):
        assert again.named(word, copied).path.resolve() == mine.resolve()
    shutil.copytree(mine, copied / "mnist")
    shutil.copy(mine / "recipe.yaml", tmp_path / "recipe.yaml")
    (copied / "empty").mkdir()
    for word in (
        "mnist",
        "nosuch",
        tmp_path / "recipe.yaml",
        copied / "empty",
        {"name": "mine"},
        recipe.load("digits"),
    ):
        assert again.named(word, copied) is None


def test_what_a_run_was_trained_with_is_gone_on_with_whatever_it_is_called(run, copied):
    shutil.copytree(run.path, copied / "copy")
    settings, at = meant(copied / "copy", ["prior.kind=diffusion-ebm"], "runs", again=True)
    assert at.path == copied / "copy" and settings.name == "copy"
    assert settings.prior.model_dump() == trained(run, "diffusion-ebm")["prior"]  # though the last trained is the other
    assert run.recipe().prior.kind == "ebm" and settings.generator == run.recipe().generator
    settings, at = meant(copied / "copy", ["name=new"], "runs")
    assert at.path == copied / "new" and settings.generator == run.recipe().generator
    settings, at = meant("digits", [], copied)  # a recipe's name is the recipe's
    assert settings.generator != run.recipe().generator and at.path == copied / "digits"


def test_a_renamed_run_is_resumed_without_a_word_on_what_it_was(run, copied, hebm):
    os.rename(run.path, copied / "a run")  # which no recipe could be called
    moved = Run(copied / "a run")
    for words in (["train-vae", moved.path], ["train-prior", moved.path], ["train-prior", moved.path / "recipe.yaml"]):
        status, _, err = hebm(*words, "--runs", copied, "--resume")
        assert status == 0, err
    longer = ("--set", "train_prior.iterations=4", "--set", "prior.kind=diffusion-ebm")
    status, out, err = hebm("train-prior", moved.path, "--runs", copied, "--resume", *longer)
    assert status == 0 and json.loads(out)["run"] == str(moved.path), err
    assert checkpoint.header(moved.prior_path("diffusion-ebm")).step == 4
    assert checkpoint.header(moved.prior_path("ebm")).step == 3
    assert sorted(path.name for path in copied.iterdir()) == ["a run", "flow"]


def test_a_run_can_be_trained_in_by_its_folder(run, hebm):
    for path in (run.prior_path("ebm"), run.prior_train_path("ebm")):
        path.unlink()
    status, out, err = hebm("train-prior", run.path, "--runs", "elsewhere")
    assert status == 0 and json.loads(out)["run"] == str(run.path), err
    assert trained(run, "ebm")["prior"]["steps"] == 2
    status, _, err = hebm("train-prior", run.path)
    assert status == 1 and "has a 'ebm' prior already" in one_sentence(err)
    status, _, err = hebm("train-vae", run.path)
    assert status == 1 and "already has checkpoints" in one_sentence(err)


# What each was trained with


def test_every_use_has_what_its_prior_was_trained_with(run):
    recipes = {kind: api.load(run, kind).recipe for kind in ("diffusion-ebm", "ebm", "gaussian")}
    for kind in ("diffusion-ebm", "ebm"):
        assert recipes[kind].prior.kind == kind
        assert recipes[kind].train_prior.model_dump(mode="json") == trained(run, kind)["train_prior"]
    assert recipes["gaussian"] == run.recipe()


def test_the_recipe_of_a_run_tells_what_else_was_trained_otherwise(run):
    settings = run.recipe()
    settings.prior.steps = 7
    run.write_recipe(settings)
    again.remark(run)
    text = run.recipe_path.read_text()
    assert run.recipe() == settings and yaml.safe_load(text)["prior"]["steps"] == 7
    lines = [line for line in text.splitlines() if line.startswith("#   ")]
    assert lines[0] == '#   label-class: prior.kind "diffusion-ebm", prior.steps 2'
    assert lines[1] == '#   prior-diffusion-ebm: prior.kind "diffusion-ebm", prior.steps 2'
    assert lines[2] == "#   prior-ebm: prior.steps 2"
    run.prior_path("ebm").write_bytes(b"damaged")
    again.remark(run)
    assert "prior-ebm" not in run.recipe_path.read_text()


# Where images are


@pytest.fixture
def images(tmp_path):
    """An array of images, and the run that was trained on it from its own folder, by a path as it is typed there."""
    here = tmp_path / "here"
    here.mkdir()
    np.savez(here / "images.npz", x=np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8))
    return here


def test_paths_are_stored_absolute(images, monkeypatch):
    monkeypatch.chdir(images)
    (images / "masks").mkdir()
    tree = {"data": {"source": "array", "path": "images.npz", "missing": "masks"}, "prior": {"kind": "flow"}}
    found = located(recipe.from_dict(tree | {"evaluate": {"features": "images.npz"}}))
    assert found.data.path == found.evaluate.features == str(images / "images.npz")
    assert found.data.missing == str(images / "masks")
    assert located(found) == found
    away = recipe.from_dict({"data": {"source": "array", "path": "elsewhere.npz"}})
    assert located(away).data.path == "elsewhere.npz"  # nothing lies there to be meant
    assert located(recipe.from_dict({"data": {"source": "mnist"}})).data.path == str(images / "data")
    assert located(recipe.load("digits")).data.path is None


@pytest.mark.parametrize("path", ["~nosuchuser", "~nosuchuser/images"])
def test_a_home_that_does_not_exist_is_told(path, hebm, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HebmError, match="begins with a home folder that does not exist"):
        expanded(path)
    for source in ("array", "folder", "mnist", "lsun"):
        words = ("--set", f"data.source={source}", "--set", f"data.path={path}")
        status, _, err = hebm("train-vae", "digits", *words)
        assert status == 1 and "home folder" in one_sentence(err)
    assert not list(tmp_path.iterdir())
    assert expanded("~").is_absolute() and str(expanded("a~b")) == "a~b"


def test_a_run_is_used_from_another_folder_and_with_its_images_elsewhere(images, hebm, monkeypatch, tmp_path):
    monkeypatch.chdir(images)
    words = options([*DIGITS[1:], "name=moving", "data.source=array", "data.path=images.npz", "train_vae.iterations=1"])
    status, _, err = hebm("train-vae", "digits", *words)
    assert status == 0, err
    run = Run(images / "runs" / "moving")
    assert run.recipe().data.path == str(images / "images.npz")
    monkeypatch.chdir(tmp_path)
    looks = ("reconstruct", "-n", 2, "--run", run.path)
    assert hebm(*looks)[0] == 0
    os.rename(images / "images.npz", tmp_path / "moved.npz")
    status, _, err = hebm(*looks)
    assert status == 1 and str(images / "images.npz") in (said := one_sentence(err))
    assert str(run.recipe_path) in said and "data_path" in said
    moved = ("--data-path", "moved.npz")
    assert hebm(*looks, *moved)[0] == 0
    assert hebm("evaluate", run.path, "--samples", 4, *moved)[0] == 0
    assert len(api.load(run, data_path=tmp_path / "moved.npz").reconstruct(n=2).made) == 2
    assert run.recipe().data.path == str(images / "images.npz")  # looking changes nothing
    status, _, err = hebm("train-vae", run.path, "--resume", *moved)
    assert status == 0 and run.recipe().data.path == str(tmp_path / "moved.npz"), err
