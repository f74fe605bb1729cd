"""MNIST with one digit left out of training: how well does each score find that digit?

    python benchmarks/anomaly.py --protocol pooled --seeds 3 --set data.source=array --set data.path=mnist.npz

For every digit d, the recipe `mnist-anomaly` is trained with data.exclude=[d] (runs of earlier calls are used again,
and continued where they were cut off).  Then the test images are scored, digit d being the positive: AUPRC of a low
score.  Checkpoints are the last ones.  The cut of energy and ratio is chosen without the digit
(`hebmtool.use.score.blind_cut`), on training images; "best cut" is the best in hindsight.

A recipe without an encoder (`mnist-anomaly-latent`, `mnist-flow`) is trained in one stage, and scored at latents that a
short run infers: by log p(z, x) and its two terms, and as the code behind the latent EBM's settings does, which leaves
the squared error in pixels as it is, not over 2 sigma^2.

Two protocols, never to be compared (`--protocol`):

pooled    all 70,000 digits together; 80% of the normal ones train, the other 20% and every image of the digit left out
          are the test set.  A third and more of it are positives, and no AUPRC can be below .19.
official  the 60,000 and 10,000 of MNIST's own split; one test image in ten is a positive.

Published rows: "Learning Latent Space Energy-Based Prior Model" (Pang et al. 2020, https://arxiv.org/abs/2006.08205)
for the latent EBM, "Learning Hierarchical Features with Joint Latent Space Energy-Based Prior" (Cui, Wu & Han 2023,
https://arxiv.org/abs/2310.09604) for the rest.  They average the last ten epochs of training; ours are of the last
checkpoint.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hebmtool import data, recipe
from hebmtool.compute import pick_device
from hebmtool.console import note
from hebmtool.metrics import detection
from hebmtool.prior import Prior
from hebmtool.run import checkpoint
from hebmtool.run.folder import Run
from hebmtool.run.open import load_prior
from hebmtool.train.joint import train_joint
from hebmtool.train.loop import HOUSEKEEPING
from hebmtool.train.one_stage import train_one_stage
from hebmtool.train.prior import train_prior
from hebmtool.train.vae import train_vae
from hebmtool.use import score as scoring
from hebmtool.use.infer import Inference


@dataclass(frozen=True)
class Published:
    """A published row: AUPRC by digit, the protocol it belongs to, and how that is known."""

    protocol: str
    known: str
    auprc: dict[int, float]


PUBLISHED = {
    "VAE": Published(
        "official", "below what is possible in the pooled one", {1: 0.063, 4: 0.337, 5: 0.325, 7: 0.148, 9: 0.104}
    ),
    "latent EBM prior": Published("pooled", "its code", {1: 0.336, 4: 0.630, 5: 0.619, 7: 0.463, 9: 0.413}),
    "hierarchical VAE, L>0": Published(
        "pooled", "uncertain: taken over from others' code", {1: 0.494, 4: 0.920, 5: 0.913, 7: 0.680, 9: 0.791}
    ),
    "joint hierarchical EBM": Published(
        "pooled", "uncertain: taken over from others' code", {1: 0.722, 4: 0.949, 5: 0.980, 7: 0.941, 9: 0.935}
    ),
}
PROTOCOLS = {"pooled": ["data.split=pooled", "data.test_fraction=0.2"], "official": ["data.split=official"]}
CHOSEN_ON = 256
"""Training images on which the cut is chosen."""


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
    kind, learn = settings.prior.kind, train_joint if settings.train_prior.joint else train_prior
    if not done(run.prior_path(kind), settings.train_prior.iterations):
        with run.lock():
            learn(settings, run, device, run.prior_train_path(kind).is_file())


def one_stage(settings: recipe.Recipe, root: Path, device: torch.device) -> Run:
    """The run of these settings, a prior and the generator that it brings, trained as far as they are not yet."""
    run = Run(root / settings.name)
    if not done(run.prior_path(settings.prior.kind), settings.train_prior.iterations):
        resume = run.prior_train_path(settings.prior.kind).is_file()
        with Run.create(root, settings, resume) as run:
            train_one_stage(settings, run, device, resume)
    return run


def trained(settings: recipe.Recipe, root: Path, device: torch.device) -> Run:
    """The run of these settings, trained as far as it is not yet."""
    run = Run(root / settings.name)
    if run.recipe_path.is_file():
        same_settings(run.recipe(), settings)
    if settings.one_stage:
        return one_stage(settings, root, device)
    run = stage_one(settings, root, device)
    stage_two(settings, run, device)
    return run


@dataclass
class Tested:
    """The test images of a run, all or the first of them, and which of them the digit left out is."""

    images: torch.Tensor
    positive: np.ndarray

    @classmethod
    def of(cls, run: Run, digit: int, limit: int | None) -> "Tested":
        test = data.load(run.recipe().data, "test")
        which = torch.arange(len(test))[:limit]
        return cls(test.batch(which), (test.labels[which] == test.classes.index(str(digit))).numpy())

    def auprc(self, scores: np.ndarray) -> float:
        return detection.figures_of_merit(scores[~self.positive], scores[self.positive])["auprc"]

    @property
    def base_rate(self) -> float:
        """What a score that knows nothing reaches on average."""
        return float(self.positive.mean())

    @property
    def least(self) -> float:
        """What the worst score reaches, that ranks every positive last."""
        rank = np.arange(1, self.positive.sum() + 1)
        return float((rank / ((~self.positive).sum() + rank)).mean())


@torch.no_grad()
def at_inferred(
    prior: Prior, settings: recipe.Recipe, images: torch.Tensor, steps: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(log p(z), log p(x | z)) up to constants, at z that so many steps of a short run infer, or the recipe's."""
    inference, g, log_z, log_x = Inference(prior, settings, steps), prior.generator, [], []
    for part in images.split(scoring.BATCH):
        z = inference(part)[:, 0]
        x = data.prepare(part, settings.data, g.likelihood.read_grey, train=False).to(g.device)
        log_z.append(prior.log_density(z).cpu())
        log_x.append(g.log_px(g.walk(z), x).cpu())
    return torch.cat(log_z).numpy(), torch.cat(log_x).numpy()


