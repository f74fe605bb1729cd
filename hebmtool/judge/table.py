"""Figures as tables (`hebmtool.table`): a row per figure and a column per what was judged, or a row per layer."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence

from hebmtool.metrics.figures import Figure, by_judged
from hebmtool.table import Cell, Table

NOTHING = "–"  # a value that is undefined; a figure that was not measured leaves its cell empty


def number(figure: Figure) -> str:
    """The value to two digits of its uncertainty, or to four digits."""
    if figure.value is None:
        return NOTHING
    if not figure.error:
        return f"{figure.value:.4g}" + (" ± 0" if figure.error == 0 else "")
    places = max(0, 1 - math.floor(math.log10(figure.error)))
    if places > 6:
        return f"{figure.value:.3g} ± {figure.error:.1e}"
    return f"{figure.value:.{places}f} ± {figure.error:.{places}f}"


def arranged(
    rows: Sequence[Cell],
    columns: Mapping[str, Mapping[str, Figure]],
    show: Callable[[Figure], str] = number,
    candidates: Collection[str] = (),
    corner: str = "",
) -> Table:
    """Each column's figures by the heading of their row, in the order of the rows.  Where a heading says which way is
    better, the best of the candidates, which are columns, is marked."""
    lines = []
    for heading in rows:
        found = {name: figures.get(heading.text) for name, figures in columns.items()}
        values = {found[name].value for name in candidates if found.get(name) is not None} - {None}
        choose = {"lower": min, "higher": max}.get(heading.better)
        goal = choose(values) if choose and len(values) > 1 else None
        cells = [
            Cell() if f is None else Cell(show(f), f.note, goal is not None and name in candidates and f.value == goal)
            for name, f in found.items()
        ]
        lines.append([heading, *cells])
    return Table([corner, *columns], lines)


def beside(columns: Mapping[str, Sequence[Figure]], candidates: Collection[str] = ()) -> Table:
    """Figures of several columns side by side, rows in the order the columns have them."""

    def name(figure: Figure) -> str:
        return figure.name + (f", layer {figure.layer}" if figure.layer is not None else "")

    rows: list[Cell] = []
    for figures in columns.values():
        place = 0
        for figure in figures:
            names = [row.text for row in rows]
            if name(figure) not in names:
                rows.insert(place, Cell(name(figure), better=figure.better))
                place += 1
            else:
                place = names.index(name(figure)) + 1
    # Reversed, for of figures of one name in one column the first counts.
    found = {column: {name(figure): figure for figure in reversed(figures)} for column, figures in columns.items()}
    return arranged(rows, found, candidates=candidates)


def diagnosed(figures: Sequence[Figure]) -> list[Table]:
    """Figures of whole models a line each; then, of each model, those of layers, a row per layer, top first."""

    def decimals(figure: Figure) -> str:
        if figure.value is None:
            return "undefined"
        return f"{figure.value:.3f}" if figure.error is None else f"{figure.value:.3f} ± {figure.error:.3f}"

    single = [[f.of, f.name, Cell(decimals(f), f.note)] for f in figures if f.layer is None]
    tables = [Table([], single)] if single else []
    for of, its in by_judged([f for f in figures if f.layer is not None]).items():
        columns: dict[str, dict[str, Figure]] = {}
        for figure in its:
            columns.setdefault(figure.name, {})[f"layer {figure.layer}"] = figure
        rows = [Cell(f"layer {layer}") for layer in sorted({f.layer for f in its}, reverse=True)]
        tables.append(arranged(rows, columns, decimals, corner=of))
    return tables
