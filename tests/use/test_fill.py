"""Reconstruction and inpainting: errors, what stays of an image, and pictures."""

import math

import pytest
import torch
from toys import toy_prior

from hebmtool import data, recipe
from hebmtool.data import masks
from hebmtool.recipe import Recipe
from hebmtool.use import inpaint
from hebmtool.use import reconstruct as reconstruction
from hebmtool.use.infer import Inference

SHAPE = (1, 8, 8)


def digits(n=4):
    return data.load(recipe.Data(), "test").batch(range(n))


def inference(generator, kind="ebm", **keys):
    prior = toy_prior(generator, kind, weight=0.05).eval().requires_grad_(False)
    return Inference(prior, Recipe(generator=generator.config), **keys)


def test_errors_over_all_and_over_hidden_pixels():
    a = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    b = a.clone()
    b[0, :, 0] = 51  # 0.2 in a quarter of the pixels
    found = reconstruction.errors(b, a)
    assert found.mse.tolist() == pytest.approx([0.01, 0]) and found.psnr[0].item() == pytest.approx(20)
    assert math.isinf(found.psnr[1])
    hidden = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    hidden[:, :, 0] = True
    assert reconstruction.errors(b, a, hidden).mse[0].item() == pytest.approx(0.04)
    assert reconstruction.errors(b, a, ~hidden).mse[0].item() == 0


def test_completions_keep_visible_pixels_and_their_mean_is_nearer(generator):
    images, hidden = digits(), masks.parse("random:0.5", SHAPE)(range(4))
    found = inpaint.inpaint(inference(generator, steps=2), images, hidden, 5)
    assert found.completions.shape == (4, 5, 1, 8, 8)
    visible = ~hidden
    for k in range(5):
        assert torch.equal(found.completions[:, k][visible], images[visible])
    assert torch.equal(found.mean[visible], images[visible])
    each, mean = inpaint.hidden_errors(found, images, hidden)
    assert (mean.mse <= each.mse + 1e-3).all()
    shaded = inpaint.shade(images, hidden)
    assert torch.equal(shaded[:, 2:][visible], images[visible]) and (shaded[:, 0:1][hidden] == 205).all()
    whole, damaged = (inpaint.figure(images, hidden, found, d).size for d in (False, True))
    assert whole[0] == damaged[0] and whole[1] > damaged[1]
