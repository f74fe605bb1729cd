"""Tables: figures in rows and columns, the best, notes by words and by numbers; plain, ruled and Markdown."""

import pytest

from hebmtool import table
from hebmtool.judge import diagnose
from hebmtool.judge.table import beside, number
from hebmtool.metrics.figures import Figure, by_judged
from hebmtool.table import Cell, Table


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (7.38792, 0.3141, "7.39 ± 0.31"),
        (0.677606, 0.0556669, "0.678 ± 0.056"),
        (1234.5, 56.0, "1234 ± 56"),
        (-0.00012345, 0.0000456, "-0.000123 ± 0.000046"),
        (3.25e-9, 1.5e-10, "3.25e-09 ± 1.5e-10"),
        (0.123456, None, "0.1235"),
        (1.0, 0.0, "1 ± 0"),
        (None, None, "–"),
    ],
)
def test_numbers_have_two_digits_of_their_uncertainty(value, error, text):
    assert number(Figure("x", value, error)) == text


# Figures side by side


@pytest.fixture
def columns():
    figures = [
        *(Figure("FD", value, 0.5, of, "lower", note="n = 9") for of, value in (("g", 9.0), ("e", 4.0), ("r", 1.0))),
        Figure("closure", 0.625, None, "e", "higher", note="of three"),
        *(Figure("KID", value, 0.01, of, "lower", note=f"for {of}") for of, value in (("g", 0.3), ("e", 0.5))),
        *(Figure("KL", value, None, of, layer=1) for of, value in (("g", 2.0), ("e", 1.0))),
    ]
    return by_judged(figures)


def test_rows_keep_their_order_and_the_best_is_marked(columns):
    found = beside(columns, ["g", "e"])
    assert [cell.text for cell in found.head] == ["", "g", "e", "r"]
    # The closure is no figure of the first column, and still stands where the second has it.
    assert [row[0].drawn() for row in found.rows] == ["FD ↓", "closure ↑", "KID ↓", "KL, layer 1"]
    # Not the reconstructions; not a figure of one column only; not one of which neither way is better.
    assert [[cell.text for cell in row if cell.best] for row in found.rows] == [
        ["4.00 ± 0.50"],
        [],
        ["0.300 ± 0.010"],
        [],
    ]
    assert not any(cell.best for row in beside(columns).rows for cell in row)


def test_plain_columns_are_aligned(columns):
    head, fd, closure, kid, kl = table.plain(beside(columns, ["g", "e"])).splitlines()
    assert fd.split() == ["FD", "↓", "9.00", "±", "0.50", "4.00", "±", "0.50", "*", "1.00", "±", "0.50"]
    assert head.index("e") == fd.index("4.00") == closure.index("0.625") == kid.index("0.500") == kl.index("1", 14)


def test_notes_are_said_once(columns):
    assert table.notes(beside(columns)) == ["FD: n = 9", "closure: of three", "KID of g: for g", "KID of e: for e"]


def test_markdown_is_a_table(columns):
    columns["a|b"] = columns.pop("g")
    lines = table.markdown(beside(columns, ["e", "a|b"]), ["seed 0"]).splitlines()
    assert lines[0] == "|  | e | r | a\\|b |" and lines[1] == "| --- | ---: | ---: | ---: |"
    assert lines[2] == "| FD ↓ | **4.00 ± 0.50** | 1.00 ± 0.50 | 9.00 ± 0.50 |"
    assert lines[6] == "" and lines[7] == "- FD: n = 9" and lines[-1] == "- seed 0"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_gets_a_ruled_table(columns, monkeypatch, capsys, terminal):
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    monkeypatch.setenv("COLUMNS", "100")
    columns["[g]"] = columns.pop("g")
    table.show(beside(columns, ["[g]", "e"]), ["seed 0"])
    out = capsys.readouterr().out
    assert ("┃" in out) == terminal and "[g]" in out and "4.00 ± 0.50 *" in out
    assert out.endswith("KID of [g]: for g\nseed 0\n")


