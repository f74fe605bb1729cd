"""What follows a training beside metrics.jsonl, as the recipe's `loggers` says: a table, TensorBoard, Weights & Biases.

metrics.csv             a row per record of metrics.jsonl, a column per figure; lists as kl.1, kl.2, ...
tensorboard/STAGE/      the same figures and the sample grids, a folder for each stage
wandb/                  the same, as a W&B run of the folder's name, here or on its server

Resuming takes back what was told beyond the checkpoint: from the table, and from TensorBoard, which hides it.  W&B
keeps what it was told; figures stand over their stage's updates there, so that a resumed training draws over it.
"""

import csv
import importlib.util
import io
import os
import re
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL.Image import Image
from torch import Tensor

from hebmtool import files, picture, ranks
from hebmtool.console import note
from hebmtool.errors import HebmError, not_installed
from hebmtool.recipe import Recipe
from hebmtool.run.folder import Run

EXTRAS = ("tensorboard", "wandb")
"""Loggers that are libraries of the same name, installed by the extra of that name."""


def check(words: Sequence[str]) -> None:
    """Raise HebmError where the library of one of these loggers is not installed."""
    for word in words:
        if word in EXTRAS and importlib.util.find_spec(word) is None:
            raise not_installed("loggers has", word, word)


def figures_of(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record of metrics.jsonl, by name; those of lists and mappings under "kl.1", "changed.lr"."""
    found: dict[str, float] = {}

    def add(name: str, value: Any) -> None:
        if isinstance(value, Mapping | list):
            pairs = value.items() if isinstance(value, Mapping) else enumerate(value, 1)
            for key, each in pairs:
                add(f"{name}.{key}", each)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = value

    for key, value in record.items():
        if key not in ("stage", "step", "time", "changed"):
            add(key, value)
    return found


class Logger(ABC):
    """One of them."""

    @abstractmethod
    def truncate(self, stage: str, step: int) -> None:
        """Forget what the stage told beyond `step` updates; also called where a stage begins."""

    @abstractmethod
    def log(self, record: Mapping[str, Any]) -> None:
        """Take a record of metrics.jsonl, which stands there already."""

    def picture(self, stage: str, step: int, drawn: Image) -> None:
        """Take a grid of samples after `step` updates."""
        return None

    def close(self) -> None:
        return None


class Table(Logger):
    """metrics.csv, which is metrics.jsonl in rows: it is written anew from there whenever a column comes to it."""

    def __init__(self, run: Run, recipe: Recipe):
        self.run, self.path, self.columns = run, run.path / "metrics.csv", []

    def truncate(self, stage: str, step: int) -> None:
        self._write()

    def log(self, record: Mapping[str, Any]) -> None:
        row = self._row(record)
        if set(row) <= set(self.columns):
            files.append_line(self.path, self._text([row]).rstrip("\n"))
        else:
            self._write()

    def _row(self, record: Mapping[str, Any]) -> dict[str, Any]:
        return {key: record[key] for key in ("stage", "step", "time") if key in record} | figures_of(record)

    def _write(self) -> None:
        rows = [self._row(record) for record in self.run.metrics()]
        self.columns = list(dict.fromkeys(key for row in rows for key in row))
        if self.columns:
            files.write_text(self.path, self._text([dict(zip(self.columns, self.columns, strict=True)), *rows]))

    def _text(self, rows: Sequence[Mapping[str, Any]]) -> str:
        text = io.StringIO()
        csv.DictWriter(text, self.columns, lineterminator="\n").writerows(rows)
        return text.getvalue()


class TensorBoard(Logger):
    """Event files, a folder for each stage: it is by folder that TensorBoard forgets."""

    def __init__(self, run: Run, recipe: Recipe):
        self.folder, self._writers = run.path / "tensorboard", {}

    def truncate(self, stage: str, step: int) -> None:
        self._open(stage, step + 1)

    def log(self, record: Mapping[str, Any]) -> None:
        if figures := figures_of(record):
            writer = self._writer(record["stage"])
            for name, value in figures.items():
                writer.add_scalar(name, value, record["step"], record["time"])
            writer.flush()

    def picture(self, stage: str, step: int, drawn: Image) -> None:
        writer = self._writer(stage)
        writer.add_image("samples", np.asarray(drawn), step, dataformats="HWC")
        writer.flush()

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()

    def _writer(self, stage: str):
        return self._writers.get(stage) or self._open(stage, None)

    def _open(self, stage: str, forgotten_from: int | None):
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        if stage in self._writers:
            self._writers[stage].close()
        folder = self.folder / re.sub(r"[^\w.-]+", "-", stage)
        self._writers[stage] = SummaryWriter(str(folder), purge_step=forgotten_from)
        return self._writers[stage]


class Wandb(Logger):
    """A W&B run for the folder, gone on with by every training in it; without a key or WANDB_MODE it stays offline."""

    def __init__(self, run: Run, recipe: Recipe):
        import wandb

        os.environ.setdefault("WANDB_SILENT", "true")
        self._wandb, self._stages = wandb, set()
        mode = None if "WANDB_MODE" in os.environ or wandb.Settings().api_key else "offline"
        key = run.path / "wandb" / "hebm-id"
        if not key.is_file():
            files.write_text(key, uuid.uuid4().hex[:12] + "\n")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "hebmtool"),
            name=run.name,
            id=key.read_text().strip(),
            resume="allow",
            dir=str(run.path),
            config=recipe.model_dump(mode="json"),
            mode=mode,
            allow_val_change=True,
        )
        if mode == "offline":
            note(f"W&B has no key here: it is told offline; `wandb sync {run.path}/wandb/offline-*` uploads it")

    def truncate(self, stage: str, step: int) -> None:
        pass  # it keeps what it was told

    def log(self, record: Mapping[str, Any]) -> None:
        if figures := figures_of(record):
            self._tell(record["stage"], record["step"], figures)

    def picture(self, stage: str, step: int, drawn: Image) -> None:
        self._tell(stage, step, {"samples": self._wandb.Image(drawn)})

    def _tell(self, stage: str, step: int, what: Mapping[str, Any]) -> None:
        if stage not in self._stages:
            self._stages.add(stage)
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/update")
        self._run.log({f"{stage}/update": step} | {f"{stage}/{name}": value for name, value in what.items()})

    def close(self) -> None:
        self._run.finish()


KINDS: dict[str, type[Logger]] = {"csv": Table, "tensorboard": TensorBoard, "wandb": Wandb}


class Followers:
    """All of a run.  One that fails, for its server is gone, is left out from then on; training goes on."""

    def __init__(self, run: Run, recipe: Recipe):
        self._each: dict[str, Logger] = {}
        for word in dict.fromkeys(recipe.loggers):
            with self._kept(word):
                self._each[word] = KINDS[word](run, recipe)

    @contextmanager
    def _kept(self, word: str) -> Iterator[None]:
        try:
            yield
        except HebmError:  # of our own files: metrics.jsonl could not be written either
            raise
        except Exception as error:
            self._each.pop(word, None)
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            note(f"the logger {word} fails and is left out ({reason}); metrics.jsonl has it all")

    def truncate(self, stage: str, step: int) -> None:
        for word, each in list(self._each.items()):
            with self._kept(word):
                each.truncate(stage, step)

    def log(self, record: Mapping[str, Any]) -> None:
        for word, each in list(self._each.items()):
            with self._kept(word):
                each.log(record)

    def picture(self, stage: str, step: int, drawn: Image) -> None:
        for word, each in list(self._each.items()):
            with self._kept(word):
                each.picture(stage, step, drawn)

    def close(self) -> None:
        for word, each in list(self._each.items()):
            with self._kept(word):
                each.close()


@contextmanager
def following(run: Run, recipe: Recipe) -> Iterator[None]:
    """Let the recipe's loggers follow the run; of several processes that train together, in the first."""
    if not recipe.loggers or not ranks.is_first():
        yield
        return
    run.followers = Followers(run, recipe)
    try:
        yield
    finally:
        run.followers.close()
        run.followers = None


def show_samples(run: Run, stage: str, name: str, step: int, images: Tensor) -> None:
    """Write a grid of images [N, C, H, W] into the run's samples, and show it to what follows the run."""
    drawn = picture.grid(images)
    picture.save(drawn, run.samples_dir / f"{name}-{step:07d}.png")
    if run.followers is not None:
        run.followers.picture(stage, step, drawn)
