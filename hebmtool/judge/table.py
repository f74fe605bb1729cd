"""Figures as a table: a row per figure, a column per what was judged; for a terminal, for a pipe, for Markdown."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hebmtool.metrics.figures import Figure, by_judged

__all__ = ["Table", "by_judged", "markdown", "notes", "number", "plain", "show", "table"]

ARROWS = {"lower": " ↓", "higher": " ↑", None: ""}
NOTHING = "–"  # a value that is undefined; a figure that was not measured leaves its cell empty


@dataclass
class Table:
    """rows: a label, then per column the figure or None.  best: cells (row, column) to be marked."""

    columns: list[str]
    rows: list[tuple[str, list[Figure | None]]]
    best: set[tuple[int, int]]


def table(columns: Mapping[str, Sequence[Figure]], mark: Sequence[str] = ()) -> Table:
    """Figures side by side, rows in the order the columns have them; the best of the columns in `mark` is marked where
    a figure says which way is better."""
    labels, seen = [], {}
    for figures in columns.values():
        place = 0
        for figure in figures:
            key = (figure.name, figure.layer)
            if key not in seen:
                seen[key] = figure
                labels.insert(place, key)
            place = labels.index(key) + 1
    rows, best = [], set()
    for row, (name, layer) in enumerate(labels):
        first = seen[name, layer]
        cells = [next((f for f in figures if (f.name, f.layer) == (name, layer)), None) for figures in columns.values()]
        rows.append((name + (f", layer {layer}" if layer is not None else "") + ARROWS[first.better], cells))
        values = {
            column: cell.value
            for column, (title, cell) in enumerate(zip(columns, cells, strict=True))
            if title in mark and cell is not None and cell.value is not None
        }
        if first.better is not None and len(set(values.values())) > 1:
            goal = (min if first.better == "lower" else max)(values.values())
            best |= {(row, column) for column, value in values.items() if value == goal}
    return Table(list(columns), rows, best)


def number(figure: Figure | None) -> str:
    """The value to two digits of its uncertainty, or to four digits."""
    if figure is None:
        return ""
    if figure.value is None:
        return NOTHING
    if not figure.error:
        return f"{figure.value:.4g}" + (" ± 0" if figure.error == 0 else "")
    places = max(0, 1 - math.floor(math.log10(figure.error)))
    if places > 6:
        return f"{figure.value:.3g} ± {figure.error:.1e}"
    return f"{figure.value:.{places}f} ± {figure.error:.{places}f}"


def notes(found: Table) -> list[str]:
    """The figures' notes, each once, after the rows it is about, and the columns unless it is all of them."""
    about: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for label, cells in found.rows:
        of: dict[str, list[str]] = {}
        for column, cell in zip(found.columns, cells, strict=True):
            if cell is not None:
                of.setdefault(cell.note, []).append(column)
        for text, columns in of.items():
            if text:
                about.setdefault((text, tuple(columns) if len(of) > 1 else ()), []).append(label.rstrip(" ↓↑"))
    return [
        f"{', '.join(labels)}{' of ' * bool(columns)}{', '.join(columns)}: {text}"
        for (text, columns), labels in about.items()
    ]


def _cells(found: Table, star: str) -> list[list[str]]:
    return [
        [label, *(star.format(number(cell)) if (i, j) in found.best else number(cell) for j, cell in enumerate(cells))]
        for i, (label, cells) in enumerate(found.rows)
    ]


def plain(found: Table) -> str:
    """Aligned columns; the best cell is starred."""
    lines = [["", *found.columns], *_cells(found, "{} *")]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def markdown(found: Table, lines: Sequence[str] = ()) -> str:
    """A table to paste, the best cell bold, then its notes and these lines as a list."""

    def row(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    head = [row(["", *found.columns]), row(["---", *["---:"] * len(found.columns)])]
    body = [row(cells) for cells in _cells(found, "**{}**")]
    return "\n".join([*head, *body, "", *(f"- {line}" for line in [*notes(found), *lines])])


def show(found: Table, lines: Sequence[str] = ()) -> None:
    """Print the table, its notes and these lines on stdout: rich on a terminal, plain otherwise."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table as Rich
        from rich.text import Text

        drawn = Rich("", *found.columns)
        for cells in _cells(found, "{} *"):
            drawn.add_row(*(Text(cell, style="bold" if cell.endswith("*") else "") for cell in cells))
        Console(highlight=False).print(drawn)
    else:
        print(plain(found) + "\n")
    for line in [*notes(found), *lines]:
        print(line)
