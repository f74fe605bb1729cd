"""Right on an accelerator by construction: every update and every chain runs on the device `meta` (tests/meta.py).

What is registered under a word is run here under that word: a new kind of prior, objective, chain or likelihood needs
no test of its own for this.
"""

import pytest
import torch
from meta import META, accelerated
from tiny import DIGITS
from toys import ENERGY_KINDS, toy_label, toy_prior

from hebmtool import recipe
from hebmtool.chains import CHAINS
from hebmtool.generator import Tower, Whitening
from hebmtool.generator.layers import SpectralPenalty
from hebmtool.generator.likelihood import LIKELIHOODS
from hebmtool.prior import KINDS, OBJECTIVES, Prior
from hebmtool.prior.energy import SpectralConv
from hebmtool.prior.labels import Condition, LabelEnergy
from hebmtool.prior.objectives import RUN_CHAINS
from hebmtool.prior.schedule import Schedule
from hebmtool.recipe import words
from hebmtool.run.folder import Run
from hebmtool.train import labels, vae
from hebmtool.train.loop import Ema, Updates

N = 4
PRECISIONS = ("float32", "bf16")
every_precision = pytest.mark.parametrize("precision", PRECISIONS)
every_chain = pytest.mark.parametrize("chain", sorted(CHAINS))
LEARNED = [
    (kind, objective, chain)
    for kind in ENERGY_KINDS
    for objective in sorted(OBJECTIVES)
    for chain in (sorted(CHAINS) if objective in RUN_CHAINS else ["underdamped"])
    if kind != "ebm" or objective not in ("score-matching", "telescope")  # which the recipe refuses
]


def made(make_generator, precision="float32", **keys) -> Tower:
    """A tiny frozen generator, on the CPU."""
    generator = make_generator(**keys)
    generator.precision = precision
    return generator.to(torch.bfloat16) if precision == "bf16" else generator


def placed(prior: Prior) -> Prior:
    """It, and its generator, on the device."""
    prior.generator.to(META)
    if prior.T:
        prior.schedule.on(META)  # copied over once
    return prior.to(META)


def descend(tmp_path, module, loss, parts=(), by=torch.optim.SGD):
    """One update, as the trainings make it."""
    optimizer, ema = by(module.parameters(), lr=1e-3), Ema(module, 0.9)
    with Updates(Run(tmp_path), "stage", 0, recipe.TrainPrior(), 10, 0, save=lambda step: None) as updates:
        for _ in updates:
            with accelerated():
                found = loss()
                updates.add(found)
                norms = updates.descend(optimizer, module, ema, "the.knob", parts)
            break
    assert norms.device == found.device == META and norms.shape == (max(1, len(parts)),)


def noise(generator):
    return lambda: torch.randn(N, generator.D, device=META)


# Updates


@every_precision
@pytest.mark.parametrize("likelihood", sorted(LIKELIHOODS))
def test_an_update_of_stage_one(tmp_path, likelihood, precision):
    small = ["generator.encoder_channels=4", "generator.decoder_channels=4", "generator.preprocess_blocks=0"]
    small += ["generator.postprocess_blocks=0"]
    settings = recipe.load("digits", [*DIGITS, *small, f"generator.likelihood={likelihood}", "generator.flows=1"])
    config = settings.train_vae.model_copy(update={"precision": precision, "kl_balance": True, "spectral_weight": 0.1})
    with META:
        generator = Tower(settings.generator, (1, 8, 8)).train()
    penalty = SpectralPenalty(generator).to(META)
    by = torch.optim.Adamax if likelihood == "bernoulli" else torch.optim.SGD
    sizes, x = vae.pixels(generator), torch.rand(N, 1, 8, 8, device=META)
    descend(tmp_path, generator, lambda: vae.objective(generator, penalty, config, 0.5, sizes, x)[0], by=by)


@every_precision
@pytest.mark.parametrize(("kind", "objective", "chain"), LEARNED)
def test_an_update_of_stage_two(tmp_path, make_generator, kind, objective, chain, precision):
    generator = made(make_generator, precision)
    prior = placed(toy_prior(generator, kind, chain, steps=1, objective=objective, margin=0.1, penalty=0.1))
    x = torch.rand(N, *generator.image_shape, device=META)

    def loss():
        with torch.no_grad():
            u_0 = generator.encode(x)
        found, figures = prior.loss(u_0, x)
        assert all(not isinstance(value, torch.Tensor) or value.device == META for value in figures.values())
        return found

    descend(tmp_path, prior, loss)


@every_precision
def test_an_update_of_a_label(tmp_path, make_generator, precision):
    generator = made(make_generator, precision)
    label = LabelEnergy("class", ("a", "b"), generator, recipe.Prior(energy=recipe.Energy(width=6, blocks=1))).to(META)
    generator.to(META)
    schedule = Schedule(3).on(META)
    x, y = torch.rand(N, *generator.image_shape, device=META), torch.zeros(N, dtype=torch.long, device=META)
    descend(tmp_path, label, lambda: labels.objective(label, generator, schedule, x, y)[0], by=torch.optim.Adam)


