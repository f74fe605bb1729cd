"""What judging a run yields: one `Figure` per number, with its uncertainty.  Needs neither torch nor numpy."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, variance


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


def over_seeds(found: Sequence[tuple[float, float | None]]) -> tuple[float, float | None]:
    """The mean of (value, its own error) over S seeds of learning, and the error of that: sqrt(sd^2 / S + e^2), sd
    being the standard deviation over seeds and e the root mean square of the errors.

    Seeds share the noise of their draws, Gaussian samples, reconstructions and the reference, so that e is no smaller
    for their mean.
    """
    values, errors = [value for value, _ in found], [error for _, error in found if error is not None]
    squares = variance(values) / len(values) if len(values) > 1 else 0.0
    squares += fmean(error**2 for error in errors) if errors else 0.0
    return fmean(values), math.sqrt(squares) if len(values) > 1 or errors else None
