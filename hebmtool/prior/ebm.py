"""Energy-based priors over u.

    ebm            p(u) ~ exp(F(T(u))) N(u; 0, I): one joint EBM, short-run Langevin from the Gaussian
                   (Cui, Wu & Han 2023, https://arxiv.org/abs/2306.06323)
    diffusion-ebm  T conditional EBMs, p(u_t | u_{t+1}), learned by recovery likelihood (Algorithm 1) and sampled
                   from noise to data (Algorithm 2) (Cui & Han 2024, "HEBM", https://arxiv.org/abs/2405.13910)

Both are one thing: level t's density is exp(F(T(u), t) / scale_t) times a Gaussian (`Schedule.conditional`), and a draw
goes down the levels, of which a joint EBM has one.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Self

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from hebmtool import ranks, rows
from hebmtool import recipe as recipes
from hebmtool.chains import Chain, Held, hold, make_chain, value_and_gradient
from hebmtool.chains import Watch as ChainWatch
from hebmtool.chains.hybrid import ADAPTING, GAIN, KICKS, MOVES, longer
from hebmtool.compute import Replays, compiled, is_fusing, kept
from hebmtool.errors import UsageError, did_you_mean
from hebmtool.generator import Generator, TopDown
from hebmtool.noise import Noise, derive_seed
from hebmtool.prior.base import Condition, Eps, HeldStages, Prior, Steps, Watch, at
from hebmtool.prior.energy import Energy, chosen_layers
from hebmtool.prior.itself import KeptChains, OwnDraws, against_itself
from hebmtool.prior.objectives import BRIDGES, OBJECTIVES, RUN_CHAINS
from hebmtool.prior.schedule import Schedule
from hebmtool.recipe.mistakes import sentence

SAMPLER = ("chain", "steps", "eta", "h", "theta", "persistence", "renew")
"""Keys of the recipe's `prior` part that say how a prior is drawn from, and nothing else where no chain taught F."""


