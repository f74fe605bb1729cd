"""Runs in a row, and which of them was trained last."""

import os
import shutil

from hebmtool.run import listing, shipped
from hebmtool.run.folder import Run
from hebmtool.table import plain


def test_every_run_is_listed_with_what_it_has(copied):
    (copied / "no run").mkdir()
    digits, flow = listing.below(copied)
    assert (digits.name, digits.data, digits.layers, digits.labels) == ("digits", "digits", 2, ["class"])
    assert list(digits.priors) == ["ebm", "diffusion-ebm"] and all(c is not None for c in digits.priors.values())
    assert digits.bytes == sum(path.stat().st_size for path in (copied / "digits").rglob("*") if path.is_file())
    assert flow.layers is None and list(flow.priors) == ["flow"]
    lines = plain(listing.table([digits, flow])).splitlines()
    assert len(lines) == 3 and "diffusion-ebm (" in lines[1] and digits.trained[:10] in lines[1]


def test_a_closure_of_another_prior_is_not_shown(copied):
    shutil.copy(
        copied / "digits" / "prior-diffusion-ebm.train.safetensors", copied / "digits" / "prior-ebm.safetensors"
    )
    assert next(listing.below(copied)).priors["ebm"] is None


def test_a_run_that_cannot_be_read_says_why(copied):
    (copied / "digits" / "recipe.yaml").write_text("prior: {level: 3}")
    digits, _ = listing.below(copied)
    assert "level" in digits.trouble and "level" in plain(listing.table([digits]))
    (copied / "flow" / "figures.json").write_text("[]")
    assert [run.trouble is None for run in listing.below(copied)] == [False, False]


def test_in_an_empty_folder_there_is_none(tmp_path):
    assert list(listing.below(tmp_path)) == list(listing.below(tmp_path / "absent")) == []


def test_those_of_the_package_have_a_closure_each():
    for run in listing.in_package():
        assert run.trouble is None and run.name in shipped.names()
        assert all(closure is not None for closure in run.priors.values())


def test_the_run_trained_last_is_taken_whenever_it_was_copied(copied):
    first, last = Run(copied / "digits"), Run(copied / "flow")
    assert first.trained() < last.trained()
    for path in first.checkpoints():
        os.utime(path)
    assert Run.open(None, copied).name == "flow"
    shutil.copytree(last.path, copied / "a copy")
    assert Run.open(None, copied).name == "flow"
    first.log("train-prior", 4)
    assert Run.open(None, copied).name == "digits"


def test_records_that_say_no_time_leave_the_files(copied):
    run = Run(copied / "digits")
    for text in ("", "not json\n", '{"stage": "x"}\n', "[1]\n", '{"time": null}\n{"time": 1'):
        run.metrics_path.write_text(text)
        assert run.trained() == max(path.stat().st_mtime for path in run.checkpoints())
