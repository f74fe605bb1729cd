"""What runs are and what they reached: described, judged, side by side, on a page."""

from collections.abc import Sequence
from pathlib import Path

from hebmtool import files, table
from hebmtool.errors import UsageError
from hebmtool.judge import compare as comparing
from hebmtool.judge.evaluation import Evaluation
from hebmtool.judge.table import beside
from hebmtool.metrics.figures import by_judged
from hebmtool.run.folder import Run


def opened(run: Run | str | Path | None, runs: str | Path, data_path: str | Path | None = None) -> Run:
    """A run itself, of that name in the folder `runs`, or in that folder; the newest one when None.  Its images are
    where its recipe says, or at `data_path`."""
    found = run if isinstance(run, Run) else Run.open(run, runs)
    if data_path is not None:
        found = Run(found.path)
        found.data_path = str(data_path)
    return found


class Tabled:
    """What is read as a table of figures and lines about it."""

    def table(self) -> table.Table:
        raise NotImplementedError

    def lines(self) -> list[str]:
        """What stands below: what it takes to measure the figures again."""
        raise NotImplementedError

    def as_dict(self) -> dict:
        """The same as plain data."""
        raise NotImplementedError

    def show(self) -> None:
        """Print it on stdout, ruled on a terminal."""
        table.show(self.table(), self.lines())

    def markdown(self) -> str:
        """A block to paste."""
        return table.markdown(self.table(), self.lines())

    _repr_markdown_ = markdown

    def __repr__(self) -> str:
        drawn = self.table()
        return "\n".join([table.plain(drawn), "", *table.notes(drawn), *self.lines()])


class Evaluated(Tabled):
    """A run's figures.  run: its name.  figures, provenance, first: `hebmtool.judge.evaluation.Evaluation`'s."""

    def __init__(self, found: Evaluation):
        self.run, self.figures, self.provenance, self.first = found.run, found.figures, found.provenance, found.first
        self._found = found

    def png(self) -> bytes:
        """The first images of each set, a row each, as a PNG file: what the figures are of."""
        from hebmtool import picture

        return picture.to_png(picture.rows(list(self.first.items())))

    def table(self) -> table.Table:
        return beside(by_judged(self.figures))

    def lines(self) -> list[str]:
        return self._found.lines()

    def as_dict(self) -> dict:
        return self._found.as_dict()


class Compared(Tabled):
    """Runs side by side.  columns: figures by RUN/PRIOR.  warnings: what makes them incomparable, or stale.
    seeds: closures over those that differ in the seed of learning alone."""

    def __init__(self, found: comparing.Comparison):
        self.columns, self.warnings, self.seeds, self._found = found.columns, found.warnings, found.seeds, found

    def table(self) -> table.Table:
        return beside(self.columns, self._found.priors)

    def lines(self) -> list[str]:
        return [f"{name}: {line}" for name, each in self._found.runs.items() for line in each.lines()]

    def as_dict(self) -> dict:
        return self._found.as_dict()


class Info(dict):
    """What a run is, as plain data; as text where it is shown."""

    def __repr__(self) -> str:
        from hebmtool.run import info as information

        return information.render(self)


class Page(str):
    """A page of HTML."""

    def save(self, path: str | Path) -> None:
        """Write it to `path`.  Raises HebmError when it cannot be written."""
        files.write_bytes(path, self.encode("utf-8", "replace"))  # names of files need not be text

    def __repr__(self) -> str:
        return f"<page of {len(self):,} characters>"

    def _repr_html_(self) -> str:
        from html import escape

        # In a frame, for a page's styles would be the notebook's.
        return f'<iframe srcdoc="{escape(self)}" width="100%" height="800"></iframe>'


def info(run: Run | str | Path | None = None, *, runs: str | Path = "runs") -> Info:
    """What a run is: its generator's layers with their KL, its priors and their figures.

    Arguments:
        run: a name, a folder or a `Run`; the newest when None.
        runs: the folder of runs.

    Raises:
        HebmError: there is no such run, it has no generator, or a file is unusable.
    """
    from hebmtool.run import info as information

    found = opened(run, runs)
    return Info(information.describe(found) | {"evaluations": information.evaluations(found)})


