"""Kill the tool at random moments and see what is lost.  Not part of the suite: it takes minutes.

    python tests/kill_sweep.py                    100 kills: a table for docs/reliability.md on stdout, exit status 1 if
                                                  anything was lost or differs
    python tests/kill_sweep.py --kills 12 --seed 3

Six commands in turn: train-vae, train-prior, the labels of a prior, a flow, sample into a folder, evaluate.  Each is
first run without interruption, which tells how long it takes and what comes of it.  Then it is started again and again
on a copy, killed by SIGKILL at a moment drawn uniformly from the time it takes, and resumed (started again, where there
is nothing to resume), until it ends before its kill; then the next copy.  After every kill all that stands under its
own name must be whole, and no checkpoint may be of fewer updates than before; what comes of it in the end must be that
of the uninterrupted run, files bit by bit.

The processes are forked from one that has imported everything, so that kills meet the work and not the imports.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

import sklearn.datasets  # noqa: F401 (imported once for all)
import torch
from PIL import Image
from tiny import DIGITS, FLOW, options

from hebmtool.cli.main import main as hebm
from hebmtool.run import checkpoint
from hebmtool.run.folder import Run

VAE = options([*DIGITS, "train_vae.iterations=16", "train_vae.save_every=2", "train_vae.sample_every=8"])
SHORT = ["train_prior.iterations=16", "train_prior.save_every=2", "train_prior.sample_every=8"]
PRIOR = options([*DIGITS, *SHORT, "train_prior.label_iterations=16"])
LABEL = [*PRIOR, *options(["prior.labels=[class]"])]
JOINT = options([*FLOW, *SHORT])
UNTIMED = "seconds"
"""Figures whose name begins so are the clock's."""


@dataclass
class Series:
    """A command that is killed: its words below a folder `root`, and what it makes there."""

    name: str
    words: Callable[[Path], list[str]]
    stands_on: tuple[str, ...] = ()
    made: tuple[str, ...] = ()
    seconds: float = 0.0
    kills: int = 0
    works: int = 0
    wrong: list[str] = field(default_factory=list)


SERIES = [
    Series(
        "train-vae",
        lambda root: ["train-vae", "digits", "--runs", str(root), *VAE],
        made=("generator.safetensors", "generator.train.safetensors"),
    ),
    Series(
        "train-prior",
        lambda root: ["train-prior", "digits", "--runs", str(root), *PRIOR],
        stands_on=("train-vae",),
        made=("prior-diffusion-ebm.safetensors", "prior-diffusion-ebm.train.safetensors"),
    ),
    Series(
        "labels",
        lambda root: ["train-prior", "digits", "--runs", str(root), "--finetune", *LABEL],
        stands_on=("train-vae", "train-prior"),
        made=("label-class.safetensors", "label-class.train.safetensors"),
    ),
    Series(
        "flow",
        lambda root: ["train-prior", "digits-flow", "--runs", str(root), *JOINT],
        made=("prior-flow.safetensors", "prior-flow.train.safetensors"),
    ),
    Series(
        "sample into a folder",
        lambda root: [
            *("sample", "--run", str(root / "digits"), "-n", "64", "--batch-size", "4"),
            *("--out", str(root / "images")),
        ],
        stands_on=("train-vae", "train-prior"),
    ),
    Series(
        "evaluate",
        lambda root: ["evaluate", str(root / "digits"), "--samples", "24"],
        stands_on=("train-vae", "train-prior"),
    ),
]


def start(words: list[str]) -> int:
    """The command in a process of its own; its number."""
    number = os.fork()
    if number:
        return number
    status = 70
    try:
        os.setsid()
        silence = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(silence, stream)
        sys.argv = ["hebm", *words]
        hebm()
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    finally:
        os._exit(status)


