"""Settings as published, by recipe and key, each with where it stands: in the paper, or in the public code beside it.

Recipes are held to this table key by key (test_published_settings.py).  Facts, read from the papers and from what their
programs do:

NVAE    "NVAE: A Deep Hierarchical Variational Autoencoder", Vahdat & Kautz 2020, arXiv 2007.03898: its table of
        hyper-parameters (paper), the defaults and the reading of images of its program (code)
VAEBM   "VAEBM: A Symbiosis between Variational Autoencoders and Energy-based Models", Xiao et al. 2020, arXiv
        2010.00654: the commands that train its NVAE on LSUN (code)
HEBM    "Learning Latent Space Hierarchical EBM Diffusion Models", Cui & Han 2024, arXiv 2405.13910: section 3 of its
        settings (paper), its program (code)
JOINT   "Learning Joint Latent Space EBM Prior Model for Multi-layer Generator", Cui, Wu & Han 2023, arXiv 2306.06323
LFBM    "A Tale of Two Latent Flows", Xie et al. 2023, arXiv 2301.09300: its settings (paper), its program (code)
"""

NVAE_ALL = {
    "generator.cells": ("res_mbconv", "code"),
    "generator.encoder_cells": (2, "paper"),
    "generator.decoder_cells": (2, "paper"),
    "generator.latent_channels": (20, "paper"),
    "generator.squeeze_excitation": (True, "paper"),
    "generator.residual_posterior": (True, "paper"),
    "generator.preprocess_blocks": (1, "paper"),
    "generator.likelihood": ("mixture", "paper"),
    "generator.mixtures": (10, "code"),
    "train_vae.lr": (1e-2, "paper"),
    "train_vae.kl_warmup": (0.3, "paper"),
    "train_vae.kl_balance": (True, "paper"),
}

