"""What judging a run yields: its figures and what it takes to measure them again; and reading it back.

Kept in the run's figures.json under "evaluate".  Nothing here, nor in what reads it, needs torch.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from hebmtool.errors import HebmError
from hebmtool.metrics.figures import Figure
from hebmtool.run.folder import Run

KEY = "evaluate"
RECONSTRUCTIONS = "reconstructions"
DIGITS = 12  # of a SHA-256: enough to tell files apart


@dataclass
class Evaluation:
    """Figures of a run, and their provenance: the command, seed, counts, digests and versions they were made with."""

    run: str
    figures: list[Figure]
    provenance: dict

    def as_dict(self) -> dict:
        return {
            "run": self.run,
            "figures": [figure.as_dict() for figure in self.figures],
            "provenance": self.provenance,
        }

    def lines(self) -> list[str]:
        """The provenance in words, a line per part."""
        p = self.provenance

        def listed(pairs: Iterable[tuple[str, str | None]]) -> str:
            return ", ".join(f"{name} {digest or '(no file)'}" for name, digest in pairs)

        steps = "each prior's own" if p["steps"] is None else p["steps"]
        chain = f", {', '.join(f'{key} {value}' for key, value in p['sampler'].items())}" if "sampler" in p else ""
        return [
            f"command: {p['command'] or 'called from Python'}",
            f"{p['samples']} images per set, {p['repeats']} draw(s), seed {p['seed']}, Langevin steps: {steps}{chain}",
            f"reference: {p['reference']['images']} {p['reference']['split']} images {p['reference']['sha256']}",
            f"features: {listed((each['name'], each['sha256']) for each in p['features'])}",
            f"checkpoints: {listed(p['checkpoints'].items())}",
            f"hebmtool {p['hebmtool']}, torch {p['torch']}, {p['device']}",
        ]


def keep(run: Run, found: Evaluation) -> None:
    """Keep it in the run's figures.json, in place of an earlier one.

    Raises:
        HebmError: the file is there and damaged, or cannot be written.
    """
    run.set_figure(KEY, {"figures": [each.as_dict() for each in found.figures], "provenance": found.provenance})


def kept(run: Run) -> Evaluation:
    """The evaluation kept in the run's figures.json.

    Raises:
        HebmError: there is none, or it is not as `keep` left it.
    """
    found = run.figures().get(KEY)
    again = f"measure them with `hebm evaluate {run.path}`"
    if found is None:
        raise HebmError(f"the run {run.path} has no kept figures; {again}")
    try:
        return Evaluation(run.name, [Figure(**entry) for entry in found["figures"]], dict(found["provenance"]))
    except (KeyError, TypeError, ValueError) as error:
        raise HebmError(f"the figures kept in {run.figures_path} are not as evaluate leaves them; {again}") from error
