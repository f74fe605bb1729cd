"""The sets of images that judging a run holds beside each other, each drawn once per draw.

    gaussian           x = E[x | T(u)], or x ~ p(x | T(u)) with `evaluate.pixels: sample`,   u ~ N(0, I), the
                       generator's own prior
    KIND               the same, u drawn from a trained prior
    reconstructions    u ~ q(u | x') of training images x', or what inference comes to where there is no encoder

All are of one generator where priors share it.  A prior may come with BatchNorm statistics of its own, and is then
compared with Gaussian samples and reconstructions that have them too.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from hebmtool import data
from hebmtool.errors import UsageError
from hebmtool.generator import Generator
from hebmtool.judge.closure import draw_seed, reconstruct
from hebmtool.judge.evaluation import RECONSTRUCTIONS
from hebmtool.metrics.features import BATCH
from hebmtool.metrics.figures import Figure
from hebmtool.prior import Gaussian, Prior, Steps
from hebmtool.recipe import Recipe
from hebmtool.run.folder import Run
from hebmtool.run.open import load_prior
from hebmtool.use.arrival import Arrival, Mean, Tally, mean_tilt
from hebmtool.use.infer import posterior_draws
from hebmtool.use.sample import sample

GAUSSIAN = Gaussian.kind
POSTERIOR = 1000
"""Images at most on whose posterior F is read."""


@dataclass
class Source:
    """A set of images to judge: `draw(i)` yields its i-th set in batches, uint8 [batch, C, H, W].

    baseline: of a trained prior, the names of the Gaussian samples and reconstructions on its own generator.
    again: whether it is of reconstructions, of which another set is soon made to hold every set against.
    arrival: where the draws last made have come to, of a prior with energies.
    """

    name: str
    draw: Callable[[int], Iterator[Tensor]]
    baseline: tuple[str, str] | None = None
    timed: bool = True
    arrival: Callable[[], Arrival] | None = None
    again: bool = False


def given(chain: str | None, settings: Mapping[str, object]) -> dict[str, object]:
    """The chain settings that were given, as `Prior.using` takes them: those that are not None."""
    return {key: value for key, value in {"chain": chain, **settings}.items() if value is not None}


def drawn_by(prior: Prior, sampler: Mapping[str, object], steps: int | None = None) -> Prior:
    """The prior as it is to be judged: under the chain settings given, which may be none (`Prior.using`).

    Raises:
        UsageError: settings of chains that it does not have, or steps that it does not take.
    """
    if steps is not None and prior.learned and not prior.gradients(1):
        raise UsageError(f"steps is {steps}, but a draw of the {prior.kind} prior takes none; leave it out")
    return prior.using(**sampler) if sampler else prior


def load_priors(
    run: Run,
    kinds: Sequence[str],
    device: torch.device,
    steps: int | None = None,
    sampler: Mapping[str, object] | None = None,
    precision: str = "float32",
) -> tuple[Prior, list[Prior]]:
    """The Gaussian prior of the run's generator, and its trained priors of these kinds.

    What is learned with its generator is held against N(0, I) on that.

    Raises:
        HebmError: as `load_prior`.
        UsageError: as `drawn_by`.
    """
    sampler = sampler or {}
    trained = [drawn_by(load_prior(run, kind, device, precision=precision), sampler, steps) for kind in kinds]
    own = Gaussian(trained[0].generator) if run.one_stage else load_prior(run, GAUSSIAN, device, precision=precision)
    return own if trained else drawn_by(own, sampler), trained


def list_sources(
    own: Prior,
    trained: Sequence[Prior],
    images: data.Images,
    held_out: data.Images,
    recipe: Recipe,
    n: int,
    steps: int | None,
    fast: bool,
) -> list[Source]:
    """The Gaussian prior, the trained ones and reconstructions, n images of each.

    Arguments:
        images, held_out: those to reconstruct; those on whose latents F is read where learning has not (`_drawn`).

    Raises:
        UsageError: a prior that nothing draws faster, with `fast`.
    """

    pixels = recipe.evaluate.pixels

    def sampled(prior: Prior, steps: Steps = None) -> Callable[[int], Iterator[Tensor]]:
        return lambda draw: sample(prior, n, draw_seed(recipe, draw), BATCH, steps=steps, pixels=pixels)

    def reconstructed(name: str, prior: Prior) -> Source:
        draw, again = partial(reconstruct, prior, images, recipe, n), own.generator.has_encoder
        return Source(name, draw, timed=False, again=again)

    baselines = [(own.generator, (GAUSSIAN, RECONSTRUCTIONS))]
    first, priors = [Source(GAUSSIAN, sampled(own))], []
    # Without an encoder inference runs on a prior, the trained one.
    inferred = own if own.generator.has_encoder else trained[0]
    last = [reconstructed(RECONSTRUCTIONS, inferred)]
    for prior in trained:
        names = next((names for generator, names in baselines if same(generator, prior.generator)), None)
        if names is None:
            names = (f"{GAUSSIAN} (BatchNorm of {prior.kind})", f"{RECONSTRUCTIONS} (BatchNorm of {prior.kind})")
            baselines.append((prior.generator, names))
            first.append(Source(names[0], sampled(Gaussian(prior.generator))))
            last.append(reconstructed(names[1], prior))
        chosen = prior.fast_steps() if fast else steps
        if prior.T:
            priors.append(_drawn(prior, held_out, recipe, n, chosen, names))
        else:
            priors.append(Source(prior.kind, sampled(prior, chosen), names))
    return first + priors + last


def _drawn(
    prior: Prior, held_out: data.Images, recipe: Recipe, n: int, steps: Steps, baseline: tuple[str, str]
) -> Source:
    """A prior with energies, and where its draws come to: held against what learning has kept of the posterior, or else
    a draw of it from each of `POSTERIOR` held-out images at most."""
    tallies: list[Tally] = []
    pixels = recipe.evaluate.pixels

    def draw(number: int) -> Iterator[Tensor]:
        tallies[:] = [Tally(prior)]
        return sample(prior, n, draw_seed(recipe, number), BATCH, steps=steps, pixels=pixels, tally=tallies[0])

    @cache
    def posterior() -> Mean | None:
        if prior.posterior_tilt is not None or not prior.generator.has_encoder:
            return None
        found = posterior_draws(prior, (held_out,), recipe, min(POSTERIOR, len(held_out)), recipe.seed)
        return mean_tilt(prior, found)

    return Source(prior.kind, draw, baseline, arrival=lambda: tallies[0].arrival(posterior()))


def arrival_figures(found: Arrival, of: str) -> Iterator[Figure]:
    """Where a sampler's draws have come to, and what its moves came to where it tests them."""
    yield Figure("mean F", found.F.value, found.F.error, of, note="nats, of the draws; F / scale at level 0")
    if found.posterior is not None:
        errors = (found.F.error, found.posterior.error)
        error = None if None in errors else math.hypot(*errors)
        said = {None: "not told", True: "has arrived", False: "has not arrived"}[found.arrived]
        what = f"nats; the posterior's mean F, {found.posterior.value:.2f}, less the draws'; the sampler {said}"
        yield Figure("F short of the posterior", found.short, error, of, note=what)
    if found.acceptance is not None:
        yield Figure("acceptance", found.acceptance, None, of, note="share of the chain's moves that were taken")
        yield Figure("accepted moves", found.moves, None, of, note="of an image, in the mean")


def same(a: Generator, b: Generator) -> bool:
    """Whether they draw the same images: in which coordinates does not matter."""
    left, right = ({k: v for k, v in g.state_dict().items() if not k.startswith("whitening.")} for g in (a, b))
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)
