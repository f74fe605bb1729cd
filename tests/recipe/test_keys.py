"""The keys of a recipe, as they are listed and as editors read them; and recipes under a name of one's own."""

import jsonschema
import pytest
import yaml

from hebmtool import recipe
from hebmtool.errors import UsageError
from hebmtool.recipe.load import _Loader

CHECK = jsonschema.Draft202012Validator(recipe.schema())


def leaves(tree: dict, prefix: str = "") -> dict:
    """Every value of the nested mapping that is no mapping, and every mapping that a key has for a value."""
    found = {}
    for key, value in tree.items():
        name = prefix + key
        part = isinstance(value, dict) and name != "data.attributes"
        found |= leaves(value, f"{name}.") if part else {name: value}
    return found


def test_every_key_is_listed_in_order_with_its_default():
    defaults, found = leaves(recipe.Recipe().model_dump(mode="json")), recipe.keys()
    assert {key.name: key.default for key in found} == defaults
    assert [key.name for key in found] == list(defaults)


def test_keys_are_found_by_name_and_by_description():
    assert [key.name for key in recipe.keys("LR_W")] == ["train_vae.lr_warmup", "train_prior.lr_warmup"]
    assert "train_vae.batch_size" in [key.name for key in recipe.keys("images per update")]
    [levels] = recipe.keys(r"prior\.levels")
    assert levels.takes == "a whole number of at least 2 and at most 1024"


@pytest.mark.parametrize(
    ("pattern", "said"), [("batchsize", "did you mean 'batch_size'?"), ("(", "no regular expression")]
)
def test_a_pattern_that_finds_nothing_is_a_mistake(pattern, said):
    with pytest.raises(UsageError, match=r"batchsize|\(") as caught:
        recipe.keys(pattern)
    assert said in str(caught.value)


@pytest.mark.parametrize("name", recipe.names())
def test_built_in_recipes_fit_the_schema(name):
    CHECK.validate(yaml.load(recipe.text(name), _Loader))
    CHECK.validate(recipe.load(name).model_dump(mode="json"))


@pytest.mark.parametrize(
    "tree",
    [
        {"prior": {"labels": "class"}},
        {"data": {"exclude": [3, "4"], "attributes": {"odd": [1, "3"]}}},
        {"prior": {"fast": None, "chain": "langevin"}},
        {"data": {"missing": 0.5}, "prior": {"kind": "flow"}},
    ],
)
def test_what_a_recipe_takes_the_schema_takes(tree):
    recipe.from_dict(tree)
    CHECK.validate(tree)


@pytest.mark.parametrize(
    "tree",
    [{"prior": {"level": 3}}, {"prior": {"levels": 1}}, {"prior": {"chain": "walk"}}, {"train_vae": {"lr": "fast"}}],
)
def test_what_a_recipe_refuses_the_schema_refuses(tree):
    with pytest.raises(UsageError):
        recipe.from_dict(tree)
    assert not CHECK.is_valid(tree)


@pytest.mark.parametrize("name", ["cats", "3.5", "null", "a.b", "2024"])
def test_a_recipe_under_another_name_is_the_same_otherwise(tmp_path, name):
    text = recipe.named(name, "mnist")
    (tmp_path / "mine.yaml").write_text(text)
    assert recipe.load(tmp_path / "mine.yaml") == recipe.load("mnist", [f'name="{name}"'])
    assert [line for line in recipe.text("mnist").splitlines() if "#" in line] == [
        line for line in text.splitlines() if "#" in line
    ]


def test_a_recipe_without_a_name_gets_one(tmp_path):
    (tmp_path / "nameless.yaml").write_text("seed: 3\n")
    assert yaml.safe_load(recipe.named("cats", tmp_path / "nameless.yaml")) == {"name": "cats", "seed": 3}


@pytest.mark.parametrize("name", ["../up", "", ".hidden", "a b"])
def test_a_name_that_names_no_run_is_refused(name):
    with pytest.raises(UsageError, match="name"):
        recipe.named(name, "mnist")
