"""Judging a finished run: the prior-hole closure of its priors, side by side."""

from collections.abc import Iterator

import torch

from hebmtool import data, metrics
from hebmtool.errors import HebmError
from hebmtool.prior import Prior
from hebmtool.run import Run
from hebmtool.train_prior import load_prior


def evaluate(
    run: Run,
    device: torch.device,
    kind: str | None = None,
    steps: int | None = None,
    samples: int | None = None,
    features: str | None = None,
) -> Iterator[metrics.Closure]:
    """The closure of the run's prior of this kind, or of every trained one.

    Arguments:
        steps: Langevin steps per level, each prior's own when None.
        samples, features: images per set and a TorchScript file, the recipe's when None.

    Raises:
        HebmError: nothing is trained, or no feature network fits the images.
    """
    run.require_generator()
    kinds = [kind] if kind else [k for k in run.priors() if k != Prior.kind]
    if not kinds:
        raise HebmError(
            f"the run {run.path} has no trained prior to evaluate; train one with `hebm train-prior RECIPE`"
        )
    for each in kinds:
        run.require_prior(each)
    recipe = run.recipe()
    images, test = data.load(recipe.data, "train"), data.load(recipe.data, "test")
    network = metrics.load_features(features or recipe.evaluate.features, images.shape, device)
    if network is None:
        raise HebmError(
            "the embedded feature network is for grey images of at most 32x32; "
            "give a TorchScript one for these images with --features"
        )
    for each in kinds:
        prior = load_prior(run, each, device)
        yield metrics.closure(prior, images, test, recipe, network, samples or recipe.evaluate.samples, steps)
