"""What a run keeps of its training and its judging, as it is read back: metrics.jsonl and figures.json.

Both are text that anyone may have edited: a line of metrics that is none is passed over, and a figure of other types is
refused in a sentence.  A figure is kept with the digests of the checkpoints it was measured on (`of`), so that one of
another model is not taken for this one's.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from hebmtool import files
from hebmtool.errors import HebmError
from hebmtool.recipe.mistakes import told
from hebmtool.run.header import CONTENTS, contents

OF = "of"
"""The key of figures.json under which the digests stand: "closure/ebm" -> file name -> digest."""

NOW, ANOTHER, UNKNOWN = "now", "another", "unknown"
"""What a figure was measured on: the run as it is, other checkpoints, or one that was not recorded."""

LAST = 2**16
"""Bytes at the end of metrics.jsonl in which the last record is looked for."""

Number = float | None
Count = Annotated[int, Field(ge=0, lt=2**63)]


class Record(BaseModel):
    """What is written may have more keys, and has these of these types."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class Line(Record):
    """Of metrics.jsonl."""

    stage: str
    step: Count
    seconds: Number = None


class Bound(Record):
    """Of the generator, when its training ended."""

    elbo: float
    bits_per_dim: float
    kl: list[float]
    step: Count | None = None


class Closure(Record):
    """Of a prior, when its training ended."""

    closure: Number
    error: Number = None
    fd_gaussian: float
    fd_prior: float
    fd_reconstruction: float
    samples: Count
    reference: Count
    features: str
    step: Count | None = None


class Match(Record):
    prior: float
    normal: float
    floor: float
    samples: Count


class Recovery(Record):
    psnr: Number
    images: Count


class OneStage(Record):
    """Of a prior learned together with its generator, when its training ended."""

    fd: Number
    features: str | None
    mse: float
    psnr: Number
    images: Count
    match: Match
    samples: Count = 0
    recovery: Recovery = None
    step: Count | None = None


class Entry(Record):
    """`hebmtool.metrics.figures.Figure`."""

    model_config = ConfigDict(extra="forbid")

    name: str
    value: Number
    error: Number = None
    of: str = "generator"
    better: Literal["lower", "higher"] | None = None
    layer: Count | None = None
    note: str = ""


class Named(Record):
    name: str
    sha256: str | None = None


class Reference(Record):
    split: str = ""
    images: Count = 0
    sha256: str = ""


class Provenance(Record):
    """What it takes to measure figures again."""

    command: str | None = None
    seed: Count = 0
    samples: Count = 0
    repeats: Count = 1
    steps: Count | str | list[Count] | None = None
    sampler: dict[str, Any] = {}
    reference: Reference = Reference()
    features: list[Named] = []
    checkpoints: dict[str, str] = {}
    parts: list[str] = []
    hebmtool: str = ""
    torch: str = ""
    device: str = ""


class Judged(Record):
    """`hebmtool.judge.evaluation.Evaluation`."""

    figures: list[Entry]
    provenance: Provenance


KINDS_OF_FIGURES: dict[str, Any] = {
    "generator": Bound,
    "closure": Closure,
    "label_accuracy": list[Annotated[float, Field(ge=0, le=1)]],
    "evaluate": Judged,
    "evaluations": list[Judged],
}
"""By the first word of their keys; what stands under another is of a prior learned with its generator."""


@dataclass(frozen=True)
class Kept:
    """A figure that was kept.  value: as JSON has it.  origin: `NOW`, `ANOTHER` or `UNKNOWN`."""

    value: Any
    origin: str


def read(path: Path) -> dict:
    """figures.json; {} where there is none.  Raises `HebmError` when it is not a JSON object."""
    try:
        found = parse(path.read_bytes().decode())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise HebmError(f"{path} cannot be read ({error.strerror}); mend or remove it, then measure again") from error
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise HebmError(f"{path} is not a JSON object; mend it or remove it, then measure again")
    return found


