"""Every command with every kind of wrong input: an exit status and a sentence, no traceback, and nothing unforeseen.

One tiny run is shared; what is damaged are links to its files (`files`), and what is said of each is in `table`.
"""

import re

import pytest
from hostile.files import HEADERS, TENSORS, write_arrays, write_features, write_images, write_masks, write_runs
from hostile.table import entries

from hebmtool.cli.main import COMMANDS

ENTRIES = entries()
OF_A_RUN = (
    *("sample", "ood-score", "reconstruct", "hier-sample", "controllable", "inpaint", "encode", "decode"),
    *("interpolate", "evaluate", "diagnose", "report"),
)
"""Commands that are of the tiny run unless an entry names another."""
DAMAGED = {*(f"header-{name}" for name in HEADERS), *(f"tensors-{name}" for name in TENSORS)}


@pytest.fixture(scope="session")
def world(tiny, tmp_path_factory):
    """A folder of wrong files, with runs below it."""
    root = tmp_path_factory.mktemp("hostile")
    for write in (write_images, write_arrays, write_masks, write_features):
        write(root)
    (root / "runs").mkdir()
    write_runs(root / "runs", tiny)
    (root / "runs" / "digits").symlink_to(tiny / "digits")
    return root


@pytest.fixture
def at_home(world, monkeypatch):
    monkeypatch.chdir(world)
    monkeypatch.setenv("HEBM_RUNS", "runs")


def test_there_are_enough():
    assert len(ENTRIES) >= 300 and len({arguments for arguments, *_ in ENTRIES}) == len(ENTRIES)


def test_no_command_is_left_out():
    commands = {function.__name__.replace("_", "-") for group in COMMANDS.values() for function in group}
    assert commands | {"recipes"} <= {arguments[0] for arguments, *_ in ENTRIES}


@pytest.mark.parametrize(("arguments", "status", "words"), ENTRIES, ids=[str(i) for i in range(len(ENTRIES))])
def test_it_ends_with_a_sentence(hebm, at_home, arguments, status, words):
    if arguments[0] in OF_A_RUN and not {"digits", "--run", *DAMAGED} & {*arguments}:
        arguments += ("digits",) if arguments[0] in ("evaluate", "diagnose", "report") else ("--run", "digits")
    found, out, err = hebm(*arguments)
    assert "Traceback" not in err + out and "hebm: unexpected" not in err, err
    assert found == status or (status < 0 and found in (0, 1, 2)), err
    assert not found or "hebm: " in err
    assert re.search(words, err), err
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f]", err)
