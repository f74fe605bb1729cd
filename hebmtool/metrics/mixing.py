"""Langevin diagnostics: what the chains of an energy-based prior do, as they do it when sampling.

Every gradient that a chain takes is told to a recorder that watches it; the chain itself is untouched.

* **Reverse trajectory**: at each step G = F(T(u), t) / scale, the energy of level t's conditional

      E(u) = -G + ||u - a u_{t+1}||^2 / (2 sigma^2)          (a = 0, sigma = 1 where there is nothing to recover from)

  and ||grad G||.  The chains run a fixed number of steps and refuse none, so these must say whether they run well.
* **Long run**: the same trajectories with ten times the steps per level.  A chain that samples its law keeps mean G
  and the spread of u; one whose energy has modes that short runs never reach, or whose step is too long, drifts.
  Mean G on posterior u is what both should have, for at the optimum of maximum likelihood the two means are equal.
* **Autocorrelation** along one long chain of level 0 (`Prior.refine`), of G and of u by layer, and the integrated
  autocorrelation time tau = 1 + 2 sum_k rho(k): a draw as good as independent takes about tau steps.  rho is about the
  mean over all chains, so that chains stuck in different places do not look mixed; the sum stops at the first window
  W >= 5 max(tau(W), 1) (Sokal 1997, "Monte Carlo Methods in Statistical Mechanics").

A chain may be stable, mix well and still sample another law, where its step is too long for the energy.  What its mean
G is then short of is `hebmtool.metrics.two_sample`'s energy gap, which closes under a Metropolis test.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hebmtool.console import progress
from hebmtool.metrics.figures import Figure
from hebmtool.noise import Noise, derive_seed
from hebmtool.prior import Prior

LONGER = 10
COORDINATES = 32  # of u per layer, evenly spaced, whose autocorrelation is taken
WINDOW = 5.0
BOOTSTRAPS = 100


# Recording ------------------------------------------------------------------------------------------------------------


@dataclass
class Trace:
    """What a chain met, a row per gradient: G, energy, slope (||grad G||), norm (||u||^2 / D), [S, N] each; level, [S];
    u: the coordinates followed, [S, N, c], if any; taken: who was, of each tested move, bool [moves, N], if any."""

    G: Tensor
    energy: Tensor
    slope: Tensor
    norm: Tensor
    level: Tensor
    u: Tensor | None
    taken: Tensor | None = None


class Recorder:
    """Collects a row per gradient that a draw takes of the prior; `watch` is what draws are given to tell it.

    `u_next` is u_{t+1} while a level of a trajectory runs.
    """

    def __init__(self, prior: Prior, coordinates: Tensor | None = None):
        self.prior, self.coordinates = prior, coordinates
        self.u_next: Tensor | None = None
        self.rows: list[dict[str, Tensor]] = []
        self.taken: list[Tensor] = []

    def watch(self, t: int, u: Tensor, G: Tensor, slope: Tensor, taken: Tensor | None) -> None:
        m, sigma = 0.0, 1.0
        if self.u_next is not None and not (t == 0 and self.prior.ends_on_marginal):
            a, sigma = self.prior.schedule.conditional(torch.full((len(u),), t, device=u.device))
            m = a * self.u_next
        row = {"G": G, "energy": 0.5 * ((u - m) / sigma).square().sum(1) - G, "slope": slope.norm(dim=1)}
        row |= {"norm": u.square().mean(1), "level": torch.tensor(t)}
        if self.coordinates is not None:
            row["u"] = u[:, self.coordinates]
        self.rows.append(row)
        if taken is not None:
            self.taken.append(taken)

    def trace(self) -> Trace:
        def column(key: str) -> Tensor:
            return torch.stack([row[key] for row in self.rows]).cpu()

        u = column("u") if self.coordinates is not None else None
        taken = torch.stack(self.taken).cpu() if self.taken else None
        return Trace(column("G"), column("energy"), column("slope"), column("norm"), column("level"), u, taken)


def trajectory(prior: Prior, noise: Noise, steps: int) -> tuple[Trace, Tensor]:
    """A trace of the prior's own way of sampling, and the u_0 [N, D] it came to."""
    recorder = Recorder(prior)
    for u in prior.trajectory(noise, steps, watch=recorder.watch):
        # What comes next runs given this.
        recorder.u_next = u
    return recorder.trace(), u


# Autocorrelation ------------------------------------------------------------------------------------------------------


def autocovariance(x: Tensor) -> Tensor:
    """Of each chain of series x [S, N] or [S, N, c], [S, N] float64: about the mean over all chains, in units of the
    variance over all of them, averaged over the c coordinates.  Its mean over chains is rho(k), k = 0 .. S - 1."""
    x = x.double() - x.double().mean((0, 1))
    S = len(x)
    spectrum = torch.fft.rfft(x, n=2 * S, dim=0)
    covariance = torch.fft.irfft(spectrum.abs().square(), n=2 * S, dim=0)[:S]
    covariance = covariance / torch.arange(S, 0, -1).reshape(-1, *[1] * (x.ndim - 1))
    covariance = covariance / covariance[0].mean(0).clamp(min=1e-300)
    return covariance if x.ndim == 2 else covariance.mean(2)


