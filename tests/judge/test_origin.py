"""Figures are of the checkpoints they were measured on: kept beside those measured otherwise, and blank, in comparing
and reporting, once the run has other ones."""

import json
import shutil
from pathlib import Path

import pytest

from hebmtool import files
from hebmtool.judge.compare import compare
from hebmtool.judge.evaluation import Evaluation, keep, kept
from hebmtool.metrics.figures import Figure
from hebmtool.report.measured import _of_training, kept_figures
from hebmtool.run import checkpoint, info, records
from hebmtool.run.folder import Run
from hebmtool.run.header import contents

KINDS = ("gaussian", "ebm", "diffusion-ebm", "reconstructions")


def judged(run: Run, value: float = 1.0, kinds=KINDS, **settings) -> Evaluation:
    """What judging these would have kept in the run, nothing being measured."""
    figures = [Figure("FD", value + i, 0.1, kind, "lower") for i, kind in enumerate(kinds)]
    used = [run.generator_path, *(run.prior_path(kind) for kind in kinds if run.prior_path(kind).is_file())]
    digests = {path.name: contents(path)[:21] for path in used if path.is_file()}
    provenance = {"command": "c", "seed": 0, "samples": 20, "repeats": 1, "steps": None, "checkpoints": digests}
    found = Evaluation(run.name, figures, provenance | {"torch": "2", "device": "d"} | settings)
    keep(run, found)
    return found


def changed(path: Path, recipe: dict | None = None) -> None:
    """Another model in the checkpoint: other values, or, where given, only another recipe."""
    tensors, header = checkpoint.load(path)
    if recipe is None:
        key = next(key for key in tensors if tensors[key].is_floating_point() and tensors[key].numel())
        tensors[key] = tensors[key] + 1e-3
    about = header.recipe | (recipe or {})
    checkpoint.save(path, tensors, kind=header.kind, recipe=about, step=header.step, extra=header.extra)


def shown(run: Run) -> dict[str, list[float]]:
    """Columns and their values."""
    return {name: [figure.value for figure in figures] for name, figures in compare([run]).columns.items()}


# Side by side


def test_other_settings_stand_beside_and_the_same_in_place_of(run):
    judged(run, 1.0)
    judged(run, 5.0, samples=100, steps="fast")
    judged(run, 7.0, samples=100, steps="fast", device="another")  # the same measured again elsewhere
    newest, first = kept(run)
    assert newest.figures[0].value == 7.0 and first.figures[0].value == 1.0
    assert run.figures()["evaluate"]["provenance"]["samples"] == 100  # where older versions look for the newest
    found = compare([run])
    names = ["digits", "digits [images 20, steps as trained]"]
    assert list(found.columns) == [f"{name}/{kind}" for name in names for kind in KINDS]
    assert found.priors == [f"digits/{kind}" for kind in KINDS[:3]]  # 20 images are not compared with 100
    assert "not judged alike" in found.warnings[0] and list(found.as_dict()["runs"]) == names


@pytest.mark.parametrize(
    "settings",
    [
        {"seed": 3},
        {"repeats": 2},
        {"sampler": {"theta": 0.123456789}},
        {"parts": ["chains"]},
        {"reference": {"sha256": "a"}},
    ],
)
def test_whatever_changes_a_figure_keeps_it_apart(run, settings):
    judged(run)
    for _ in range(2):
        judged(run, 2.0, **settings)
    assert len(kept(run)) == 2


def test_a_kind_judged_alone_takes_its_place_among_the_others(run):
    judged(run, 1.0)
    judged(run, 10.0, kinds=("gaussian", "ebm", "reconstructions"))
    assert shown(run) == {
        "digits/gaussian": [10.0],
        "digits/ebm": [11.0],
        "digits/reconstructions": [12.0],
        "digits/diffusion-ebm": [3.0],
    }


# Of other checkpoints


def test_a_prior_retrained_in_a_copy_leaves_its_old_figures_blank(copied):
    run = Run.open("digits", copied)
    judged(run)
    shutil.copytree(run.path, copied / "copy")
    copy = Run.open("copy", copied)
    changed(copy.prior_path("ebm"))
    found = compare([run, copy])
    assert [f.value for f in found.columns["digits/ebm"]] == [2.0] and found.columns["copy/ebm"] == []
    assert [f.value for f in found.columns["copy/diffusion-ebm"]] == [3.0] and "copy/ebm" not in found.priors
    (warning,) = found.warnings
    assert "figures of copy are of other checkpoints than it has now" in warning and "(ebm)" in warning
    assert all(figure["of"] != "ebm" for figure in found.as_dict()["runs"]["copy"]["figures"])


