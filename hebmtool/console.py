"""What a person sees while something runs: notes and progress bars, on stderr, bars only on a terminal."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from rich.progress import Progress

stderr = Console(stderr=True, highlight=False)


def note(text: str) -> None:
    """One line on stderr, as written."""
    stderr.print(text, markup=False, soft_wrap=True)


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
    with bar.Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as bars:
        task = bars.add_task(title, total=total, completed=done, text="")
        _shown.append(bars)
        try:
            yield Bar(bars, task)
        finally:
            _shown.pop()
