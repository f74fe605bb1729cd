"""The whole method on the embedded digits in a few minutes: generator, prior, samples, closure, one picture."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL.Image import Image

from hebmtool import api, picture
from hebmtool.errors import HebmError
from hebmtool.judge import closure as closures
from hebmtool.run import split

SHOWN, COLUMNS = 64, 8


@dataclass
class Demo:
    """run: its folder.  picture: the file.  closure: its figures (`hebmtool.judge.closure.Closure`)."""

    run: Path
    picture: Path
    closure: dict


def demo(runs: str | Path = "runs", device: str = "auto", overrides: Mapping[str, object] | None = None) -> Demo:
    """Train the `digits` recipe into the first unused of `runs`/demo, demo-2, ...; draw the picture there.

    Arguments:
        overrides: keys of the recipe and their values, to take less time.

    Raises:
        HebmError: there are a thousand of them already; as the two stages of training.
    """
    runs = Path(runs)
    names = ["demo", *(f"demo-{i}" for i in range(2, 1000))]
    name = next((name for name in names if not (runs / name).exists()), None)
    if name is None:
        raise HebmError(f"{runs} holds {len(names)} demos already; remove some, or choose another folder of runs")
    settings = {**(overrides or {}), "name": name}
    run = api.train_vae("digits", settings, runs=runs, device=device)
    closure = api.train_prior("digits", settings, runs=runs, device=device)["closure"]
    path = run.path / "demo.png"
    picture.save(prior_picture(api.load(run, device=device), closure), path)
    return Demo(run.path, path, closure)


def prior_picture(model: "api.Model", closure: dict) -> Image:
    """Samples of the Gaussian prior beside those of the trained one beside reconstructions, with their FDs."""
    gaussian = api.load(model.run, "gaussian", device=str(model.device))
    images, kind = split.load(model.run, model.recipe.data, "train"), closure["kind"]
    value = "undefined" if closure["closure"] is None else f"{closure['closure']:.2f}"
    seed = model.recipe.seed
    parts = [
        (f"Gaussian prior\nFD {closure['fd_gaussian']:.2f}", gaussian.sample(SHOWN, seed)),
        (f"{kind} prior\nFD {closure['fd_prior']:.2f}, closure {value}", model.sample(SHOWN, seed)),
        (
            f"Reconstructions\nFD {closure['fd_reconstruction']:.2f}",
            closures.reconstructions(model.prior, images, model.recipe, SHOWN),
        ),
    ]
    return picture.panels(parts, COLUMNS)
