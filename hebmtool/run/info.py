"""What a run is: its recipe, its layers, its priors, and the figures it reached."""

import torch

from hebmtool.generator import Tower
from hebmtool.prior import KINDS
from hebmtool.run import checkpoint
from hebmtool.run.folder import Run
from hebmtool.run.open import load_prior

# A layer below this carries nothing: the hierarchy is dead there.
DEAD_NATS = 0.5


def describe(run: Run) -> dict:
    """Everything `hebm info` shows, as plain data.  Layers are listed from the top (L) to the bottom (1)."""
    if run.one_stage:
        return describe_flow(run)
    run.require_generator()
    header = checkpoint.header(run.generator_path)
    recipe = checkpoint.recipe(run.generator_path, header)
    shape = header.extra["image_shape"]
    generator = Tower(recipe.generator, shape, recipe.data.bits)
    figures = run.figures()
    found = figures.get("generator") if isinstance(figures.get("generator"), dict) else {}
    kl = found.get("kl")
    if not isinstance(kl, list) or len(kl) != generator.L:
        kl = [None] * generator.L
    layers = [
        {
            "layer": generator.layer_number(l),
            "resolution": list(hw),
            "channels": z,
            "kl": kl[generator.layer_number(l) - 1],
        }
        for l, (z, *hw) in enumerate(generator.latent_shapes)
    ]
    priors = []
    for kind in run.priors():
        entry = {"kind": kind, "closure": figures.get("closure", {}).get(kind)}
        if KINDS[kind].learned:
            entry["step"] = checkpoint.header(run.prior_path(kind)).step
        priors.append(entry)
    return {
        "run": str(run.path),
        "recipe": recipe.name,
        "data": recipe.data.source,
        "image_shape": list(shape),
        "likelihood": recipe.generator.likelihood,
        "generator_step": header.step,
        "parameters": sum(p.numel() for p in generator.parameters()),
        "latent_dimensions": generator.D,
        "elbo": found.get("elbo"),
        "bits_per_dim": found.get("bits_per_dim"),
        "layers": layers,
        "priors": priors,
        "package_version": header.package_version,
    }


def describe_flow(run: Run) -> dict:
    """`describe` for a flow run, which has no layers and one prior."""
    [kind] = run.priors()
    model = load_prior(run, kind, torch.device("cpu"))
    header = checkpoint.header(run.prior_path(kind))
    recipe, config = checkpoint.recipe(run.prior_path(kind), header), model.config
    return {
        "run": str(run.path),
        "recipe": recipe.name,
        "data": recipe.data.source,
        "missing": recipe.data.missing,
        "image_shape": list(model.g.image_shape),
        "parameters": sum(p.numel() for p in model.g.parameters()),
        "latent_dimensions": config.latent,
        "sigma": config.sigma,
        "flow": {
            "transforms": config.transforms,
            "coupling": config.coupling,
            "parameters": sum(p.numel() for p in model.couplings.parameters()),
        },
        "langevin": {key: getattr(config, key) for key in ("steps", "test_steps", "step_size", "start", "persistent")},
        "layers": [],
        "priors": [{"kind": kind, "step": header.step, "figures": run.figures().get(kind)}],
        "package_version": header.package_version,
    }


def render_flow(found: dict) -> str:
    (channels, height, width), flow, run = found["image_shape"], found["flow"], found["langevin"]
    prior, chain = found["priors"][0], "persistent chains" if run["persistent"] else f"from the {run['start']}"
    what = (
        f"{flow['transforms']} {flow['coupling']} couplings, {flow['parameters'] / 1e6:.2f} M parameters"
        if flow["transforms"]
        else "no couplings: N(0, I)"
    )
    lines = [
        f"{found['run']}: {found['recipe']}, {found['data']} images {channels}x{height}x{width}"
        + (f", pixels missing: {found['missing']}" if found["missing"] is not None else ""),
        f"generator: {found['parameters'] / 1e6:.2f} M parameters, one layer of {found['latent_dimensions']} latent "
        f"dimensions, Gaussian likelihood with sigma {found['sigma']}",
        f"inference: Langevin, {run['steps']} steps of size {run['step_size']} in learning, {run['test_steps']} after, "
        f"{'start ' * (not run['persistent'])}{chain}",
        f"prior flow: {what}, {prior['step']} updates",
    ]
    figures = prior["figures"]
    if figures:
        fd = "" if figures["fd"] is None else f"FD {figures['fd']:.3f} ({figures['features']} features), "
        lines.append(
            f"  {fd}test reconstructions {_decibels(figures['psnr'])} (MSE {figures['mse']:.5f}), "
            f"inferred z to prior {figures['match']['prior']:.3f} (floor {figures['match']['floor']:.3f})"
        )
        if "recovery" in figures:
            lines.append(f"  recovered pixels {_decibels(figures['recovery']['psnr'])}")
        if figures["step"] != prior["step"]:
            lines.append(f"  measured at update {figures['step']}")
    return "\n".join(lines)


def _decibels(psnr: float | None) -> str:
    return "exact" if psnr is None else f"{psnr:.2f} dB"  # JSON has no infinity


def render(found: dict) -> str:
    """`describe`'s result as text for a terminal."""
    if "flow" in found:
        return render_flow(found)
    channels, height, width = found["image_shape"]
    bound = "" if found["elbo"] is None else f", ELBO {found['elbo']:.2f} nats, {found['bits_per_dim']:.3f} bits/dim"
    lines = [
        f"{found['run']}: {found['recipe']}, {found['data']} images {channels}x{height}x{width}",
        f"generator: {found['parameters'] / 1e6:.2f} M parameters, {found['latent_dimensions']} latent dimensions, "
        f"{found['likelihood']} likelihood, {found['generator_step']} updates{bound}",
        "",
        "layer  resolution  channels  KL (nats)",
    ]
    largest = max((layer["kl"] or 0.0 for layer in found["layers"]), default=0.0) or 1.0
    for layer in found["layers"]:
        size = "x".join(map(str, layer["resolution"]))
        kl = layer["kl"]
        bar = "" if kl is None else f"{kl:9.2f}  {'#' * round(20 * kl / largest)}"
        dead = "  (dead: below 0.5)" if kl is not None and kl < DEAD_NATS else ""
        lines.append(f"{layer['layer']:5}  {size:>10}  {layer['channels']:8}  {bar}{dead}".rstrip())
    lines.append("")
    for prior in found["priors"]:
        closure = prior["closure"]
        text = f"prior {prior['kind']}"
        if "step" in prior:
            text += f": {prior['step']} updates"
        if closure and closure.get("closure") is not None:
            spread = "" if closure.get("error") is None else f" ± {closure['error']:.3f}"
            text += (
                f", closure {closure['closure']:.3f}{spread} "
                f"(FD {closure['fd_prior']:.3f}, {closure['features']} features)"
            )
            if closure.get("step") != prior["step"]:
                text += f", measured at update {closure.get('step')}"
        lines.append(text)
    return "\n".join(lines)
