"""Inpainting: hidden pixels drawn from p(x_hidden | x_visible) = E[p(x | z)] over z ~ p(z | x_visible)
(`hebmtool.use.infer`); a completion shows the mean of p(x | z), and the visible pixels as they were."""

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from hebmtool import picture
from hebmtool.use.infer import Inference
from hebmtool.use.reconstruct import Errors, errors

SHOWN = 8
"""Images in a picture, at most."""


@dataclass
class Completed:
    """completions: uint8 [N, draws, C, H, W].  mean: theirs, [N, C, H, W]."""

    completions: Tensor
    mean: Tensor


@torch.no_grad()
def inpaint(inference: Inference, images: Tensor, hidden: Tensor, draws: int) -> Completed:
    """Complete images.

    Arguments:
        images: uint8 [N, C, H, W]; what stands at hidden pixels is not looked at.
        hidden: bool [N, 1, H, W].
        draws: completions of each.
    """
    latents = inference(images, hidden, draws)
    made = inference.decode(latents.flatten(0, 1)).unflatten(0, (len(images), draws))
    completions = keep_visible(made, images[:, None], hidden[:, None])
    return Completed(completions, completions.double().mean(1).round().to(torch.uint8))


def keep_visible(made: Tensor, images: Tensor, hidden: Tensor) -> Tensor:
    """`made` where hidden, `images`, bit for bit, elsewhere."""
    return torch.where(hidden, made, images)


def hidden_errors(found: Completed, images: Tensor, hidden: Tensor) -> tuple[Errors, Errors]:
    """On hidden pixels: of the completions, each image's averaged over its draws; and of their mean."""
    n, draws = found.completions.shape[:2]
    each = errors(
        found.completions.flatten(0, 1), images.repeat_interleave(draws, 0), hidden.repeat_interleave(draws, 0)
    )
    averaged = Errors(each.mse.view(n, draws).mean(1), each.psnr.view(n, draws).mean(1))
    return averaged, errors(found.mean, images, hidden)


def shade(images: Tensor, hidden: Tensor) -> Tensor:
    """RGB images with hidden pixels painted over, uint8 [N, 3, H, W]."""
    colour = torch.tensor([205, 120, 120], dtype=torch.uint8).view(1, 3, 1, 1)
    return torch.where(hidden, colour, images.expand(-1, 3, -1, -1))


def figure(images: Tensor, hidden: Tensor, found: Completed, damaged: bool) -> Image.Image:
    """A column per image: masked, completions, their mean, and the original unless it is damaged; the first few."""
    rgb = [part[:SHOWN].expand(-1, 3, -1, -1) for part in found.completions.unbind(1)]
    rows = [("masked", shade(images[:SHOWN], hidden[:SHOWN]))]
    rows += [(f"completion {i}", part) for i, part in enumerate(rgb, 1)]
    if len(rgb) > 1:
        rows.append(("their mean", found.mean[:SHOWN]))
    return picture.rows(rows if damaged else [*rows, ("original", images[:SHOWN])])
