"""Published checkpoints: the three vectors are reproduced, every geometry comes through, nothing unsafe is run."""

import argparse
import io
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from hebmtool import recipe
from hebmtool.errors import HebmError, UsageError
from hebmtool.generator import nvae
from hebmtool.generator.tower import CELL_KINDS, Tower
from hebmtool.run import checkpoint, imported
from hebmtool.run.folder import Run
from hebmtool.run.open import load_generator

VECTORS = Path(os.environ.get("HEBM_SHARED", Path(__file__).parents[3] / "shared")) / "nvae_vectors"
CPU = torch.device("cpu")

ARGS = {
    "dataset": "cifar10",
    "arch_instance": "res_bnswish",
    "use_se": True,
    "res_dist": True,
    "num_x_bits": 8,
    "num_latent_scales": 2,
    "num_groups_per_scale": 2,
    "num_latent_per_group": 2,
    "ada_groups": False,
    "min_groups_per_scale": 1,
    "num_channels_enc": 4,
    "num_channels_dec": 4,
    "num_preprocess_blocks": 1,
    "num_preprocess_cells": 2,
    "num_cell_per_cond_enc": 1,
    "num_postprocess_blocks": 1,
    "num_postprocess_cells": 2,
    "num_cell_per_cond_dec": 1,
    "num_mixture_dec": 2,
    "num_nf": 0,
}


def publish(generator: Tower, args: argparse.Namespace, prefix: str = "") -> dict:
    """The generator in the published format, with the entries that are to be ignored."""
    ours = generator.state_dict()
    state = {theirs: ours[name].clone() for theirs, name in nvae.name_map(generator).items()}
    for key in list(state):
        if key.endswith("running_mean"):
            state[key.replace("running_mean", "num_batches_tracked")] = torch.tensor(5)
        if "._ops." in key and state[key].ndim == 4 and key.endswith(".weight"):
            state[key.replace(".weight", ".weight_normalized")] = state[key] + 1
    return {
        "epoch": 3,
        "state_dict": {prefix + key: value for key, value in state.items()},
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3}]},
        "global_step": 123,
        "args": args,
        "arch_instance": CELL_KINDS[args.arch_instance] | {"ar_nn": [""]},
        "scheduler": {},
        "grad_scalar": {},
    }


def make(size: int = 16, shape: tuple | None = None, **changes) -> tuple[Tower, argparse.Namespace]:
    """A tiny generator with random weights and statistics, and the `args` that describe it."""
    args = argparse.Namespace(**ARGS | changes)
    generator = Tower(nvae.config(args, None), shape or (3, size, size), args.num_x_bits)
    with torch.no_grad():
        for key, tensor in generator.state_dict().items():
            if "running" in key:
                tensor.uniform_(0.5, 1.5)
            elif tensor.is_floating_point():
                tensor.add_(0.1 * torch.randn_like(tensor))
    return generator.eval(), args


@pytest.fixture
def published() -> dict:
    return publish(*make())


def write(content, tmp_path: Path, **options) -> Path:
    torch.save(content, tmp_path / "checkpoint.pt", **options)
    return tmp_path / "checkpoint.pt"


