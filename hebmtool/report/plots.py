"""Charts as inline SVG, whose colours are the page's own, so that they follow its light and dark mode.

matplotlib draws in stand-ins, which are then replaced by the page's CSS variables.
"""

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

FEWEST, POINTS = 10, 80  # of a curve of means

# What charts are drawn in, and the page's colours that stand in for it.
INK, MUTED, RULE = "#0b0b01", "#0b0b02", "#0b0b03"
CYCLE = [f"#0b0c{i:02x}" for i in range(8)]
PAGE_COLOURS = {
    INK: "currentColor",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    **{colour: f"var(--c{i})" for i, colour in enumerate(CYCLE)},
    # The greys of `hebmtool.judge.ood`.
    "#bfbfbf": "var(--fill)",
    "#cccccc": "var(--rule)",
    "#808080": "var(--muted)",
}


def svg(plot: Callable[[Any], None], name: str, alternative: str) -> str:
    """An <svg> element; `name` is its own on the page."""
    import matplotlib  # slow to import
    from matplotlib.figure import Figure as Canvas

    style = {
        "font.size": 9,
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": name,
        "text.parse_math": False,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": MUTED,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.prop_cycle": matplotlib.cycler(color=CYCLE),
        "grid.color": RULE,
        "grid.linewidth": 0.6,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "lines.linewidth": 1.5,
        "legend.frameon": False,
    }
    with matplotlib.rc_context(style):
        canvas = Canvas(figsize=(4.6, 2.7), layout="constrained")
        plot(canvas.subplots())
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        canvas.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace("xlink:href", "href")
    # A style element's rules would hold for the whole page; report.html has them for charts.
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    # Several charts share one page, where no id may occur twice; those in use are hashes salted with the name.
    used = set(re.findall(r'(?:url\(|href=")#([^")]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", svg)
    svg = re.sub(r"#[0-9a-f]{6}\b", lambda found: PAGE_COLOURS.get(found[0]) or _between(found[0]) or found[0], svg)
    box = re.search(r'viewBox="[^"]*"', svg)[0]
    opening = Markup('<svg {} role="img" aria-label="{}">').format(Markup(box), alternative)
    return opening + Markup(svg[svg.index(">") + 1 :].strip())


def layer_colour(layer: int, L: int) -> str:
    """What to draw layer 1 .. L in: the page's colours run from its first to its second."""
    return f"#0b0d{round(100 * (layer - 1) / max(L - 1, 1)):02x}"


def _between(colour: str) -> str | None:
    if not colour.startswith("#0b0d"):
        return None
    return f"color-mix(in oklch, var(--c0) {int(colour[5:], 16)}%, var(--c1))"


def points(records: Sequence[dict], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values [N] of the records that have a number there."""
    found = [(r["step"], r[key]) for r in records if isinstance(r.get(key), int | float)]
    steps, values = zip(*found, strict=True) if found else ((), ())
    return np.array(steps, float), np.array(values, float)


def plot_curve(axis, steps: np.ndarray, values: np.ndarray, **style) -> None:
    """Means of stretches of at least three records each, over a band of what is in them; a few records as they are."""
    n = len(steps) if len(steps) < 3 * FEWEST else min(len(steps) // 3, POINTS)
    parts = [np.array_split(each, n) for each in (steps, values)]
    x, y = (np.array([part.mean() for part in each]) for each in parts)
    (line,) = axis.plot(x, y, **style)
    low, high = (np.array([end(part) for part in parts[1]]) for end in (np.min, np.max))
    axis.fill_between(x, low, high, color=line.get_color(), alpha=0.18, lw=0)


def limit(axis, values: np.ndarray) -> None:
    """Show where the values settle: what the first tenth of the training passes through may leave the picture."""
    settled = values[len(values) // 10 :]
    low, high = settled.min(), settled.max()
    margin = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    axis.set_ylim(low - margin, high + margin)
