"""Feature networks: from TorchScript, embedded, and what is said of those that do not fit."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images
from torch import nn
from torchvision.transforms.functional import gaussian_blur

from hebmtool.errors import HebmError
from hebmtool.metrics import embedded
from hebmtool.metrics import features as networks
from hebmtool.metrics.distances import frechet_distance
from hebmtool.metrics.features import Features, load_features

CPU = torch.device("cpu")


class Pooled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(x.float(), torch.ones(2, 3, 1, 1)).mean((2, 3))


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "pooled.pt"
    torch.jit.script(Pooled()).save(str(path))
    return str(path)


def test_features_from_torchscript(script, monkeypatch):
    monkeypatch.setattr(networks, "BATCH", 4)
    features = load_features(script, (3, 8, 8), CPU, trusted=True)
    images = torch.randint(256, (10, 3, 8, 8), dtype=torch.uint8)
    found = features(images)
    assert features.name == "pooled.pt" and found.dtype == np.float64
    assert np.allclose(found, images.double().sum(1).mean((1, 2))[:, None].expand(-1, 2).numpy(), rtol=1e-5)


def test_features_from_torch_export(tmp_path):
    path, example = tmp_path / "pooled.pt2", torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    torch.export.save(torch.export.export(Pooled(), (example,), dynamic_shapes=({0: torch.export.Dim("n")},)), path)
    images = torch.randint(256, (10, 3, 8, 8), dtype=torch.uint8)
    found = load_features(str(path), (3, 8, 8), CPU, trusted=True)(images)
    assert np.allclose(found, images.double().sum(1).mean((1, 2))[:, None].expand(-1, 2).numpy(), rtol=1e-5)


def test_missing_features(tmp_path):
    for name in ("absent.pt", "absent.safetensors"):
        with pytest.raises(HebmError, match=r"no feature network at .*absent.*TorchScript"):
            load_features(str(tmp_path / name), (1, 8, 8), CPU, trusted=True)
    with pytest.raises(HebmError, match="no feature network at"):
        load_features(str(tmp_path), (1, 8, 8), CPU, trusted=True)


@pytest.mark.parametrize("ending", ["pt", "pt2"])
@pytest.mark.parametrize("content", ["text", "state dict", "empty"])
def test_features_that_are_no_torchscript(tmp_path, content, ending):
    path = tmp_path / f"other.{ending}"
    if content == "state dict":
        torch.save(nn.Linear(2, 2).state_dict(), path)
    else:
        path.write_text("not a network" if content == "text" else "")
    with pytest.raises(HebmError, match=r"other\.pt2? is not a TorchScript network"):
        load_features(str(path), (1, 8, 8), CPU, trusted=True)


def test_features_of_other_images(script):
    with pytest.raises(HebmError, match=r"pooled\.pt does not accept images of shape \[1, 8, 8\]"):
        load_features(script, (1, 8, 8), CPU, trusted=True)(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (lambda x: x.float(), r"gives shape \[4, 1, 8, 8\]"),
        (lambda x: torch.full((len(x), 2), torch.nan), "not finite"),
        (lambda x: torch.zeros(len(x) + 1, 2), r"gives shape \[5, 2\] for 4 images"),
        (lambda x: torch.zeros(()), "does not accept|gives shape"),
        (lambda x: {}["key"], "does not accept"),
        (lambda x: (x, x), "does not accept"),
    ],
)
def test_features_of_the_wrong_kind(network, words):
    with pytest.raises(HebmError, match=words):
        Features(network, "odd", CPU)(torch.zeros(4, 1, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("shape", "name"),
    [((1, 28, 28), "embedded"), ((1, 64, 48), "embedded colour"), ((3, 8, 8), "embedded colour"), ((2, 8, 8), None)],
)
def test_which_images_an_embedded_network_is_for(shape, name):
    found = load_features(None, shape, CPU)
    if name is None:
        assert found is None
        return
    images = torch.randint(256, (3, *shape), dtype=torch.uint8)
    assert found.name == name and found.digest and found(images).shape == (3, 32 if name == "embedded" else 64)


@pytest.fixture(scope="module")
def patches():
    """Pieces of scikit-learn's two photographs, uint8 [600, 3, 32, 32], in no order."""
    pictures = [torch.from_numpy(picture.copy()).permute(2, 0, 1) for picture in load_sample_images().images]
    pieces = [p.unfold(1, 32, 24).unfold(2, 32, 24).flatten(1, 2).transpose(0, 1) for p in pictures]
    pieces = torch.cat(pieces)
    return pieces[torch.randperm(len(pieces), generator=torch.Generator().manual_seed(0))][:600].contiguous()


def test_colour_features_rank_degradations(patches):
    features, (reference, images) = load_features(None, (3, 32, 32), CPU), patches.split(300)
    reference, x = features(reference), images.float() / 255
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    ladders = {
        "blur": [gaussian_blur(x, [13, 13], [sigma, sigma]) for sigma in (0.6, 1.0, 1.8)],
        "noise": [x + deviation * noise for deviation in (0.05, 0.1, 0.2)],
        "contrast": [0.5 + factor * (x - 0.5) for factor in (2, 4, 8)],
    }
    whole = frechet_distance(features(images), reference)
    for name, ladder in ladders.items():
        found = [frechet_distance(features(y.mul(255).clamp(0, 255).to(torch.uint8)), reference) for y in ladder]
        assert whole < found[0] < found[1] < found[2], (name, whole, found)


def test_colour_features_see_averages_of_larger_images(patches):
    features, few = load_features(None, (3, 64, 64), CPU), patches[:4]
    larger = few.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert np.allclose(features(larger), features(few), atol=1e-3)


def test_embedded_network_knows_its_digits():
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    images = torch.from_numpy(digits.images).float().mul(255 / 16).round().to(torch.uint8)[:, None]
    network = embedded.load()
    with torch.no_grad():
        found = network(images)
        accuracy = (network.classes(found).argmax(1).numpy() == digits.target).mean()
        assert found.shape == (len(images), embedded.FEATURES) and accuracy > 0.95
        assert torch.equal(embedded.load()(images), found)
        # An enlarged image has the features of the original.
        assert torch.allclose(
            network(images[:50].repeat_interleave(3, 2).repeat_interleave(3, 3)), found[:50], atol=1e-3
        )
