"""Priors over u, side by side on one generator.

A prior does three things: `trajectory` draws (yielding what it passes on the way), `log_density` scores, and
`loss` is what stage two minimises.  All latents are u, flat [N, D]; `hebmtool.generator` turns them into images.

    gaussian       N(0, I): the generator's own
    ebm            p(u) ~ exp(F(T(u))) N(u; 0, I): one joint EBM, short-run Langevin from the Gaussian
                   (Cui, Wu & Han 2023, https://arxiv.org/abs/2306.06323)
    diffusion-ebm  T conditional EBMs, p(u_t | u_{t+1}), learned by recovery likelihood (Algorithm 1) and sampled
                   from noise to data (Algorithm 2) (Cui & Han 2024, "HEBM", https://arxiv.org/abs/2405.13910)
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from hebmtool import recipe as recipes
from hebmtool.energy import Energy
from hebmtool.errors import UsageError
from hebmtool.generator import Generator, TopDown
from hebmtool.langevin import Held, hold, langevin, preconditioned, underdamped
from hebmtool.schedule import Schedule
from hebmtool.training import derive_seed


class Noise:
    """Standard normal noise, one independent stream per image, so that batches may be cut anywhere.

    Arguments:
        seed: of the whole set.
        indices: which images of it; image i of a seed always sees the same noise.
        D: latent dimensions.
        device: where the noise goes; it is drawn on the CPU, so a GPU sees the same.
    """

    def __init__(self, seed: int, indices: Sequence[int], D: int, device: torch.device | str = "cpu"):
        self.D, self.device = D, device
        self.streams = [torch.Generator().manual_seed(derive_seed(seed, "image", int(i))) for i in indices]

    def __len__(self) -> int:
        return len(self.streams)

    def __call__(self) -> Tensor:
        """The next draw, [N, D]."""
        return torch.stack([torch.randn(self.D, generator=g) for g in self.streams]).to(self.device)


Steps = int | Sequence[int] | None
"""Langevin steps: of every level, or of each, least noise first; the recipe's K when None."""

HeldStages = tuple[Tensor, Sequence[Tensor]]
"""Coordinates of a trajectory that follow another one: (mask, bool [D]; that trajectory's stages, [N, D] each)."""


def at(held: HeldStages | None, stage: int) -> Held | None:
    """What is held at one stage of a trajectory."""
    return None if held is None else (held[0], held[1][stage])


Condition = Callable[[TopDown, Tensor], Tensor]
"""What a condition on a label adds to F: (walk, t [N]) -> [N] (`hebmtool.labels.Condition`)."""


def log_standard_normal(u: Tensor) -> Tensor:
    """log N(u; 0, I), [N, D] -> [N] nats."""
    return -0.5 * u.square().sum(1) - 0.5 * u.shape[1] * math.log(2 * math.pi)


