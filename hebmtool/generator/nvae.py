"""Published NVAE checkpoints: read safely, their names mapped to ours, and turned into a run.

A checkpoint in the published format is a dict with a state dict (`state_dict`), its geometry (`args`, an
`argparse.Namespace`) and the ops of its cells (`arch_instance`).  `config` reads the geometry, `name_map` lists which
published entry is which of our parameters, `recipe_for` says what a run of it is; `hebmtool.run.imported` makes one.
Nothing outside this file knows about the published naming.

The architecture is NVAE's (Vahdat & Kautz 2020, https://arxiv.org/abs/2007.03898).  Outputs agree with the published
model's within 1e-5 of the largest value (float32, evaluation mode).
"""

import argparse
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hebmtool import files
from hebmtool import recipe as recipes
from hebmtool.errors import HebmError
from hebmtool.generator.layers import AutoregressiveShift, BNSwishConv, Cell, Conv, InvertedResidual, SkipDown, SkipUp
from hebmtool.generator.tower import CELL_KINDS, Tower

GEOMETRY = {
    "scales": "num_latent_scales",
    "layers_per_scale": "num_groups_per_scale",
    "halve": "ada_groups",
    "min_layers_per_scale": "min_groups_per_scale",
    "latent_channels": "num_latent_per_group",
    "encoder_channels": "num_channels_enc",
    "decoder_channels": "num_channels_dec",
    "preprocess_blocks": "num_preprocess_blocks",
    "preprocess_cells": "num_preprocess_cells",
    "postprocess_blocks": "num_postprocess_blocks",
    "postprocess_cells": "num_postprocess_cells",
    "encoder_cells": "num_cell_per_cond_enc",
    "decoder_cells": "num_cell_per_cond_dec",
    "squeeze_excitation": "use_se",
    "residual_posterior": "res_dist",
    "flows": "num_nf",
}
"""Key of a recipe's `generator` part -> the attribute of `args` that says the same."""

GREY = ("mnist", "omniglot")
"""Data sets of 28x28 grey images, padded to 32x32; all others are square RGB images."""

IGNORED = (".weight_normalized", ".num_batches_tracked")
"""Entries of the state dict that follow from others, or count updates."""

NAMED = 3
"""How many of the weights that do not fit an error names."""


def config(args: argparse.Namespace, arch: Mapping | None) -> recipes.Generator:
    """The recipe's `generator` part for a checkpoint's `args` and its `arch_instance` dict (its name when None).

    Raises:
        HebmError: attributes are missing, or have values that a generator cannot have; the first is named.
    """
    needed = ["dataset", "num_x_bits", *GEOMETRY.values(), *([] if arch else ["arch_instance"])]
    missing = [attribute for attribute in needed if not hasattr(args, attribute)]
    if missing:
        raise HebmError(f"args lacks {', '.join(missing)}; give a checkpoint that has every attribute of NVAE's args")
    cells: Any = args.arch_instance if not arch else {role: arch[role] for role in recipes.CELL_ROLES if role in arch}
    cells = next((kind for kind, ops in CELL_KINDS.items() if ops == cells), cells)
    mixtures = getattr(args, "num_mixture_dec", 10)
    likelihood = "bernoulli" if args.dataset in GREY else "gaussian" if mixtures == 1 else "mixture"
    part = {ours: getattr(args, theirs) for ours, theirs in GEOMETRY.items()}
    try:
        return recipes.from_dict(
            {"generator": part | {"cells": cells, "likelihood": likelihood, "mixtures": mixtures}}
        ).generator
    except HebmError as error:
        raise HebmError(str(error)) from None  # the file is wrong, not the request


class _Pairs(dict[str, str]):
    """Published key -> our key, filled part by part; each method is told what the part is called there."""

    def __init__(self, generator: Tower):
        super().__init__()
        self.names = {module: name for name, module in generator.named_modules()}

    def conv(self, theirs: str, module: Conv) -> None:
        ours = self.names[module]
        self[f"{theirs}.weight"] = f"{ours}.v"
        if module.g is not None:
            self[f"{theirs}.log_weight_norm"] = f"{ours}.g"
        if module.bias is not None:
            self[f"{theirs}.bias"] = f"{ours}.bias"

    def norm(self, theirs: str, module: torch.nn.BatchNorm2d) -> None:
        for entry in ("weight", "bias", "running_mean", "running_var"):
            self[f"{theirs}.{entry}"] = f"{self.names[module]}.{entry}"

    def op(self, theirs: str, module: torch.nn.Module) -> None:
        if isinstance(module, BNSwishConv):
            self.norm(f"{theirs}.bn_act", module.bn)
            self.conv(f"{theirs}.conv_0", module.conv)
        elif isinstance(module, InvertedResidual):
            n = 1 if module.up else 0  # an upsampling takes the first place in the published sequence
            self.norm(f"{theirs}.conv.{n}.bn", module.bn_in)
            self.conv(f"{theirs}.conv.{n + 1}.conv.0", module.expand)
            self.norm(f"{theirs}.conv.{n + 1}.conv.1", module.bn_expand)
            self.conv(f"{theirs}.conv.{n + 2}.conv.0", module.depthwise)
            self.norm(f"{theirs}.conv.{n + 2}.conv.1", module.bn_depthwise)
            self.conv(f"{theirs}.conv.{n + 3}", module.project)
            self.norm(f"{theirs}.conv.{n + 4}.bn", module.bn_out)

    def cell(self, theirs: str, module: Cell) -> None:
        for j, part in enumerate(module.ops):
            self.op(f"{theirs}._ops.{j}", part)
        if isinstance(module.skip, SkipDown):
            for j, part in enumerate(module.skip.convs):
                self.conv(f"{theirs}.skip.conv_{j + 1}", part)
        elif isinstance(module.skip, SkipUp):
            self.conv(f"{theirs}.skip.1", module.skip.conv)
        if hasattr(module.se, "down"):
            for j, part in ((0, module.se.down), (2, module.se.up)):
                self[f"{theirs}.se.se.{j}.weight"] = f"{self.names[part]}.weight"
                self[f"{theirs}.se.se.{j}.bias"] = f"{self.names[part]}.bias"

    def flow(self, theirs: str, module: AutoregressiveShift) -> None:
        self.conv(f"{theirs}.conv.convz.0", module.first)
        self.conv(f"{theirs}.conv.convz.2", module.second)
        self.conv(f"{theirs}.mu.conv_0", module.mu)


