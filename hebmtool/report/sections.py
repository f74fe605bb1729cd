"""A run on one page: what it is, what it draws, what was measured of it, as one self-contained HTML file.

`report` gathers sections, `report.html` lays them out.  Pictures are PNG data URIs, charts inline SVG whose colours are
the page's own, so that they follow its light and dark mode; the page loads nothing.  What a recipe or a folder says
reaches the page escaped.  The same run, seed and versions give the same bytes.
"""

import dataclasses
import json
import platform
import re
import shlex
from collections.abc import Sequence
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
from markupsafe import Markup

from hebmtool import data, files, picture, recipe
from hebmtool.console import progress
from hebmtool.errors import HebmError
from hebmtool.judge import closure as closures
from hebmtool.judge import ood
from hebmtool.metrics.figures import Figure
from hebmtool.prior import Gaussian, Prior
from hebmtool.prior.labels import CLASS
from hebmtool.report.page import Section, Table, code, duration, listed, minus, number
from hebmtool.report.plots import CYCLE, PAGE_COLOURS, layer_colour, limit, plot_curve, points
from hebmtool.run import checkpoint, info
from hebmtool.run.folder import Run
from hebmtool.run.open import load_labels, load_prior
from hebmtool.use import controllable, hierarchy
from hebmtool.use import sample as sampling
from hebmtool.use import score as scoring

GRID, COLUMNS = 64, 8


STRIPS = 10  # images followed from noise to data


BASES, RESAMPLES = 4, 8  # of every part of the hierarchy


PER_CLASS, MOST_CLASSES, MOST_LABELS = 8, 20, 6


OOD_IMAGES, OOD_DRAWS = 100, 1  # of every set, and of the posterior of each


PAGE_COLOURS |= {colour: f"var(--c{i})" for i, colour in enumerate(CYCLE)}


PAGE_COLOURS |= {"#bfbfbf": "var(--fill)", "#cccccc": "var(--rule)", "#808080": "var(--muted)"}  # `ood`'s greys


# The run --------------------------------------------------------------------------------------------------------------


class Subject:
    """The run reported on, with what several sections need.

    priors: those that load, from the simplest to the one to be preferred.  unusable: why the others do not.
    """

    def __init__(self, run: Run, device: torch.device, seed: int, batch_size: int):
        self.run, self.device, self.seed, self.batch_size = run, device, seed, batch_size
        run.require_generator()
        self.found, self.recipe = info.describe(run), run.recipe()
        self.priors: list[Prior] = []
        self.unusable: list[str] = []
        for kind in run.priors():
            try:
                self.priors.append(load_prior(run, kind, device))
            except HebmError as error:
                self.unusable.append(f"The {kind} prior is left out: {error}.")
        if not self.priors:
            raise HebmError(f"nothing in {run.path} can be loaded: {self.unusable[0]}")

    @property
    def best(self) -> Prior:
        return self.priors[-1]

    @property
    def ebm(self) -> Prior | None:
        """The best prior that has an energy."""
        return next((prior for prior in self.priors[::-1] if prior.T), None)

    @cached_property
    def test(self) -> data.Images:
        images, shape = data.load(self.recipe.data, "test"), self.best.generator.image_shape
        if tuple(images.shape) != tuple(shape):
            raise HebmError(f"the run's data are now images of {images.shape}, but its generator makes {shape}")
        return images

    def command(self, *words: str) -> Markup:
        """A `hebm` command on this run."""
        return code(shlex.join(["hebm", *words]))

    def train_prior(self, *more: str) -> Markup:
        return self.command("train-prior", str(self.run.recipe_path), *more)


def name_of(prior: Prior) -> str:
    return "Gaussian prior" if prior.kind == Gaussian.kind else f"{prior.kind} prior"


def shape_words(shape: Sequence[int]) -> str:
    """ "28x28 grey"."""
    channels, height, width = shape
    return f"{width}×{height} " + {1: "grey", 3: "colour"}.get(channels, f"{channels}-channel")


# Sections -------------------------------------------------------------------------------------------------------------


