"""Checkpoints: what is written is read back, what is broken is named, and a failed save loses nothing."""

import errno
import json
import os

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from hebmtool.errors import HebmError
from hebmtool.recipe import Recipe
from hebmtool.run import checkpoint
from hebmtool.run import header as headers


def save(path, tensors=None, **changes):
    given = {"kind": "generator", "recipe": {"name": "a"}, "step": 7} | changes
    checkpoint.save(path, {"w": torch.arange(6.0)} if tensors is None else tensors, **given)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "generator.safetensors"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# Round trip


def test_tensors_and_header_come_back(path):
    tensors = {
        "f": torch.randn(2, 3),
        "b": torch.randn(4).bfloat16(),
        "u": torch.arange(5, dtype=torch.uint8),
        "n": torch.tensor(3),
        "empty": torch.zeros(0, 2),
    }
    recipe = Recipe(name="mine", seed=5)
    checkpoint.save(path, tensors, kind="prior", recipe=recipe, step=12, extra={"image_shape": [3, 8, 8]})
    found, header = checkpoint.load(path)
    assert found.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert found[key].dtype == tensor.dtype and torch.equal(found[key], tensor)
    assert header == checkpoint.header(path)
    assert (header.kind, header.step, header.format_version) == ("prior", 12, headers.FORMAT_VERSION)
    assert header.recipe == recipe.model_dump(mode="json") and Recipe.model_validate(header.recipe) == recipe
    assert header.extra == {"image_shape": [3, 8, 8]}
    assert load_file(path).keys() == tensors.keys()  # plain safetensors to anyone else
    assert names(path.parent) == [path.name]


def test_shared_and_strided_tensors_are_each_stored_whole(path):
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {"a": base, "same": base, "row": base[1], "transposed": base.T, "parameter": nn.Parameter(base)}
    image = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    save(path, tensors | {"image": image})
    found, _ = checkpoint.load(path)
    assert all(torch.equal(found[key], tensor) for key, tensor in (tensors | {"image": image}).items())


def test_prefix_loads_its_keys_only_without_it(path):
    save(path, {"model.w": torch.ones(1), "model.b": torch.ones(2), "modelled": torch.ones(3), "ema.w": torch.ones(4)})
    found, _ = checkpoint.load(path, prefix="model.")
    assert {key: len(tensor) for key, tensor in found.items()} == {"w": 1, "b": 2}


def test_loaded_tensors_survive_a_save_to_the_same_file(path):
    save(path, {"w": torch.arange(5000.0)})
    found, _ = checkpoint.load(path)
    found["w"] += 1
    save(path, found)
    assert torch.equal(checkpoint.load(path)[0]["w"], torch.arange(5000.0) + 1)
    assert torch.equal(found["w"], torch.arange(5000.0) + 1)


# What cannot be read


def test_missing_file_is_named(path):
    with pytest.raises(HebmError, match=r"no checkpoint .*generator\.safetensors"):
        checkpoint.load(path)
    path.mkdir()
    with pytest.raises(HebmError, match="could not read"):
        checkpoint.header(path)


@pytest.mark.parametrize("keep", [0, 5, 60, -1])
def test_truncated_file_is_named(path, keep):
    save(path)
    path.write_bytes(path.read_bytes()[:keep])
    for read in (checkpoint.load, checkpoint.header):
        with pytest.raises(HebmError, match=r"generator\.safetensors .*cut short"):
            read(path)


def test_other_files_are_told_apart(path):
    path.write_bytes(b"PK\x03\x04" + bytes(1000))
    with pytest.raises(HebmError, match="not a safetensors file"):
        checkpoint.load(path)
    save_file({"w": torch.ones(2)}, path)
    with pytest.raises(HebmError, match="hebmtool did not write"):
        checkpoint.load(path)
    save_file({"w": torch.ones(2)}, path, metadata={"format": "hebmtool", "format_version": "1"})
    with pytest.raises(HebmError, match="damaged hebmtool header"):
        checkpoint.load(path)


def test_newer_format_asks_for_an_upgrade(path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 2)
    save(path)
    with pytest.raises(HebmError, match=r"format 2.*up to format 1; upgrade"):
        checkpoint.load(path)


def test_other_kind_is_refused(path):
    save(path, kind="prior")
    assert checkpoint.load(path, kind="prior")
    with pytest.raises(HebmError, match="holds a 'prior' checkpoint where a 'generator'"):
        checkpoint.load(path, kind="generator")


# What cannot be written


def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_failed_save_leaves_the_old_file_and_no_temporary(path, monkeypatch, call):
    save(path)
    before = path.read_bytes()
    monkeypatch.setattr(os, call, no_space)
    wanted = r"no space left \(needs .* MiB free\); the previous checkpoint is intact; free some space and resume"
    with pytest.raises(HebmError, match=wanted):
        save(path, step=8)
    assert path.read_bytes() == before and names(path.parent) == [path.name]
    other = path.with_name("other.safetensors")
    with pytest.raises(HebmError) as raised:
        save(other)
    assert "intact" not in str(raised.value) and "resume" not in str(raised.value)
    assert names(path.parent) == [path.name]


