"""What a checkpoint says and holds has types and ranges, which are looked at where it is opened, once."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hebmtool.errors import HebmError
from hebmtool.run import checkpoint
from hebmtool.run.header import contents, header

IMAGE_SHAPE = {"image_shape": [1, 8, 8]}


@pytest.fixture
def file(tmp_path):
    """A generator's checkpoint, as small as it goes."""
    path = tmp_path / "generator.safetensors"
    tensors = {"w": torch.ones(2, 3), "n": torch.tensor(4)}
    checkpoint.save(path, tensors, kind="generator", recipe={}, step=3, extra=IMAGE_SHAPE)
    return path


def told(path, **fields: str) -> None:
    """Let the header say something else."""
    with safe_open(path, "pt") as opened:
        before = opened.metadata()
    save_file(load_file(path), path, before | fields)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("step", "-1", "step.*greater than or equal to 0"),
        ("step", "1.5", "step.*integer"),
        ("step", "9" * 5000, "step.*integer"),
        ("step", str(2**63), "step.*less than"),
        ("format_version", "x", "format_version.*integer"),
        ("format_version", "0", "format_version.*at least|format_version.*greater"),
        ("format_version", "99", "reads up to format 1; upgrade"),
        ("recipe", "[]", "recipe.*dictionary"),
        ("recipe", "3", "recipe.*dictionary"),
        ("recipe", "[" * 5000, "recipe.*recursion"),
        ("recipe", "{", "recipe.*JSON"),
        ("extra", "null", "extra"),
        ("extra", "[]", "extra"),
        ("extra", "3", "extra"),
        ("extra", '{"image_shape": null}', "extra.image_shape.*list"),
        ("extra", '{"image_shape": "abc"}', "extra.image_shape.*list"),
        ("extra", '{"image_shape": [1, 8]}', "extra.image_shape.*at least 3"),
        ("extra", '{"image_shape": [1, 8, 8, 8]}', "extra.image_shape.*at most 3"),
        ("extra", '{"image_shape": ["1", 8, 8]}', "extra.image_shape.0.*integer"),
        ("extra", '{"image_shape": [true, 8, 8]}', "extra.image_shape.0.*integer"),
        ("extra", '{"image_shape": [1, 8.5, 8]}', "extra.image_shape.1.*integer"),
        ("extra", '{"image_shape": [1, 8, -8]}', "extra.image_shape.2.*greater"),
        ("extra", '{"image_shape": [1, 8, 1000000000]}', "extra.image_shape.2.*less"),
        ("extra", '{"image_shape": [1, 8, 8], "generator": 3}', "extra.generator.*string"),
        ("extra", '{"image_shape": [1, 8, 8], "whitening": [1]}', "extra.whitening.*string"),
    ],
)
def test_a_header_of_other_types_is_refused_naming_what_is_wrong(file, field, value, said):
    told(file, **{field: value})
    with pytest.raises(HebmError, match=f"(?s){said}") as refused:
        header(file)
    assert str(file) in str(refused.value) and "\n" not in str(refused.value) and len(str(refused.value)) < 400


@pytest.mark.parametrize("key", ["label", "values"])
@pytest.mark.parametrize("value", [3, None, {"a": 1}, [1]])
def test_what_a_label_says_is_text(file, key, value):
    about = IMAGE_SHAPE | {"label": "class", "values": ["0", "1"], key: value}
    told(file, kind="label", extra=json.dumps(about))
    with pytest.raises(HebmError, match=f"extra.{key}"):
        header(file)


def test_what_is_missing_is_told_where_it_is_needed(file):
    told(file, extra="{}")
    with pytest.raises(HebmError, match="extra.image_shape is missing"):
        checkpoint.extra(file, header(file), "image_shape")


def test_other_keys_are_their_writers_own(file):
    told(file, extra=json.dumps(IMAGE_SHAPE | {"mine": [1, {"a": None}]}))
    assert header(file).extra == IMAGE_SHAPE | {"mine": [1, {"a": None}]}


def test_a_recipe_that_is_wrong_is_not_blamed_on_versions(file):
    told(file, recipe='{"data": 3}')
    with pytest.raises(HebmError, match="holds a recipe that is wrong .data is 3"):
        checkpoint.recipe(file, header(file))
    told(file, package_version="9.9")
    with pytest.raises(HebmError, match="written by hebmtool 9.9"):
        checkpoint.recipe(file, header(file))
    assert contents(file)  # whatever its recipe is


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint16, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2])
def test_numbers_of_types_that_no_model_has_are_refused(file, dtype):
    checkpoint.save(file, {"w": torch.ones(2).to(dtype)}, kind="generator", recipe={}, step=0, extra=IMAGE_SHAPE)
    with pytest.raises(HebmError, match=f"'w' as {str(dtype).removeprefix('torch.')}.*float32"):
        checkpoint.load(file)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8])
def test_counts_do_not_stand_for_weights_nor_the_other_way(file, dtype):
    model = torch.nn.Linear(1, 1)
    with pytest.raises(HebmError, match="'weight' as .* where the model has float32"):
        checkpoint.load_into(model, {"weight": torch.ones(1, 1).to(dtype), "bias": torch.ones(1)}, file)
    checkpoint.load_into(model, {"weight": torch.full((1, 1), 0.5).half(), "bias": torch.ones(1).double()}, file)
    assert model.weight.item() == 0.5 and model.weight.dtype == torch.float32


@pytest.mark.parametrize("key", ["step", "x.step", "-1.step", "99999999999999999999.step", ".", "0.step.number"])
def test_an_optimizer_of_other_keys_is_refused(key):
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.Adam(model.parameters())
    with pytest.raises(HebmError, match="saved optimizer state"):
        checkpoint.restore_optimizer(optimizer, {key: torch.ones(3)})