def without_encoder(prior: Prior, settings: recipe.Recipe, tested: Tested) -> dict[str, float]:
    """Score -> AUPRC, of a prior that brings its generator."""
    log_z, log_x = at_inferred(prior, settings, tested.images)
    error = -2 * settings.flow.sigma**2 * log_x
    scores = {"log p(z, x)": log_z + log_x, "log p(z)": log_z, "log p(x given z)": log_x}
    scores["squared error + E + z^2/2"] = log_z - error
    return {name: tested.auprc(score) for name, score in scores.items()}


def found_by(run: Run, tested: Tested, device: torch.device, scores: list[str], draws: int) -> dict[str, float]:
    """Score -> AUPRC of finding the digit among the test images."""
    settings = run.recipe()
    prior, found = load_prior(run, settings.prior.kind, device), {}
    if settings.one_stage:
        return without_encoder(prior, settings, tested)
    for score in scores:
        scorer = scoring.Scorer(prior, settings, score, draws=draws)
        at = [tested.auprc(column) for column in scoring.in_batches(scorer, tested.images).T]
        if score in ("likelihood", "joint"):
            found[score] = at[0]
            continue
        training = data.load(settings.data, "train").batch(range(CHOSEN_ON))
        cut, _ = scoring.blind_cut(scoring.Scorer(prior, settings, score, draws=1), training)
        found |= {score: at[scorer.cuts.index(cut)], f"{score}, best cut": max(at)}
        note(f"{score}: chosen cut {cut}; AUPRC by cut {dict(zip(scorer.cuts, np.round(at, 3).tolist(), strict=True))}")
    return found


def table(*rows: list[str]) -> None:
    """Print rows as a Markdown table, the first being its head."""
    for i, row in enumerate(rows):
        print("| " + " | ".join(row) + " |", flush=True)
        if i == 0:
            print("|---" * len(row) + "|")


def spread(values: list[float]) -> str:
    deviation = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{deviation}"


def published(protocol: str, digits: list[int]) -> list[list[str]]:
    """The rows of a protocol, as cells."""
    return [
        [f"{name}, published ({row.known})", *(f"{row.auprc[d]:.3f}" if d in row.auprc else "" for d in digits)]
        for name, row in PUBLISHED.items()
        if row.protocol == protocol
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--protocol", choices=PROTOCOLS, default="pooled")
    parser.add_argument("--digits", type=int, nargs="+", default=[1, 4, 5, 7, 9], choices=range(10), metavar="D")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--recipe", default="mnist-anomaly")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a recipe key")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--limit", type=int, help="score only the first this many test images")
    parser.add_argument("--scores", nargs="+", default=list(scoring.SCORES), choices=scoring.SCORES)
    parser.add_argument("--draws", type=int, default=4, help="posterior draws averaged per image")
    options = parser.parse_args(arguments)
    device = pick_device(options.device)
    scores: dict[str, dict[int, list[float]]] = {}
    of_sets: dict[str, dict[int, float]] = {"base rate": {}, "least possible": {}}
    for seed in range(options.seeds):
        for digit in options.digits:
            own = [f"name=anomaly-{options.protocol}-{digit}-{seed}", f"data.exclude=[{digit}]", f"seed={seed}"]
            settings = recipe.load(options.recipe, [*PROTOCOLS[options.protocol], *options.set, *own])
            run = trained(settings, options.runs, device)
            tested = Tested.of(run, digit, options.limit)
            of_sets["base rate"][digit], of_sets["least possible"][digit] = tested.base_rate, tested.least
            for name, value in found_by(run, tested, device, options.scores, options.draws).items():
                scores.setdefault(name, {}).setdefault(digit, []).append(value)
            note(f"seed {seed}, digit {digit}: {len(tested.images)} images, base rate {tested.base_rate:.3f}")
    rows = [[name, *(f"{values[d]:.3f}" for d in options.digits)] for name, values in of_sets.items()]
    rows += published(options.protocol, options.digits)
    rows += [[name, *(spread(values[d]) for d in options.digits)] for name, values in scores.items()]
    table([f"AUPRC, digit left out ({options.protocol})", *map(str, options.digits)], *rows)


if __name__ == "__main__":
    main()
