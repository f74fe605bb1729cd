"""Stage one that goes on from the weights of another run, an imported one above all."""

import numpy as np
import pytest
import torch
from published import make, publish, write
from tiny import CPU, DIGITS

from hebmtool import api
from hebmtool.errors import HebmError, UsageError
from hebmtool.run import checkpoint
from hebmtool.run.imported import import_checkpoint
from hebmtool.run.open import load_generator

SHORT = ["train_vae.iterations=2", "train_vae.batch_size=4", "train_vae.log_every=1", "train_vae.lr_warmup=0"]


@pytest.fixture
def images(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (24, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=pixels)
    return ["data.source=array", f"data.path={tmp_path / 'images.npz'}", "data.flip=false"]


@pytest.fixture
def imported(tmp_path):
    """A run of a tiny published checkpoint, for images of 16x16."""
    return import_checkpoint(write(publish(*make()), tmp_path), tmp_path / "runs", "church")


def tune(run, *more, **how):
    return api.train_vae(run, [*SHORT, *more], runs=run.path.parent, device="cpu", finetune=True, **how)


def test_it_begins_with_the_imported_weights_and_ends_with_others(imported, images):
    before, _ = checkpoint.load(imported.generator_path)
    # A rate so small that weights stay where they began: with new ones they would be anywhere.
    still = tune(
        imported, *images, "name=still", "train_vae.lr=1e-12", "train_vae.lr_min=0", "train_vae.weight_decay=0"
    )
    after, header = checkpoint.load(still.generator_path)
    learned = [key for key in before if before[key].is_floating_point() and "running" not in key]
    assert all(torch.allclose(after[key], before[key], atol=1e-6) for key in learned) and header.step == 2
    # The KL counts in full from the first update on: what is there is not to be unlearned.
    assert [record["beta"] for record in still.metrics("train-vae")] == [1.0, 1.0]
    moved, _ = checkpoint.load(tune(imported, *images, "name=moved", "train_vae.lr=0.01").generator_path)
    assert any(not torch.allclose(moved[key], before[key], atol=1e-6) for key in learned)
    assert all(torch.equal(checkpoint.load(imported.generator_path)[0][key], before[key]) for key in before)


def test_an_import_is_tuned_in_its_own_folder_and_resumed_there(imported, images, hebm):
    root = imported.path.parent
    keys = [word for each in (*SHORT, *images) for word in ("--set", each)]
    status, out, err = hebm("train-vae", "--run", "church", "--runs", root, *keys)
    assert (status, out) == (0, f"{imported.path}\n"), err
    assert imported.generator_train_path.is_file() and load_generator(imported, CPU).L == 4
    status, _, err = hebm("train-vae", imported.path, "--runs", root, "--resume", "--set", "train_vae.iterations=3")
    assert status == 0, err
    assert checkpoint.header(imported.generator_path).step == 3
    with pytest.raises(HebmError, match="was trained there; resume it, or finetune it under another name"):
        tune(imported)


def test_a_generator_that_priors_stand_on_is_tuned_elsewhere(copied):
    from hebmtool.run.folder import Run

    run = Run(copied / "digits")
    run.generator_train_path.unlink()
    with pytest.raises(HebmError, match="has ebm, diffusion-ebm, class, learned on its generator"):
        tune(run)
    made = tune(run, *DIGITS, "name=tuned", "train_vae.iterations=1")
    assert made.name == "tuned" and made.priors() == ["gaussian"]


def test_what_does_not_fit_is_told_before_anything_is_written(imported, images, hebm, tmp_path):
    before = {path.name for path in imported.path.parent.iterdir()}
    np.savez(tmp_path / "small.npz", images=np.zeros((24, 8, 8, 3), np.uint8))
    other = [*images, f"data.path={tmp_path / 'small.npz'}", "data.size=null"]
    with pytest.raises(HebmError, match="images are 3x8x8, and the generator in .* is for 3x16x16"):
        tune(imported, *other)
    with pytest.raises(HebmError, match="trained with generator.latent_channels = 2 and the recipe now says 3"):
        tune(imported, *images, "generator.latent_channels=3")
    with pytest.raises(UsageError, match="begins with the generator of a run, and digits is none"):
        api.train_vae("digits", finetune=True, runs=tmp_path)
    with pytest.raises(UsageError, match="only resume it"):
        tune(imported, resume=True)
    assert {path.name for path in imported.path.parent.iterdir()} == before
    for words in ((), ("digits", "--run", "church")):
        status, _, err = hebm("train-vae", *words, "--runs", imported.path.parent)
        assert status == 2 and "say what to train" in err
