"""The tables of docs/results.md on one generator: every kind of prior under several seeds, an ablation, and chains.

    D="--set data.source=array --set data.path=mnist.npz --features mnist_features.safetensors"
    python benchmarks/results.py seeds    mnist $D
    python benchmarks/results.py seeds    cifar10-small $D --samples 1000 --joint prior.steps=97
    python benchmarks/results.py ablation mnist $D --samples 2000
    python benchmarks/results.py chains   mnist $D --samples 2000 --seeds 1 --gradients 17 33 65

seeds     the joint EBM and the diffusion EBM, each learned with `--seeds` seeds on the generator of the run NAME: FD,
          closure, precision, recall and more beside the Gaussian prior's and reconstructions', time to learn and to
          sample.
ablation  FD and time to sample against the number of levels T (T = 1 is the joint EBM) with K steps per level, and
          against the width of the energies; one seed, sampled in bf16.
chains    the same energies drawn by their own sampler and by each of `--chains` with so many gradients, all at level 0
          where a chain can leave levels out: nats that the draws' mean F is short of the posterior's, FD, closure,
          class shares, the share of clean images and the time; for every kind, over the seeds; in bf16 unless --full.

Under ± stands the error of the mean over S seeds, sqrt(sd^2 / S + e^2): sd is the standard deviation over seeds and e
the root mean square of each one's own error.  The seeds share the noise of their draws, Gaussian samples,
reconstructions and reference, so that e is no smaller for their mean.  For one seed it is e alone.

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

from hebmtool import recipe
from hebmtool.chains import CHAINS
from hebmtool.compute import pick_device
from hebmtool.console import note
from hebmtool.judge import closure as closures
from hebmtool.judge.evaluate import GAUSSIAN, evaluate
from hebmtool.judge.evaluation import RECONSTRUCTIONS
from hebmtool.judge.sources import Source, arrival_figures, list_sources, same
from hebmtool.judge.spaces import TO_RECONSTRUCTIONS, load_spaces, share_figures
from hebmtool.metrics import cache, distances
from hebmtool.metrics.figures import Figure, over_seeds
from hebmtool.prior import DiffusionEBM, Gaussian, JointEBM, Prior, Steps
from hebmtool.run import checkpoint, split
from hebmtool.run.folder import Run
from hebmtool.run.open import load_prior
from hebmtool.train.prior import DRAWN, train_prior

NAMES = {"gaussian": "Gaussian", JointEBM.kind: "joint EBM", DiffusionEBM.kind: "diffusion EBM"}
SHOWN = ("FD", "closure", "class shares", "clean", "seconds per 1000 images")
CLOSURES = ("closure", f"closure{TO_RECONSTRUCTIONS}")
FIGURES = ("FD", *CLOSURES, "precision", "recall", "coverage", "saturated", "seconds per 1000 images")
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
        if any(getattr(old.prior, key) != getattr(settings.prior, key) for key in DRAWN):
            # Written anew with the sampler asked for; refused where it was learned with another.
            with run.lock():
                train_prior(settings, run, options.device, resume=True)
        else:
            same_settings(old, settings)
    stage_two(settings, run, options.device)
    return run


def spread(found: Sequence[tuple[float, float | None]], places: int = 3) -> str:
    """The mean of (value, its own error) over seeds, and the error of that (`over_seeds`)."""
    value, error = over_seeds(found)
    return f"{value:.{places}f}" + (f" ± {error:.{places}f}" if error is not None else "")


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
        said = []
        for name in FIGURES:
            values = found[of].get(name, [])
            # Gaussian samples and reconstructions are the same whatever the seed of the prior.
            values = values if of in kinds else values[:1]
            places = 1 if name.startswith("seconds") else 3
            said.append(spread(values, places) if values else "")
        time_to_learn = spread([(each, None) for each in minutes[of]], 1) if of in kinds else ""
        rows.append([NAMES.get(of, of), *said, time_to_learn])
    table(*rows)
    for name in CLOSURES:
        print()
        rows = [[f"{name}, seed", *map(str, range(options.seeds)), "standard deviation"]]
        closures = {kind: found[kind].get(name, []) for kind in kinds}
        if any(len(values) < options.seeds for values in closures.values()):
            note(f"no {name}: these features see no hole, reconstructions being no nearer than samples")
            continue
        for kind, values in closures.items():
            deviation = f"{np.std([value for value, _ in values], ddof=1):.3f}" if len(values) > 1 else ""
            rows.append([NAMES[kind], *(spread([each]) for each in values), deviation])
        table(*rows)
        if len(kinds) == 2:
            first, second = (np.array([value for value, _ in closures[kind]]) for kind in kinds)
            gain = spread([(each, None) for each in second - first])
            note(f"{name} of the {NAMES[kinds[1]]} over that of the {NAMES[kinds[0]]}, seed by seed: {gain}")


class Judge:
    """What samples of a prior come to, held against Gaussian ones and reconstructions of its generator."""

    def __init__(self, options: argparse.Namespace, run: Run):
        self.recipe = run.recipe()
        self.images, self.test = split.both(run, self.recipe.data)
        self.n = closures.sizes(options.samples, self.images, self.test)
        path = options.features or self.recipe.evaluate.features
        digest = cache.images_digest(self.test)
        [self.space] = load_spaces(path, (), self.test, digest, self.n, options.device)
        self.generator, self.bounds = None, {}

    def see(self, source: Source) -> tuple[np.ndarray, float]:
        """Its images in the features, and the seconds that drawing 1000 of them took."""
        started = time.perf_counter()
        images = torch.cat(list(source.draw(0)))
        return self.space.features(images), 1000 * (time.perf_counter() - started) / len(images)

    def __call__(self, prior: Prior, steps: Steps) -> dict[str, Figure]:
        """By name: FD, closure, class shares, clean, seconds per 1000 images, and where the draws have come to."""
        own = Gaussian(prior.generator)
        sources = list_sources(own, [prior], self.images, self.test, self.recipe, self.n, steps, False)
        gaussian, drawn, reconstructions = sources
        if self.generator is None or not same(self.generator, prior.generator):
            self.generator = prior.generator
            self.bounds = {each.name: self.see(each)[0] for each in (gaussian, reconstructions)}
        found, seconds = self.see(drawn)
        sets = [self.bounds[gaussian.name], found, self.bounds[reconstructions.name]]
        spread = distances.bootstrap_distances(sets, self.space.reference)
        fd = [distances.frechet_distance(each, self.space.reference) for each in sets]
        closed = closures.closed(prior.kind, fd, spread, self.n, len(self.space.reference), self.space.features.name)
        seen = {drawn.name: found, reconstructions.name: sets[2]}
        figures = [
            Figure("FD", fd[1], spread[:, 1].std(ddof=1), prior.kind),
            Figure("closure", closed.closure, closed.error, prior.kind),
            Figure("seconds per 1000 images", seconds, None, prior.kind),
            *share_figures(seen, {drawn.name: reconstructions.name}, self.space, True),
            *arrival_figures(drawn.arrival(), drawn.name),
        ]
        return {figure.name: figure for figure in figures if figure.of == drawn.name}


def cells(found: Sequence[dict[str, Figure]], names: Sequence[str]) -> list[str]:
    """The figures of these names, of one prior or of several seeds, in the cells of a table."""
    said = []
    for name in names:
        figures = [each[name] for each in found if name in each]
        if any(figure.value is None for figure in figures):
            said.append("undefined")
        else:
            places = 1 if name.startswith("seconds") else 3
            said.append(spread([(f.value, f.error) for f in figures], places) if figures else "")
    return said


def ablation(options: argparse.Namespace) -> None:
    rows = [["T", "K per level, least noise first", "width", "gradients", "FD", "closure", "seconds per 1000 images"]]
    judge = None

    def judged(T: int, width: int, run: Run, kind: str, plans: Sequence[Steps]) -> None:
        nonlocal judge
        judge = judge or Judge(options, run)
        prior = load_prior(run, kind, options.device, precision="bf16")
        for steps in plans:
            label = ", ".join(map(str, [steps] * T if isinstance(steps, int) else steps))
            figures = cells([judge(prior, steps)], ("FD", "closure", "seconds per 1000 images"))
            rows.append([str(T), label, str(width), str(prior.gradients(steps)), *figures])
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


def samplers(options: argparse.Namespace, prior: Prior) -> dict[tuple[str, int], tuple[Prior, Steps]]:
    """By (what a table calls it, gradients): the prior with its own sampler, fast where it can be, and with each of the
    chains asked for and so many gradients."""
    found = {(f"{prior.chain.word}, as learned", prior.gradients()): (prior, None)}
    fast = prior.fast_steps() if prior.chain.leaves_out_levels else None
    if fast is not None and prior.gradients(fast) < prior.gradients():
        found[f"{prior.chain.word}, fast", prior.gradients(fast)] = (prior, fast)
    for word in options.chains:
        for K in options.gradients:
            lowest = [K] + [0] * (prior.T - 1)
            steps = lowest if CHAINS[word].leaves_out_levels else max(1, K // prior.T)
            found[word, prior.gradients(steps)] = (prior.using(chain=word), steps)
    return found


def chains(options: argparse.Namespace) -> None:
    shown = ("acceptance", "F short of the posterior", *SHOWN)
    rows, judge = [["prior", "chain", "gradients", *shown]], None
    for kind in options.kinds:
        found: dict[tuple[str, int], list[dict[str, Figure]]] = {}
        for seed in range(options.seeds):
            variant = f"-seed{seed}" if seed else ""
            run = trained(options, kind, variant, f"train_prior.seed={seed}")
            judge = judge or Judge(options, run)
            prior = load_prior(run, kind, options.device, precision="float32" if options.full else "bf16")
            for (name, gradients), (drawn, steps) in samplers(options, prior).items():
                found.setdefault((name, gradients), []).append(judge(drawn, steps))
                note(
                    f"{kind}, seed {seed}: "
                    + " ".join([name, str(gradients), *cells(found[name, gradients][-1:], shown)])
                )
        for (name, gradients), figures in found.items():
            rows.append([NAMES[kind], name, str(gradients), *cells(figures, shown)])
    table(*rows)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = {"seeds": seeds, "ablation": ablation, "chains": chains}
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
    parser.add_argument(
        "--full", action="store_true", help="sample in float32 (seeds: and all levels, not as --fast does)"
    )
    parser.add_argument("--levels", type=int, nargs="+", default=[1, 3, 6], metavar="T")
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 30, 50], metavar="K")
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--chains", nargs="+", default=["underdamped", "hmc"], choices=CHAINS)
    parser.add_argument("--gradients", type=int, nargs="+", default=[17, 33, 65], metavar="K")
    options = parser.parse_args(arguments)
    # What `trained` writes into its runs is its own number.
    options.samples = options.samples or recipe.load(options.recipe, options.set).evaluate.samples
    commands[options.what](options)


if __name__ == "__main__":
    main()
