"""What a checkpoint says of itself, read without its tensors and without torch.

It is text that anyone may have written: types and ranges are looked at here, once, and nowhere else.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, Json, ValidationError
from safetensors import SafetensorError, safe_open

from hebmtool.errors import HebmError, UsageError
from hebmtool.files import digest, regular
from hebmtool.recipe import Recipe, from_dict, written
from hebmtool.recipe.mistakes import told
from hebmtool.recipe.words import KINDS

FORMAT = "hebmtool"
FORMAT_VERSION = 1
CONTENTS = "contents-"  # opens a digest of what a checkpoint holds


class Extra(BaseModel):
    """What writers add, where it is there; other keys are theirs alone."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    image_shape: Annotated[list[Annotated[int, Field(ge=1, le=2**16)]], Field(min_length=3, max_length=3)] = None
    generator: str | None = None
    label: str = None
    values: Annotated[list[str], Field(min_length=1)] = None
    made_of: list[str] | None = None
    whitening: str | None = None
    accuracy: Annotated[float, Field(ge=0, le=1)] = None
    steps: Annotated[list[Annotated[float, Field(gt=0, lt=1.6)]], Field(min_length=1)] | None = None
    posterior_tilt: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None


class _Fields(BaseModel):
    """The texts of a header, as they are read."""

    model_config = ConfigDict(frozen=True)

    format_version: Annotated[int, Field(ge=1)]
    kind: str
    step: Annotated[int, Field(ge=0, lt=2**63)]
    recipe: Json[dict[str, Any]]
    package_version: str
    extra: Json[Extra]


@dataclass(frozen=True)
class Header:
    """What a checkpoint says of itself: its kind ("generator", "prior", ...), the number of updates made, the whole
    recipe as a plain dict, the package and format versions that wrote it, and whatever else its writer added, of the
    types of `Extra`."""

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
        return from_dict(written(header.recipe))
    except UsageError as error:
        if header.package_version == package_version():
            raise HebmError(
                f"{path} holds a recipe that is wrong ({error}); copy it again from where it is whole"
            ) from error
        raise HebmError(
            f"{path} was written by hebmtool {header.package_version} with a recipe that {package_version()} does not "
            f"know ({error}); use that version"
        ) from error


def extra(path: str | Path, header: Header, key: str) -> Any:
    """What the header of the checkpoint at `path` says under that key of `Extra`.

    Raises `HebmError` when it says nothing.
    """
    if key not in header.extra:
        raise _damaged(path, f"extra.{key} is missing")
    return header.extra[key]


def contents(path: str | Path) -> str:
    """Which model a checkpoint holds: a digest of its tensors' names, types, shapes and values and of the parts of its
    recipe that say what they make, however and whenever the file was written.  A prior's is of its generator, too.

    Raises `HebmError` as `load` does.
    """
    try:
        state = Path(path).stat()
    except OSError:
        state = None
    return _contents(Path(path), state and (state.st_ino, state.st_size, state.st_mtime_ns))


@lru_cache  # a command asks several times
def _contents(path: Path, state: tuple[int, int, int] | None) -> str:
    found = header(path)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entries = json.loads(file.read(length))
        entries.pop("__metadata__", None)
        summed = hashlib.sha256()
        data = found.recipe.get("data")
        parts = {
            "generator": found.recipe.get("generator"),
            "bits": data.get("bits") if isinstance(data, dict) else None,
        }
        if "image_shape" not in found.extra or found.kind in KINDS:
            parts |= {key: found.recipe.get(key) for key in ("prior", "flow")} | {"of": found.extra.get("generator")}
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
        with open(regular(path), "rb"):
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
    version = fields.get("format_version", "")
    if re.fullmatch(r"\d{1,9}", version) and int(version) > FORMAT_VERSION:
        raise HebmError(
            f"{path} has checkpoint format {version}, written by hebmtool {fields.get('package_version')}, and "
            f"this hebmtool {package_version()} reads up to format {FORMAT_VERSION}; upgrade hebmtool"
        )
    try:
        read = _Fields.model_validate(fields)
    except ValidationError as error:
        raise _damaged(path, told(error)) from error
    extra = read.extra.model_dump(exclude_unset=True)
    return Header(read.kind, read.step, read.recipe, read.package_version, read.format_version, extra)


def _damaged(path: str | Path, what: str) -> HebmError:
    return HebmError(
        f"{path} has a damaged hebmtool header ({what}); copy it again from where it is whole, or train it again"
    )