def samples(subject: Subject) -> Section:
    """A grid per prior, then reconstructions."""
    section = Section("Samples")
    for prior in subject.priors:
        with section.attempt():
            drawn = torch.cat(list(sampling.sample(prior, GRID, subject.seed, subject.batch_size)))
            section.image(
                picture.grid(drawn, COLUMNS),
                f"{name_of(prior)}.",
                f"Samples 0 to {GRID - 1} of seed {subject.seed}.",
                f"{GRID} images drawn from the {name_of(prior)}, in {COLUMNS} columns.",
            )
    with section.attempt():
        n = min(GRID // 2, len(subject.test))
        made = closures.reconstructions(subject.best, subject.test, subject.recipe, n)
        pairs = zip(made.split(COLUMNS), subject.test.batch(range(n)).split(COLUMNS), strict=True)
        # A last row that is not full would let the originals slide below other images.
        full = [row for pair in pairs for row in pair if len(row) == COLUMNS or n < COLUMNS]
        section.image(
            picture.grid(torch.cat(full), min(n, COLUMNS)),
            "Reconstructions.",
            "Rows in pairs: posterior reconstructions of test images, and the test images themselves below.",
            "Test images in every second row, their reconstructions in the row above each.",
        )
    section.notes += subject.unusable
    if subject.found["priors"][-1]["kind"] == Gaussian.kind:
        section.notes.append(
            Markup("Only the Gaussian prior is there; train another with {}.").format(subject.train_prior())
        )
    return section


def kept_figures(subject: Subject) -> tuple[list[Figure], dict | None]:
    """The figures in figures.json and their provenance: what `evaluate` kept there; else the closures that training
    ended with, whose provenance is None.

    Raises:
        HebmError: it is not what those write.
    """
    kept, names = subject.run.figures(), [each.name for each in dataclasses.fields(Figure)]
    try:
        if "evaluate" in kept:
            rows = kept["evaluate"]["figures"]
            figures = [Figure(**{name: row[name] for name in names if name in row}) for row in rows]
            for figure in figures:
                number(figure.value, figure.error)
            return figures, dict(kept["evaluate"].get("provenance") or {})
        figures, steps = [], {prior["kind"]: prior.get("step") for prior in subject.found["priors"]}
        for kind, found in kept.get("closure", {}).items():
            note = f"{found['samples']} images against {found['reference']} held out, features: {found['features']}"
            if found.get("step") != steps.get(kind):
                note += f"; {kind} as it was at update {found.get('step')}"
            fd = {Gaussian.kind: "fd_gaussian", kind: "fd_prior", "reconstructions": "fd_reconstruction"}
            figures += [Figure("FD", found[key], of=of, better="lower", note=note) for of, key in fd.items()]
            figures.append(Figure("closure", found["closure"], found["error"], kind, "higher", note=note))
        return figures, None
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise HebmError(
            f"{subject.run.figures_path} does not hold figures as `hebm evaluate` and `hebm train-prior` write them; "
            "evaluate the run again"
        ) from error


def evaluation(subject: Subject) -> Section:
    """The figures that were measured, a row each, the priors side by side; those of layers in tables of their own."""
    section = Section("Evaluation")
    fill = subject.command("evaluate", str(subject.run.path))
    with section.attempt():
        figures, provenance = kept_figures(subject)
        if not figures:
            section.notes.append(Markup("Nothing has been measured yet; {} fills this section.").format(fill))
            return section
        section.tables = tables(figures, subject.run.priors())
        if provenance is None:
            text = Markup("Measured at the end of {}; {} measures more.")
            section.text.append(text.format(code("hebm train-prior"), fill))
        elif provenance:
            text = "\n".join(f"{key}: {v if isinstance(v, str) else json.dumps(v)}" for key, v in provenance.items())
            section.folded.append(("How these figures were made", text))
        closure = (
            "Closure is the share of the gap between Gaussian samples and reconstructions that a prior closes: 0 is no "
            "better than the Gaussian, 1 as good as the generator's own posterior allows. "
        )
        has_closure = any("closure" in figure.name for figure in figures)
        section.text.append(closure * has_closure + "Uncertainties are one standard error; the best prior is bold.")
    return section


def tables(figures: Sequence[Figure], kinds: Sequence[str]) -> list[Table]:
    """One table of the run's figures, and one for each figure that is of a layer.

    Arguments:
        kinds: of priors, in the order of their columns; the best of them is bold.  Other columns follow.
    """

    def table(caption: str, corner: str, rows: dict[Any, list[Figure]]) -> Table:
        """A row per key and a column per what is judged, from the figures of each row."""
        shown = [figure for row in rows.values() for figure in row]
        judged = {figure.of for figure in shown}
        columns = [kind for kind in kinds if kind in judged] + sorted(judged - set(kinds))
        notes = list(dict.fromkeys(figure.note for figure in shown if figure.note))
        numbered = len({figure.note for figure in shown}) > 1
        lines = []
        for key, row in rows.items():
            values = [f.value for f in row if f.of in kinds and f.value is not None]
            choose = {"higher": max, "lower": min}.get(row[0].better)
            best = choose(values) if choose and len(values) > 1 else None
            lines.append([key if corner else heading(row[0])])
            for of in columns:
                figure = next((f for f in row if f.of == of), None)
                cell = Markup("{}").format("" if figure is None else number(figure.value, figure.error))
                if figure is not None and of in kinds and best is not None and figure.value == best:
                    cell = Markup("<strong>{}</strong>").format(cell)
                if figure is not None and figure.note and numbered:
                    cell += Markup("<sup>{}</sup>").format(notes.index(figure.note) + 1)
                lines[-1].append(cell)
        return Table(caption, [corner, *columns], [bool(corner)] + [True] * len(columns), lines, notes)

    def heading(figure: Figure) -> Markup:
        arrow = {"higher": "↑", "lower": "↓"}.get(figure.better)
        title = Markup('<abbr class="better" title="{} is better">{}</abbr>').format(figure.better, arrow)
        return Markup("{} {}").format(figure.name, title if arrow else "")

    whole: dict[str, list[Figure]] = {}
    of_layers: dict[str, dict[str, list[Figure]]] = {}
    for figure in sorted(figures, key=lambda figure: -(figure.layer or 0)):
        rows = whole if figure.layer is None else of_layers.setdefault(figure.name, {})
        rows.setdefault(figure.name if figure.layer is None else str(figure.layer), []).append(figure)
    out = [table("Figures of the run", "", whole)] if whole else []
    return out + [table(f"{name}, per layer (1 = bottom)", "layer", rows) for name, rows in of_layers.items()]


def training(subject: Subject) -> Section:
    """Curves of both stages from metrics.jsonl."""
    section, run = Section("Training", "charts"), subject.run
    L = len(subject.found["layers"])
    one, tests = run.metrics("train-vae"), run.metrics("train-vae-test")
    steps, elbo = points(one, "elbo")
    if len(steps):
        at, held_out = points(tests, "elbo")

        def plot(axis) -> None:
            plot_curve(axis, steps, elbo, label="training batches")
            axis.plot(at, held_out, "o", ms=4.5, color="C1", label="test images")
            limit(axis, np.concatenate([elbo, held_out[-1:]]))
            axis.set(xlabel="updates", ylabel="ELBO (nats)")
            axis.legend(loc="lower right")

        ending = f", {held_out[-1]:.2f} on test images" if len(at) else ""
        last = f"After {steps[-1]:,.0f} updates {elbo[-len(elbo) // 10 :].mean():.2f} nats in training{ending}."
        section.chart(plot, "Stage one: ELBO.", minus(last))
    layered = [r for r in one if isinstance(r.get("kl"), list) and len(r["kl"]) == L]
    if layered:

        def plot(axis) -> None:
            named = range(1, L + 1) if L <= 8 else {1, (L + 1) // 2, L}
            for layer in range(L, 0, -1):
                records = [{"step": r["step"], "kl": r["kl"][layer - 1]} for r in layered]
                label = f"layer {layer}" if layer in named else None
                plot_curve(axis, *points(records, "kl"), color=layer_colour(layer, L), label=label)
            axis.set(xlabel="updates", ylabel="KL (nats)")
            axis.set_ylim(bottom=0)
            axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))

        dead = [k for k, kl in enumerate(layered[-1]["kl"], 1) if isinstance(kl, int | float) and kl < info.DEAD_NATS]
        idle = (
            f"These carry less than {info.DEAD_NATS} nats at the end: {listed([str(k) for k in dead])}." if dead else ""
        )
        caption = f"From layer {L}, the top, to 1, the bottom. {idle or 'Every layer carries some at the end.'}"
        section.chart(plot, "Stage one: KL per layer.", caption)
    stages = dict.fromkeys(record["stage"] for record in run.metrics() if isinstance(record.get("stage"), str))
    for stage in stages:
        if stage.startswith("train-prior ") and not stage.startswith("train-prior label "):
            _prior_curves(section, run, stage)
    labels = [stage for stage in stages if stage.startswith("train-prior label ")]
    curves = {stage.removeprefix("train-prior label "): points(run.metrics(stage), "accuracy") for stage in labels}
    curves = {name: curve for name, curve in curves.items() if len(curve[0])}
    if curves:

        def plot(axis) -> None:
            for name, (steps, accuracy) in curves.items():
                plot_curve(axis, steps, accuracy, label=name)
            axis.set(xlabel="updates", ylabel="share right", ylim=(0, 1.02))
            axis.legend(loc="lower right", ncols=min(3, len(curves)))

        section.chart(
            plot, "Labels: training accuracy.", "p(y | z, t) on noised posterior latents, over all noise levels."
        )
    if not section.figures:
        section.notes.append(f"{run.metrics_path} holds no record of this run's training.")
    return section


