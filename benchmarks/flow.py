"""What the flow prior is good for, on MNIST: one command per question, each prints a table.

    D="--set data.source=array --set data.path=mnist.npz --features mnist_features.safetensors"
    python benchmarks/flow.py priors $D
    python benchmarks/flow.py inpaint ...
    python benchmarks/flow.py recover ...
    python benchmarks/flow.py anomaly ...

priors    flow against N(0, I), the same network learned the same way: FD of samples, error of test reconstructions
inpaint   the middle of test images: PSNR on hidden pixels, against the training images' mean; and what the training
          images themselves know: the mean of the 20 whose visible pixels are nearest; and what the generator can do:
          its best latent, found by looking at the hidden pixels (so too for `recover`)
recover   training on images of which 50% and 70% of the pixels are missing: PSNR on them, against scikit-image's
          biharmonic inpainting of the same images (pip install scikit-image)
anomaly   one digit left out of training: AUPRC of finding it by log p(z, x) at the inferred z, beside published rows

Runs of earlier calls are used again, and continued where they were cut off.  The recipe is `mnist-flow`.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from anomaly import PROTOCOLS, at_inferred, done, published, same_settings, table

from hebmtool import api, data, picture, recipe
from hebmtool.compute import pick_device
from hebmtool.console import note
from hebmtool.data import masks
from hebmtool.errors import HebmError
from hebmtool.metrics import detection
from hebmtool.prior import FlowPrior
from hebmtool.run.folder import Run
from hebmtool.run.open import load_prior
from hebmtool.use import infer, inpaint
from hebmtool.use import reconstruct as reconstruction

RECOVER = [
    *("data.limit=10000", "flow.persistent=true", "flow.steps=5", "train_prior.batch_size=128"),
    *("train_prior.iterations=4000", "train_prior.lr_decay=0.95"),
    *("flow.latent=48", "flow.width=32", "flow.sigma=0.15", "flow.step_size=0.055"),
]
"""Fifty short visits to every image, its chain going on, in place of one long one: where only its own visible pixels
tell of an image, it is worth coming back."""
ANOMALY = ["flow.latent=8", "evaluate.samples=200"]
"""A latent that is no larger than the digits learned need: what it cannot draw is the anomaly."""

KIND = FlowPrior.kind
NEIGHBOURS = 20
ORACLE_STARTS, ORACLE_STEPS, ORACLE_LR = 4, 300, 0.1


def trained(options: argparse.Namespace, name: str, *keys: str, asked: Sequence[str] = ()) -> Run:
    """The run of these settings, trained as far as it is not yet.  `--set` overrides `keys`, but not what is
    `asked`, which sets the run off from the others."""
    features = [] if options.features is None else [f"evaluate.features={options.features}"]
    settings = recipe.load(options.recipe, [*keys, *options.set, *features, f"name={name}", *asked])
    run = Run(options.runs / name)
    finished = done(run.prior_path(KIND), settings.train_prior.iterations)
    if finished:
        same_settings(run.recipe(), settings)
    if not finished or KIND not in run.figures():
        resume = run.prior_train_path(KIND).is_file()
        api.train_prior(settings, runs=options.runs, device=str(options.device), resume=resume)
    return run


def decibels(mse: float) -> float:
    return -10 * math.log10(mse)


def priors(options: argparse.Namespace) -> None:
    found: dict[str, list[dict]] = {"flow": [], "N(0, I)": []}
    for seed in range(options.seeds):
        for name, keys in (("flow", []), ("N(0, I)", ["flow.transforms=0"])):
            word = "flow" if name == "flow" else "normal"
            run = trained(options, f"mnist-{word}-{seed}", asked=[*keys, f"seed={seed}"])
            model, settings = load_prior(run, KIND, options.device), run.recipe()
            test = data.load(settings.data, "test").batch(range(options.images))
            _, errors = reconstruction.reconstruct(infer.Inference(model, settings), test)
            fd = run.figures()[KIND]["fd"]
            found[name].append({"fd": math.nan if fd is None else fd, "mse": errors.mse.mean().item()})
    rows = []
    for name, seeds in found.items():
        fd, mse = (np.array([each[key] for each in seeds]) for key in ("fd", "mse"))
        spread = f" ± {fd.std(ddof=1):.3f}" if len(seeds) > 1 else ""
        rows.append([name, f"{fd.mean():.3f}{spread}", f"{mse.mean():.5f}", f"{decibels(mse.mean()):.2f}"])
    table(["prior", "FD", f"test MSE ({options.images} images)", "PSNR, dB"], *rows)
    fd = [np.mean([each["fd"] for each in seeds]) for seeds in found.values()]
    note(f"FD with the flow is {fd[0] / fd[1]:.3f} of that with N(0, I); {options.seeds} seed(s) each")


def nearest(training: data.Images, images: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """The mean of the NEIGHBOURS training images whose visible pixels are nearest, uint8 as `images` [N, C, H, W]."""
    visible = ~hidden.expand_as(images)
    found = []
    for image, seen in zip(images.float(), visible.float(), strict=True):
        square = [((part - image) * seen).square().flatten(1).sum(1) for part in training.batches()]
        which = torch.cat(square).topk(NEIGHBOURS, largest=False).indices
        found.append(training.batch(which).double().mean(0).round().to(torch.uint8))
    return torch.stack(found)


def oracle(model: FlowPrior, settings: recipe.Recipe, images: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """What this generator can make of hidden pixels at best, uint8 as `images` [N, C, H, W]: it is shown them, and
    climbs to the latent that makes them best, from ORACLE_STARTS draws of the prior.  No inference from visible pixels
    does better; what is missing beyond it is the generator's."""
    x = data.prepare(images, settings.data, model.g.likelihood.read_grey, train=False).to(model.g.device)
    n, hidden = len(x), hidden.to(x.device)
    torch.manual_seed(settings.seed)
    with torch.no_grad():
        z = model.from_base(torch.randn(ORACLE_STARTS * n, model.g.D, device=x.device))
    x, hidden = x.repeat(ORACLE_STARTS, 1, 1, 1), hidden.repeat(ORACLE_STARTS, 1, 1, 1)
    z.requires_grad_(True)
    optimizer = torch.optim.Adam([z], lr=ORACLE_LR)
    for step in range(ORACLE_STEPS):
        optimizer.param_groups[0]["lr"] = ORACLE_LR * (1 - step / ORACLE_STEPS)
        loss = -model.g.log_px(model.g.walk(z), x, hidden)
        [z.grad] = torch.autograd.grad(loss.sum(), [z])
        optimizer.step()
    with torch.no_grad():
        best = model.g.log_px(model.g.walk(z), x, hidden).view(ORACLE_STARTS, n).argmax(0)
        return picture.to_uint8(model.g.images(z.view(ORACLE_STARTS, n, -1)[best, torch.arange(n)]))


