"""Hierarchical sampling: draw some layers again, hold the others, and see what of the image each layer carries.

    u_V ~ p(u_V | u_H),        z = T(u),        V: the layers drawn again, H: those held

("HEBM", https://arxiv.org/abs/2405.13910, Figure 2).  In u-space holding is clean: u_H keeps its values and the rest of
z follows through T.  The Gaussian prior's layers are independent; the joint EBM's chain moves u_V alone, which samples
the conditional.  The diffusion prior's held layers follow the base's own trajectory, level by level,

    u_V,t ~ p(u_V,t | u_V,t+1, u_H,t, u_H,t+1)         t = T-1 .. 0

and steps on p(u_0) itself, u_H,0 held (`hebmtool.prior.ebm.DiffusionEBM` says why).
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from hebmtool import data, picture, ranks
from hebmtool import recipe as recipes
from hebmtool.console import progress
from hebmtool.errors import HebmError, UsageError
from hebmtool.generator import Generator
from hebmtool.metrics.features import Features
from hebmtool.noise import Noise, derive_seed
from hebmtool.prior import Prior, Steps, not_finite
from hebmtool.recipe import Recipe

VARY = ("above", "below", "only")
MOST_COLUMNS = 1000
MOST_BLOCKS = 6
SHOWN_ROWS = 4  # of each block, where there are several
BASE = (214, 39, 40)  # the frame's colour


# Which layers ---------------------------------------------------------------------------------------------------------


def parse(text: str) -> tuple[int, int]:
    """(lowest, highest) layer number of "K" or "A:B".  Raises UsageError."""
    found = re.fullmatch(r"(\d{1,4})(?::(\d{1,4}))?", text.strip())
    if found is None:
        raise UsageError(f"layer is '{text}'; give a layer's number, as 5, or a range of them, as 2:5")
    ends = [int(end) for end in found.groups() if end is not None]
    return min(ends), max(ends)


def varied(named: tuple[int, int], vary: str, L: int) -> list[int]:
    """Numbers of the layers to draw again, top first, of a generator with L layers.

    Arguments:
        named: lowest and highest of the layers named.
        vary: "above" (all layers above the highest), "below" (all below the lowest), or "only" (those named).

    Raises:
        UsageError: a layer, or a word, that does not exist, or nothing above or below.
    """
    if vary not in VARY:
        raise UsageError(f"vary is '{vary}'; choose one of {', '.join(VARY)}")
    low, high = named
    for number in named:
        if not 1 <= number <= L:
            raise UsageError(
                f"there is no layer {number}; this generator's layers are {', '.join(map(str, range(1, L + 1)))}, "
                "1 at the bottom"
            )
    layers = {"above": range(high + 1, L + 1), "below": range(1, low), "only": range(low, high + 1)}[vary]
    if not layers:
        end = f"layer {high} is the top" if vary == "above" else f"layer {low} is the bottom"
        raise UsageError(f"{end}, so nothing lies {vary} it; the layers are 1 to {L}, or vary only the layers named")
    return list(reversed(layers))


def blocks(L: int) -> list[list[int]]:
    """The whole hierarchy in parts, from top to bottom: each layer, or as many layers each as makes at most six."""
    parts = np.array_split(np.arange(L, 0, -1), min(L, MOST_BLOCKS))
    return [part.tolist() for part in parts]


def title(layers: Sequence[int]) -> str:
    """ "layer 3", or "layers 5-6"; layers adjoin."""
    low, high = min(layers), max(layers)
    return f"layer {low}" if low == high else f"layers {low}-{high}"


def coordinates(generator: Generator, layers: Sequence[int]) -> Tensor:
    """Which coordinates of u belong to the layers of these numbers, bool [D]."""
    chosen = torch.zeros(generator.D, dtype=torch.bool, device=generator.device)
    for number in layers:
        chosen[generator.slices[generator.layer_number(number)]] = True
    return chosen


# Drawing --------------------------------------------------------------------------------------------------------------


def read_images(paths: Sequence[str | Path], recipe: Recipe, generator: Generator, seed: int = 0) -> Tensor:
    """Image files as the generator reads them, [N, C, H, W] in [0, 1]: brought to its size and channels.

    Raises:
        HebmError: a file that is absent, no image, or cannot be brought to that shape.
    """
    channels, height, width = generator.image_shape
    shape = {"channels": channels} | ({"size": height} if height == width else {})
    config = recipe.data.model_copy(update=shape)
    images = []
    for path in paths:
        image = data.read_image(path, config)
        if tuple(image.shape) != generator.image_shape:
            raise HebmError(
                f"{path} is {image.shape[2]}x{image.shape[1]} pixels, but the generator's images are {width}x{height}; "
                "resize it"
            )
        images.append(image)
    return prepared(torch.stack(images), config, generator, seed)


def prepared(images: Tensor, config: recipes.Data, generator: Generator, seed: int) -> Tensor:
    """uint8 [N, C, H, W] as the generator reads them, image i of the seed alike whatever the others."""
    seeds = [derive_seed(seed, "prepare", i) for i in range(len(images))]
    return data.prepare_each(images, seeds, config, generator.likelihood.read)


@dataclass
class Resampled:
    """What `draw` drew; images are in [0, 1].

    parts: numbers of the layers drawn again, top first, for each part.  base: [N, C, H, W].
    images: [parts, N, columns, C, H, W].
    """

    parts: list[list[int]]
    base: Tensor
    images: Tensor


@torch.no_grad()
def draw(
    prior: Prior,
    parts: Sequence[Sequence[int]],
    n: int,
    columns: int,
    seed: int = 0,
    batch_size: int = 64,
    temperature: float = 1.0,
    steps: Steps = None,
    x: Tensor | None = None,
) -> Resampled:
    """Resample each part of the layers `columns` times, from each of n base samples.

    Base i is image i of `seed` (what `hebm sample` draws); resample j of it is the same at any n, columns and batch
    size, up to the rounding of the last bit, and sees the same noise in every part.

    Arguments:
        parts: numbers of the layers to draw again, for each part.
        columns: at most 1000.
        temperature: tau > 0; 1 is the prior itself.
        steps: Langevin steps, of every level or of each, the recipe's K when None.
        x: images [n, C, H, W] whose posterior draws are the bases, instead of samples.

    Raises:
        HebmError: the chain left the numbers.
    """
    if not 1 <= columns <= MOST_COLUMNS:
        raise UsageError(f"columns is {columns}, but must be from 1 to {MOST_COLUMNS}")
    generator = prior.generator
    device, D = generator.device, generator.D
    bases, images = [], [[] for _ in parts]
    with progress(f"resampling {prior.kind}", n * columns * len(parts)) as bar:

        def resample(rows: Tensor) -> tuple[Tensor, list[Tensor]]:
            noise = Noise(seed, rows.tolist(), D, device)
            if x is None:
                base = list(prior.trajectory(noise, steps, temperature))
            else:
                base = prior.stages(generator.encode(x[rows].to(device), noise()), noise)
            drawn: list[list[Tensor]] = []
            for part in parts:
                drawn.append([])
                vary = coordinates(generator, part)
                for places in torch.arange(len(rows) * columns).split(batch_size):
                    i, j = places // columns, places % columns
                    noise = Noise(derive_seed(seed, "resample"), (rows[i] * MOST_COLUMNS + j).tolist(), D, device)
                    held = (~vary, [stage[i.to(device)] for stage in base])
                    *_, u = prior.trajectory(noise, steps, temperature, held)
                    if not u.isfinite().all():
                        raise not_finite(prior.kind)
                    drawn[-1].append(generator.images(u).cpu())
                    bar.advance(len(places))
            return generator.images(base[-1]).cpu(), [torch.cat(each) for each in drawn]

        for base, resampled in ranks.spread(torch.arange(n).split(ranks.share(n, batch_size)), resample):
            bases.append(base)
            for found, each in zip(images, resampled, strict=True):
                found.append(each)
    drawn = torch.stack([torch.cat(found).unflatten(0, (n, columns)) for found in images])
    return Resampled([list(part) for part in parts], torch.cat(bases), drawn)


# Measuring ------------------------------------------------------------------------------------------------------------


def _summary(distances: Tensor) -> tuple[float, float | None]:
    """Mean of distances [N, columns] and its standard error over the N bases, None for a single one."""
    of_base = distances.double().mean(1)
    error = (of_base.std() / math.sqrt(len(of_base))).item() if len(of_base) > 1 else None
    return of_base.mean().item(), error


def changes(drawn: Resampled, features: Features | None = None) -> list[dict]:
    """How much of the image changed, part by part.

    pixel_distance: root mean square, over pixels and channels in [0, 1], of resample minus base, averaged over both.
    feature_distance: Euclidean distance of their features, averaged likewise; absent without features.
    *_error: standard errors over bases (a base's resamples are not independent); None for a single base.
    """
    n, columns = drawn.images.shape[1:3]
    at_base = None if features is None else torch.from_numpy(features(picture.to_uint8(drawn.base)))
    entries = []
    for part, images in zip(drawn.parts, drawn.images, strict=True):
        entry = {"layers": part}
        pixel = (images - drawn.base[:, None]).square().flatten(2).mean(2).sqrt()
        entry["pixel_distance"], entry["pixel_error"] = _summary(pixel)
        if features is not None:
            found = torch.from_numpy(features(picture.to_uint8(images.flatten(0, 1)))).unflatten(0, (n, columns))
            feature = (found - at_base[:, None]).norm(dim=2)
            entry["feature_distance"], entry["feature_error"] = _summary(feature)
        entries.append(entry)
    return entries


def rises(entries: Sequence[dict]) -> list[str]:
    """Where the change does not fall from one part to the part below it, one sentence per kind of distance."""
    sentences = []
    for kind in ("pixel", "feature"):
        values = [entry.get(f"{kind}_distance") for entry in entries]
        if None not in values and any(below >= above for above, below in zip(values, values[1:], strict=False)):
            errors = [entry.get(f"{kind}_error") for entry in entries]
            listed = ", ".join(
                f"{title(entry['layers'])} {value:.3g}" + ("" if error is None else f" ± {error:.2g}")
                for entry, value, error in zip(entries, values, errors, strict=True)
            )
            sentences.append(f"the {kind} change does not fall from top to bottom: {listed}")
    return sentences


# Showing --------------------------------------------------------------------------------------------------------------


def block(base: Tensor, images: Tensor) -> Image.Image:
    """A row per base: the base [N, C, H, W], framed, then its resamples [N, columns, C, H, W]."""
    rows, columns = len(base), images.shape[1] + 1
    drawn = picture.grid(torch.cat([base[:, None], images], dim=1).flatten(0, 1), columns)
    width, height = (drawn.width - picture.GAP) // columns, (drawn.height - picture.GAP) // rows
    pen = ImageDraw.Draw(drawn)
    for row in range(rows):
        corner = (width + picture.GAP - 1, (row + 1) * height + picture.GAP - 1)
        pen.rectangle(((0, row * height), corner), outline=BASE, width=picture.GAP)
    return drawn


def figure(drawn: Resampled) -> Image.Image:
    """A titled block per part, top to bottom: a row per base, the base framed in the first column, then its resamples.
    Of several blocks each shows the first four bases at most."""
    shown = len(drawn.base) if len(drawn.parts) == 1 else min(len(drawn.base), SHOWN_ROWS)
    margin, size = 10, 16
    font = ImageFont.load_default(size)
    grids = [block(drawn.base[:shown], images) for images in drawn.images[:, :shown]]
    titles = [f"{title(part)} resampled" for part in drawn.parts]
    width = max(grids[0].width, *(math.ceil(font.getlength(text)) for text in titles))
    header = size + 8
    height = sum(header + grid.height + margin for grid in grids) + margin
    canvas = Image.new("RGB", (width + 2 * margin, height), picture.PAPER)
    pen, y = ImageDraw.Draw(canvas), margin // 2
    for text, grid in zip(titles, grids, strict=True):
        pen.text((margin, y), text, fill=picture.INK, font=font)
        canvas.paste(grid, (margin, y + header))
        y += header + grid.height + margin
    return canvas
