"""What a person sees while something runs, which never stops what runs."""

import io
import os
import subprocess
import sys

import pytest
from rich.console import Console
from tiny import DIGITS
from tiny import options as tiny_options

from hebmtool import console
from hebmtool.cli import failures

SHORT = tiny_options([*DIGITS, "train_vae.iterations=2", "train_vae.sample_every=1"])


def test_bars_stand_within_bars(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(console, "stderr", Console(file=screen, force_terminal=True, width=100))
    for _ in range(2):
        with console.progress("outer", 2) as outer, console.progress("inner", 3) as inner:
            inner.advance(3)
            outer.advance()
    assert "outer" in screen.getvalue() and "inner" in screen.getvalue()


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when told to."""
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def test_a_log_has_a_line_once_a_minute_with_what_is_left(clock, capsys):
    with console.progress("train-vae", 400, 100) as bar:
        for _ in range(100):
            clock[0] += 1
            bar.advance()
            bar.advance(0, f"loss {clock[0]:.0f}")
    # After 60 of 300 updates, a second each, 240 are left.
    assert capsys.readouterr().err == "train-vae: 160 of 400 (40%), 4 min left, loss 59\n"


def test_what_is_short_says_nothing_and_what_is_long_at_most_a_hundred_lines(clock, capsys):
    with console.progress("short", 60) as bar:
        for _ in range(59):
            clock[0] += 1
            bar.advance()
    assert capsys.readouterr().err == ""
    with console.progress("long", 1000) as bar:
        for _ in range(1000):
            clock[0] += 100
            bar.advance()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 100 and lines[-1] == "long: 1,000 of 1,000 (100%), 0 s left"


def test_quiet_silences_notes_and_progress_and_no_error(clock, capsys, monkeypatch):
    monkeypatch.setattr(console, "_quiet", False)  # set back afterwards
    console.be_quiet()
    console.note("a note")
    with console.progress("long", 2) as bar:
        clock[0] += 1000
        bar.advance()
    console.say("hebm: an error")
    assert capsys.readouterr().err == "hebm: an error\n"


@pytest.mark.parametrize(("seconds", "said"), [(3, "3 s"), (89, "89 s"), (900, "15 min"), (12_000, "3 h 20 min")])
def test_times_are_said_as_one_says_them(seconds, said):
    assert console.span(seconds) == said


def test_every_command_takes_quiet_wherever_it_stands(hebm, tiny, tmp_path):
    for words in (("--quiet", "info", "nope"), ("info", "--quiet", "nope")):
        status, out, err = hebm(*words, "--runs", tiny)
        assert status == 1 and not out and err.startswith("hebm: there is no run 'nope'")
    drawn = ("sample", "-n", 1, "--runs", tiny, "--force", "--out", tmp_path / "a.png")
    assert "the newest run" in hebm(*drawn)[2]
    assert hebm(*drawn, "--quiet") == (0, f"{tmp_path / 'a.png'}\n", "")


class Broken(io.StringIO):
    """A stream that takes nothing."""

    def __init__(self, error: Exception, terminal: bool = False):
        super().__init__()
        self.error, self.isatty = error, lambda: terminal

    def write(self, text: str) -> int:
        raise self.error

    def flush(self) -> None:
        raise self.error


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("error", [BrokenPipeError(32, "gone"), OSError(28, "full"), OSError(5, "hung up")])
def test_a_stderr_that_fails_stops_no_work(monkeypatch, error, terminal):
    monkeypatch.setattr(sys, "stderr", Broken(error, terminal))
    console.note("heard by nobody")
    with console.progress("bar", 2) as bar, console.progress("within", 1):
        bar.advance(text="so far")
        console.note("nor this")


@pytest.mark.parametrize("closed", [True, False])
def test_nor_one_that_is_closed_or_not_there(monkeypatch, closed):
    stream = Broken(ValueError("closed")) if closed else None
    monkeypatch.setattr(sys, "stderr", stream)
    console.note("heard by nobody")
    with console.progress("bar", 1) as bar:
        bar.advance()


def test_what_stderr_takes_is_written(capsys, monkeypatch):
    monkeypatch.setattr(console, "_quiet", False)  # whatever was said to the command last
    console.note("[bold] :smile: as written")
    assert capsys.readouterr() == ("", "[bold] :smile: as written\n")


def test_a_training_goes_on_without_stderr(hebm, monkeypatch, tmp_path):
    stream = Broken(OSError(28, "full"))
    with monkeypatch.context() as patch:
        patch.setattr("hebmtool.console.BestEffort._stream", stream)
        status, out, _ = hebm("train-vae", "digits", "--runs", tmp_path, *SHORT)
    assert status == 0 and out == f"{tmp_path / 'digits'}\n" and (tmp_path / "digits/generator.safetensors").is_file()


# Real processes and real streams


def shell(command: str, tmp_path, *arguments: object) -> subprocess.CompletedProcess:
    """What bash makes of `command`, in which "$@" is the hebm command."""
    words = ["bash", "-c", command, "bash", sys.executable, "-m", "hebmtool", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(words, capture_output=True, text=True, timeout=600, cwd=tmp_path, env=environment)


def test_a_reader_of_notes_that_goes_away_stops_no_training(tmp_path):
    found = shell('"$@" 2>&1 | head -1; exit ${PIPESTATUS[0]}', tmp_path, "train-vae", "digits", *SHORT)
    assert found.returncode == 0 and found.stdout.startswith("step 1: test ELBO")
    assert (tmp_path / "runs/digits/generator.safetensors").is_file()


@pytest.mark.parametrize("where", ["2>/dev/full", "2>&-"])
def test_stderr_full_or_closed_changes_no_exit_status(tmp_path, where):
    good = shell(f'"$@" {where}', tmp_path, "recipes", "show", "digits")
    assert good.returncode == 0 and "digits" in good.stdout and good.stderr == ""
    for arguments, status in ((("info", "nope"), 1), (("recipes", "show", "nope"), 2)):
        bad = shell(f'"$@" {where}', tmp_path, *arguments)
        assert (bad.returncode, bad.stdout, bad.stderr) == (status, "", "")


@pytest.mark.parametrize("read, words", [("head -1", "recipes show digits"), ("true", "recipes"), ("true", "--help")])
def test_a_reader_of_data_that_goes_away_ends_quietly(tmp_path, read, words):
    found = shell(f'"$@" | {read}; exit ${{PIPESTATUS[0]}}', tmp_path, *words.split())
    assert found.returncode == 0 and found.stderr == ""


def test_a_stdout_that_is_full_is_a_failure(tmp_path):
    found = shell('"$@" >/dev/full', tmp_path, "recipes", "show", "digits")
    assert found.returncode == 1 and "No space left" in found.stderr


def test_a_pipe_that_breaks_elsewhere_is_a_failure(capsys):
    assert failures.explain(BrokenPipeError(32, "Broken pipe", "/some/fifo"), False) == 1
    assert "/some/fifo: Broken pipe" in capsys.readouterr().err


def test_no_file_takes_the_number_of_a_stream_that_is_closed(tmp_path):
    program = (
        "from hebmtool.console import note, protect; protect(); import os, warnings\n"
        "file = open('data', 'w'); note('a note'); warnings.warn('a warning'); os.write(2, b'of a library')\n"
        "assert file.fileno() > 2; file.write('data')"
    )
    words = ["bash", "-c", '"$@" 0<&- 1>&- 2>&-', "bash", sys.executable, "-c", program]
    assert subprocess.run(words, cwd=tmp_path, timeout=600).returncode == 0
    assert (tmp_path / "data").read_text() == "data"
