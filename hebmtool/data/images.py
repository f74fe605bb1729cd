"""A set of images, the order in which updates see them, and what the model reads of them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from hebmtool import recipe, rows
from hebmtool.errors import HebmError

Split = Literal["train", "test"]


class Images:
    """A set of images, in memory or on disk.

    shape: (C, H, W), the same for every image.  labels: LongTensor [N], or None.  classes: the names that labels
    index, or None.  attributes: name -> BoolTensor [N].  names: the images' files, or None.
    numbers: LongTensor [N], each image's place among the `total` of its source (files are sorted), from which a split
    takes some, in another order.  cut: reads image i with its crop at (top, left), shares of the room there is, from 0
    to 1; None where `data.random_crop` is off.  marks: uint64 [N], a hash of each image's name or pixels; None where
    the source does not change.  decoded_anew: whether memory holds none of them, so that each visit decodes them.
    """

    def __init__(
        self,
        n: int,
        shape: tuple[int, int, int],
        read: Callable[[list[int]], Tensor],
        *,
        labels: Tensor | None = None,
        classes: list[str] | None = None,
        attributes: dict[str, Tensor] | None = None,
        names: list[str] | None = None,
        numbers: Sequence[int] | None = None,
        total: int | None = None,
        cut: Callable[[int, Sequence[float]], Tensor] | None = None,
        marks: np.ndarray | None = None,
        decoded_anew: bool = False,
    ):
        self._n, self._read, self._cut = n, read, cut
        self.decoded_anew = decoded_anew or cut is not None
        self.numbers = torch.arange(n) if numbers is None else torch.as_tensor(numbers)
        self.total = n if total is None else total
        self.shape, self.labels, self.classes, self.names = shape, labels, classes, names
        self.attributes, self.marks = attributes or {}, marks

    def __len__(self) -> int:
        return self._n

    def batch(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Some images, uint8 [n, C, H, W], in the order of `indices` (each in 0 .. len - 1).

        Raises:
            HebmError: a file that cannot be decoded, or has changed its size; it is named.
        """
        indices = [int(i) for i in indices]
        if any(not 0 <= i < self._n for i in indices):
            raise IndexError(f"images are numbered 0 .. {self._n - 1}, but {min(indices)} .. {max(indices)} were asked")
        return self._read(indices) if indices else torch.empty(0, *self.shape, dtype=torch.uint8)

    def seen(self, indices: Sequence[int] | Tensor) -> Tensor:
        """`batch` as training sees it: with `data.random_crop` each is cut at a place of its own, drawn from torch's
        global generator."""
        return self.cut(indices, self.places(len(indices)))

    def places(self, n: int, draws: torch.Generator | None = None) -> list[list[float] | None]:
        """Where `seen` cuts n images, drawn from torch's global generator, or from `draws`; None where it does not."""
        if self._cut is None:
            return [None] * n
        return (rows.rand(n, 2) if draws is None else torch.rand(n, 2, generator=draws)).tolist()

    def cut(self, indices: Sequence[int] | Tensor, places: Sequence[list[float] | None]) -> Tensor:
        """Some images, cut at these places."""
        if self._cut is None:
            return self.batch(indices)
        return torch.stack([self._cut(int(i), place) for i, place in zip(indices, places, strict=True)])

    def batches(self, size: int = 250) -> Iterator[Tensor]:
        """All the images in order, uint8 [size, C, H, W] at a time."""
        return (self.batch(indices) for indices in torch.arange(self._n).split(size))

    def subset(self, kept: Sequence[int] | Tensor) -> "Images":
        """The images numbered `kept`, in that order."""
        kept = [int(i) for i in kept]
        return Images(
            len(kept),
            self.shape,
            lambda indices: self._read([kept[i] for i in indices]),
            labels=None if self.labels is None else self.labels[kept],
            classes=self.classes,
            attributes={name: has[kept] for name, has in self.attributes.items()},
            names=None if self.names is None else [self.names[i] for i in kept],
            numbers=self.numbers[kept],
            total=self.total,
            cut=None if self._cut is None else lambda i, place: self._cut(kept[i], place),
            marks=None if self.marks is None else self.marks[kept],
            decoded_anew=self.decoded_anew,
        )


