"""Published NVAE checkpoints: their names, as ours.

A checkpoint in the published format is a dict with a state dict and its geometry (`args`).  `config` reads the
geometry, `name_map` lists which published entry is which of our parameters.  Nothing outside this file knows
about the published naming.
"""

import argparse

import torch

from hebmtool import recipe as recipes
from hebmtool.generator import CELL_ROLES, Generator
from hebmtool.layers import BNSwishConv, Cell, Conv, InvertedResidual, SkipDown, SkipUp


def name_map(generator: Generator) -> dict[str, str]:
    """Map from published state-dict key to our state-dict key, for every parameter and buffer of `generator`."""
    names = {module: name for name, module in generator.named_modules()}
    pairs: dict[str, str] = {}

    def conv(theirs: str, module: Conv) -> None:
        pairs[f"{theirs}.weight"] = f"{names[module]}.v"
        if module.g is not None:
            pairs[f"{theirs}.log_weight_norm"] = f"{names[module]}.g"
        if module.bias is not None:
            pairs[f"{theirs}.bias"] = f"{names[module]}.bias"

    def norm(theirs: str, module: torch.nn.BatchNorm2d) -> None:
        for entry in ("weight", "bias", "running_mean", "running_var"):
            pairs[f"{theirs}.{entry}"] = f"{names[module]}.{entry}"

    def op(theirs: str, module: torch.nn.Module) -> None:
        if isinstance(module, BNSwishConv):
            norm(f"{theirs}.bn_act", module.bn)
            conv(f"{theirs}.conv_0", module.conv)
        elif isinstance(module, InvertedResidual):
            n = 1 if module.up else 0  # an upsampling takes the first place in the published sequence
            norm(f"{theirs}.conv.{n}.bn", module.bn_in)
            conv(f"{theirs}.conv.{n + 1}.conv.0", module.expand)
            norm(f"{theirs}.conv.{n + 1}.conv.1", module.bn_expand)
            conv(f"{theirs}.conv.{n + 2}.conv.0", module.depthwise)
            norm(f"{theirs}.conv.{n + 2}.conv.1", module.bn_depthwise)
            conv(f"{theirs}.conv.{n + 3}", module.project)
            norm(f"{theirs}.conv.{n + 4}.bn", module.bn_out)

    def cell(theirs: str, module: Cell) -> None:
        for j, part in enumerate(module.ops):
            op(f"{theirs}._ops.{j}", part)
        if isinstance(module.skip, SkipDown):
            for j, part in enumerate(module.skip.convs):
                conv(f"{theirs}.skip.conv_{j + 1}", part)
        elif isinstance(module.skip, SkipUp):
            conv(f"{theirs}.skip.1", module.skip.conv)
        if hasattr(module.se, "down"):
            for j, part in ((0, module.se.down), (2, module.se.up)):
                pairs[f"{theirs}.se.se.{j}.weight"] = f"{names[part]}.weight"
                pairs[f"{theirs}.se.se.{j}.bias"] = f"{names[part]}.bias"

    pairs["prior_ftr0"] = "constant"
    conv("stem", generator.stem)
    for j, module in enumerate(generator.preprocess):
        cell(f"pre_process.{j}", module)

    n = 0  # the encoder tower is numbered from the bottom up
    for l in reversed(range(generator.L)):
        layer = generator.encoder[l]
        for module in layer.cells:
            cell(f"enc_tower.{n}", module)
            n += 1
        if layer.merge is not None:
            conv(f"enc_tower.{n}.conv", layer.merge)
            n += 1
        if layer.down is not None:
            cell(f"enc_tower.{n}", layer.down)
            n += 1
    conv("enc0.1", generator.top[1])

    n = 0  # the decoder tower from the top down
    for l, layer in enumerate(generator.decoder):
        conv(f"enc_sampler.{l}", generator.encoder[l].head)
        if layer.head is not None:
            conv(f"dec_sampler.{l - 1}.1", layer.head[1])
        for module in layer.cells:
            cell(f"dec_tower.{n}", module)
            n += 1
        conv(f"dec_tower.{n}.conv", layer.combine)
        n += 1
        if layer.up is not None:
            cell(f"dec_tower.{n}", layer.up)
            n += 1
        for j, flow in enumerate(generator.flows[l]):
            pair, side = divmod(j, 2)
            theirs = f"nf_cells.{l * generator.config.flows + pair}.cell{side + 1}"
            conv(f"{theirs}.conv.convz.0", flow.first)
            conv(f"{theirs}.conv.convz.2", flow.second)
            conv(f"{theirs}.mu.conv_0", flow.mu)

    for j, module in enumerate(generator.postprocess):
        cell(f"post_process.{j}", module)
    conv("image_conditional.1", generator.image_head[1])
    return pairs


def config(args: argparse.Namespace, arch: dict | None) -> recipes.Generator:
    """The recipe's `generator` part for a checkpoint's `args` and its `arch_instance` dict."""
    mixtures = getattr(args, "num_mixture_dec", 10)
    if args.dataset in ("mnist", "omniglot"):
        likelihood = "bernoulli"
    else:
        likelihood = "gaussian" if mixtures == 1 else "mixture"
    return recipes.Generator(
        scales=args.num_latent_scales,
        layers_per_scale=args.num_groups_per_scale,
        halve=args.ada_groups,
        min_layers_per_scale=args.min_groups_per_scale,
        latent_channels=args.num_latent_per_group,
        encoder_channels=args.num_channels_enc,
        decoder_channels=args.num_channels_dec,
        preprocess_blocks=args.num_preprocess_blocks,
        preprocess_cells=args.num_preprocess_cells,
        postprocess_blocks=args.num_postprocess_blocks,
        postprocess_cells=args.num_postprocess_cells,
        encoder_cells=args.num_cell_per_cond_enc,
        decoder_cells=args.num_cell_per_cond_dec,
        cells={role: list(arch[role]) for role in CELL_ROLES} if arch else args.arch_instance,
        squeeze_excitation=args.use_se,
        residual_posterior=args.res_dist,
        flows=args.num_nf,
        likelihood=likelihood,
        mixtures=mixtures,
    )
