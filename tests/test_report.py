"""The report: one page, whole and self-contained, of a tiny run on the embedded digits."""

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from hebmtool import console, data, picture, recipe
from hebmtool.metrics.figures import Figure
from hebmtool.report import page, sections
from hebmtool.report import sections as report
from hebmtool.run.folder import Run
from hebmtool.run.open import load_prior
from hebmtool.train.labels import train_labels
from hebmtool.train.prior import train_prior
from hebmtool.train.vae import train_vae
from hebmtool.use.sample import sample

CPU = torch.device("cpu")
TINY = [
    *("generator.layers_per_scale=1", "generator.latent_channels=2"),
    *("generator.encoder_channels=4", "generator.decoder_channels=4"),
    *("train_vae.iterations=40", "train_vae.batch_size=16", "train_vae.log_every=1"),
    *("train_prior.iterations=12", "train_prior.batch_size=8", "train_prior.log_every=1"),
    *("prior.energy.width=8", "prior.steps=2", "prior.labels=class", "train_prior.label_iterations=3"),
    "evaluate.samples=32",
]
VOID = {"img", "meta", "br", "hr", "input", "link"}


class Page(HTMLParser):
    """Elements in order with their attributes and text; complains of tags that do not match."""

    def __init__(self, text: str):
        super().__init__()
        self.elements, self.open = [], []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        element = {"tag": tag, "text": "", "section": self.section(), **dict(attributes)}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop()["tag"] == tag

    def handle_data(self, text):
        self.text += text
        for element in self.open:
            element["text"] += text

    def section(self):
        return next((element["id"] for element in self.open if element["tag"] == "section"), None)

    def all(self, tag, section=None):
        return [e for e in self.elements if e["tag"] == tag and section in (None, e["section"])]

    def images(self, section=None):
        prefix = "data:image/png;base64,"
        return [
            Image.open(io.BytesIO(base64.b64decode(e["src"].removeprefix(prefix)))) for e in self.all("img", section)
        ]

    def row(self, section, heading):
        """Text of the cells of the table's row with this heading."""
        elements = [e for e in self.elements if e["section"] == section]
        start = next(i for i, e in enumerate(elements) if e["tag"] == "th" and e["text"].split()[:1] == [heading])
        cells = []
        for element in elements[start + 1 :]:
            if element["tag"] in ("tr", "table", "details"):
                break
            if element["tag"] == "td":
                cells.append(element["text"].strip())
        return cells


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder of runs holding `digits`: two layers, a diffusion prior, the label `class`."""
    root = tmp_path_factory.mktemp("runs")
    settings = recipe.load("digits", TINY)
    with Run.create(root, settings) as run:
        train_vae(settings, run, CPU)
        train_prior(settings, run, CPU)
        train_labels(settings, run, CPU)
    return root


@pytest.fixture(scope="module")
def page(runs) -> str:
    return sections.report(Run(runs / "digits"), CPU)


@pytest.fixture
def copied(runs, tmp_path) -> Run:
    return Run(shutil.copytree(runs / "digits", tmp_path / "digits"))


@pytest.fixture
def only(monkeypatch):
    """Make reports of these sections alone."""
    return lambda *sections: monkeypatch.setattr(report, "SECTIONS", sections)


def test_the_page_loads_nothing(page):
    parsed = Page(page)
    for element in parsed.elements:
        assert element["tag"] not in ("script", "link", "iframe", "object", "embed", "audio", "video", "base")
        assert not any(name.startswith("on") for name in element)
        for name in ("href", "xlink:href"):
            assert element.get(name, "#").startswith("#")
        assert element.get("src", "data:image/png;base64,").startswith("data:image/png;base64,")
    assert not re.search(r"https?:|@import|url\((?!#)", page)
    policy = next(e["content"] for e in parsed.all("meta") if e.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy


def test_every_picture_decodes_and_says_what_it_is(page):
    parsed = Page(page)
    assert len(parsed.all("img")) >= 7
    for element, image in zip(parsed.all("img"), parsed.images(), strict=True):
        assert (image.width, image.height) == (int(element["width"]), int(element["height"]))
        assert np.asarray(image).std() > 5
        assert len(element["alt"]) > 20
    for element in parsed.all("svg"):
        assert element["role"] == "img" and len(element["aria-label"]) > 20 and element["viewbox"]


def test_the_page_is_well_formed(page):
    parsed = Page(page)
    ids = [e["id"] for e in parsed.elements if "id" in e]
    assert len(ids) == len(set(ids))
    targets = re.findall(r'(?:url\(|href=")#([^")]+)', page)
    assert targets and set(targets) <= set(ids)
    assert parsed.all("html")[0]["lang"] == "en" and len(parsed.all("h1")) == 1
    assert any(e.get("name") == "viewport" for e in parsed.all("meta"))
    assert "0b0" not in "".join(e.get("style") or "" for e in parsed.elements)  # every colour is the page's


def test_sections_and_what_they_hold(page):
    parsed = Page(page)
    sections = [e["id"] for e in parsed.all("section")]
    assert sections == [
        *("samples", "evaluation", "training", "from-noise-to-data", "what-each-layer-carries", "asked-for-by-label"),
        *("out-of-distribution", "run-and-provenance"),
    ]
    assert [f"#{name}" for name in sections] == [e["href"] for e in parsed.all("a")]
    images = {name: len(parsed.all("img", name)) for name in sections}
    assert images["samples"] == 3 and images["what-each-layer-carries"] == 2
    assert images["from-noise-to-data"] == images["asked-for-by-label"] == 1
    # ELBO and KL; loss and nats; the label.  AUROC and histogram of four scores.
    assert len(parsed.all("svg", "training")) == 5 and len(parsed.all("svg", "out-of-distribution")) == 8
    assert "Left out" not in parsed.text


def test_grids_are_the_samples_of_the_seed_and_test_images_below_reconstructions(page, runs):
    run = Run(runs / "digits")
    gaussian, diffusion, pairs = (np.asarray(image) for image in Page(page).images("samples"))
    for found, kind in ((gaussian, "gaussian"), (diffusion, "diffusion-ebm")):
        images = torch.cat(list(sample(load_prior(run, kind, CPU), 64)))
        np.testing.assert_array_equal(found, np.asarray(picture.grid(images, 8)))
    test = np.asarray(picture.grid(data.load(run.recipe().data, "test").batch(range(32)), 8))
    height = (test.shape[0] - picture.GAP) // 4
    rows = [pairs[i * height : (i + 1) * height] for i in range(8)]
    np.testing.assert_array_equal(np.concatenate(rows[1::2]), test[: 4 * height])
    assert all((a != b).any() for a, b in zip(rows[::2], rows[1::2], strict=True))


def test_the_same_run_gives_the_same_bytes(copied, only):
    only(sections.samples, sections.training, sections.made_of)
    assert sections.report(copied, CPU) == sections.report(copied, CPU)
    assert sections.report(copied, CPU) != sections.report(copied, CPU, seed=1)


def test_what_a_recipe_says_is_escaped(copied, only, tmp_path):
    hostile = '<img src=x onerror="alert(1)"></code></pre><script>alert(2)</script>'
    settings = copied.recipe()
    settings.data.path = hostile
    copied.write_recipe(settings)
    figures = [Figure(hostile, 1.0, note=hostile).as_dict()]
    copied.set_figure("evaluate", {"figures": figures, "provenance": {"command": hostile}})
    metrics = copied.metrics_path.read_text()
    copied.metrics_path.write_text(metrics.replace("label class", "label </text></svg><script>"))
    renamed = Run(copied.path.rename(tmp_path / "a<b>&\"c'$d$"))
    only(sections.evaluation, sections.training, sections.made_of)
    parsed = Page(sections.report(renamed, CPU))
    assert not parsed.all("script") and not parsed.all("img") and not parsed.all("b", "run-and-provenance")
    assert not any("onerror" in element for element in parsed.elements)
    assert parsed.all("h1")[0]["text"] == "a<b>&\"c'$d$"
    assert parsed.text.count(hostile) >= 4  # heading, note, provenance, data
    assert any(element["text"] == "</text></svg><script>" for element in parsed.all("text"))


def test_what_is_not_there_is_said_with_the_command_for_it(copied):
    for path in [*copied.path.glob("prior-*"), *copied.path.glob("label-*"), copied.metrics_path, copied.figures_path]:
        path.unlink()
    settings = copied.recipe()
    settings.data.source, settings.data.path = "array", "gone.npz"
    copied.write_recipe(settings)
    parsed = Page(sections.report(copied, CPU))
    sections = [e["id"] for e in parsed.all("section")]
    assert "from-noise-to-data" not in sections and "asked-for-by-label" not in sections
    notes = {e["section"]: e["text"] for e in parsed.all("p") if e.get("class") == "note"}
    assert f"hebm train-prior {copied.recipe_path}" in notes["samples"]
    assert f"hebm evaluate {copied.path}" in notes["evaluation"]
    assert "metrics.jsonl" in notes["training"]
    assert "gone.npz" in notes["out-of-distribution"] and parsed.text.count("gone.npz") >= 3
    assert len(parsed.all("img", "samples")) == 1 and not parsed.all("svg")


def test_a_prior_that_does_not_load_leaves_the_others(copied, only):
    copied.prior_path("diffusion-ebm").write_bytes(b"no checkpoint")
    only(sections.samples)
    with pytest.raises(sections.HebmError, match="damaged"):  # `hebm info` says the same
        sections.report(copied, CPU)
    shutil.copy(copied.label_path("class"), copied.prior_path("diffusion-ebm"))
    parsed = Page(sections.report(copied, CPU))
    assert len(parsed.images("samples")) == 2
    assert "The diffusion-ebm prior is left out" in parsed.text


def test_evaluated_figures_are_tabled(copied, only):
    figures = [
        Figure("FD", 13.449, 0.21, "gaussian", "lower", note="a"),
        Figure("FD", 7.391, 0.15, "diffusion-ebm", "lower", note="a"),
        Figure("FD", 4.512, None, "reconstructions", "lower", note="b"),
        Figure("score", None),
        *[Figure("accuracy", 0.5 + k / 10, 0.01, "gaussian", layer=k) for k in (1, 2)],
    ]
    provenance = {"command": "hebm evaluate digits", "seed": 7}
    copied.set_figure("evaluate", {"figures": [f.as_dict() for f in figures], "provenance": provenance})
    only(sections.evaluation)
    parsed = Page(sections.report(copied, CPU))
    heads = [e["text"] for e in parsed.all("th") if e.get("scope") == "col"]
    assert heads == ["gaussian", "diffusion-ebm", "generator", "reconstructions", "layer", "gaussian"]
    assert parsed.row("evaluation", "FD") == ["13.45 ± 0.211", "7.39 ± 0.151", "", "4.5122"]
    assert [e["text"] for e in parsed.all("strong")] == ["7.39 ± 0.15"]  # of the priors, the lowest
    assert parsed.row("evaluation", "score") == ["", "", "–", ""]
    assert [e["text"] for e in parsed.all("th") if e.get("scope") == "row"][-2:] == ["2", "1"]
    assert parsed.row("evaluation", "2") == ["0.700 ± 0.010"]
    assert "seed: 7" in parsed.text and "train-prior" not in parsed.text


def test_without_an_evaluation_the_closure_of_training_stands_there(page, runs):
    kept = json.loads((runs / "digits" / "figures.json").read_text())["closure"]["diffusion-ebm"]
    gaussian, prior, reconstructions = Page(page).row("evaluation", "FD")
    for found, key in ((gaussian, "fd_gaussian"), (prior, "fd_prior"), (reconstructions, "fd_reconstruction")):
        assert float(found.replace("−", "-")) == pytest.approx(kept[key], rel=1e-3)
    assert "features: embedded" in Page(page).text and "hebm evaluate" in Page(page).text


@pytest.mark.parametrize("broken", [3, {"figures": [{"value": 1}]}, {"figures": [{"name": "FD", "value": "low"}]}])
def test_broken_figures_are_said(copied, only, broken):
    copied.set_figure("evaluate", broken)
    only(sections.evaluation)
    assert "evaluate the run again" in Page(sections.report(copied, CPU)).text


@pytest.mark.parametrize(
    "value, error, text",
    [
        (0.67761, 0.0557, "0.678 ± 0.056"),
        (-88.0341, None, "−88.03"),
        (1234.5, 31.0, "1,234 ± 31"),
        (50000, None, "50,000"),
        (0.5, 0.0, "0.5"),
        (None, None, "–"),
        (float("nan"), 1.0, "–"),
    ],
)
def test_numbers(value, error, text):
    assert page.number(value, error) == text


# The command


def test_the_command_writes_into_the_run_and_prints_the_path(hebm, copied, only):
    only(sections.evaluation)
    path = copied.path / "report.html"
    for _ in range(2):
        status, out, err = hebm("report", copied.path)
        assert (status, out, err) == (0, f"{path}\n", "")
    assert Page(path.read_text("utf-8")).all("section")
    assert not list(copied.path.glob(".*.tmp"))


def test_an_existing_file_is_kept_without_force(hebm, copied, only, tmp_path):
    only(sections.evaluation)
    target = tmp_path / "mine.html"
    target.write_text("precious")
    status, out, err = hebm("report", copied.path, "--out", target)
    assert status == 1 and not out and "--force" in err and target.read_text() == "precious"
    status, out, _ = hebm("report", copied.path, "--out", target, "--force")
    assert status == 0 and out == f"{target}\n" and target.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    "arguments, status, words",
    [
        (["--out", "page.png"], 2, "page.png"),
        (["--out", "folder.html"], 1, "folder"),
        (["--batch-size", "0"], 2, "--batch-size"),
        (["--device", "tpu"], 2, "tpu"),
    ],
)
def test_mistakes_are_one_sentence(hebm, copied, tmp_path, monkeypatch, arguments, status, words):
    (tmp_path / "folder.html").mkdir()
    monkeypatch.chdir(tmp_path)
    found, out, err = hebm("report", copied.path, *arguments)
    assert found == status and not out and words in err and err.startswith("hebm: ") and err.count("\n") == 1


def test_a_run_without_a_generator(hebm, copied):
    copied.generator_path.unlink()
    status, _, err = hebm("report", copied.path)
    assert status == 1 and "hebm train-vae" in err and err.count("\n") == 1


def test_bars_stand_within_bars(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(console, "stderr", Console(file=screen, force_terminal=True, width=100))
    for _ in range(2):
        with console.progress("outer", 2) as outer, console.progress("inner", 3) as inner:
            inner.advance(3)
            outer.advance()
    assert "outer" in screen.getvalue() and "inner" in screen.getvalue()