def refused(path: Path, tmp_path: Path, match: str) -> str:
    """The message of the refusal, one sentence; nothing may have been written."""
    with pytest.raises(HebmError, match=match) as caught:
        imported.import_checkpoint(path, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


# The vectors


def largest(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over largest value."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.skipif(not VECTORS.is_dir(), reason=f"no vectors of the published model in {VECTORS} (set HEBM_SHARED)")
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", ["celeba64", "cifar10", "mnist"])
def test_published_vectors_are_reproduced(name, frozen, tmp_path):
    run = imported.import_checkpoint(VECTORS / f"nvae_{name}_tiny.pt", tmp_path)
    generator = load_generator(run, CPU)
    if name == "mnist":
        # Expected over the uncropped 32x32: the same weights, padded by nobody.
        assert generator.image_shape == (1, 28, 28) and generator.padded_size == (32, 32)
        whole = Tower(generator.config, (1, 32, 32)).eval()
        whole.load_state_dict(generator.state_dict())
        generator = whole
    if frozen:
        generator = generator.frozen()
    files = np.load(VECTORS / f"nvae_{name}_tiny_expected.npz")
    expected = {key: torch.from_numpy(files[key]) for key in files}

    def latents(prefix: str) -> torch.Tensor:
        return generator.join([expected[f"{prefix}_{l:02d}"] for l in range(generator.L)])

    with torch.no_grad():
        posterior = generator.posterior(expected["x"], torch.zeros(2, generator.D))
        logits = generator.decode(posterior.walk)
        prior = generator.walk(latents("prior_u"))
        likelihood, log_px = generator.likelihood, expected["log_px_given_posterior_mean"]
        assert largest(generator.join(posterior.walk.z), latents("posterior_z")) < 1e-5
        assert largest(generator.join(posterior.walk.u), latents("posterior_u")) < 1e-5
        assert largest(generator.T_inverse(latents("posterior_z")), latents("posterior_u")) < 1e-5
        assert largest(generator.T(latents("posterior_u")), latents("posterior_z")) < 1e-5
        assert largest(logits, expected["logits_posterior"]) < 1e-5
        assert largest(likelihood.log_prob(logits, expected["x"]), log_px) < 1e-5
        assert largest(likelihood.log_prob(expected["logits_posterior"], expected["x"]), log_px) < 1e-6
        assert largest(generator.join(prior.z), latents("prior_z")) < 1e-5
        assert largest(generator.T_inverse(latents("prior_z")), latents("prior_u")) < 1e-5
        assert largest(generator.decode(prior), expected["logits_prior"]) < 1e-5
        if "decoder_mean" in expected:
            assert largest(likelihood.mean(logits), expected["decoder_mean"]) < 1e-5
            assert largest(likelihood.mean(expected["logits_posterior"]), expected["decoder_mean"]) < 1e-6


@pytest.mark.skipif(not VECTORS.is_dir(), reason=f"no vectors of the published model in {VECTORS} (set HEBM_SHARED)")
def test_mnist_images_are_padded_and_cropped_back(tmp_path):
    generator = load_generator(imported.import_checkpoint(VECTORS / "nvae_mnist_tiny.pt", tmp_path), CPU)
    expected = np.load(VECTORS / "nvae_mnist_tiny_expected.npz")
    x = torch.from_numpy(expected["x"]).clone()
    x[:, :, [0, 1, 30, 31]] = 0
    x[:, :, :, [0, 1, 30, 31]] = 0
    whole = Tower(generator.config, (1, 32, 32)).eval()
    whole.load_state_dict(generator.state_dict())
    with torch.no_grad():
        noise = torch.zeros(2, generator.D)
        one, two = generator.posterior(x[:, :, 2:30, 2:30], noise), whole.posterior(x, noise)
        assert torch.equal(one.kl, two.kl)
        assert torch.equal(generator.decode(one.walk), whole.decode(two.walk)[:, :, 2:30, 2:30])


# Geometries: out and in again

GEOMETRIES = {
    "res_bnswish": {},
    "res_mbconv": {"arch_instance": "res_mbconv"},
    "mbconv_sep": {"arch_instance": "mbconv_sep", "num_cell_per_cond_dec": 2},
    "five scales": {"num_latent_scales": 5, "num_groups_per_scale": 8, "ada_groups": True, "size": 64},
    "five scales, at least two groups": {
        "num_latent_scales": 5,
        "num_groups_per_scale": 8,
        "ada_groups": True,
        "min_groups_per_scale": 2,
        "size": 32,
    },
    "one group": {"num_latent_scales": 1, "num_groups_per_scale": 1},
    "no blocks": {"num_preprocess_blocks": 0, "num_postprocess_blocks": 0},
    "one flow": {"num_nf": 1},
    "two flows": {"num_nf": 2, "num_latent_per_group": 3},
    "no squeeze-and-excitation": {"use_se": False},
    "absolute posterior": {"res_dist": False},
    "widths that differ": {"num_channels_enc": 6, "num_channels_dec": 4, "num_preprocess_cells": 3},
    "gaussian": {"num_mixture_dec": 1, "dataset": "celeba_64", "size": 64},
    "five bits": {"num_x_bits": 5, "dataset": "celeba_256", "num_mixture_dec": 10, "size": 32},
    "mnist": {"dataset": "mnist", "shape": (1, 28, 28), "num_preprocess_blocks": 2, "num_postprocess_blocks": 2},
    "mnist in 32 where 28 would divide": {"dataset": "mnist", "shape": (1, 28, 28)},
    "omniglot": {"dataset": "omniglot", "shape": (1, 28, 28)},
    "unknown data set": {"dataset": "flowers", "size": 8},
}


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES.keys())
def test_every_geometry_comes_back(geometry, prefix, tmp_path):
    generator, args = make(**geometry)
    run = imported.import_checkpoint(write(publish(generator, args, prefix), tmp_path), tmp_path / "runs", "a")
    back = load_generator(Run.open("a", tmp_path / "runs"), CPU)
    assert run.path == tmp_path / "runs" / "a"
    assert back.image_shape == generator.image_shape and back.bits == args.num_x_bits and back.L == generator.L
    x, u = torch.rand(2, *generator.image_shape), torch.randn(2, generator.D)
    with torch.no_grad():
        one, two = generator.posterior(x, u), back.posterior(x, u)
        assert torch.equal(one.kl, two.kl)
        assert torch.equal(generator.T(u), back.T(u))
        assert torch.equal(generator.images(u), back.images(u))
        logits = generator.decode(one.walk)
        assert torch.equal(generator.likelihood.log_prob(logits, x), back.likelihood.log_prob(logits, x))


def test_names_are_the_published_ones():
    generator, _ = make(arch_instance="mbconv_sep", num_nf=2, num_preprocess_blocks=2, num_postprocess_blocks=2)
    shapes = {theirs: tuple(generator.state_dict()[ours].shape) for theirs, ours in nvae.name_map(generator).items()}
    expected = {
        "prior_ftr0": (32, 2, 2),
        "stem.log_weight_norm": (4, 1, 1, 1),
        "pre_process.1._ops.0.conv.0.bn.running_var": (4,),  # down: no upsampling comes first
        "pre_process.1._ops.0.conv.2.conv.0.weight": (12, 1, 5, 5),
        "pre_process.3._ops.0.conv.4.bn.weight": (16,),
        "pre_process.3.skip.conv_4.bias": (4,),
        "enc_tower.0._ops.0.conv.1.conv.0.weight": (96, 16, 1, 1),  # cell, combiner, cell, combiner, down
        "enc_tower.1.conv.weight": (16, 16, 1, 1),
        "enc_tower.4._ops.0.conv.3.weight": (32, 96, 1, 1),
        "enc_tower.6.conv.bias": (32,),
        "enc_tower.7.se.se.0.weight": (4, 32),
        "enc0.1.weight": (32, 32, 1, 1),
        "enc_sampler.0.weight": (4, 32, 3, 3),
        "enc_sampler.3.weight": (4, 16, 3, 3),
        "dec_sampler.0.1.weight": (4, 32, 1, 1),
        "dec_sampler.2.1.weight": (4, 16, 1, 1),
        "dec_tower.0.conv.weight": (32, 34, 1, 1),  # combiner, cell, combiner, up
        "dec_tower.1._ops.0.conv.2.conv.1.running_mean": (192,),
        "dec_tower.3._ops.0.conv.1.bn.weight": (32,),  # up: the upsampling is 0
        "dec_tower.3._ops.0.conv.2.conv.0.weight": (192, 32, 1, 1),
        "dec_tower.3.skip.1.log_weight_norm": (16, 1, 1, 1),
        "nf_cells.0.cell1.conv.convz.0.weight": (12, 2, 3, 3),
        "nf_cells.7.cell2.conv.convz.2.weight": (12, 1, 5, 5),
        "nf_cells.7.cell2.mu.conv_0.bias": (2,),
        "post_process.0._ops.0.conv.5.bn.weight": (8,),
        "post_process.3.se.se.2.bias": (4,),
        "image_conditional.1.weight": (20, 4, 3, 3),
    }
    assert {key: shapes.get(key) for key in expected} == expected
    absent = ("enc_tower.8.", "nf_cells.8.", "dec_sampler.3.", "skip.1.bias", "convz.0.bias", "post_process.4.")
    assert not [key for key in shapes if any(word in key for word in absent)]
    state = generator.state_dict().keys() - set(nvae.name_map(generator).values())
    assert all(key.endswith("num_batches_tracked") for key in state)


def test_a_checkpoint_without_num_mixture_dec_has_ten(tmp_path):
    generator, args = make(num_mixture_dec=10)
    del args.num_mixture_dec
    run = imported.import_checkpoint(write(publish(generator, args), tmp_path), tmp_path / "runs")
    assert run.recipe().generator.mixtures == 10


def test_the_ops_of_the_dict_go_before_the_name(tmp_path):
    cells = CELL_KINDS["res_bnswish"] | {"normal_dec": ["mconv_e2k3g0"]}
    config = nvae.config(argparse.Namespace(**ARGS), None).model_copy(update={"cells": cells})
    content = publish(Tower(config, (3, 16, 16)), argparse.Namespace(**ARGS))
    content["arch_instance"] = cells | {"ar_nn": [""]}
    run = imported.import_checkpoint(write(content, tmp_path), tmp_path / "runs")
    assert run.recipe().generator.cells == cells
    content["arch_instance"] = None
    refused(write(content, tmp_path), tmp_path / "b", "missing")


def test_the_older_file_format_and_half_precision_are_read(tmp_path, published):
    published["state_dict"] = {
        key: value.half() if value.is_floating_point() else value for key, value in published["state_dict"].items()
    }
    path = write(published, tmp_path, _use_new_zipfile_serialization=False)
    tensors, _ = checkpoint.load(imported.import_checkpoint(path, tmp_path / "runs").generator_path)
    assert tensors["stem.v"].dtype == torch.float32
    assert torch.equal(tensors["stem.v"], published["state_dict"]["stem.weight"].float())


# The run


def test_the_run_is_whole_and_unlocked(tmp_path, published):
    path = write(published, tmp_path)
    run = imported.import_checkpoint(path, tmp_path / "runs", data_path="images")
    assert run.name == "nvae-cifar10" and run.priors() == ["gaussian"]
    header = checkpoint.header(run.generator_path)
    assert (header.kind, header.step, header.extra) == ("generator", 123, {"image_shape": [3, 16, 16]})
    assert header.recipe == run.recipe().model_dump(mode="json")
    assert yaml.safe_load(run.recipe_path.read_text())["data"]["path"] == "images"
    with run.lock():
        pass
    names = {p.name for p in run.path.iterdir()}
    assert names == {".lock", "samples", "recipe.yaml", "generator.safetensors"}


@pytest.mark.parametrize(
    ("dataset", "size", "expected"),
    [
        ("mnist", 32, {"source": "mnist", "channels": 1, "size": None}),
        ("cifar10", 32, {"source": "cifar10", "channels": 3, "size": 32}),
        ("celeba_64", 64, {"source": "celeba", "size": 64, "crop": 148}),
        ("celeba_256", 256, {"source": "folder", "size": 256}),
        ("lsun_church_64", 64, {"source": "lsun", "category": "church_outdoor", "size": 64}),
        ("lsun_church_128", 128, {"source": "lsun", "category": "church_outdoor", "size": 128}),
        ("lsun_bedroom_256", 256, {"source": "lsun", "category": "bedroom", "size": 256}),
        ("imagenet_32", 32, {"source": "folder", "size": 32}),
        ("ffhq", 256, {"source": "folder", "size": 256}),
    ],
)
def test_the_recipe_has_the_data_set_and_the_published_second_stage(dataset, size, expected, tmp_path):
    shape = (1, 28, 28) if dataset == "mnist" else None
    generator, args = make(size, shape, dataset=dataset, num_x_bits=5, num_latent_scales=2)
    found = imported.import_checkpoint(write(publish(generator, args), tmp_path), tmp_path / "runs").recipe()
    assert {key: getattr(found.data, key) for key in expected} == expected
    assert found.data.bits == 5
    prior, train = found.prior, found.train_prior
    assert (prior.kind, prior.chain, prior.objective, prior.levels) == ("diffusion-ebm", "langevin", "recovery", 3)
    assert (train.lr, train.weight_decay, train.betas) == (4e-5, 3e-5, (0.99, 0.999))
    settings = (prior.steps, prior.eta, prior.energy.width, train.lr_decay, train.batch_size)
    assert settings == ((30, 2e-5, 64, 0.98, 4) if size >= 256 else (50, 3e-5, 128, 0.9, 50))
    assert found.generator == generator.config


def test_readjusting_changes_the_decoders_statistics_alone(tmp_path, published):
    path = write(published, tmp_path)
    plain = load_generator(imported.import_checkpoint(path, tmp_path / "runs", "a"), CPU).state_dict()
    again = load_generator(imported.import_checkpoint(path, tmp_path / "runs", "b", readjust_bn=2), CPU).state_dict()
    changed = {key for key in plain if not torch.equal(plain[key], again[key])}
    assert changed
    for key in plain:
        counted = key.endswith(("running_mean", "running_var", "num_batches_tracked"))
        assert (key in changed) == (key.startswith(("decoder.", "postprocess.")) and counted), key


def test_a_run_that_exists_is_kept(tmp_path, published):
    path = write(published, tmp_path)
    run = imported.import_checkpoint(path, tmp_path / "runs", "a")
    before = run.generator_path.read_bytes()
    with pytest.raises(HebmError, match="already has checkpoints; import .* under another name"):
        imported.import_checkpoint(path, tmp_path / "runs", "a")
    assert run.generator_path.read_bytes() == before


@pytest.mark.parametrize("name", ["a/b", "..", "-x"])
def test_a_name_that_is_no_folders(name, tmp_path, published):
    with pytest.raises(UsageError, match="name is"):
        imported.import_checkpoint(write(published, tmp_path), tmp_path / "runs", name)
    assert not (tmp_path / "runs").exists()


# Files that must not be trusted


class Attack:
    """Creates a file as soon as it is unpickled freely."""

    def __init__(self, target: Path, how: str):
        self.target, self.how = target, how

    def __reduce__(self):
        if self.how == "eval":
            return eval, (f"open({str(self.target)!r}, 'w')",)
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("where", ["args", "state_dict", "optimizer", "top"])
@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize("how", ["eval", "mkdir"])
def test_a_checkpoint_that_executes_something_is_refused(how, archive, where, tmp_path, published):
    target = tmp_path / "executed"
    attack = Attack(target, how)
    match where:
        case "args":
            published["args"].note = attack
        case "state_dict":
            published["state_dict"]["stem.weight"] = attack
        case "optimizer":
            published["optimizer"]["state"] = attack
        case "top":
            published = attack
    path = write(published, tmp_path, _use_new_zipfile_serialization=archive)
    message = refused(path, tmp_path, "nothing in it was run")
    assert how in message
    assert not target.exists()
    torch.load(path, weights_only=False, map_location="cpu")
    assert target.exists(), "the attack is harmless, so the test shows nothing"


def test_a_bare_pickle_is_refused(tmp_path):
    path, target = tmp_path / "checkpoint.pt", tmp_path / "executed"
    path.write_bytes(pickle.dumps(Attack(target, "mkdir")))
    refused(path, tmp_path, "checkpoint.pt")
    assert not target.exists()


def test_the_allowed_types_are_allowed_only_while_reading(tmp_path, published):
    imported.import_checkpoint(write(published, tmp_path), tmp_path / "runs")
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_file_cut_short(share, archive, tmp_path, published):
    path = write(published, tmp_path, _use_new_zipfile_serialization=archive)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refused(path, tmp_path, "cut short, damaged or no torch checkpoint")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"model": {}}, "no 'args'"),
        ([1, 2], "no 'args'"),
        (torch.zeros(3), "no 'args'"),
        ({"args": argparse.Namespace(), "state_dict": [1]}, "no 'state_dict'"),
        ({"args": {"dataset": "mnist"}, "state_dict": {}}, "no 'args'"),
        ({"args": argparse.Namespace(), "state_dict": {}}, "lacks dataset, num_x_bits, num_latent_scales"),
    ],
)
def test_foreign_checkpoints(content, match, tmp_path):
    refused(write(content, tmp_path), tmp_path, match)


