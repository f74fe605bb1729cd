"""Images of any shape from wherever a user names them, brought to a run's."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from hebmtool import recipe as recipes
from hebmtool.data.arrays import read_array
from hebmtool.data.decode import fit_to, paths_in, read_image
from hebmtool.errors import HebmError
from hebmtool.recipe import Recipe


def read(
    paths: Iterable[str],
    recipe: Recipe,
    shape: tuple[int, int, int],
    failed: Callable[[HebmError], None],
    exact: bool = False,
) -> Iterator[tuple[str, Tensor]]:
    """(name, uint8 [C, H, W]) of every image, one at a time, brought to `shape` (`data.fit_to`).

    Arguments:
        paths: image files, folders (at any depth, in order of their names), .npz or .npy files (an image is called
            FILE#INDEX).
        failed: told of everything that cannot be read, which is passed over.
        exact: whether an image of another shape is such a thing, instead of being brought to `shape`.
    """

    def brought(pixels: Tensor, name: str) -> Tensor:
        if exact and tuple(pixels.shape) != tuple(shape):
            found, wanted = (f"{w}x{h} {'grey' if c == 1 else 'RGB'}" for c, h, w in (pixels.shape, shape))
            raise HebmError(f"{name} is {found}, and the run's images are {wanted}; convert it, or let it be fitted")
        return fit_to(pixels[None], shape, recipe.data)[0]

    as_it_is = recipes.Data()
    for path in paths:
        try:
            if path.lower().endswith((".npz", ".npy")):
                for i, pixels in enumerate(read_array(path)):
                    yield f"{path}#{i}", brought(torch.from_numpy(pixels.copy()), f"{path}#{i}")
                continue
            files = paths_in(path) if os.path.isdir(path) else [path]
        except HebmError as error:
            failed(error)
            continue
        for file in files:
            try:
                pixels = brought(read_image(file, as_it_is, shrink=not exact and recipe.data.crop is None), str(file))
            except HebmError as error:
                failed(error)
                continue
            yield str(file), pixels


def given_sets(
    paths: Sequence[str], recipe: Recipe, shape: tuple[int, int, int], n: int, failed: Callable[[HebmError], None]
) -> Iterator[tuple[str, Tensor]]:
    """The first n images of each path (an image, a folder, an .npz or .npy), named after it.

    Raises:
        HebmError: nothing there can be read.
    """
    for path in paths:
        images = [pixels for _, pixels in islice(read([path], recipe, shape, failed), n)]
        if not images:
            raise HebmError(f"there is no image to compare with in {path}; give a folder of images, an .npz or an .npy")
        stems = [Path(other).stem for other in paths]
        stem = Path(path).stem
        yield stem if stem and stems.count(stem) == 1 else path, torch.stack(images)
