"""Paths in a recipe, which are stored so that they hold in another folder, too."""

from pathlib import Path

from hebmtool.errors import HebmError
from hebmtool.recipe.schema import Recipe

ROOT = "data"
"""Where the sources below keep their files when nothing is said."""

ROOTED = ("mnist", "fashion-mnist", "cifar10", "svhn", "celeba", "lsun")


def expanded(path: str | Path) -> Path:
    """The path, "~" and "~name" being home folders.  Raises `HebmError` where there is no such home."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise HebmError(f"{path} begins with a home folder that does not exist; write the path in full") from None


def located(recipe: Recipe) -> Recipe:
    """The recipe with the paths in it absolute, where something lies there: of images, masks, a feature network."""

    def absolute(path: str) -> str:
        found = expanded(path)
        try:
            return str(found.absolute()) if found.exists() else path
        except (OSError, ValueError):  # what no path can be is told where it is opened
            return path

    images, network = recipe.data.path, recipe.evaluate.features
    if images is None and recipe.data.source in ROOTED:
        images = str(Path(ROOT).absolute())
    changes = {"path": images and absolute(images)}
    if isinstance(recipe.data.missing, str):
        changes["missing"] = absolute(recipe.data.missing)
    data = recipe.data.model_copy(update=changes)
    evaluate = recipe.evaluate.model_copy(update={"features": network and absolute(network)})
    return recipe.model_copy(update={"data": data, "evaluate": evaluate})
