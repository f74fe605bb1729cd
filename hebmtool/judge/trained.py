"""What a training has reached, measured right after it and kept in the run's figures."""

from dataclasses import dataclass

import torch

from hebmtool import data
from hebmtool.console import note
from hebmtool.data import masks
from hebmtool.errors import HebmError
from hebmtool.judge import one_stage
from hebmtool.judge.closure import Closure, closure, sizes
from hebmtool.metrics.features import Features, load_features
from hebmtool.prior import Prior
from hebmtool.recipe import Recipe
from hebmtool.run import header
from hebmtool.run.folder import Run


@dataclass
class Judge:
    """Looks at what judging will need before the training, as its `ready`, and judges after it.

    features: the network that fits the images; None where there is none.  trusted: whether its file may run code.
    """

    recipe: Recipe
    device: torch.device
    images: data.Images | None = None
    test: data.Images | None = None
    features: Features | None = None
    trusted: bool = False

    def ready(self, images: data.Images, test: data.Images) -> None:
        """Raises HebmError for too few images, or a feature network that cannot be loaded or does not fit."""
        self.images, self.test = images, test
        if not self.recipe.one_stage:
            sizes(self.recipe.evaluate.samples, images, test)
        elif len(test) < 2:
            raise HebmError(
                "judging needs at least 2 test images, and there is 1; give more, or raise data.test_fraction"
            )
        self.features = load_features(self.recipe.evaluate.features, images.shape, self.device, self.trusted)
        if self.features is not None:
            self.features(test.batch([0, 1]))  # one that does not fit is better known before training than after

    def closure(self, prior: Prior, run: Run) -> Closure | None:
        """The prior-hole closure of a prior trained on the run's generator; None where no feature network fits."""
        if self.features is None:
            note("no closure measured: set evaluate.features to a network for images of this kind")
            return None
        samples = self.recipe.evaluate.samples
        found = closure(prior, self.images, self.test, self.recipe, self.features, samples)
        of = [run.generator_path, run.prior_path(prior.kind)]
        run.set_figure(("closure", prior.kind), found.figures() | {"step": self._step(prior, run)}, of)
        note(f"{prior.kind}: {found.sentence()}")
        return found

    def one_stage(self, prior: Prior, run: Run) -> dict:
        """The figures of a prior trained together with its generator (`hebmtool.judge.one_stage.judge`)."""
        hidden = masks.missing(self.recipe.data, self.images, self.recipe.seed)
        found = one_stage.judge(prior, run, self.recipe, self.images, self.test, self.features, hidden)
        run.set_figure((prior.kind,), found | {"step": self._step(prior, run)}, [run.prior_path(prior.kind)])
        note(one_stage.sentence(prior.kind, found))
        return found

    @staticmethod
    def _step(prior: Prior, run: Run) -> int:
        return header.header(run.prior_path(prior.kind)).step
