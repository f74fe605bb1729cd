"""Runs of a few updates with every kind of prior, trained and judged once a session; a copy of them for every test."""

import shutil

import pytest
import torch
from torch import nn

from hebmtool import data, recipe
from hebmtool.judge.closure import draw_seed, prior_images, reconstructions
from hebmtool.judge.trained import Judge
from hebmtool.metrics.distances import frechet_distance
from hebmtool.run.folder import Run
from hebmtool.run.open import load_prior
from hebmtool.train.flow import train_flow
from hebmtool.train.prior import train_prior
from hebmtool.train.vae import train_vae

CPU = torch.device("cpu")
TINY = [
    *("generator.layers_per_scale=1", "generator.latent_channels=2", "generator.encoder_channels=4"),
    *("generator.decoder_channels=4", "train_vae.batch_size=16", "train_vae.iterations=40", "train_vae.lr=0.01"),
    *("train_prior.batch_size=8", "train_prior.iterations=2", "prior.energy.width=4", "prior.steps=2"),
    "evaluate.samples=40",
]
FLOW = [
    *("name=flow", "flow.latent=6", "flow.transforms=3", "flow.hidden=8", "flow.width=4", "flow.steps=3"),
    *("flow.test_steps=4", "train_prior.batch_size=8", "train_prior.iterations=5", "evaluate.samples=40"),
]


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder of runs: `digits`, two layers with both kinds of EBM, and `flow`, of one layer."""
    root = tmp_path_factory.mktemp("runs")
    with Run.create(root, recipe.load("digits", TINY)) as run:
        train_vae(run.recipe(), run, CPU)
        for kind in ("ebm", "diffusion-ebm"):
            settings = recipe.load("digits", [*TINY, f"prior.kind={kind}"])
            judge = Judge(settings, CPU)
            judge.closure(train_prior(settings, run, CPU, ready=judge.ready), run)
    settings = recipe.load("digits-flow", FLOW)
    judge = Judge(settings, CPU)
    with Run.create(root, settings) as run:
        judge.one_stage(train_flow(settings, run, CPU, ready=judge.ready), run)
    return root


@pytest.fixture
def runs(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "runs")
    return tmp_path / "runs"


@pytest.fixture
def run(runs):
    return Run.open("digits", runs)


@pytest.fixture
def flow(runs):
    return Run.open("flow", runs)


class Pixels(nn.Module):
    def __init__(self, which: torch.Tensor):
        super().__init__()
        self.register_buffer("which", which)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float().flatten(1)[:, self.which] / 25


@pytest.fixture(scope="session")
def seeing(trained, tmp_path_factory):
    """A TorchScript network of the three pixels in which reconstructions of `digits` are nearer to test images than
    Gaussian samples are: what is trained in seconds has no hole that others would see."""
    run = Run.open("digits", trained)
    settings, prior = run.recipe(), load_prior(run, "gaussian", CPU)
    images, test = data.load(settings.data, "train"), data.load(settings.data, "test")
    seen = [
        x.double().flatten(1).numpy()
        for x in (
            prior_images(prior, 40, draw_seed(settings)),
            reconstructions(prior, images, settings, 40),
            test.batch(range(len(test))),
        )
    ]
    gaps = [
        frechet_distance(seen[0][:, [i]], seen[2][:, [i]]) - frechet_distance(seen[1][:, [i]], seen[2][:, [i]])
        for i in range(seen[0].shape[1])
    ]
    path = tmp_path_factory.mktemp("networks") / "pixels.pt"
    torch.jit.script(Pixels(torch.tensor(gaps).topk(3).indices)).save(str(path))
    return str(path)
