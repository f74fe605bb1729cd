"""Runs side by side, from the figures that judging kept in them, and what makes those figures incomparable or stale.

Nothing is measured, and torch is not needed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hebmtool import files
from hebmtool.judge.evaluation import DIGITS, RECONSTRUCTIONS, Evaluation, kept
from hebmtool.metrics.figures import Figure, by_judged
from hebmtool.run.folder import Run

# What figures must share to be comparable, and what it is called.
ALIKE = {
    "features": "feature networks",
    "reference": "reference images",
    "samples": "images per set",
    "repeats": "draws",
    "seed": "seed",
    "steps": "Langevin steps",
    "sampler": "chain settings",
    "torch": "torch version",
    "device": "device",
}


@dataclass
class Comparison:
    """columns: figures per RUN/PRIOR.  priors: those columns that are candidates for the best: reconstructions are
    the floor, not a prior.  warnings: sentences about what makes figures incomparable or stale."""

    runs: dict[str, Evaluation]
    columns: dict[str, list[Figure]]
    priors: list[str]
    warnings: list[str]

    def as_dict(self) -> dict:
        return {
            "runs": {name: found.as_dict() for name, found in self.runs.items()},
            "warnings": self.warnings,
        }


def compare(runs: Sequence[Run]) -> Comparison:
    """Put runs side by side.

    Raises:
        HebmError: as `kept`.
    """
    runs = list({run.path.resolve(): run for run in runs}.values())
    names = [run.name for run in runs]
    found = {str(run.path) if names.count(run.name) > 1 else run.name: kept(run) for run in runs}
    columns, priors = {}, []
    for name, each in found.items():
        for of, figures in by_judged(each.figures).items():
            columns[f"{name}/{of}"] = figures
            if not of.startswith(RECONSTRUCTIONS):
                priors.append(f"{name}/{of}")
    warnings = [
        f"the figures of {name} are of other checkpoints than it has now; measure again with `hebm evaluate {run.path}`"
        for run, (name, each) in zip(runs, found.items(), strict=True)
        if _stale(run, each)
    ]
    differing = _differences(found)
    if differing:
        warnings.append(f"these runs were not judged alike: {'; '.join(differing)}")
    return Comparison(found, columns, priors, warnings)


def _stale(run: Run, found: Evaluation) -> bool:
    digests = found.provenance.get("checkpoints") or {}
    paths = {name: run.path / name for name in digests}
    return any(not path.is_file() or files.digest(path)[:DIGITS] != digests[name] for name, path in paths.items())


def _differences(found: dict[str, Evaluation]) -> list[str]:
    """Per kind of provenance that differs between the runs: what it is in each."""
    differing = []
    for key, word in ALIKE.items():
        values = {name: _words(each.provenance.get(key)) for name, each in found.items()}
        if len(set(values.values())) > 1:
            differing.append(f"{word} " + ", ".join(f"{value} ({name})" for name, value in values.items()))
    return differing


def _words(value: object) -> str:
    if isinstance(value, list):
        return " and ".join(map(_words, value))
    if isinstance(value, dict):
        return " ".join(str(each) for each in value.values() if each is not None)
    return "as trained" if value is None else str(value)
