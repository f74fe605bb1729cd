"""Judging a finished run: every prior of it side by side, with its uncertainty and what it takes to measure it again.

Each set of images is drawn once per draw and read once by each feature network: n images of every prior, and n
reconstructions of training images, the floor that no prior on this generator gets below.  All are held against the
same reference images.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata

import numpy as np
import torch
from torch import Tensor

from hebmtool import data, files
from hebmtool.compute import device_name
from hebmtool.console import note, progress
from hebmtool.errors import HebmError, UsageError
from hebmtool.generator import Generator
from hebmtool.judge import closure as closures
from hebmtool.judge.diagnose import diagnose
from hebmtool.metrics import cache, distances, inception
from hebmtool.metrics.distances import PAIRED_IMAGES
from hebmtool.metrics.features import BATCH, Features, load_features
from hebmtool.metrics.figures import Figure
from hebmtool.prior import Gaussian, Prior, Steps
from hebmtool.recipe import Recipe
from hebmtool.run.folder import Run
from hebmtool.run.open import load_prior
from hebmtool.use.sample import sample

GAUSSIAN, RECONSTRUCTIONS = Gaussian.kind, "reconstructions"


SPLITS = ("test", "train")


DOUBT, DOUBTED = 3.0, 1.05  # standard errors, and factor, from the bounds at which a closure is doubted


ENDS = 2  # grey levels


DIGITS = 12  # of a SHA-256: enough to tell files apart


# How each figure's uncertainty is found in a single draw.
ERRORS = {
    "FD": f"bootstrap of the images judged ({distances.BOOTSTRAPS} resamplings), reference held fixed",
    "KID": "standard error over the images judged and the subsets, reference held fixed",
    "precision": "standard error over the images judged, reference held fixed",
    "density": "standard error over the images judged, reference held fixed",
    "recall": "standard error over the reference images, the images judged held fixed",
    "coverage": "standard error over the reference images, the images judged held fixed",
    "closure": f"bootstrap of the three sets ({distances.BOOTSTRAPS} resamplings), reference held fixed",
    "IS": "standard error over the splits",
    "saturated": "standard error over the images judged",
    "seconds per 1000 images": f"standard error over batches of {BATCH}",
}


ERRORS["FID"] = ERRORS["FD"]


@dataclass
class Evaluation:
    """Figures of a run, and their provenance: the command, seed, counts, digests and versions they were made with."""

    run: str
    figures: list[Figure]
    provenance: dict

    def as_dict(self) -> dict:
        return {
            "run": self.run,
            "figures": [figure.as_dict() for figure in self.figures],
            "provenance": self.provenance,
        }

    def lines(self) -> list[str]:
        """The provenance in words, a line per part."""
        p = self.provenance

        def listed(pairs: Iterable[tuple[str, str | None]]) -> str:
            return ", ".join(f"{name} {digest or '(no file)'}" for name, digest in pairs)

        steps = "each prior's own" if p["steps"] is None else p["steps"]
        return [
            f"command: {p['command'] or 'called from Python'}",
            f"{p['samples']} images per set, {p['repeats']} draw(s), seed {p['seed']}, Langevin steps: {steps}",
            f"reference: {p['reference']['images']} {p['reference']['split']} images {p['reference']['sha256']}",
            f"features: {listed((each['name'], each['sha256']) for each in p['features'])}",
            f"checkpoints: {listed(p['checkpoints'].items())}",
            f"hebmtool {p['hebmtool']}, torch {p['torch']}, {p['device']}",
        ]


@dataclass
class Space:
    """A feature network with the reference seen by it; `suffix` tells its figures from another's.

    n: images judged.  Neighbourhoods depend on how many images there are, so as many of the reference are taken, at
    random but always the same.
    """

    features: Features
    reference: np.ndarray
    n: int
    suffix: str = ""
    fd: str = "FD"

    def __post_init__(self) -> None:
        m = min(self.n, len(self.reference), PAIRED_IMAGES)
        self.near = self.reference[np.random.default_rng(0).permutation(len(self.reference))[:m]]
        self.radii = distances.neighbour_radii(self.near, self.features.device)


@dataclass
class Source:
    """A set of images to judge: `draw(i)` yields its i-th set in batches, uint8 [batch, C, H, W].

    baseline: of a trained prior, the names of the Gaussian samples and reconstructions on its own generator.
    """

    name: str
    draw: Callable[[int], Iterator[Tensor]]
    baseline: tuple[str, str] | None = None
    timed: bool = True


def evaluate(
    run: Run,
    device: torch.device,
    kind: str | None = None,
    steps: int | None = None,
    samples: int | None = None,
    features: str | None = None,
    *,
    fid: Sequence[str] = (),
    reference: str = "test",
    repeats: int = 1,
    seed: int | None = None,
    fast: bool = False,
    parts: Sequence[str] = (),
    command: str | None = None,
) -> Evaluation:
    """Judge the run's prior of this kind, or every one, beside the Gaussian prior and reconstructions.

    The result is also kept in the run's figures.json, under "evaluate", in place of an earlier one.

    Arguments:
        steps: Langevin steps per level, each prior's own when None.
        samples, features: images per set and a TorchScript file, the recipe's when None.
        fid: modes of clean-fid ("clean", "legacy_pytorch") in which Inception is to judge as well.
        reference: the split all are held against; the closure is defined for "test".
        repeats: independent sets drawn of each; from two on, figures are their mean and its standard error.
        seed: of the draws, the recipe's when None.
        fast: draw fast, as `hebm sample` can, everything in bf16.
        parts: of `diagnose.PARTS`, to be judged as well.
        command: what the user typed, for the provenance.

    Raises:
        UsageError: an unknown kind, mode or split, or `parts` with `fast`.
        HebmError: nothing is trained, too few images, no feature network fits them, or no Inception.
    """
    for what, words, allowed in (("FID mode", fid, inception.MODES), ("reference split", [reference], SPLITS)):
        for word in words:
            if word not in allowed:
                raise UsageError(f"there is no {what} '{word}'; choose from {', '.join(allowed)}")
    if fast and parts:
        raise UsageError("drawing fast samples otherwise than diagnosis and likelihood judge; leave out either")
    kinds = [kind] if kind else run.priors()
    for each in kinds:
        run.require_prior(each)
    kinds = [each for each in kinds if each != GAUSSIAN]
    recipe = run.recipe()
    if seed is not None:
        recipe = recipe.model_copy(update={"seed": seed})
    images, held_out = data.load(recipe.data, "train"), data.load(recipe.data, reference)
    n = closures.sizes(samples or recipe.evaluate.samples, images, held_out)
    networks = _networks(features or recipe.evaluate.features, tuple(dict.fromkeys(fid)), images.shape, device)
    digest = cache.images_digest(held_out)
    spaces = []
    for network, names in networks:
        network(held_out.batch([0, 1]))  # one that does not fit is better known at once
        spaces.append(Space(network, cache.features(held_out, digest, network), n, **names))
    classifier = inception.load_classifier(device) if "clean" in fid else None
    sources = _sources(run, kinds, recipe, images, n, steps, device, fast)
    used = [path for path in (run.generator_path, *(run.prior_path(each) for each in kinds)) if path.is_file()]
    checkpoints = {path.name: files.digest(path)[:DIGITS] for path in used}

    draws = [_figures(sources, spaces, classifier, n, draw, reference, repeats == 1) for draw in range(repeats)]
    figures = [_with_error(each) for each in zip(*draws, strict=True)]
    for doubt in _doubts(figures, sources):
        note(doubt)
    if parts:
        diagnosed = [
            diagnose(run, device, each, steps=steps, seed=recipe.seed, parts=parts) for each in kinds or [GAUSSIAN]
        ]
        # What is said of the Gaussian prior is said again beside every other.
        seen = {(figure.name, figure.of, figure.layer): figure for each in diagnosed for figure in each.figures}
        figures += seen.values()

    provenance = {
        "command": command,
        "seed": recipe.seed,
        "samples": n,
        "repeats": repeats,
        "steps": "fast" if fast else steps,
        "reference": {"split": reference, "images": len(held_out), "sha256": digest[:DIGITS]},
        "features": [{"name": s.features.name, "sha256": (s.features.digest or "")[:DIGITS] or None} for s in spaces],
        "checkpoints": checkpoints,
        "hebmtool": metadata.version("hebmtool"),
        "torch": torch.__version__,
        "device": device_name(device),
    }
    found = Evaluation(run.name, figures, provenance)
    try:
        run.set_figure("evaluate", {"figures": [asdict(figure) for figure in figures], "provenance": provenance})
    except HebmError as error:
        note(f"the figures are not kept in the run: {error}")
    return found


def _doubts(figures: Sequence[Figure], sources: Sequence[Source]) -> Iterator[str]:
    """What a closure does not tell: a distance can fall while images leave the data, by a contrast that features like.

    Precision below that of Gaussian samples and of reconstructions says so, and more saturated pixels than in either
    (a perfect prior is as good as reconstructions, which are not always the better of the two).
    """
    found = {(figure.name, figure.of): figure for figure in figures}
    for source in sources:
        if not any(f.name.startswith("closure") and f.of == source.name and f.value is not None for f in figures):
            continue
        for name in [name for name, of in found if of == source.name and name.startswith(("precision", "saturated"))]:
            own, bounds = found[name, source.name], [found[name, of] for of in source.baseline]
            if name == "saturated":
                bound = max(bounds, key=lambda figure: figure.value)
                gap, large = own.value - bound.value, own.value > DOUBTED * bound.value
            else:
                bound = min(bounds, key=lambda figure: figure.value)
                gap, large = bound.value - own.value, bound.value > DOUBTED * own.value
            if large and gap > DOUBT * np.hypot(own.error, bound.error):
                yield (
                    f"{source.name} has {name} {own.value:.3f}, where {bound.of} has {bound.value:.3f}: look at its "
                    "samples before you believe its closure; a chain that runs away saturates images"
                )


def _networks(
    path: str | None, modes: Sequence[str], shape: tuple[int, int, int], device: torch.device
) -> list[tuple[Features, dict]]:
    """The feature networks asked for, each with the names its figures carry."""
    own = load_features(path, shape, device)
    if own is None and not modes:
        raise HebmError(
            "the embedded feature network is for grey images of at most 32x32; "
            "give a TorchScript one for these images, or name a mode of FID for Inception"
        )
    found = [] if own is None else [(own, {})]
    return found + [(inception.load(mode, device), {"suffix": f" ({mode})", "fd": "FID"}) for mode in modes]


def _sources(
    run: Run,
    kinds: Sequence[str],
    recipe: Recipe,
    images: data.Images,
    n: int,
    steps: int | None,
    device: torch.device,
    fast: bool,
) -> list[Source]:
    """The Gaussian prior, the trained ones and reconstructions.

    A prior may come with BatchNorm statistics of its own, and is then compared with Gaussian samples and
    reconstructions that have them too.
    """

    precision = "bf16" if fast else "float32"
    priors = [load_prior(run, kind, device, precision=precision) for kind in kinds]
    # What is learned with its generator is held against N(0, I) on that.
    own = Gaussian(priors[0].generator) if run.one_stage else load_prior(run, GAUSSIAN, device, precision=precision)

    def sampled(prior: Prior, steps: Steps = None) -> Callable[[int], Iterator[Tensor]]:
        return lambda draw: sample(prior, n, closures.draw_seed(recipe, draw), BATCH, steps=steps)

    def reconstructed(prior: Prior) -> Callable[[int], Iterator[Tensor]]:
        return lambda draw: closures.reconstruct(prior, images, recipe, n, draw)

    baselines = [(own.generator, (GAUSSIAN, RECONSTRUCTIONS))]
    first, trained = [Source(GAUSSIAN, sampled(own))], []
    last = [Source(RECONSTRUCTIONS, reconstructed(priors[0] if run.one_stage else own), timed=False)]
    for prior in priors:
        names = next((names for generator, names in baselines if _same(generator, prior.generator)), None)
        if names is None:
            names = (f"{GAUSSIAN} (BatchNorm of {prior.kind})", f"{RECONSTRUCTIONS} (BatchNorm of {prior.kind})")
            baselines.append((prior.generator, names))
            first.append(Source(names[0], sampled(Gaussian(prior.generator))))
            last.append(Source(names[1], reconstructed(prior), timed=False))
        trained.append(Source(prior.kind, sampled(prior, prior.fast_steps() if fast else steps), names))
    return first + trained + last


def _same(a: Generator, b: Generator) -> bool:
    """Whether they draw the same images: in which coordinates does not matter."""
    left, right = ({k: v for k, v in g.state_dict().items() if not k.startswith("whitening.")} for g in (a, b))
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def _figures(
    sources: Sequence[Source],
    spaces: Sequence[Space],
    classifier: Features | None,
    n: int,
    draw: int,
    split: str,
    errors: bool,
) -> list[Figure]:
    """All figures of one draw; without `errors`, only those uncertainties that cost nothing."""
    networks = [space.features for space in spaces] + ([classifier] if classifier is not None else [])
    sets: dict[str, list[np.ndarray]] = {}
    figures: list[Figure] = []
    for source in sources:
        parts, seconds, saturated = [], [], []
        started = time.perf_counter()
        for batch in source.draw(draw):
            seconds.append((time.perf_counter() - started) / len(batch))
            parts.append([network(batch) for network in networks])
            ends = (batch <= ENDS) | (batch >= 255 - ENDS)
            saturated += ends.float().mean((1, 2, 3)).tolist()
            started = time.perf_counter()
        what = f"share of pixel values within {ENDS} of 0 or 255, of {n} images"
        error = float(np.std(saturated, ddof=1)) / n**0.5
        figures.append(Figure("saturated", float(np.mean(saturated)), error, source.name, note=what))
        sets[source.name] = [np.concatenate(each) for each in zip(*parts, strict=True)]
        if source.timed:
            # The last batch may be smaller; the mean is over images, not over batches.
            share = np.array([len(part[0]) for part in parts]) / n
            device = device_name(networks[0].device)
            figures.append(
                Figure(
                    "seconds per 1000 images",
                    1000 * float(share @ seconds),
                    1000 * float(np.std(seconds, ddof=1)) / len(seconds) ** 0.5 if len(seconds) > 1 else None,
                    source.name,
                    "lower",
                    note=f"{device}, batches of {BATCH}, decoding included",
                )
            )
    trained = [source for source in sources if source.baseline is not None]
    judged = []
    with progress("judging", len(spaces) * len(sources)) as bar:
        for i, space in enumerate(spaces):
            seen = {name: each[i] for name, each in sets.items()}
            judged += _distances(seen, trained, space, n, split, errors)
            for name, found in seen.items():
                judged += _neighbourhoods(name, found, space)
                bar.advance()
    if classifier is not None:
        for name, found in sets.items():
            scores = inception.inception_scores(found[-1])
            error = float(np.std(scores, ddof=1)) / len(scores) ** 0.5 if len(scores) > 1 else None
            what = f"Inception score, mean of {len(scores)} splits of {n} images, resized within the network"
            judged.append(Figure("IS", float(scores.mean()), error, name, "higher", note=what))
    return judged + figures


def _distances(
    seen: dict[str, np.ndarray], trained: Sequence[Source], space: Space, n: int, split: str, errors: bool
) -> list[Figure]:
    """FD, closure and KID in one feature space."""
    against = f"{n} images against {len(space.reference)} {split} images, features {space.features.name}"
    fd = {name: distances.frechet_distance(found, space.reference) for name, found in seen.items()}
    spread: dict[str, float] = {}
    shares = []
    for names in [(source.baseline[0], source.name, source.baseline[1]) for source in trained] or [tuple(seen)]:
        drawn = distances.bootstrap_distances([seen[name] for name in names], space.reference) if errors else None
        if drawn is not None:
            spread |= dict(zip(names, drawn.std(0, ddof=1).tolist(), strict=True))
        if trained and split == "test":
            kind, how = names[1], (n, len(space.reference), space.features.name)
            shares.append(closures.closed(kind, [fd[name] for name in names], drawn, *how))
    figures = [
        Figure(f"{space.fd}{space.suffix}", value, spread.get(name), name, "lower", note=against)
        for name, value in fd.items()
    ]
    for found in shares:
        what = (
            f"prior-hole closure, ({space.fd} of Gaussian - of prior) / (of Gaussian - of reconstructions), {against}"
        )
        if found.closure is None:
            what = f"undefined: reconstructions are no nearer to the reference than Gaussian samples, {against}"
        figures.append(Figure(f"closure{space.suffix}", found.closure, found.error, found.kind, "higher", note=what))
    for name, found in seen.items():
        value, error, deviation = distances.kernel_distance(found, space.reference)
        size = distances.kernel_subset(found, space.reference)
        what = f"mean of {distances.KID_SUBSETS} subsets of {size}, {against}"
        figures.append(Figure(f"KID{space.suffix}", value, error, name, "lower", note=what))
        what = f"standard deviation of the KID of subsets of {size}"
        figures.append(Figure(f"KID spread{space.suffix}", deviation, None, name, note=what))
    return figures


def _neighbourhoods(name: str, found: np.ndarray, space: Space) -> list[Figure]:
    """Precision, recall, density and coverage in one feature space."""
    m = len(space.near)
    terms = distances.neighbourhoods(found[:m], space.near, space.radii, space.features.device)
    figures = []
    for figure, term in terms.items():
        k = distances.PRECISION_NEIGHBOURS if figure in ("precision", "recall") else distances.DENSITY_NEIGHBOURS
        error = float(term.std(ddof=1)) / len(term) ** 0.5
        what = f"k = {k}, {m} images of each, features {space.features.name}"
        figures.append(Figure(f"{figure}{space.suffix}", float(term.mean()), error, name, "higher", note=what))
    return figures


def _with_error(draws: Sequence[Figure]) -> Figure:
    """One figure of one or more independent draws, its note saying how its uncertainty was found."""
    first = draws[0]
    if len(draws) == 1:
        if first.error is None:
            return first
        how = ERRORS[first.name.partition(" (")[0]]
        return replace(first, note=f"{first.note}; ± {how}")
    values = [figure.value for figure in draws]
    if None in values:
        missing = next(figure for figure in draws if figure.value is None)
        return replace(missing, error=None, note=f"in {values.count(None)} of {len(draws)} draws {missing.note}")
    error = float(np.std(values, ddof=1)) / len(draws) ** 0.5
    how = f"mean of {len(draws)} independent draws ± its standard error"
    return replace(first, value=float(np.mean(values)), error=error, note=f"{first.note}; {how}")
