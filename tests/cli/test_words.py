"""What the command says: advice that can be followed, near misses that are near, and no one else's words."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from children import ONE_THREAD
from said import one_sentence

import hebmtool
from hebmtool import data
from hebmtool.cli.failures import explain
from hebmtool.cli.main import app
from hebmtool.errors import HebmError, did_you_mean

COMMANDS = typer.main.get_command(app).commands
PACKAGE = Path(hebmtool.__file__).parent
OPTION = r"(?<![\w-])--?[a-z][a-z-]*"
EVERYWHERE = {"--help", "--debug", "--quiet", "--version"}


def options(name: str) -> set[str]:
    command = COMMANDS[name]
    subcommands = getattr(command, "commands", {}).values()
    return EVERYWHERE | {
        option for each in (command, *subcommands) for p in each.params for option in p.opts + p.secondary_opts
    }


def functions() -> dict[str, ast.FunctionDef]:
    """Every function of the command line, by its name."""
    trees = [ast.parse(path.read_text()) for path in sorted((PACKAGE / "cli").glob("*.py"))]
    return {node.name: node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def raised(function: ast.FunctionDef) -> list[str]:
    """The sentences that are raised or noted in a function, variables left out."""
    found = []
    for node in ast.walk(function):
        if isinstance(node, ast.Raise) or (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "note"):
            texts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
            found.append("".join(text for text in texts if isinstance(text, str)))
    return found


def reached(name: str, known: dict[str, ast.FunctionDef]) -> set[str]:
    """The functions of the command line that this one calls, and those that they call."""
    seen, left = set(), [name]
    while left:
        here = left.pop()
        # A command is called by nobody: what is, is a method of that name, such as a text's `encode`.
        if here in seen or here not in known or (seen and here.replace("_", "-") in COMMANDS):
            continue
        seen.add(here)
        calls = [node.func for node in ast.walk(known[here]) if isinstance(node, ast.Call)]
        left += [getattr(call, "id", getattr(call, "attr", "")) for call in calls]
    return seen


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "recipes"])
def test_a_sentence_names_only_options_that_its_command_has(name):
    known = functions()
    said = [
        text
        for each in reached(name.replace("-", "_"), known) - {"explain", "_short_of_memory"}
        for text in raised(known[each])
    ]
    assert name != "sample" or any("--fast" in text for text in said), "sentences are looked at"
    for text in said:
        elsewhere = re.sub(r"`hebm [^`]*`", "", text)
        assert not set(re.findall(OPTION, elsewhere)) - options(name), f"{text!r} names what {name} lacks"


def sources() -> list[str]:
    """Every text in the package."""
    trees = [ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")]
    return [
        n.value for tree in trees for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)
    ]


def test_commands_that_are_named_exist_with_their_options():
    named = [words for text in sources() for words in re.findall(r"`hebm ([a-z][^`]*)", text)]
    assert len(named) > 20
    for words in named:
        command = words.split()[0]
        assert command in COMMANDS, words
        assert not set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", words)) - options(command), words


@pytest.mark.parametrize("name", COMMANDS)
def test_out_of_memory_is_told_what_takes_less_here(name, capsys):
    error = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 12345 bytes. Error code 12")
    assert explain(error, False, options(name)) == 1
    said = one_sentence(capsys.readouterr().err)
    assert "out of memory" in said and "12345 bytes" in said
    assert not set(re.findall(r"--[a-z][a-z-]*", said)) - options(name)


def test_out_of_memory_says_which_size(hebm, monkeypatch):
    monkeypatch.setattr("hebmtool.cli.draw.options.load", lambda *args, **kwargs: (_ for _ in ()).throw(MemoryError()))
    status, _, err = hebm("sample")
    assert status == 1 and "lower --batch-size" in one_sentence(err)


@pytest.mark.parametrize(
    ("word", "allowed", "meant"),
    [
        ("nope", ["recovery", "nce", "cnce", "score-matching", "telescope"], None),
        ("hot", ["h", "eta", "theta"], None),
        ("None", ["name", "seed"], None),
        ("none", ["recovery", "nce"], None),
        ("x", ["h"], None),
        ("underdamp", ["langevin", "underdamped"], "underdamped"),
        ("levls", ["levels", "labels"], "levels"),
        ("lefft", ["left", "right"], "left"),
    ],
)
def test_what_is_suggested_is_near(word, allowed, meant):
    assert did_you_mean(word, allowed) == (f"; did you mean '{meant}'?" if meant else "")


def test_batch_size_is_advised_within_its_bounds():
    with pytest.raises(HebmError, match="at least 2 images.*only 1.*give more images"):
        data.batch_indices(1, 8, 0, 0, least=2)
    with pytest.raises(HebmError, match="batch_size to at most 1,"):
        data.batch_indices(1, 8, 0, 0)
    assert data.batch_indices(2, 2, 0, 0, least=2).tolist() in ([0, 1], [1, 0])


def test_libraries_keep_their_warnings_to_themselves(tmp_path):
    program = (
        "import sys, warnings; from hebmtool.cli import main, train\n"
        "def warn(name): warnings.simplefilter('always'); warnings.warn('leaked', stacklevel=1); return ''\n"
        "import hebmtool.recipe; hebmtool.recipe.text = warn\n"
        "sys.argv = ['hebm', 'recipes', 'show', 'digits', *sys.argv[1:]]; main.main()"
    )
    for more, leaks in (([], False), (["--debug"], True)):
        command = [sys.executable, "-c", program, *more]
        told = subprocess.run(command, capture_output=True, text=True, env=os.environ | ONE_THREAD, timeout=300)
        assert told.returncode == 0 and ("leaked" in told.stderr) is leaks


def test_a_folder_of_pictures_is_written_without_waiting_for_the_disk(tmp_path, monkeypatch):
    from hebmtool.cli.outputs import Sink

    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    Sink(str(tmp_path / "folder")).write([torch.zeros(3, 1, 8, 8, dtype=torch.uint8)])
    assert len(list((tmp_path / "folder").iterdir())) == 3 and not synced
    Sink(str(tmp_path / "grid.png")).write([torch.zeros(3, 1, 8, 8, dtype=torch.uint8)])
    assert len(synced) == 2  # the file, and the folder that names it


@pytest.mark.parametrize(
    "words",
    [["sample", "-n"], ["sample", "--batch-size"], ["sample", "--columns"], ["sample", "--seed"]]
    + [
        ["ood-score", "a.png", "--draws"],
        ["ood-score", "a.png", "--level"],
        ["evaluate", "--samples"],
        ["inpaint", "-n"],
    ],
)
def test_numbers_that_would_take_for_ever_are_refused(hebm, words):
    for number in (2**63, 10**400):
        status, _, err = hebm(*words, number)
        assert status == 2 and words[-1] in (said := one_sentence(err)) and "less than or equal to" in said
