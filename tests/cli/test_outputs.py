"""Where what a command makes goes: by its ending, never over what is there, and known before anything is drawn."""

import io
import os
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from hebmtool import picture
from hebmtool.cli import outputs
from hebmtool.cli.outputs import Sink
from hebmtool.errors import HebmError, UsageError


def stream(images, size=2):
    return iter(images.split(size))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def images():
    return torch.randint(256, (5, 3, 8, 8), dtype=torch.uint8)


def pixels(file):
    with Image.open(file) as found:
        return np.asarray(found.convert("RGB"))


def test_the_ending_decides(tmp_path):
    for out, kind in (("a.png", "png"), ("a.npz", "npz"), ("a", "folder"), ("-", "stdout")):
        assert Sink(out if out == "-" else str(tmp_path / out)).kind == kind


def test_grid_file(tmp_path, images):
    Sink(str(tmp_path / "new" / "grid.png"), columns=2).write(stream(images))
    assert np.array_equal(pixels(tmp_path / "new" / "grid.png"), np.asarray(picture.grid(images, 2)))
    assert names(tmp_path / "new") == ["grid.png"]


@pytest.mark.parametrize("channels", [1, 3])
def test_npz_file(tmp_path, images, channels):
    Sink(str(tmp_path / "images.npz")).write(stream(images[:, :channels]))
    with np.load(tmp_path / "images.npz") as found:
        assert list(found) == ["images"]
        assert np.array_equal(found["images"], picture.to_nhwc(images[:, :channels]))
    assert names(tmp_path) == ["images.npz"]


@pytest.mark.parametrize("channels", [1, 3])
def test_folder_holds_each_image_exactly(tmp_path, images, channels):
    Sink(str(tmp_path / "many")).write(stream(images[:, :channels]))
    assert names(tmp_path / "many") == [f"{i:06d}.png" for i in range(5)]
    for i, image in enumerate(images[:, :channels]):
        with Image.open(tmp_path / "many" / f"{i:06d}.png") as found:
            assert np.array_equal(np.asarray(found), picture.to_nhwc(image[None])[0])


def test_folder_is_filled_as_batches_come(tmp_path, images):
    def batches():
        yield images[:2]
        assert names(tmp_path / "many") == ["000000.png", "000001.png"]
        yield images[2:3]
        raise HebmError("interrupted")

    with pytest.raises(HebmError, match="interrupted"):
        Sink(str(tmp_path / "many")).write(batches())
    assert names(tmp_path / "many") == ["000000.png", "000001.png", "000002.png"]


def test_stdout_is_the_same_grid(monkeypatch, images):
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer))
    Sink("-", columns=3).write(stream(images))
    assert np.array_equal(pixels(io.BytesIO(buffer.getvalue())), np.asarray(picture.grid(images, 3)))


def test_a_terminal_is_refused(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    with pytest.raises(UsageError, match="terminal"):
        Sink("-")


@pytest.mark.parametrize("out", ["grid.jpg", "images.npy", "grid.PNG"])
def test_other_endings_are_refused(tmp_path, out):
    with pytest.raises(UsageError, match=r"allowed are a \.png grid"):
        Sink(str(tmp_path / out))
    assert names(tmp_path) == []


def test_a_folder_may_have_a_dot_in_its_name_once_it_is_there(tmp_path):
    (tmp_path / "run.1").mkdir()
    assert Sink(str(tmp_path / "run.1")).kind == "folder"


@pytest.mark.parametrize("out", ["grid.png", "images.npz"])
def test_what_is_there_is_kept_without_force(tmp_path, images, out):
    path = tmp_path / out
    path.write_bytes(b"precious")
    with pytest.raises(HebmError, match="--force") as raised:
        Sink(str(path))
    assert str(path) in str(raised.value) and path.read_bytes() == b"precious"
    Sink(str(path), force=True).write(stream(images))
    assert path.read_bytes() != b"precious"


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("out", ["folder", "folder.png", "folder.npz"])
def test_draws_are_not_mixed_with_what_a_folder_holds(tmp_path, out, force):
    path = tmp_path / out
    path.mkdir()
    (path / "mine.txt").write_bytes(b"precious")
    with pytest.raises(HebmError, match="not empty"):
        Sink(str(path), force=force)
    assert names(path) == ["mine.txt"]


@pytest.mark.parametrize("out", ["plain", "plain/images.npz"])
def test_a_file_in_the_way_is_met_before_anything_is_drawn(tmp_path, out):
    (tmp_path / "plain").write_bytes(b"precious")
    with pytest.raises(HebmError, match="plain"):
        Sink(str(tmp_path / out), force=True)
    assert (tmp_path / "plain").read_bytes() == b"precious"


def test_an_empty_folder_needs_no_force(tmp_path, images):
    Sink(str(tmp_path)).write(stream(images))
    assert len(names(tmp_path)) == 5


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "many").write_bytes(b"precious")
    with pytest.raises(HebmError, match="exists"):
        Sink(str(tmp_path / "many"))


