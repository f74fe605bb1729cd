"""Judging a finished run: every prior of it side by side, with its uncertainty and what it takes to measure it again.

Each set of images is drawn once per draw and read once by each feature network: n images of every prior, and n
reconstructions of training images, the floor that no prior on this generator gets below.  All are held against the
same reference images.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import metadata

import numpy as np
import torch
from torch import Tensor

from hebmtool.compute import device_name, fast_precision
from hebmtool.console import note, progress
from hebmtool.errors import HebmError, UsageError
from hebmtool.judge.closure import sizes
from hebmtool.judge.diagnose import diagnose_prior, telling
from hebmtool.judge.evaluation import DIGITS, Evaluation, keep
from hebmtool.judge.sources import GAUSSIAN, Source, arrival_figures, given, list_sources, load_priors
from hebmtool.judge.spaces import (
    TO_RECONSTRUCTIONS,
    Space,
    distance_figures,
    hole_figures,
    load_spaces,
    neighbourhood_figures,
    share_figures,
)
from hebmtool.metrics import cache, distances, inception
from hebmtool.metrics.features import BATCH, Features
from hebmtool.metrics.figures import Figure
from hebmtool.run import split
from hebmtool.run.folder import Run
from hebmtool.run.header import CONTENTS, contents
from hebmtool.use.sample import check_pixels

SPLITS = ("test", "train")
DOUBT, DOUBTED = 3.0, 1.05  # standard errors, and factor, from the bounds at which a closure is doubted
ENDS = 2  # grey levels
SHOWN = 12  # images of each set

# How each figure's uncertainty is found in a single draw; a new figure that has one is named here too.
ERRORS = {
    "FD": f"bootstrap of the images judged ({distances.BOOTSTRAPS} resamplings), reference held fixed",
    "FID": f"bootstrap of the images judged ({distances.BOOTSTRAPS} resamplings), reference held fixed",
    "KID": "standard error over the images judged and the subsets, reference held fixed",
    "precision": "standard error over the images judged, reference held fixed",
    "density": "standard error over the images judged, reference held fixed",
    "recall": "standard error over the reference images, the images judged held fixed",
    "coverage": "standard error over the reference images, the images judged held fixed",
    f"FD{TO_RECONSTRUCTIONS}": f"bootstrap of the images judged ({distances.BOOTSTRAPS} resamplings), others fixed",
    f"FID{TO_RECONSTRUCTIONS}": f"bootstrap of the images judged ({distances.BOOTSTRAPS} resamplings), others fixed",
    f"closure{TO_RECONSTRUCTIONS}": f"bootstrap of the three sets ({distances.BOOTSTRAPS} resamplings), others fixed",
    "closure": f"bootstrap of the three sets ({distances.BOOTSTRAPS} resamplings), reference held fixed",
    "class shares": "standard deviation that counting makes",
    "clean": "standard error over the images judged",
    "mean F": "standard error over the images judged",
    "F short of the posterior": "standard error over the images judged and the posterior's",
    "IS": "standard error over the splits",
    "saturated": "standard error over the images judged",
    "seconds per 1000 images": f"standard error over batches of {BATCH}",
}


def _check(fid: Sequence[str], reference: str, fast: bool, parts: Sequence[str]) -> None:
    for what, words, allowed in (("FID mode", fid, inception.MODES), ("reference split", [reference], SPLITS)):
        for word in words:
            if word not in allowed:
                raise UsageError(f"there is no {what} '{word}'; choose from {', '.join(allowed)}")
    if fast and parts:
        raise UsageError("drawing fast samples otherwise than diagnosis and likelihood judge; leave out either")


def _checkpoints(run: Run, kinds: Sequence[str]) -> dict[str, str]:
    """Digests of what the files judged hold, by name."""
    used = [run.generator_path, *(run.prior_path(kind) for kind in kinds)]
    return {path.name: contents(path)[: len(CONTENTS) + DIGITS] for path in used if path.is_file()}


# More than a screen, for it has as many arguments as judging has settings, and says of each what it is.
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
    trust_features: bool = False,
    command: str | None = None,
    chain: str | None = None,
    pixels: str | None = None,
    **settings: object,
) -> Evaluation:
    """Judge the run's prior of this kind, or every one, beside the Gaussian prior and reconstructions.

    The result is also kept in the run's figures.json, beside those of other checkpoints and settings.

    Arguments:
        steps: Langevin steps per level, each prior's own when None.
        samples, features: images per set and a feature network's file, the recipe's when None.
        fid: modes of clean-fid ("clean", "legacy_pytorch") in which Inception is to judge as well.
        reference: the split all are held against; the closure is defined for "test".
        repeats: independent sets drawn of each; from two on, figures are their mean and its standard error.
        seed: of the draws, the recipe's when None.
        fast: draw fast (`Prior.fast_steps`), everything in bf16 where the device computes that faster.
        parts: of `diagnose.PARTS`, to be judged as well.
        trust_features: whether the file that `features` names may run code (TorchScript, .pt2).
        command: what the user typed, for the provenance.
        pixels: judge the "mean" of p(x | z) or a "sample" of it; as the recipe says when None.
        chain, settings: what the priors are drawn with (`Prior.using`) in place of what they were learned with; None
            stands for a setting that is not given.

    Raises:
        UsageError: an unknown kind, mode or split, `parts` with `fast`, or a way of drawing that a prior does not have.
        HebmError: nothing is trained, too few images, no feature network fits them, no Inception, or parts that say
            nothing of a prior judged.
    """
    _check(fid, reference, fast, parts)
    kinds = [kind] if kind else run.priors()
    for each in kinds:
        run.require_prior(each)
    kinds = [each for each in kinds if each != GAUSSIAN]
    recipe = run.recipe()
    if seed is not None:
        recipe = recipe.model_copy(update={"seed": seed})
    if pixels is not None:
        recipe = recipe.model_copy(
            update={"evaluate": recipe.evaluate.model_copy(update={"pixels": check_pixels(pixels)})}
        )
    images, held_out = (split.load(run, recipe.data, each) for each in ("train", reference))
    n, sampler = sizes(samples or recipe.evaluate.samples, images, held_out), given(chain, settings)
    own, trained = load_priors(run, kinds, device, steps, sampler, fast_precision(device) if fast else "float32")
    sources = list_sources(own, trained, images, held_out, recipe, n, steps, fast)
    diagnosed = [(prior, telling(prior, parts)) for prior in (trained or [own]) if parts]
    digest = cache.images_digest(held_out)
    path, trusted = (recipe.evaluate.features, False) if features is None else (features, trust_features)
    spaces = load_spaces(path, fid, held_out, digest, n, device, trusted)
    classifier = inception.load_classifier(device) if "clean" in fid else None
    provenance = {
        "command": command,
        "seed": recipe.seed,
        "samples": n,
        "repeats": repeats,
        "steps": "fast" if fast else steps,
        **({"sampler": sampler} if sampler else {}),
        **({"parts": list(parts)} if parts else {}),
        **({"pixels": recipe.evaluate.pixels} if recipe.evaluate.pixels != "mean" else {}),
        "reference": {"split": reference, "images": len(held_out), "sha256": digest[:DIGITS]},
        "features": [{"name": s.features.name, "sha256": (s.features.digest or "")[:DIGITS] or None} for s in spaces],
        "checkpoints": _checkpoints(run, kinds),
        "hebmtool": metadata.version("hebmtool"),
        "torch": torch.__version__,
        "device": device_name(device),
    }

    draws = [_figures(sources, spaces, classifier, n, draw, reference, repeats) for draw in range(repeats)]
    # Reconstructions are of these.
    first = draws[0][1] | {"images": images.batch(range(min(n, SHOWN)))}
    figures = [_with_error(each) for each in zip(*(found for found, _ in draws), strict=True)]
    for doubt in (*_doubts(figures, sources), *_not_arrived(sources)):
        note(doubt)
    # What is said of the Gaussian prior is said again beside every other.
    figures += {
        (figure.name, figure.of, figure.layer): figure
        for prior, told in diagnosed
        for figure in diagnose_prior(prior, run, recipe, steps=steps, seed=recipe.seed, parts=told).figures
    }.values()
    found = Evaluation(run.name, figures, provenance, first)
    try:
        keep(run, found)
    except HebmError as error:
        note(f"the figures are not kept in the run: {error}")
    return found


@dataclass
class _Seen:
    """What a draw of one source came to.

    first: a few of its images.  features: by each network, [n, D].  saturated: share of an image's pixel values at the
    ends, [n].  seconds: per image of each batch, and sizes: images in it.
    """

    first: Tensor | None
    features: list[np.ndarray]
    saturated: list[float]
    seconds: list[float]
    sizes: list[int]


def _see(source: Source, networks: Sequence[Features], draw: int) -> _Seen:
    parts, seen = [], _Seen(None, [], [], [], [])
    started = time.perf_counter()
    for batch in source.draw(draw):
        seen.seconds.append((time.perf_counter() - started) / len(batch))
        seen.sizes.append(len(batch))
        parts.append([network(batch) for network in networks])
        if seen.first is None:
            seen.first = batch[:SHOWN].cpu()
        ends = (batch <= ENDS) | (batch >= 255 - ENDS)
        seen.saturated += ends.float().mean((1, 2, 3)).tolist()
        started = time.perf_counter()
    seen.features = [np.concatenate(each) for each in zip(*parts, strict=True)]
    return seen


def _own_figures(source: Source, seen: _Seen, n: int, device: torch.device) -> Iterator[Figure]:
    """Figures of one set that no reference enters: saturation and speed."""
    what = f"share of pixel values within {ENDS} of 0 or 255, of {n} images"
    error = float(np.std(seen.saturated, ddof=1)) / n**0.5
    yield Figure("saturated", float(np.mean(seen.saturated)), error, source.name, note=what)
    if source.timed:
        # The last batch may be smaller; the mean is over images, not over batches.
        value = 1000 * float(np.array(seen.sizes) / n @ seen.seconds)
        batches = len(seen.seconds)
        error = 1000 * float(np.std(seen.seconds, ddof=1)) / batches**0.5 if batches > 1 else None
        what = f"{device_name(device)}, batches of {BATCH}, decoding included"
        yield Figure("seconds per 1000 images", value, error, source.name, "lower", note=what)
    if source.arrival is not None:
        yield from arrival_figures(source.arrival(), source.name)


def _figures(
    sources: Sequence[Source],
    spaces: Sequence[Space],
    classifier: Features | None,
    n: int,
    draw: int,
    split: str,
    repeats: int,
) -> tuple[list[Figure], dict[str, Tensor]]:
    """All figures of one draw, and a few images of each set; where there are several draws, only those uncertainties
    that cost nothing.

    A new metric of images adds its figures here: to `judged` where it holds a set against the reference in a feature
    space, as `neighbourhood_figures` does, and else to `own`.
    """
    networks = [space.features for space in spaces] + ([classifier] if classifier is not None else [])
    errors = repeats == 1
    sets: dict[str, list[np.ndarray]] = {}
    first: dict[str, Tensor] = {}
    own: list[Figure] = []
    for source in sources:
        seen = _see(source, networks, draw)
        sets[source.name] = seen.features
        first[source.name] = seen.first
        own += _own_figures(source, seen, n, networks[0].device)
    trained = [source for source in sources if source.baseline is not None]
    again, judges = [source for source in sources if source.again], networks[: len(spaces)]
    others = {source.name: _see(source, judges, repeats + draw).features for source in again}
    judged = []
    with progress("judging", len(spaces) * len(sources)) as bar:
        for i, space in enumerate(spaces):
            seen_here = {name: each[i] for name, each in sets.items()}
            judged += distance_figures(seen_here, trained, space, split, errors)
            judged += hole_figures(seen_here, trained, {name: each[i] for name, each in others.items()}, space, errors)
            baselines = {sources[0].name: sources[-1].name} | {each.name: each.baseline[1] for each in trained}
            judged += share_figures(seen_here, baselines, space, errors)
            for name, found in seen_here.items():
                judged += neighbourhood_figures(name, found, space)
                bar.advance()
    if classifier is not None:
        for name, found in sets.items():
            scores = inception.inception_scores(found[-1])
            error = float(np.std(scores, ddof=1)) / len(scores) ** 0.5 if len(scores) > 1 else None
            what = f"Inception score, mean of {len(scores)} splits of {n} images, resized within the network"
            judged.append(Figure("IS", float(scores.mean()), error, name, "higher", note=what))
    return judged + own, first


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


def _not_arrived(sources: Sequence[Source]) -> Iterator[str]:
    """What the last draw of a source says of its sampler."""
    for source in sources:
        if source.arrival is not None and (sentence := source.arrival().sentence()):
            yield f"{source.name}: {sentence}"


def _doubts(figures: Sequence[Figure], sources: Sequence[Source]) -> Iterator[str]:
    """What a closure does not tell: a distance can fall while images leave the data, by a contrast that features like.

    Precision below that of Gaussian samples and of reconstructions says so, and more saturated pixels than in either
    (a perfect prior is as good as reconstructions, which are not always the better of the two).  So does a closure that
    is higher than that to reconstructions, which counts every deviation.
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
        for name, of in [key for key in found if key[1] == source.name and f"closure{TO_RECONSTRUCTIONS}" in key[0]]:
            own, hole = found.get((name.replace(TO_RECONSTRUCTIONS, ""), of)), found[name, of]
            if own is None or None in (own.error, hole.error):
                continue
            if own.value - hole.value > DOUBT * np.hypot(own.error, hole.error):
                yield (
                    f"{of} has {own.name} {own.value:.3f}, but {hole.value:.3f} to reconstructions: its draws come "
                    "nearer to images by being other than reconstructions are; believe the latter"
                )
