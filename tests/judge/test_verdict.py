"""The sentence on top says what the figures below it say, and how sure that is."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from hebmtool.judge.ood import Method
from hebmtool.judge.verdict import hole, legend, outliers
from hebmtool.metrics.figures import Figure


def accuracy(of, value, error=0.01):
    return Figure("two-sample accuracy", value, error, of, "lower")


def gains(of, *values, error=0.01):
    """Of layers 1, 2, ..."""
    return [Figure("gain given above", value, error, of, "lower", i) for i, value in enumerate(values, 1)]


def test_the_hole_is_where_the_gains_are():
    found = hole([accuracy("gaussian", 0.8), *gains("gaussian", 0.01, 0.08, 0.19)])
    assert found == (
        "The hole is mostly in layer 3, then 2, of 3 (1 = bottom): draws of the Gaussian prior are told from posterior "
        "u 80% ± 1% of the time (chance 50%)."
    )
    assert "in layer 2 of 3 (1 = bottom)" in hole([accuracy("gaussian", 0.8), *gains("gaussian", 0, 0.3, -0.2)])
    assert "spread over the layers" in hole([accuracy("gaussian", 0.8), *gains("gaussian", 0.01, 0.01, 0.01)])


def test_no_hole_is_no_hole():
    assert hole([accuracy("gaussian", 0.515), *gains("gaussian", 0.3)]).startswith("No hole shows: ")
    assert hole([Figure("ELBO", -80.0, 0.1)]) is None


@pytest.mark.parametrize(
    ("left", "exact", "said"),
    [
        (0.51, None, "the ebm prior leaves nothing that these draws show, 51% ± 1% of the time"),
        (0.60, None, "of the ebm prior still 60% ± 1% of the time (chance 50%), in layer 1 of 2 (1 = bottom)."),
        (0.60, 0.52, "its sampler's doing in part, for drawn exactly it is 52%"),
        (0.60, 0.59, "its energies' doing, for drawn exactly it is 59%"),
    ],
)
def test_what_a_prior_leaves_is_its_samplers_or_its_energies(left, exact, said):
    figures = [accuracy("gaussian", 0.8), *gains("gaussian", 0.1, 0.2), accuracy("ebm", left), *gains("ebm", 0.1, 0)]
    if exact is not None:
        figures.append(accuracy("ebm (adjusted)", exact))
    found = hole(figures)
    assert said in found and found.count(".") == 1 and found.endswith(".")


def test_of_likelihoods_alone_it_says_what_they_say():
    assert hole([Figure("gain over gaussian", 1.5, 0.2, "ebm")]) == (
        "The ebm prior makes held-out images likelier by 1.50 ± 0.20 nats than the Gaussian one."
    )
    assert "neither likelier nor less likely" in hole([Figure("gain over gaussian", -0.1, 0.2, "ebm")])


def test_the_legend_is_of_what_is_there():
    assert [line.partition(":")[0] for line in legend([accuracy("gaussian", 0.8)])] == ["two-sample accuracy"]


def method(name, best, worst, by=(), cuts=(0, 1)):
    """A score that tells two sets, one better than the other, the cut 1 chosen."""
    rng = np.random.default_rng(0)
    scorer = SimpleNamespace(name=name, cuts=list(cuts), score=name, scheme="inference")
    found = Method(scorer, rng.normal(size=(400, len(cuts))), cuts[-1], by)
    for of, shift in (("noise", best), ("shuffled", worst)):
        found.add(of, rng.normal(size=(400, len(cuts))) - shift)
    return found


def test_the_score_to_use_is_the_one_whose_worst_set_is_told_best():
    good, bad = method("energy", 3, 1.5), method("likelihood", 4, 0.5)
    name, value = good.worst(1)
    found = outliers([bad, good])
    assert name == "shuffled" and value == pytest.approx(0.5 + math.erf(1.5 / 2) / 2, abs=0.03)
    assert found.startswith(f"Use energy of the layers above 1: it puts a test image above an outlier {value:.0%}")
    assert f"AUROC {value:.3f}, 95% interval" in found and "likelihood" not in found
    assert found.endswith("; the score was chosen by these sets, the cut was chosen without them.")


def test_scores_that_are_no_worse_are_named_and_useless_ones_said_to_be():
    assert "no worse within that: other" in outliers([method("energy", 3, 1.5), method("other", 3, 1.5)])
    assert outliers([method("energy", 3, 0.0)]).startswith("No score tells every set from the test images: the best")
    alone = outliers([method("energy", 3, 1.5, by=None, cuts=(0,))])
    assert alone.startswith("Use energy: ") and "chosen" not in alone
