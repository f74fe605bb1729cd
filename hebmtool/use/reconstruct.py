"""Reconstruction: x -> latents (`hebmtool.use.infer`) -> mean of p(x | latents), and how far that is from x.

MSE = mean (x - x')^2,  x in [0, 1];     PSNR = -10 log10 MSE  (dB)
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from hebmtool import picture
from hebmtool.data import anywhere
from hebmtool.errors import HebmError
from hebmtool.recipe import Recipe
from hebmtool.use.infer import Inference

SHOWN = 16
"""Images in a picture, at most."""


@dataclass
class Errors:
    """mse, psnr (dB; infinite where nothing differs): float64 [N]."""

    mse: Tensor
    psnr: Tensor

    def pooled(self) -> float:
        """PSNR of the mean MSE: one exact image does not make it infinite."""
        return -10 * self.mse.mean().log10().item()


def errors(images: Tensor, originals: Tensor, hidden: Tensor | None = None) -> Errors:
    """Of uint8 [N, C, H, W] against originals of that shape, over the hidden pixels (bool [N, 1, H, W]) or over all."""
    square = ((images.double() - originals.double()) / 255).square().mean(1, keepdim=True).flatten(1)
    weights = torch.ones_like(square) if hidden is None else hidden.flatten(1).double()
    mse = (square * weights).sum(1) / weights.sum(1)
    return Errors(mse, -10 * mse.log10())


def read(
    paths: Iterable[str],
    recipe: Recipe,
    shape: tuple[int, int, int],
    failed: Callable[[HebmError], None],
    fit: bool = False,
) -> tuple[list[str], Tensor]:
    """Names and images, uint8 [N, C, H, W], of image files, folders, .npz and .npy files.

    Arguments:
        failed: told of every file that cannot be read or, unless `fit`, is not of `shape`; it is passed over.
        fit: bring them to `shape` instead.

    Raises:
        HebmError: nothing is left.
    """
    found = list(anywhere.read(paths, recipe, shape, failed, exact=not fit))
    if not found:
        raise HebmError("no image is left to work on; give images of the run's size, or have them fitted to it")
    names, images = zip(*found, strict=True)
    return list(names), torch.stack(images)


@torch.no_grad()
def reconstruct(inference: Inference, images: Tensor) -> tuple[Tensor, Errors]:
    """Reconstructions of uint8 [N, C, H, W], of that shape, and their errors."""
    made = inference.decode(inference(images)[:, 0])
    return made, errors(made, images)


def figure(images: Tensor, made: Tensor) -> Image.Image:
    """Originals above reconstructions; the first few."""
    return picture.rows([("original", images[:SHOWN]), ("reconstruction", made[:SHOWN])])
