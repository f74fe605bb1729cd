"""Every command that README.md, the tutorial, the pages of uses and the help of a command show, run as it stands there,
with nothing replaced in it.

Only the world around it is small.  A command runs in a folder of its own where the names it uses mean something:

    mnist, digits, mnist-flow, recipes/mnist.yaml       recipes of a few updates on mnist.npz, as files
    cats.yaml                                           another, as a file
    mnist.npz                                           some of the embedded digits
    runs/mnist                                          six layers, both EBMs, four labels, kept figures; the newest run
    runs/published, runs/church                         copies of it
    runs/mnist-flow                                     a flow run
    imgs/, cats/, four/, a.png, dogs.npz, ...           images of the run's size; a mask, feature networks, a checkpoint
    latents.npz                                         of the run mnist

`--run digits` is the run that comes with the package,

and what a training is to make is taken away before it (`make_room`).  What is changed in a command is in `SHORTER`,
what is not run, and why, in `SKIPPED`.  The whole takes minutes: `--slow` runs it.
"""

import re
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from published import make, publish
from shown import ROOT, commands
from sklearn.datasets import load_digits
from tiny import DIGITS, FLOW, train_digits, train_flow_run

from hebmtool import api, picture, recipe
from hebmtool.cli.main import app
from hebmtool.judge import classifier
from hebmtool.metrics import networks

SHORTER = {
    r"(-n|--samples) \d{3,}": r"\1 24",  # images, and draws
    r"^pip install \. && ": "",
}
SKIPPED = {
    "--mode": "judges by Inception, which is not to be had without a network",
    "--fid": "judges by Inception, which is not to be had without a network",
    "pip install": "installs the package, and runs these tests",
    "git clone": "needs a network",
    "cd hebmtool": "stands beside a clone",
    "hebmtool.metrics.networks": "tests/metrics/test_networks.py converts networks that it makes",
    "--rewind": "needs a training that diverged; tests/train/test_advice.py has some",
    "--install-completion": "writes into the shell's own files",
    "somebody/": "needs a hub; tests/cli/test_sharing.py has one on this machine",
}
FEW = 1  # examples of a command that always run
# Takes minutes, or many seconds, however small the world; tests/cli/test_plan.py and tests/report have less to do.
LONG = ("diagnose", "plan", "report")
MNIST = [
    *DIGITS,
    *("name=mnist", "generator.layers_per_scale=3", "generator.latent_channels=1", "generator.encoder_channels=4"),
    *("generator.decoder_channels=4", "evaluate.samples=16"),
]
DATA = ["data.source=array", "data.path=mnist.npz", "data.size=8", "data.test_fraction=0.25"]
LABELS = [
    "prior.labels=[class, odd, Smiling, Male]",
    "data.attributes={odd: ['1', '3', '5', '7', '9'], Smiling: ['0', '3'], Male: ['1', '7']}",
]


# What is shown --------------------------------------------------------------------------------------------------------


def in_readme() -> list[str]:
    return commands(ROOT / "README.md")


def in_docs() -> list[str]:
    """Those of the pages that teach; what other pages show was run once, and is only read (`test_docs.py`)."""
    pages = [ROOT / f"docs/{name}.md" for name in ("install", "tutorial")]
    return [line for page in [*pages, *sorted((ROOT / "docs/use").glob("*.md"))] for line in commands(page)]


def in_help() -> list[str]:
    """The examples of every command, and of every command of a group."""
    found, commands = [], [typer.main.get_command(app)]
    while commands:
        command = commands.pop()
        commands += getattr(command, "commands", {}).values()
        found += [line[4:] for line in (command.help or "").splitlines() if line.startswith("    ")]
    return found


def shown() -> list:
    """All of them once, shortened; of each command the first few, and with --slow all."""
    parameters, run = [], Counter()
    for line in dict.fromkeys(in_readme() + in_docs() + in_help()):
        command = line
        for long, short in SHORTER.items():
            command = re.sub(long, short, command)
        name = (re.search(r"hebm (\S+)", command) or [command, command])[1]
        reason = next((why for word, why in SKIPPED.items() if word in command), None)
        run[name] += reason is None
        slow = run[name] > FEW or name in LONG
        marks = [pytest.mark.skip(reason=reason)] if reason else [pytest.mark.slow] * slow
        parameters.append(pytest.param(command, id=line, marks=marks))
    return parameters


def test_there_are_examples_of_every_command():
    text = "\n".join(in_readme())
    for name in typer.main.get_command(app).commands:
        assert f"hebm {name}" in text or name == "recipes", f"README does not show hebm {name}"
        assert any(f"hebm {name}" in line for line in in_help()), f"the help of hebm {name} has no example"


