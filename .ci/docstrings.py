"""Lets docstrings of the package be read as Markdown.

What is shown at a prompt (>>>) becomes a block of code; lines `name: what it is` below a heading of its own,
which no parser of docstrings knows, become a list.
"""

import re
from itertools import groupby

import griffe

SECTIONS = ("Arguments", "Raises", "Returns", "Yields", "Examples")


def prompts(text: str) -> str:
    """The text, with every paragraph that opens with a prompt in a fence."""
    made = []
    for blank, lines in groupby(text.splitlines(), lambda line: not line.strip()):
        lines = list(lines)
        if not blank and lines[0].lstrip().startswith(">>>"):
            indent = lines[0][: len(lines[0]) - len(lines[0].lstrip())]
            lines = [f"{indent}```pycon", *lines, f"{indent}```"]
        made += lines
    return "\n".join(made)


def lists(text: str) -> str:
    """The text, with what stands below such headings as items of a list."""

    def items(found: re.Match) -> str:
        if found[1] in SECTIONS:
            return found[0]
        lines = re.sub(r"^    (\w[\w, ]*): ", r"* **\1**: ", found[2], flags=re.MULTILINE)
        return f"{found[1]}:\n\n{lines}"

    return re.sub(r"^([A-Z][^\n:]*):\n((?:    +[^\n]+\n?)+)", items, text, flags=re.MULTILINE)


class Readable(griffe.Extension):
    """Applied to every docstring as it is read."""

    def on_instance(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring is not None:
            obj.docstring.value = lists(prompts(obj.docstring.value))