@pytest.mark.parametrize("content", [b"hello", b"\x89PNG\r\n\x1a\n" + bytes(100), bytes(5000)])
def test_files_that_are_no_checkpoints(content, tmp_path):
    (tmp_path / "a.pt").write_bytes(content)
    refused(tmp_path / "a.pt", tmp_path, "cut short, damaged or no torch checkpoint")


def test_an_archive_of_another_kind(tmp_path):
    buffer = io.BytesIO()
    np.savez(buffer, x=np.zeros(3))
    (tmp_path / "a.pt").write_bytes(buffer.getvalue())
    refused(tmp_path / "a.pt", tmp_path, "no torch checkpoint")


def test_absent_files_and_folders(tmp_path):
    refused(tmp_path / "absent.pt", tmp_path, "cannot be read .No such file")
    refused(tmp_path, tmp_path, "cannot be read .Is a directory")


# Weights and args that do not fit


def test_missing_weights_are_named_and_counted(tmp_path, published):
    state = published["state_dict"]
    gone = [key for key in state if key.startswith("enc_sampler")]
    published["state_dict"] = {key: value for key, value in state.items() if key not in gone}
    message = refused(write(published, tmp_path), tmp_path, f"{len(gone)} missing .enc_sampler.0.weight, ")
    assert message.count("enc_sampler") == 3 and ", ...)" in message


