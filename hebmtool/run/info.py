"""What a run is: its recipe, its layers, its priors, and the figures it reached."""

from hebmtool.generator import Tower
from hebmtool.prior import KINDS
from hebmtool.recipe import Recipe
from hebmtool.run import checkpoint, records
from hebmtool.run.folder import Run
from hebmtool.table import Table, for_stdout

UNSURE = ", of unknown origin"
"""Said of figures kept by a version that did not record what they were measured on."""

STALE = {records.UNKNOWN: UNSURE, records.ANOTHER: ", of other checkpoints than these"}

SHOWN, TOLD = 3, ("FD", "FID", "closure", "bits/dim")
"""Evaluations told in words, the newest, and the figures that are, by how their names begin."""

DEAD_NATS = 0.5
"""A layer below this carries nothing: the hierarchy is dead there."""


def describe(run: Run) -> dict:
    """What `hebm info` shows, but for `evaluations`, as data.  Layers are listed from the top (L) to the bottom (1).

    A run of one stage has the keys "missing", "sigma", "flow" (or "energy") and "langevin" where others have
    "likelihood", "generator_step", "elbo", "bits_per_dim" and "test_images"; it has no layers, and one prior.

    Raises:
        HebmError: it has no generator, or a file is unusable.
    """
    path = run.prior_path(run.priors()[-1]) if run.one_stage else run.require_generator()
    header = checkpoint.header(path)
    recipe = checkpoint.recipe(path, header)
    about = _one_stage(run, recipe, header) if run.one_stage else _two_stages(run, recipe, header)
    found = {"run": str(run.path), "recipe": recipe.name, "data": recipe.data.source}
    return found | about | {"labels": _labels(run), "package_version": header.package_version}


def _labels(run: Run) -> list[dict]:
    """The labels that were learned, each with its values and how often p(y | z, t) finds them in test images, by
    level."""
    found = []
    for name in run.labels():
        header = checkpoint.header(run.label_path(name))
        accuracy, accuracy_of = _of_this(run, "label_accuracy", name)
        values = checkpoint.extra(run.label_path(name), header, "values")
        found.append({"name": name, "values": values, "step": header.step, "accuracy": accuracy or None} | accuracy_of)
    return found


def evaluations(run: Run) -> list[dict]:
    """What `evaluate` kept, the newest first, each with whether it is of the checkpoints that are there."""
    newest, others = run.figure("evaluate"), run.figure("evaluations")
    every = ([newest.value] if newest else []) + (others.value if others else [])
    return [each | {"origin": records.origin(run.path, each["provenance"].get("checkpoints"))} for each in every]


def _two_stages(run: Run, recipe: Recipe, header: checkpoint.Header) -> dict:
    shape = checkpoint.extra(run.generator_path, header, "image_shape")
    generator = Tower(recipe.generator, shape, recipe.data.bits)
    found, bound_of = _of_this(run, "generator")
    kl = found.get("kl")
    if not isinstance(kl, list) or len(kl) != generator.L:
        kl = [None] * generator.L
    layers = []
    for l, (channels, *resolution) in enumerate(generator.latent_shapes):
        layer = generator.layer_number(l)
        layers.append({"layer": layer, "resolution": resolution, "channels": channels, "kl": kl[layer - 1]})
    priors = []
    for kind in run.priors():
        closure, closure_of = _of_this(run, "closure", kind)
        entry = {"kind": kind, "closure": closure or None} | closure_of
        if KINDS[kind].learned:
            entry["step"] = checkpoint.header(run.prior_path(kind)).step
        priors.append(entry)
    return {
        "image_shape": list(shape),
        "likelihood": recipe.generator.likelihood,
        "generator_step": header.step,
        "parameters": sum(p.numel() for p in generator.parameters()),
        "latent_dimensions": generator.D,
        "elbo": found.get("elbo"),
        "bits_per_dim": found.get("bits_per_dim"),
        "test_images": found.get("test_images"),
        "layers": layers,
        "priors": priors,
    } | bound_of


