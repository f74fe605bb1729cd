"""The tiny runs as the judge's tests take them, and features in which they have a hole."""

import pytest
import torch
from torch import nn

from hebmtool import data
from hebmtool.judge.closure import draw_seed, prior_images, reconstructions
from hebmtool.metrics.distances import frechet_distance
from hebmtool.run.folder import Run
from hebmtool.run.open import load_prior

CPU = torch.device("cpu")


@pytest.fixture
def run(copied):
    return Run.open("digits", copied)


@pytest.fixture
def flow(copied):
    return Run.open("flow", copied)


class Pixels(nn.Module):
    def __init__(self, which: torch.Tensor):
        super().__init__()
        self.register_buffer("which", which)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float().flatten(1)[:, self.which] / 25


@pytest.fixture(scope="session")
def seeing(tiny, tmp_path_factory):
    """A TorchScript network of the three pixels in which reconstructions of `digits` are nearer to test images than
    Gaussian samples are: what is trained in seconds has no hole that others would see."""
    run = Run.open("digits", tiny)
    settings, prior = run.recipe(), load_prior(run, "gaussian", CPU)
    images, test = data.load(settings.data, "train"), data.load(settings.data, "test")
    seen = [
        x.double().flatten(1).numpy()
        for x in (
            prior_images(prior, settings.evaluate.samples, draw_seed(settings)),
            reconstructions(prior, images, settings, settings.evaluate.samples),
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
