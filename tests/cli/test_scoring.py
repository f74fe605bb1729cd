"""ood-score on the command line: pipelines, sentences, and the benchmark that stands on it."""

import importlib.util
import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import DIGITS, LATENT, options

from hebmtool import data
from hebmtool.run.folder import Run
from hebmtool.run.open import load_prior
from hebmtool.use.score import in_batches, make_scorer


def pipe(child, script: str, **variables) -> tuple[int, str, str]:
    """A shell pipeline in which `hebm` is the command; its exit status is that of `hebm`."""
    command = f"hebm() {{ '{sys.executable}' -m hebmtool \"$@\"; }}; {script}; exit ${{PIPESTATUS[1]}}"
    return child("bash", "-c", command, env={k: str(v) for k, v in variables.items()}).finish()


def test_pipelines_work_and_survive_a_closed_pipe(child, tiny, imgs):
    (imgs / "bad.png").unlink()
    status, out, err = pipe(
        child,
        'yes "$IMGS/a.png" | hebm ood-score - --run "$RUN" --layer 0 --batch-size 2 --draws 1 | head -1',
        RUN=tiny / "digits",
        IMGS=imgs,
    )
    assert status == 0 and err == "", err
    score, path = out.splitlines()[0].split("\t")
    assert np.isfinite(float(score)) and path == str(imgs / "a.png") and out.count("\n") == 1


def test_unreadable_files_are_named_and_tell_in_the_status(hebm, tiny, imgs, monkeypatch):
    named = "".join(f"{path}\n" for path in sorted(imgs.rglob("*")) if path.is_file())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(named.encode())))
    status, out, err = hebm("ood-score", "-", "--run", tiny / "digits", "--layer", 1)
    assert status == 1
    scores, paths = zip(*(line.split("\t") for line in out.splitlines()), strict=True)
    assert [Path(path).name for path in paths] == ["a.png", "b.jpg", "c.png"]
    assert np.isfinite([float(score) for score in scores]).all()
    (line,) = err.splitlines()
    assert line.startswith("hebm: ") and "bad.png" in line


def test_json_lines_and_the_cut_chosen(hebm, tiny, imgs):
    status, out, err = hebm("ood-score", imgs / "a.png", imgs / "deep", "--json", "--run", tiny / "digits")
    assert status == 0, err
    lines = [json.loads(line) for line in out.splitlines()]
    assert [set(line) for line in lines] == [{"path", "score", "method", "layer"}] * 3
    cut, method = lines[0]["layer"], lines[0]["method"]
    assert cut in (0, 1) and method == "energy (inference)"
    status, out, err = hebm("ood-score", imgs / "a.png", "--layer", cut, "--run", tiny / "digits")
    assert status == 0 and float(out.split("\t")[0]) == pytest.approx(lines[0]["score"], rel=1e-4)


@pytest.mark.parametrize("options", [("--score", "likelihood"), ("--score", "llr"), ("--scheme", "diffusion")])
def test_every_score(hebm, tiny, imgs, options):
    status, out, err = hebm("ood-score", imgs / "a.png", *options, "--draws", 1, "--run", tiny / "digits")
    assert status == 0 and len(out.splitlines()) == 1, err


