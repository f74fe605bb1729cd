"""Stage two: the prior over u, generator and encoder frozen.

    x -> z ~ q(z | x) -> u_0 = T^-1(z) -> prior.loss(u_0)      (HEBM, arXiv 2405.13910, Algorithm 1)

The loop is the same for every kind; what is minimised is `hebmtool.prior`'s business.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hebmtool import data, ranks, rows
from hebmtool.chains import CHAINS, Chain, make_chain
from hebmtool.compute import compiled, is_compiling, tell_if_slow
from hebmtool.console import note, progress
from hebmtool.errors import HebmError, UsageError
from hebmtool.generator import Tower, Whitening, readjust_batchnorm
from hebmtool.noise import Noise, derive_seed
from hebmtool.prior import KINDS, Prior, make_prior
from hebmtool.prior.ebm import SAMPLER
from hebmtool.prior.energy import CALIBRATION_DRAWS, chosen_layers
from hebmtool.prior.itself import own_draws
from hebmtool.prior.objectives import RUN_CHAINS
from hebmtool.recipe import Recipe, TrainPrior
from hebmtool.recipe.mistakes import show
from hebmtool.run import checkpoint, split
from hebmtool.run.folder import Run
from hebmtool.run.header import contents, is_of
from hebmtool.run.open import STATISTICS, STEPS, TILT, WHITENING, load_generator
from hebmtool.train import labels
from hebmtool.train.loggers import show_samples
from hebmtool.train.loop import HOUSEKEEPING, Ema, Updates, load_training, log_changes, save_training

Ready = Callable[[data.Images, data.Images], None]
"""Called with training and test images before anything is written; what it raises ends the training there."""

MAY_CHANGE = (
    *("iterations", "lr", "generator_lr", "lr_decay", "lr_warmup", "clip", "skip", "seed", "finish"),
    *("redraw", "buffer", "fresh"),
    *("label_iterations", "label_lr"),
    *HOUSEKEEPING,
)
"""What a training may go on with otherwise than it began."""

BATCH = 250
"""Images encoded at a time."""

TILTED = 1000
"""Test images on which the posterior's mean of F is measured."""

MOST_WHITENED = 16_384
"""Dimensions: their covariance in double precision takes 2 GiB, and finding A as much again."""


def learning_rate(config: TrainPrior, step: int, updates_per_epoch: int, lr: float | None = None) -> float:
    """Learning rate of update `step`: linear warm-up to `lr` (the recipe's when None), then a factor `lr_decay` per
    epoch, at its end with `lr_staircase` and else in every update its share."""
    warm = min(1.0, (step + 1) / config.lr_warmup) if config.lr_warmup else 1.0
    epochs = step // updates_per_epoch if config.lr_staircase else step / updates_per_epoch
    return (config.lr if lr is None else lr) * warm * config.lr_decay**epochs


def finishing(config: TrainPrior) -> int:
    """The first update that learns against the prior's own draws."""
    return round(config.iterations * (1 - config.finish))


def averaging(config: TrainPrior, step: int) -> float:
    """Decay of the averaged weights at update `step`.  Of the last ones, against the prior's own draws, there are few:
    an average that reached back further than a third of them would keep most of what they mend."""
    first = finishing(config)
    return config.ema if step < first else min(config.ema, max(0.0, 1 - 3 / (config.iterations - first)))