def inpainting(options: argparse.Namespace) -> None:
    run = trained(options, "mnist-flow-0")
    model, settings = load_prior(run, KIND, options.device), run.recipe()
    training, test = (data.load(settings.data, split) for split in ("train", "test"))
    images = test.batch(range(options.images))
    mean = training.batch(range(min(10000, len(training)))).double().mean(0, keepdim=True).round().to(torch.uint8)
    rows = []
    for word in ("center:0.5", "center:0.25"):
        hidden = masks.parse(word, test.shape)(range(len(images)))
        completed = inpaint.inpaint(infer.Inference(model, settings), images, hidden, options.draws)
        each, of_mean = inpaint.hidden_errors(completed, images, hidden)
        best = oracle(model, settings, images, hidden)
        filled, near, shown = (
            reconstruction.errors(fill, images, hidden)
            for fill in (mean.expand_as(images), nearest(training, images, hidden), best)
        )
        psnr = [errors.pooled() for errors in (filled, near, shown, each, of_mean)]
        rows.append([word, *(f"{value:.2f}" for value in psnr), f"{psnr[4] - psnr[0]:+.2f}"])
    heads = ["hidden", "mean image", f"{NEIGHBOURS} nearest", "best latent"]
    heads += ["one completion", f"mean of {options.draws}", "gain, dB"]
    table(heads, *rows)
    note(f"PSNR (dB) on hidden pixels, pooled over {options.images} test images; center:F hides F of either side")