def _of_this(run: Run, *key: str) -> tuple[dict, dict]:
    """A figure, {} where there is none or it was measured on other checkpoints; and {"origin": ...} unless it was
    measured on those that are there."""
    kept = run.figure(*key)
    if kept is None:
        return {}, {}
    return (
        {} if kept.origin == records.ANOTHER else kept.value,
        {} if kept.origin == records.NOW else {"origin": kept.origin},
    )


def _one_stage(run: Run, recipe: Recipe, header: checkpoint.Header) -> dict:
    *_, kind = run.priors()
    prior, config = (
        KINDS[kind].from_recipe(recipe, checkpoint.extra(run.prior_path(kind), header, "image_shape")),
        recipe.flow,
    )
    figures, origin = _of_this(run, kind)
    return {
        "missing": recipe.data.missing,
        "image_shape": list(prior.generator.image_shape),
        "parameters": sum(p.numel() for p in prior.generator.parameters()),
        "latent_dimensions": prior.generator.D,
        "sigma": config.sigma,
        **prior.about(),
        "langevin": {key: getattr(config, key) for key in ("steps", "test_steps", "step_size")}
        | {"start": prior.starts_from, "persistent": config.persistent},
        "layers": [],
        "priors": [{"kind": kind, "step": header.step, "figures": figures or None} | origin],
    }


# In words -------------------------------------------------------------------------------------------------------------


def render(found: dict) -> str:
    """`describe`'s result as text for stdout."""
    channels, height, width = found["image_shape"]
    missing = "" if found.get("missing") is None else f", pixels missing: {found['missing']}"
    opening = f"{found['run']}: {found['recipe']}, {found['data']} images {channels}x{height}x{width}{missing}"
    lines = _two_stages_in_words(found) if found["layers"] else _one_stage_in_words(found)
    return "\n".join([opening, *lines, *map(_label_in_words, found["labels"]), *_evaluations_in_words(found)])


def _two_stages_in_words(found: dict) -> list[str]:
    bound = "" if found["elbo"] is None else f", ELBO {found['elbo']:.2f} nats, {found['bits_per_dim']:.3f} bits/dim"
    if bound and found["test_images"]:
        bound += f" ({found['test_images']:,} test images)"
    bound += UNSURE * (bool(bound) and found.get("origin") == records.UNKNOWN)
    generator = (
        f"generator: {found['parameters'] / 1e6:.2f} M parameters, {found['latent_dimensions']} latent dimensions, "
        f"{found['likelihood']} likelihood, {found['generator_step']} updates{bound}"
    )
    return [generator, "", for_stdout(_layers(found)), "", *map(_prior_in_words, found["priors"])]


def _layers(found: dict) -> Table:
    """A row per layer, its KL as a bar too."""
    rows, largest = [], max((layer["kl"] or 0.0 for layer in found["layers"]), default=0.0) or 1.0
    for layer in found["layers"]:
        kl, size = layer["kl"], "x".join(map(str, layer["resolution"]))
        dead = "  (dead: below 0.5)" if kl is not None and kl < DEAD_NATS else ""
        bar = "" if kl is None else "#" * round(20 * kl / largest) + dead
        rows.append([str(layer["layer"]), size, str(layer["channels"]), "" if kl is None else f"{kl:.2f}", bar])
    return Table(["layer", "resolution", "channels", "KL (nats)", ""], rows, align=">>>>")


def _prior_in_words(prior: dict) -> str:
    text, closure = f"prior {prior['kind']}", prior["closure"]
    if "step" in prior:
        text += f": {prior['step']} updates"
    if prior.get("origin") == records.ANOTHER:
        return f"{text}; its closure was measured on other checkpoints, and is left out"
    if closure and closure.get("closure") is not None:
        spread = "" if closure.get("error") is None else f" ± {closure['error']:.3f}"
        text += (
            f", closure {closure['closure']:.3f}{spread} (FD {closure['fd_prior']:.3f}, {closure['features']} features)"
            + UNSURE * (prior.get("origin") == records.UNKNOWN)
        )
        if closure.get("step") != prior["step"]:
            text += f", measured at update {closure.get('step')}"
    return text


