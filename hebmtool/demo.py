"""The whole method on the embedded digits in a few minutes: generator, prior, samples, closure, one picture."""

from dataclasses import dataclass
from pathlib import Path

import torch

from hebmtool import data, picture, recipe
from hebmtool.errors import HebmError
from hebmtool.judge import closure as closures
from hebmtool.run.folder import Run
from hebmtool.run.open import load_prior
from hebmtool.train.prior import train_prior
from hebmtool.train.vae import train_vae

SHOWN, COLUMNS = 64, 8


@dataclass
class Demo:
    run: Path
    picture: Path
    closure: closures.Closure


def demo(root: Path, device: torch.device) -> Demo:
    """Train the `digits` recipe into the first unused of `root`/demo, demo-2, ...; draw the picture there."""
    names = ["demo", *(f"demo-{i}" for i in range(2, 1000))]
    name = next((name for name in names if not (root / name).exists()), None)
    if name is None:
        raise HebmError(f"{root} holds {len(names)} demos already; remove some or give another --runs folder")
    settings = recipe.load("digits", [f"name={name}"])
    with Run.create(root, settings) as run:
        train_vae(settings, run, device)
        closure = train_prior(settings, run, device)
        path = run.path / "demo.png"
        picture.save(prior_picture(run, closure, device), path)
    return Demo(run.path, path, closure)


def prior_picture(run: Run, closure: closures.Closure, device: torch.device):
    """Samples of the Gaussian prior beside those of the trained one beside reconstructions, with their FDs."""
    settings = run.recipe()
    trained, gaussian = load_prior(run, closure.kind, device), load_prior(run, "gaussian", device)
    images = data.load(settings.data, "train")
    parts = [
        (f"Gaussian prior\nFD {closure.fd_gaussian:.2f}", closures.prior_images(gaussian, SHOWN, settings.seed)),
        (
            f"{closure.kind} prior\nFD {closure.fd_prior:.2f}, closure {closure.closure:.2f}",
            closures.prior_images(trained, SHOWN, settings.seed),
        ),
        (
            f"Reconstructions\nFD {closure.fd_reconstruction:.2f}",
            closures.reconstructions(trained.generator, images, settings, SHOWN),
        ),
    ]
    return picture.panels(parts, COLUMNS)
