"""Runs of published checkpoints: whole or nothing, nothing unsafe is run, and all that does not fit is named."""

import argparse
import io
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from published import make, publish, write

from hebmtool import recipe
from hebmtool.errors import HebmError, UsageError
from hebmtool.generator import Tower, nvae
from hebmtool.run import checkpoint
from hebmtool.run.imported import import_checkpoint
from hebmtool.run.open import load_generator

CPU = torch.device("cpu")


@pytest.fixture
def published() -> dict:
    return publish(*make())


def refused(path: Path, tmp_path: Path, match: str) -> str:
    """The message of the refusal, one sentence; nothing may have been written."""
    with pytest.raises(HebmError, match=match) as caught:
        import_checkpoint(path, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


# The run


def test_the_older_file_format_and_half_precision_are_read(tmp_path, published):
    published["state_dict"] = {
        key: value.half() if value.is_floating_point() else value for key, value in published["state_dict"].items()
    }
    path = write(published, tmp_path, _use_new_zipfile_serialization=False)
    tensors, _ = checkpoint.load(import_checkpoint(path, tmp_path / "runs").generator_path)
    assert tensors["stem.v"].dtype == torch.float32
    assert torch.equal(tensors["stem.v"], published["state_dict"]["stem.weight"].float())


def test_the_run_is_whole_and_unlocked(tmp_path, published):
    path = write(published, tmp_path)
    run = import_checkpoint(path, tmp_path / "runs", data_path="images")
    assert run.name == "nvae-cifar10" and run.priors() == ["gaussian"]
    header = checkpoint.header(run.generator_path)
    assert (header.kind, header.step, header.extra) == ("generator", 123, {"image_shape": [3, 16, 16]})
    assert header.recipe == run.recipe().model_dump(mode="json")
    assert yaml.safe_load(run.recipe_path.read_text())["data"]["path"] == "images"
    with run.lock():
        pass
    names = {p.name for p in run.path.iterdir()}
    assert names == {".lock", "samples", "recipe.yaml", "generator.safetensors"}


def test_a_vanilla_generator_begins_with_a_convolution_of_z(tmp_path):
    """One group: no constant, and a 1x1 convolution of z where others combine z with what comes from above."""
    vanilla = {"num_latent_scales": 1, "num_groups_per_scale": 1, "dataset": "celeba_64"}
    generator, args = make(64, **vanilla)
    width = len(generator.constant)
    with torch.no_grad():
        generator.constant.zero_()
        generator.decoder[0].combine.v[:, :width].zero_()
    content = publish(generator, args)
    state = content["state_dict"]
    del state["prior_ftr0"]
    for entry in ("weight", "log_weight_norm", "bias"):
        found = state.pop(f"dec_tower.0.conv.{entry}")
        state[f"stem_decoder.{entry}"] = found[:, width:] if entry == "weight" else found
    run = import_checkpoint(write(content, tmp_path), tmp_path / "runs")
    imported = load_generator(run, CPU)
    u, x = torch.randn(2, generator.D), torch.rand(2, 3, 64, 64)
    assert imported.image_shape == (3, 64, 64) and imported.L == 1
    assert torch.allclose(imported.images(u), generator.images(u), atol=1e-6)
    assert torch.allclose(
        imported.posterior(x, torch.zeros(2, generator.D)).kl,
        generator.posterior(x, torch.zeros(2, generator.D)).kl,
        rtol=1e-4,
    )

    state["stem_decoder.weight"] = state["stem_decoder.weight"][1:]
    refused(write(content, tmp_path), tmp_path / "again", "1 misshapen .dec_tower.0.conv.weight")


@pytest.mark.parametrize(
    ("dataset", "size", "expected"),
    [
        ("mnist", 32, {"source": "mnist", "channels": 1, "size": None}),
        ("cifar10", 32, {"source": "cifar10", "channels": 3, "size": 32}),
        ("celeba_64", 64, {"source": "celeba", "size": 64, "crop": 148, "crop_at": [40, 15]}),
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
    found = import_checkpoint(write(publish(generator, args), tmp_path), tmp_path / "runs").recipe()
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
    plain = load_generator(import_checkpoint(path, tmp_path / "runs", "a"), CPU).state_dict()
    again = load_generator(import_checkpoint(path, tmp_path / "runs", "b", readjust_bn=2), CPU).state_dict()
    changed = {key for key in plain if not torch.equal(plain[key], again[key])}
    assert changed
    for key in plain:
        counted = key.endswith(("running_mean", "running_var", "num_batches_tracked"))
        assert (key in changed) == (key.startswith(("decoder.", "postprocess.")) and counted), key


def test_a_run_that_exists_is_kept(tmp_path, published):
    path = write(published, tmp_path)
    run = import_checkpoint(path, tmp_path / "runs", "a")
    before = run.generator_path.read_bytes()
    with pytest.raises(HebmError, match="already has checkpoints; import .* under another name"):
        import_checkpoint(path, tmp_path / "runs", "a")
    assert run.generator_path.read_bytes() == before


@pytest.mark.parametrize("name", ["a/b", "..", "-x"])
def test_a_name_that_is_no_folders(name, tmp_path, published):
    with pytest.raises(UsageError, match="name is"):
        import_checkpoint(write(published, tmp_path), tmp_path / "runs", name)
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
    import_checkpoint(write(published, tmp_path), tmp_path / "runs")
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


LARGE = """
import resource, sys
from hebmtool.run.imported import import_checkpoint
import_checkpoint(*sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime, used.ru_maxrss)
"""


@pytest.mark.slow
def test_the_full_cifar10_geometry_imports_within_a_minute_and_4_gib(tmp_path, child):
    published = recipe.load("cifar10").generator
    args = argparse.Namespace(
        **{theirs: getattr(published, ours) for ours, theirs in nvae.GEOMETRY.items()}
        | {"dataset": "cifar10", "arch_instance": "res_mbconv", "num_x_bits": 8, "num_nf": 2}
    )
    assert (args.num_groups_per_scale, args.num_channels_enc, args.num_channels_dec) == (30, 128, 128)
    path = write(publish(Tower(published, (3, 32, 32)), args), tmp_path)
    status, out, err = child(sys.executable, "-c", LARGE, path, tmp_path / "runs", "full").finish()
    assert status == 0, err
    path.unlink()
    (tmp_path / "runs/full/generator.safetensors").unlink()
    seconds, kib = map(float, out.split())
    assert seconds < 60 and kib < 4 * 2**20  # of the processor: the machine may be busy
