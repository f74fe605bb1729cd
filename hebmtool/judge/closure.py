"""The prior-hole closure, and the sets of images it is made of.

    closure = (FD_gaussian - FD_prior) / (FD_gaussian - FD_reconstruction)

with one generator, sample count, feature network and reference (held-out images) for all three;
reconstructions are of training images, from posterior samples.  0: no better than the Gaussian prior; 1: as good as
the generator's own posterior allows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from hebmtool import data, picture, ranks, rows
from hebmtool.errors import HebmError
from hebmtool.metrics.distances import BOOTSTRAP_FEATURES, bootstrap_distances, frechet_distance
from hebmtool.metrics.features import BATCH, Features
from hebmtool.noise import derive_seed
from hebmtool.prior import Gaussian, Prior, Steps
from hebmtool.recipe import Recipe
from hebmtool.use.infer import Inference
from hebmtool.use.sample import sample


@dataclass
class Closure:
    """Prior-hole closure and the distances it is made of; `error` is a bootstrap standard error over the images.

    `closure` is None where there is no hole to close: reconstructions no nearer to the reference than Gaussian samples.
    """

    kind: str
    closure: float | None
    error: float | None
    fd_gaussian: float
    fd_prior: float
    fd_reconstruction: float
    samples: int
    reference: int
    features: str

    def figures(self) -> dict:
        return asdict(self)

    def sentence(self) -> str:
        spread = "" if self.error is None else f" ± {self.error:.3f}"
        value = "undefined, for these features see no hole" if self.closure is None else f"{self.closure:.3f}{spread}"
        return (
            f"prior-hole closure {value}  (FD {self.fd_prior:.3f}; Gaussian {self.fd_gaussian:.3f}, "
            f"reconstructions {self.fd_reconstruction:.3f}; {self.samples} images against {self.reference} held out, "
            f"features: {self.features})"
        )


def prior_images(prior: Prior, n: int, seed: int, steps: Steps = None, pixels: str = "mean") -> Tensor:
    """`n` images of the prior, uint8 [n, C, H, W]; image i is the same whatever `n`.  `pixels` as in `sample`."""
    return torch.cat(list(sample(prior, n, seed, BATCH, steps=steps, pixels=pixels)))


def draw_seed(recipe: Recipe, draw: int = 0) -> int:
    """Seed of the `draw`-th set of samples that figures are made of; stage two ends with the closure of the first."""
    return derive_seed(recipe.seed, "closure", *([draw] if draw else []))


def reconstructions(prior: Prior, images: data.Images, recipe: Recipe, n: int) -> Tensor:
    """Images from one posterior draw each of the first `n` images, uint8 [n, C, H, W]: the mean of p(x | z), or with
    `evaluate.pixels: sample` a draw of it."""
    return torch.cat(list(reconstruct(prior, images, recipe, n)))


@torch.no_grad()
def reconstruct(prior: Prior, images: data.Images, recipe: Recipe, n: int, draw: int = 0) -> Iterator[Tensor]:
    """The same in batches; another `draw` takes the next `n` images, going round, and other posterior draws.

    The prior only matters without an encoder: inference then runs on it.  torch's random state is put back at the end:
    what consumes the batches must not draw from it.
    """
    generator, device = prior.generator, prior.generator.device
    seed = derive_seed(recipe.seed, "reconstructions", *([draw] if draw else []))
    mean = recipe.evaluate.pixels == "mean"
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        n = min(n, len(images))
        for indices in torch.arange(draw * n, (draw + 1) * n).split(BATCH):
            batch = images.batch(indices % len(images))
            if not generator.has_encoder:
                inference = Inference(prior, recipe, seed=seed)
                z = inference(batch)[:, 0]
                yield inference.decode(z) if mean else picture.to_uint8(generator.drawn(z, _seeds(seed, indices)))
                continue
            part = rows.divided(len(batch)) if len(batch) >= ranks.world() else rows.whole(len(batch))
            with rows.computing(part):
                x = data.prepare(batch[part.rows], recipe.data, generator.likelihood.read, train=False).to(device)
                logits = generator.decode(generator.posterior(x).walk)
                found = generator.likelihood.mean(logits) if mean else generator.likelihood.sample(logits)
                found = rows.gathered(picture.to_uint8(found))
            yield found


def _seeds(seed: int, indices: Tensor) -> list[int]:
    return [derive_seed(seed, "pixels", int(i)) for i in indices]


def sizes(samples: int, images: data.Images, test: data.Images) -> int:
    """How many images each compared set has: `samples`, or as many as there are training images to reconstruct.

    Raises:
        HebmError: too few images.
    """
    n = min(samples, len(images))
    if n < 2 or len(test) < 2:
        raise HebmError(
            f"the closure compares {n} training image(s) with {len(test)} held out, but needs at least 2 of each; "
            f"use more images, or a larger data.test_fraction"
        )
    return n


def closure(
    prior: Prior,
    images: data.Images,
    test: data.Images,
    recipe: Recipe,
    features: Features,
    samples: int,
    steps: int | None = None,
) -> Closure:
    """Prior-hole closure of `prior` on its generator.

    Arguments:
        images, test: training images (reconstructed) and held-out ones (the reference).
        samples: images per set, fewer where the data has fewer training images.
        steps: Langevin steps per level, the recipe's when None.

    Raises:
        HebmError: too few images, or images that are not finite.
    """
    generator = prior.generator
    n = sizes(samples, images, test)
    reference = features(torch.cat(list(test.batches())))
    seed, pixels = draw_seed(recipe), recipe.evaluate.pixels
    sets = [
        features(prior_images(Gaussian(generator), n, seed, pixels=pixels)),
        features(prior_images(prior, n, seed, steps, pixels)),
        features(reconstructions(prior, images, recipe, n)),
    ]
    spread = bootstrap_distances(sets, reference) if reference.shape[1] <= BOOTSTRAP_FEATURES else None
    fd = [frechet_distance(s, reference) for s in sets]
    return closed(prior.kind, fd, spread, n, len(reference), features.name)


def closed(
    kind: str, fd: Sequence[float], spread: np.ndarray | None, samples: int, reference: int, features: str
) -> Closure:
    """The closure from the FDs of Gaussian samples, the prior's samples and reconstructions.

    Arguments:
        spread: their `bootstrap_distances`, [BOOTSTRAPS, 3], for the error.
    """
    if fd[0] <= fd[2]:
        return Closure(kind, None, None, *fd, samples, reference, features)

    def close(gaussian, prior, reconstruction):
        return (gaussian - prior) / (gaussian - reconstruction)

    error = None if spread is None else float(np.std(close(*spread.T), ddof=1))
    return Closure(kind, close(*fd), error, *fd, samples, reference, features)
