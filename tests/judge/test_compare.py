"""Runs side by side: what differs between them is said, and torch is not needed to say it."""

import json
import shutil
import sys

import pytest
import torch
from tiny import DIGITS

from hebmtool import recipe
from hebmtool.judge.compare import compare
from hebmtool.judge.evaluate import evaluate
from hebmtool.judge.evaluation import kept
from hebmtool.metrics.figures import over_seeds
from hebmtool.run.folder import Run
from hebmtool.train.prior import train_prior

CPU = torch.device("cpu")


def test_compare_says_what_differs(copied):
    shutil.copytree(copied / "digits", copied / "other")
    one, other = Run.open("digits", copied), Run.open("other", copied)
    evaluate(one, CPU, samples=20)
    evaluate(other, CPU, "ebm", samples=20)
    alike = compare([one, other, one])
    kinds = ["gaussian", "ebm", "diffusion-ebm", "reconstructions"]
    assert list(alike.columns) == [*(f"digits/{kind}" for kind in kinds), *(f"other/{k}" for k in kinds if k[0] != "d")]
    assert not any("reconstructions" in prior for prior in alike.priors) and len(alike.priors) == 5
    assert alike.warnings == []
    evaluate(other, CPU, "ebm", samples=12, seed=3)
    (warning,) = compare([one, other]).warnings
    assert "images per set 20 (digits), 12 (other)" in warning and "seed 0 (digits), 3 (other)" in warning
    assert "feature" not in warning and "\n" not in warning


def test_compare_notices_a_run_trained_since(run):
    evaluate(run, CPU, "ebm", samples=8)
    assert compare([run]).warnings == []
    run.prior_path("ebm").write_bytes(b"other")
    (warning,) = compare([run]).warnings
    assert "the figures of digits are of other checkpoints than it has now" in warning


def test_runs_of_one_name_are_told_apart_by_their_folders(run, tmp_path):
    evaluate(run, CPU, "ebm", samples=8)
    shutil.copytree(run.path, tmp_path / "elsewhere" / "digits")
    found = compare([run, Run(tmp_path / "elsewhere" / "digits")])
    assert {column.rpartition("/")[0] for column in found.columns} == {
        str(run.path),
        str(tmp_path / "elsewhere" / "digits"),
    }


def test_compare_prints_a_table_json_and_markdown(hebm, copied):
    shutil.copytree(copied / "digits", copied / "other")
    for name, samples in (("digits", 20), ("other", 12)):
        evaluate(Run.open(name, copied), CPU, "ebm", samples=samples, command=f"of {name}")
    status, out, err = hebm("compare", "digits", "other", "--runs", copied)
    assert status == 0 and len(err.splitlines()) == 1 and "not judged alike" in err
    assert out.splitlines()[0].split()[:2] == ["digits/gaussian", "digits/ebm"]
    fd = next(line for line in out.splitlines() if line.startswith("FD"))
    assert fd.count("*") == 1 and "other: command: of other" in out
    status, out, _ = hebm("compare", "digits", "other", "--runs", copied, "--json")
    found = json.loads(out)
    assert status == 0 and list(found["runs"]) == ["digits", "other"] and len(found["warnings"]) == 1
    status, out, _ = hebm("compare", "digits", "other", "--runs", copied, "--markdown")
    assert status == 0 and out.startswith("|  | digits/gaussian | digits/ebm |") and "**" in out


@pytest.mark.parametrize("kept", [{}, {"figures": [{"title": "FD"}], "provenance": {}}, {"figures": 3}, [1]])
def test_damaged_kept_figures_are_one_sentence(hebm, run, kept):
    run.set_figure("evaluate", kept)
    status, _, err = hebm("compare", run.path)
    assert status == 1 and "evaluate" in err and "measure again" in err and len(err.splitlines()) == 1
    evaluate(run, CPU, "ebm", samples=8)
    assert hebm("compare", run.path)[0] == 0


def test_neither_torch_nor_numpy_is_needed_to_compare(child):
    code = "import sys, hebmtool.judge.compare; sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    status, _, err = child(sys.executable, "-c", code).finish()
    assert status == 0, err


def test_compare_tells_the_closure_over_seeds_of_learning(hebm, copied):
    """Of runs that differ in train_prior.seed alone; one trained longer is another matter."""
    for name, seed, updates in (("one", 1, 3), ("longer", 2, 4)):
        shutil.copytree(copied / "digits", copied / name)
        run = Run(copied / name)
        for path in (run.prior_path("ebm"), run.prior_train_path("ebm")):
            path.unlink()
        more = [
            "prior.labels=[class]",
            "prior.kind=ebm",
            f"train_prior.seed={seed}",
            f"train_prior.iterations={updates}",
        ]
        with run.lock():
            train_prior(recipe.load("digits", [*DIGITS, *more, f"name={name}"]), run, CPU)
    opened = [Run.open(name, copied) for name in ("digits", "one", "longer")]
    for run in opened:
        evaluate(run, CPU, "ebm", samples=12)
    [seeds] = compare(opened).seeds
    assert seeds.columns == ["digits/ebm", "one/ebm"]
    closures = [(f.value, f.error) for run in opened[:2] for f in kept(run)[0].figures if f.name == "closure"]
    assert (seeds.value, seeds.error) == over_seeds(closures)
    status, out, err = hebm("compare", "digits", "one", "longer", "--runs", copied, "--json")
    assert status == 0, err
    assert json.loads(out)["seeds"][0]["columns"] == seeds.columns
    assert seeds.sentence() in err and compare(opened[:1]).seeds == []
