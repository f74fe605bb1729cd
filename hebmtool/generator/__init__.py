"""The generator p(x, z), its encoder q(z | x) and the bijection T: u -> z.

`base` is what the rest of the package knows of a generator; `tower` is NVAE's, of many layers, made of `layers`;
`one_layer` has one, no encoder, and T the identity.  `likelihood` is p(x | z) and how it reads pixels, `whitening` a
change of coordinates of u, `nvae` the map from published checkpoints.  A likelihood is added in its file alone; a new
architecture is a subclass of `Generator`.
"""

from hebmtool.generator.base import Generator, Posterior, TopDown
from hebmtool.generator.batchnorm import readjust_batchnorm
from hebmtool.generator.likelihood import LIKELIHOODS, Likelihood
from hebmtool.generator.one_layer import OneLayer
from hebmtool.generator.tower import Tower
from hebmtool.generator.whitening import Whitening

__all__ = [
    "LIKELIHOODS",
    "Generator",
    "Likelihood",
    "OneLayer",
    "Posterior",
    "TopDown",
    "Tower",
    "Whitening",
    "readjust_batchnorm",
]
