"""Two-sample tests between the aggregate posterior and a prior in u-space: where the hole is, without image features.

A classifier learns to tell u ~ q(u) = E_x[q(u | x)] from u ~ p(u) on half of the draws of each.  Its accuracy on the
other half is 1/2 where the laws are one, and a lower bound on (1 + total variation) / 2 anywhere (Lopez-Paz & Oquab
2017, "Revisiting Classifier Two-Sample Tests", https://arxiv.org/abs/1610.06545).  Both halves take either part.

The hole lies between layers, so the classifier is made of networks as the energy has them, g_i(z_i, h_i, u_i), which
see the top-down state, and it answers once per layer, with the logit sum_{j>=i} g_j: told from the layers from the top
down to i.  By the chain rule the best such g_i is log q(u_i | u_{>i}) / p(u_i | u_{>i}), so what an answer gains over
the one above it is the hole in layer i given those above.  Another network sees layer i's u_i alone.

A prior with an energy is tested twice: as it is sampled, and with its draws moved on by `hebmtool.chains.metropolis`,
which samples exactly level 0's density exp(F(T(u), 0)) N(u; 0, I).  What the second test still finds is the energy's
doing; what only the first finds is the sampler's: steps too long or too few, or levels that do not fit together.

What a prior has learned, f_i = log p(u_i | u_{>i}) / p_0 or its energies, is a feature worth having: it was learned, on
far more draws, on what q has and N(0, I) has not.  Where there is any, g_i = a_i f_i + b_i + (a fresh network), with
a_i starting at 0.  A test without them is valid too, but finds less.  What energies say of the two laws is a figure of
its own, the energy gap E_q[f_i] - E_p[f_i]: maximum likelihood ends where it is 0; above 0, the prior's draws are less
likely under its own energies than they should be.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from hebmtool import recipe as recipes
from hebmtool.chains.metropolis import STEPS, Move, step_size
from hebmtool.console import progress
from hebmtool.errors import HebmError
from hebmtool.generator import Generator, TopDown
from hebmtool.metrics.figures import Figure
from hebmtool.noise import Noise, derive_seed
from hebmtool.prior import Gaussian, Prior
from hebmtool.prior.energy import Energy

BATCH = 100
LEAST = 20  # draws of each law
EPOCHS, LR_KNOWN, WEIGHT_DECAY = 4, 0.1, 0.1
# Fresh networks learn more where nothing is known: there they would find next to nothing otherwise, and with known
# features they would only overfit.
LR, LEAST_UPDATES = 5e-4, 40
LR_FRESH, LEAST_FRESH = 2e-3, 80
NETWORK = recipes.Energy(reads="z+state", width=16, blocks=1, readout="strided", spectral_norm=False)
PROPOSALS = 10  # of Metropolis moves from a prior's draws
BOOTSTRAPS = 20
MOMENTS = ("mean", "std", "skewness", "kurtosis", "correlation")


# Draws ----------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def prior_draws(prior: Prior, n: int, seed: int, steps: int | None = None) -> list[Tensor]:
    """Every stage of n trajectories of the prior, [n, D] each, the last being u_0."""
    batches, device = [], prior.generator.device
    with progress(f"drawing from the {prior.kind} prior", n) as bar:
        for indices in torch.arange(n).split(BATCH):
            noise = Noise(derive_seed(seed, "two-sample", prior.kind), indices.tolist(), prior.generator.D, device)
            batches.append(list(prior.trajectory(noise, steps)))
            bar.advance(len(indices))
    return [torch.cat(stage) for stage in zip(*batches, strict=True)]


def adjusted(prior: Prior, u: Tensor, seed: int) -> tuple[Tensor, str] | None:
    """u [n, D] moved on by the Metropolis-adjusted chain of level 0, and how; None where no step is short enough."""
    G, parts, accepted = prior.log_tilt, [], 0.0
    random = torch.Generator().manual_seed(derive_seed(seed, "adjusted"))
    with prior.fixed(), progress("Metropolis-adjusted draws", len(u)) as bar:
        theta = step_size(G, u[:BATCH], random)
        if theta is None:
            return None
        for batch in u.split(BATCH):
            move = Move(G, batch, theta, random)
            for _ in range(PROPOSALS):
                move(1.0)
            parts.append(move.u)
            accepted += move.accepted / PROPOSALS / len(u)
            bar.advance(len(batch))
    how = f"{PROPOSALS} proposals of {STEPS} steps of {theta:.3g} rad from the prior's draws, {accepted:.0%} accepted"
    return torch.cat(parts), how


# The test -------------------------------------------------------------------------------------------------------------


class Classifier(nn.Module):
    """Logits that u is a posterior's, [N, 2, L] top first: [:, 0] from the layers down to i, [:, 1] from u_i alone."""

    def __init__(self, generator: Generator):
        super().__init__()
        self.joint = Energy(generator, NETWORK)
        self.alone = Energy(generator, NETWORK.model_copy(update={"reads": "z"}))
        self.a, self.b = (nn.Parameter(torch.zeros(generator.L)) for _ in range(2))

    def forward(self, walk: TopDown, known: Tensor) -> Tensor:
        """
        Arguments:
            walk: T's, at u.
            known: a feature per layer, [N, L].
        """
        t = torch.zeros(len(known), dtype=torch.long, device=known.device)
        g = self.a * known + self.b + self.joint(walk, t)[..., 0]
        # What reads the u_i in the place of z_i knows nothing of the layers above.
        alone = self.alone(TopDown(z=walk.u), t)[..., 0]
        return torch.stack([g.cumsum(1), alone], dim=1)


