"""What is wrong with a prior, and where: its likelihood (`hebmtool.metrics.evidence`), two-sample tests between it and
the aggregate posterior (`hebmtool.metrics.two_sample`), what its chains do (`hebmtool.metrics.mixing`); the table that
shows them, and one picture.

A part says nothing where what it looks at is not there: a bound on log p(x) is made with an encoder, and a draw of the
Gaussian prior or of a flow has no chain.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hebmtool import picture
from hebmtool.console import note
from hebmtool.errors import HebmError, UsageError, did_you_mean
from hebmtool.judge.sources import arrival_figures, drawn_by, given
from hebmtool.judge.table import diagnosed
from hebmtool.metrics import evidence, mixing, two_sample
from hebmtool.metrics.figures import Figure
from hebmtool.noise import derive_seed
from hebmtool.prior import Prior
from hebmtool.recipe import Recipe
from hebmtool.run import split
from hebmtool.run.folder import Run
from hebmtool.run.open import load_prior
from hebmtool.table import for_stdout, number_notes
from hebmtool.use.arrival import Arrival, Mean
from hebmtool.use.infer import posterior_draws

PARTS = ("likelihood", "two-sample", "chains")
POSTERIOR = 200  # draws at which F is read beside the chains
LAGS = 60
BAND = (0.1, 0.9)


@dataclass
class Diagnosis:
    """kind: the prior judged.  figures: all of them.  chains: what its chains did; None where it has none."""

    kind: str
    figures: list[Figure]
    chains: mixing.Diagnostics | None


def diagnose(
    run: Run,
    device: torch.device,
    kind: str | None = None,
    samples: int = 500,
    steps: int | None = None,
    seed: int = 0,
    parts: Sequence[str] = PARTS,
    *,
    chain: str | None = None,
    **settings: object,
) -> Diagnosis:
    """Every diagnostic of the run's prior of this kind, the best one there when None.

    Arguments:
        samples: draws of each law in the two-sample tests.
        steps: Langevin steps per level, the prior's own when None.
        seed: of every draw.
        parts: of PARTS; those that say nothing of the prior are passed over, and named on stderr.
        chain, settings: what the prior is drawn with (`Prior.using`) in place of what it was learned with; None stands
            for a setting that is not given.

    Raises:
        UsageError: a part that does not exist, or a way of drawing that the prior does not have.
        HebmError: no such prior, no data, or no part that says anything of it.
    """
    prior = drawn_by(load_prior(run, kind or run.priors()[-1], device), given(chain, settings), steps)
    return diagnose_prior(prior, run, run.recipe(), samples, steps, seed, telling(prior, parts))


def telling(prior: Prior, parts: Sequence[str]) -> list[str]:
    """Those of `parts` that say something of this prior; of the others, why not, on stderr.

    Raises:
        UsageError: a part that does not exist.
        HebmError: none of them says anything.
    """
    for part in parts:
        if part not in PARTS:
            raise UsageError(f"there is no part '{part}'; choose of {', '.join(PARTS)}{did_you_mean(part, PARTS)}")
    silent = {}
    if not prior.generator.has_encoder:
        silent["likelihood"] = f"a bound on log p(x) takes an encoder, and the {prior.kind} prior's generator has none"
    if not prior.T:
        silent["chains"] = f"a draw of the {prior.kind} prior takes no Langevin steps"
    why = [f"no {part} can be told, for {silent[part]}" for part in parts if part in silent]
    found = [part for part in parts if part not in silent]
    if parts and not found:
        raise HebmError(f"{'; '.join(why)}; ask for two-sample")
    for reason in why:
        note(reason)
    return found


def diagnose_prior(
    prior: Prior,
    run: Run,
    recipe: Recipe,
    samples: int = 500,
    steps: int | None = None,
    seed: int = 0,
    parts: Sequence[str] = PARTS,
) -> Diagnosis:
    """The same of a prior that is loaded already; each of `parts` must say something of it (`telling`).

    A new part has a word in PARTS and adds its figures here; what it cannot be told of is said in `telling`.
    """
    found, traces = [], None
    test = split.load(run, recipe.data, "test")
    if "likelihood" in parts:
        found += evidence.figures(prior, test, recipe, seed=seed)
    if "two-sample" in parts:
        train = split.load(run, recipe.data, "train")
        n = min(samples, len(test) + len(train))
        held_out = min(n, len(test))
        about = f"{held_out} test images" + (f" and {n - held_out} training images" if n > held_out else "")
        found += two_sample.figures(prior, posterior_draws(prior, (test, train), recipe, n, seed), about, seed, steps)
    if "chains" in parts:
        u = posterior_draws(prior, (test,), recipe, min(POSTERIOR, len(test)), derive_seed(seed, "chains"))
        traces = mixing.diagnose(prior, u, steps=steps, seed=seed)
        found += mixing.figures(traces)
        arrival = _arrival(traces)
        found += [each for each in arrival_figures(arrival, prior.kind) if each.name != "mean F"]  # that is among them
        if sentence := arrival.sentence():
            note(sentence)
    return Diagnosis(prior.kind, [_plain(figure) for figure in found], traces)


def _arrival(traces: mixing.Diagnostics) -> Arrival:
    """Where the trajectories have come to that the prior draws by."""
    F, posterior, taken = Mean.of(traces.short_G), Mean.of(traces.posterior), traces.short.taken
    if taken is None:
        return Arrival(F, posterior, None, None)
    return Arrival(F, posterior, taken.double().mean().item(), taken.double().sum(0).mean().item())


def _plain(figure: Figure) -> Figure:
    """With None for what is not finite, which JSON cannot hold, and the note saying so."""
    ok = [number is None or math.isfinite(number) for number in (figure.value, figure.error)]
    if all(ok):
        return figure
    value, error = (number if fine else None for number, fine in zip((figure.value, figure.error), ok, strict=True))
    return dataclasses.replace(figure, value=value, error=error, note=f"not finite; {figure.note}")


# Table ----------------------------------------------------------------------------------------------------------------


def table(figures: Sequence[Figure]) -> str:
    """The figures of whole models a line each, those of layers as tables, for stdout; then the notes of all, numbered
    in the order in which they are come to."""
    tables = diagnosed(figures)
    notes = [f"[{i}] {text}" for i, text in enumerate(number_notes(*tables), 1)]
    return "\n\n".join([*map(for_stdout, tables), *["\n".join(notes)] * bool(notes)])


# Picture --------------------------------------------------------------------------------------------------------------


def figure(diagnosis: Diagnosis) -> bytes:
    """A PNG of panels: G, energy and slope along the reverse trajectory, the long run, autocorrelation, and accuracies
    where they were asked for.

    Raises:
        HebmError: the prior has no chains to show.
    """
    d = diagnosis.chains
    if d is None:
        raise HebmError(
            f"the {diagnosis.kind} prior has no chains to picture; ask for no picture, or name another prior"
        )
    from matplotlib.figure import Figure as Canvas  # slow to import

    tests = [f for f in diagnosis.figures if f.name == "accuracy, top to i"]
    canvas = Canvas(figsize=(13.5, 7.4), layout="constrained")
    panels = canvas.subplot_mosaic("GGEESS;LLAATT" if tests else "GGEESS;LLLAAA")
    G, energy, slope = (panels[name] for name in "GES")
    canvas.suptitle(f"Chains of the {diagnosis.kind} prior")
    for axis, rows, title in (
        (G, d.short.G, "F / scale along the reverse trajectory"),
        (energy, d.short.energy / d.prior.generator.D, "energy per dimension of the level's conditional"),
        (slope, d.short.slope, "gradient norm of F / scale"),
    ):
        _plot_trajectory(axis, rows, d.short.level, title, "nats" if axis is G else None)
    G.axhline(d.posterior.mean().item(), color="C3", ls="--", lw=1, label="mean on posterior u, t = 0")
    G.legend(frameon=False, loc="lower right")
    slope.set_ylim(bottom=0)
    _plot_spread(panels["L"], d)
    _plot_autocorrelation(panels["A"], d)
    if tests:
        _plot_accuracies(panels["T"], tests)
    return picture.plot_to_png(canvas, 130)


def _plot_trajectory(axis, rows: torch.Tensor, level: torch.Tensor, title: str, unit: str | None) -> None:
    """Rows [S, N] of a trace along the levels, [S]: median and middle 80% of chains, step by step."""
    starts = [0, *(1 + torch.nonzero(level.diff())[:, 0]).tolist()]
    for start, end in zip(starts, [*starts[1:], len(level)], strict=True):
        part, x = rows[start:end], np.arange(start, end)
        low, high = (part.quantile(q, dim=1) for q in BAND)
        axis.fill_between(x, low, high, color="C0", alpha=0.25, lw=0)
        axis.plot(x, part.median(1).values, color="C0", marker=".", ms=4)
        if start:
            axis.axvline(start - 0.5, color="0.8", lw=1)
        name, middle = f"t = {int(level[start])}", ((start + end - 1) / 2, 0.98)
        axis.annotate(name, middle, xycoords=("data", "axes fraction"), ha="center", va="top")
    axis.margins(y=0.16)
    axis.set(title=title, xlabel="step (median, and the middle 80% of chains)", ylabel=unit)


def _plot_spread(axis, d: mixing.Diagnostics) -> None:
    """Spread of u over level 0, short and long."""
    for trace, steps, colour in ((d.long, mixing.LONGER * d.steps, "C1"), (d.short, d.steps, "C0")):
        rows = trace.norm[trace.level == 0].sqrt()
        x = np.arange(1, len(rows) + 1)
        mean, error = rows.mean(1), rows.std(1) / math.sqrt(rows.shape[1])
        axis.fill_between(x, mean - error, mean + error, color=colour, alpha=0.25, lw=0)
        axis.plot(x, mean, color=colour, label=f"{steps} steps a level")
    axis.axhline(1, color="0.6", lw=1, ls=":")
    axis.set(
        title="spread of u over level 0, short and long",
        xlabel="step of level 0 (mean, and its standard error)",
        ylabel="RMS of u",
        xscale="log",
    )
    axis.legend(frameon=False)


def _plot_autocorrelation(axis, d: mixing.Diagnostics) -> None:
    """Of F and of each layer's u along the long chain of level 0."""
    from matplotlib import colormaps

    n = min(LAGS, len(d.relaxed.G) // 2)
    axis.plot(mixing.autocovariance(d.relaxed.G).mean(1)[:n], color="k", label="F")
    shades = np.linspace(0.15, 0.85, len(d.layers))
    for l, columns in enumerate(d.layers):
        rho = mixing.autocovariance(d.relaxed.u[..., columns]).mean(1)[:n]
        named = len(d.layers) <= 8 or l in (0, len(d.layers) - 1)
        label = f"u, layer {d.prior.generator.layer_number(l)}" if named else None
        axis.plot(rho, color=colormaps["viridis"](shades[l]), lw=1, label=label)
    axis.axhline(0, color="0.6", lw=1, ls=":")
    axis.set(title="autocorrelation along a level-0 chain", xlabel="lag (steps)", ylabel="ρ")
    axis.legend(frameon=False, fontsize="small")


def _plot_accuracies(axis, tests: Sequence[Figure]) -> None:
    """How well layers from the top down to i tell each prior from the posterior."""
    axis.axhline(0.5, color="0.6", lw=1, ls=":")
    axis.set(title="told from the posterior by layers L to i", xlabel="layer i", ylabel="held-out accuracy")
    for i, of in enumerate(dict.fromkeys(f.of for f in tests)):
        layers, values, errors = zip(*((f.layer, f.value, f.error) for f in tests if f.of == of), strict=True)
        axis.errorbar(layers, values, errors, marker="o", ms=4, capsize=2, color=f"C{i}", label=of)
    layers = sorted({f.layer for f in tests})
    axis.set_xticks(layers if len(layers) <= 12 else layers[:: len(layers) // 8])
    axis.invert_xaxis()
    axis.legend(frameon=False)
