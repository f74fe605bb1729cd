"""Tiny generators in the format of NVAE's published checkpoints."""

import argparse
from pathlib import Path

import torch

from hebmtool.generator import Tower, nvae
from hebmtool.generator.tower import CELL_KINDS

ARGS = {
    "dataset": "cifar10",
    "arch_instance": "res_bnswish",
    "use_se": True,
    "res_dist": True,
    "num_x_bits": 8,
    "num_latent_scales": 2,
    "num_groups_per_scale": 2,
    "num_latent_per_group": 2,
    "ada_groups": False,
    "min_groups_per_scale": 1,
    "num_channels_enc": 4,
    "num_channels_dec": 4,
    "num_preprocess_blocks": 1,
    "num_preprocess_cells": 2,
    "num_cell_per_cond_enc": 1,
    "num_postprocess_blocks": 1,
    "num_postprocess_cells": 2,
    "num_cell_per_cond_dec": 1,
    "num_mixture_dec": 2,
    "num_nf": 0,
}


def publish(generator: Tower, args: argparse.Namespace, prefix: str = "") -> dict:
    """The generator in the published format, with the entries that are to be ignored."""
    ours = generator.state_dict()
    state = {theirs: ours[name].clone() for theirs, name in nvae.name_map(generator).items()}
    for key in list(state):
        if key.endswith("running_mean"):
            state[key.replace("running_mean", "num_batches_tracked")] = torch.tensor(5)
        if "._ops." in key and state[key].ndim == 4 and key.endswith(".weight"):
            state[key.replace(".weight", ".weight_normalized")] = state[key] + 1
    return {
        "epoch": 3,
        "state_dict": {prefix + key: value for key, value in state.items()},
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3}]},
        "global_step": 123,
        "args": args,
        "arch_instance": CELL_KINDS[args.arch_instance] | {"ar_nn": [""]},
        "scheduler": {},
        "grad_scalar": {},
    }


def make(size: int = 16, shape: tuple | None = None, **changes) -> tuple[Tower, argparse.Namespace]:
    """A tiny generator with random weights and statistics, and the `args` that describe it."""
    args = argparse.Namespace(**ARGS | changes)
    generator = Tower(nvae.config(args, None), shape or (3, size, size), args.num_x_bits)
    with torch.no_grad():
        for key, tensor in generator.state_dict().items():
            if "running" in key:
                tensor.uniform_(0.5, 1.5)
            elif tensor.is_floating_point():
                tensor.add_(0.1 * torch.randn_like(tensor))
    return generator.eval(), args


def write(content, tmp_path: Path, **options) -> Path:
    torch.save(content, tmp_path / "checkpoint.pt", **options)
    return tmp_path / "checkpoint.pt"
