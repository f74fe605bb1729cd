"""Stage one: generator and encoder, by the evidence lower bound.

    ELBO(x) = E_q[log p(x | z)] - sum_i KL_i,       KL_i = KL(q(z_i | z_{>i}, x) || p(z_i | z_{>i}))

    loss = -E_q[log p(x | z)] + beta sum_i gamma_i max(KL_i, free nats) + lambda (spectral norms)

beta rises over the warm-up; gamma_i balances the layers while it does (NVAE, https://arxiv.org/abs/2007.03898,
appendix A); the spectral term is section 3.1 there.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hebmtool import data, ranks, rows
from hebmtool.compute import autocast, compiled, is_compiling, tell_if_slow, uncast
from hebmtool.console import note
from hebmtool.errors import HebmError, UsageError
from hebmtool.generator import Tower
from hebmtool.generator.layers import SpectralPenalty
from hebmtool.noise import derive_seed
from hebmtool.recipe import Recipe, TrainVae
from hebmtool.run import checkpoint, split
from hebmtool.run.folder import Run
from hebmtool.run.open import KIND
from hebmtool.train.loggers import show_samples
from hebmtool.train.loop import HOUSEKEEPING, Ema, Updates, load_training, log_changes, save_training, warm_cosine

# What a training may go on with otherwise than it began: how far, how fast, by which draws, and when something is
# written.
MAY_CHANGE = (
    *("iterations", "lr", "lr_min", "lr_warmup", "kl_warmup", "kl_start", "clip", "skip", "seed", "test_images"),
    *HOUSEKEEPING,
)
LEAST = 2
"""Images of a batch: BatchNorm wants as many."""
SHOWN = 512
"""Test images of the bound while training."""


def kl_weight(config: TrainVae, step: int) -> float:
    """beta: the weight of the KL at update `step`."""
    warmup = config.kl_warmup * config.iterations
    return 1.0 if step >= warmup else max(config.kl_start, step / warmup)


def spectral_weight(config: TrainVae, beta: float) -> float:
    """lambda: the weight of the spectral term where the KL's is beta, from `spectral_start` down to its own."""
    start = config.spectral_start or config.spectral_weight
    return start ** (1 - beta) * config.spectral_weight**beta


def balance(kl: Tensor, sizes: Tensor) -> Tensor:
    """gamma [L], mean 1: larger for layers with more KL, so that those with little are left to grow.

    Arguments:
        kl: batch means per layer, [L] nats.
        sizes: pixels of each layer's map, [L].
    """
    share = sizes / sizes.min() * kl.detach().clamp(min=1e-3)
    return share / share.mean()


def pixels(generator: Tower) -> Tensor:
    """Of each layer's map, [L], for `balance`."""
    return torch.tensor([float(math.prod(shape[1:])) for shape in generator.latent_shapes], device=generator.device)


