"""Masks: which pixels are hidden.  bool [H, W], or [N, H, W] one per image; True = hidden.

In words: `left`, `right`, `top`, `bottom` hide that half; `center:F` a box in the middle with the share F of either
side; `random:P` every pixel with probability P.  As files: a picture, white where pixels are hidden, or an .npy or .npz
of one or many masks, not zero where they are.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hebmtool import recipe as recipes
from hebmtool.data.decode import ENDINGS, paths_in, read_image
from hebmtool.data.images import Images
from hebmtool.errors import HebmError, UsageError, did_you_mean
from hebmtool.noise import derive_seed

HALVES = ("left", "right", "top", "bottom")

SHARES = {"center": 0.5, "random": 0.5}
"""The words that take a share, and the one they take when none is given."""

Masks = Callable[[Sequence[int]], Tensor]
"""The masks of some images, given by their numbers: bool [n, 1, H, W], True = hidden."""


def parse(text: str, shape: tuple[int, int, int], seed: int = 0, n: int | None = None) -> Masks:
    """The masks that `text` names, for n images of `shape` (C, H, W).

    Raises:
        UsageError: an unknown word, or a share that is none.
        HebmError: a file that cannot be read, is of another size, hides every pixel or none, or holds more than one
            mask, but not one for each of the n images.
    """
    _, height, width = shape
    word, colon, share = text.partition(":")
    if word in SHARES:
        return _shared(text, word, share if colon else SHARES[word], height, width, seed)
    if word in HALVES and not colon:
        hidden = torch.zeros(height, width, dtype=torch.bool)
        if word in ("left", "right"):
            hidden[:, : width // 2] = True
        else:
            hidden[: height // 2] = True
        return _same(hidden.flip(0, 1) if word in ("right", "bottom") else hidden)
    if Path(text).exists() or text.lower().endswith((".npy", ".npz", *ENDINGS)):
        return from_file(text, (height, width), n)
    words = [*HALVES, *(f"{each}:{default}" for each, default in SHARES.items())]
    raise UsageError(
        f"there is no mask '{text}', nor a file of that name; give {', '.join(words)}, or a picture, .npy or .npz"
        f"{did_you_mean(word, [*HALVES, *SHARES])}"
    )


def missing(config: recipes.Data, images: Images, seed: int) -> Masks | None:
    """The masks of a recipe's `data.missing` for its training images; None when it is null.

    A file of many masks has one for each image of the source, in the source's order, though some of these images may be
    held out; a folder of them has one of each image's name.

    Raises:
        HebmError: as `parse`, and when masks and images do not go together.
    """
    if config.missing is None:
        return None
    if isinstance(config.missing, float):
        return parse(f"random:{config.missing}", images.shape, seed)
    masks = from_file(config.missing, images.shape[1:], images.total)
    if images.names and Path(config.missing).is_dir():
        files = paths_in(config.missing)
        for name, number in zip(images.names, images.numbers.tolist(), strict=True):
            if Path(name).stem != files[number].stem:
                raise HebmError(
                    f"in the order of their names, the mask {files[number]} would be that of {name}; give each mask "
                    "the name of its image"
                )
    return lambda indices: masks(images.numbers[[int(i) for i in indices]].tolist())


def from_file(path: str, size: tuple[int, int], n: int | None = None) -> Masks:
    """The masks of a picture, an .npy, an .npz, or a folder of pictures in the order of their names.

    Arguments:
        size: (H, W) of the images.
        n: how many masks a file of more than one must have; any number when None.

    Raises:
        HebmError: as `parse`.
    """
    if Path(path).is_dir():
        hidden = [_picture(file, size) for file in paths_in(path)]
        masks = torch.stack(hidden)
    elif path.lower().endswith((".npy", ".npz")):
        masks = _array(path, size)
    else:
        masks = _picture(path, size)
    shares = masks.flatten(-2).float().mean(-1)
    for what, wrong in (("every pixel", shares == 1), ("no pixel", shares == 0)):
        if wrong.any():
            which = f" {int(wrong.nonzero()[0])}" if masks.ndim == 3 else ""
            raise HebmError(f"the mask{which} of {path} hides {what}; leave some to see, and some to find")
    if masks.ndim == 2:
        return _same(masks)
    if n is not None and len(masks) != n:
        raise HebmError(f"{path} holds {len(masks)} masks for {n} images; give one for each, or one for all")

    def of(indices: Sequence[int]) -> Tensor:
        if int(max(indices)) >= len(masks):
            raise HebmError(f"{path} holds {len(masks)} masks, and there are more images; give one for each")
        return masks[[int(i) for i in indices]][:, None]

    return of


def _same(hidden: Tensor) -> Masks:
    return lambda indices: hidden.expand(len(indices), 1, *hidden.shape)


def _shared(text: str, word: str, share: str | float, height: int, width: int, seed: int) -> Masks:
    try:
        share = float(share)
        if not 0 < share < 1:
            raise ValueError
    except ValueError:
        raise UsageError(f"the mask '{text}' needs a share above 0 and below 1, such as {word}:0.5") from None
    if word == "center":
        rows, columns = (round(side * share) for side in (height, width))
        if not rows or not columns or (rows == height and columns == width):
            what = "no pixel" if not (rows and columns) else "every pixel"
            raise UsageError(f"the mask '{text}' hides {what} of {width}x{height}; choose another share")
        top, left = (height - rows) // 2, (width - columns) // 2
        hidden = torch.zeros(height, width, dtype=torch.bool)
        hidden[top : top + rows, left : left + columns] = True
        return _same(hidden)

    def drawn(i: int) -> Tensor:
        stream = torch.Generator().manual_seed(derive_seed(seed, "mask", i))
        values = torch.rand(1, height, width, generator=stream)
        # Whatever the share, there is a pixel to find and one to see.
        return (values < share).logical_or(values == values.min()).logical_and(values < values.max())

    return lambda indices: torch.stack([drawn(int(i)) for i in indices])


def _picture(path: str | Path, size: tuple[int, int]) -> Tensor:
    pixels = read_image(path, recipes.Data(channels=1))[0]
    return _sized(pixels >= 128, path, size)


def _array(path: str, size: tuple[int, int]) -> Tensor:
    if not Path(path).is_file():
        raise HebmError(f"the mask file {path} does not exist; check its path")
    try:
        found = np.load(path, allow_pickle=False)
        array = found if isinstance(found, np.ndarray) else found[found.files[0]]
        if not isinstance(array, np.ndarray):
            raise ValueError("no array")
    except Exception as error:  # numpy raises whatever zipfile, pickle or its header parser did
        raise HebmError(f"{path} cannot be read as an .npy or .npz of masks; save it with numpy.save") from error
    if array.dtype.kind not in "buif" or array.ndim not in (2, 3) or not array.size:
        raise HebmError(
            f"the masks of {path} have shape {array.shape} and type {array.dtype}, but must be numbers of shape (H, W) "
            "or (N, H, W)"
        )
    return _sized(torch.from_numpy(array != 0), path, size)


def _sized(masks: Tensor, path: str | Path, size: tuple[int, int]) -> Tensor:
    if tuple(masks.shape[-2:]) != tuple(size):
        height, width = masks.shape[-2:]
        raise HebmError(
            f"the mask {path} is {width}x{height} pixels, but the images are {size[1]}x{size[0]}; resize it to that"
        )
    return masks
