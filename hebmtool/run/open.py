"""What a run holds, loaded and frozen: its generator, its priors, its labels."""

import torch

from hebmtool.errors import HebmError, UsageError
from hebmtool.generator import Generator, Tower, Whitening, readjust_batchnorm
from hebmtool.prior import KINDS, Prior, make_prior
from hebmtool.prior.labels import LabelEnergy
from hebmtool.run import checkpoint
from hebmtool.run.folder import Run
from hebmtool.run.header import is_of

KIND = "generator"
# Prefixes, in a prior's checkpoint, of the generator's BatchNorm statistics where they were re-estimated for it, and of
# the whitening of its latents.
STATISTICS, WHITENING = "generator.", "whitening."
# In its header, what was measured at the end of learning: steps of an exact chain, and `Prior.posterior_tilt`.
STEPS, TILT = "steps", "posterior_tilt"


def load_generator(run: Run, device: torch.device) -> Tower:
    """The run's generator (averaged weights), in evaluation mode.

    Raises:
        HebmError: the run has none, or the file is unusable.
    """
    run.require_generator()
    tensors, header = checkpoint.load(run.generator_path, kind=KIND)
    recipe = checkpoint.recipe(run.generator_path, header)
    generator = Tower(recipe.generator, checkpoint.extra(run.generator_path, header, "image_shape"), recipe.data.bits)
    checkpoint.load_into(generator, tensors, run.generator_path)
    return generator.eval().to(device)


def load_prior(
    run: Run,
    kind: str,
    device: torch.device,
    readjust_bn: int = 0,
    temperature: float = 1.0,
    precision: str = "float32",
) -> Prior:
    """The run's trained prior of this kind (averaged weights), on its generator, both frozen.

    Arguments:
        readjust_bn: re-estimate BatchNorm statistics on this many generated batches first; 0 keeps those the prior was
            trained with.
        temperature: of those batches.
        precision: "float32" or "bf16", of generator and energies (`Tower.frozen`).

    Raises:
        HebmError: it has not been trained, or its file is unusable.
    """
    run.require_prior(kind)
    if KINDS[kind].brings_generator:
        if readjust_bn:
            raise UsageError(f"a {kind} prior's generator has no BatchNorms whose statistics could be re-estimated")
        return _with_its_generator(run, kind, device)
    generator = load_generator(run, device)
    config, tensors, moments = run.recipe().prior.model_copy(update={"kind": kind}), {}, {}
    if KINDS[kind].learned:
        tensors, header = checkpoint.load(run.prior_path(kind), kind=kind)
        trained_with = checkpoint.recipe(run.prior_path(kind), header)
        recorded = header.extra.get("generator")
        ours = recorded is None or is_of(recorded, run.generator_path)
        if trained_with.generator != generator.config or not ours:
            raise HebmError(
                f"{run.prior_path(kind)} was trained on another generator than {run.generator_path} is now; "
                f"move it away and train it again with `hebm train-prior`"
            )
        config = trained_with.prior
        statistics, moments = (
            {k.removeprefix(prefix): tensors.pop(k) for k in list(tensors) if k.startswith(prefix)}
            for prefix in (STATISTICS, WHITENING)
        )
        if statistics:
            checkpoint.load_into(generator, generator.state_dict() | statistics, run.prior_path(kind))
    if readjust_bn:
        readjust_batchnorm(generator, readjust_bn, temperature=temperature)
    generator = generator.frozen(precision)
    if KINDS[kind].learned and config.whiten:
        whitening = Whitening.identity(generator.D)
        checkpoint.load_into(whitening, moments, run.prior_path(kind))
        generator.whiten(whitening)
    prior = make_prior(generator, config)
    checkpoint.load_into(prior, tensors, run.prior_path(kind))
    prior.settle()
    prior = prior.eval().requires_grad_(False)
    if KINDS[kind].learned:
        prior.stepping(header.extra.get(STEPS))
        prior.posterior_tilt = header.extra.get(TILT)
    return prior


def _with_its_generator(run: Run, kind: str, device: torch.device) -> Prior:
    path = run.prior_path(kind)
    tensors, header = checkpoint.load(path, kind=kind)
    prior = KINDS[kind].from_recipe(checkpoint.recipe(path, header), checkpoint.extra(path, header, "image_shape"))
    checkpoint.load_into(prior, tensors, path)
    prior = prior.to(device).eval().requires_grad_(False)
    prior.settle()
    prior.stepping(None)
    return prior


def load_labels(run: Run, generator: Generator) -> dict[str, LabelEnergy]:
    """The run's trained labels by name, ready for use on its frozen generator.

    Raises:
        HebmError: a file is unusable, or belongs to another generator.
    """
    found = {}
    for path in run.label_paths():
        tensors, header = checkpoint.load(path, kind="label")
        if not is_of(header.extra.get("generator"), run.generator_path):
            raise HebmError(
                f"{path} was trained on another generator than {run.generator_path} is now; move it away and learn "
                "the label again"
            )
        prior = checkpoint.recipe(path, header).prior
        name, values = (checkpoint.extra(path, header, key) for key in ("label", "values"))
        label = LabelEnergy(name, values, generator, prior, header.extra.get("whitening"))
        checkpoint.load_into(label, tensors, path)
        label.to(generator.device).eval()
        label.energy.settle()
        label.energy.fix()
        found[label.name] = label
    return found
