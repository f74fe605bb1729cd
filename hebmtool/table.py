"""Tables: cells that may be the best of their row and may need a note, drawn for whoever reads them.

    plain      aligned columns, for a pipe; the best is starred
    ruled      the same with rules, for a terminal
    markdown   to paste; the best is bold

and `hebmtool.report` lays the same cells out on a page.  Notes are told in words, after the rows and columns they are
about (`notes`), or by numbers beside what they are about (`number_notes`).
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

ARROWS = {"lower": "↓", "higher": "↑"}


@dataclass
class Cell:
    """text: as it stands.  note: what a reader needs to trust it.  best: of its row.  better: of a row's heading, which
    way the row is better, "lower" or "higher".  number: of its note, where notes were numbered."""

    text: str = ""
    note: str = ""
    best: bool = False
    better: str | None = None
    number: int | None = None

    def drawn(self, best: str = "{} *") -> str:
        """On one line, the best in the form `best`."""
        text = best.format(self.text) if self.best else self.text
        number = None if self.number is None else f"[{self.number}]"
        return " ".join(filter(None, [text, ARROWS.get(self.better), number]))


@dataclass
class Table:
    """Plain texts may stand for cells.

    head: over the columns; empty where they need none.  rows: the first cell of each is its heading.
    align: "<" or ">" for each column, flush left or right; left where it says nothing.
    caption, notes: what a page says above and below; notes are numbered where cells have numbers.
    """

    head: list[Cell | str]
    rows: list[list[Cell | str]]
    align: str = ""
    caption: str = ""
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        def cells(row: Sequence[Cell | str]) -> list[Cell]:
            return [cell if isinstance(cell, Cell) else Cell(cell) for cell in row]

        self.head, self.rows = cells(self.head), [cells(row) for row in self.rows]

    @property
    def lines(self) -> list[list[Cell]]:
        """The head, where there is one, and the rows."""
        return [self.head] * bool(self.head) + self.rows

    @property
    def columns(self) -> list[tuple[str, tuple[Cell, ...]]]:
        """How each column is aligned, and its cells."""
        columns = list(zip(*self.lines, strict=True))
        return list(zip(self.align.ljust(len(columns), "<"), columns, strict=True))

    @property
    def numbered(self) -> bool:
        return any(cell.number is not None for line in self.lines for cell in line)


# Notes ----------------------------------------------------------------------------------------------------------------


def notes(table: Table) -> list[str]:
    """The cells' notes in words, each once, after the rows it is about, and the columns unless it is all of them."""
    about: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for heading, *cells in table.rows:
        of: dict[str, list[str]] = {}
        for column, cell in zip(table.head[1:], cells, strict=True):
            if cell.text:
                of.setdefault(cell.note, []).append(column.text)
        for text, columns in of.items():
            if text:
                about.setdefault((text, tuple(columns) if len(of) > 1 else ()), []).append(heading.text)
    return [
        f"{', '.join(rows)}{' of ' * bool(columns)}{', '.join(columns)}: {text}"
        for (text, columns), rows in about.items()
    ]


def number_notes(*tables: Table) -> list[str]:
    """The cells' notes, each once, in the order in which the tables come to them; their numbers are put beside what
    they are about: the head of a column whose cells, two or more, share one, else the cell.  A table without a head has
    them at the end of its rows."""
    found: dict[str, int] = {}

    def number(note: str) -> int | None:
        return found.setdefault(note, len(found) + 1) if note else None

    for table in tables:
        columns = [[cell for cell in column if cell.text] for column in zip(*table.rows, strict=True)]
        alike = [len(column) > 1 and len({cell.note for cell in column}) == 1 for column in columns]
        for head, column, same in zip(table.head, columns, alike, strict=bool(table.head)):
            if same:
                head.number = number(column[0].note)
        for row in table.rows:
            if table.head:
                for cell, same in zip(row, alike, strict=True):
                    cell.number = None if same else number(cell.note)
            else:
                row.append(Cell(" ".join(f"[{number(cell.note)}]" for cell in row if cell.note)))
    return list(found)


# Drawing --------------------------------------------------------------------------------------------------------------


def plain(table: Table) -> str:
    """Columns two blanks apart."""
    columns = []
    for align, cells in table.columns:
        texts = [cell.drawn() for cell in cells]
        columns.append([f"{text:{align}{max(map(len, texts))}}" for text in texts])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def ruled(table: Table) -> str:
    """As wide as the terminal allows."""
    from rich.console import Console
    from rich.table import Table as Rich
    from rich.text import Text

    drawn = Rich(show_header=bool(table.head))
    for align, (first, *_) in table.columns:
        drawn.add_column(Text(first.drawn()), justify={"<": "left", ">": "right"}[align], overflow="fold")
    for row in table.rows:
        drawn.add_row(*(Text(cell.drawn(), style="bold" if cell.best else "") for cell in row))
    console = Console(highlight=False)
    with console.capture() as captured:
        console.print(drawn)
    return captured.get().rstrip("\n")


def for_stdout(table: Table) -> str:
    """`ruled` where stdout is a terminal, `plain` where it is not."""
    return ruled(table) if sys.stdout.isatty() else plain(table)


def markdown(table: Table, lines: Sequence[str] = ()) -> str:
    """A table of numbers to paste, then its notes and these lines as a list."""

    def row(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    _, *columns = table.head
    head = [row([cell.drawn() for cell in table.head]), row(["---", *["---:"] * len(columns)])]
    body = [row([cell.drawn("**{}**") for cell in cells]) for cells in table.rows]
    return "\n".join([*head, *body, "", *(f"- {line}" for line in [*notes(table), *lines])])


def show(table: Table, lines: Sequence[str] = ()) -> None:
    """Print the table, its notes and these lines on stdout."""
    print(for_stdout(table) + "\n" * (not sys.stdout.isatty()))
    for line in [*notes(table), *lines]:
        print(line)
