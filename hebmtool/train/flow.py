"""Flow prior and top-down network learned jointly (LFBM, https://arxiv.org/abs/2301.09300, the learning algorithm).

    x -> z ~ p(z | x_observed) by a short Langevin run from the prior (or from where the image's chain ended)
      -> gradient step on log p(z) + log p(x_observed | z) over both networks

No encoder, and one stage.  With `data.missing` every image has pixels that no part of this ever sees.
"""

import torch
from torch import Tensor, nn

from hebmtool import data, picture, ranks, rows
from hebmtool.data import masks
from hebmtool.errors import HebmError
from hebmtool.noise import derive_seed
from hebmtool.prior import FlowPrior
from hebmtool.recipe import Recipe, located
from hebmtool.run import checkpoint, split
from hebmtool.run.folder import Run
from hebmtool.train.loop import Ema, Updates, load_training, log_changes, save_training
from hebmtool.train.prior import MAY_CHANGE, Ready, learning_rate, sample_grid

KIND = FlowPrior.kind
STAGE = f"train-prior {KIND}"


class Persistent(nn.Module):
    """Where every image's chain ended, [N, D]; saved with the training state."""

    def __init__(self, z: Tensor):
        super().__init__()
        self.register_buffer("z", z)


# Longer than a screen: the training reads from top to bottom in one place.
def train_flow(
    recipe: Recipe,
    run: Run,
    device: torch.device,
    resume: bool = False,
    ready: Ready | None = None,
    rewind: bool = False,
) -> FlowPrior:
    """Train the flow prior of `recipe`, and its generator, into `run`; returns it with averaged weights.

    SIGINT, SIGTERM and SIGHUP save and stop after the current update.  With `rewind` it resumes from the checkpoint
    before the last.

    Raises:
        HebmError: unusable data, a loss that ran away, a failed save, or stopped by a signal.
    """
    if resume and run.recipe_path.is_file():
        recipe = split.dealt_as(recipe, run.recipe())
    config = recipe.train_prior
    path, train_path = run.prior_path(KIND), run.prior_train_path(KIND)
    old = _check_resumable(recipe, run) if resume else None
    exact = recipe.flow.persistent or recipe.data.missing is not None
    images, test = split.both(run, recipe.data, exact)
    hidden = masks.missing(recipe.data, images, recipe.seed)
    data.batch_indices(len(images), config.batch_size, recipe.prior_seed, 0)
    if ready is not None:
        ready(images, test)

    torch.manual_seed(derive_seed(recipe.prior_seed, KIND))
    model = FlowPrior.from_recipe(recipe, images.shape).to(device)
    # The flow starts as the identity, so this is a draw of the prior as well.
    chains = Persistent(torch.randn(len(images), model.g.D)).to(device) if recipe.flow.persistent else None
    flow = torch.nn.ModuleList([model.couplings, model.mixings])
    parts = [part for part in (model.g, flow) if len(list(part.parameters()))]
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)
    ema = Ema(model, config.ema)
    averaged = FlowPrior.from_recipe(recipe, images.shape).to(device).eval().requires_grad_(False)
    step, kind = 0, f"{KIND} training"
    if resume:
        step = load_training(train_path, kind, model, ema, optimizer, chains, rewind)
        run.write_recipe(recipe)
    run.truncate_metrics(STAGE, step)
    if old is not None:
        log_changes(run, STAGE, step, old, recipe)

    def save(step: int) -> None:
        save_training(train_path, recipe, step, kind, model, ema, optimizer, chains)
        extra = {"image_shape": list(images.shape)}
        checkpoint.save(path, ema.tensors, kind=KIND, recipe=recipe, step=step, extra=extra)

    def show(step: int) -> None:
        averaged.load_state_dict(ema.tensors)
        picture.save_grid(sample_grid(averaged, recipe.seed), run.samples_dir / f"{KIND}-{step:07d}.png")

    with Updates(run, STAGE, recipe.prior_seed, config, config.iterations, step, save, show, path) as updates:
        for step in updates:
            indices = data.batch_indices(len(images), config.batch_size, recipe.prior_seed, step)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, step, len(images) // config.batch_size)

            ended = []
            for part in updates.parts(config.batch_size):
                mine = indices[part.rows]
                x = data.prepare(images.seen(mine), recipe.data, model.g.likelihood.read, train=True).to(device)
                observed = None if hidden is None else ~hidden(mine).to(device)
                z_0 = rows.randn(len(x), model.g.D, device=device)
                start = model.start(z_0, step) if chains is None else chains.z[mine]
                z = model.infer(x, start, recipe.flow.steps, lambda like=z_0: rows.randn_like(like), observed)
                loss, figures = model.loss(z, x, observed)
                updates.add(loss, **figures, z_std=z.std())
                if chains is not None:
                    ended.append(rows.gathered(z))
            # Apart: the two networks share a loss, not a scale.
            norms = updates.descend(optimizer, model, ema, "flow.step_size or train_prior.lr", parts)
            if chains is not None and not updates.skipped:
                chains.z[indices] = torch.cat(ended)
            if updates.to_log:
                updates.log(f"loss {updates.loss:.3g}", loss=updates.loss, **updates.figures, grad_norm=norms)
    ranks.first_alone(lambda: show(updates.step))
    averaged.load_state_dict(ema.tensors)
    return averaged


def _check_resumable(recipe: Recipe, run: Run) -> Recipe:
    """The recipe of the flow to continue.  Raises HebmError where there is none, or another recipe's."""
    train_path = run.prior_train_path(KIND)
    if not train_path.is_file():
        raise HebmError(f"there is no '{KIND}' prior to resume in {run.path}; start a new one instead")
    old = located(checkpoint.recipe(train_path, checkpoint.header(train_path)))
    free = {key: getattr(recipe.train_prior, key) for key in MAY_CHANGE}
    alike = old.model_copy(update={"train_prior": old.train_prior.model_copy(update=free)})
    alike.data = old.data.model_copy(update={"path": recipe.data.path, "download": recipe.data.download})
    alike.flow = old.flow.model_copy(update={key: getattr(recipe.flow, key) for key in ("test_steps", "step_size")})
    Run.check_same(alike, recipe, ["data", "prior.kind", "flow", "train_prior", "seed"])
    return old