def together(a: Images, b: Images) -> Images:
    """The images of a, then those of b: two sets of one source, of one shape and the same classes, no names."""

    def read(indices: list[int]) -> Tensor:
        inside = torch.tensor([i < len(a) for i in indices])
        out = torch.empty(len(indices), *a.shape, dtype=torch.uint8)
        out[inside] = a.batch([i for i in indices if i < len(a)])
        out[~inside] = b.batch([i - len(a) for i in indices if i >= len(a)])
        return out

    return Images(
        len(a) + len(b),
        a.shape,
        read,
        labels=None if a.labels is None or b.labels is None else torch.cat([a.labels, b.labels]),
        classes=a.classes,
        attributes={key: torch.cat([a.attributes[key], b.attributes[key]]) for key in a.attributes},
        marks=None if a.marks is None or b.marks is None else np.concatenate([a.marks, b.marks]),
        decoded_anew=a.decoded_anew or b.decoded_anew,
    )


def prepare(batch: Tensor, data: recipe.Data, read: Callable[[Tensor, int], Tensor], *, train: bool) -> Tensor:
    """Images as the model reads them, float32 in [0, 1], from uint8 [N, C, H, W].  Draws from torch's global generator.

    In training, with `data.flip`, every image is mirrored with probability 1/2.  `data.bits` b keeps the upper b bits,
    v = floor(pixel / 2^(8 - b)), and `read(v, b)` makes pixels of them, in training and in testing alike: it is the
    generator's `likelihood.read` (or `read_grey`, which draws nothing where a mean will do).

    Raises:
        TypeError: the batch is not uint8.
    """
    if batch.dtype != torch.uint8:
        raise TypeError(f"images at rest are uint8, but these are {batch.dtype}")
    if train and data.flip:
        mirrored = rows.rand(len(batch), 1, 1, 1, device=batch.device) < 0.5
        batch = torch.where(mirrored, batch.flip(-1), batch)
    return read((batch >> (8 - data.bits)).float(), data.bits)


def prepare_each(
    images: Tensor, seeds: Iterable[int], data: recipe.Data, read: Callable[[Tensor, int], Tensor]
) -> Tensor:
    """`prepare` for testing, image by image, each by a seed of its own: what it draws is the same wherever the image
    stands.  torch's random state is put back."""
    x = []
    with torch.random.fork_rng(devices=[]):
        for image, seed in zip(images, seeds, strict=True):
            torch.manual_seed(seed)
            x.append(prepare(image[None], data, read, train=False))
    return torch.cat(x)


def order(n: int, seed: int, epoch: int) -> Tensor:
    """A permutation of 0 .. n - 1, LongTensor [n], that depends on the arguments alone."""
    return torch.from_numpy(permutation(n, seed, epoch).copy())


@lru_cache(maxsize=2)  # all updates of an epoch share one
def permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(n)


def batch_indices(n: int, batch_size: int, seed: int, step: int, least: int = 1) -> Tensor:
    """The images of update `step` (0-based) among n, LongTensor [batch_size]; the ragged end of an epoch is dropped.

    Arguments:
        least: images that a batch may hold.

    Raises:
        HebmError: fewer images than a batch holds.
    """
    if n < least:
        raise HebmError(f"an update takes at least {least} images, but there is only {n} to train on; give more images")
    if n < batch_size:
        raise HebmError(
            f"a batch holds {batch_size} images, but there are only {n} to train on; set batch_size to at most {n}, or "
            "give more images"
        )
    epoch, place = divmod(step, n // batch_size)
    return torch.from_numpy(permutation(n, seed, epoch)[place * batch_size : (place + 1) * batch_size].copy())
