"""Signals and streams: interrupts at any time, closed streams, encodings that lack characters, lists of paths."""

import io
import os
import sys

import pytest

from hebmtool.cli import streams
from hebmtool.cli.failures import explain
from hebmtool.console import printable
from hebmtool.errors import HebmError

# Interrupted in the middle of an import, which makes an ImportError of it, or goes on as if nothing had been.
IMPORTING = """
import signal, sys, types
from hebmtool import __main__
signal.signal(signal.SIGINT, __main__._interrupted)
with open("slow.py", "w") as file:
    file.write("import signal\\ntry:\\n    signal.raise_signal(signal.SIGINT)\\nexcept BaseException:\\n    pass\\n")
sys.path.insert(0, ".")
import slow
print("went on")
"""


def test_an_interrupt_while_imports_run_ends_at_once(child, tmp_path):
    status, out, err = child(sys.executable, "-c", IMPORTING, cwd=tmp_path, env={"PYTHONPATH": os.getcwd()}).finish()
    assert (status, out, err) == (130, "", "hebm: interrupted\n")


def test_what_an_interrupt_was_made_into_is_one(capsys):
    try:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise ImportError("cannot import name") from None
    except ImportError as error:
        assert explain(error, False) == 130
    assert capsys.readouterr().err == "hebm: interrupted\n"


# A closed stdout with torch, whose import takes seconds and would use its number for a file; the others without.
@pytest.mark.parametrize(
    ("closed", "command"), [("0", "recipes show digits"), ("1", "info digits"), ("2", "recipes show digits")]
)
def test_closed_streams(child, tiny, closed, command):
    words = [sys.executable, "-m", "hebmtool", *command.split()]
    script = f'exec "$@" {closed}>&-'
    status, _, err = child("/bin/sh", "-c", script, "sh", *words, env={"HEBM_RUNS": tiny}).finish()
    assert status == (1 if closed == "1" else 0), err
    assert "standard output" in err if closed == "1" else not err


def test_a_closed_standard_input_is_told(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(HebmError, match="standard input, and it is closed"):
        next(streams.paths(False))


@pytest.mark.parametrize(
    ("encoding", "written"), [("ascii", rb"\xe9\u0142"), ("latin-1", b"\xe9\\u0142"), ("cp437", b"\x82\\u0142")]
)
def test_characters_that_an_encoding_lacks(child, tmp_path, encoding, written):
    (tmp_path / "\xe9\u0142.yaml").write_text("seed: 1")
    environment = {"PYTHONIOENCODING": encoding}
    words = ("recipes", "check", "\xe9\u0142.yaml")
    process = child(sys.executable, "-m", "hebmtool", *words, env=environment, text=False, cwd=tmp_path)
    status, out, err = process.finish()
    assert status == 0 and err == b"" and out.split(b"\t")[0] == written + b".yaml", (out, err)


LISTS = [
    (b"a.png\nb.png\n", ["a.png", "b.png"]),
    (b"a.png\r\nb.png\r\n", ["a.png", "b.png"]),
    (b"a.png\n\n  \nb.png", ["a.png", "b.png"]),
    (b"with space .png\n", ["with space .png"]),
    (b"\xff.png\n", ["\udcff.png"]),
    (b"", []),
]


def given(monkeypatch, content):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


@pytest.mark.parametrize(("content", "expected"), LISTS)
def test_lists_of_paths(monkeypatch, tmp_path, content, expected):
    monkeypatch.chdir(tmp_path)
    for size in (1, 3, 2**16):
        monkeypatch.setattr(streams, "BLOCK", size)
        given(monkeypatch, content)
        assert list(streams.paths(False)) == expected
        given(monkeypatch, content.replace(b"\r\n", b"\n").replace(b"\n", b"\0"))
        assert list(streams.paths(True)) == expected


def test_names_may_hold_what_ends_lines(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    given(monkeypatch, b"a\nb\r.png\0c\r\0")
    assert list(streams.paths(True)) == ["a\nb\r.png", "c\r"]
    (tmp_path / "c\r").touch()
    given(monkeypatch, b"c\r\nd\r\n")
    assert list(streams.paths(False)) == ["c\r", "d"]


def test_nul_separated_paths_are_scored(hebm, tiny, imgs, monkeypatch):
    odd = imgs / "a\nb.png"
    (imgs / "a.png").rename(odd)
    given(monkeypatch, os.fsencode(odd) + b"\0")
    status, out, err = hebm(
        "ood-score", "-", "-0", "--run", "digits", "--runs", tiny, "--score", "energy", "--layer", 0
    )
    assert status == 0 and out.endswith(f"\t{odd}\n"), err


def test_nothing_steers_a_terminal():
    assert printable("\x1b]0;t\x07 \x1b[31mred\x1b[0m a\tb\n\u202eabc") == (
        "\\x1b]0;t\\x07 \x1b[31mred\x1b[0m a\\tb\\n\\u202eabc"
    )
    screen = io.StringIO()
    shown = streams.Printable(screen)
    print("\x1b[2Ja\tb", file=shown)
    assert screen.getvalue() == "\\x1b[2Ja\tb\n" and shown.getvalue() == screen.getvalue()


def test_an_interrupt_that_is_ignored_stays_so(child):
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "import sys; sys.argv = ['hebm', '--version']\n"
        "from hebmtool.__main__ import main\n"
        "try: main()\nfinally: print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)"
    )
    assert child(sys.executable, "-c", program).finish()[1].endswith("True\n")
