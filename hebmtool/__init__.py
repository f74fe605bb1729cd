"""Hierarchical latent energy-based priors: train a multi-layer generator, close its prior hole, sample.

    import hebmtool

    model = hebmtool.load("mnist")          # the newest run, a name or a folder
    model.sample(16, seed=0)                # uint8 [16, C, H, W]; shows itself in a notebook

Everything the `hebm` command does is a function here or a method of `Model`, under the same words; docs/architecture.md
has the map.  Importing this alone imports neither torch nor anything else that takes time: names come on first use.
"""

from importlib import import_module

PLACES = {
    "HebmError": "hebmtool.errors",
    "Model": "hebmtool.api",
    "Recipe": "hebmtool.recipe",
    "Run": "hebmtool.run.folder",
    "UsageError": "hebmtool.errors",
    "compare": "hebmtool.api",
    "evaluate": "hebmtool.api",
    "import_nvae": "hebmtool.api",
    "info": "hebmtool.api",
    "load": "hebmtool.api",
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
