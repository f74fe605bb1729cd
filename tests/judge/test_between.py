"""The distance between two sets of images, whatever they are, and which features it is in."""

import json
import urllib.error

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import hebmtool
from hebmtool.errors import HebmError
from hebmtool.metrics import embedded, inception
from hebmtool.metrics.distances import frechet_distance
from hebmtool.run import split
from hebmtool.run.folder import Run


@pytest.fixture
def no_inception(monkeypatch, tmp_path):
    def refused(*arguments, **options):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr("cleanfid.features.build_feature_extractor", refused)
    monkeypatch.setattr(inception, "weights", lambda mode: (tmp_path / f"{mode}.pt", "https://example.org/net.pt"))


@pytest.fixture
def small_inception(monkeypatch, cleanfid, tmp_path):
    """A small network where clean-fid, or we, ask for its Inception."""

    def pooled(x: torch.Tensor) -> torch.Tensor:
        return nn.functional.max_pool2d(x, 149).flatten(1) / 64

    for place in ("cleanfid.features.build_feature_extractor", "cleanfid.fid.build_feature_extractor"):
        monkeypatch.setattr(place, lambda mode, device, use_dataparallel=True: pooled)
    monkeypatch.setattr(inception, "weights", lambda mode: (tmp_path / f"{mode}.pt", "https://example.org/net.pt"))
    return cleanfid


def images(n, seed, side=8):
    return np.random.default_rng(seed).integers(0, 100 * (seed + 1), (n, side, side), dtype=np.uint8)


def folder(path, batch):
    path.mkdir()
    for i, image in enumerate(batch):
        Image.fromarray(image).save(path / f"{i:03d}.png")
    return path


def embedded_fd(a, b):
    phi = embedded.load()
    return frechet_distance(*(phi(torch.from_numpy(x)[:, None]).double().numpy() for x in (a, b)))


def test_two_folders_in_clean_fids_own_mode(small_inception, tmp_path, hebm):
    a, b = folder(tmp_path / "a", images(20, 0)), folder(tmp_path / "b", images(18, 1, side=12))
    for mode in inception.MODES:
        expected = small_inception.compute_fid(str(a), str(b), mode=mode, num_workers=0, device="cpu", verbose=False)
        _, out, _ = hebm("fid", a, b, "--mode", mode, "--json")
        found = json.loads(out)
        assert found["value"] == pytest.approx(expected, rel=1e-4) and expected > 0.1
        assert (found["figure"], found["mode"], found["features"]) == ("FID", mode, f"Inception ({mode})")
        assert found["a"] == {"name": str(a), "images": 20} and found["b"]["images"] == 18


def test_without_inception_the_embedded_network_is_taken_and_named(no_inception, tmp_path, hebm):
    np.save(tmp_path / "b.npy", images(18, 1))
    status, out, err = hebm("fid", folder(tmp_path / "a", images(20, 0)), tmp_path / "b.npy")
    value, *rest = out.strip().split("\t")
    assert status == 0 and rest == ["FD", "embedded", "20", "18"] and "in the embedded features instead" in err
    assert float(value) == pytest.approx(embedded_fd(images(20, 0), images(18, 1)), rel=1e-4)


def test_a_mode_asked_for_is_never_replaced(no_inception, tmp_path):
    a = folder(tmp_path / "a", images(4, 0))
    with pytest.raises(HebmError, match="FID in mode clean needs Inception"):
        hebmtool.fid(a, a, mode="clean", device="cpu")


def test_a_run_stands_for_what_it_draws_and_what_it_has(no_inception, tiny):
    run = Run(tiny / "digits")
    drawn = hebmtool.load(run, device="cpu").sample(30, seed=4)
    test = split.load(run, run.recipe().data, "test")
    held = test.batch(range(len(test)))
    found = hebmtool.fid("digits", "digits:test", n=30, seed=4, runs=tiny, device="cpu")
    held = held[:30]
    assert found.value == pytest.approx(embedded_fd(drawn[:, 0].numpy(), held[:, 0].numpy()), rel=1e-4)
    assert found.a == ("30 draws of digits", 30) and found.b == ("digits:test", 30)
    assert hebmtool.fid("digits:test", "digits:test", runs=tiny, device="cpu").value == pytest.approx(0, abs=1e-3)


def test_images_of_other_sizes_are_refused_or_fitted(no_inception, tmp_path):
    a, b = folder(tmp_path / "a", images(6, 0)), folder(tmp_path / "b", images(6, 1, side=12))
    with pytest.raises(HebmError, match="12x12 grey"):
        hebmtool.fid(a, b, device="cpu")
    assert hebmtool.fid(a, b, fit=True, device="cpu").value > 0


def test_one_image_is_too_few(no_inception, tmp_path):
    with pytest.raises(HebmError, match="at least two"):
        hebmtool.fid(folder(tmp_path / "a", images(1, 0)), folder(tmp_path / "b", images(6, 1)), device="cpu")
