"""Flow prior and top-down network learned jointly (LFBM, https://arxiv.org/abs/2301.09300, the learning algorithm).

    x -> z ~ p(z | x_observed) by a short Langevin run from the prior (or from where the image's chain ended)
      -> gradient step on log p(z) + log p(x_observed | z) over both networks

No encoder, and one stage.  With `data.missing` every image has pixels that no part of this ever sees.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hebmtool import checkpoint, data, flow_match, infer, inpaint, mask, metrics, picture, reconstruct
from hebmtool.console import note
from hebmtool.errors import HebmError
from hebmtool.flow import FlowModel
from hebmtool.recipe import Recipe
from hebmtool.run import Run
from hebmtool.train_prior import learning_rate, sample_grid
from hebmtool.training import HOUSEKEEPING, Ema, Updates, derive_seed, load_training, save_training

KIND = FlowModel.kind
STAGE = f"train-prior {KIND}"
JUDGED = 256
"""Test images inferred at the end, to be judged; the Fréchet distance takes evaluate.samples."""
RECOVERED, DRAWS = 128, 4
"""Training images recovered there, and draws of each."""


class Chains(nn.Module):
    """Where every image's chain ended, [N, D]; saved with the training state."""

    def __init__(self, z: Tensor):
        super().__init__()
        self.register_buffer("z", z)


def train_flow(recipe: Recipe, run: Run, device: torch.device, resume: bool = False) -> dict:
    """Train the flow model of `recipe` into `run`; returns the figures of `judge`.

    SIGINT and SIGTERM save and stop after the current update.

    Raises:
        HebmError: unusable data, a loss that ran away, a failed save, or stopped by a signal.
    """
    config = recipe.train_prior
    path, train_path = run.prior_path(KIND), run.prior_train_path(KIND)
    if resume:
        if not train_path.is_file():
            raise HebmError(f"there is no '{KIND}' prior to resume in {run.path}; start without --resume")
        old = checkpoint.recipe(train_path, checkpoint.header(train_path))
        may_change = ("iterations", "lr", "lr_decay", *HOUSEKEEPING)
        old.train_prior = old.train_prior.model_copy(update={key: getattr(config, key) for key in may_change})
        old.data = old.data.model_copy(update={"path": recipe.data.path, "download": recipe.data.download})
        old.flow.test_steps = recipe.flow.test_steps
        Run.check_same(old, recipe, ["data", "prior.kind", "flow", "train_prior", "seed"])
    images, test = data.load(recipe.data, "train"), data.load(recipe.data, "test")
    hidden = mask.missing(recipe.data, images, recipe.seed)
    data.batch_indices(len(images), config.batch_size, recipe.prior_seed, 0)
    if len(test) < 2:
        raise HebmError("judging needs at least 2 test images, and there is 1; give more, or raise data.test_fraction")
    features = metrics.load_features(recipe.evaluate.features, images.shape, device)
    if features is not None:
        features(test.batch([0, 1]))  # a network that does not fit is better known before training than after

    torch.manual_seed(derive_seed(recipe.prior_seed, KIND))
    model = FlowModel(recipe.flow, images.shape).to(device)
    # The flow starts as the identity, so this is a draw of the prior as well.
    chains = Chains(torch.randn(len(images), model.g.D)).to(device) if recipe.flow.persistent else None
    parts = [part for part in (model.g, model.couplings) if len(list(part.parameters()))]
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)
    ema = Ema(model, config.ema)
    averaged = FlowModel(recipe.flow, images.shape).to(device).eval().requires_grad_(False)
    step, kind = 0, f"{KIND} training"
    if resume:
        step = load_training(train_path, kind, model, ema, optimizer, chains)
        run.write_recipe(recipe)
    run.truncate_metrics(STAGE, step)

    def save(step: int) -> None:
        save_training(train_path, recipe, step, kind, model, ema, optimizer, chains)
        extra = {"image_shape": list(images.shape)}
        checkpoint.save(path, ema.tensors, kind=KIND, recipe=recipe, step=step, extra=extra)

    def show(step: int) -> None:
        averaged.load_state_dict(ema.tensors)
        picture.save_grid(sample_grid(averaged, recipe.seed), run.samples_dir / f"{KIND}-{step:07d}.png")

    with Updates(run, STAGE, recipe.prior_seed, config, config.iterations, step, save, show) as updates:
        for step in updates:
            indices = data.batch_indices(len(images), config.batch_size, recipe.prior_seed, step)
            x = infer.as_grey(images.batch(indices), recipe.data, train=True).to(device)
            observed = None if hidden is None else ~hidden(indices).to(device)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, step, len(images) // config.batch_size)

            z_0 = torch.randn(len(x), model.g.D).to(device)
            start = model.start(z_0, step) if chains is None else chains.z[indices]
            z = model.infer(x, start, recipe.flow.steps, lambda like=z_0: torch.randn_like(like), observed)
            if chains is not None:
                chains.z[indices] = z
            loss, figures = model.loss(z, x, observed)
            # Apart: the two networks share a loss, not a scale.
            norms = updates.descend(loss, optimizer, model, ema, "flow.step_size or train_prior.lr", parts)
            if updates.to_log:
                value = loss.item()
                updates.log(f"loss {value:.3g}", loss=value, **figures, z_std=z.std().item(), grad_norm=norms)
    show(updates.step)
    found = judge(averaged, run, recipe, images, test, features, hidden)
    run.set_figure(KIND, found | {"step": updates.step})
    note(sentence(found))
    return found


