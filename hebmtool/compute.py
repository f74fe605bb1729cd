"""Where, in which precision and how things are computed: devices by name, autocast, torch.compile, memory that is kept.

float32 is float32: where TensorFloat-32 would be faster, on NVIDIA's GPUs, it is off (`exact`); bf16 is the fast
precision.
"""

import ctypes
import importlib.util
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache, wraps
from pathlib import Path
from typing import Any, TypeVar

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
        HebmError: CUDA is asked for and absent, or CUDA graphs are asked for and it is the CPU.
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
        if _backend.get() == GRAPHS:
            raise HebmError("CUDA graphs take a CUDA GPU, and the device is the CPU; do without them")
        keep_memory()
    if kind == "cuda":
        exact()
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


def exact() -> None:
    """Have convolutions and matrix products of float32 computed in float32, never in TensorFloat-32, whose products
    keep 10 bits of the mantissa; by itself torch does so for convolutions."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


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


# torch.compile --------------------------------------------------------------------------------------------------------

BACKEND = "inductor"
GRAPHS = "cudagraphs"
"""The backend that makes no code of its own, but replays torch's kernels from CUDA graphs."""

COMPILERS = ("g++", "clang++")
COMPILER_ROOMS = ("torch._dynamo", "torch._inductor")

T = TypeVar("T")
_backend: ContextVar[str | None] = ContextVar("backend", default=None)


@contextmanager
def compiling(backend: str | None = None) -> Iterator[None]:
    """Within the block, what an update or a chain spends its time in (`compiled`) goes through torch.compile, and on
    CUDA is replayed from CUDA graphs: the same numbers up to rounding, after a minute or more of compiling.

    Arguments:
        backend: of torch.compile; `BACKEND` when None.  With `GRAPHS`, which takes a GPU, it is half a minute.

    Raises:
        HebmError: there is no compiler.
    """
    backend = backend or BACKEND
    if backend == "inductor":
        _check_compiler()
    before = _backend.set(backend)
    try:
        yield
    finally:
        _backend.reset(before)


def _check_compiler() -> None:
    if torch.cuda.is_available():
        if importlib.util.find_spec("triton") is None:
            raise HebmError(
                "compiling for a GPU takes the package triton, which is not there; install it, or do without"
            )
        return
    if not any(shutil.which(name) for name in (os.environ.get("CXX") or COMPILERS[0], *COMPILERS)):
        raise HebmError(
            f"compiling takes a C++ compiler, and there is none of {', '.join(COMPILERS)}; install one, name it in the "
            "environment variable CXX, or do without"
        )


@contextmanager
def plainly() -> Iterator[None]:
    """Within the block nothing is compiled: for what is done too seldom to be worth it."""
    before = _backend.set(None)
    try:
        yield
    finally:
        _backend.reset(before)


def is_compiling() -> bool:
    """Whether it is a `compiling` block."""
    return _backend.get() is not None


def is_fusing() -> bool:
    """Whether what is compiled becomes other kernels than torch's."""
    return _backend.get() not in (None, GRAPHS)


def compiled(function: Callable[..., T]) -> Callable[..., T]:
    """`function`, of a module or bound to an object, as torch.compile makes it within a `compiling` block; itself
    elsewhere.  It must draw no random numbers: those that compiled code draws are others.

    What it returns raises HebmError where compiling fails.
    """
    backend = _backend.get()
    if backend is None:
        return function
    made = _made(getattr(function, "__func__", function), backend)
    bound = (function.__self__,) if hasattr(function, "__self__") else ()

    @wraps(function)
    def call(*arguments: Any) -> T:
        if _replays():
            torch.compiler.cudagraph_mark_step_begin()
        try:
            return kept(made(*bound, *arguments))
        except Exception as error:  # torch's backends raise errors of many classes
            if not any(of.__module__.startswith(COMPILER_ROOMS) for of in type(error).__mro__):
                raise
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise HebmError(f"torch.compile failed ({said}); do without compiling") from error

    return call


@cache  # one for each function, whatever it is bound to
def _made(function: Callable[..., T], backend: str) -> Callable[..., T]:
    mode = "reduce-overhead" if backend == "inductor" and _replays() else None
    return torch.compile(function, backend=backend, mode=mode)


def _replays() -> bool:
    """Whether compiled code is replayed from CUDA graphs."""
    return is_compiling() and torch.cuda.is_available()


def kept(found: T) -> T:
    """Tensors that compiled code, or a gradient of it, has found, where the next replay of its graph does not write
    over them."""
    return tree_map_only(torch.Tensor, torch.Tensor.clone, found) if _replays() else found


def in_place(old: T, new: T) -> T:
    """The constants `new` (a tuple of tensors and Nones) at the addresses of `old`, where CUDA graphs read them;
    themselves on other devices, or where nothing alike was there."""
    if old is None or not new[0].is_cuda or not all(map(_alike, old, new)):
        return new
    for there, value in zip(old, new, strict=True):
        if there is not None:
            there.copy_(value)
    return old


def _alike(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return (a.shape, a.stride(), a.dtype, a.device) == (b.shape, b.stride(), b.dtype, b.device)


class Replayed:
    """A function of CUDA tensors, captured in a CUDA graph when it is made: its kernels, which Python would launch one
    by one, are launched together from then on, the same kernels on the same numbers.

    It must draw no random numbers nor wait for the device, and what it reads beside its arguments is read again where
    it lay then.

    Arguments:
        function: tensors -> tuple of tensors.
        arguments: of the shapes and types it will be called with.
    """

    def __init__(self, function: Callable[..., tuple[torch.Tensor, ...]], *arguments: torch.Tensor):
        self.arguments = [x.clone() for x in arguments]
        side, here = torch.cuda.Stream(), torch.cuda.current_stream()
        side.wait_stream(here)
        with torch.cuda.stream(side):  # libraries make their workspaces on the first calls
            for _ in range(2):
                function(*self.arguments)
        here.wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        # Threads that read images ahead go on meanwhile.
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.found = function(*self.arguments)

    def __call__(self, *arguments: torch.Tensor) -> tuple[torch.Tensor, ...]:
        for there, value in zip(self.arguments, arguments, strict=True):
            there.copy_(value)
        self.graph.replay()
        return tuple(x.clone() for x in self.found)  # the next replay writes over them


class Replays:
    """What is `Replayed` of a function, captured anew where a key says that what it reads is not what it was."""

    def __init__(self) -> None:
        self._key: object = None
        self._replayed: Replayed | None = None

    def __call__(
        self, function: Callable[..., tuple[torch.Tensor, ...]], key: object, *arguments: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        if self._replayed is None or self._key != key:
            self._key, self._replayed = key, None  # its memory first
            self._replayed = Replayed(function, *arguments)
        return self._replayed(*arguments)


def device_name(device: torch.device) -> str:
    """The accelerator's name, or the processor's with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        name = models[0].partition(":")[2].strip() if models else name
    return f"{name}, {torch.get_num_threads()} thread(s)"
