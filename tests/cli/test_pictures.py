"""PNGs say how they were drawn, the same whenever they are; samples as ADM's evaluation suite reads them."""

import json

import numpy as np
import pytest
from PIL import Image

from hebmtool.run.header import package_version


@pytest.fixture
def drawn(hebm, tiny, tmp_path):
    """Draw from the tiny run; the path, which must have been written."""

    def draw(*options: object, out: str):
        path = tmp_path / out
        status, _, err = hebm("sample", "--runs", tiny, "--run", "digits", "--force", "--out", path, *options)
        assert status == 0, err
        return path

    return draw


def test_an_image_of_a_folder_says_which_it_is(drawn, hebm):
    folder = drawn("-n", 2, "--seed", 7, "--steps", 1, "--temperature", 0.9, out="images")
    status, out, _ = hebm("info", folder / "000001.png", "--json")
    assert status == 0 and json.loads(out) == {
        "Software": f"hebmtool {package_version()}",
        "run": "digits",
        "prior": "diffusion-ebm",
        "seed": "7",
        "index": "1",
        "temperature": "0.9",
        "steps": "1",
    }
    _, out, _ = hebm("info", folder / "000000.png")
    assert "index\t0" in out.splitlines() and "run\tdigits" in out.splitlines()


def test_a_grid_says_which_images_it_has_and_is_the_same_at_any_time(drawn, hebm):
    first = drawn("-n", 3, "--prior", "gaussian", out="a.png").read_bytes()
    assert drawn("-n", 3, "--prior", "gaussian", "--batch-size", 2, out="b.png").read_bytes() == first
    _, out, _ = hebm("info", drawn("-n", 3, "--prior", "gaussian", out="a.png"))
    assert dict(line.split("\t") for line in out.splitlines())["index"] == "0-2"


def test_a_picture_of_another_origin_says_nothing(hebm, tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "plain.png")
    status, out, err = hebm("info", tmp_path / "plain.png")
    assert (status, out) == (1, "") and "does not say how it was made" in err


def test_adm_reads_three_channels_last(drawn):
    adm = np.load(drawn("-n", 3, "--prior", "gaussian", "--format", "adm", out="adm.npz"))
    assert list(adm) == ["arr_0"] and adm["arr_0"].shape == (3, 8, 8, 3) and adm["arr_0"].dtype == np.uint8
    plain = np.load(drawn("-n", 3, "--prior", "gaussian", out="plain.npz"))["images"]
    assert all(np.array_equal(adm["arr_0"][..., c], plain) for c in range(3))


@pytest.mark.parametrize("out", [("--out", "a.png"), ("--out", "-"), (), ("--out", "a.npz", "--progressive")])
def test_adm_is_an_npz(hebm, tiny, out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, err = hebm("sample", "--runs", tiny, "--format", "adm", *out)
    assert status == 2 and ".npz" in err and not list(tmp_path.iterdir())