@torch.no_grad()
def whitening_of(generator: Tower, images: data.Images, recipe: Recipe) -> Whitening:
    """The whitening that gives the aggregate posterior mean 0 and covariance I: from as many posterior draws of every
    image as `prior.whiten` says.  Most of a latent's variance is the posterior's own, about which draws say as much as
    images.

    The covariance is shrunk towards a multiple of I by the oracle approximating estimator (Chen et al. 2010,
    https://arxiv.org/abs/0907.4698): what so many draws cannot know of it is left to F.

    Arguments:
        generator: frozen.

    Raises:
        HebmError: latents that are not finite.
    """
    D, n, device = generator.D, int(recipe.prior.whiten) * len(images), generator.device
    total = torch.zeros(D, dtype=torch.float64, device=device)
    products = torch.zeros(D, D, dtype=torch.float64, device=device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), progress("whitening", n) as bar:
        torch.manual_seed(derive_seed(recipe.prior_seed, "whitening"))
        for indices in (torch.arange(n) % len(images)).split(BATCH):
            bar.advance(len(indices))
            part = rows.divided(len(indices))
            if not len(part):  # of the last few images there may be none for everyone
                continue
            with rows.computing(part):
                batch = images.batch(indices[part.rows])
                x = data.prepare(batch, recipe.prior_data, generator.likelihood.read, train=True)
                u = generator.encode(x.to(device))
            total += u.sum(0)
            products += u.T @ u
    for moment in (total, products):
        ranks.total(moment)
    mean = total / n
    covariance = products.div_(n).addr_(mean, mean, alpha=-1)
    if not covariance.isfinite().all():
        raise HebmError("the posterior's latents are not finite; train the generator again with a smaller train_vae.lr")
    size, squares = covariance.trace(), covariance.square().sum()
    excess = squares - size**2 / D
    shrinkage = ((1 - 2 / D) * squares + size**2) / ((n + 1 - 2 / D) * excess) if excess > 0 else 1.0
    shrinkage = min(1.0, float(shrinkage))
    covariance *= 1 - shrinkage
    covariance.diagonal().add_(shrinkage * size / D)
    return Whitening(mean.float(), torch.linalg.cholesky(covariance).float())


# Longer than a screen: the training reads from top to bottom in one place.
def train_prior(
    recipe: Recipe,
    run: Run,
    device: torch.device,
    resume: bool = False,
    ready: Ready | None = None,
    rewind: bool = False,
) -> Prior:
    """Train the prior of `recipe` on the run's generator; returns it with averaged weights, as it is sampled.

    SIGINT, SIGTERM and SIGHUP save and stop after the current update.  With `rewind` it resumes from the checkpoint
    before the last.

    Raises:
        HebmError: no generator, unusable data, a loss that ran away, a failed save, or stopped by a signal.
    """
    recipe = split.dealt_as(recipe, run.recipe())
    config, kind = recipe.train_prior, recipe.prior.kind
    if not KINDS[kind].learned:
        raise UsageError(f"prior.kind '{kind}' needs no training; train 'diffusion-ebm' or 'ebm'")
    if KINDS[kind].brings_generator:
        raise UsageError(f"prior.kind '{kind}' is not trained on a generator but with one")
    check_finish(recipe)
    whole = load_generator(run, device)
    origin = {"generator": contents(run.generator_path)}
    path, train_path = run.prior_path(kind), run.prior_train_path(kind)
    old = check_place(recipe, run, resume)
    kept = run.check_stage_one(recipe)
    unfinished = recipe.train_vae.iterations - checkpoint.header(run.generator_path).step
    if unfinished > 0 and recipe.train_vae == kept.train_vae:
        note(f"the generator in {run.path} stopped {unfinished} updates early; the prior is trained on it as it is")
    images = training_images(recipe, run, whole, ready)
    run.write_recipe(kept.model_copy(update={k: getattr(recipe, k) for k in ("prior", "train_prior", "evaluate")}))

    ground = _ground(recipe, whole, images, resume)
    generator = ground.learning
    torch.manual_seed(derive_seed(recipe.prior_seed, "prior", kind))
    prior = make_prior(generator, recipe.prior)
    prior.calibrate(generator.walk(torch.randn(CALIBRATION_DRAWS, generator.D).to(device)))
    optimizer = torch.optim.Adam(prior.parameters(), lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)
    ema = Ema(prior, config.ema)
    averaged = make_prior(ground.sampled, recipe.prior).eval().requires_grad_(False)
    own, step, stage = own_draws(config), 0, f"train-prior {kind}"
    if resume:
        step = load_training(train_path, f"{kind} training", prior, ema, optimizer, ground.whitening, rewind)
        own.restore(checkpoint.load(train_path, prefix="rest.")[0], device)
        if (theta := checkpoint.header(train_path).extra.get(STEPS)) is not None:
            prior.stepping(theta)
    run.truncate_metrics(stage, step)
    if old is not None:
        log_changes(run, stage, step, old, recipe)

    def average() -> None:
        averaged.load_state_dict(ema.tensors)
        averaged.settle()

    def save(step: int) -> None:
        extra = origin | {STEPS: prior.steps}
        save_training(
            train_path, recipe, step, f"{kind} training", prior, ema, optimizer, ground.whitening, extra, own.tensors()
        )
        extra = origin
        if step >= config.iterations:
            average()
            averaged.stepping(None)
            extra = origin | {STEPS: averaged.steps, TILT: posterior_tilt(averaged, run, recipe)}
        checkpoint.save(path, ema.tensors | ground.tensors(), kind=kind, recipe=recipe, step=step, extra=extra)

    def show(step: int) -> None:
        average()
        show_samples(run, stage, kind, step, sample_grid(averaged, recipe.seed))

    # One that is trained already is left as it is, unless it is to be drawn with another sampler from now on.
    anew = path.is_file() and checkpoint.recipe(path, checkpoint.header(path)).prior != recipe.prior
    feed = data.Feed(images, config, stage, recipe.prior_seed, config.iterations, device)
    with (
        feed,
        Updates(run, stage, recipe.prior_seed, config, config.iterations, step, save, show, path, anew) as updates,
    ):
        for step in updates:
            feed.update(step)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, step, len(images) // config.batch_size)
            ema.decay = averaging(config, step)

            for part in updates.parts(config.batch_size):
                x = data.prepare(feed.take(part), recipe.prior_data, generator.likelihood.read, train=True)
                u_0 = encoded(generator, x)
                loss, figures = prior.loss(u_0, x) if step < finishing(config) else prior.finish(u_0, x, own)
                updates.add(loss, **figures)
            [norm] = updates.descend(optimizer, prior, ema, "train_prior.lr")
            if updates.to_log:
                updates.log(f"loss {updates.loss:.3g}", loss=updates.loss, **updates.figures, grad_norm=norm)
    ranks.first_alone(lambda: show(updates.step))
    average()
    return averaged


