"""Latents in a file, and the ways between them."""

import math

import numpy as np
import pytest
import torch
from toys import toy_prior

from hebmtool.errors import HebmError
from hebmtool.noise import Noise, derive_seed
from hebmtool.use import latents
from hebmtool.use.latents import Latents


@pytest.fixture
def found(generator) -> Latents:
    return latents.of_images(generator, torch.randn(3, generator.D), ["a", "b c", "é"], "digest")


def test_what_is_saved_is_loaded(found, generator, tmp_path):
    found.save(tmp_path / "x.npz")
    read = Latents.load(tmp_path / "x.npz")
    assert (read.names, read.shapes, read.generator) == (found.names, generator.latent_shapes, "digest")
    assert torch.equal(read.u, found.u) and torch.equal(read.z, found.z)
    assert torch.allclose(generator.T_inverse(read.z), read.u, atol=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        {"u": np.zeros((3, 5), np.float32)},
        {"u": np.full((3, 40), np.nan, np.float32)},
        {"u": np.zeros(40, np.float32)},
        {"z": np.zeros((3, 40), np.int64)},
        {"names": np.array(["a"])},
        {"shapes": np.array([[2, 2, 2]])},
        {"shapes": np.array([1.5])},
        {"names": None},
    ],
    ids=str,
)
def test_arrays_that_fit_nothing_are_refused(found, tmp_path, change):
    found.save(tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as file:
        arrays = {name: array for name, array in ({**file} | change).items() if array is not None}
    np.savez(tmp_path / "y.npz", **arrays)
    with pytest.raises(HebmError, match=r"y\.npz"):
        Latents.load(tmp_path / "y.npz")


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut short"])
def test_a_file_of_something_else_is_refused(tmp_path, content):
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(HebmError, match="holds no latents"):
        Latents.load(tmp_path / "x.npz")
    with pytest.raises(HebmError, match="could not read"):
        Latents.load(tmp_path / "absent.npz")


def test_objects_are_never_unpickled(found, tmp_path):
    found.save(tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as file:
        np.savez(tmp_path / "y.npz", **{**file, "names": np.array([object(), 1, 2], dtype=object)})
    with pytest.raises(HebmError, match="holds no latents"):
        Latents.load(tmp_path / "y.npz")


def test_the_way_is_a_great_circle_whose_radius_goes_evenly():
    start, end = torch.randn(2, 50, dtype=torch.float64)
    way = latents.slerp(start, 2 * end, 5)
    assert torch.equal(way[0], start) and torch.equal(way[-1], 2 * end)
    assert torch.allclose(
        way.norm(dim=1), torch.lerp(start.norm(), 2 * end.norm(), torch.linspace(0, 1, 5, dtype=torch.float64))
    )
    angles = [math.acos(torch.cosine_similarity(a, b, dim=0)) for a, b in zip(way[:-1], way[1:], strict=True)]
    assert angles == pytest.approx([sum(angles) / 4] * 4)
    # And it never leaves the plane of the two.
    plane, _ = torch.linalg.qr(torch.stack([start, end], dim=1))
    assert torch.allclose(plane @ (plane.T @ way.T), way.T)


@pytest.mark.parametrize("factor", [1.0, 0.0, -1.0])
def test_without_a_direction_it_is_the_straight_line(factor):
    start = torch.randn(6)
    way = latents.slerp(start, factor * start, 3)
    assert torch.allclose(way[1], (1 + factor) / 2 * start, atol=1e-6)


@pytest.mark.parametrize("kind", ["gaussian", "ebm", "diffusion-ebm"])
def test_points_between_make_steps_with_the_same_noise_and_ends_stay(generator, kind):
    prior = toy_prior(generator, kind, weight=0.05, reads="z").eval().requires_grad_(False)
    ends = torch.randn(3, generator.D)
    found = latents.between(prior, ends, 4, 2, seed=5)
    assert found.shape == (2, 4, generator.D)
    assert torch.equal(found[:, 0], ends[:-1]) and torch.equal(found[:, -1], ends[1:])
    circle = latents.slerp(ends[1], ends[2], 4)
    assert torch.equal(latents.between(prior, ends, 4, 0, seed=5)[1], circle)
    noise = Noise(derive_seed(5, "between"), [1, 1], generator.D)
    assert torch.allclose(found[1, 1:-1], prior.refine(circle[1:-1], noise, 2))
    assert torch.equal(found[1], circle) == (kind == "gaussian")
    # Unless told otherwise so few that the points do not become one.
    default = latents.between(prior, ends, 4, None, seed=5)[1]
    assert (default[1] - default[2]).norm() > (circle[1] - circle[2]).norm() / 2
    # Alone, a point would have made the same steps.
    assert torch.allclose(
        found[1, 2], prior.refine(circle[2:3], Noise(derive_seed(5, "between"), [1], generator.D), 2)[0], atol=1e-5
    )