@dataclass
class Test:
    """What a classifier answered on draws that it had not learned from.

    right: [2n, 2, L] bool, top first, the n posterior draws first.  loss: the mean logistic loss, [2, L] nats; log 2
    less it bounds the Jensen-Shannon divergence from below.  a: weights of the known features, [L].
    """

    right: Tensor
    loss: Tensor
    a: Tensor

    @property
    def accuracy(self) -> Tensor:
        """[2, L]."""
        return self.right.double().mean(0)

    @property
    def error(self) -> Tensor:
        """Binomial standard error, [2, L]."""
        accuracy = self.accuracy
        return (accuracy * (1 - accuracy) / len(self.right)).sqrt()

    def gain(self) -> tuple[Tensor, Tensor]:
        """What each layer adds to the accuracy of the layers above it (the top one: to chance), and its standard error
        over the same draws, [L] each."""
        right = self.right[:, 0].double()
        # A coin thrown knowing nothing is right half the time on each draw.
        step = torch.diff(right, dim=1, prepend=torch.full_like(right[:, :1], 0.5))
        error = step.std(0) / math.sqrt(len(step))
        return step.mean(0), error


def test(generator: Generator, q: Tensor, p: Tensor, known: tuple[Tensor, Tensor] | None = None, seed: int = 0) -> Test:
    """Tell q [n, D] from p [n, D].

    Arguments:
        generator: frozen.
        known: a feature per layer of the draws of each, ([n, L], [n, L]) top first.
        seed: of the networks and the order of learning.

    Raises:
        HebmError: too few draws, or some not finite.
    """
    n = min(len(q), len(p))
    if n < LEAST:
        raise HebmError(
            f"a two-sample test needs at least {LEAST} draws of each law, and there are {n}; take more samples"
        )
    u = torch.cat([q[:n], p[:n]])
    y = torch.cat([torch.ones(n), torch.zeros(n)]).to(u.device)
    features = u.new_zeros(2 * n, generator.L) if known is None else torch.cat([known[0][:n], known[1][:n]])
    lr, least = (LR_FRESH, LEAST_FRESH) if known is None else (LR, LEAST_UPDATES)
    if not (u.isfinite().all() and features.isfinite().all()):
        raise HebmError("a draw of the prior, or its energy, is not finite; use fewer Langevin steps, or another prior")
    centre, unit = features.mean(0), features.std(0).clamp(min=1e-12)
    features = (features - centre) / unit
    half = torch.arange(2 * n, device=u.device) % n % 2
    right = torch.empty(2 * n, 2, generator.L, dtype=torch.bool, device=u.device)
    loss, a = torch.zeros(2, generator.L, device=u.device), torch.zeros(generator.L, device=u.device)
    with torch.random.fork_rng(devices=[u.device] if u.is_cuda else []), progress("two-sample test", 2) as bar:
        for held_out in (0, 1):
            torch.manual_seed(derive_seed(seed, "classifier", held_out))
            classifier = _learn(generator, u, y, features, torch.nonzero(half != held_out)[:, 0], lr, least)
            a += classifier.a.detach() / unit / 2
            for indices in torch.nonzero(half == held_out)[:, 0].split(BATCH):
                with torch.no_grad():
                    logits = classifier(generator.walk(u[indices]), features[indices])
                truth = y[indices, None, None].expand_as(logits)
                right[indices] = (logits > 0) == (truth > 0.5)
                loss += binary_cross_entropy_with_logits(logits, truth, reduction="none").sum(0) / (2 * n)
            bar.advance()
    return Test(right.cpu(), loss.cpu(), a.cpu())


