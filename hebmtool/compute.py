"""Where and in which precision things are computed: devices by name, autocast, memory that is kept."""

import ctypes
import platform
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from hebmtool import ranks
from hebmtool.console import note
from hebmtool.errors import HebmError, UsageError


def pick_device(name: str = "auto") -> torch.device:
    """The device called `name`: "auto" (CUDA where there is one, else CPU), "cpu", "cuda" or "cuda:N".

    Of several processes (`hebmtool.ranks`), which meet here, each on a machine takes a GPU of its own.

    Raises:
        UsageError: the word is none of these, or a number is given to several processes.
        HebmError: CUDA is asked for and absent.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if ranks.world() > 1:
        if ":" in name:
            raise UsageError(f"device '{name}' has a number, but every process takes a GPU of its own; leave it out")
        name = f"cuda:{ranks.local_rank()}" if name == "cuda" else name
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()) or (kind == "cpu" and index):
        raise UsageError(f"unknown device '{name}'; allowed are auto, cpu, cuda and cuda:N")
    if kind == "cpu":
        keep_memory()
    if kind == "cuda":
        if not torch.cuda.is_available():
            raise HebmError(f"device '{name}' was asked for but torch sees no CUDA GPU; use the device cpu")
        if int(index or 0) >= torch.cuda.device_count():
            raise HebmError(
                f"device '{name}' was asked for but torch sees {torch.cuda.device_count()} CUDA GPU(s), "
                f"numbered from 0; use one of those"
            )
    device = torch.device(name)
    ranks.join(device)
    return device


def keep_memory() -> None:
    """Let the process keep the memory it frees.  glibc hands it back to the system, and a chain, which frees its states
    at every step, gets it again page by page: a tenth of a step's time.  Nothing is done where there is no glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    mallopt(mmap_threshold, 32 * 2**20)  # the most it takes
    mallopt(trim_threshold, 2**31 - 1)


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Autocast to bfloat16 for "bf16", nothing for "float32"."""
    if precision == "float32":
        return nullcontext()
    return ShapesCast() if device.type == "meta" else torch.autocast(device.type, dtype=torch.bfloat16)


def computes_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16; without them it is ten times slower than float32 on a CPU."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return True
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def fast_precision(device: torch.device) -> str:
    """The precision to be fast in: "bf16", or "float32" where the device computes that faster."""
    return "bf16" if computes_bf16(device) else "float32"


def tell_if_slow(device: torch.device, key: str, precision: str) -> None:
    """Say so where a recipe's key asks for a precision that this device is slow in."""
    if precision == "bf16" and not computes_bf16(device):
        note(
            f"{key} is bf16, for which this device has no instructions: float32 is several times faster here; "
            f"set {key}=float32"
        )


def uncast(device: torch.device) -> AbstractContextManager:
    """Within an `autocast`, everything as it is given."""
    return torch._C.DisableTorchFunction() if device.type == "meta" else torch.autocast(device.type, enabled=False)


class ShapesCast(TorchFunctionMode):
    """What autocast does to convolutions and matrix products, on the device without values; torch has none for it."""

    CAST = (F.conv2d, F.linear, torch.matmul, torch.Tensor.matmul)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in self.CAST:
            args, kwargs = tree_map_only(torch.Tensor, lambda x: x.bfloat16(), (args, kwargs or {}))
        return function(*args, **(kwargs or {}))


def device_name(device: torch.device) -> str:
    """The accelerator's name, or the processor's with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        name = models[0].partition(":")[2].strip() if models else name
    return f"{name}, {torch.get_num_threads()} thread(s)"
