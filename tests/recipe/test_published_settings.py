"""Recipes called published, held key by key to the table of what is, and each value to where it stands."""

import math
import re

import pytest
import yaml
from published_settings import HEBM, JOINT, LFBM, TABLE

from hebmtool import recipe
from hebmtool.generator import OneLayer

PUBLISHED = sorted({name for name, *_ in TABLE})
LINE = re.compile(r"^( *)([a-z_]+): *([^#]*?) *(?:# *(.*))?$")


def at(loaded, key):
    for part in key.split("."):
        loaded = getattr(loaded, part)
    return loaded


def lines(name):
    """(key, comment) of every value of a recipe's file."""
    path = []
    for line in recipe.text(name).splitlines():
        found = LINE.match(line)
        if found:
            path = [*path[: len(found[1]) // 2], found[2]]
            if found[3]:
                yield ".".join(path), found[4]


@pytest.mark.parametrize("name, key, value, source", TABLE, ids=[f"{name}-{key}" for name, key, *_ in TABLE])
def test_a_published_value_is_the_recipes_and_so_marked(name, key, value, source):
    assert at(recipe.load(name), key) == value
    # A default may go without saying.
    assert dict(lines(name)).get(key, source).startswith(source)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_value_says_where_it_stands_and_none_is_called_published_that_is_not_in_the_table(name):
    table = {key for of, key, *_ in TABLE if of == name}
    for key, comment in lines(name):
        if key == "name":
            continue
        assert comment and re.match("(paper|code|chosen)", comment), f"{key} does not say where it stands"
        # What follows from others, or names the data, is said and not kept.
        told = key.startswith("data.") or key.startswith("generator.") or key in table
        assert comment.startswith("chosen") or told, f"{key} is called published; add it to the table"
    written = yaml.safe_load(recipe.text(name))
    assert len(dict(lines(name))) == sum(leaves(part) for part in written.values())


def leaves(part) -> int:
    return sum(map(leaves, part.values())) if isinstance(part, dict) else 1


def test_nothing_is_unchecked():
    assert not any("unchecked" in recipe.text(name) for name in recipe.names())


def test_the_joint_ebm_is_a_handful_of_overrides():
    loaded = recipe.load("celebahq256", [f"{key}={value}" for key, value in JOINT.items()])
    assert {key: at(loaded, key) for key in JOINT} == JOINT
    assert (loaded.prior.levels, loaded.prior.energy.reads) == (3, "z")


@pytest.mark.parametrize(
    "name, shape, channels, side",
    [("svhn-flow", 32, 512, 4), ("cifar10-flow", 32, 1024, 8), ("celeba-flow", 64, 1024, 4)],
)
def test_flow_generators_are_as_wide_as_published(name, shape, channels, side):
    import torch

    with torch.device("meta"):
        generator = OneLayer(recipe.load(name).flow, (3, shape, shape))
    assert generator.constant.shape == (channels, side, side)


def test_epochs_are_whole_numbers_of_updates():
    sizes = {"cifar10": 50_000, "celebahq256": 27_000, "celeba64": 162_770, "lsun64": 126_227}
    sizes |= {"svhn-flow": 73_257, "cifar10-flow": 50_000, "celeba-flow": 162_770}
    for name in (*HEBM, *LFBM):
        config = recipe.load(name).train_prior
        epochs = config.iterations / (sizes[name] // config.batch_size)
        assert math.isclose(epochs, 200 if name in HEBM else 201)
