"""Out-of-distribution scores of images, at every cut k of the hierarchy; high = in-distribution.

    energy       S_{>k}(x) = sum_{i>k} f_i(z_i, 0)          (and where latents are whitened, what that knows of layer i)
    likelihood   L^{>k}(x) = E[log p(x | z) - sum_{i>k} KL_i],      z_{>k} ~ q(. | x),  z_{<=k} ~ p(. | z_{>k})
    llr          L^{>k}(x) - L(x),                                  L = L^{>0}, the ELBO

The energy is read at u_0 ~ q(u | x) (scheme `inference`), or at that u_0 noised to a level and brought back by the
conditional EBMs (scheme `diffusion`; "HEBM", https://arxiv.org/abs/2405.13910, Figure 3).  The ratio is the negative
of Havtorn et al.'s LLR^{>k} ("Hierarchical VAEs Know What They Don't Know", https://arxiv.org/abs/2102.08248), which is
high for what is out of distribution.

f_i was learned on posterior draws, whose norm is not their mean's; so every score averages a few draws of q and, where
the likelihood wants binary or continuous pixels, of those.  The noise of an image is seeded by its own pixels: its
score is the same wherever it stands, in whatever batch.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hebmtool import data, picture
from hebmtool import recipe as recipes
from hebmtool.console import progress
from hebmtool.errors import HebmError, UsageError, did_you_mean
from hebmtool.generator import Posterior
from hebmtool.infer import Inference, as_grey
from hebmtool.ood_battery import battery
from hebmtool.prior import EBM, DiffusionEBM, Noise, Prior
from hebmtool.recipe import Recipe
from hebmtool.training import derive_seed

SCORES = ("energy", "likelihood", "llr")
SCHEMES = ("inference", "diffusion")
CALIBRATION = 256  # held-out images on which the cut is chosen, and as many draws of the model
BATCH = 100
BOOTSTRAPS = 200
TPR = 0.95
HISTOGRAM_BINS = 40


# Scores ---------------------------------------------------------------------------------------------------------------


@dataclass
class Scorer:
    """One kind of score for images of a run.

    Arguments:
        prior: on its frozen generator; an energy score needs a trained one.
        recipe: the run's: its `data` part and likelihood say how the generator reads images.
        score: "energy", "likelihood" (nats) or "llr" (nats).
        scheme: of the energy, "inference" or "diffusion"; the latter needs the diffusion-ebm prior.
        level: 1 .. T, the noise level of the diffusion scheme.
        draws: averaged per image.
        seed: of the draws.

    Raises:
        UsageError: a word or level that does not exist, or a scheme that the score does not have.
        HebmError: the prior has no energy, or no levels.
    """

    prior: Prior
    recipe: Recipe
    score: str = "energy"
    scheme: str = "inference"
    level: int = 1
    draws: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        for option, word, words in (("--score", self.score, SCORES), ("--scheme", self.scheme, SCHEMES)):
            if word not in words:
                raise UsageError(f"{option} is '{word}'; choose one of {', '.join(words)}{did_you_mean(word, words)}")
        kind = self.prior.kind
        if self.score == "energy" and not isinstance(self.prior, EBM):
            raise HebmError(
                f"an energy score needs a trained prior, and the {kind} one has no energy; train one with "
                "`hebm train-prior`, or use --score likelihood or llr"
            )
        if self.scheme == "diffusion":
            if self.score != "energy":
                raise UsageError(f"--scheme diffusion is of the energy score, and --score is {self.score}; drop one")
            if not isinstance(self.prior, DiffusionEBM):
                raise HebmError(
                    f"--scheme diffusion needs the levels of a diffusion-ebm prior, and this is the {kind} one; train "
                    "it with `hebm train-prior`, or use --scheme inference"
                )
            if not 1 <= self.level <= self.prior.schedule.T:
                raise UsageError(f"--level is {self.level}; this prior's levels are 1 to {self.prior.schedule.T}")

    @property
    def name(self) -> str:
        return f"{self.score} ({self.scheme})" if self.score == "energy" else self.score

    @property
    def cuts(self) -> list[int]:
        """The cuts k this score has: 0 .. L-1; the ratio at 0 is no ratio."""
        return list(range(self.score == "llr", self.prior.generator.L))

    def check(self, cut: int) -> int:
        """`cut`, if there is such a one.  Raises UsageError naming those that exist."""
        L = self.prior.generator.L
        if cut not in self.cuts:
            raise UsageError(
                f"--layer is {cut}; it uses the layers above that number, of {L}, so for --score {self.score} it is "
                f"from {self.cuts[0]} to {self.cuts[-1]} (the top one alone)"
                if self.cuts
                else f"--score {self.score} needs a generator of at least two layers, and this one has {L}"
            )
        return cut

    @torch.no_grad()
    def __call__(self, images: Tensor, cuts: Sequence[int] | None = None) -> Tensor:
        """Scores, float64 [N, cuts].

        Arguments:
            images: uint8 [N, C, H, W], in the generator's shape.
            cuts: all the score has, in order, when None.

        Raises:
            HebmError: a score is not finite.
        """
        cuts, generator = self.cuts if cuts is None else cuts, self.prior.generator
        codes = [int.from_bytes(hashlib.blake2b(i.numpy().tobytes(), digest_size=8).digest()) for i in images]
        noise = Noise(derive_seed(self.seed, "score"), codes, generator.D, generator.constant.device)
        total = torch.zeros(len(images), len(cuts), dtype=torch.float64)
        for draw in range(self.draws):
            x = self._read(images, codes, draw)
            posterior = generator.posterior(x, noise())
            if self.score == "energy":
                found = self._energy(generator.latents(posterior.walk), noise, cuts)
            else:
                found = self._bound(x, posterior, noise, cuts)
            total += found.double().cpu()
        if not total.isfinite().all():
            raise HebmError(
                f"the {self.name} score of an image is not finite; use --scheme inference, or another prior"
            )
        return total / self.draws

    def _read(self, images: Tensor, codes: Sequence[int], draw: int) -> Tensor:
        x = []
        with torch.random.fork_rng(devices=[]):
            for image, code in zip(images, codes, strict=True):
                torch.manual_seed(derive_seed(self.seed, "prepare", code, draw))
                x.append(data.prepare(image[None], self.recipe.data, self.recipe.generator.likelihood, train=False))
        return torch.cat(x).to(self.prior.generator.constant.device)

    def _energy(self, u: Tensor, noise: Noise, cuts: Sequence[int]) -> Tensor:
        """S_{>k} at u, or at what the diffusion makes of it."""
        if self.scheme == "diffusion":
            u = self.prior.stages(u, noise)[-1 - self.level]
            *_, u = self.prior.descend(u, self.level, noise)
        L = self.prior.generator.L
        f = self.prior.energies(u, layers=L - min(cuts))
        scale = self.prior.scale(torch.zeros(1, dtype=torch.long, device=u.device))
        f = f + scale * self.prior.generator.whitening_ratio(u)[:, : f.shape[1]]
        return torch.stack([f[:, : L - k].sum(1) for k in cuts], dim=1)

    def _bound(self, x: Tensor, posterior: Posterior, noise: Noise, cuts: Sequence[int]) -> Tensor:
        """L^{>k}, and for the ratio less L."""
        generator, u, e = self.prior.generator, self.prior.generator.join(posterior.walk.u), noise()

        def L_above(k: int) -> Tensor:
            used = generator.L - k  # layers, from the top
            held = generator.slices[used - 1].stop
            walk = posterior.walk
            if k:
                # Under p(z_{<=k} | z_{>k}) the layers below the cut are standard normal residuals.
                walk = generator.top_down(generator.whitened(torch.cat([u[:, :held], e[:, held:]], dim=1)))
            return generator.likelihood.log_prob(generator.decode(walk), x) - posterior.kl[:, :used].sum(1)

        found = torch.stack([L_above(k) for k in cuts], dim=1)
        return found - L_above(0)[:, None] if self.score == "llr" else found


@dataclass
class PosteriorScorer(Scorer):
    """A flow model's score: log p(z) + log p(x | z), up to a constant, at z inferred by Langevin dynamics (LFBM,
    https://arxiv.org/abs/2301.09300); nats.  There is one layer, so one cut, 0."""

    score: str = "posterior"
    draws: int = 1

    def __post_init__(self) -> None:
        if self.score != "posterior":
            raise UsageError(f"--score is '{self.score}', but a flow run has one score, posterior; drop --score")
        if self.scheme != "inference":
            raise UsageError(f"--scheme is '{self.scheme}', but a flow run has one scheme, inference; drop --scheme")
        self.inference = Inference(self.prior, self.recipe, seed=self.seed)

    @torch.no_grad()
    def __call__(self, images: Tensor, cuts: Sequence[int] | None = None) -> Tensor:
        z = self.inference(images, draws=self.draws)
        x = as_grey(images, self.recipe.data).to(z.device).repeat_interleave(self.draws, 0)
        total = self.prior.log_joint(z.flatten(0, 1), x).double().cpu()
        return total.view(len(images), self.draws).mean(1, keepdim=True)