# The world they run in ------------------------------------------------------------------------------------------------


def write_recipes(root: Path) -> None:
    (root / "recipes").mkdir()
    for name, base, overrides in (
        ("mnist", "digits", MNIST),
        ("digits", "digits", [*MNIST, "name=digits"]),
        ("mnist-flow", "digits-flow", [*FLOW, "name=mnist-flow"]),
    ):
        (root / name).write_text(recipe.dump(recipe.load(base, [*overrides, *DATA])))
    for copy in ("recipes/mnist.yaml", "cats.yaml"):
        shutil.copy(root / "mnist", root / copy)


def write_images(root: Path) -> None:
    draws = np.random.default_rng(0)
    for folder in ("imgs", "cats", "four"):
        (root / folder).mkdir()
        for i in range(30 if folder == "cats" else 5):
            Image.fromarray(draws.integers(0, 256, (8, 8), dtype=np.uint8)).save(root / folder / f"{i}.png")
    said = {"Software": "hebmtool", "run": "mnist", "seed": "0", "index": "0"}
    for name in ("a", "mine", "another", "face"):
        (root / f"{name}.png").write_bytes(picture.saying((root / "imgs" / "0.png").read_bytes(), said))
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[3:5] = 255
    Image.fromarray(mask).save(root / "scratch.png")
    np.savez(root / "dogs.npz", images=draws.integers(0, 256, (20, 8, 8), dtype=np.uint8))
    digits = load_digits()
    np.savez(root / "mnist.npz", images=(15 * digits.images[:80]).astype(np.uint8), y=digits.target[:80])


@pytest.fixture(scope="module")
def world(cache, made_once) -> Iterator[Path]:
    yield from made_once("world", make_world)


def make_world(root: Path) -> None:
    write_recipes(root)
    write_images(root)
    for name in ("features", "mnist_features"):
        networks.save(networks.Residual(1, 2), root / f"{name}.safetensors")
    torch.save(publish(*make()), root / "checkpoint.pt")
    runs = root / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        train_flow_run(runs, "name=mnist-flow", *DATA)
        train_digits(runs, *MNIST, *DATA, *LABELS)
        for name in ("mnist", "mnist-flow"):
            api.evaluate(name)
        patch.setattr(classifier, "UPDATES", 5)  # of judges, which are kept in the run
        api.load("mnist").controllable(3, ["odd=1", "Smiling=1", "Male=1"], n=2)
        api.load("mnist").encode(n=4).save(root / "latents.npz")
    for name in ("published", "church"):
        shutil.copytree(runs / "mnist", runs / name)


@pytest.fixture
def here(world, tmp_path, monkeypatch) -> Path:
    """A copy of the world, which is where we are."""
    shutil.copytree(world, tmp_path / "world")
    monkeypatch.chdir(tmp_path / "world")
    return tmp_path / "world"


def make_room(words: list[str]) -> None:
    """Take away what a command is to make."""
    command, *arguments = words
    if command == "recipes" and "new" in arguments:
        Path(f"{arguments[1]}.yaml").unlink()
    out = Path(arguments[arguments.index("--out") + 1]) if "--out" in arguments else None
    if out is not None and out.is_dir():
        shutil.rmtree(out)
    elif out is not None:
        out.unlink(missing_ok=True)
    if command not in ("train-vae", "train-prior") or {"--resume", "--run"} & {*arguments}:
        return
    overrides = [arguments[i + 1] for i, word in enumerate(arguments) if word == "--set"]
    settings = recipe.load(arguments[0], overrides)
    run = Path("runs") / settings.name
    if command == "train-vae" or settings.one_stage:
        shutil.rmtree(run, ignore_errors=True)
    else:
        if not run.is_dir():
            shutil.copytree("runs/mnist", run)
        for file in [*run.glob("label-*"), *([] if "--finetune" in arguments else run.glob("prior-*"))]:
            file.unlink()


@pytest.mark.parametrize("command", shown())
def test_examples_run(hebm, child, here, command):
    words = shlex.split(command)
    if words[0] == "hebm" and not re.search(r"[|>*&]", re.sub(r"'[^']*'", "", command)):
        make_room(words[1:])
        status, out, err = hebm(*words[1:])
    else:
        # `display` shows a picture where there is a screen.
        shell = f"hebm() {{ '{sys.executable}' -m hebmtool \"$@\"; }}; display() {{ cat > shown.png; }}"
        status, out, err = child("bash", "-c", f"set -eo pipefail; {shell}; {command}", cwd=here).finish()
    assert status == 0, err
    assert "Traceback" not in err
