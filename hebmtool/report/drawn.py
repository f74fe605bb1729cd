"""What a run draws: samples, reconstructions, the way from noise to data, each layer's part, each label."""

import torch
from markupsafe import Markup
from torch import Tensor

from hebmtool import picture
from hebmtool.judge import closure as closures
from hebmtool.prior import Prior
from hebmtool.prior.labels import CLASS
from hebmtool.report.page import Section, listed, number
from hebmtool.report.subject import Subject, name_of
from hebmtool.run import records
from hebmtool.run.open import load_labels
from hebmtool.use import controllable, hierarchy
from hebmtool.use import sample as sampling

GRID, COLUMNS = 64, 8
STRIPS = 10  # images followed from noise to data
BASES, RESAMPLES = 4, 8  # of every part of the hierarchy
PER_CLASS, MOST_CLASSES, MOST_LABELS = 8, 20, 6


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
        _reconstructions(section, subject)
    section.notes += subject.unusable
    if "step" not in subject.found["priors"][-1]:
        train = subject.command("train-prior", str(subject.run.path))
        section.notes.append(Markup("Only the Gaussian prior is there; train another with {}.").format(train))
    return section


def _reconstructions(section: Section, subject: Subject) -> None:
    n, generator = min(GRID // 2, len(subject.test)), subject.best.generator
    made = closures.reconstructions(subject.best, subject.test, subject.recipe, n)
    pairs = zip(made.split(COLUMNS), subject.test.batch(range(n)).split(COLUMNS), strict=True)
    # A last row that is not full would let the originals slide below other images.
    full = [row for pair in pairs for row in pair if len(row) == COLUMNS or n < COLUMNS]
    how = "from posterior draws" if generator.has_encoder else "from latents inferred by Langevin dynamics"
    section.image(
        picture.grid(torch.cat(full), min(n, COLUMNS)),
        "Reconstructions.",
        f"Rows in pairs: reconstructions of test images, {how}, and the test images themselves below.",
        "Test images in every second row, their reconstructions in the row above each.",
    )


def progressive(subject: Subject) -> Section | None:
    """Decoded stages of a few samples, of the best prior that draws in more than two."""
    section = Section("From noise to data", "images wide")
    with section.attempt():
        for prior in subject.priors[::-1]:
            images, stages = sampling.progressive(prior, STRIPS, subject.seed, subject.batch_size)
            if stages > 2:
                _trajectories(section, subject, prior, images.unflatten(0, (STRIPS, stages)))
                break
    return section if section.figures or section.notes else None


def _trajectories(section: Section, subject: Subject, prior: Prior, images: Tensor) -> None:
    """images: [STRIPS, stages, C, H, W]."""
    first, how = images.shape[1] - 1, "at every noise level" if prior.T else "after every coupling"
    section.image(
        picture.rows([(f"u_{first - i}", row) for i, row in enumerate(images.transpose(0, 1))]),
        f"{name_of(prior)}, decoded {how}.",
        f"Top row: u_{first}, Gaussian noise; bottom row: u_0, the samples 0 to {STRIPS - 1} of seed {subject.seed}. A "
        "column is one trajectory.",
        f"{STRIPS} trajectories of the {name_of(prior)} as columns; images take shape from the top row, decoded noise, "
        "to the bottom row, the samples.",
    )


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
        for name in sorted(labels, key=lambda name: (name != CLASS, name))[:MOST_LABELS]:
            _label_grid(section, subject, prior, labels, name)
        more = Markup("How many come out as asked, and other labels: {}.")
        section.notes.append(more.format(subject.command("controllable")))
    return section


def _label_grid(section: Section, subject: Subject, prior: Prior, labels: dict, name: str) -> None:
    wanted = controllable.rows([controllable.Wish(name, controllable.EVERY)], labels)[:MOST_CLASSES]
    drawn = controllable.sample(prior, labels, wanted, PER_CLASS, subject.seed, subject.batch_size)
    kept = subject.run.figure("label_accuracy", name)
    accuracy = kept.value if kept is not None and kept.origin != records.ANOTHER else None
    right = f" p(y | z, t) is right on {100 * accuracy[0]:.1f}% of test images at level 0." if accuracy else ""
    values = listed([row[0].value for row in wanted])
    section.image(
        controllable.figure(drawn, wanted, None),
        f"Label {name}.",
        f"Rows: {values}.{right}",
        f"{PER_CLASS} samples in a row for each value of the label {name}: {values}.",
    )
