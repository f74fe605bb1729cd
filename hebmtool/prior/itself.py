"""The last updates of an energy-based prior, against its own draws (`train_prior.finish`)."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hebmtool import rows
from hebmtool.chains.hybrid import KICKS

if TYPE_CHECKING:
    from hebmtool.prior.ebm import EnergyPrior
    from hebmtool.recipe import TrainPrior

CLAMPED, TRIMMED = 10.0, 50.0
"""Nats between a draw of the prior and a posterior u beyond which it pulls less and less; below which not at all."""

VISIT = 1 + 2 * KICKS
"""Gradients by which a kept chain goes on: two moves."""


class OwnDraws:
    """Draws u^- ~ p(u) by the prior's exact chain, K steps from N(0, I), each for so many `updates`.

    u: [N, D], of all processes; height: F at them, less its mean at posterior u, when they were drawn, nats [N];
    age: in updates.
    """

    def __init__(self, updates: int = 1):
        self.updates, self.age = updates, updates - 1
        self.u = self.height = torch.empty(0)

    def __call__(self, prior: "EnergyPrior", u_0: Tensor) -> tuple[Tensor, Tensor | None]:
        """(u^- [n, D], height [n] or None of those just drawn) of this part (`hebmtool.rows`) for one update, like its
        posterior draws u_0."""
        part = rows.current() or rows.whole(len(u_0))
        if rows.first_turn():
            self.age = (self.age + 1) % self.updates
            if self.age == 0:
                self.u, self.height = u_0.new_zeros(part.total, u_0.shape[1]), u_0.new_zeros(part.total)
        if self.age == 0:
            u = prior.refine(rows.randn_like(u_0), lambda: rows.randn_like(u_0), learning=True)
            if self.updates == 1:
                return u, None
            with torch.no_grad(), prior.fixed():
                height = prior.log_tilt(u) - rows.mean_beside(prior.log_tilt(u_0))
            self.u[part.rows_beside], self.height[part.rows_beside] = rows.gathered(u), rows.gathered(height)
        return self.u[part.rows], self.height[part.rows] if self.age else None

    def gradients(self, K: int) -> float:
        """Of a draw in an update, in the mean."""
        return K / self.updates

    def tensors(self) -> dict[str, Tensor]:
        """What updates to come go on with; nothing where the next one draws anew."""
        if self.age == self.updates - 1:
            return {}
        return {"age": torch.tensor(self.age), "u": self.u, "height": self.height}

    def restore(self, tensors: dict[str, Tensor], device: torch.device) -> None:
        """Go on with what `tensors` gave, if anything."""
        if "age" in tensors:
            self.age = min(int(tensors["age"]), self.updates - 1)
            self.u, self.height = tensors["u"].to(device), tensors["height"].to(device)


class KeptChains:
    """Draws u^- of chains that are kept (persistent contrastive divergence, Tieleman 2008,
    https://doi.org/10.1145/1390156.1390290; some begun anew as in Du & Mordatch 2019, https://arxiv.org/abs/1903.08689).

    In a share `fresh` of the updates all are drawn by K steps from N(0, I), in the place of other chains; in the others
    they are kept ones, which go on by `VISIT` gradients.  So draws are of K gradients and more, and F learns where
    chains go on to, about which those of K alone say nothing.

    u: the chains, [size, D], of all processes, of which there are `filled`; until there are all, every draw is fresh.
    since: updates since the last fresh draws.
    """

    def __init__(self, size: int, fresh: float):
        self.size, self.every = size, round(1 / fresh)
        self.u, self.filled, self.since = torch.empty(0), 0, 0

    def __call__(self, prior: "EnergyPrior", u_0: Tensor) -> tuple[Tensor, None]:
        """(u^- [n, D], None) of this part (`hebmtool.rows`) for one update, like its posterior draws u_0."""
        part = rows.current() or rows.whole(len(u_0))
        if rows.first_turn():
            if not self.filled:
                self.u = u_0.new_zeros(self.size, u_0.shape[1])
            self.since = 0 if self.filled < self.size else (self.since + 1) % self.every
            self.before, self.filled = self.filled, min(self.filled + part.total, self.size)
        if self.before < self.size:
            place = torch.arange(self.before, self.before + part.total) % self.size
        else:
            place = torch.randperm(self.size)[: part.total]
        place = place[part.rows].to(u_0.device)
        start, K = (self.u[place], VISIT) if self.since else (rows.randn_like(u_0), None)
        u = prior.refine(start, lambda: rows.randn_like(u_0), K, learning=True)
        self.u[rows.gathered(place)] = rows.gathered(u)
        return u, None

    def gradients(self, K: int) -> float:
        """Of a draw in an update, in the mean."""
        return VISIT + (K - VISIT) / self.every

    def tensors(self) -> dict[str, Tensor]:
        """What updates to come go on with."""
        return {"chains": self.u[: self.filled], "since": torch.tensor(self.since)} if self.filled else {}

    def restore(self, tensors: dict[str, Tensor], device: torch.device) -> None:
        """Go on with what `tensors` gave, if anything."""
        if "chains" in tensors:
            kept, self.since = tensors["chains"][: self.size].to(device), int(tensors["since"])
            self.u, self.filled = kept.new_zeros(self.size, kept.shape[1]), len(kept)
            self.u[: len(kept)] = kept


def own_draws(config: "TrainPrior") -> OwnDraws | KeptChains:
    """What the last updates of a training learn against."""
    return KeptChains(config.buffer, config.fresh) if config.buffer else OwnDraws(config.redraw)


def against_itself(prior: "EnergyPrior", u_0: Tensor, own: OwnDraws | KeptChains | None = None) -> tuple[Tensor, dict]:
    """The last updates: posterior u against draws u^- of the prior by its exact chain, K steps from N(0, I).

        loss = mean w phi(F(u^-) - F(u)) at level 0;    phi'(g) = 1, and falling as 1 / |g| beyond `CLAMPED`

    Where the two laws are one this pulls nowhere, whatever phi is, as long as phi' is even; so a draw that has run far
    away, to heights that no contrast has visited, is brought down without deciding the update alone.  One that lies
    `TRIMMED` below has been pushed down enough, by a chain that does not follow: it is left out.

    Draws of earlier weights count by how much likelier they were then,

        w = min(1, p(u^-) / p_then(u^-)),    log p - log p_then ~ F(u^-) - mean F(u) less the same of then

    for log Z changes as the mean of F does: else several updates in one direction run past the goal.

    Arguments:
        u_0: posterior draws, [N, D].
        own: where the draws of the prior are from; made for this update alone when None.
    """
    prior.energy.advance()
    t = torch.zeros(len(u_0), dtype=torch.long, device=u_0.device)
    positive, _ = prior.schedule.diffuse(u_0, t)
    negative, then = (own or OwnDraws())(prior, positive)
    F = prior.F(torch.cat([positive, negative]), torch.cat([t, t])) / prior.scale(torch.cat([t, t]))
    F_positive, F_negative = F.chunk(2)
    height = F_negative.detach() - rows.mean_beside(F_positive.detach())
    weight = torch.ones_like(height) if then is None else (height - then).clamp(max=0.0).exp()
    gap = F_negative - F_positive
    clamped = gap.clamp(-CLAMPED, CLAMPED) + gap.sign() * torch.relu(gap.abs() - CLAMPED).log1p()
    kept = gap > -TRIMMED
    figures = {
        "own_gap": gap.detach().mean(),
        "trimmed": 1 - kept.float().mean(),
        "own_std": negative.std(),
        "own_weight": weight.mean(),
    }
    return (weight * torch.where(kept, clamped, 0.0)).mean() + prior.config.penalty * F.square().mean(), figures
