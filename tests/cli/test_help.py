"""What a person asks a command about itself: help at every width, the version, completion; and how soon it answers."""

import re
import subprocess
import sys

import pytest
import typer

from hebmtool.cli.main import COMMANDS as MAIN
from hebmtool.cli.main import app

COMMANDS = typer.main.get_command(app).commands
WIDTHS = (60, 80, 100, 140)


@pytest.fixture
def text(hebm, monkeypatch):
    """The help of a command at a width, without the blanks at the ends of lines."""

    def read(width: int, *command: str) -> list[str]:
        monkeypatch.setenv("COLUMNS", str(width))
        status, out, err = hebm(*command, "--help")
        assert status == 0 and err == ""
        return [line.rstrip() for line in out.splitlines()]

    return read


def paragraphs(name: str) -> list[str]:
    """Those of a command's docstring, without its examples."""
    return [part for part in COMMANDS[name].help.split("\n\n") if not part.startswith("    ")]


def examples(name: str) -> list[str]:
    return [line.strip() for line in COMMANDS[name].help.splitlines() if line.startswith("    ")]


def as_shown(text: str) -> str:
    return " ".join(text.replace("`", "").split())


# Every command at the narrowest, where most lines are cut, and at one width more, in turn: a command's text and a width
# meet in lines that are laid out by the same rule.
@pytest.mark.parametrize(
    ("name", "width"),
    [(name, width) for i, name in enumerate(COMMANDS) for width in (WIDTHS[0], WIDTHS[1 + i % (len(WIDTHS) - 1)])],
)
def test_paragraphs_fill_their_lines_and_examples_keep_theirs(text, name, width):
    lines = text(width, name)
    assert max(map(len, lines)) <= width
    shown = as_shown("\n".join(lines[: next(i for i, line in enumerate(lines) if line.startswith("╭"))]))
    assert all(as_shown(each) in shown for each in paragraphs(name))
    assert examples(name), "a command shows how it is called"
    for example in examples(name):
        if len(example) <= width - 4:
            assert f"  {example}" in lines, f"{example} is no line of its own"
    # No line ends while the next word would still have fitted.
    for line, below in zip(lines, lines[1:], strict=False):
        prose = re.match(r" \S", line) and re.match(r" \S", below) and "Usage" not in line
        if prose:
            blanks = 2 if line.endswith((".", ":")) else 1
            assert len(line) + blanks + len(below.split()[0]) > width - 1, f"{line!r} is cut short"


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_fit_a_terminal(name):
    assert all(len(example) <= 76 for example in examples(name))


def test_the_overview_names_every_command_once(text):
    lines = text(100)
    found = [match.group(1) for line in lines if (match := re.match(r"│ ([a-z][a-z-]*)  ", line))]
    assert sorted(found) == sorted(COMMANDS)
    assert [line.strip("╭─╮ ") for line in lines if line.startswith("╭")] == ["Options", *MAIN]


def test_a_bare_command_shows_help_and_is_a_wrong_request(hebm):
    status, out, err = hebm()
    assert status == 2 and "Usage" in out and err == ""


def test_the_version(hebm):
    from importlib.metadata import version

    for words in (["--version"], ["--version", "sample"]):
        status, out, err = hebm(*words)
        assert (status, out, err) == (0, f"hebmtool {version('hebmtool')}\n", "")


# Completion


@pytest.fixture
def complete(hebm, monkeypatch):
    """What bash would be told after these words."""

    def ask(words: str) -> list[str]:
        for name, value in completing(words).items():
            monkeypatch.setenv(name, value)
        status, out, err = hebm()
        assert status == 0 and err == ""
        return out.split()

    return ask


def completing(words: str) -> dict[str, str]:
    """What bash puts into the environment."""
    return {"_HEBM_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("hebm hier", ["hier-sample"]),
        ("hebm sample --prog", ["--progressive"]),
        ("hebm sample --chain under", ["underdamped"]),
        ("hebm sample --prior diff", ["diffusion-ebm"]),
        ("hebm train-vae dig", ["digits", "digits-flow"]),
        ("hebm diagnose --only two", ["two-sample"]),
    ],
)
def test_words_are_completed(complete, words, expected):
    assert complete(words) == expected


def test_bash_itself_asks_a_process_of_its_own(child):
    status, out, _ = child(sys.executable, "-m", "hebmtool", env=completing("hebm hier")).finish()
    assert (status, out.split()) == (0, ["hier-sample"])


def test_runs_are_completed(complete, tiny):
    assert complete(f"hebm sample --runs {tiny} --run di") == ["digits"]
    assert complete(f"hebm info --runs {tiny} ") == ["digits", "flow"]


def test_the_script_of_completion_is_shown(hebm, monkeypatch):
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    monkeypatch.setattr(typer.main, "get_command", typer.main.get_command.__wrapped__)  # which reads it, anew
    status, out, err = hebm("--show-completion", "bash")
    assert status == 0, err
    assert "_HEBM_COMPLETE=complete_bash" in out


# How soon


def test_help_imports_nothing_slow():
    """It comes within 0.3 s on a quiet machine; what that takes is the same on a busy one."""
    script = (
        "import sys; from hebmtool.cli.main import app; app(['--help'], standalone_mode=False); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=600)
    loaded = {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}
    assert "hebmtool" in loaded
    assert not loaded & {"torch", "torchvision", "numpy", "scipy", "sklearn", "matplotlib", "PIL", "pydantic", "yaml"}