def test_a_missing_constant_is_a_missing_weight(tmp_path, published):
    del published["state_dict"]["prior_ftr0"]
    refused(write(published, tmp_path), tmp_path, "1 missing .prior_ftr0.")


def test_unknown_weights_are_named_and_counted(tmp_path, published):
    published["state_dict"] |= {"stem.gain": torch.zeros(1), "ear.weight": torch.zeros(2)}
    refused(write(published, tmp_path), tmp_path, "2 unknown .stem.gain, ear.weight.;")


@pytest.mark.parametrize(
    ("value", "found"),
    [(torch.zeros(4, 3, 5, 5), r"\[4, 3, 5, 5\]"), ([1.0], "no tensor"), (torch.zeros(4, 3, 3, 3).int(), "no tensor")],
)
def test_misshapen_weights_are_named(value, found, tmp_path, published):
    published["state_dict"]["stem.weight"] = value
    refused(write(published, tmp_path), tmp_path, rf"1 misshapen .stem.weight is {found}, not \[4, 3, 3, 3\]")


def test_all_that_does_not_fit_is_in_one_sentence(tmp_path, published):
    state = published["state_dict"]
    del state["stem.bias"]
    state["ear"] = torch.zeros(1)
    state["enc0.1.bias"] = torch.zeros(1)
    refused(write(published, tmp_path), tmp_path, "1 missing .*1 unknown .*1 misshapen .*nothing was written")