class EnergyPrior(Prior):
    """What energy-based priors share; `config` is the recipe's `prior` part.  chain: what it is drawn with.
    learned_with: the chain in whose scale F was learned.  network: what an f_i is, where the recipe has no choice.
    """

    network: type[nn.Module] | None = None

    def __init__(self, generator: Generator, config: recipes.Prior, schedule: Schedule):
        super().__init__(generator)
        self.config, self.schedule, self.K = config, schedule, config.steps
        chosen = chosen_layers(generator, config.energy.layers, "prior.energy.layers")
        self.energy = Energy(generator, config.energy, chosen=chosen, network=self.network)
        self.chain: Chain = make_chain(config)
        self.learned_with: Chain = self.chain
        self.conditions: Sequence[Condition] = ()
        self.replays = Replays()

    @property
    def T(self) -> int:
        return self.schedule.T

    @property
    def highest(self) -> int:
        whitened = self.generator.whitening is not None
        return super().highest if whitened else self.generator.layer_number(min(self.energy.chosen))

    @property
    def ends_on_marginal(self) -> bool:
        """An exact chain needs no Gaussian to stay near; but F that chains from u_1 have learned is drawn from u_1."""
        return self.chain.exact and not self.config.conditional and self.config.objective not in RUN_CHAINS

    def given(self, conditions: Sequence[Condition]) -> Self:
        self._settle_steps()
        return self._twin(conditions=tuple(conditions))

    def using(self, **sampler) -> Self:
        for key in sampler:
            if key not in SAMPLER:
                allowed = ", ".join(SAMPLER)
                raise UsageError(f"a chain has no setting {key}; choose of {allowed}{did_you_mean(key, SAMPLER)}")
        try:
            config = recipes.Prior.model_validate(self.config.model_dump() | sampler)
        except ValidationError as error:
            raise UsageError(sentence(error.errors()[0], sampler, recipes.Prior)) from None
        chain = make_chain(config)
        if chain.exact and "theta" in sampler:
            chain = chain.stepping(self._angles(config.theta))
        elif chain == self.chain:
            chain = self.chain
        return self._twin(chain=chain, K=config.steps)

    # Steps of an exact chain

    def stepping(self, theta: Sequence[float] | float | None) -> None:
        if self.chain.exact:
            self.chain = self.chain.stepping(self._angles(self.config.theta if theta is None else theta))
            if theta is None:
                self._adapt()

    @property
    def steps(self) -> list[float] | None:
        return self.chain.by_level.tolist() if self.chain.exact and self.chain.by_level is not None else None

    def _settle_steps(self) -> None:
        if self.chain.exact and self.chain.by_level is None:
            self.stepping(None)

    def _adapt(self) -> None:
        """Adapt the exact chain's steps to the energies alone, until about `chains.hybrid.ACCEPTED` of the moves are
        taken: on trajectories of a seed of their own, whose moves each lengthen or shorten the steps of their level
        (Robbins & Monro 1951), less and less, from those that the chain has."""
        counts = torch.zeros(self.T)
        theta = self.chain.by_level

        def lengthen(t: int, u: Tensor, G: Tensor, slope: Tensor, taken: Tensor | None) -> None:
            if taken is not None:
                counts[t] += 1
                theta[t] = longer(theta[t], taken.float().mean(), float(counts[t]) ** -0.5)

        device = self.generator.device
        noise = Noise(derive_seed("steps"), range(ADAPTING), self.generator.D, device)
        for _ in self._twin(conditions=()).trajectory(noise, 1 + KICKS * MOVES, watch=lengthen):
            pass

    def _lengthening(self, t: Tensor) -> ChainWatch:
        """The same of chains at levels t [N], a little at each move, on the device."""
        theta = self.chain.by_level

        def watch(u: Tensor, F: Tensor, slope: Tensor, taken: Tensor | None) -> None:
            if taken is not None:
                seen = torch.stack([torch.ones_like(taken), taken]).to(theta.dtype)
                counts, hits = ranks.total(theta.new_zeros(2, self.T).index_add_(1, t, seen))
                theta.copy_(longer(theta, hits / counts.clamp(min=1), GAIN).where(counts > 0, theta))

        return watch

    def _angles(self, theta: float | Sequence[float]) -> Tensor:
        device = self.generator.device
        if isinstance(theta, float):
            return torch.full((self.T,), theta, device=device)
        return torch.tensor(theta, device=device)

    # F

    def _f(self, walk: TopDown, t: Tensor) -> Tensor:
        """f_i at levels t [N], by layer, [N, layers]: what the networks say there, or where they say the log ratios of
        adjacent levels, those from there up together."""
        f = self.energy.by_layer(walk, t)
        if self.config.objective not in BRIDGES:
            return f
        for there in (t + above for above in range(1, self.T)):
            more = self.energy.by_layer(walk, there.clamp(max=self.T - 1))
            f = f + torch.where(there[:, None] < self.T, more, 0.0)
        return self.scale(t)[:, None] * f

    def bridge(self, u: Tensor, t: Tensor) -> Tensor:
        """What the networks say at levels t [N] alone, nats [N]: log p(u_t) / p(u_{t+1}) where they bridge levels."""
        return self.energy(self.generator.walk(u), t)[..., 0].sum(1)

    def energies(self, u: Tensor, t: Tensor | None = None, layers: int | None = None) -> Tensor:
        """f_i per image and layer, [N, L] top first.

        Arguments:
            u: [N, D].
            t: level per image, [N]; 0 when None.
            layers: only this many layers from the top.
        """
        t = self._level(u, 0) if t is None else t
        return self._f(self.generator.walk(u, layers), t)

    def F(self, u: Tensor, t: Tensor | None = None, walk: TopDown | None = None) -> Tensor:
        """F(T(u), t), [N], with what the conditions add; `walk` as in `log_tilt`."""
        t = self._level(u, 0) if t is None else t
        walk = self.generator.walk(u) if walk is None else walk
        F = self._f(walk, t).sum(1)
        for condition in self.conditions:
            F = F + self.scale(t) * condition(walk, t)
        return F

    def scale(self, t: Tensor) -> Tensor:
        """What divides F in the log density, [N]: b_t^2 for the published chain, 1 for the others."""
        return self.learned_with.scale(self.schedule, t)

    def log_ratio(self, u: Tensor, t: int = 0, layers: int | None = None) -> Tensor:
        f = self.energies(u, self._level(u, t), layers) / self.scale(self._level(u[:1], t))
        return f + self.generator.whitening_ratio(u)[:, : f.shape[1]]

    def log_tilt(self, u: Tensor, t: int = 0, walk: TopDown | None = None) -> Tensor:
        level = self._level(u, t)
        return self.F(u, level, walk) / self.scale(level)

    @staticmethod
    def _level(u: Tensor, t: int) -> Tensor:
        return torch.full((len(u),), t, dtype=torch.long, device=u.device)

    # Drawing

    def slope(self, t: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """F at levels t [N] and its gradient, in the scale of the chain in use; on CUDA replayed from a graph, unless
        conditions add what may not be captured."""
        F = compiled(self.F) if is_fusing() else self.F

        def found(u: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            same = self.chain == self.learned_with
            ratio = 1 if same else self.chain.scale(self.schedule, t) / self.scale(t)
            return value_and_gradient(lambda u: ratio * F(u, t), u)

        if not t.is_cuda or is_fusing() or self.conditions:
            return lambda u: kept(found(u, t))
        key = self.chain, id(self.generator), len(t), self.energy.places()
        return lambda u: self.replays(found, key, u, t)

    def _watched(self, watch: Watch | None, t: Tensor) -> ChainWatch | None:
        """`watch` told in nats, of level t."""
        if watch is None:
            return None
        scale, level = self.chain.scale(self.schedule, t), int(t[0])
        return lambda u, F, slope, taken: watch(level, u, F / scale, slope / scale[:, None], taken)

    def negatives(
        self,
        u_next: Tensor,
        t: Tensor,
        eps: Eps,
        K: int | None = None,
        tau: float = 1.0,
        held: Held | None = None,
        watch: Watch | None = None,
        learning: bool = False,
    ) -> Tensor:
        """Draw u_t by the chain of level t.

        Arguments:
            u_next: u_{t+1}, [N, D].
            t: level per image, long [N].
            held: coordinates the chain does not move.
            learning: lengthen or shorten an exact chain's steps by what is taken, as the energies change.
        """
        K = self.K if K is None else K
        if learning and self.chain.exact and self.chain.by_level is None:
            self.stepping(self.config.theta)
        told = self._lengthening(t) if learning and self.chain.exact else self._watched(watch, t)
        with self.fixed():
            return self.chain(self.slope(t), u_next, self.schedule, t, K, eps, tau, held, told)

    def refine(
        self,
        u_0: Tensor,
        eps: Eps,
        K: int | None = None,
        tau: float = 1.0,
        held: Held | None = None,
        watch: Watch | None = None,
        learning: bool = False,
    ) -> Tensor:
        """As `Prior.refine`, by level 0's chain without its recovery term.  `learning` as in `negatives`."""
        self._settle_steps()
        t, K, chain = self._level(u_0, 0), self.K if K is None else K, self.chain
        if chain.exact and self.config.conditional:  # its steps are for p(u_0 | u_1), of which sigma_1 is the unit
            chain = chain.stepping(chain.by_level * float(self.schedule.sigma[1]))
        told = self._lengthening(t) if learning and self.chain.exact else self._watched(watch, t)
        with self.fixed():
            return chain.refine(self.slope(t), u_0, self.schedule, K, eps, tau, held, told)

    def descend(
        self,
        u: Tensor,
        level: int,
        eps: Eps,
        K: Steps = None,
        tau: float = 1.0,
        held: HeldStages | None = None,
        watch: Watch | None = None,
    ) -> Iterator[Tensor]:
        """From u_level [N, D] down, yielding u_{level-1} ... u_0."""
        for t in reversed(range(level)):
            stage = at(held, self.T - t)
            u = self.negatives(u, self._level(u, t), eps, self._each(K)[t], tau, stage, watch)
            yield u

    def trajectory(
        self, eps: Eps, K: Steps = None, tau: float = 1.0, held: HeldStages | None = None, watch: Watch | None = None
    ) -> Iterator[Tensor]:
        self._settle_steps()
        u = hold(tau * eps(), at(held, 0))
        yield u
        yield from self.descend(u, self.T, eps, K, tau, held, watch)

    def _each(self, K: Steps) -> Sequence[int]:
        """Steps of every level, least noise first."""
        K = self.K if K is None else K
        return [K] * self.T if isinstance(K, int) else K

    def gradients(self, K: Steps = None) -> int:
        return sum(self._each(K))

    # Learning

    def pairs(self, u_0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(positives u_t, u_{t+1}, t [N]) for posterior draws u_0 [N, D], at levels to learn on."""
        raise NotImplementedError

    def loss(self, u_0: Tensor, x: Tensor, visible: Tensor | None = None) -> tuple[Tensor, dict]:
        return OBJECTIVES[self.config.objective](self, u_0, x)

    def finish(self, u_0: Tensor, x: Tensor, own: OwnDraws | KeptChains | None = None) -> tuple[Tensor, dict]:
        return against_itself(self, u_0, own)

    def calibrate(self, walk: TopDown) -> None:
        self.energy.calibrate(walk)

    def settle(self) -> None:
        self.energy.settle()

    def fixed(self) -> AbstractContextManager:
        return self.energy.fixed()


class JointEBM(EnergyPrior, kind="ebm"):
    """p(u) ~ exp(F(T(u))) N(u; 0, I).

    By `recovery` learned with short-run negatives that start from N(0, I).

    As published the chain is `unscaled`, the energies have LeakyReLU and no spectral norm, and on CelebA-HQ-256 K = 10
    and s = 1e-5.  The published target in u-space is exp(F(T(u))) p_0(T(u)), with p_0 the density of z: it lacks the
    Jacobian of T.  log p_0(T(u)) = log N(u; 0, I) - sum log sigma_i, and sum log sigma_i is log |det dT/du|; with it
    the density of u is the one above, which this one is drawn from and learned with.
    """

    def __init__(self, generator: Generator, config: recipes.Prior):
        super().__init__(generator, config, Schedule.joint())

    def pairs(self, u_0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return u_0, rows.randn_like(u_0), self._level(u_0, 0)

    def stages(self, u_0: Tensor, eps: Eps) -> list[Tensor]:
        return [u_0, u_0]

    def fast_steps(self) -> Steps:
        return None  # there are no levels to leave out


class DiffusionEBM(EnergyPrior, kind="diffusion-ebm"):
    """Conditional EBMs over the levels of `hebmtool.prior.schedule`.

    `loss` is Algorithm 1: (u_t, u_{t+1}) at a random t per image, negatives by K Langevin steps from u_{t+1}.
    `trajectory` is Algorithm 2: u_T ~ N(0, I), then each level's chain in turn.

    Where layers are held, or labels asked for, the trajectory alone comes only near the conditional: u_{V,t+1} of the
    coordinates V that are free was drawn before u_{H,t} of those held was known, and a noised latent says little of
    its label.  It then ends with as many steps again on p(u_0) itself.

    An exact chain makes its steps at level 0 on p(u_0) itself anyhow, from a draw of level 0's Gaussian; one number of
    steps is of that level alone.  Not so with `prior.conditional`: on p(u_0) chains may take too long to arrive.
    """

    def __init__(self, generator: Generator, config: recipes.Prior):
        super().__init__(generator, config, Schedule(config.levels))

    def pairs(self, u_0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        t = self.levels(len(u_0), u_0.device)
        u_t, u_next = self.schedule.diffuse(u_0, t)
        return u_t, u_next, t

    def levels(self, n: int, device: torch.device | str = "cpu") -> Tensor:
        """Levels to learn on, long [n]: floor(T U^p), U uniform on [0, 1), p being `level_power`."""
        return (self.T * rows.rand(n, device=device).pow(self.config.level_power)).long().clamp(max=self.T - 1)

    def trajectory(
        self, eps: Eps, K: Steps = None, tau: float = 1.0, held: HeldStages | None = None, watch: Watch | None = None
    ) -> Iterator[Tensor]:
        lowest, *above = self._each(K)
        if self.ends_on_marginal:
            *stages, u = super().trajectory(eps, [0, *above], tau, held, watch)
            yield from stages
            yield self.refine(u, eps, lowest, tau, at(held, -1), watch)
            return
        for u in super().trajectory(eps, K, tau, held, watch):
            yield u
        if held is not None or self.conditions:
            yield self.refine(u, eps, self.gradients(K), tau, at(held, -1), watch)

    def _each(self, K: Steps) -> Sequence[int]:
        K = self.K if K is None else K
        return [K] + [0] * (self.T - 1) if isinstance(K, int) and self.ends_on_marginal else super()._each(K)

    def fast_steps(self) -> Steps:
        if not self.chain.leaves_out_levels:
            raise UsageError(
                f"drawing fast leaves out levels of noise, but the steps of the {self.chain.word} chain are what takes "
                "a level to the next; take fewer steps instead"
            )
        # Where there is much noise F says next to nothing, and the Gaussian conditional does without it.
        return self.config.fast or [self.K] + [0] * (self.T - 1)

    def stages(self, u_0: Tensor, eps: Eps) -> list[Tensor]:
        s, stages = self.schedule, [u_0]
        # u_0 plays the part of the least noisy level, as in `loss` up to a noise of 1%.
        for t in range(1, s.T + 1):
            stages.append(float(s.a[t]) * stages[-1] + float(s.sigma[t]) * eps())
        return stages[::-1]
