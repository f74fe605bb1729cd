"""The package as a whole, for a notebook, a program or the command line: each use one call, words for arguments.

`model` loads a run and has every use of its prior as a method, whose results (`results`) show themselves; `train` makes
runs (`planning`: what that will take), `judging` says what they reached, side by side, `distance` how far apart sets of
images are, `sharing` gives them away.  The names are those of the commands.  Nothing is computed here: a function reads
its words, calls the rooms below and puts what they found into one object.

Names are imported on first use: what reads recipes or kept figures alone never waits for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hebmtool.api.distance import fid as fid
    from hebmtool.api.judging import compare as compare
    from hebmtool.api.judging import evaluate as evaluate
    from hebmtool.api.judging import info as info
    from hebmtool.api.judging import report as report
    from hebmtool.api.model import Model as Model
    from hebmtool.api.model import load as load
    from hebmtool.api.planning import plan as plan
    from hebmtool.api.sharing import export as export
    from hebmtool.api.sharing import pull as pull
    from hebmtool.api.sharing import push as push
    from hebmtool.api.train import import_nvae as import_nvae
    from hebmtool.api.train import train_prior as train_prior
    from hebmtool.api.train import train_vae as train_vae

PLACES = {
    "Model": "hebmtool.api.model",
    "compare": "hebmtool.api.judging",
    "evaluate": "hebmtool.api.judging",
    "export": "hebmtool.api.sharing",
    "fid": "hebmtool.api.distance",
    "import_nvae": "hebmtool.api.train",
    "info": "hebmtool.api.judging",
    "load": "hebmtool.api.model",
    "plan": "hebmtool.api.planning",
    "pull": "hebmtool.api.sharing",
    "push": "hebmtool.api.sharing",
    "report": "hebmtool.api.judging",
    "train_prior": "hebmtool.api.train",
    "train_vae": "hebmtool.api.train",
}
"""Where each name is defined."""

__all__ = list(PLACES)


def __getattr__(name: str) -> object:
    if name in PLACES:
        return getattr(import_module(PLACES[name]), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *PLACES})
