"""The one reader of .npz and .npy files of images: which array of a file is meant, and which of its axes is which.

Layouts of uint8 are known: (N, H, W), (N, H, W, C) and (N, C, H, W), C 1 or 3.  No pickle is ever loaded.
"""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from hebmtool.data.decode import SMALLEST_SIDE, first_sentence
from hebmtool.data.images import Split
from hebmtool.errors import HebmError

MOST_CLASSES = 2**16
"""Labels are numbers of classes, of which there are no more."""


def read_array(path: str | Path) -> np.ndarray:
    """All images of an .npz or .npy file, uint8 [N, C, H, W] in their own size; where there are two splits, the test
    one.  An .npy stays on disk.

    Raises:
        HebmError: the file is absent, damaged, or of an unknown layout.
    """
    path = Path(path)
    if not path.is_file():
        raise HebmError(f"the array file {path} does not exist; check the path")
    keys, arrays, _ = opened_arrays(path, "test")
    return channels_first(arrays["x"], f"{keys['x']} of {path}")


def opened_arrays(path: Path, split: Split) -> tuple[dict[str, str], dict[str, np.ndarray], bool]:
    """Role -> key, role -> array, and whether to hold out (`_array_keys`), of an .npz or .npy."""
    if not path.is_file():  # a FIFO would be waited for
        raise HebmError(f"{path} is no regular file; give an .npz or .npy file")
    try:
        # No pickles: they run code. A bare array stays on disk.
        opened = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(opened, np.lib.npyio.NpzFile):
            with opened:
                keys, hold_out = _array_keys(opened.files, path, split)
                _check_unpacked(opened, keys.values(), path)
                arrays = {role: opened[key] for role, key in keys.items()}
                if not all(isinstance(array, np.ndarray) for array in arrays.values()):
                    raise ValueError("a member of it is no array")
        else:
            keys, arrays, hold_out = {"x": "the array"}, {"x": opened}, True
    except HebmError:
        raise
    except Exception as error:  # numpy raises whatever zipfile, pickle or its header parser did
        # Whatever is not numpy's own, numpy takes for a pickle, and says how to load it unsafely.
        pickled = "pickle" in str(error) or "Python objects" in str(error)
        reason = "it is none, or holds Python objects" if pickled else first_sentence(error)
        raise HebmError(
            f"{path} cannot be read as an .npz or .npy file of plain arrays ({reason}); save it with "
            "numpy.savez or numpy.save"
        ) from error
    return keys, arrays, hold_out


def _check_unpacked(opened: np.lib.npyio.NpzFile, keys: Iterable[str], path: Path) -> None:
    """Raises HebmError where the arrays, unpacked, are larger than the memory there is: zeros pack a thousandfold."""
    sizes = {info.filename.removesuffix(".npy"): info.file_size for info in opened.zip.infolist()}
    size = sum(sizes.get(key, 0) for key in set(keys))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else size
    if size > memory:
        raise HebmError(
            f"the arrays of {path} take {size / 2**30:.1f} GiB unpacked, and this machine has {memory / 2**30:.1f} GiB "
            "of memory; save the images alone with numpy.save, whose file stays on disk"
        )


def _array_keys(found: list[str], path: Path, split: Split) -> tuple[dict[str, str], bool]:
    """Role -> key of an .npz (images x, labels y, classes, test images to compare shapes with); whether to hold out."""
    hold_out = not {"x_train", "x_test"} <= set(found)
    keys, labels = {"x": f"x_{split}"} | ({"other": "x_test"} if split == "train" else {}), [f"y_{split}"]
    if hold_out:
        single = [key for key in ("x", "images", "arr_0") if key in found]
        if not single:
            raise HebmError(
                f"{path} holds the arrays {', '.join(found) or '(none)'}, but must hold x_train and x_test (with "
                "y_train, y_test and classes if there are labels), or one of x, images, arr_0 (with y or labels)"
            )
        keys, labels = {"x": single[0]}, ["y", "labels"]
    keys |= {role: key for role, key in (("y", labels[-1]), ("y", labels[0]), ("classes", "classes")) if key in found}
    return keys, hold_out


def channels_first(array: np.ndarray, name: str) -> np.ndarray:
    """A view [N, C, H, W] of a uint8 array in one of the known layouts; `name` says whose it is.

    Raises:
        HebmError: another layout or type.
    """
    if array.dtype == np.uint8 and len(array.shape) in (3, 4) and len(array):
        views = [array[:, None]] if array.ndim == 3 else [array, array.transpose(0, 3, 1, 2)]
        for view in views:
            if view.shape[1] in (1, 3) and min(view.shape[2:]) >= SMALLEST_SIDE:
                return view
    raise HebmError(
        f"{name} has shape {array.shape} and type {array.dtype}, but images must be uint8 of shape (N, H, W), "
        f"(N, H, W, C) or (N, C, H, W) with N of at least 1, C 1 or 3, and H and W of at least {SMALLEST_SIDE}"
    )


def checked_labels(labels: np.ndarray, n: int, classes: list[str] | None, name: str) -> np.ndarray:
    """The labels of n images, integers [n], which index `classes` where those are known; `name` says whose they are.

    Raises:
        HebmError: another shape or type, or a number out of range.
    """
    if labels.dtype.kind not in "iu" or labels.shape not in ((n,), (n, 1)):
        raise HebmError(
            f"{name} has shape {labels.shape} and type {labels.dtype}, but labels must be integers of shape ({n},), "
            "one per image"
        )
    labels = labels.reshape(n)
    below = MOST_CLASSES if classes is None else len(classes)
    if labels.min() < 0 or labels.max() >= below:
        allowed = f"from 0 to {below - 1}" + (", the indices of classes" if classes is not None else "")
        raise HebmError(f"{name} reaches from {labels.min()} to {labels.max()}, but labels must be {allowed}")
    return labels
