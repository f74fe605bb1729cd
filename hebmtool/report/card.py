"""The card of a run that is given away: what it is, how it is used, how good it is, in Markdown."""

import torch

from hebmtool import picture
from hebmtool.recipe import dump
from hebmtool.report.provenance import headline, summary
from hebmtool.report.subject import Subject
from hebmtool.table import Table, markdown
from hebmtool.use.sample import sample

PICTURE = "samples.png"
SAMPLES = 64
DIGITS = 3


def picture_of(subject: Subject) -> bytes:
    """The first images of the subject's seed by the best prior, a PNG."""
    images = torch.cat(list(sample(subject.best, SAMPLES, subject.seed, subject.batch_size)))
    return picture.to_png(picture.grid(images, 16))


def card(subject: Subject, name: str) -> str:
    """README.md of the run, as hubs show it.

    Arguments:
        name: what others open it by: a folder, or "hf://user/name".
    """
    recipe, kind = subject.recipe, subject.best.kind
    facts = Table(["", ""], [[name, value] for name, value in headline(subject)])
    lines = [
        "---",
        "library_name: hebmtool",
        "pipeline_tag: unconditional-image-generation",
        "tags: [energy-based-model, hierarchical-vae]",
        "---",
        "",
        f"# {recipe.name}",
        "",
        summary(subject),
        "",
        f"![{SAMPLES} images drawn from the {kind} prior]({PICTURE})",
        "",
        "## Use",
        "",
        "With hebmtool installed, at the command line or in Python:",
        "",
        f"    hebm info {name}",
        f"    hebm report {name}",
        "",
        "```python",
        "import hebmtool",
        "",
        f'model = hebmtool.load("{name}")',
        "model.sample(16, seed=0)  # uint8 [16, C, H, W]",
        "```",
        "",
        "## Figures",
        "",
        markdown(facts).strip(),
        "",
        *_closures(subject.found["priors"]),
        "## Recipe",
        "",
        "<details><summary>Every key</summary>",
        "",
        "```yaml",
        dump(recipe).strip(),
        "```",
        "",
        "</details>",
    ]
    return "\n".join(lines) + "\n"


def _closures(priors: list[dict]) -> list[str]:
    """Of every prior that was judged: how much of the prior hole it closes."""
    found = [(each["kind"], each.get("closure") or {}) for each in priors]
    rows = []
    for kind, closure in found:
        if closure.get("closure") is not None:
            shown = [
                f"{closure[key]:.{DIGITS}f}" for key in ("closure", "fd_gaussian", "fd_prior", "fd_reconstruction")
            ]
            rows.append([kind, *shown, str(closure["features"])])
    if not rows:
        return []
    head = ["prior", "closure", "FD, Gaussian prior", "FD, this prior", "FD, reconstructions", "features"]
    meaning = "Closure is the share of the prior hole that is closed: 0 for the Gaussian prior, 1 for reconstructions."
    return [markdown(Table(head, rows)).strip(), "", meaning, ""]
