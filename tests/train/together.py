"""One process of several, or the only one, that trains the runs of `tiny` and uses them: `together.py ROOT UPDATES`.

Writes, below ROOT, the runs; `seen-RANK.json`, digests of the images that its updates read; and `used.npz`, what
sampling, scoring and judging came to.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
from tiny import DIGITS, FLOW, LATENT

from hebmtool import api, data, ranks
from hebmtool.train.loop import Updates

KINDS = ("ebm", "diffusion-ebm")


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
    many += [f"train_prior.label_iterations={updates}", "train_vae.free_nats=0.1"]
    api.train_vae("digits", [*DIGITS, *many], runs=root, device="cpu")
    for kind in KINDS:
        settings = [*DIGITS, *many, f"prior.kind={kind}", "prior.labels=class", f"prior.whiten={kind == 'ebm'}".lower()]
        settings += ["prior.chain=hmc", "train_prior.finish=0.5"] if kind == "ebm" else []
        api.train_prior("digits", settings, runs=root, device="cpu")
    more = [f"train_prior.iterations={updates}", "flow.persistent=true"]
    api.train_prior("digits-flow", [*FLOW, *more], runs=root, device="cpu")
    api.train_prior("digits-flow", [*LATENT, more[0]], runs=root, device="cpu")


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


def main(root: Path, updates: int) -> None:
    torch.set_num_threads(1)
    seen: list[str] = []
    watched(seen)
    train(root, updates)
    (root / f"seen-{ranks.rank()}.json").write_text(json.dumps(seen))
    found = use(root)
    if ranks.is_first():
        np.savez(root / "used.npz", **found)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
