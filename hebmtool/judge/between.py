"""The Fréchet distance between two sets of images, wherever they are: in folders, arrays, drawn or held by a run.

In Inception's features it is FID, as clean-fid has it: its reading, its resizing, its network.  Where Inception is not
to be had the distance is in another network's features, given or embedded; the number then goes by the name FD, for it
is comparable only with its like.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hebmtool import data
from hebmtool.console import note
from hebmtool.errors import HebmError
from hebmtool.metrics import inception
from hebmtool.metrics.distances import frechet_distance
from hebmtool.metrics.features import BATCH, Features, load_features
from hebmtool.recipe import Data, Recipe


@dataclass(frozen=True)
class Side:
    """One of the two sets.

    name: what it goes by.  path: its folder, array or picture; None for what comes from a run.  shape: (C, H, W) of its
    images, None where they first have to be read.  images: uint8 [C, H, W], one at a time, in the shape given.
    """

    name: str
    path: Path | None
    shape: tuple[int, int, int] | None
    images: Callable[[tuple[int, int, int]], Iterator[Tensor]]


@dataclass(frozen=True)
class Between:
    """The distance.  figure: "FID" or "FD".  mode: clean-fid's, None in other features.  a, b: (name, images)."""

    figure: str
    value: float
    features: str
    sha256: str | None
    mode: str | None
    a: tuple[str, int]
    b: tuple[str, int]

    def as_dict(self) -> dict:
        sides = {key: {"name": name, "images": n} for key, (name, n) in (("a", self.a), ("b", self.b))}
        about = {"figure": self.figure, "value": self.value, "features": self.features, "mode": self.mode}
        return about | {"sha256": self.sha256} | sides

    def __repr__(self) -> str:
        (a, n), (b, m) = self.a, self.b
        return f"{self.figure} {self.value:.4g} in {self.features} features: {a}, {n:,} images, and {b}, {m:,}"


def on_disk(path: Path, fit: bool) -> Side:
    """Images in a folder (at any depth), an .npz or .npy, or one picture; unless `fit` they are of one size."""

    def images(shape: tuple[int, int, int]) -> Iterator[Tensor]:
        return (image for _, image in data.read([str(path)], Recipe(), shape, _raised, exact=not fit))

    return Side(str(path), path, None, images)


def held(name: str, images: data.Images, n: int | None = None) -> Side:
    """The first n images of a set."""

    def each(shape: tuple[int, int, int]) -> Iterator[Tensor]:
        for indices in torch.arange(min(n or len(images), len(images))).split(BATCH):
            yield from images.batch(indices)

    return Side(name, None, images.shape, each)


def drawn(name: str, shape: tuple[int, int, int], batches: Callable[[], Iterator[Tensor]]) -> Side:
    """What a run draws, a batch at a time."""
    return Side(name, None, shape, lambda _: (image for batch in batches() for image in batch.as_subclass(Tensor)))


def distance(
    a: Side,
    b: Side,
    device: torch.device,
    mode: str | None = None,
    features: str | None = None,
    trusted: bool = False,
) -> Between:
    """The distance between the sets.

    Arguments:
        mode: clean-fid's, "clean" or "legacy_pytorch"; when None "clean", and where Inception is not to be had the
            embedded network.
        features, trusted: another network's file (`load_features`), in place of Inception.

    Raises:
        HebmError: fewer than two images in a set, of different sizes where they may not be; no network.
    """
    shape = a.shape or b.shape or _shape_of(a)
    network, mode = _inception(mode, device) if features is None else (None, None)
    phi = load_features(features, shape, device, trusted) if network is None else inception.load(mode, device, network)
    seen = []
    for side in (a, b):
        # Of a folder clean-fid reads the images itself, of whatever sizes.
        folder = side.path if network is not None and side.path is not None and side.path.is_dir() else None
        if folder is None:
            found = _seen(side.images(shape), phi)
        else:
            found = inception.folder_features(folder, network, mode, device)
        if len(found) < 2:
            raise HebmError(f"{side.name} has {len(found)} image(s), and a distance takes at least two; give more")
        seen.append(found)
    counts = [(side.name, len(found)) for side, found in zip((a, b), seen, strict=True)]
    return Between("FD" if mode is None else "FID", frechet_distance(*seen), phi.name, phi.digest, mode, *counts)


def _shape_of(side: Side) -> tuple[int, int, int]:
    """Of the first image there."""
    if side.path.suffix.lower() in (".npz", ".npy"):
        return tuple(data.read_array(str(side.path)).shape[1:])
    first = data.paths_in(side.path)[0] if side.path.is_dir() else side.path
    return tuple(data.read_image(first, Data()).shape)


def _inception(mode: str | None, device: torch.device) -> tuple[Callable | None, str | None]:
    """clean-fid's network and mode; (None, None), with a note, where none was asked for, Inception is not to be had: an
    embedded network will do."""
    try:
        return inception.network(mode or "clean", device), mode or "clean"
    except HebmError as error:
        if mode is not None:
            raise
        note(f"compared in the embedded features instead: {error}")
        return None, None


def _seen(images: Iterator[Tensor], phi: Features) -> np.ndarray:
    """Features of a set, float64 [N, D]."""
    found = []
    while batch := list(islice(images, BATCH)):
        found.append(phi(torch.stack(batch)))
    return np.concatenate(found) if found else np.zeros((0, 1))


def _raised(error: HebmError) -> None:
    raise error
