"""One sentence that says what many figures come to: where the hole is, which score tells outliers, how sure that is.

A figure counts where it is two standard errors away from what chance gives.
"""

from collections.abc import Sequence

from hebmtool.judge.ood import Method
from hebmtool.metrics.figures import Figure
from hebmtool.prior import Gaussian
from hebmtool.use.score import PosteriorScorer

SURE = 2.0
"""Standard errors."""

LEGEND = {
    "two-sample accuracy": "how often posterior u and draws of the prior are told apart: 0.5 is chance, no hole",
    "accuracy, u_i alone": "the same from one layer's u_i, without those above",
    "accuracy, top to i": "the same from all layers from the top down to i",
    "gain given above": "what layer i adds to that of those above it: where it is large, there is the hole",
    "energy gap": "how much likelier posterior u are under the energies than the prior's own draws; 0 in a closed hole",
}
"""What the figures by which the verdict is reached say, by their names."""


def hole(figures: Sequence[Figure]) -> str | None:
    """Where the Gaussian prior falls short and what of it the prior that was judged leaves, of `diagnose`'s figures;
    None where they say nothing of it."""
    told = {f.of: f for f in figures if f.name == "two-sample accuracy" and None not in (f.value, f.error)}
    if Gaussian.kind not in told:
        return _likelihood(figures)
    before = told.pop(Gaussian.kind)
    found = _far(before.value - 0.5, before.error)
    said = f"The hole is {_place(figures, Gaussian.kind)}" if found else "No hole shows"
    said += f": draws of the Gaussian prior are told from posterior u {_share(before)}"
    for kind in [kind for kind in told if "adjusted" not in kind]:
        said += "; " + _left(figures, told, kind)
    return said + "."


def legend(figures: Sequence[Figure]) -> list[str]:
    """What those of the figures say by which a verdict is reached, a line each."""
    names = {figure.name for figure in figures}
    return [f"{name}: {what}" for name, what in LEGEND.items() if name in names]


def _left(figures: Sequence[Figure], told: dict[str, Figure], kind: str) -> str:
    """What the trained prior leaves, and whose doing it is."""
    after = told[kind]
    if not _far(after.value - 0.5, after.error):
        return f"the {kind} prior leaves nothing that these draws show, {_share(after)}"
    said = f"of the {kind} prior still {_share(after)}, {_place(figures, kind)}"
    exact = told.get(f"{kind} (adjusted)")
    if exact is None:
        return said
    sampler = _far(after.value - exact.value, (after.error**2 + exact.error**2) ** 0.5)
    whose = "its sampler's doing in part" if sampler else "its energies' doing"
    return f"{said}; that is {whose}, for drawn exactly it is {_share(exact, chance=False)}"


def _likelihood(figures: Sequence[Figure]) -> str | None:
    """What the likelihood says, where nothing else does."""
    gain = next((f for f in figures if f.name == "gain over gaussian" and f.value is not None), None)
    if gain is None or gain.error is None:
        return None
    nats = f"by {abs(gain.value):.2f} ± {gain.error:.2f} nats than the Gaussian one"
    if not _far(abs(gain.value), gain.error):
        return f"The {gain.of} prior makes held-out images neither likelier nor less likely, {nats}."
    return f"The {gain.of} prior makes held-out images {'likelier' if gain.value > 0 else 'less likely'} {nats}."


def _place(figures: Sequence[Figure], of: str) -> str:
    """ "mostly in layer 3, then 2, of 4 (1 = bottom)": layers that add to the accuracy of those above, most first."""
    gains = [f for f in figures if (f.name, f.of) == ("gain given above", of) and f.value is not None]
    found = sorted((f for f in gains if _far(f.value, f.error)), key=lambda f: -f.value)
    if not found:
        return "spread over the layers, in none of which alone it shows"
    first, *others = [str(f.layer) for f in found]
    rest = f", then {', '.join(others)}," if others else ""
    return f"{'mostly ' * bool(others)}in layer {first}{rest} of {len(gains)} (1 = bottom)"


def _share(figure: Figure, chance: bool = True) -> str:
    return f"{figure.value:.0%} ± {figure.error:.0%} of the time" + " (chance 50%)" * chance


def _far(value: float, error: float | None) -> bool:
    return value > SURE * (error or 0)


def outliers(methods: Sequence[Method]) -> str:
    """Which score to use, above which cut, and how sure that is: the one whose least AUROC over the sets is highest, at
    the cut it chose without them."""
    best = max(methods, key=lambda method: method.worst(method.chosen)[1])
    name, value = best.worst(best.chosen)
    row = best.rows[name, best.chosen]
    low, high = row["auroc_interval"]
    use = best.scorer.name + _layers(best)
    sure = f"AUROC {value:.3f}, 95% interval {low:.3f} to {high:.3f}"
    if low <= 0.5:
        return f"No score tells every set from the test images: the best, {use}, has {sure} on {name}."
    said = f"Use {use}: it puts a test image above an outlier {value:.0%} of the time at worst, on {name} ({sure})"
    alike = [each.scorer.name for each in methods if each is not best and each.worst(each.chosen)[1] >= low]
    if alike:
        said += f"; no worse within that: {', '.join(alike)}"
    return said + _chosen(best, len(methods)) + "."


def _layers(method: Method) -> str:
    if isinstance(method.scorer, PosteriorScorer) or len(method.scorer.cuts) < 2:
        return ""
    return f" of the layers above {method.chosen}" if method.chosen else " of all layers"


def _chosen(method: Method, scores: int) -> str:
    """What was chosen by the sets themselves, and what without them."""
    said = ["the score was chosen by these sets"] * (scores > 1)
    if _layers(method):
        said.append("the cut is as asked" if method.by is None else "the cut was chosen without them")
    return f"; {', '.join(said)}" if said else ""
