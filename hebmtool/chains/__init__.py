"""Markov chains on u, each a pure function that reads beside its equations.

`base` is the protocol that priors draw by; `langevin` has the two published chains and two that are exact for the
Gaussian part, `hybrid` one that is exact altogether; `metropolis` and `short_run` sample one density as it is.  A chain
knows its own parametrisation and nothing of priors, energies or generators: it is handed a slope.  A new one is a
subclass of `Chain` with a word.
"""

from hebmtool.chains.base import CHAINS, Chain, Held, Watch, hold, make_chain, value_and_gradient
from hebmtool.chains.hybrid import Hybrid
from hebmtool.chains.langevin import GaussianExact, Preconditioned, Published, Underdamped, Unscaled

__all__ = [
    "CHAINS",
    "Chain",
    "GaussianExact",
    "Held",
    "Hybrid",
    "Preconditioned",
    "Published",
    "Underdamped",
    "Unscaled",
    "Watch",
    "hold",
    "make_chain",
    "value_and_gradient",
]
