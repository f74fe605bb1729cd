"""The processes that do one thing together, as torchrun starts them: which this is, and what passes between them.

Every process runs the same program on the same seeds and holds the same weights.  They differ in the rows of a batch
that they compute (`hebmtool.rows`) and in the items of a list they see to (`spread`); the first alone writes and
prints.  What one process decides, or finds wrong, all decide or raise (`first_alone`, `total`).

A single process pays nothing: torch is imported where there are several, and there only.
"""

import atexit
import os
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from hebmtool.errors import HebmError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
R = TypeVar("R")

PATIENCE = timedelta(hours=6)
"""The others wait for so long while the first judges or draws pictures; a dead process is torchrun's to find."""


_alone = False


def world() -> int:
    """How many processes there are; within work that one process does alone, one."""
    if _alone:
        return 1
    return int(os.environ["WORLD_SIZE"]) if {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return int(os.environ["RANK"]) if world() > 1 else 0


def local_rank() -> int:
    """Which of those on this machine it is: the number of its accelerator."""
    return int(os.environ.get("LOCAL_RANK", 0)) if world() > 1 else 0


def local_world() -> int:
    """How many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if world() > 1 else 1


def is_first() -> bool:
    """Whether it is the one that writes and prints."""
    return rank() == 0


def launch() -> str | None:
    """Says whether two processes were started by the same call of torchrun, also when it has started them again; None
    without torchrun."""
    run, size = os.environ.get("TORCHELASTIC_RUN_ID"), int(os.environ.get("WORLD_SIZE", 1))
    # Not `world`: what one process does alone belongs to the launch as well.
    return None if run is None or size == 1 else f"{run} of process {os.getppid()} on {os.uname().nodename}"


def restarted() -> bool:
    """Whether torchrun has started the processes again after one of them had died."""
    return launch() is not None and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def joined() -> bool:
    """Whether this process has met the others."""
    if world() == 1:
        return False
    from torch import distributed

    return distributed.is_initialized()


def join(device: "torch.device") -> None:
    """Meet the other processes, if there are any: by gloo, and on CUDA by nccl for what is there."""
    if world() == 1:
        return
    import torch
    from torch import distributed

    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not distributed.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        store, number, size = next(distributed.rendezvous("env://", timeout=PATIENCE))
        store = distributed.PrefixStore(_meeting(), store)
        distributed.init_process_group(backend, store=store, rank=number, world_size=size, timeout=PATIENCE)
        atexit.register(_leave)


def _meeting() -> str:
    """The name that these processes meet under: torchrun keeps the addresses of those that it starts again, and a
    process started again must not be sent to one that is dead.

    Machines count what has died on each of them, and so cannot name a meeting by that.
    """
    again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if world() == local_world() else "0"
    return f"start {again}"


def _leave() -> None:
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


# What passes between them ---------------------------------------------------------------------------------------------


def total(x: "torch.Tensor") -> "torch.Tensor":
    """The sum of every process's x, in its place: bit for bit the same in each."""
    if world() > 1:
        from torch import distributed

        distributed.all_reduce(x)
    return x


def totals(each: "list[torch.Tensor]") -> "list[torch.Tensor]":
    """`total` of several tensors, in one reduction, in the first one's type and place."""
    import torch

    summed = total(torch.cat([x.flatten().to(each[0]) for x in each])).split([x.numel() for x in each])
    return [s.view(x.shape) for s, x in zip(summed, each, strict=True)]


def largest(number: int) -> int:
    """The largest of every process's number; no accelerator is waited for."""
    if world() == 1:
        return number
    import torch
    from torch import distributed

    found = torch.tensor(number)
    distributed.all_reduce(found, distributed.ReduceOp.MAX)
    return int(found)


def gathered(x: "torch.Tensor") -> "list[torch.Tensor]":
    """Every process's x, in order; they have one shape."""
    if world() == 1:
        return [x]
    import torch
    from torch import distributed

    found = [torch.empty_like(x) for _ in range(world())]
    distributed.all_gather(found, x.contiguous())
    return found


def first_alone(work: Callable[[], R]) -> R:
    """What `work` comes to in the first process, in all of them: the others wait, and raise what it raises."""
    if world() == 1:
        return work()
    from torch import distributed

    outcome: list = [None]
    if is_first():
        outcome = [_tried(work)]
    distributed.broadcast_object_list(outcome)
    return _agreed(outcome)[0]


def spread(items: Iterable[T], work: Callable[[T], R]) -> Iterator[R]:
    """work(item) of every item, in order: each item is one process's, in turns, and every process gets all results.

    Results travel as they are pickled: tensors should be on the CPU.
    """
    items, size = iter(items), world()
    if size == 1:
        yield from map(work, items)
        return
    from torch import distributed

    while group := list(islice(items, size)):
        mine = _tried(partial(work, group[rank()])) if rank() < len(group) else (None, None)
        found: list = [None] * size
        distributed.all_gather_object(found, mine)
        yield from _agreed(found)[: len(group)]


def share(n: int, most: int) -> int:
    """How many of n items to see to at a time: at most so many, and not more than leave every process something."""
    return max(1, min(most, -(-n // world())))


def everywhere(error: HebmError) -> HebmError:
    """`error`, as one that all processes raise: said once."""
    error.everywhere = True
    return error


def _tried(work: Callable[[], R]) -> tuple[R | None, HebmError | None]:
    """What work comes to in this process alone: within it there are no others to share anything with."""
    global _alone
    _alone = True
    try:
        return work(), None
    except HebmError as error:
        return None, error
    finally:
        _alone = False


def _agreed(outcomes: list[tuple]) -> list:
    for _, error in outcomes:
        if error is not None:
            raise everywhere(error)
    return [result for result, _ in outcomes]
