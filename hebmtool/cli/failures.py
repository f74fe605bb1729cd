"""What went wrong, in one line on stderr, and the exit status it means: 1 a failure, 2 a wrong request."""

import os
import re
import select
import sys
import warnings
from collections.abc import Collection
from contextlib import suppress
from functools import partial

import typer

from hebmtool import ranks
from hebmtool.console import say
from hebmtool.errors import HebmError

# Newer typer carries its own copy of click, older ones import it: reach its base exception through typer itself.
ClickException = typer.BadParameter.__mro__[2]


# What takes less memory, by the first of these options that the command has.
SMALLER = {
    "--batch-size": "lower --batch-size",
    "--set": "train with a smaller batch_size, or a smaller model (--set)",
    "--samples": "lower --samples",
    "--number": "lower --number",
}


def hush() -> None:
    """Leave what libraries warn their callers of to those who ask for it (`python -W`, --debug)."""
    if not sys.warnoptions:
        warnings.showwarning = lambda *args, **kwargs: None
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def explain(error: BaseException, debug: bool, options: Collection[str] = ()) -> int:
    """Say it; the exit status.  `options` are those of the command that failed.

    Of several processes each says what only it has met, once they have met each other: before, all meet the same.
    """
    tell = partial(say, everywhere=ranks.joined() and not getattr(error, "everywhere", False))
    if isinstance(error, HebmError):
        tell(f"hebm: {error}")
        return error.exit_code
    if isinstance(error, ClickException):
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "hebm"
        if not error.format_message():  # a bare `hebm`: its help has been printed
            return 2
        tell(f"hebm: {' '.join(error.format_message().split())} (see `{command} --help`)")
        return error.exit_code
    if isinstance(error, BrokenPipeError) and error.filename is None and _unread_stdout():
        _discard_stdout()  # the reader went away, as `head` does
        return 0
    if isinstance(error, KeyboardInterrupt | typer.Abort) or _interrupted(error):
        tell("hebm: interrupted")
        return 130
    if out_of_memory(error):
        tell(f"hebm: {_short_of_memory(error, options)}")
        return 1
    if isinstance(error, OSError):
        if error.filename is None:
            _discard_stdout()
        tell(f"hebm: {error.filename or 'standard output'}: {error.strerror or error}")
        return 1
    if ranks.joined() and _lost(error):
        tell(f"hebm: process {ranks.rank()} has lost another one, which has ended; that one said why")
        return 1
    hint = "" if debug else "; run again with --debug for the traceback, and please report it"
    tell(f"hebm: unexpected {type(error).__name__}: {' '.join(str(error).split())}{hint}")
    return 1


def _interrupted(error: BaseException | None) -> bool:
    """Whether an interrupt led to it: where one comes in the middle of a library, that may raise something else."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def _discard_stdout() -> None:
    """Keep the interpreter from complaining at exit of what could not be written."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _lost(error: BaseException) -> bool:
    """Whether torch says that a connection between processes has ended."""
    said = str(error).lower()
    return isinstance(error, RuntimeError) and ("connection" in said or "gloo" in said or "nccl" in said)


def _unread_stdout() -> bool:
    """Whether standard output is a pipe that nobody reads: other pipes break too, and that is a failure."""
    watched = select.poll()
    try:
        # Rich, which writes help, has by then put the null device in the pipe's place.
        if os.path.samestat(os.fstat(sys.stdout.fileno()), os.stat(os.devnull)):
            return True
        watched.register(sys.stdout.fileno(), 0)
    except (AttributeError, OSError, ValueError):  # there is none, or none of the system's
        return False
    return bool(watched.poll(0))


def out_of_memory(error: BaseException) -> bool:
    """Whether Python or torch, which need not be there, says so."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "DefaultCPUAllocator" in str(error)  # how torch says it on a CPU
    )


def _short_of_memory(error: BaseException, options: Collection[str]) -> str:
    asked = re.search(r"tried to allocate (\d+ bytes|[\d.]+ [KMG]iB)", str(error), re.IGNORECASE)
    size = f" (there was no room for {asked[1]} more)" if asked else ""
    smaller = next((advice for option, advice in SMALLER.items() if option in options), "give it less at a time")
    return f"out of memory{size}; {smaller}, or free memory elsewhere"


class Unread:
    """Names every file that cannot be read, and counts them: the exit status is then 1."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, error: HebmError) -> None:
        self.count += 1
        say(f"hebm: {error}")

    def leave(self) -> None:
        if self.count:
            raise typer.Exit(1)
