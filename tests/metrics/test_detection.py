"""AUROC, AUPRC and FPR at 95% TPR: against their definitions; intervals that are those of resampled images."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from hebmtool.errors import HebmError
from hebmtool.metrics.detection import auroc, figures_of_merit, weighted


def sets(seed, digits=6):
    """Scores of 70 images inside and 40 outside; fewer digits, more ties."""
    rng = np.random.default_rng(seed)
    return rng.normal(1, 1, 70).round(digits), rng.normal(0, 1.5, 40).round(digits)


@pytest.mark.parametrize("digits", [6, 1, 0])
def test_figures_by_their_definitions(digits):
    inside, outside = sets(digits, digits)
    found = figures_of_merit(inside, outside)
    pairs = inside[:, None] - outside[None]
    assert found["auroc"] == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())
    thresholds = np.unique(np.concatenate([inside, outside]))
    recall, precision, fpr, before = [], 0.0, [], 0.0
    for s in thresholds:
        right, wrong = (outside <= s).sum(), (inside <= s).sum()
        recall.append(right / len(outside))
        precision += (recall[-1] - before) * right / (right + wrong)
        before = recall[-1]
        fpr.append(wrong / len(inside))
    assert found["auprc"] == pytest.approx(precision)
    assert found["fpr95"] == pytest.approx(min(f for r, f in zip(recall, fpr, strict=True) if r >= 0.95))
    assert auroc(inside, outside) == found["auroc"]


def test_figures_at_the_ends():
    low, high = np.arange(10.0), np.arange(20.0, 30.0)
    assert figures_of_merit(high, low) == pytest.approx({"auroc": 1.0, "auprc": 1.0, "fpr95": 0.0})
    swapped = figures_of_merit(low, high)
    assert swapped["auroc"] == 0.0 and swapped["fpr95"] == 1.0
    flat = figures_of_merit(np.zeros(30), np.zeros(10))
    assert flat == pytest.approx({"auroc": 0.5, "auprc": 0.25, "fpr95": 1.0})


@pytest.mark.parametrize("digits", [6, 1, 0])
def test_resampled_images_have_the_figures_scikit_learn_gives_their_weights(digits):
    inside, outside = sets(digits, digits)
    rng = np.random.default_rng(0)
    w_in, w_out = (rng.multinomial(n, np.full(n, 1 / n), 20).astype(float) for n in (70, 40))
    found = weighted(inside, outside, w_in, w_out)
    positive, flagged = np.repeat([0, 1], [70, 40]), -np.concatenate([inside, outside])
    for b in range(20):
        w = np.concatenate([w_in[b], w_out[b]])
        fpr, tpr, _ = roc_curve(positive, flagged, sample_weight=w, drop_intermediate=False)
        expected = [
            roc_auc_score(positive, flagged, sample_weight=w),
            average_precision_score(positive, flagged, sample_weight=w),
            fpr[tpr >= 0.95 - 1e-12].min(),
        ]
        assert found[:, b] == pytest.approx(expected, rel=1e-12)
    once = weighted(inside, outside, np.ones((1, 70)), np.ones((1, 40)))[:, 0]
    assert once == pytest.approx(list(figures_of_merit(inside, outside).values()), rel=1e-12)


def test_a_weight_of_two_is_an_image_twice():
    rng = np.random.default_rng(3)
    inside, outside = rng.normal(1, 1, 12), rng.normal(0, 1, 9)
    w_in, w_out = rng.integers(0, 3, (1, 12)), rng.integers(0, 3, (1, 9))
    found = weighted(inside, outside, w_in.astype(float), w_out.astype(float))[:, 0]
    repeated = figures_of_merit(np.repeat(inside, w_in[0]), np.repeat(outside, w_out[0]))
    assert found == pytest.approx(list(repeated.values()))


def test_intervals_cover_and_shrink():
    # True AUROC of N(1, 1) against N(0, 1): Phi(1 / sqrt 2) = 0.7602.
    rng, covered = np.random.default_rng(0), 0
    for trial in range(60):
        low, high = figures_of_merit(rng.normal(1, 1, 60), rng.normal(0, 1, 60), 200, trial)["auroc_interval"]
        covered += low <= 0.7602 <= high
    assert covered >= 51  # 95% of 60 is 57; at 95% fewer than 51 has a probability below 0.2%
    wide = figures_of_merit(rng.normal(1, 1, 60), rng.normal(0, 1, 60), 200)["auroc_interval"]
    narrow = figures_of_merit(rng.normal(1, 1, 6000), rng.normal(0, 1, 6000), 200)["auroc_interval"]
    assert np.diff(narrow) < 0.3 * np.diff(wide)


def test_what_is_not_finite_is_said():
    with pytest.raises(HebmError, match="1 of 5 scores are not finite"):
        figures_of_merit(np.array([1.0, np.nan, 2.0]), np.zeros(2))
