"""A published NVAE checkpoint made into a run, whose generator it is (`hebmtool.generator.nvae` reads it)."""

import re
from pathlib import Path

import torch
from torch import Tensor

from hebmtool import recipe as recipes
from hebmtool.errors import HebmError
from hebmtool.generator import Tower, readjust_batchnorm
from hebmtool.generator.nvae import GREY, config, parts, read, recipe_for, renamed
from hebmtool.run import checkpoint
from hebmtool.run.folder import Run
from hebmtool.run.open import KIND


# More than a screen, for everything is looked at, one thing after another, before anything is written.
def import_checkpoint(
    path: str | Path,
    run_root: str | Path,
    name: str | None = None,
    *,
    data_path: str | None = None,
    readjust_bn: int = 0,
    readjust_temperature: float = 1.0,
    device: torch.device | str = "cpu",
) -> Run:
    """Turn the published checkpoint at `path` into the run `run_root/name`, ready for stage two.

    The recipe's stage two has the published settings for CIFAR-10, or from 256 pixels on those for CelebA-HQ-256.
    Everything is checked before anything is written.

    Arguments:
        path: a file in the published format; nothing in it is ever executed.
        run_root: the folder of runs.
        name: the run's; "nvae-" and the data set's name by default.
        data_path: the recipe's `data.path`; of need for stage two where the images cannot be downloaded.
        readjust_bn: re-estimate the decoder's BatchNorm statistics on this many generated batches, on `device`.
        readjust_temperature: standard deviation of u in them.

    Raises:
        UsageError: the name is no folder's name.
        HebmError: the file cannot be read, would execute something, is in another format or of an unknown geometry;
            weights are missing, unknown, misshapen or not finite; the run exists already, or cannot be written.
    """
    path = Path(path)
    content = read(path)
    args, state, arch = parts(path, content)
    try:
        generator_part = config(args, arch)
    except HebmError as error:
        raise HebmError(f"{path} has a geometry unknown here: {error}") from None

    size = _size(generator_part, state, str(args.dataset))
    image_shape = (1, 28, 28) if args.dataset in GREY else (3, size, size)
    recipe = recipe_for(path, args, generator_part, size, name, data_path)

    with torch.device("meta"):  # names and shapes are all that is needed of it
        pattern = Tower(generator_part, image_shape, recipe.data.bits)
    tensors = renamed(path, state, pattern)

    run = Run(Path(run_root) / recipe.name)
    if run.checkpoints():
        raise HebmError(f"the run {run.path} already has checkpoints; import {path} under another name")
    if readjust_bn:
        generator = Tower(generator_part, image_shape, recipe.data.bits).eval()
        generator.load_state_dict(tensors)
        readjust_batchnorm(generator.to(device), readjust_bn, temperature=readjust_temperature, seed=recipe.seed)
        tensors = generator.state_dict()
    step = content.get("global_step")
    with Run.create(run_root, recipe) as run:
        checkpoint.save(
            run.generator_path,
            tensors,
            kind=KIND,
            recipe=recipe,
            step=step if isinstance(step, int) else 0,
            extra={"image_shape": list(image_shape)},
        )
    return run


def _size(config: recipes.Generator, state: dict, dataset: str) -> int:
    """Height and width of the images, from the constant that the walk down starts with; where it has none (as in a
    "vanilla" generator) the number that the data set's name ends in, or 32."""
    constant = state.get("prior_ftr0")
    known = isinstance(constant, Tensor) and constant.ndim == 3
    if known:
        return 2 ** (config.scales - 1 + config.preprocess_blocks) * constant.shape[1]
    number = re.search(r"_(\d{2,3})$", dataset)
    return int(number[1]) if number else 32
