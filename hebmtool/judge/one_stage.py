"""What a prior learned together with its generator, without an encoder, has reached.

    fd         FD(E[x | z], z ~ p(z);  test images)                   as in `hebmtool.metrics.distances`
    mse        (E[x | z] - x)^2 of test images x, z ~ a short Langevin run towards p(z | x)
    match      SW(z, p(z)), the distance of such z from the prior     (`hebmtool.metrics.flow_match`)
    recovery   the error on pixels of training images that learning never saw, z ~ p(z | x_observed)

("A Tale of Two Latent Flows", Xie et al. 2023, https://arxiv.org/abs/2301.09300).
"""

from collections.abc import Sequence

import torch

from hebmtool import data, files, picture
from hebmtool.data import masks
from hebmtool.judge.closure import draw_seed, prior_images
from hebmtool.metrics import distances, flow_match
from hebmtool.metrics.features import Features
from hebmtool.prior import Prior
from hebmtool.recipe import Recipe
from hebmtool.run.folder import Run
from hebmtool.use import inpaint
from hebmtool.use.infer import Inference
from hebmtool.use.reconstruct import errors

JUDGED = 256  # test images inferred, to be judged; the Fréchet distance takes evaluate.samples
RECOVERED, DRAWS = 128, 4  # training images recovered, and draws of each


def judge(
    model: Prior,
    run: Run,
    recipe: Recipe,
    images: data.Images,
    test: data.Images,
    features: Features | None,
    hidden: masks.Masks | None,
) -> dict:
    """What `model` has reached; pictures go into the run.

    Arguments:
        images, test: training images and held-out ones.
        features: a network that fits them; None where there is none, and then there is no fd.
        hidden: which pixels of the training images learning did not see, None where it saw all: no recovery then.

    Returns {"fd", "features", "samples", "mse", "psnr" (dB), "images" (that those two are of), "match", "recovery"}.
    """
    n = min(JUDGED, len(test))
    inference = Inference(model, recipe, seed=recipe.seed)
    originals = test.batch(range(n))
    z = inference(originals)[:, 0]
    found = errors(inference.decode(z), originals)
    result = {"fd": None, "features": None, "mse": found.mse.mean().item(), "psnr": found.pooled()}
    result["images"] = n
    if features is not None:
        reference = features(torch.cat(list(test.batches())))
        drawn = prior_images(model, recipe.evaluate.samples, draw_seed(recipe), pixels=recipe.evaluate.pixels)
        result |= {"fd": distances.frechet_distance(features(drawn), reference), "features": features.name}
        result["samples"] = recipe.evaluate.samples
    # As many steps as in learning: it is that run whose law the prior learns.
    z = Inference(model, recipe, seed=recipe.seed, learning=True)(originals)[:, 0]
    match = flow_match.match(model, z, recipe.seed)
    files.write_bytes(run.samples_dir / f"{model.kind}-match.png", flow_match.figure(model, z, match, recipe.seed))
    result["match"] = match.figures()
    if hidden is not None:
        result["recovery"] = recover(inference, images, hidden, range(min(RECOVERED, len(images))), run)
    return result


def recover(inference: Inference, images: data.Images, hidden: masks.Masks, which: Sequence[int], run: Run) -> dict:
    """Fill the hidden pixels of training images, which have never been seen, by inference from the observed ones.

    Draws run.samples_dir/recovered.png.  Returns the errors on hidden pixels, which say something where the data hold
    the originals there: mse and psnr of the mean of a few draws, psnr_of_one of each; and `hidden`, the share of pixels
    that are.
    """
    originals, unseen = images.batch(which), hidden(which)
    found = inpaint.inpaint(inference, originals, unseen, DRAWS)
    each, of_mean = inpaint.hidden_errors(found, originals, unseen)
    picture.save(inpaint.figure(originals, unseen, found, damaged=False), run.samples_dir / "recovered.png")
    return {
        "mse": of_mean.mse.mean().item(),
        "psnr": of_mean.pooled(),
        "psnr_of_one": each.pooled(),
        "images": len(originals),
        "hidden": unseen.float().mean().item(),
    }


def sentence(kind: str, found: dict) -> str:
    """`judge`'s result for people."""
    parts = [] if found["fd"] is None else [f"FD {found['fd']:.3f} ({found['samples']} samples, {found['features']})"]
    parts.append(f"test reconstructions: MSE {found['mse']:.5f}, PSNR {found['psnr']:.2f} dB")
    match = found["match"]
    parts.append(f"inferred z to prior {match['prior']:.3f}, between two draws of the prior {match['floor']:.3f}")
    if "recovery" in found:
        parts.append(f"recovered pixels: PSNR {found['recovery']['psnr']:.2f} dB")
    return f"{kind}: " + "; ".join(parts)
