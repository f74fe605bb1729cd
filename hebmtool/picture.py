"""Pictures: grids and titled panels of images, written as PNG beside and renamed."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from hebmtool import files
from hebmtool.errors import HebmError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


GAP = 2  # pixels between images, after enlarging
SMALLEST_CELL = 48  # tiny images are enlarged until a cell has this many pixels
SOFTWARE = "hebmtool"
INK, PAPER = (30, 30, 30), (255, 255, 255)


def to_uint8(images: Tensor) -> Tensor:
    """[..., C, H, W] in [0, 1] -> uint8 in 0..255.  Raises HebmError where a pixel is not finite."""
    if not images.isfinite().all():
        wrong = (~images.isfinite().flatten(-3).all(-1)).sum().item()
        raise HebmError(
            f"{wrong} of {images[..., 0, 0, 0].numel()} images are not finite: weights, latents or a temperature have "
            "left the numbers; draw with a lower temperature, or take another checkpoint"
        )
    return (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def to_pil(image: Tensor) -> Image.Image:
    """One image [C, H, W], uint8 or in [0, 1]; grey for C = 1, RGB for C = 3."""
    image = image if image.dtype == torch.uint8 else to_uint8(image)
    return Image.fromarray(image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).contiguous().numpy())


def grid(images: Tensor, columns: int | None = None) -> Image.Image:
    """One RGB picture of images [N, C, H, W], row by row, as near to square as it goes unless `columns` is given."""
    images = images if images.dtype == torch.uint8 else to_uint8(images)
    n, _, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    zoom = max(1, math.ceil(SMALLEST_CELL / max(height, width)))
    cell_h, cell_w = height * zoom + GAP, width * zoom + GAP
    # torchvision's make_grid draws the same but for one image, which it does not frame, and for columns without images,
    # which it leaves out; importing it takes as long as importing torch.
    canvas = Image.new("RGB", (columns * cell_w + GAP, rows * cell_h + GAP), PAPER)
    for i, image in enumerate(images):
        tile = to_pil(image).convert("RGB").resize((width * zoom, height * zoom), Image.Resampling.NEAREST)
        canvas.paste(tile, (GAP + i % columns * cell_w, GAP + i // columns * cell_h))
    return canvas


def panels(parts: Sequence[tuple[str, Tensor]], columns: int) -> Image.Image:
    """Grids side by side, each under its title: [(title, images [N, C, H, W]), ...]."""
    margin, size = 14, 18
    font = ImageFont.load_default(size)
    grids = [grid(images, columns) for _, images in parts]
    lines = [title.split("\n") for title, _ in parts]
    header = max(len(part) for part in lines) * (size + 6) + margin
    widths = [
        max(picture.width, *(math.ceil(font.getlength(line)) for line in part))
        for picture, part in zip(grids, lines, strict=True)
    ]
    canvas = Image.new(
        "RGB",
        (sum(widths) + margin * (len(grids) + 1), header + max(p.height for p in grids) + margin),
        PAPER,
    )
    draw, x = ImageDraw.Draw(canvas), margin
    for picture, part, width in zip(grids, lines, widths, strict=True):
        for i, line in enumerate(part):
            draw.text((x, margin // 2 + i * (size + 6)), line, fill=INK, font=font)
        canvas.paste(picture, (x, header))
        x += width + margin
    return canvas


def rows(parts: Sequence[tuple[str, Tensor]]) -> Image.Image:
    """Rows of images under one another, each with its title to the left: [(title, images [N, C, H, W]), ...]."""
    margin, font = 10, ImageFont.load_default(16)
    strips = [grid(images, len(images)) for _, images in parts]
    left = math.ceil(max(font.getlength(title) for title, _ in parts)) + 2 * margin
    height = sum(strip.height for strip in strips)
    canvas = Image.new("RGB", (left + max(s.width for s in strips) + margin, height + 2 * margin), PAPER)
    draw, y = ImageDraw.Draw(canvas), margin
    for (title, _), strip in zip(parts, strips, strict=True):
        draw.text((left - margin, y + strip.height // 2), title, fill=INK, font=font, anchor="rm")
        canvas.paste(strip, (left, y))
        y += strip.height
    return canvas


def to_png(picture: Image.Image, about: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a PNG file, which says `about` itself in text chunks."""
    buffer, said = io.BytesIO(), PngInfo()
    for key, text in (about or {}).items():
        said.add_text(key, text)
    picture.save(buffer, format="PNG", pnginfo=said)
    return buffer.getvalue()


def saying(png: bytes, about: Mapping[str, str]) -> bytes:
    """A PNG file with the same pixels that says `about` itself."""
    return to_png(Image.open(io.BytesIO(png)), about) if about else png


def about(path: Path | str) -> dict[str, str]:
    """What the PNG at `path` says of how it was made: Software, run, prior, seed, index, ...; {} where nothing.

    Raises:
        HebmError: it cannot be read as a PNG.
    """
    try:
        with Image.open(files.regular(path), formats=["PNG"]) as opened:
            opened.load()
            found = dict(opened.text)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise HebmError(f"{path} cannot be read as a PNG ({error}); give one that hebm wrote, or a run") from error
    return {key: str(text) for key, text in found.items()} if SOFTWARE in found.get("Software", "") else {}


def plot_to_png(plot: "Figure", dpi: int = 110) -> bytes:
    """The same of a matplotlib figure."""
    buffer = io.BytesIO()
    plot.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def save(picture: Image.Image, path: Path | str, durable: bool = True) -> None:
    """Write a PNG beside `path`, then rename (`files.write_bytes`).  Raises HebmError when it cannot be written."""
    files.write_bytes(path, to_png(picture), durable=durable)


def to_rgb_nhwc(images: Tensor) -> np.ndarray:
    """uint8 [N, C, H, W] -> uint8 array [N, H, W, 3], grey in all three: as ADM's evaluation suite reads samples."""
    return images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()


def to_nhwc(images: Tensor) -> np.ndarray:
    """uint8 [N, C, H, W] -> uint8 array [N, H, W] for grey, [N, H, W, 3] for colour: as data sets are stored."""
    array = images.permute(0, 2, 3, 1).contiguous().numpy()
    return array[..., 0] if array.shape[-1] == 1 else array


class Pictures(Tensor):
    """Images, uint8 [N, C, H, W] or [rows, columns, C, H, W], that show themselves in a notebook, as a grid as near to
    square as it goes or as these rows and columns.  What is computed from them is a plain tensor."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, images: Tensor) -> "Pictures":
        return images.as_subclass(cls)

    def picture(self, columns: int | None = None) -> Image.Image:
        """The grid, of so many columns where that is given."""
        if self.ndim == 5:
            return grid(self.flatten(0, 1), columns or self.shape[1])
        return grid(self, columns)

    def save(self, path: Path | str, columns: int | None = None) -> None:
        """Write the grid as a PNG.  Raises HebmError when it cannot be written."""
        save(self.picture(columns), path)

    def _repr_png_(self) -> bytes:
        return to_png(self.picture())

    def __repr__(self) -> str:
        return f"<pictures, {str(self.dtype).removeprefix('torch.')} {list(self.shape)}>"

    def __deepcopy__(self, memo: dict) -> "Pictures":
        return Pictures(self.clone())
