"""What the uses of a model come to: each with its picture, which it shows in a notebook, and its figures."""

import io
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from hebmtool import files, picture
from hebmtool.judge import diagnose as diagnostics
from hebmtool.judge import labels as label_judge
from hebmtool.judge import ood, verdict
from hebmtool.metrics.features import Features
from hebmtool.metrics.flow_match import Match
from hebmtool.picture import Pictures
from hebmtool.use import controllable as control
from hebmtool.use import hierarchy
from hebmtool.use import inpaint as inpainting
from hebmtool.use import reconstruct as reconstruction
from hebmtool.use.controllable import Wish
from hebmtool.use.reconstruct import Errors


class Shown(ABC):
    """A result with a picture; it can be had, saved, and shows itself in a notebook."""

    @abstractmethod
    def png(self) -> bytes:
        """The picture, as a PNG file."""

    def picture(self) -> Image.Image:
        return Image.open(io.BytesIO(self.png()))

    def save(self, path: str | Path) -> None:
        """Write the picture as a PNG.  Raises HebmError when it cannot be written."""
        files.write_bytes(path, self.png())

    def _repr_png_(self) -> bytes | None:
        return self.png()


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON has no infinity


@dataclass(repr=False)
class Resampled(Shown):
    """Layers drawn again.

    parts: numbers of those drawn again, top first, for each part.  base: what they were drawn from, [N, C, H, W], and
    images: [parts, N, columns, C, H, W], both in [0, 1].  prior: its kind.
    """

    run: str
    prior: str
    seed: int
    every: bool
    drawn: hierarchy.Resampled
    _by_layer: Callable[[], hierarchy.Resampled] = field(repr=False)
    _features: Callable[[], Features | None] = field(repr=False)

    @property
    def parts(self) -> list[list[int]]:
        return self.drawn.parts

    @property
    def base(self) -> Tensor:
        return self.drawn.base

    @property
    def images(self) -> Tensor:
        return self.drawn.images

    @property
    def title(self) -> str:
        """ "all", "layer 3" or "layers 5-6"."""
        return "all" if self.every else hierarchy.title(self.parts[0])

    def png(self) -> bytes:
        return picture.to_png(hierarchy.figure(self.drawn))

    @cached_property
    def features(self) -> Features | None:
        """The recipe's network, where one fits the images."""
        return self._features()

    @cached_property
    def changes(self) -> list[dict]:
        """How much of the image changed, part by part (`hierarchy.changes`); of the whole hierarchy layer by layer,
        for which more is drawn where parts are of several."""
        features = self.features
        alone = all(len(part) == 1 for part in self.parts)
        return hierarchy.changes(self._by_layer() if self.every and not alone else self.drawn, features)

    @property
    def rises(self) -> list[str]:
        """Where the change does not fall from one layer to the one below it, a sentence per kind of distance."""
        return hierarchy.rises(self.changes)

    def figures(self) -> dict:
        """`changes`, and whether they fall from top to bottom, where all layers were drawn."""
        found, (rows, columns) = self.changes, self.images.shape[1:3]
        about = {"run": self.run, "prior": self.prior, "rows": rows, "columns": columns, "seed": self.seed}
        about |= {"features": None if self.features is None else self.features.name, "parts": found}
        return about | {"falls": not self.rises if self.every else None}

    def __repr__(self) -> str:
        rows, columns = self.images.shape[1:3]
        parts = ", ".join(map(hierarchy.title, self.parts))
        return f"<{parts} drawn again {columns} times from each of {rows} images, by the {self.prior} prior>"


@dataclass(repr=False)
class Controlled(Shown):
    """Images under conditions on labels.

    sets: uint8 [n, C, H, W] for each row of wishes, or, across layers, for the base and each part drawn again.
    wanted: what was asked of each.  figures: `hebmtool.judge.labels.report`'s; {"rows": []} where nothing was judged.
    """

    prior: str
    sets: list[Pictures]
    wanted: Sequence[Sequence[Wish]]
    figures: dict
    layers: control.Layers | None = None

    @property
    def shares(self) -> list[float] | None:
        """How many of each set came out as asked."""
        return [entry["controllability"] for entry in self.figures["rows"]] or None

    def lines(self) -> list[str]:
        """The figures in words."""
        return label_judge.lines(self.figures)

    def png(self) -> bytes:
        if self.layers is not None:
            return picture.to_png(control.layers_figure(self.layers, self.shares))
        return picture.to_png(control.figure(self.sets, self.wanted, self.shares))

    def __repr__(self) -> str:
        n = len(self.sets[0])
        rows = self.lines() or [f"{control.title(row)}: {n} images, not judged" for row in self.wanted]
        return "\n".join(rows)


class Score(NamedTuple):
    """How in-distribution an image is: high = in-distribution."""

    path: str
    score: float
    method: str
    layer: int


@dataclass(repr=False)
class Scores:
    """Scores of images, high = in-distribution.  values: float64 [N].  layer: those above it were used."""

    names: list[str]
    values: Tensor
    method: str
    layer: int

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        lines = [f"{value:.6g}\t{name}" for name, value in zip(self.names, self.values.tolist(), strict=True)]
        return "\n".join([self.method + f", layers above {self.layer}" * bool(self.layer), *lines])


