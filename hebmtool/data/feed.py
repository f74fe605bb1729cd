"""The images of a training's updates, read before they are asked for.

    images of update s, turn i  =  a function of (seed, s, i)       in whatever process they are read

Images that have to be decoded at every visit are read by processes beside this one (torch's DataLoader), which are told
what to read, and where to cut it, from here; arrays and what was decoded once are in memory, and need none.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hebmtool import ranks, rows
from hebmtool.data.images import Images, batch_indices
from hebmtool.errors import HebmError
from hebmtool.noise import derive_seed
from hebmtool.recipe import TrainPrior, TrainVae

MOST = 8
"""Processes that read, where the recipe does not say how many."""

AHEAD = 2
"""Parts of batches that each of them reads ahead."""

WHEN_PARENT_DIES = 1  # PR_SET_PDEATHSIG of Linux's prctl

Wanted = list[tuple[int, list[float] | None]]
"""Images by their numbers, each with its crop's place where there is one."""


class Feed:
    """The images of a training's updates up to `total` - 1, in order, in their parts (`rows.parts`) of this process.

        with Feed(images, config, stage, seed, total, device) as feed:
            for each step:
                indices = feed.update(step)
                for part in updates.parts(config.batch_size):
                    batch = feed.take(part)

    Arguments:
        config: its `batch_size`, `accumulate` and `workers` (`workers`).
        stage, seed: from which, and the step, an update's random numbers are seeded (`seed_of`).
        device: where images go.
        least: images that a batch may hold.

    Raises:
        HebmError: an image that cannot be read, or a process that reads has ended.
    """

    def __init__(
        self,
        images: Images,
        config: TrainVae | TrainPrior,
        stage: str,
        seed: int,
        total: int,
        device: torch.device,
        least: int = 1,
    ):
        self.images, self.config, self.stage, self.seed, self.device = images, config, stage, seed, device
        self.step, self.total, self.least = 0, total, least
        self.workers = workers(images, config.workers)
        self._read: Any = None  # torch's iterator over what was `Found`

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        read, self._read = self._read, None
        try:
            if read is not None:
                read._shutdown_workers()  # else they end with it, which what was raised may hold on to
        except RuntimeError as late:
            if not _is_of_reader(late):
                raise
            for process in read._workers:  # torch heard only now of one that has ended, and let go of the others
                process.kill()
                process.join()
        if _is_of_reader(error):
            raise _ended(str(error).strip().splitlines()[0].partition(". ")[0]) from error

    def update(self, step: int) -> Tensor:
        """Go to update `step`: the numbers of its images, [batch_size]."""
        self.step = step
        return self._indices(step)

    def _indices(self, step: int) -> Tensor:
        return batch_indices(len(self.images), self.config.batch_size, self.seed, step, self.least)

    def take(self, part: rows.Part) -> Tensor:
        """The images of a part of the update, uint8 [n, C, H, W] on the device; draws what `Images.seen` draws."""
        indices = self._indices(self.step)[part.rows]
        if self.workers == 0:
            return self._sent(self.images.seen(indices))
        if self._read is None:
            self._read = iter(self._loader())
        places = self.images.places(len(indices))  # drawn here too, so that what is drawn next stays the same
        try:
            found = next(self._read)
        except (EOFError, ConnectionError, FileNotFoundError) as error:  # before torch has heard of its end
            raise _ended("amid handing over what it had read") from error
        if isinstance(found.images, HebmError):
            raise found.images
        if found.wanted != _wanted(indices, places):
            raise RuntimeError(f"{found.wanted} were read ahead, and {indices.tolist()} at {places} are wanted")
        return self._sent(found.images)

    def _sent(self, batch: Tensor) -> Tensor:
        if self.device.type != "cuda":
            return batch
        return (batch if batch.is_pinned() else batch.pin_memory()).to(self.device, non_blocking=True)

    # Reading ahead

    def _loader(self) -> DataLoader:
        return DataLoader(
            Read(self.images),
            batch_sampler=Ahead(self),
            collate_fn=_as_it_is,
            num_workers=self.workers,
            prefetch_factor=AHEAD,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_begin,
            multiprocessing_context="fork",  # images may be a closure, and there is nothing to import again
            generator=torch.Generator(),  # torch's own is the update's
        )

    def ahead(self) -> Iterator[Wanted]:
        """What is to be read, part after part, from where the training is."""
        for step in range(self.step, self.total):
            indices = self._indices(step)
            for part in rows.parts(self.config.batch_size, self.config.accumulate):
                draws = torch.Generator().manual_seed(seed_of(self.seed, self.stage, step))
                yield _wanted(indices[part.rows], self.images.places(part.total, draws)[part.rows])


class Ahead:
    """`Feed.ahead`, as often as it is asked for: torch's word for it is a batch sampler."""

    def __init__(self, feed: Feed):
        self.feed = feed

    def __iter__(self) -> Iterator[Wanted]:
        return self.feed.ahead()


@dataclass
class Found:
    """What was read: uint8 [n, C, H, W], or what went wrong."""

    wanted: Wanted
    images: Tensor | HebmError

    def pin_memory(self) -> "Found":
        """Called by torch where images go to a GPU."""
        return self if isinstance(self.images, HebmError) else replace(self, images=self.images.pin_memory())


class Read(Dataset):
    """Images by what is wanted of them.  What goes wrong is returned: raised, torch would put a traceback into it."""

    def __init__(self, images: Images):
        self.images = images

    def __getitems__(self, wanted: Wanted) -> Found:
        try:
            return Found(wanted, self.images.cut([i for i, _ in wanted], [place for _, place in wanted]))
        except HebmError as error:
            return Found(wanted, error)


def seed_of(seed: int, stage: str, step: int) -> int:
    """Seeds torch's generators for update `step` of a stage."""
    return derive_seed(seed, stage, step)


def workers(images: Images, asked: int | None) -> int:
    """How many processes read images beside this one: those asked for, or one for each processor that is left to this
    process (of those on the machine), at most `MOST`; none where all is in memory, or where processes cannot fork."""
    if not images.decoded_anew or sys.platform != "linux":
        return 0
    mine = len(os.sched_getaffinity(0)) // ranks.local_world()
    return min(MOST, max(0, mine - 1)) if asked is None else asked


def _wanted(indices: Tensor, places: Sequence) -> Wanted:
    return list(zip(indices.tolist(), places, strict=True))


def _as_it_is(found: Any) -> Any:
    return found


def _begin(number: int) -> None:
    """What a process that reads does first: be quiet, leave signals to the one that trains, and end with it."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(WHEN_PARENT_DIES, signal.SIGKILL)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nowhere, stream)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (open as long as the process)


def _is_of_reader(error: BaseException | None) -> bool:
    """Whether torch says that a process that reads has ended."""
    return isinstance(error, RuntimeError) and "DataLoader worker" in str(error)


def _ended(how: str) -> HebmError:
    return HebmError(
        f"a process that reads images has ended ({how}); resume with fewer of them (train_vae.workers, "
        "train_prior.workers), 0 to read in the process that trains, or give them more memory"
    )
