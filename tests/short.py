"""Estimates that take few draws and few updates, for tests of where figures go and not of how good they are; and
reports that show few images.

What is computed is the same; only the numbers of draws, chains, images and resamplings are smaller.
"""

from functools import partial

import pytest

from hebmtool.judge import diagnose, one_stage, ood
from hebmtool.metrics import evidence, mixing, two_sample
from hebmtool.report import drawn, measured
from hebmtool.use import infer, score

SIZES = {
    two_sample: {"LEAST_UPDATES": 4, "LEAST_FRESH": 4, "PROPOSALS": 2, "BOOTSTRAPS": 5},
    evidence: {"BURN_IN": 2, "figures": partial(evidence.figures, images=20, draws=5, chains=6, temperatures=4)},
    mixing: {"LONGER": 3, "BOOTSTRAPS": 10, "diagnose": partial(mixing.diagnose, images=12, chain=50)},
    diagnose: {"POSTERIOR": 40},
    one_stage: {"JUDGED": 32},
    ood: {"BOOTSTRAPS": 20},
    score: {"CALIBRATION": 48},
    infer: {"ROUNDS": 3, "REFINE": 10},
    drawn: {"GRID": 32, "STRIPS": 3, "BASES": 2, "RESAMPLES": 3, "PER_CLASS": 2},
    measured: {"OOD_IMAGES": 24},
}


def shorten(patch: pytest.MonkeyPatch) -> None:
    for module, sizes in SIZES.items():
        for name, size in sizes.items():
            patch.setattr(module, name, size)
