"""Where what a command makes goes, as --out says: looked at before anything is drawn, and without torch."""

import hashlib
import io
import json
import os
import re
import sys
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hebmtool import files, ranks
from hebmtool.errors import HebmError, UsageError

if TYPE_CHECKING:
    from torch import Tensor


LONGEST = 120
"""Characters of a picture's name."""


UNFINISHED = ".hebm-unfinished"
"""In a folder that is being filled: what with."""


class Sink:
    """Where images go: a grid PNG, a folder of PNGs, an `.npz` with `images`, or, for `-`, a grid PNG on stdout; and
    where one picture goes, a PNG in either place.

    Arguments:
        out: the path; its ending decides (`.png`, `.npz`, otherwise a folder).
        columns: of the grid.
        goes_on: whether a folder that was being filled is gone on with (`begin`).
        adm: whether an `.npz` is one of ADM's evaluation suite, with `arr_0`, uint8 [N, H, W, 3].
        force: whether an existing file may be replaced; a folder must be empty, so that draws are not mixed.

    Raises:
        UsageError: the ending is none of these.
        HebmError: something is there already and `force` is off, or another process is writing there.
    """

    _release = staticmethod(lambda: None)

    def __init__(
        self, out: str, columns: int | None = None, force: bool = False, goes_on: bool = False, adm: bool = False
    ):
        self.columns, self.goes_on, self.numbers, self.adm = columns, goes_on, None, adm
        self.about: dict[str, str] = {}  # what PNGs say of how they were made (`about`)
        self.path = None if out == "-" else Path(out)
        self.kind = "stdout" if self.path is None else {".png": "png", ".npz": "npz"}.get(self.path.suffix, "folder")
        if adm and self.kind != "npz":
            raise UsageError(f"--out is '{out}', and --format adm writes an .npz; name one")
        if self.kind == "stdout":
            if sys.stdout.isatty():
                raise UsageError("--out - writes a PNG to standard output, a terminal here; redirect it or give a file")
            return
        if not out.strip() or (self.kind == "folder" and self.path.suffix and not self.path.is_dir()):
            raise UsageError(f"--out is '{out}'; allowed are a .png grid, an .npz file, a folder without a dot, or -")
        if not ranks.is_first():
            return
        self._check(out, force)
        _make_folder(self.path if self.kind == "folder" else self.path.parent)
        if self.kind == "folder" or not force:
            self._release = weakref.finalize(self, files.claim(self.path))
            self._check(out, force)  # whoever had it may have been done just now

    def _check(self, out: str, force: bool) -> None:
        """Raise HebmError for what is there and may not be replaced; a link that leads nowhere is something, too."""
        if self.path.is_dir():
            begun = self.goes_on and (self.path / UNFINISHED).is_file()
            if self.kind != "folder" or (any(self.path.iterdir()) and not begun):
                raise HebmError(
                    f"--out {out} is a folder that is not empty; choose another, so that draws are not mixed"
                )
        elif os.path.lexists(self.path) and (self.kind == "folder" or not force):
            raise HebmError(f"the file {out} exists; choose another for --out" + (", or add --force" * (not force)))

    @property
    def one_picture(self) -> bool:
        return self.kind in ("png", "stdout")

    def begin(self, n: int, asked: dict[str, object]) -> list[int] | None:
        """Numbers of the images that a folder of n still lacks, None where it is no folder to go on with.  Until it is
        full it says what it is being filled with, so that the same command goes on where it was interrupted.

        Raises:
            HebmError: it was begun with other images.
        """
        if self.kind != "folder" or not self.goes_on:
            return None
        self.numbers = ranks.first_alone(lambda: self._begin(n, json.loads(json.dumps(asked))))
        return self.numbers

    def _begin(self, n: int, asked: dict[str, object]) -> list[int]:
        note = self.path / UNFINISHED
        if not note.is_file():
            files.write_text(note, json.dumps(asked))
        try:
            begun = json.loads(note.read_text())
        except ValueError:
            begun = None
        if begun != asked:
            differs = [key for key in asked if not isinstance(begun, dict) or begun.get(key) != asked[key]]
            raise HebmError(
                f"--out {self.path} was begun with other images ({', '.join(differs) or 'of another command'}); choose "
                "another folder, or ask for the same to go on with them"
            )
        return [i for i in range(n) if not self._image_path(i).is_file()]

    def _image_path(self, i: int) -> Path:
        return self.path / f"{i:06d}.png"

    def write(self, batches: Iterable["Tensor"]) -> None:
        """Consume batches of uint8 [batch, C, H, W].  A folder is filled as they come, in bounded memory."""
        try:
            self._write(batches)
        finally:
            self._release()

    def _write(self, batches: Iterable["Tensor"]) -> None:
        if self.kind == "folder":
            self._fill(batches)
            return
        import numpy as np
        import torch

        from hebmtool import picture

        images = torch.cat(list(batches))
        if self.kind == "npz":
            buffer = io.BytesIO()
            arrays = {"arr_0": picture.to_rgb_nhwc(images)} if self.adm else {"images": picture.to_nhwc(images)}
            np.savez_compressed(buffer, **arrays)
            files.write_bytes(self.path, buffer.getvalue())
        else:
            self.write_picture(picture.to_png(picture.grid(images, self.columns)), f"0-{len(images) - 1}")

    def write_picture(self, png: bytes, index: str | None = None) -> None:
        if not ranks.is_first():  # every process has it
            return
        from hebmtool import picture

        png = picture.saying(png, self._about(index))
        if self.path is not None:
            try:
                files.write_bytes(self.path, png)
            finally:
                self._release()
        else:
            sys.stdout.buffer.write(png)
            sys.stdout.buffer.flush()

    def _about(self, index: str | None) -> dict[str, str]:
        return self.about if index is None or not self.about else self.about | {"index": index}

    def _fill(self, batches: Iterable["Tensor"]) -> None:
        from hebmtool import picture

        images = (image for batch in batches for image in batch)
        for i, image in enumerate(images) if self.numbers is None else zip(self.numbers, images, strict=True):
            if i % ranks.world() == ranks.rank():  # every process has them all
                png = picture.to_png(picture.to_pil(image), self._about(str(i)))
                files.write_bytes(self._image_path(i), png, durable=False, by_any=True)
        ranks.largest(0)  # until all have written theirs
        if ranks.is_first():
            (self.path / UNFINISHED).unlink(missing_ok=True)