def _learn(
    generator: Generator, u: Tensor, y: Tensor, known: Tensor, those: Tensor, lr: float, least: int
) -> Classifier:
    classifier = Classifier(generator).to(u.device)
    with torch.no_grad():
        classifier.joint.calibrate(generator.walk(u[those[torch.randperm(len(those))[:256]]]))
    affine = [classifier.a, classifier.b]
    networks = [p for p in classifier.parameters() if not any(p is q for q in affine)]
    groups = [{"params": networks, "lr": lr}, {"params": affine, "lr": LR_KNOWN}]
    optimizer = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY)
    updates = max(least, math.ceil(EPOCHS * len(those) / BATCH))
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1e-3, updates)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(updates):
        if len(order) < min(BATCH, len(those)):
            order = torch.cat([order, torch.randperm(len(those))])
        indices, order = those[order[:BATCH].to(u.device)], order[BATCH:]
        with torch.no_grad():
            walk = generator.walk(u[indices])
        logits = classifier(walk, known[indices])
        loss = binary_cross_entropy_with_logits(logits, y[indices, None, None].expand_as(logits))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        decay.step()
    return classifier.eval()


# Moments --------------------------------------------------------------------------------------------------------------


def moments(u: Tensor, generator: Generator) -> Tensor:
    """How each layer's coordinates are distributed, float64 [5, L] top first, all 0 but the second in N(0, I) but for
    the noise of finite draws:

    mean, skewness: root mean square over the layer's coordinates.  std, kurtosis: their mean, the kurtosis less 3.
    correlation: the largest absolute one between two coordinates of the layer.
    """
    out = []
    for s in generator.slices:
        x = u[:, s].double()
        mean, std = x.mean(0), x.std(0, correction=0).clamp(min=1e-12)
        x = (x - mean) / std
        correlation = (x.T @ x / len(x)).fill_diagonal_(0).abs().max()
        skewness, kurtosis = x.pow(3).mean(0), x.pow(4).mean(0) - 3
        rms = [m.square().mean().sqrt() for m in (mean, skewness)]
        out.append(torch.stack([rms[0], std.mean(), rms[1], kurtosis.mean(), correlation]))
    return torch.stack(out, dim=1).cpu()


