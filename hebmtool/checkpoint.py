"""Checkpoints: safetensors files that say what they are.

The header (text to text) carries `format` ("hebmtool"), `format_version`, `package_version`, `kind`, `step`, and the
JSON texts `recipe` and `extra`.  Nothing is pickled.  Every file is written beside its target and moved over it once it
is on the disk, so that a file under its own name is always whole.

File format: https://github.com/huggingface/safetensors
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import safetensors.torch
import torch
from pydantic import BaseModel
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from hebmtool.errors import HebmError, UsageError
from hebmtool.recipe import Recipe, from_dict

FORMAT = "hebmtool"
FORMAT_VERSION = 1


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


def save(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    *,
    kind: str,
    recipe: BaseModel | Mapping,
    step: int,
    extra: Mapping | None = None,
) -> None:
    """Write `tensors` (any shapes, any device) with their header to `path`, replacing a file there in one move.

    Tensors that share memory are each stored whole.  Raises `HebmError` when the file cannot be written (a full disk,
    no permission): the temporary is removed and a file already at `path` stays as it was.
    """
    header = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "package_version": _package_version(),
        "kind": kind,
        "step": str(int(step)),
        "recipe": json.dumps(recipe.model_dump(mode="json") if isinstance(recipe, BaseModel) else dict(recipe)),
        "extra": json.dumps(dict(extra or {})),
    }
    # Bytes, not `save_file`: our own writes raise a plain OSError and work on every filesystem, where safetensors 0.8
    # preallocates and so fails on some.  The price is a second copy of the tensors in host memory for a moment.
    try:
        data = safetensors.torch.save(_separate(tensors), header)
    except SafetensorError as error:
        raise HebmError(f"could not save {path}: {error}; a file already there is intact") from error
    write_bytes(Path(path), data)


def header(path: str | Path) -> Header:
    """Read only the header of the checkpoint at `path`.  Raises `HebmError` as `load` does."""
    with _opened(Path(path)) as (_, found):
        return found


def load(
    path: str | Path, kind: str | None = None, prefix: str | None = None, device: str | torch.device = "cpu"
) -> tuple[dict[str, Tensor], Header]:
    """Read the checkpoint at `path` onto `device`; with `prefix`, only the keys that begin with it, without it.

    Raises `HebmError` when the file is missing, damaged, not a checkpoint of this package, written in a newer format,
    or holds another kind than the `kind` asked for.
    """
    with _opened(Path(path)) as (file, found):
        if kind is not None and found.kind != kind:
            raise HebmError(f"{path} holds a '{found.kind}' checkpoint where a '{kind}' one is needed; give that file")
        prefix = prefix or ""
        keys = [key for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118 (not a dict, cannot be iterated)
        return {key.removeprefix(prefix): file.get_tensor(key).to(device) for key in keys}, found


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Copy `tensors`, read from `path`, into the module of the same keys and shapes.

    Raises `HebmError` naming the first key that does not fit; the module is then unchanged.
    """
    state = module.state_dict()
    for key in state | dict(tensors):
        found, wanted = (tuple(t[key].shape) if key in t else None for t in (tensors, state))
        if found != wanted:
            raise HebmError(
                f"{path} does not fit the recipe: '{key}' "
                + ("is missing" if found is None else f"has shape {found}")
                + (", unknown to this model" if wanted is None else f" where the model has shape {wanted}")
                + "; use the recipe the checkpoint was trained with"
            )
    module.load_state_dict(dict(tensors))


def recipe(path: str | Path, header: Header) -> Recipe:
    """The recipe in the header of the checkpoint at `path`.

    Raises `HebmError` when this version does not understand it.
    """
    try:
        return from_dict(header.recipe)
    except UsageError as error:
        raise HebmError(
            f"{path} was written by hebmtool {header.package_version} with a recipe that {_package_version()} does not "
            f"know ({error}); use that version"
        ) from error


