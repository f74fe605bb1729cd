"""Where every random number comes from.

    seed of a use = derive_seed(seed of the run, words, numbers)         noise of image i = its own stream of N(0, I)

Streams are one per image and drawn on the CPU, so image i of a seed is the same at any batch size and on any device.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


class Noise:
    """Standard normal noise, one independent stream per image, so that batches may be cut anywhere.

    Arguments:
        seed: of the whole set.
        indices: which images of it; image i of a seed always sees the same noise.
        D: latent dimensions.
        device: where the noise goes; it is drawn on the CPU, so a GPU sees the same.
    """

    def __init__(self, seed: int, indices: Sequence[int], D: int, device: torch.device | str = "cpu"):
        self.D, self.device = D, device
        self.streams = [torch.Generator().manual_seed(derive_seed(seed, "image", int(i))) for i in indices]

    def __len__(self) -> int:
        return len(self.streams)

    def __call__(self) -> Tensor:
        """The next draw, [N, D]."""
        return torch.stack([torch.randn(self.D, generator=g) for g in self.streams]).to(self.device)


def derive_seed(*parts: object) -> int:
    """A 63-bit seed that depends on every part, and on nothing else."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
