"""Published checkpoints: three vectors are reproduced, every geometry comes through, names are the published ones."""

import argparse
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from published import ARGS, make, publish, write

from hebmtool.errors import HebmError
from hebmtool.generator import Tower, nvae
from hebmtool.generator.tower import CELL_KINDS
from hebmtool.run.folder import Run
from hebmtool.run.imported import import_checkpoint
from hebmtool.run.open import load_generator

VECTORS = Path(os.environ.get("HEBM_SHARED", Path(__file__).parents[3] / "shared")) / "nvae_vectors"
CPU = torch.device("cpu")

# The vectors


def largest(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over largest value."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.skipif(not VECTORS.is_dir(), reason=f"no vectors of the published model in {VECTORS} (set HEBM_SHARED)")
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", ["celeba64", "cifar10", "mnist"])
def test_published_vectors_are_reproduced(name, frozen, tmp_path):
    run = import_checkpoint(VECTORS / f"nvae_{name}_tiny.pt", tmp_path)
    generator = load_generator(run, CPU)
    if name == "mnist":
        # Expected over the uncropped 32x32: the same weights, padded by nobody.
        assert generator.image_shape == (1, 28, 28) and generator.padded_size == (32, 32)
        whole = Tower(generator.config, (1, 32, 32)).eval()
        whole.load_state_dict(generator.state_dict())
        generator = whole
    if frozen:
        generator = generator.frozen()
    files = np.load(VECTORS / f"nvae_{name}_tiny_expected.npz")
    expected = {key: torch.from_numpy(files[key]) for key in files}

    def latents(prefix: str) -> torch.Tensor:
        return generator.join([expected[f"{prefix}_{l:02d}"] for l in range(generator.L)])

    with torch.no_grad():
        posterior = generator.posterior(expected["x"], torch.zeros(2, generator.D))
        logits = generator.decode(posterior.walk)
        prior = generator.walk(latents("prior_u"))
        likelihood, log_px = generator.likelihood, expected["log_px_given_posterior_mean"]
        assert largest(generator.join(posterior.walk.z), latents("posterior_z")) < 1e-5
        assert largest(generator.join(posterior.walk.u), latents("posterior_u")) < 1e-5
        assert largest(generator.T_inverse(latents("posterior_z")), latents("posterior_u")) < 1e-5
        assert largest(generator.T(latents("posterior_u")), latents("posterior_z")) < 1e-5
        assert largest(logits, expected["logits_posterior"]) < 1e-5
        assert largest(likelihood.log_prob(logits, expected["x"]), log_px) < 1e-5
        assert largest(likelihood.log_prob(expected["logits_posterior"], expected["x"]), log_px) < 1e-6
        assert largest(generator.join(prior.z), latents("prior_z")) < 1e-5
        assert largest(generator.T_inverse(latents("prior_z")), latents("prior_u")) < 1e-5
        assert largest(generator.decode(prior), expected["logits_prior"]) < 1e-5
        if "decoder_mean" in expected:
            assert largest(likelihood.mean(logits), expected["decoder_mean"]) < 1e-5
            assert largest(likelihood.mean(expected["logits_posterior"]), expected["decoder_mean"]) < 1e-6


@pytest.mark.skipif(not VECTORS.is_dir(), reason=f"no vectors of the published model in {VECTORS} (set HEBM_SHARED)")
def test_mnist_images_are_padded_and_cropped_back(tmp_path):
    generator = load_generator(import_checkpoint(VECTORS / "nvae_mnist_tiny.pt", tmp_path), CPU)
    expected = np.load(VECTORS / "nvae_mnist_tiny_expected.npz")
    x = torch.from_numpy(expected["x"]).clone()
    x[:, :, [0, 1, 30, 31]] = 0
    x[:, :, :, [0, 1, 30, 31]] = 0
    whole = Tower(generator.config, (1, 32, 32)).eval()
    whole.load_state_dict(generator.state_dict())
    with torch.no_grad():
        noise = torch.zeros(2, generator.D)
        one, two = generator.posterior(x[:, :, 2:30, 2:30], noise), whole.posterior(x, noise)
        assert torch.equal(one.kl, two.kl)
        assert torch.equal(generator.decode(one.walk), whole.decode(two.walk)[:, :, 2:30, 2:30])


# Geometries: out and in again

GEOMETRIES = {
    "res_bnswish": {},
    "res_mbconv": {"arch_instance": "res_mbconv"},
    "mbconv_sep": {"arch_instance": "mbconv_sep", "num_cell_per_cond_dec": 2},
    "five scales": {"num_latent_scales": 5, "num_groups_per_scale": 8, "ada_groups": True, "size": 64},
    "five scales, at least two groups": {
        "num_latent_scales": 5,
        "num_groups_per_scale": 8,
        "ada_groups": True,
        "min_groups_per_scale": 2,
        "size": 32,
    },
    "one group": {"num_latent_scales": 1, "num_groups_per_scale": 1},
    "no blocks": {"num_preprocess_blocks": 0, "num_postprocess_blocks": 0},
    "one flow": {"num_nf": 1},
    "two flows": {"num_nf": 2, "num_latent_per_group": 3},
    "no squeeze-and-excitation": {"use_se": False},
    "absolute posterior": {"res_dist": False},
    "widths that differ": {"num_channels_enc": 6, "num_channels_dec": 4, "num_preprocess_cells": 3},
    "gaussian": {"num_mixture_dec": 1, "dataset": "celeba_64", "size": 64},
    "five bits": {"num_x_bits": 5, "dataset": "celeba_256", "num_mixture_dec": 10, "size": 32},
    "mnist": {"dataset": "mnist", "shape": (1, 28, 28), "num_preprocess_blocks": 2, "num_postprocess_blocks": 2},
    "mnist in 32 where 28 would divide": {"dataset": "mnist", "shape": (1, 28, 28)},
    "omniglot": {"dataset": "omniglot", "shape": (1, 28, 28)},
    "unknown data set": {"dataset": "flowers", "size": 8},
}


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES.keys())
def test_every_geometry_comes_back(geometry, prefix, tmp_path):
    generator, args = make(**geometry)
    run = import_checkpoint(write(publish(generator, args, prefix), tmp_path), tmp_path / "runs", "a")
    back = load_generator(Run.open("a", tmp_path / "runs"), CPU)
    assert run.path == tmp_path / "runs" / "a"
    assert back.image_shape == generator.image_shape and back.bits == args.num_x_bits and back.L == generator.L
    x, u = torch.rand(2, *generator.image_shape), torch.randn(2, generator.D)
    with torch.no_grad():
        one, two = generator.posterior(x, u), back.posterior(x, u)
        assert torch.equal(one.kl, two.kl)
        assert torch.equal(generator.T(u), back.T(u))
        assert torch.equal(generator.images(u), back.images(u))
        logits = generator.decode(one.walk)
        assert torch.equal(generator.likelihood.log_prob(logits, x), back.likelihood.log_prob(logits, x))


