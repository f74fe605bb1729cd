"""Stage two: the prior over u, generator and encoder frozen.

    x -> z ~ q(z | x) -> u_0 = T^-1(z) -> prior.loss(u_0)      (HEBM, arXiv 2405.13910, Algorithm 1)

The loop is the same for every kind; what is minimised is `hebmtool.prior`'s business.
"""

import torch
from torch import Tensor

from hebmtool import checkpoint, data, labels, metrics, picture
from hebmtool.console import note, progress
from hebmtool.energy import CALIBRATION_DRAWS
from hebmtool.errors import HebmError, UsageError
from hebmtool.flow import FlowModel, load_flow
from hebmtool.generator import Generator, Whitening, readjust_batchnorm
from hebmtool.prior import EBM, Noise, Prior, make_prior
from hebmtool.recipe import Recipe, TrainPrior
from hebmtool.run import Run
from hebmtool.train_vae import load_generator
from hebmtool.training import HOUSEKEEPING, Ema, Updates, derive_seed, load_training, save_training

# How a prior is sampled, as far as learning without chains is concerned.
SAMPLER = ("chain", "steps", "fast", "h", "theta", "persistence")
# Prefixes, in a prior's checkpoint, of the generator's BatchNorm statistics where they were re-estimated for it, and of
# the whitening of its latents.
STATISTICS, WHITENING = "generator.", "whitening."
MOST_WHITENED = 16_384  # dimensions: their covariance in double precision takes 2 GiB, and finding A as much again


def learning_rate(config: TrainPrior, step: int, updates_per_epoch: int) -> float:
    """Learning rate of update `step`: linear warm-up, then a factor `lr_decay` per epoch."""
    warm = min(1.0, (step + 1) / config.lr_warmup) if config.lr_warmup else 1.0
    return config.lr * warm * config.lr_decay ** (step / updates_per_epoch)


def load_prior(
    run: Run,
    kind: str,
    device: torch.device,
    readjust_bn: int = 0,
    temperature: float = 1.0,
    precision: str = "float32",
) -> Prior:
    """The run's trained prior of this kind (averaged weights), on its generator, both frozen.

    Arguments:
        readjust_bn: re-estimate BatchNorm statistics on this many generated batches first; 0 keeps those the prior was
            trained with.
        temperature: of those batches.
        precision: "float32" or "bf16", of generator and energies (`Generator.frozen`).

    Raises:
        HebmError: it has not been trained, or its file is unusable.
    """
    run.require_prior(kind)
    if kind == FlowModel.kind:
        if readjust_bn:
            raise UsageError("--readjust-bn is for BatchNorms, and a flow model has none; drop it")
        return load_flow(run, device)
    generator = load_generator(run, device)
    config, tensors, moments = run.recipe().prior.model_copy(update={"kind": kind}), {}, {}
    if kind != Prior.kind:
        tensors, header = checkpoint.load(run.prior_path(kind), kind=kind)
        trained_with = checkpoint.recipe(run.prior_path(kind), header)
        digest = checkpoint.digest(run.generator_path)
        if trained_with.generator != generator.config or header.extra.get("generator", digest) != digest:
            raise HebmError(
                f"{run.prior_path(kind)} was trained on another generator than {run.generator_path} is now; "
                f"move it away and train it again with `hebm train-prior`"
            )
        config = trained_with.prior
        statistics, moments = (
            {k.removeprefix(prefix): tensors.pop(k) for k in list(tensors) if k.startswith(prefix)}
            for prefix in (STATISTICS, WHITENING)
        )
        if statistics:
            checkpoint.load_into(generator, generator.state_dict() | statistics, run.prior_path(kind))
    if readjust_bn:
        readjust_batchnorm(generator, readjust_bn, temperature=temperature)
    generator = generator.frozen(precision)
    if kind != Prior.kind and config.whiten:
        whitening = Whitening.identity(generator.D)
        checkpoint.load_into(whitening, moments, run.prior_path(kind))
        generator.whiten(whitening)
    prior = make_prior(generator, config)
    checkpoint.load_into(prior, tensors, run.prior_path(kind))
    if isinstance(prior, EBM):
        prior.energy.settle()
    return prior.eval().requires_grad_(False)


