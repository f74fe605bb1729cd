"""Generator, encoder and energy learned together, from where stage one left the first two.

    p(x, z) = p(x | z) p(z),        p(z) = exp(F(z)) p_0(z) / Z

    energy      by its own objective on z ~ q(z | x)                             (`Prior.loss`)
    generator   E_q[grad (log p(x | z) + F(z) + log p_0(z))] - E_p(z)[grad (F(z) + log p_0(z))]
    encoder     the bound, E_q[log p(x | z) + F(z) + log p_0(z) - log q(z | x)]

The second expectation is grad log Z, for p_0 and, where the energy reads states, F depend on the generator; z ~ p(z)
are draws of the prior as it stands ("Learning Joint Latent Space EBM Prior Model for Multi-layer Generator", Cui, Wu &
Han 2023, https://arxiv.org/abs/2306.06323; "Learning Hierarchical Features with Joint Latent Space Energy-Based Prior",
the same 2023, https://arxiv.org/abs/2310.09604, which adds the encoder).  Both are taken at given z, not at given u:
written in u the Gaussian is N(0, I), and what is lost is the Jacobian, -sum log sigma_i.

BatchNorm statistics stay as stage one left them, so that T is one function for posterior draws and the prior's.  The
generator as it is learned here goes into the prior's checkpoint; the run's own is left as it was, and so is whatever
else was learned on it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hebmtool import data, ranks, rows
from hebmtool.compute import is_compiling
from hebmtool.errors import UsageError
from hebmtool.generator import Generator, Tower
from hebmtool.noise import derive_seed
from hebmtool.prior import KINDS, Prior, make_prior
from hebmtool.prior.energy import CALIBRATION_DRAWS
from hebmtool.recipe import Recipe
from hebmtool.run import checkpoint, split
from hebmtool.run.folder import Run
from hebmtool.run.header import contents
from hebmtool.run.open import STATISTICS, load_generator
from hebmtool.train.loggers import show_samples
from hebmtool.train.loop import Ema, Updates, load_training, log_changes, prefixed, save_training
from hebmtool.train.prior import Ready, check_place, learning_rate, sample_grid, training_images


@contextmanager
def constant(module: nn.Module) -> Iterator[None]:
    """Within it the module's parameters are constants of whatever is computed."""
    required = [p.requires_grad for p in module.parameters()]
    module.requires_grad_(False)
    try:
        yield
    finally:
        for p, flag in zip(module.parameters(), required, strict=True):
            p.requires_grad_(flag)


def joint_loss(generator: Generator, prior: Prior, x: Tensor) -> tuple[Tensor, dict]:
    """What one update minimises: minus the bound on log p(x), but for log Z, of which it has the gradient; and figures
    worth logging.

    Arguments:
        generator: in evaluation mode; its parameters are learned.  Anything with `posterior` and T_inverse.
        prior: one that is learned, on this very generator.
        x: images, [N, C, H, W].
    """
    posterior = generator.posterior(x)
    u_0 = generator.latents(posterior.walk)
    with constant(generator):
        energy, figures = prior.loss(u_0.detach(), x)
        with torch.no_grad():
            z_minus = generator.T(prior.sample(lambda: rows.randn_like(u_0)))
    # The energy learns from `prior.loss` alone; to the others it is a given function of z.
    with prior.fixed():
        # At given z: what u becomes as mu and sigma change.
        u_minus = generator.T_inverse(z_minus)
        walk = generator.walk(u_minus)
        F, F_minus = prior.log_tilt(u_0, walk=posterior.walk), prior.log_tilt(u_minus, walk=walk)
    log_px, kl = generator.log_px(posterior.walk, x), posterior.kl.sum(1)
    height = walk.log_p_0() + F_minus
    # Of the height at the prior's draws only the gradient, that of log Z, belongs to the bound.
    loss = -(log_px - kl + F).mean() + (height - height.detach()).mean() + energy
    found = {"elbo": log_px - kl, "log_px": log_px, "kl": kl, "F_posterior": F, "F_prior": F_minus}
    return loss, figures | {name: value.detach().mean() for name, value in found.items()}


