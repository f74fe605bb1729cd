"""What judging a run yields: its figures and what it takes to measure them again; and reading it back.

The newest is kept in the run's figures.json under "evaluate", the others under "evaluations": one for each of what was
measured, which checkpoints in which way.  Nothing here, nor in what reads it, needs torch.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hebmtool.errors import HebmError
from hebmtool.metrics.figures import Figure
from hebmtool.run import records
from hebmtool.run.folder import Run
from hebmtool.run.header import CONTENTS

if TYPE_CHECKING:
    from torch import Tensor

KEY, OTHERS = "evaluate", "evaluations"
RECONSTRUCTIONS = "reconstructions"
DIGITS = 12  # of a SHA-256: enough to tell files apart

# Of the provenance: who measured, and on what machine, not what.
BY_WHOM = ("command", "hebmtool", "torch", "device")


@dataclass
class Evaluation:
    """Figures of a run, and their provenance: the command, seed, counts, digests and versions they were made with.

    first: a few images of each set as just judged, uint8 [N, C, H, W], by its name; none where figures were kept.
    """

    run: str
    figures: list[Figure]
    provenance: dict
    first: "dict[str, Tensor]" = field(default_factory=dict)

    def as_dict(self) -> dict:
        return {"run": self.run} | self.kept()

    def kept(self) -> dict:
        """As it stands in figures.json."""
        return {"figures": [figure.as_dict() for figure in self.figures], "provenance": self.provenance}

    def lines(self) -> list[str]:
        """The provenance in words, a line per part."""
        p = records.Provenance(**self.provenance)

        def listed(pairs: Iterable[tuple[str, str | None]]) -> str:
            return ", ".join(f"{name} {digest or '(no file)'}" for name, digest in pairs)

        steps = "each prior's own" if p.steps is None else p.steps
        chain = "".join(f", {key} {value}" for key, value in p.sampler.items())
        return [
            f"command: {p.command or 'called from Python'}",
            f"{p.samples} images per set, {p.repeats} draw(s), seed {p.seed}, Langevin steps: {steps}{chain}",
            f"reference: {p.reference.images} {p.reference.split} images {p.reference.sha256}",
            f"features: {listed((each.name, each.sha256) for each in p.features)}",
            f"checkpoints: {listed((k, v.removeprefix(CONTENTS)) for k, v in p.checkpoints.items()) or 'unknown'}",
            f"hebmtool {p.hebmtool}, torch {p.torch}, {p.device}",
        ]

    @property
    def measured(self) -> dict:
        """What of the provenance says what was measured, and how."""
        return records.plain({key: value for key, value in self.provenance.items() if key not in BY_WHOM})

    @property
    def settings(self) -> dict:
        """How, whatever was measured."""
        return {key: value for key, value in self.measured.items() if key != "checkpoints"}

    def origin(self, run: Run, of: str) -> str:
        """Whether the figures of what they call `of` are of the run as it is: `records.NOW`, `ANOTHER` or `UNKNOWN`.

        A trained prior is judged with the generator, the others with that alone; or with the one prior that there is.
        """
        digests = dict(self.provenance.get("checkpoints") or {})
        own = run.prior_path(of.partition(" ")[0]).name
        if run.generator_path.name in digests:
            digests = {name: each for name, each in digests.items() if name in (run.generator_path.name, own)}
        return records.origin(run.path, digests)


def keep(run: Run, found: Evaluation) -> None:
    """Keep it in the run's figures.json, in place of one of the same checkpoints, measured alike.

    Raises:
        HebmError: the file is there and damaged, or cannot be written.
    """
    with run.figures_lock():
        try:
            others = [each for each in _all(run) if each.measured != found.measured]
        except HebmError:  # not as this leaves them: measuring again is the way out
            others = []
        # In this order, for the newest so far is among the others now.
        run.set_figure((OTHERS,), [each.kept() for each in others])
        run.set_figure((KEY,), found.kept())


def kept(run: Run) -> list[Evaluation]:
    """The evaluations kept in the run's figures.json, the newest first.

    Raises:
        HebmError: there is none, or it is not as `keep` left it.
    """
    found = _all(run)
    if not found:
        raise HebmError(f"the run {run.path} has no kept figures; measure them with `hebm evaluate {run.path}`")
    return found


def _all(run: Run) -> list[Evaluation]:
    newest, others = (run.figure(key) for key in (KEY, OTHERS))
    every = ([newest.value] if newest else []) + (others.value if others else [])
    return [
        Evaluation(run.name, [Figure(**entry) for entry in each["figures"]], dict(each["provenance"])) for each in every
    ]
