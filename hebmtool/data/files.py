"""Images that lie in files, one each: what a folder lists, the shape they share, and decoding them when they are asked
for."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from hebmtool import recipe
from hebmtool.data.decode import fitted_size, header, opened, paths_in, read_image, size_words
from hebmtool.data.images import Images
from hebmtool.errors import HebmError

CACHE_BYTES = 512 * 2**20
"""Sets that take less than this once decoded are decoded only once."""

READERS = 8
"""Threads."""


class Decoder:
    """Reads images [n, C, H, W] with `decode(i)` in a few threads, and keeps them where they are few."""

    def __init__(
        self, n: int, shape: tuple[int, int, int], decode: Callable[[int], Tensor], name: Callable[[int], str]
    ):
        self.shape, self.decode, self.name = shape, decode, name
        small = n * int(np.prod(shape)) <= CACHE_BYTES
        self.kept = torch.empty(n, *shape, dtype=torch.uint8) if small else None
        self.known = np.zeros(n, dtype=bool)

    def __call__(self, indices: list[int]) -> Tensor:
        if self.known[indices].all():
            return self.kept[indices]
        if get_worker_info() is not None:  # one of several that read
            return torch.stack([self._one(i) for i in indices])
        with ThreadPoolExecutor(min(READERS, len(indices))) as threads:
            return torch.stack(list(threads.map(self._one, indices)))

    def _one(self, i: int) -> Tensor:
        if self.known[i]:
            return self.kept[i]
        x = self.decode(i)
        if tuple(x.shape) != self.shape:
            raise HebmError(
                f"{self.name(i)} is {size_words(x.shape)}, but the set's images are {size_words(self.shape)}; give "
                "all images one size, or resize them with data.size=64 (any side)"
            )
        if self.kept is not None:
            self.kept[i] = x
            self.known[i] = True
        return x


def on_disk(paths: list[Path], shape: tuple[int, int, int], data: recipe.Data, **about: Any) -> Images:
    """The images in these files, all of `shape` (C, H, W) once `fit`; `about` is what else `Images` takes."""
    data = data.model_copy(update={"channels": shape[0]})
    read = Decoder(len(paths), shape, lambda i: read_image(paths[i], data), lambda i: str(paths[i]))
    cut = (lambda i, place: read_image(paths[i], data, place)) if data.random_crop else None
    about |= {"names": [str(path) for path in paths], "decoded_anew": read.kept is None}
    return Images(len(paths), shape, read, cut=cut, **about)


def listed_in(folder: Path) -> tuple[list[Path], list[str] | None]:
    """Image files, and the class of each where they lie in class folders (None where they do not).

    Raises:
        HebmError: there is none, or some lie in class folders and others not.
    """
    paths = paths_in(folder)
    parts = [path.relative_to(folder).parts for path in paths]
    depths = [len(part) for part in parts]
    if max(depths) > 2:
        raise HebmError(
            f"{paths[depths.index(max(depths))]} lies too deep in {folder}; put images directly into the folder, or "
            "into one folder per class"
        )
    if min(depths) != max(depths):
        raise HebmError(
            f"{paths[depths.index(1)]} lies beside class folders such as {paths[depths.index(2)].parent}; put every "
            "image into a class folder, or none"
        )
    return paths, [part[0] for part in parts] if depths[0] == 2 else None


def common_shape(paths: list[Path], folder: Path, data: recipe.Data) -> tuple[int, int, int]:
    """(C, H, W) of every image after `fit`, from the files' headers; RGB if any is coloured.

    Raises:
        HebmError: they differ in size, or one is no image.
    """
    with ThreadPoolExecutor(READERS) as threads:
        headers = list(threads.map(lambda path: opened(path, str(path), header), paths))
    sizes = [fitted_size(h, w, data, str(path)) for path, (h, w, _) in zip(paths, headers, strict=True)]
    for path, size in zip(paths, sizes, strict=True):
        if size != sizes[0]:
            raise HebmError(
                f"the images in {folder} differ in size: {paths[0]} is {size_words(sizes[0])} and {path} is "
                f"{size_words(size)}; resize them all with data.size=64 (any side)"
            )
    return (data.channels or (3 if any(colour for *_, colour in headers) else 1), *sizes[0])
