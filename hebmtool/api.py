"""TODO."""

from pathlib import Path

from hebmtool import compute, recipe
from hebmtool.errors import HebmError, UsageError
from hebmtool.judge.trained import Judge
from hebmtool.recipe import Recipe
from hebmtool.run.folder import Run
from hebmtool.train.flow import train_flow
from hebmtool.train.labels import train_labels
from hebmtool.train.prior import train_prior as train_on_generator


def train_prior(
    settings: Recipe | str | Path,
    runs: str | Path = "runs",
    device: str = "auto",
    resume: bool = False,
    finetune: bool = False,
) -> dict:
    """Stage two."""
    settings = settings if isinstance(settings, Recipe) else recipe.load(settings)
    where, runs = compute.pick_device(device), Path(runs)
    judge = Judge(settings, where)
    if settings.one_stage:
        if settings.train_prior.readjust_bn:
            raise UsageError("train_prior.readjust_bn is for BatchNorms, and a flow model has none; remove it")
        with Run.create(runs, settings, resume) as run:
            prior = train_flow(settings, run, where, resume, judge.ready)
            return {"run": str(run.path), prior.kind: judge.one_stage(prior, run)}
    if not (runs / settings.name).is_dir():
        raise HebmError(
            f"there is no generator in {runs / settings.name}; train it first with `hebm train-vae {settings.name}`"
        )
    with Run.open(runs / settings.name, runs).lock() as run:
        run.require_generator()
        closure = None
        if finetune:
            run.require_prior(settings.prior.kind)
        else:
            closure = judge.closure(train_on_generator(settings, run, where, resume, judge.ready), run)
        labels = train_labels(settings, run, where, resume, again=finetune)
    found = {"run": str(run.path), "closure": None if closure is None else closure.figures()}
    return found | ({"labels": labels} if labels else {})
