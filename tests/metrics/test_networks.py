"""Feature networks as data: what a file says is checked, nothing in it runs, programs are opened only if trusted."""

import contextlib
import pickle
import warnings
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from hebmtool.errors import HebmError
from hebmtool.metrics import networks
from hebmtool.metrics.features import load_features, load_own

CPU = torch.device("cpu")
SHARED = Path("/work/shared/features")


@pytest.fixture
def network():
    """One that differs from its start everywhere."""
    made = networks.Residual(3, 2).eval()
    for tensor in made.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape) + 0.5 if tensor.is_floating_point() else tensor)
    return made


@pytest.fixture
def file(network, tmp_path):
    networks.save(network, tmp_path / "small.safetensors")
    return tmp_path / "small.safetensors"


def test_a_network_is_what_was_saved(network, file):
    images = torch.randint(256, (5, 3, 12, 9), dtype=torch.uint8)
    features = load_features(str(file), (3, 12, 9), CPU)
    found = features(images)
    assert features.name == "small.safetensors" and found.shape == (5, 8)
    assert torch.equal(torch.from_numpy(found).float(), network(images).detach())


class Wrapped(nn.Module):
    """As the published ones are: within another, beside the last layer."""

    def __init__(self, inner):
        super().__init__()
        self.n, self.n.fc = inner, nn.Linear(8, 10)

    def forward(self, images):
        return self.n(images)


def as_script(module, path, channels=3):
    with warnings.catch_warnings(action="ignore"):
        torch.jit.trace(module, torch.zeros(2, channels, 16, 16, dtype=torch.uint8)).save(str(path))
    return path


def test_torchscript_is_converted_to_the_bit(network, tmp_path, capsys):
    old = as_script(Wrapped(network).eval(), tmp_path / "old.pt")
    new = tmp_path / "new.safetensors"
    assert str(new) in networks._convert([str(old), str(new)])
    images = torch.randint(256, (5, 3, 16, 16), dtype=torch.uint8)
    features = [load_features(str(path), (3, 16, 16), CPU, trusted=True)(images) for path in (old, new)]
    assert (features[0] == features[1]).all()


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared feature networks")
@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_the_networks_in_use_are_converted(name, tmp_path):
    networks.save(networks.converted(SHARED / f"{name}_features.pt"), tmp_path / "new.safetensors")
    assert networks.load(tmp_path / "new.safetensors")


def test_other_programs_are_not_converted(network, tmp_path):
    class Twice(Wrapped):
        def forward(self, images):
            return 2 * self.n(images)

    for module in (Twice(network).eval(), nn.Flatten()):
        with pytest.raises(HebmError, match="what none of the known architectures does"):
            networks.converted(as_script(module, tmp_path / "other.pt"))
    with pytest.raises(HebmError, match="ends in .safetensors"):
        networks._convert(["a.pt", "b.pt"])


def rewritten(file, header, change=lambda tensors: None):
    tensors = safetensors.torch.load_file(file)
    change(tensors)
    safetensors.torch.save_file(tensors, file, header)


GOOD = {"format": networks.FORMAT, "format_version": "1", "architecture": "residual"}


@pytest.mark.parametrize(
    ("header", "change", "words"),
    [
        (GOOD | {"architecture": "residuel"}, None, "known are residual.*did you mean 'residual'"),
        (GOOD | {"format": "hebmtool"}, None, "not of a feature network"),
        (GOOD | {"format_version": "2"}, None, "upgrade hebmtool"),
        ({"format": "pt"}, None, "not of a feature network"),
        (GOOD, lambda t: t.pop("body.8.f.1.1.bias"), "'body.8.f.1.1.bias' is missing"),
        (GOOD, lambda t: t.pop("body.0.0.weight"), "does not fit the architecture"),
        (GOOD, lambda t: t.update(more=torch.zeros(3)), "'more' is missing, unknown"),
        (GOOD, lambda t: t.update({"body.0.0.weight": torch.zeros(3)}), "does not fit the architecture"),
        (GOOD, lambda t: t.update(mean=torch.zeros(1, 3, 1, 1).double()), "'mean' is missing, unknown"),
        (GOOD, lambda t: t["std"].fill_(torch.nan), "'std' with values that are not finite"),
    ],
)
def test_a_file_that_does_not_fit_is_named(file, header, change, words):
    rewritten(file, header, change or (lambda tensors: None))
    with pytest.raises(HebmError, match=rf"small\.safetensors .*{words}"):
        load_features(str(file), (3, 16, 16), CPU)


def test_a_file_that_is_no_safetensors_is_named(tmp_path):
    (tmp_path / "odd.safetensors").write_bytes(b"odd")
    with pytest.raises(HebmError, match="is not a safetensors file"):
        load_features(str(tmp_path / "odd.safetensors"), (3, 16, 16), CPU)


class Writing(nn.Module):
    """TorchScript that leaves a file where it ran."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        torch.save(images, "ran")
        return images.float().mean((2, 3))


class Unpickled:
    def __reduce__(self):
        return Path.touch, (Path("ran"),)


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """A TorchScript file that leaves the file `ran` where it is used, and a .pt2 that does so when it is read."""
    monkeypatch.chdir(tmp_path)
    torch.jit.script(Writing()).save("network.pt")
    example = (torch.zeros(2, 3, 8, 8, dtype=torch.uint8),)
    torch.export.save(torch.export.export(networks.Residual(3, 1).eval(), example), "whole.pt2")
    with zipfile.ZipFile("whole.pt2") as whole, zipfile.ZipFile("network.pt2", "w") as changed:
        for name in whole.namelist():
            content = whole.read(name)
            if name.endswith("weights_config.json"):
                content = content.replace(b'"use_pickle": false', b'"use_pickle": true')
            elif "/weight_" in name:
                content = pickle.dumps(Unpickled())
            changed.writestr(name, content)
    return tmp_path


@pytest.mark.parametrize("name", ["network.pt", "network.pt2"])
def test_programs_run_only_if_trusted(programs, name, capsys):
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(HebmError, match=rf"{name} is no safetensors file, and reading any other runs what is in it"):
        load_features(name, (3, 8, 8), CPU)
    assert load_own(name, (3, 8, 8), CPU) is None and "nothing is measured in features" in capsys.readouterr().err
    assert not Path("ran").exists()
    with contextlib.suppress(HebmError):  # that the precaution is needed: both do run
        load_features(name, (3, 8, 8), CPU, trusted=True)(images)
    assert Path("ran").exists()


def test_a_converted_file_beside_it_is_taken_instead(programs, network):
    networks.save(network, "network.safetensors")
    for found in (load_features("network.pt", (3, 8, 8), CPU), load_own("network.pt", (3, 8, 8), CPU)):
        assert found.name == "network.safetensors"
