"""Images for the generator: read from a source, batched, and turned into what the likelihood needs.

    load(data, "train")   which images                   -> Images
    batch_indices(...)    the images of one update        a function of seed and step alone
    images.batch(...)     uint8 [n, C, H, W]              as they are at rest
    prepare(...)          float32 [n, C, H, W] in [0, 1]  as the model reads them

Every image, from an array or from a file, goes through the same steps (`_fit`): centre crop to `data.crop`, grey or
RGB as `data.channels` says, then, when `data.size` is given, the short side is resized to it (bilinear, antialiased)
and the middle square is kept.
"""

import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal

import lmdb
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from hebmtool import recipe
from hebmtool.errors import HebmError, UsageError, did_you_mean

Split = Literal["train", "test"]

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm")
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
SMALLEST_SIDE = 4
"""No image is narrower, so an array's axis of 1 or 3 is one of channels."""
CACHE_BYTES = 512 * 2**20
"""Sets that take less than this once decoded are decoded only once."""
GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16L", "I;16B", "I;16N", "F")
READERS = 8


class Images:
    """A set of images, in memory or on disk.

    shape: (C, H, W), the same for every image.  labels: LongTensor [N], or None.  classes: the names that labels
    index, or None.  attributes: name -> BoolTensor [N].  names: the images' files, or None.
    numbers: LongTensor [N], each image's place among the `total` of its source (files are sorted), from which a split
    takes some, in another order.
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
    ):
        self._n, self._read = n, read
        self.numbers = torch.arange(n) if numbers is None else torch.as_tensor(numbers)
        self.total = n if total is None else total
        self.shape, self.labels, self.classes, self.names = shape, labels, classes, names
        self.attributes = attributes or {}

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
        )


def load(data: recipe.Data, split: Split) -> Images:
    """The images a recipe names.

    Sources without a test split hold out `test_fraction` of the images, the same ones every time. Folders come in a
    fixed shuffle, so that the first few (`data.limit`) are of all classes. `data.exclude` takes classes out of the
    training split, and `data.limit` shortens it; the test split keeps everything.

    Raises:
        UsageError: `data.path` is missing where the source needs it.
        HebmError: images that are absent, unreadable, of differing sizes or in an unknown layout.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split is {split!r}, but must be 'train' or 'test'")
    readers = {"digits": _digits, "folder": _folder, "array": _array, "celeba": _celeba, "lsun": _lsun}
    leave_out = data.exclude and split == "train"
    # The limit counts what is left.
    wanted = data.model_copy(update={"limit": None}) if leave_out else data
    images = readers.get(data.source, _torchvision_array)(wanted, split)
    for name, classes in data.attributes.items():
        images.attributes[name] = _of_classes(images, classes, f"data.attributes.{name}")
    if leave_out:
        kept = (~_of_classes(images, data.exclude, "data.exclude")).nonzero()[: data.limit, 0]
        if not len(kept):
            raise HebmError("data.exclude leaves no image to train on; exclude fewer classes")
        images = images.subset(kept)
    return images


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


def prepare(batch: Tensor, data: recipe.Data, likelihood: str, *, train: bool) -> Tensor:
    """Images as the model reads them, float32 in [0, 1], from uint8 [N, C, H, W]. Draws from torch's global generator.

    In training, with `data.flip`, every image is mirrored with probability 1/2. `data.bits` b keeps the upper b bits,
    v = floor(pixel / 2^(8 - b)). Then, in training and in testing alike,

        bernoulli   x ~ Bernoulli(v / (2^b - 1))      the bound is on binary images
        gaussian    x = (v + U(0, 1)) / 2^b           a density needs values that are not on a grid
        mixture     x = v / (2^b - 1)

    Raises:
        TypeError: the batch is not uint8.
        UsageError: an unknown likelihood.
    """
    if batch.dtype != torch.uint8:
        raise TypeError(f"images at rest are uint8, but these are {batch.dtype}")
    if train and data.flip:
        mirrored = torch.rand(len(batch), 1, 1, 1, device=batch.device) < 0.5
        batch = torch.where(mirrored, batch.flip(-1), batch)
    v = (batch >> (8 - data.bits)).float()
    top = 2**data.bits - 1
    match likelihood:
        case "bernoulli":
            return torch.bernoulli(v / top)
        case "gaussian":
            return (v + torch.rand_like(v)) / (top + 1)
        case "mixture":
            return v / top
    allowed = ("bernoulli", "gaussian", "mixture")
    raise UsageError(
        f"generator.likelihood is {likelihood!r}, but must be one of {', '.join(allowed)}"
        f"{did_you_mean(likelihood, allowed)}"
    )


