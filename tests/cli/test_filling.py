"""`hebm reconstruct` and `hebm inpaint`, on both kinds of run."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from hebmtool import data, recipe


def digits(n=4):
    return data.load(recipe.Data(), "test").batch(range(n))


@pytest.mark.parametrize("name", ["digits", "flow"])
def test_reconstruct(hebm, tiny, name, tmp_path):
    at = ["--run", tiny / name]
    np.save(tmp_path / "x.npy", digits(5)[:, 0].numpy())
    status, out, err = hebm("reconstruct", *at, tmp_path / "x.npy", "--out", tmp_path / "r.png")
    assert status == 0, err
    lines = [line.split("\t") for line in out.splitlines()]
    assert [line[2] for line in lines] == [f"{tmp_path / 'x.npy'}#{i}" for i in range(5)]
    assert all(float(b) == pytest.approx(-10 * math.log10(float(a)), abs=0.02) for a, b, _ in lines)
    assert Image.open(tmp_path / "r.png").size[0] > 5 * 48 and "over 5 images" in err
    status, out, err = hebm("reconstruct", *at, "-n", 3, "--json", "--steps", 2, "--out", tmp_path / "folder")
    assert status == 0, err
    found = [json.loads(line) for line in out.splitlines()]
    assert [each["path"] for each in found] == ["test#0", "test#1", "test#2"]
    assert len(list((tmp_path / "folder").iterdir())) == 3
    made = np.array(Image.open(tmp_path / "folder/000001.png")).astype(float)
    expected = np.mean((made - digits(2)[1, 0].numpy()) ** 2) / 255**2
    assert found[1]["mse"] == pytest.approx(expected)


@pytest.mark.parametrize("name", ["digits", "flow"])
def test_inpaint(hebm, copied, name, tmp_path):
    at = ["--run", copied / name, "--steps", 2, "--draws", 2]
    Image.fromarray(digits()[1, 0].numpy()).save(tmp_path / "x.png")
    status, out, err = hebm("inpaint", *at, tmp_path / "x.png", "--mask", "left", "--out", tmp_path / "c.npz")
    assert status == 0, err
    each, mean, path = out.strip().split("\t")
    assert path == str(tmp_path / "x.png") and float(mean) >= float(each) - 0.01
    made = np.load(tmp_path / "c.npz")["images"]
    assert made.shape == (2, 8, 8) and np.array_equal(made[:, :, 4:], digits()[[1, 1], 0, :, 4:].numpy())
    status, out, err = hebm("inpaint", *at, "-n", 3, "--mask", "random:0.3", "--damaged", "--out", tmp_path / "c.png")
    assert status == 0 and out == "", err
    status, out, err = hebm("inpaint", *at, "-n", 3, "--json")
    assert status == 0 and {"path", "psnr", "psnr_of_mean"} == json.loads(out.splitlines()[0]).keys()
    assert list((copied / name / "samples").glob("inpaint-*.png"))


@pytest.fixture
def files(tmp_path):
    """Images that fit and that do not, and masks likewise."""
    rng = np.random.default_rng(0)
    for file, size, mode in (("ok.png", (8, 8), "L"), ("big.png", (9, 8), "L"), ("rgb.png", (8, 8), "RGB")):
        Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).convert(mode).save(tmp_path / file)
    np.save(tmp_path / "all.npy", np.ones((8, 8)))
    np.save(tmp_path / "wide.npy", np.eye(10))
    np.save(tmp_path / "two.npy", np.stack([np.eye(8)] * 2))
    (tmp_path / "broken.png").write_text("no image")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "expected", "words"),
    [
        (["inpaint", "ok.png", "--mask", "wide.npy"], 1, "is 10x10 pixels, but the images are 8x8"),
        (["inpaint", "ok.png", "--mask", "all.npy"], 1, "hides every pixel"),
        (["inpaint", "ok.png", "--mask", "centr"], 2, "did you mean 'center'"),
        (["inpaint", "ok.png", "ok.png", "ok.png", "--mask", "two.npy"], 1, "holds 2 masks for 3 images"),
        (["inpaint", "ok.png", "--mask", "no.png"], 1, "does not exist"),
    ],
)
def test_masks_that_do_not_fit_are_a_sentence(hebm, tiny, files, monkeypatch, arguments, expected, words):
    monkeypatch.chdir(files)
    status, out, err = hebm(*arguments, "--run", tiny / "flow")
    assert status == expected and words in err and out == "" and len(err.strip().splitlines()) == 1, err


def test_images_that_do_not_fit_are_named_and_passed_over_or_fitted(hebm, tiny, files, monkeypatch):
    monkeypatch.chdir(files)
    at = ["--run", tiny / "flow", "--out", files / "out.png", "--force"]
    # A file that is passed over must not move the masks of those after it.
    status, out, err = hebm("inpaint", "ok.png", "broken.png", "--mask", "two.npy", *at)
    assert status == 1 and "holds 2 masks for 1 images" in err and out == ""
    for file, words in (("big.png", "9x8 grey, and the run's images are 8x8 grey"), ("rgb.png", "8x8 RGB")):
        # What does not fit is named and passed over, like what cannot be read.
        status, out, err = hebm("reconstruct", "ok.png", file, *at)
        assert status == 1 and words in err and file in err and len(out.splitlines()) == 1
        status, out, err = hebm("reconstruct", file, *at)
        assert status == 1 and out == "" and "no image is left" in err
        status, _, err = hebm("reconstruct", file, "--fit", *at)
        assert status == 0, err
