"""Runs in a row: what each is, read from its folder without its weights and without torch."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from hebmtool.errors import HebmError
from hebmtool.recipe.words import KINDS
from hebmtool.run import records, shipped
from hebmtool.run.folder import Run
from hebmtool.table import Table


@dataclass(frozen=True)
class Listed:
    """A run.  layers: latent layers, None where its training has not ended.  priors: their kinds, with the closure that
    each was judged to have, None where it was not or is another model now.  trained: when last, as ISO 8601 has it.
    trouble: why nothing else is known."""

    name: str
    path: str
    data: str | None = None
    layers: int | None = None
    priors: dict[str, float | None] | None = None
    labels: list[str] | None = None
    bytes: int = 0
    trained: str | None = None
    trouble: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def below(root: Path) -> Iterator[Listed]:
    """The runs in the folder `root`, by name."""
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    for run in map(Run, folders):
        if run.recipe_path.is_file() or run.checkpoints():
            yield listed(run)


def in_package() -> list[Listed]:
    """Those that come with it; their files tell no time."""
    return [replace(listed(Run(shipped.FOLDER / name)), trained=None) for name in shipped.names()]


def listed(run: Run) -> Listed:
    """Mistakes in its files are its `trouble`."""
    size = sum(path.stat().st_size for path in run.path.rglob("*") if path.is_file())
    try:
        bound = run.figure("generator")
        own, *_ = KINDS
        closures = {kind: run.figure("closure", kind) for kind in run.priors() if kind != own}
        return Listed(
            run.name,
            str(run.path),
            run.recipe().data.source,
            len(bound.value["kl"]) if bound else None,
            {
                kind: kept.value["closure"] if kept and kept.origin != records.ANOTHER else None
                for kind, kept in closures.items()
            },
            run.labels(),
            size,
            datetime.fromtimestamp(run.trained()).isoformat(timespec="seconds") if run.checkpoints() else None,
        )
    except HebmError as error:
        return Listed(run.name, str(run.path), bytes=size, trouble=str(error))


def table(runs: list[Listed]) -> Table:
    """A line each."""
    head = ["run", "data", "layers", "priors (closure)", "labels", "MB", "trained"]
    return Table(head, [_row(run) for run in runs], "<<><<><")


def _row(run: Listed) -> list[str]:
    if run.trouble:
        return [run.name, "", "", run.trouble, "", f"{run.bytes / 1e6:.1f}", ""]
    shown = (kind if closure is None else f"{kind} ({closure:.2f})" for kind, closure in run.priors.items())
    layers = "" if run.layers is None else str(run.layers)
    when = "" if run.trained is None else run.trained.replace("T", " ")[:16]
    labels = ", ".join(run.labels)
    return [run.name, run.data, layers, ", ".join(shown), labels, f"{run.bytes / 1e6:.1f}", when]