def _prior_curves(section: Section, run: Run, stage: str) -> None:
    """The loss, and what the objective says of itself."""
    records, kind = run.metrics(stage), stage.removeprefix("train-prior ")
    steps, loss = points(records, "loss")
    if not len(steps):
        return
    seconds = run.seconds(stage)
    took = f", {duration(seconds)}" if seconds else ""

    def plot(axis) -> None:
        plot_curve(axis, steps, loss)
        limit(axis, loss)
        axis.set(xlabel="updates", ylabel="loss")

    section.chart(plot, f"Stage two, {kind}: loss.", f"{steps[-1]:,.0f} updates{took}.")
    keys = set().union(*records)
    levels = sorted((key for key in keys if re.fullmatch(r"explained_\d+", key)), key=lambda key: int(key[10:]))
    if "nats" in keys:
        shown, what = {"nats": None}, "F at posterior latents (nats)"
        caption = "The hole found so far: mean log ratio of the aggregate posterior to the Gaussian, over noise levels."
    elif levels:
        shown, what = {key: f"level {key[10:]}" for key in levels}, "explained"
        caption = "How much of the score each noise level's energy explains beyond the Gaussian's own."
    elif "negative_std" in keys:
        shown, what = {"positive_std": "posterior", "negative_std": "chain"}, "standard deviation of u"
        caption = "Spread of the posterior's latents and of the chain's; the two agree where the chain is sound."
    else:
        return
    curves = {label: points(records, key) for key, label in shown.items()}
    curves = {label: curve for label, curve in curves.items() if len(curve[0])}
    if not curves:
        return

    def plot_objective(axis) -> None:
        for label, curve in curves.items():
            plot_curve(axis, *curve, label=label)
        axis.set(xlabel="updates", ylabel=what)
        if None not in curves:
            axis.legend(ncols=min(3, len(curves)))

    section.chart(plot_objective, f"Stage two, {kind}: {what}.", caption)