def name_map(generator: Tower) -> dict[str, str]:
    """Map from published state-dict key to our state-dict key, for every parameter and buffer of `generator`."""
    pairs = _Pairs(generator)
    pairs["prior_ftr0"] = "constant"
    pairs.conv("stem", generator.stem)
    for j, module in enumerate(generator.preprocess):
        pairs.cell(f"pre_process.{j}", module)

    n = 0  # the encoder tower is numbered from the bottom up
    for layer in reversed(generator.encoder):
        for module in layer.cells:
            pairs.cell(f"enc_tower.{n}", module)
            n += 1
        if layer.merge is not None:
            pairs.conv(f"enc_tower.{n}.conv", layer.merge)
            n += 1
        if layer.down is not None:
            pairs.cell(f"enc_tower.{n}", layer.down)
            n += 1
    pairs.conv("enc0.1", generator.top[1])

    n = 0  # the decoder tower from the top down
    for l, layer in enumerate(generator.decoder):
        pairs.conv(f"enc_sampler.{l}", generator.encoder[l].head)
        if layer.head is not None:
            pairs.conv(f"dec_sampler.{l - 1}.1", layer.head[1])
        for module in layer.cells:
            pairs.cell(f"dec_tower.{n}", module)
            n += 1
        pairs.conv(f"dec_tower.{n}.conv", layer.combine)
        n += 1
        if layer.up is not None:
            pairs.cell(f"dec_tower.{n}", layer.up)
            n += 1
        for j, flow in enumerate(generator.flows[l]):
            pair, side = divmod(j, 2)
            pairs.flow(f"nf_cells.{l * generator.config.flows + pair}.cell{side + 1}", flow)

    for j, module in enumerate(generator.postprocess):
        pairs.cell(f"post_process.{j}", module)
    pairs.conv("image_conditional.1", generator.image_head[1])
    return dict(pairs)


def read(path: Path) -> Any:
    """What the file holds, tensors on the CPU and mapped rather than read where the format allows.

    Raises:
        HebmError: it cannot be read, is damaged, or would execute something.
    """
    try:
        with open(files.regular(path), "rb") as file:
            mappable = zipfile.is_zipfile(file)  # before torch 1.6 files were no archives
    except OSError as error:
        raise HebmError(f"the checkpoint {path} cannot be read ({error.strerror}); give a readable file") from error
    try:
        with (
            torch.serialization.safe_globals([argparse.Namespace]),
            warnings.catch_warnings(action="ignore"),  # torch's, on old pickles
        ):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mappable)
    except Exception as error:  # the unpickler raises almost anything on bytes that are no pickle
        called = re.search(r"nsupported.*?GLOBAL (\S+)", str(error))
        if called:
            raise HebmError(
                f"{path} refused: it asks for {called[1]}, which is not among the plain data an NVAE checkpoint "
                "consists of; nothing in it was run; give a checkpoint from a source you trust"
            ) from error
        raise HebmError(
            f"{path} ({path.stat().st_size} bytes) is cut short, damaged or no torch checkpoint; "
            "copy it again from where it is whole"
        ) from error


def parts(path: Path, content: Any) -> tuple[argparse.Namespace, dict[str, Any], Mapping | None]:
    """`args`, the state dict without `module.` prefixes and without ignored entries, and the dict of ops (or None).

    Raises:
        HebmError: the content is in another format.
    """
    wanted = {"args": argparse.Namespace, "state_dict": Mapping}
    for key, kind in wanted.items():
        if not isinstance(content, Mapping) or not isinstance(content.get(key), kind):
            raise HebmError(
                f"{path} is not in NVAE's format: it has no '{key}'; give a file with the entries state_dict and args, "
                "as NVAE's training writes"
            )
    state = {str(key).removeprefix("module."): value for key, value in content["state_dict"].items()}
    state = {key: value for key, value in state.items() if not key.endswith(IGNORED)}
    arch = content.get("arch_instance")
    return content["args"], state, arch if isinstance(arch, Mapping) else None