def ended(number: int, after: float | None = None) -> int | None:
    """The exit status; None where it was killed, which it is when it runs longer than `after` seconds."""
    deadline = None if after is None else time.monotonic() + after
    while True:
        found, status = os.waitpid(number, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if deadline is not None and time.monotonic() >= deadline:
            os.kill(number, signal.SIGKILL)
            os.waitpid(number, 0)
            return None
        time.sleep(0.001)


def again(series: Series, root: Path) -> list[str]:
    """The words that go on with what there is: a training is resumed once it has saved something."""
    words = series.words(root)
    trained = [path for run in root.iterdir() if run.is_dir() for name in series.made if (path := run / name).is_file()]
    if any(path.name.endswith(".train.safetensors") for path in trained):
        words.append("--resume")
    return words


def looked_at(root: Path, steps: dict[str, int], images: dict[str, bytes]) -> list[str]:
    """What is not whole under its own name after a kill, or of fewer updates than `steps`, which is brought up."""
    wrong = []
    for run in map(Run, (path for path in root.iterdir() if (path / "recipe.yaml").is_file())):
        with attempt(wrong, "recipe.yaml"):
            run.recipe()
        with attempt(wrong, "figures.json"):
            run.figures()
        for path in [*run.checkpoints(), *run.path.glob("*.good")]:
            with attempt(wrong, path.name):
                _, header = checkpoint.load(path)
                name = f"{run.name}/{path.name}"
                if header.step < steps.get(name, 0):
                    wrong.append(f"{name} is of {header.step} updates, and was of {steps[name]}")
                steps[name] = header.step
        if run.metrics_path.is_file():
            *lines, _ = run.metrics_path.read_text().split("\n")[:-1] or [""]
            with attempt(wrong, "metrics.jsonl"):
                all(map(json.loads, lines))
        for path in run.samples_dir.glob("*.png"):
            with attempt(wrong, path.name), Image.open(path) as image:
                image.load()
    for path in (root / "images").glob("[!.]*.png"):
        if images and path.read_bytes() != images[path.name]:
            wrong.append(f"images/{path.name} is not whole")
    return wrong


@contextlib.contextmanager
def attempt(wrong: list[str], what: str):
    try:
        yield
    except Exception as error:
        wrong.append(f"{what}: {error}")


def result(series: Series, root: Path) -> dict[str, object]:
    """What the command came to, to be compared: bytes of files; figures but for the clock's."""
    found: dict[str, object] = {
        f"{run.name}/{name}": (run / name).read_bytes()
        for run in root.iterdir()
        if run.is_dir()
        for name in series.made
        if (run / name).is_file()
    }
    found |= {path.name: path.read_bytes() for path in (root / "images").glob("[!.]*.png")}
    if series.name == "evaluate":
        figures = Run(root / "digits").figures()["evaluate"]["figures"]
        found["figures"] = [each for each in figures if not each["name"].startswith(UNTIMED)]
    return found


def sweep(series: Series, base: Path, scratch: Path, kills: int, moments: random.Random) -> None:
    """Kill the command so many times; what it comes to without a kill is then in `base`."""
    began = time.monotonic()
    if (status := ended(start(series.words(base)))) != 0:
        sys.exit(f"{series.name} exits with {status} when nobody kills it")
    series.seconds = time.monotonic() - began
    whole = result(series, base)
    images = {name: content for name, content in whole.items() if name.endswith(".png")}
    root = None
    while series.kills < kills or root is not None:
        if root is None:
            root, steps = scratch / f"{series.name.split()[0]}-{series.works}", {}
            shutil.copytree(scratch / "before", root)
        last = series.kills >= kills
        status = ended(start(again(series, root)), None if last else moments.uniform(0, series.seconds))
        if status is None:
            series.kills += 1
            series.wrong += looked_at(root, steps, images)
            continue
        if status == 1 and (root / "images").is_dir() and len(result(series, root)) < len(whole):
            shutil.rmtree(root / "images")  # this version does not go on with a folder
            continue
        if status != 0:
            series.wrong.append(f"ended with {status} after {series.kills} kills")
        differing = [key for key, value in whole.items() if result(series, root).get(key) != value]
        series.wrong += [f"{key} differs from an uninterrupted run's" for key in differing]
        series.works += 1
        shutil.rmtree(root)
        root = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    chosen, began = parser.parse_args(), time.monotonic()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        os.environ["HEBM_CACHE"] = str(scratch / "cache")
        base = scratch / "base"
        base.mkdir()
        for i, series in enumerate(SERIES):
            shutil.copytree(base, scratch / "before")
            kills = chosen.kills * (i + 1) // len(SERIES) - chosen.kills * i // len(SERIES)
            sweep(series, base, scratch, kills, random.Random(f"{chosen.seed} {series.name}"))
            shutil.rmtree(scratch / "before")
            print(f"{series.name}: {series.kills} kills, {len(series.wrong)} wrong", file=sys.stderr, flush=True)
    print("| command | seconds without a kill | kills | ended | lost or different |")
    print("|---|---|---|---|---|")
    for each in SERIES:
        cells = (each.name, f"{each.seconds:.1f}", each.kills, each.works, len(each.wrong))
        print(f"| {' | '.join(map(str, cells))} |")
    kills, works = sum(each.kills for each in SERIES), sum(each.works for each in SERIES)
    wrong = [f"{each.name}: {one}" for each in SERIES for one in each.wrong]
    print(f"| all | | {kills} | {works} | {len(wrong)} |")
    print(f"\nSeed {chosen.seed}, {(time.monotonic() - began) / 60:.1f} minutes, torch {torch.__version__}.")
    sys.exit("\n".join(wrong) if wrong else 0)


if __name__ == "__main__":
    main()
