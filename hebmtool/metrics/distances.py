"""How good samples are, in given features: distances to a reference, and how much of it they cover.

    FD(A, B)  = ||m_A - m_B||^2 + tr(C_A + C_B - 2 (C_A C_B)^{1/2})                      means and covariances
    KID(A, B) = E k(a, a') + E k(b, b') - 2 E k(a, b),   k(x, y) = (x.y / D + 1)^3       unbiased (Binkowski et al.,
                "Demystifying MMD GANs", https://arxiv.org/abs/1801.01401)
    precision, recall    share of samples within the reference's k-NN balls, and the other way round (Kynkäänniemi
                et al., "Improved Precision and Recall Metric", https://arxiv.org/abs/1904.06991)
    density, coverage    reference balls a sample lies in, over k; share of reference balls that hold a sample (Naeem
                et al., "Reliable Fidelity and Diversity Metrics", https://arxiv.org/abs/2002.09797)

A distance is comparable only with others in the same features; it is not FID unless the features are Inception's.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

BOOTSTRAPS = 20
# Resampling needs a matrix square root each; beyond this many features it takes longer than sampling did.
BOOTSTRAP_FEATURES = 256
KID_SUBSETS, KID_SUBSET = 100, 1000
# The papers' own: Kynkäänniemi et al. count three neighbours, Naeem et al. five.
PRECISION_NEIGHBOURS, DENSITY_NEIGHBOURS = 3, 5
# What looks at every pair of images looks at no more of each set than this.
PAIRED_IMAGES = 10_000
# Entries of a matrix of pairs held at a time.
CHUNK = 2**23


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


def bootstrap_distances(sets: Sequence[np.ndarray], reference: np.ndarray) -> np.ndarray:
    """FD to the reference of every set with its images drawn again with replacement, [BOOTSTRAPS, sets]."""
    rng = np.random.default_rng(0)
    return np.array(
        [[frechet_distance(s[rng.integers(len(s), size=len(s))], reference) for s in sets] for _ in range(BOOTSTRAPS)]
    )


def kernel_distance(
    a: np.ndarray, b: np.ndarray, size: int | None = None, subsets: int = KID_SUBSETS
) -> tuple[float, float, float]:
    """KID between features a [N, D] and b [M, D], N and M at least 2: a mean over random subsets of both.

    Each subset's is unbiased, hence may be negative.

    Arguments:
        size: of the subsets, at most N and M; when None, half of the smaller set, up to 1000.

    Returns: the mean; its standard error over the images of `a` (of the mean's linear part) and over the choice of
    subsets, `b` held fixed; the subsets' standard deviation.
    """
    size = size or kernel_subset(a, b)
    rng = np.random.default_rng(0)

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        inner = x @ y.T / x.shape[1] + 1
        return inner * inner * inner

    def within(k: np.ndarray) -> float:
        return (k.sum() - np.trace(k)) / (size * (size - 1))

    found = []
    for _ in range(subsets):
        x, y = (s[rng.choice(len(s), size, replace=False)] for s in (a, b))
        found.append(within(kernel(x, x)) + within(kernel(y, y)) - 2 * kernel(x, y).mean())
    spread = float(np.std(found, ddof=1))
    # How far one image moves the distance: 2 (E k(x, a) - E k(x, b)), a few rows at a time.
    a, b = a[:PAIRED_IMAGES], b[:PAIRED_IMAGES]
    pulls = []
    for x in np.array_split(a, -(-len(a) * max(len(a), len(b)) // CHUNK)):
        own = ((x * x).sum(1) / x.shape[1] + 1) ** 3
        pulls.append((kernel(x, a).sum(1) - own) / (len(a) - 1) - kernel(x, b).mean(1))
    linear = 2 * float(np.concatenate(pulls).std(ddof=1)) / len(a) ** 0.5
    return float(np.mean(found)), (linear**2 + spread**2 / subsets) ** 0.5, spread


def kernel_subset(a: np.ndarray, b: np.ndarray) -> int:
    """Images per subset in the KID between a and b."""
    return max(2, min(KID_SUBSET, min(len(a), len(b)) // 2))


def _distances(a: Tensor, b: Tensor) -> Iterator[Tensor]:
    """Euclidean distances of a [N, D] to b [M, D], some rows at a time.

    Not by matrix products: those round, and a point must be at distance 0 from itself.
    """
    for rows in a.split(max(1, CHUNK // len(b))):
        yield torch.cdist(rows, b, compute_mode="donot_use_mm_for_euclid_dist")


def neighbour_radii(features: np.ndarray, device: torch.device | str = "cpu") -> dict[int, Tensor]:
    """Distance of each of the features [N, D] (N at least 2) to its k-th nearest other, [N], for the two k in use."""
    x = torch.from_numpy(features).to(device)
    ks = [min(k, len(x) - 1) for k in (PRECISION_NEIGHBOURS, DENSITY_NEIGHBOURS)]
    # The nearest of all is the point itself.
    nearest = torch.cat([d.topk(max(ks) + 1, largest=False).values for d in _distances(x, x)])
    return {wanted: nearest[:, k] for wanted, k in zip((PRECISION_NEIGHBOURS, DENSITY_NEIGHBOURS), ks, strict=True)}


def neighbourhoods(
    generated: np.ndarray, reference: np.ndarray, radii: dict[int, Tensor], device: torch.device | str = "cpu"
) -> dict[str, np.ndarray]:
    """Precision, recall, density and coverage, of which these are the terms to be averaged.

    A point is in a ball when it is strictly inside, so that a set against itself has density 1.

    Arguments:
        generated, reference: features [N, D] and [M, D].
        radii: `neighbour_radii(reference)`.

    Returns: "precision" and "density", a value per generated image [N]; "recall" and "coverage", one per reference
    image [M].
    """
    x, y = (torch.from_numpy(each).to(device) for each in (generated, reference))
    own = neighbour_radii(generated, device)[PRECISION_NEIGHBOURS]
    precise, dense = [], []
    recalled, covered = (torch.zeros(len(y), dtype=torch.bool, device=device) for _ in range(2))
    for d, radius in zip(_distances(x, y), own.split(max(1, CHUNK // len(y))), strict=True):
        precise.append((d < radii[PRECISION_NEIGHBOURS]).any(1))
        recalled |= (d < radius[:, None]).any(0)
        inside = d < radii[DENSITY_NEIGHBOURS]
        dense.append(inside.sum(1).double() / DENSITY_NEIGHBOURS)
        covered |= inside.any(0)
    terms = {"precision": torch.cat(precise), "recall": recalled, "density": torch.cat(dense), "coverage": covered}
    return {name: term.double().cpu().numpy() for name, term in terms.items()}
