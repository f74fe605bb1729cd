"""Sampling: the same images at any batch size, every stage of the trajectory, and where the images go."""

import io
import os
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from hebmtool import picture, recipe
from hebmtool.errors import HebmError, UsageError
from hebmtool.noise import Noise
from hebmtool.prior.kinds import KINDS, make_prior
from hebmtool.use.outputs import Sink
from hebmtool.use.sample import progressive, sample


def make(generator, kind="diffusion-ebm"):
    config = recipe.Prior(kind=kind, chain="preconditioned", steps=2)
    config.energy = recipe.Energy(width=6, blocks=1)
    prior = make_prior(generator, config)
    for p in prior.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.1)
    return prior


@pytest.fixture
def vivid(make_generator):
    """A generator whose random images are not nearly grey."""
    generator = make_generator()
    head = generator.image_head[1]
    head.folded = 30 * head.folded
    return generator


def drawn(prior, n, **options):
    return torch.cat(list(sample(prior, n, **options)))


def same(a, b):
    """Equal up to the rounding of the last bit."""
    return a.shape == b.shape and (a.int() - b.int()).abs().max() <= 1


def stream(images, size=2):
    return iter(images.split(size))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# Sampling


@pytest.mark.parametrize("kind", KINDS)
def test_images_do_not_depend_on_the_batch_size(vivid, kind):
    prior = make(vivid, kind)
    images = drawn(prior, 7, seed=3)
    assert images.dtype == torch.uint8 and images.shape == (7, 1, 8, 8) and images.float().std() > 10
    assert [len(batch) for batch in sample(prior, 7, seed=3, batch_size=3)] == [3, 3, 1]
    assert same(drawn(prior, 7, seed=3, batch_size=3), images)
    assert same(drawn(prior, 4, seed=3), images[:4])
    assert not same(drawn(prior, 7, seed=4), images)


def test_images_are_the_priors_draws_decoded(vivid):
    prior = make(vivid)
    u = prior.sample(Noise(5, range(4), vivid.D), 1, 0.5)
    expected = picture.to_uint8(vivid.images(u))
    assert torch.equal(drawn(prior, 4, seed=5, steps=1, temperature=0.5), expected)
    assert not same(drawn(prior, 4, seed=5, steps=1), expected)
    assert not same(drawn(prior, 4, seed=5, temperature=0.5), expected)


def test_images_come_as_they_are_drawn(vivid, monkeypatch):
    prior, asked = make(vivid, "gaussian"), []
    draw = prior.sample
    monkeypatch.setattr(prior, "sample", lambda *arguments: asked.append(1) or draw(*arguments))
    batches = sample(prior, 100, batch_size=10)
    next(batches)
    assert len(asked) == 1


@pytest.mark.parametrize(("kind", "stages"), [("gaussian", 1), ("ebm", 2), ("diffusion-ebm", 4)])
def test_progressive_runs_from_the_noise_to_the_sample(vivid, kind, stages):
    prior = make(vivid, kind)
    strip, found = progressive(prior, 5, seed=2, batch_size=3)
    assert found == stages and strip.dtype == torch.uint8 and strip.shape == (5 * stages, 1, 8, 8)
    rows = strip.unflatten(0, (5, stages))
    assert same(rows[:, -1], drawn(prior, 5, seed=2))
    assert same(rows[:, 0], picture.to_uint8(vivid.images(Noise(2, range(5), vivid.D)())))
    if stages > 1:
        assert not same(rows[:, 0], rows[:, -1])
    middle = list(prior.trajectory(Noise(2, range(5), vivid.D)))
    for stage, u in enumerate(middle):
        assert same(rows[:, stage], picture.to_uint8(vivid.images(u)))


# Where they go


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
