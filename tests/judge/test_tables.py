"""The tables of benchmarks/results.py: what stands under ±, and the one that holds chains against each other."""

import importlib
import math
from pathlib import Path

import pytest
from tiny import DIGITS, options


@pytest.fixture
def results(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("results")


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([(0.5, None)], "0.500"),
        ([(0.5, 0.02)], "0.500 ± 0.020"),
        ([(0.4, None), (0.5, None), (0.6, None)], f"0.500 ± {0.1 / math.sqrt(3):.3f}"),
        # What seeds share does not grow smaller with their number; what they do not share does.
        ([(0.4, 0.03), (0.5, 0.04), (0.6, 0.05)], f"0.500 ± {math.sqrt(0.01 / 3 + 0.005 / 3):.3f}"),
        ([(0.5, 0.04)] * 3, "0.500 ± 0.040"),
    ],
)
def test_the_error_of_a_mean_is_of_seeds_and_of_images(results, found, said):
    assert results.spread(found) == said


def test_chains_are_held_against_each_other_on_the_same_energies(results, tiny, capsys):
    told = ["--seeds", "1", "--samples", "24", "--chains", "hmc", "underdamped", "--gradients", "5", "--device", "cpu"]
    results.main(
        ["chains", "digits", *options([*DIGITS, "prior.labels=[class]"]), *told, "--runs", str(tiny), "--full"]
    )
    head, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()
    ]
    assert head[3:] == ["acceptance", "F short of the posterior", *results.SHOWN]
    assert [row[:3] for row in rows] == [
        ["joint EBM", "underdamped, as learned", "2"],
        ["joint EBM", "hmc", "5"],
        ["joint EBM", "underdamped", "5"],
        ["diffusion EBM", "underdamped, as learned", "6"],
        ["diffusion EBM", "underdamped, fast", "2"],
        ["diffusion EBM", "hmc", "5"],
        ["diffusion EBM", "underdamped", "5"],
    ]
    for row in rows:
        assert (row[3] != "") == row[1].startswith("hmc") and all(row[4:])
