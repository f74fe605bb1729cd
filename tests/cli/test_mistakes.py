"""What goes wrong on the user's side: one sentence on stderr, nothing on stdout, an exit status that means something;
and a wrong request is told before torch is imported."""

import json
import os
import sys

import pytest
import torch
from children import one_by_one
from said import one_sentence

WRONG = [
    (["train-vae", "digits", "--set", "prior.levls=4"], ["prior.levls", "levels"]),
    (["train-vae", "digits", "--set", "train_vae.lr=fast"], ["train_vae.lr", "fast"]),
    (["train-vae", "nosuch.yaml"], ["nosuch.yaml"]),
    (["train-vae", "digit"], ["digit", "digits"]),
    (["train-vae"], ["RECIPE"]),
    (["train-vae", "digits-flow"], ["prior.kind flow", "hebm train-prior"]),
    (["train-vea", "digits"], ["train-vea"]),
    (["train-prior", "digits", "--finetune"], ["prior.labels"]),
    (["train-prior", "digits", "--device", "gpu"], ["--device", "gpu", "cuda"]),
    (["sample", "--sed", "3"], ["--sed"]),
    (["sample", "-n", "0"], ["1"]),
    (["sample", "-n", "many"], ["integer"]),
    (["sample", "--temperature", "0"], ["--temperature", "above 0"]),
    (["sample", "--temperature", "nan"], ["--temperature", "finite"]),
    (["sample", "--prior", "difusion-ebm"], ["difusion-ebm", "diffusion-ebm"]),
    (["sample", "--chain", "underdamp"], ["prior.chain", "'underdamp'", "did you mean 'underdamped'"]),
    (["sample", "--chain", "underdamped", "--theta", "2"], ["prior.theta", "below 1.6"]),
    (["sample", "--h", "0"], ["prior.h", "above 0"]),
    (["sample", "--persistence", "1"], ["prior.persistence", "below 1"]),
    (["sample", "--fast", "--steps", "3"], ["--fast", "--steps"]),
    (["sample", "--out", "picture.jpg"], [".jpg", ".png"]),
    (["sample", "--device", "gpu"], ["gpu", "cuda"]),
    (["sample", "--device", "cpu:1"], ["cpu:1"]),
    (["hier-sample"], ["--layer", "--all"]),
    (["hier-sample", "--layer", "1", "--all"], ["both are given"]),
    (["hier-sample", "--layer", "two"], ["two", "2:5"]),
    (["hier-sample", "--layer", "1", "--vary", "abov"], ["--vary", "did you mean 'above'"]),
    (["hier-sample", "--all", "--vary", "only"], ["--vary"]),
    (["hier-sample", "--layer", "1", "--from", "a.png", "-n", "2"], ["--from"]),
    (["hier-sample", "--all", "--out", "a.npz"], ["hier-sample", ".png"]),
    (["controllable"], ["--class", "--attribute"]),
    (["controllable", "--class", "3", "--json", "--out", "-"], ["--json", "--out -"]),
    (["controllable", "--attribute", "Smiling"], ["Smiling", "NAME=VALUE"]),
    (["ood-score"], ["--auroc"]),
    (["ood-score", "a.png", "--auroc"], ["a.png", "--ood"]),
    (["ood-score", "a.png", "--ood", "b"], ["--ood belongs to --auroc"]),
    (["ood-score", "a.png", "--score", "energi"], ["--score", "did you mean 'energy'"]),
    (["ood-score", "a.png", "--scheme", "x"], ["--scheme", "inference, diffusion"]),
    (["reconstruct", "--json", "--out", "-"], ["--json"]),
    (["inpaint", "--mask", "lefft"], ["lefft", "did you mean 'left'"]),
    (["flow-match", "--out", "a.npz"], ["flow-match", ".png"]),
    (["evaluate", "--json", "--markdown"], ["--json", "--markdown"]),
    (["evaluate", "--fid", "clear"], ["--fid", "did you mean 'clean'"]),
    (["evaluate", "--reference", "tset"], ["--reference", "test"]),
    (["evaluate", "--fast", "--diagnose"], ["--fast", "--diagnose"]),
    (["evaluate", "--prior", "nosuch"], ["nosuch", "gaussian"]),
    (["compare"], ["RUN"]),
    (["compare", "digits", "--json", "--markdown"], ["--json", "--markdown"]),
    (["diagnose", "--only", "chain"], ["--only", "did you mean 'chains'"]),
    (["diagnose", "--only", "likelihood", "--out", "a.png"], ["--only", "chains"]),
    (["report", "--out", "page.pdf"], ["page.pdf", ".html"]),
    (["recipes", "show", "mnits"], ["mnits", "mnist"]),
]
FAILED = [
    (["info", "nosuch"], ["nosuch"]),
    (["compare", "digits", "nosuch"], ["nosuch"]),
    (["sample", "--run", "nosuch"], ["nosuch"]),
    (["diagnose", "digist"], ["did you mean 'digits'"]),
    (["train-prior", "mnist"], ["hebm train-vae mnist"]),
    (["compare", "flow"], ["no kept figures", "hebm evaluate"]),
]
ALL = [(arguments, 2, words) for arguments, words in WRONG] + [(arguments, 1, words) for arguments, words in FAILED]
ASKED = [["--help"], ["--version"], ["sample", "--help"], ["recipes"], ["recipes", "show", "digits"]]


