"""Curves of a run's training, from metrics.jsonl."""

import re
from collections.abc import Iterator

import numpy as np

from hebmtool.report.page import Section, duration, listed, minus
from hebmtool.report.plots import layer_colour, limit, plot_curve, points
from hebmtool.report.subject import Subject
from hebmtool.run.folder import Run
from hebmtool.run.info import DEAD_NATS

STAGE = "train-prior "
LABEL = STAGE + "label "


def training(subject: Subject) -> Section:
    """Both stages, or the one there is."""
    section, run = Section("Training", "charts"), subject.run
    _elbo(section, run)
    _kl(section, run, len(subject.found["layers"]))
    stages = dict.fromkeys(record["stage"] for record in run.metrics() if isinstance(record.get("stage"), str))
    for stage in stages:
        if stage.startswith(STAGE) and not stage.startswith(LABEL):
            kind = stage.removeprefix(STAGE)
            _prior(section, run, stage, kind if run.one_stage else f"Stage two, {kind}")
    _labels(section, run, [stage for stage in stages if stage.startswith(LABEL)])
    if not section.figures:
        found = "holds no record" if run.metrics_path.exists() else "is not there: an exported run carries no record"
        section.notes.append(f"{run.metrics_path} {found} of the training.")
    return section


def _elbo(section: Section, run: Run) -> None:
    steps, elbo = points(run.metrics("train-vae"), "elbo")
    if not len(steps):
        return
    at, held_out = points(run.metrics("train-vae-test"), "elbo")

    def plot(axis) -> None:
        plot_curve(axis, steps, elbo, label="training batches")
        axis.plot(at, held_out, "o", ms=4.5, color="C1", label="test images")
        limit(axis, np.concatenate([elbo, held_out[-1:]]))
        axis.set(xlabel="updates", ylabel="ELBO (nats)")
        axis.legend(loc="lower right")

    ending = f", {held_out[-1]:.2f} on test images" if len(at) else ""
    last = f"After {steps[-1]:,.0f} updates {elbo[-len(elbo) // 10 :].mean():.2f} nats in training{ending}."
    section.chart(plot, "Stage one: ELBO.", minus(last))


def _kl(section: Section, run: Run, L: int) -> None:
    records = [r for r in run.metrics("train-vae") if isinstance(r.get("kl"), list) and len(r["kl"]) == L]
    if not records:
        return

    def plot(axis) -> None:
        named = range(1, L + 1) if L <= 8 else {1, (L + 1) // 2, L}
        for layer in range(L, 0, -1):
            of_layer = [{"step": r["step"], "kl": r["kl"][layer - 1]} for r in records]
            label = f"layer {layer}" if layer in named else None
            plot_curve(axis, *points(of_layer, "kl"), color=layer_colour(layer, L), label=label)
        axis.set(xlabel="updates", ylabel="KL (nats)")
        axis.set_ylim(bottom=0)
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))

    dead = [str(k) for k, kl in enumerate(records[-1]["kl"], 1) if isinstance(kl, int | float) and kl < DEAD_NATS]
    idle = f"These carry less than {DEAD_NATS} nats at the end: {listed(dead)}." if dead else ""
    caption = f"From layer {L}, the top, to 1, the bottom. {idle or 'Every layer carries some at the end.'}"
    section.chart(plot, "Stage one: KL per layer.", caption)


def _prior(section: Section, run: Run, stage: str, title: str) -> None:
    """The loss, and what is known of the learning besides."""
    records = run.metrics(stage)
    steps, loss = points(records, "loss")
    if not len(steps):
        return
    seconds = run.seconds(stage)
    took = f", {duration(seconds)}" if seconds else ""

    def plot_loss(axis) -> None:
        plot_curve(axis, steps, loss)
        limit(axis, loss)
        axis.set(xlabel="updates", ylabel="loss")

    section.chart(plot_loss, f"{title}: loss.", f"{steps[-1]:,.0f} updates{took}.")
    for shown, what, caption in _besides(set().union(*records)):
        curves = {label: points(records, key) for key, label in shown.items()}
        curves = {label: curve for label, curve in curves.items() if len(curve[0])}
        if not curves:
            continue

        def plot(axis, curves=curves, what=what) -> None:
            for label, curve in curves.items():
                plot_curve(axis, *curve, label=label)
            axis.set(xlabel="updates", ylabel=what)
            if None not in curves:
                axis.legend(ncols=min(3, len(curves)))

        section.chart(plot, f"{title}: {what}.", caption)


def _besides(keys: set[str]) -> Iterator[tuple[dict[str, str | None], str, str]]:
    """What is worth a chart, of what training logs under these keys: curves and their labels, axis, caption."""
    if "nats" in keys:
        yield (
            {"nats": None},
            "F at posterior latents (nats)",
            "The hole found so far: mean log ratio of the aggregate posterior to the Gaussian, over noise levels.",
        )
    levels = sorted((key for key in keys if re.fullmatch(r"explained_\d+", key)), key=lambda key: int(key[10:]))
    if levels:
        yield (
            {key: f"level {key[10:]}" for key in levels},
            "explained",
            "How much of the score each noise level's energy explains beyond the Gaussian's own.",
        )
    if "negative_std" in keys:
        yield (
            {"positive_std": "posterior", "negative_std": "chain"},
            "standard deviation of u",
            "Spread of the posterior's latents and of the chain's; the two agree where the chain is sound.",
        )
    if "log_z" in keys:
        yield {"log_x": None}, "log p(x | z) (nats)", "Of training images given the latents inferred for them."
        yield {"log_z": None}, "log p(z) (nats)", "Of the latents inferred for training images, under the prior."
    if "z_std" in keys:
        yield {"z_std": None}, "standard deviation of z", "Spread of the latents inferred for training images."


def _labels(section: Section, run: Run, stages: list[str]) -> None:
    curves = {stage.removeprefix(LABEL): points(run.metrics(stage), "accuracy") for stage in stages}
    curves = {name: curve for name, curve in curves.items() if len(curve[0])}
    if not curves:
        return

    def plot(axis) -> None:
        for name, (steps, accuracy) in curves.items():
            plot_curve(axis, steps, accuracy, label=name)
        axis.set(xlabel="updates", ylabel="share right", ylim=(0, 1.02))
        axis.legend(loc="lower right", ncols=min(3, len(curves)))

    caption = "p(y | z, t) on noised posterior latents, over all noise levels."
    section.chart(plot, "Labels: training accuracy.", caption)
