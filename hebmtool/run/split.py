"""Which images a run has learned from and which it holds out, kept with it: a set that changed since is noticed.

split.npz has a mark for every image (`hebmtool.data.splits`), whether it was held out, and in a folder its name.  An
image that was of either split stays so for the run, though it be removed: it may come back, but not in the other.
"""

import hashlib
import io
import os
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from hebmtool import data, files, recipe
from hebmtool.console import note
from hebmtool.errors import HebmError, UsageError
from hebmtool.run.folder import Run

SHOWN = 3
"""Names that a sentence tells."""


@dataclass
class Dealt:
    """By mark: whether held out, and its name, "" in an array."""

    held: dict[int, bool] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Of which images are of which split, in whatever order."""
        summed = hashlib.sha256(repr(sorted(self.held.items())).encode())
        return summed.hexdigest()

    def of(self, split: data.Split) -> set[int]:
        return {mark for mark, held in self.held.items() if held == (split == "test")}


def both(run: Run, part: recipe.Data, exact: bool = False) -> tuple[data.Images, data.Images]:
    """Training and test images, for a training of the run, which holds its lock: looked at as `load` does, and kept.

    Arguments:
        exact: whether more or fewer training images are a mistake: something is kept by an image's place among them.
    """
    found = load(run, part, "train", exact), load(run, part, "test")
    _keep(run, part, found)
    return found


def load(run: Run, part: recipe.Data, split: data.Split, exact: bool = False) -> data.Images:
    """The images of a split; says what has changed in it since the run was trained.

    Raises:
        HebmError: images that the run learned from would be held out now, or the other way round; and as `data.load`.
    """
    try:
        images, kept = data.load(part, split), read(run)
    except UsageError:
        raise
    except HebmError as error:
        if part.path is None or run.data_path is not None or os.path.exists(recipe.expanded(part.path)):
            raise
        said = f"data.path stands so in {run.recipe_path}; say where the images are now as data_path"
        raise HebmError(f"{error} ({said})") from error
    if kept is None or images.marks is None:
        return images
    other = kept.of("train" if split == "test" else "test")
    now, before = {int(mark) for mark in images.marks}, kept.of(split)
    moved, gone = (now & other) - before, before - now
    joined = now - before - moved
    if not (moved or gone or joined):
        return images
    names = _names(images, part)
    each = (joined, names, "added to"), (gone, kept.names, "removed from"), (moved, names, "moved to")
    changes = ", ".join(_listed(*one) for one in each if one[0])
    what = f"{part.path} is not what it was when {run.path} was trained: {changes} the {split} split"
    if moved or (exact and split == "train"):
        why = "what was learned from would be tested on, or the other way round"
        if not moved:
            why = "what was learned of an image is kept by its place among them"
        raise HebmError(f"{what}; {why}: put the images back as they were, or train another run with name=NAME")
    _say(f"{what}; no other image changes its split")
    return images


def dealt_as(new: recipe.Recipe, old: recipe.Recipe) -> recipe.Recipe:
    """`new` with its images held out as `old` has them, unless it says how itself."""
    if new.data.hold_out != recipe.Data().hold_out:
        return new
    return new.model_copy(update={"data": new.data.model_copy(update={"hold_out": old.data.hold_out})})


def path_of(run: Run) -> Path:
    return run.path / "split.npz"


def read(run: Run) -> Dealt | None:
    """What is kept; None where nothing is, as in runs of hebmtool 0.1.0 and of images that do not change."""
    path = path_of(run)
    if not path.is_file() or not run.checkpoints():
        return None
    try:
        with np.load(path, allow_pickle=False) as found:
            marks, held, text = (found[key] for key in ("marks", "held", "names"))
            marks, held = marks.astype(np.uint64).tolist(), held.astype(bool).tolist()
            names = os.fsdecode(text.astype(np.uint8).tobytes()).split("\0") if len(text) else [""] * len(marks)
            return Dealt(dict(zip(marks, held, strict=True)), dict(zip(marks, names, strict=True)))
    except Exception as error:  # numpy raises whatever zipfile or its header parser did
        raise HebmError(
            f"{path}, which says what images the run was trained on, cannot be read ({type(error).__name__}); copy it "
            "again from where it is whole, or remove it and answer for the images yourself"
        ) from error


def _keep(run: Run, part: recipe.Data, images: tuple[data.Images, data.Images]) -> None:
    if any(each.marks is None for each in images):
        return
    kept = read(run) or Dealt()
    before = dict(kept.held)
    for held, each in enumerate(images):
        names = _names(each, part)
        for mark in map(int, each.marks):
            kept.held.setdefault(mark, bool(held))
            kept.names.setdefault(mark, names.get(mark, ""))
    if kept.held == before:
        return
    text = os.fsencode("\0".join(kept.names.values())) if any(kept.names.values()) else b""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        marks=np.array(list(kept.held), dtype=np.uint64),
        held=np.array(list(kept.held.values())),
        names=np.frombuffer(text, dtype=np.uint8),
        digest=np.array(kept.digest),
    )
    files.write_bytes(path_of(run), buffer.getvalue())


def _names(images: data.Images, part: recipe.Data) -> dict[int, str]:
    """By mark, within the folder."""
    if images.names is None:
        return {}
    top = Path(part.path).expanduser()
    return {int(mark): os.path.relpath(name, top) for mark, name in zip(images.marks, images.names, strict=True)}


def _listed(marks: set[int], names: dict[int, str], how: str) -> str:
    """ "2 files (a.png, b.png) added to"; rows of an array have no names."""
    known = sorted(filter(None, (names.get(mark) for mark in marks)))
    word = ("file" if known else "row") + "s" * (len(marks) > 1)
    told = ", ".join(known[:SHOWN]) + ", ..." * (len(known) > SHOWN)
    return f"{len(marks)} {word}{f' ({told})' if known else ''} {how}"


@cache
def _say(text: str) -> None:
    """Once."""
    note(text)
