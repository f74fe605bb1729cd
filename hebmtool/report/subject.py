"""The run reported on, with what several sections need."""

import shlex
from collections.abc import Sequence
from functools import cached_property

import torch
from markupsafe import Markup

from hebmtool import data
from hebmtool.errors import HebmError
from hebmtool.prior import Gaussian, Prior
from hebmtool.report.page import code
from hebmtool.run import info, split
from hebmtool.run.folder import Run
from hebmtool.run.open import load_prior


class Subject:
    """A run, described, and its priors.

    priors: those that load, from the simplest to the one to be preferred, N(0, I) on its generator before one that
    brings its own.  unusable: why the others do not.
    """

    def __init__(self, run: Run, device: torch.device, seed: int, batch_size: int):
        self.run, self.device, self.seed, self.batch_size = run, device, seed, batch_size
        self.found, self.recipe = info.describe(run), run.recipe()
        self.priors: list[Prior] = []
        self.unusable: list[str] = []
        for kind in run.priors():
            try:
                prior = load_prior(run, kind, device)
            except HebmError as error:
                self.unusable.append(f"The {kind} prior is left out: {error}.")
                continue
            self.priors += [Gaussian(prior.generator)] * prior.brings_generator + [prior]
        if not self.priors:
            raise HebmError(f"nothing in {run.path} can be loaded: {self.unusable[0]}")

    @property
    def best(self) -> Prior:
        return self.priors[-1]

    @property
    def ebm(self) -> Prior | None:
        """The best prior that has an energy."""
        return next((prior for prior in self.priors[::-1] if prior.T), None)

    @cached_property
    def test(self) -> data.Images:
        images, shape = split.load(self.run, self.recipe.data, "test"), self.best.generator.image_shape
        if tuple(images.shape) != tuple(shape):
            raise HebmError(f"the run's data are now images of {images.shape}, but its generator makes {shape}")
        return images

    def command(self, *words: str) -> Markup:
        """A `hebm` command."""
        return code(shlex.join(["hebm", *words]))


def name_of(prior: Prior) -> str:
    return f"{prior.kind} prior" if prior.learned else "Gaussian prior"


def shape_words(shape: Sequence[int]) -> str:
    """ "28x28 grey"."""
    channels, height, width = shape
    return f"{width}×{height} " + {1: "grey", 3: "colour"}.get(channels, f"{channels}-channel")