NVAE = {
    "cifar10": NVAE_ALL
    | {
        "generator.scales": (1, "paper"),
        "generator.layers_per_scale": (30, "paper"),
        "generator.encoder_channels": (128, "paper"),
        "generator.decoder_channels": (128, "paper"),
        "generator.flows": (1, "paper"),  # pairs of cells, here and below
        "train_vae.batch_size": (256, "paper"),
        "train_vae.iterations": (400 * 50_000 // 256, "paper"),
        "train_vae.spectral_weight": (1e-2, "paper"),
    },
    "celeba64": NVAE_ALL
    | {
        "data.size": (64, "paper"),
        "data.crop": (163 - 15, "code"),  # left 15, top 40, right 163, bottom 188
        "data.crop_at": ([40, 15], "code"),
        "generator.scales": (3, "paper"),
        "generator.layers_per_scale": (20, "paper"),
        "generator.halve": (True, "paper"),
        "generator.min_layers_per_scale": (1, "paper"),
        "generator.encoder_channels": (64, "paper"),
        "generator.decoder_channels": (64, "paper"),
        "generator.flows": (1, "paper"),
        "train_vae.batch_size": (128, "paper"),
        "train_vae.iterations": (round(90 * 162_770 / 128), "paper"),
    },
    "celebahq256": NVAE_ALL
    | {
        "data.size": (256, "paper"),
        "data.bits": (5, "paper"),
        "generator.scales": (5, "paper"),
        "generator.layers_per_scale": (16, "paper"),
        "generator.halve": (True, "paper"),
        "generator.min_layers_per_scale": (4, "paper"),
        "generator.encoder_channels": (30, "paper"),
        "generator.decoder_channels": (30, "paper"),
        "generator.flows": (2, "paper"),
        "train_vae.batch_size": (96, "paper"),
        "train_vae.iterations": (300 * 27_000 // 96, "paper"),
        "train_vae.spectral_weight": (1e-2, "paper"),
        "train_vae.spectral_start": (1.0, "paper"),
    },
}

VAEBM = {
    "lsun64": {
        "data.size": (64, "code"),
        "data.random_crop": (True, "code"),
        "data.crop": (None, "code"),
        "generator.scales": (3, "paper"),
        "generator.layers_per_scale": (5, "code"),
        "generator.halve": (False, "code"),
        "generator.encoder_channels": (48, "code"),
        "generator.decoder_channels": (48, "code"),
        "generator.flows": (1, "code"),
        "generator.likelihood": ("gaussian", "code"),
        "train_vae.batch_size": (8 * 32, "code"),
        "train_vae.iterations": (60 * 126_227 // 256, "code"),
        "train_vae.spectral_weight": (1e-1, "code"),
        # As all of NVAE's.
        "train_vae.lr": (1e-2, "paper"),
        "train_vae.kl_warmup": (0.3, "paper"),
        "train_vae.kl_balance": (True, "paper"),
    },
}

HEBM_ALL = {
    "prior.kind": ("diffusion-ebm", "paper"),
    "prior.levels": (3, "code"),
    "prior.chain": ("langevin", "paper"),
    "prior.objective": ("recovery", "paper"),
    "prior.energy.form": ("published", "code"),
    "prior.energy.reads": ("z", "paper"),
    "prior.energy.blocks": (4, "code"),
    "prior.energy.activation": ("silu", "paper"),
    "prior.energy.spectral_norm": (True, "code"),
    "train_prior.lr": (4e-5, "paper"),
    "train_prior.lr_staircase": (True, "code"),
    "train_prior.betas": ((0.99, 0.999), "paper"),
    "train_prior.weight_decay": (3e-5, "paper"),
    "train_prior.flip": (False, "code"),
    "train_prior.ema": (0.0, "code"),
    "train_prior.clip": (1e9, "code"),
    "evaluate.pixels": ("sample", "code"),
}

HEBM = {
    "cifar10": HEBM_ALL
    | {
        "prior.steps": (50, "paper"),
        "prior.eta": (3e-5, "paper"),
        "prior.energy.width": (128, "paper"),
        "train_prior.batch_size": (2 * 25, "paper"),
        "train_prior.iterations": (200 * 1000, "code"),
        "train_prior.lr_decay": (0.9, "paper"),
        "train_prior.readjust_bn": (500, "code"),
        "evaluate.samples": (50_000, "paper"),
    },
    "celebahq256": HEBM_ALL
    | {
        "prior.steps": (30, "paper"),
        "prior.eta": (2e-5, "paper"),
        "prior.energy.width": (64, "paper"),
        "train_prior.batch_size": (2 * 2, "paper"),
        "train_prior.iterations": (200 * 6750, "code"),
        "train_prior.lr_decay": (0.98, "paper"),
        "evaluate.samples": (30_000, "code"),
    },
    # No settings of these are published: what is said of all.
    "celeba64": HEBM_ALL | {"train_prior.iterations": (200 * 3255, "code")},
    "lsun64": HEBM_ALL | {"train_prior.iterations": (200 * 2524, "code")},
}

JOINT = {
    "prior.kind": "ebm",
    "prior.chain": "unscaled",
    "prior.steps": 10,
    "prior.eta": 1e-5,
    "prior.energy.spectral_norm": False,
    "prior.energy.activation": "leaky-relu",
}
"""Overrides of celebahq256 that make it the joint EBM, all from its paper; docs/results.md has the command."""

LFBM_ALL = {
    "prior.kind": ("flow", "paper"),
    "flow.sigma": (0.3, "code"),
    "flow.step_size": (0.1, "code"),
    "flow.transforms": (5, "code"),
    "flow.mixing": ("linear", "code"),
    "flow.coupling": ("affine", "code"),
    "flow.hidden": (64, "code"),
    "flow.start": ("normal", "code"),
    "flow.warmup": (0, "code"),
    "flow.test_noise": (False, "code"),
    "flow.persistent": (False, "code"),
    "train_prior.batch_size": (100, "code"),
    "train_prior.betas": ((0.5, 0.999), "code"),
    "train_prior.lr_decay": (0.998, "code"),
    "train_prior.lr_staircase": (True, "code"),
}

LFBM = {
    "svhn-flow": LFBM_ALL
    | {
        "flow.latent": (100, "paper"),
        "flow.steps": (20, "paper"),
        "flow.test_steps": (20 * 20, "code"),
        "flow.width": (128, "code"),  # 512 channels at 4x4
        "train_prior.lr": (4e-4, "paper"),
        "train_prior.iterations": (201 * 732, "code"),
    },
    "cifar10-flow": LFBM_ALL
    | {
        "flow.latent": (128, "paper"),
        "flow.steps": (40, "paper"),
        "flow.test_steps": (20 * 40, "code"),
        "flow.width": (512, "code"),  # 1024 channels at 8x8
        "flow.first_map": (8, "code"),
        "flow.head": ("conv", "code"),
        "train_prior.lr": (3.8e-4, "paper"),
        "train_prior.iterations": (201 * 500, "code"),
    },
    "celeba-flow": LFBM_ALL
    | {
        "data.size": (64, "paper"),
        "data.crop": (128, "code"),
        "data.crop_at": ([45, 25], "code"),
        "flow.latent": (100, "paper"),
        "flow.steps": (20, "paper"),
        "flow.test_steps": (20 * 20, "code"),
        "flow.width": (128, "code"),  # 1024 channels at 4x4
        "train_prior.lr": (3e-4, "paper"),
        "train_prior.iterations": (201 * 1627, "code"),
    },
}

# Its amortisation of chains is left out.
DAMC = {
    "mnist-anomaly-latent": {
        "prior.kind": ("latent-ebm", "paper"),
        "prior.chain": ("unscaled", "paper"),
        "prior.objective": ("recovery", "paper"),
        "prior.steps": (60, "code"),
        "prior.energy.width": (200, "code"),
        "prior.energy.blocks": (2, "code"),  # three linear maps
        "flow.latent": (8, "code"),
        "flow.width": (128, "code"),
        "flow.even": (True, "code"),
        "flow.head": ("conv", "code"),
        "flow.steps": (30, "code"),
        "flow.test_noise": (False, "code"),
        "flow.persistent": (False, "code"),
        "train_prior.lr": (5e-5, "code"),
        "train_prior.generator_lr": (1e-4, "code"),
        "train_prior.betas": ((0.5, 0.999), "code"),
    },
}

TABLE = [
    (recipe, key, value, source)
    for part in (NVAE, VAEBM, HEBM, LFBM, DAMC)
    for recipe, keys in part.items()
    for key, (value, source) in keys.items()
]