def test_args_of_another_geometry(tmp_path, published):
    published["args"].num_channels_dec = 8
    refused(write(published, tmp_path), tmp_path, "misshapen .prior_ftr0 is ")


def test_weights_that_are_not_finite(tmp_path, published):
    published["state_dict"]["stem.bias"][1] = float("nan")
    refused(write(published, tmp_path), tmp_path, "1 not finite .stem.bias.")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"num_latent_scales": 9}, "generator.scales is 9"),
        ({"num_latent_scales": "two"}, "generator.scales is 'two'"),
        ({"num_postprocess_blocks": 2}, "must be equal"),
        ({"num_nf": 50}, "generator.flows is 50"),
        ({"num_x_bits": 12}, "data.bits is 12"),
        ({"use_se": None}, "generator.squeeze_excitation is null|generator.squeeze_excitation is None"),
    ],
)
def test_values_of_args_that_no_generator_has(changes, match, tmp_path, published):
    for key, value in changes.items():
        setattr(published["args"], key, value)
    refused(write(published, tmp_path), tmp_path, match)


@pytest.mark.parametrize("attribute", ["num_nf", "dataset", "num_x_bits"])
def test_attributes_that_args_lacks_are_named(attribute, tmp_path, published):
    delattr(published["args"], attribute)
    refused(write(published, tmp_path), tmp_path, f"args lacks {attribute};")


