"""Stage three, where labels are wanted: p(y | z, t) on posterior u_t of all levels, prior and generator frozen.

x -> u_0 ~ q(u | x) -> u_t -> log p(y | T(u_t), t)      (`hebmtool.prior.labels`)
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hebmtool import data, rows
from hebmtool.console import note
from hebmtool.errors import HebmError, UsageError
from hebmtool.generator import Tower
from hebmtool.noise import derive_seed
from hebmtool.prior.energy import CALIBRATION_DRAWS, chosen_layers
from hebmtool.prior.labels import LAYERS, LabelEnergy, values_of
from hebmtool.prior.schedule import Schedule
from hebmtool.recipe import Recipe
from hebmtool.run import checkpoint, split
from hebmtool.run.folder import Run
from hebmtool.run.header import contents, is_of
from hebmtool.run.open import load_prior
from hebmtool.train.loop import Ema, Updates, load_training, log_changes, save_training

TEST_BATCH = 250


def train_labels(
    recipe: Recipe, run: Run, device: torch.device, resume: bool = False, again: bool = True, rewind: bool = False
) -> dict[str, dict]:
    """Learn p(y | z, t) for every label of `recipe.prior.labels`, on posterior u_t of all levels, on the generator as
    the prior reads it.

    Returns, for each, its accuracy on the test images at every level.  SIGINT, SIGTERM and SIGHUP save and stop.

    Arguments:
        again: whether a label that the run has already is a mistake; else it is passed over.
        rewind: resume from the checkpoint before the last.

    Raises:
        HebmError: no prior, no such label, training that diverged, a failed save, or stopped by a signal.
    """
    if not recipe.prior.labels:
        return {}
    recipe = split.dealt_as(recipe, run.recipe())
    kept = run.check_stage_one(recipe)
    prior = load_prior(run, recipe.prior.kind, device)
    if prior.T > 1 and recipe.prior.levels != prior.T:
        raise HebmError(
            f"prior.levels is {recipe.prior.levels}, but the prior in {run.path} has {prior.T}; set it to that"
        )
    generator = prior.generator
    images, test = split.both(run, recipe.data)
    check(recipe, run, generator, images, test)
    names = list(recipe.prior.labels)
    for name in recipe.prior.labels:
        if not resume and (run.label_path(name).is_file() or run.label_train_path(name).is_file()):
            if again:
                raise HebmError(
                    f"{run.path} has the label '{name}' already; resume it, or move "
                    f"{run.label_path(name).name} and {run.label_train_path(name).name} away to learn it again"
                )
            note(f"{run.path} has the label '{name}' already; it is left as it is")
            names.remove(name)
    run.write_recipe(kept)  # the attributes' definitions, which judging them needs
    results = {}
    for name in names:
        results[name] = _train_label(name, recipe, run, generator, images, test, resume, rewind)
        run.set_figure(("label_accuracy", name), results[name]["accuracy"], [run.generator_path, run.label_path(name)])
        shown = ", ".join(f"{100 * a:.1f}%" for a in results[name]["accuracy"])
        note(f"label {name}: p(y | z, t) is right on {shown} of the test images at levels 0, 1, ...")
    return results


def objective(label: LabelEnergy, generator: Tower, schedule: Schedule, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """(what stage three minimises, log p(y | z, t) of every value [N, K]), on images x with the values y [N]."""
    label.energy.advance()
    with torch.no_grad():
        t = rows.randint(schedule.T, len(x), x.device)
        walk = generator.walk(schedule.diffuse(generator.encode(x), t)[0])
    log_p = label.log_prob(walk, t)
    return F.nll_loss(log_p, y), log_p


def _train_label(
    name: str,
    recipe: Recipe,
    run: Run,
    generator: Tower,
    images: data.Images,
    test: data.Images,
    resume: bool,
    rewind: bool,
) -> dict:
    config, schedule, stage = recipe.train_prior, Schedule(recipe.prior.levels), f"train-prior label {name}"
    y, values = values_of(name, images, recipe.data)
    y_test, _ = values_of(name, test, recipe.data)
    path, train_path = run.label_path(name), run.label_train_path(name)
    device = generator.device
    torch.manual_seed(derive_seed(recipe.prior_seed, "label", name))
    label = LabelEnergy(name, values, generator, recipe.prior).to(device)
    label.energy.calibrate(generator.walk(torch.randn(CALIBRATION_DRAWS, generator.D).to(device)))
    optimizer = torch.optim.Adam(label.parameters(), lr=config.label_lr, weight_decay=config.weight_decay)
    ema, step = Ema(label, config.ema), 0
    extra = {
        "generator": contents(run.generator_path),
        "label": name,
        "values": values,
        "made_of": recipe.data.attributes.get(name),
        "whitening": generator.whitening_digest,
    }
    old = _resumable(name, recipe, run, extra) if resume else None
    if old is not None:
        step = load_training(train_path, "label training", label, ema, optimizer, rewind=rewind)
    run.truncate_metrics(stage, step)
    if old is not None:
        log_changes(run, stage, step, old, recipe)

    def save(step: int) -> None:
        save_training(train_path, recipe, step, "label training", label, ema, optimizer, origin=extra)
        checkpoint.save(path, ema.tensors, kind="label", recipe=recipe, step=step, extra=extra)

    feed = data.Feed(images, config, stage, recipe.prior_seed, config.label_iterations, device)
    at_update = (recipe.prior_seed, config, config.label_iterations, step, save)
    with feed, Updates(run, stage, *at_update, kept=path) as updates:
        for step in updates:
            indices = feed.update(step)
            for part in updates.parts(config.batch_size):
                x = data.prepare(feed.take(part), recipe.prior_data, generator.likelihood.read, train=True)
                target = y[indices[part.rows]].to(device)
                loss, log_p = objective(label, generator, schedule, x, target)
                updates.add(loss, accuracy=(log_p.argmax(1) == target).float().mean())
            updates.descend(optimizer, label, ema, "train_prior.label_lr")
            if updates.to_log:
                updates.log(loss=updates.loss, **updates.figures)
    label.load_state_dict(ema.tensors)
    label.eval()
    label.energy.settle()
    return {"accuracy": accuracy(label, generator, test, y_test, recipe), "values": values}


def _resumable(name: str, recipe: Recipe, run: Run, extra: dict) -> Recipe | None:
    """The recipe of the label's training to continue, None where there is none.  Raises HebmError where it is of
    something else."""
    path, train_path = run.label_path(name), run.label_train_path(name)
    if not train_path.is_file():
        if path.is_file():
            raise HebmError(
                f"{train_path} is missing, so the label '{name}' cannot be resumed; move {path} away to start anew"
            )
        return None
    header = checkpoint.header(train_path)
    kept = {"whitening": None} | header.extra
    same = is_of(kept.pop("generator", None), run.generator_path)
    if not same or kept != {key: value for key, value in extra.items() if key != "generator"}:
        raise HebmError(
            f"{train_path} was learned on another generator, other values or other whitened latents than there are "
            "now; move it away to start anew"
        )
    same = ["batch_size", "weight_decay", "ema"]
    what = ["prior.energy", "prior.levels", "prior.label_layers", "seed", *(f"train_prior.{key}" for key in same)]
    old = checkpoint.recipe(train_path, header)
    Run.check_same(old, recipe, what)
    return old


@torch.no_grad()
def accuracy(label: LabelEnergy, generator: Tower, images: data.Images, y: Tensor, recipe: Recipe) -> list[float]:
    """Share of images whose label p(y | z, t) finds, from one posterior draw each, at every level t = 0 .. T-1."""
    schedule, device = Schedule(recipe.prior.levels), generator.device
    right = torch.zeros(schedule.T)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed(recipe.seed, "label accuracy"))
        for indices in torch.arange(len(images)).split(TEST_BATCH):
            x = data.prepare(images.batch(indices), recipe.data, generator.likelihood.read, train=False).to(device)
            u_0 = generator.encode(x)
            for level in range(schedule.T):
                t = torch.full((len(x),), level, device=device)
                u = u_0 if level == 0 else schedule.diffuse(u_0, t)[0]
                right[level] += (label.log_prob(generator.walk(u), t).argmax(1).cpu() == y[indices]).sum()
    return (right / len(images)).tolist()


def check(recipe: Recipe, run: Run, generator: Tower, images: data.Images, test: data.Images) -> None:
    """Raise, before anything is trained, for what would stop `train_labels`.

    Raises:
        UsageError: a label named twice, or a layer that does not exist.
        HebmError: no such label, images of another shape, or an attribute that has changed since it was learned.
    """
    names = recipe.prior.labels
    if len(set(names)) < len(names):
        raise UsageError(f"prior.labels names {max(names, key=names.count)} twice; name each label once")
    chosen_layers(generator, recipe.prior.label_layers, LAYERS)
    if images.shape != generator.image_shape:
        raise HebmError(
            f"the images are {images.shape} (channels, height, width) but the generator in {run.path} makes "
            f"{generator.image_shape}; use the data it was trained on"
        )
    for name in names:
        values_of(name, images, recipe.data)
        values_of(name, test, recipe.data)
    for name, classes in recipe.data.attributes.items():
        for path in (run.label_path(name), run.label_train_path(name)):
            if path.is_file() and (learned := checkpoint.header(path).extra.get("made_of")) != classes:
                raise HebmError(
                    f"data.attributes.{name} is now {', '.join(classes)}, and {path} was learned when it was "
                    f"{', '.join(learned or [])}; give it another name, or move the file away"
                )
