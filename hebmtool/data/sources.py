"""Where images come from: a function of the recipe's `data` part and a split for every word of `data.source`.

A source says which images there are, how one is read, and which split it is of; cropping and resizing (`decode.fit`),
`data.exclude` and `data.attributes` are done for it.
"""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hebmtool import recipe
from hebmtool.data.arrays import channels_first, checked_labels, opened_arrays
from hebmtool.data.decode import Place, decode, first_sentence, fit, fitted_size
from hebmtool.data.files import Decoder, common_shape, listed_in, on_disk
from hebmtool.data.images import Images, Split, permutation, together
from hebmtool.data.splits import chosen_positions, marks_of_names, marks_of_pixels, split_folders
from hebmtool.errors import HebmError, UsageError, did_you_mean, not_installed
from hebmtool.recipe import words
from hebmtool.recipe.places import ROOT

if TYPE_CHECKING:
    import lmdb

LSUN_CATEGORIES = (
    *("bedroom", "bridge", "church_outdoor", "classroom", "conference_room"),
    *("dining_room", "kitchen", "living_room", "restaurant", "tower"),
)

_IDX = (
    "the unpacked files train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and "
    "t10k-labels-idx1-ubyte"
)

TORCHVISION = {
    "mnist": ("MNIST", "MNIST/raw", _IDX),
    "fashion-mnist": ("FashionMNIST", "FashionMNIST/raw", _IDX),
    "cifar10": ("CIFAR10", "cifar-10-batches-py", "the contents of cifar-10-python.tar.gz"),
    "svhn": ("SVHN", "", "train_32x32.mat and test_32x32.mat"),
    "celeba": (
        "CelebA",
        "celeba",
        "img_align_celeba (unpacked), list_attr_celeba.txt, identity_CelebA.txt, list_bbox_celeba.txt, "
        "list_landmarks_align_celeba.txt and list_eval_partition.txt",
    ),
}
"""Source -> torchvision's class, the folder below the root that it reads, and what it reads there."""

DIGIT_NAMES = [str(digit) for digit in range(10)]

Source = Callable[[recipe.Data, Split], Images]

SOURCES: dict[str, Source] = {}
"""By the recipe's word, `data.source`."""


def source(*names: str) -> Callable[[Source], Source]:
    """Makes a function, of the recipe's `data` part and a split, what `data.source` calls by these words."""

    def added(function: Source) -> Source:
        for name in names:
            SOURCES[name] = function
            words.SOURCES.add(name)
        return function

    return added


