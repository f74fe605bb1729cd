"""A run: the folder in which one recipe is trained.

runs/NAME/
    recipe.yaml                     the resolved recipe
    generator.safetensors           what sampling needs      generator.train.safetensors     what resuming needs
    prior-KIND.safetensors                                   prior-KIND.train.safetensors
    label-NAME.safetensors                                   label-NAME.train.safetensors
    metrics.jsonl                   one line per record of the training loops
    samples/*.png
    figures.json                    results, such as the closure of each prior
"""

import contextlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote

from filelock import FileLock, Timeout

from hebmtool import files, ranks
from hebmtool.errors import HebmError, UsageError, did_you_mean
from hebmtool.recipe import Recipe, dump, load_written
from hebmtool.recipe.words import KINDS
from hebmtool.run import hub, records, shipped
from hebmtool.run.header import brings_generator


class Run:
    """The run in the folder `path`.  Whoever trains in it holds its lock: `with Run.create(...) as run`, or
    `with Run.open(...).lock() as run`; readers need none."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.name = Path(os.path.realpath(self.path)).name  # `resolve` raises on links in a circle
        self.data_path: str | None = None  # where the images are now, if not where the recipe says
        self.followers: Any = None  # what its records go to besides (`hebmtool.train.loggers`)
        self._lock: FileLock | None = None
        self._figures_lock = FileLock(self.path / ".figures.lock")
        self._locked = False

    @classmethod
    def create(cls, root: str | Path, recipe: Recipe, resume: bool = False, at: Self | None = None) -> Self:
        """The locked run `root/recipe.name`, or `at`: new, its recipe written, or with `resume` the one that is there.

        On resuming, recipe.yaml is left as it is: compare with `check_same`, then `write_recipe`.
        Raises `HebmError` when a run with checkpoints is there and `resume` is false, when none is and it is true, when
        the folder cannot be made, or when another process holds the lock.
        """
        run = at or cls(Path(root) / recipe.name)
        if resume and not run.checkpoints():
            raise HebmError(f"there is no checkpoint to resume in {run.path}; start a new run instead")
        run.lock()
        try:
            if not resume:
                if run.checkpoints():
                    raise HebmError(
                        f"the run {run.path} already has checkpoints; resume it, or start another with name=NAME"
                    )
                run.write_recipe(recipe)
        except BaseException:
            run.unlock()
            raise
        return run

    @classmethod
    def open(cls, path_or_name: str | Path | None, root: str | Path) -> Self:
        """The run of that name under `root`, or in that folder; on a hub ("hf://user/name"); or one that comes with the
        package, where no other has that name.  For None, the run trained last; of copies, the first.

        Raises `HebmError` when there is none.
        """
        if hub.is_address(path_or_name):
            return cls(hub.pull(path_or_name))
        root = Path(root)
        runs = [cls(path) for path in sorted(root.iterdir()) if path.is_dir()] if root.is_dir() else []
        if path_or_name is None:
            trained = [run for run in runs if run.checkpoints()]
            if not trained:
                raise HebmError(
                    f"there is no trained run under {root}; train one with `hebm train-vae digits`, or name one that "
                    f"comes with the package ({', '.join(shipped.names())})"
                )
            # Of a run and its copies, which were trained at the same time, the one that was there first.
            return max(trained, key=lambda run: (run.trained(), -min(p.stat().st_ctime for p in run.checkpoints())))
        found = [folder for folder in (root / path_or_name, Path(path_or_name)) if folder.is_dir()]
        for folder in found:
            if (folder / "recipe.yaml").is_file() or cls(folder).checkpoints():
                return cls(folder)
        if found:
            raise HebmError(f"the folder {found[0]} is not a run: it has no recipe.yaml and no checkpoint; name a run")
        if path_or_name in shipped.names():
            return cls(shipped.unpack(path_or_name, root))
        near = did_you_mean(Path(path_or_name).name, [*(run.name for run in runs), *shipped.names()])
        raise HebmError(
            f"there is no run '{path_or_name}', under {root} or as a folder"
            + (near or "; name another, or train one with `hebm train-vae digits`")
        )

    @staticmethod
    def check_same(old: Recipe, new: Recipe, parts: Iterable[str]) -> None:
        """Raise `HebmError` naming the first key within `parts` ("generator", "prior.kind") whose value differs."""
        for key, (before, after) in Run.changes(old, new, parts).items():
            raise HebmError(
                f"the run was trained with {key} = {before} and the recipe now says {after}; set it back, or start "
                "another run with name=NAME"
            )

    @staticmethod
    def changes(old: Recipe, new: Recipe, parts: Iterable[str]) -> dict[str, tuple[Any, Any]]:
        """The keys within `parts` whose values differ, with what they were and what they are."""
        before, after = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
        parts = tuple(parts)
        return {
            key: (before.get(key), after.get(key))
            for key in before | after
            if any(key == part or key.startswith(part + ".") for part in parts) and before.get(key) != after.get(key)
        }

    def check_stage_one(self, recipe: Recipe) -> Recipe:
        """The run's recipe, its data part brought up to `recipe`'s in what may change between the stages.

        Raises `HebmError` when the run's generator was trained with another generator, data or seed part.
        """
        kept = self.recipe()
        attributes = kept.data.attributes | recipe.data.attributes
        free = {key: getattr(recipe.data, key) for key in ("path", "download", "attributes")}
        kept.loggers = recipe.loggers
        kept.data = kept.data.model_copy(update=free)
        self.check_same(kept, recipe, ["generator", "data", "seed"])
        kept.data.attributes = attributes
        return kept

    # The lock

    def lock(self) -> Self:
        """Take the lock that one trainer at a time holds; the system frees it when the process ends.  Of several
        processes that train together the first holds it.

        Raises `HebmError` when another process holds it.
        """
        if not self._locked:
            ranks.first_alone(self._take_lock)
            self._locked = True
        return self

    def _take_lock(self) -> None:
        lock = FileLock(self.path / ".lock", timeout=0)
        try:
            self.samples_dir.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout as error:
            raise HebmError(
                f"another process is training the run {self.path}; wait for it, stop it, or start another run with "
                "name=NAME"
            ) from error
        except NotImplementedError:
            pass  # a filesystem without locks: training unguarded is better than not at all
        except OSError as error:
            raise HebmError(
                f"could not write in the run folder {self.path}: {error.strerror}; make it writable, or choose another "
                "with name=NAME"
            ) from error
        self._lock = lock
        # A checkpoint half-written when a process was killed outright; only the holder of the lock writes them.
        for stale in self.path.glob(".*.safetensors.*.tmp"):
            stale.unlink(missing_ok=True)

    def unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None
        self._locked = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception) -> None:
        self.unlock()

    # What is in the folder

    @property
    def recipe_path(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def generator_path(self) -> Path:
        return self.path / "generator.safetensors"

    @property
    def generator_train_path(self) -> Path:
        return self.path / "generator.train.safetensors"

    def prior_path(self, kind: str) -> Path:
        return self.path / f"prior-{kind}.safetensors"

    def prior_train_path(self, kind: str) -> Path:
        return self.path / f"prior-{kind}.train.safetensors"

    def label_path(self, name: str) -> Path:
        return self.path / f"label-{_in_a_file_name(name)}.safetensors"

    def label_train_path(self, name: str) -> Path:
        return self.path / f"label-{_in_a_file_name(name)}.train.safetensors"

    def classifier_path(self, name: str) -> Path:
        return self.path / f"classifier-{_in_a_file_name(name)}.safetensors"

    def labels(self) -> list[str]:
        """Names of the trained labels."""
        return [unquote(path.name.removeprefix("label-").removesuffix(".safetensors")) for path in self.label_paths()]

    def trained(self) -> float:
        """When it was trained last, in seconds since 1970: as its records say, or else its checkpoints' files."""
        written = max(path.stat().st_mtime for path in self.checkpoints())
        return records.last_time(self.metrics_path) or written

    def label_paths(self) -> list[Path]:
        """The trained labels' files."""
        return [
            p for p in self.checkpoints() if p.name.startswith("label-") and not p.name.endswith(".train.safetensors")
        ]

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def figures_path(self) -> Path:
        return self.path / "figures.json"

    @property
    def samples_dir(self) -> Path:
        return self.path / "samples"

    def checkpoints(self) -> list[Path]:
        return sorted(path for path in self.path.glob("[!.]*.safetensors") if path.is_file())

    def priors(self) -> list[str]:
        """The kinds of prior that can be sampled, from the simplest to the one to be preferred, in the recipe's order:
        the generator's own first, when there is a generator, then those trained."""
        own, *kinds = KINDS
        trained = [kind for kind in kinds if self.prior_path(kind).is_file()]
        return [own] * self.generator_path.is_file() + trained

    @property
    def one_stage(self) -> bool:
        """Whether the run's prior was learned together with its generator, in whose checkpoint both are."""
        return not self.generator_path.is_file() and any(
            brings_generator(self.prior_path(kind)) for kind in self.priors()
        )

    def require_generator(self) -> Path:
        """The path of the generator of many layers.  Raises `HebmError` when there is none yet, or never will be."""
        if self.one_stage:
            raise HebmError(
                f"the run {self.path} is a {self.priors()[-1]} model, whose latent has one layer, and this needs the "
                "layers of a hierarchical generator; name another run (`hebm train-vae` makes one)"
            )
        if not self.generator_path.is_file():
            raise HebmError(
                f"the run {self.path} has no generator ({self.generator_path.name} is missing); train it with "
                f"`hebm train-vae {self._recipe_word()}`"
            )
        return self.generator_path

    def require_prior(self, kind: str) -> Path:
        """The path of the prior of that kind; the Gaussian one is the generator's own.

        Raises `UsageError` when no such kind exists, `HebmError` when it, or the generator, is not trained yet.
        """
        own, *_ = KINDS
        trained = self.priors()
        if kind not in KINDS:
            raise UsageError(
                f"there is no kind of prior '{kind}'; choose one of {', '.join(KINDS)}{did_you_mean(kind, KINDS)}"
            )
        if kind in trained and kind != own:
            if not self.one_stage:
                self.require_generator()
            return self.prior_path(kind)
        if self.one_stage:
            raise HebmError(f"the run {self.path} is a {trained[-1]} model and has no '{kind}' prior; name no kind")
        generator = self.require_generator()
        if kind == own:
            return generator
        raise HebmError(
            f"the run {self.path} has no '{kind}' prior (it has {', '.join(trained)}); train it with "
            f"`hebm train-prior {self._recipe_word()}` and prior.kind={kind}"
        )

    # The recipe

    def recipe(self) -> Recipe:
        """The recipe in recipe.yaml.  Raises `HebmError` when it is missing or wrong."""
        if not self.recipe_path.is_file():
            raise HebmError(f"the run {self.path} has no recipe.yaml; put back the recipe it was trained with")
        found = load_written(self.recipe_path)
        if self.data_path is not None:
            found.data = found.data.model_copy(update={"path": self.data_path})
        return found

    def write_recipe(self, recipe: Recipe, remarks: str = "") -> None:
        """Write recipe.yaml, with remarks, which are comments, below."""
        files.write_text(self.recipe_path, dump(recipe) + remarks)

    # Records

    def log(self, stage: str, step: int, **figures: Any) -> None:
        """Append {"stage", "step", "time", **figures} to metrics.jsonl.

        Figures are numbers, strings, tensors or arrays, or lists and dicts of them; floats keep six significant digits,
        and what is not finite becomes null.
        """
        record = {"stage": stage, "step": int(step), "time": round(time.time(), 3)} | records.plain(figures)
        files.append_line(self.metrics_path, json.dumps(record))
        if self.followers is not None:
            self.followers.log(record)

    def metrics(self, stage: str | None = None) -> list[dict]:
        """The records of metrics.jsonl in order, of one stage or of all; a line cut short by a crash is passed over."""
        return [record for _, record in records.lines(self.metrics_path) if stage is None or record["stage"] == stage]

    def seconds(self, stage: str) -> float:
        """Time trained so far: `seconds` in the stage's last record that has it, 0 when there is none."""
        return next((float(record["seconds"]) for record in self.metrics(stage)[::-1] if record.get("seconds")), 0.0)

    def truncate_metrics(self, stage: str, step: int) -> None:
        """Drop the records of `stage` beyond `step`, which a resumed training will write again."""
        lines = [line for line, r in records.lines(self.metrics_path) if r["stage"] != stage or r["step"] <= step]
        if self.metrics_path.is_file():
            files.write_text(self.metrics_path, "".join(line + "\n" for line in lines))
        if self.followers is not None:
            self.followers.truncate(stage, step)

    def figures(self) -> dict:
        """The results in figures.json, {} when there are none.  Raises `HebmError` when it is not a JSON object."""
        found = records.read(self.figures_path)
        found.pop(records.OF, None)
        return found

    @contextlib.contextmanager
    def figures_lock(self) -> Iterator[None]:
        """Hold figures.json while something is added to it, so that what several processes add is all kept.

        Raises `HebmError` when another process holds it for a minute.
        """
        try:
            self._figures_lock.acquire(timeout=60)
        except Timeout as error:
            raise HebmError(f"another process has been writing {self.figures_path} for a minute; stop it") from error
        except (NotImplementedError, OSError):
            pass  # a filesystem without locks, or a folder that cannot be written in, which writing will tell
        try:
            yield
        finally:
            self._figures_lock.release()

    def figure(self, *key: str) -> records.Kept | None:
        """One result, as figure("closure", "ebm"), and whether it is of the checkpoints that are there.

        Raises `HebmError` when it is of other types than what `set_figure` was given.
        """
        return records.kept(self.figures_path, key)

    def set_figure(self, key: str | Sequence[str], value: Any, of: Sequence[Path] = ()) -> None:
        """Set one result, measured on the checkpoints `of`.  Values as in `log`.

        Arguments:
            key: its words, or, where none of them has a dot, all in one: "closure.diffusion-ebm".
        """
        words = key.split(".") if isinstance(key, str) else key
        with self.figures_lock():
            records.with_figure(self.figures_path, words, records.plain(value), of)

    def _recipe_word(self) -> str:
        return str(self.path) if self.recipe_path.is_file() else "RECIPE"


def _in_a_file_name(label: str) -> str:
    """A label's name, in which nothing is taken for another folder, nor for another label's training state."""
    plain = label.replace("%", "%25").replace("/", "%2F")
    return f"{plain.removesuffix('.train')}%2Etrain" if plain.endswith(".train") else plain


def _flat(tree: dict, where: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{where}{key}.") if isinstance(value, dict) else {f"{where}{key}": value}
    return flat