def progressive(subject: Subject) -> Section | None:
    """Decoded u_T ... u_0 of a few samples, for a diffusion prior."""
    prior = next((p for p in subject.priors[::-1] if p.T > 1), None)
    if prior is None:
        return None
    section = Section("From noise to data", "images wide")
    with section.attempt():
        images, stages = sampling.progressive(prior, STRIPS, subject.seed, subject.batch_size)
        columns = images.unflatten(0, (STRIPS, stages)).transpose(0, 1)
        rows = [(f"u_{stages - 1 - i}", column) for i, column in enumerate(columns)]
        section.image(
            picture.rows(rows),
            f"{prior.kind} prior, decoded at every noise level.",
            f"Top row: u_{stages - 1}, Gaussian noise; bottom row: u_0, the samples {0} to {STRIPS - 1} of seed "
            f"{subject.seed}. A column is one trajectory.",
            f"{STRIPS} trajectories of the {prior.kind} prior as columns; images take shape from the top row, decoded "
            f"noise, to the bottom row, the samples.",
        )
    return section


def layers(subject: Subject) -> Section | None:
    """Every part of the hierarchy resampled in turn."""
    prior, L = subject.best, subject.best.generator.L
    if L < 2:
        return None
    section = Section("What each layer carries")
    section.text.append(
        f"Each row begins with a sample of the {name_of(prior)}, framed; in the others only the layers named are drawn "
        f"again, from the prior given the layers held. Layer {L} is the top, 1 the bottom."
    )
    with section.attempt():
        how = (BASES, RESAMPLES, subject.seed, subject.batch_size)
        drawn = hierarchy.draw(prior, hierarchy.blocks(L), *how)
        for part, images, change in zip(drawn.parts, drawn.images, hierarchy.changes(drawn), strict=True):
            words = hierarchy.title(part)
            section.image(
                hierarchy.block(drawn.base, images),
                f"{words.capitalize()} resampled.",
                f"Pixels change by {number(change['pixel_distance'], change['pixel_error'])} (root mean square, of 1).",
                f"{BASES} samples, each followed by {RESAMPLES} variants with only {words} drawn again.",
            )
    return section


