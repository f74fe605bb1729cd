"""Making runs: the two stages of training, and the import of a published generator.

A mistake in a recipe is told before torch is imported, which takes seconds.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from hebmtool import recipe as recipes
from hebmtool.errors import HebmError, UsageError
from hebmtool.recipe import NAME, Recipe
from hebmtool.run import again as again_in
from hebmtool.run.folder import Run
from hebmtool.run.launch import begun

Overrides = Sequence[str] | Mapping[str, object]
"""Keys of a recipe and their values, {"prior.levels": 6}, or the texts "prior.levels=6", values in YAML."""


def read_recipe(recipe: Recipe | Mapping | str | Path, overrides: Overrides = ()) -> Recipe:
    """The recipe meant: itself, a nested mapping, a YAML file, or the name of a built-in one; with overrides.

    Raises:
        UsageError: no such recipe, or a key or value that is wrong.
    """
    if isinstance(overrides, Mapping):
        # JSON is YAML.
        overrides = [f"{key}={json.dumps(value, default=str)}" for key, value in overrides.items()]
    return recipes.load(recipe.model_dump(mode="json") if isinstance(recipe, Recipe) else recipe, overrides)


def meant(
    recipe: Recipe | Mapping | str | Path | Run,
    overrides: Overrides,
    runs: str | Path,
    again: bool = False,
    data_path: str | Path | None = None,
) -> tuple[Recipe, Run]:
    """The recipe, and the run to train in: of a run that is named, what it was trained with, with overrides.

    Arguments:
        again: of a run, go on with the prior of the kind asked for, or its labels: with what that was trained with.
        data_path: where the images are, in place of `data.path`.
    """
    run = again_in.named(recipe, runs)
    source = recipe if run is None else run.recipe()
    if run is not None:
        if again:
            source = again_in.trained_with(run, run.prior_train_path(read_recipe(source, overrides).prior.kind))
        if re.fullmatch(NAME, run.name):
            source = source.model_copy(update={"name": run.name})  # it may have been renamed, or copied
    settings = read_recipe(source, overrides)
    if data_path is not None:
        settings = read_recipe(settings, {"data.path": str(data_path)})
    settings = recipes.located(settings)
    if run is None or settings.name != source.name:
        run = Run(Path(runs if run is None else run.path.parent) / settings.name)
    return settings, run


def train_vae(
    recipe: Recipe | Mapping | str | Path | Run,
    overrides: Overrides = (),
    *,
    runs: str | Path = "runs",
    device: str = "auto",
    resume: bool = False,
    rewind: bool = False,
    data_path: str | Path | None = None,
    finetune: bool = False,
) -> Run:
    """Stage one: train the multi-layer generator and its encoder.

    Arguments:
        recipe: the name of a built-in one, a YAML file, a nested mapping or a `Recipe`; or a run, by its folder, by its
            name where no built-in recipe has it, or itself: what it was trained with.
        overrides: keys that take other values, as {"train_vae.iterations": 500}.
        runs: the folder of runs, in which the recipe's `name` is the run's.
        device: "auto", "cpu", "cuda" or "cuda:N".
        resume: go on from the run's last checkpoint.
        rewind: go on from the checkpoint before that, from which training went on without trouble.
        data_path: where the images are, in place of the recipe's `data.path`.
        finetune: begin with the generator of the run that `recipe` names, as an imported one's, and with the KL's
            weight at 1 (train_vae.kl_warmup 0, unless overridden): there, where nothing was trained on it, or under
            another `name`.

    Under torchrun the processes share every update's batch, with the result of one; started again by it after one of
    them has died, they go on from what was saved.

    Returns the run.  SIGINT, SIGTERM and SIGHUP save and stop after the current update.

    Raises:
        UsageError: a mistake in the recipe, or one that has no such stage; no run to finetune; no such device.
        HebmError: the run is there already, or is not and is to be resumed; unusable data, a loss that is no longer
            finite, a failed save, or stopped by a signal.
    """
    if finetune and (resume or rewind):
        raise UsageError("finetuning begins with what a run has; to go on with a finetuning, only resume it")
    start = _start(recipe, runs) if finetune else None
    if start is not None:
        overrides = _over({"train_vae.kl_warmup": 0}, overrides)
    settings, at = meant(recipe, overrides, runs, data_path=data_path)
    if settings.one_stage:
        kind = settings.prior.kind
        raise UsageError(f"prior.kind {kind} learns its generator together with the prior; use `hebm train-prior`")
    from hebmtool.compute import pick_device
    from hebmtool.train import loggers
    from hebmtool.train.vae import train_vae as train

    where = pick_device(device)
    loggers.check(settings.loggers)
    if _goes_on(at) and (start is None or at.generator_train_path.is_file()):
        resume, start = True, None
    resume = resume or rewind
    if here := start == at.generator_path:
        _check_untouched(at)
    with at.lock() if here else Run.create(runs, settings, resume, at) as run, loggers.following(run, settings):
        train(settings, run, where, resume, rewind, start)
        again_in.remark(run)
    return run


# A little more than a screen, for it says of each argument what it is.
def train_prior(
    recipe: Recipe | Mapping | str | Path | Run,
    overrides: Overrides = (),
    *,
    runs: str | Path = "runs",
    device: str = "auto",
    resume: bool = False,
    rewind: bool = False,
    data_path: str | Path | None = None,
    finetune: bool = False,
    trust_features: bool = False,
    readjust_bn: int = 0,
    readjust_temperature: float = 1.0,
) -> dict:
    """Stage two: train a prior on the recipe's generator, measure its prior-hole closure, then learn the labels of
    `prior.labels`.  A run holds one prior of each kind.  A flow or a latent EBM is learned together with a generator of
    its own, in a run of its own, without a stage one.  With `train_prior.joint` an energy-based prior is learned
    together with the recipe's generator and encoder, from where stage one left them; its checkpoint has them as they
    then are.

    Arguments:
        recipe, overrides, runs, device, resume, rewind, data_path: as `train_vae`'s; finetuning rewinds the labels.
        finetune: only couple the labels of `prior.labels` to the prior that is there.
        trust_features: open the feature network that an override of evaluate.features names even where it runs code
            (TorchScript, .pt2).
        readjust_bn: where the recipe has none, its `train_prior.readjust_bn`: first re-estimate the generator's
            BatchNorm statistics on this many generated batches.
        readjust_temperature: standard deviation of u in them.

    Returns {"run": folder, "closure": its figures, or None where no feature network fits the images or nothing was
    trained, "labels": how often each is recognised in test images, where there are any}; of a prior that brings
    its generator {"run": folder, its kind: its figures}.

    Raises:
        UsageError: a mistake in the recipe, labels that are not named; no such device.
        HebmError: no generator; as `train_vae`.
    """
    settings, at = meant(recipe, overrides, runs, resume or rewind or finetune, data_path)
    if trust_features and "evaluate.features" not in (text.partition("=")[0].strip() for text in overrides):
        raise UsageError("trust_features is for what an override of evaluate.features names, never for a recipe's own")
    if finetune and not settings.prior.labels:
        raise UsageError("finetuning couples labels, but prior.labels is empty; set it, as prior.labels=class")
    if readjust_bn and not settings.train_prior.readjust_bn:
        own = {"readjust_bn": readjust_bn, "readjust_temperature": readjust_temperature}
        settings = read_recipe(settings, {f"train_prior.{key}": value for key, value in own.items()})
    if not settings.one_stage and not at.path.is_dir():
        word = recipe if isinstance(recipe, str | Path) else settings.name
        raise HebmError(f"there is no generator in {at.path}; train it first with `hebm train-vae {word}`")
    from hebmtool.compute import pick_device
    from hebmtool.judge.trained import Judge
    from hebmtool.train import loggers

    loggers.check(settings.loggers)
    where, resume = pick_device(device), resume or rewind
    judge = Judge(settings, where, trusted=trust_features)
    if settings.one_stage:
        return _one_stage(settings, at, judge, resume, rewind)
    from hebmtool.train.labels import train_labels

    with Run.open(at.path, at.path.parent).lock() as run, loggers.following(run, settings):
        run.require_generator()
        closure = None
        if finetune:
            run.require_prior(settings.prior.kind)
        else:
            on = resume or (begun(run) and run.prior_train_path(settings.prior.kind).is_file())
            closure = judge.closure(_trainer(settings)(settings, run, where, on, judge.ready, rewind), run)
        labels = train_labels(settings, run, where, resume or begun(run), again=finetune, rewind=rewind and finetune)
        again_in.remark(run)
    found = {"run": str(run.path), "closure": None if closure is None else closure.figures()}
    return found | ({"labels": labels} if labels else {})


def _start(word: object, runs: str | Path) -> Path:
    """The generator of the run that is named.  Raises HebmError where there is none."""
    run = again_in.named(word, runs)
    if run is None:
        raise UsageError(f"finetuning begins with the generator of a run, and {word} is none; name one by its folder")
    return run.require_generator()


def _check_untouched(run: Run) -> None:
    """Raise HebmError where something was trained on the run's generator, or it was trained here itself."""
    another = "finetune it under another name (name=NAME)"
    if run.generator_train_path.is_file():
        raise HebmError(f"the generator in {run.path} was trained there; resume it, or {another}")
    later = [*run.priors()[1:], *run.labels()]
    if later:
        raise HebmError(f"{run.path} has {', '.join(later)}, learned on its generator as it is; {another}")


