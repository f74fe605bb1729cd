"""Reconstruction: x -> latents (`hebmtool.use.infer`) -> mean of p(x | latents), and how far that is from x.

MSE = mean (x - x')^2,  x in [0, 1];     PSNR = -10 log10 MSE  (dB)
"""

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from hebmtool import picture
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


@torch.no_grad()
def reconstruct(inference: Inference, images: Tensor) -> tuple[Tensor, Errors]:
    """Reconstructions of uint8 [N, C, H, W], of that shape, and their errors."""
    made = inference.decode(inference(images)[:, 0])
    return made, errors(made, images)


def figure(images: Tensor, made: Tensor) -> Image.Image:
    """Originals above reconstructions; the first few."""
    return picture.rows([("original", images[:SHOWN]), ("reconstruction", made[:SHOWN])])
