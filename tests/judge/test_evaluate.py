"""Judging a run: every prior beside its floor, uncertainty, provenance; runs side by side; the two commands."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from hebmtool import data, files, picture
from hebmtool.compute import fast_precision
from hebmtool.errors import HebmError, UsageError
from hebmtool.judge.closure import closure, draw_seed, prior_images, reconstruct, reconstructions
from hebmtool.judge.diagnose import PARTS
from hebmtool.judge.evaluate import _doubts, _with_error, evaluate
from hebmtool.judge.evaluation import kept
from hebmtool.judge.sources import Source
from hebmtool.judge.spaces import load_spaces
from hebmtool.metrics import distances, embedded, inception
from hebmtool.metrics.features import BATCH, load_features
from hebmtool.metrics.figures import Figure
from hebmtool.run import checkpoint
from hebmtool.run.folder import Run
from hebmtool.run.header import CONTENTS, contents
from hebmtool.run.open import STATISTICS, load_prior
from hebmtool.use.sample import sample

CPU = torch.device("cpu")
N = 24  # evaluate.samples of the tiny runs
SPEED = "seconds per 1000 images"
NAMES = ["FD", "KID", "precision", "recall", "density", "coverage"]


@pytest.fixture(scope="module")
def judged(tiny, tmp_path_factory):
    """(a copy of the run `digits`, its evaluation as it is by itself, the kinds of prior that were drawn from)."""
    root, drawn = tmp_path_factory.mktemp("judged"), []

    def counted(prior, *arguments, **options):
        drawn.append(prior.kind)
        return sample(prior, *arguments, **options)

    shutil.copytree(tiny / "digits", root / "digits")
    run = Run.open("digits", root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hebmtool.judge.sources.sample", counted)
        return run, evaluate(run, CPU, command="hebm evaluate digits"), drawn


def values(found, name):
    return {figure.of: figure.value for figure in found.figures if figure.name == name}


def errors(found, name):
    return {figure.of: figure.error for figure in found.figures if figure.name == name}


def test_every_prior_stands_beside_the_floor(judged):
    _, found, drawn = judged
    assert drawn == ["gaussian", "ebm", "diffusion-ebm"], "each set is drawn once"
    everyone = ["gaussian", "ebm", "diffusion-ebm", "reconstructions"]
    for name in NAMES:
        assert list(values(found, name)) == everyone
        assert all(error is not None and error >= 0 for error in errors(found, name).values())
    assert list(values(found, "closure")) == ["ebm", "diffusion-ebm"]
    assert list(values(found, SPEED)) == everyone[:3] and min(values(found, SPEED).values()) > 0
    assert all("±" in figure.note for figure in found.figures if figure.error is not None)
    neutral = {"KID spread", "saturated", "mean F", "F short of the posterior"}
    assert {figure.name for figure in found.figures if figure.better is None} == neutral


def test_figures_are_those_of_the_images_themselves(judged):
    """Once more, set by set, with the whole set in memory."""
    run, found, _ = judged
    settings = run.recipe()
    images, test = data.load(settings.data, "train"), data.load(settings.data, "test")
    features = load_features(None, images.shape, CPU)
    reference = features(test.batch(range(len(test))))
    near = reference[np.random.default_rng(0).permutation(len(reference))[:N]]  # as many as are judged
    radii = distances.neighbour_radii(near)
    prior = load_prior(run, "ebm", CPU)
    seen = {
        "ebm": features(prior_images(prior, N, draw_seed(settings))),
        "reconstructions": features(reconstructions(prior, images, settings, N)),
    }
    for name, x in seen.items():
        assert values(found, "FD")[name] == pytest.approx(distances.frechet_distance(x, reference), rel=1e-5)
        kid = [values(found, "KID")[name], errors(found, "KID")[name], values(found, "KID spread")[name]]
        assert kid == pytest.approx(distances.kernel_distance(x, reference), rel=1e-5)
        for figure, term in distances.neighbourhoods(x, near, radii).items():
            assert values(found, figure)[name] == pytest.approx(term.mean())


def test_distances_are_those_training_ends_with(judged):
    run, found, _ = judged
    kept = run.figures()["closure"]
    for kind in ("ebm", "diffusion-ebm"):
        for of, key in ((kind, "fd_prior"), ("gaussian", "fd_gaussian"), ("reconstructions", "fd_reconstruction")):
            assert values(found, "FD")[of] == pytest.approx(kept[kind][key], rel=1e-5)


def test_closure_is_that_of_each_prior_alone(run, seeing):
    found, settings = evaluate(run, CPU, features=seeing, trust_features=True), run.recipe()
    images, test = data.load(settings.data, "train"), data.load(settings.data, "test")
    features = load_features(seeing, images.shape, CPU, trusted=True)
    for kind in ("ebm", "diffusion-ebm"):
        alone = closure(load_prior(run, kind, CPU), images, test, settings, features, N)
        assert values(found, "closure")[kind] == pytest.approx(alone.closure, rel=1e-5)
        assert errors(found, "closure")[kind] == pytest.approx(alone.error, rel=1e-5) and alone.error > 0


def test_the_hole_itself_is_measured_against_other_reconstructions(run):
    """The same sets, held against the next reconstructions in the place of test images."""
    seed = 1  # of draws that leave a hole, which a generator of so few updates hardly has
    figures, settings = evaluate(run, CPU, "ebm", seed=seed), run.recipe().model_copy(update={"seed": seed})
    images = data.load(settings.data, "train")
    features = load_features(settings.evaluate.features, images.shape, CPU)
    own = load_prior(run, "gaussian", CPU)
    sets = {
        "gaussian": prior_images(own, N, draw_seed(settings)),
        "ebm": prior_images(load_prior(run, "ebm", CPU), N, draw_seed(settings)),
        "reconstructions": torch.cat(list(reconstruct(own, images, settings, N))),
    }
    others = features(torch.cat(list(reconstruct(own, images, settings, N, 1))))
    fd = {of: distances.frechet_distance(features(found), others) for of, found in sets.items()}
    assert values(figures, "FD to reconstructions") == fd
    closed = (fd["gaussian"] - fd["ebm"]) / (fd["gaussian"] - fd["reconstructions"])
    assert values(figures, "closure to reconstructions") == {"ebm": pytest.approx(closed, rel=1e-6)}
    assert errors(figures, "closure to reconstructions")["ebm"] > 0


def test_the_same_seed_gives_the_same_figures_and_another_seed_others(run, judged):
    """And a kind of prior is judged alone as it is among others."""
    first, (second, other) = judged[1], (evaluate(run, CPU, "ebm", seed=seed) for seed in (0, 1))
    for name in [*NAMES, "closure"]:
        assert values(second, name).items() <= values(first, name).items() and "ebm" in values(second, name)
    assert values(second, "FD") != values(other, "FD")
    assert other.provenance["seed"] == 1


def test_draws_of_the_pixels_are_judged_where_asked(run, judged):
    mean, drawn = judged[1], evaluate(run, CPU, "ebm", pixels="sample")
    assert drawn.provenance["pixels"] == "sample" and "pixels" not in mean.provenance
    assert all(values(mean, "FD")[of] != value for of, value in values(drawn, "FD").items())
    settings = run.recipe()
    settings.evaluate.pixels = "sample"
    images, test = data.load(settings.data, "train"), data.load(settings.data, "test")
    features = load_features(settings.evaluate.features, images.shape, CPU)
    alone = closure(load_prior(run, "ebm", CPU), images, test, settings, features, N)
    assert values(drawn, "FD")["ebm"] == pytest.approx(alone.fd_prior, rel=1e-5)
    assert values(drawn, "FD")["reconstructions"] == pytest.approx(alone.fd_reconstruction, rel=1e-5)
    with pytest.raises(UsageError, match="pixels is 'samples'; choose of mean, sample; did you mean 'sample'"):
        evaluate(run, CPU, "ebm", pixels="samples")


def test_one_kind_with_other_steps(run, judged):
    few, many = judged[1], evaluate(run, CPU, "ebm", steps=9)
    assert list(values(many, "FD")) == ["gaussian", "ebm", "reconstructions"]
    assert values(few, "FD")["gaussian"] == values(many, "FD")["gaussian"]
    assert values(few, "FD")["ebm"] != values(many, "FD")["ebm"]
    assert many.provenance["steps"] == 9 and many.provenance["samples"] == N


def test_fast_draws_as_sampling_does(run):
    found = evaluate(run, CPU, "diffusion-ebm", fast=True)
    prior = load_prior(run, "diffusion-ebm", CPU, precision=fast_precision(CPU))
    draws = draw_seed(run.recipe(), 0)
    images = torch.cat(list(sample(prior, N, draws, BATCH, steps=prior.fast_steps())))
    features = load_features(None, images.shape[1:], CPU)
    reference = features(data.load(run.recipe().data, "test").batch(range(180)))
    assert values(found, "FD")["diffusion-ebm"] == pytest.approx(
        distances.frechet_distance(features(images), reference)
    )
    assert found.provenance["steps"] == "fast" and set(values(found, "closure")) <= {"diffusion-ebm"}


def test_fast_samples_are_not_what_diagnoses_judge(run):
    with pytest.raises(UsageError, match="drawing fast"):
        evaluate(run, CPU, fast=True, parts=("likelihood",))


def test_what_is_said_of_the_gaussian_prior_is_said_once(run, short):
    found = evaluate(run, CPU, samples=20, parts=["likelihood"]).figures
    elbo = [figure.of for figure in found if figure.name == "ELBO"]
    assert elbo == ["gaussian", "ebm", "diffusion-ebm"]


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_what_diagnoses_a_prior_is_judged_with_it(hebm, copied, request, whole):
    """What the two-sample tests learn on the way included; with --slow nothing is made shorter."""
    if not whole:
        request.getfixturevalue("short")
    arguments = ("--runs", copied, "--prior", "ebm", "--samples", 20, "--likelihood", "--diagnose", "--json")
    status, out, err = hebm("evaluate", "digits", *arguments)
    assert status == 0, err
    found = json.loads(out)["figures"]
    names = {figure["name"] for figure in found}
    assert {"FD", "log Z", "two-sample accuracy", "autocorrelation time", "gain given above", "G drift"} <= names
    assert sorted(figure["layer"] for figure in found if figure["name"] == "rate" and figure["layer"]) == [1, 2]
    assert {figure["of"] for figure in found if "bits/dim" in figure["name"]} == {"gaussian", "ebm"}
    assert [figure.name for figure in kept(Run.open("digits", copied))[0].figures] == [
        figure["name"] for figure in found
    ]


def test_another_chain_draws_other_images_of_the_same_prior(run, judged):
    own, other = judged[1], evaluate(run, CPU, chain="underdamped", theta=0.2)
    assert values(own, "FD")["gaussian"] == values(other, "FD")["gaussian"]
    assert all(values(own, "FD")[kind] != values(other, "FD")[kind] for kind in ("ebm", "diffusion-ebm"))
    assert "sampler" not in own.provenance and "chain" not in own.lines()[1]
    assert other.provenance["sampler"] == {"chain": "underdamped", "theta": 0.2}
    assert other.lines()[1].endswith("chain underdamped, theta 0.2") and kept(run)[0].provenance == other.provenance
    prior = load_prior(run, "ebm", CPU).using(chain="underdamped", theta=0.2)
    images = torch.cat(list(sample(prior, N, draw_seed(run.recipe()), BATCH)))
    reference = data.load(run.recipe().data, "test")
    features = load_features(None, images.shape[1:], CPU)
    expected = distances.frechet_distance(features(images), features(reference.batch(range(len(reference)))))
    assert values(other, "FD")["ebm"] == pytest.approx(expected)
    for kind, words in (("ebm", "no setting thetta"), ("gaussian", "no chain to choose")):
        with pytest.raises(UsageError, match=words):
            evaluate(run, CPU, kind, thetta=0.2)


# A prior that was learned with its generator


def test_a_flow_is_judged_beside_its_floor(flow):
    found = evaluate(flow, CPU)
    everyone = ["gaussian", "flow", "reconstructions"]
    assert all(list(values(found, name)) == everyone for name in NAMES)
    assert list(values(found, "closure")) == ["flow"] and list(values(found, SPEED)) == everyone[:2]
    assert list(found.provenance["checkpoints"]) == ["prior-flow.safetensors"]
    settings, prior = flow.recipe(), load_prior(flow, "flow", CPU)
    images, test = data.load(settings.data, "train"), data.load(settings.data, "test")
    alone = closure(prior, images, test, settings, load_features(None, images.shape, CPU), N)
    fd = [values(found, "FD")[of] for of in everyone]
    assert fd == pytest.approx([alone.fd_gaussian, alone.fd_prior, alone.fd_reconstruction], rel=1e-5)
    assert fd[1] == pytest.approx(flow.figures()["flow"]["fd"], rel=1e-5)  # what training ended with
    # Reconstructions are inferred, and later draws of other images.
    several = evaluate(flow, CPU, repeats=2)
    assert errors(several, "FD")["reconstructions"] > 0 and values(several, "FD")["flow"] != fd[1]


def test_the_first_images_of_each_set_stand_over_those_reconstructed(run, judged):
    found = judged[1]
    assert list(found.first) == ["gaussian", "ebm", "diffusion-ebm", "reconstructions", "images"]
    gaussian = prior_images(load_prior(run, "gaussian", CPU), N, draw_seed(run.recipe()))[:12]
    images = data.load(run.recipe().data, "train")
    assert torch.equal(found.first["gaussian"], gaussian) and torch.equal(
        found.first["images"], images.batch(range(12))
    )
    assert {len(each) for each in found.first.values()} == {12}


def test_what_has_no_meaning_for_a_flow_is_one_sentence(flow, short, capsys):
    found = evaluate(flow, CPU, samples=20, parts=PARTS)
    assert "two-sample accuracy" in {figure.name for figure in found.figures}
    assert [line.partition(" can")[0] for line in capsys.readouterr().err.splitlines()] == [
        "no likelihood",
        "no chains",
    ]
    with pytest.raises(UsageError, match="takes none that could be; draw as usual"):
        evaluate(flow, CPU, fast=True)
    with pytest.raises(HebmError, match="no likelihood can be told"):
        evaluate(flow, CPU, parts=["likelihood"])
    with pytest.raises(UsageError, match="steps is 3"):
        evaluate(flow, CPU, steps=3)
    with pytest.raises(UsageError, match="no chain to choose"):
        evaluate(flow, CPU, chain="underdamped")
    with pytest.raises(HebmError, match="has no 'gaussian' prior"):
        evaluate(flow, CPU, "gaussian")


def test_a_run_without_a_trained_prior_is_judged_too(run):
    for kind in ("ebm", "diffusion-ebm"):
        run.prior_path(kind).unlink()
    found = evaluate(run, CPU)
    assert list(values(found, "FD")) == ["gaussian", "reconstructions"] and not values(found, "closure")
    assert all(errors(found, "FD").values())
    assert values(evaluate(run, CPU, "gaussian"), "FD") == values(found, "FD")


def test_neighbourhoods_take_as_many_reference_images_as_are_judged(run):
    few, many = (evaluate(run, CPU, "gaussian", samples=samples) for samples in (12, 400))
    for found, m in ((few, 12), (many, 180)):
        note = next(figure.note for figure in found.figures if figure.name == "coverage")
        assert f"k = 5, {m} images of each" in note


def test_repeats_are_independent_draws(run, seeing):
    single, several = (
        evaluate(run, CPU, "ebm", repeats=repeats, features=seeing, trust_features=True) for repeats in (1, 3)
    )
    again = evaluate(run, CPU, "ebm", repeats=3, features=seeing, trust_features=True)
    settings = run.recipe()
    test = data.load(settings.data, "test")
    features = load_features(seeing, test.shape, CPU, trusted=True)
    reference, prior = features(test.batch(range(len(test)))), load_prior(run, "ebm", CPU)
    fd = [
        distances.frechet_distance(features(prior_images(prior, N, draw_seed(settings, i))), reference)
        for i in range(3)
    ]
    assert fd[0] == pytest.approx(values(single, "FD")["ebm"], rel=1e-5) and len(set(fd)) == 3
    assert values(several, "FD")["ebm"] == pytest.approx(np.mean(fd), rel=1e-5)
    assert errors(several, "FD")["ebm"] == pytest.approx(np.std(fd, ddof=1) / 3**0.5, rel=1e-3)
    assert values(several, "FD") == values(again, "FD")
    for name in [*NAMES, "closure"]:
        note = next(figure.note for figure in several.figures if figure.name == name)
        assert "3 independent draws" in note and "bootstrap" not in note
    assert several.provenance["repeats"] == 3


def test_later_reconstructions_are_of_other_images(run):
    settings = run.recipe()
    images = data.load(settings.data, "train")
    prior, read = load_prior(run, "gaussian", CPU), []
    watched = data.Images(len(images), images.shape, lambda indices: (read.extend(indices), images.batch(indices))[1])
    n = len(images) - 10
    for draw in (0, 1):
        assert sum(map(len, reconstruct(prior, watched, settings, n, draw))) == n
    assert read[:n] == list(range(n))
    assert read[n:] == [*range(n, n + 10), *range(n - 10)]


def test_undefined_in_one_draw_is_undefined_and_says_so():
    draws = [
        Figure("closure", value, None, "ebm", "higher", note="undefined: no hole" if value is None else "ok")
        for value in (0.5, None, 0.7)
    ]
    found = _with_error(draws)
    assert found.value is None and found.error is None and found.note == "in 1 of 3 draws undefined: no hole"


def test_a_prior_with_batchnorm_statistics_of_its_own_has_its_own_baseline(run):
    path = run.prior_path("ebm")
    header = checkpoint.header(path)
    tensors, _ = checkpoint.load(path)
    whole, _ = checkpoint.load(run.generator_path)
    moved = {f"{STATISTICS}{key}": 2 * value for key, value in whole.items() if "running_var" in key}
    assert moved
    extra = {f"{STATISTICS}{key}": value for key, value in whole.items() if "running_" in key} | moved
    checkpoint.save(path, tensors | extra, kind="ebm", recipe=header.recipe, step=header.step, extra=header.extra)
    found = evaluate(run, CPU)
    own = "gaussian (BatchNorm of ebm)", "reconstructions (BatchNorm of ebm)"
    fd = values(found, "FD")
    assert list(fd) == ["gaussian", own[0], "ebm", "diffusion-ebm", "reconstructions", own[1]]
    settings = run.recipe()
    images, test = data.load(settings.data, "train"), data.load(settings.data, "test")
    features = load_features(None, images.shape, CPU)
    for kind, (gaussian, floor) in (("ebm", own), ("diffusion-ebm", ("gaussian", "reconstructions"))):
        alone = closure(load_prior(run, kind, CPU), images, test, settings, features, N)
        assert values(found, "closure")[kind] == (
            None if alone.closure is None else pytest.approx(alone.closure, rel=1e-4)
        )
        assert (fd[gaussian], fd[floor]) == pytest.approx((alone.fd_gaussian, alone.fd_reconstruction), rel=1e-5)


def test_held_against_the_training_images_there_is_no_closure(run):
    found = evaluate(run, CPU, "ebm", reference="train")
    images = data.load(run.recipe().data, "train")
    assert found.provenance["reference"]["images"] == len(images) and not values(found, "closure")
    assert "train images" in next(figure.note for figure in found.figures if figure.name == "FD")


# Inception's place


class Classes(nn.Module):
    def forward(
        self, img: torch.Tensor, return_features: bool = False, use_fp16: bool = False, no_output_bias: bool = False
    ) -> torch.Tensor:
        bright = (img.float().mean((1, 2, 3)) / 256)[:, None]
        return torch.cat([bright, 1 - bright], dim=1)


@pytest.fixture
def network(monkeypatch, cleanfid, tmp_path):
    def build(mode, device, use_dataparallel=True):
        return lambda x: nn.functional.avg_pool2d(x, 149).flatten(1) / 64

    monkeypatch.setattr("cleanfid.features.build_feature_extractor", build)
    monkeypatch.setattr(cleanfid, "build_feature_extractor", build)
    monkeypatch.setattr(inception, "weights", lambda mode: (tmp_path / f"{mode}.pt", "https://example.org/net.pt"))
    torch.jit.script(Classes()).save(str(tmp_path / "clean.pt"))
    return tmp_path


def test_fid_of_a_prior_is_cleanfids_of_its_samples(run, network, cleanfid):
    found = evaluate(run, CPU, "ebm", samples=24, fid=["clean", "legacy_pytorch", "clean"])
    test = data.load(run.recipe().data, "test")
    samples = prior_images(load_prior(run, "ebm", CPU), 24, draw_seed(run.recipe()))
    for folder, batch in (("samples", samples), ("test", test.batch(range(len(test))))):
        (network / folder).mkdir()
        for i, image in enumerate(batch):
            picture.save(picture.to_pil(image), network / folder / f"{i}.png")
    for mode in inception.MODES:
        folders = str(network / "samples"), str(network / "test")
        expected = cleanfid.compute_fid(*folders, mode=mode, num_workers=0, device=CPU, verbose=False)
        assert values(found, f"FID ({mode})")["ebm"] == pytest.approx(expected, rel=1e-3)
        assert {f"{name} ({mode})" for name in [*NAMES[1:], "closure"]} <= {figure.name for figure in found.figures}
    assert set(values(found, "IS")) == {"gaussian", "ebm", "reconstructions"}
    assert all(1 <= value <= 2 for value in values(found, "IS").values())
    named = {each["name"]: each["sha256"] for each in found.provenance["features"]}
    assert named["Inception (clean)"] == files.digest(network / "clean.pt")[:12]
    assert list(named) == ["embedded", "Inception (clean)", "Inception (legacy_pytorch)"]


# Kept figures, and runs side by side


def test_figures_are_kept_with_what_they_were_made_with(judged):
    run, found, _ = judged
    there = run.figures()["evaluate"]
    assert there["figures"][0]["value"] == pytest.approx(found.figures[0].value, rel=1e-5)
    assert there["provenance"] == found.provenance == json.loads(json.dumps(found.provenance))
    assert found.provenance | {"device": 0, "torch": 0, "reference": 0} == {
        "command": "hebm evaluate digits",
        "seed": 0,
        "samples": N,
        "repeats": 1,
        "steps": None,
        "reference": 0,
        "features": [{"name": "embedded", "sha256": files.digest(embedded.PATH)[:12]}],
        "checkpoints": {
            name: contents(run.path / name)[:21]
            for name in ("generator.safetensors", "prior-ebm.safetensors", "prior-diffusion-ebm.safetensors")
        },
        "hebmtool": found.provenance["hebmtool"],
        "torch": 0,
        "device": 0,
    }
    assert "closure" in run.figures()  # what was there stays
    assert [figure.name for figure in kept(run)[0].figures] == [figure.name for figure in found.figures]


def test_figures_that_cannot_be_kept_are_still_given(run, capsys):
    run.figures_path.write_text("[1]")
    assert evaluate(run, CPU, "ebm", samples=8).figures
    assert "not kept in the run: " in (err := capsys.readouterr().err) and "is not a JSON object" in err


# The commands


def test_evaluate_prints_a_table_json_and_markdown(hebm, copied):
    arguments = ("evaluate", "digits", "--runs", copied, "--prior", "ebm", "--samples", 20)
    status, out, err = hebm(*arguments)
    assert status == 0, err
    head, *rows = out.splitlines()
    assert head.split() == ["gaussian", "ebm", "reconstructions"]
    assert [row.split()[0] for row in rows[:3]] == ["FD", "closure", "KID"]
    assert f"command: hebm evaluate digits --runs {copied} --prior ebm --samples 20" in rows
    digest = contents(copied / "digits" / "prior-ebm.safetensors").removeprefix(CONTENTS)[:12]
    for words in (
        digest,
        torch.__version__,
        "seed 0",
        "20 images per set",
        files.digest(embedded.PATH)[:12],
    ):
        assert words in out

    strip = copied.parent / "strip.png"
    status, out, err = hebm(*arguments, "--json", "--out", strip)
    found = json.loads(out)
    assert f"picture: {strip}" in err and Image.open(strip).height > 4 * 8  # four rows
    assert (
        status == 0
        and found["run"] == "digits"
        and found["provenance"]["checkpoints"]["prior-ebm.safetensors"] == CONTENTS + digest
    )
    assert {"name", "value", "error", "of", "better", "layer", "note"} == set(found["figures"][0])

    status, out, _ = hebm(*arguments, "--markdown")
    assert status == 0 and out.startswith("|  | gaussian | ebm | reconstructions |\n| --- |")
    assert (
        f"- command: hebm evaluate digits --runs {copied} --prior ebm --samples 20 --markdown\n" in out
        and digest in out
    )


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("evaluate", "--prior", "flaw"), 2, "no kind of prior 'flaw'"),
        (("evaluate", "--json", "--markdown"), 2, "choose one"),
        (("evaluate", "--out", "strip.jpg"), 2, "evaluate draws a picture: give a .png"),
        (("compare", "digits", "--json", "--markdown"), 2, "choose one"),
        (("evaluate", "--features", "absent.pt"), 1, "no feature network at absent.pt"),
        (("evaluate", "--fid", "clean"), 1, "is missing and could not be fetched (no route); place the file of"),
        (("compare", "digits"), 1, "has no kept figures; measure them with `hebm evaluate"),
        (("compare", "digots"), 1, "there is no run 'digots'"),
    ],
)
def test_mistakes_are_one_sentence(hebm, tiny, monkeypatch, tmp_path, arguments, status, words):
    def build(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr("cleanfid.features.build_feature_extractor", build)
    monkeypatch.setattr(inception, "weights", lambda mode: (tmp_path / "net.pt", "https://example.org/net.pt"))
    found, out, err = hebm(*arguments, "--runs", tiny)
    assert found == status and out == "" and len(err.splitlines()) == 1 and words in err


def test_words_that_do_not_exist_are_told_beside_those_that_do(run):
    with pytest.raises(UsageError, match="no FID mode 'tensorflow'; choose from clean, legacy_pytorch"):
        evaluate(run, CPU, fid=["tensorflow"])
    with pytest.raises(UsageError, match="no reference split 'valid'; choose from test, train"):
        evaluate(run, CPU, reference="valid")


def test_images_neither_grey_nor_rgb_need_a_network():
    odd = data.Images(2, (2, 8, 8), lambda indices: torch.zeros(len(indices), 2, 8, 8, dtype=torch.uint8))
    with pytest.raises(HebmError, match="these have 2 channels; give one for them"):
        load_spaces(None, [], odd, "digest", 2, CPU)


@pytest.mark.parametrize(
    ("value", "error", "closure", "doubted"),
    [
        (0.70, 0.015, 1.04, False),
        (0.60, 0.015, 1.04, False),  # within the error
        (0.63, 0.001, 1.04, False),  # certain, and next to nothing
        (0.50, 0.015, None, False),  # no closure to doubt
        (0.50, 0.015, 1.04, True),
    ],
)
def test_a_closure_is_doubted_where_precision_falls_below_that_of_its_bounds(value, error, closure, doubted):
    figures = [
        Figure("precision", 0.67, error, "gaussian", "higher"),
        Figure("precision", value, error, "ebm", "higher"),
        Figure("precision", 0.65, error, "reconstructions", "higher"),
        Figure("closure", closure, 0.06, "ebm", "higher"),
    ]
    sources = [
        Source(name, lambda draw: iter(()), baseline)
        for name, baseline in (("gaussian", None), ("ebm", ("gaussian", "reconstructions")), ("reconstructions", None))
    ]
    doubts = list(_doubts(figures, sources))
    assert len(doubts) == doubted
    assert all("ebm has precision 0.500, where reconstructions has 0.650" in doubt for doubt in doubts)


@pytest.mark.parametrize(("value", "doubted"), [(0.01, False), (0.031, False), (0.074, True)])
def test_a_closure_is_doubted_where_more_pixels_are_saturated_than_in_its_bounds(value, doubted):
    figures = [
        Figure("saturated", 0.004, 0.002, "gaussian"),
        Figure("saturated", value, 0.002, "ebm"),
        Figure("saturated", 0.03, 0.002, "reconstructions"),
        Figure("closure", 0.9, 0.06, "ebm"),
    ]
    sources = [Source("ebm", lambda draw: iter(()), ("gaussian", "reconstructions"))]
    doubts = list(_doubts(figures, sources))
    assert len(doubts) == doubted and all("saturated 0.074" in doubt for doubt in doubts)


@pytest.mark.parametrize(
    ("closure", "hole", "doubted"),
    [
        (0.75, 0.62, False),  # within the error
        (0.36, 0.77, False),  # the more severe of the two
        (1.16, 0.31, True),
        (1.16, None, False),
    ],
)
@pytest.mark.parametrize("suffix", ["", " (clean)"])
def test_a_closure_is_doubted_where_that_to_reconstructions_is_lower(suffix, closure, hole, doubted):
    figures = [
        Figure(f"closure{suffix}", closure, 0.05, "ebm"),
        Figure(f"closure to reconstructions{suffix}", hole, None if hole is None else 0.03, "ebm"),
        Figure("closure", 0.5, None, "ebm") if suffix else Figure("closure (clean)", 0.5, None, "ebm"),
    ]
    sources = [Source("ebm", lambda draw: iter(()), ("gaussian", "reconstructions"))]
    doubts = list(_doubts(figures, sources))
    assert len(doubts) == doubted
    assert all(f"closure{suffix} 1.160, but 0.310 to reconstructions" in doubt for doubt in doubts)
