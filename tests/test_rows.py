"""Rows of a batch: parts add up to it, and see the numbers that torch draws for it as a whole."""

import pytest
import torch

from hebmtool import rows
from hebmtool.errors import UsageError

DRAWS = {
    "rand": (lambda n: rows.rand(n, 3), lambda n: torch.rand(n, 3)),
    "randn": (lambda n: rows.randn(n, 2, 5), lambda n: torch.randn(n, 2, 5)),
    "randint": (lambda n: rows.randint(7, n), lambda n: torch.randint(7, (n,))),
}
LIKE = {"randn_like": torch.randn_like, "rand_like": torch.rand_like, "bernoulli": torch.bernoulli}


def ranked(monkeypatch, world: int, rank: int) -> None:
    for name, value in (("WORLD_SIZE", world), ("RANK", rank), ("MASTER_ADDR", "localhost")):
        monkeypatch.setenv(name, str(value))


def every_part(monkeypatch, n: int, world: int, accumulate: int) -> list[rows.Part]:
    found = []
    for rank in range(world):
        ranked(monkeypatch, world, rank)
        found += rows.parts(n, accumulate)
    return sorted(found, key=lambda part: part.start)


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (3, 1), (1, 4), (2, 3)])
def test_parts_are_the_batch(monkeypatch, world, accumulate):
    parts = every_part(monkeypatch, 17, world, accumulate)
    assert [i for part in parts for i in range(17)[part.rows]] == list(range(17))
    assert sum(part.share for part in parts) == pytest.approx(1)
    assert all(part.share_beside * sum(part.beside) == pytest.approx(len(part)) for part in parts)
    with pytest.raises(UsageError, match="larger batch_size"):
        rows.parts(world * accumulate - 1, accumulate)


@pytest.mark.parametrize("name", DRAWS)
def test_a_part_draws_its_rows_of_what_torch_draws(monkeypatch, name):
    here, torchs = DRAWS[name]
    whole = [torchs(11), torchs(11)]
    found = [[], []]
    for part in every_part(monkeypatch, 11, 2, 2):
        torch.manual_seed(0)
        with rows.computing(part):
            for each in found:
                each.append(here(len(part)))
    assert all(torch.equal(torch.cat(each), expected) for each, expected in zip(found, whole, strict=True))


@pytest.mark.parametrize("name", LIKE)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_also_in_the_layout_of_a_map(monkeypatch, name, layout):
    """torch fills a tensor in the order in which it lies in memory."""
    p = torch.rand(9, 3, 4, 5).to(memory_format=layout)
    torch.manual_seed(1)
    whole, found = LIKE[name](p), []
    for part in every_part(monkeypatch, 9, 3, 1):
        torch.manual_seed(1)
        with rows.computing(part):
            found.append(getattr(rows, name)(p[part.rows]))
    assert torch.equal(torch.cat(found), whole)


def test_a_draw_for_other_rows_than_are_computed_is_refused(monkeypatch):
    part, _ = rows.parts(8, 2)
    with rows.computing(part), pytest.raises(ValueError, match="8 rows are drawn for, and 4"):
        rows.rand(8)
    assert len(rows.rand(8)) == 8
