"""What a person sees while something runs."""

import io

from rich.console import Console

from hebmtool import console


def test_bars_stand_within_bars(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(console, "stderr", Console(file=screen, force_terminal=True, width=100))
    for _ in range(2):
        with console.progress("outer", 2) as outer, console.progress("inner", 3) as inner:
            inner.advance(3)
            outer.advance()
    assert "outer" in screen.getvalue() and "inner" in screen.getvalue()
