"""Streams of noise: one per image, a function of the seed and the image's number."""

import pytest
import torch
from meta import META, accelerated

from hebmtool.errors import UsageError
from hebmtool.noise import STREAMS, Noise, derive_seed, philox, streams

every_stream = pytest.mark.parametrize("word", STREAMS)


@every_stream
def test_noise_of_an_image_depends_on_the_seed_and_its_index_alone(word):
    with streams(word):
        whole = Noise(5, range(8), 401)
        parts = [Noise(5, range(4), 401), Noise(5, range(4, 8), 401)]
        a, b = Noise(5, range(8), 401), Noise(6, range(8), 401)
    assert len(whole) == 8
    for _ in range(3):
        assert torch.equal(whole(), torch.cat([part() for part in parts]))
    first, second = a(), a()
    # Eight images, two draws, two seeds: nothing repeats, all is standard normal.
    draws = torch.cat([first, second, b(), b()])
    assert draws.shape == (32, 401) and draws.dtype == torch.float32
    correlation = torch.corrcoef(draws) - torch.eye(32)
    assert correlation.abs().max() < 0.3
    assert draws.mean().item() == pytest.approx(0, abs=0.05) and draws.std().item() == pytest.approx(1, abs=0.05)


@every_stream
def test_noise_leaves_torchs_own_numbers_alone(word):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with streams(word):
        Noise(0, range(4), 10)()
    assert torch.equal(torch.rand(3), expected)


def test_a_derived_seed_depends_on_every_part():
    parts = [(0, "a"), (1, "a"), (0, "b"), (0, "a", 0), ("0", "a"), ("a", 0)]
    seeds = [derive_seed(*each) for each in parts]
    assert len(set(seeds)) == len(parts) and all(0 <= seed < 2**63 for seed in seeds)


def test_what_an_older_version_drew_is_drawn_again():
    """Where nothing is said, and again after something was."""
    for _ in range(2):
        assert Noise(7, [2], 3)()[0].tolist() == pytest.approx([-0.82652241, 0.75126606, 1.27060413], rel=1e-6)
        with (
            pytest.raises(UsageError, match="no noise 'filox'; choose of torch, philox; did you mean 'philox'"),
            streams("filox"),
        ):
            pass


# Philox


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([2**32 - 1] * 4, [2**32 - 1] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_published_words(counter, key, words):
    """The known answers that come with the authors' Random123."""
    found = philox([torch.tensor(c) for c in counter], [torch.tensor(k) for k in key])
    assert " ".join(f"{int(word):08x}" for word in found) == words


def test_philox_is_standard_normal_and_independent():
    """Moments, tails, the law itself, and no correlation between coordinates, draws or images; 400,000 numbers."""
    with streams("philox"):
        noise = Noise(3, range(100), 1000)
        draws = torch.stack([noise() for _ in range(4)]).double()
    z, n = draws.flatten(), draws.numel()
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert z.pow(power).mean().item() == pytest.approx(moment, abs=5 * (spread / n) ** 0.5)
    distance = (torch.special.ndtr(z.sort().values) - torch.arange(1, n + 1) / n).abs().max().item()
    assert distance < 1.95 / n**0.5  # Kolmogorov-Smirnov at 0.1%
    assert ((z.abs() > 3).double().mean().item()) == pytest.approx(0.0027, abs=5 * (0.0027 / n) ** 0.5)
    ways = {"coordinates": draws.flatten(0, 1), "images": draws.transpose(0, 1).flatten(1)}
    for rows in (ways["images"], ways["coordinates"].T[:200], draws.flatten(1)):
        correlation = torch.corrcoef(rows).triu(1)
        assert correlation.abs().max() < 5.5 / rows.shape[1] ** 0.5
    # The two that come of one pair of words, and their squares.
    pairs = torch.stack([draws[0, :, :250].flatten(), draws[0, :, 250:500].flatten()])
    for two in (pairs, pairs.square()):
        assert abs(torch.corrcoef(two)[0, 1].item()) < 5 / 25_000**0.5


def test_philox_is_drawn_where_it_is_wanted():
    with streams("philox"):
        noise = Noise(0, range(3), 10, META)
    with accelerated():
        assert noise().shape == (3, 10) and noise().device == META
