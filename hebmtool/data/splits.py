"""Which images are for training and which for testing: folders that are splits, and images that are held out.

An image that is held out is so by a mark of its own, a hash of its name in a folder and of its pixels in an array:

    x is for testing  <=>  mark(x) < data.test_fraction,       marks being uniform on [0, 1)

so that whatever joins the set or leaves it moves no other image between the splits.  The order within a split is that
of the marks, a shuffle.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from hebmtool import recipe
from hebmtool.data.decode import ENDINGS
from hebmtool.data.images import Split, permutation
from hebmtool.errors import HebmError

WORDS = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "val": ("val", "valid", "validation"),
}
"""What folders of splits are called, in any case."""


_KNOWN: dict[tuple, np.ndarray] = {}
"""Marks of files that were read."""


def chosen_positions(
    n: int, data: recipe.Data, split: Split, *, hold_out: bool, where: str, marks: np.ndarray | None = None
) -> np.ndarray:
    """Which of a source's n images belong to the split, in order; each split has one at least.

    Without `marks`, and where `data.hold_out` says so, images are held out by their places.
    """
    positions = np.arange(n)
    if hold_out:
        if n < 2:
            raise HebmError(f"{where} has {n} image, but training and testing need at least 2; give more images")
        if marks is None or data.hold_out == "order":
            positions, held = permutation(n, 0, 0), round(n * data.test_fraction)
        else:
            positions = np.argsort(marks, kind="stable")
            held = int((marks < np.uint64(int(data.test_fraction * 2**64))).sum())
        held = min(max(held, 1), n - 1)
        positions = positions[held:] if split == "train" else positions[:held]
    return positions[: data.limit] if split == "train" else positions


def marks_of_names(names: Iterable[str]) -> np.ndarray:
    """uint64 [N], of files' names."""
    return _marks(os.fsencode(name) for name in names)


def marks_of_pixels(array: np.ndarray, path: Path, key: str) -> np.ndarray:
    """uint64 [N], of images [N, C, H, W] that are `key` of the file at `path`, which is read once while it stays so."""
    found = path.stat()
    place = (str(path.resolve()), key, found.st_mtime_ns, found.st_size)
    if place not in _KNOWN:
        _KNOWN[place] = _marks(np.ascontiguousarray(row).data for row in array)
    return _KNOWN[place]


def _marks(contents: Iterable[bytes | memoryview]) -> np.ndarray:
    digests = (hashlib.blake2b(content, digest_size=8).digest() for content in contents)
    return np.frombuffer(b"".join(digests), dtype="<u8")


# Folders --------------------------------------------------------------------------------------------------------------


def split_folders(folder: Path, data: recipe.Data) -> dict[Split, Path] | None:
    """The folders of the two splits, None where there are none and images are to be held out.

    Raises:
        HebmError: folders that could be splits as well as classes.
    """
    if data.hold_out == "order":  # as hebmtool 0.1.0 looked at folders
        splits = {name: folder / name for name in ("train", "test")}
        return splits if all(part.is_dir() for part in splits.values()) else None
    folders = [part for part in sorted(folder.glob("[!.]*")) if part.is_dir() and _holds_images(part)]
    called = {word: [part for part in folders if part.name.lower() in words] for word, words in WORDS.items()}
    if not any(called.values()):
        return None
    train, test = called["train"], called["test"] or called["val"]
    if len(train) == len(test) == 1 and len(folders) == sum(map(len, called.values())):
        return {"train": train[0], "test": test[0]}
    splits, classes = ", ".join(f"{part.name}/" for parts in called.values() for part in parts), _named(folders)
    raise HebmError(
        f"the folders of {folder} can be read in two ways: {splits} as splits, and {classes} as classes; for splits "
        "leave one train/ and one test/ (or val/) there and nothing else, for classes give them other names"
    )


def _holds_images(folder: Path) -> bool:
    return any(name.lower().endswith(ENDINGS) for _, _, names in os.walk(folder) for name in names)


def _named(folders: Sequence[Path], most: int = 6) -> str:
    more = f" and {len(folders) - most} more" if len(folders) > most else ""
    return ", ".join(f"{part.name}/" for part in folders[:most]) + more
