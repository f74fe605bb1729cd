"""Checkpoints: safetensors files that say what they are.

The header (text to text) carries `format` ("hebmtool"), `format_version`, `package_version`, `kind`, `step`, and the
JSON texts `recipe` and `extra`.  Nothing is pickled.  Every file is written beside its target and moved over it once it
is on the disk, so that a file under its own name is always whole.

File format: https://github.com/huggingface/safetensors
"""

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from pydantic import BaseModel
from safetensors import SafetensorError
from torch import Tensor, nn

from hebmtool.errors import HebmError
from hebmtool.files import write_bytes
from hebmtool.run.header import FORMAT, FORMAT_VERSION, Header, extra, header, opened, package_version, recipe

__all__ = ["Header", "extra", "flatten_optimizer", "header", "load", "load_into", "recipe", "restore_optimizer", "save"]


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
        "package_version": package_version(),
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
    write_bytes(Path(path), *_in_order(data))


def _in_order(data: bytes) -> tuple[bytes, memoryview]:
    """The file in two parts, its header's entries sorted: safetensors writes them in any order, and the same checkpoint
    should be the same file."""
    length = int.from_bytes(data[:8], "little")
    head = json.dumps(json.loads(data[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)  # tensors are aligned
    return len(head).to_bytes(8, "little") + head, memoryview(data)[8 + length :]


def load(
    path: str | Path, kind: str | None = None, prefix: str | None = None, device: str | torch.device = "cpu"
) -> tuple[dict[str, Tensor], Header]:
    """Read the checkpoint at `path` onto `device`; with `prefix`, only the keys that begin with it, without it.

    Raises `HebmError` when the file is missing, damaged, not a checkpoint of this package, written in a newer format,
    holds another kind than the `kind` asked for, or values that are not finite.
    """
    with opened(Path(path), "pt") as (file, found):
        if kind is not None and found.kind != kind:
            raise HebmError(f"{path} holds a '{found.kind}' checkpoint where a '{kind}' one is needed; give that file")
        prefix = prefix or ""
        keys = [key for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118 (not a dict, cannot be iterated)
        tensors = {key.removeprefix(prefix): file.get_tensor(key).to(device) for key in keys}
    for key, tensor in tensors.items():
        if tensor.dtype not in STORED:
            raise HebmError(
                f"{path} holds '{key}' as {_word(tensor.dtype)}, and a checkpoint's numbers are "
                f"{', '.join(map(_word, STORED))}; convert it, or take another file"
            )
        if not tensor.isfinite().all():
            wrong = (~tensor.isfinite()).sum().item()
            raise HebmError(
                f"{path} holds '{key}' with {wrong} of {tensor.numel()} values that are not finite; train it again "
                "with a lower learning rate, or take another file"
            )
    return tensors, found


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Copy `tensors`, read from `path`, into the module of the same keys and shapes.

    Real numbers of another precision are converted.

    Raises `HebmError` naming the first key that does not fit; the module is then unchanged.
    """
    state = module.state_dict()
    for key in state | dict(tensors):
        found, wanted = (tuple(t[key].shape) if key in t else None for t in (tensors, state))
        if found == wanted and not _alike(tensors[key], state[key]):
            raise HebmError(
                f"{path} holds '{key}' as {_word(tensors[key].dtype)}, where the model has "
                f"{_word(state[key].dtype)}; convert it, or take another file"
            )
        if found != wanted:
            raise HebmError(
                f"{path} does not fit the recipe: '{key}' "
                + ("is missing" if found is None else f"has shape {found}")
                + (", unknown to this model" if wanted is None else f" where the model has shape {wanted}")
                + "; use the recipe the checkpoint was trained with"
            )
    module.load_state_dict(dict(tensors))


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
        index, dot, name = key.partition(".")
        if not (index.isdecimal() and len(index) < 9 and dot):
            raise HebmError(
                f"the saved optimizer state has a key '{key}', which is none; train again, or copy the file"
            )
        shape = tuple(parameters[int(index)].shape) if int(index) < len(parameters) else None
        if shape is None or (value.ndim and tuple(value.shape) != shape):
            raise HebmError(
                f"the saved optimizer state '{key}' has shape {tuple(value.shape)}, but the model has "
                + (f"only {len(parameters)} parameters" if shape is None else f"shape {shape} there")
                + "; resume with the recipe the checkpoint was trained with"
            )
        number = name.endswith(".number")
        if number and value.ndim:
            raise HebmError(f"the saved optimizer state '{key}' is no single number; train again, or copy the file")
        state.setdefault(int(index), {})[name.removesuffix(".number")] = value.item() if number else value.clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


STORED = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
)
"""Types of the numbers in a checkpoint: real ones, counts, and what is yes or no."""


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _alike(found: Tensor, wanted: Tensor) -> bool:
    return found.dtype == wanted.dtype or (found.is_floating_point() and wanted.is_floating_point())


_NUMBERS = {float: torch.float64, int: torch.int64, bool: torch.bool}


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors of which no two share memory, as the format demands."""
    separate, seen = {}, set()
    for key, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        separate[key] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    return separate
