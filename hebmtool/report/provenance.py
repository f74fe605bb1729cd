"""What a run is made of: the few facts at the top of the page, and layers, checkpoints, versions, recipe at its end."""

import platform
from importlib import metadata

from markupsafe import Markup

from hebmtool import files, recipe
from hebmtool.report.page import Section, code, duration, listed, minus, number, plural
from hebmtool.report.subject import Subject, shape_words
from hebmtool.run import checkpoint, info
from hebmtool.table import Table

DIGITS = 16
"""Of a SHA-256."""


def headline(subject: Subject) -> list[tuple[str, str]]:
    """The few facts at the top of the page."""
    found, run = subject.found, subject.run
    layers = plural(len(found["layers"]) or 1, "layer")
    facts = [
        ("Images", shape_words(found["image_shape"])),
        ("Generator", f"{layers}, {found['parameters'] / 1e6:.2f} M parameters"),
        ("Likelihood", found.get("likelihood") or f"gaussian, sigma {found['sigma']}"),
    ]
    if found.get("elbo") is not None:
        facts.append(("Test ELBO", minus(f"{found['elbo']:.2f} nats, {found['bits_per_dim']:.3f} bits/dim")))
    closures = [(prior["kind"], prior.get("closure") or {}) for prior in found["priors"]]
    closures = [(each["closure"], each["error"], kind) for kind, each in closures if each.get("closure") is not None]
    if closures:
        value, error, kind = max(closures, key=lambda closure: closure[0])
        facts.append((f"Closure, {kind}", number(value, error)))
    for prior in found["priors"]:
        if prior.get("figures"):
            facts.append(("Test reconstructions", info.decibels(prior["figures"].get("psnr"))))
    times = [run.seconds(stage) for stage in ("train-vae", *(f"train-prior {kind}" for kind in run.priors()))]
    if any(times):
        facts.append(("Training time", " + ".join(duration(t) for t in times if t)))
    return facts


def summary(subject: Subject) -> str:
    found = subject.found
    images = f"{shape_words(found['image_shape'])} images ({found['data']})"
    trained = [prior["kind"] for prior in found["priors"] if "step" in prior]
    if not found["layers"]:
        return (
            f"A generator of {images} with one layer of {found['latent_dimensions']:,} latent dimensions, learned "
            f"together with its {listed(trained)} prior. Recipe: {found['recipe']}."
        )
    words = (
        f"the {listed(trained)} prior{'s' * (len(trained) > 1)} beside" if trained else "no trained prior yet beside"
    )
    return (
        f"A hierarchical generator of {images} with {found['latent_dimensions']:,} latent dimensions, and {words} its "
        f"Gaussian one. Recipe: {found['recipe']}."
    )


def made_of(subject: Subject) -> Section:
    """Layers, checkpoints, versions, the recipe."""
    section, found = Section("Run and provenance"), subject.found
    if found["layers"]:
        section.tables.append(_layers(found["layers"]))
    rows = []
    for path in subject.run.checkpoints():
        if path.name.endswith(".train.safetensors"):
            continue
        with section.attempt():
            header = checkpoint.header(path)
            size, digest = f"{path.stat().st_size / 1e6:.1f} MB", code(files.digest(path)[:DIGITS])
            rows.append([path.name, f"{header.step:,}", size, header.package_version, digest])
    head = ["file", "updates", "size", "hebmtool", f"SHA-256 (first {DIGITS})"]
    section.tables.append(Table(head, rows, "<>>", "Checkpoints"))
    facts = [
        ("run folder", str(subject.run.path)),
        ("data", " ".join(filter(None, [subject.recipe.data.source, subject.recipe.data.path]))),
        *([] if found["layers"] else info.one_stage_facts(found).items()),
        ("recipe seed", str(subject.recipe.seed)),
        ("seed of this report", str(subject.seed)),
        ("device of this report", str(subject.device)),
        *((name, metadata.version(name)) for name in ("hebmtool", "torch")),
        ("python", platform.python_version()),
    ]
    section.tables.append(Table([], [list(fact) for fact in facts], caption="Provenance"))
    section.folded.append(("The whole recipe", recipe.dump(subject.recipe)))
    return section


def _layers(layers: list[dict]) -> Table:
    """A row per layer, its KL as a bar too."""
    rows, largest = [], max((layer["kl"] or 0.0 for layer in layers), default=0.0) or 1.0
    bar = Markup('<span class="bar" aria-hidden="true"><span style="width: {}%"></span></span>')
    for layer in layers:
        kl, size = layer["kl"], "×".join(map(str, layer["resolution"]))
        shown = ["–", ""] if kl is None else [f"{kl:.2f}", bar.format(f"{100 * max(kl, 0) / largest:.0f}")]
        rows.append([str(layer["layer"]), size, str(layer["channels"]), *shown])
    head = ["layer", "resolution", "channels", "KL (nats)", ""]
    return Table(head, rows, ">>>>", "Layers of the generator, top to bottom")
