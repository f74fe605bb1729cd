"""What a caller gives, as the rooms below take it: images by path or as tensors, masks, labels, numbers in bounds."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hebmtool import data
from hebmtool.data import anywhere, masks
from hebmtool.errors import HebmError, UsageError
from hebmtool.generator import Generator
from hebmtool.prior.labels import CLASS
from hebmtool.recipe import Recipe
from hebmtool.run import split
from hebmtool.run.folder import Run
from hebmtool.use import hierarchy
from hebmtool.use.controllable import Wish, parse

Images = Tensor | str | Path | Iterable[str | Path]
"""uint8 [N, C, H, W]; or image files, folders (at any depth), .npz or .npy files."""

Failed = Callable[[HebmError], None]
"""Told of what cannot be read, which is then passed over."""


def raised(error: HebmError) -> None:
    """Nothing is passed over: what cannot be read ends the call."""
    raise error


def at_least(least: int, **numbers: int | None) -> None:
    """Raise UsageError for a number, by its name, below the least; None is as good as not given."""
    for name, number in numbers.items():
        if number is not None and number < least:
            raise UsageError(f"{name} is {number}; it must be at least {least}")


def paths_of(images: str | Path | Iterable[str | Path]) -> Iterator[str]:
    return iter([str(images)] if isinstance(images, str | Path) else map(str, images))


def read(
    images: Images, recipe: Recipe, shape: Sequence[int], failed: Failed, fit: bool = True
) -> Iterator[tuple[str, Tensor]]:
    """(name, uint8 [C, H, W]) of every image, brought to `shape`; or, unless `fit`, refused where it has another.

    An image of a tensor is called #INDEX.
    """
    if not isinstance(images, Tensor):
        return anywhere.read(paths_of(images), recipe, tuple(shape), failed, exact=not fit)
    if images.ndim != 4 or not len(images) or images.dtype != torch.uint8 or images.shape[1] not in (1, 3):
        raise UsageError(
            f"the images are {str(images.dtype).removeprefix('torch.')} {list(images.shape)}; they must be uint8 "
            "[N, C, H, W], C being 1 or 3"
        )
    if not fit and tuple(images.shape[1:]) != tuple(shape):
        raise HebmError(f"the images are {list(images.shape[1:])}, and the run's are {list(shape)}; have them fitted")
    brought = data.fit_to(images.as_subclass(Tensor).cpu(), tuple(shape), recipe.data)
    return iter([(f"#{i}", image) for i, image in enumerate(brought)])


def named_images(
    images: Images | None, run: Run, recipe: Recipe, shape: Sequence[int], n: int, fit: bool, failed: Failed
) -> tuple[list[str], Tensor]:
    """Names and uint8 [N, C, H, W] of the images given, or of the run's first n test images.

    Raises:
        HebmError: nothing is left.
    """
    if images is None:
        test = split.load(run, recipe.data, "test")
        which = range(min(n, len(test)))
        return [f"test#{i}" for i in which], test.batch(which)
    found = list(read(images, recipe, shape, failed, fit))
    if not found:
        raise HebmError("no image is left to work on; give images of the run's size, or have them fitted to it")
    names, pixels = zip(*found, strict=True)
    return list(names), torch.stack(pixels)


def stacked(images: Tensor, recipe: Recipe, shape: Sequence[int]) -> Tensor:
    """uint8 [N, c, h, w], brought to `shape`."""
    return torch.stack([image for _, image in read(images, recipe, shape, raised)])


def as_read(images: Images, recipe: Recipe, generator: Generator, seed: int) -> Tensor:
    """Images as the generator reads them, [N, C, H, W] in [0, 1]; a file's may be brought to its shape."""
    if not isinstance(images, Tensor):
        return hierarchy.read_images(list(paths_of(images)), recipe, generator, seed)
    pixels = [image for _, image in read(images, recipe, generator.image_shape, raised, fit=False)]
    return hierarchy.prepared(torch.stack(pixels), recipe.data, generator, seed)


def hidden_pixels(mask: str | Path | Tensor, shape: Sequence[int], seed: int, n: int) -> Tensor:
    """bool [n, 1, H, W], of a mask's word, file, or tensor [H, W] or [n, H, W].

    Raises:
        UsageError: no such word, or a tensor of another shape.
        HebmError: a file that cannot be used.
    """
    if not isinstance(mask, Tensor):
        return masks.parse(str(mask), tuple(shape), seed, n)(range(n))
    size = tuple(shape[1:])
    if tuple(mask.shape) not in (size, (n, *size), (n, 1, *size)):
        raise UsageError(f"the mask is {list(mask.shape)}; for these images it is {list(size)} or {[n, *size]}")
    return (mask != 0).cpu().reshape(-1, 1, *size).expand(n, 1, *size)


def wishes_of(
    of_class: str | int | None, weight: float, attributes: Sequence[str] | Mapping[str, object] | None
) -> list[Wish]:
    """What is asked of labels: of the class, then of attributes, as {name: value} or {name: (value, weight)}, or as
    texts NAME=VALUE or NAME=VALUE:WEIGHT."""
    wishes = [] if of_class is None else [Wish(CLASS, str(of_class), weight)]
    if not isinstance(attributes, Mapping):
        return wishes + [parse(text) for text in ([attributes] if isinstance(attributes, str) else attributes or ())]
    for name, value in attributes.items():
        wishes.append(Wish(name, *((str(value[0]), value[1]) if isinstance(value, tuple) else (str(value),))))
    return wishes
