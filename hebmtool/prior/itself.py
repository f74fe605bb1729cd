"""The last updates of an energy-based prior, against its own draws (`train_prior.finish`)."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hebmtool import rows

if TYPE_CHECKING:
    from hebmtool.prior.ebm import EnergyPrior

CLAMPED, TRIMMED = 10.0, 50.0
"""Nats between a draw of the prior and a posterior u beyond which it pulls less and less; below which not at all."""


class OwnDraws:
    """Draws u^- ~ p(u) by the prior's exact chain, K steps from N(0, I), for `updates` updates at a time.

    Those of the later ones are of weights that lag as many updates behind, which the chains of one update do not
    notice; and a GPU, which a chain of few images leaves idle between kernels, makes them in the time of one.

    u: [updates, N, D], of all processes; at: which of them the last update took, -1 before the first.
    """

    def __init__(self, updates: int = 1):
        self.updates, self.at, self.u = updates, -1, torch.empty(0)

    def __call__(self, prior: "EnergyPrior", u_0: Tensor) -> Tensor:
        """The rows of this part (`hebmtool.rows`) for one update, like its posterior draws u_0 [n, D]."""
        part = rows.current() or rows.whole(len(u_0))
        if rows.first_turn():
            self.at = (self.at + 1) % self.updates
            if self.at == 0:
                self.u = u_0.new_zeros(self.updates, part.total, u_0.shape[1])
        if self.at == 0:

            def eps() -> Tensor:
                return torch.cat([rows.randn_like(u_0) for _ in range(self.updates)])

            drawn = prior.refine(eps(), eps, learning=True).unflatten(0, (self.updates, -1))
            self.u[:, part.rows_beside] = torch.stack([rows.gathered(u) for u in drawn])
        return self.u[self.at, part.rows]

    def tensors(self) -> dict[str, Tensor]:
        """What is left for the updates to come; nothing where the next one makes its own."""
        return {} if self.at in (-1, self.updates - 1) else {"at": torch.tensor(self.at), "u": self.u}

    def restore(self, tensors: dict[str, Tensor], device: torch.device) -> None:
        """Go on with what `tensors` gave, but where it was for another number of updates."""
        if tensors and len(tensors["u"]) == self.updates:
            self.at, self.u = int(tensors["at"]), tensors["u"].to(device)


def against_itself(prior: "EnergyPrior", u_0: Tensor, own: "OwnDraws | None" = None) -> tuple[Tensor, dict]:
    """The last updates: posterior u against fresh draws u^- of the prior by its exact chain, K steps from N(0, I).

        loss = mean phi(F(u^-) - F(u)) at level 0;      phi'(g) = 1, and falling as 1 / |g| beyond `CLAMPED`

    Where the two laws are one this pulls nowhere, whatever phi is, as long as phi' is even; so a draw that has run far
    away, to heights that no contrast has visited, is brought down without deciding the update alone.  One that lies
    `TRIMMED` below has been pushed down enough, by a chain that does not follow: it is left out.

    Arguments:
        u_0: posterior draws, [N, D].
        own: where the draws of the prior are from; made for this update alone when None.
    """
    prior.energy.advance()
    t = torch.zeros(len(u_0), dtype=torch.long, device=u_0.device)
    positive, _ = prior.schedule.diffuse(u_0, t)
    negative = (own or OwnDraws())(prior, u_0)
    F = prior.F(torch.cat([positive, negative]), torch.cat([t, t])) / prior.scale(torch.cat([t, t]))
    F_positive, F_negative = F.chunk(2)
    gap = F_negative - F_positive
    clamped = gap.clamp(-CLAMPED, CLAMPED) + gap.sign() * torch.relu(gap.abs() - CLAMPED).log1p()
    kept = gap > -TRIMMED
    figures = {"own_gap": gap.detach().mean(), "trimmed": 1 - kept.float().mean(), "own_std": negative.std()}
    return torch.where(kept, clamped, 0.0).mean() + prior.config.penalty * F.square().mean(), figures
