"""Hierarchical latent energy-based priors: train a multi-layer generator, close its prior hole, sample.

    >>> import hebmtool
    >>> model = hebmtool.load("digits")         # a run's name or folder; the newest when there is none
    >>> model
    <Model digits: diffusion-ebm prior, 2 layers, images 1x8x8>
    >>> model.sample(16, seed=0)                # uint8 [16, C, H, W]; a picture in a notebook
    <pictures, uint8 [16, 1, 8, 8]>

Everything the `hebm` command does is a function here or a method of `Model`, under the same words; docs/architecture.md
has the map.  Importing this alone imports neither torch nor anything else that takes time: names come on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hebmtool.api import Model as Model
    from hebmtool.api import compare as compare
    from hebmtool.api import evaluate as evaluate
    from hebmtool.api import export as export
    from hebmtool.api import fid as fid
    from hebmtool.api import import_nvae as import_nvae
    from hebmtool.api import info as info
    from hebmtool.api import load as load
    from hebmtool.api import pull as pull
    from hebmtool.api import push as push
    from hebmtool.api import train_prior as train_prior
    from hebmtool.api import train_vae as train_vae
    from hebmtool.errors import HebmError as HebmError
    from hebmtool.errors import UsageError as UsageError
    from hebmtool.recipe import Recipe as Recipe
    from hebmtool.run.folder import Run as Run

    __version__: str

PLACES = {
    "HebmError": "hebmtool.errors",
    "Model": "hebmtool.api",
    "Recipe": "hebmtool.recipe",
    "Run": "hebmtool.run.folder",
    "UsageError": "hebmtool.errors",
    "compare": "hebmtool.api",
    "evaluate": "hebmtool.api",
    "export": "hebmtool.api",
    "fid": "hebmtool.api",
    "import_nvae": "hebmtool.api",
    "info": "hebmtool.api",
    "load": "hebmtool.api",
    "pull": "hebmtool.api",
    "push": "hebmtool.api",
    "train_prior": "hebmtool.api",
    "train_vae": "hebmtool.api",
}
"""Where each name is defined.  (`report`, which is the name of a room, is `hebmtool.api.report`.)"""

__all__ = ["__version__", *PLACES]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("hebmtool")
    if name in PLACES:
        return getattr(import_module(PLACES[name]), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
