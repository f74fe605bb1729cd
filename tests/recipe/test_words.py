"""Words of recipes: those of the package name its classes, others are added by whoever defines them."""

import json
import sys

import pytest

from hebmtool import chains, data, generator, prior, recipe
from hebmtool.errors import UsageError
from hebmtool.prior.objectives import OBJECTIVES
from hebmtool.recipe import words
from hebmtool.recipe.words import Words

NAMED = {
    "KINDS": prior.KINDS,
    "CHAINS": chains.CHAINS,
    "OBJECTIVES": OBJECTIVES,
    "LIKELIHOODS": generator.LIKELIHOODS,
    "SOURCES": data.SOURCES,
}
KEYS = {
    "KINDS": "prior.kind",
    "CHAINS": "prior.chain",
    "OBJECTIVES": "prior.objective",
    "LIKELIHOODS": "generator.likelihood",
    "SOURCES": "data.source",
}

LOOK = """
import json, sys
from hebmtool import recipe
from hebmtool.recipe import words
recipe.load("digits")
light = "torch" not in sys.modules
before = {name: list(getattr(words, name)) for name in sys.argv[1:]}
import hebmtool.chains, hebmtool.data, hebmtool.generator, hebmtool.prior
after = {name: list(getattr(words, name)) for name in sys.argv[1:]}
print(json.dumps([light, before, after]))
"""


@pytest.fixture
def no_plugins_yet(monkeypatch):
    monkeypatch.setattr(words, "_loaded", False)


def test_all_word_lists_are_looked_at():
    assert {name for name, value in vars(words).items() if isinstance(value, Words)} == set(NAMED) == set(KEYS)


@pytest.mark.parametrize("name", NAMED)
def test_every_word_names_something_and_everything_has_a_word(name):
    assert set(getattr(words, name)) == set(NAMED[name])


def test_the_packages_own_words_are_known_before_what_they_name_and_without_torch(child):
    status, out, err = child(sys.executable, "-c", LOOK, *NAMED).finish()
    assert status == 0, err
    light, before, after = json.loads(out)
    assert light
    assert before == after  # no class adds a word that recipes would not have known


@pytest.mark.parametrize("name", KEYS)
def test_a_recipe_takes_these_words_and_no_others(name, no_plugins_yet):
    with pytest.raises(UsageError) as caught:
        recipe.load("digits", [f"{KEYS[name]}=nonesuch"])
    assert f"{KEYS[name]} is 'nonesuch', but must be one of {', '.join(getattr(words, name))}" in str(caught.value)


def test_words_keep_their_order_and_are_added_once():
    some = Words("b", "a")
    some.add("c")
    some.add("b")
    assert list(some) == ["b", "a", "c"]
    assert some.check("c") == "c"


def test_an_installed_package_brings_words_when_one_is_unknown(monkeypatch, no_plugins_yet):
    some, loads = Words("a"), []

    class Point:
        def load(self):
            loads.append(1)
            some.add("theirs")

    def entry_points(group):
        assert group == "hebmtool"
        return [Point()]

    monkeypatch.setattr(words.metadata, "entry_points", entry_points)
    assert some.check("a") == "a" and not loads
    assert some.check("theirs") == "theirs" and loads == [1]
    with pytest.raises(ValueError):
        some.check("nobody's")
    assert loads == [1]
