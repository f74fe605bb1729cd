"""What a page is made of, and the page: text, tables (`hebmtool.table`), pictures as PNG data URIs, charts as SVG.

`report.html` lays it out.  Whatever is no Markup reaches it escaped.
"""

import base64
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from PIL import Image

from hebmtool import picture
from hebmtool.errors import HebmError
from hebmtool.report.plots import svg
from hebmtool.table import ARROWS, Table

WIDEST = 1100
"""Pixels of a picture."""


@dataclass
class Shown:
    """A picture or a chart: the element, and what stands below it."""

    body: Markup
    title: str
    caption: str


@dataclass
class Section:
    """layout: "images", "charts" or "images wide".  legend: names and CSS colours.  folded: (summary, text) shown on
    request."""

    title: str
    layout: str = "images"
    text: list[str | Markup] = field(default_factory=list)
    legend: list[tuple[str, str]] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: list[Shown] = field(default_factory=list)
    notes: list[str | Markup] = field(default_factory=list)
    folded: list[tuple[str, str]] = field(default_factory=list)

    @property
    def anchor(self) -> str:
        return self.title.lower().replace(" ", "-")

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """What fails within is left out, and the reason said in its place."""
        try:
            yield
        except HebmError as error:
            self.notes.append(f"Left out: {error}.")

    def image(self, shown: Image.Image, title: str, caption: str, alt: str) -> None:
        if shown.width > WIDEST:
            shown = shown.resize((WIDEST, round(shown.height * WIDEST / shown.width)), Image.Resampling.LANCZOS)
        encoded = base64.b64encode(picture.to_png(shown)).decode()
        body = Markup('<img src="data:image/png;base64,{}" width="{}" height="{}" alt="{}">')
        self.figures.append(Shown(body.format(encoded, shown.width, shown.height, alt), title, caption))

    def chart(self, plot: Callable[[Any], None], title: str, caption: str) -> None:
        """A chart that `plot` draws on the matplotlib axis it is given; title and caption are its text alternative."""
        name = f"{self.anchor}-{len(self.figures) + 1}"
        self.figures.append(Shown(Markup(svg(plot, name, f"Chart. {title} {caption}")), title, caption))


def render(page: Mapping[str, object]) -> str:
    """HTML of a page: its title, summary, facts (pairs), sections and footer."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = Path(__file__).with_name("report.html").read_text("utf-8")
    return environment.from_string(template).render(page=page, arrows=ARROWS) + "\n"


# Words ----------------------------------------------------------------------------------------------------------------


def code(command: str) -> Markup:
    return Markup("<code>{}</code>").format(command)


def number(value: float | None, error: float | None = None) -> str:
    """Four significant digits, or as many decimals as the error's first two digits need."""
    if value is None or not math.isfinite(value):
        return "–"
    if error is not None and math.isfinite(error) and error > 0:
        decimals = max(0, 1 - math.floor(math.log10(error)))
        return minus(f"{value:,.{decimals}f} ± {error:,.{decimals}f}")
    return minus(f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 1e4 else f"{value:.4g}")


def minus(text: str) -> str:
    """Hyphens before digits as minus signs."""
    return re.sub(r"-(?=\d)", "−", text)


def duration(seconds: float) -> str:
    minutes, hours = round(seconds / 60), seconds / 3600
    return f"{round(seconds)} s" if seconds < 100 else f"{minutes} min" if minutes < 100 else f"{hours:.1f} h"


def listed(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def plural(n: int, word: str) -> str:
    """ "1 layer", "2 layers"."""
    return f"{n} {word}{'s' * (n != 1)}"
