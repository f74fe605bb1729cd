"""An energy-based prior over a latent of one layer ("Learning Latent Space Energy-Based Prior Model", Pang et al. 2020,
https://arxiv.org/abs/2006.08205).

    p(z) = exp(F(z)) N(z; 0, I) / Z,      p(z, x) = p(z) p(x | z)

    z^+ ~ p(z | x)   K short-run Langevin steps from N(0, I), up the slope of log p(z, x)
    z^- ~ p(z)       K_0 of them from N(0, I), up that of log p(z)

    energy      grad F(z^+) - grad F(z^-), the gradient of log p(z) at z^+
    generator   grad log p(x | z^+)

It is the joint EBM (`hebmtool.prior.ebm.JointEBM`) on a generator that is learned with it: K_0, its chain and its step
are the recipe's `prior` part, K and its step the part `flow`.
"""

from typing import Any

from torch import Tensor, nn

from hebmtool import recipe as recipes
from hebmtool.generator import OneLayer
from hebmtool.prior.ebm import JointEBM
from hebmtool.prior.one_stage import OneStage
from hebmtool.prior.spectral import ACTIVATIONS


class VectorEnergy(nn.Module):
    """f: a latent vector, as a map [N, D, 1, 1] -> [N, outputs].  `blocks` hidden layers of `width` with linear maps
    between them, and no spectral norm.  It knows of no levels.

    Arguments:
        channels: D.
        state, size: of a map that there is none of here.
    """

    def __init__(self, channels: int, state: int, size: tuple[int, int], config: recipes.Energy, outputs: int = 1):
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        widths = [channels, *[config.width] * config.blocks]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False))
        self.head = nn.Linear(config.width, outputs)
        # F starts at 0: the prior starts at the Gaussian.
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def settle(self) -> None:
        """Nothing here follows from the weights."""

    @staticmethod
    def embed(t: Tensor) -> Tensor:
        return t

    def forward(self, z: Tensor, state: Tensor | None, level: Tensor, standard: object = None) -> Tensor:
        x = z.flatten(1)
        for linear in self.hidden:
            x = self.activation(linear(x))
        return self.head(x)


class LatentEBM(OneStage, JointEBM, kind="latent-ebm"):
    """p(z) ~ exp(F(z)) N(z; 0, I) over the latent of a generator that it is learned with; one checkpoint holds both.

    Arguments:
        generator: its g.
        config: the recipe's `prior` part: the chain that draws z^-, and of `energy` width, blocks and activation.
        inference: the recipe's `flow` part.
    """

    of_recipe = ("prior", "flow")
    knobs = "flow.step_size, prior.eta, train_prior.generator_lr or train_prior.lr"
    network = VectorEnergy

    def __init__(self, generator: OneLayer, config: recipes.Prior, inference: recipes.Flow):
        super().__init__(generator, config)
        self.g, self.inference = generator, inference

    @classmethod
    def from_recipe(cls, recipe: recipes.Recipe, image_shape: tuple[int, int, int]) -> "LatentEBM":
        return cls(OneLayer(recipe.flow, image_shape), recipe.prior, recipe.flow)

    def networks(self, config: recipes.TrainPrior) -> list[tuple[nn.Module, float]]:
        return [(self.g, config.generator_lr), (self.energy, config.lr)]

    def about(self) -> dict[str, dict[str, Any]]:
        energy, prior = self.config.energy, self.config
        parameters = sum(p.numel() for p in self.energy.parameters())
        shape = {"width": energy.width, "blocks": energy.blocks, "parameters": parameters}
        return {"energy": shape | {"chain": prior.chain, "steps": prior.steps}}

    def prior_loss(self, u_0: Tensor, x: Tensor) -> tuple[Tensor, dict]:
        return JointEBM.loss(self, u_0, x)
