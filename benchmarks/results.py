"""The tables of docs/results.md on one generator: every kind of prior under several seeds, and an ablation.

    D="--set data.source=array --set data.path=mnist.npz --features mnist_features.safetensors"
    python benchmarks/results.py seeds    mnist $D
    python benchmarks/results.py seeds    cifar10-small $D --samples 2000 --joint prior.steps=20
    python benchmarks/results.py ablation mnist $D --samples 2000

seeds     the joint EBM and the diffusion EBM, each learned with `--seeds` seeds on the generator of the run NAME: FD,
          closure, precision, recall and more beside the Gaussian prior's and reconstructions', time to learn and to
          sample.  Under ± stands the standard deviation over seeds, and for one seed the figure's own error.
ablation  FD and time to sample against the number of levels T (T = 1 is the joint EBM) with K steps per level, and
          against the width of the energies; one seed, sampled in bf16.

The generator is trained first where there is none.  Seed s > 0 and every variant are runs of their own beside it,
NAME-seed1 or NAME-T6, with a copy of the generator.  What is trained already is used again, and continued where it was
cut off.
"""

import argparse
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from anomaly import same_settings, stage_one, stage_two, table

from hebmtool import data, recipe
from hebmtool.compute import pick_device
from hebmtool.console import note
from hebmtool.judge import closure as closures
from hebmtool.judge.evaluate import GAUSSIAN, evaluate
from hebmtool.judge.evaluation import RECONSTRUCTIONS
from hebmtool.metrics import distances
from hebmtool.metrics.features import load_features
from hebmtool.prior import DiffusionEBM, JointEBM, Prior, Steps
from hebmtool.prior.ebm import SAMPLER
from hebmtool.run import checkpoint
from hebmtool.run.folder import Run
from hebmtool.run.open import load_prior
from hebmtool.train.prior import train_prior

NAMES = {"gaussian": "Gaussian", JointEBM.kind: "joint EBM", DiffusionEBM.kind: "diffusion EBM"}
FIGURES = ("FD", "closure", "precision", "recall", "coverage", "saturated", "seconds per 1000 images")
TRAINED_WITH = 100  # images for the closure that learning ends with: it is measured here, and not twice


def trained(options: argparse.Namespace, kind: str, variant: str = "", *keys: str) -> Run:
    """The run of these settings, on the generator of the run NAME, trained as far as it is not yet."""
    base = recipe.load(options.recipe, options.set)
    keys = (*options.set, *keys, f"prior.kind={kind}", f"evaluate.samples={TRAINED_WITH}")
    keys += tuple(options.joint) * (kind == JointEBM.kind)
    settings = recipe.load(options.recipe, [*keys, f"name={base.name}{variant}"])
    settings.train_prior.seed = settings.prior_seed  # said or not, it is the same
    origin, run = stage_one(base, options.runs, options.device), Run(options.runs / settings.name)
    if not run.generator_path.is_file():
        run.path.mkdir(parents=True, exist_ok=True)
        shutil.copy(origin.recipe_path, run.recipe_path)
        shutil.copy(origin.generator_path, run.path / "copying")
        (run.path / "copying").replace(run.generator_path)
    note(f"{settings.name}: {NAMES[kind]}")
    path = run.prior_path(kind)
    if path.is_file():
        old = checkpoint.recipe(path, checkpoint.header(path))
        old.train_prior.seed = old.prior_seed
        if kind == JointEBM.kind:
            old.prior.fast = settings.prior.fast  # it has no levels to leave out
        if any(getattr(old.prior, key) != getattr(settings.prior, key) for key in (*SAMPLER, "fast")):
            # Written anew with the sampler asked for; refused where it was learned with another.
            with run.lock():
                train_prior(settings, run, options.device, resume=True)
        else:
            same_settings(old, settings)
    stage_two(settings, run, options.device)
    return run


def spread(values: Sequence[float], error: float | None, places: int) -> str:
    """Mean and standard deviation over seeds, or one value and its error."""
    error = np.std(values, ddof=1) if len(values) > 1 else error
    return f"{np.mean(values):.{places}f}" + ("" if error is None else f" ± {error:.{places}f}")


def seeds(options: argparse.Namespace) -> None:
    kinds = options.kinds
    found: dict[str, dict[str, list[tuple[float, float | None]]]] = {}
    minutes: dict[str, list[float]] = {kind: [] for kind in kinds}
    for seed in range(options.seeds):
        variant = f"-seed{seed}" if seed else ""
        for kind in kinds:
            run = trained(options, kind, variant, f"train_prior.seed={seed}")
            minutes[kind].append(run.seconds(f"train-prior {kind}") / 60)
        how = {"samples": options.samples, "features": options.features, "fast": not options.full}
        for figure in evaluate(run, options.device, **how).figures:
            if figure.name in FIGURES and figure.value is not None:
                found.setdefault(figure.of, {}).setdefault(figure.name, []).append((figure.value, figure.error))
    rows = [["prior", *FIGURES, "minutes to learn"]]
    for of in (GAUSSIAN, *kinds, RECONSTRUCTIONS):
        cells = []
        for name in FIGURES:
            values = found[of].get(name, [])
            # Gaussian samples and reconstructions are the same whatever the seed of the prior.
            values = values if of in kinds else values[:1]
            places = 1 if name.startswith("seconds") else 3
            cells.append(spread([v for v, _ in values], values[0][1], places) if values else "")
        time_to_learn = spread(minutes[of], None, 1) if of in kinds else ""
        rows.append([NAMES.get(of, of), *cells, time_to_learn])
    table(*rows)
    print()
    rows = [["closure, seed", *map(str, range(options.seeds))]]
    closures = {kind: found[kind].get("closure", []) for kind in kinds}
    if any(len(values) < options.seeds for values in closures.values()):
        note("no closure: these features see no hole, reconstructions being no nearer to test images than samples")
        return
    for kind, values in closures.items():
        rows.append([NAMES[kind], *(spread([value], error, 3) for value, error in values)])
    table(*rows)
    if len(kinds) == 2:
        first, second = (np.array([value for value, _ in closures[kind]]) for kind in kinds)
        gain = spread(second - first, None, 3)
        note(f"closure of the {NAMES[kinds[1]]} over that of the {NAMES[kinds[0]]}: {gain} (± standard deviation)")