class Prior(nn.Module):
    """A prior over u.  This class itself is the Gaussian one, the generator's own, which needs no training.

    Arguments:
        generator: frozen; energies read T(u) through it.  It is not a submodule: a prior's checkpoint is its own.
        config: the recipe's `prior` part.
    """

    kind = "gaussian"
    needs_score = False
    """Whether `loss` wants the posterior's score at u_0."""

    def __init__(self, generator: Generator, config: recipes.Prior):
        super().__init__()
        self.config = config
        self._generator = (generator,)

    @property
    def generator(self) -> Generator:
        return self._generator[0]

    def trajectory(
        self, noise: Noise, steps: Steps = None, temperature: float = 1.0, held: HeldStages | None = None
    ) -> Iterator[Tensor]:
        """Draw, yielding every stage on the way, the last being the sample u_0 [N, D].

        Arguments:
            noise: one stream per image.
            steps: Langevin steps, of every level or of each, the recipe's K when None.
            temperature: tau > 0; samples p^(1/tau^2), 1 being the prior itself.
            held: coordinates that follow another trajectory instead, stage by stage.
        """
        yield hold(self.generator.whitened(temperature * noise()), at(held, 0))

    def stages(self, u_0: Tensor, noise: Callable[[], Tensor]) -> list[Tensor]:
        """A trajectory that ends in the given u_0 [N, D], as `trajectory` would have yielded it: what to hold on to
        when u_0 is not a draw of the prior but comes from an image."""
        return [u_0]

    def relax(
        self,
        u_0: Tensor,
        noise: Callable[[], Tensor],
        steps: int | None = None,
        temperature: float = 1.0,
        held: Held | None = None,
    ) -> Tensor:
        """Further steps of a chain on p(u_0) itself, from u_0 [N, D]; with coordinates held, on their conditional
        prior.  The Gaussian prior's coordinates are independent: there is nothing to relax."""
        return hold(u_0, held)

    def fast_steps(self) -> Steps:
        """Steps that draw much the same with fewer gradients, where levels of noise can be left out.

        Raises:
            UsageError: there is nothing this prior could do faster.
        """
        raise UsageError(
            f"--fast is for Langevin steps, and the {self.kind} prior takes none that could be left out; drop it"
        )

    def gradients(self, steps: Steps = None) -> int:
        """Gradients of F that a trajectory takes."""
        return 0

    def sample(self, noise: Noise, steps: Steps = None, temperature: float = 1.0) -> Tensor:
        """The last stage of `trajectory`: u_0, [N, D]."""
        *_, u_0 = self.trajectory(noise, steps, temperature)
        return u_0

    def log_density(self, u: Tensor, walk: TopDown | None = None) -> Tensor:
        """Log density of u [N, D] at level 0, up to a constant for energy-based priors, [N] nats; differentiable.

        Arguments:
            walk: that of u down the tower, where it is known already.
        """
        return log_standard_normal(u) - self.generator.whitening_ratio(u).sum(1)

    def loss(self, u_0: Tensor, score: Tensor | None = None) -> tuple[Tensor, dict]:
        """What stage two minimises, and figures worth logging.

        Arguments:
            u_0: posterior draws, [N, D].
            score: grad log q(u_0 | x), [N, D], where `needs_score`.
        """
        raise NotImplementedError(f"the {self.kind} prior is not trained")


