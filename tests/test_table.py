"""Figures as tables: numbers, order, the best, notes; plain and Markdown."""

import pytest

from hebmtool.judge import table
from hebmtool.metrics.figures import Figure


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
    assert table.number(Figure("x", value, error)) == text


@pytest.fixture
def columns():
    figures = [
        *(Figure("FD", value, 0.5, of, "lower", note="n = 9") for of, value in (("g", 9.0), ("e", 4.0), ("r", 1.0))),
        Figure("closure", 0.625, None, "e", "higher", note="of three"),
        *(Figure("KID", value, 0.01, of, "lower", note=f"for {of}") for of, value in (("g", 0.3), ("e", 0.5))),
        *(Figure("KL", value, None, of, layer=1) for of, value in (("g", 2.0), ("e", 1.0))),
    ]
    return table.by_judged(figures)


def test_rows_keep_their_order_and_the_best_is_marked(columns):
    found = table.table(columns, mark=["g", "e"])
    assert found.columns == ["g", "e", "r"]
    # The closure is no figure of the first column, and still stands where the second has it.
    assert [label for label, _ in found.rows] == ["FD ↓", "closure ↑", "KID ↓", "KL, layer 1"]
    # Not the reconstructions; not a figure of one column only; not one of which neither way is better.
    assert found.best == {(0, 1), (2, 0)}
    assert table.table(columns).best == set()


def test_plain_columns_are_aligned(columns):
    head, fd, closure, kid, kl = table.plain(table.table(columns, ["g", "e"])).splitlines()
    assert fd.split() == ["FD", "↓", "9.00", "±", "0.50", "4.00", "±", "0.50", "*", "1.00", "±", "0.50"]
    assert head.index("e") == fd.index("4.00") == closure.index("0.625") == kid.index("0.500") == kl.index("1", 14)


def test_notes_are_said_once(columns):
    assert table.notes(table.table(columns)) == ["FD: n = 9", "closure: of three", "KID of g: for g", "KID of e: for e"]


def test_markdown_is_a_table(columns):
    columns["a|b"] = columns.pop("g")
    lines = table.markdown(table.table(columns, ["e", "a|b"]), ["seed 0"]).splitlines()
    assert lines[0] == "|  | e | r | a\\|b |" and lines[1] == "| --- | ---: | ---: | ---: |"
    assert lines[2] == "| FD ↓ | **4.00 ± 0.50** | 1.00 ± 0.50 | 9.00 ± 0.50 |"
    assert lines[6] == "" and lines[7] == "- FD: n = 9" and lines[-1] == "- seed 0"


def test_a_terminal_gets_a_drawn_table(columns, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    table.show(table.table(columns, ["g", "e"]), ["seed 0"])
    out = capsys.readouterr().out
    assert "┃" in out and "4.00 ± 0.50 *" in out and out.rstrip().endswith("seed 0")
