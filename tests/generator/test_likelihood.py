"""The likelihoods: they are distributions, samples and means are theirs, and pixels are read as they want them."""

import itertools
import math

import pytest
import torch
from torch import distributions as D

from hebmtool import recipe
from hebmtool.generator.likelihood import (
    LIKELIHOODS,
    Bernoulli,
    FixedGaussian,
    Gaussian,
    Likelihood,
    Mixture,
    log_normal,
    normal_parameters,
)

BITS = 5
MAKE = {word: lambda of=of: of.from_recipe(recipe.Generator(mixtures=3), BITS) for word, of in LIKELIHOODS.items()}
MAKE["of one layer"] = lambda: FixedGaussian(0.3)
every = pytest.mark.parametrize("name", MAKE)
either = pytest.mark.parametrize("colours", [1, 3])


def grid(bits: int) -> torch.Tensor:
    return torch.arange(2.0**bits, dtype=torch.double) / (2**bits - 1)


def log_sigmoid(t: float) -> float:
    return -math.log1p(math.exp(-t)) if t > 0 else t - math.log1p(math.exp(t))


def brute_force(logits: list[float], x: list[float], mixtures: int, bits: int) -> float:
    """log p of one pixel with the colours `x`, straight from the definition, in plain numbers."""
    n, colours = 2**bits - 1, len(x)
    per_colour = 3 if colours == 3 else 2
    y = [2 * v - 1 for v in x]

    def parameter(colour: int, which: int, m: int) -> float:
        return logits[mixtures + (colour * per_colour + which) * mixtures + m]

    norm = math.log(sum(math.exp(w) for w in logits[:mixtures]))
    terms = []
    for m in range(mixtures):
        c = [math.tanh(parameter(k, 2, m)) if colours == 3 else 0.0 for k in range(colours)]
        log_p = logits[m] - norm
        for k in range(colours):
            mean = parameter(k, 0, m)
            if k == 1:
                mean += c[0] * y[0]
            if k == 2:
                mean += c[1] * y[0] + c[2] * y[1]
            s = math.exp(max(parameter(k, 1, m), -7.0))
            above, at, below = ((y[k] + shift - mean) / s for shift in (1 / n, 0, -1 / n))
            difference = math.exp(log_sigmoid(above)) - math.exp(log_sigmoid(below))
            if y[k] < -0.999:
                log_p += log_sigmoid(above)
            elif y[k] > 0.99:
                log_p += log_sigmoid(-below)
            elif difference > 1e-5:
                log_p += math.log(difference)
            else:
                log_p += log_sigmoid(at) + log_sigmoid(-at) + math.log(2 / n / s)
        terms.append(log_p)
    top = max(terms)
    return top + math.log(sum(math.exp(term - top) for term in terms))


# Mixture of discretised logistics


@pytest.mark.parametrize("bits", [4, 5, 8])
def test_mixture_sums_to_one_over_the_levels_of_a_grey_pixel(bits):
    mixtures = 3
    logits = torch.randn(1, 3 * mixtures, 1, 1, dtype=torch.double)
    logits[:, 2 * mixtures :] -= 1.0
    x = grid(bits).view(-1, 1, 1, 1)
    log_p = Mixture(mixtures, bits).log_prob(logits.expand(len(x), -1, -1, -1), x)
    expected = 1.0
    if bits == 8:
        # At 8 bits, 254 too lies above 0.99, and takes the upper tail that 255 also takes.
        weights, mean, log_scale = logits.flatten().chunk(3)
        tail = torch.sigmoid(-(1 - 1 / 255 - mean) * torch.exp(-log_scale))
        expected += (torch.softmax(weights, 0) * tail).sum().item()
    # Levels of probability below 1e-5 are approximated by their density.
    assert log_p.exp().sum().item() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(("colours", "bits", "mixtures"), [(1, 8, 1), (1, 4, 5), (3, 8, 4), (3, 5, 1), (3, 2, 3)])