def _over(before: Mapping[str, object], overrides: Overrides) -> Overrides:
    """Overrides that come after others."""
    if isinstance(overrides, Mapping):
        return {**before, **overrides}
    return [*(f"{key}={json.dumps(value)}" for key, value in before.items()), *overrides]


def _trainer(settings: Recipe):
    """What trains a prior on a generator of stage one: alone, or together with it."""
    if settings.train_prior.joint:
        from hebmtool.train.joint import train_joint

        return train_joint
    from hebmtool.train.prior import train_prior

    return train_prior


def _goes_on(run: Run) -> bool:
    """Whether torchrun has started the training again, after it had saved something."""
    return begun(run) and bool(run.checkpoints())


def _one_stage(settings: Recipe, at: Run, judge, resume: bool, rewind: bool) -> dict:
    from hebmtool.train.loggers import following
    from hebmtool.train.one_stage import train_one_stage

    if settings.train_prior.readjust_bn:
        raise UsageError(
            f"train_prior.readjust_bn is for BatchNorms, and a {settings.prior.kind} model has none; leave it out"
        )
    resume = resume or _goes_on(at)
    with Run.create(at.path.parent, settings, resume, at) as run, following(run, settings):
        prior = train_one_stage(settings, run, judge.device, resume, judge.ready, rewind)
        return {"run": str(run.path), prior.kind: judge.one_stage(prior, run)}


def import_nvae(
    path: str | Path,
    out: str | Path | None = None,
    *,
    data_path: str | None = None,
    readjust_bn: int = 0,
    readjust_temperature: float = 1.0,
    runs: str | Path = "runs",
    device: str = "auto",
) -> Run:
    """Turn a published NVAE checkpoint into a run, ready for `train_prior` and `load`.  It is never unpickled freely.

    Arguments:
        path: the checkpoint.
        out: the run's folder to make; `runs`/nvae-DATASET when None.
        data_path: the images' folder or file, for the run's recipe.
        readjust_bn: re-estimate the BatchNorm statistics on this many generated batches.
        readjust_temperature: standard deviation of u in them.

    Raises:
        HebmError: the file cannot be used, or the run is there already (`hebmtool.run.imported`).
    """
    from hebmtool.compute import pick_device
    from hebmtool.run.imported import import_checkpoint

    root, name = (runs, None) if out is None else (Path(out).parent, Path(out).name)
    return import_checkpoint(
        path,
        root,
        name,
        data_path=data_path,
        readjust_bn=readjust_bn,
        readjust_temperature=readjust_temperature,
        device=pick_device(device),
    )
