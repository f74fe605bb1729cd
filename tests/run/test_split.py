"""A set of images that changed since a run was trained: said, and refused where it would be wrong."""

import numpy as np
import pytest
import torch
import yaml
from pictures import write
from tiny import CPU, DIGITS, FLOW

from hebmtool import recipe
from hebmtool.errors import HebmError
from hebmtool.recipe import Data
from hebmtool.run import checkpoint, split
from hebmtool.run.folder import Run
from hebmtool.train.one_stage import train_one_stage
from hebmtool.train.vae import train_vae

N = 40


@pytest.fixture(autouse=True)
def unsaid():
    split._say.cache_clear()


@pytest.fixture
def flat(tmp_path):
    for i in range(N):
        write(tmp_path / "set" / f"{i}.png", np.full((8, 8), i, np.uint8))
    return tmp_path / "set"


def trained(tmp_path, part):
    """A run that has learned from what `part` names now."""
    run = Run(tmp_path / "run")
    with run.lock():
        run.write_recipe(recipe.Recipe(data=part))
        split.both(run, part)
    checkpoint.save(
        run.generator_path, {"w": torch.zeros(1)}, kind="generator", recipe=recipe.Recipe(data=part), step=1
    )
    return run


@pytest.mark.parametrize("how", ["hash", "order"])
def test_a_set_that_stays_is_not_spoken_of(tmp_path, flat, capsys, how):
    part = Data(source="folder", path=str(flat), hold_out=how)
    run = trained(tmp_path, part)
    for each in ("train", "test"):
        assert len(split.load(run, part, each))
    assert capsys.readouterr().err == "" and split.read(run).digest == split.read(run).digest
    assert len(split.read(run).held) == N


def test_files_that_join_or_leave_are_told_once(tmp_path, flat, capsys):
    part = Data(source="folder", path=str(flat))
    run = trained(tmp_path, part)
    gone = split.load(run, part, "train").names[0]
    (flat / gone).unlink()
    for i in range(N, N + 5):
        write(flat / f"{i}.png", np.full((8, 8), i, np.uint8))
    for _ in range(2):
        split.load(run, part, "train")
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("is not what it was") == 1 and f"1 file ({gone.rpartition('/')[2]}) removed from" in said
    assert "added to" in said and "no other image changes its split" in said


def test_a_set_that_is_dealt_anew_is_refused(tmp_path, flat):
    """By order, as in a run of 0.1.0, one file less moves others; what was learned from is never tested on."""
    part = Data(source="folder", path=str(flat), hold_out="order")
    run = trained(tmp_path, part)
    (flat / "3.png").unlink()
    for each in ("train", "test"):
        with pytest.raises(HebmError, match="is not what it was.* moved to the .*put the images back") as raised:
            split.load(run, part, each)
        assert "\n" not in str(raised.value)
    write(flat / "3.png", np.full((8, 8), 3, np.uint8))
    assert len(split.load(run, part, "train"))


def test_a_file_that_was_learned_from_is_not_tested_on_under_another_fraction(tmp_path, flat):
    run = trained(tmp_path, Data(source="folder", path=str(flat)))
    with pytest.raises(HebmError, match="moved to the test split"):
        split.load(run, Data(source="folder", path=str(flat), test_fraction=0.9), "test")


