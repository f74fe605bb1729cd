"""What was measured of a run, and its out-of-distribution scores, measured here on few images."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from hebmtool.judge import ood
from hebmtool.judge.compare import compare
from hebmtool.judge.evaluation import KEY, RECONSTRUCTIONS
from hebmtool.judge.table import arranged
from hebmtool.metrics.figures import Figure, by_judged
from hebmtool.prior import Gaussian
from hebmtool.report.page import Section, code, number, plural
from hebmtool.report.plots import CYCLE
from hebmtool.report.subject import Subject
from hebmtool.run import records
from hebmtool.table import Cell, Table, number_notes
from hebmtool.use.score import Scorer, make_scorer

OOD_IMAGES, OOD_DRAWS = 100, 1  # of every set, and of the posterior of each
CLOSURE = (
    "Closure is the share of the gap between Gaussian samples and reconstructions that a prior closes: 0 is no better "
    "than the Gaussian, 1 as good as the generator's own posterior allows. "
)


# Kept figures ---------------------------------------------------------------------------------------------------------


def evaluation(subject: Subject) -> Section:
    """The figures that were measured, a row each, the priors side by side; those of layers in tables of their own."""
    section = Section("Evaluation")
    fill = subject.command("evaluate", str(subject.run.path))
    with section.attempt():
        shown = kept_figures(subject)
        if not any(each.figures for each in shown):
            section.notes += [f"{warning[:1].upper()}{warning[1:]}." for each in shown for warning in each.warnings]
            section.notes.append(Markup("Nothing has been measured yet; {} fills this section.").format(fill))
            return section
        kinds = list(dict.fromkeys([Gaussian.kind, *subject.run.priors()]))
        for each in shown:
            section.tables += tables(each.figures, kinds, each.words, each.unsure)
            section.notes += [f"{warning[:1].upper()}{warning[1:]}." for warning in each.warnings]
            if each.provenance is None:
                text = Markup("Measured at the end of {}; {} measures more.")
                section.text.append(text.format(code("hebm train-prior"), fill))
            elif each.provenance:
                lines = (f"{key}: {v if isinstance(v, str) else json.dumps(v)}" for key, v in each.provenance.items())
                section.folded.append((f"How these figures were made{each.words}", "\n".join(lines)))
        has_closure = any("closure" in figure.name for each in shown for figure in each.figures)
        section.text.append(CLOSURE * has_closure + "Uncertainties are one standard error; the best prior is bold.")
    return section


@dataclass
class Shown:
    """Figures that were measured in one way.  words: which, where there are several.  provenance: None where a training
    ended with them.  unsure: kinds of prior whose figures do not say of which checkpoints they are."""

    figures: list[Figure]
    provenance: dict | None
    words: str = ""
    unsure: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def kept_figures(subject: Subject) -> list[Shown]:
    """The figures in figures.json that are of the run as it is: what `evaluate` kept there, newest first; else those
    that training ended with.

    Raises:
        HebmError: it is not what those write.
    """
    if KEY not in subject.run.figures():
        priors = subject.found["priors"]
        unsure = [prior["kind"] for prior in priors if prior.get("origin") == records.UNKNOWN]
        return [Shown(_of_training(priors), None, unsure=unsure)]
    found, shown = compare([subject.run]), []
    for name, each in found.runs.items():
        unsure = [of.removeprefix(f"{name}/") for of in found.unsure if of.startswith(f"{name}/")]
        shown.append(Shown(each.figures, each.provenance, name.removeprefix(subject.run.name), unsure))
    shown[0].warnings = [warning for warning in found.warnings if "judged alike" not in warning]
    return shown


def _of_training(priors: Sequence[dict]) -> list[Figure]:
    """What the training of each ended with."""
    figures = []
    for prior in priors:
        if prior.get("closure"):
            figures += _closure(prior["kind"], prior["step"], prior["closure"])
        if prior.get("figures"):
            figures += _one_stage(prior["kind"], prior["step"], prior["figures"])
    return figures


def _closure(kind: str, step: int, found: dict) -> list[Figure]:
    """The closure, and the distances it is made of."""
    note = f"{found['samples']} images against {found['reference']} held out, features: {found['features']}"
    note += _since(kind, step, found)
    fd = {Gaussian.kind: "fd_gaussian", kind: "fd_prior", RECONSTRUCTIONS: "fd_reconstruction"}
    figures = [Figure("FD", found[key], of=of, better="lower", note=note) for of, key in fd.items()]
    return [*figures, Figure("closure", found["closure"], found["error"], kind, "higher", note=note)]


def _one_stage(kind: str, step: int, found: dict) -> list[Figure]:
    """`hebmtool.judge.one_stage.judge`'s, of a prior learned together with its generator."""
    figures, since, match = [], _since(kind, step, found), found["match"]
    if found["fd"] is not None:
        note = f"{found['samples']} images against those held out, features: {found['features']}{since}"
        figures.append(Figure("FD", found["fd"], of=kind, better="lower", note=note))
    note = f"{found['images']} test images, from latents inferred by Langevin dynamics{since}"
    figures.append(Figure("PSNR (dB)", found["psnr"], of=RECONSTRUCTIONS, better="higher", note=note))
    note = (
        f"sliced Wasserstein distance of {match['samples']} inferred latents; of two sets of the prior's own draws "
        f"{number(match['floor'])}{since}"
    )
    for of, key in ((Gaussian.kind, "normal"), (kind, "prior")):
        figures.append(Figure("inferred z to prior", match[key], of=of, better="lower", note=note))
    if "recovery" in found:
        note = f"the hidden pixels of {found['recovery']['images']} training images{since}"
        recovered = found["recovery"]["psnr"]
        figures.append(Figure("PSNR (dB), recovered", recovered, of=RECONSTRUCTIONS, better="higher", note=note))
    return figures