@torch.no_grad()
def whitening_of(generator: Generator, images: data.Images, recipe: Recipe) -> Whitening:
    """The whitening that gives the aggregate posterior mean 0 and covariance I: from a posterior draw of each image.

    The covariance is shrunk towards a multiple of I by the oracle approximating estimator (Chen et al. 2010,
    https://arxiv.org/abs/0907.4698): what so many draws cannot know of it is left to F.

    Arguments:
        generator: frozen.

    Raises:
        HebmError: latents that are not finite.
    """
    D, n, device = generator.D, len(images), generator.constant.device
    total = torch.zeros(D, dtype=torch.float64, device=device)
    products = torch.zeros(D, D, dtype=torch.float64, device=device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), progress("whitening", n) as bar:
        torch.manual_seed(derive_seed(recipe.prior_seed, "whitening"))
        for indices in torch.arange(n).split(metrics.BATCH):
            x = data.prepare(images.batch(indices), recipe.data, recipe.generator.likelihood, train=True)
            u = generator.encode(x.to(device))
            total += u.sum(0)
            products += u.T @ u
            bar.advance(len(indices))
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


def train_prior(recipe: Recipe, run: Run, device: torch.device, resume: bool = False) -> metrics.Closure | None:
    """Train the prior of `recipe` on the run's generator; returns the prior-hole closure it reached, or
    None where no feature network fits the images.

    SIGINT and SIGTERM save and stop after the current update.

    Raises:
        HebmError: no generator, unusable data, a loss that ran away, a failed save, or stopped by a signal.
    """
    config, kind = recipe.train_prior, recipe.prior.kind
    if kind == Prior.kind:
        raise UsageError("prior.kind 'gaussian' needs no training; train 'diffusion-ebm' or 'ebm'")
    if kind == FlowModel.kind:
        raise UsageError("prior.kind 'flow' is not trained on a generator but with one, by train_flow")
    whole = load_generator(run, device)
    origin = {"generator": checkpoint.digest(run.generator_path)}
    path, train_path = run.prior_path(kind), run.prior_train_path(kind)
    if resume:
        if not train_path.is_file():
            raise HebmError(f"there is no '{kind}' prior to resume in {run.path}; start without --resume")
        header = checkpoint.header(train_path)
        # A finished prior may be trained on, at another learning rate too.
        old = checkpoint.recipe(train_path, header)
        may_change = ("iterations", "lr", "lr_decay", "label_iterations", "label_lr", *HOUSEKEEPING)
        free = {key: getattr(config, key) for key in may_change}
        old.train_prior = old.train_prior.model_copy(update=free)
        may_change = ["labels", "label_layers"]
        if recipe.prior.objective != "recovery" and "langevin" not in (old.prior.chain, recipe.prior.chain):
            may_change += SAMPLER  # nothing was learned with it
        old.prior = old.prior.model_copy(update={key: getattr(recipe.prior, key) for key in may_change})
        Run.check_same(old, recipe, ["prior", "train_prior"])
        if header.extra != origin:
            raise HebmError(
                f"{train_path} was trained on another generator than {run.generator_path} is now; move it away and "
                "start without --resume"
            )
    elif path.is_file() or train_path.is_file():
        raise HebmError(
            f"{run.path} has a '{kind}' prior already; continue it with --resume, move {path.name} and "
            f"{train_path.name} away, or copy the run's folder and train in the copy with --set name=COPY"
        )
    kept = run.check_stage_one(recipe)
    unfinished = recipe.train_vae.iterations - checkpoint.header(run.generator_path).step
    if unfinished > 0 and recipe.train_vae == kept.train_vae:
        note(f"the generator in {run.path} stopped {unfinished} updates early; the prior is trained on it as it is")

    images, test = data.load(recipe.data, "train"), data.load(recipe.data, "test")
    metrics.sizes(recipe.evaluate.samples, images, test)
    labels.check(recipe, run, whole, images, test)
    data.batch_indices(len(images), config.batch_size, recipe.prior_seed, 0)
    if recipe.prior.whiten and whole.D > MOST_WHITENED:
        raise UsageError(
            f"prior.whiten is true, but this generator has {whole.D:,} latent dimensions, and at most "
            f"{MOST_WHITENED:,} can be whitened; set it to false"
        )
    features = metrics.load_features(recipe.evaluate.features, images.shape, device)
    if features is not None:
        features(test.batch([0, 1]))  # a network that does not fit is better known before training than after
    run.write_recipe(kept.model_copy(update={k: getattr(recipe, k) for k in ("prior", "train_prior", "evaluate")}))

    statistics = {}
    if config.readjust_bn:
        readjust_batchnorm(whole, config.readjust_bn, temperature=config.readjust_temperature)
        statistics = {f"{STATISTICS}{k}": v for k, v in whole.state_dict().items() if "running_" in k}
    generator, as_sampled = whole.frozen(config.precision), whole.frozen()
    whitening = None
    if recipe.prior.whiten:
        # F was learned in these latents and no others, so a resumed training reads them from its file.
        whitening = Whitening.identity(whole.D) if resume else whitening_of(as_sampled, images, recipe)
        generator.whiten(whitening)
        as_sampled.whiten(whitening)
        if not resume:
            note(f"the posterior's mean and covariance are {whitening.nats:.1f} nats from N(0, I); F learns the rest")
    torch.manual_seed(derive_seed(recipe.prior_seed, "prior", kind))
    prior = make_prior(generator, recipe.prior)
    assert isinstance(prior, EBM)
    prior.energy.calibrate(generator.top_down(torch.randn(CALIBRATION_DRAWS, generator.D).to(device)))
    optimizer = torch.optim.Adam(prior.parameters(), lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)
    ema = Ema(prior, config.ema)
    averaged = make_prior(as_sampled, recipe.prior).eval().requires_grad_(False)
    step, stage = 0, f"train-prior {kind}"
    if resume:
        step = load_training(train_path, f"{kind} training", prior, ema, optimizer, whitening)
    run.truncate_metrics(stage, step)

    def save(step: int) -> None:
        save_training(train_path, recipe, step, f"{kind} training", prior, ema, optimizer, whitening, origin)
        moments = {} if whitening is None else {f"{WHITENING}{k}": v for k, v in whitening.state_dict().items()}
        checkpoint.save(path, ema.tensors | statistics | moments, kind=kind, recipe=recipe, step=step, extra=origin)

    def show(step: int) -> None:
        averaged.load_state_dict(ema.tensors)
        averaged.energy.settle()
        picture.save_grid(sample_grid(averaged, recipe.seed), run.samples_dir / f"{kind}-{step:07d}.png")

    with Updates(run, stage, recipe.prior_seed, config, config.iterations, step, save, show) as updates:
        for step in updates:
            batch = images.batch(data.batch_indices(len(images), config.batch_size, recipe.prior_seed, step))
            x = data.prepare(batch, recipe.data, recipe.generator.likelihood, train=True).to(device)
            with torch.no_grad():
                u_0 = generator.encode(x)
            score = generator.posterior_score(u_0, x) if prior.needs_score else None
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, step, len(images) // config.batch_size)

            loss, figures = prior.loss(u_0, score)
            [norm] = updates.descend(loss, optimizer, prior, ema, "train_prior.lr")
            if updates.to_log:
                value = loss.item()
                updates.log(f"loss {value:.3g}", loss=value, **figures, grad_norm=norm)
    show(updates.step)
    if features is None:
        note("no closure measured: set evaluate.features to a TorchScript network for images of this kind")
        return None
    closure = metrics.closure(averaged, images, test, recipe, features, recipe.evaluate.samples)
    run.set_figure(f"closure.{kind}", closure.figures() | {"step": updates.step})
    note(f"{kind}: {closure.sentence()}")
    return closure


@torch.no_grad()
def sample_grid(prior: Prior, seed: int, n: int = 64) -> Tensor:
    """`n` images of the prior, [n, C, H, W] in [0, 1]; the same noise at every call."""
    device = prior.generator.constant.device
    return prior.generator.images(prior.sample(Noise(seed, range(n), prior.generator.D, device))).cpu()