def kept(path: Path, key: Sequence[str]) -> Kept | None:
    """The figure under these words of figures.json, None where there is none.

    Raises `HebmError` when it is of other types than what is written there.
    """
    tree = found = read(path)
    for i, word in enumerate(key):
        if not isinstance(found, dict):
            raise _wrong(path, f"{'.'.join(key[:i])}: it should be an object")
        found = found.get(word)
        if found is None:
            return None
    try:
        _adapter(key[0]).validate_python(found)
    except ValidationError as error:
        raise _wrong(path, f"{'.'.join(key)}.{told(error)}") from error
    of = tree.get(OF)
    digests = of.get("/".join(key)) if isinstance(of, dict) else None
    return Kept(found, origin(path.parent, digests))


def with_figure(path: Path, key: Sequence[str], value: Any, of: Sequence[Path]) -> None:
    """Set what stands under these words, measured on these checkpoints; everything else stays as it is."""
    tree = read(path)
    level = tree
    for word in key[:-1]:
        if not isinstance(level.get(word), dict):
            level[word] = {}
        level = level[word]
    level[key[-1]] = value
    digests = tree.pop(OF, {})
    digests = digests if isinstance(digests, dict) else {}
    digests.pop("/".join(key), None)
    if of:
        digests["/".join(key)] = {each.name: contents(each) for each in of}
    if digests:
        tree[OF] = digests
    files.write_text(path, json.dumps(tree, indent=2) + "\n")


def origin(folder: Path, digests: Any) -> str:
    """Whether checkpoints of these digests, by their names, are those in the folder."""
    if not isinstance(digests, dict) or not digests:
        return UNKNOWN
    return NOW if all(is_digest(folder / name, each) for name, each in digests.items()) else ANOTHER


def is_digest(path: Path, recorded: str) -> bool:
    """Whether `recorded` is the beginning of the digest of what the checkpoint holds; hebmtool 0.1.0 recorded that of
    the file."""
    if not path.is_file() or not isinstance(recorded, str) or not recorded:
        return False
    try:
        return (contents(path) if recorded.startswith(CONTENTS) else files.digest(path)).startswith(recorded)
    except HebmError:  # damaged since
        return False


def lines(path: Path) -> list[tuple[str, dict]]:
    """The lines of metrics.jsonl that a training wrote, each with what it says."""
    found = []
    if path.is_file():
        for text in path.read_text(errors="replace").splitlines():
            try:
                said = parse(text)
                Line.model_validate(said)
            except ValueError:  # pydantic's are such, too
                continue
            found.append((text, said))
    return found


def parse(text: str) -> Any:
    """JSON, with null for numbers that are not finite.  Raises `ValueError` where it is none."""

    def finite(digits: str) -> float | None:
        return value if math.isfinite(value := float(digits)) else None

    def whole(digits: str) -> int | None:
        return int(digits) if len(digits) < 300 else None

    try:
        return json.loads(text, parse_float=finite, parse_int=whole, parse_constant=lambda _: None)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def plain(value: Any, digits: int = 6) -> Any:
    """`value` as JSON can hold it: so many significant digits, null for NaN and infinities."""
    if hasattr(value, "tolist"):  # a tensor, or an array or number of numpy
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, digits) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    return value


def _adapter(word: str) -> TypeAdapter:
    return TypeAdapter(KINDS_OF_FIGURES.get(word, OneStage), config=None)


def _wrong(path: Path, what: str) -> HebmError:
    return HebmError(f"{path} does not hold figures as hebmtool writes them ({what}); mend it, or measure again")


def last_time(path: Path) -> float | None:
    """When the last record of metrics.jsonl was written, in seconds since 1970; None where none says."""
    try:
        with open(files.regular(path), "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LAST))
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            found = json.loads(line)["time"]
        except (ValueError, TypeError, KeyError):
            continue  # cut short, or no record
        if isinstance(found, int | float) and math.isfinite(found):
            return float(found)
    return None
