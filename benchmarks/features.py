"""Does the embedded colour network rank images as a larger network does?

    python benchmarks/features.py cifar10.npz --features cifar10_features.safetensors

Some of the test images are degraded, each kind at several strengths, and each set's Fréchet distance to as many others
is taken in both networks' features: prints the distances and the rank correlations over the whole ladder (Spearman).

blur           Gaussian, sigma in pixels
noise          white, standard deviation in grey levels
saturation     contrast raised by a factor about the middle grey, then clipped
occlusion      a grey square in the middle, of that side
pca            reconstruction from so many principal components of the training images
gaussian       a draw of the Gaussian fitted to these components
mixed          each image averaged with another, by that weight
"""

import argparse
from collections.abc import Callable, Iterator

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from hebmtool.compute import pick_device
from hebmtool.metrics.distances import frechet_distance
from hebmtool.metrics.features import load_features

FITTED = 5_000
"""Training images to which the components are fitted."""


class Components:
    """Principal components of images x [N, ...]."""

    def __init__(self, x: Tensor):
        flat = x.flatten(1)
        self.mean, self.shape = flat.mean(0), x.shape[1:]
        _, s, self.axes = torch.linalg.svd(flat - self.mean, full_matrices=False)
        self.scale = s / len(x) ** 0.5

    def reconstructed(self, x: Tensor, k: int) -> Tensor:
        axes = self.axes[:k]
        return ((x.flatten(1) - self.mean) @ axes.T @ axes + self.mean).unflatten(1, self.shape)

    def drawn(self, n: int, k: int) -> Tensor:
        return (torch.randn(n, k) * self.scale[:k] @ self.axes[:k] + self.mean).unflatten(1, self.shape)


def occluded(x: Tensor, side: int) -> Tensor:
    y, top = x.clone(), (x.shape[-1] - side) // 2
    y[:, :, top : top + side, top : top + side] = 0.5
    return y


def ladder(x: Tensor, fitted: Components) -> Iterator[tuple[str, float, Tensor]]:
    """(kind, strength, images in [0, 1] where not clipped yet)."""
    kinds: dict[str, tuple[tuple[float, ...], Callable[[float], Tensor]]] = {
        "blur": ((0.4, 0.6, 0.9, 1.4, 2.5), lambda sigma: gaussian_blur(x, [13, 13], [sigma, sigma])),
        "noise": ((4, 8, 16, 32, 64), lambda deviation: x + deviation / 255 * torch.randn_like(x)),
        "saturation": ((1.3, 1.7, 2.5, 4, 8), lambda factor: 0.5 + factor * (x - 0.5)),
        "occlusion": ((4, 8, 12, 16, 24), lambda side: occluded(x, int(side))),
        "pca": ((1000, 300, 100, 30, 10), lambda k: fitted.reconstructed(x, int(k))),
        "gaussian": ((1000, 300, 100, 30, 10), lambda k: fitted.drawn(len(x), int(k))),
        "mixed": ((0.1, 0.2, 0.3, 0.4, 0.5), lambda w: (1 - w) * x + w * x.roll(1, 0)),
    }
    yield "none", 0, x
    for kind, (strengths, degraded) in kinds.items():
        for strength in strengths:
            yield kind, strength, degraded(strength)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", help=".npz with x_train and x_test, uint8 [N, H, W, 3]")
    parser.add_argument("--features", required=True, help="the larger network, safetensors")
    parser.add_argument("--samples", type=int, default=1000, help="images a set")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    device = pick_device(options.device)
    torch.manual_seed(0)
    with np.load(options.images) as arrays:
        train, test = (torch.from_numpy(arrays[key]).permute(0, 3, 1, 2) for key in ("x_train", "x_test"))
    n = options.samples
    x = test[n : 2 * n].float() / 255
    networks = [load_features(path, tuple(test.shape[1:]), device) for path in (None, options.features)]
    reference = [network(test[:n].contiguous()) for network in networks]
    fitted = Components(train[:FITTED].float() / 255)
    print(f"| degradation | strength | {networks[0].name} | {networks[1].name} |\n|---|---|---|---|")
    found: dict[str, list[list[float]]] = {}
    for kind, strength, images in ladder(x, fitted):
        images = images.mul(255).round().clamp(0, 255).to(torch.uint8)
        row = [frechet_distance(network(images), of) for network, of in zip(networks, reference, strict=True)]
        found.setdefault(kind, []).append(row)
        print(f"| {kind} | {strength:g} | {row[0]:.3f} | {row[1]:.3f} |", flush=True)
    whole = np.array([row for rows in found.values() for row in rows])
    within = [spearmanr(*np.array(rows).T).statistic for rows in found.values() if len(rows) > 2]
    least = f"{min(within):.3f} at least in a kind"
    print(f"\nrank correlation {spearmanr(*whole.T).statistic:.3f} over the ladder, {least}")


if __name__ == "__main__":
    main()
