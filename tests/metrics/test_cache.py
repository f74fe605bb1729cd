"""Cached reference features: keyed by content, never fatal."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hebmtool import data
from hebmtool.metrics import cache
from hebmtool.metrics.features import Features

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HEBM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


class Network:
    """Counts how many images it has seen."""

    def __init__(self, digest="ab" * 32, scale=1.0):
        self.seen, self.scale = 0, scale
        self.features = Features(self, "counted", CPU, digest)

    def __call__(self, batch):
        self.seen += len(batch)
        return batch.double().flatten(1) * self.scale


def made(seed=0, shape=(1, 4, 4), n=9):
    content = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8))
    return data.Images(n, shape, lambda indices: content[indices])


def found(images, network):
    return cache.features(images, cache.images_digest(images), network.features)


@pytest.mark.parametrize("scale", [1.0, 1 / 3])  # exact in single precision, and not
def test_second_time_nothing_is_computed_and_everything_is_the_same(folder, scale):
    network, images = Network(scale=scale), made()
    first = found(images, network)
    assert network.seen == 9 and first.dtype == np.float64
    assert np.array_equal(found(images, network), first) and network.seen == 9
    assert len(list(folder.iterdir())) == 1


def test_the_key_is_the_content(folder):
    found(made(), Network())
    for images, network in (
        (made(seed=1), Network()),
        (made(shape=(1, 2, 8)), Network()),  # the same bytes in another shape
        (made(), Network(digest="cd" * 32)),
    ):
        found(images, network)
        assert network.seen == 9
    assert cache.images_digest(made()) == cache.images_digest(made())


def test_a_network_without_a_file_is_not_cached(folder):
    network = Network(digest=None)
    assert np.array_equal(found(made(), network), found(made(), network)) and network.seen == 18
    assert not folder.exists()


@pytest.mark.parametrize("harm", ["a bit", "cut", "empty", "text", "other length", "other key", "folder"])
def test_a_damaged_entry_is_computed_again(folder, harm):
    network, images = Network(), made()
    first = found(images, network)
    (path,) = folder.iterdir()
    content = bytearray(path.read_bytes())
    if harm == "a bit":
        content[len(content) // 2] ^= 1
    elif harm == "cut":
        content = content[:-30]
    elif harm in ("empty", "text"):
        content = b"" if harm == "empty" else b"not a zip"
    path.write_bytes(content)
    if harm == "other length":
        np.savez(path, features=first[:4])
    elif harm == "other key":
        np.savez(path, other=first)
    elif harm == "folder":
        path.unlink()
        path.mkdir()
    assert np.array_equal(found(images, network), first) and network.seen == 18
    if harm != "folder":
        assert np.array_equal(found(images, network), first) and network.seen == 18


def test_a_cache_that_cannot_be_written_is_no_failure(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HEBM_CACHE", str(tmp_path / "file"))
    assert found(made(), Network()).shape == (9, 16)
    assert "reference features are not kept" in capsys.readouterr().err


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("HEBM_CACHE", str(tmp_path))
    assert cache.folder() == tmp_path
    monkeypatch.setenv("HEBM_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.folder() == tmp_path / "xdg" / "hebmtool"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cache.folder() == tmp_path / ".cache" / "hebmtool"