@pytest.mark.parametrize("out", ["grid.png", "images.npz", "many"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_no_temporary(tmp_path, monkeypatch, images, out, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(HebmError if isinstance(error, OSError) else KeyboardInterrupt):
        Sink(str(tmp_path / out)).write(stream(images))
    monkeypatch.undo()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


# One picture, one page


@pytest.mark.parametrize("out", ["a.npz", "folder", "a.jpg", "-"])
def test_a_picture_is_a_png(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"diagnose draws a picture: give a \.png"):
        outputs.picture(out, False, "diagnose")
    assert names(tmp_path) == []


def test_a_picture_may_go_to_stdout_where_nothing_else_does(monkeypatch):
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer))
    outputs.picture("-", False, "hier-sample", stdout=True).write_picture(b"PNG")
    assert buffer.getvalue() == b"PNG"


def test_a_page_is_html_and_replaces_nothing(tmp_path):
    for out in ("page.pdf", "page"):
        with pytest.raises(UsageError, match="writes a page"):
            outputs.page(str(tmp_path / out), False)
    assert outputs.page(str(tmp_path / "new" / "page.HTML"), False).parent.is_dir()
    there = tmp_path / "page.html"
    there.write_bytes(b"precious")
    with pytest.raises(HebmError, match="--force"):
        outputs.page(str(there), False)
    assert outputs.page(str(there), True) == there and there.read_bytes() == b"precious"
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(HebmError, match="is a folder"):
        outputs.page(str(tmp_path / "folder.html"), True)


def test_nothing_said_is_nothing_checked():
    assert outputs.images(None, False) is None
    assert outputs.picture(None, False, "diagnose") is None
    assert outputs.page(None, False) is None


def test_a_folder_that_was_interrupted_is_gone_on_with(hebm, tiny, tmp_path, monkeypatch):
    sample = ("sample", "--runs", tiny, "--run", "digits", "--steps", 1, "--batch-size", 2)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert hebm(*sample, "-n", 7, "--out", whole)[0] == 0
    to_png = picture.to_png

    def interrupted(image, about=None):
        if len(list(cut.glob("*.png"))) == 4:
            raise KeyboardInterrupt
        return to_png(image, about)

    with monkeypatch.context() as patch:
        patch.setattr(picture, "to_png", interrupted)
        assert hebm(*sample, "-n", 7, "--out", cut)[0] == 130
    (cut / "000001.png").unlink()
    status, _, err = hebm(*sample, "-n", 7, "--out", cut, "--seed", 5)
    assert status == 1 and "was begun with other images (seed)" in err
    assert hebm(*sample, "-n", 7, "--out", cut)[0] == 0
    assert sorted(path.name for path in cut.iterdir()) == sorted(path.name for path in whole.iterdir())
    for path in whole.iterdir():
        one, other = (np.asarray(Image.open(folder / path.name)).astype(int) for folder in (whole, cut))
        assert abs(one - other).max() <= 1
    assert "not empty" in hebm(*sample, "-n", 7, "--out", cut)[2]