def _label_in_words(label: dict) -> str:
    text = f"label {label['name']}: {len(label['values'])} values, {label['step']} updates"
    if label["accuracy"] is None:
        return text
    shares = ", ".join(f"{share:.1%}" for share in label["accuracy"])
    return f"{text}, found in {shares} of test images at levels 0, 1, ..."


def _evaluations_in_words(found: dict) -> list[str]:
    lines, kept = [], found.get("evaluations", [])
    for each in kept[:SHOWN]:
        p = records.Provenance(**each["provenance"])
        features = ", ".join(network.name for network in p.features)
        sets = f"{p.samples:,} images a set against {p.reference.images:,} {p.reference.split} images"
        lines += ["", f"evaluated {sets}, features {features}{STALE.get(each['origin'], '')}"]
        told: dict[str, list[str]] = {}
        for figure in (records.Entry(**entry) for entry in each["figures"]):
            if figure.layer is None and figure.value is not None and figure.name.partition(" ")[0] in TOLD:
                spread = "" if figure.error is None else f" ± {figure.error:.2g}"
                told.setdefault(figure.of, []).append(f"{figure.name} {figure.value:.3f}{spread}")
        lines += [f"  {of}: {', '.join(figures)}" for of, figures in told.items()]
    more = len(kept) - SHOWN
    return lines + [f"and {more} more, which are in the data"] * (more > 0)


def one_stage_facts(found: dict) -> dict[str, str]:
    """What a run of one stage is made of, by name."""
    run, [prior] = found["langevin"], found["priors"]
    chain = "persistent chains" if run["persistent"] else f"start from the {run['start']}"
    return {
        "generator": f"{found['parameters'] / 1e6:.2f} M parameters, one layer of {found['latent_dimensions']} latent "
        f"dimensions, Gaussian likelihood with sigma {found['sigma']}",
        "inference": f"Langevin, {run['steps']} steps of size {run['step_size']} in learning, {run['test_steps']} "
        f"after, {chain}",
        f"prior {prior['kind']}": f"{_made_of(found)}, {prior['step']} updates",
    }


def _made_of(found: dict) -> str:
    """A prior that brings its generator, as its `about` has it."""
    if "energy" in found:
        energy = found["energy"]
        return (
            f"an energy of {energy['blocks']} hidden layers of {energy['width']}, {energy['parameters'] / 1e6:.2f} M "
            f"parameters, drawn in {energy['steps']} steps of the {energy['chain']} chain"
        )
    flow = found["flow"]
    if not flow["transforms"]:
        return "no couplings: N(0, I)"
    return f"{flow['transforms']} {flow['coupling']} couplings, {flow['parameters'] / 1e6:.2f} M parameters"


def _one_stage_in_words(found: dict) -> list[str]:
    lines, [prior] = [f"{name}: {fact}" for name, fact in one_stage_facts(found).items()], found["priors"]
    figures = prior["figures"]
    if figures:
        fd = "" if figures["fd"] is None else f"FD {figures['fd']:.3f} ({figures['features']} features), "
        lines.append(
            f"  {fd}test reconstructions {decibels(figures['psnr'])} (MSE {figures['mse']:.5f}), "
            f"inferred z to prior {figures['match']['prior']:.3f} (floor {figures['match']['floor']:.3f})"
        )
        if "recovery" in figures:
            lines.append(f"  recovered pixels {decibels(figures['recovery']['psnr'])}")
        if figures.get("step") != prior["step"]:
            lines.append(f"  measured at update {figures.get('step')}")
        if prior.get("origin") == records.UNKNOWN:
            lines.append(f"  {UNSURE.removeprefix(', ')}")
    elif prior.get("origin") == records.ANOTHER:
        lines.append("  its figures were measured on other checkpoints, and are left out")
    return lines


def decibels(psnr: float | None) -> str:
    """None, for JSON has no infinity, stands for no error at all."""
    return "exact" if psnr is None else f"{psnr:.2f} dB"
