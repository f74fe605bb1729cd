"""Short-run inference seen as a flow of its own: does what it infers have the prior's law?

A K-step Langevin run carries draws of the prior, given images, to latents; over all images these make the aggregate
posterior q(z).  Where learning has converged the prior matches it (LFBM, https://arxiv.org/abs/2301.09300), as it does
in an exact maximum-likelihood fit: E_x p(z | x) = p(z).  The distance is the sliced Wasserstein-2,

    SW(a, b)^2 = E_w W2(w . a, w . b)^2,      w uniform on the sphere,

(Bonneel et al. 2015, https://doi.org/10.1007/s10851-014-0506-3), in units of z, beside what it is between two sets of
draws of the prior (its floor at that sample size) and to N(0, I) (what a Gaussian prior would have left).
"""

from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from hebmtool import picture
from hebmtool.noise import Noise, derive_seed
from hebmtool.prior import Prior

DIRECTIONS = 256


@dataclass
class Match:
    """Sliced Wasserstein-2 distances of inferred latents to the prior, of two sets of prior draws, and of inferred
    latents to N(0, I); samples: latents per set."""

    prior: float
    floor: float
    normal: float
    samples: int

    def figures(self) -> dict:
        return asdict(self)


def sliced_wasserstein(a: Tensor, b: Tensor, seed: int = 0) -> float:
    """SW of equally many points, [N, D] each."""
    stream = torch.Generator().manual_seed(derive_seed(seed, "directions"))
    w = torch.randn(a.shape[1], DIRECTIONS, generator=stream)
    w = w / w.norm(dim=0)
    a, b = ((points.cpu() @ w).sort(dim=0).values for points in (a, b))
    return (a - b).square().mean().sqrt().item()


def draws(model: Prior, n: int, seed: int, which: str) -> Tensor:
    """n draws of the prior, [n, D]."""
    return model.sample(Noise(derive_seed(seed, "match", which), range(n), model.generator.D, model.generator.device))


@torch.no_grad()
def match(model: Prior, z: Tensor, seed: int = 0) -> Match:
    """How inferred latents z [N, D] compare with the prior."""
    a, b = (draws(model, len(z), seed, which) for which in "ab")
    normal = Noise(derive_seed(seed, "match", "normal"), range(len(z)), model.generator.D)()
    distance = [sliced_wasserstein(*pair, seed) for pair in ((z, a), (b, a), (z, normal))]
    return Match(*distance, samples=len(z))


@torch.no_grad()
def figure(model: Prior, z: Tensor, found: Match, seed: int = 0) -> bytes:
    """A PNG: inferred latents over draws of the prior, and over draws of N(0, I), on their first principal axes."""
    from matplotlib.figure import Figure  # slow to import

    z = z.cpu()
    n, centre = len(z), z.mean(0)
    axes = torch.linalg.svd(z - centre, full_matrices=False).Vh[:2].T
    normal = Noise(derive_seed(seed, "match", "normal"), range(n), model.generator.D)()
    behind = [
        (
            f"{model.kind} prior, distance {found.prior:.3f}\n(two draws of the prior: {found.floor:.3f})",
            draws(model, n, seed, "a"),
        ),
        (f"N(0, I), distance {found.normal:.3f}\n", normal),
    ]
    projected = [((points.cpu() - centre) @ axes).numpy() for _, points in behind]
    inferred = ((z - centre) @ axes).numpy()
    reach = 1.05 * max(np.quantile(np.abs(points), 0.998) for points in (inferred, *projected))
    canvas = Figure(figsize=(9.6, 5.6), layout="constrained")
    for axis, (title, _), points in zip(canvas.subplots(1, 2), behind, projected, strict=True):
        axis.scatter(*points.T, s=9, color="0.6", label="prior", linewidths=0)
        axis.scatter(*inferred.T, s=9, color="C0", alpha=0.6, label="inferred from images", linewidths=0)
        axis.set(title=title, xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
        axis.set(xlabel="first principal axis of inferred z", ylabel="second")
    axis.legend(loc="upper right", markerscale=2)
    return picture.plot_to_png(canvas)