def test_a_narrow_terminal_cuts_nothing(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    columns["a long name of a run/diffusion-ebm"] = columns.pop("e")
    assert "…" not in table.ruled(beside(columns))


def test_columns_are_flush_as_asked():
    found = Table(["", "n"], [["a", "1"], ["bb", "10"]], align="<>")
    assert table.plain(found) == "     n\na    1\nbb  10"


# Notes by number


def numbers(*tables: Table) -> list[list[int]]:
    return [[cell.number for cell in line if cell.number] for each in tables for line in each.lines]


def test_a_note_of_a_whole_column_stands_in_its_head_others_at_their_cells():
    found = Table(
        ["", "alike", "unlike", "some", "none"],
        [
            ["layer 2", Cell("1", "of all"), Cell("2", "of two"), Cell("3", "of two"), "4"],
            ["layer 1", Cell("5", "of all"), Cell("6", "of one"), "7", "8"],
        ],
    )
    assert table.number_notes(found) == ["of all", "of two", "of one"]
    assert numbers(found) == [[1], [2, 2], [3]]
    assert table.plain(found).splitlines() == [
        "         alike [1]  unlike  some   none",
        "layer 2  1          2 [2]   3 [2]  4",
        "layer 1  5          6 [3]   7      8",
    ]


def test_an_absent_cell_does_not_keep_a_note_from_its_column():
    found = Table(["", "x"], [["layer 3", Cell("4", "of all")], ["layer 2", ""], ["layer 1", Cell("5", "of all")]])
    table.number_notes(found)
    assert numbers(found) == [[1], [], [], []]


def test_notes_are_numbered_as_they_are_come_to_over_several_tables():
    whole = Table([], [["a", Cell("1", "second")], ["bb", "2"], ["c", Cell("3", "first")]])
    layers = Table(["", "x"], [["layer 1", Cell("1", "first")]])
    assert table.number_notes(whole, layers) == ["second", "first"]
    assert table.plain(whole) == "a   1  [1]\nbb  2\nc   3  [2]"
    assert table.plain(layers) == "         x\nlayer 1  1 [2]"


def told(text: str) -> dict[tuple[str, str], str]:
    """The note that a reader of a diagnosis finds for each (layer, column), with two or more blanks between columns."""
    notes = dict(line[1:].split("] ", 1) for line in text.splitlines() if line.startswith("["))
    found, head = {}, []

    def split(cell: str) -> tuple[str, str | None]:
        name, _, number = cell.rstrip("]").partition(" [")
        return name, number or None

    for line in text.splitlines():
        cells = [split(cell) for cell in line.split("  ") if cell]
        if line.startswith("layer "):
            for (column, above), (_, own) in zip(head, cells[1:], strict=True):
                number = above or own
                assert not (above and own)
                found[cells[0][0], column.strip()] = notes.get(number)
        elif len(cells) > 1:
            head = cells[1:]
    return found


def test_every_layer_of_a_diagnosis_has_its_own_note():
    """Layers of 16 coordinates do not get what is expected of 64."""
    sizes, names = {3: 16, 2: 64, 1: 64}, ("mean", "std")
    figures = [Figure("ELBO", -3.0, note="a bound")]
    for layer, d in sizes.items():
        figures += [Figure(name, 0.5, 0.1, layer=layer, note=f"{d} coordinates of {name}") for name in names]
        figures.append(Figure("gain", 0.5, 0.1, layer=layer, note="0: no hole"))
    text = diagnose.table(figures)
    expected = {(f"layer {k}", name): f"{d} coordinates of {name}" for k, d in sizes.items() for name in names}
    expected |= {(f"layer {k}", "gain"): "0: no hole" for k in sizes}
    assert told(text) == expected
    assert [line.partition("]")[0] for line in text.splitlines() if line.startswith("[")] == [
        "[1",
        "[2",
        "[3",
        "[4",
        "[5",
        "[6",
    ]
    # Where all layers are alike the column's head says it once.
    same = diagnose.table([f for f in figures if f.layer != 3])
    assert "mean [2]" in same and same.count("[2]") == 2


def test_a_diagnosis_has_a_row_per_layer_top_first():
    figures = [Figure("rate", 1.0, 0.1, layer=1), Figure("rate", 2.0, layer=2, note="nats"), Figure("ELBO", -3.0)]
    lines = diagnose.table(figures).splitlines()
    assert lines[0].split() == ["generator", "ELBO", "-3.000"]
    assert lines[2].split() == ["generator", "rate"]
    assert lines[3].split() == ["layer", "2", "2.000", "[1]"]  # of this layer alone
    assert lines[4].split() == ["layer", "1", "1.000", "±", "0.100"]
    assert lines[-1] == "[1] nats"