def _since(kind: str, step: int, found: dict) -> str:
    return "" if found.get("step") == step else f"; {kind} as it was at update {found.get('step')}"


def tables(
    figures: Sequence[Figure], kinds: Sequence[str], words: str = "", unsure: Collection[str] = ()
) -> list[Table]:
    """One table of the run's figures, and one for each figure that is of a layer.

    Arguments:
        kinds: of priors, in the order of their columns; the best of them, the `unsure` left out, is marked.  Other
            columns follow.
        words: which figures of the run they are.
    """

    def show(figure: Figure) -> str:
        return number(figure.value, figure.error)

    sure = [kind for kind in kinds if kind not in unsure]

    def table(caption: str, corner: str, rows: dict[str, Cell], shown: dict[str, dict[str, Figure]]) -> Table:
        """A row per heading and a column per what is judged."""
        columns = [kind for kind in kinds if kind in shown] + sorted(shown.keys() - set(kinds))
        made = arranged(list(rows.values()), {of: shown[of] for of in columns}, show, sure, corner)
        made.align, made.caption = (">" if corner else "<") + ">" * len(columns), caption
        notes = {cell.note for row in made.rows for cell in row[1:] if cell.text}
        made.notes = number_notes(made) if len(notes) > 1 else list(filter(None, notes))
        return made

    out, whole = [], [figure for figure in figures if figure.layer is None]
    if whole:
        rows: dict[str, Cell] = {}
        for figure in whole:
            rows.setdefault(figure.name, Cell(figure.name, better=figure.better))
        shown = {of: {f.name: f for f in reversed(its)} for of, its in by_judged(whole).items()}
        out.append(table(f"Figures of the run{words}", "", rows, shown))
    of_layers = [figure for figure in figures if figure.layer is not None]
    for name in dict.fromkeys(figure.name for figure in of_layers):
        its = [figure for figure in of_layers if figure.name == name]
        rows = {str(layer): Cell(str(layer)) for layer in sorted({f.layer for f in its}, reverse=True)}
        shown = {of: {str(f.layer): f for f in each} for of, each in by_judged(its).items()}
        out.append(table(f"{name}, per layer (1 = bottom){words}", "layer", rows, shown))
    return out


# Out-of-distribution scores -------------------------------------------------------------------------------------------


def out_of_distribution(subject: Subject) -> Section:
    """AUROC of every score against the built-in battery, on few images."""
    section = Section("Out of distribution", "charts")
    with section.attempt():
        methods = ood.compare(_scorers(subject), subject.test, OOD_IMAGES)
        cut = " The score at cut k reads the layers above k; the cut is chosen without these sets."
        cut *= bool(_at(methods[0]))
        text = Markup(
            "Scores of {} test images against sets that need no download, {} of each: a quick look. {} takes more "
            "images and draws.{}"
        )
        draws, command = plural(OOD_DRAWS, "posterior draw"), subject.command("ood-score")
        section.text.append(text.format(len(methods[0].inside), draws, command, cut))
        section.tables.append(_auroc(methods))
        section.legend = [("test images", "var(--fill)")]
        section.legend += [(name, f"var(--c{i % len(CYCLE)})") for i, name in enumerate(methods[0].outside)]
        for method in methods:
            _charts(section, method)
    return section


def _scorers(subject: Subject) -> list[Scorer]:
    """Every score that there is of the run."""
    prior = subject.ebm or subject.best
    wanted: list[tuple[str | None, str | None]] = [(None, None)]  # without an encoder there is one
    if prior.generator.has_encoder:
        wanted = [("energy", "inference")] * (prior.T > 0) + [("energy", "diffusion")] * (prior.T > 1)
        wanted += [("likelihood", None)] + [("llr", None)] * (prior.generator.L > 1)
    return [make_scorer(prior, subject.recipe, *each, draws=OOD_DRAWS, seed=subject.seed) for each in wanted]


def _auroc(methods: Sequence[ood.Method]) -> Table:
    rows = []
    for name in methods[0].outside:
        rows.append([name])
        for method in methods:
            row = method.rows[name, method.chosen]
            low, high = row["auroc_interval"]
            rows[-1].append(f"{row['auroc']:.3f} [{low:.2f}, {high:.2f}]")
    head = ["", *(method.scorer.name + _at(method) for method in methods)]
    caption = f"AUROC{' at the cut chosen' * bool(_at(methods[0]))}, with 95% bootstrap intervals; 0.5 is chance"
    return Table(head, rows, "<" + ">" * len(methods), caption)


def _at(method: ood.Method) -> str:
    """Its cut, where there are layers to cut between."""
    return f", k = {method.chosen}" if method.scorer.prior.generator.L > 1 else ""


def _charts(section: Section, method: ood.Method) -> None:
    name = method.scorer.name
    if len(method.scorer.cuts) > 1:
        section.chart(
            lambda axis: ood.plot_auroc(axis, method),
            f"{name}: AUROC at every cut.",
            f"Dashed: {method.sentence().partition(': ')[2]}.",
        )
    section.chart(
        lambda axis: ood.plot_scores(axis, method, method.chosen),
        f"{name}: scores{_at(method).replace(',', ' at')}.",
        "High is in-distribution.",
    )
