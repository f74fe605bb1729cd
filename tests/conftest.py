"""Shared by the tests of every room.

made_once   makes a folder once for all the processes (`-n`) that share this run of the tests
tiny        a folder of runs trained once and read by all: `digits`, two layers of which both kinds of EBM and
            the label `class` are trained, and `flow`, of one layer (`tiny.py` has their recipes)
copied      a copy of that folder, to change
hebm        the command in this process
heard       signals as in a person's shell, whoever started the tests
child       a process of a test's own, on one thread and killed on the way out (`children.py`); `spawn` is the command
imgs        a folder of images of other sizes than the tiny run's, a damaged one among them
generator   a tiny frozen tower with random weights; `make_generator` makes others
short       estimates of few draws, where it does not matter how good they are (`short.py`)
cleanfid    clean-fid's own distance, to compare with

Every test starts from seed 0 on one thread, with a cache of the session's own.  Tests marked slow run with --slow,
those marked gpu where there is one.  Tests lie in folders named as the rooms are; what is no fixture lies beside this
file: `toys` (small priors and generators of known density), `tiny`, `children`, `short`, `pictures` (image files),
`published` (checkpoints in NVAE's format) and `said` (how mistakes are said).
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from children import Child
from filelock import FileLock
from pictures import grey
from PIL import Image
from short import shorten
from tiny import train_digits, train_flow_run

from hebmtool import recipe
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


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory) -> Iterator[None]:
    """A cache of the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEBM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


# Runs -----------------------------------------------------------------------------------------------------------------


def listing(root: Path) -> dict[str, list[int]]:
    """Size and time of every file below, by its name."""
    return {str(p.relative_to(root)): [p.stat().st_size, p.stat().st_mtime_ns] for p in root.rglob("*") if p.is_file()}


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Callable[[str, Callable[[Path], None]], Iterator[Path]]:
    """`yield from made_once(name, make)`: the folder that `make` has filled, in whichever process came first.

    No test may change it, which every process looks after at its end.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # each has a folder of its own in that of them all
        root = root.parent

    def made(name: str, make: Callable[[Path], None]) -> Iterator[Path]:
        folder, done = root / name, root / f"{name}.json"
        with FileLock(root / f"{name}.lock"):
            if not done.is_file():
                shutil.rmtree(folder, ignore_errors=True)  # of a process that failed at it
                folder.mkdir()
                make(folder)
                done.write_text(json.dumps(listing(folder)))
        before = json.loads(done.read_text())
        yield folder
        now = listing(folder)
        changed = {path for path in now.keys() | before.keys() if now.get(path) != before.get(path)}
        assert not changed, f"a test changed {', '.join(sorted(changed))} of {name}, which all read: copy it"

    return made


@pytest.fixture(scope="session")
def tiny(cache, made_once) -> Iterator[Path]:
    """The folder of the runs `digits` and `flow`, which no test may change."""

    def train(root: Path) -> None:
        train_digits(root)
        train_flow_run(root)

    yield from made_once("tiny", train)


@pytest.fixture
def copied(tiny, tmp_path) -> Path:
    """A copy of `tiny` of the test's own."""
    return Path(shutil.copytree(tiny, tmp_path / "runs"))


@pytest.fixture
def short(monkeypatch) -> None:
    """Short estimates, where it does not matter how good they are (`short.py`)."""
    shorten(monkeypatch)


# The command, and other processes -------------------------------------------------------------------------------------


@pytest.fixture(scope="session", autouse=True)
def built() -> Iterator[None]:
    """The command is put together once, as in any process, and not anew for every call in this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.main, "get_command", lru_cache(typer.main.get_command))
        yield


@pytest.fixture
def hebm(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Run the command in this process; (exit status, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        from hebmtool.cli.main import main

        monkeypatch.setattr(sys, "argv", ["hebm", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capsys.readouterr()
        return stopped.value.code, out, err

    return run


@pytest.fixture
def heard() -> Iterator[None]:
    """Signals do what they do in a person's shell, here and in children, whoever started the tests: what a shell's `&`
    or nohup has told to ignore SIGINT or SIGHUP would pass it on."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def child(heard) -> Iterator[Callable[..., Child]]:
    """Start a process: `child(program, *arguments, **options)`."""
    started = []

    def start(*command: object, **options) -> Child:
        started.append(Child(*command, **options))
        return started[-1]

    yield start
    for process in started:
        process.stop()


@pytest.fixture
def spawn(child) -> Callable[..., Child]:
    """Start the command in a process of its own: `spawn("train-vae", "digits", **options)`."""
    return lambda *arguments, **options: child(sys.executable, "-m", "hebmtool", *arguments, **options)


# Images ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def imgs(tmp_path):
    """Three images in nested folders, a damaged one, an .npz and an .npy; none of the run's size but one."""
    folder = tmp_path / "imgs"
    (folder / "deep" / "er").mkdir(parents=True)
    Image.fromarray(grey(1)[0, 0].numpy()).save(folder / "a.png")
    colour = grey(1, (3, 20, 31))[0].permute(1, 2, 0).contiguous().numpy()
    Image.fromarray(colour).save(folder / "deep" / "b.jpg")
    Image.fromarray(grey(1, (1, 5, 9))[0, 0].numpy()).save(folder / "deep" / "er" / "c.png")
    (folder / "bad.png").write_bytes(b"no image")
    np.savez(tmp_path / "set.npz", images=grey(2, (3, 16, 16)).permute(0, 2, 3, 1).numpy())
    np.save(tmp_path / "set.npy", grey(3)[:, 0].numpy())
    return folder


# Generators, and what to compare with ---------------------------------------------------------------------------------


@pytest.fixture
def make_generator() -> Callable[..., Tower]:
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
