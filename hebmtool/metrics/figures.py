"""What judging a run yields: one `Figure` per number, with its uncertainty.  Needs neither torch nor numpy."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass
class Figure:
    """One measured number.

    name: what it is, as a heading says it ("FD", "closure", "bits/dim (IW-100)").
    value: the number; None where it is undefined, which `note` explains.
    error: its uncertainty, one standard error, or None where there is none to state.
    of: which prior it judges ("gaussian", "diffusion-ebm", ...) or "generator".
    better: "higher", "lower", or None where neither is.
    layer: the layer it is about (1 = bottom), or None.
    note: what a reader needs to trust it: feature network, sample count, direction of a bound.
    """

    name: str
    value: float | None
    error: float | None = None
    of: str = "generator"
    better: str | None = None
    layer: int | None = None
    note: str = ""

    def as_dict(self) -> dict:
        return asdict(self)


def by_judged(figures: Sequence[Figure]) -> dict[str, list[Figure]]:
    """Figures grouped by what they judge, in the order of their first appearance."""
    found: dict[str, list[Figure]] = {}
    for figure in figures:
        found.setdefault(figure.of, []).append(figure)
    return found
