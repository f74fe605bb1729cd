"""What commands say in JSON has the keys that docs/json.md has, and numbers of as many digits."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from pictures import grey

from hebmtool.metrics import inception

DOCS = (Path(__file__).parents[2] / "docs" / "json.md").read_text()


def documented(title: str) -> tuple[set[str], set[str]]:
    """(keys that are always there, all keys) of the section that tells of this command."""
    for section in DOCS.split("\n## ")[1:]:
        head, _, body = section.partition("\n")
        if f"`{title}`" in head:
            rows = [line.split("|")[1] for line in body.splitlines() if line.startswith("| `")]
            found = [(set(re.findall(r"`(\w+)`", row)), "(" in row) for row in rows]
            always = set().union(*(keys for keys, sometimes in found if not sometimes))
            return always, always.union(*(keys for keys, _ in found))
    raise AssertionError(f"docs/json.md does not tell of {title}")


def numbers(value):
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from numbers(each)
    elif isinstance(value, float):
        yield value


@pytest.fixture
def images(tmp_path):
    np.save(tmp_path / "images.npy", grey(2)[:, 0].numpy())
    return tmp_path / "images.npy"


# Each with a run of the folder `copied`, and with what it reads and writes in the folder of the test.
COMMANDS = {
    "hebm sample --json": "sample -n 2 --run digits --out x.png --json",
    "hebm hier-sample --json": "hier-sample --all -n 1 --columns 1 --run digits --out x.png --json",
    "hebm controllable --json": "controllable --class 3 -n 2 --no-report --run digits --out x.png --json",
    "hebm ood-score --json": "ood-score images.npy --layer 0 --run digits --json",
    "hebm ood-score --auroc --json": "ood-score --auroc -n 4 --draws 1 --score energy --scheme inference "
    "--ood images.npy --run digits --out x.png --json",
    "hebm reconstruct --json": "reconstruct images.npy --run digits --out x.png --json",
    "hebm inpaint --json": "inpaint images.npy --draws 1 --steps 1 --run digits --out x.png --json",
    "hebm info --json": "info digits --json",
    "hebm compare --json": "compare digits --json",
    "hebm evaluate --json": "evaluate digits --prior gaussian --json",
    "hebm diagnose --json": "diagnose digits --prior gaussian --samples 20 --only two-sample --json",
    "hebm fid --json": "fid images.npy images.npy --json",
    "hebm flow-match --json": "flow-match flow -n 16 --steps 1 --out x.png --json",
    "hebm runs --json": "runs --json",
    "hebm models --json": "models --json",
    "hebm plan --json": "plan digits --json",
    "hebm recipes keys --json": "recipes keys train_vae.lr --json",
}


@pytest.fixture
def run(hebm, copied, images, tmp_path, monkeypatch, short):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEBM_RUNS", str(copied))
    return hebm


@pytest.mark.parametrize("title", COMMANDS)
def test_the_keys_are_those_of_the_docs(run, title, monkeypatch):
    if "fid" in title:  # where there is no Inception

        def refused(*arguments, **options):
            raise OSError("no route")

        monkeypatch.setattr("cleanfid.features.build_feature_extractor", refused)
        monkeypatch.setattr(inception, "weights", lambda mode: (Path("net.pt"), "https://example.org/net.pt"))
    if "compare" in title:
        assert run(*COMMANDS["hebm evaluate --json"].split())[0] == 0
    status, out, err = run(*COMMANDS[title].split())
    assert status == 0, err
    always, every = documented(title)
    for line in out.splitlines():
        found = json.loads(line)
        assert always <= found.keys() <= every, (always - found.keys(), found.keys() - every)
        assert all(float(f"{value:.8g}") == value for value in numbers(found))


def test_a_flow_run_is_described_by_documented_keys(run):
    always, every = documented("hebm info --json")
    found = json.loads(run("info", "flow", "--json")[1])
    assert always <= found.keys() <= every and {"sigma", "flow"} <= found.keys()


def test_every_command_with_json_is_documented():
    from typer.main import get_command

    from hebmtool.cli.main import app

    commands = get_command(app).commands
    told = {name for name, command in commands.items() if any("--json" in p.opts for p in command.params)}
    missing = [name for name in sorted(told) if f"`hebm {name} --json`" not in DOCS]
    assert not missing, f"docs/json.md does not tell of {', '.join(missing)}"
