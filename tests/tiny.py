"""Runs of a few updates, for tests of what is done with runs: recipes, and how they are trained."""

from pathlib import Path

import torch

from hebmtool import recipe
from hebmtool.judge.trained import Judge
from hebmtool.run.folder import Run
from hebmtool.train.labels import train_labels
from hebmtool.train.one_stage import train_one_stage
from hebmtool.train.prior import train_prior
from hebmtool.train.vae import train_vae

CPU = torch.device("cpu")

DIGITS = [
    *("name=digits", "generator.layers_per_scale=1", "generator.latent_channels=2", "generator.encoder_channels=16"),
    *("generator.decoder_channels=8", "generator.preprocess_cells=1", "generator.postprocess_cells=1"),
    *("train_vae.iterations=5", "train_vae.batch_size=16", "train_vae.log_every=2"),
    *("prior.energy.width=4", "prior.steps=2", "train_prior.iterations=3", "train_prior.batch_size=8"),
    *("train_prior.log_every=2", "train_prior.label_iterations=2", "evaluate.samples=24"),
]
"""Overrides of the recipe digits: two layers, 2 channels on 2x2 above 2 channels on 4x4, D = 40."""

FLOW = [
    *("name=flow", "flow.latent=6", "flow.transforms=3", "flow.hidden=8", "flow.width=4", "flow.steps=3"),
    *("flow.test_steps=4", "train_prior.iterations=3", "train_prior.batch_size=8", "train_prior.log_every=2"),
    "evaluate.samples=24",
]
"""Overrides of the recipe digits-flow."""

LATENT = [
    *(*FLOW, "name=latent", "prior.kind=latent-ebm", "prior.chain=unscaled", "prior.eta=0.1", "prior.steps=2"),
    *("prior.energy.width=4", "prior.energy.activation=leaky-relu"),
]
"""Overrides of the recipe digits-flow that make it a latent EBM."""


def options(overrides: list[str]) -> list[str]:
    """The same on the command line."""
    return [word for each in overrides for word in ("--set", each)]


def train_digits(root: Path, *more: str, kinds: tuple[str, ...] = ("diffusion-ebm", "ebm")) -> Run:
    """The run `digits` below `root`, or what `more` overrides of it: generator, and priors of these kinds with the
    label `class` (unless `more` says otherwise), each judged."""
    settings = recipe.load("digits", [*DIGITS, *more])
    with Run.create(root, settings) as run:
        train_vae(settings, run, CPU)
        for kind in kinds:
            settings = recipe.load("digits", [*DIGITS, "prior.labels=[class]", *more, f"prior.kind={kind}"])
            judge = Judge(settings, CPU)
            judge.closure(train_prior(settings, run, CPU, ready=judge.ready), run)
            train_labels(settings, run, CPU, again=False)
    return run


def train_flow_run(root: Path, *more: str) -> Run:
    """The run `flow` below `root`, or what `more` overrides of it."""
    settings = recipe.load("digits-flow", [*FLOW, *more])
    judge = Judge(settings, CPU)
    with Run.create(root, settings) as run:
        judge.one_stage(train_one_stage(settings, run, CPU, ready=judge.ready), run)
    return run
