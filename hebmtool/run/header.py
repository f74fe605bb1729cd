"""What a checkpoint says of itself, read without its tensors and without torch."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from safetensors import SafetensorError, safe_open

from hebmtool.errors import HebmError, UsageError
from hebmtool.files import digest
from hebmtool.recipe import Recipe, from_dict

FORMAT = "hebmtool"
FORMAT_VERSION = 1
CONTENTS = "contents-"  # opens a digest of what a checkpoint holds


@dataclass(frozen=True)
class Header:
    """What a checkpoint says of itself: its kind ("generator", "prior", ...), the number of updates made, the whole
    recipe as a plain dict, the package and format versions that wrote it, and whatever else its writer added."""

    kind: str
    step: int
    recipe: dict
    package_version: str
    format_version: int
    extra: dict


def header(path: str | Path) -> Header:
    """Read only the header of the checkpoint at `path`.  Raises `HebmError` as `load` does."""
    with opened(Path(path)) as (_, found):
        return found


def recipe(path: str | Path, header: Header) -> Recipe:
    """The recipe in the header of the checkpoint at `path`.

    Raises `HebmError` when this version does not understand it.
    """
    try:
        return from_dict(header.recipe)
    except UsageError as error:
        raise HebmError(
            f"{path} was written by hebmtool {header.package_version} with a recipe that {package_version()} does not "
            f"know ({error}); use that version"
        ) from error


def contents(path: str | Path) -> str:
    """Which model a checkpoint holds: a digest of its tensors' names, types, shapes and values and of the parts of its
    recipe that say what they make, however and whenever the file was written.

    Raises `HebmError` as `load` does.
    """
    found = header(path)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entries = json.loads(file.read(length))
        entries.pop("__metadata__", None)
        summed = hashlib.sha256()
        parts = {"generator": found.recipe.get("generator"), "bits": (found.recipe.get("data") or {}).get("bits")}
        summed.update(json.dumps([found.kind, parts, found.extra.get("image_shape")], sort_keys=True).encode())
        for name, entry in sorted(entries.items()):
            begin, end = entry["data_offsets"]
            summed.update(json.dumps([name, entry["dtype"], entry["shape"]]).encode())
            file.seek(8 + length + begin)
            left = end - begin
            while left:
                chunk = file.read(min(left, 2**22))
                summed.update(chunk)
                left -= len(chunk)
    return f"{CONTENTS}{summed.hexdigest()}"


def is_of(recorded: str | None, path: str | Path) -> bool:
    """Whether `recorded`, what a prior's or a label's checkpoint says of its generator, is what `path` holds.  Those
    written by hebmtool 0.1.0 recorded the digest of the file."""
    if recorded is not None and recorded.startswith(CONTENTS):
        return recorded == contents(path)
    return recorded == digest(path)


def brings_generator(path: Path) -> bool:
    """Whether the prior's checkpoint at `path`, if there is one, holds its generator too: images have a shape there."""
    return path.is_file() and "image_shape" in header(path).extra


def package_version() -> str:
    """Of the hebmtool that is installed."""
    try:
        return metadata.version("hebmtool")
    except metadata.PackageNotFoundError:  # run from a source folder
        return "unknown"


@contextlib.contextmanager
def opened(path: Path, framework: str = "numpy") -> Iterator[tuple[safe_open, Header]]:
    """The open file, whose tensors come as `framework`'s, and its header.  Raises `HebmError` as `load` does."""
    try:
        with open(path, "rb"):
            pass
    except FileNotFoundError as error:
        raise HebmError(f"there is no checkpoint {path}; check the path, or train it first") from error
    except OSError as error:
        raise HebmError(f"could not read the checkpoint {path}: {error.strerror}; give a readable file") from error
    try:
        with safe_open(path, framework=framework) as file:
            yield file, _parse(path, file.metadata() or {})
    except SafetensorError as error:
        raise HebmError(
            f"{path} ({path.stat().st_size} bytes) is cut short, damaged or not a safetensors file ({error}); "
            "copy it again from where it is whole, or train it again"
        ) from error


def _parse(path: Path, fields: dict[str, str]) -> Header:
    if fields.get("format") != FORMAT:
        raise HebmError(
            f"{path} is a safetensors file that hebmtool did not write (its header says format "
            f"{fields.get('format')!r}, not '{FORMAT}'); give a checkpoint from a run folder"
        )
    try:
        version = int(fields["format_version"])
        if version > FORMAT_VERSION:
            raise HebmError(
                f"{path} has checkpoint format {version}, written by hebmtool {fields.get('package_version')}, and "
                f"this hebmtool {package_version()} reads up to format {FORMAT_VERSION}; upgrade hebmtool"
            )
        return Header(
            kind=fields["kind"],
            step=int(fields["step"]),
            recipe=json.loads(fields["recipe"]),
            package_version=fields["package_version"],
            format_version=version,
            extra=json.loads(fields["extra"]),
        )
    except (KeyError, ValueError) as error:
        raise HebmError(
            f"{path} has a damaged hebmtool header ({type(error).__name__}: {error}); copy it again from where it is "
            "whole, or train it again"
        ) from error
