"""`hebm controllable`, and coupling labels to a prior, on runs."""

import json
import shutil
import sys

import pytest
import torch
from PIL import Image
from said import one_sentence
from tiny import DIGITS, options

from hebmtool import api
from hebmtool.cli.main import main
from hebmtool.judge import classifier
from hebmtool.run import checkpoint

ODD = options(["data.attributes={odd: [1, 3, 5, 7, 9]}", "prior.labels=[odd]", "prior.label_layers=[2]"])


@pytest.fixture(scope="module")
def coupled(tiny, tmp_path_factory):
    """The run `digits` with a second label, odd, learned apart by the command."""
    root = shutil.copytree(tiny, tmp_path_factory.mktemp("coupled") / "runs")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stopped:
        command = ["hebm", "train-prior", "digits", "--finetune", "--runs", root, *options(DIGITS), *ODD]
        patch.setattr(sys, "argv", list(map(str, command)))
        main()
    assert stopped.value.code == 0
    return root / "digits"


def test_finetuning_leaves_the_prior_as_it_was_and_reports_accuracy(hebm, coupled, tiny):
    for name in ("prior-diffusion-ebm.safetensors", "label-class.safetensors"):
        assert (coupled / name).read_bytes() == (tiny / "digits" / name).read_bytes()
    assert len(json.loads((coupled / "figures.json").read_text())["label_accuracy"]["odd"]) == 3
    records = [json.loads(line) for line in (coupled / "metrics.jsonl").read_text().splitlines()]
    assert any(r["stage"] == "train-prior label odd" and r["step"] == 2 for r in records)
    header = checkpoint.header(coupled / "label-odd.safetensors")
    assert header.kind == "label" and header.extra["values"] == ["0", "1"] and header.step == 2
    again = ("train-prior", "digits", "--runs", coupled.parent, "--finetune", *options(DIGITS), *ODD)
    status, _, err = hebm(*again)
    assert status == 1 and "has the label 'odd' already" in one_sentence(err)


def test_conditions_are_not_left_to_an_exact_chain_unless_it_is_asked_for(coupled):
    model = api.load(coupled, "diffusion-ebm", device="cpu")
    how = {"n": 3, "seed": 1, "judged": False, "weight": 5.0}

    def drawn(**chain):
        return torch.as_tensor(model.controllable(3, **how, **chain).sets[0])

    own, underdamped = drawn(), drawn(chain="underdamped", steps=3)
    assert torch.equal(own, drawn(chain=model.prior.config.chain)), "a chain without a test is kept"
    model.prior = model.prior.using(chain="hmc")
    assert torch.equal(drawn(steps=3), underdamped) and not torch.equal(drawn(chain="hmc", steps=3), underdamped)


def test_it_draws_judges_and_writes(hebm, coupled, tmp_path, monkeypatch):
    monkeypatch.setattr(classifier, "UPDATES", 20)
    command = ["controllable", "--run", coupled, "-n", 4, "--out", tmp_path / "classes.png"]
    status, out, err = hebm(*command, "--class", "all", "--attribute", "odd=1:0.5", "--json")
    assert status == 0, err
    found = json.loads(out)
    assert found["picture"] == str(tmp_path / "classes.png") and Image.open(tmp_path / "classes.png").width > 200
    assert len(found["rows"]) == 10 and set(found["classifiers"]) == {"class", "odd"}
    assert found["rows"][3]["asked"] == "class 3, odd 1 x0.5" and found["rows"][3]["samples"] == 4
    assert all(0 <= row["controllability"] <= min(row["by_label"].values()) for row in found["rows"])
    # The judge is kept, and serves the next call.
    kept = coupled / "classifier-class.safetensors"
    before = kept.stat().st_mtime_ns
    status, out, err = hebm("controllable", "--run", coupled, "-n", 2, "--class", "3", "--across-layers")
    assert status == 0 and out.strip().endswith(".png") and "layers [2] resampled" in err, err
    assert kept.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--class", "12"], 2, "has no value '12'; it has 0, 1, 2"),
        (["--attribute", "Smiling=1"], 2, "no trained label 'Smiling'; it has class"),
        (["--class", "3", "--prior", "gaussian"], 1, "the gaussian prior has no energy"),
        (["--class", "all", "--across-layers"], 2, "one condition"),
        (["--class", "3", "--temperature", "0"], 2, "--temperature is 0"),
    ],
)
def test_what_it_refuses(hebm, tiny, arguments, status, message):
    found, out, err = hebm("controllable", "--run", tiny / "digits", "-n", 2, *arguments)
    assert found == status and out == "" and message in one_sentence(err)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--finetune"], "prior.labels is empty"),
        (["--finetune", "--set", "prior.labels=class", "--set", "prior.levels=6"], "has 3; set it to that"),
        (["--finetune", "--set", "prior.labels=[class, class]"], "names class twice"),
        (["--finetune", "--set", "prior.labels=class", "--set", "prior.label_layers=[]"], "prior.label_layers is []"),
        (["--finetune", "--set", "prior.labels=class", "--set", "data.attributes={a/b: [1]}"], "an attribute 'a/b'"),
        (["--finetune", "--set", "prior.labels=hats"], "no label 'hats'; they have class"),
        (["--set", "prior.labels=3"], "prior.labels is 3, but must be a list of names"),
    ],
)
def test_labels_that_cannot_be_coupled(hebm, copied, settings, message):
    status, _, err = hebm("train-prior", "digits", "--runs", copied, *options(DIGITS), *settings)
    assert status in (1, 2) and message in one_sentence(err)