def test_interrupted_save_leaves_the_old_file_and_no_temporary(path, monkeypatch):
    save(path)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(path, step=8)
    assert checkpoint.header(path).step == 7 and names(path.parent) == [path.name]


def test_failed_serialisation_is_a_sentence(path, monkeypatch):
    def refuse(*_):
        raise SafetensorError("no")

    monkeypatch.setattr(checkpoint.safetensors.torch, "save", refuse)
    with pytest.raises(HebmError, match="could not save"):
        save(path)


# Modules and optimizers


def test_load_into_fills_a_module_or_names_the_key(path):
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    checkpoint.load_into(target, source.state_dict(), path)
    assert torch.equal(source.weight, target.weight)
    for tensors, message in [
        ({"weight": torch.ones(2, 3)}, "'bias' is missing"),
        (target.state_dict() | {"more": torch.ones(1)}, "'more' has shape .*unknown"),
        (target.state_dict() | {"weight": torch.ones(2, 4)}, r"'weight' has shape \(2, 4\) where .* \(2, 3\)"),
    ]:
        with pytest.raises(HebmError, match=message):
            checkpoint.load_into(target, tensors, path)
    assert torch.equal(source.weight, target.weight)


def train(model, optimizer, steps):
    for step in steps:
        x = torch.randn(8, 5, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.SiLU(), nn.Linear(7, 1))


MAKERS = {
    "adamax": lambda p: torch.optim.Adamax(p, lr=1e-2, weight_decay=3e-4),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, betas=(0.9, 0.99), weight_decay=3e-5),
    "adam-amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
}


@pytest.mark.parametrize("name", MAKERS)
def test_training_continues_bit_for_bit(path, name):
    whole = network()
    train(whole, MAKERS[name](whole.parameters()), range(10))

    first = network()
    optimizer = MAKERS[name](first.parameters())
    train(first, optimizer, range(4))
    tensors = {f"model.{k}": v for k, v in first.state_dict().items()}
    save(path, tensors | {f"optimizer.{k}": v for k, v in checkpoint.flatten_optimizer(optimizer).items()})
    train(first, optimizer, range(4, 6))  # what was saved must not move with it

    second = network()
    optimizer = MAKERS[name](second.parameters())
    checkpoint.load_into(second, checkpoint.load(path, prefix="model.")[0], path)
    checkpoint.restore_optimizer(optimizer, checkpoint.load(path, prefix="optimizer.")[0])
    train(second, optimizer, range(4, 10))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))


def test_restored_state_is_independent_of_its_source():
    model = network()
    optimizer = MAKERS["adam"](model.parameters())
    train(model, optimizer, range(2))
    flat = checkpoint.flatten_optimizer(optimizer)
    other = MAKERS["adam"](network().parameters())
    checkpoint.restore_optimizer(other, flat)
    kept = {key: value.clone() for key, value in checkpoint.flatten_optimizer(other).items()}
    train(model, optimizer, range(2, 4))
    assert all(torch.equal(value, kept[key]) for key, value in checkpoint.flatten_optimizer(other).items())


def test_plain_numbers_in_the_state_stay_plain_numbers(path):
    parameter = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
    optimizer = torch.optim.Adam([parameter])
    mean = torch.tensor(0.1, dtype=torch.float64)
    optimizer.state[parameter] = {"step": torch.tensor(2.0), "exp_avg": mean, "count": 3, "scale": 0.1, "on": True}
    save(path, checkpoint.flatten_optimizer(optimizer))
    other = torch.optim.Adam([nn.Parameter(torch.tensor(1.0, dtype=torch.float64))])
    checkpoint.restore_optimizer(other, checkpoint.load(path)[0])
    (state,) = other.state.values()
    assert (state["count"], state["scale"], state["on"]) == (3, 0.1, True)
    assert type(state["count"]) is int and isinstance(state["exp_avg"], torch.Tensor)


def test_state_of_another_model_is_refused():
    model = network()
    optimizer = MAKERS["adam"](model.parameters())
    train(model, optimizer, range(1))
    flat = checkpoint.flatten_optimizer(optimizer)
    for other in (nn.Linear(5, 7), nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 1))):
        fresh = MAKERS["adam"](other.parameters())
        with pytest.raises(HebmError, match="saved optimizer state"):
            checkpoint.restore_optimizer(fresh, flat)
        assert not fresh.state


def test_header_is_plain_text_that_others_can_read(path):
    save(path, extra={"note": "é"})
    size = int.from_bytes(path.read_bytes()[:8], "little")
    fields = json.loads(path.read_bytes()[8 : 8 + size])["__metadata__"]
    assert fields["format"] == "hebmtool" and json.loads(fields["extra"]) == {"note": "é"}
