"""How much of the prior hole `prior.whiten` takes away, by the posterior draws of an image that it is fitted to.

    python benchmarks/whitening.py runs/cifar10-small --draws 1 4

Prints, in nats: fitted, KL(N(m, A A^T) || N(0, I)), what training says; held out, the mean of log N(u; m, A A^T) -
log N(u; 0, I) over a posterior draw of each test image, in all and by layer, top first.  Were m and A known, the two
would be one; what the first has more is of the draws fitted to.
"""

import argparse
from pathlib import Path

from anomaly import table

from hebmtool.compute import pick_device
from hebmtool.console import note
from hebmtool.prior import Gaussian
from hebmtool.run import split
from hebmtool.run.folder import Run
from hebmtool.run.open import load_generator
from hebmtool.train.prior import whitening_of
from hebmtool.use.arrival import Mean
from hebmtool.use.infer import posterior_draws


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--draws", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--device", default="auto", type=pick_device)
    options = parser.parse_args()
    run = Run(options.run)
    recipe = run.recipe()
    images, test = split.both(run, recipe.data)
    generator = load_generator(run, options.device).frozen()
    u = posterior_draws(Gaussian(generator), (test,), recipe, len(test), recipe.seed)
    rows = [
        ["draws of an image", "fitted", "held out", *(f"layer {generator.layer_number(l)}" for l in range(generator.L))]
    ]
    for draws in options.draws:
        recipe.prior.whiten = draws
        generator.whitening = None
        whitening = whitening_of(generator, images, recipe)
        found = generator.whiten(whitening).whitening_ratio(whitening.to_w(u))
        total = Mean.of(found.sum(1))
        held_out = f"{total.value:.1f} ± {total.error:.1f}"
        rows.append([str(draws), f"{whitening.nats:.1f}", held_out, *(f"{x:.1f}" for x in found.mean(0).tolist())])
        note(" ".join(rows[-1]))
    table(*rows)


if __name__ == "__main__":
    main()
