"""Sets of images: their order, their batches, and what a likelihood is given of them."""

import pytest
import torch
from pictures import error

from hebmtool import data as d
from hebmtool.errors import HebmError
from hebmtool.generator import LIKELIHOODS
from hebmtool.recipe import Data, Generator

# Sets -----------------------------------------------------------------------------------------------------------------


def test_batch_refuses_indices_outside():
    images = d.load(Data(limit=3), "train")
    assert images.batch([]).shape == (0, 1, 8, 8)
    for wrong in ([3], [-1]):
        with pytest.raises(IndexError):
            images.batch(wrong)


@pytest.mark.parametrize(("n", "size"), [(7, 3), (6, 3), (2, 250), (1, 1)])
def test_batches_are_all_the_images_in_order(n, size):
    images = d.load(Data(limit=n), "train")
    batches = list(images.batches(size))
    assert [len(batch) for batch in batches] == [size] * (n // size) + [n % size] * bool(n % size)
    assert torch.equal(torch.cat(batches), images.batch(range(n)))
    assert all(batch.dtype == torch.uint8 for batch in batches)


def test_batches_are_read_one_at_a_time():
    asked = []
    images = d.Images(5, (1, 4, 4), lambda i: asked.append(i) or torch.zeros(len(i), 1, 4, 4, dtype=torch.uint8))
    batches = images.batches(2)
    assert asked == []
    next(batches)
    assert asked == [[0, 1]]
    list(batches)
    assert asked == [[0, 1], [2, 3], [4]]


def test_a_subset_keeps_everything_with_its_image():
    whole = d.load(Data(attributes={"odd": ["1", "3", "5", "7", "9"]}), "test")
    kept = [7, 3, 3, 0]
    part = whole.subset(kept)
    assert (len(part), part.shape, part.classes, part.total) == (4, whole.shape, whole.classes, whole.total)
    assert torch.equal(part.batch([2, 0]), whole.batch([3, 7]))
    for name in ("labels", "numbers"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[kept])
    assert torch.equal(part.attributes["odd"], whole.attributes["odd"][kept])
    assert torch.equal(part.subset([3]).batch([0]), whole.batch([0]))


def test_numbers_are_places_in_the_source():
    train, test = d.load(Data(), "train"), d.load(Data(), "test")
    assert train.total == test.total == 1797
    assert sorted([*train.numbers.tolist(), *test.numbers.tolist()]) == list(range(1797))


# Their order ----------------------------------------------------------------------------------------------------------


def test_order_is_a_permutation_of_its_arguments_alone():
    first = d.order(50, 3, 0)
    assert first.dtype == torch.int64 and sorted(first.tolist()) == list(range(50))
    torch.manual_seed(1)
    first_again = d.order(50, 3, 0)
    assert torch.equal(first, first_again)
    assert not torch.equal(first, d.order(50, 3, 1)) and not torch.equal(first, d.order(50, 4, 0))
    first_again.zero_()  # a caller's changes stay the caller's
    assert torch.equal(first, d.order(50, 3, 0))
    d.order(5, 2**63 - 1, 0)


def test_batches_cover_an_epoch_and_drop_its_ragged_end():
    steps = [d.batch_indices(10, 3, 0, step) for step in range(6)]
    assert all(step.shape == (3,) and step.dtype == torch.int64 for step in steps)
    assert torch.equal(torch.cat(steps[:3]), d.order(10, 0, 0)[:9])
    assert torch.equal(torch.cat(steps[3:]), d.order(10, 0, 1)[:9])


def test_a_batch_larger_than_the_set_is_refused():
    assert len(d.batch_indices(4, 4, 0, 7)) == 4
    with error(HebmError, "64", "10"):
        d.batch_indices(10, 64, 0, 0)


# What the model reads -------------------------------------------------------------------------------------------------


def as_it_is(v, bits):
    """A `read` that shows what it was given."""
    assert v.dtype == torch.float32
    return v


def test_the_upper_bits_are_kept():
    batch = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    for bits in range(1, 9):
        found = d.prepare(batch, Data(bits=bits), as_it_is, train=False)
        assert torch.equal(found, (batch.float() / 2 ** (8 - bits)).floor())
        assert found.unique().tolist() == list(range(2**bits))
        assert d.prepare(batch, Data(bits=bits), lambda v, b: b, train=False) == bits


@pytest.mark.parametrize("word", LIKELIHOODS)
def test_a_likelihood_reads_what_is_prepared_for_it(word):
    likelihood = LIKELIHOODS[word].from_recipe(Generator(), 5)
    batch = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    for read in (likelihood.read, likelihood.read_grey):
        x = d.prepare(batch, Data(bits=5), read, train=True)
        assert x.shape == batch.shape and x.dtype == torch.float32 and x.min() >= 0 and x.max() <= 1
        torch.manual_seed(3)
        x = d.prepare(batch, Data(bits=5), read, train=False)
        torch.manual_seed(3)
        assert torch.equal(read((batch // 8).float(), 5), x)


def test_flips_each_image_in_training_only():
    torch.manual_seed(0)
    batch = torch.arange(4, dtype=torch.uint8).view(1, 1, 1, 4).repeat(64, 1, 1, 1)
    flipped = d.prepare(batch, Data(flip=True), as_it_is, train=True)[:, 0, 0, 0] > 0
    assert 15 < flipped.sum() < 49
    state = torch.get_rng_state()
    assert torch.equal(d.prepare(batch, Data(flip=True), as_it_is, train=False), batch.float())
    assert torch.equal(d.prepare(batch, Data(), as_it_is, train=True), batch.float())
    assert torch.equal(torch.get_rng_state(), state)


def test_prepare_refuses_what_is_not_at_rest():
    with pytest.raises(TypeError, match="uint8"):
        d.prepare(torch.zeros(1, 1, 4, 4), Data(), as_it_is, train=True)
