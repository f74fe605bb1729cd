"""What a person sees while something runs: notes and progress bars, on stderr, bars only on a terminal.

All of it is best effort: a stderr that is full, closed, or a pipe whose reader has gone stops no work.
"""

import os
import re
import sys
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


def note(text: str, everywhere: bool = False) -> None:
    """One line on stderr, as written; of several processes the first's alone, or every one's with `everywhere`."""
    if everywhere or ranks.is_first():
        stderr.print(printable(text), markup=False, emoji=False, soft_wrap=True)


def printable(text: str, kept: str = "") -> str:
    """Text in which nothing steers a terminal: control characters but those `kept`, and those that turn the direction
    of writing, are escapes.  Colours stay."""
    return _STEERING.sub(lambda found: found[0] if found[0] in kept else ascii(found[0])[1:-1], text)


# Control characters, of which ESC also begins colours; and the marks of Unicode's bidirectional algorithm.
_STEERING = re.compile(r"\x1b(?!\[[0-9;]*m)|[\x00-\x1a\x1c-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class Bar:
    """A progress bar that is not there when stderr is no terminal."""

    def __init__(self, progress: "Progress", task: int):
        self._progress, self._task = progress, task

    def advance(self, by: int = 1, text: str | None = None) -> None:
        self._progress.advance(self._task, by)
        if text is not None:
            self._progress.update(self._task, text=text)


_shown: list["Progress"] = []


@contextmanager
def progress(title: str, total: int, done: int = 0) -> Iterator[Bar]:
    """A bar over `total` things, `done` of them done already; gone when the block ends.  Within another's block it
    stands below that one."""
    if _shown:
        task = _shown[0].add_task(title, total=total, completed=done, text="")
        try:
            yield Bar(_shown[0], task)
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
    with bar.Progress(
        *columns, console=stderr, transient=True, disable=not (stderr.is_terminal and ranks.is_first())
    ) as bars:
        task = bars.add_task(title, total=total, completed=done, text="")
        _shown.append(bars)
        try:
            yield Bar(bars, task)
        finally:
            _shown.pop()
