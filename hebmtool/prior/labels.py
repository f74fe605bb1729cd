"""Symbol-vector coupling: energies that know labels.

    F(z, y, t) = F(z, t) + sum_a w_a log p(y_a | z, t),        p(y_a | z, t) = softmax(sum_i g_i^a(z_i, t))

One label with w = 1 is the coupling <y, f(z, t)> of "Learning Latent Space Hierarchical EBM Diffusion Models"
(https://arxiv.org/abs/2405.13910; Pang & Wu 2021, https://arxiv.org/abs/2108.11556) with f_k = F + log p(k | z, t):
softmax(f) is p(y | z, t) and logsumexp(f) the marginal F.  Written so, the coupled objective, that of F plus
log p(y | u_t, t) on posterior u_t, is one of F alone and one of g alone.  A prior trained without labels is therefore
coupled later without being changed, labels learned apart add up, and each may be weighted or negated.

A label is `class`, or the name of a binary attribute with the values 0 and 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from hebmtool import data
from hebmtool import recipe as recipes
from hebmtool.errors import HebmError, UsageError, did_you_mean
from hebmtool.generator import Generator, TopDown
from hebmtool.prior.energy import Energy, chosen_layers

CLASS = "class"
LAYERS = "prior.label_layers"


class LabelEnergy(nn.Module):
    """p(y | z, t) for one label: the networks g_i of the coupled layers, summed.

    Arguments:
        name: of the label.
        values: its values' names, K of them.
        config: the recipe's `prior` part: of it the noise levels that it is learned on, the networks, and the layers
            coupled.
        whitening: digest of that of the latents whose noise levels it was learned on; None where there is none.
    """

    def __init__(
        self,
        name: str,
        values: Sequence[str],
        generator: Generator,
        config: recipes.Prior,
        whitening: str | None = None,
    ):
        super().__init__()
        self.name, self.values, self.levels, self.whitening = name, list(values), config.levels, whitening
        chosen = chosen_layers(generator, config.label_layers, LAYERS)
        self.energy = Energy(generator, config.energy, outputs=len(self.values), chosen=chosen)

    def log_prob(self, walk: TopDown, t: Tensor) -> Tensor:
        """log p(y | z, t) of every value, [N, K], for levels t [N]."""
        return self.energy(walk, t).sum(1).log_softmax(1)

    def index(self, value: str) -> int:
        """The place of a value given by its name.  Raises UsageError naming those that exist."""
        if value not in self.values:
            raise UsageError(
                f"the label {self.name} has no value '{value}'; it has {', '.join(self.values)}"
                f"{did_you_mean(value, self.values)}"
            )
        return self.values.index(value)


@dataclass
class Condition:
    """One term of the sum: w log p(y | z, t), with y [N] (indices of the label's values)."""

    label: LabelEnergy
    y: Tensor
    weight: float = 1.0

    def __call__(self, walk: TopDown, t: Tensor) -> Tensor:
        """[N]."""
        return self.weight * self.label.log_prob(walk, t).gather(1, self.y[:, None])[:, 0]


def values_of(name: str, images: data.Images, config: recipes.Data) -> tuple[Tensor, list[str]]:
    """What a label says of every image: (indices of its values, long [N]; the values' names).

    Raises:
        HebmError: the images have no such label; those they have are named.
    """
    known = [CLASS] * (images.labels is not None) + sorted(images.attributes)
    if name not in known:
        raise HebmError(
            f"the images have no label '{name}'; "
            + (f"they have {', '.join(known)}{did_you_mean(name, known)}" if known else "they have none at all")
            + "; data.attributes makes attributes of classes"
        )
    if name == CLASS:
        classes = images.classes or [str(k) for k in range(int(images.labels.max()) + 1)]
        return images.labels, classes
    return images.attributes[name].long(), ["0", "1"]
