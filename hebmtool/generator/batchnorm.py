"""BatchNorm statistics of generated batches."""

import math

import torch
from torch import nn

from hebmtool.console import progress
from hebmtool.errors import UsageError
from hebmtool.generator.tower import Tower


@torch.no_grad()
def readjust_batchnorm(
    generator: Tower, batches: int = 500, batch_size: int = 64, temperature: float = 1.0, seed: int = 0
) -> None:
    """Re-estimate, in place, the running statistics of the BatchNorms that generation passes.

    As NVAE and "Learning Latent Space Hierarchical EBM Diffusion Models" (https://arxiv.org/abs/2405.13910) do before
    stage two: the plain average of the statistics of `batches` generated batches.  The encoder's stay as they are.
    A frozen generator has no such statistics left.

    Arguments:
        batch_size: images per batch, at least 2.
        temperature: standard deviation of u; below 1 the images generated are nearer to the mode.
        seed: the draws depend on it alone.

    Raises:
        UsageError: a number out of range.
        ValueError: the generator is frozen.
    """
    for what, value, least in (("batches", batches, 1), ("batch size", batch_size, 2)):
        if value < least:
            raise UsageError(f"the {what} to re-estimate BatchNorm statistics is {value}, but must be at least {least}")
    if not 0 < temperature < math.inf:
        raise UsageError(f"the temperature to re-estimate BatchNorm statistics is {temperature}, but must be above 0")
    modules = [m for part in (generator.decoder, generator.postprocess) for m in part.modules()]
    if generator.is_frozen:
        raise ValueError("a frozen generator has no BatchNorm statistics; re-estimate them before freezing it")
    norms = [m for m in modules if isinstance(m, nn.BatchNorm2d)]
    before = [(bn.momentum, bn.training) for bn in norms]
    for bn in norms:
        bn.reset_running_stats()
        bn.momentum = None  # torch's word for a plain average
        bn.train()
    draws = torch.Generator().manual_seed(seed)
    try:
        with progress("BatchNorm statistics", batches) as bar:
            for _ in range(batches):
                u = temperature * torch.randn(batch_size, generator.D, generator=draws)
                generator.decode(generator.walk(u.to(generator.device)))
                bar.advance()
    finally:
        for bn, (momentum, training) in zip(norms, before, strict=True):
            bn.momentum = momentum
            bn.train(training)
