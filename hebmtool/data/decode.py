"""The one reader of image files, and what is done to pixels before the model's bits (`fit`).

Every image, from an array or from a file, goes through the same steps: crop to `data.crop` in the middle or at
`data.crop_at`, grey or RGB as `data.channels` says, then, when `data.size` is given, the short side is resized to it
(bilinear, antialiased) and the middle square is kept, or one at a place of the caller's.  All of it is uint8.
"""

import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from hebmtool import recipe
from hebmtool.errors import HebmError

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm")

SMALLEST_SIDE = 4
"""No image is narrower, so an array's axis of 1 or 3 is one of channels."""

GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16L", "I;16B", "I;16N", "F")


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


Place = Sequence[float]
"""Where a square is cut: (top, left), shares of the room there is, from 0 to 1."""


def read_image(path: str | Path, data: recipe.Data, place: Place | None = None) -> Tensor:
    """Any image file, uint8 [C, H, W], cropped, resized and with the channels that `data` says (None: its own).

    Transparency is laid over white, 16-bit grey scaled to 8 bits, a photograph turned upright, and of an animation the
    first picture is taken.

    Raises:
        HebmError: the file is absent, no image, damaged, or smaller than `data.crop`.
    """
    return decode(path, str(path), data, place)


def fit_to(x: Tensor, shape: tuple[int, int, int], data: recipe.Data) -> Tensor:
    """Any images, uint8 [N, c, h, w], in the shape (C, H, W) of those that `data` made.

    `data.crop` where they are large enough for it, then grey or RGB, then resized to cover H x W, the middle kept.
    """
    channels, *sides = shape
    crop = data.crop if data.crop and data.crop <= min(x.shape[2:]) else None
    at = data.crop_at if crop and _holds(x.shape[2], x.shape[3], data) else None
    x = fit(x, data.model_copy(update={"channels": channels, "crop": crop, "crop_at": at, "size": None}))
    if list(x.shape[2:]) != sides:
        scale = max(side / found for side, found in zip(sides, x.shape[2:], strict=True))
        cover = [max(round(found * scale), side) for side, found in zip(sides, x.shape[2:], strict=True)]
        x = F.interpolate(x, size=cover, mode="bilinear", antialias=True)
        top, left = ((found - side) // 2 for side, found in zip(sides, cover, strict=True))
        x = x[:, :, top : top + sides[0], left : left + sides[1]].contiguous()
    return x


def decode(file: str | Path | io.BytesIO, name: str, data: recipe.Data, place: Place | None = None) -> Tensor:
    """`read_image` of a path or of bytes, called `name` in errors."""
    pixels = torch.from_numpy(opened(file, name, _pixels))
    fitted_size(*pixels.shape[1:], data, name)
    return fit(pixels[None], data, place)[0]


def opened(file: str | Path | io.BytesIO, name: str, look: Callable[[Image.Image], Any]) -> Any:
    """What `look` finds in an image file."""
    try:
        with Image.open(file) as image:
            return look(image)
    except Exception as error:  # PIL's decoders raise OSError, SyntaxError, ValueError, struct.error and others
        if isinstance(error, FileNotFoundError):
            raise HebmError(f"the image {name} does not exist; check the path") from None
        reason = "it is no image" if isinstance(error, Image.UnidentifiedImageError) else first_sentence(error)
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


def header(image: Image.Image) -> tuple[int, int, bool]:
    """Height, width, and whether `_pixels` will be coloured, without decoding."""
    width, height = image.size
    if _is_photograph(image) and image.getexif().get(0x0112, 1) >= 5:  # the orientations that lie on their side
        width, height = height, width
    return height, width, image.mode not in GREY_MODES


def _is_photograph(image: Image.Image) -> bool:
    # Only cameras write an orientation, and asking a PNG for one decodes it wholly.
    return image.format in ("JPEG", "MPO")


def fitted_size(height: int, width: int, data: recipe.Data, name: str) -> tuple[int, int]:
    """Height and width after `fit`."""
    if data.crop and data.crop > min(height, width):
        raise HebmError(
            f"{name} is {width}x{height} pixels, too small for data.crop {data.crop}; set data.crop to at most "
            f"{min(height, width)}"
        )
    if data.crop and not _holds(height, width, data):
        raise HebmError(
            f"{name} is {width}x{height} pixels, and the square of side {data.crop} at data.crop_at {data.crop_at} "
            "(top, left) reaches beyond it; set another data.crop or data.crop_at"
        )
    side = data.size or data.crop
    return (side, side) if side else (height, width)


def _holds(height: int, width: int, data: recipe.Data) -> bool:
    """Whether an image is large enough for the crop where it lies."""
    top, left = data.crop_at or (0, 0)
    return top + data.crop <= height and left + data.crop <= width


def fit(x: Tensor, data: recipe.Data, place: Place | None = None) -> Tensor:
    """uint8 [N, C, H, W] -> cropped, with the right channels, resized, of that the middle or the square at `place`."""
    if data.crop:
        top, left = data.crop_at or [(side - data.crop) // 2 for side in x.shape[2:]]
        x = x[:, :, top : top + data.crop, left : left + data.crop]
    if data.channels == 1 and x.shape[1] == 3:
        weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)  # ITU-R 601, as PIL
        x = (x * weights).sum(1, keepdim=True).round().to(torch.uint8)
    elif data.channels == 3 and x.shape[1] == 1:
        x = x.expand(-1, 3, -1, -1)
    if data.size and tuple(x.shape[2:]) != (data.size, data.size):
        scale = data.size / min(x.shape[2:])
        sides = [max(round(side * scale), data.size) for side in x.shape[2:]]
        x = F.interpolate(x.contiguous(), size=sides, mode="bilinear", antialias=True)
        rooms = [side - data.size for side in sides]
        if place is None:
            top, left = (room // 2 for room in rooms)
        else:
            top, left = (min(int(share * (room + 1)), room) for share, room in zip(place, rooms, strict=True))
        x = x[:, :, top : top + data.size, left : left + data.size]
    return x.contiguous()


def size_words(shape: Sequence[int]) -> str:
    return f"{shape[-1]}x{shape[-2]}" + (f" with {shape[0]} channels" if len(shape) == 3 else "")


def first_sentence(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line.partition(". ")[0].rstrip(".:")