class Judge:
    """FD, closure and time of a prior's samples, against what they share: the reference and its two bounds."""

    def __init__(self, options: argparse.Namespace, run: Run):
        self.options, self.recipe = options, run.recipe()
        images, test = (data.load(self.recipe.data, split) for split in ("train", "test"))
        self.n = closures.sizes(options.samples, images, test)
        self.features = load_features(options.features, images.shape, options.device)
        self.reference = self.features(torch.cat(list(test.batches())))
        gaussian = load_prior(run, GAUSSIAN, options.device)
        reconstructed = closures.reconstructions(gaussian, images, self.recipe, self.n)
        self.bounds = self.features(self.draw(gaussian)), self.features(reconstructed)

    def draw(self, prior: Prior, steps: Steps = None) -> torch.Tensor:
        return closures.prior_images(prior, self.n, closures.draw_seed(self.recipe), steps)

    def row(self, prior: Prior, steps: Steps) -> list[str]:
        """Gradients, FD, closure, seconds per 1000 images."""
        started = time.perf_counter()
        drawn = self.draw(prior, steps)
        seconds = 1000 * (time.perf_counter() - started) / self.n
        sets = [self.bounds[0], self.features(drawn), self.bounds[1]]
        drawn = distances.bootstrap_distances(sets, self.reference)
        fd = [distances.frechet_distance(each, self.reference) for each in sets]
        found = closures.closed(prior.kind, fd, drawn, self.n, len(self.reference), self.features.name)
        closure = "undefined" if found.closure is None else f"{found.closure:.3f} ± {found.error:.3f}"
        return [str(prior.gradients(steps)), f"{fd[1]:.3f} ± {drawn[:, 1].std(ddof=1):.3f}", closure, f"{seconds:.1f}"]


def ablation(options: argparse.Namespace) -> None:
    rows = [["T", "K per level, least noise first", "width", "gradients", "FD", "closure", "seconds per 1000 images"]]
    judge = None

    def judged(T: int, width: int, run: Run, kind: str, plans: Sequence[Steps]) -> None:
        nonlocal judge
        judge = judge or Judge(options, run)
        prior = load_prior(run, kind, options.device, precision="bf16")
        for steps in plans:
            label = ", ".join(map(str, [steps] * T if isinstance(steps, int) else steps))
            rows.append([str(T), label, str(width), *judge.row(prior, steps)])
            note(" ".join(rows[-1]))

    base = recipe.load(options.recipe, options.set).prior
    width = base.energy.width
    for T in options.levels:
        kind = JointEBM.kind if T == 1 else DiffusionEBM.kind
        variant, keys = ("", []) if T in (1, base.levels) else (f"-T{T}", [f"prior.levels={T}", "prior.fast=null"])
        run = trained(options, kind, variant, *keys)
        lowest = [] if T == 1 else [[K] + [0] * (T - 1) for K in options.steps]
        judged(T, width, run, kind, [*options.steps, *lowest])
    for each in options.widths:
        if each != width:
            run = trained(options, DiffusionEBM.kind, f"-width{each}", f"prior.energy.width={each}")
            lowest = [[K] + [0] * (base.levels - 1) for K in options.steps]
            judged(base.levels, each, run, DiffusionEBM.kind, lowest)
    table(*rows)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = {"seeds": seeds, "ablation": ablation}
    parser.add_argument("what", choices=commands)
    parser.add_argument("recipe", nargs="?", default="mnist")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a recipe key")
    parser.add_argument(
        "--joint", action="append", default=[], metavar="KEY=VALUE", help="the same, of the joint EBM alone"
    )
    parser.add_argument("--features", help="feature network, safetensors; the embedded one without")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--device", default="auto", type=pick_device)
    parser.add_argument("--samples", type=int, help="images per set; the recipe's without")
    parser.add_argument("--seeds", type=int, default=3)
    kinds = [JointEBM.kind, DiffusionEBM.kind]
    parser.add_argument("--kinds", nargs="+", default=kinds, choices=kinds)
    parser.add_argument("--full", action="store_true", help="seeds: sample all levels in float32, not as --fast does")
    parser.add_argument("--levels", type=int, nargs="+", default=[1, 3, 6], metavar="T")
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 30, 50], metavar="K")
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 128])
    options = parser.parse_args(arguments)
    # What `trained` writes into its runs is its own number.
    options.samples = options.samples or recipe.load(options.recipe, options.set).evaluate.samples
    commands[options.what](options)


if __name__ == "__main__":
    main()
