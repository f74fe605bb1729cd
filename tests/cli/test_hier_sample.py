"""`hebm hier-sample`, on runs."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from said import one_sentence

from hebmtool import picture

CELL = 48 + picture.GAP  # a digit, enlarged


def size(path) -> tuple[int, int]:
    with Image.open(path) as image:
        assert image.format == "PNG" and image.mode == "RGB"
        return image.size


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--layer", 1), "layer-2"),
        (("--layer", 2, "--vary", "below"), "layer-1"),
        (("--layer", "1:2"), "layers-1-2"),
        (("--all",), "all"),
    ],
)
def test_pictures_land_in_the_run(hebm, copied, options, words):
    run = copied / "digits"
    status, out, err = hebm("hier-sample", *options, "--run", run, "-n", 2, "--columns", 3)
    assert status == 0 and err == "", err
    path = Path(out.strip())
    assert path.parent == run / "samples" and path.is_file()
    assert path.name == f"hier-sample-diffusion-ebm-{words}-n2-columns3-seed0.png"
    width, height = size(path)
    assert 4 * CELL < width < 5 * CELL
    blocks = 2 if words == "all" else 1
    assert blocks * 2 * CELL < height < blocks * (2 * CELL + 50)


def test_json_reports_each_part(hebm, tiny, tmp_path):
    common = ("hier-sample", "--run", tiny / "digits", "-n", 3, "--columns", 2, "--json")
    status, out, err = hebm(*common, "--all", "--out", tmp_path / "all.png")
    assert status == 0, err
    found = json.loads(out)
    assert found["picture"] == str(tmp_path / "all.png") and (tmp_path / "all.png").is_file()
    assert (found["prior"], found["rows"], found["columns"], found["seed"]) == ("diffusion-ebm", 3, 2, 0)
    assert found["features"] == "embedded"
    assert [entry["layers"] for entry in found["parts"]] == [[2], [1]]
    for entry in found["parts"]:
        assert entry["pixel_distance"] > 0 and entry["pixel_error"] > 0
        assert entry["feature_distance"] > 0 and entry["feature_error"] > 0
    top, bottom = found["parts"]
    falls = all(top[k] > bottom[k] for k in ("pixel_distance", "feature_distance"))
    assert found["falls"] is falls and ("does not fall" in err) is not falls

    # The same numbers when one part is asked for alone; there is nothing to fall.
    status, out, err = hebm(*common, "--layer", 1, "--vary", "only", "--out", tmp_path / "one.png")
    alone = json.loads(out)
    assert status == 0 and alone["falls"] is None and err == ""
    assert alone["parts"][0]["pixel_distance"] == pytest.approx(bottom["pixel_distance"], rel=1e-3)


def test_real_images_start_a_row_each(hebm, tiny, tmp_path):
    # Of any size and colour.
    paths = [tmp_path / "grey.png", tmp_path / "colour.jpg"]
    Image.fromarray(np.random.default_rng(0).integers(256, size=(8, 8), dtype=np.uint8)).save(paths[0])
    Image.fromarray(np.random.default_rng(1).integers(256, size=(30, 40, 3), dtype=np.uint8)).save(paths[1])
    common = ("hier-sample", "--layer", 1, "--run", tiny / "digits", "--columns", 2)
    status, out, err = hebm(*common, "--from", paths[0], "--from", paths[1], "--out", tmp_path / "a.png")
    assert status == 0 and out.strip() == str(tmp_path / "a.png"), err
    assert 2 * CELL < size(tmp_path / "a.png")[1] < 3 * CELL
    # The first row does not depend on the second.
    status, _, err = hebm(*common, "--from", paths[0], "--batch-size", 1, "--out", tmp_path / "b.png")
    assert status == 0, err
    a, b = pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png")
    rows = slice(0, b.shape[0] - 20)
    assert np.abs(a[rows] - b[rows]).max() <= 1
    assert np.abs(a[CELL:, CELL:] - a[:-CELL, CELL:]).max() > 10


def test_options_change_what_is_drawn(hebm, tiny, tmp_path):
    ways = {
        "plain": (),
        "seed": ("--seed", 1),
        "prior": ("--prior", "gaussian"),
        "temperature": ("--temperature", 0.5),
        "steps": ("--steps", 5),
    }
    drawn = {}
    for name, options in ways.items():
        out = tmp_path / f"{name}.png"
        common = ("hier-sample", "--layer", 1, "--run", tiny / "digits", "-n", 1, "--columns", 1, "--out", out)
        status, _, err = hebm(*common, *options)
        assert status == 0, err
        drawn[name] = out.read_bytes()
    assert len(set(drawn.values())) == len(drawn)


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (("--layer", 9), 2, ["no layer 9", "1, 2"]),
        (("--layer", 0), 2, ["no layer 0", "1, 2"]),
        (("--layer", "1:3"), 2, ["no layer 3", "1, 2"]),
        (("--layer", 2), 2, ["layer 2 is the top", "vary only"]),
        (("--layer", 1, "--from", "absent.png"), 1, ["absent.png", "does not exist"]),
        (("--layer", 1, "--temperature", 0), 2, ["--temperature"]),
        (("--layer", 1, "--prior", "flow"), 1, ["'flow'", "hebm train-prior"]),
        (("--layer", 1, "--columns", 0), 2, ["--columns"]),
    ],
)
def test_what_the_run_does_not_have(hebm, tiny, tmp_path, monkeypatch, options, status, words):
    monkeypatch.chdir(tmp_path)
    found, out, err = hebm("hier-sample", *options, "--run", tiny / "digits")
    message = one_sentence(err)
    assert found == status and out == "" and all(word in message for word in words), message
    assert not list(tmp_path.iterdir())


def test_what_is_no_image_is_named(hebm, tiny, tmp_path):
    (tmp_path / "notes.png").write_text("not an image")
    status, _, err = hebm("hier-sample", "--layer", 1, "--from", tmp_path / "notes.png", "--run", tiny / "digits")
    assert status == 1 and "notes.png" in one_sentence(err)