def test_a_generator_retrained_leaves_all_blank(run):
    judged(run)
    changed(run.generator_path)
    assert shown(run) == {f"digits/{kind}": [] for kind in KINDS}
    judged(run, 4.0)
    assert shown(run)["digits/ebm"] == [5.0] and len(kept(run)) == 2


def test_the_same_weights_drawn_by_another_sampler_are_another_prior(run):
    judged(run)
    header = checkpoint.header(run.prior_path("ebm"))
    changed(run.prior_path("ebm"), {"prior": header.recipe["prior"] | {"h": 0.011}})
    assert shown(run)["digits/ebm"] == []


def test_the_same_model_written_again_is_the_same(run):
    judged(run)
    for path in (run.generator_path, run.prior_path("ebm")):
        changed(path, {"name": "renamed", "evaluate": {"samples": 3}})
    assert shown(run) == {f"digits/{kind}": [1.0 + i] for i, kind in enumerate(KINDS)}


@pytest.mark.parametrize("damage", [b"", b"no checkpoint", None])
def test_what_is_damaged_or_gone_is_not_what_was_judged(run, damage):
    judged(run)
    path = run.prior_path("ebm")
    path.unlink() if damage is None else path.write_bytes(damage)
    assert shown(run)["digits/ebm"] == [] and shown(run)["digits/gaussian"] == [1.0]


def test_figures_of_one_stage_are_of_its_one_checkpoint(flow):
    judged(flow, kinds=("gaussian", "flow", "reconstructions"))
    assert all(shown(flow).values())
    changed(flow.prior_path("flow"))
    assert not any(shown(flow).values())


# Of older versions


def test_digests_of_files_as_older_versions_kept_them_still_tell(run):
    paths = [run.generator_path, run.prior_path("ebm"), run.prior_path("diffusion-ebm")]
    judged(run, checkpoints={path.name: files.digest(path)[:12] for path in paths})
    assert all(shown(run).values()) and compare([run]).warnings == []
    changed(run.prior_path("ebm"))
    assert not shown(run)["digits/ebm"] and shown(run)["digits/diffusion-ebm"]


def test_figures_without_digests_are_shown_and_not_called_the_best(hebm, run):
    judged(run, checkpoints={})
    found = compare([run])
    assert all(found.columns.values()) and found.priors == []
    assert "do not say of which checkpoints" in found.warnings[0]
    status, out, _ = hebm("compare", run.path)
    assert status == 0 and "*" not in out and "checkpoints: unknown" in out
    (told,) = kept_figures(SUBJECT(run))
    assert told.unsure == list(KINDS)


# What training ends with


class SUBJECT:
    """What a section of a report asks of its subject."""

    def __init__(self, run: Run):
        self.run, self.found = run, info.describe(run)


def test_the_closure_that_training_ended_with_is_of_its_prior(run):
    entries = {entry["kind"]: entry for entry in info.describe(run)["priors"]}
    assert entries["ebm"]["closure"] and "origin" not in entries["ebm"]
    changed(run.prior_path("ebm"))
    entries = {entry["kind"]: entry for entry in info.describe(run)["priors"]}
    assert entries["ebm"]["closure"] is None and entries["ebm"]["origin"] == records.ANOTHER
    assert entries["diffusion-ebm"]["closure"] and "origin" not in entries["diffusion-ebm"]
    assert "left out" in info.render(info.describe(run))
    assert {figure.of for figure in _of_training(list(entries.values()))} == {
        "gaussian",
        "diffusion-ebm",
        "reconstructions",
    }


def test_bound_and_accuracy_are_of_their_generator_and_label(run):
    assert run.figure("generator").origin == run.figure("label_accuracy", "class").origin == records.NOW
    changed(run.label_path("class"))
    assert run.figure("label_accuracy", "class").origin == records.ANOTHER
    changed(run.generator_path)
    found = info.describe(run)
    assert found["elbo"] is None and found["origin"] == records.ANOTHER
    assert all(layer["kl"] is None for layer in found["layers"])


def test_figures_of_a_flow_are_of_its_checkpoint(flow):
    assert info.describe(flow)["priors"][0]["figures"]
    changed(flow.prior_path("flow"))
    found = info.describe(flow)
    assert found["priors"][0]["figures"] is None and "left out" in info.render(found)


def test_what_was_kept_without_digests_is_of_unknown_origin(run, flow):
    for each in (run, flow):
        tree = json.loads(each.figures_path.read_text())
        del tree[records.OF]
        each.figures_path.write_text(json.dumps(tree))
        assert "of unknown origin" in info.render(info.describe(each))
        assert info.describe(each)["priors"][-1]["origin"] == records.UNKNOWN
    (told,) = kept_figures(SUBJECT(run))
    assert told.figures and {"ebm", "diffusion-ebm"} <= set(told.unsure)