# More than a screen, for it says of each of as many settings as judging has what it is.
def evaluate(
    run: Run | str | Path | None = None,
    prior: str | None = None,
    *,
    steps: int | None = None,
    samples: int | None = None,
    features: str | None = None,
    fid: Sequence[str] = (),
    reference: str = "test",
    repeats: int = 1,
    seed: int | None = None,
    fast: bool = False,
    parts: Sequence[str] = (),
    trust_features: bool = False,
    chain: str | None = None,
    pixels: str | None = None,
    command: str | None = None,
    runs: str | Path = "runs",
    device: str = "auto",
    data_path: str | Path | None = None,
    **settings: object,
) -> Evaluated:
    """Judge a run's priors side by side: distances to held-out images, precision and recall, closure, speed; each with
    a standard error.  The figures are kept in the run, for `compare`.

    Arguments:
        run, runs, device, data_path: as `load`'s.
        prior: only this kind; every trained one when None.
        steps: Langevin steps per level; each prior's own when None.
        samples, features: images per set, and a feature network's file; the recipe's when None.
        fid: also FID as clean-fid has it, "clean" (with IS) or "legacy_pytorch".
        reference: hold against "test" images, or "train" as in published FIDs.
        repeats: independent draws, of which figures are the mean.
        seed: of the draws; the recipe's when None.
        fast: draw in bf16 (float32 where that is faster) with few steps (`Model.sample`).
        parts: of "likelihood", "two-sample" and "chains", what `Model.diagnose` tells, as well.
        trust_features: open the file that `features` names even where it runs code (TorchScript, .pt2).
        chain, settings: the chain drawn by (`Model`), in place of what each prior was learned with.
        pixels: judge the "mean" of p(x | z) or a "sample" of it; as the recipe's evaluate.pixels says when None.
        command: what to name as the command in the figures' provenance.

    Raises:
        UsageError: a word or number that does not exist, or ways of drawing that do not go together.
        HebmError: nothing is trained, too few images, or a feature network that is absent or does not fit.
    """
    if fast and steps is not None:
        raise UsageError("fast chooses the Langevin steps itself; leave out either it or steps")
    if trust_features and features is None:
        raise UsageError("trust_features is for a file named in features; what a run's recipe names is never trusted")
    from hebmtool.compute import pick_device
    from hebmtool.judge.evaluate import evaluate as judge

    found = judge(
        opened(run, runs, data_path),
        pick_device(device),
        prior,
        steps,
        samples,
        features,
        fid=fid,
        reference=reference,
        repeats=repeats,
        seed=seed,
        fast=fast,
        parts=parts,
        trust_features=trust_features,
        command=command,
        chain=chain,
        pixels=pixels,
        **settings,
    )
    return Evaluated(found)


def compare(*names: Run | str | Path, runs: str | Path = "runs") -> Compared:
    """Runs side by side, from the figures `evaluate` kept in them; nothing is measured.

    Arguments:
        names: of runs, their folders, or `Run`s.
        runs: the folder of runs.

    Raises:
        HebmError: there is no such run, or it has no kept figures.
    """
    if not names:
        raise UsageError("say which runs to compare, by their names or folders")
    return Compared(comparing.compare([opened(name, runs) for name in names]))


def report(
    run: Run | str | Path | None = None,
    seed: int = 0,
    batch_size: int = 64,
    *,
    runs: str | Path = "runs",
    device: str = "auto",
    data_path: str | Path | None = None,
) -> Page:
    """A run on one self-contained HTML page, which loads nothing.

    Arguments:
        run, runs, device, data_path: as `load`'s.
        seed: of what is drawn; images are those of `Model.sample`.
        batch_size: images drawn at a time.

    Raises:
        HebmError: there is no such run, or nothing in it can be loaded.
    """
    from hebmtool.compute import pick_device
    from hebmtool.report.sections import report as describe

    return Page(describe(opened(run, runs, data_path), pick_device(device), seed, batch_size))