def test_names_are_the_published_ones():
    generator, _ = make(arch_instance="mbconv_sep", num_nf=2, num_preprocess_blocks=2, num_postprocess_blocks=2)
    shapes = {theirs: tuple(generator.state_dict()[ours].shape) for theirs, ours in nvae.name_map(generator).items()}
    expected = {
        "prior_ftr0": (32, 2, 2),
        "stem.log_weight_norm": (4, 1, 1, 1),
        "pre_process.1._ops.0.conv.0.bn.running_var": (4,),  # down: no upsampling comes first
        "pre_process.1._ops.0.conv.2.conv.0.weight": (12, 1, 5, 5),
        "pre_process.3._ops.0.conv.4.bn.weight": (16,),
        "pre_process.3.skip.conv_4.bias": (4,),
        "enc_tower.0._ops.0.conv.1.conv.0.weight": (96, 16, 1, 1),  # cell, combiner, cell, combiner, down
        "enc_tower.1.conv.weight": (16, 16, 1, 1),
        "enc_tower.4._ops.0.conv.3.weight": (32, 96, 1, 1),
        "enc_tower.6.conv.bias": (32,),
        "enc_tower.7.se.se.0.weight": (4, 32),
        "enc0.1.weight": (32, 32, 1, 1),
        "enc_sampler.0.weight": (4, 32, 3, 3),
        "enc_sampler.3.weight": (4, 16, 3, 3),
        "dec_sampler.0.1.weight": (4, 32, 1, 1),
        "dec_sampler.2.1.weight": (4, 16, 1, 1),
        "dec_tower.0.conv.weight": (32, 34, 1, 1),  # combiner, cell, combiner, up
        "dec_tower.1._ops.0.conv.2.conv.1.running_mean": (192,),
        "dec_tower.3._ops.0.conv.1.bn.weight": (32,),  # up: the upsampling is 0
        "dec_tower.3._ops.0.conv.2.conv.0.weight": (192, 32, 1, 1),
        "dec_tower.3.skip.1.log_weight_norm": (16, 1, 1, 1),
        "nf_cells.0.cell1.conv.convz.0.weight": (12, 2, 3, 3),
        "nf_cells.7.cell2.conv.convz.2.weight": (12, 1, 5, 5),
        "nf_cells.7.cell2.mu.conv_0.bias": (2,),
        "post_process.0._ops.0.conv.5.bn.weight": (8,),
        "post_process.3.se.se.2.bias": (4,),
        "image_conditional.1.weight": (20, 4, 3, 3),
    }
    assert {key: shapes.get(key) for key in expected} == expected
    absent = ("enc_tower.8.", "nf_cells.8.", "dec_sampler.3.", "skip.1.bias", "convz.0.bias", "post_process.4.")
    assert not [key for key in shapes if any(word in key for word in absent)]
    state = generator.state_dict().keys() - set(nvae.name_map(generator).values())
    assert all(key.endswith("num_batches_tracked") for key in state)


def test_a_checkpoint_without_num_mixture_dec_has_ten(tmp_path):
    generator, args = make(num_mixture_dec=10)
    del args.num_mixture_dec
    run = import_checkpoint(write(publish(generator, args), tmp_path), tmp_path / "runs")
    assert run.recipe().generator.mixtures == 10


def test_the_ops_of_the_dict_go_before_the_name(tmp_path):
    cells = CELL_KINDS["res_bnswish"] | {"normal_dec": ["mconv_e2k3g0"]}
    config = nvae.config(argparse.Namespace(**ARGS), None).model_copy(update={"cells": cells})
    content = publish(Tower(config, (3, 16, 16)), argparse.Namespace(**ARGS))
    content["arch_instance"] = cells | {"ar_nn": [""]}
    run = import_checkpoint(write(content, tmp_path), tmp_path / "runs")
    assert run.recipe().generator.cells == cells
    content["arch_instance"] = None
    with pytest.raises(HebmError, match="missing"):
        import_checkpoint(write(content, tmp_path), tmp_path / "b")