def test_mixture_equals_brute_force(colours, bits, mixtures):
    likelihood = Mixture(mixtures, bits)
    logits = torch.randn(16, likelihood.parameters(colours), 1, 1, dtype=torch.double) * 2
    levels = grid(bits)
    x = levels[torch.randint(len(levels), (16, colours, 1, 1))]
    x[0], x[1] = 0, 1
    for found, l, v in zip(likelihood.log_prob(logits, x), logits, x, strict=True):
        expected = brute_force(l.flatten().tolist(), v.flatten().tolist(), mixtures, bits)
        assert found.item() == pytest.approx(expected, rel=1e-9)


def test_mixture_sums_to_one_over_all_colours():
    likelihood = Mixture(3, 2)
    logits = torch.randn(1, 30, 1, 1, dtype=torch.double)
    logits[:, 3:].view(1, 3, 3, 3)[:, :, 2] *= 2  # strong coupling
    colours = torch.tensor(list(itertools.product(grid(2).tolist(), repeat=3)), dtype=torch.double)
    log_p = likelihood.log_prob(logits.expand(64, -1, -1, -1), colours.view(64, 3, 1, 1))
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-7)


def test_mixture_couples_green_with_red_and_blue_with_both():
    # One narrow component whose coefficients are +1, 0 and -1 (through tanh): g = r, b = -g.
    logits = torch.tensor([0.0, 0, -4, 9, 0, -4, 0, 0, -4, -9], dtype=torch.double).view(1, 10, 1, 1)
    likelihood = Mixture(1, 8)
    for red in (0.2, 0.7):
        good = torch.tensor([red, red, 1 - red], dtype=torch.double).view(1, 3, 1, 1)
        for wrong in ([red, 1 - red, 1 - red], [red, red, red]):
            bad = torch.tensor(wrong, dtype=torch.double).view(1, 3, 1, 1)
            assert likelihood.log_prob(logits, good).item() > likelihood.log_prob(logits, bad).item() + 10


def test_mixture_log_scale_is_clamped_at_minus_seven():
    likelihood, x = Mixture(1, 8), grid(8)[[100]].view(1, 1, 1, 1)
    at, below = (torch.tensor([0.0, -0.2, s], dtype=torch.double).view(1, 3, 1, 1) for s in (-7.0, -30.0))
    assert likelihood.log_prob(at, x).item() == likelihood.log_prob(below, x).item()
    above = torch.tensor([0.0, -0.2, -6.9], dtype=torch.double).view(1, 3, 1, 1)
    assert likelihood.log_prob(above, x).item() != likelihood.log_prob(at, x).item()


@pytest.mark.parametrize("dtype", [torch.float, torch.double])
def test_mixture_far_from_its_means_uses_the_density_and_stays_differentiable(dtype):
    logits = torch.tensor([0.0, 0.9, -4.0], dtype=dtype).view(1, 3, 1, 1).requires_grad_()
    x = torch.tensor(51 / 255, dtype=dtype).view(1, 1, 1, 1)  # y = -0.6
    s = math.exp(-4)
    t = (-0.6 - 0.9) / s
    expected = t - math.log(s) - 2 * math.log1p(math.exp(t)) + math.log(2 / 255)
    log_p = Mixture(1, 8).log_prob(logits, x)
    assert log_p.item() == pytest.approx(expected, rel=1e-5)
    log_p.backward()
    assert logits.grad.isfinite().all() and logits.grad[0, 1].abs() > 10


@pytest.mark.parametrize("extreme", [0.0, 1.0])
def test_mixture_is_finite_at_the_edges(extreme):
    logits = torch.tensor([0.0, 4 - 8 * extreme, -6.0]).view(1, 3, 1, 1).requires_grad_()
    log_p = Mixture(1, 8).log_prob(logits, torch.full((1, 1, 1, 1), extreme))
    log_p.backward()
    assert -1e5 < log_p.item() < -100 and logits.grad.isfinite().all()


