"""Latents of images, whole or with hidden pixels, for a run of either kind.

A flow or a latent EBM has no encoder: a Langevin run from its prior or N(0, I) goes towards p(z | x_visible)
(`hebmtool.chains.short_run`).

A hierarchical run has one, for whole images.  Where pixels are hidden, encoder and generator fill them in turns,

    u ~ q(u | x_visible, x_hidden),   x_hidden <- mean of p(x | T(u))        (Rezende et al. 2014, arXiv 1401.4082, F)

which looks at no prior but the generator's, or its whitened Gaussian; so adjusted Langevin steps follow, on

    p(u | x_visible) ~ p(u) p(x_visible | T(u)),

p(u) being whatever prior the run has trained.  They may refine the latents of whole images as well.

The noise of an image is seeded by its visible pixels: it is the same wherever the image stands, in whatever batch.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hebmtool import data, picture, ranks
from hebmtool.chains.short_run import adjusted
from hebmtool.console import progress
from hebmtool.errors import HebmError
from hebmtool.noise import Noise, derive_seed
from hebmtool.prior import Prior
from hebmtool.recipe import Recipe

ROUNDS = 20
"""Turns of encoder and generator that fill hidden pixels."""

REFINE = 100
"""Langevin steps after them, unless another number is asked for."""

FIRST_STEP = 0.05
"""Size of the first of those steps; it adapts."""

BATCH = 64
"""Latents inferred at a time."""

DRAWN = 100
"""Images at a time of which a posterior draw each is wanted."""


@dataclass
class Inference:
    """Latents of images under a run's prior.

    Arguments:
        prior: one with its generator, or a prior on its frozen generator.
        recipe: the run's.
        steps: Langevin steps.  None: without an encoder the recipe's number; for a hierarchical run none for whole
            images, REFINE where pixels are hidden.
        seed: of every draw.
        drawn: where a hierarchical run infers whole images without steps, draw from the posterior instead of taking its
            mean.
        learning: whether, without an encoder, the chain is that of learning, in as many steps and with noise.
    """

    prior: Prior
    recipe: Recipe
    steps: int | None = None
    seed: int = 0
    drawn: bool = False
    learning: bool = False

    def __call__(self, images: Tensor, hidden: Tensor | None = None, draws: int = 1) -> Tensor:
        """Latents, [N, draws, D]; for a hierarchical run's whole images without Langevin steps the posterior's mean.

        Arguments:
            images: uint8 [N, C, H, W]; what stands at hidden pixels is not looked at.
            hidden: bool [N, 1, H, W]; no pixel when None.
            draws: independent ones, per image.

        Raises:
            HebmError: a chain left the numbers.
        """
        device = self.prior.generator.device
        if hidden is not None:
            images = images * ~hidden

        def infer(which: Tensor) -> Tensor:
            rows, draw = (which // draws).tolist(), (which % draws).tolist()
            codes = [self._code(images[row], d) for row, d in zip(rows, draw, strict=True)]
            visible = None if hidden is None else ~hidden[rows].to(device)
            return self._batch(images[rows], visible, codes, device).detach().cpu()

        latents, n = [], len(images) * draws
        with progress("inference", n) as bar:
            for part in ranks.spread(torch.arange(n).split(ranks.share(n, BATCH)), infer):
                latents.append(part)
                bar.advance(len(part))
        found = torch.cat(latents).to(device)
        if not found.isfinite().all():
            raise HebmError("a Langevin chain diverged: latents are not finite; take fewer steps")
        return found.unflatten(0, (len(images), draws))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Mean images, uint8 [N, C, H, W]."""
        parts = latents.split(ranks.share(len(latents), BATCH))
        return torch.cat(list(ranks.spread(parts, lambda z: picture.to_uint8(self.prior.generator.images(z)))))

    def _code(self, image: Tensor, draw: int) -> int:
        pixels = hashlib.blake2b(image.numpy().tobytes(), digest_size=8).hexdigest()
        return derive_seed(self.seed, "inference", pixels, draw)

    def _batch(self, images: Tensor, visible: Tensor | None, codes: list[int], device: torch.device) -> Tensor:
        prior, D = self.prior, self.prior.generator.D
        x = self._as_read(images, codes).to(device)
        if not prior.generator.has_encoder:
            noise = Noise(self.seed, codes, D, device)
            own = prior.inference.steps if self.learning else prior.inference.test_steps
            steps, start = own if self.steps is None else self.steps, prior.start(noise())
            noisy = self.learning or prior.inference.test_noise
            return prior.infer(x, start, steps, noise if noisy else None, visible)
        # The last of the D + 1 decides what the chain accepts.
        noise = Noise(self.seed, codes, D + 1, device)
        u = self._encode(x, visible, noise)
        steps = (0 if visible is None else REFINE) if self.steps is None else self.steps
        return adjusted(lambda u: self._log_joint(u, x, visible), u, steps, FIRST_STEP, noise)[0] if steps else u

    @torch.no_grad()
    def _encode(self, x: Tensor, visible: Tensor | None, noise: Noise) -> Tensor:
        generator = self.prior.generator
        if visible is None:
            eps = noise()[:, :-1] if self.drawn else torch.zeros(len(x), generator.D, device=x.device)
            return generator.encode(x, eps)
        # Every draw starts from hidden pixels of its own.
        u = noise()[:, :-1]
        for _ in range(ROUNDS):
            u = generator.encode(torch.where(visible, x, generator.images(u)), noise()[:, :-1])
        return u

    def _log_joint(self, u: Tensor, x: Tensor, visible: Tensor | None) -> Tensor:
        walk = self.prior.generator.walk(u)
        return self.prior.log_density(u, walk) + self.prior.generator.log_px(walk, x, visible)

    def _as_read(self, images: Tensor, codes: list[int]) -> Tensor:
        """Pixels as the likelihood wants them; for binary ones the probabilities of ink, whose log-likelihood is the
        mean over draws."""
        return data.prepare_each(images, codes, self.recipe.data, self.prior.generator.likelihood.read_grey)


@torch.no_grad()
def posterior_draws(prior: Prior, splits: Sequence[data.Images], recipe: Recipe, n: int, seed: int) -> Tensor:
    """u ~ q(u | x), one draw for each of n images, [n, D]: the first of the first split, then of the next.

    Without an encoder they are what inference from the prior comes to in as many steps as in learning.
    """
    generator, out, left = prior.generator, [], n
    with torch.random.fork_rng(devices=[]), progress("drawing from the posterior", n) as bar:
        for which, images in enumerate(splits):
            taken = min(left, len(images))
            left -= taken
            for indices in torch.arange(taken).split(DRAWN) if taken else ():
                batch = images.batch(indices)
                if generator.has_encoder:
                    torch.manual_seed(derive_seed(seed, "posterior", which, int(indices[0])))
                    x = data.prepare(batch, recipe.data, generator.likelihood.read, train=False).to(generator.device)
                    noise = Noise(
                        derive_seed(seed, "posterior", which), indices.tolist(), generator.D, generator.device
                    )
                    out.append(generator.encode(x, noise()))
                else:
                    chain = Inference(prior, recipe, seed=derive_seed(seed, "posterior"), learning=True)
                    out.append(chain(batch)[:, 0])
                bar.advance(len(indices))
    return torch.cat(out)
