"""TODO."""

import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hebmtool import files, picture
from hebmtool.errors import HebmError, UsageError


def make_folder(folder: Path) -> None:
    """Make the folder that --out writes into.  Raises HebmError when it cannot be made or written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HebmError(f"cannot make the folder {folder} for --out: {error.strerror or error}") from error
    if not os.access(folder, os.W_OK):
        raise HebmError(f"the folder {folder} of --out cannot be written; choose another")


class Sink:
    """Where sampled images go: a grid PNG, a folder of PNGs, an `.npz` with `images`, or `-` (a grid PNG on stdout).

    Arguments:
        out: the path; its ending decides (`.png`, `.npz`, otherwise a folder).
        columns: of the grid.
        force: whether an existing file may be replaced; a folder must be empty, so that draws are not mixed.

    Raises:
        UsageError: the ending is none of these.
        HebmError: something is there already and `force` is off.
    """

    def __init__(self, out: str, columns: int | None = None, force: bool = False):
        self.out, self.columns = out, columns
        self.path = None if out == "-" else Path(out)
        self.kind = "stdout" if self.path is None else {".png": "png", ".npz": "npz"}.get(self.path.suffix, "folder")
        if self.kind == "stdout":
            if sys.stdout.isatty():
                raise UsageError("--out - writes a PNG to standard output, a terminal here; redirect it or give a file")
            return
        if not out.strip() or (self.kind == "folder" and self.path.suffix and not self.path.is_dir()):
            raise UsageError(f"--out is '{out}'; allowed are a .png grid, an .npz file, a folder without a dot, or -")
        if self.path.is_dir() and (self.kind != "folder" or any(self.path.iterdir())):
            raise HebmError(f"--out {out} is a folder that is not empty; choose another, so that draws are not mixed")
        if self.path.is_file() and (self.kind == "folder" or not force):
            raise HebmError(f"the file {out} exists; choose another for --out" + (", or add --force" * (not force)))
        make_folder(self.path if self.kind == "folder" else self.path.parent)

    def write(self, batches: Iterator[Tensor]) -> None:
        """Consume batches of uint8 [batch, C, H, W].  A folder is filled as they come, in bounded memory."""
        if self.kind == "folder":
            count = 0
            for batch in batches:
                for image in batch:
                    picture.save(picture.to_pil(image), self.path / f"{count:06d}.png")
                    count += 1
            return
        images = torch.cat(list(batches))
        if self.kind == "npz":
            buffer = io.BytesIO()
            np.savez_compressed(buffer, images=picture.to_nhwc(images))
            files.write_bytes(self.path, buffer.getvalue())
        elif self.kind == "png":
            picture.save_grid(images, self.path, self.columns)
        else:
            sys.stdout.buffer.write(picture.to_png(picture.grid(images, self.columns)))
            sys.stdout.buffer.flush()
