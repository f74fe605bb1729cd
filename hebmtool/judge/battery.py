"""Out-of-distribution images made of a run's own test images and of what scikit-learn carries; nothing is downloaded.

noise      x ~ U{0..255}, every pixel and channel
constant   one grey value or colour per image, ~ U{0..255}
shuffled   a test image's pixels in random order
mixed      the mean of two test images
inverted   255 - x
digits     scikit-learn's 8x8 handwritten digits, resized; left out where the run was trained on them
photos     random square crops of scikit-learn's two sample photographs, resized
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from hebmtool import data, recipe
from hebmtool.noise import derive_seed

Shape = tuple[int, int, int]


def noise(n: int, shape: Shape, rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.integers(0, 256, (n, *shape), dtype=np.uint8))


def constant(n: int, shape: Shape, rng: np.random.Generator) -> Tensor:
    colours = torch.from_numpy(rng.integers(0, 256, (n, shape[0], 1, 1), dtype=np.uint8))
    return colours.expand(n, *shape).contiguous()


def shuffled(test: Tensor, rng: np.random.Generator) -> Tensor:
    """Colours stay together."""
    pixels = test.flatten(2)
    return torch.stack([x[:, rng.permutation(x.shape[1])] for x in pixels]).view_as(test)


def mixed(test: Tensor, rng: np.random.Generator) -> Tensor:
    """Image i of a random order with image i + 1 of it; no image meets itself where there are two."""
    one = test[rng.permutation(len(test))]
    return ((one.int() + one.roll(1, 0).int()) // 2).to(torch.uint8)


def digits(n: int, shape: Shape, rng: np.random.Generator, config: recipe.Data) -> Tensor:
    """At most all 1,797 of them."""
    from sklearn.datasets import load_digits  # slow to import

    found = np.round(load_digits().images * 255 / 16).astype(np.uint8)[:, None]
    return data.fit_to(torch.from_numpy(found[rng.permutation(len(found))[:n]]), shape, config)


def photos(n: int, shape: Shape, rng: np.random.Generator, config: recipe.Data) -> Tensor:
    from sklearn.datasets import load_sample_images  # slow to import

    pictures = [torch.from_numpy(image.copy()).permute(2, 0, 1) for image in load_sample_images().images]
    crops = []
    for i in range(n):
        whole = pictures[i % len(pictures)]
        longest = min(whole.shape[1:])
        side = int(rng.integers(min(max(shape[1:]), longest), longest + 1))
        top, left = (int(rng.integers(full - side + 1)) for full in whole.shape[1:])
        crop = whole[None, :, top : top + side, left : left + side]
        crops.append(data.fit_to(crop, shape, config))
    return torch.cat(crops)


def battery(test: Tensor, config: recipe.Data, shape: Shape, seed: int = 0) -> Iterator[tuple[str, Tensor]]:
    """(name, uint8 [M, C, H, W]), one set at a time, as many images as `test` has where there are so many.

    Arguments:
        test: test images, uint8 [N, C, H, W] of `shape`.
        config: the recipe's `data` part; its crop, meant for its own images, is left out.
        seed: the sets depend on nothing else besides.
    """
    n, config = len(test), config.model_copy(update={"crop": None})
    members: dict[str, Callable[[np.random.Generator], Tensor]] = {
        "noise": lambda rng: noise(n, shape, rng),
        "constant": lambda rng: constant(n, shape, rng),
        "shuffled": lambda rng: shuffled(test, rng),
        "mixed": lambda rng: mixed(test, rng),
        "inverted": lambda rng: 255 - test,
        "digits": lambda rng: digits(n, shape, rng, config),
        "photos": lambda rng: photos(n, shape, rng, config),
    }
    if config.source == "digits":
        del members["digits"]
    for name, make in members.items():
        yield name, make(np.random.default_rng(derive_seed(seed, "battery", name)))