def judge(
    model: FlowModel,
    run: Run,
    recipe: Recipe,
    images: data.Images,
    test: data.Images,
    features: metrics.Features | None,
    hidden: mask.Masks | None,
) -> dict:
    """What a flow model reached; pictures go into the run.

    fd: Fréchet distance of samples to test images; None without a feature network.  mse, psnr: of reconstructions of
    `images` test images.  match: `flow_match.match`.  recovery: `recover`, with `data.missing`.
    """
    n = min(JUDGED, len(test))
    inference = infer.Inference(model, recipe, seed=recipe.seed)
    originals = test.batch(range(n))
    z = inference(originals)[:, 0]
    found = reconstruct.errors(inference.decode(z), originals)
    result = {"fd": None, "features": None, "mse": found.mse.mean().item(), "psnr": found.pooled()}
    result["images"] = n
    if features is not None:
        reference = features(torch.cat(list(metrics.batches(test))))
        drawn = metrics.prior_images(model, recipe.evaluate.samples, metrics.draw_seed(recipe))
        result |= {"fd": metrics.frechet_distance(features(drawn), reference), "features": features.name}
        result["samples"] = recipe.evaluate.samples
    # As many steps as in learning: it is that run whose law the prior learns.
    z = infer.Inference(model, recipe, recipe.flow.steps, recipe.seed)(originals)[:, 0]
    match = flow_match.match(model, z, recipe.seed)
    checkpoint.write_bytes(run.samples_dir / f"{KIND}-match.png", flow_match.figure(model, z, match, recipe.seed))
    result["match"] = match.figures()
    if hidden is not None:
        result["recovery"] = recover(inference, images, hidden, range(min(RECOVERED, len(images))), run)
    return result


def recover(
    inference: infer.Inference, images: data.Images, hidden: mask.Masks, which: Sequence[int], run: Run
) -> dict:
    """Fill the hidden pixels of training images, which have never been seen, by inference from the observed ones.

    Draws run.samples_dir/recovered.png.  Returns the errors on hidden pixels, which say something where the data hold
    the originals there: mse and psnr of the mean of a few draws, psnr_of_one of each; and `hidden`, the share of pixels
    that are.
    """
    originals, masks = images.batch(which), hidden(which)
    found = inpaint.inpaint(inference, originals, masks, DRAWS)
    each, of_mean = inpaint.hidden_errors(found, originals, masks)
    picture.save(inpaint.figure(originals, masks, found, damaged=False), run.samples_dir / "recovered.png")
    return {
        "mse": of_mean.mse.mean().item(),
        "psnr": of_mean.pooled(),
        "psnr_of_one": each.pooled(),
        "images": len(originals),
        "hidden": masks.float().mean().item(),
    }


def sentence(found: dict) -> str:
    """`judge`'s result for people."""
    parts = [] if found["fd"] is None else [f"FD {found['fd']:.3f} ({found['samples']} samples, {found['features']})"]
    parts.append(f"test reconstructions: MSE {found['mse']:.5f}, PSNR {found['psnr']:.2f} dB")
    match = found["match"]
    parts.append(f"inferred z to prior {match['prior']:.3f}, between two draws of the prior {match['floor']:.3f}")
    if "recovery" in found:
        parts.append(f"recovered pixels: PSNR {found['recovery']['psnr']:.2f} dB")
    return f"{KIND}: " + "; ".join(parts)
