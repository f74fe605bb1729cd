"""Out-of-distribution scores of images, at every cut k of the hierarchy; high = in-distribution.

    energy       S_{>k}(x) = sum_{i>k} f_i(z_i, 0)          (and where latents are whitened, what that knows of layer i)
    likelihood   L^{>k}(x) = E[log p(x | z) - sum_{i>k} KL_i],      z_{>k} ~ q(. | x),  z_{<=k} ~ p(. | z_{>k})
    llr          L^{>k}(x) - L(x),                                  L = L^{>0}, the ELBO
    joint        log p(x | z) + F(z) + log p_0(z),                  log p(x, z) but for log Z; of all layers, so k = 0

The energy is read at u_0 ~ q(u | x) (scheme `inference`), or at that u_0 noised to a level and brought back by the
conditional EBMs (scheme `diffusion`; "HEBM", https://arxiv.org/abs/2405.13910, Figure 3).  The ratio is the negative
of Havtorn et al.'s LLR^{>k} ("Hierarchical VAEs Know What They Don't Know", https://arxiv.org/abs/2102.08248), which is
high for what is out of distribution.

f_i was learned on posterior draws, whose norm is not their mean's; so every score averages a few draws of q and, where
the likelihood wants binary or continuous pixels, of those.  The noise of an image is seeded by its own pixels: its
score is the same wherever it stands, in whatever batch.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from hebmtool import data, picture, ranks
from hebmtool.errors import HebmError, UsageError, did_you_mean
from hebmtool.generator import Posterior
from hebmtool.metrics.detection import auroc
from hebmtool.noise import Noise, derive_seed
from hebmtool.prior import Prior
from hebmtool.recipe import Recipe
from hebmtool.use.infer import Inference

SCORES = ("energy", "likelihood", "llr", "joint")
SCHEMES = ("inference", "diffusion")
CALIBRATION = 256  # held-out images on which the cut is chosen, and as many draws of the model
BATCH = 100  # images scored at a time


# Scores ---------------------------------------------------------------------------------------------------------------


@dataclass
class Scorer:
    """One kind of score for images of a run.

    Arguments:
        prior: on its frozen generator; an energy score needs a trained one.
        recipe: the run's: its `data` part and likelihood say how the generator reads images.
        score: "energy", "likelihood" (nats), "llr" (nats) or "joint" (nats).
        scheme: of the energy, "inference" or "diffusion"; the latter needs the diffusion-ebm prior.
        level: 1 .. T, the noise level of the diffusion scheme.
        draws: averaged per image.
        seed: of the draws.

    Raises:
        UsageError: a word or level that does not exist, or a scheme that the score does not have.
        HebmError: the prior has no energy, or no levels.
    """

    prior: Prior
    recipe: Recipe
    score: str = "energy"
    scheme: str = "inference"
    level: int = 1
    draws: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        for what, word, words in (("score", self.score, SCORES), ("scheme", self.scheme, SCHEMES)):
            if word not in words:
                raise UsageError(f"{what} is '{word}'; choose one of {', '.join(words)}{did_you_mean(word, words)}")
        kind = self.prior.kind
        if self.score == "energy" and not self.prior.learned:
            raise HebmError(
                f"an energy score needs a trained prior, and the {kind} one has no energy; train one with "
                "`hebm train-prior`, or score by likelihood or llr"
            )
        if self.scheme == "diffusion":
            if self.score != "energy":
                raise UsageError(f"the scheme diffusion is of the energy score, and score is {self.score}; drop one")
            if self.prior.T < 2:
                raise HebmError(
                    f"the scheme diffusion needs the levels of a diffusion-ebm prior, and this is the {kind} one; "
                    "train it with `hebm train-prior`, or use the scheme inference"
                )
            if not 1 <= self.level <= self.prior.T:
                raise UsageError(f"level is {self.level}; this prior's levels are 1 to {self.prior.T}")

    @property
    def name(self) -> str:
        return f"{self.score} ({self.scheme})" if self.score == "energy" else self.score

    @property
    def cuts(self) -> list[int]:
        """The cuts k this score has: 0 .. L-1; the ratio at 0 is no ratio, log p(x, z) is of all layers, and an energy
        of none above the highest that has one."""
        L = self.prior.highest if self.score == "energy" else self.prior.generator.L
        return [0] if self.score == "joint" else list(range(self.score == "llr", L))

    def check(self, cut: int) -> int:
        """`cut`, if there is such a one.  Raises UsageError naming those that exist."""
        L = self.prior.generator.L
        if cut in self.cuts:
            return cut
        if not self.cuts:
            raise UsageError(f"the score {self.score} needs a generator of at least two layers, and this one has {L}")
        first, last = self.cuts[0], self.cuts[-1]
        allowed = f"from {first} to {last}" if first < last else str(last)
        if last == L - 1:
            allowed += " (the top one alone)"
        elif self.score == "energy":
            allowed += f", for no layer above layer {last + 1} has an energy (prior.energy.layers)"
        raise UsageError(
            f"layer is {cut}; it uses the layers above that number, of {L}, so for the score {self.score} it is "
            + allowed
        )

    @torch.no_grad()
    def __call__(self, images: Tensor, cuts: Sequence[int] | None = None) -> Tensor:
        """Scores, float64 [N, cuts].

        Arguments:
            images: uint8 [N, C, H, W], in the generator's shape.
            cuts: all the score has, in order, when None.

        Raises:
            HebmError: a score is not finite.
        """
        cuts, generator = self.cuts if cuts is None else cuts, self.prior.generator
        codes = [int.from_bytes(hashlib.blake2b(i.numpy().tobytes(), digest_size=8).digest()) for i in images]
        noise = Noise(derive_seed(self.seed, "score"), codes, generator.D, generator.device)
        total = torch.zeros(len(images), len(cuts), dtype=torch.float64)
        for draw in range(self.draws):
            seeds = [derive_seed(self.seed, "prepare", code, draw) for code in codes]
            x = data.prepare_each(images, seeds, self.recipe.data, generator.likelihood.read).to(generator.device)
            posterior = generator.posterior(x, noise())
            if self.score == "energy":
                found = self._energy(generator.latents(posterior.walk), noise, cuts)
            elif self.score == "joint":
                found = self._joint(x, posterior)
            else:
                found = self._bound(x, posterior, noise, cuts)
            total += found.double().cpu()
        if not total.isfinite().all():
            raise HebmError(
                f"the {self.name} score of an image is not finite; use the scheme inference, or another prior"
            )
        return total / self.draws

    def _energy(self, u: Tensor, noise: Noise, cuts: Sequence[int]) -> Tensor:
        """S_{>k} at u, or at what the diffusion makes of it."""
        if self.scheme == "diffusion":
            u = self.prior.stages(u, noise)[-1 - self.level]
            *_, u = self.prior.descend(u, self.level, noise)
        L = self.prior.generator.L
        # In units of F, as published; a nat is another number of them where the chain scales F.
        scale = self.prior.scale(torch.zeros(1, dtype=torch.long, device=u.device))
        f = scale * self.prior.log_ratio(u, layers=L - min(cuts))
        return torch.stack([f[:, : L - k].sum(1) for k in cuts], dim=1)

    def _joint(self, x: Tensor, posterior: Posterior) -> Tensor:
        """log p(x, z) up to a constant, a density in z, [N, 1] ("Learning Hierarchical Features with Joint Latent Space
        Energy-Based Prior", Cui, Wu & Han 2023, https://arxiv.org/abs/2310.09604)."""
        walk, generator = posterior.walk, self.prior.generator
        F = self.prior.log_ratio(generator.latents(walk)).sum(1)
        return (generator.log_px(walk, x) + walk.log_p_0() + F)[:, None]

    def _bound(self, x: Tensor, posterior: Posterior, noise: Noise, cuts: Sequence[int]) -> Tensor:
        """L^{>k}, and for the ratio less L."""
        generator, u, e = self.prior.generator, self.prior.generator.join(posterior.walk.u), noise()

        def L_above(k: int) -> Tensor:
            used = generator.L - k  # layers, from the top
            held = generator.slices[used - 1].stop
            walk = posterior.walk
            if k:
                # Under p(z_{<=k} | z_{>k}) the layers below the cut are standard normal residuals.
                walk = generator.walk(generator.whitened(torch.cat([u[:, :held], e[:, held:]], dim=1)))
            return generator.log_px(walk, x) - posterior.kl[:, :used].sum(1)

        found = torch.stack([L_above(k) for k in cuts], dim=1)
        return found - L_above(0)[:, None] if self.score == "llr" else found


@dataclass
class PosteriorScorer(Scorer):
    """The score without an encoder: log p(z) + log p(x | z), up to a constant, at z inferred by Langevin dynamics
    (LFBM, https://arxiv.org/abs/2301.09300); nats.  There is one layer, so one cut, 0."""

    score: str = "posterior"
    draws: int = 1

    def __post_init__(self) -> None:
        if self.score != "posterior":
            raise UsageError(
                f"score is '{self.score}', but a run without an encoder has one score, posterior; name no other"
            )
        if self.scheme != "inference":
            raise UsageError(
                f"scheme is '{self.scheme}', but a run without an encoder has one scheme, inference; name no other"
            )
        self.inference = Inference(self.prior, self.recipe, seed=self.seed)

    @torch.no_grad()
    def __call__(self, images: Tensor, cuts: Sequence[int] | None = None) -> Tensor:
        z = self.inference(images, draws=self.draws)
        read = self.prior.generator.likelihood.read_grey
        x = data.prepare(images, self.recipe.data, read, train=False).to(z.device).repeat_interleave(self.draws, 0)
        total = self.prior.log_joint(z.flatten(0, 1), x).double().cpu()
        return total.view(len(images), self.draws).mean(1, keepdim=True)


def make_scorer(
    prior: Prior,
    recipe: Recipe,
    score: str | None = None,
    scheme: str | None = None,
    level: int = 1,
    draws: int | None = None,
    seed: int = 0,
) -> Scorer:
    """The scorer for a prior's kind of generator: by default the energy at the encoder's latents, four draws of them;
    without an encoder the posterior, one draw.  Arguments as `Scorer`'s."""
    if not prior.generator.has_encoder:
        return PosteriorScorer(prior, recipe, score or "posterior", scheme or "inference", draws=draws or 1, seed=seed)
    return Scorer(prior, recipe, score or "energy", scheme or "inference", level, draws or 4, seed)


def in_batches(scorer: Scorer, images: Tensor, cuts: Sequence[int] | None = None) -> np.ndarray:
    """The scores of many images, float64 [N, cuts]."""
    parts = images.split(ranks.share(len(images), BATCH))
    return torch.cat(list(ranks.spread(parts, lambda batch: scorer(batch, cuts)))).numpy()


def blind_cut(scorer: Scorer, held_out: Tensor) -> tuple[int, list[float]]:
    """A cut chosen without any out-of-distribution image; and the AUROC at every cut that it was chosen by.

    The model brings its own outliers: what its Gaussian prior draws and no data has, the prior hole.  The cut is the
    one at which held-out images are best told from images decoded from N(0, I).
    """
    if not scorer.cuts:
        scorer.check(0)
    generator = scorer.prior.generator
    seed = derive_seed(scorer.seed, "cut")
    drawn = []
    for indices in torch.arange(len(held_out)).split(BATCH):
        noise = Noise(seed, indices.tolist(), generator.D, generator.device)
        drawn.append(picture.to_uint8(generator.images(generator.whitened(noise()))))
    inside, outside = in_batches(scorer, held_out), in_batches(scorer, torch.cat(drawn))
    found = [auroc(a, b) for a, b in zip(inside.T, outside.T, strict=True)]
    return scorer.cuts[int(np.argmax(found))], found


def calibration(images: data.Images) -> int:
    """How many of the held-out images, the first ones, choose the cut; the comparison uses the others."""
    return min(CALIBRATION, len(images) // 3)


def default_cut(scorer: Scorer, test: data.Images) -> tuple[int, list[float] | None]:
    """`blind_cut` on the first test images, one draw each; of the energy at u_0, for either scheme.  Without
    an encoder, or of log p(x, z), there is only one, and nothing to choose it by."""
    if not scorer.prior.generator.has_encoder or scorer.score == "joint":
        return scorer.cuts[0], None
    first = calibration(test)
    if first < 2:
        raise HebmError(
            f"choosing a cut takes at least 6 test images, and there are {len(test)}; name a layer, or use more "
            "images, or a larger data.test_fraction"
        )
    one = Scorer(scorer.prior, scorer.recipe, scorer.score, draws=1, seed=scorer.seed)
    return blind_cut(one, test.batch(range(first)))


def stream(
    scorer: Scorer, images: Iterable[tuple[str, Tensor]], cut: int, batch_size: int = 64
) -> Iterator[tuple[str, float]]:
    """(name, score at the cut) of every image, a batch at a time."""

    def score(batch: list[tuple[str, Tensor]]) -> list[tuple[str, float]]:
        names, pixels = zip(*batch, strict=True)
        return list(zip(names, scorer(torch.stack(pixels), [cut])[:, 0].tolist(), strict=True))

    images = iter(images)
    for scored in ranks.spread(iter(lambda: list(islice(images, batch_size)), []), score):
        yield from scored
