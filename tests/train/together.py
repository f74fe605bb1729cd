"""One process of several, or the only one, that trains the runs of `tiny` and uses runs: `together.py ROOT UPDATES
[OTHER]`.

Writes, below ROOT, the runs; `seen-RANK.json`, digests of the images that its updates read; and `used.npz`, what
sampling, scoring and judging came to on these runs, or, where OTHER is given, on those below it.  A copy of OTHER's
run `digits` is trained on below ROOT/resumed.
"""

import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from tiny import DIGITS, FLOW, LATENT

from hebmtool import api, data, ranks, rows
from hebmtool.generator.norm import BatchNorm
from hebmtool.train.loop import Updates

PRIORS = {
    "ebm": ["prior.whiten=true", "prior.chain=hmc", "train_prior.finish=0.5", "train_prior.redraw=2"],
    "diffusion-ebm": ["prior.chain=hmc", "train_prior.finish=0.5", "train_prior.buffer=12", "train_prior.fresh=0.3"],
}
"""The settings of each kind, which resuming must give again."""
FREE = ["train_vae.free_nats=0.1"]


def watched(seen: list[str]) -> None:
    """Let `seen` have a digest of every image that an update reads."""
    batch, parts, learning = data.Images.batch, Updates.parts, [False]

    def read(self, indices):
        found = batch(self, indices)
        if learning[0]:
            seen.extend(hashlib.blake2b(image.numpy().tobytes(), digest_size=8).hexdigest() for image in found)
        return found

    def divided(self, total):
        for part in parts(self, total):
            learning[0] = True
            yield part
            learning[0] = False

    data.Images.batch, Updates.parts = read, divided


def train(root: Path, updates: int) -> None:
    many = [f"train_vae.iterations={updates}", f"train_prior.iterations={updates}"]
    many += [f"train_prior.label_iterations={updates}", *FREE]
    api.train_vae("digits", [*DIGITS, *many], runs=root, device="cpu")
    for kind, its in PRIORS.items():
        settings = [*DIGITS, *many, f"prior.kind={kind}", "prior.labels=class", *its]
        api.train_prior("digits", settings, runs=root, device="cpu")
    more = [f"train_prior.iterations={updates}", "flow.persistent=true"]
    api.train_prior("digits-flow", [*FLOW, *more], runs=root, device="cpu")
    api.train_prior("digits-flow", [*LATENT, more[0]], runs=root, device="cpu")


def resume(root: Path, updates: int) -> None:
    """Train the run `digits` on, in which a prior stays that of the generator that it was learned on."""
    many = [f"train_prior.iterations={updates}", f"train_prior.label_iterations={updates}"]
    kind = ["prior.kind=ebm", "prior.labels=class", *PRIORS["ebm"]]  # in whose latents the label was learned
    api.train_prior("digits", [*DIGITS, *FREE, *many, *kind], runs=root, device="cpu", resume=True)
    many = [f"train_vae.iterations={updates}"]
    api.train_vae("digits", [*DIGITS, *FREE, *many], runs=root, device="cpu", resume=True)


def normalised() -> dict[str, np.ndarray]:
    """What BatchNorm makes of a batch, its gradients and its statistics."""
    torch.manual_seed(0)
    x, weights, norm = torch.randn(7, 3, 4, 4), torch.randn(7, 3, 4, 4), BatchNorm(3)
    torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    [part] = rows.parts(len(x))
    with rows.computing(part):
        mine = x[part.rows].requires_grad_()
        y = norm(mine)
        (weights[part.rows] * y.square()).sum().backward()
        found = {"y": rows.gathered(y.detach()), "slope": rows.gathered(mine.grad)}
    found |= {f"{name} slope": ranks.total(p.grad) for name, p in norm.named_parameters()}
    found |= dict(norm.named_buffers())
    return {f"BatchNorm {key}": value.numpy() for key, value in found.items()}


def use(root: Path) -> dict[str, np.ndarray]:
    found = {}
    for run, kind in (("digits", "ebm"), ("digits", "diffusion-ebm"), ("flow", "flow")):
        model = api.load(run, kind, runs=root, device="cpu")
        found[f"{kind} samples"] = model.sample(21, seed=3, batch_size=8)
        test = data.load(model.recipe.data, "test").batch(range(9))
        found[f"{kind} scores"] = model.score(test, layer=0, batch_size=4).values
        found[f"{kind} reconstructions"] = model.reconstruct(test).made
        found[f"{kind} completions"] = model.inpaint(test, draws=2, steps=3).completions
        if kind != "flow":
            found[f"{kind} resamples"] = model.resample(1, n=3, columns=2).images
        judged = api.evaluate(run, kind, runs=root, device="cpu", samples=24)
        told = [f.value for f in judged.figures if "seconds" not in f.name and f.value is not None]
        found[f"{kind} figures"] = np.array(told)
    return {key: np.asarray(value) for key, value in found.items()}


def main(root: Path, updates: int, other: Path | None = None) -> None:
    torch.set_num_threads(1)
    seen: list[str] = []
    watched(seen)
    train(root, updates)
    (root / f"seen-{ranks.rank()}.json").write_text(json.dumps(seen))
    found = use(root if other is None else other) | normalised()
    if other is not None:
        ranks.first_alone(lambda: shutil.copytree(other / "digits", root / "resumed" / "digits"))
        resume(root / "resumed", 2 * updates)
    if ranks.is_first():
        np.savez(root / "used.npz", **found)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), *map(Path, sys.argv[3:]))
