"""The plan of the house, as imports: the contracts of pyproject.toml, and what they cannot say."""

import tomllib
from pathlib import Path

import grimp
import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONTRACTS = {contract["id"]: contract for contract in PROJECT["tool"]["importlinter"]["contracts"]}


@pytest.fixture(scope="module")
def graph():
    return grimp.build_graph("hebmtool", include_external_packages=True, exclude_type_checking_imports=True)


def test_contracts_are_kept(monkeypatch, capsys):
    """All at once, for reading what imports what takes longer than holding it against them; broken ones are named."""
    monkeypatch.chdir(ROOT)
    broken = lint_imports("pyproject.toml", no_cache=True, no_logo=True)
    out = capsys.readouterr().out
    assert not broken and f"Contracts: {len(CONTRACTS)} kept, 0 broken" in out, out


def test_the_rooms_are_those_of_the_architecture():
    """docs/architecture.md lists the rooms from the top down, as the contract does."""
    height = {name.strip(): i for i, level in enumerate(CONTRACTS["rooms"]["layers"]) for name in level.split("|")}
    page = (ROOT / "docs/architecture.md").read_text().splitlines()
    cells = [line.split("|")[1] for line in page if line.startswith("| `")]
    named = [name.strip(" `/") for cell in cells for name in cell.split(",")]
    assert {*named, "__main__"} == set(height)
    # Rooms of one level may stand in any order.
    assert [height[name] for name in named] == sorted(height[name] for name in named)


def test_files_of_a_room_import_each_other_and_not_the_room(graph):
    """A room's `__init__` opens it to others; from inside it would be a circle."""
    for module in sorted(graph.modules):
        room = module.rpartition(".")[0]
        if room.count(".") == 1:
            assert not graph.direct_import_exists(importer=module, imported=room), f"{module} imports {room}"