def test_mixture_samples_follow_its_probabilities():
    bits, n = 3, 200_000
    likelihood = Mixture(3, bits)
    logits = torch.randn(1, 9, 1, 1)
    logits[:, 6:] -= 1.0
    p = likelihood.log_prob(logits.expand(8, -1, -1, -1), grid(bits).float().view(-1, 1, 1, 1)).exp()
    samples = likelihood.sample(logits.expand(n, -1, -1, -1))
    counts = torch.bincount((samples * 7).round().long().flatten(), minlength=8) / n
    assert torch.allclose(counts, p, atol=5 * (0.25 / n) ** 0.5)


def test_mixture_sample_takes_one_component_for_all_colours_and_couples():
    # Two components so narrow that samples are their (coupled) means.
    logits = torch.full((1, 20, 1, 1), -20.0)
    weights, rest = logits[:, :2], logits[:, 2:].view(1, 3, 3, 2)
    weights[0, :, 0, 0] = torch.tensor([math.log(0.3), math.log(0.7)])
    rest[0, :, 0] = torch.tensor([[0.5, -0.5], [0.2, -0.1], [0.1, 0.0]])
    rest[0, :, 2] = torch.atanh(torch.tensor([[0.5, 0.2], [0.3, -0.4], [-0.5, 0.6]]))
    samples = 2 * Mixture(2, 8).sample(logits.expand(4000, -1, -1, -1))[:, :, 0, 0] - 1
    expected = []
    for m in range(2):
        (mr, mg, mb), c = rest[0, :, 0, m], torch.tanh(rest[0, :, 2, m])
        g = mg + c[0] * mr
        expected.append(torch.stack([mr, g, mb + c[1] * mr + c[2] * g]))
    distance = torch.stack([(samples - e).abs().amax(1) for e in expected], dim=1)
    assert distance.amin(1).max() < 0.03
    assert (distance.argmin(1) == 0).float().mean().item() == pytest.approx(0.3, abs=0.04)


def test_mixture_mean_averages_before_it_couples():
    logits = torch.randn(2, 40, 3, 3)
    mean = 2 * Mixture(4, 8).mean(logits) - 1
    share = torch.softmax(logits[:, :4], 1)
    part = logits[:, 4:].view(2, 3, 3, 4, 3, 3)
    m = (share[:, None] * part[:, :, 0]).sum(2)
    c = (share[:, None] * torch.tanh(part[:, :, 2])).sum(2)
    r = m[:, 0].clamp(-1, 1)
    g = (m[:, 1] + c[:, 0] * r).clamp(-1, 1)
    b = (m[:, 2] + c[:, 1] * r + c[:, 2] * g).clamp(-1, 1)
    assert torch.allclose(mean, torch.stack([r, g, b], 1), atol=1e-6)


# Gaussian and Bernoulli


def test_gaussian_equals_torchs():
    logits, x = torch.randn(3, 6, 4, 4, dtype=torch.double) * 3, torch.rand(3, 3, 4, 4, dtype=torch.double)
    mu, sigma = 5 * torch.tanh(logits[:, :3] / 5), torch.exp(5 * torch.tanh(logits[:, 3:] / 5)) + 0.01
    expected = D.Normal(mu, sigma).log_prob(2 * x - 1).flatten(1).sum(1)
    assert torch.allclose(Gaussian(8).log_prob(logits, x), expected, rtol=1e-12)
    assert torch.allclose(normal_parameters(logits[:, :3], logits[:, 3:])[1], sigma)
    assert torch.allclose(log_normal(x, mu[:, :3], sigma), D.Normal(mu, sigma).log_prob(x))


def test_gaussian_samples_follow_its_density():
    logits = torch.tensor([0.1, -2.0]).view(1, 2, 1, 1)
    y = 2 * Gaussian(8).sample(logits.expand(50_000, -1, -1, -1)) - 1
    mu, sigma = normal_parameters(*logits.flatten())
    assert y.mean().item() == pytest.approx(mu.item(), abs=0.005)
    assert y.std().item() == pytest.approx(sigma.item(), rel=0.02)


