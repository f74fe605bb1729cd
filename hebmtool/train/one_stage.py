"""A prior and its generator of one layer learned jointly: a flow (LFBM, https://arxiv.org/abs/2301.09300) or an
energy (Pang et al. 2020, https://arxiv.org/abs/2006.08205).

    x -> z ~ p(z | x_observed) by a short Langevin run from the prior (or from where the image's chain ended)
      -> gradient step on log p(z) + log p(x_observed | z) over both networks     (`OneStage.loss`)

No encoder, and one stage.  With `data.missing` every image has pixels that no part of this ever sees.
"""

import torch
from torch import Tensor, nn

from hebmtool import data, ranks, rows
from hebmtool.data import masks
from hebmtool.errors import HebmError
from hebmtool.noise import derive_seed
from hebmtool.prior import KINDS, OneStage
from hebmtool.recipe import Recipe, located
from hebmtool.run import checkpoint, split
from hebmtool.run.folder import Run
from hebmtool.run.open import STEPS
from hebmtool.train.loggers import show_samples
from hebmtool.train.loop import Ema, Updates, load_training, log_changes, save_training
from hebmtool.train.prior import MAY_CHANGE, Ready, learning_rate, sample_grid


class Persistent(nn.Module):
    """Where every image's chain ended, [N, D]; saved with the training state."""

    def __init__(self, z: Tensor):
        super().__init__()
        self.register_buffer("z", z)


# Longer than a screen: the training reads from top to bottom in one place.
def train_one_stage(
    recipe: Recipe,
    run: Run,
    device: torch.device,
    resume: bool = False,
    ready: Ready | None = None,
    rewind: bool = False,
) -> OneStage:
    """Train the prior of `recipe`, which brings its generator, and that too, into `run`; returns it with averaged
    weights.

    SIGINT, SIGTERM and SIGHUP save and stop after the current update.  With `rewind` it resumes from the checkpoint
    before the last.

    Raises:
        HebmError: unusable data, a loss that ran away, a failed save, or stopped by a signal.
    """
    if resume and run.recipe_path.is_file():
        recipe = split.dealt_as(recipe, run.recipe())
    config, kind = recipe.train_prior, recipe.prior.kind
    path, train_path = run.prior_path(kind), run.prior_train_path(kind)
    old = _check_resumable(recipe, run) if resume else None
    exact = recipe.flow.persistent or recipe.data.missing is not None
    images, test = split.both(run, recipe.data, exact)
    hidden = masks.missing(recipe.data, images, recipe.seed)
    data.batch_indices(len(images), config.batch_size, recipe.prior_seed, 0)
    if ready is not None:
        ready(images, test)

    torch.manual_seed(derive_seed(recipe.prior_seed, kind))
    model = KINDS[kind].from_recipe(recipe, images.shape).to(device)
    # Priors start as N(0, I), so this is a draw of the prior as well.
    chains = Persistent(torch.randn(len(images), model.g.D)).to(device) if recipe.flow.persistent else None
    parts, rates = zip(*model.networks(config), strict=True)
    groups = [{"params": list(part.parameters())} for part in parts]
    optimizer = torch.optim.Adam(groups, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)
    ema = Ema(model, config.ema)
    averaged = KINDS[kind].from_recipe(recipe, images.shape).to(device).eval().requires_grad_(False)
    step, stage = 0, f"train-prior {kind}"
    if resume:
        step = load_training(train_path, f"{kind} training", model, ema, optimizer, chains, rewind)
        model.stepping(checkpoint.header(train_path).extra.get(STEPS, recipe.prior.theta))
        run.write_recipe(recipe)
    run.truncate_metrics(stage, step)
    if old is not None:
        log_changes(run, stage, step, old, recipe)

    def save(step: int) -> None:
        steps = {} if model.steps is None else {STEPS: model.steps}
        save_training(train_path, recipe, step, f"{kind} training", model, ema, optimizer, chains, steps)
        extra = {"image_shape": list(images.shape)}
        checkpoint.save(path, ema.tensors, kind=kind, recipe=recipe, step=step, extra=extra)

    def average() -> None:
        averaged.load_state_dict(ema.tensors)
        averaged.settle()
        averaged.stepping(None)

    def show(step: int) -> None:
        average()
        show_samples(run, stage, kind, step, sample_grid(averaged, recipe.seed))

    feed = data.Feed(images, config, stage, recipe.prior_seed, config.iterations, device)
    with feed, Updates(run, stage, recipe.prior_seed, config, config.iterations, step, save, show, path) as updates:
        for step in updates:
            indices = feed.update(step)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = learning_rate(config, step, len(images) // config.batch_size, rate)

            ended = []
            for part in updates.parts(config.batch_size):
                mine = indices[part.rows]
                x = data.prepare(feed.take(part), recipe.data, model.g.likelihood.read, train=True)
                observed = None if hidden is None else ~hidden(mine).to(device)
                z_0 = rows.randn(len(x), model.g.D, device=device)
                start = model.start(z_0, step) if chains is None else chains.z[mine]
                z = model.infer(x, start, recipe.flow.steps, lambda like=z_0: rows.randn_like(like), observed)
                loss, figures = model.loss(z, x, observed)
                updates.add(loss, **figures, z_std=z.std())
                if chains is not None:
                    ended.append(rows.gathered(z))
            # Apart: the two networks share a loss, not a scale.
            norms = updates.descend(optimizer, model, ema, model.knobs, parts)
            if chains is not None and not updates.skipped:
                chains.z[indices] = torch.cat(ended)
            if updates.to_log:
                updates.log(f"loss {updates.loss:.3g}", loss=updates.loss, **updates.figures, grad_norm=norms)
    ranks.first_alone(lambda: show(updates.step))
    average()
    return averaged


def _check_resumable(recipe: Recipe, run: Run) -> Recipe:
    """The recipe of the prior to continue.  Raises HebmError where there is none, or another recipe's."""
    kind = recipe.prior.kind
    train_path = run.prior_train_path(kind)
    if not train_path.is_file():
        raise HebmError(f"there is no '{kind}' prior to resume in {run.path}; start a new one instead")
    old = located(checkpoint.recipe(train_path, checkpoint.header(train_path)))
    free = {key: getattr(recipe.train_prior, key) for key in MAY_CHANGE}
    alike = old.model_copy(update={"train_prior": old.train_prior.model_copy(update=free)})
    alike.data = old.data.model_copy(update={"path": recipe.data.path, "download": recipe.data.download})
    alike.flow = old.flow.model_copy(update={key: getattr(recipe.flow, key) for key in ("test_steps", "step_size")})
    Run.check_same(alike, recipe, ["data", *KINDS[kind].of_recipe, "train_prior", "seed"])
    return old
