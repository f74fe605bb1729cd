"""What is loaded of a run: the averaged weights, frozen, and never on another generator than its own."""

import shutil

import pytest
import torch

from hebmtool.errors import HebmError, UsageError
from hebmtool.noise import Noise
from hebmtool.prior import KINDS
from hebmtool.run import checkpoint
from hebmtool.run.folder import Run
from hebmtool.run.open import load_generator, load_labels, load_prior

CPU = torch.device("cpu")
RUN_OF = {"gaussian": "digits", "ebm": "digits", "diffusion-ebm": "digits", "flow": "flow"}


@pytest.mark.parametrize("kind", RUN_OF)
def test_a_prior_is_the_saved_one_frozen_and_the_same_at_every_load(tiny, kind):
    run = Run(tiny / RUN_OF[kind])
    prior, again = (load_prior(run, kind, CPU) for _ in range(2))
    assert type(prior) is KINDS[kind]
    assert not any(p.requires_grad for p in [*prior.parameters(), *prior.generator.parameters()])
    assert not prior.training and not prior.generator.training
    saved, _ = checkpoint.load(run.prior_path(kind)) if prior.learned else ({}, None)
    state = prior.state_dict()
    for key, value in saved.items():
        # The power iterations' vectors are settled on the averaged weights.
        assert key.endswith((".left", ".right")) or torch.equal(state[key], value)
    D = prior.generator.D
    assert torch.equal(prior.sample(Noise(0, range(3), D)), again.sample(Noise(0, range(3), D)))
    images = prior.generator.images(prior.sample(Noise(0, range(3), D)))
    assert images.shape == (3, 1, 8, 8) and images.isfinite().all()


def test_a_generator_is_that_of_its_checkpoint(tiny):
    run = Run(tiny / "digits")
    generator = load_generator(run, CPU)
    saved, header = checkpoint.load(run.generator_path)
    assert generator.image_shape == tuple(header.extra["image_shape"]) and not generator.training
    assert all(torch.equal(value, generator.state_dict()[key]) for key, value in saved.items())
    with pytest.raises(HebmError, match="is a flow model, whose latent has one layer"):
        load_generator(Run(tiny / "flow"), CPU)


def test_labels_are_ready_for_use(tiny):
    run = Run(tiny / "digits")
    generator = load_prior(run, "diffusion-ebm", CPU).generator
    labels = load_labels(run, generator)
    assert list(labels) == ["class"] and labels["class"].values == [str(k) for k in range(10)]
    assert not any(p.requires_grad for p in labels["class"].parameters())
    found = labels["class"].log_prob(generator.walk(torch.randn(2, generator.D)), torch.zeros(2, dtype=torch.long))
    assert torch.allclose(found.exp().sum(1), torch.ones(2))


def test_what_is_on_another_generator_is_refused(copied):
    run = Run(copied / "digits")
    tensors, head = checkpoint.load(run.generator_path)
    tensors["constant"] = tensors["constant"] + 1
    keys = {"kind": head.kind, "recipe": head.recipe, "step": head.step, "extra": head.extra}
    checkpoint.save(run.generator_path, tensors, **keys)
    for kind in ("ebm", "diffusion-ebm"):
        with pytest.raises(HebmError, match="was trained on another generator than .* is now; move it away") as raised:
            load_prior(run, kind, CPU)
        assert "\n" not in str(raised.value)
    generator = load_prior(run, "gaussian", CPU).generator  # which is the generator's own
    with pytest.raises(HebmError, match="label-class.* was trained on another generator"):
        load_labels(run, generator)


def test_what_does_not_fit_or_is_not_there_is_a_sentence(copied):
    run = Run(copied / "digits")
    with pytest.raises(UsageError, match="no kind of prior 'edm'"):
        load_prior(run, "edm", CPU)
    with pytest.raises(HebmError, match="has no 'flow' prior"):
        load_prior(run, "flow", CPU)
    with pytest.raises(UsageError, match="a flow prior's generator has no BatchNorms"):
        load_prior(Run(copied / "flow"), "flow", CPU, readjust_bn=2)
    shutil.copy(run.prior_path("ebm"), run.prior_path("diffusion-ebm"))
    with pytest.raises(HebmError, match="holds a 'ebm' checkpoint where a 'diffusion-ebm' one is needed"):
        load_prior(run, "diffusion-ebm", CPU)
    tensors, head = checkpoint.load(run.prior_path("ebm"))
    missing = next(iter(tensors))
    del tensors[missing]
    checkpoint.save(run.prior_path("ebm"), tensors, kind="ebm", recipe=head.recipe, step=head.step, extra=head.extra)
    with pytest.raises(HebmError, match=f"'{missing}' is missing"):
        load_prior(run, "ebm", CPU)


def test_batchnorms_are_estimated_again_when_asked(tiny):
    run = Run(tiny / "digits")
    as_it_is, again = (load_prior(run, "ebm", CPU, readjust_bn=n) for n in (0, 2))
    u = torch.randn(3, as_it_is.generator.D)
    assert not torch.equal(as_it_is.generator.images(u), again.generator.images(u))
    assert torch.equal(again.generator.images(u), load_prior(run, "ebm", CPU, readjust_bn=2).generator.images(u))


def test_states_and_weights_may_be_in_bf16(tiny):
    run = Run(tiny / "digits")
    half = load_prior(run, "diffusion-ebm", CPU, precision="bf16")
    full = load_prior(run, "diffusion-ebm", CPU)
    u = torch.randn(4, full.generator.D)
    assert half.log_density(u).dtype == torch.float32
    assert torch.allclose(half.generator.images(u), full.generator.images(u), atol=0.05)
