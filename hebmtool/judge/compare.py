"""Runs side by side, from the figures that judging kept in them, and what makes those figures incomparable or stale.

Nothing is measured, and torch is not needed.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from hebmtool.judge.evaluation import RECONSTRUCTIONS, Evaluation, kept
from hebmtool.metrics.figures import Figure, by_judged, over_seeds
from hebmtool.run import header, records
from hebmtool.run.folder import Run

SPREAD = "closure"
"""The figure whose spread over seeds of learning is told."""

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


# Of those, what must be shared for the better figure to be the better prior.
COMPARABLE = ("features", "reference", "samples")


@dataclass
class Seeds:
    """A figure of one prior on one generator, learned with several seeds: its mean over these columns, and the error
    of that, of seeds and of images (`over_seeds`)."""

    figure: str
    columns: list[str]
    value: float
    error: float | None

    def sentence(self) -> str:
        error = "" if self.error is None else f" ± {self.error:.3f}"
        seeds = f"{len(self.columns)} seeds of learning ({', '.join(self.columns)})"
        return f"{self.figure} over {seeds}: {self.value:.3f}{error}"


@dataclass
class Comparison:
    """runs: what is shown, newest first, a run's own name standing for its newest settings.  columns: figures per
    RUN/PRIOR, none where they are of other checkpoints than the run has now.  priors: those columns that are candidates
    for the best: reconstructions are the floor, not a prior.  warnings: sentences about what makes figures incomparable
    or stale.  unsure: columns that do not say of which checkpoints they are.  seeds: of those columns that are the same
    but for the seed of learning, their closure."""

    runs: dict[str, Evaluation]
    columns: dict[str, list[Figure]]
    priors: list[str]
    warnings: list[str]
    unsure: list[str] = field(default_factory=list)
    seeds: list[Seeds] = field(default_factory=list)

    def as_dict(self) -> dict:
        return {
            "runs": {name: found.as_dict() for name, found in self.runs.items()},
            "warnings": self.warnings,
            **({"seeds": [asdict(each) for each in self.seeds]} if self.seeds else {}),
        }


def compare(runs: Sequence[Run]) -> Comparison:
    """Put runs side by side.

    Raises:
        HebmError: as `kept`.
    """
    runs = list({run.path.resolve(): run for run in runs}.values())
    names = [run.name for run in runs]
    made, shown = Comparison({}, {}, [], []), {}
    for run in runs:
        name = str(run.path) if names.count(run.name) > 1 else run.name
        shown[name] = run
        for words, alike in _by_settings(kept(run)).items():
            _show(made, run, f"{name}{words}", alike, newest=not words)
    differing = _differences(made.runs)
    if differing:
        made.warnings.append(f"these runs were not judged alike: {'; '.join(differing)}")
    made.seeds = _over_seeds(made, shown)
    return made


def _over_seeds(made: Comparison, runs: dict[str, Run]) -> list[Seeds]:
    """The closures of columns whose priors differ in nothing but the seed they were learned with, judged alike."""
    groups: dict[str, dict[int, str]] = {}
    for column in made.priors:
        name, _, kind = column.rpartition("/")
        path = runs[name].prior_path(kind) if name in runs else None
        if path is None or not path.is_file() or not _closure(made.columns[column]):
            continue
        found = header.header(path)
        recipe = header.recipe(path, found)
        same = recipe.model_dump(exclude={"name": True, "evaluate": True, "train_prior": {"seed"}})
        key = repr((kind, found.step, found.extra.get("generator"), same, made.runs[name].settings))
        groups.setdefault(key, {}).setdefault(recipe.prior_seed, column)
    columns = [list(of_seed.values()) for of_seed in groups.values() if len(of_seed) > 1]
    closures = [[(f.value, f.error) for c in each for f in _closure(made.columns[c])] for each in columns]
    return [Seeds(SPREAD, each, *over_seeds(found)) for each, found in zip(columns, closures, strict=True)]


def _closure(figures: Sequence[Figure]) -> list[Figure]:
    return [figure for figure in figures if figure.name == SPREAD and figure.value is not None]


def _by_settings(found: Sequence[Evaluation]) -> dict[str, list[Evaluation]]:
    """A run's evaluations, newest first, by how they differ from its newest: "" and " [100 images, seed 3]"."""
    groups: dict[str, list[Evaluation]] = {}
    for each in found:
        alike = next((name for name, group in groups.items() if group[0].settings == each.settings), None)
        if alike is None:
            alike = f" [{differing(each.settings, found[0].settings)}]" if groups else ""
            while alike in groups:  # words that say too little
                alike += "'"
        groups.setdefault(alike, []).append(each)
    return groups


def differing(settings: dict, others: dict) -> str:
    """What of the settings differs from others, in a few words: "100 images per set, seed 3"."""
    said = [
        f"{WORDS.get(key, key)} {_words(settings.get(key))}"
        for key in {**settings, **others}
        if settings.get(key) != others.get(key)
    ]
    return ", ".join(said)


WORDS = {"samples": "images", "repeats": "draws", "sampler": "", "parts": "also"}


def _show(made: Comparison, run: Run, name: str, alike: Sequence[Evaluation], newest: bool) -> None:
    """Add a run's evaluations of the same settings, newest first, where they are of the run as it is."""
    shown: dict[str, list[Figure]] = {}
    stale, unknown = [], []
    for each in alike:
        for of, figures in by_judged(each.figures).items():
            origin = each.origin(run, of)
            if shown.get(of):
                continue
            if origin == records.ANOTHER:
                stale += [of] * (of not in stale)
                shown.setdefault(of, [])
                continue
            shown[of] = figures
            unknown += [of] * (origin == records.UNKNOWN)
    stale = [of for of in stale if not shown[of]]
    again = f"measure again with `hebm evaluate {run.path}`"
    if stale and newest:
        blank = f"left blank ({', '.join(stale)})"
        made.warnings.append(f"the figures of {name} are of other checkpoints than it has now, and {blank}; {again}")
    if unknown:
        made.warnings.append(
            f"the figures of {name} do not say of which checkpoints they are, and are not called the best; {again}"
        )
    if not newest:
        shown = {of: figures for of, figures in shown.items() if figures}
        if not shown:
            return
    first, *_ = [*made.runs.values(), *alike]
    comparable = all(alike[0].settings.get(key) == first.settings.get(key) for key in COMPARABLE)
    made.runs[name] = Evaluation(run.name, [f for each in shown.values() for f in each], alike[0].provenance)
    for of, figures in shown.items():
        made.columns[f"{name}/{of}"] = figures
        if of in unknown:
            made.unsure.append(f"{name}/{of}")
        elif comparable and figures and not of.startswith(RECONSTRUCTIONS):
            made.priors.append(f"{name}/{of}")


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
