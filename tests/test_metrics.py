"""Fréchet distances against other ways to compute them, the closure's two ends, and feature networks."""

import numpy as np
import pytest
import torch
from torch import nn

from hebmtool import data, recipe
from hebmtool.errors import HebmError
from hebmtool.judge import closure as closures
from hebmtool.judge.closure import closure
from hebmtool.metrics import distances as metrics
from hebmtool.metrics import embedded
from hebmtool.metrics.distances import frechet_distance, kernel_distance, neighbour_radii, neighbourhoods
from hebmtool.metrics.features import Features, load_features
from hebmtool.prior.base import Prior
from hebmtool.prior.kinds import make_prior

CPU = torch.device("cpu")


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
    monkeypatch.setattr(metrics, "CHUNK", chunk)
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


# Closure


class FromPosterior(Prior):
    """A perfect prior: u of fresh posterior draws."""

    def sample(self, noise, steps=None, temperature=1.0):
        images = data.load(recipe.Data(), "train")
        x = images.batch(torch.randint(len(images), (len(noise),))).float() / 255
        return self.generator.encode(x, noise())


@pytest.fixture
def setting(make_generator):
    """A random generator on digits whose posterior is far from N(0, I), a recipe, and features that see it."""
    generator = make_generator()
    with torch.no_grad():
        for layer in generator.encoder:
            layer.head.bias.add_(1.5)
            layer.head.fold()
    settings = recipe.Recipe(generator=generator.config)
    # Centred and enlarged, for the images of a random generator are nearly grey.
    features = Features(lambda x: (nn.functional.avg_pool2d(x.float(), 2) / 255 - 0.5).flatten(1) * 10, "pooled", CPU)
    return generator, settings, features


def measure(prior, settings, features, samples=600):
    images, test = data.load(settings.data, "train"), data.load(settings.data, "test")
    return closure(prior, images, test, settings, features, samples)


def test_closure_of_the_gaussian_prior_is_zero(setting):
    generator, settings, features = setting
    found = measure(make_prior(generator, recipe.Prior(kind="gaussian")), settings, features)
    assert found.closure == 0 and found.fd_prior == found.fd_gaussian and found.kind == "gaussian"
    assert (found.samples, found.reference, found.features) == (600, len(data.load(settings.data, "test")), "pooled")
    assert found.fd_gaussian != pytest.approx(found.fd_reconstruction, rel=0.01)
    assert found.figures()["closure"] == 0 and "0.000" in found.sentence() and "pooled" in found.sentence()


def test_closure_of_posterior_draws_is_one(setting):
    generator, settings, features = setting
    found = measure(FromPosterior(generator, settings.prior), settings, features)
    expected = (found.fd_gaussian - found.fd_prior) / (found.fd_gaussian - found.fd_reconstruction)
    assert found.closure == pytest.approx(expected)
    assert found.closure == pytest.approx(1, abs=0.15)
    assert 0 < found.error < 0.2


def test_closure_measures_no_more_images_than_there_are_and_repeats_itself(setting):
    generator, settings, features = setting
    settings.data.limit = 40
    prior = make_prior(generator, recipe.Prior(kind="ebm", steps=2))
    first, second = (measure(prior, settings, features) for _ in range(2))
    assert first == second and first.samples == 40


def test_reconstructions_leave_the_random_state_alone(setting):
    generator, settings, _ = setting
    images = data.load(settings.data, "train")
    state = torch.get_rng_state()
    first = closures.reconstructions(generator, images, settings, 20)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.dtype == torch.uint8 and first.shape == (20, 1, 8, 8)
    torch.randn(3)
    assert torch.equal(closures.reconstructions(generator, images, settings, 20), first)


def test_prior_images_are_the_same_whatever_their_number(setting, monkeypatch):
    generator, settings, _ = setting
    prior = make_prior(generator, recipe.Prior(kind="gaussian"))
    few = closures.prior_images(prior, 5, seed=1)
    monkeypatch.setattr(metrics, "BATCH", 4)
    many = closures.prior_images(prior, 9, seed=1)
    assert few.dtype == torch.uint8 and many.shape == (9, 1, 8, 8)
    assert (many[:5].int() - few.int()).abs().max() <= 1  # the last bit of a matrix product
    assert not torch.equal(closures.prior_images(prior, 5, seed=2), few)


def test_closure_needs_images(setting):
    generator, settings, features = setting
    prior, images = make_prior(generator, recipe.Prior(kind="gaussian")), data.load(settings.data, "train")
    one = data.Images(1, images.shape, lambda indices: images.batch(indices))
    with pytest.raises(HebmError, match="1 held out, but needs at least 2"):
        closure(prior, images, one, settings, features, 20)
    with pytest.raises(HebmError, match="1 training image"):
        closure(prior, one, images, settings, features, 20)


def test_there_is_no_closure_where_the_features_see_no_hole(setting):
    generator, settings, _ = setting
    blind = Features(lambda x: torch.zeros(len(x), 3), "blind", CPU)
    found = measure(make_prior(generator, recipe.Prior(kind="gaussian")), settings, blind, 20)
    assert found.closure is None and found.error is None
    assert "undefined" in found.sentence()


# Feature networks


class Pooled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(x.float(), torch.ones(2, 3, 1, 1)).mean((2, 3))


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "pooled.pt"
    torch.jit.script(Pooled()).save(str(path))
    return str(path)


def test_features_from_torchscript(script, monkeypatch):
    monkeypatch.setattr(metrics, "BATCH", 4)
    features = load_features(script, (3, 8, 8), CPU)
    images = torch.randint(256, (10, 3, 8, 8), dtype=torch.uint8)
    found = features(images)
    assert features.name == "pooled.pt" and found.dtype == np.float64
    assert np.allclose(found, images.double().sum(1).mean((1, 2))[:, None].expand(-1, 2).numpy(), rtol=1e-5)


def test_missing_features(tmp_path):
    with pytest.raises(HebmError, match=r"no feature network at .*absent\.pt.*TorchScript"):
        load_features(str(tmp_path / "absent.pt"), (1, 8, 8), CPU)
    with pytest.raises(HebmError, match="no feature network at"):
        load_features(str(tmp_path), (1, 8, 8), CPU)


@pytest.mark.parametrize("content", ["text", "state dict", "empty"])
def test_features_that_are_no_torchscript(tmp_path, content):
    path = tmp_path / "other.pt"
    if content == "state dict":
        torch.save(nn.Linear(2, 2).state_dict(), path)
    else:
        path.write_text("not a network" if content == "text" else "")
    with pytest.raises(HebmError, match=r"other\.pt is not a TorchScript network"):
        load_features(str(path), (1, 8, 8), CPU)


def test_features_of_other_images(script):
    with pytest.raises(HebmError, match=r"pooled\.pt does not accept images of shape \[1, 8, 8\]"):
        load_features(script, (1, 8, 8), CPU)(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (lambda x: x.float(), r"gives shape \[4, 1, 8, 8\]"),
        (lambda x: torch.full((len(x), 2), torch.nan), "not finite"),
        (lambda x: (x, x), "does not accept"),
    ],
)
def test_features_of_the_wrong_kind(network, words):
    with pytest.raises(HebmError, match=words):
        Features(network, "odd", CPU)(torch.zeros(4, 1, 8, 8, dtype=torch.uint8))


def test_embedded_features_are_for_small_grey_images_only():
    assert load_features(None, (1, 28, 28), CPU).name == "embedded"
    assert load_features(None, (3, 32, 32), CPU) is None
    assert load_features(None, (1, 64, 64), CPU) is None


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
