"""What has left the numbers is never saved, read, shown or reported as if it had not."""

import json

import pytest
import torch
from tiny import DIGITS
from tiny import options as tiny_options

from hebmtool import picture, recipe
from hebmtool.errors import HebmError
from hebmtool.run import checkpoint


def options(*more: str) -> list[str]:
    changed = ["train_vae.iterations=6", "train_vae.batch_size=8", "train_vae.save_every=1", "train_vae.lr_warmup=0"]
    return tiny_options([*DIGITS, *changed, *more])


@pytest.mark.parametrize("rate", ["1e10", "1e30"])
def test_weights_that_ran_away_are_not_saved(hebm, tmp_path, rate):
    status, _, err = hebm("train-vae", "digits", "--runs", tmp_path, *options(f"train_vae.lr={rate}"))
    assert status == 1 and ("ran away" in err or "diverged" in err)
    for path in (tmp_path / "digits").glob("*.safetensors"):
        tensors, _ = checkpoint.load(path)
        assert all(t.abs().max() < 1e8 for t in tensors.values() if t.is_floating_point() and t.numel())


def test_what_it_says_can_be_done(hebm, tmp_path):
    """Two good updates are kept; after a rate that ruins the third, a lower one goes on from them."""
    assert hebm("train-vae", "digits", "--runs", tmp_path, *options("train_vae.iterations=2"))[0] == 0
    again = ("train-vae", "digits", "--runs", tmp_path, "--resume")
    status, _, err = hebm(*again, *options("train_vae.lr=1e10", "train_vae.lr_min=1e10"))
    assert status == 1 and "resume" in err
    status, _, err = hebm(*again, *options("train_vae.lr=1e-4", "train_vae.lr_min=1e-5"))
    assert status == 0, err
    head = checkpoint.header(tmp_path / "digits" / "generator.safetensors")
    assert head.step == 6 and head.recipe["train_vae"]["lr"] == 1e-4


def test_a_changed_architecture_is_still_refused(hebm, tmp_path):
    assert hebm("train-vae", "digits", "--runs", tmp_path, *options("train_vae.iterations=1"))[0] == 0
    for key in ("generator.mixtures=4", "train_vae.batch_size=9", "train_vae.free_nats=2.0"):
        status, _, err = hebm("train-vae", "digits", "--runs", tmp_path, "--resume", *options(key))
        assert status == 1 and key.partition("=")[0] in err


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_checkpoint_that_is_not_finite_is_not_read(tmp_path, value):
    path = tmp_path / "x.safetensors"
    checkpoint.save(
        path, {"w": torch.tensor([0.0, value])}, kind="generator", recipe=recipe.load("digits"), step=1, extra={}
    )
    with pytest.raises(HebmError, match="'w' with 1 of 2 values that are not finite"):
        checkpoint.load(path)


def test_images_that_are_not_finite_are_not_shown():
    images = torch.rand(3, 1, 4, 4)
    images[1, 0, 2, 2] = float("nan")
    with pytest.raises(HebmError, match="1 of 3 images are not finite"):
        picture.to_uint8(images)


def test_a_temperature_beyond_the_numbers_makes_no_black_images(hebm, tmp_path, tiny):
    for temperature in ("1e38", "1e30"):
        out = tmp_path / f"{temperature}.png"
        status, _, err = hebm("sample", "--run", tiny / "digits", "-n", 2, "--temperature", temperature, "--out", out)
        assert (status == 1 and "not finite" in err and not out.exists()) or status == 0


def test_statistics_gone_infinite_are_said(hebm, tmp_path):
    keys = options("generator.likelihood=mixture", "train_vae.lr=5", "train_vae.iterations=30", "train_vae.ema=0.5")
    status, _, err = hebm("train-vae", "digits", "--runs", tmp_path, *keys)
    if status == 0:  # it came through, and then every figure is a number
        figures = json.loads((tmp_path / "digits" / "figures.json").read_text())
        assert figures["generator"]["elbo"] is not None
    else:
        assert "nan" not in err.partition("hebm:")[2].partition("loss")[0]
