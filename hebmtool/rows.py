"""The rows of a batch that are computed here and now, and the random numbers of those rows.

A batch of N rows is computed in parts: one after another where it is accumulated, and beside each other in the
processes that `hebmtool.ranks` knows of.  Everything random in a part is drawn for the whole batch, from the same seed
in every part, and its rows are taken.  So a row sees the same noise however many parts and processes there are, and the
numbers are those that torch would have drawn for the batch as a whole.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from hebmtool import ranks
from hebmtool.errors import UsageError


@dataclass(frozen=True)
class Part:
    """Rows start .. stop - 1 of a batch of `total`, computed in this `turn`, from 0; `beside`: how many each process
    computes in it."""

    total: int
    start: int
    stop: int
    beside: tuple[int, ...]
    turn: int = 0

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def rows(self) -> slice:
        return slice(self.start, self.stop)

    @property
    def rows_beside(self) -> slice:
        """Of what all processes compute in this turn."""
        first = self.start - sum(self.beside[: ranks.rank()])
        return slice(first, first + sum(self.beside))

    @property
    def share(self) -> float:
        """Of the batch: the weight of a mean over these rows in the mean over all."""
        return len(self) / self.total

    @property
    def share_beside(self) -> float:
        """Of what is computed at the same time: the weight of a mean over these rows in the mean over that."""
        return len(self) / sum(self.beside)


def parts(total: int, accumulate: int = 1) -> list[Part]:
    """The parts of a batch of `total` rows that are this process's, in as many turns as `accumulate` says.

    Raises:
        UsageError: there are not as many rows.
    """
    if total < ranks.world() * accumulate:
        raise UsageError(
            f"a batch of {total} images cannot be split over {ranks.world()} process(es) in {accumulate} turn(s); set "
            "a larger batch_size, a smaller accumulate, or start fewer processes"
        )
    found, start = [], 0
    for turn, size in enumerate(_sizes(total, accumulate)):
        beside = _sizes(size, ranks.world())
        first = start + sum(beside[: ranks.rank()])
        found.append(Part(total, first, first + beside[ranks.rank()], tuple(beside), turn))
        start += size
    return found


def divided(total: int) -> Part:
    """This process's part of `total` rows, which may be none."""
    beside = _sizes(total, ranks.world())
    start = sum(beside[: ranks.rank()])
    return Part(total, start, start + beside[ranks.rank()], tuple(beside))


def whole(total: int) -> Part:
    """All rows, in every process."""
    return Part(total, 0, total, (total,))


def _sizes(total: int, n: int) -> list[int]:
    """`total` in n numbers that differ by at most 1, the larger ones first."""
    return [total // n + (i < total % n) for i in range(n)]


_current: Part | None = None


def current() -> Part | None:
    """The part being computed; None where a batch is computed whole."""
    return _current


def first_turn() -> bool:
    """Whether what is done once a batch is to be done now."""
    return _current is None or _current.turn == 0


@contextmanager
def computing(part: Part) -> Iterator[Part]:
    """Within the block, what is drawn is drawn for this part.  Of a batch that is computed whole nothing is made."""
    global _current
    before, _current = _current, None if len(part) == part.total else part
    try:
        yield part
    finally:
        _current = before


def gathered(x: Tensor) -> Tensor:
    """The rows, x: [N, ...], of every process in this turn, one after another."""
    if _current is None or len(_current.beside) == 1:
        return x
    room = x.new_zeros(max(_current.beside), *x.shape[1:])
    room[: len(x)] = x
    return torch.cat([found[:n] for found, n in zip(ranks.gathered(room), _current.beside, strict=True)])


def mean_beside(x: Tensor) -> Tensor:
    """The mean of x [N, ...] over the rows of every process in this turn, whose gradient is that of the mean over its
    own: weighted by its share, they add up to the whole's."""
    mean = x.mean(0)
    if _current is None or len(_current.beside) == 1:
        return mean
    return mean + (ranks.total(_current.share_beside * mean.detach()) - mean.detach())


# What torch draws, for the part being computed ------------------------------------------------------------------------


def drawn(n: int, draw: Callable[[int], Tensor]) -> Tensor:
    """draw(n), n numbers or rows of them from torch's global generator; of a part, its rows of draw(total)."""
    if _current is None:
        return draw(n)
    if n != len(_current):
        raise ValueError(f"{n} rows are drawn for, and {len(_current)} are computed")
    return draw(_current.total)[_current.rows]


def rand(n: int, *shape: int, device: torch.device | str | None = None) -> Tensor:
    """`torch.rand(n, *shape)`."""
    return drawn(n, lambda n: torch.rand(n, *shape, device=device))


def randn(n: int, *shape: int, device: torch.device | str | None = None) -> Tensor:
    """`torch.randn(n, *shape)`."""
    return drawn(n, lambda n: torch.randn(n, *shape, device=device))


def randint(high: int, n: int, device: torch.device | str | None = None) -> Tensor:
    """`torch.randint(high, (n,))`."""
    return drawn(n, lambda n: torch.randint(high, (n,), device=device))


def rand_like(x: Tensor) -> Tensor:
    """`torch.rand_like(x)`, x: [N, ...]."""
    return torch.rand_like(x) if _current is None else drawn(len(x), lambda n: _whole(x, n).uniform_())


def randn_like(x: Tensor) -> Tensor:
    """`torch.randn_like(x)`, x: [N, ...]."""
    return torch.randn_like(x) if _current is None else drawn(len(x), lambda n: _whole(x, n).normal_())


def bernoulli(p: Tensor) -> Tensor:
    """`torch.bernoulli(p)`, p: [N, ...]."""
    if _current is None:
        return torch.bernoulli(p)

    def draw(n: int) -> Tensor:
        whole = _whole(p, n).zero_()
        whole[_current.rows] = p
        return torch.bernoulli(whole)

    return drawn(len(p), draw)


def _whole(x: Tensor, n: int) -> Tensor:
    """Room for n rows like those of x, in its layout, in whose order torch draws."""
    laid = torch.empty_like(x, device="meta")
    strides = (x[0].numel(), *laid.stride()[1:])
    return torch.empty_strided((n, *x.shape[1:]), strides, dtype=x.dtype, device=x.device)
