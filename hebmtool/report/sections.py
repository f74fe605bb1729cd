"""A run on one page: what it is, what it draws, what was measured of it, as one self-contained HTML file.

Pictures are PNG data URIs, charts inline SVG whose colours are the page's own; the page loads nothing.  What a recipe
or a folder says reaches it escaped.  The same run, seed and versions give the same bytes.
"""

from importlib import metadata

import torch
from markupsafe import Markup

from hebmtool.console import progress
from hebmtool.report.drawn import label_grids, layers, progressive, samples
from hebmtool.report.measured import evaluation, out_of_distribution
from hebmtool.report.page import render
from hebmtool.report.provenance import headline, made_of, summary
from hebmtool.report.subject import Subject
from hebmtool.report.training import training
from hebmtool.run.folder import Run

SECTIONS = (samples, evaluation, training, progressive, layers, label_grids, out_of_distribution, made_of)
"""What makes a section of a subject, or None where there is nothing to show."""


def report(run: Run, device: torch.device, seed: int = 0, batch_size: int = 64) -> str:
    """The page, as HTML text.

    Arguments:
        seed: of everything drawn for it; images are those that `hebmtool.use.sample` draws of it.
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
    footer = Markup("Made by hebmtool {} with {}, seed {}").format(
        metadata.version("hebmtool"), subject.command("report", str(run.path)), seed
    )
    return render(
        {
            "title": run.name,
            "summary": summary(subject),
            "facts": headline(subject),
            "sections": sections,
            "footer": footer,
        }
    )
