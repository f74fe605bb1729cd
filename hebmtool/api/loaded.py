"""A run and its prior, loaded: what every use of a model starts from."""

import math
from collections.abc import Callable, Mapping
from functools import cached_property

import torch

from hebmtool.api.given import at_least
from hebmtool.compute import fast_precision
from hebmtool.errors import UsageError
from hebmtool.generator import Generator
from hebmtool.judge.sources import drawn_by, given
from hebmtool.prior import Prior, Steps
from hebmtool.run.again import trained_with
from hebmtool.run.folder import Run
from hebmtool.run.header import contents


class Loaded:
    """A prior on its generator, both frozen.

    Arguments:
        run: that it is of.
        prior_in: loads it in a precision, "float32" or "bf16".
        precision: to load it in.
    """

    def __init__(self, run: Run, prior_in: Callable[[str], Prior], precision: str = "float32"):
        self.run, self.precision = run, precision
        self._prior_in, self.prior = prior_in, prior_in(precision)
        self.recipe = trained_with(run, run.prior_path(self.prior.kind))

    @property
    def generator(self) -> Generator:
        return self.prior.generator

    @property
    def device(self) -> torch.device:
        return self.generator.device

    def checkpoints(self) -> dict[str, str]:
        """Digests of the contents of the run's files that the model is made of, by their names."""
        paths = self.run.generator_path, self.run.prior_path(self.prior.kind)
        return {path.name: contents(path) for path in paths if path.is_file()}

    @cached_property
    def _fast(self) -> Prior:
        precision = fast_precision(self.device)
        return self.prior if self.precision in ("bf16", precision) else self._prior_in(precision)

    def _drawn_by(
        self,
        steps: Steps,
        chain: str | None,
        fast: bool,
        settings: Mapping[str, object],
        *,
        temperature: float,
        seed: int,
        **counts: int | None,
    ) -> tuple[Prior, Steps]:
        """The prior to draw by and the steps to take, after a look at all that says how."""
        if not 0 < temperature < math.inf:
            raise UsageError(f"temperature is {temperature}; it must be above 0 and finite, 1 being the prior itself")
        at_least(0, seed=seed)
        at_least(1, **counts)
        if fast and steps is not None:
            raise UsageError("fast chooses the Langevin steps itself; leave out either it or steps")
        sampler = given(chain, settings)
        prior = drawn_by(self.prior, sampler)
        if fast:
            steps = prior.fast_steps()  # what cannot be drawn fast need not be loaded
            return drawn_by(self._fast, sampler), steps
        if steps is not None:
            if not prior.gradients(1):
                raise UsageError(
                    f"steps is for Langevin steps, and a draw of the {prior.kind} prior takes none; leave it out"
                )
            each = [steps] * prior.T if isinstance(steps, int) else list(steps)
            if len(each) != prior.T or min(each) < 0:
                raise UsageError(f"steps is {steps}; give a number from 0, or one for each of {prior.T} level(s)")
        return prior, steps
