"""What is wrong with a prior, and where: likelihood (`hebmtool.evidence`), two-sample tests (`hebmtool.two_sample`) and
Langevin diagnostics (`hebmtool.chains`) of a run, the table that shows them, and one picture."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hebmtool import data, picture
from hebmtool.errors import HebmError
from hebmtool.metrics import evidence, mixing, two_sample
from hebmtool.metrics.figures import Figure
from hebmtool.noise import derive_seed
from hebmtool.run.folder import Run
from hebmtool.run.open import load_prior
from hebmtool.use.infer import posterior_draws

PARTS = ("likelihood", "two-sample", "chains")


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
) -> Diagnosis:
    """Every diagnostic of the run's prior of this kind, the best one there when None.

    Arguments:
        samples: draws of each law in the two-sample tests.
        steps: Langevin steps per level, the prior's own when None.
        seed: of every draw.
        parts: of PARTS; the chains of a prior that has none are passed over.

    Raises:
        HebmError: no such prior, or no data.
    """
    prior = load_prior(run, kind or run.priors()[-1], device)
    recipe, found, traces = run.recipe(), [], None
    test = data.load(recipe.data, "test")
    if "likelihood" in parts:
        found += evidence.figures(prior, test, recipe, seed=seed)
    if "two-sample" in parts:
        train = data.load(recipe.data, "train")
        n = min(samples, len(test) + len(train))
        held_out = min(n, len(test))
        about = f"{held_out} test images" + (f" and {n - held_out} training images" if n > held_out else "")
        found += two_sample.figures(prior, posterior_draws(prior, (test, train), recipe, n, seed), about, seed, steps)
    if "chains" in parts and prior.T:
        u = posterior_draws(prior, (test,), recipe, min(200, len(test)), derive_seed(seed, "chains"))
        traces = mixing.diagnose(prior, u, steps=steps, seed=seed)
        found += mixing.figures(traces)
    return Diagnosis(prior.kind, [_plain(figure) for figure in found], traces)


def _plain(figure: Figure) -> Figure:
    """With None for what is not finite, which JSON cannot hold, and the note saying so."""
    ok = [number is None or math.isfinite(number) for number in (figure.value, figure.error)]
    if all(ok):
        return figure
    value, error = (number if fine else None for number, fine in zip((figure.value, figure.error), ok, strict=True))
    return dataclasses.replace(figure, value=value, error=error, note=f"not finite; {figure.note}")


# Table ----------------------------------------------------------------------------------------------------------------


def table(figures: Sequence[Figure]) -> str:
    """The figures of whole models a line each, with the number of their note; those of layers as tables, a row per
    layer, top first; then the notes."""
    single = [figure for figure in figures if figure.layer is None]
    notes = list(dict.fromkeys(f.note for f in figures if f.note))
    lines = list(_columns([[f.of, f.name, _cell(f), _mark(f, notes)] for f in single]))
    for of in dict.fromkeys(f.of for f in figures if f.layer is not None):
        its = [f for f in figures if f.of == of and f.layer is not None]
        names = list(dict.fromkeys(f.name for f in its))
        cells = {(f.layer, f.name): _cell(f) for f in its}
        marks = {f.name: _mark(f, notes) for f in its if f.note}
        rows = [[of, *(f"{name} {marks.get(name, '')}".strip() for name in names)]]
        for layer in sorted({f.layer for f in its}, reverse=True):
            rows.append([f"layer {layer}", *(cells.get((layer, name), "") for name in names)])
        lines += ["", *_columns(rows)]
    return "\n".join(lines + [""] * bool(notes) + [f"[{i}] {text}" for i, text in enumerate(notes, 1)])


def _mark(figure: Figure, notes: Sequence[str]) -> str:
    return f"[{notes.index(figure.note) + 1}]" if figure.note else ""


def _cell(figure: Figure) -> str:
    if figure.value is None:
        return "undefined"
    return f"{figure.value:.3f}" if figure.error is None else f"{figure.value:.3f} ± {figure.error:.3f}"


def _columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))] if rows else []
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


# Picture --------------------------------------------------------------------------------------------------------------


def figure(diagnosis: Diagnosis) -> bytes:
    """A PNG of six panels: G, energy and slope along the reverse trajectory, the long run, autocorrelation, accuracies.

    Raises:
        HebmError: the prior has no chains to show.
    """
    d = diagnosis.chains
    if d is None:
        raise HebmError(
            f"the {diagnosis.kind} prior has no chains to picture; ask for no picture, or name another prior"
        )
    from matplotlib.figure import Figure as Canvas  # slow to import

    canvas = Canvas(figsize=(13.5, 7.4), layout="constrained")
    (G, energy, slope), (long, lags, accuracy) = canvas.subplots(2, 3)
    canvas.suptitle(f"Chains of the {diagnosis.kind} prior")
    level = d.short.level
    starts = [0, *(1 + torch.nonzero(level.diff())[:, 0]).tolist()]
    for axis, rows, title in (
        (G, d.short.G, "F / scale along the reverse trajectory"),
        (energy, d.short.energy / d.prior.generator.D, "energy per dimension of the level's conditional"),
        (slope, d.short.slope, "gradient norm of F / scale"),
    ):
        for start, end in zip(starts, [*starts[1:], len(level)], strict=True):
            part, x = rows[start:end], np.arange(start, end)
            low, high = (part.quantile(q, dim=1) for q in BAND)
            axis.fill_between(x, low, high, color="C0", alpha=0.25, lw=0)
            axis.plot(x, part.median(1).values, color="C0", marker=".", ms=4)
            if start:
                axis.axvline(start - 0.5, color="0.8", lw=1)
            name = f"t = {int(level[start])}"
            axis.annotate(
                name, ((start + end - 1) / 2, 0.98), xycoords=("data", "axes fraction"), ha="center", va="top"
            )
        axis.margins(y=0.16)
        axis.set(
            title=title, xlabel="step (median, and the middle 80% of chains)", ylabel="nats" if axis is G else None
        )
    G.axhline(d.posterior.mean().item(), color="C3", ls="--", lw=1, label="mean on posterior u, t = 0")
    G.legend(frameon=False, loc="lower right")
    slope.set_ylim(bottom=0)

    for trace, steps, colour in ((d.long, mixing.LONGER * d.steps, "C1"), (d.short, d.steps, "C0")):
        rows = trace.norm[trace.level == 0].sqrt()
        x = np.arange(1, len(rows) + 1)
        mean, error = rows.mean(1), rows.std(1) / math.sqrt(rows.shape[1])
        long.fill_between(x, mean - error, mean + error, color=colour, alpha=0.25, lw=0)
        long.plot(x, mean, color=colour, label=f"{steps} steps a level")
    long.axhline(1, color="0.6", lw=1, ls=":")
    long.set(
        title="spread of u over level 0, short and long",
        xlabel="step of level 0 (mean, and its standard error)",
        ylabel="RMS of u",
        xscale="log",
    )
    long.legend(frameon=False)

    n = min(LAGS, len(d.relaxed.G) // 2)
    lags.plot(mixing.autocovariance(d.relaxed.G).mean(1)[:n], color="k", label="F")
    shades = np.linspace(0.15, 0.85, len(d.layers))
    from matplotlib import colormaps

    for l, columns in enumerate(d.layers):
        rho = mixing.autocovariance(d.relaxed.u[..., columns]).mean(1)[:n]
        named = len(d.layers) <= 8 or l in (0, len(d.layers) - 1)
        label = f"u, layer {d.prior.generator.layer_number(l)}" if named else None
        lags.plot(rho, color=colormaps["viridis"](shades[l]), lw=1, label=label)
    lags.axhline(0, color="0.6", lw=1, ls=":")
    lags.set(title="autocorrelation along a level-0 chain", xlabel="lag (steps)", ylabel="ρ")
    lags.legend(frameon=False, fontsize="small")

    tests = [f for f in diagnosis.figures if f.name == "accuracy, top to i"]
    for i, of in enumerate(dict.fromkeys(f.of for f in tests)):
        its = [f for f in tests if f.of == of]
        accuracy.errorbar(
            [f.layer for f in its],
            [f.value for f in its],
            [f.error for f in its],
            marker="o",
            ms=4,
            capsize=2,
            color=f"C{i}",
            label=of,
        )
    accuracy.axhline(0.5, color="0.6", lw=1, ls=":")
    accuracy.set(title="told from the posterior by layers L to i", xlabel="layer i", ylabel="held-out accuracy")
    if tests:
        layers = sorted({f.layer for f in tests})
        accuracy.set_xticks(layers if len(layers) <= 12 else layers[:: len(layers) // 8])
        accuracy.invert_xaxis()
        accuracy.legend(frameon=False)
    else:
        accuracy.set_axis_off()
    return picture.plot_to_png(canvas, 130)