def objective(
    generator: Tower, penalty: SpectralPenalty, config: TrainVae, beta: float, sizes: Tensor, x: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(what stage one minimises, log p(x | z) [N], KL per layer [N, L] top first), on images x [N, C, H, W]."""
    # Compiled code would draw other numbers.
    noise = generator.noise(len(x)) if is_compiling() else None
    with autocast(x.device, config.precision):
        log_px, each = compiled(terms)(generator, x, noise)
    kl = rows.mean_beside(each)
    gamma = balance(kl, sizes) if config.kl_balance and beta < 1 else torch.ones_like(kl)
    loss = -log_px.mean() + beta * (gamma * kl.clamp(min=config.free_nats)).sum()
    if config.spectral_weight > 0:
        loss = loss + spectral_weight(config, beta) * penalty()
    return loss, log_px, each


def terms(generator: Tower, x: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
    """(log p(x | z) [N], KL per layer [N, L] top first) at z ~ q(z | x); noise as `Tower.posterior` takes it."""
    posterior = generator.posterior(x, noise)
    logits = generator.decode(posterior.walk)
    with uncast(x.device):
        return generator.likelihood.log_prob(logits, x), posterior.kl


@dataclass
class Bound:
    """Averages over a set of images: elbo in nats per image, bits per dimension, kl [L] nats (top first)."""

    elbo: float
    bits_per_dim: float
    kl: list[float]

    def figures(self) -> dict:
        """As logged: `kl` bottom layer first, layers numbered from 1."""
        return {"elbo": self.elbo, "bits_per_dim": self.bits_per_dim, "kl": self.kl[::-1]}


@torch.no_grad()
def bound(generator: Tower, images: data.Images, recipe: Recipe, limit: int, device: torch.device) -> Bound:
    """The ELBO on `limit` images, one posterior draw each; the draws are the same at every call.  Of more images than
    that it takes them at equal distances, for those of a class may stand together."""
    total, bits, kl, n = 0.0, 0.0, 0.0, min(limit, len(images))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed(recipe.seed, "bound"))
        for indices in (torch.arange(n) * len(images) // n).split(recipe.train_vae.batch_size):
            x = data.prepare(images.batch(indices), recipe.data, generator.likelihood.read, train=False).to(device)
            posterior = generator.posterior(x)
            elbo = generator.log_px(posterior.walk, x) - posterior.kl.sum(1)
            total += elbo.sum().item()
            bits += generator.bits_per_dim(elbo).sum().item()
            kl = kl + posterior.kl.sum(0)
    if not math.isfinite(total):
        raise HebmError(
            f"the bound on {n} test images is not finite, though training's was: the averaged BatchNorm statistics "
            "have left the numbers; rewind to what was saved before and resume with a lower train_vae.lr, or start "
            "another run with name=NAME"
        )
    return Bound(total / n, bits / n, (kl / n).tolist())


def _check_compiling(config: TrainVae) -> None:
    if not is_compiling():
        return
    if ranks.world() > 1:
        raise UsageError(
            "stage one compiles in one process only: in several, every BatchNorm waits for the others; do without "
            "compiling"
        )
    if config.recompute:
        raise UsageError("train_vae.recompute cannot be compiled; set it to false, or do without compiling")


# Longer than a screen: the training reads from top to bottom in one place.
def train_vae(
    recipe: Recipe,
    run: Run,
    device: torch.device,
    resume: bool = False,
    rewind: bool = False,
    start: Path | None = None,
) -> Bound:
    """Train the generator of `recipe` into `run`; returns the bound on the test split.  It begins with new weights, or
    with those of the checkpoint `start`, a generator of the same geometry.

    SIGINT, SIGTERM and SIGHUP save and stop after the current update.  With `rewind` it resumes from the checkpoint
    before the last.

    Raises:
        HebmError: unusable data, a loss that is no longer finite, a failed save, or stopped by a signal.
    """
    config, old = recipe.train_vae, None
    _check_compiling(config)
    seed = recipe.seed if config.seed is None else config.seed
    if resume:
        if not run.generator_train_path.is_file():
            raise HebmError(f"there is no generator to resume in {run.path}; start a new one instead")
        old = checkpoint.recipe(run.generator_train_path, checkpoint.header(run.generator_train_path))
        recipe = split.dealt_as(recipe, old)
        free = {key: getattr(config, key) for key in MAY_CHANGE}
        alike = old.model_copy(update={"train_vae": old.train_vae.model_copy(update=free)})
        alike.data = old.data.model_copy(update={"path": recipe.data.path, "download": recipe.data.download})
        Run.check_same(alike, recipe, ["generator", "train_vae", "data", "seed"])
    images, test = split.both(run, recipe.data)
    tell_if_slow(device, "train_vae.precision", config.precision)
    torch.manual_seed(derive_seed(seed, "generator"))
    generator = Tower(recipe.generator, images.shape, recipe.data.bits).to(device)
    generator.recompute = config.recompute
    penalty = SpectralPenalty(generator).to(device)
    optimizer = torch.optim.Adamax(generator.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    ema = Ema(generator, config.ema)
    step = 0
    if start is not None:
        begin_with(start, generator, recipe)
        ema = Ema(generator, config.ema)
        run.write_recipe(recipe)
    if resume:
        step = load_training(run.generator_train_path, f"{KIND} training", generator, ema, optimizer, penalty, rewind)
        run.write_recipe(recipe)
    for stage in ("train-vae", "train-vae-test"):
        run.truncate_metrics(stage, step)
    if resume:
        log_changes(run, "train-vae", step, old, recipe)

    averaged = Tower(recipe.generator, images.shape, recipe.data.bits).to(device).eval()
    sizes = pixels(generator)
    extra = {"image_shape": list(images.shape)}

    def save(step: int) -> None:
        save_training(run.generator_train_path, recipe, step, f"{KIND} training", generator, ema, optimizer, penalty)
        checkpoint.save(run.generator_path, ema.tensors, kind=KIND, recipe=recipe, step=step, extra=extra)

    def show(step: int, limit: int = SHOWN) -> Bound:
        averaged.load_state_dict(ema.tensors)
        found = bound(averaged, test, recipe, limit, device)
        run.log("train-vae-test", step, **found.figures())
        note(
            f"step {step}: test ELBO {found.elbo:.2f} nats, {found.bits_per_dim:.3f} bits/dim "
            f"({min(limit, len(test)):,} images), "
            f"KL per layer (1 = bottom) {' '.join(f'{k:.1f}' for k in found.kl[::-1])}"
        )
        show_samples(run, "train-vae", "generator", step, sample_grid(averaged, recipe.seed))
        return found

    generator.train()
    feed = data.Feed(images, config, "train-vae", seed, config.iterations, device, LEAST)
    kept = run.generator_path
    with feed, Updates(run, "train-vae", seed, config, config.iterations, step, save, show, kept) as updates:
        for step in updates:
            feed.update(step)
            for group in optimizer.param_groups:
                group["lr"] = warm_cosine(step, config.iterations, config.lr, config.lr_min, config.lr_warmup)

            beta = kl_weight(config, step)
            for part in updates.parts(config.batch_size):
                x = data.prepare(feed.take(part), recipe.data, generator.likelihood.read, train=True)
                loss, log_px, kl = objective(generator, penalty, config, beta, sizes, x)
                elbo, kl = (log_px - kl.sum(1)).detach(), kl.detach().mean(0).flip(0)
                updates.add(loss, elbo=elbo.mean(), bits_per_dim=generator.bits_per_dim(elbo).mean(), kl=kl)
            [norm] = updates.descend(optimizer, generator, ema, "train_vae.lr")
            if updates.to_log:
                lr = optimizer.param_groups[0]["lr"]
                figures = updates.figures | {"beta": beta, "grad_norm": norm, "lr": lr}
                updates.log(f"ELBO {figures['elbo']:.1f}", loss=updates.loss, **figures)
    judged = min(len(test), config.test_images or len(test))
    found = ranks.first_alone(lambda: show(updates.step, judged))
    run.set_figure("generator", found.figures() | {"step": updates.step, "test_images": judged}, [run.generator_path])
    return found


def begin_with(path: Path, generator: Tower, recipe: Recipe) -> None:
    """Give the generator, of `recipe`, the weights that a checkpoint has.

    Raises:
        HebmError: it is of another geometry, or for images of another shape.
    """
    tensors, header = checkpoint.load(path, kind=KIND)
    Run.check_same(checkpoint.recipe(path, header), recipe, ["generator", "data.bits"])
    shape = checkpoint.extra(path, header, "image_shape")
    if tuple(shape) != tuple(generator.image_shape):
        found, wanted = ("x".join(map(str, each)) for each in (generator.image_shape, shape))
        raise HebmError(
            f"the images are {found}, and the generator in {path} is for {wanted}; bring them to that by data.size and "
            "data.channels"
        )
    checkpoint.load_into(generator, tensors, path)


@torch.no_grad()
def sample_grid(generator: Tower, seed: int, n: int = 64) -> Tensor:
    """`n` images of the Gaussian prior, [n, C, H, W] in [0, 1]; the same noise at every call."""
    noise = torch.randn(n, generator.D, generator=torch.Generator().manual_seed(derive_seed(seed, "grid")))
    return generator.images(noise.to(generator.device)).cpu()