def label_grids(subject: Subject) -> Section | None:
    """A row of samples for each value of the run's labels."""
    if not subject.run.label_paths() or subject.ebm is None:
        return None
    section, prior = Section("Asked for by label"), subject.ebm
    section.text.append(f"Samples of the {name_of(prior)} under a condition; a column has the same noise throughout.")
    with section.attempt():
        labels = load_labels(subject.run, prior.generator)
        accuracies = subject.run.figures().get("label_accuracy", {})
        names = sorted(labels, key=lambda name: (name != CLASS, name))
        for name in names[:MOST_LABELS]:
            wanted = controllable.rows([controllable.Wish(name, controllable.EVERY)], labels)[:MOST_CLASSES]
            drawn = controllable.sample(prior, labels, wanted, PER_CLASS, subject.seed, subject.batch_size)
            accuracy = accuracies.get(name)
            right = f" p(y | z, t) is right on {100 * accuracy[0]:.1f}% of test images at level 0." if accuracy else ""
            values = listed([row[0].value for row in wanted])
            section.image(
                controllable.figure(drawn, wanted, None),
                f"Label {name}.",
                f"Rows: {values}.{right}",
                f"{PER_CLASS} samples in a row for each value of the label {name}: {values}.",
            )
        judging = subject.command("controllable", "--run", str(subject.run.path), "--class", "all")
        more = Markup("How many come out as asked, and other labels: {}.")
        section.notes.append(more.format(judging))
    return section


def out_of_distribution(subject: Subject) -> Section:
    """AUROC of every score against the built-in battery, on few images."""
    section = Section("Out of distribution", "charts")
    with section.attempt():
        prior, L = subject.ebm or subject.best, subject.best.generator.L
        wanted = [("energy", "inference")] * (subject.ebm is not None)
        wanted += [("energy", "diffusion")] * (prior.T > 1)
        wanted += [("likelihood", "inference")] + [("llr", "inference")] * (L > 1)
        scorers = [scoring.Scorer(prior, subject.recipe, *each, draws=OOD_DRAWS, seed=subject.seed) for each in wanted]
        methods = ood.compare(scorers, subject.test, OOD_IMAGES)
        names = list(methods[0].outside)
        command = subject.command("ood-score", "--run", str(subject.run.path), "--auroc")
        section.text.append(
            Markup(
                "Scores of {} test images against sets that need no download, {} posterior draw of each: a quick look. "
                "{} takes more images and draws. The score at cut k reads the layers above k; the cut is chosen "
                "without these sets."
            ).format(len(methods[0].inside), OOD_DRAWS, command)
        )
        rows = []
        for name in names:
            rows.append([name])
            for method in methods:
                row = method.rows[name, method.chosen]
                low, high = row["auroc_interval"]
                rows[-1].append(f"{row['auroc']:.3f} [{low:.2f}, {high:.2f}]")
        head = ["", *(f"{method.scorer.name}, k = {method.chosen}" for method in methods)]
        caption = "AUROC at the cut chosen, with 95% bootstrap intervals; 0.5 is chance"
        section.tables.append(Table(caption, head, [False] + [True] * len(methods), rows))
        section.legend = [("test images", "var(--fill)")]
        section.legend += [(name, f"var(--c{i % len(CYCLE)})") for i, name in enumerate(names)]
        for method in methods:
            section.chart(
                lambda axis, method=method: ood.plot_auroc(axis, method),
                f"{method.scorer.name}: AUROC at every cut.",
                f"Dashed: {method.sentence().partition(': ')[2]}.",
            )
            section.chart(
                lambda axis, method=method: ood.plot_scores(axis, method, method.chosen),
                f"{method.scorer.name}: scores at k = {method.chosen}.",
                "High is in-distribution.",
            )
    return section