def test_a_gaussian_run_has_likelihoods_but_no_energy(hebm, tiny, imgs):
    gaussian = ("--prior", "gaussian", "--run", tiny / "digits")
    status, _, err = hebm("ood-score", imgs / "a.png", *gaussian)
    assert status == 1 and err.count("\n") == 1 and "score by likelihood" in err
    for score in ("likelihood", "llr"):
        status, out, err = hebm("ood-score", imgs / "a.png", "--score", score, "--layer", 1, *gaussian)
        assert status == 0 and out.count("\n") == 1, err


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ((), 2, "say what to score"),
        (("x.png", "--auroc"), 2, "give it by --ood"),
        (("x.png", "--ood", "y"), 2, "--ood belongs to --auroc"),
        (("x.png", "--layer", 2), 2, "of 2, so for the score energy it is from 0 to 1"),
        (("x.png", "--layer", 0, "--score", "llr"), 2, "it is 1 (the top one alone)"),
        (("x.png", "--scheme", "difusion"), 2, "did you mean 'diffusion'"),
        (("x.png", "--layer", 0), 1, "x.png does not exist"),
        (("--auroc", "--out", "a.npz"), 2, "give a .png"),
        (("--auroc", "--ood", "absent", "-n", 6), 1, "absent"),
    ],
)
def test_mistakes_are_sentences(hebm, tiny, arguments, status, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found, out, err = hebm("ood-score", *arguments, "--run", tiny / "digits")
    assert (found, out) == (status, "") and words in err and "Traceback" not in err
    assert all(line.startswith("hebm: ") for line in err.splitlines())


def test_nothing_on_standard_input_and_an_empty_folder(hebm, tiny, tmp_path, monkeypatch):
    for given in ("", "\n\n"):
        with open(tmp_path / "in", "w+") as stdin:
            stdin.write(given)
            stdin.seek(0)
            monkeypatch.setattr(sys, "stdin", stdin)
            status, out, err = hebm("ood-score", "-", "--layer", 0, "--run", tiny / "digits")
        assert (status, out) == (1, "") and "no image was named" in err and err.count("\n") == 1
    (tmp_path / "empty").mkdir()
    status, out, err = hebm("ood-score", tmp_path / "empty", "--layer", 0, "--run", tiny / "digits")
    assert (status, out) == (1, "") and "no images in" in err and err.count("\n") == 1


@pytest.fixture
def anomaly():
    """benchmarks/anomaly.py, as a module."""
    path = Path(__file__).parent.parent.parent / "benchmarks" / "anomaly.py"
    spec = importlib.util.spec_from_file_location("anomaly", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_anomaly_benchmark_scores_a_run_without_an_encoder(anomaly, tmp_path, capsys):
    arguments = ["--recipe", "digits-flow", *options(LATENT[1:]), "--digits", "3", "--runs", str(tmp_path)]
    anomaly.main([*arguments, "--limit", "250"])
    rows = dict(re.findall(r"^\| (.+?) \| (.*) \|$", capsys.readouterr().out, re.MULTILINE))
    scores = ["log p(z, x)", "log p(z)", "log p(x given z)", "squared error + E + z^2/2"]
    assert [name for name in rows if name in scores] == scores
    run = Run(tmp_path / "anomaly-pooled-3-0")
    prior, tested = load_prior(run, "latent-ebm", torch.device("cpu")), anomaly.Tested.of(run, 3, 250)
    assert 0 < tested.positive.sum() < 250
    scorer = make_scorer(prior, run.recipe())  # as `hebm ood-score` does
    expected = tested.auprc(in_batches(scorer, tested.images)[:, 0])
    assert float(rows["log p(z, x)"]) == pytest.approx(expected, abs=1e-3)


def test_the_anomaly_benchmark_runs(anomaly, tmp_path, capsys):
    anomaly.CHOSEN_ON = 32
    arguments = ["--recipe", "digits", *options(DIGITS[1:]), "--digits", "3", "--runs", str(tmp_path), "--draws", "1"]
    arguments += ["--limit", "60", "--set", "prior.kind=ebm", "--set", "train_prior.joint=true"]
    anomaly.main(arguments)
    out = capsys.readouterr().out
    rows = dict(re.findall(r"^\| (.+?) \| (.*) \|$", out, re.MULTILINE))
    assert "pooled" in out and not any(name.startswith("VAE") for name in rows)
    assert [rows[name] for name in rows if name.startswith("latent EBM prior, published (")] == [""]
    for name in ("energy", "energy, best cut", "likelihood", "llr", "llr, best cut", "joint"):
        assert float(rows["least possible"]) <= float(rows[name]) <= 1
    run = Run(tmp_path / "anomaly-pooled-3-0")
    whole = data.load(run.recipe().data, "test")
    assert 3 not in data.load(run.recipe().data, "train").labels and (whole.labels == 3).sum() == 183
    tested = anomaly.Tested.of(run, 3, 60)
    assert f"{tested.base_rate:.3f}" == rows["base rate"]
    worst = tested.positive + np.linspace(0, 0.5, 60)
    assert tested.auprc(worst) == pytest.approx(tested.least, abs=1e-6)
    before = {file: file.stat().st_mtime_ns for file in run.checkpoints()}
    anomaly.main(arguments)  # what is trained is not trained again
    assert before == {file: file.stat().st_mtime_ns for file in run.checkpoints()} and capsys.readouterr().out == out
