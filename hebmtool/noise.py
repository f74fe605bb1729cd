"""Where every random number comes from.

    seed of a use = derive_seed(seed of the run, words, numbers)         noise of image i = its own stream of N(0, I)

Streams are one per image, so image i of a seed is the same at any batch size, in any number of processes and on any
device.  There are two kinds (`STREAMS`), of different numbers:

    torch      torch's generators on the CPU, one per image, drawn one after another and copied over; the default
    philox     a function of (key of the image, number of the draw, coordinate), computed where the noise is wanted

philox: words x = Philox-4x32-10(counter, key) (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3",
https://doi.org/10.1145/2063384.2063405), of which two make two numbers (Box & Muller 1958),

    sqrt(-2 log((x_0 + 1/2) / 2^32)) (cos, sin)(2 pi x_1 / 2^32)

The words are the same on every device, the numbers up to the rounding of log, cos and sin.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from hebmtool.errors import UsageError, did_you_mean

LOW = 2**32 - 1
MULTIPLIERS, STEPS = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10


class Noise:
    """Standard normal noise, one independent stream per image, so that batches may be cut anywhere.

    Arguments:
        seed: of the whole set.
        indices: which images of it; image i of a seed always sees the same noise.
        D: latent dimensions.
        device: where the noise goes.
    """

    def __init__(self, seed: int, indices: Sequence[int], D: int, device: torch.device | str = "cpu"):
        seeds = [derive_seed(seed, "image", int(i)) for i in indices]
        self.D, self.n, self._next = D, len(seeds), STREAMS[_chosen.get()](seeds, D, device)

    def __len__(self) -> int:
        return self.n

    def __call__(self) -> Tensor:
        """The next draw, [N, D]."""
        return self._next()


def torch_streams(seeds: Sequence[int], D: int, device: torch.device | str) -> Callable[[], Tensor]:
    """A generator of torch's for each of the seeds; draws [N, D]."""
    streams = [torch.Generator().manual_seed(seed) for seed in seeds]
    return lambda: torch.stack([torch.randn(D, generator=g) for g in streams]).to(device)


def philox_streams(seeds: Sequence[int], D: int, device: torch.device | str) -> Callable[[], Tensor]:
    """The seeds as keys; draws [N, D] on the device, to which only the keys are ever copied."""
    keys = torch.tensor(seeds, dtype=torch.int64).to(device)[:, None]
    low, high = keys & LOW, keys >> 32
    block = torch.arange(-(-D // 4), device=device)
    drawn = 0

    def draw() -> Tensor:
        nonlocal drawn
        words = philox((block, drawn, 0, 0), (low, high))
        drawn += 1
        return torch.cat([z for pair in (words[:2], words[2:]) for z in normal(*pair)], dim=1)[:, :D]

    return draw


def philox(counter: Sequence[Tensor | int], key: Sequence[Tensor | int]) -> list[Tensor]:
    """Philox-4x32-10: four words for four words of a counter and two of a key, each an int64 in 0 .. 2^32 - 1."""
    (a, b, c, d), (k, l) = counter, key
    for _ in range(ROUNDS):
        # Products wrap round at 2^64, as they would without a sign.
        p, q = a * MULTIPLIERS[0], c * MULTIPLIERS[1]
        a, b, c, d = _high(q) ^ b ^ k, q & LOW, _high(p) ^ d ^ l, p & LOW
        k, l = (k + STEPS[0]) & LOW, (l + STEPS[1]) & LOW
    return [a, b, c, d]


def _high(product: Tensor | int) -> Tensor | int:
    return (product >> 32) & LOW


def normal(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Two independent N(0, 1) for each two words, float32; none is beyond 6.8."""
    radius = ((x.float() + 0.5) * 2.0**-32).log_().mul_(-2).clamp_(min=0).sqrt_()
    angle = y.float() * (2 * math.pi * 2.0**-32)
    return radius * angle.cos(), radius * angle.sin()


STREAMS: dict[str, Callable[[Sequence[int], int, torch.device | str], Callable[[], Tensor]]] = {
    "torch": torch_streams,
    "philox": philox_streams,
}
"""By their words: (a seed for each image, D, device) -> what draws [N, D] at each call."""

_chosen: ContextVar[str] = ContextVar("noise", default="torch")


@contextmanager
def streams(word: str) -> Iterator[None]:
    """Within the block, `Noise` is made of these streams.

    Raises:
        UsageError: there are none of this name.
    """
    if word not in STREAMS:
        raise UsageError(f"there is no noise '{word}'; choose of {', '.join(STREAMS)}{did_you_mean(word, STREAMS)}")
    before = _chosen.set(word)
    try:
        yield
    finally:
        _chosen.reset(before)


def derive_seed(*parts: object) -> int:
    """A 63-bit seed that depends on every part, and on nothing else."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