def load(data: recipe.Data, split: Split) -> Images:
    """The images a recipe names.

    Sources without a test split hold out `test_fraction` of the images, the same ones every time, and whatever joins
    them or leaves (`data.splits`).  Folders come in
    a fixed shuffle, so that the first few (`data.limit`) are of all classes.  `data.exclude` takes classes out of the
    training split, and `data.limit` shortens it; the test split keeps everything.  With `data.split` pooled both splits
    are put together and split anew, the same way every time (`_pooled`).

    Raises:
        UsageError: `data.path` is missing where the source needs it.
        HebmError: images that are absent, unreadable, of differing sizes or in an unknown layout.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split is {split!r}, but must be 'train' or 'test'")
    if data.split == "pooled":
        return _pooled(data, split)
    leave_out = data.exclude and split == "train"
    # The limit counts what is left.
    wanted = data.model_copy(update={"limit": None}) if leave_out else data
    images = SOURCES[data.source](wanted, split)
    for name, classes in data.attributes.items():
        images.attributes[name] = _of_classes(images, classes, f"data.attributes.{name}")
    if leave_out:
        kept = (~_of_classes(images, data.exclude, "data.exclude")).nonzero()[: data.limit, 0]
        if not len(kept):
            raise HebmError("data.exclude leaves no image to train on; exclude fewer classes")
        images = images.subset(kept)
    return images


def _pooled(data: recipe.Data, split: Split) -> Images:
    """All the images of a source together: `test_fraction` of those whose class is not left out are for testing, the
    others for training, and every image of a class left out is for testing ("Anomaly protocol", docs/results.md)."""
    if not data.exclude:
        raise UsageError("data.split is pooled, but data.exclude leaves no class out; name some, or set it to official")
    whole = data.model_copy(update={"split": "official", "exclude": [], "limit": None})
    images = together(load(whole, "train"), load(whole, "test"))
    out = _of_classes(images, data.exclude, "data.exclude")
    order = torch.from_numpy(permutation(len(images), 0, 0).copy())
    normal = order[~out[order]]
    held = round(len(normal) * data.test_fraction)
    if not 0 < held < len(normal):
        raise HebmError(
            f"data.split is pooled, but there are only {len(normal)} images of the classes not left out; exclude fewer"
        )
    if split == "train":
        return images.subset(normal[held:][: data.limit])
    tests = torch.cat([normal[:held], order[out[order]]])
    # In one order for both kinds, so that the first few are a fair share of the whole.
    return images.subset(tests[torch.from_numpy(permutation(len(tests), 0, 1).copy())])


def _of_classes(images: Images, classes: list[str], where: str) -> Tensor:
    """Which images are of these classes, BoolTensor [N].  `where` is the recipe key that names them."""
    if images.labels is None:
        raise HebmError(f"{where} names classes, but these images have no labels; remove it")
    known = images.classes or [str(k) for k in range(int(images.labels.max()) + 1)]
    for name in classes:
        if name not in known:
            raise HebmError(
                f"{where} names the class '{name}'; there are {', '.join(known)}{did_you_mean(name, known)}"
            )
    return torch.isin(images.labels, torch.tensor([known.index(name) for name in classes]))


def _in_memory(
    array: np.ndarray,
    data: recipe.Data,
    split: Split,
    where: str,
    *,
    hold_out: bool,
    labels: np.ndarray | None = None,
    classes: list[str] | None = None,
    marks: np.ndarray | None = None,
) -> Images:
    """Images of a uint8 array [N, C, H, W] (which may be mapped from a file)."""
    _, channels, height, width = array.shape
    shape = (data.channels or channels, *fitted_size(height, width, data, f"every image of {where}"))
    positions = chosen_positions(len(array), data, split, hold_out=hold_out, where=where, marks=marks)

    def read(indices: list[int], place: Place | None = None) -> Tensor:
        return fit(torch.from_numpy(np.ascontiguousarray(array[positions[indices]])), data, place)

    return Images(
        len(positions),
        shape,
        read,
        labels=None if labels is None else torch.from_numpy(labels[positions].astype(np.int64)),
        classes=classes,
        numbers=positions,
        total=len(array),
        cut=(lambda i, place: read([i], place)[0]) if data.random_crop else None,
        marks=None if marks is None else marks[positions],
    )


@source("digits")
def _digits(data: recipe.Data, split: Split) -> Images:
    from sklearn.datasets import load_digits  # slow to import

    found = load_digits()
    pixels = np.round(found.images * 255 / 16).astype(np.uint8)[:, None]
    return _in_memory(pixels, data, split, "digits", hold_out=True, labels=found.target, classes=DIGIT_NAMES)


def _path(data: recipe.Data, what: str) -> Path:
    if not data.path:
        raise UsageError(f"data.source {data.source} needs data.path, {what}; set it")
    return recipe.expanded(data.path)


@source("folder")
def _folder(data: recipe.Data, split: Split) -> Images:
    folder = _path(data, "a folder of images")
    if folder.is_file():
        raise HebmError(f"data.path {folder} is a file, not a folder; for .npz and .npy set data.source=array")
    splits = split_folders(folder, data)
    hold_out, parts = splits is None, splits or {split: folder}
    # Both splits are looked through either way: they must agree on size, colour and class names.
    listed = {part: listed_in(place) for part, place in parts.items()}
    shape = common_shape([path for paths, _ in listed.values() for path in paths], folder, data)
    classes = sorted({label for _, labels in listed.values() for label in labels or ()})

    paths, labels = listed[split]
    marks = marks_of_names(path.relative_to(folder).as_posix() for path in paths)
    chosen = chosen_positions(len(paths), data, split, hold_out=hold_out, where=str(folder), marks=marks)
    if not hold_out:  # a hold-out is shuffled already
        chosen = permutation(len(paths), 0, 0)[chosen]
    numbers = {name: number for number, name in enumerate(classes)}
    return on_disk(
        [paths[i] for i in chosen],
        shape,
        data,
        labels=torch.tensor([numbers[labels[i]] for i in chosen]) if labels else None,
        classes=classes if labels else None,
        numbers=chosen,
        total=len(paths),
        marks=marks[chosen],
    )


@source("array")
def _array(data: recipe.Data, split: Split) -> Images:
    path = _path(data, "an .npz or .npy file")
    if not path.exists():
        raise HebmError(f"the array file data.path {path} does not exist; give an .npz or .npy file")
    if path.is_dir():
        raise HebmError(
            f"data.path {path} is a folder, not an .npz or .npy file; for image files set data.source=folder"
        )
    keys, arrays, hold_out = opened_arrays(path, split)
    images = {role: channels_first(arrays[role], f"{keys[role]} of {path}") for role in ("x", "other") if role in keys}
    if "other" in images and images["other"].shape[1:] != images["x"].shape[1:]:
        raise HebmError(
            f"the images of {path} differ in size: {keys['x']} has shape {arrays['x'].shape} and {keys['other']} "
            f"{arrays['other'].shape}; give both one height, width and number of channels"
        )
    labels, classes = arrays.get("y"), arrays.get("classes")
    if classes is not None:
        classes = [name.decode() if isinstance(name, bytes) else str(name) for name in classes.ravel().tolist()]
    if labels is not None:
        labels = checked_labels(labels, len(images["x"]), classes, f"{keys['y']} of {path}")
        # Named before anything is held out, so that both splits know the same classes.
        classes = classes or [str(k) for k in range(int(labels.max()) + 1)]
    marks = marks_of_pixels(images["x"], path, keys["x"])
    return _in_memory(
        images["x"], data, split, str(path), hold_out=hold_out, labels=labels, classes=classes, marks=marks
    )


def _root(data: recipe.Data) -> Path:
    return recipe.expanded(data.path or ROOT)


def _from_torchvision(data: recipe.Data, **which: Any) -> Any:
    from torchvision import datasets  # slow to import

    root = _root(data)
    name, folder, files = TORCHVISION[data.source]
    try:
        return getattr(datasets, name)(str(root), download=data.download, **which)
    except Exception as error:  # torchvision raises RuntimeError, URLError, ImportError, BadZipFile and others
        what = "is not whole on disk and could not be downloaded" if data.download else "is missing or damaged"
        otherwise = "" if data.download else ", or set data.download=true to have it downloaded"
        raise HebmError(
            f"{data.source} {what} ({first_sentence(error)}); place {files} in {root / folder}{otherwise}"
        ) from error


@source("mnist", "fashion-mnist", "cifar10", "svhn")
def _torchvision_array(data: recipe.Data, split: Split) -> Images:
    """The sources that torchvision reads wholly into memory."""
    svhn = data.source == "svhn"
    dataset = _from_torchvision(data, **({"split": split} if svhn else {"train": split == "train"}))
    return _in_memory(
        # SVHN's file has the images innermost, where reading one would touch the whole array.
        np.ascontiguousarray(channels_first(np.asarray(dataset.data), data.source)),
        data,
        split,
        data.source,
        hold_out=False,
        labels=np.asarray(dataset.labels if svhn else dataset.targets),
        classes=DIGIT_NAMES if data.source in ("mnist", "svhn") else list(dataset.classes),
    )


@source("celeba")
def _celeba(data: recipe.Data, split: Split) -> Images:
    """CelebA, in the data set's order (https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html)."""
    dataset = _from_torchvision(data, split=split)
    folder = Path(dataset.root) / dataset.base_folder / "img_align_celeba"
    chosen = chosen_positions(len(dataset.filename), data, split, hold_out=False, where="celeba")
    paths = [folder / dataset.filename[i] for i in chosen]
    # They are all of one size, so one header speaks for them.
    attributes = {n: dataset.attr[chosen, k] == 1 for k, n in enumerate(dataset.attr_names) if n}
    return on_disk(paths, common_shape(paths[:1], folder, data), data, attributes=attributes)


