"""The report: one page, whole and self-contained, of tiny runs on the embedded digits."""

import base64
import io
import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from short import SIZES, shorten

from hebmtool import data, picture
from hebmtool.errors import HebmError
from hebmtool.metrics.figures import Figure
from hebmtool.prior import Gaussian
from hebmtool.report import drawn as drawing
from hebmtool.report import report, sections
from hebmtool.report.drawn import samples
from hebmtool.report.measured import evaluation
from hebmtool.report.page import number
from hebmtool.report.provenance import made_of
from hebmtool.report.training import training
from hebmtool.run.folder import Run
from hebmtool.run.header import contents
from hebmtool.run.open import load_prior
from hebmtool.use.sample import sample

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("short")
GRID = SIZES[drawing]["GRID"]  # images drawn of each prior
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
def pages(tiny, made_once) -> Iterator[dict[str, str]]:
    """Of a run of two layers, both EBMs and the label `class`, and of a flow run."""

    def make(root: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            shorten(patch)
            for name in ("digits", "flow"):
                (root / name).write_text(report(Run(tiny / name), CPU), "utf-8")

    for root in made_once("pages", make):
        yield {path.name: path.read_text("utf-8") for path in root.iterdir()}


@pytest.fixture(params=["digits", "flow"])
def page(pages, request) -> str:
    return pages[request.param]


@pytest.fixture
def run(copied) -> Run:
    return Run(copied / "digits")


@pytest.fixture
def flow(copied) -> Run:
    return Run(copied / "flow")


@pytest.fixture
def only(monkeypatch):
    """Make reports of these sections alone."""
    return lambda *made: monkeypatch.setattr(sections, "SECTIONS", made)


# The whole page -------------------------------------------------------------------------------------------------------


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
    assert len(parsed.all("img")) >= 4
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


def sections_of(parsed: Page) -> list[str]:
    found = [e["id"] for e in parsed.all("section")]
    assert [f"#{name}" for name in found] == [e["href"] for e in parsed.all("a")]
    assert "Left out" not in parsed.text
    return found


def test_sections_and_what_they_hold(pages):
    parsed = Page(pages["digits"])
    found = sections_of(parsed)
    assert found == [
        *("samples", "evaluation", "training", "from-noise-to-data", "what-each-layer-carries", "asked-for-by-label"),
        *("out-of-distribution", "run-and-provenance"),
    ]
    images = {name: len(parsed.all("img", name)) for name in found}
    assert images["samples"] == 4 and images["what-each-layer-carries"] == 2
    assert images["from-noise-to-data"] == images["asked-for-by-label"] == 1
    # ELBO and KL; loss and nats of two priors; the label.
    assert len(parsed.all("svg", "training")) == 7
    # Of four scores AUROC and histogram, but for the ratio's, which has one cut.
    assert len(parsed.all("svg", "out-of-distribution")) == 7


def test_a_flow_run_has_the_sections_that_say_something_of_one_layer(pages, tiny):
    parsed = Page(pages["flow"])
    found = sections_of(parsed)
    assert found == [
        *("samples", "evaluation", "training", "from-noise-to-data", "out-of-distribution", "run-and-provenance")
    ]
    assert len(parsed.all("img", "samples")) == 3 and len(parsed.all("img", "from-noise-to-data")) == 1
    # The loss, its two parts, the spread of z; the posterior's histogram.
    charts = [e["aria-label"] for e in parsed.all("svg", "training")]
    assert [words.split(" ", 1)[1].partition(". ")[0] for words in charts] == [
        *("flow: loss", "flow: log p(x | z) (nats)", "flow: log p(z) (nats)", "flow: standard deviation of z")
    ]
    assert len(parsed.all("svg", "out-of-distribution")) == 1
    assert "k =" not in parsed.text and "cut" not in parsed.text and "layer k" not in parsed.text
    assert "one layer of 6 latent dimensions" in parsed.text and "3 affine couplings" in parsed.text
    assert parsed.row("run-and-provenance", "prior-flow.safetensors")[0] == "3"
    kept = json.loads((tiny / "flow" / "figures.json").read_text())["flow"]
    assert parsed.row("evaluation", "FD") == ["", f"{number(kept['fd'])}1", ""]
    assert parsed.row("evaluation", "PSNR")[-1].startswith(number(kept["psnr"]))
    # The distance of inferred latents to N(0, I), to the flow.
    match = kept["match"]
    shown = [f"{number(match[key])}3" for key in ("normal", "prior")]
    assert parsed.row("evaluation", "inferred") == [*shown, ""]


def test_a_flow_draws_from_the_noise_of_its_gaussian(pages, tiny):
    prior = load_prior(Run(tiny / "flow"), "flow", CPU)
    for found, drawn in zip(Page(pages["flow"]).images("samples"), (Gaussian(prior.generator), prior), strict=False):
        images = torch.cat(list(sample(drawn, GRID)))
        np.testing.assert_array_equal(np.asarray(found), np.asarray(picture.grid(images, 8)))


def test_a_flow_without_couplings_has_no_way_from_noise_to_data(flow, only, monkeypatch):
    only(sections.progressive)
    assert Page(report(flow, CPU)).all("section")
    load = load_prior(flow, "flow", CPU)
    load.couplings = torch.nn.ModuleList()
    monkeypatch.setattr("hebmtool.report.subject.load_prior", lambda *_: load)
    assert not Page(report(flow, CPU)).all("section")


def test_grids_are_the_samples_of_the_seed_and_test_images_below_reconstructions(pages, tiny):
    run = Run(tiny / "digits")
    *drawn, pairs = (np.asarray(image) for image in Page(pages["digits"]).images("samples"))
    for found, kind in zip(drawn, ("gaussian", "ebm", "diffusion-ebm"), strict=True):
        images = torch.cat(list(sample(load_prior(run, kind, CPU), GRID)))
        np.testing.assert_array_equal(found, np.asarray(picture.grid(images, 8)))
    test = np.asarray(picture.grid(data.load(run.recipe().data, "test").batch(range(GRID // 2)), 8))
    pairs_of_rows = GRID // 2 // 8
    height = (test.shape[0] - picture.GAP) // pairs_of_rows
    rows = [pairs[i * height : (i + 1) * height] for i in range(2 * pairs_of_rows)]
    np.testing.assert_array_equal(np.concatenate(rows[1::2]), test[: pairs_of_rows * height])
    assert all((a != b).any() for a, b in zip(rows[::2], rows[1::2], strict=True))


def test_the_same_run_gives_the_same_bytes(run, only):
    only(samples, training, made_of)
    assert report(run, CPU) == report(run, CPU)
    assert report(run, CPU) != report(run, CPU, seed=1)


def test_what_a_recipe_says_is_escaped(run, only, tmp_path):
    hostile = '<img src=x onerror="alert(1)"></code></pre><script>alert(2)</script>'
    settings = run.recipe()
    settings.data.path = hostile
    run.write_recipe(settings)
    figures = [Figure(hostile, 1.0, note=hostile).as_dict()]
    run.set_figure("evaluate", {"figures": figures, "provenance": {"command": hostile}})
    metrics = run.metrics_path.read_text()
    run.metrics_path.write_text(metrics.replace("label class", "label </text></svg><script>"))
    renamed = Run(run.path.rename(tmp_path / "a<b>&\"c'$d$"))
    only(evaluation, training, made_of)
    parsed = Page(report(renamed, CPU))
    assert not parsed.all("script") and not parsed.all("img") and not parsed.all("b", "run-and-provenance")
    assert not any("onerror" in element for element in parsed.elements)
    assert parsed.all("h1")[0]["text"] == "a<b>&\"c'$d$"
    assert parsed.text.count(hostile) >= 4  # heading, note, provenance, data
    assert any(element["text"] == "</text></svg><script>" for element in parsed.all("text"))


def test_what_is_not_there_is_said_with_the_command_for_it(run):
    for path in [*run.path.glob("prior-*"), *run.path.glob("label-*"), run.metrics_path, run.figures_path]:
        path.unlink()
    settings = run.recipe()
    settings.data.source, settings.data.path = "array", "gone.npz"
    run.write_recipe(settings)
    parsed = Page(report(run, CPU))
    found = [e["id"] for e in parsed.all("section")]
    assert "from-noise-to-data" not in found and "asked-for-by-label" not in found
    notes = {e["section"]: e["text"] for e in parsed.all("p") if e.get("class") == "note"}
    assert f"hebm train-prior {run.path}" in notes["samples"]
    assert f"hebm evaluate {run.path}" in notes["evaluation"]
    assert "metrics.jsonl" in notes["training"]
    assert "gone.npz" in notes["out-of-distribution"] and parsed.text.count("gone.npz") >= 3
    assert len(parsed.all("img", "samples")) == 1 and not parsed.all("svg")


def test_a_prior_that_does_not_load_leaves_the_others(run, only):
    run.prior_path("diffusion-ebm").write_bytes(b"no checkpoint")
    only(samples)
    with pytest.raises(HebmError, match="damaged"):  # `hebm info` says the same
        report(run, CPU)
    shutil.copy(run.label_path("class"), run.prior_path("diffusion-ebm"))
    parsed = Page(report(run, CPU))
    assert len(parsed.images("samples")) == 3
    assert "The diffusion-ebm prior is left out" in parsed.text


def checkpoints(run: Run) -> dict[str, str]:
    """The digests that judging every prior of the run records."""
    used = [run.generator_path, *(run.prior_path(kind) for kind in run.priors())]
    return {path.name: contents(path)[:21] for path in used if path.is_file()}


def test_evaluated_figures_are_tabled(run, only):
    figures = [
        Figure("FD", 13.449, 0.21, "gaussian", "lower", note="a"),
        Figure("FD", 7.391, 0.15, "diffusion-ebm", "lower", note="a"),
        Figure("FD", 4.512, None, "reconstructions", "lower", note="b"),
        Figure("score", None),
        *[Figure("accuracy", 0.5 + k / 10, 0.01, "gaussian", layer=k) for k in (1, 2)],
    ]
    provenance = {"command": "hebm evaluate digits", "seed": 7, "checkpoints": checkpoints(run)}
    run.set_figure("evaluate", {"figures": [f.as_dict() for f in figures], "provenance": provenance})
    only(evaluation)
    parsed = Page(report(run, CPU))
    heads = [e["text"] for e in parsed.all("th") if e.get("scope") == "col"]
    assert heads == ["gaussian", "diffusion-ebm", "generator", "reconstructions", "layer", "gaussian"]
    assert parsed.row("evaluation", "FD") == ["13.45 ± 0.211", "7.39 ± 0.151", "", "4.5122"]
    assert [e["text"] for e in parsed.all("strong")] == ["7.39 ± 0.15"]  # of the priors, the lowest
    assert parsed.row("evaluation", "score") == ["", "", "–", ""]
    assert [e["text"] for e in parsed.all("th") if e.get("scope") == "row"][-2:] == ["2", "1"]
    assert parsed.row("evaluation", "2") == ["0.700 ± 0.010"]
    assert "seed: 7" in parsed.text and "train-prior" not in parsed.text


def test_a_table_of_one_note_has_no_numbers(run, only):
    figures = [Figure("FD", 1.0, of=of, note="all alike").as_dict() for of in ("gaussian", "diffusion-ebm")]
    run.set_figure("evaluate", {"figures": figures, "provenance": {}})
    only(evaluation)
    parsed = Page(report(run, CPU))
    assert not parsed.all("sup") and [e["text"] for e in parsed.all("p") if e.get("class") == "notes"] == ["all alike"]


def test_without_an_evaluation_the_closures_of_training_stand_there(pages, tiny):
    kept = json.loads((tiny / "digits" / "figures.json").read_text())["closure"]
    parsed = Page(pages["digits"])
    gaussian, *priors, reconstructions = parsed.row("evaluation", "FD")
    expected = [kept["ebm"]["fd_gaussian"], *(kept[kind]["fd_prior"] for kind in ("ebm", "diffusion-ebm"))]
    expected.append(kept["ebm"]["fd_reconstruction"])
    shown = [gaussian, *priors, reconstructions]
    assert [float(each.replace("−", "-")) for each in shown] == pytest.approx(expected, rel=1e-3)
    assert "features: embedded" in parsed.text and "hebm evaluate" in parsed.text


def test_evaluated_figures_of_a_flow_run_have_three_columns(flow, only):
    of = ("gaussian", "flow", "reconstructions")
    figures = [Figure("FD", value, 0.1, name, "lower") for name, value in zip(of, (9.0, 4.0, 1.0), strict=True)]
    provenance = {"checkpoints": checkpoints(flow)}
    flow.set_figure("evaluate", {"figures": [f.as_dict() for f in figures], "provenance": provenance})
    only(evaluation)
    parsed = Page(report(flow, CPU))
    assert [e["text"] for e in parsed.all("th") if e.get("scope") == "col"] == list(of)
    assert [e["text"] for e in parsed.all("strong")] == ["4.00 ± 0.10"]


@pytest.mark.parametrize("broken", [3, {"figures": [{"value": 1}]}, {"figures": [{"name": "FD", "value": "low"}]}])
def test_broken_figures_are_said(run, only, broken):
    run.set_figure("evaluate", broken)
    only(evaluation)
    note = Page(report(run, CPU)).all("p", "evaluation")[0]["text"]
    assert note.startswith("Left out: ") and str(run.figures_path) in note and "evaluate" in note


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
    assert number(value, error) == text


# The command


def test_the_command_writes_into_the_run_and_prints_the_path(hebm, run, only):
    only(evaluation)
    path = run.path / "report.html"
    for _ in range(2):
        status, out, err = hebm("report", run.path)
        assert (status, out, err) == (0, f"{path}\n", "")
    assert Page(path.read_text("utf-8")).all("section")
    assert not list(run.path.glob(".*.tmp"))


def test_an_existing_file_is_kept_without_force(hebm, run, only, tmp_path):
    only(evaluation)
    target = tmp_path / "mine.html"
    target.write_text("precious")
    status, out, err = hebm("report", run.path, "--out", target)
    assert status == 1 and not out and "--force" in err and target.read_text() == "precious"
    status, out, _ = hebm("report", run.path, "--out", target, "--force")
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
def test_mistakes_are_one_sentence(hebm, run, tmp_path, monkeypatch, arguments, status, words):
    (tmp_path / "folder.html").mkdir()
    monkeypatch.chdir(tmp_path)
    found, out, err = hebm("report", run.path, *arguments)
    assert found == status and not out and words in err and err.startswith("hebm: ") and err.count("\n") == 1


def test_a_flow_run_is_reported(hebm, flow, only):
    only(samples)
    status, out, err = hebm("report", flow.path)
    assert (status, err) == (0, "") and len(Page(Path(out.strip()).read_text("utf-8")).all("img")) == 3


def test_a_run_without_a_generator(hebm, run):
    run.generator_path.unlink()
    status, _, err = hebm("report", run.path)
    assert status == 1 and "hebm train-vae" in err and err.count("\n") == 1
