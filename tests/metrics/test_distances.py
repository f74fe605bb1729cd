"""Fréchet and kernel distances against other ways to compute them; neighbourhoods by brute force."""

import numpy as np
import pytest

from hebmtool.metrics import distances
from hebmtool.metrics.distances import frechet_distance, kernel_distance, neighbour_radii, neighbourhoods

# Fréchet distance


@pytest.mark.parametrize("seed", range(3))
def test_frechet_distance_is_cleanfids(seed, cleanfid):
    rng = np.random.default_rng(seed)
    a, b = (rng.normal(size=(n, 12)) @ rng.normal(size=(12, 12)) + rng.normal(size=12) for n in (200, 300))
    expected = cleanfid.frechet_distance(a.mean(0), np.cov(a, rowvar=False), b.mean(0), np.cov(b, rowvar=False))
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_of_independent_features_in_closed_form():
    # Exactly uncorrelated columns: the sum of (difference of means)^2 + (difference of standard deviations)^2.
    rng = np.random.default_rng(0)
    columns, _ = np.linalg.qr(np.concatenate([np.ones((100, 1)), rng.normal(size=(100, 5))], axis=1))
    white = columns[:, 1:] * np.sqrt(99)
    mean, spread_a, spread_b = rng.normal(size=5), rng.uniform(0.5, 2, 5), rng.uniform(0.5, 2, 5)
    expected = (mean**2 + (spread_a - spread_b) ** 2).sum()
    assert frechet_distance(white * spread_a, white[::-1] * spread_b + mean) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("case", ["few images", "dead feature", "all dead", "repeated feature"])
def test_frechet_distance_with_singular_covariances(case):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(50, 8)), rng.normal(size=(60, 8)) + 1
    if case == "few images":
        a, b = a[:3], b[:4]
    elif case == "dead feature":
        a[:, 2], b[:, 2] = 0, 0
    elif case == "all dead":
        a[:], b[:] = 0, 2
    else:
        a[:, 1], b[:, 1] = a[:, 0], b[:, 0]
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert 0 < frechet_distance(a, b) < 1000
    # A small ridge regularises away the singularity and hardly changes the value.
    ridge = 1e-4 * rng.normal(size=(10_000, 8))
    many = [np.resize(x, (10_000, 8)) + ridge for x in (a, b)]
    if case != "few images":
        assert frechet_distance(a, b) == pytest.approx(frechet_distance(*many), rel=0.05)
    else:
        assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-6)


def test_frechet_distance_of_a_single_feature():
    a, b = np.array([[0.0], [2.0]]), np.array([[3.0], [7.0]])  # means 1, 5; standard deviations sqrt 2, sqrt 8
    assert frechet_distance(a, b) == pytest.approx(16 + 2)


# Kernel distance


@pytest.mark.parametrize("size", [2, 12])
def test_kernel_distance_by_brute_force(size):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(12, 3)), rng.normal(size=(15, 3)) + 0.5
    found, error, spread = kernel_distance(a, b, size=size, subsets=6)

    def kernel(x, y):
        return (sum(u * v for u, v in zip(x, y, strict=True)) / 3 + 1) ** 3

    draw, values = np.random.default_rng(0), []
    for _ in range(6):
        x, y = a[draw.choice(12, size, replace=False)], b[draw.choice(15, size, replace=False)]
        pairs = [(i, j) for i in range(size) for j in range(size)]
        own = [np.mean([kernel(z[i], z[j]) for i, j in pairs if i != j]) for z in (x, y)]
        values.append(sum(own) - 2 * np.mean([kernel(x[i], y[j]) for i, j in pairs]))
    assert found == pytest.approx(np.mean(values)) and spread == pytest.approx(np.std(values, ddof=1))
    assert error > spread / 6**0.5


def test_kernel_distance_is_cleanfids(cleanfid):
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(40, 6)), rng.normal(size=(40, 6)) + 0.3
    # A subset of everything leaves nothing to chance.
    expected = cleanfid.kernel_distance(a, b, num_subsets=2)
    assert kernel_distance(a, b, size=40, subsets=2)[0] == pytest.approx(expected)


