"""A feature space with the reference images in it, and the figures of sets of images seen there.

FD, KID, precision, recall, density, coverage (`hebmtool.metrics.distances`), class shares and the share of clean images
(`hebmtool.metrics.shares`) and, against test images, the prior-hole closure (`hebmtool.judge.closure`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hebmtool import data
from hebmtool.errors import HebmError
from hebmtool.judge.closure import Closure, closed
from hebmtool.judge.sources import Source
from hebmtool.metrics import cache, distances, inception, shares
from hebmtool.metrics.features import Features, load_features
from hebmtool.metrics.figures import Figure

TO_RECONSTRUCTIONS = " to reconstructions"  # of a figure that is not held against images


@dataclass
class Space:
    """A feature network with the reference seen by it; `suffix` tells its figures from another's.

    labels: classes of the reference images, [M], where they have some.  n: images judged.  Neighbourhoods depend on how
    many images there are, so as many of the reference are taken, at random but always the same.
    """

    features: Features
    reference: np.ndarray
    n: int
    labels: np.ndarray | None = None
    suffix: str = ""
    fd: str = "FD"

    def __post_init__(self) -> None:
        m = min(self.n, len(self.reference), distances.PAIRED_IMAGES)
        self.near = self.reference[np.random.default_rng(0).permutation(len(self.reference))[:m]]
        self.radii = distances.neighbour_radii(self.near, self.features.device)
        self.classes = shares.Classes(self.reference, self.labels)


def load_spaces(
    path: str | None,
    modes: Sequence[str],
    reference: data.Images,
    digest: str,
    n: int,
    device: torch.device,
    trusted: bool = False,
) -> list[Space]:
    """The feature networks asked for, with the reference images in them.

    Arguments:
        path, trusted: as `load_features`'s.
        modes: of clean-fid's Inception.
        digest: `cache.images_digest(reference)`.
        n: images judged.

    Raises:
        HebmError: no network fits these images, or one cannot be loaded.
    """
    own = load_features(path, reference.shape, device, trusted)
    if own is None and not modes:
        raise HebmError(
            f"the embedded feature networks are for grey and RGB images, and these have {reference.shape[0]} channels; "
            "give one for them"
        )
    networks: list[tuple[Features, dict]] = [] if own is None else [(own, {})]
    networks += [(inception.load(mode, device), {"suffix": f" ({mode})", "fd": "FID"}) for mode in dict.fromkeys(modes)]
    spaces = []
    for network, names in networks:
        network(reference.batch([0, 1]))  # one that does not fit is better known at once
        labels = None if reference.labels is None else reference.labels.numpy()
        spaces.append(Space(network, cache.features(reference, digest, network), n, labels, **names))
    return spaces


def distance_figures(
    seen: dict[str, np.ndarray], trained: Sequence[Source], space: Space, split: str, errors: bool
) -> list[Figure]:
    """FD, closure and KID of every set.

    Arguments:
        seen: features of each set, [n, D].
        trained: the sources of which a closure is wanted.
        split: what the reference is; the closure is defined for "test".
        errors: whether to find the uncertainty of FD and closure by bootstrap.
    """
    against = f"{space.n} images against {len(space.reference)} {split} images, features {space.features.name}"
    figures = _frechet_figures(seen, trained, space.reference, against, space, errors, split == "test")
    for of, found in seen.items():
        value, error, deviation = distances.kernel_distance(found, space.reference)
        size = distances.kernel_subset(found, space.reference)
        what = f"mean of {distances.KID_SUBSETS} subsets of {size}, {against}"
        figures.append(Figure(f"KID{space.suffix}", value, error, of, "lower", note=what))
        what = f"standard deviation of the KID of subsets of {size}"
        figures.append(Figure(f"KID spread{space.suffix}", deviation, None, of, note=what))
    return figures


def hole_figures(
    seen: dict[str, np.ndarray],
    trained: Sequence[Source],
    others: dict[str, np.ndarray],
    space: Space,
    errors: bool,
) -> Iterator[Figure]:
    """FD and closure of every set against reconstructions of other images, not against images: the prior hole itself.

    An FD to images that the generator cannot draw falls with whatever looks a little more like them, first of all with
    contrast: a prior whose draws are saturated comes nearer to sharp images than reconstructions are.  Against
    reconstructions, what a perfect prior on this generator would draw, every deviation counts, and as its square.

    Arguments:
        seen, trained, errors: as `distance_figures`'s.
        others: features of other reconstructions, [n, D], by the name of those that are judged beside them.
    """
    for name, reference in others.items():
        alike = [source for source in trained if source.baseline[1] == name]
        of = {each for source in alike for each in (source.name, *source.baseline)} or set(seen)
        beside = {each: found for each, found in seen.items() if each in of}
        against = f"{space.n} images against {len(reference)} other reconstructions, features {space.features.name}"
        yield from _frechet_figures(beside, alike, reference, against, space, errors, to=TO_RECONSTRUCTIONS)


def _frechet_figures(
    seen: dict[str, np.ndarray],
    trained: Sequence[Source],
    reference: np.ndarray,
    against: str,
    space: Space,
    errors: bool,
    closing: bool = True,
    to: str = "",
) -> list[Figure]:
    """FD of every set to the features `reference`, and of `trained` the closures, unless not `closing`; `to` says in
    their names to what, and `against` in their notes."""
    fd = {of: distances.frechet_distance(found, reference) for of, found in seen.items()}
    spread: dict[str, float] = {}
    closures = []
    for names in [(source.baseline[0], source.name, source.baseline[1]) for source in trained] or [tuple(seen)]:
        drawn = distances.bootstrap_distances([seen[of] for of in names], reference) if errors else None
        if drawn is not None:
            spread |= dict(zip(names, drawn.std(0, ddof=1).tolist(), strict=True))
        if trained and closing:
            of = [fd[each] for each in names]
            closures.append(closed(names[1], of, drawn, space.n, len(reference), space.features.name))
    figures = [
        Figure(f"{space.fd}{to}{space.suffix}", value, spread.get(of), of, "lower", note=against)
        for of, value in fd.items()
    ]
    return figures + [_closure_figure(found, space, against, to) for found in closures]


def _closure_figure(found: Closure, space: Space, against: str, to: str) -> Figure:
    what = f"prior-hole closure, ({space.fd} of Gaussian - of prior) / (of Gaussian - of reconstructions), {against}"
    if found.closure is None:
        what = f"undefined: reconstructions are no nearer to the reference than Gaussian samples, {against}"
    return Figure(f"closure{to}{space.suffix}", found.closure, found.error, found.kind, "higher", note=what)


def neighbourhood_figures(name: str, found: np.ndarray, space: Space) -> list[Figure]:
    """Precision, recall, density and coverage of one set, features [n, D]."""
    m = len(space.near)
    terms = distances.neighbourhoods(found[:m], space.near, space.radii, space.features.device)
    figures = []
    for figure, term in terms.items():
        k = distances.PRECISION_NEIGHBOURS if figure in ("precision", "recall") else distances.DENSITY_NEIGHBOURS
        error = float(term.std(ddof=1)) / len(term) ** 0.5
        what = f"k = {k}, {m} images of each, features {space.features.name}"
        figures.append(Figure(f"{figure}{space.suffix}", float(term.mean()), error, name, "higher", note=what))
    return figures


def share_figures(
    seen: dict[str, np.ndarray], baselines: dict[str, str], space: Space, errors: bool
) -> Iterator[Figure]:
    """How far class shares are from reconstructions', and which images are clean.

    Arguments:
        seen: features of each set, [n, D].
        baselines: the name of the set of reconstructions that each set's shares are held against.
        errors: whether to find the uncertainty that counting makes.
    """
    n, known = space.n, space.labels is not None
    found = {name: space.classes(features) for name, features in seen.items()}
    near = f"{shares.NEIGHBOURS} nearest reference images in features {space.features.name}"
    by = f"the {near}" if known else f"{space.classes.K} clusters of the reference in features {space.features.name}"
    for name, (own, clean) in found.items():
        if name in baselines:
            other = found[baselines[name]][0]
            alone, error = shares.counting(own, other, n)
            what = f"total variation to {baselines[name]}, {n} images, by {by}; counting alone makes {alone:.3f}"
            value = shares.total_variation(own, other)
            yield Figure(f"class shares{space.suffix}", value, error if errors else None, name, "lower", note=what)
        if clean is not None:
            error = float(clean.std(ddof=1)) / n**0.5
            what = f"share of {n} images whose {near} are of one class"
            yield Figure(f"clean{space.suffix}", float(clean.mean()), error, name, "higher", note=what)
