"""Sampling: HEBM's Algorithm 2 and its pictures (https://arxiv.org/abs/2405.13910).

u_T ~ N(0, I);   u_t ~ p(u_t | u_{t+1}) by Langevin, t = T-1 .. 0;   x ~ p(x | T(u_0)), shown as its mean unless asked
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from hebmtool import picture, ranks
from hebmtool.console import progress
from hebmtool.errors import UsageError, did_you_mean
from hebmtool.noise import Noise, derive_seed
from hebmtool.prior import Prior, Steps, not_finite
from hebmtool.use.arrival import Tally

PIXELS = ("mean", "sample")
"""What of p(x | z) an image may be."""


def check_pixels(word: str) -> str:
    """`word`, when it is one of PIXELS."""
    if word not in PIXELS:
        raise UsageError(f"pixels is '{word}'; choose of {', '.join(PIXELS)}{did_you_mean(word, PIXELS)}")
    return word


@torch.no_grad()
def sample(
    prior: Prior,
    n: int,
    seed: int = 0,
    batch_size: int = 64,
    temperature: float = 1.0,
    steps: Steps = None,
    pixels: str = "mean",
    only: Sequence[int] | None = None,
    tally: Tally | None = None,
) -> Iterator[Tensor]:
    """Images 0 .. n - 1 of `seed`, in batches, uint8 [batch, C, H, W].

    Image i of a seed is the same at any batch size, up to the rounding of the last bit in matrix products.

    Arguments:
        temperature: tau > 0; 1 is the prior itself.
        steps: Langevin steps, of every level or of each, the recipe's K when None.
        pixels: "mean" of p(x | z), or a "sample" of it.
        only: of the n images those of these numbers, in order; all when None.
        tally: told of every move, and where each image ends.

    Raises:
        HebmError: the chain left the numbers.
    """
    generator, device = prior.generator, prior.generator.device

    def draw(indices: Tensor) -> Tensor:
        noise = Noise(seed, indices.tolist(), prior.generator.D, device)
        u = prior.sample(noise, steps, temperature, tally and tally.watch)
        if not u.isfinite().all():
            raise not_finite(prior.kind)
        if tally is not None:
            tally.ended(u)
        if pixels == "mean":
            return picture.to_uint8(generator.images(u))
        return picture.to_uint8(generator.drawn(u, [derive_seed(seed, "pixels", int(i)) for i in indices]))

    wanted = torch.arange(n) if only is None else torch.tensor(only, dtype=torch.long)
    if not len(wanted):
        return
    with progress(f"sampling {prior.kind}", len(wanted)) as bar:
        for images in ranks.spread(wanted.split(ranks.share(len(wanted), batch_size)), draw):
            yield images
            bar.advance(len(images))


@torch.no_grad()
def progressive(
    prior: Prior, n: int, seed: int = 0, batch_size: int = 64, temperature: float = 1.0, steps: Steps = None
) -> tuple[Tensor, int]:
    """Decoded u_T ... u_0 of each image: uint8 [n * stages, C, H, W], image by image; and the number of stages.

    Raises:
        HebmError: the chain left the numbers.
    """
    device, rows, stages = prior.generator.device, [], 0
    with progress(f"sampling {prior.kind}", n) as bar:
        for indices in torch.arange(n).split(batch_size):
            noise = Noise(seed, indices.tolist(), prior.generator.D, device)
            passed = list(prior.trajectory(noise, steps, temperature))
            if not passed[-1].isfinite().all():
                raise not_finite(prior.kind)
            passed = [prior.generator.images(u) for u in passed]
            stages = len(passed)
            rows.append(picture.to_uint8(torch.stack(passed, dim=1).flatten(0, 1)))
            bar.advance(len(indices))
    return torch.cat(rows), stages
