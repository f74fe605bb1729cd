"""Controllable synthesis: samples of the prior under conditions on labels, and a judgement of them.

    u_t ~ p(u_t | u_{t+1}, y) ~ exp(F(z, t) + sum_a w_a log p(y_a | z, t)) N(u_t; ...)      at every level t

(HEBM, https://arxiv.org/abs/2405.13910, Figures 4 and 5; what is added to F is told in `hebmtool.prior.labels`).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hebmtool import picture
from hebmtool.console import progress
from hebmtool.errors import HebmError, UsageError
from hebmtool.noise import Noise
from hebmtool.prior import Prior, Steps, not_finite
from hebmtool.prior.labels import CLASS, Condition, LabelEnergy
from hebmtool.use import hierarchy

EVERY = "all"  # the value that stands for each in turn
SHOWN = 16  # images in a row of the picture, at most


@dataclass(frozen=True)
class Wish:
    """What is asked of one label: a value's name, or `all` for each in turn; weighted."""

    label: str
    value: str
    weight: float = 1.0


def parse(text: str) -> Wish:
    """NAME=VALUE or NAME=VALUE:WEIGHT.  Raises UsageError."""
    name, equals, rest = text.partition("=")
    value, colon, weight = rest.partition(":")
    try:
        number = float(weight) if colon else 1.0
    except ValueError:
        number = float("nan")
    if not (name and equals and value) or not np.isfinite(number):
        raise UsageError(
            f"the attribute '{text}' is malformed; write NAME=VALUE or NAME=VALUE:WEIGHT, as Smiling=1:0.5"
        )
    return Wish(name, value, number)


def rows(wishes: Sequence[Wish], labels: dict[str, LabelEnergy]) -> list[list[Wish]]:
    """Every combination of values asked for, one row of the picture each.

    Raises:
        UsageError: nothing asked, a label asked twice, or a label or value that does not exist; known ones are named.
    """
    if not wishes:
        raise UsageError("say what to condition on: a class, every class, or an attribute as NAME=VALUE")
    choices = []
    for wish in wishes:
        if not np.isfinite(wish.weight) or wish.weight == 0:
            raise UsageError(
                f"the weight of {wish.label} is {wish.weight:g}; above 0 asks for the value, below 0 for any other, "
                "and 0 for nothing: leave the label out"
            )
        if wish.label not in labels:
            known = f"it has {', '.join(sorted(labels))}" if labels else "it has none"
            raise UsageError(
                f"the run has no trained label '{wish.label}'; {known}; couple it by finetuning the prior with "
                f"prior.labels={wish.label}"
            )
        label = labels[wish.label]
        values = label.values if wish.value == EVERY else [label.values[label.index(wish.value)]]
        choices.append([Wish(wish.label, value, wish.weight) for value in values])
    names = [wish.label for wish in wishes]
    if len(set(names)) < len(names):
        raise UsageError(
            f"the label {max(names, key=names.count)} is asked for more than once; ask for each label once"
        )
    return [list(row) for row in itertools.product(*choices)]


def title(row: Sequence[Wish]) -> str:
    return ", ".join(f"{w.label} {w.value}" + (f" x{w.weight:g}" if w.weight != 1 else "") for w in row)


def chain_for(prior: Prior) -> str | None:
    """The chain to draw under conditions by where none is named; None stands for the prior's own.

    An exact one comes down from N(0, I) in whatever class is near, and its tested moves leave it there: of 100 threes
    asked for 47 came out with 17 gradients, and 96 by the chain without a test (docs/results.md).
    """
    chain = getattr(prior, "chain", None)
    return "underdamped" if chain is not None and chain.exact else None


def conditions(row: Sequence[Wish], labels: dict[str, LabelEnergy], n: int, device: torch.device) -> list[Condition]:
    """The terms that one row adds to F, for a batch of n."""
    return [
        Condition(labels[w.label], torch.full((n,), labels[w.label].index(w.value), device=device), w.weight)
        for w in row
    ]


def _check_couples(prior: Prior, labels: dict[str, LabelEnergy]) -> None:
    prior.given(())
    if prior.T == 1:
        return  # at level 0, its only one, there is no noise whose amount or coordinates would matter
    whitening = prior.generator.whitening_digest
    for label in labels.values():
        if label.levels != prior.T:
            raise HebmError(
                f"the label {label.name} was learned on {label.levels} noise levels and the prior has "
                f"{prior.T}; move the label's file away and learn it again with as many"
            )
        if label.whitening != whitening:
            raise HebmError(
                f"the label {label.name} was learned on other latents than this prior's: prior.whiten differs, or the "
                "prior was trained again; move the label's file away and learn it again"
            )


