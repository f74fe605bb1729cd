"""How far two sets of images are from each other, whatever they are: by name."""

from pathlib import Path

from hebmtool.api.given import at_least
from hebmtool.api.judging import opened
from hebmtool.api.model import load
from hebmtool.compute import pick_device
from hebmtool.errors import UsageError, did_you_mean
from hebmtool.judge.between import Between, Side, distance, drawn, held, on_disk
from hebmtool.metrics.inception import MODES
from hebmtool.run import split

DRAWN = 1000
SPLITS = ("train", "test")


def fid(
    a: str | Path,
    b: str | Path,
    *,
    mode: str | None = None,
    features: str | None = None,
    trust_features: bool = False,
    n: int | None = None,
    seed: int = 0,
    fit: bool = False,
    runs: str | Path = "runs",
    device: str = "auto",
) -> Between:
    """The Fréchet distance between two sets of images (`hebmtool.judge.between`).

    Arguments:
        a, b: folders (at any depth), .npz or .npy files; a run's name or folder, for what its best prior draws; or
            "RUN:train", "RUN:test", for the images it has.
        mode: clean-fid's, "clean" or "legacy_pytorch"; when None "clean" and, where Inception is not to be had, the
            embedded network for such images.
        features, trust_features: another network's file in place of Inception; whether it may run code.
        n: images taken of a run; 1,000 of what it draws, and all that it has, when None.
        seed: of what is drawn.
        fit: bring images of another size or colour to the first one's instead of refusing them; clean-fid resizes
            those of folders anyway.

    Raises:
        UsageError: no such mode.
        HebmError: there are no such images, fewer than two, or of several sizes; no network.

    >>> hebmtool.fid("digits:test", "digits:test", features="net.safetensors").value      # doctest: +SKIP
    0.0
    """
    if mode is not None and mode not in MODES:
        raise UsageError(f"mode is '{mode}'; choose of {', '.join(MODES)}{did_you_mean(mode, MODES)}")
    at_least(2, n=n)
    sides = [_side(str(name), n, seed, fit, runs, device) for name in (a, b)]
    return distance(*sides, pick_device(device), mode, features, trust_features)


def _side(name: str, n: int | None, seed: int, fit: bool, runs: str | Path, device: str) -> Side:
    """The set of that name: what lies there, and else a run's."""
    path = Path(name)
    if path.is_file() or (path.is_dir() and not (path / "recipe.yaml").is_file()):
        return on_disk(path, fit)
    run, _, which = name.rpartition(":")
    if run and which in SPLITS:
        found = opened(run, runs)
        return held(name, split.load(found, found.recipe().data, which), n)
    model = load(opened(name, runs), device=device)
    shape, n = model.generator.image_shape, n or DRAWN
    return drawn(f"{n:,} draws of {name}", shape, lambda: model.batches(n, seed))
