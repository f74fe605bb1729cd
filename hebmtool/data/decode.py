"""The one reader of image files, and what is done to pixels before the model's bits (`fit`).

Every image, from an array or from a file, goes through the same steps: crop to `data.crop` in the middle or at
`data.crop_at`, grey or RGB as `data.channels` says, then, when `data.size` is given, the short side is resized to it
(bilinear, antialiased) and the middle square is kept, or one at a place of the caller's.  All of it is uint8.
"""

import io
import os
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
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

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF", "PPM")
"""Those read, whatever a file is called; Pillow knows more, and starts Ghostscript for some."""

PIXELS = 2**26
"""No image of more is read: it takes up to 0.7 GB.  A larger JPEG may come at a fraction of its size."""

BAND = 2**22  # pixels converted at a time

ORIENTATION = 0x0112  # how a camera was held

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # from 89 million pixels: above our limit

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
    found = [
        here / file
        for here, files in _walk(folder)
        for file in files
        if file.lower().endswith(ENDINGS) and file[0] != "."
    ]
    if not found:
        raise HebmError(f"there are no images in {folder}; put files there that end in {', '.join(ENDINGS)}")
    return sorted(found)


Place = Sequence[float]
"""Where a square is cut: (top, left), shares of the room there is, from 0 to 1."""


def _walk(top: Path) -> Iterator[tuple[Path, list[str]]]:
    """Every folder below with its files, once under one name, whatever links there are: what is reached without links
    goes by that name."""

    def unreadable(error: OSError) -> None:
        raise HebmError(f"the folder {error.filename} cannot be read ({error.strerror}); check its permissions")

    seen: set[tuple[int, int]] = set()
    waiting = [str(top)]
    while waiting:
        links = []
        for start in waiting:
            for here, folders, files in os.walk(start, onerror=unreadable):
                folders[:] = sorted(name for name in folders if name[0] != ".")
                found = os.stat(here)
                if (found.st_dev, found.st_ino) in seen:
                    folders.clear()
                    continue
                seen.add((found.st_dev, found.st_ino))
                links += [path for name in folders if os.path.islink(path := os.path.join(here, name))]
                yield Path(here), files
        waiting = sorted(links)


def read_image(path: str | Path, data: recipe.Data, place: Place | None = None, shrink: bool = False) -> Tensor:
    """Any image file, uint8 [C, H, W], cropped, resized and with the channels that `data` says (None: its own).

    Transparency is laid over white, 16-bit grey scaled to 8 bits (of 16-bit colours the high byte is taken), a
    photograph turned upright, and of an animation the first picture is taken.

    Arguments:
        shrink: whether a JPEG of more than `PIXELS` may come at a half, a quarter or an eighth of its size, as it does
            where `data` resizes it anyway.

    Raises:
        HebmError: the file is absent, no regular file, no image, damaged, of more than `PIXELS`, of numbers whose range
            is unknown, or smaller than `data.crop`.
    """
    return decode(path, str(path), data, place, shrink)


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


def decode(
    file: str | Path | io.BytesIO, name: str, data: recipe.Data, place: Place | None = None, shrink: bool = False
) -> Tensor:
    """`read_image` of a path or of bytes, called `name` in errors."""
    least = 1 if shrink else data.size if not data.crop else None
    pixels = torch.from_numpy(opened(file, name, lambda image: _pixels(image, least)))
    fitted_size(*pixels.shape[1:], data, name)
    return fit(pixels[None], data, place)[0]


def opened(file: str | Path | io.BytesIO, name: str, look: Callable[[Image.Image], Any]) -> Any:
    """What `look` finds in an image file."""
    try:
        # A FIFO would be waited for; and of what Pillow reads, some formats start other programs.
        if not isinstance(file, io.BytesIO) and not stat.S_ISREG(os.stat(file).st_mode):
            raise HebmError(f"{name} is a folder or a device, no regular file; give an image file")
        with Image.open(file, formats=FORMATS) as image:
            return look(image)
    except HebmError:
        raise
    except Exception as error:  # PIL's decoders raise OSError, SyntaxError, ValueError, struct.error and others
        if isinstance(error, FileNotFoundError):
            raise HebmError(f"the image {name} does not exist; check the path") from None
        reason = first_sentence(error)
        if isinstance(error, Image.UnidentifiedImageError):
            reason = f"it is none in the formats {', '.join(FORMATS)}"
        if isinstance(error, Image.DecompressionBombError):
            reason = f"it has more than {PIXELS:,} pixels"
        raise HebmError(f"{name} cannot be read as an image ({reason}); replace or remove it") from error


