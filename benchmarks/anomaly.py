"""MNIST with one digit left out of training: how well does each score find that digit?

    python benchmarks/anomaly.py --set data.source=array --set data.path=mnist.npz

For every digit d, the recipe `mnist-anomaly` is trained with data.exclude=[d] (runs of earlier calls are used again,
and continued where they were cut off).  Then the test images are scored, digit d being the positive: AUPRC of a low
score.  The cut of energy and ratio is chosen without the digit (`hebmtool.ood.blind_cut`), on the first test images of
the other digits, which are not scored again; "best cut" is the best in hindsight.

The published rows ("Learning Hierarchical Features with Joint Latent Space Energy-Based Prior", Cui, Wu & Han 2023,
https://arxiv.org/abs/2310.09604) average the last ten epochs of training; ours are of the last checkpoint.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from hebmtool import data, recipe
from hebmtool.compute import pick_device
from hebmtool.console import note
from hebmtool.metrics import detection
from hebmtool.run import checkpoint
from hebmtool.run.folder import Run
from hebmtool.run.open import load_prior
from hebmtool.train.loop import HOUSEKEEPING
from hebmtool.train.prior import train_prior
from hebmtool.train.vae import train_vae
from hebmtool.use import score as scoring

PUBLISHED = {
    "VAE": {1: 0.063, 4: 0.337, 5: 0.325, 7: 0.148, 9: 0.104},
    "latent EBM prior": {1: 0.336, 4: 0.630, 5: 0.619, 7: 0.463, 9: 0.413},
    "hierarchical VAE, L>0": {1: 0.494, 4: 0.920, 5: 0.913, 7: 0.680, 9: 0.791},
    "joint hierarchical EBM": {1: 0.722, 4: 0.949, 5: 0.980, 7: 0.941, 9: 0.935},
}


def done(path: Path, iterations: int) -> bool:
    return path.is_file() and checkpoint.header(path).step >= iterations


def same_settings(old: recipe.Recipe, new: recipe.Recipe) -> None:
    """Raise HebmError where a run that is there was learned otherwise than is asked for now."""
    for part in ("data", "train_vae", "train_prior"):
        for key in ("path", "download", "iterations", *HOUSEKEEPING):
            if hasattr(getattr(new, part), key):
                value = getattr(getattr(new, part), key)
                setattr(old, part, getattr(old, part).model_copy(update={key: value}))
    Run.check_same(old, new, ["data", "generator", "prior", "flow", "train_vae", "train_prior", "seed"])


def stage_one(settings: recipe.Recipe, root: Path, device: torch.device) -> Run:
    """The run of these settings, its generator trained as far as it is not yet."""
    run = Run(root / settings.name)
    if not done(run.generator_path, settings.train_vae.iterations):
        resume = run.generator_train_path.is_file()
        with Run.create(root, settings, resume) as run:
            train_vae(settings, run, device, resume)
    return run


def stage_two(settings: recipe.Recipe, run: Run, device: torch.device) -> None:
    """Train the prior of these settings on the run's generator, as far as it is not yet."""
    kind = settings.prior.kind
    if not done(run.prior_path(kind), settings.train_prior.iterations):
        with run.lock():
            train_prior(settings, run, device, run.prior_train_path(kind).is_file())


def trained(settings: recipe.Recipe, root: Path, device: torch.device) -> Run:
    """The run of these settings, trained as far as it is not yet."""
    run = Run(root / settings.name)
    if run.recipe_path.is_file():
        same_settings(run.recipe(), settings)
    run = stage_one(settings, root, device)
    stage_two(settings, run, device)
    return run


def auprc(run: Run, digit: int, device: torch.device, limit: int | None, draws: int) -> dict[str, float]:
    """Score -> AUPRC of finding the digit among the run's test images."""
    settings = run.recipe()
    prior, test = load_prior(run, settings.prior.kind, device), data.load(settings.data, "test")
    is_digit = test.labels == test.classes.index(str(digit))
    others = (~is_digit).nonzero()[:, 0]
    chosen_on = others[: scoring.calibration(test)]
    scored = torch.ones(len(test), dtype=torch.bool)
    scored[chosen_on] = False
    scored = scored.nonzero()[:limit, 0]
    images, positive = test.batch(scored), is_digit[scored].numpy()
    found = {}
    for score in ("energy", "likelihood", "llr"):
        scorer = scoring.Scorer(prior, settings, score, draws=draws)
        values = scoring.in_batches(scorer, images)
        at = [detection.figures_of_merit(column[~positive], column[positive])["auprc"] for column in values.T]
        if score == "likelihood":
            found[score] = at[0]
            continue
        cut, _ = scoring.blind_cut(scoring.Scorer(prior, settings, score, draws=1), test.batch(chosen_on))
        found |= {score: at[scorer.cuts.index(cut)], f"{score}, best cut": max(at)}
        note(f"{score}: chosen cut {cut}; AUPRC by cut {dict(zip(scorer.cuts, np.round(at, 3).tolist(), strict=True))}")
    return found


def table(*rows: list[str]) -> None:
    """Print rows as a Markdown table, the first being its head."""
    for i, row in enumerate(rows):
        print("| " + " | ".join(row) + " |", flush=True)
        if i == 0:
            print("|---" * len(row) + "|")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--digits", type=int, nargs="+", default=[1, 4, 5, 7, 9], choices=range(10), metavar="D")
    parser.add_argument("--recipe", default="mnist-anomaly")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a recipe key")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--limit", type=int, help="score only the first this many test images")
    parser.add_argument("--draws", type=int, default=4, help="posterior draws averaged per image")
    options = parser.parse_args(arguments)
    device = pick_device(options.device)
    scores = {name: {d: row.get(d) for d in options.digits} for name, row in PUBLISHED.items()}
    for digit in options.digits:
        own = [f"name=anomaly-{digit}", f"data.exclude=[{digit}]"]
        run = trained(recipe.load(options.recipe, [*options.set, *own]), options.runs, device)
        for name, value in auprc(run, digit, device, options.limit, options.draws).items():
            scores.setdefault(name, {})[digit] = value
        note(f"digit {digit} done")
    rows = [["AUPRC, digit left out", *map(str, options.digits)]]
    for name, row in scores.items():
        cells = ("" if row[d] is None else f"{row[d]:.3f}" for d in options.digits)
        rows.append([f"{name}{', published' * (name in PUBLISHED)}", *cells])
    table(*rows)


if __name__ == "__main__":
    main()
