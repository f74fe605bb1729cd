"""`hebm encode`, `decode` and `interpolate`."""

import numpy as np
import pytest
from PIL import Image


@pytest.mark.parametrize("name", ["digits", "flow"])
def test_latents_go_out_and_come_back_as_reconstructions(hebm, tiny, name, tmp_path):
    at, out = ["--run", tiny / name], tmp_path / "latents.npz"
    status, printed, err = hebm("encode", *at, "-n", 3, "--out", out)
    assert status == 0, err
    assert printed.splitlines() == ["test#0", "test#1", "test#2"] and f"latents: {out}" in err
    assert hebm("decode", out, *at, "--out", tmp_path / "decoded")[0] == 0
    assert hebm("reconstruct", *at, "-n", 3, "--out", tmp_path / "made")[0] == 0
    for i in range(3):
        decoded, made = (np.array(Image.open(tmp_path / f"{part}/{i:06d}.png")) for part in ("decoded", "made"))
        assert np.array_equal(decoded, made)


def test_latents_are_of_one_generator_and_no_other(hebm, tiny, tmp_path):
    out = tmp_path / "latents.npz"
    assert hebm("encode", "--run", tiny / "digits", "-n", 1, "--out", out)[0] == 0
    status, _, err = hebm("decode", out, "--run", tiny / "flow", "--out", tmp_path / "x.png")
    assert status == 1 and "the generator they were taken with" in err and not (tmp_path / "x.png").exists()
    status, _, err = hebm("encode", "--run", tiny / "digits", "--out", out)
    assert status == 1 and "exists" in err
    status, _, err = hebm("encode", "--run", tiny / "digits", "--out", tmp_path / "x.pt")
    assert status == 2 and "give a .npz" in err
    status, _, err = hebm("decode", tiny / "digits" / "recipe.yaml", "--run", tiny / "digits", "--out", tmp_path / "x")
    assert status == 1 and "holds no latents" in err


def test_a_way_from_image_to_image(hebm, tiny, imgs, tmp_path):
    at = ["--run", tiny / "digits", "--points", 4, "--steps", 2]
    status, _, err = hebm("interpolate", *at, imgs / "a.png", imgs / "deep", "--fit", "--out", tmp_path / "way")
    assert status == 0, err
    assert len(list((tmp_path / "way").iterdir())) == 2 * 4
    status, _, err = hebm("interpolate", *at, "--out", tmp_path / "way.png")
    assert status == 0 and Image.open(tmp_path / "way.png").size[0] > 4 * 48
    status, _, err = hebm("interpolate", *at, imgs / "a.png", "--fit", "--out", tmp_path / "one.png")
    assert status == 1 and "the only one" in err