def chance(n: int, d: int) -> tuple[float, ...]:
    """`moments` of n draws of N(0, I) in d dimensions, about."""
    pairs = max(d * (d - 1) // 2, 1)
    return 1 / math.sqrt(n), 1.0, math.sqrt(6 / n), -6 / n, math.sqrt(2 * math.log(2 * pairs) / n)


def moment_figures(u: Tensor, generator: Generator, of: str, prefix: str = "") -> list[Figure]:
    """`moments` of the residuals as figures, with a bootstrap error over the draws where one can be had (a largest
    value has none)."""
    u = generator.residuals(u)
    n, rng = len(u), np.random.default_rng(0)
    again = torch.stack([moments(u[torch.from_numpy(rng.integers(n, size=n))], generator) for _ in range(BOOTSTRAPS)])
    values, errors = moments(u, generator), again.std(0)
    found = []
    for l in range(generator.L):
        d = generator.slices[l].stop - generator.slices[l].start
        expected = chance(n, d)
        for m, name in enumerate(MOMENTS):
            error = None if name == "correlation" else errors[m, l].item()
            note = f"{n} draws, {d} coordinates; independent standard normals would show about {expected[m]:.3f}"
            layer = generator.layer_number(l)
            found.append(Figure(f"{prefix}{name}", values[m, l].item(), error, of, None, layer, note))
    return found


# Figures --------------------------------------------------------------------------------------------------------------


def figures(prior: Prior, q: Tensor, about: str, seed: int = 0, steps: int | None = None) -> list[Figure]:
    """The aggregate posterior against the Gaussian prior and, where it is another, against `prior`; there `of` is the
    kind for its draws as sampled, and "KIND (adjusted)" for the Metropolis-adjusted ones.

    Where there are levels, each one's law on the way is tested too, against the posterior's u_t.

    Arguments:
        q: draws of the aggregate posterior, [n, D]; as many are made of the other laws.
        about: what they were drawn given.
        steps: Langevin steps per level, the prior's own when None.
    """
    generator, n = prior.generator, len(q)
    random = torch.Generator().manual_seed(derive_seed(seed, "gaussian"))
    gaussian = generator.whitened(torch.randn(n, generator.D, generator=random).to(q))

    found = _figures(generator, _against(prior, q, gaussian, 0, seed, own=True), Gaussian.kind, about, n, seed)
    found += moment_figures(q, generator, "generator", "posterior ")
    if not prior.learned:
        return found
    stages = prior_draws(prior, n, seed, steps)
    found += _figures(generator, _against(prior, q, stages[-1], 0, seed), prior.kind, about, n, seed)
    if prior.T:  # without an energy draws are exact already
        found += _gap(prior, q, stages[-1], prior.kind)
        exact = adjusted(prior, stages[-1], seed)
        if exact is not None:
            u, how = exact
            of = f"{prior.kind} (adjusted)"
            found += _figures(generator, _against(prior, q, u, 0, seed), of, f"{about}; {how}", n, seed)
            found += _gap(prior, q, u, of)
    if prior.T > 1:
        noise = Noise(derive_seed(seed, "diffuse"), range(n), generator.D, q.device)
        for t, (u_t, drawn) in enumerate(zip(prior.stages(q, noise)[::-1], stages[::-1], strict=True)):
            if 0 < t < prior.T:  # u_T is drawn from N(0, I) outright
                tested = _against(prior, u_t, drawn, t, seed)
                value, error = tested.accuracy[0, -1].item(), tested.error[0, -1].item()
                note = _note(about, n, seed)
                found.append(Figure(f"two-sample accuracy, level {t}", value, error, prior.kind, "lower", None, note))
    return found + moment_figures(stages[-1], generator, prior.kind)


@torch.no_grad()
def _known(prior: Prior, u: Tensor, t: int, own: bool = False) -> Tensor:
    """What the prior knows of every layer at level t, [N, L] nats: log ratios, to the generator's own prior if `own`,
    else to N(0, I) in u's coordinates, that is F / scale."""
    ratio = torch.cat([prior.log_ratio(b, t) for b in u.split(BATCH)])
    return ratio if own or prior.generator.whitening is None else ratio - prior.generator.whitening_ratio(u)


def _against(prior: Prior, q: Tensor, p: Tensor, t: int, seed: int, own: bool = False) -> Test:
    """The test between q and p, with what the prior has learned of level t at hand.

    Arguments:
        own: p is the generator's own prior, which whitened latents are told from by more than energies know.
    """
    known = (_known(prior, q, t, own), _known(prior, p, t, own)) if prior.learned else None
    return test(prior.generator, q, p, known, seed)


def _gap(prior: Prior, q: Tensor, p: Tensor, of: str) -> list[Figure]:
    """E_q[f_i] - E_p[f_i], of all layers together and of each."""
    found, sides = [], [_known(prior, u, 0).double().cpu() for u in (q, p)]
    for l in [None, *range(prior.generator.L)]:
        f = [side.sum(1) if l is None else side[:, l] for side in sides]
        error = math.hypot(*(x.std().item() / math.sqrt(len(x)) for x in f))
        note = "nats; mean F / scale on posterior u less on the prior's; 0 in a closed hole"
        layer = None if l is None else prior.generator.layer_number(l)
        found.append(Figure("energy gap", (f[0].mean() - f[1].mean()).item(), error, of, None, layer, note))
    return found


def _note(about: str, n: int, seed: int) -> str:
    return (
        f"0.5: no hole; {n} posterior draws ({about}) against as many of the prior, each half judged by what the "
        f"other taught, seed {seed}"
    )


def _figures(generator: Generator, tested: Test, of: str, about: str, n: int, seed: int) -> list[Figure]:
    """Of one prior: the joint test, and three per layer."""
    accuracy, error = tested.accuracy, tested.error
    gain, gain_error = tested.gain()
    note = _note(about, n, seed)

    def figure(name: str, which: int, l: int, layer: int | None) -> Figure:
        return Figure(name, accuracy[which, l].item(), error[which, l].item(), of, "lower", layer, note)

    divergence = max(0.0, math.log(2) - tested.loss[0, -1].item())
    found = [
        figure("two-sample accuracy", 0, -1, None),
        Figure("Jensen-Shannon divergence", divergence, None, of, "lower", None, f"nats, at least; {about}"),
    ]
    for l in range(generator.L):
        layer = generator.layer_number(l)
        found.append(figure("accuracy, u_i alone", 1, l, layer))
        found.append(figure("accuracy, top to i", 0, l, layer))
        added = "what this layer adds to the accuracy of those above it, on the same draws; 0: no hole"
        found.append(Figure("gain given above", gain[l].item(), gain_error[l].item(), of, "lower", layer, added))
    return found
