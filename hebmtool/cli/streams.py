"""Standard input and output as commands use them, whatever they are: closed, of an encoding that lacks characters, or a
terminal, which text from files must not steer."""

import codecs
import json
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from hebmtool.console import printable
from hebmtool.errors import HebmError

BLOCK = 2**16
DIGITS = 8


def prepare() -> None:
    """For a whole process: names of files that are no text go out as they came in, other characters that the encoding
    lacks as escapes; on a terminal nothing but text and colours; and what is written to a closed stream fails."""
    codecs.register_error("hebm", _encoded)
    if sys.stdout is None:
        # A stream that cannot be written to says so when something is.
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_RDONLY), "w")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="hebm")
    if sys.stdout.isatty() and not isinstance(sys.stdout, Printable):
        sys.stdout = Printable(sys.stdout)


def _encoded(error: UnicodeError) -> tuple[str | bytes, int]:
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


class Printable:
    """A terminal to which text is written with control characters as escapes, colours apart."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(printable(text, kept="\n\t"))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def print_json(value: Any, flush: bool = False) -> None:
    """One line of JSON on standard output: numbers to eight significant digits, null for what is not finite."""
    from hebmtool.run.records import plain

    print(json.dumps(plain(value, DIGITS)), flush=flush)


def paths(null: bool) -> Iterator[str]:
    """The paths on standard input, as they come: one a line, whose end may be Windows', or each ended by NUL.

    Raises:
        HebmError: standard input is closed.
    """
    if sys.stdin is None:
        raise HebmError("paths are to come on standard input, and it is closed; give them as arguments")
    for name in _split(b"\0" if null else b"\n"):
        # A name may end in a carriage return, but a list that does not say so was more likely written on Windows.
        if not null and name.endswith(b"\r") and not os.path.lexists(name):
            name = name[:-1]
        if name.strip():
            yield os.fsdecode(name)


def _split(end: bytes) -> Iterator[bytes]:
    left = b""
    source = sys.stdin.buffer
    while block := getattr(source, "read1", source.read)(BLOCK):
        *whole, left = (left + block).split(end)
        yield from whole
    yield left
