"""Which launch of torchrun trains in a run: its processes, started again after one of them has died, go on there."""

from pathlib import Path

from hebmtool import files, ranks
from hebmtool.run.folder import Run


def begin(run: Run) -> None:
    """Note that the launch of this process, if there is one, trains in the run."""
    if (launch := ranks.launch()) is not None:
        files.write_text(_path(run), launch + "\n")


def begun(run: Run) -> bool:
    """Whether the same launch has trained in the run before it started its processes again: what was saved is then to
    be gone on from."""
    path = _path(run)
    return ranks.restarted() and path.is_file() and path.read_text().strip() == ranks.launch()


def _path(run: Run) -> Path:
    return run.path / ".launch"