def test_unknown_cells(tmp_path, published):
    published["arch_instance"]["normal_dec"] = ["mconv_e6k5g8"]
    refused(write(published, tmp_path), tmp_path, "generator.cells.normal_dec is .*mconv_e6k5g8")
    del published["arch_instance"]["normal_dec"]
    refused(write(published, tmp_path), tmp_path, "generator.cells lacks the role 'normal_dec'")
    published["arch_instance"], published["args"].arch_instance = None, "res_mbconf"
    refused(write(published, tmp_path), tmp_path, "did you mean 'res_mbconv'")
    del published["args"].arch_instance
    refused(write(published, tmp_path), tmp_path, "args lacks arch_instance")


# Size


@pytest.mark.slow
def test_the_full_cifar10_geometry_imports_within_a_minute_and_4_gib(tmp_path):
    published = recipe.load("cifar10").generator
    args = argparse.Namespace(
        **{theirs: getattr(published, ours) for ours, theirs in nvae.GEOMETRY.items()}
        | {"dataset": "cifar10", "arch_instance": "res_mbconv", "num_x_bits": 8, "num_nf": 2}
    )
    assert (args.num_groups_per_scale, args.num_channels_enc, args.num_channels_dec) == (30, 128, 128)
    path = write(publish(Tower(published, (3, 32, 32)), args), tmp_path)
    script = (
        "import resource, sys; from hebmtool.nvae import import_checkpoint; import_checkpoint(*sys.argv[1:]);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    started = time.monotonic()
    command = [sys.executable, "-c", script, str(path), str(tmp_path / "runs"), "full"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, gib = time.monotonic() - started, int(done.stdout) / 2**20
    path.unlink()
    (tmp_path / "runs/full/generator.safetensors").unlink()
    assert seconds < 60 and gib < 4
