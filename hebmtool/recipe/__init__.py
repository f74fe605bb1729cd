"""What is trained on what, and how: one YAML file, validated, overridable, saved with the run.

`schema` says which keys there are, their bounds and what they mean; `load` reads and writes YAML and applies overrides;
`mistakes` says in a sentence what a user wrote wrong; `keys` lists the keys there are.  A key is added in `schema`
(those of `flow` and `prior.energy` in files of their own).  Nothing here imports torch.
"""

from hebmtool.recipe.cells import CELL_ROLES
from hebmtool.recipe.keys import Key, keys, schema
from hebmtool.recipe.load import dump, from_dict, load, load_written, named, names, text, written
from hebmtool.recipe.places import expanded, located
from hebmtool.recipe.schema import (
    NAME,
    Data,
    Energy,
    Evaluate,
    Flow,
    Generator,
    Prior,
    Recipe,
    TrainPrior,
    TrainVae,
)

__all__ = [
    "CELL_ROLES",
    "NAME",
    "Data",
    "Energy",
    "Evaluate",
    "Flow",
    "Generator",
    "Key",
    "Prior",
    "Recipe",
    "TrainPrior",
    "TrainVae",
    "dump",
    "expanded",
    "from_dict",
    "keys",
    "load",
    "load_written",
    "located",
    "named",
    "names",
    "schema",
    "text",
    "written",
]