class EBM(Prior):
    """p(u) ~ exp(F(T(u))) N(u; 0, I).

    Learned by maximum likelihood with short-run negatives, `loss = F(u^-) - F(u^+)`, started from N(0, I); optionally
    with a small penalty on F^2 and a margin below which the difference is turned round.
    """

    kind = "ebm"

    def __init__(self, generator: Generator, config: recipes.Prior):
        super().__init__(generator, config)
        self.energy = Energy(generator, config.energy)
        self.conditions: Sequence[Condition] = ()

    def given(self, conditions: Sequence[Condition]) -> "EBM":
        """This prior, sharing its weights, under conditions on labels: F(z, t) + sum_a w_a log p(y_a | z, t)."""
        twin = copy.copy(self)
        twin.conditions = tuple(conditions)
        return twin

    def energies(self, u: Tensor, t: Tensor | None = None, layers: int | None = None) -> Tensor:
        """f_i per image and layer, [N, L] top first.

        Arguments:
            u: [N, D].
            t: level per image, [N]; 0 when None.
            layers: only this many layers from the top.
        """
        t = torch.zeros(len(u), dtype=torch.long, device=u.device) if t is None else t
        return self.energy(self.generator.top_down(u, layers), t)[..., 0]

    def F(self, u: Tensor, t: Tensor | None = None, walk: TopDown | None = None) -> Tensor:
        """F(T(u), t), [N], with what the conditions add; `walk` as in `log_density`."""
        t = torch.zeros(len(u), dtype=torch.long, device=u.device) if t is None else t
        walk = self.generator.top_down(u) if walk is None else walk
        F = self.energy(walk, t)[..., 0].sum(1)
        for condition in self.conditions:
            F = F + self.scale(t) * condition(walk, t)
        return F

    def scale(self, t: Tensor) -> Tensor:
        """What divides F in the log density, [N]: b_t^2 for the published chain, 1 for the others."""
        if self.config.chain == "langevin":
            return torch.full((len(t),), self.config.eta, device=t.device)
        return torch.ones(len(t), device=t.device)

    def negatives(
        self,
        u_next: Tensor,
        t: Tensor,
        noise: Callable[[], Tensor],
        steps: int | None = None,
        temperature: float = 1.0,
        held: Held | None = None,
    ) -> Tensor:
        """Draw u_t by the chain of level t.

        Arguments:
            u_next: u_{t+1}, [N, D]; for `ebm`, the chain's start.
            t: level per image, long [N].
            held: coordinates the chain does not move.
        """
        a, sigma, r = self.conditional(t)
        steps = self.config.steps if steps is None else steps
        with self.energy.fixed():
            if self.config.chain == "langevin":
                b = self.scale(t).sqrt()[:, None]
                return langevin(lambda u: self.F(u, t), u_next, steps, b, a, sigma, r, noise, temperature, held)
            m = r * a * u_next
            return self._chain(t, m, sigma, steps, 1.0, noise, temperature, held)

    def _chain(self, t: Tensor, m: Tensor, sigma: Tensor, steps: int, shorter: float, *more, **keys) -> Tensor:
        """The preconditioned or the underdamped chain, on exp(F(T(u), t)) N(u; m, sigma^2), the weight of F's gradient
        in a step being `shorter` times the recipe's."""
        if self.config.chain == "preconditioned":
            h = -math.log1p((math.exp(-self.config.h) - 1) * shorter)
            return preconditioned(lambda u: self.F(u, t), m, sigma, steps, h, *more, **keys)
        theta, persistence = self.config.theta * math.sqrt(shorter), self.config.persistence
        return underdamped(lambda u: self.F(u, t), m, sigma, steps, theta, persistence, *more, **keys)

    def relax(
        self,
        u_0: Tensor,
        noise: Callable[[], Tensor],
        steps: int | None = None,
        temperature: float = 1.0,
        held: Held | None = None,
    ) -> Tensor:
        """The chain of level 0 without its recovery term: p(u) ~ exp(F(T(u), 0) / scale) N(u; 0, I), from u_0."""
        t = torch.zeros(len(u_0), dtype=torch.long, device=u_0.device)
        one = torch.ones(len(u_0), 1, device=u_0.device)
        steps = self.config.steps if steps is None else steps
        with self.energy.fixed():
            if self.config.chain == "langevin":
                b, free = self.scale(t).sqrt()[:, None], 0 * one
                return langevin(lambda u: self.F(u, t), u_0, steps, b, free, one, free, noise, temperature, held)
            # N(0, I) is wider than level 0's Gaussian conditional; F, learned under that one, gets steps no longer.
            _, sigma, _ = self.conditional(t[:1])
            shorter = float(sigma.square().sum()) or 1.0
            return self._chain(t, 0 * u_0, one, steps, shorter, noise, temperature, held, start=u_0)

    def conditional(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(a, sigma, r), each [N, 1], of the Gaussian conditional that F tilts: here N(0, I) itself."""
        one = torch.ones(len(t), 1, device=t.device)
        return 0 * one, one, 0 * one

    def _pairs(self, u_0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(positives u_t, u_{t+1}, t) for posterior draws u_0."""
        t = torch.zeros(len(u_0), dtype=torch.long, device=u_0.device)
        return u_0, torch.randn_like(u_0), t

    def loss(self, u_0: Tensor, score: Tensor | None = None) -> tuple[Tensor, dict]:
        objectives = {"nce": self.noise_contrast, "cnce": self.conditional_noise_contrast, "recovery": self.recovery}
        return objectives[self.config.objective](u_0)

    def noise_contrast(self, u_0: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Noise-contrastive estimation: F learns, by logistic regression, to tell u from draws of N(0, I).

        Its optimum is F = log q(u) / N(u; 0, I), which makes exp(F) N(u; 0, I) the aggregate posterior (at level t of
        the diffusion: that of u_t).  No chain is run ("A Contrastive Learning Approach for Training Variational
        Autoencoder Priors", Aneja et al. 2021, https://arxiv.org/abs/2010.02917).
        """
        self.energy.advance()
        positive, _, t = self._pairs(u_0)
        F_positive, F_negative, size = self._contrasted(positive, torch.randn_like(positive), t)
        loss = softplus(-F_positive).mean() + softplus(F_negative).mean()
        right = 0.5 * ((F_positive > 0).float().mean() + (F_negative < 0).float().mean())
        # The mean of F at the positives is the hole found so far, in nats.
        figures = {"nats": F_positive.mean().item(), "accuracy": right.item()}
        return loss + self.config.penalty * size, figures

    def conditional_noise_contrast(self, u_0: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Conditional noise-contrastive estimation: F learns which of u and a noisier copy of it came first.

        The copy is u' = rho u + sqrt(1 - rho^2) eps, rho ~ U(0, 1) per image.  This kernel is reversible under
        N(0, I), so the odds of (u, u') against (u', u) are exp(F(u) - F(u')) at the same optimum as
        `noise_contrast`, up to a constant.  Against draws of N(0, I) alone the copies near u teach F its slope where
        a chain at data runs (Ceylan & Gutmann 2018, https://arxiv.org/abs/1806.03664).
        """
        self.energy.advance()
        positive, _, t = self._pairs(u_0)
        rho = torch.rand(len(u_0), 1, device=u_0.device)
        negative = rho * positive + (1 - rho.square()).sqrt() * torch.randn_like(positive)
        F_positive, F_negative, size = self._contrasted(positive, negative, t)
        gap = F_negative - F_positive
        figures = {"gap": gap.mean().item(), "accuracy": (gap < 0).float().mean().item()}
        return softplus(gap).mean() + self.config.penalty * size, figures

    def _contrasted(self, positive: Tensor, negative: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """F / scale at positives and at negatives, [N] each, and its mean square over both."""
        F = self.F(torch.cat([positive, negative]), torch.cat([t, t])) / torch.cat([self.scale(t)] * 2)
        return *F.chunk(2), F.square().mean()

    def recovery(self, u_0: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Maximum likelihood with short-run negatives: F(u^-) - F(u^+)."""
        self.energy.advance()
        positive, u_next, t = self._pairs(u_0)
        negative = self.negatives(u_next, t, lambda: torch.randn_like(u_0))
        both = self.F(torch.cat([positive, negative]), torch.cat([t, t]))
        F_positive, F_negative = both.chunk(2)
        scale = self.scale(t)
        gap = (F_negative - F_positive) / scale
        loss = gap.mean()
        if self.config.margin:
            # Negatives far less likely than their positives mean that F has grown too steep for the chain's step,
            # which then overshoots; pushing them further down would make it worse, so turn round.
            loss = loss + 2 * torch.relu(-self.config.margin - gap).mean()
        penalty = (both / torch.cat([scale, scale])).square().mean()
        figures = {
            "gap": gap.mean().item(),
            "overshot": (gap < -self.config.margin).float().mean().item() if self.config.margin else 0.0,
            "energy_positive": F_positive.mean().item(),
            "energy_negative": F_negative.mean().item(),
            "negative_std": negative.std().item(),
            "positive_std": positive.std().item(),
        }
        return loss + self.config.penalty * penalty, figures

    def trajectory(
        self, noise: Noise, steps: Steps = None, temperature: float = 1.0, held: HeldStages | None = None
    ) -> Iterator[Tensor]:
        u = hold(temperature * noise(), at(held, 0))
        yield u
        t = torch.zeros(len(u), dtype=torch.long, device=u.device)
        yield self.negatives(u, t, noise, steps, temperature, at(held, 1))

    def fast_steps(self) -> Steps:
        return None  # there are no levels to leave out

    def gradients(self, steps: Steps = None) -> int:
        return self.config.steps if steps is None else steps

    def stages(self, u_0: Tensor, noise: Callable[[], Tensor]) -> list[Tensor]:
        return [u_0, u_0]

    def log_density(self, u: Tensor, walk: TopDown | None = None) -> Tensor:
        t = torch.zeros(len(u), dtype=torch.long, device=u.device)
        return self.F(u, walk=walk) / self.scale(t) + log_standard_normal(u)


class DiffusionEBM(EBM):
    """Conditional EBMs over the levels of `hebmtool.schedule`.

    `loss` is Algorithm 1: (u_t, u_{t+1}) at a random t per image, negatives by K Langevin steps from u_{t+1}.
    `trajectory` is Algorithm 2: u_T ~ N(0, I), then each level's chain in turn.
    """

    kind = "diffusion-ebm"

    def __init__(self, generator: Generator, config: recipes.Prior):
        super().__init__(generator, config)
        self.schedule = Schedule(config.levels)

    def scale(self, t: Tensor) -> Tensor:
        if self.config.chain != "langevin":
            return super().scale(t)
        s = self.schedule
        b_squared = self.config.eta * s.sbar[:-1] / s.sbar[0] * s.sigma[1:].square()
        return b_squared.float().to(t.device)[t]

    def conditional(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        s = self.schedule
        top = (t == s.T - 1)[:, None]
        a, sigma = (c.float().to(t.device)[t + 1][:, None] for c in (s.a, s.sigma))
        if self.config.chain != "langevin":
            # With nothing to recover from, the top level's Gaussian is N(0, I) itself.
            sigma = torch.where(top, 1.0, sigma)
        return a, sigma, (~top).float()

    def _pairs(self, u_0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        t = self.levels(len(u_0)).to(u_0.device)
        u_t, u_next = self.schedule.diffuse(u_0, t)
        return u_t, u_next, t

    def levels(self, n: int) -> Tensor:
        """Levels to learn on, long [n]: floor(T U^p), U uniform on [0, 1), p being `level_power`."""
        return (self.schedule.T * torch.rand(n).pow(self.config.level_power)).long().clamp(max=self.schedule.T - 1)

    @property
    def needs_score(self) -> bool:
        return self.config.objective == "score-matching"

    def loss(self, u_0: Tensor, score: Tensor | None = None) -> tuple[Tensor, dict]:
        return self.score_matching(u_0, score) if self.needs_score else super().loss(u_0)

    def score_matching(self, u_0: Tensor, score: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Denoising score matching of the levels' marginals, p(u_t) ~ exp(F_t / b_t^2) N(u_t; 0, I).

        Level t >= 1 regresses on the score of the noise, -eps / sbar_t, weighted by sbar_t^2.  At level 0 there is next
        to no noise; the posterior's own spread takes its place, and the target is grad log q(u_0 | x).
        """
        self.energy.advance()
        t = self.levels(len(u_0)).to(u_0.device)
        abar, sbar = (c.float().to(t.device)[t][:, None] for c in (self.schedule.abar, self.schedule.sbar))
        eps = torch.randn_like(u_0)
        clean = (t == 0)[:, None]
        u = torch.where(clean, u_0, abar * u_0 + sbar * eps).requires_grad_(True)
        target, weight = torch.where(clean, score, -eps / sbar), torch.where(clean, 1.0, sbar)
        F = self.F(u, t)
        slope = torch.autograd.grad((F / self.scale(t)).sum(), u, create_graph=True)[0]
        error = (weight * (slope - u - target)).square().mean(1)
        # What predicting the Gaussian's own score would cost; the part of it that is explained is worth watching.
        baseline = (weight * (u + target)).square().mean(1).detach()
        explained = (baseline - error).detach()
        figures = {f"explained_{level}": explained[t == level].mean().item() for level in range(self.schedule.T)}
        return error.mean() + self.config.penalty * (F / self.scale(t)).square().mean(), figures

    def trajectory(
        self, noise: Noise, steps: Steps = None, temperature: float = 1.0, held: HeldStages | None = None
    ) -> Iterator[Tensor]:
        u = hold(temperature * noise(), at(held, 0))
        yield u
        yield from self.descend(u, self.schedule.T, noise, steps, temperature, held)

    def fast_steps(self) -> Steps:
        if self.config.chain == "langevin":
            raise UsageError(
                "--fast leaves out levels of noise, but the steps of the published chain (prior.chain: langevin) are "
                "what takes a level to the next; use --steps with fewer"
            )
        # Where there is much noise F says next to nothing, and the Gaussian conditional does without it.
        return self.config.fast or [self.config.steps] + [0] * (self.schedule.T - 1)

    def gradients(self, steps: Steps = None) -> int:
        return sum(self._each(steps))

    def _each(self, steps: Steps) -> Sequence[int]:
        """Steps of every level, least noise first."""
        steps = self.config.steps if steps is None else steps
        return [steps] * self.schedule.T if isinstance(steps, int) else steps

    def descend(
        self,
        u: Tensor,
        level: int,
        noise: Callable[[], Tensor],
        steps: Steps = None,
        temperature: float = 1.0,
        held: HeldStages | None = None,
    ) -> Iterator[Tensor]:
        """From u_level [N, D] down, yielding u_{level-1} ... u_0."""
        for t in reversed(range(level)):
            levels = torch.full((len(u),), t, device=u.device)
            u = self.negatives(u, levels, noise, self._each(steps)[t], temperature, at(held, self.schedule.T - t))
            yield u

    def stages(self, u_0: Tensor, noise: Callable[[], Tensor]) -> list[Tensor]:
        s, stages = self.schedule, [u_0]
        # u_0 plays the part of the least noisy level, as in `loss` up to a noise of 1%.
        for t in range(1, s.T + 1):
            stages.append(float(s.a[t]) * stages[-1] + float(s.sigma[t]) * noise())
        return stages[::-1]


KINDS: dict[str, type[Prior]] = {cls.kind: cls for cls in (Prior, EBM, DiffusionEBM)}


def make_prior(generator: Generator, config: recipes.Prior) -> Prior:
    """The prior a recipe's `prior` part describes, on a frozen generator."""
    return KINDS[config.kind](generator, config).to(generator.constant.device)