@pytest.mark.parametrize("bits", [5, 8])
def test_gaussian_log_bin_turns_a_density_into_a_probability(bits):
    logits = torch.tensor([0.1, -1.5], dtype=torch.double).view(1, 2, 1, 1)
    centres = ((torch.arange(2**bits, dtype=torch.double) + 0.5) / 2**bits).view(-1, 1, 1, 1)
    likelihood = Gaussian(bits)
    p = (likelihood.log_prob(logits.expand(len(centres), -1, -1, -1), centres) + likelihood.log_bin).exp().sum()
    assert p.item() == pytest.approx(1, abs=1e-3)


def test_bernoulli_equals_torchs():
    logits, x = torch.randn(3, 1, 4, 4, dtype=torch.double) * 3, torch.randint(2, (3, 1, 4, 4)).double()
    expected = D.Bernoulli(logits=logits).log_prob(x).flatten(1).sum(1)
    assert torch.allclose(Bernoulli().log_prob(logits, x), expected, rtol=1e-12)


def test_bernoulli_samples_follow_its_probabilities():
    logits = torch.tensor([-1.0, 0.5]).view(1, 1, 1, 2)
    samples = Bernoulli().sample(logits.expand(50_000, -1, -1, -1))
    assert set(samples.unique().tolist()) == {0, 1}
    assert torch.allclose(samples.mean(0), torch.sigmoid(logits[0]), atol=0.01)


def test_fixed_gaussian_is_one_up_to_a_constant():
    logits, x = torch.randn(3, 3, 4, 4, dtype=torch.double).tanh(), torch.rand(3, 3, 4, 4, dtype=torch.double)
    found = FixedGaussian(0.3).log_prob(logits, x) - D.Normal(logits, 0.3).log_prob(2 * x - 1).flatten(1).sum(1)
    assert torch.allclose(found, found[0].expand(3), rtol=1e-12)
    samples = 2 * FixedGaussian(0.1).sample(torch.full((50_000, 1, 1, 1), 0.2)) - 1
    assert samples.mean().item() == pytest.approx(0.2, abs=0.005)
    assert samples.std().item() == pytest.approx(0.1, rel=0.02)


# What every likelihood does


def logits_of(likelihood: Likelihood, colours: int, size: float = 1.0) -> torch.Tensor:
    logits = size * torch.randn(2, likelihood.parameters(colours), 4, 4)
    return logits.tanh() if isinstance(likelihood, FixedGaussian) else logits


def whole_numbers(colours: int) -> torch.Tensor:
    v = torch.randint(2**BITS, (2, colours, 4, 4)).float()
    v[0, 0, 0, :2] = torch.tensor([0.0, 2**BITS - 1])
    return v


def test_every_likelihood_is_looked_at():
    def below(of):
        return {of}.union(*map(below, of.__subclasses__()))

    ours = {of for of in below(Likelihood) - {Likelihood} if of.__module__.startswith("hebmtool.")}
    assert ours <= {type(make()) for make in MAKE.values()}


@every
@either
def test_means_and_samples_are_images(name, colours):
    likelihood = MAKE[name]()
    logits = logits_of(likelihood, colours, 20)
    for images in (likelihood.mean(logits), likelihood.sample(logits)):
        assert images.shape == (2, colours, 4, 4) and images.min() >= 0 and images.max() <= 1
    assert likelihood.log_prob(logits, images).isfinite().all()