def _check_finite(u: Tensor, row: Sequence[Wish]) -> None:
    if not u.isfinite().all():
        raise HebmError(f"the chain diverged under {title(row)}; use a smaller weight, or fewer steps")


@torch.no_grad()
def sample(
    prior: Prior,
    labels: dict[str, LabelEnergy],
    wanted: Sequence[Sequence[Wish]],
    n: int,
    seed: int = 0,
    batch_size: int = 64,
    temperature: float = 1.0,
    steps: Steps = None,
) -> list[Tensor]:
    """n images for each row of wishes, uint8 [n, C, H, W].

    Image i of a seed sees the same noise in every row, and is the same at any batch size.

    Raises:
        HebmError: the prior has no energy to couple, or its chain left the numbers.
    """
    _check_couples(prior, labels)
    generator, out = prior.generator, []
    device = generator.device
    with progress("sampling under conditions", n * len(wanted)) as bar:
        for row in wanted:
            parts = []
            for indices in torch.arange(n).split(batch_size):
                given = prior.given(conditions(row, labels, len(indices), device))
                noise = Noise(seed, indices.tolist(), generator.D, device)
                u = given.sample(noise, steps, temperature)
                _check_finite(u, row)
                parts.append(picture.to_uint8(generator.images(u)))
                bar.advance(len(indices))
            out.append(torch.cat(parts))
    return out


@dataclass
class Layers:
    """Which layers carry a label: images [parts, n, C, H, W] in which only that part of the layers was resampled, under
    the condition; `base` [n, C, H, W] is what they started from; `parts` names the layers of each, top first."""

    base: Tensor
    images: Tensor
    parts: list[list[int]]


@torch.no_grad()
def across_layers(
    prior: Prior,
    labels: dict[str, LabelEnergy],
    row: Sequence[Wish],
    n: int,
    seed: int = 0,
    batch_size: int = 64,
    temperature: float = 1.0,
    steps: Steps = None,
) -> Layers:
    """Resample one layer at a time under the conditions, all others held at an unconditional draw; then all of them.

    Raises:
        HebmError: as `sample`.
    """
    _check_couples(prior, labels)
    generator = prior.generator
    device, L = generator.device, generator.L
    parts = [[number] for number in range(L, 0, -1)] + [list(range(L, 0, -1))]
    bases, images = [], [[] for _ in parts]
    with progress("resampling layer by layer", n * len(parts)) as bar:
        for indices in torch.arange(n).split(batch_size):
            numbers = indices.tolist()
            base = list(prior.trajectory(Noise(seed, numbers, generator.D, device), steps, temperature))
            if not base[-1].isfinite().all():
                raise not_finite(prior.kind)
            bases.append(picture.to_uint8(generator.images(base[-1])))
            given = prior.given(conditions(row, labels, len(indices), device))
            for part, drawn in zip(parts, images, strict=True):
                noise = Noise(seed + 1, numbers, generator.D, device)
                vary = hierarchy.coordinates(generator, part)
                *_, u = given.trajectory(noise, steps, temperature, (~vary, base))
                _check_finite(u, row)
                drawn.append(picture.to_uint8(generator.images(u)))
                bar.advance(len(indices))
    return Layers(torch.cat(bases), torch.stack([torch.cat(drawn) for drawn in images]), parts)


def figure(sets: Sequence[Tensor], wanted: Sequence[Sequence[Wish]], shares: Sequence[float] | None) -> Image.Image:
    """The picture: a grid for one row of wishes, else a titled row of up to `SHOWN` images for each."""
    if len(sets) == 1:
        return picture.grid(sets[0])
    titles = [title(row) if len(row) > 1 or row[0].label != CLASS else row[0].value for row in wanted]
    if shares is not None:
        titles = [f"{t}  ({100 * share:.0f}%)" for t, share in zip(titles, shares, strict=True)]
    return picture.rows([(t, images[:SHOWN]) for t, images in zip(titles, sets, strict=True)])


def layers_figure(found: Layers, shares: Sequence[float] | None) -> Image.Image:
    """A row of images per part of the hierarchy that was resampled, under the base they started from."""
    titles = ["base"] + [f"layer {part[0]}" if len(part) == 1 else "all layers" for part in found.parts]
    if shares is not None:
        titles = [f"{t}  ({100 * share:.0f}%)" for t, share in zip(titles, shares, strict=True)]
    return picture.rows([(t, images[:SHOWN]) for t, images in zip(titles, [found.base, *found.images], strict=True)])