def check_finish(recipe: Recipe) -> None:
    """Raise UsageError where the last updates are to draw by an exact chain and there is none."""
    config = recipe.train_prior
    if not config.finish:
        return
    if KINDS[recipe.prior.kind].finish is None:
        raise UsageError(
            f"train_prior.finish is {config.finish}, but a {recipe.prior.kind} prior has no chain to finish by; set it "
            "to 0"
        )
    if not make_chain(recipe.prior).exact:
        exact = ", ".join(word for word, chain in CHAINS.items() if chain.exact)
        raise UsageError(
            f"train_prior.finish is {config.finish}, which draws by an exact chain, and prior.chain is "
            f"{recipe.prior.chain}; set it to {exact}"
        )


@torch.no_grad()
def encoded(generator: Tower, x: Tensor) -> Tensor:
    """u_0 ~ q(u | x), [N, D]."""
    # Compiled code would draw other numbers.
    return compiled(generator.encode)(x, generator.noise(len(x)) if is_compiling() else None)


def check_place(recipe: Recipe, run: Run, resume: bool) -> Recipe | None:
    """Raise HebmError where a prior of this kind is there already, or with `resume` none that could be continued; the
    recipe of what is to be continued."""
    kind = recipe.prior.kind
    path, train_path = run.prior_path(kind), run.prior_train_path(kind)
    if not resume:
        if path.is_file() or train_path.is_file():
            raise HebmError(
                f"{run.path} has a '{kind}' prior already; resume it, move {path.name} and {train_path.name} away, or "
                "copy the run's folder and train in the copy with name=COPY"
            )
        return None
    if not train_path.is_file():
        raise HebmError(f"there is no '{kind}' prior to resume in {run.path}; start a new one instead")
    header = checkpoint.header(train_path)
    # A finished prior may be trained on, at another learning rate too.
    old = checkpoint.recipe(train_path, header)
    free = {key: getattr(recipe.train_prior, key) for key in MAY_CHANGE}
    alike = old.model_copy(update={"train_prior": old.train_prior.model_copy(update=free)})
    may_change = ["labels", "label_layers", *(_sampler(old, recipe))]
    alike.prior = old.prior.model_copy(update={key: getattr(recipe.prior, key) for key in may_change})
    Run.check_same(alike, recipe, ["prior", "train_prior"])
    if not is_of(header.extra.get("generator"), run.generator_path):
        raise HebmError(
            f"{train_path} was trained on another generator than {run.generator_path} is now; move it away and "
            "start a new one"
        )
    return old