@every
@either
def test_the_log_likelihood_is_a_sum_over_the_visible_pixels(name, colours):
    likelihood = MAKE[name]()
    logits, x = logits_of(likelihood, colours), likelihood.read(whole_numbers(colours), BITS)
    pixels = likelihood.pixels(logits, x)
    assert pixels.shape == (2, 4, 4)
    torch.testing.assert_close(likelihood.log_prob(logits, x), pixels.sum((1, 2)))
    visible = torch.rand(2, 1, 4, 4) < 0.5
    torch.testing.assert_close(likelihood.log_prob(logits, x, visible), (pixels * visible[:, 0]).sum((1, 2)))
    torch.testing.assert_close(likelihood.log_prob(logits, x, torch.ones_like(visible)), pixels.sum((1, 2)))
    assert not likelihood.log_prob(logits, x, torch.zeros_like(visible)).any()
    # What is hidden does not matter, and a pixel that is seen does.
    changed = torch.where(visible, x, likelihood.read(whole_numbers(colours), BITS))
    torch.testing.assert_close(likelihood.log_prob(logits, changed, visible), likelihood.log_prob(logits, x, visible))


@every
@either
def test_every_parameter_of_a_pixel_has_a_finite_slope(name, colours):
    likelihood = MAKE[name]()
    logits = logits_of(likelihood, colours).requires_grad_()
    likelihood.log_prob(logits, likelihood.read(whole_numbers(colours), BITS)).sum().backward()
    assert logits.grad.isfinite().all() and logits.grad.any(-1).any(-1).all()


@every
def test_pixels_are_read_into_the_unit_interval_and_know_their_number(name):
    likelihood, v = MAKE[name](), whole_numbers(3)
    x, grey = likelihood.read(v, BITS), likelihood.read_grey(v, BITS)
    assert x.shape == grey.shape == v.shape and x.dtype == torch.float32
    for read in (x, grey):
        assert read.min() >= 0 and read.max() <= 1
    # Reading keeps the number, or (binary pixels) keeps it in the mean.
    assert torch.equal((grey * (2**BITS - 1)).round(), v) or torch.equal((grey * 2**BITS).floor(), v)
    mean = torch.stack([likelihood.read(v, BITS) for _ in range(2000)]).mean(0)
    assert (mean - likelihood.read_grey(v, BITS)).abs().max() < 0.06


@every
def test_reading_draws_from_the_global_generator_alone(name):
    likelihood, v = MAKE[name](), whole_numbers(1)
    torch.manual_seed(1)
    first, state = likelihood.read(v, BITS), torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(likelihood.read(v, BITS), first)
    if type(likelihood).read_grey is not Likelihood.read_grey:
        torch.set_rng_state(state)
        likelihood.read_grey(v, BITS)
        assert torch.equal(torch.get_rng_state(), state)


@every
def test_bits_per_dimension(name):
    likelihood = MAKE[name]()
    expected = [-(-30 + 48 * likelihood.log_bin) / 48 / math.log(2), -likelihood.log_bin / math.log(2)]
    assert likelihood.bits_per_dim(torch.tensor([-30.0, 0.0]), 48).tolist() == pytest.approx(expected)


def test_binary_pixels_are_draws_whose_mean_is_the_grey_value():
    v = torch.full((1, 1, 200, 200), 10.0)
    x = Bernoulli().read(v, 5)
    assert set(x.unique().tolist()) == {0, 1} and x.mean().item() == pytest.approx(10 / 31, abs=0.01)
    assert not torch.equal(x, Bernoulli().read(v, 5))
    assert torch.equal(Bernoulli().read_grey(v, 5), v / 31)


def test_a_density_reads_a_uniform_draw_of_the_bin():
    v = torch.tensor([0.0, 100, 255]).view(1, 1, 1, 3).expand(2000, 1, 1, 3)
    rest = Gaussian(8).read(v, 8) * 256 - v
    assert rest.min() >= 0 and rest.max() < 1
    assert rest.mean().item() == pytest.approx(0.5, abs=0.02) and rest.std().item() == pytest.approx(12**-0.5, abs=0.01)


def test_the_mixture_reads_its_own_grid():
    v = torch.arange(32.0).view(1, 1, 4, 8)
    assert torch.equal(Mixture(3, 5).read(v, 5).flatten(), grid(5).float())