# --------------------------------------------------------------------------------------------------------------- order


def order(n: int, seed: int, epoch: int) -> Tensor:
    """A permutation of 0 .. n - 1, LongTensor [n], that depends on the arguments alone."""
    return torch.from_numpy(_order(n, seed, epoch).copy())


@lru_cache(maxsize=2)  # all updates of an epoch share one
def _order(n: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(n)


def batch_indices(n: int, batch_size: int, seed: int, step: int) -> Tensor:
    """The images of update `step` (0-based) among n, LongTensor [batch_size]; the ragged end of an epoch is dropped.

    Raises:
        HebmError: fewer images than a batch holds.
    """
    if n < batch_size:
        raise HebmError(
            f"a batch holds {batch_size} images, but there are only {n} to train on; set batch_size to at most {n}, or "
            "give more images"
        )
    epoch, place = divmod(step, n // batch_size)
    return torch.from_numpy(_order(n, seed, epoch)[place * batch_size : (place + 1) * batch_size].copy())


def _positions(n: int, data: recipe.Data, split: Split, *, hold_out: bool, where: str) -> np.ndarray:
    """Which of a source's n images belong to the split, in order."""
    positions = np.arange(n)
    if hold_out:
        if n < 2:
            raise HebmError(f"{where} has {n} image, but training and testing need at least 2; give more images")
        positions = _order(n, 0, 0)
        held = min(max(round(n * data.test_fraction), 1), n - 1)
        positions = positions[held:] if split == "train" else positions[:held]
    return positions[: data.limit] if split == "train" else positions


# ------------------------------------------------------------------------------------------------------- single images


def paths_in(folder: str | Path) -> list[Path]:
    """The image files under a folder, at any depth, sorted; by their endings, hidden ones left out.

    Raises:
        HebmError: there is no such folder, or there are no images in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise HebmError(f"the folder of images {folder} {what}; give a folder with files in {', '.join(ENDINGS)}")
    found = []
    for root, folders, files in os.walk(folder, followlinks=True):
        here = Path(root)
        # A link to a folder above would be walked for ever.
        folders[:] = [
            f for f in folders if not f.startswith(".") and not here.resolve().is_relative_to((here / f).resolve())
        ]
        found += [here / f for f in files if f.lower().endswith(ENDINGS) and not f.startswith(".")]
    if not found:
        raise HebmError(f"there are no images in {folder}; put files there that end in {', '.join(ENDINGS)}")
    return sorted(found)


def read_image(path: str | Path, data: recipe.Data) -> Tensor:
    """Any image file, uint8 [C, H, W], cropped, resized and with the channels that `data` says (None: its own).

    Transparency is laid over white, 16-bit grey scaled to 8 bits, a photograph turned upright, and of an animation the
    first picture is taken.

    Raises:
        HebmError: the file is absent, no image, damaged, or smaller than `data.crop`.
    """
    return _decode(path, str(path), data)


def read_array(path: str | Path) -> np.ndarray:
    """All images of an .npz or .npy file, uint8 [N, C, H, W] in their own size; where there are two splits, the test
    one.  An .npy stays on disk.

    Raises:
        HebmError: the file is absent, damaged, or of an unknown layout.
    """
    path = Path(path)
    if not path.is_file():
        raise HebmError(f"the array file {path} does not exist; check the path")
    keys, arrays, _ = _opened_arrays(path, "test")
    return _channels_first(arrays["x"], f"{keys['x']} of {path}")


def fit_to(x: Tensor, shape: tuple[int, int, int], data: recipe.Data) -> Tensor:
    """Any images, uint8 [N, c, h, w], in the shape (C, H, W) of those that `data` made.

    `data.crop` where they are large enough for it, then grey or RGB, then resized to cover H x W, the middle kept.
    """
    channels, *sides = shape
    crop = data.crop if data.crop and data.crop <= min(x.shape[2:]) else None
    x = _fit(x, data.model_copy(update={"channels": channels, "crop": crop, "size": None}))
    if list(x.shape[2:]) != sides:
        scale = max(side / found for side, found in zip(sides, x.shape[2:], strict=True))
        cover = [max(round(found * scale), side) for side, found in zip(sides, x.shape[2:], strict=True)]
        x = F.interpolate(x, size=cover, mode="bilinear", antialias=True)
        top, left = ((found - side) // 2 for side, found in zip(sides, cover, strict=True))
        x = x[:, :, top : top + sides[0], left : left + sides[1]].contiguous()
    return x


def _decode(file: str | Path | io.BytesIO, name: str, data: recipe.Data) -> Tensor:
    pixels = torch.from_numpy(_opened(file, name, _pixels))
    _fitted_size(*pixels.shape[1:], data, name)
    return _fit(pixels[None], data)[0]


def _opened(file: str | Path | io.BytesIO, name: str, look: Callable[[Image.Image], Any]) -> Any:
    """What `look` finds in an image file."""
    try:
        with Image.open(file) as image:
            return look(image)
    except Exception as error:  # PIL's decoders raise OSError, SyntaxError, ValueError, struct.error and others
        if isinstance(error, FileNotFoundError):
            raise HebmError(f"the image {name} does not exist; check the path") from None
        reason = "it is no image" if isinstance(error, Image.UnidentifiedImageError) else _first_sentence(error)
        raise HebmError(f"{name} cannot be read as an image ({reason}); replace or remove it") from error


def _pixels(image: Image.Image) -> np.ndarray:
    """uint8 [C, H, W], C = 1 where the file is grey and 3 elsewhere."""
    if _is_photograph(image):
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        values = np.array(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"its grey values reach from {values.min()} to {values.max()}, beyond 16 bits")
        return np.round(values / 257).astype(np.uint8)[None]
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range")
    grey = image.mode in GREY_MODES
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if grey else "RGB")
    pixels = np.array(image)
    return pixels[None] if grey else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _header(image: Image.Image) -> tuple[int, int, bool]:
    """Height, width, and whether `_pixels` will be coloured, without decoding."""
    width, height = image.size
    if _is_photograph(image) and image.getexif().get(0x0112, 1) >= 5:  # the orientations that lie on their side
        width, height = height, width
    return height, width, image.mode not in GREY_MODES


def _is_photograph(image: Image.Image) -> bool:
    # Only cameras write an orientation, and asking a PNG for one decodes it wholly.
    return image.format in ("JPEG", "MPO")


def _fitted_size(height: int, width: int, data: recipe.Data, name: str) -> tuple[int, int]:
    """Height and width after `_fit`."""
    if data.crop and data.crop > min(height, width):
        raise HebmError(
            f"{name} is {width}x{height} pixels, too small for data.crop {data.crop}; set data.crop to at most "
            f"{min(height, width)}"
        )
    side = data.size or data.crop
    return (side, side) if side else (height, width)


def _fit(x: Tensor, data: recipe.Data) -> Tensor:
    """uint8 [N, C, H, W] -> cropped, with the right channels, resized."""
    if data.crop:
        x = _middle(x, data.crop)
    if data.channels == 1 and x.shape[1] == 3:
        weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)  # ITU-R 601, as PIL
        x = (x * weights).sum(1, keepdim=True).round().to(torch.uint8)
    elif data.channels == 3 and x.shape[1] == 1:
        x = x.expand(-1, 3, -1, -1)
    if data.size and tuple(x.shape[2:]) != (data.size, data.size):
        scale = data.size / min(x.shape[2:])
        sides = [max(round(side * scale), data.size) for side in x.shape[2:]]
        x = _middle(F.interpolate(x.contiguous(), size=sides, mode="bilinear", antialias=True), data.size)
    return x.contiguous()


def _middle(x: Tensor, side: int) -> Tensor:
    top, left = (x.shape[2] - side) // 2, (x.shape[3] - side) // 2
    return x[:, :, top : top + side, left : left + side]


# ------------------------------------------------------------------------------------------------- arrays and files


def _in_memory(
    array: np.ndarray,
    data: recipe.Data,
    split: Split,
    where: str,
    *,
    hold_out: bool,
    labels: np.ndarray | None = None,
    classes: list[str] | None = None,
) -> Images:
    """Images of a uint8 array [N, C, H, W] (which may be mapped from a file)."""
    _, channels, height, width = array.shape
    shape = (data.channels or channels, *_fitted_size(height, width, data, f"every image of {where}"))
    positions = _positions(len(array), data, split, hold_out=hold_out, where=where)
    return Images(
        len(positions),
        shape,
        lambda indices: _fit(torch.from_numpy(np.ascontiguousarray(array[positions[indices]])), data),
        labels=None if labels is None else torch.from_numpy(labels[positions].astype(np.int64)),
        classes=classes,
        numbers=positions,
        total=len(array),
    )


class _Decoder:
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
        with ThreadPoolExecutor(min(READERS, len(indices))) as threads:
            return torch.stack(list(threads.map(self._one, indices)))

    def _one(self, i: int) -> Tensor:
        if self.known[i]:
            return self.kept[i]
        x = self.decode(i)
        if tuple(x.shape) != self.shape:
            raise HebmError(
                f"{self.name(i)} is {_size_words(x.shape)}, but the set's images are {_size_words(self.shape)}; give "
                "all images one size, or resize them with --set data.size=64 (any side)"
            )
        if self.kept is not None:
            self.kept[i] = x
            self.known[i] = True
        return x


def _on_disk(paths: list[Path], shape: tuple[int, int, int], data: recipe.Data, **about: Any) -> Images:
    data = data.model_copy(update={"channels": shape[0]})
    read = _Decoder(len(paths), shape, lambda i: read_image(paths[i], data), lambda i: str(paths[i]))
    return Images(len(paths), shape, read, names=[str(path) for path in paths], **about)


def _size_words(shape: Sequence[int]) -> str:
    return f"{shape[-1]}x{shape[-2]}" + (f" with {shape[0]} channels" if len(shape) == 3 else "")


# ------------------------------------------------------------------------------------------------------------- sources


def _digits(data: recipe.Data, split: Split) -> Images:
    from sklearn.datasets import load_digits  # slow to import

    found = load_digits()
    pixels = np.round(found.images * 255 / 16).astype(np.uint8)[:, None]
    return _in_memory(pixels, data, split, "digits", hold_out=True, labels=found.target, classes=DIGIT_NAMES)


def _path(data: recipe.Data, what: str) -> Path:
    if not data.path:
        raise UsageError(f"data.source {data.source} needs data.path, {what}; give it with --set data.path=...")
    return Path(data.path).expanduser()


def _folder(data: recipe.Data, split: Split) -> Images:
    folder = _path(data, "a folder of images")
    if folder.is_file():
        raise HebmError(f"data.path {folder} is a file, not a folder; for .npz and .npy set data.source=array")
    splits = {name: folder / name for name in ("train", "test")}
    hold_out = not all(part.is_dir() for part in splits.values())
    parts = {split: folder} if hold_out else splits
    # Both splits are looked through either way: they must agree on size, colour and class names.
    listed = {part: _listed(place) for part, place in parts.items()}
    shape = _common_shape([path for paths, _ in listed.values() for path in paths], folder, data)
    classes = sorted({label for _, labels in listed.values() for label in labels or ()})

    paths, labels = listed[split]
    chosen = _positions(len(paths), data, split, hold_out=hold_out, where=str(folder))
    if not hold_out:  # a hold-out is shuffled already
        chosen = _order(len(paths), 0, 0)[chosen]
    numbers = {name: number for number, name in enumerate(classes)}
    return _on_disk(
        [paths[i] for i in chosen],
        shape,
        data,
        labels=torch.tensor([numbers[labels[i]] for i in chosen]) if labels else None,
        classes=classes if labels else None,
        numbers=chosen,
        total=len(paths),
    )


def _listed(folder: Path) -> tuple[list[Path], list[str] | None]:
    """Image files, and the class of each where they lie in class folders."""
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


def _common_shape(paths: list[Path], folder: Path, data: recipe.Data) -> tuple[int, int, int]:
    """(C, H, W) of every image after `_fit`, from the files' headers; RGB if any is coloured."""
    with ThreadPoolExecutor(READERS) as threads:
        headers = list(threads.map(lambda path: _opened(path, str(path), _header), paths))
    sizes = [_fitted_size(h, w, data, str(path)) for path, (h, w, _) in zip(paths, headers, strict=True)]
    for path, size in zip(paths, sizes, strict=True):
        if size != sizes[0]:
            raise HebmError(
                f"the images in {folder} differ in size: {paths[0]} is {_size_words(sizes[0])} and {path} is "
                f"{_size_words(size)}; resize them all with --set data.size=64 (any side)"
            )
    return (data.channels or (3 if any(colour for *_, colour in headers) else 1), *sizes[0])


def _array(data: recipe.Data, split: Split) -> Images:
    path = _path(data, "an .npz or .npy file")
    if not path.exists():
        raise HebmError(f"the array file data.path {path} does not exist; give an .npz or .npy file")
    if path.is_dir():
        raise HebmError(
            f"data.path {path} is a folder, not an .npz or .npy file; for image files set data.source=folder"
        )
    keys, arrays, hold_out = _opened_arrays(path, split)
    images = {role: _channels_first(arrays[role], f"{keys[role]} of {path}") for role in ("x", "other") if role in keys}
    if "other" in images and images["other"].shape[1:] != images["x"].shape[1:]:
        raise HebmError(
            f"the images of {path} differ in size: {keys['x']} has shape {arrays['x'].shape} and {keys['other']} "
            f"{arrays['other'].shape}; give both one height, width and number of channels"
        )
    labels, classes = arrays.get("y"), arrays.get("classes")
    if classes is not None:
        classes = [name.decode() if isinstance(name, bytes) else str(name) for name in classes.ravel().tolist()]
    if labels is not None:
        labels = _checked_labels(labels, len(images["x"]), classes, f"{keys['y']} of {path}")
        # Named before anything is held out, so that both splits know the same classes.
        classes = classes or [str(k) for k in range(int(labels.max()) + 1)]
    return _in_memory(images["x"], data, split, str(path), hold_out=hold_out, labels=labels, classes=classes)


def _opened_arrays(path: Path, split: Split) -> tuple[dict[str, str], dict[str, np.ndarray], bool]:
    """Role -> key, role -> array, and whether to hold out (`_array_keys`), of an .npz or .npy."""
    try:
        # No pickles: they run code. A bare array stays on disk.
        opened = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(opened, np.lib.npyio.NpzFile):
            with opened:
                keys, hold_out = _array_keys(opened.files, path, split)
                arrays = {role: opened[key] for role, key in keys.items()}
        else:
            keys, arrays, hold_out = {"x": "the array"}, {"x": opened}, True
    except HebmError:
        raise
    except Exception as error:  # numpy raises whatever zipfile, pickle or its header parser did
        # Whatever is not numpy's own, numpy takes for a pickle, and says how to load it unsafely.
        reason = "it is none, or holds Python objects" if "pickle" in str(error) else _first_sentence(error)
        raise HebmError(
            f"{path} cannot be read as an .npz or .npy file of plain arrays ({reason}); save it with "
            "numpy.savez or numpy.save"
        ) from error
    return keys, arrays, hold_out


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


def _channels_first(array: np.ndarray, name: str) -> np.ndarray:
    """A view [N, C, H, W] of a uint8 array in one of the known layouts."""
    if array.dtype == np.uint8 and len(array.shape) in (3, 4) and len(array):
        views = [array[:, None]] if array.ndim == 3 else [array, array.transpose(0, 3, 1, 2)]
        for view in views:
            if view.shape[1] in (1, 3) and min(view.shape[2:]) >= SMALLEST_SIDE:
                return view
    raise HebmError(
        f"{name} has shape {array.shape} and type {array.dtype}, but images must be uint8 of shape (N, H, W), "
        f"(N, H, W, C) or (N, C, H, W) with N of at least 1, C 1 or 3, and H and W of at least {SMALLEST_SIDE}"
    )


def _checked_labels(labels: np.ndarray, n: int, classes: list[str] | None, name: str) -> np.ndarray:
    if labels.dtype.kind not in "iu" or labels.shape not in ((n,), (n, 1)):
        raise HebmError(
            f"{name} has shape {labels.shape} and type {labels.dtype}, but labels must be integers of shape ({n},), "
            "one per image"
        )
    labels = labels.reshape(n)
    if labels.min() < 0 or (classes is not None and labels.max() >= len(classes)):
        allowed = "at least 0" if classes is None else f"from 0 to {len(classes) - 1}, the indices of classes"
        raise HebmError(f"{name} reaches from {labels.min()} to {labels.max()}, but labels must be {allowed}")
    return labels


def _root(data: recipe.Data) -> Path:
    return Path(data.path or "data").expanduser()


def _from_torchvision(data: recipe.Data, **which: Any) -> Any:
    from torchvision import datasets  # slow to import

    root = _root(data)
    name, folder, files = TORCHVISION[data.source]
    try:
        return getattr(datasets, name)(str(root), download=data.download, **which)
    except Exception as error:  # torchvision raises RuntimeError, URLError, ImportError, BadZipFile and others
        what = "is not whole on disk and could not be downloaded" if data.download else "is missing or damaged"
        otherwise = "" if data.download else ", or let it be downloaded with --set data.download=true"
        raise HebmError(
            f"{data.source} {what} ({_first_sentence(error)}); place {files} in {root / folder}{otherwise}"
        ) from error


def _torchvision_array(data: recipe.Data, split: Split) -> Images:
    """The sources that torchvision reads wholly into memory."""
    svhn = data.source == "svhn"
    dataset = _from_torchvision(data, **({"split": split} if svhn else {"train": split == "train"}))
    return _in_memory(
        # SVHN's file has the images innermost, where reading one would touch the whole array.
        np.ascontiguousarray(_channels_first(np.asarray(dataset.data), data.source)),
        data,
        split,
        data.source,
        hold_out=False,
        labels=np.asarray(dataset.labels if svhn else dataset.targets),
        classes=DIGIT_NAMES if data.source in ("mnist", "svhn") else list(dataset.classes),
    )


def _celeba(data: recipe.Data, split: Split) -> Images:
    """CelebA, in the data set's order (https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html)."""
    dataset = _from_torchvision(data, split=split)
    folder = Path(dataset.root) / dataset.base_folder / "img_align_celeba"
    chosen = _positions(len(dataset.filename), data, split, hold_out=False, where="celeba")
    paths = [folder / dataset.filename[i] for i in chosen]
    # They are all of one size, so one header speaks for them.
    attributes = {n: dataset.attr[chosen, k] == 1 for k, n in enumerate(dataset.attr_names) if n}
    return _on_disk(paths, _common_shape(paths[:1], folder, data), data, attributes=attributes)


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
        raise HebmError("LSUN's images differ in size; resize them all with --set data.size=64 (any side)")
    try:
        database = _database(str(folder.resolve()))
        with database.begin() as transaction:
            keys = list(transaction.cursor().iternext(keys=True, values=False))
    except lmdb.Error as error:
        raise HebmError(f"{folder} cannot be read as an LMDB database ({error}); unpack it again") from error
    if not keys:
        raise HebmError(f"the LSUN database {folder} holds no images; unpack it again")
    keys = [keys[i] for i in _positions(len(keys), data, split, hold_out=False, where=str(folder))]
    data = data.model_copy(update={"channels": data.channels or 3})

    def name(i: int) -> str:
        return f"the entry {keys[i].decode(errors='replace')} of {folder}"

    def decode(i: int) -> Tensor:
        with database.begin() as transaction:
            encoded = transaction.get(keys[i])
        return _decode(io.BytesIO(encoded), name(i), data)

    side = data.size or data.crop
    shape = (data.channels, side, side)
    return Images(len(keys), shape, _Decoder(len(keys), shape, decode, name))


@cache  # a process may open a database only once, whoever reads it
def _database(folder: str) -> lmdb.Environment:
    return lmdb.open(folder, readonly=True, lock=False, readahead=False, meminit=False)


def _first_sentence(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line.partition(". ")[0].rstrip(".:")