# Longer than a screen: the training reads from top to bottom in one place.
def train_joint(
    recipe: Recipe,
    run: Run,
    device: torch.device,
    resume: bool = False,
    ready: Ready | None = None,
    rewind: bool = False,
) -> Prior:
    """Train the prior of `recipe` together with the run's generator and encoder, from where stage one left these;
    returns it with averaged weights, as it is sampled.

    SIGINT, SIGTERM and SIGHUP save and stop after the current update.  With `rewind` it resumes from the checkpoint
    before the last.

    Raises:
        HebmError: no generator, unusable data, a loss that ran away, a failed save, or stopped by a signal.
    """
    recipe = split.dealt_as(recipe, run.recipe())
    config, kind = recipe.train_prior, recipe.prior.kind
    if not KINDS[kind].learned or KINDS[kind].brings_generator:
        raise UsageError(f"train_prior.joint learns an energy with a generator, and prior.kind is '{kind}'; take ebm")
    if is_compiling():
        raise UsageError("a generator and an energy that are learned jointly cannot be compiled; do without compiling")
    path, train_path = run.prior_path(kind), run.prior_train_path(kind)
    old = check_place(recipe, run, resume)
    generator = load_generator(run, device)
    origin = {"generator": contents(run.generator_path)}
    kept = run.check_stage_one(recipe)
    images = training_images(recipe, run, generator, ready)
    run.write_recipe(kept.model_copy(update={k: getattr(recipe, k) for k in ("prior", "train_prior", "evaluate")}))

    torch.manual_seed(derive_seed(recipe.prior_seed, "prior", kind))
    prior = make_prior(generator, recipe.prior)
    prior.calibrate(generator.walk(torch.randn(CALIBRATION_DRAWS, generator.D).to(device)))
    both = nn.ModuleDict({"generator": generator, "prior": prior})
    groups = [{"params": list(generator.parameters())}, {"params": list(prior.parameters())}]
    optimizer = torch.optim.Adam(groups, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)
    ema = Ema(both, config.ema)
    step, stage = 0, f"train-prior {kind}"
    if resume:
        step = load_training(train_path, f"{kind} training", both, ema, optimizer, rewind=rewind)
    run.truncate_metrics(stage, step)
    if old is not None:
        log_changes(run, stage, step, old, recipe)

    def of(part: str) -> dict[str, Tensor]:
        return {k.removeprefix(f"{part}."): v for k, v in ema.tensors.items() if k.startswith(f"{part}.")}

    def save(step: int) -> None:
        save_training(train_path, recipe, step, f"{kind} training", both, ema, optimizer, origin=origin)
        tensors = of("prior") | prefixed(STATISTICS.rstrip("."), of("generator"))
        checkpoint.save(path, tensors, kind=kind, recipe=recipe, step=step, extra=origin)

    def sampled() -> Prior:
        """Averaged weights, frozen."""
        whole = Tower(recipe.generator, images.shape, recipe.data.bits).to(device)
        whole.load_state_dict(of("generator"))
        averaged = make_prior(whole.frozen(), recipe.prior).eval().requires_grad_(False)
        averaged.load_state_dict(of("prior"))
        averaged.settle()
        return averaged

    def show(step: int) -> None:
        show_samples(run, stage, kind, step, sample_grid(sampled(), recipe.seed))

    parts = [generator, prior]
    feed = data.Feed(images, config, stage, recipe.prior_seed, config.iterations, device)
    with feed, Updates(run, stage, recipe.prior_seed, config, config.iterations, step, save, show, path) as updates:
        for step in updates:
            feed.update(step)
            share = learning_rate(config, step, len(images) // config.batch_size) / config.lr
            for group, lr in zip(optimizer.param_groups, (config.generator_lr, config.lr), strict=True):
                group["lr"] = lr * share

            for part in updates.parts(config.batch_size):
                x = data.prepare(feed.take(part), recipe.data, generator.likelihood.read, train=True)
                loss, figures = joint_loss(generator, prior, x)
                updates.add(loss, **figures)
            norms = updates.descend(optimizer, both, ema, "train_prior.generator_lr or train_prior.lr", parts)
            if updates.to_log:
                figures = updates.figures
                updates.log(f"ELBO {figures['elbo']:.1f}", loss=updates.loss, **figures, grad_norm=norms)
    ranks.first_alone(lambda: show(updates.step))
    return sampled()