def in_batches(scorer: Scorer, images: Tensor, cuts: Sequence[int] | None = None) -> np.ndarray:
    """The scores of many images, float64 [N, cuts]."""
    return torch.cat([scorer(batch, cuts) for batch in images.split(BATCH)]).numpy()


def blind_cut(scorer: Scorer, held_out: Tensor) -> tuple[int, list[float]]:
    """A cut chosen without any out-of-distribution image; and the AUROC at every cut that it was chosen by.

    The model brings its own outliers: what its Gaussian prior draws and no data has, the prior hole.  The cut is the
    one at which held-out images are best told from images decoded from N(0, I).
    """
    if not scorer.cuts:
        scorer.check(0)
    generator = scorer.prior.generator
    seed = derive_seed(scorer.seed, "cut")
    drawn = []
    for indices in torch.arange(len(held_out)).split(BATCH):
        noise = Noise(seed, indices.tolist(), generator.D, generator.constant.device)
        drawn.append(picture.to_uint8(generator.images(generator.whitened(noise()))))
    inside, outside = in_batches(scorer, held_out), in_batches(scorer, torch.cat(drawn))
    found = [figures_of_merit(a, b)["auroc"] for a, b in zip(inside.T, outside.T, strict=True)]
    return scorer.cuts[int(np.argmax(found))], found