def made_of(subject: Subject) -> Section:
    """Layers, checkpoints, versions, the recipe."""
    section, found, run = Section("Run and provenance"), subject.found, subject.run
    largest = max((layer["kl"] or 0.0 for layer in found["layers"]), default=0.0) or 1.0
    rows = []
    for layer in found["layers"]:
        kl, bar = layer["kl"], ""
        if kl is not None:
            width = f"{100 * max(kl, 0) / largest:.0f}"
            bar = Markup('<span class="bar" aria-hidden="true"><span style="width: {}%"></span></span>').format(width)
        size = "×".join(map(str, layer["resolution"]))
        rows.append([str(layer["layer"]), size, str(layer["channels"]), "–" if kl is None else f"{kl:.2f}", bar])
    head = ["layer", "resolution", "channels", "KL (nats)", ""]
    section.tables.append(Table("Layers of the generator, top to bottom", head, [True] * 4 + [False], rows))
    rows = []
    for path in run.checkpoints():
        if path.name.endswith(".train.safetensors"):
            continue
        with section.attempt():
            header = checkpoint.header(path)
            size = f"{path.stat().st_size / 1e6:.1f} MB"
            digest = code(files.digest(path)[:16])
            rows.append([path.name, f"{header.step:,}", size, header.package_version, digest])
    head = ["file", "updates", "size", "hebmtool", "SHA-256 (first 16)"]
    section.tables.append(Table("Checkpoints", head, [False, True, True, False, False], rows))
    facts = [
        ("run folder", str(run.path)),
        ("data", " ".join(filter(None, [subject.recipe.data.source, subject.recipe.data.path]))),
        ("recipe seed", str(subject.recipe.seed)),
        ("seed of this report", str(subject.seed)),
        ("device of this report", str(subject.device)),
    ]
    facts += [(name, metadata.version(name)) for name in ("hebmtool", "torch")] + [
        ("python", platform.python_version())
    ]
    section.tables.append(Table("Provenance", ["", ""], [False, False], [[name, value] for name, value in facts]))
    section.folded.append(("The whole recipe", recipe.dump(subject.recipe)))
    return section


def headline(subject: Subject) -> list[tuple[str, str]]:
    """The few facts at the top of the page."""
    found, run = subject.found, subject.run
    facts = [
        ("Images", shape_words(found["image_shape"])),
        ("Generator", f"{len(found['layers'])} layers, {found['parameters'] / 1e6:.2f} M parameters"),
        ("Likelihood", found["likelihood"]),
    ]
    if found["elbo"] is not None:
        facts.append(("Test ELBO", minus(f"{found['elbo']:.2f} nats, {found['bits_per_dim']:.3f} bits/dim")))
    closures = [(p["closure"], p["kind"]) for p in found["priors"] if p["closure"]]
    closures = [(c["closure"], c["error"], kind) for c, kind in closures if c.get("closure") is not None]
    if closures:
        value, error, kind = max(closures, key=lambda closure: closure[0])
        facts.append((f"Closure, {kind}", number(value, error)))
    stages = ["train-vae", *(f"train-prior {kind}" for kind in run.priors())]
    times = [run.seconds(stage) for stage in stages]
    if any(times):
        facts.append(("Training time", " + ".join(duration(t) for t in times if t)))
    return facts


def summary(subject: Subject) -> str:
    found = subject.found
    trained = [prior["kind"] for prior in found["priors"] if prior["kind"] != Gaussian.kind]
    words = (
        f"the {listed(trained)} prior{'s' * (len(trained) > 1)} beside" if trained else "no trained prior yet beside"
    )
    return (
        f"A hierarchical generator of {shape_words(found['image_shape'])} images ({found['data']}) with "
        f"{found['latent_dimensions']:,} latent dimensions, and {words} its Gaussian one. Recipe: {found['recipe']}."
    )


SECTIONS = (samples, evaluation, training, progressive, layers, label_grids, out_of_distribution, made_of)


def report(run: Run, device: torch.device, seed: int = 0, batch_size: int = 64) -> str:
    """The page, as HTML text.

    Arguments:
        seed: of everything drawn for it; images are those of `hebm sample --seed`.
        batch_size: images drawn at a time.

    Raises:
        HebmError: the run has no generator, or nothing of it loads.  What else is missing is said on the page.
    """
    subject = Subject(run, device, seed, batch_size)
    sections = []
    with progress("report", len(SECTIONS)) as bar:
        for make in SECTIONS:
            section = make(subject)
            if section is not None:
                sections.append(section)
            bar.advance()
    page = {
        "title": run.name,
        "summary": summary(subject),
        "facts": headline(subject),
        "sections": sections,
        "footer": Markup("Made by hebmtool {} with {}").format(
            metadata.version("hebmtool"), subject.command("report", str(run.path), "--seed", str(seed))
        ),
    }
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = Path(__file__).with_name("report.html").read_text("utf-8")
    return environment.from_string(template).render(page=page) + "\n"
