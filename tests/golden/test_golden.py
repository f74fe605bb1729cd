"""The tool computes what it computed before: `golden.json`, and runs that version 0.1.0 made (`runs-0.1.0`).

how.txt has the settings of the run `hierarchy`; expected.json what 0.1.0 itself drew from these runs, and the digests
of their checkpoints after it had resumed them for three updates more.  Bits are compared on a machine like the one
they were recorded on; elsewhere numbers are, to a tolerance.
"""

import json
import shutil
from pathlib import Path

import pytest
from golden import record

from hebmtool import recipe
from hebmtool.run import checkpoint

RUNS = record.HERE / "runs-0.1.0"
EXPECTED = json.loads((RUNS / "expected.json").read_text())
ALIKE = EXPECTED["machine"] == record.machine()
HIERARCHY = (RUNS / "how.txt").read_text().split()
JOINT = record.settings({"prior.kind": "ebm", "prior.objective": "recovery", "prior.chain": "langevin"})
LONGER = record.settings({"train_prior.iterations": 8, "train_prior.label_iterations": 8})


@pytest.fixture
def runs(tmp_path) -> Path:
    return Path(shutil.copytree(RUNS, tmp_path / "runs"))


@pytest.mark.parametrize("prior", EXPECTED["samples"])
def test_a_run_of_0_1_0_draws_the_images_it_drew(runs, hebm, tmp_path, prior):
    run = runs / ("flow" if prior == "flow" else "hierarchy")
    status, _, err = hebm(
        "sample", "--run", run, "--prior", prior, "-n", 4, "--seed", 3, "--out", tmp_path / "drawn.npz"
    )
    assert status == 0, err
    assert not record.compare(EXPECTED["samples"][prior], record.pixels(tmp_path / "drawn.npz"), ALIKE)


def resumed(runs: Path, run: str) -> dict[str, str]:
    return {name: record.tensors(runs / name) for name in EXPECTED["resumed"] if name.startswith(run)}


def test_a_hierarchical_run_of_0_1_0_resumes_as_it_did(runs, hebm):
    for more in (["--set", "prior.labels=class"], JOINT):
        status, _, err = hebm("train-prior", "digits", "--runs", runs, *HIERARCHY, *more, "--resume", *LONGER)
        assert status == 0, err
    assert not record.compare(
        {k: v for k, v in EXPECTED["resumed"].items() if k.startswith("hierarchy")}, resumed(runs, "hierarchy"), ALIKE
    )
    for stem in ("prior-ebm", "prior-diffusion-ebm", "label-class"):
        assert checkpoint.header(runs / "hierarchy" / f"{stem}.safetensors").step == 8


def test_a_flow_run_of_0_1_0_resumes_as_it_did(runs, hebm):
    keys = record.settings(record.FLOW, {"name": "flow", "evaluate.samples": 24, "train_prior.iterations": 8})
    status, _, err = hebm("train-prior", "digits-flow", "--runs", runs, *keys, "--resume")
    assert status == 0, err
    assert not record.compare(
        {k: v for k, v in EXPECTED["resumed"].items() if k.startswith("flow")}, resumed(runs, "flow"), ALIKE
    )
    assert checkpoint.header(runs / "flow" / "prior-flow.safetensors").step == 8


@pytest.mark.parametrize("run", ["hierarchy", "flow"])
def test_a_run_of_0_1_0_is_described_and_evaluated(runs, hebm, run):
    for command in (["info"], ["evaluate", "--samples", 24]):
        status, out, err = hebm(*command, runs / run, "--json")
        assert status == 0, err
        assert json.loads(out)


def test_every_kind_objective_and_chain_learns_and_draws_as_before(tmp_path, monkeypatch):
    """A part of the record; `python tests/golden/record.py --check` compares all of it."""
    monkeypatch.setenv("HEBM_CACHE", "")  # which the record sets, and which is set back afterwards
    assert not record.differences(record.quick(tmp_path), part=True)


@pytest.mark.slow
def test_everything_is_as_before(tmp_path, monkeypatch):
    monkeypatch.setenv("HEBM_CACHE", "")
    assert not record.differences(record.record(tmp_path))


def test_the_record_tells_what_differs():
    then = {"digest": "a", "mean": 1.0, "shape": [4, 8]}
    assert not record.compare(then, dict(then), exact=True)
    assert record.compare(then, then | {"digest": "b"}, exact=True) == ["/digest: a then, b now"]
    assert not record.compare(then, then | {"digest": "b", "mean": 1.03}, exact=False)
    assert record.compare(then, then | {"mean": 1.2}, exact=False) == ["/mean: 1.0 then, 1.2 now"]
    assert record.compare(then, {"digest": "a", "mean": 1.0}, exact=False) == ["/shape: only in one"]
    more = then | {"new": 1}
    assert record.compare(then, more, exact=True) == ["/new: only in one"]
    # A command may say more than it did, never less.
    assert not record.compare(then, more, True, "/json/info")
    assert record.compare(more, then, True, "/json/info") == ["/json/info/new: only in one"]


def test_the_quick_part_has_every_kind_objective_and_chain():
    settings = [
        recipe.load("digits", record.settings(record.PRIOR, record.PRIORS[name])[1::2]).prior
        for name in record.QUICK_PRIORS
    ]
    assert {s.chain for s in settings} == set(record.CHAINS)
    assert {s.kind for s in settings} == {"ebm", "diffusion-ebm"}
    assert {s.objective for s in settings} == {"recovery", "nce", "cnce", "score-matching"}
