"""The words some recipe keys take, each of which names a class (or a function) somewhere above.

The package's own stand here, so that a recipe is checked without importing what they name; a class defined elsewhere
adds its word where it is defined (`class Mine(Chain, word="mine")`).  An installed package can bring some to the
command line by an entry point in the group "hebmtool", a module that defines them, which is imported the first time a
recipe has a word unknown so far.
"""

from collections.abc import Iterator
from importlib import metadata
from typing import Annotated, Any

from pydantic import AfterValidator, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError

PLUGINS = "hebmtool"


class Words:
    """The words of one key, in order."""

    def __init__(self, *words: str):
        self._words = list(words)

    def __iter__(self) -> Iterator[str]:
        return iter(self._words)

    def add(self, word: str) -> None:
        if word not in self._words:
            self._words.append(word)

    def check(self, word: str) -> str:
        """`word`, when it is one of these."""
        if word not in self._words:
            _load_plugins()
        if word not in self._words:
            raise PydanticCustomError("unknown_word", "unknown word")
        return word

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        _load_plugins()
        return handler(core) | {"enum": list(self)}

    @property
    def type(self) -> object:
        """What annotates a field that takes these words."""
        return Annotated[str, self, AfterValidator(self.check)]


_loaded = False


def _load_plugins() -> None:
    global _loaded
    if not _loaded:
        _loaded = True
        for point in metadata.entry_points(group=PLUGINS):
            point.load()


# In the order of preference: the last that is trained is the one sampled from.
KINDS = Words("gaussian", "ebm", "diffusion-ebm", "flow", "latent-ebm")
# Of those, the ones that bring their generator.
ONE_STAGE = {"flow", "latent-ebm"}
CHAINS = Words("langevin", "unscaled", "preconditioned", "underdamped", "hmc")
OBJECTIVES = Words("recovery", "nce", "cnce", "score-matching", "telescope")
LIKELIHOODS = Words("bernoulli", "gaussian", "fixed-gaussian", "mixture")
SOURCES = Words("digits", "folder", "array", "mnist", "fashion-mnist", "cifar10", "svhn", "celeba", "lsun")
