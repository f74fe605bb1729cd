"""How well scores tell out-of-distribution images from a run's own, at every cut k of the hierarchy.

    AUROC(k)    P(S_{>k}(x) > S_{>k}(x')),       x a test image of the run, x' from outside; ties count half
    AUPRC(k)    average precision of finding x' by a low score; FPR at 95% TPR beside it (`hebmtool.metrics.detection`)

with S the scores of `hebmtool.use.score`, high for what is in distribution.  The sets outside are the built-in battery
(`hebmtool.judge.battery`) or whatever is given.  The cut is chosen blind, on test images that are not compared then;
which one would have been best is told beside it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from hebmtool import data, picture
from hebmtool.console import progress
from hebmtool.errors import HebmError
from hebmtool.judge.battery import battery
from hebmtool.metrics.detection import figures_of_merit
from hebmtool.noise import derive_seed
from hebmtool.table import Table, for_stdout
from hebmtool.use.score import PosteriorScorer, Scorer, calibration, default_cut, in_batches

BOOTSTRAPS = 200
HISTOGRAM_BINS = 40
FIGURES = ("auroc", "auprc", "fpr95")


@dataclass
class Method:
    """A score, held against every set.

    inside: [N, cuts].  outside: set -> [M, cuts].  rows: figures of merit by (set, cut).  chosen: the cut chosen blind,
    `by` the AUROC at every cut it was chosen by, None where the cut was given.
    """

    scorer: Scorer
    inside: np.ndarray
    chosen: int
    by: list[float] | None
    outside: dict[str, np.ndarray] = field(default_factory=dict)
    rows: dict[tuple[str, int], dict] = field(default_factory=dict)

    def add(self, name: str, scores: np.ndarray) -> None:
        self.outside[name] = scores
        for k, a, b in zip(self.scorer.cuts, self.inside.T, scores.T, strict=True):
            self.rows[name, k] = figures_of_merit(a, b, BOOTSTRAPS, derive_seed(name, k) % 2**32)

    def worst(self, cut: int) -> tuple[str, float]:
        """The set least well separated at a cut, and its AUROC."""
        return min(((name, self.rows[name, cut]["auroc"]) for name in self.outside), key=lambda found: found[1])

    @property
    def best(self) -> int:
        """The best cut in hindsight: the highest AUROC on the set least well separated."""
        return max(self.scorer.cuts, key=lambda k: self.worst(k)[1])

    def sentence(self) -> str:
        name, value = self.worst(self.chosen)
        if isinstance(self.scorer, PosteriorScorer):
            return f"{self.scorer.name}: AUROC at least {value:.3f} ({name})"
        how = "as asked" if self.by is None else "chosen without these sets"
        best_name, best_value = self.worst(self.best)
        return (
            f"{self.scorer.name}: cut {self.chosen}, {how}: AUROC at least {value:.3f} ({name}); best in hindsight "
            f"cut {self.best}: at least {best_value:.3f} ({best_name})"
        )

    def figures(self) -> dict:
        rows = [{"set": name, "cut": k} | found for (name, k), found in self.rows.items()]
        energy = self.scorer.score == "energy"
        return {
            "score": self.scorer.score,
            "scheme": self.scorer.scheme if energy else None,
            "level": self.scorer.level if self.scorer.scheme == "diffusion" else None,
            "draws": self.scorer.draws,
            "cuts": self.scorer.cuts,
            "cut": self.chosen,
            "chosen_by": self.by,
            "best_cut": self.best,
            "rows": rows,
        }


def compare(
    scorers: Sequence[Scorer],
    test: data.Images,
    n: int = 500,
    cut: int | None = None,
    sets: Iterable[tuple[str, Tensor]] | None = None,
) -> list[Method]:
    """Hold scores against out-of-distribution sets.

    The first test images choose the cut (`blind_cut`), up to n of the others stand for the distribution.  Both schemes
    of the energy share the cut chosen for inference.

    Arguments:
        cut: instead of choosing.
        sets: (name, uint8 [M, C, H, W]); the built-in battery when None.

    Raises:
        HebmError: too few test images.
    """
    first = calibration(test)
    inside = test.batch(range(first, min(first + n, len(test))))
    if first < 2 or len(inside) < 2:
        raise HebmError(
            f"choosing a cut and judging it takes at least 6 test images, and there are {len(test)}; use more images, "
            "or a larger data.test_fraction"
        )
    shape, config, seed = test.shape, scorers[0].recipe.data, scorers[0].seed
    if sets is None:
        sets = battery(inside, config, shape, seed)
    methods, chosen = [], {}
    with progress("scoring test images", len(scorers)) as bar:
        for scorer, scores in zip(scorers, _scored(scorers, inside), strict=True):
            if cut is not None:
                k, by = scorer.check(cut), None
            else:
                if scorer.score not in chosen:
                    chosen[scorer.score] = default_cut(scorer, test)
                k, by = chosen[scorer.score]
            methods.append(Method(scorer, scores, k, by))
            bar.advance()
    for name, images in sets:
        with progress(f"scoring {name}", len(methods)) as bar:
            for method, scores in zip(methods, _scored(scorers, images), strict=True):
                method.add(name, scores)
                bar.advance()
    return methods


def _scored(scorers: Sequence[Scorer], images: Tensor) -> Iterator[np.ndarray]:
    """The scores of each scorer in turn, [N, cuts]; the ratio is taken of bounds that are there already."""
    bound = None
    for scorer in scorers:
        if scorer.score == "llr" and bound is not None:
            yield bound[:, 1:] - bound[:, :1]
            continue
        found = in_batches(scorer, images)
        if scorer.score == "likelihood":
            bound = found
        yield found


def table(methods: Sequence[Method]) -> str:
    """Every figure with its interval, a line per score, set and cut, for stdout; the cut chosen is starred."""

    def cell(row: dict, key: str) -> str:
        low, high = row[f"{key}_interval"]
        return f"{row[key]:.3f} [{low:.3f}, {high:.3f}]"

    rows = [
        [method.scorer.name, name, f"{k}{'*' if k == method.chosen else ' '}", *(cell(row, key) for key in FIGURES)]
        for method in methods
        for (name, k), row in method.rows.items()
    ]
    return for_stdout(Table(["score", "set", "cut ", "AUROC", "AUPRC", "FPR at 95% TPR"], rows, "<<>"))


def plot_auroc(axis, method: Method) -> None:
    """AUROC against the cut on a matplotlib axis, a curve per set in the colours C0, C1, ...; the cut chosen dashed."""
    cuts = method.scorer.cuts
    for i, name in enumerate(method.outside):
        axis.plot(cuts, [method.rows[name, k]["auroc"] for k in cuts], "o-", color=f"C{i}", label=name, ms=4)
    axis.axhline(0.5, color="0.8", lw=1, zorder=0)
    axis.axvline(method.chosen, color="0.5", ls="--", lw=1, zorder=0)
    axis.set(xlabel="k (layers above k are used)", ylabel="AUROC", ylim=(-0.03, 1.03))
    axis.set_xticks(cuts if len(cuts) <= 12 else cuts[:: len(cuts) // 8])


def plot_scores(axis, method: Method, cut: int) -> None:
    """Histograms of the scores at a cut on a matplotlib axis: test images filled, sets in `plot_auroc`'s colours."""
    column = method.scorer.cuts.index(cut)
    inside, outside = method.inside[:, column], {name: each[:, column] for name, each in method.outside.items()}
    low, high = np.quantile(np.concatenate([inside, *outside.values()]), [0.002, 0.998])
    bins = np.linspace(low, high if high > low else low + 1, HISTOGRAM_BINS + 1)

    def plot(scores: np.ndarray, **style) -> None:
        axis.hist(scores.clip(bins[0], bins[-1]), bins, weights=np.full(len(scores), 1 / len(scores)), **style)

    plot(inside, label="test images", color="0.75")
    for i, (name, scores) in enumerate(outside.items()):
        plot(scores, label=name, color=f"C{i}", histtype="step")
    axis.locator_params("x", nbins=5)
    axis.set(xlabel=method.scorer.name, ylabel="share of images")


def figure(methods: Sequence[Method]) -> bytes:
    """A PNG with a column per score: AUROC against the cut, a curve per set; histograms at the lowest cut and at the
    chosen one."""
    from matplotlib.figure import Figure  # slow to import

    columns = len(methods)
    rows = 3 if any(method.chosen != method.scorer.cuts[0] for method in methods) else 2
    canvas = Figure(figsize=(4.6 * columns + 1.6, 3.2 * rows), layout="constrained")
    grid = canvas.add_gridspec(rows, columns)
    for column, method in enumerate(methods):
        above = canvas.add_subplot(grid[0, column])
        plot_auroc(above, method)
        above.set_title(method.scorer.name)
        cuts = [method.scorer.cuts[0], method.chosen]
        titles = {cuts[0]: f"k = {cuts[0]}", cuts[1]: f"k = {cuts[1]}, the cut chosen"}
        for row, (k, title) in enumerate(titles.items(), 1):
            # One histogram alone takes the place of two.
            axis = canvas.add_subplot(grid[row if len(titles) > 1 else slice(1, rows), column])
            plot_scores(axis, method, k)
            axis.set_title(title)
    handles, labels = axis.get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside right upper", frameon=False)
    return picture.plot_to_png(canvas)
