"""Priors over u, beside each other on one generator: N(0, I), a joint EBM, conditional EBMs over noise levels; and an
EBM and a flow that bring a generator of their own.

`base` is what a prior is; `ebm` has the kinds on a given generator, `latent` and `flow` those that are learned with
theirs, as `one_stage` says; `schedule` the noise levels, `energy` the networks f_i whose sum is F, `objectives` what
they minimise, `labels` what couples them to classes and attributes.  How a chain draws is `hebmtool.chains`' business,
what u means `hebmtool.generator`'s.  A new prior is a subclass of `Prior` with a kind.
"""

from hebmtool import recipe as recipes
from hebmtool.generator import Generator
from hebmtool.prior.base import KINDS, Gaussian, HeldStages, Prior, Steps, log_standard_normal, not_finite
from hebmtool.prior.ebm import DiffusionEBM, EnergyPrior, JointEBM
from hebmtool.prior.flow import FlowPrior
from hebmtool.prior.latent import LatentEBM
from hebmtool.prior.objectives import OBJECTIVES, objective
from hebmtool.prior.one_stage import OneStage
from hebmtool.prior.schedule import Schedule

__all__ = [
    "KINDS",
    "OBJECTIVES",
    "DiffusionEBM",
    "EnergyPrior",
    "FlowPrior",
    "Gaussian",
    "HeldStages",
    "JointEBM",
    "LatentEBM",
    "OneStage",
    "Prior",
    "Schedule",
    "Steps",
    "log_standard_normal",
    "make_prior",
    "not_finite",
    "objective",
]


def make_prior(generator: Generator, config: recipes.Prior) -> Prior:
    """The prior that a recipe's `prior` part describes, on a frozen generator."""
    return KINDS[config.kind](generator, config).to(generator.device)
