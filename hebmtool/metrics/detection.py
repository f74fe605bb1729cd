"""TODO."""

import numpy as np

TPR = 0.95


# Comparison with out-of-distribution sets -----------------------------------------------------------------------------


def _curves(inside: np.ndarray, outside: np.ndarray, in_weights: np.ndarray, out_weights: np.ndarray) -> np.ndarray:
    """AUROC, AUPRC and FPR at 95% TPR, [3, B], of scores [N] and [M] under B weightings [B, N] and [B, M].

    The out-of-distribution images are the positives, flagged when their score is low.
    """
    scores = np.concatenate([inside, outside])
    order = np.argsort(scores, kind="stable")
    zeros = np.zeros_like(in_weights), np.zeros_like(out_weights)
    # Images of one score are flagged together.
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    flagged = [
        np.cumsum(np.concatenate(weights, axis=1)[:, order], axis=1)[:, last]
        for weights in ((in_weights, zeros[1]), (zeros[0], out_weights))
    ]
    fpr, tpr = (np.pad(part / part[:, -1:], ((0, 0), (1, 0))) for part in flagged)
    precision = flagged[1] / np.maximum(flagged[0] + flagged[1], 1)
    auroc = (np.diff(fpr) * (tpr[:, 1:] + tpr[:, :-1]) / 2).sum(1)
    auprc = (np.diff(tpr) * precision).sum(1)
    at = (tpr >= TPR - 1e-12).argmax(1)
    return np.stack([auroc, auprc, np.take_along_axis(fpr, at[:, None], 1)[:, 0]])


def figures_of_merit(inside: np.ndarray, outside: np.ndarray, bootstraps: int = 0, seed: int = 0) -> dict:
    """AUROC, AUPRC and FPR at 95% TPR of scores of images inside [N] and outside [M] the distribution.

    Those outside are the positives, found by a low score: AUPRC is the average precision of finding them (chance level
    M / (N + M)), and the FPR is the share of those inside that a threshold flags which finds 95% of those outside.
    With `bootstraps`, *_interval: the middle 95% of these over resampled images of both sets.
    """
    n, m = len(inside), len(outside)
    names = ("auroc", "auprc", "fpr95")
    found = _curves(inside, outside, np.ones((1, n)), np.ones((1, m)))[:, 0]
    figures = dict(zip(names, found.tolist(), strict=True))
    if bootstraps:
        rng = np.random.default_rng(seed)
        weights = (rng.multinomial(size, np.full(size, 1 / size), bootstraps).astype(float) for size in (n, m))
        drawn = _curves(inside, outside, *weights)
        ends = np.quantile(drawn, [0.025, 0.975], axis=1).T.tolist()
        figures |= {f"{name}_interval": interval for name, interval in zip(names, ends, strict=True)}
    return figures