def calibration(images: data.Images) -> int:
    """How many of the held-out images, the first ones, choose the cut; the comparison uses the others."""
    return min(CALIBRATION, len(images) // 3)


def default_cut(scorer: Scorer, test: data.Images) -> tuple[int, list[float] | None]:
    """`blind_cut` on the first test images, one draw each; of the energy at u_0, for either scheme.  A flow
    model has only one, and nothing to choose it by."""
    if isinstance(scorer, PosteriorScorer):
        return scorer.cuts[0], None
    first = calibration(test)
    if first < 2:
        raise HebmError(
            f"choosing a cut takes at least 6 test images, and there are {len(test)}; give --layer, or use more "
            "images, or a larger data.test_fraction"
        )
    one = Scorer(scorer.prior, scorer.recipe, scorer.score, draws=1, seed=scorer.seed)
    return blind_cut(one, test.batch(range(first)))


# Images from anywhere -------------------------------------------------------------------------------------------------


def read(
    paths: Iterable[str],
    recipe: Recipe,
    shape: tuple[int, int, int],
    failed: Callable[[HebmError], None],
    exact: bool = False,
) -> Iterator[tuple[str, Tensor]]:
    """(name, uint8 [C, H, W]) of every image, one at a time, brought to `shape` (`data.fit_to`).

    Arguments:
        paths: image files, folders (at any depth, in order of their names), .npz or .npy files (an image is called
            FILE#INDEX).
        failed: told of everything that cannot be read, which is passed over.
        exact: whether an image of another shape is such a thing, instead of being brought to `shape`.
    """

    def brought(pixels: Tensor, name: str) -> Tensor:
        if exact and tuple(pixels.shape) != tuple(shape):
            found, wanted = (f"{w}x{h} {'grey' if c == 1 else 'RGB'}" for c, h, w in (pixels.shape, shape))
            raise HebmError(f"{name} is {found}, and the run's images are {wanted}; convert it, or add --fit")
        return data.fit_to(pixels[None], shape, recipe.data)[0]

    as_it_is = recipes.Data()
    for path in paths:
        try:
            if path.lower().endswith((".npz", ".npy")):
                for i, pixels in enumerate(data.read_array(path)):
                    yield f"{path}#{i}", brought(torch.from_numpy(pixels.copy()), f"{path}#{i}")
                continue
            files = data.paths_in(path) if os.path.isdir(path) else [path]
        except HebmError as error:
            failed(error)
            continue
        for file in files:
            try:
                pixels = brought(data.read_image(file, as_it_is), str(file))
            except HebmError as error:
                failed(error)
                continue
            yield str(file), pixels


def stream(
    scorer: Scorer, images: Iterable[tuple[str, Tensor]], cut: int, batch_size: int = 64
) -> Iterator[tuple[str, float]]:
    """(name, score at the cut) of every image, a batch at a time."""
    images = iter(images)
    while batch := list(islice(images, batch_size)):
        names, pixels = zip(*batch, strict=True)
        yield from zip(names, scorer(torch.stack(pixels), [cut])[:, 0].tolist(), strict=True)


# Comparison with out-of-distribution sets -----------------------------------------------------------------------------


def _curves(inside: np.ndarray, outside: np.ndarray, in_weights: np.ndarray, out_weights: np.ndarray) -> np.ndarray:
    """AUROC, AUPRC and FPR at 95% TPR, [3, B], of scores [N] and [M] under B weightings [B, N] and [B, M].

    The out-of-distribution images are the positives, flagged when their score is low.
    """
    scores = np.concatenate([inside, outside])
    order = np.argsort(scores, kind="stable")
    zeros = np.zeros_like(in_weights), np.zeros_like(out_weights)
    # Images of one score are flagged together.
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    flagged = [
        np.cumsum(np.concatenate(weights, axis=1)[:, order], axis=1)[:, last]
        for weights in ((in_weights, zeros[1]), (zeros[0], out_weights))
    ]
    fpr, tpr = (np.pad(part / part[:, -1:], ((0, 0), (1, 0))) for part in flagged)
    precision = flagged[1] / np.maximum(flagged[0] + flagged[1], 1)
    auroc = (np.diff(fpr) * (tpr[:, 1:] + tpr[:, :-1]) / 2).sum(1)
    auprc = (np.diff(tpr) * precision).sum(1)
    at = (tpr >= TPR - 1e-12).argmax(1)
    return np.stack([auroc, auprc, np.take_along_axis(fpr, at[:, None], 1)[:, 0]])


def figures_of_merit(inside: np.ndarray, outside: np.ndarray, bootstraps: int = 0, seed: int = 0) -> dict:
    """AUROC, AUPRC and FPR at 95% TPR of scores of images inside [N] and outside [M] the distribution.

    Those outside are the positives, found by a low score: AUPRC is the average precision of finding them (chance level
    M / (N + M)), and the FPR is the share of those inside that a threshold flags which finds 95% of those outside.
    With `bootstraps`, *_interval: the middle 95% of these over resampled images of both sets.
    """
    n, m = len(inside), len(outside)
    names = ("auroc", "auprc", "fpr95")
    found = _curves(inside, outside, np.ones((1, n)), np.ones((1, m)))[:, 0]
    figures = dict(zip(names, found.tolist(), strict=True))
    if bootstraps:
        rng = np.random.default_rng(seed)
        weights = (rng.multinomial(size, np.full(size, 1 / size), bootstraps).astype(float) for size in (n, m))
        drawn = _curves(inside, outside, *weights)
        ends = np.quantile(drawn, [0.025, 0.975], axis=1).T.tolist()
        figures |= {f"{name}_interval": interval for name, interval in zip(names, ends, strict=True)}
    return figures


@dataclass
class Method:
    """A score, held against every set.

    inside: [N, cuts].  outside: set -> [M, cuts].  rows: figures of merit by (set, cut).  chosen: the cut chosen blind,
    `by` the AUROC at every cut it was chosen by; both None where --layer gave the cut.
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
    """Every figure with its interval, a line per score, set and cut; the cut chosen is starred."""

    def cell(row: dict, key: str) -> str:
        low, high = row[f"{key}_interval"]
        return f"{row[key]:.3f} [{low:.3f}, {high:.3f}]"

    names = {name for method in methods for name in method.outside}
    width, left = max(map(len, names)), max(len(method.scorer.name) for method in methods)
    lines = [f"{'score':{left}}  {'set':{width}}  cut   {'AUROC':20}  {'AUPRC':20}  FPR at 95% TPR"]
    for method in methods:
        for (name, k), row in method.rows.items():
            star = "*" if k == method.chosen else " "
            cells = "  ".join(cell(row, key) for key in ("auroc", "auprc", "fpr95"))
            lines.append(f"{method.scorer.name:{left}}  {name:{width}}  {k:3}{star}  {cells}")
    return "\n".join(lines)


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
    axes = canvas.subplots(rows, columns, squeeze=False)
    for (above, *below), method in zip(axes.T, methods, strict=True):
        plot_auroc(above, method)
        above.set_title(method.scorer.name)
        cuts = [method.scorer.cuts[0], method.chosen]
        titles = {cuts[0]: f"k = {cuts[0]}", cuts[1]: f"k = {cuts[1]}, the cut chosen"}
        for axis in below[len(titles) :]:
            axis.set_axis_off()
        for axis, (k, title) in zip(below, titles.items(), strict=False):
            plot_scores(axis, method, k)
            axis.set_title(title)
    handles, labels = axes[1, 0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside right upper", frameon=False)
    return picture.plot_to_png(canvas)


def given_sets(
    paths: Sequence[str], recipe: Recipe, shape: tuple[int, int, int], n: int, failed: Callable[[HebmError], None]
) -> Iterator[tuple[str, Tensor]]:
    """The first n images of each path (an image, a folder, an .npz or .npy), named after it.

    Raises:
        HebmError: nothing there can be read.
    """
    for path in paths:
        images = [pixels for _, pixels in islice(read([path], recipe, shape, failed), n)]
        if not images:
            raise HebmError(f"there is no image to compare with in {path}; give a folder of images, an .npz or an .npy")
        stems = [Path(other).stem for other in paths]
        stem = Path(path).stem
        yield stem if stem and stems.count(stem) == 1 else path, torch.stack(images)