def renamed(path: Path, state: Mapping[str, Any], pattern: Tower) -> dict[str, Tensor]:
    """The state dict of a generator like `pattern`, float32, from a published one.

    Raises:
        HebmError: weights are missing, unknown, misshapen or not finite; the first few are named.
    """
    names, shapes = name_map(pattern), {key: tuple(value.shape) for key, value in pattern.state_dict().items()}
    state = _with_constant(state, pattern)

    def shape(key: str) -> tuple[int, ...] | None:
        value = state[key]
        return tuple(value.shape) if isinstance(value, Tensor) and value.is_floating_point() else None

    present = [key for key in names if key in state]
    misshapen = [key for key in present if shape(key) != shapes[names[key]]]
    faults = [
        _fault("missing", (key for key in names if key not in state)),
        _fault("unknown", (key for key in state if key not in names)),
        _fault(
            "misshapen",
            (f"{k} is {list(shape(k) or ()) or 'no tensor'}, not {list(shapes[names[k]])}" for k in misshapen),
        ),
        # Values are looked at only once the shapes are known to be sane.
        *([] if misshapen else [_fault("not finite", (k for k in present if not state[k].isfinite().all()))]),
    ]
    if any(faults):
        raise HebmError(
            f"{path} has weights that do not fit its args: {', '.join(filter(None, faults))}; nothing was written; "
            "give a whole checkpoint with its own args"
        )
    tensors = {names[key]: state[key].float() for key in names}
    return tensors | {key: torch.zeros(s, dtype=torch.int64) for key, s in shapes.items() if key not in tensors}


def _with_constant(state: Mapping[str, Any], pattern: Tower) -> dict[str, Any]:
    """A "vanilla" generator, of a single group, in the terms of the others.

    It begins with a 1x1 convolution of z alone, `stem_decoder`.  That is their combiner of z with the constant, where
    the constant is 0 and so are the weights that read it: these add nothing to the norm of a filter either.
    """
    state, weight = dict(state), state.get("stem_decoder.weight")
    if pattern.L > 1 or not isinstance(weight, Tensor) or weight.ndim != 4:
        return state
    del state["stem_decoder.weight"]
    constant = torch.zeros(pattern.constant.shape)
    state["prior_ftr0"] = constant
    ignored = weight.new_zeros(len(weight), len(constant), *weight.shape[2:])
    state["dec_tower.0.conv.weight"] = torch.cat([ignored, weight], dim=1)
    for entry in ("log_weight_norm", "bias"):
        if f"stem_decoder.{entry}" in state:
            state[f"dec_tower.0.conv.{entry}"] = state.pop(f"stem_decoder.{entry}")
    return state


def _fault(what: str, weights: Iterable[str]) -> str:
    """How many weights are at fault and the first few, or nothing."""
    weights = list(weights)
    more = ", ..." if len(weights) > NAMED else ""
    return f"{len(weights)} {what} ({', '.join(weights[:NAMED])}{more})" if weights else ""


def recipe_for(
    path: Path,
    args: argparse.Namespace,
    generator: recipes.Generator,
    size: int,
    name: str | None,
    data_path: str | None,
) -> recipes.Recipe:
    """A recipe for the run: the data set by its name, and the published settings of stage two.

    Arguments:
        size: height and width of the images; those of MNIST and OMNIGLOT have their own.
        name: of the run; after the data set when None.
        data_path: the recipe's `data.path`.

    Raises:
        UsageError: the name is no folder's name.
        HebmError: the geometry is unknown.
    """
    published = recipes.load("celebahq256" if size >= 256 else "cifar10")
    match str(args.dataset).split("_"):
        case ["mnist"]:
            data = {"source": "mnist", "channels": 1}
        case ["omniglot"]:
            data = {"source": "folder", "channels": 1, "size": 28}
        case ["cifar10"]:
            data = {"source": "cifar10"}
        case ["celeba", "64"]:
            data = {"source": "celeba", "crop": 148, "crop_at": [40, 15]}
        case ["lsun", category, _]:
            data = {
                "source": "lsun",
                "category": {"church": "church_outdoor"}.get(category, category),
                "random_crop": True,
            }
        case _:
            data = {"source": "folder"}
    if args.dataset not in GREY:
        data |= {"channels": 3, "size": size, "flip": True}
    given = "nvae-" + re.sub(r"[^A-Za-z0-9]+", "-", str(args.dataset)) if name is None else name
    recipes.from_dict({"name": given})  # the user's own mistake, if it is one
    try:
        return recipes.from_dict(
            published.model_dump(mode="json")
            | {"name": given, "generator": generator.model_dump(mode="json")}
            | {"data": data | {"bits": args.num_x_bits, "path": data_path}}
        )
    except HebmError as error:
        raise HebmError(f"{path} has a geometry unknown here: {error}") from None