def _pixels(image: Image.Image, least: int | None) -> np.ndarray:
    """uint8 [C, H, W], C = 1 where the file is grey and 3 elsewhere; at a fraction of its size where it has too many
    pixels, and its short side then still has `least`."""
    _check_numbers(image)
    if image.width * image.height > PIXELS:
        _shrink(image, least)
    grey, inverted = _is_grey(image), _is_inverted(image)
    if _is_photograph(image) and image.getexif().get(ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    pixels = np.empty((1 if grey else 3, image.height, image.width), np.uint8)
    rows = max(1, BAND // image.width)  # converted in bands, so that only one is there at several times its size
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        pixels[:, top : top + rows] = _sixteen_bit(band, inverted) if band.mode.startswith("I") else _plain(band, grey)
    return pixels


def _plain(image: Image.Image, grey: bool) -> np.ndarray:
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    pixels = np.array(image.convert("L" if grey else "RGB"))
    return pixels[None] if grey else pixels.transpose(2, 0, 1)


def _sixteen_bit(image: Image.Image, inverted: bool) -> np.ndarray:
    values = np.array(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"its grey values reach from {values.min()} to {values.max()}, beyond 16 bits")
    if inverted:
        values = 65535 - values
    if "transparency" in image.info:  # the one value that is
        values[values == image.info["transparency"]] = 65535
    return np.round(values / 257).astype(np.uint8)[None]


def _shrink(image: Image.Image, least: int | None) -> None:
    """Have a JPEG decoded at a fraction of its size, which its format can.  Raises ValueError for others."""
    width, height = image.size
    for part in (2, 4, 8) if least and image.format in ("JPEG", "MPO") else ():
        if width * height <= PIXELS * part**2 and min(width, height) >= least * part:
            image.draft(None, (width // part, height // part))
            return
    raise ValueError(f"it has {width}x{height} pixels, and no more than {PIXELS:,} are read")


def _check_numbers(image: Image.Image) -> None:
    """Raises ValueError for pixels whose range a file does not say, or that Pillow reads wrongly."""
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range")
    if image.format == "TIFF":
        bits, kinds = (image.tag_v2.get(tag, (1,)) for tag in (258, 339))
        if not {*bits} <= {1, 2, 4, 8, 16} or {*kinds} != {1}:  # whole numbers from 0
            signed = "signed " * (2 in kinds)
            raise ValueError(f"its pixels are {signed}numbers of {max(bits)} bits, and no such range is known")
    if "transparency" in image.info and image.mode == "RGB" and any("16" in str(tile[3]) for tile in image.tile):
        raise ValueError("one of its 16-bit colours is transparent, and they are read as 8-bit ones")


def _is_inverted(image: Image.Image) -> bool:
    # Pillow inverts TIFF where 0 is white, but not of 16 bits.
    return image.format == "TIFF" and image.mode.startswith("I;16") and image.tag_v2.get(262) == 0


def _is_grey(image: Image.Image) -> bool:
    # Pillow makes colours of 16-bit grey with transparency.
    return image.mode in GREY_MODES or any(str(tile[3]).startswith("LA;16") for tile in image.tile)


def header(image: Image.Image) -> tuple[int, int, bool]:
    """Height, width, and whether `_pixels` will be coloured, without decoding."""
    width, height = image.size
    if _is_photograph(image) and image.getexif().get(ORIENTATION, 1) >= 5:  # the orientations that lie on their side
        width, height = height, width
    return height, width, not _is_grey(image)


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
        rows = max(1, BAND // x.shape[3])
        x = torch.cat([(part * weights).sum(1, keepdim=True).round().to(torch.uint8) for part in x.split(rows, 2)], 2)
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
