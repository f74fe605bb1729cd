"""How good a prior is: Fréchet distances in given features, and the prior-hole closure.

    FD(A, B) = ||m_A - m_B||^2 + tr(C_A + C_B - 2 (C_A C_B)^{1/2})

    closure = (FD_gaussian - FD_prior) / (FD_gaussian - FD_reconstruction)

with one generator, sample count, feature network and reference (held-out images) for all three;
reconstructions are of training images, from posterior samples.  0: no better than the Gaussian prior; 1: as good as
the generator's own posterior allows.  A distance is comparable only with others in the same features; it is not FID
unless the features are Inception's.
"""

import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hebmtool import data, embedded, picture
from hebmtool.errors import HebmError
from hebmtool.generator import Generator
from hebmtool.prior import Prior, make_prior
from hebmtool.recipe import Recipe
from hebmtool.sample import sample
from hebmtool.training import derive_seed

BATCH = 250
BOOTSTRAPS = 20
# Resampling needs a matrix square root each; beyond this many features it takes longer than sampling did.
BOOTSTRAP_FEATURES = 256


@dataclass
class Features:
    """A feature network: `network` maps uint8 [N, C, H, W] to float [N, D]; `name` says which it is."""

    network: Callable[[Tensor], Tensor]
    name: str
    device: torch.device

    @torch.no_grad()
    def __call__(self, images: Tensor) -> np.ndarray:
        """uint8 [N, C, H, W] -> float64 [N, D].

        Raises:
            HebmError: the network refuses the images, or does not give finite [N, D].
        """
        try:
            parts = [self.network(batch.to(self.device)).double().cpu() for batch in images.split(BATCH)]
        except (RuntimeError, AttributeError) as error:  # the latter where it gives no tensor
            reason = str(error).strip().splitlines()[-1]
            raise HebmError(
                f"the feature network {self.name} does not accept images of shape {list(images.shape[1:])} ({reason}); "
                f"it must map uint8 [N, C, H, W] to float [N, D]"
            ) from error
        features = torch.cat(parts)
        if features.ndim != 2 or not features.isfinite().all():
            found = f"shape {list(features.shape)}" if features.ndim != 2 else "values that are not finite"
            raise HebmError(
                f"the feature network {self.name} gives {found} for {len(images)} images; "
                f"it must map uint8 [N, C, H, W] to finite float [N, D]"
            )
        return features.numpy()


def load_features(path: str | None, image_shape: tuple[int, int, int], device: torch.device) -> Features | None:
    """The TorchScript network at `path`; for None the embedded one if the images are grey and small, else None.

    Raises:
        HebmError: the file is missing or no TorchScript network.
    """
    if path is None:
        if image_shape[0] != 1 or max(image_shape[1:]) > 32:
            return None
        return Features(embedded.load().to(device), "embedded", device)
    if not Path(path).is_file():
        raise HebmError(f"no feature network at {path}; evaluate.features takes a TorchScript file or null")
    try:
        with warnings.catch_warnings(action="ignore"):  # torch's, that TorchScript is old
            network = torch.jit.load(path, map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        raise HebmError(f"{path} is not a TorchScript network torch can load; save one with torch.jit.save") from error
    return Features(network, Path(path).name, device)


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """FD between Gaussians fitted to features a [N, D] and b [M, D], N and M at least 2.

    Written with eigenvalues of a symmetric product, which stays real for singular covariances (dead features,
    few images), where a general matrix square root does not.
    """
    mean_a, mean_b = a.mean(0), b.mean(0)
    cov_a, cov_b = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


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


def prior_images(prior: Prior, n: int, seed: int, steps: int | None = None) -> Tensor:
    """`n` mean images drawn from the prior, uint8 [n, C, H, W]; image i is the same whatever `n`."""
    return torch.cat(list(sample(prior, n, seed, BATCH, steps=steps)))


@torch.no_grad()
def reconstructions(generator: Generator, images: data.Images, recipe: Recipe, n: int) -> Tensor:
    """Mean images from one posterior draw each of the first `n` images, uint8 [n, C, H, W]."""
    device, out = generator.constant.device, []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed(recipe.seed, "reconstructions"))
        for indices in torch.arange(min(n, len(images))).split(BATCH):
            x = data.prepare(images.batch(indices), recipe.data, recipe.generator.likelihood, train=False).to(device)
            walk = generator.posterior(x).walk
            out.append(picture.to_uint8(generator.likelihood.mean(generator.decode(walk))))
    return torch.cat(out)


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
    n = min(samples, len(images))
    if n < 2 or len(test) < 2:
        raise HebmError(
            f"the closure compares {n} training image(s) with {len(test)} held out, but needs at least 2 of each; "
            f"use more images, or a larger data.test_fraction"
        )
    held_out = torch.arange(len(test)).split(BATCH)
    reference = features(torch.cat([test.batch(indices) for indices in held_out]))
    gaussian = make_prior(generator, recipe.prior.model_copy(update={"kind": Prior.kind}))
    seed = derive_seed(recipe.seed, "closure")
    sets = [
        features(prior_images(gaussian, n, seed)),
        features(prior_images(prior, n, seed, steps)),
        features(reconstructions(generator, images, recipe, n)),
    ]
    fd = [frechet_distance(s, reference) for s in sets]

    def close(gaussian: float, prior: float, reconstruction: float) -> float:
        return (gaussian - prior) / (gaussian - reconstruction)

    if fd[0] <= fd[2]:
        return Closure(prior.kind, None, None, *fd, n, len(reference), features.name)
    error = None
    if reference.shape[1] <= BOOTSTRAP_FEATURES:
        rng = np.random.default_rng(0)
        draws = [
            close(*(frechet_distance(s[rng.integers(n, size=n)], reference) for s in sets)) for _ in range(BOOTSTRAPS)
        ]
        error = float(np.std(draws, ddof=1))
    return Closure(prior.kind, close(*fd), error, *fd, n, len(reference), features.name)