DRAWN = (*SAMPLER, "fast", "conditional")
"""Keys of the recipe's `prior` part that say how it is drawn from, those of one draw or of all."""


def _sampler(old: Recipe, new: Recipe) -> tuple[str, ...]:
    """The keys of the sampler, where nothing was learned with it: no chain is run, nor gives F its scale."""
    if new.prior.objective in RUN_CHAINS or old.train_prior.finish:
        return ()
    rescaled = (type(make_chain(each.prior)).scale is not Chain.scale for each in (old, new))
    return () if any(rescaled) else tuple(key for key in DRAWN if key != "eta")


def training_images(recipe: Recipe, run: Run, whole: Tower, ready: Ready | None) -> data.Images:
    """The training images, after everything that would stop learning on them has been looked at."""
    images, test = split.both(run, recipe.data)
    if ready is not None:
        ready(images, test)
    chosen_layers(whole, recipe.prior.energy.layers, "prior.energy.layers")
    labels.check(recipe, run, whole, images, test)
    data.batch_indices(len(images), recipe.train_prior.batch_size, recipe.prior_seed, 0)
    if recipe.prior.whiten and whole.D > MOST_WHITENED:
        raise UsageError(
            f"prior.whiten is {show(recipe.prior.whiten)}, but this generator has {whole.D:,} latent dimensions, and "
            f"at most {MOST_WHITENED:,} can be whitened; set it to false"
        )
    return images


@torch.no_grad()
def posterior_tilt(prior: Prior, run: Run, recipe: Recipe) -> tuple[float, float] | None:
    """(mean, standard error) of `log_tilt` on posterior u of test images, nats: what draws of the prior should come to.
    None of a single image.

    Held-out images, for F is higher where it was learned than where its own draws are.
    """
    (_, images), generator, found = split.both(run, recipe.data), prior.generator, []
    device = generator.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed(recipe.prior_seed, "posterior tilt"))
        for indices in torch.arange(min(TILTED, len(images))).split(BATCH):
            x = data.prepare(images.batch(indices), recipe.data, generator.likelihood.read, train=False)
            found.append(prior.log_tilt(generator.encode(x.to(device))).double())
    G = torch.cat(found)
    return (G.mean().item(), G.std().item() / len(G) ** 0.5) if len(G) > 1 else None


@dataclass
class Ground:
    """What a prior stands on: the generator frozen as it is learned on and as it is sampled on, and what of it goes
    into the prior's checkpoint: BatchNorm statistics of its own, whitened latents."""

    learning: Tower
    sampled: Tower
    statistics: dict[str, Tensor]
    whitening: Whitening | None

    def tensors(self) -> dict[str, Tensor]:
        """As in the checkpoint."""
        moments = {} if self.whitening is None else self.whitening.state_dict()
        parts = ((STATISTICS, self.statistics), (WHITENING, moments))
        return {f"{prefix}{key}": value for prefix, part in parts for key, value in part.items()}


def _ground(recipe: Recipe, whole: Tower, images: data.Images, resume: bool) -> Ground:
    config, statistics = recipe.train_prior, {}
    tell_if_slow(whole.device, "train_prior.precision", config.precision)
    if config.readjust_bn:
        readjust_batchnorm(whole, config.readjust_bn, temperature=config.readjust_temperature)
        statistics = {k: v for k, v in whole.state_dict().items() if "running_" in k}
    ground = Ground(whole.frozen(config.precision), whole.frozen(), statistics, None)
    if recipe.prior.whiten:
        # F was learned in these latents and no others, so a resumed training reads them from its file.
        ground.whitening = Whitening.identity(whole.D) if resume else whitening_of(ground.sampled, images, recipe)
        for generator in (ground.learning, ground.sampled):
            generator.whiten(ground.whitening)
        if not resume:
            nats = ground.whitening.nats
            note(f"the posterior's mean and covariance are {nats:.1f} nats from N(0, I); F learns the rest")
    return ground


@torch.no_grad()
def sample_grid(prior: Prior, seed: int, n: int = 64) -> Tensor:
    """`n` images of the prior, [n, C, H, W] in [0, 1]; the same noise at every call."""
    generator = prior.generator
    return generator.images(prior.sample(Noise(seed, range(n), generator.D, generator.device))).cpu()
