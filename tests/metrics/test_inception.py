"""Inception through clean-fid, with a small network in Inception's place; what is said where there is none."""

import urllib.error

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from hebmtool.errors import HebmError
from hebmtool.metrics import distances, inception

CPU = torch.device("cpu")


def stand_in(x: torch.Tensor) -> torch.Tensor:
    """float [N, 3, 299, 299] in 0..255 -> [N, 12]."""
    assert x.shape[1:] == (3, 299, 299) and x.min() >= 0 and 1 < x.max() <= 255
    return nn.functional.max_pool2d(x, 149).flatten(1) / 64


@pytest.fixture
def network(monkeypatch, cleanfid, tmp_path):
    """The stand-in wherever clean-fid, or we, ask for its Inception, whose file is not there."""
    modes = []

    def build(mode, device, use_dataparallel=True):
        modes.append(mode)
        return stand_in

    monkeypatch.setattr("cleanfid.features.build_feature_extractor", build)
    monkeypatch.setattr(cleanfid, "build_feature_extractor", build)
    monkeypatch.setattr(inception, "weights", lambda mode: (tmp_path / f"{mode}.pt", "https://example.org/net.pt"))
    return modes


def images(n, channels, seed, side=20):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 60 * (seed + 2), (n, channels, side, side), dtype=np.uint8))


def save(folder, batch):
    folder.mkdir()
    for i, image in enumerate(batch):
        array = image.permute(1, 2, 0).numpy()
        Image.fromarray(array[..., 0] if len(image) == 1 else array).save(folder / f"{i:03d}.png")
    return folder


@pytest.mark.parametrize("mode", inception.MODES)
@pytest.mark.parametrize("channels", [1, 3])
def test_fid_of_folders_and_of_tensors_is_cleanfids(mode, channels, network, cleanfid, tmp_path):
    sets = [images(40, channels, 0), images(36, channels, 1)]
    folders = [str(save(tmp_path / str(i), batch)) for i, batch in enumerate(sets)]
    expected = cleanfid.compute_fid(*folders, mode=mode, num_workers=0, device=CPU, verbose=False)
    assert expected > 0.5
    assert inception.fid(*folders, mode=mode) == pytest.approx(expected, rel=1e-4)
    features = inception.load(mode, CPU)
    assert features.name == f"Inception ({mode})" and features.digest is None
    assert distances.frechet_distance(*map(features, sets)) == pytest.approx(expected, rel=1e-4)
    theirs = cleanfid.get_folder_features(folders[0], stand_in, num_workers=0, device=CPU, mode=mode, verbose=False)
    assert np.array_equal(features(sets[0]), theirs)
    assert set(network) == {mode}


def test_the_two_modes_differ(network):
    sets = [images(40, 3, 0), images(36, 3, 1)]
    clean, legacy = (distances.frechet_distance(*map(inception.load(mode, CPU), sets)) for mode in inception.MODES)
    assert clean != pytest.approx(legacy, rel=1e-3)


def test_fid_needs_images(network, tmp_path):
    full, one = save(tmp_path / "full", images(3, 3, 0)), save(tmp_path / "one", images(1, 3, 0))
    with pytest.raises(HebmError, match="at least two images in the folder .*one"):
        inception.fid(full, one)


# Where there is no Inception


def test_we_look_where_cleanfid_looks(monkeypatch, tmp_path):
    asked = []

    def no_network(*arguments, **options):
        asked.append(arguments)
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("cleanfid.inception_torchscript.check_download_inception", lambda fpath: asked.append(fpath))
    monkeypatch.setattr("torch.jit.load", no_network)
    with pytest.raises(HebmError):
        inception.load("clean", CPU)
    folder, (path,) = asked
    assert path == f"{folder}/inception-2015-12-05.pt" == str(inception.weights("clean")[0])

    asked.clear()
    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(HebmError):
        inception.load("legacy_pytorch", CPU)
    ((url, path, *_),) = asked
    assert (str(inception.weights("legacy_pytorch")[0]), inception.weights("legacy_pytorch")[1]) == (path, url)


@pytest.mark.parametrize("mode", inception.MODES)
def test_no_inception_is_one_sentence(mode, monkeypatch, tmp_path):
    path = tmp_path / "net.pt"

    def build(*arguments, **options):
        if not path.exists():
            path.write_bytes(b"cut sh")
            raise urllib.error.URLError("no route")
        raise RuntimeError("in a zip:\nPytorchStreamReader failed")

    monkeypatch.setattr("cleanfid.features.build_feature_extractor", build)
    monkeypatch.setattr(inception, "weights", lambda mode: (path, "https://example.org/net.pt"))
    with pytest.raises(HebmError) as caught:
        inception.load(mode, CPU)
    said = str(caught.value)
    for words in (mode, f"{path} is missing and could not be fetched", "no route", "place the file of https://exa"):
        assert words in said
    assert "\n" not in said and not path.exists()
    path.write_bytes(b"cut sh")
    with pytest.raises(HebmError, match=r"net\.pt is damaged \(PytorchStreamReader failed\)"):
        inception.load(mode, CPU)
    assert path.exists()


# Inception score


class Classes(nn.Module):
    """As Inception's file is called: p(y | x) by the images' brightness."""

    def forward(
        self, img: torch.Tensor, return_features: bool = False, use_fp16: bool = False, no_output_bias: bool = False
    ) -> torch.Tensor:
        assert no_output_bias and img.shape[1] == 3
        bright = (img.float().mean((1, 2, 3)) / 256)[:, None]
        return torch.cat([bright, 1 - bright], dim=1)


def test_inception_scores_in_closed_form():
    equal, classes = np.full((40, 5), 0.2), np.tile(np.eye(4), (10, 1))
    assert inception.inception_scores(equal) == pytest.approx(np.ones(10))
    assert inception.inception_scores(classes) == pytest.approx(np.full(10, 4))
    # Four images make two splits: p = 1/4, 3/4 against the mean 1/2.
    p = np.array([[0.25, 0.75], [0.75, 0.25]] * 2)
    expected = np.exp(0.25 * np.log(0.5) + 0.75 * np.log(1.5))
    assert inception.inception_scores(p) == pytest.approx([expected] * 2)


def test_classifier_is_cleanfids_file_or_none(monkeypatch, tmp_path):
    path = tmp_path / "classes.pt"
    monkeypatch.setattr(inception, "weights", lambda mode: (path, "url"))
    assert inception.load_classifier(CPU) is None
    torch.jit.script(Classes()).save(str(path))
    classifier = inception.load_classifier(CPU)
    found = classifier(images(5, 1, 0))
    assert found.shape == (5, 2) and found.sum(1) == pytest.approx(np.ones(5)) and len(classifier.digest) == 64