@source("lsun")
def _lsun(data: recipe.Data, split: Split) -> Images:
    """One category of LSUN (https://www.yf.io/p/lsun): a database of encoded images.

    Read with lmdb itself: torchvision's reader pickles the keys into the working directory, under a name that two
    databases can share.
    """
    folder = _root(data) / f"{data.category}_{'train' if split == 'train' else 'val'}_lmdb"
    if not (folder / "data.mdb").is_file():
        near = "" if data.category in LSUN_CATEGORIES else did_you_mean(data.category, LSUN_CATEGORIES)
        raise HebmError(
            f"there is no LSUN database {folder}; it cannot be downloaded from here, so unpack "
            f"{folder.name}.zip of https://www.yf.io/p/lsun there, or correct data.path or data.category{near}"
        )
    if not (data.size or data.crop):
        raise HebmError("LSUN's images differ in size; resize them all with data.size=64 (any side)")
    try:
        import lmdb
    except ImportError:
        raise not_installed("LSUN needs", "lmdb", "lsun") from None
    try:
        database = _database(str(folder.resolve()))
        with database.begin() as transaction:
            keys = list(transaction.cursor().iternext(keys=True, values=False))
    except lmdb.Error as error:
        raise HebmError(f"{folder} cannot be read as an LMDB database ({error}); unpack it again") from error
    if not keys:
        raise HebmError(f"the LSUN database {folder} holds no images; unpack it again")
    keys = [keys[i] for i in chosen_positions(len(keys), data, split, hold_out=False, where=str(folder))]
    data = data.model_copy(update={"channels": data.channels or 3})

    def name(i: int) -> str:
        return f"the entry {keys[i].decode(errors='replace')} of {folder}"

    def entry(i: int, place: Place | None = None) -> Tensor:
        with _database(str(folder.resolve())).begin() as transaction:
            encoded = transaction.get(keys[i])
        return decode(io.BytesIO(encoded), name(i), data, place)

    side = data.size or data.crop
    shape = (data.channels, side, side)
    cut = entry if data.random_crop else None
    read = Decoder(len(keys), shape, entry, name)
    return Images(len(keys), shape, read, cut=cut, decoded_anew=read.kept is None)


_OPENED: "dict[str, tuple[int, lmdb.Environment]]" = {}


def _database(folder: str) -> "lmdb.Environment":
    """The database, which a process may open only once, whoever reads it; after a fork it is opened anew."""
    import lmdb

    process, database = _OPENED.get(folder, (0, None))
    if process != os.getpid():
        if database is not None:
            database.close()  # in this process alone
        database = lmdb.open(folder, readonly=True, lock=False, readahead=False, meminit=False)
        _OPENED[folder] = os.getpid(), database
    return database