def test_rows_have_no_names(tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, (N, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "set.npy", pixels[1:])
    part = Data(source="array", path=str(tmp_path / "set.npy"))
    run = trained(tmp_path, part)
    np.save(tmp_path / "set.npy", pixels)
    for each in ("train", "test"):
        split.load(run, part, each)
    assert "1 row added to the" in " ".join(capsys.readouterr().err.split())
    order = part.model_copy(update={"hold_out": "order"})
    with pytest.raises(HebmError, match="moved to"):
        split.load(run, order, "test")


def test_what_was_of_a_split_stays_of_it(tmp_path, flat):
    part = Data(source="folder", path=str(flat))
    run = trained(tmp_path, part)
    before = dict(split.read(run).held)
    for i in range(N, N + 9):
        write(flat / f"{i}.png", np.full((8, 8), i, np.uint8))
    (flat / "0.png").unlink()
    with run.lock():
        split.both(run, part)
    assert before.items() <= split.read(run).held.items() and len(split.read(run).held) == N + 9


def test_images_kept_by_their_place_must_all_be_there(tmp_path, flat):
    part = Data(source="folder", path=str(flat))
    run = trained(tmp_path, part)
    name = split.load(run, part, "train").names[0]
    (flat / name).unlink()
    with pytest.raises(HebmError, match="kept by its place"):
        split.load(run, part, "train", exact=True)


@pytest.mark.parametrize("content", [b"", b"nothing", b"PK\x03\x04"])
def test_a_record_that_cannot_be_read_is_named(tmp_path, flat, content):
    part = Data(source="folder", path=str(flat))
    run = trained(tmp_path, part)
    split.path_of(run).write_bytes(content)
    with pytest.raises(HebmError, match="split.npz, which says what images"):
        split.load(run, part, "train")


def test_sets_that_do_not_change_keep_nothing(tmp_path):
    run = trained(tmp_path, Data())
    assert not split.path_of(run).exists() and len(split.load(run, Data(), "test")) == 180


# Runs of 0.1.0


def without_the_key(path):
    tree = yaml.safe_load(path.read_text())
    del tree["data"]["hold_out"]
    path.write_text(yaml.dump(tree))


def test_a_run_without_the_key_holds_out_by_order(tmp_path):
    run = Run(tmp_path)
    run.write_recipe(recipe.Recipe())
    assert run.recipe().data.hold_out == "hash"
    without_the_key(run.recipe_path)
    assert run.recipe().data.hold_out == "order" and recipe.load(run.recipe_path).data.hold_out == "hash"
    tree = recipe.Recipe().model_dump(mode="json")
    del tree["data"]["hold_out"]
    path = tmp_path / "generator.safetensors"
    checkpoint.save(path, {"w": torch.zeros(1)}, kind="generator", recipe=tree, step=1)
    assert checkpoint.recipe(path, checkpoint.header(path)).data.hold_out == "order"


def test_it_is_trained_on_as_it_was_dealt(tmp_path, flat):
    keys = [*DIGITS, "data.source=folder", f"data.path={flat}", "train_vae.iterations=1", "train_vae.batch_size=8"]
    settings = recipe.load("digits", [*keys, "data.hold_out=order"])
    with Run.create(tmp_path, settings) as run:
        train_vae(settings, run, CPU)
    split.path_of(run).unlink()  # which 0.1.0 did not write
    again = recipe.load("digits", [*keys, "train_vae.iterations=2"])
    assert again.data.hold_out == "hash"
    with run.lock():
        train_vae(again, run, CPU, resume=True)
    header = checkpoint.header(run.generator_train_path)
    assert run.recipe().data.hold_out == header.recipe["data"]["hold_out"] == "order"
    assert sum(split.read(run).held.values()) == round(0.1 * N)
    (flat / "0.png").unlink()
    with run.lock(), pytest.raises(HebmError, match="is not what it was"):
        train_vae(recipe.load("digits", [*keys, "train_vae.iterations=3"]), run, CPU, resume=True)


def test_chains_that_go_on_need_the_images_they_belong_to(tmp_path, flat):
    keys = [*FLOW, "data.source=folder", f"data.path={flat}", "flow.persistent=true", "train_prior.iterations=1"]
    settings = recipe.load("digits-flow", keys)
    with Run.create(tmp_path, settings) as run:
        train_one_stage(settings, run, CPU)
    write(flat / "new.png", np.full((8, 8), 99, np.uint8))
    write(flat / "newer.png", np.full((8, 8), 98, np.uint8))
    write(flat / "newest.png", np.full((8, 8), 97, np.uint8))
    with run.lock(), pytest.raises(HebmError, match="kept by its place"):
        train_one_stage(recipe.load("digits-flow", [*keys, "train_prior.iterations=2"]), run, CPU, resume=True)