def digest(path: str | Path) -> str:
    """A digest of the file's content: which weights they are.  Raises `HebmError` when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise HebmError(f"could not read {path}: {error.strerror or error}") from error


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` in one move.  Raises `HebmError` as `save` does."""
    write_bytes(Path(path), text.encode())


def append_line(path: str | Path, text: str) -> None:
    """Append `text` (no newline in it) to `path` as a line of its own, even after a line cut short by a crash.

    Raises `HebmError` when it cannot be written; the file then ends where it ended.
    """
    path, before = Path(path), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+b", buffering=0) as file:
            before = file.seek(0, os.SEEK_END)
            line = text.encode() + b"\n"
            if before:
                file.seek(before - 1)
                line = line if file.read(1) == b"\n" else b"\n" + line
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        if before is not None:
            with contextlib.suppress(OSError):
                os.truncate(path, before)
        raise _unwritable(path, len(text), error) from error


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as tensors keyed "{parameter index}.{name}".

    Plain numbers become 0-d float64, int64 or bool tensors keyed "{parameter index}.{name}.number".  The tensors are
    the optimizer's own: save them before the next update.  Learning rates and other group settings are left out.
    """
    flat = {}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                flat[f"{index}.{name}"] = value
            else:
                flat[f"{index}.{name}.number"] = torch.tensor(value, dtype=_NUMBERS[type(value)])
    return flat


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give `optimizer` the state `flatten_optimizer` took; training then goes on bit for bit.

    Every tensor must be 0-d or have its parameter's shape (so it is in Adam and Adamax).  Raises `HebmError` when the
    state belongs to other parameters; the optimizer is then unchanged.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        shape = tuple(parameters[int(index)].shape) if int(index) < len(parameters) else None
        if shape is None or (value.ndim and tuple(value.shape) != shape):
            raise HebmError(
                f"the saved optimizer state '{key}' has shape {tuple(value.shape)}, but the model has "
                + (f"only {len(parameters)} parameters" if shape is None else f"shape {shape} there")
                + "; resume with the recipe the checkpoint was trained with"
            )
        number = name.endswith(".number")
        state.setdefault(int(index), {})[name.removesuffix(".number")] = value.item() if number else value.clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


_NUMBERS = {float: torch.float64, int: torch.int64, bool: torch.bool}


def _package_version() -> str:
    try:
        return metadata.version("hebmtool")
    except metadata.PackageNotFoundError:  # run from a source folder
        return "unknown"


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors of which no two share memory, as the format demands."""
    separate, seen = {}, set()
    for key, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        separate[key] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    return separate


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[safe_open, Header]]:
    try:
        with open(path, "rb"):
            pass
    except FileNotFoundError as error:
        raise HebmError(f"there is no checkpoint {path}; check the path, or train it first") from error
    except OSError as error:
        raise HebmError(f"could not read the checkpoint {path}: {error.strerror}; give a readable file") from error
    try:
        with safe_open(path, framework="pt") as file:
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
                f"this hebmtool {_package_version()} reads up to format {FORMAT_VERSION}; upgrade hebmtool"
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


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write `data` beside `path`, then rename: whatever happens, `path` holds the old content or all of the new.

    Raises `HebmError` when it cannot be written; the temporary is removed.
    """
    path = Path(path)
    # The process id keeps two writers apart.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise _unwritable(path, len(data), error) from error
        raise
    with contextlib.suppress(OSError):  # some network filesystems cannot sync a folder; the file itself is safe
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _unwritable(path: Path, size: int, error: OSError) -> HebmError:
    intact, again = "", "rerun"
    if path.exists():
        checkpoint = path.suffix == ".safetensors"
        intact = f"; the previous {'checkpoint' if checkpoint else 'file'} is intact"
        again = "rerun with --resume" if checkpoint else "rerun"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(path.parent).free
        reason = f"no space left (needs {size / 2**20:.1f} MiB, {free / 2**20:.1f} MiB free)"
        return HebmError(f"could not save {path}: {reason}{intact}; free some space and {again}")
    return HebmError(f"could not save {path}: {error.strerror or error}{intact}; make it writable and {again}")