@pytest.mark.parametrize(("kind", "coupling"), [("flow", "affine"), ("flow", "spline"), ("latent-ebm", "affine")])
def test_an_update_of_one_stage(tmp_path, make_generator, kind, coupling):
    model = placed(toy_prior(make_generator(), kind, "unscaled", coupling=coupling))
    x, observed = torch.rand(N, 1, 8, 8, device=META), torch.ones(N, 1, 8, 8, dtype=torch.bool, device=META)

    def loss():
        z_0 = torch.randn(N, model.g.D, device=META)
        z = model.infer(x, model.start(z_0, 0), 2, lambda: torch.randn_like(z_0), observed)
        return model.loss(z, x, observed)[0]

    descend(tmp_path, model, loss, [part for part, _ in model.networks(recipe.TrainPrior())])


# Drawing and scoring


@every_precision
@every_chain
@pytest.mark.parametrize("kind", ENERGY_KINDS)
def test_every_chain_draws(make_generator, kind, chain, precision):
    """Free, at other temperatures, with layers held, of another chain's energy, and on p(u_0) itself."""
    generator = made(make_generator, precision)
    # A move of an exact chain takes some gradients, and its steps were adapted before.
    prior = placed(toy_prior(generator, kind, chain, steps=6 if CHAINS[chain].exact else 1))
    prior.stepping(0.3)
    other = prior.using(chain=next(word for word in sorted(CHAINS) if word != chain), theta=0.3)
    mask = torch.zeros(generator.D, dtype=torch.bool, device=META)
    with accelerated():
        stages = list(prior.trajectory(noise(generator), tau=0.9))
        *_, u = prior.trajectory(noise(generator), held=(mask, [*stages, stages[-1]]))
        u = prior.refine(other.sample(noise(generator)), noise(generator), held=(mask, u))
        assert generator.images(u).device == META
        assert prior.log_ratio(u).shape == (N, generator.L) and prior.log_density(u).shape == (N,)


@every_precision
def test_draws_and_updates_know_labels_and_whitened_latents(make_generator, precision):
    generator = made(make_generator, precision)
    generator.whiten(Whitening.identity(generator.D))
    label = toy_label(generator)
    for conv in label.modules():
        if isinstance(conv, SpectralConv):
            conv.fixed = tuple(each.to(META) for each in conv.fixed)
    condition = Condition(label.to(META), torch.zeros(N, dtype=torch.long, device=META), 2.0)
    prior = placed(toy_prior(generator, steps=1)).given([condition])
    with accelerated():
        assert prior.log_tilt(prior.sample(noise(generator))).device == META


@pytest.mark.parametrize("kind", sorted(words.ONE_STAGE))
def test_a_prior_of_one_stage_draws_and_scores(make_generator, kind):
    model = placed(toy_prior(make_generator(), kind))
    with accelerated():
        u = model.sample(lambda: torch.randn(N, model.g.D, device=META))
        assert model.log_ratio(u).device == model.generator.images(u).device == META


def test_every_kind_is_run_here():
    """What this file knows by name is all there is."""
    ours = {kind for kind, of in KINDS.items() if of.__module__.startswith("hebmtool.")}
    assert {*ENERGY_KINDS, "gaussian", *words.ONE_STAGE} >= ours


# That it would show


def planted(what):
    """An objective that does `what` to its loss besides."""

    def objective(prior, u_0, x):
        loss, figures = OBJECTIVES["nce"](prior, u_0, x)
        what(loss)
        return loss, figures

    return objective


@pytest.mark.parametrize(
    "what",
    [
        lambda loss: loss.item(),
        lambda loss: loss.isfinite() and None,
        lambda loss: loss.cpu(),
        lambda loss: loss + torch.zeros(1),
        lambda loss: torch.zeros(2).to(loss.device),
        lambda loss: loss.new_ones(3)[loss.new_ones(3) > 0],
        lambda loss: torch.cat([loss[None], torch.zeros(1)]),
    ],
    ids=["item", "branch", "read back", "left on the CPU", "copied over", "shape from values", "joined"],
)
def test_what_would_make_an_accelerator_wait_fails(tmp_path, make_generator, monkeypatch, what):
    monkeypatch.setitem(OBJECTIVES, "planted", planted(what))
    prior = placed(toy_prior(made(make_generator)))
    u_0 = torch.randn(N, prior.generator.D, device=META)
    prior.config = prior.config.model_copy(update={"objective": "planted"})
    with pytest.raises((RuntimeError, NotImplementedError, AssertionError)):
        descend(tmp_path, prior, lambda: prior.loss(u_0, u_0)[0])
