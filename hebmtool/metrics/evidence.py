"""Bounds on log p(x) under each prior: the ELBO, the importance-weighted bound, and what an energy's normaliser costs.

With w_k = p(x | z_k) N(u_k; 0, I) / q(u_k | x), u_k ~ q(u | x), z_k = T(u_k)  (Burda et al. 2016, "Importance Weighted
Autoencoders", https://arxiv.org/abs/1509.00519),

    ELBO   E_q[log p(x | z)] - sum_i KL_i  <=  IW-K  log 1/K sum_k w_k  <=  log p(x)

Under an energy-based prior p(u) = exp(G(u)) N(u; 0, I) / Z, G = F(T(u), 0) / scale, every w_k gains the factor
exp(G(u_k)) / Z; where latents are whitened, N(u; 0, I) is another law than the generator's own prior, and the ratio of
the two is a factor too.  The rate of a layer is KL_i, what the image tells through it under the Gaussian prior; under
an energy the rate is the sum less E_q[G] - log Z.

log Z = log E_N(0,I)[exp G] is estimated by annealed importance sampling (Neal 2001, https://arxiv.org/abs/physics/9803008)
along p_b(u) ~ exp(b G(u)) N(u; 0, I) from b = 0, the Gaussian that sampling starts from too, to b = 1.  AIS is exact
only for moves that leave p_b exactly invariant: those of `hebmtool.chains.metropolis`.  Then, with u_{k-1} moved under
b_{k-1}, E[exp(sum_k (b_k - b_{k-1}) G(u_{k-1}))] = Z, and

    forward AIS, from N(0, I):    E[log Z] <= log Z: likelihoods made with it are too high in expectation
    reverse AIS, from p(u) to N:  E[log Z] >= log Z, were its start exact draws of p(u)

(Grosse et al. 2015, "Sandwiching the marginal likelihood using bidirectional Monte Carlo",
https://arxiv.org/abs/1511.02543).  There are no exact draws of p(u): the reverse chains start from posterior u,
relaxed under p(u) itself, and their bound is as good as that start.

All this judges the density exp(F(., 0)) N / Z.  It is the law that the joint `ebm` is sampled from if its chain runs
long.  `diffusion-ebm` draws through a sequence of conditionals p(u_t | u_{t+1}), each with a normaliser that depends on
u_{t+1}; the law of its u_0 is that density only as far as the levels' energies fit one another (exp(F_{t+1}) N being
exp(F_t) N diffused by a level) and the chains are long.  Its likelihood here is that of its level 0.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hebmtool import data
from hebmtool.chains.metropolis import Density, Move, step_size
from hebmtool.console import progress
from hebmtool.metrics.figures import Figure
from hebmtool.noise import Noise, derive_seed
from hebmtool.prior import Gaussian, Prior
from hebmtool.recipe import Recipe

BATCH = 100
CHAINS = 48
TEMPERATURES = 30  # values of b above 0
BURN_IN = 20  # proposals that relax the start of the reverse chains
BOOTSTRAPS = 200


# Importance weights ---------------------------------------------------------------------------------------------------


@dataclass
class Weights:
    """Draws of q(u | x): nats per image and draw, [N, K], float64.

    log_px: log p(x | z).  log_ratio: log q(u | x) / p_0(u) at the draw, p_0 being the generator's own prior.
    tilt: log p(u) Z / p_0(u), which is G(u) where nothing is whitened (0 for p_0).  kl: KL_i averaged over the draws,
    [N, L], top first.  u: the first draw, [N, D].
    """

    log_px: Tensor
    log_ratio: Tensor
    tilt: Tensor
    kl: Tensor
    u: Tensor

    def elbo(self, log_Z: float = 0.0) -> Tensor:
        """[N] nats; with the closed form of KL_i, which varies less than the draws."""
        return (self.log_px + self.tilt).mean(1) - self.kl.sum(1) - log_Z

    def bound(self, log_Z: float = 0.0) -> Tensor:
        """The importance-weighted bound, [N] nats."""
        return log_mean_exp(self.log_px - self.log_ratio + self.tilt) - log_Z

    def effective(self) -> float:
        """Mean effective number of draws among the K."""
        return effective(self.log_px - self.log_ratio + self.tilt).mean().item()

    def without_energy(self) -> "Weights":
        """The same draws under the Gaussian prior."""
        return Weights(self.log_px, self.log_ratio, 0 * self.tilt, self.kl, self.u)


def log_mean_exp(log_w: Tensor) -> Tensor:
    """log of the mean of exp(log_w) over the last dimension."""
    return torch.logsumexp(log_w, -1) - math.log(log_w.shape[-1])


def effective(log_w: Tensor) -> Tensor:
    """Effective sample size (sum w)^2 / sum w^2 over the last dimension."""
    return torch.exp(2 * torch.logsumexp(log_w, -1) - torch.logsumexp(2 * log_w, -1))


@torch.no_grad()
def weigh(prior: Prior, images: data.Images, recipe: Recipe, n: int, draws: int, seed: int = 0) -> Weights:
    """Weights of the first n images, `draws` draws of the posterior each.

    An image is binarised or dequantised once.  Its noise depends on the seed and its index alone.
    """
    generator, n = prior.generator, min(n, len(images))
    device, parts = generator.device, []
    with progress("weighing posterior draws", n) as bar:
        for indices in torch.arange(n).split(BATCH):
            seeds = [derive_seed(seed, "read", i) for i in indices.tolist()]
            x = data.prepare_each(images.batch(indices), seeds, recipe.data, generator.likelihood.read).to(device)
            noise = Noise(derive_seed(seed, "weigh"), indices.tolist(), generator.D, device)
            log_px, log_ratio, tilt, kl, u = [], [], [], 0.0, None
            for _ in range(draws):
                posterior = generator.posterior(x, noise())
                flat = generator.latents(posterior.walk)
                u = flat if u is None else u
                log_px.append(generator.log_px(posterior.walk, x))
                log_ratio.append(posterior.log_ratio.sum(1))
                tilt.append(prior.log_ratio(flat).sum(1))
                kl = kl + posterior.kl.double() / draws
            parts.append([torch.stack(p, 1).double().cpu() for p in (log_px, log_ratio, tilt)] + [kl.cpu(), u])
            bar.advance(len(indices))
    return Weights(*(torch.cat(p) for p in zip(*parts, strict=True)))


# The normaliser -------------------------------------------------------------------------------------------------------


def anneal(move: Move, path: Sequence[float]) -> Tensor:
    """Log weights [N], float64, of chains taken along `path`, values of b, from draws of the law of the first.

    The mean of their exponentials is Z_last / Z_first, without bias.
    """
    log_w = torch.zeros(len(move.u), dtype=torch.float64, device=move.u.device)
    with progress("annealing", len(path) - 1) as bar:
        for b, following in zip(path, path[1:], strict=False):
            log_w += (following - b) * move.G_u.double()
            if following != path[-1]:
                move(following)
            bar.advance()
    return log_w.cpu()


@dataclass
class Normaliser:
    """An estimate of log Z.  log_w: of the chains, [C].  reverse: whether they ran from p(u) to the Gaussian.
    accepted: share of proposals taken."""

    log_w: Tensor
    reverse: bool
    accepted: float

    @property
    def log_Z(self) -> float:
        return (-1 if self.reverse else 1) * log_mean_exp(self.log_w).item()

    @property
    def error(self) -> float:
        """Bootstrap standard error over the chains."""
        rng = np.random.default_rng(0)
        again = torch.from_numpy(rng.integers(len(self.log_w), size=(BOOTSTRAPS, len(self.log_w))))
        return log_mean_exp(self.log_w[again]).std().item()

    @property
    def effective(self) -> float:
        return effective(self.log_w).item()


def path(temperatures: int) -> list[float]:
    """b from 0 to 1, closer at 0, where G, far from its own draws, varies most."""
    return [(k / temperatures) ** 2 for k in range(temperatures + 1)]


def forward(
    G: Density, D: int, chains: int, temperatures: int, theta: float, random: torch.Generator, device="cpu"
) -> Normaliser:
    """log Z by AIS from N(0, I): in expectation at most log Z."""
    move = Move(G, torch.randn(chains, D, generator=random).to(device), theta, random)
    log_w = anneal(move, path(temperatures))
    return Normaliser(log_w, False, move.accepted / max(move.proposed, 1))


def reverse(
    G: Density, u: Tensor, burn_in: int, temperatures: int, theta: float, random: torch.Generator
) -> Normaliser:
    """log Z by AIS from u [C, D], relaxed by `burn_in` proposals, to N(0, I): at least log Z if u is then ~ p(u)."""
    move = Move(G, u, theta, random)
    for _ in range(burn_in):
        move(1.0)
    log_w = anneal(move, path(temperatures)[::-1])
    return Normaliser(log_w, True, move.accepted / max(move.proposed, 1))


# Figures --------------------------------------------------------------------------------------------------------------


def figures(
    prior: Prior,
    test: data.Images,
    recipe: Recipe,
    images: int = 100,
    draws: int = 50,
    seed: int = 0,
    chains: int = CHAINS,
    temperatures: int = TEMPERATURES,
) -> list[Figure]:
    """Likelihood of the first test images under the Gaussian prior and, where `prior` has an energy, under it too.

    Arguments:
        draws: K.
        chains, temperatures: of annealed importance sampling.
    """
    w = weigh(prior, test, recipe, images, draws, seed)
    generator, n = prior.generator, len(w.u)
    about = f"{n} test images, K = {draws}, seed {seed}"
    gaussian = w.without_energy()
    found = _likelihood(prior, gaussian, Gaussian.kind, 0.0, 0.0, about)
    for l in range(generator.L):
        rate, error = _mean(w.kl[:, l])
        found.append(Figure("rate", rate, error, Gaussian.kind, None, generator.layer_number(l), f"nats; {about}"))
    if not prior.learned:
        return found
    kind, G = prior.kind, prior.log_tilt
    random = torch.Generator().manual_seed(derive_seed(seed, "normaliser", kind))
    start = w.u[torch.arange(chains) % n]
    with prior.fixed():
        theta = step_size(G, start, random)
        if theta is None:
            why = "no step is small enough for its Metropolis test: the energy is too steep, or not finite"
            return [*found, Figure("log Z", None, None, kind, None, None, why)]
        from_gaussian = forward(G, generator.D, chains, temperatures, theta, random, start.device)
        from_posterior = reverse(G, start, BURN_IN, temperatures, theta, random)

    def sentence(z: Normaliser, what: str) -> str:
        return (
            f"nats; {what}; {chains} chains (effective {z.effective:.1f}), {temperatures} temperatures, "
            f"{z.accepted:.0%} of the proposals accepted"
        )

    low, high = from_gaussian.log_Z, from_posterior.log_Z
    found += [
        Figure("log Z", low, from_gaussian.error, kind, note=sentence(from_gaussian, "AIS, in expectation too low")),
        Figure(
            "log Z (reverse)",
            high,
            from_posterior.error,
            kind,
            note=sentence(from_posterior, "reverse AIS from relaxed posterior u, too high if that start is p(u)'s"),
        ),
    ]
    bias = f"{about}; but for log Z by AIS, too low in expectation (with that by reverse AIS {low - high:+.2f} nats)"
    found += _likelihood(prior, w, kind, low, from_gaussian.error, bias)
    gain, error = _mean(w.bound(low) - gaussian.bound())
    error = math.hypot(error, from_gaussian.error)
    found.append(Figure("gain over gaussian", gain, error, kind, "higher", None, f"nats of IW-{draws}; {bias}"))
    return found


def _mean(values: Tensor) -> tuple[float, float | None]:
    """Mean over images and its standard error."""
    return values.mean().item(), values.std().item() / math.sqrt(len(values)) if len(values) > 1 else None


def _likelihood(prior: Prior, w: Weights, kind: str, log_Z: float, Z_error: float, about: str) -> list[Figure]:
    found, K = [], w.log_px.shape[1]
    bounds = [("ELBO", w.elbo(log_Z), ""), (f"IW-{K}", w.bound(log_Z), f"; {w.effective():.1f} draws effective")]
    # What an error of a nat is in bits per dimension.
    per_nat = abs(prior.generator.bits_per_dim(torch.ones(1)) - prior.generator.bits_per_dim(torch.zeros(1))).item()
    for name, nats, trust in bounds:
        value, error = _mean(nats)
        error = None if error is None else math.hypot(error, Z_error)
        bits = prior.generator.bits_per_dim(nats).mean().item()
        bits_error = None if error is None else error * per_nat
        found.append(Figure(name, value, error, kind, "higher", None, f"nats, a lower bound; {about}{trust}"))
        about_bits = f"an upper bound; {about}"
        found.append(Figure(f"bits/dim ({name})", bits, bits_error, kind, "lower", None, about_bits))
    rate = w.kl.sum(1) - w.tilt.mean(1) + log_Z
    value, error = _mean(rate)
    error = None if error is None else math.hypot(error, Z_error)
    found.append(Figure("rate", value, error, kind, None, None, f"nats; all layers, {about}"))
    return found