@dataclass(repr=False)
class Separation(Shown):
    """How well scores tell out-of-distribution sets from test images.  methods: one per score."""

    run: str
    prior: str
    methods: list[ood.Method]

    @property
    def verdict(self) -> str:
        """Which score and cut to use, and how sure that is, in a sentence."""
        return verdict.outliers(self.methods)

    def table(self) -> str:
        return ood.table(self.methods)

    def lines(self) -> list[str]:
        """A sentence per score."""
        return [method.sentence() for method in self.methods]

    def figures(self) -> dict:
        about = {"run": self.run, "prior": self.prior, "verdict": self.verdict, "positives": "out-of-distribution"}
        return about | {"images": len(self.methods[0].inside), "methods": [m.figures() for m in self.methods]}

    def png(self) -> bytes:
        return ood.figure(self.methods)

    def __repr__(self) -> str:
        return "\n".join([self.verdict, "", self.table(), *self.lines()])


@dataclass(repr=False)
class Reconstructed(Shown):
    """names: of the images.  images, made: uint8 [N, C, H, W], originals and reconstructions.  errors: MSE and PSNR."""

    prior: str
    names: list[str]
    images: Pictures
    made: Pictures
    errors: Errors

    def figures(self) -> list[dict]:
        """One per image; a PSNR is None where nothing differs."""
        each = zip(self.names, self.errors.mse.tolist(), self.errors.psnr.tolist(), strict=True)
        return [{"path": name, "mse": mse, "psnr": _finite(psnr)} for name, mse, psnr in each]

    def sentence(self) -> str:
        e = self.errors
        return f"MSE {e.mse.mean():.6f} (PSNR {e.pooled():.2f} dB) over {len(self.images)} images"

    def png(self) -> bytes:
        return picture.to_png(reconstruction.figure(self.images, self.made))

    def __repr__(self) -> str:
        return f"<reconstructions by the {self.prior} prior: {self.sentence()}>"


@dataclass(repr=False)
class Ways(Shown):
    """names: of the images.  images: uint8 [N, C, H, W], between which the ways go.  made: [N - 1, points, C, H, W],
    the points of each way from an image to the next, its ends included."""

    prior: str
    names: list[str]
    images: Pictures
    made: Pictures

    def png(self) -> bytes:
        return picture.to_png(self.made.picture())

    def __repr__(self) -> str:
        ways = f"{len(self.made)} way{'s' * (len(self.made) > 1)}"
        return f"<{ways} of {self.made.shape[1]} points by the {self.prior} prior>"


@dataclass(repr=False)
class Inpainted(Shown):
    """names: of the images.  images: uint8 [N, C, H, W], with hidden: bool [N, 1, H, W].
    completions: uint8 [N, draws, C, H, W], and mean: theirs.  damaged: whether `images` are no originals."""

    prior: str
    names: list[str]
    images: Pictures
    hidden: Tensor
    found: inpainting.Completed
    damaged: bool = False

    @property
    def completions(self) -> Pictures:
        return Pictures(self.found.completions)

    @property
    def mean(self) -> Pictures:
        return Pictures(self.found.mean)

    @cached_property
    def errors(self) -> tuple[Errors, Errors] | None:
        """On hidden pixels: averaged over an image's completions, and of their mean; None for damaged images."""
        return None if self.damaged else inpainting.hidden_errors(self.found, self.images, self.hidden)

    def figures(self) -> list[dict]:
        """One per image, none for damaged ones; a PSNR is None where nothing differs."""
        if self.errors is None:
            return []
        each = zip(self.names, *(e.psnr.tolist() for e in self.errors), strict=True)
        return [{"path": name, "psnr": _finite(a), "psnr_of_mean": _finite(b)} for name, a, b in each]

    def sentence(self) -> str:
        draws = self.completions.shape[1]
        plural = "s" * (draws > 1)
        if self.errors is None:
            return f"{draws} completion{plural} of {len(self.images)} images"
        each, mean = self.errors
        return (
            f"hidden pixels: PSNR {each.pooled():.2f} dB, {mean.pooled():.2f} dB for the mean of {draws} "
            f"completion{plural}, over {len(self.images)} images"
        )

    def png(self) -> bytes:
        return picture.to_png(inpainting.figure(self.images, self.hidden, self.found, self.damaged))

    def __repr__(self) -> str:
        return f"<inpainting by the {self.prior} prior: {self.sentence()}>"


@dataclass(repr=False)
class Matched(Shown):
    """Inferred latents held against the prior (`hebmtool.metrics.flow_match`).  steps: of inference."""

    run: str
    prior: str
    steps: int
    match: Match
    _png: Callable[[], bytes]

    def figures(self) -> dict:
        return {"run": self.run} | self.match.figures()

    def sentence(self) -> str:
        found = self.match
        return (
            f"inferred latents to the {self.prior} prior {found.prior:.3f} (floor {found.floor:.3f}), to N(0, I) "
            f"{found.normal:.3f}; sliced Wasserstein-2, {found.samples} latents a set"
        )

    def png(self) -> bytes:
        return self._png()

    def __repr__(self) -> str:
        return self.sentence()


@dataclass(repr=False)
class Diagnosed(Shown):
    """What is wrong with a prior, and where.  figures: all of them."""

    run: str
    found: diagnostics.Diagnosis

    @property
    def prior(self) -> str:
        return self.found.kind

    @property
    def figures(self) -> list:
        return self.found.figures

    @property
    def verdict(self) -> str | None:
        """Where the hole is, and what of it the prior leaves, in a sentence; None where no part that was asked says."""
        return verdict.hole(self.figures)

    def table(self) -> str:
        return diagnostics.table(self.figures)

    def png(self) -> bytes:
        return diagnostics.figure(self.found)

    def _repr_png_(self) -> bytes | None:
        return None if self.found.chains is None else self.png()

    def __repr__(self) -> str:
        """The verdict, the figures, and what those of the verdict are."""
        return "\n\n".join(filter(None, [self.verdict, self.table(), "\n".join(verdict.legend(self.figures))]))
