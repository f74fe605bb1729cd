"""Shared by the tests: --slow, one thread, the command in this process, and a tiny frozen generator."""

import sys

import pytest
import torch

from hebmtool import recipe
from hebmtool.cli import main
from hebmtool.generator import Tower

TINY = {
    "scales": 2,
    "layers_per_scale": 1,
    "latent_channels": 2,
    "encoder_channels": 4,
    "decoder_channels": 4,
    "preprocess_blocks": 1,
    "preprocess_cells": 1,
    "postprocess_blocks": 1,
    "postprocess_cells": 1,
    "likelihood": "bernoulli",
}


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_configure():
    torch.set_num_threads(1)


def pytest_collection_modifyitems(config, items):
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="takes minutes; run with --slow"))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def hebm(monkeypatch, capsys):
    """Run the command in this process; (exit status, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hebm", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main.main()
        out, err = capsys.readouterr()
        return stopped.value.code, out, err

    return run


@pytest.fixture
def make_generator():
    """Tiny frozen generators of 8x8 images with random weights; keys override those of the recipe's part."""

    def make(shape=(1, 8, 8), *, seed: int = 0, **keys) -> Tower:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Tower(recipe.Generator(**TINY | keys), shape).frozen()

    return make


@pytest.fixture
def generator(make_generator) -> Tower:
    """Two layers: 2 channels on 2x2 above 2 channels on 4x4, D = 40."""
    return make_generator()


@pytest.fixture
def cleanfid(monkeypatch):
    """clean-fid's `fid` module, able to compute its distance on scipy 1.18 and later too, which took `disp` away."""
    module = pytest.importorskip("cleanfid.fid")
    sqrtm = module.linalg.sqrtm
    monkeypatch.setattr(module.linalg, "sqrtm", lambda a, disp=True: sqrtm(a) if disp else (sqrtm(a), 0.0))
    return module


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """A cache of the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEBM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
