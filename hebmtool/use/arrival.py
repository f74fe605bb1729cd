"""Whether a sampler has arrived at what the energies say: E G under its draws against E G under the posterior.

G = log p / p_0 up to a constant (`Prior.log_tilt`).  Where F is learned by likelihood or by a contrast, the prior's own
draws have the mean of G that posterior u have; a chain that starts at N(0, I) comes to it from below, and one that has
not yet come there draws another law.  The posterior's mean is measured at the end of learning and kept with the prior.
"""

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from hebmtool import ranks
from hebmtool.prior import Prior

WITHIN = 0.15  # nats of the posterior's, beside two standard errors: as good as there
BATCH = 100


@dataclass(frozen=True)
class Mean:
    """A mean over draws, with its standard error, which one draw has none of."""

    value: float
    error: float | None

    @classmethod
    def of(cls, values: Tensor) -> "Mean":
        values = values.double()
        return cls(values.mean().item(), values.std().item() / math.sqrt(len(values)) if len(values) > 1 else None)


@torch.no_grad()
def mean_tilt(prior: Prior, u: Tensor) -> Mean:
    """E G at level 0 over draws u [N, D]."""
    return Mean.of(torch.cat([prior.log_tilt(part) for part in u.split(BATCH)]))


@dataclass(frozen=True)
class Arrival:
    """Where a sampler's draws have come to.

    F: E G of the draws, nats.  posterior: that of posterior u, None where it was not measured.  acceptance: share of
    moves taken, and moves: those taken of an image's, in the mean; None where a chain makes no test.
    """

    F: Mean
    posterior: Mean | None
    acceptance: float | None
    moves: float | None

    @property
    def short(self) -> float | None:
        """Nats that the draws are short of the posterior's."""
        return None if self.posterior is None else self.posterior.value - self.F.value

    @property
    def arrived(self) -> bool | None:
        if self.posterior is None or None in (self.F.error, self.posterior.error):
            return None
        return self.short < WITHIN + 2 * math.hypot(self.F.error, self.posterior.error)

    def sentence(self) -> str | None:
        """What to say of a sampler that has not arrived; None of others."""
        if self.arrived is not False:
            return None
        mean, posterior = (f"{each.value:.2f} ± {each.error:.2f}" for each in (self.F, self.posterior))
        return (
            f"the sampler has not arrived: its draws have a mean F of {mean} nats where posterior latents have "
            f"{posterior}; take more steps, or where those change nothing learn for longer"
        )

    def as_dict(self) -> dict:
        return asdict(self) | {"arrived": self.arrived}


class Tally:
    """Counts what draws of a prior come to: `watch` is told of their moves, `ended` of where they end."""

    def __init__(self, prior: Prior):
        self.prior = prior
        self.G: list[Tensor] = []
        self.taken: list[Tensor] = []
        self.proposed = 0

    def watch(self, t: int, u: Tensor, G: Tensor, slope: Tensor, taken: Tensor | None) -> None:
        if taken is not None:
            self.taken.append(taken.sum())
            self.proposed += len(taken)

    @torch.no_grad()
    def ended(self, u_0: Tensor) -> None:
        """A batch of draws, [N, D]."""
        self.G.append(self.prior.log_tilt(u_0))

    def arrival(self, posterior: Mean | None = None) -> Arrival:
        """What they came to, held against `posterior`, or what is kept with the prior when None."""
        kept = self.prior.posterior_tilt
        posterior = Mean(*kept) if posterior is None and kept is not None else posterior
        own = [each.cpu() for each in self.G], float(sum(self.taken)), self.proposed
        # Of several processes each has told of its own draws.
        draws, taken, proposed = zip(*ranks.spread(range(ranks.world()), lambda _: own), strict=True)
        G = torch.cat([each for of_one in draws for each in of_one])
        if not sum(proposed):
            return Arrival(Mean.of(G), posterior, None, None)
        return Arrival(Mean.of(G), posterior, sum(taken) / sum(proposed), sum(taken) / len(G))
