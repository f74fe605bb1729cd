"""What a person sees while something runs: notes and progress on stderr, as bars on a terminal and as lines in a log.

All of it is best effort: a stderr that is full, closed, or a pipe whose reader has gone stops no work.  Asked to be
quiet, nothing but errors is said.
"""

import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console

from hebmtool import ranks

if TYPE_CHECKING:
    from rich.progress import Progress


class BestEffort:
    """A stream whose failures nobody hears of: by default stderr, whatever that is at the moment."""

    def __init__(self, stream: TextIO | None = None):
        self._given = stream

    @property
    def _stream(self) -> TextIO | None:
        # While a bar is shown, rich stands in sys.stderr's place, and writes to its own console.
        return self._given or getattr(sys.stderr, "rich_proxied_file", sys.stderr)

    @property
    def rich_proxied_file(self) -> "BestEffort":
        """What rich writes to."""
        return self

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):  # Python's word for a closed file is ValueError
            if self._stream is not None:
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            if self._stream is not None:
                self._stream.flush()

    def isatty(self) -> bool:
        with suppress(OSError, ValueError):
            return self._stream is not None and self._stream.isatty()
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


stderr = Console(file=BestEffort(), highlight=False)


def protect() -> None:
    """For a whole process: whatever library writes to stderr, best effort; and where a standard stream is closed, no
    file that is opened gets its number, to be written into by those who do not know."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number, this one
    if not isinstance(sys.stderr, BestEffort):
        sys.stderr = BestEffort(sys.stderr or open(os.devnull, "w"))  # noqa: SIM115 (open as long as the process)


_quiet = False


def be_quiet(quiet: bool = True) -> None:
    """Say nothing from now on that is no error: neither notes nor progress."""
    global _quiet
    _quiet = quiet


def say(text: str, everywhere: bool = False) -> None:
    """One line on stderr, as written; of several processes the first's alone, or every one's with `everywhere`."""
    if everywhere or ranks.is_first():
        stderr.print(printable(text), markup=False, emoji=False, soft_wrap=True)


def note(text: str) -> None:
    """`say`, unless quiet is asked for."""
    if not _quiet:
        say(text)


def printable(text: str, kept: str = "") -> str:
    """Text in which nothing steers a terminal: control characters but those `kept`, and those that turn the direction
    of writing, are escapes.  Colours stay."""
    return _STEERING.sub(lambda found: found[0] if found[0] in kept else ascii(found[0])[1:-1], text)


# Control characters, of which ESC also begins colours; and the marks of Unicode's bidirectional algorithm.
_STEERING = re.compile(r"\x1b(?!\[[0-9;]*m)|[\x00-\x1a\x1c-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class Bar:
    """How far something is: drawn on a terminal; else a line now and then (`Pace`)."""

    def __init__(self, progress: "Progress", task: int, pace: "Pace | None"):
        self._progress, self._task, self._pace = progress, task, pace

    def advance(self, by: int = 1, text: str | None = None) -> None:
        if self._pace is not None:
            self._pace.advance(by, text)
            return
        self._progress.advance(self._task, by)
        if text is not None:
            self._progress.update(self._task, text=text)


QUIET_SECONDS = 60.0
"""Nothing that ends before is told of in lines, and between two of them passes as much."""

SHARE = 0.01
"""Of the whole, that is done between two lines: a hundred at most."""


class Pace:
    """Lines in a log: what is done, in which time the rest will be, and what was said last.

    >>> pace = Pace("train-vae", 20_000, 0)
    >>> pace.line(300.0, 5_000, "ELBO -71.3")
    'train-vae: 5,000 of 20,000 (25%), 15 min left, ELBO -71.3'
    """

    def __init__(self, title: str, total: int, done: int):
        self.title, self.total, self.begun, self.done, self.text = title, total, done, done, ""
        self.started = self.told_at = time.monotonic()
        self.told = done

    def advance(self, by: int, text: str | None) -> None:
        self.done += by
        self.text = self.text if text is None else text
        now = time.monotonic()
        if now - self.told_at >= QUIET_SECONDS and self.done - self.told >= SHARE * self.total:
            self.told_at, self.told = now, self.done
            note(self.line(now - self.started, self.done - self.begun, self.text))

    def line(self, seconds: float, made: int, text: str) -> str:
        """After so many seconds, in which so much was made."""
        done = self.begun + made
        left = f"{span(seconds * (self.total - done) / made)} left" if made else "just begun"
        said = f"{self.title}: {done:,} of {self.total:,} ({done / max(1, self.total):.0%}), {left}"
        return f"{said}, {text}" if text else said


def span(seconds: float) -> str:
    """A time as one says it: "40 s", "15 min", "3 h 20 min"."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


_shown: list["Progress"] = []


@contextmanager
def progress(title: str, total: int, done: int = 0) -> Iterator[Bar]:
    """How far something of `total` things is, `done` of them done already: a bar that is gone when the block ends and,
    within another's block, stands below that one; without a terminal lines, where it takes its time."""
    drawn = stderr.is_terminal and ranks.is_first() and not _quiet
    pace = None if drawn else Pace(title, total, done)
    if _shown:
        task = _shown[0].add_task(title, total=total, completed=done, text="")
        try:
            yield Bar(_shown[0], task, pace)
        finally:
            _shown[0].remove_task(task)
        return
    from rich import progress as bar  # which help and mistakes do without

    columns = (
        bar.TextColumn("{task.description}"),
        bar.BarColumn(),
        bar.MofNCompleteColumn(),
        bar.TimeElapsedColumn(),
        bar.TimeRemainingColumn(),
        bar.TextColumn("{task.fields[text]}"),
    )
    # Over five minutes, for an update may take one.
    with bar.Progress(*columns, console=stderr, transient=True, disable=not drawn, speed_estimate_period=300) as bars:
        task = bars.add_task(title, total=total, completed=done, text="")
        _shown.append(bars)
        try:
            yield Bar(bars, task, pace)
        finally:
            _shown.pop()