def name(what: str, kind: str, *words: str, **settings: object) -> str:
    """What a picture is called of which nothing is said: after all that it was made with and is not as by default, so
    that no other one takes its place.

    Arguments:
        what, kind: the command and the prior.
        words: more of them.
        settings: None and False are as by default.
    """
    said = [what, kind, *words]
    for key, value in settings.items():
        if value is None or value is False or value == ():
            continue
        texts = [""] if value is True else [f"{v:g}" if isinstance(v, float) else str(v) for v in _listed(value)]
        said.append(key.replace("_", "-") + "+".join(map(_word, texts)))
    whole = "-".join(filter(None, said))
    return (whole if len(whole) <= LONGEST else f"{whole[:LONGEST]}-{_digits(whole)}") + ".png"


def about(model, seed: int | None, **settings: object) -> dict[str, str]:
    """What a PNG says of how it was made, in text chunks: the same whenever and wherever the same is drawn.

    Arguments:
        seed, settings: what is as by default is not said.
    """
    from hebmtool.run.header import package_version

    said: dict[str, object] = {"Software": f"hebmtool {package_version()}", "run": model.run.name}
    usual = {"temperature": 1, "noise": "torch"}
    for key, value in ({"prior": model.prior.kind, "seed": seed} | settings).items():
        if value is not None and value is not False and usual.get(key) != value and key != "batch_size":
            said[key] = value
    return {key: str(value) for key, value in said.items()}


def _listed(value: object) -> Sequence[object]:
    return value if isinstance(value, list | tuple) else [value]


def _word(text: str) -> str:
    """`text` as part of a file's name; what stands there for other characters tells them apart."""
    plain = re.sub(r"[^\w.:=+]+", "-", Path(text).stem if "/" in text else text)
    return plain if plain == text else f"{plain}-{_digits(text)}"


def _digits(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:6]


def images(
    out: str | None, force: bool, columns: int | None = None, goes_on: bool = False, adm: bool = False
) -> Sink | None:
    """Where images go that are drawn in number; None where nothing is said."""
    return None if out is None else Sink(out, columns, force, goes_on, adm)


def picture(out: str | None, force: bool, command: str, stdout: bool = False) -> Sink | None:
    """Where the one picture of a command goes; None where nothing is said."""
    if out is None:
        return None
    if not (out.endswith(".png") or (out == "-" and stdout)):
        raise UsageError(f"--out is '{out}'; {command} draws a picture: give a .png{', or -' * stdout}")
    return Sink(out, force=force)


def page(out: str | None, force: bool) -> Path | None:
    """Where a page of HTML goes; None where nothing is said."""
    return None if out is None else file(out, force, "report writes a page", ".html", ".htm")


def file(out: str, force: bool, what: str, *endings: str) -> Path:
    """Where a file goes that is no picture: with one of these endings, for the command does `what`."""
    path = Path(out)
    if path.suffix.lower() not in endings:
        raise UsageError(f"--out is '{out}'; {what}: give a {endings[0]}")
    if path.is_dir():
        raise HebmError(f"--out {out} is a folder; give a {endings[0]} file")
    if path.exists() and not force:
        raise HebmError(f"the file {out} exists; choose another for --out, or add --force")
    _make_folder(path.parent)
    return path


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HebmError(f"cannot make the folder {folder} for --out: {error.strerror or error}") from error
    if not os.access(folder, os.W_OK):
        raise HebmError(f"the folder {folder} of --out cannot be written; choose another")