def recovery(options: argparse.Namespace) -> None:
    try:
        from skimage.restoration import inpaint_biharmonic
    except ImportError:
        raise HebmError("the comparison needs scikit-image; install it with pip install scikit-image") from None
    rows = []
    for share in (0.5, 0.7):
        run = trained(options, f"mnist-missing-{share}", *RECOVER, asked=[f"data.missing={share}"])
        model, settings = load_prior(run, KIND, options.device), run.recipe()
        training = data.load(settings.data, "train")
        which = range(min(options.images, len(training)))
        originals, hidden = (
            training.batch(which),
            masks.missing(settings.data, training, settings.seed)(which),
        )
        completed = inpaint.inpaint(infer.Inference(model, settings), originals, hidden, options.draws)
        each, of_mean = inpaint.hidden_errors(completed, originals, hidden)
        smooth = [
            inpaint_biharmonic(image[0].numpy() / 255 * ~gone[0].numpy(), gone[0].numpy())
            for image, gone in zip(originals, hidden, strict=True)
        ]
        smooth = torch.from_numpy(np.stack(smooth)).clamp(0, 1).mul(255).round().to(torch.uint8)[:, None]
        errors = reconstruction.errors(smooth, originals, hidden)
        best = reconstruction.errors(oracle(model, settings, originals, hidden), originals, hidden)
        psnr = [found.pooled() for found in (errors, best, each, of_mean)]
        rows.append([f"{share:.0%}", *(f"{value:.2f}" for value in psnr), f"{psnr[3] - psnr[0]:+.2f}"])
    table(["missing", "biharmonic", "best latent", "one draw", f"mean of {options.draws}", "gain, dB"], *rows)
    note(f"PSNR (dB) on missing pixels, pooled over the first {len(which)} training images")


def anomaly(options: argparse.Namespace) -> None:
    ours: dict[str, dict[int, float]] = {"log p(z, x)": {}, "log p(z)": {}, "log p(x given z)": {}}
    for digit in options.digits:
        keys = [*PROTOCOLS[options.protocol], f"data.exclude=[{digit}]"]
        run = trained(options, f"mnist-flow-{options.protocol}-less-{digit}", *ANOMALY, asked=keys)
        model, settings = load_prior(run, KIND, options.device), run.recipe()
        test = data.load(settings.data, "test")
        which = range(min(options.scored or len(test), len(test)))
        positive = (test.labels[: len(which)] == test.classes.index(str(digit))).numpy()
        log_z, log_x = at_inferred(model, settings, test.batch(which), options.steps)
        for name, scores in zip(ours, (log_z + log_x, log_z, log_x), strict=True):
            ours[name][digit] = detection.figures_of_merit(scores[~positive], scores[positive])["auprc"]
        note(f"digit {digit}: {positive.sum()} of {len(positive)} images; {ours['log p(z, x)'][digit]:.3f}")
    rows = [[f"flow, {name}", *(f"{v:.3f}" for v in row.values())] for name, row in ours.items()]
    head = [f"AUPRC, digit left out ({options.protocol})", *map(str, options.digits)]
    table(head, *published(options.protocol, options.digits), *rows)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = {"priors": priors, "inpaint": inpainting, "recover": recovery, "anomaly": anomaly}
    parser.add_argument("what", choices=commands)
    parser.add_argument("--recipe", default="mnist-flow")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a recipe key")
    parser.add_argument("--features", help="feature network for FD, safetensors; the embedded one without")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--device", default="auto", type=pick_device)
    parser.add_argument("--seeds", type=int, default=1, help="of `priors`, each prior trained with all of them")
    parser.add_argument("--images", type=int, default=256, help="judged by all but `anomaly`")
    parser.add_argument("--draws", type=int, default=8, help="of inpaint and recover, per image")
    parser.add_argument("--digits", type=int, nargs="+", default=[1, 4, 5, 7, 9], choices=range(10), metavar="D")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="pooled", help="of `anomaly`, as in anomaly.py")
    parser.add_argument("--scored", type=int, default=2000, help="test images scored by `anomaly`; 0 scores all")
    parser.add_argument("--steps", type=int, help="Langevin steps per image scored by `anomaly`; the recipe's without")
    options = parser.parse_args(arguments)
    commands[options.what](options)


if __name__ == "__main__":
    main()