@pytest.mark.parametrize("shift", [0.0, 0.8])
def test_kernel_distance_knows_its_error(shift):
    rng = np.random.default_rng(2)
    reference = rng.normal(size=(2000, 4))
    found = np.array([kernel_distance(rng.normal(size=(150, 4)) + shift, reference, subsets=20) for _ in range(60)])
    deviation = found[:, 0].std(ddof=1)
    assert deviation / 2 < np.sqrt((found[:, 1] ** 2).mean()) < 2 * deviation


@pytest.mark.parametrize("shift", [0.0, 0.8])
def test_kernel_distance_is_unbiased(shift):
    # The cubic kernel's mean over pairs of normal points, with q = |m|^2 of their means, in closed form.
    D, q = 4, 4 * shift**2
    moved = 1 + 3 * q / D + 3 * (D + 2 * q + q**2) / D**2 + (q**3 + 6 * q**2 + 3 * q * D + 6 * q) / D**3
    expected = moved + (1 + 3 / D) - 2 * (1 + 3 * (D + q) / D**2)
    rng = np.random.default_rng(3)
    sets = [[rng.normal(size=(30, D)) + m for m in (shift, 0)] for _ in range(400)]
    found = np.array([kernel_distance(*pair, subsets=2)[0] for pair in sets])
    assert found.mean() == pytest.approx(expected, abs=3 * found.std() / 20)


# Precision, recall, density, coverage


def averages(generated, reference):
    terms = neighbourhoods(generated, reference, neighbour_radii(reference))
    assert [len(terms[name]) for name in ("precision", "density")] == [len(generated)] * 2
    assert [len(terms[name]) for name in ("recall", "coverage")] == [len(reference)] * 2
    return {name: term.mean() for name, term in terms.items()}


@pytest.mark.parametrize("chunk", [1, 40, 10_000])
def test_neighbourhoods_by_brute_force(chunk, monkeypatch):
    monkeypatch.setattr(distances, "CHUNK", chunk)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(14, 2)) * 0.7 + 1.5, rng.normal(size=(40, 2))

    def distance(u, v):
        return sum((p - q) ** 2 for p, q in zip(u, v, strict=True)) ** 0.5

    def radius(points, i, k):
        return sorted(distance(points[i], points[j]) for j in range(len(points)) if j != i)[k - 1]

    def inside(point, points, k):
        return [distance(point, points[j]) < radius(points, j, k) for j in range(len(points))]

    found = averages(x, y)
    assert found["precision"] == pytest.approx(np.mean([any(inside(p, y, 3)) for p in x]))
    assert found["recall"] == pytest.approx(np.mean([any(inside(p, x, 3)) for p in y]))
    assert found["density"] == pytest.approx(np.mean([sum(inside(p, y, 5)) / 5 for p in x]))
    assert found["coverage"] == pytest.approx(np.mean(np.any([inside(p, y, 5) for p in x], axis=0)))
    assert 0 < found["precision"] < 1 and 0 < found["coverage"] < 1


def test_neighbourhoods_of_a_set_against_itself_and_against_one_far_away():
    x = np.random.default_rng(0).normal(size=(50, 6))
    assert averages(x, x[::-1].copy()) == {"precision": 1, "recall": 1, "density": pytest.approx(1), "coverage": 1}
    assert set(averages(x, x + 100).values()) == {0}


def test_neighbourhoods_of_samples_that_miss_a_mode():
    rng = np.random.default_rng(0)
    mode, other = rng.normal(size=(40, 3)), rng.normal(size=(40, 3)) + 100
    found = averages(mode + 1e-6, np.concatenate([mode, other]))
    assert (found["precision"], found["recall"], found["coverage"]) == (1, 0.5, 0.5)
    found = averages(np.concatenate([mode, other]), mode + 1e-6)
    assert (found["precision"], found["recall"], found["coverage"]) == (0.5, 1, 1)


def test_neighbourhoods_of_few_and_of_equal_images():
    x = np.random.default_rng(0).normal(size=(2, 3))
    assert averages(x, x)["precision"] == 1  # the one other point bounds the ball
    collapsed = np.zeros((20, 3))
    reference = np.concatenate([np.zeros((1, 3)), np.eye(3), -np.eye(3)])
    found = averages(collapsed, reference)
    assert found["precision"] == 1 and found["recall"] == 0 and found["coverage"] == 1