@pytest.fixture(scope="module")
def told(tiny, made_once):
    """What each of these is answered, by its words, and whether torch had been imported by then: in one process, which
    torch, once imported, would be seen in for ever after."""

    def ask(root):
        (root / "here").mkdir()
        commands = [*ASKED, *(arguments for arguments, *_ in ALL)]
        found = one_by_one([(words, {}) for words in commands], env={"HEBM_RUNS": tiny}, cwd=root / "here")
        answers = dict(zip(map(" ".join, commands), found, strict=True))
        assert len(answers) == len(commands) and not list((root / "here").iterdir())
        (root / "told.json").write_text(json.dumps(answers))

    for folder in made_once("mistakes", ask):
        yield json.loads((folder / "told.json").read_text())


@pytest.mark.parametrize(("arguments", "status", "words"), ALL)
def test_mistakes_are_one_sentence_before_torch_is_imported(told, arguments, status, words):
    found, out, err, torch_imported = told[" ".join(arguments)]
    message = one_sentence(err)
    assert found == status and out == "" and not torch_imported, message
    assert all(word in message for word in words), message


def test_a_prior_that_has_nothing_to_learn_is_one_too(hebm, tiny):
    """That is its class's to know, which needs torch."""
    status, out, err = hebm("train-prior", "digits", "--set", "prior.kind=gaussian", "--runs", tiny)
    message = one_sentence(err)
    assert (status, out) == (2, "") and "gaussian" in message and "no training" in message


@pytest.mark.parametrize("arguments", ASKED, ids=" ".join)
def test_what_is_asked_is_answered_without_torch(told, arguments):
    status, out, err, torch_imported = told[" ".join(arguments)]
    assert (status, err, torch_imported) == (0, "", False) and out


def test_runs_are_compared_without_torch(heard, hebm, copied):
    status, _, err = hebm("evaluate", "digits", "--runs", copied, "--prior", "gaussian", "--samples", 8)
    assert status == 0, err
    forms = ([], ["--json"], ["--markdown"])
    found = one_by_one([(["compare", "digits", *form], {"HEBM_RUNS": copied}) for form in forms])
    assert [(status, imported) for status, _, _, imported in found] == [(0, False)] * 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_without_a_gpu(hebm, tiny):
    status, _, err = hebm("sample", "--device", "cuda", "--runs", tiny)
    assert status == 1 and "device cpu" in one_sentence(err)


def test_no_runs_at_all(hebm, tmp_path):
    status, _, err = hebm("sample", "--runs", tmp_path)
    assert status == 1 and "hebm train-vae" in one_sentence(err)


def test_debug_shows_the_traceback(hebm, tmp_path):
    status, _, err = hebm("sample", "--runs", tmp_path, "--debug")
    assert status == 1 and "Traceback" in err and "hebm: " in err


def test_a_reader_that_went_away_is_no_failure(child):
    ours, theirs = os.pipe()
    os.close(ours)
    process = child(sys.executable, "-u", "-m", "hebmtool", "recipes", "show", "mnist", stdout=theirs)
    os.close(theirs)
    status, _, err = process.finish()
    assert status == 0 and err == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_standard_output_is_a_sentence(child):
    with open("/dev/full", "w") as full:
        process = child(sys.executable, "-m", "hebmtool", "recipes", "show", "digits", stdout=full)
        status, _, err = process.finish()
    assert status == 1 and "No space left" in one_sentence(err)