def autocorrelation_time(rho: Tensor) -> tuple[float, bool]:
    """(tau, whether the series was long enough to tell): the first window W >= 5 tau(W) within half of rho [S]."""
    tau = 2 * rho.cumsum(0) - 1
    windows = torch.arange(len(rho))
    enough = (windows >= WINDOW * tau.clamp(min=1)) & (windows < len(rho) // 2)
    if not enough.any():
        return tau[len(rho) // 2].item(), False
    # Anticorrelated series can come out below what a sum of so few terms can tell.
    return max(tau[int(torch.nonzero(enough)[0])].item(), 1 / len(rho)), True


# Diagnostics ----------------------------------------------------------------------------------------------------------


@dataclass
class Diagnostics:
    """Traces of a prior's chains: `short` and `long` trajectories (K and 10 K steps a level) with the u_0 they came to,
    `relaxed` a long chain of level 0, `layers` saying which of its coordinates are each layer's; `posterior`: G on
    posterior u, [M]."""

    prior: Prior
    steps: int
    short: Trace
    long: Trace
    short_u: Tensor
    long_u: Tensor
    short_G: Tensor
    long_G: Tensor
    relaxed: Trace
    layers: list[Tensor]
    posterior: Tensor


@torch.no_grad()
def diagnose(
    prior: Prior, posterior_u: Tensor, images: int = 24, steps: int | None = None, chain: int = 300, seed: int = 0
) -> Diagnostics:
    """Watch a prior's chains as they draw, short and long, and one long chain of level 0.

    Arguments:
        posterior_u: draws of the aggregate posterior, [M, D].
        images: trajectories, and chains of level 0.
        steps: K, the prior's own when None.
        chain: steps of the long chain of level 0, which starts at samples; a fifth of them more come first, unrecorded.
    """
    generator, K = prior.generator, prior.K if steps is None else max(steps, 1)
    device = generator.device

    def noise(what: str) -> Noise:
        return Noise(derive_seed(seed, what), range(images), generator.D, device)

    followed = [
        torch.linspace(s.start, s.stop - 1, min(COORDINATES, s.stop - s.start)).long() for s in generator.slices
    ]
    layers = list(torch.arange(sum(map(len, followed))).split([len(each) for each in followed]))
    with progress("running chains", 3) as bar:
        short, short_u = trajectory(prior, noise("chains"), K)
        bar.advance()
        long, long_u = trajectory(prior, noise("chains"), LONGER * K)
        bar.advance()
        recorder = Recorder(prior, torch.cat(followed).to(device))
        prior.refine(short_u, noise("relax"), chain + chain // 5, watch=recorder.watch)
        bar.advance()
    relaxed = recorder.trace()
    relaxed = Trace(*(None if part is relaxed.taken else part[chain // 5 :] for part in vars(relaxed).values()))
    posterior, short_G, long_G = (
        torch.cat([prior.log_tilt(u).cpu() for u in us.split(100)]) for us in (posterior_u, short_u, long_u)
    )
    return Diagnostics(prior, K, short, long, short_u.cpu(), long_u.cpu(), short_G, long_G, relaxed, layers, posterior)


def _spread(u: Tensor) -> Tensor:
    """Root mean square of each image's coordinates, [N]: 1 for a standard normal."""
    return u.square().mean(1).sqrt()


def figures(d: Diagnostics) -> list[Figure]:
    """Mean G and spread of u at K and 10 K steps, their drift, slopes, and autocorrelation times."""
    prior, of, found = d.prior, d.prior.kind, []
    n = len(d.short_G)

    def add(name: str, values: Tensor, note: str, layer: int | None = None) -> None:
        values = values.double()
        error = values.std().item() / math.sqrt(len(values))
        found.append(Figure(name, values.mean().item(), error, of, None, layer, note))

    K, more = d.steps, LONGER * d.steps
    add("G on the posterior", d.posterior, f"nats; F / scale at level 0, {len(d.posterior)} posterior draws")
    add(f"G at {K} steps", d.short_G, f"nats; at u_0, {n} trajectories of {K} steps a level; should be the posterior's")
    add(f"G at {more} steps", d.long_G, f"nats; at u_0, the same from the same u_T with {more} steps a level")
    add(
        "G drift",
        d.long_G - d.short_G,
        f"nats; {more} steps less {K}, the same trajectories; 0 where the chain is stable",
    )
    add(f"RMS of u at {K} steps", _spread(d.short_u), "1 for a standard normal")
    add(f"RMS of u at {more} steps", _spread(d.long_u), "1 for a standard normal")
    add("RMS drift", _spread(d.long_u) - _spread(d.short_u), f"{more} steps less {K}; 0 where the chain is stable")
    for level in sorted(set(d.short.level.tolist())):
        slopes = d.short.slope[d.short.level == level].mean(0)
        add(f"gradient norm, level {level}", slopes, f"mean ||grad G|| over {K} steps; no step is refused")

    S, chains = d.relaxed.G.shape
    found.append(_time("autocorrelation time, G", d.relaxed.G, of, None))
    for l, columns in enumerate(d.layers):
        series = d.relaxed.u[..., columns]
        found.append(_time("autocorrelation time", series, of, prior.generator.layer_number(l)))
    return found


def _time(name: str, series: Tensor, of: str, layer: int | None) -> Figure:
    S, chains = series.shape[:2]
    each = autocovariance(series)
    tau, resolved = autocorrelation_time(each.mean(1))
    rng = np.random.default_rng(0)
    again = []
    for _ in range(BOOTSTRAPS):
        rho = each[:, torch.from_numpy(rng.integers(chains, size=chains))].mean(1)
        again.append(autocorrelation_time(rho / rho[0])[0])
    note = f"steps of level 0's chain; {chains} chains of {S} steps, error by bootstrap over chains"
    if not resolved:
        note += "; the chains are too short to tell: at least this"
    return Figure(name, tau, float(np.std(again, ddof=1)), of, "lower", layer, note)
