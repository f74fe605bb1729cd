"""Recipes: what loads, what is refused and how it is said."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path
from shutil import copytree

import pytest
import yaml

from hebmtool import recipe
from hebmtool.errors import UsageError
from hebmtool.recipe import mistakes
from hebmtool.recipe.load import _Loader

ONE_STAGE = ["celeba-flow", "cifar10-flow", "digits-flow", "mnist-anomaly-latent", "mnist-flow", "svhn-flow"]
HIERARCHICAL = [
    "celeba64",
    "celebahq256",
    "cifar10",
    "cifar10-small",
    "digits",
    "lsun64",
    "mnist",
    "mnist-anomaly",
    "mnist-anomaly-joint",
    "mnist-published",
]
BUILT_IN = sorted(ONE_STAGE + HIERARCHICAL)
CELLS = {role: ["mconv_e6k5g0"] for role in recipe.CELL_ROLES}


def fields(part=recipe.Recipe, path=""):
    for name, field in part.model_fields.items():
        yield path + name, field
        if mistakes.is_part(field):
            yield from fields(field.annotation, f"{path}{name}.")


def refusal(source, overrides=()):
    """The message `load` refuses with: always one line and exit code 2."""
    with pytest.raises(UsageError) as caught:
        recipe.load(source, overrides)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def written(tmp_path):
    def write(text):
        path = tmp_path / "mine.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


# ------------------------------------------------------------------------------------------------ built-in recipes


def test_the_built_in_recipes_are_listed_with_a_description():
    assert list(recipe.names()) == BUILT_IN
    assert all(description and not description.startswith("#") for description in recipe.names().values())


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_recipe_survives_dump_and_load(name, written):
    loaded = recipe.load(name)
    assert loaded.name == name
    assert recipe.load(written(recipe.dump(loaded))) == loaded
    assert recipe.from_dict(loaded.model_dump(mode="json")) == loaded  # as in a checkpoint's header


@pytest.mark.parametrize("name", HIERARCHICAL)
def test_images_of_a_built_in_recipe_halve_evenly(name):
    loaded = recipe.load(name)
    # MNIST is padded to 32, and halved to 16.
    side = {14: 16}.get(loaded.data.size, loaded.data.size) or {"digits": 8, "mnist": 32, "cifar10": 32}[
        loaded.data.source
    ]
    assert side % 2 ** (loaded.generator.scales - 1 + loaded.generator.preprocess_blocks) == 0


def test_text_is_the_file_as_written():
    assert recipe.text("digits").startswith("# ")
    assert recipe.from_dict(yaml.load(recipe.text("digits"), _Loader)) == recipe.load("digits")
    with pytest.raises(UsageError, match="no built-in recipe is named 'digit'.*did you mean 'digits'"):
        recipe.text("digit")


def test_a_recipes_path_means_the_built_in_one_only_where_no_such_file_exists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert recipe.load("recipes/digits.yaml").name == "digits"
    assert recipe.load(Path("recipes/digits.yaml")).name == "digits"
    assert "no recipe file mine/digits.yaml" in refusal("mine/digits.yaml")
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/digits.yaml").write_text("name: mine")
    assert recipe.load("recipes/digits.yaml").name == "mine"
    (tmp_path / "digits").mkdir()  # a folder named like a recipe does not hide it
    assert recipe.load("digits").name == "digits"


def test_a_wheel_carries_the_recipes(tmp_path):
    pytest.importorskip("hatchling")
    root = Path(__file__).parents[2]
    project, unpacked = tmp_path / "project", tmp_path / "unpacked"
    copytree(root / "hebmtool", project / "hebmtool")
    copytree(root / "recipes", project / "recipes")
    (project / "pyproject.toml").write_bytes((root / "pyproject.toml").read_bytes())
    for named_by_pyproject in ("README.md", "LICENSE"):
        (project / named_by_pyproject).write_text("text")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    subprocess.run(build, cwd=project, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    zipfile.ZipFile(wheel).extractall(unpacked)
    code = "from hebmtool import recipe; print(recipe.__file__, *recipe.names()); recipe.load('digits')"
    run = subprocess.run([sys.executable, "-c", code], cwd=unpacked, check=True, capture_output=True, text=True)
    where, *found = run.stdout.split()
    assert Path(where).is_relative_to(unpacked)
    assert found == BUILT_IN


# ---------------------------------------------------------------------------------------------------------- the keys


@pytest.mark.parametrize("path, field", [pytest.param(*both, id=both[0]) for both in fields()])
def test_every_key_has_a_description_a_default_and_a_sentence_of_what_is_allowed(path, field):
    assert field.description
    assert not field.is_required()
    if path != "generator.cells":  # which has checks of its own
        assert mistakes.allowed(field)


def test_the_defaults_are_a_valid_recipe():
    assert recipe.from_dict({}) == recipe.Recipe()
    assert recipe.from_dict(recipe.Recipe().model_dump()) == recipe.Recipe()


def test_dump_has_every_key_in_order():
    assert list(yaml.safe_load(recipe.dump(recipe.Recipe()))) == list(recipe.Recipe.model_fields)
    tree = yaml.safe_load(recipe.dump(recipe.Recipe()))
    for path, _ in fields():
        branch = tree
        for key in path.split("."):
            branch = branch[key]


def test_dump_of_a_cell_map_survives():
    loaded = recipe.from_dict({"generator": {"cells": CELLS}})
    assert recipe.from_dict(yaml.safe_load(recipe.dump(loaded))) == loaded


# ------------------------------------------------------------------------------------------------- numbers, overrides


@pytest.mark.parametrize("number", ["1e-4", "1E-4", "1.e-4", "0.0001", "+1e-4", ".1e-3"])
def test_numbers_in_either_notation(number, written):
    assert recipe.load(written(f"train_vae: {{lr: {number}}}")).train_vae.lr == 1e-4
    assert recipe.load("digits", [f"train_vae.lr={number}"]).train_vae.lr == 1e-4


def test_a_whole_number_may_have_an_exponent():
    assert recipe.load("digits", ["train_vae.iterations=2e4"]).train_vae.iterations == 20_000


def test_overrides_replace_single_keys_and_later_ones_win():
    plain = recipe.load("digits")
    changed = recipe.load(
        "digits",
        [
            "prior.energy.width=8",
            "prior.energy.width=16",
            "train_prior.betas=[0.5, 0.9]",
            "data.flip=true",
            "data.channels=null",
            "data.path=a=b",
            "evaluate.features=net.pt",
        ],
    )
    assert changed.prior.energy.width == 16
    assert changed.prior.energy.reads == plain.prior.energy.reads
    assert changed.train_prior.betas == (0.5, 0.9)
    assert changed.data.flip is True and changed.data.channels is None and changed.data.path == "a=b"
    assert changed.evaluate.features == "net.pt"
    assert recipe.load("digits") == plain


@pytest.mark.parametrize("override", ["prior.levels", "=3", "prior.=3", ".levels=3", ""])
def test_a_malformed_override_is_refused(override):
    assert "is malformed; write part.key=value" in refusal("digits", [override])


@pytest.mark.parametrize(
    "override, said",
    [
        ("prior.levles=3", "overrides: unknown key prior.levles; prior has the keys kind, levels"),
        ("prior.levels.deep=3", "overrides: prior.levels is a mapping, but must be a whole number of at least 2"),
        ("prior.levels=[1", "the override of prior.levels, line 1: not valid YAML"),
        ("prior.levels=1", "overrides: prior.levels is 1, but must be a whole number of at least 2"),
    ],
)
def test_a_mistaken_override_is_named(override, said):
    assert said in refusal("digits", [override])


# ----------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "text, said",
    [
        (
            "prior: {energy: {widht: 3}}",
            "unknown key prior.energy.widht; prior.energy has the keys form, reads, layers, width, blocks, readout, "
            "activation, spectral_norm; "
            "did you mean 'width'?",
        ),
        ("piror: {}", "unknown key piror; a recipe has the keys name, seed, data"),
        ("piror: {}", "did you mean 'prior'?"),
        ("1: 2", "unknown key 1; a recipe has the keys"),
        ("prior: 3", "prior is 3, but must be a mapping with the keys kind, levels"),
        ("prior:", "prior is null, but must be a mapping"),
        ("prior: {levels: 1}", "prior.levels is 1, but must be a whole number of at least 2"),
        ("prior: {levels: 2.5}", "prior.levels is 2.5, but must be a whole number of at least 2"),
        ("prior: {levels: yes}", "prior.levels is true, but must be a whole number"),
        ("prior: {levels: '3'}", "prior.levels is '3', but must be a whole number"),
        ("prior: {eta: 0}", "prior.eta is 0, but must be a number above 0"),
        ("prior: {eta: .inf}", "prior.eta is inf, but must be a number above 0"),
        ("prior: {eta: .nan}", "prior.eta is nan, but must be a number above 0"),
        ("prior: {eta: small}", "prior.eta is 'small', but must be a number above 0"),
        (
            "prior: {kind: difusion-ebm}",
            "prior.kind is 'difusion-ebm', but must be one of gaussian, ebm, diffusion-ebm, flow, latent-ebm; "
            "did you mean 'diffusion-ebm'?",
        ),
        ("data: {channels: 2}", "data.channels is 2, but must be null or one of 1, 3"),
        ("data: {size: 2000}", "data.size is 2000, but must be null or a whole number of at least 4 and at most 1024"),
        ("data: {flip: 1}", "data.flip is 1, but must be true or false"),
        ("data: {path: 3}", "data.path is 3, but must be null or text, in quotes where it looks like something else"),
        ("train_vae: {ema: 1}", "train_vae.ema is 1, but must be a number of at least 0 and below 1"),
        (
            "train_prior: {betas: [0.9, 1.5]}",
            "train_prior.betas is [0.9, 1.5], but must be a list of 2 numbers, each of at least 0 and below 1",
        ),
        ("train_prior: {betas: [0.9]}", "train_prior.betas is [0.9], but must be a list of 2 numbers"),
        ("train_prior: {betas: 0.9}", "train_prior.betas is 0.9, but must be a list of 2 numbers"),
        ("name: ../up", "name is '../up', but must be text (letters, digits"),
        ("name: ..", "name is '..', but must be text (letters, digits"),
        ("seed: -1", "seed is -1, but must be a whole number of at least 0"),
        (
            "generator: {postprocess_blocks: 2}",
            "preprocess_blocks is 1 and generator.postprocess_blocks is 2, but they",
        ),
        ("generator: {cells: res_mbcon}", "generator.cells is 'res_mbcon', but must be one of res_bnswish, res_mbconv"),
        ("generator: {cells: res_mbcon}", "did you mean 'res_mbconv'?"),
        ("generator: {cells: [1]}", "generator.cells is [1], but must be one of"),
        ("- 1", "a recipe is a mapping with the keys name, seed, data"),
        ("", "but this is null"),
        ("word", "but this is 'word'"),
        (
            "seed: 1\nprior:\n  levels: 3\n  kind: ebm\n  levels: 4\n",
            ", line 5: not valid YAML, the key 'levels' appears",
        ),
        ("seed: 1\nprior: [\n", ", line 3: not valid YAML"),
        ("seed: 1\n\tname: x", ", line 2: not valid YAML"),
        ("seed: 1\n---\nseed: 2\n", ", line 2: not valid YAML"),
        ("seed: \x07", "not valid YAML"),
        ("seed: 2024-13-45", "not valid YAML"),
        ("seed: !!python/name:os.system", "not valid YAML"),
        (b"name: \xff", "byte 6 is not UTF-8 text"),
    ],
)
def test_a_mistake_is_said_in_one_sentence(text, said, written):
    path = written(text)
    message = refusal(path)
    assert message.startswith(str(path))
    assert said in message


@pytest.mark.parametrize(
    "change, said",
    [
        ({"up_dec": None}, "lacks the role 'up_dec'"),
        ({"up_dek": ["res_bnswish"]}, "has the role 'up_dek'"),
        ({"up_dek": ["res_bnswish"]}, "did you mean 'up_dec'?"),
        ({"up_dec": []}, "generator.cells.up_dec is [], but must be a list of one or two ops"),
        ({"up_dec": ["res_bnswish"] * 3}, "must be a list of one or two ops"),
        ({"up_dec": ["mconv_e6k4g0"]}, "a kernel of odd size"),
        ({"up_dec": [3]}, "generator.cells.up_dec is [3]"),
        ({"up_dec": "res_bnswish"}, "generator.cells.up_dec is 'res_bnswish'"),
    ],
)
def test_a_mistaken_cell_map_is_refused(change, said):
    cells = {role: ops for role, ops in (CELLS | change).items() if ops is not None}
    with pytest.raises(UsageError) as caught:
        recipe.from_dict({"generator": {"cells": cells}}, "checkpoint x")
    assert str(caught.value).startswith("checkpoint x: generator.cells")
    assert said in str(caught.value)


def test_several_mistakes_are_counted(written):
    assert refusal(written("seed: -1\nprior: {levels: 1}")).endswith(
        "of at least 0 and at most 4294967295 (and 1 more mistake)"
    )
    assert refusal(written("seed: -1\nprior: {levels: 1, x: 1}")).endswith("(and 2 more mistakes)")
    assert "more mistake" not in refusal(written("train_prior: {betas: [2, 2]}"))


def test_a_missing_recipe_is_named_with_what_there_is(tmp_path):
    message = refusal("digit")
    assert "no recipe file digit, nor a built-in recipe" in message
    assert all(name in message for name in BUILT_IN)
    assert message.endswith("did you mean 'digits'?")
    assert "did you mean 'cifar10'?" in refusal(tmp_path / "cifar.yaml")
    assert "is not a file" in refusal(tmp_path)


def test_a_byte_order_mark_is_no_mistake(written):
    assert recipe.load(written("\ufeffname: mine")).name == "mine"


def test_a_single_mistaken_assignment_is_refused():
    changed = recipe.Recipe()
    with pytest.raises(ValueError, match="levels"):
        changed.prior.levels = 1


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, after in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "over a billion values once its aliases"),
        ("data: &a {path: *a}", "values once its aliases"),
        ("data: {exclude: [" + "x, " * 20_000 + "]}", "at most 20,000"),
        ("# " + "x" * 2**20, "has 1,048,578 characters and a recipe at most 1,048,576"),
        ("seed: " + "1" * 5000, "limit"),
        ("seed: !!float []", "expected a scalar node"),
        ("seed: !!timestamp x", "leave out tags"),
        ("seed: !!python/name:os.system", "tag"),
        ("seed: 1e400", "seed"),
        ("generator: {latent_channels: 1025}", "at most 1024"),
        ("generator: {decoder_channels: 1024, scales: 5}", "32,768.*at most 128"),
        ("train_vae: {iterations: 1e300}", "at most 1000000000"),
    ],
)
def test_what_cannot_be_meant_is_told_by_its_limit(tmp_path, text, words):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=f"(?s)^{re.escape(str(path))}.*{words}") as caught:
        recipe.load(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_file_that_is_no_recipe_is_not_read(tmp_path):
    with open(tmp_path / "big.yaml", "wb") as file:
        file.truncate(2**33)
    with pytest.raises(UsageError, match="has 8,589,934,592 bytes"):
        recipe.load(tmp_path / "big.yaml")
