"""Streams of noise: one per image, a function of the seed and the image's number."""

import pytest
import torch

from hebmtool.noise import Noise, derive_seed


def test_noise_of_an_image_depends_on_the_seed_and_its_index_alone():
    whole = Noise(5, range(8), 400)
    parts = [Noise(5, range(4), 400), Noise(5, range(4, 8), 400)]
    assert len(whole) == 8
    for _ in range(3):
        assert torch.equal(whole(), torch.cat([part() for part in parts]))
    a, b = Noise(5, range(8), 400), Noise(6, range(8), 400)
    first, second = a(), a()
    # Eight images, two draws, two seeds: nothing repeats, all is standard normal.
    draws = torch.cat([first, second, b(), b()])
    correlation = torch.corrcoef(draws) - torch.eye(32)
    assert correlation.abs().max() < 0.3
    assert draws.mean().item() == pytest.approx(0, abs=0.05) and draws.std().item() == pytest.approx(1, abs=0.05)


def test_noise_leaves_torchs_own_numbers_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    Noise(0, range(4), 10)()
    assert torch.equal(torch.rand(3), expected)


def test_a_derived_seed_depends_on_every_part():
    parts = [(0, "a"), (1, "a"), (0, "b"), (0, "a", 0), ("0", "a"), ("a", 0)]
    seeds = [derive_seed(*each) for each in parts]
    assert len(set(seeds)) == len(parts) and all(0 <= seed < 2**63 for seed in seeds)


def test_what_an_older_version_drew_is_drawn_again():
    assert Noise(7, [2], 3)()[0].tolist() == pytest.approx([-0.82652241, 0.75126606, 1.27060413], rel=1e-6)
