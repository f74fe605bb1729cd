"""The run folder: found, never overwritten, locked while training, and its records kept straight."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from hebmtool.errors import HebmError, UsageError
from hebmtool.recipe import Recipe
from hebmtool.run import checkpoint, folder
from hebmtool.run.folder import Run


def trained(root, name, *files, age=0):
    run = Run(root / name)
    for file in files or ("generator.safetensors",):
        path = run.path / file
        checkpoint.save(path, {"w": torch.ones(1)}, kind="generator", recipe={}, step=1)
        os.utime(path, (1e9 - age, 1e9 - age))
    return run


# Create and open


def test_create_writes_the_recipe_and_opens_by_name_or_folder(tmp_path):
    recipe = Recipe(name="mine", seed=3)
    with Run.create(tmp_path, recipe) as run:
        assert run.path == tmp_path / "mine" and run.name == "mine" and run.samples_dir.is_dir()
    for found in (Run.open("mine", tmp_path), Run.open(tmp_path / "mine", "elsewhere")):
        assert found.recipe() == recipe


def test_trained_run_is_not_overwritten(tmp_path):
    run = trained(tmp_path, "run")
    run.write_recipe(Recipe(seed=1))
    with pytest.raises(HebmError, match=r"already has checkpoints; resume it, or start another with name="):
        Run.create(tmp_path, Recipe(seed=2))
    assert run.recipe().seed == 1


def test_resume_opens_what_is_there_and_keeps_its_recipe(tmp_path):
    with pytest.raises(HebmError, match="no checkpoint to resume in .*run"):
        Run.create(tmp_path, Recipe(), resume=True)
    assert not (tmp_path / "run").exists()
    trained(tmp_path, "run").write_recipe(Recipe(seed=1))
    with Run.create(tmp_path, Recipe(seed=2), resume=True) as run:
        assert run.recipe().seed == 1


def test_run_that_never_saved_can_be_started_again(tmp_path):
    Run.create(tmp_path, Recipe(seed=1)).unlock()
    with Run.create(tmp_path, Recipe(seed=2)) as run:
        assert run.recipe().seed == 2


def test_unusable_folder_is_a_sentence(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(HebmError, match="could not write in the run folder"):
        Run.create(tmp_path, Recipe())


def test_open_without_a_name_takes_the_newest_checkpoint(tmp_path):
    with pytest.raises(HebmError, match="no trained run under .*hebm train-vae digits"):
        Run.open(None, tmp_path / "absent")
    Run.create(tmp_path, Recipe(name="untrained")).unlock()
    with pytest.raises(HebmError, match="no trained run"):
        Run.open(None, tmp_path)
    trained(tmp_path, "old", age=50)
    trained(tmp_path, "new", "prior-ebm.safetensors", age=10)
    trained(tmp_path, "older", age=90)
    assert Run.open(None, tmp_path).name == "new"


def test_open_names_what_is_missing(tmp_path):
    trained(tmp_path, "digits")
    with pytest.raises(HebmError, match="no run 'digit'.*did you mean 'digits'"):
        Run.open("digit", tmp_path)
    with pytest.raises(HebmError, match="no run 'zzz'.*hebm train-vae digits"):
        Run.open("zzz", tmp_path)
    (tmp_path / "pictures").mkdir()
    with pytest.raises(HebmError, match="pictures is not a run"):
        Run.open("pictures", tmp_path)


def test_a_name_under_the_root_wins_over_a_folder_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    trained(tmp_path / "runs", "digits")
    assert Run.open("digits", tmp_path / "runs").path == tmp_path / "runs" / "digits"


def test_missing_recipe_is_a_sentence(tmp_path):
    with pytest.raises(HebmError, match="no recipe.yaml"):
        trained(tmp_path, "run").recipe()


def test_check_same_names_the_first_key_that_differs():
    old, new = Recipe(), Recipe()
    new.generator.scales = 4
    new.train_vae.iterations = 9
    new.prior.energy.width = 5
    Run.check_same(old, new, ["data", "train_prior", "prior.kind", "generator.layers_per_scale"])
    for part, key in [
        ("generator", f"generator.scales = {old.generator.scales} and the recipe now says 4"),
        ("train_vae", "train_vae.iterations"),
        ("prior", "prior.energy.width"),
        ("prior.energy", "prior.energy.width"),
    ]:
        with pytest.raises(HebmError, match=key):
            Run.check_same(old, new, ["data", part])


# The lock

HOLD = """
import sys
from hebmtool.run.folder import Run
held = Run(sys.argv[1]).lock()
print("locked", flush=True)
sys.stdin.read()
"""


def test_second_trainer_is_refused_until_the_first_is_killed(tmp_path, child):
    run = Run(tmp_path / "run")
    holder = child(sys.executable, "-c", HOLD, run.path, stdin=subprocess.PIPE)
    assert holder.stdout.readline() == "locked\n"
    refused = f"another process is training the run {run.path}; wait for it, stop it, or start another run with name="
    with pytest.raises(HebmError, match=refused) as raised:
        run.lock()
    assert "\n" not in str(raised.value)
    with pytest.raises(HebmError, match="another process is training the run"):
        Run.create(tmp_path, Recipe())
    assert not run.recipe_path.exists()
    # And the other way round: a second process is refused while this one holds it.
    holder.kill()
    holder.wait()
    with run.lock() as held:
        assert held is run and run.lock() is run
        with pytest.raises(HebmError):
            Run(run.path).lock()
        status, _, err = child(sys.executable, "-c", HOLD, run.path, stdin=subprocess.DEVNULL).finish()
        assert status == 1 and "another process is training" in err
    Run(run.path).lock().unlock()


def test_a_lock_let_go_is_free_for_others_and_for_oneself(tmp_path, child):
    run = Run(tmp_path / "run")
    for _ in range(2):
        with run.lock():
            pass
        run.unlock()  # once more is no mistake
    status, out, err = child(sys.executable, "-c", HOLD, run.path, stdin=subprocess.DEVNULL).finish()
    assert (status, out) == (0, "locked\n"), err
    # Readers need none, and what is left of it is no part of the run.
    assert run.checkpoints() == [] and run.priors() == []


def test_a_filesystem_without_locks_is_trained_on_unguarded(tmp_path, monkeypatch):
    def unsupported(*_, **__):
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(folder.FileLock, "acquire", unsupported)
    with Run.create(tmp_path, Recipe()) as run:
        assert run.recipe_path.is_file()


def test_failed_create_frees_the_lock(tmp_path, monkeypatch):
    def fail(*_):
        raise HebmError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(Run, "write_recipe", fail)
        with pytest.raises(HebmError, match="disk full"):
            Run.create(tmp_path, Recipe())
    Run.create(tmp_path, Recipe()).unlock()


def test_lock_clears_what_a_killed_save_left(tmp_path):
    run = trained(tmp_path, "run")
    stale = run.path / ".generator.safetensors.123.tmp"
    stale.write_bytes(b"half")
    assert run.checkpoints() == [run.generator_path]
    with run.lock():
        assert not stale.exists() and run.generator_path.exists()


# Priors


def test_priors_and_what_is_required(tmp_path):
    run = Run(tmp_path / "run")
    assert run.priors() == []
    with pytest.raises(HebmError, match="hebm train-vae RECIPE"):
        run.require_generator()
    with pytest.raises(HebmError, match="hebm train-vae RECIPE"):
        run.require_prior("ebm")
    trained(tmp_path, "run", "generator.safetensors", "generator.train.safetensors", "prior-ebm.train.safetensors")
    assert run.priors() == ["gaussian"]
    assert run.require_generator() == run.require_prior("gaussian") == run.generator_path
    trained(tmp_path, "run", "prior-ebm.safetensors")
    assert run.priors() == ["gaussian", "ebm"] and run.require_prior("ebm") == run.prior_path("ebm")
    run.write_recipe(Recipe())
    with pytest.raises(
        HebmError, match=r"it has gaussian, ebm\).*`hebm train-prior .*run` and prior.kind=diffusion-ebm"
    ):
        run.require_prior("diffusion-ebm")
    with pytest.raises(UsageError, match="no kind of prior 'difusion-ebm'.*did you mean 'diffusion-ebm'"):
        run.require_prior("difusion-ebm")


def flow_run(root, name="flow", extra=None):
    run = Run(root / name)
    given = {"image_shape": [1, 8, 8]} if extra is None else extra
    checkpoint.save(run.prior_path("flow"), {"w": torch.ones(1)}, kind="flow", recipe={}, step=1, extra=given)
    return run


def test_a_run_of_one_stage_is_known_by_what_its_checkpoint_holds(tmp_path):
    run = flow_run(tmp_path)
    assert run.one_stage and run.priors() == ["flow"] and run.require_prior("flow") == run.prior_path("flow")
    with pytest.raises(HebmError, match="is a flow model, whose latent has one layer, .* name another run") as raised:
        run.require_generator()
    assert "\n" not in str(raised.value)
    for kind in ("ebm", "gaussian"):
        with pytest.raises(HebmError, match=f"is a flow model and has no '{kind}' prior; name no kind"):
            run.require_prior(kind)
    with pytest.raises(UsageError, match="no kind of prior 'flaw'.*did you mean 'flow'"):
        run.require_prior("flaw")
    # A file of that name that holds no generator makes no such run, and neither does one beside a generator.
    assert not flow_run(tmp_path, "other", extra={}).one_stage
    trained(tmp_path, "flow")
    assert not run.one_stage and run.priors() == ["gaussian", "flow"]
    assert not Run(tmp_path / "empty").one_stage and not trained(tmp_path, "digits").one_stage


def test_the_kinds_of_a_run_are_in_the_order_of_preference(tmp_path):
    run = trained(tmp_path, "run", *(f"prior-{kind}.safetensors" for kind in ("diffusion-ebm", "ebm", "elsewhere")))
    assert run.priors() == ["ebm", "diffusion-ebm"]
    trained(tmp_path, "run")
    assert run.priors() == ["gaussian", "ebm", "diffusion-ebm"]


def test_labels_are_those_that_can_be_used(tmp_path):
    run = trained(tmp_path, "run", "label-odd.safetensors", "label-odd.train.safetensors", "label-class.safetensors")
    assert run.label_paths() == [run.label_path("class"), run.label_path("odd")]


def test_stage_two_may_bring_its_own_place_of_the_data_and_attributes(tmp_path):
    run = trained(tmp_path, "run")
    old = Recipe(seed=1)
    old.data.attributes = {"odd": ["1"]}
    run.write_recipe(old)
    new = old.model_copy(deep=True)
    new.data.path, new.data.attributes, new.prior.levels = "elsewhere", {"even": ["0"]}, 7
    kept = run.check_stage_one(new)
    assert kept.data.path == "elsewhere" and kept.data.attributes == {"odd": ["1"], "even": ["0"]}
    assert kept.prior.levels == old.prior.levels and run.recipe() == old
    for part, key, value in (("generator", "scales", 5), ("data", "limit", 9)):
        changed = new.model_copy(deep=True)
        setattr(getattr(changed, part), key, value)
        with pytest.raises(HebmError, match=f"was trained with {part}.{key} = "):
            run.check_stage_one(changed)
    with pytest.raises(HebmError, match="was trained with seed = 1 and the recipe now says 2; set it back"):
        run.check_stage_one(new.model_copy(update={"seed": 2}))


# Records


def test_log_rounds_and_writes_strict_json(tmp_path):
    run = Run(tmp_path)
    run.log("train-vae", 50, loss=1 / 3, kl=torch.tensor([1.0, 1e-9 / 3]), bad=float("nan"), worse=[np.inf, 2])
    run.log("train-prior", torch.tensor(1), n=np.int64(123456789), big=np.float32(3e38), word="x", on=True)
    first, second = (json.loads(line, parse_constant=pytest.fail) for line in run.metrics_path.read_text().splitlines())
    assert list(first)[:3] == ["stage", "step", "time"] and first["time"] > 1e9
    assert first["loss"] == 0.333333 and first["kl"] == [1.0, 3.33333e-10]
    assert first["bad"] is None and first["worse"] == [None, 2]
    assert (second["step"], second["n"], second["big"], second["word"], second["on"]) == (1, 123456789, 3e38, "x", True)
    assert run.metrics() == [first, second] and run.metrics("train-prior") == [second]


def test_cut_line_is_passed_over(tmp_path):
    run = Run(tmp_path)
    assert run.metrics() == []
    run.log("a", 1)
    for half in (b'{"stage": "a", "st', b"12", b'"\xc3'):
        with run.metrics_path.open("ab") as file:
            file.write(half)
        assert [record["step"] for record in run.metrics()] == [1]
        run.metrics_path.write_bytes(run.metrics_path.read_bytes().split(b"\n")[0] + b"\n")
    with run.metrics_path.open("a") as file:
        file.write('{"stage": "a", "st')
    run.log("a", 2)
    assert [record["step"] for record in run.metrics()] == [1, 2]


def test_truncate_drops_one_stage_beyond_the_step(tmp_path):
    run = Run(tmp_path)
    run.truncate_metrics("a", 3)
    assert not run.metrics_path.exists()
    for step in (1, 2, 3, 4):
        run.log("a", step)
        run.log("b", step)
    kept = run.metrics_path.read_text().splitlines()[:2]
    run.truncate_metrics("a", 2)
    assert [record["step"] for record in run.metrics("a")] == [1, 2]
    assert [record["step"] for record in run.metrics("b")] == [1, 2, 3, 4]
    assert run.metrics_path.read_text().splitlines()[:2] == kept


def test_seconds_are_those_of_the_last_record_that_has_them(tmp_path):
    run = Run(tmp_path)
    assert run.seconds("a") == 0
    run.log("a", 1, seconds=5.0)
    run.log("a", 2, seconds=9.5)
    run.log("a", 3)
    run.log("b", 4, seconds=99.0)
    assert run.seconds("a") == 9.5


def test_figures_nest_and_do_not_disturb_each_other(tmp_path):
    run = Run(tmp_path)
    assert run.figures() == {}
    run.set_figure("closure.ebm", {"closure": np.float32(0.25), "fd": float("inf")})
    run.set_figure("closure.diffusion-ebm", {"closure": 2 / 3})
    run.set_figure("generator", {"elbo": -1})
    run.set_figure("closure.ebm", {"closure": 0.5})
    assert run.figures() == {
        "closure": {"ebm": {"closure": 0.5}, "diffusion-ebm": {"closure": 0.666667}},
        "generator": {"elbo": -1},
    }
    run.figures_path.write_text("[1]")
    with pytest.raises(HebmError, match="figures.json is not a JSON object"):
        run.set_figure("a", 1)
    assert run.figures_path.read_text() == "[1]"
