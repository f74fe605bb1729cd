"""The package from Python: one method or function for each use, equal to what it is made of below."""

import copy
import doctest
import importlib
import io
import json
import pickle
import pkgutil
import sys
from functools import partial

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny import DIGITS, FLOW
from torch import Tensor

import hebmtool
from hebmtool import api, compute, data
from hebmtool.api.model import Model
from hebmtool.errors import HebmError, UsageError
from hebmtool.judge import classifier, ood
from hebmtool.judge import closure as closures
from hebmtool.judge import diagnose as diagnostics
from hebmtool.judge import evaluate as evaluation
from hebmtool.metrics import mixing
from hebmtool.picture import Pictures, to_uint8
from hebmtool.prior.labels import CLASS
from hebmtool.run.folder import Run
from hebmtool.run.open import load_labels, load_prior
from hebmtool.use import controllable, hierarchy, inpaint, reconstruct, sample, score
from hebmtool.use.infer import Inference

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("short")
SHAPE = (1, 8, 8)


def model_of(root, run: str = "digits", prior: str | None = None, **options) -> Model:
    return hebmtool.load(run, prior, runs=root, device="cpu", **options)


@pytest.fixture(scope="module")
def model(tiny) -> Model:
    return model_of(tiny)


@pytest.fixture(scope="module")
def flow(tiny) -> Model:
    return model_of(tiny, "flow")


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, *SHAPE), dtype=np.uint8))


def drawn(prior, n: int = 4, seed: int = 0, **how) -> Tensor:
    return torch.cat(list(sample.sample(prior, n, seed, **how)))


def is_picture(png: bytes) -> bool:
    with Image.open(io.BytesIO(png)) as picture:
        return picture.format == "PNG" and min(picture.size) > 8


# The package ----------------------------------------------------------------------------------------------------------


def test_importing_alone_imports_nothing_slow(child):
    slow = "('torch', 'pydantic', 'typer', 'numpy', 'PIL', 'rich', 'yaml')"
    program = f"import hebmtool, sys; print([name for name in {slow} if name in sys.modules], hebmtool.__version__)"
    status, out, err = child(sys.executable, "-c", program).finish()
    assert (status, err) == (0, "")
    assert out.split() == ["[]", hebmtool.__version__]


def test_names_come_on_first_use():
    assert set(hebmtool.__all__) <= set(dir(hebmtool))
    for name in hebmtool.__all__:
        assert getattr(hebmtool, name) is not None
    assert hebmtool.Run is Run and hebmtool.UsageError is UsageError and hebmtool.Model is Model
    assert all(callable(getattr(api, name)) for name in api.PLACES)
    for module in (hebmtool, api):
        with pytest.raises(AttributeError, match="no attribute 'sampler'"):
            _ = module.sampler


def test_what_needs_no_torch_does_not_import_it(child, copied):
    """Mistakes in a recipe, and kept figures side by side, are answered at once."""
    program = (
        "import hebmtool, sys\n"
        "for call in (hebmtool.train_vae, hebmtool.train_prior):\n"
        "    try: call('digits', {'prior.levels': 0})\n"
        "    except hebmtool.UsageError as error: print(error)\n"
        "try: hebmtool.compare('digits', runs=sys.argv[1])\n"
        "except hebmtool.HebmError as error: print(error)\n"
        "print('torch' in sys.modules)"
    )
    status, out, err = child(sys.executable, "-c", program, copied).finish()
    assert (status, err) == (0, "")
    first, second, third, imported = out.splitlines()
    assert "prior.levels" in first and first == second
    assert "has no kept figures" in third and imported == "False"


def test_the_command_is_a_module_too(child):
    status, out, _ = child(sys.executable, "-m", "hebmtool", "--version").finish()
    assert status == 0 and out.split()[-1] == hebmtool.__version__


def test_types_are_declared():
    assert importlib.resources.files("hebmtool").joinpath("py.typed").is_file()


def modules_with_examples() -> list[str]:
    return ["hebmtool", *(f"hebmtool.api.{found.name}" for found in pkgutil.iter_modules(api.__path__))]


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_in_docstrings(name, tiny, tmp_path, monkeypatch, model):
    (tmp_path / "runs").symlink_to(tiny)
    monkeypatch.chdir(tmp_path)
    found = doctest.testmod(importlib.import_module(name), extraglobs={"hebmtool": hebmtool, "model": model})
    assert not found.failed
    assert found.attempted or name not in ("hebmtool", "hebmtool.api.model", "hebmtool.api.drawing")


# Loading --------------------------------------------------------------------------------------------------------------


def test_load_by_name_folder_run_and_by_itself(tiny, copied):
    for run in ("digits", tiny / "digits", str(tiny / "digits"), Run(tiny / "digits")):
        found = model_of(tiny, run)
        assert repr(found) == "<Model digits: diffusion-ebm prior, 2 layers, images 1x8x8>"
    assert model_of(tiny, None).run.name == "flow", "the newest"
    # What this prior was trained with, whatever was trained in the run since.
    assert found.recipe.prior.kind == "diffusion-ebm" and found.recipe.name == "digits"
    assert found.device == CPU and found.generator is found.prior.generator


def test_load_a_prior_by_its_kind(tiny):
    assert model_of(tiny, prior="ebm").prior.kind == "ebm"
    assert repr(model_of(tiny, prior="gaussian")) == "<Model digits: gaussian prior, 2 layers, images 1x8x8>"
    assert repr(model_of(tiny, "flow")) == "<Model flow: flow prior, 1 layer, images 1x8x8>"


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"prior": "gausian"}, UsageError, "did you mean 'gaussian'"),
        ({"prior": "flow"}, HebmError, "has no 'flow' prior"),
        ({"run": "digit"}, HebmError, "did you mean 'digits'"),
        ({"run": "flow", "prior": "ebm"}, HebmError, "is a flow model and has no 'ebm' prior"),
        ({"run": "flow", "readjust_bn": 2}, UsageError, "no BatchNorms"),
        ({"device": "gpu"}, UsageError, "unknown device 'gpu'"),
        ({"precision": "half"}, UsageError, "choose one of float32, bf16"),
    ],
)
def test_load_what_is_not_there(tiny, given, error, words):
    with pytest.raises(error, match=words):
        hebmtool.load(**{"run": "digits", "runs": tiny, "device": "cpu"} | given)


def test_load_without_a_generator(tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "recipe.yaml").write_text("name: new\n")
    with pytest.raises(HebmError, match="has no generator"):
        hebmtool.load("new", runs=tmp_path)


def test_batchnorm_may_be_readjusted(tiny):
    found = model_of(tiny, readjust_bn=2, readjust_temperature=0.9)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = load_prior(Run(tiny / "digits"), "diffusion-ebm", CPU, 2, 0.9)
    assert torch.equal(found.sample(4), drawn(expected))
    assert not torch.equal(found.sample(4), model_of(tiny).sample(4))


# Pictures -------------------------------------------------------------------------------------------------------------


def test_pictures_show_and_save_themselves(model, tmp_path):
    found = model.sample(6)
    assert isinstance(found, Pictures) and found.dtype == torch.uint8 and found.shape == (6, *SHAPE)
    assert repr(found) == str(found) == "<pictures, uint8 [6, 1, 8, 8]>"
    assert is_picture(found._repr_png_())
    found.save(tmp_path / "grid.png", columns=6)
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.size == found.picture(6).size != found.picture().size


def test_what_is_computed_of_pictures_is_a_plain_tensor(model):
    found = model.sample(3)
    for each in (found[0], found + 1, found.float().mean(), torch.cat([found, found]), next(iter(found))):
        assert type(each) is Tensor
    assert np.array_equal(np.asarray(found), found.numpy())
    for each in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert type(each) is Pictures and torch.equal(each, found)


def test_rows_of_pictures_are_shown_as_rows(model):
    found = model.progressive(3)
    stages = found.shape[1]
    assert found.picture().size == Pictures(found.flatten(0, 1)).picture(columns=stages).size


# Drawing --------------------------------------------------------------------------------------------------------------


def test_sample_is_what_the_prior_draws(tiny, model):
    prior = load_prior(Run(tiny / "digits"), "diffusion-ebm", CPU)
    assert torch.equal(model.sample(5, seed=3), drawn(prior, 5, 3))
    how = {"temperature": 0.8, "steps": 1}
    assert torch.equal(model.sample(5, seed=3, **how), drawn(prior, 5, 3, **how))
    assert torch.equal(model.sample(2, steps=[2, 1, 0]), drawn(prior, 2, steps=[2, 1, 0]))


def test_batches_are_the_same_images_as_they_are_needed(model):
    batches = model.batches(5, seed=3, batch_size=2)
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert torch.equal(torch.cat(list(model.batches(5, seed=3, batch_size=2))), model.sample(5, seed=3, batch_size=2))
    assert isinstance(next(model.batches(10**4, batch_size=1)), Pictures), "one at a time"


def test_progressive_ends_in_the_samples(model, flow):
    for each, stages in ((model, model.prior.T + 1), (flow, flow.prior.inference.transforms + 1)):
        found = each.progressive(3, seed=1)
        assert found.shape == (3, stages, *SHAPE)
        assert torch.equal(found[:, -1], each.sample(3, seed=1))


def test_another_chain_at_use(model):
    before = model.sample(4)
    for settings in ({"chain": "underdamped", "theta": 0.3}, {"chain": "preconditioned", "h": 0.5}):
        found = model.sample(4, **settings)
        assert torch.equal(found, drawn(model.prior.using(**settings)))
        assert not torch.equal(found, before)
    assert torch.equal(model.sample(4), before), "the model itself is as it was"
    assert not torch.equal(model.sample(4, chain="underdamped", steps=5), model.sample(4, chain="underdamped"))
    assert torch.equal(model.sample(4, chain=None, theta=None), before)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"chain": "underdampd"}, "did you mean 'underdamped'"),
        ({"chain": "underdamped", "thta": 0.3}, "did you mean 'theta'"),
        ({"chain": "underdamped", "theta": -1.0}, "theta is -1.0"),
        ({"temperature": 0.0}, "temperature is 0.0; it must be above 0"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"n": 0}, "n is 0; it must be at least 1"),
        ({"seed": -1}, "seed is -1; it must be at least 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"steps": -1}, "steps is -1"),
        ({"steps": [1]}, r"steps is \[1\]; give a number from 0, or one for each of 3"),
        ({"steps": 3, "fast": True}, "leave out either it or steps"),
        ({"fast": True, "chain": "langevin"}, "drawing fast leaves out levels"),
    ],
)
def test_ways_of_drawing_are_checked_before_anything_is_drawn(model, how, words):
    with pytest.raises(UsageError, match=words):
        model.batches(**how)


def test_priors_without_steps_say_so(tiny, flow):
    for each in (model_of(tiny, prior="gaussian"), flow):
        for how in ({"steps": 3}, {"chain": "underdamped"}, {"fast": True}):
            with pytest.raises(UsageError, match=f"the {each.prior.kind} prior takes no"):
                each.sample(2, **how)


@pytest.mark.parametrize("precision", ["bf16", "float32"])
def test_fast_draws_with_few_steps_in_the_faster_precision(tiny, monkeypatch, precision):
    monkeypatch.setattr(compute, "computes_bf16", lambda device: precision == "bf16")
    model = model_of(tiny)
    prior = load_prior(Run(tiny / "digits"), "diffusion-ebm", CPU, precision=precision)
    expected = drawn(prior, steps=prior.fast_steps())
    assert torch.equal(model.sample(4, fast=True), expected)
    loaded = model._fast
    assert torch.equal(model.sample(4, fast=True), expected) and model._fast is loaded, "loaded once"
    assert model.prior.generator.precision == "float32" and loaded.generator.precision == precision
    half = model_of(tiny, precision="bf16")
    assert half._fast is half.prior, "as it was asked for"


# Some layers given the others, and conditions -------------------------------------------------------------------------


def test_resample_is_what_hierarchy_draws(model):
    found = model.resample(layer=1, n=3, columns=2, seed=5)
    expected = hierarchy.draw(model.prior, [[2]], 3, 2, 5)
    assert found.parts == [[2]] and found.title == "layer 2"
    assert torch.equal(found.images, expected.images) and torch.equal(found.base, expected.base)
    assert torch.equal(to_uint8(found.base), model.sample(3, seed=5)), "base i is image i of the seed"
    assert is_picture(found._repr_png_())
    assert found.figures()["falls"] is None
    assert model.resample(layer="1:2", n=1, columns=1).parts == [[2, 1]]
    assert model.resample(layer=1, vary="only", n=1, columns=1).parts == [[1]]


def test_resample_the_whole_hierarchy(model, tmp_path):
    found = model.resample(n=3, columns=2)
    assert found.parts == [[2], [1]] and found.title == "all" and len(model.resample(columns=1).base) == 4
    figures = found.figures()
    assert [entry["layers"] for entry in figures["parts"]] == [[2], [1]]
    assert figures["falls"] is (not found.rises)
    assert figures["features"] == "embedded"
    assert [figures[key] for key in ("prior", "rows", "columns", "seed")] == ["diffusion-ebm", 3, 2, 0]
    json.dumps(figures)
    found.save(tmp_path / "all.png")
    assert found.picture().size == Image.open(tmp_path / "all.png").size
    assert repr(found) == "<layer 2, layer 1 drawn again 2 times from each of 3 images, by the diffusion-ebm prior>"


def test_parts_of_several_layers_are_measured_layer_by_layer(model, monkeypatch):
    monkeypatch.setattr(hierarchy, "MOST_BLOCKS", 1)
    found = model.resample(n=2, columns=1)
    assert found.parts == [[2, 1]]
    assert [entry["layers"] for entry in found.changes] == [[2], [1]]


def test_resample_from_images(model, images, tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(images[0, 0].numpy()).save(path)
    by_path = model.resample(layer=1, images=path, columns=2)
    by_tensor = model.resample(layer=1, images=images[:1], columns=2)
    assert torch.equal(by_path.images, by_tensor.images)
    assert len(model.resample(layer=1, images=images, columns=1).base) == len(images)
    with pytest.raises(UsageError, match="leave out either"):
        model.resample(layer=1, images=images, n=3)
    with pytest.raises(HebmError, match=r"\[1, 4, 4\]"):
        model.resample(layer=1, images=images[..., :4, :4])


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"layer": 3}, "there is no layer 3"),
        ({"layer": 2}, "layer 2 is the top"),
        ({"layer": "top"}, "layer is 'top'"),
        ({"layer": 1, "vary": "up"}, "vary is 'up'"),
        ({"vary": "only"}, "all are drawn in turn"),
        ({"layer": 1, "columns": 0}, "columns is 0"),
        ({"layer": 1, "columns": 2000}, "columns is 2000"),
        ({"layer": 1, "chain": "nothing"}, "chain is 'nothing'"),
    ],
)
def test_what_cannot_be_resampled(model, how, words):
    with pytest.raises(UsageError, match=words):
        model.resample(**how)


def test_controllable_is_what_is_drawn_under_conditions(model):
    found = model.controllable(3, n=4, seed=2, weight=0.5, judged=False)
    labels = load_labels(model.run, model.generator)
    wish = controllable.Wish(CLASS, "3", 0.5)
    [expected] = controllable.sample(model.prior, labels, [[wish]], 4, 2)
    assert torch.equal(found.sets[0], expected) and isinstance(found.sets[0], Pictures)
    assert found.figures == {"rows": []} and found.shares is None and is_picture(found._repr_png_())
    assert repr(found) == "class 3 x0.5: 4 images, not judged"
    for attributes in ({"class": (3, 0.5)}, ["class=3:0.5"], "class=3:0.5"):
        assert torch.equal(model.controllable(attributes=attributes, n=4, seed=2, judged=False).sets[0], expected)
    assert len(model.controllable("all", n=1, steps=0, judged=False).sets) == 10


def test_controllable_judges(copied, monkeypatch):
    monkeypatch.setattr(classifier, "UPDATES", 5)
    model = model_of(copied)
    found = model.controllable(3, n=4, steps=1)
    [row] = found.figures["rows"]
    assert row["samples"] == 4 and found.shares == [row["controllability"]]
    assert repr(found) == "\n".join(found.lines()) and "% of 4 as asked" in found.lines()[-1]
    layers = model.controllable(3, n=2, steps=1, across_layers=True)
    assert [entry["resampled"] for entry in layers.figures["rows"]] == [[], [2], [1], [2, 1]]
    assert len(layers.sets) == 4 and is_picture(layers.png())
    json.dumps(layers.figures)


def test_what_cannot_be_asked_of_labels(tiny, model):
    for how, words in (
        ({}, "say what to condition on"),
        ({"of_class": 11}, "no value '11'"),
        ({"attributes": {"odd": 1}}, "no trained label 'odd'"),
        ({"of_class": 3, "weight": 0}, "weight of class is 0"),
        ({"of_class": "all", "across_layers": True}, "one condition, and 10 are asked for"),
    ):
        with pytest.raises(UsageError, match=words):
            model.controllable(**{"n": 1, "judged": False} | how)
    with pytest.raises(HebmError, match="gaussian prior has no energy"):
        model_of(tiny, prior="gaussian").controllable(3, n=1, judged=False)


def test_a_flow_has_no_layers_and_no_energy_for_labels(flow):
    for use in (flow.resample, partial(flow.resample, layer=1), partial(flow.controllable, 3)):
        with pytest.raises(HebmError, match="is a flow model, whose latent has one layer"):
            use()


# Scores ---------------------------------------------------------------------------------------------------------------


def test_score_is_what_the_scorer_says(model, images):
    for how in ({}, {"score": "likelihood"}, {"scheme": "diffusion", "level": 2}, {"draws": 1, "seed": 4}):
        found = model.score(images, layer=1, **how)
        scorer = score.make_scorer(model.prior, model.recipe, **how)
        assert torch.equal(found.values, scorer(images, [1])[:, 0])
        assert (found.method, found.layer, len(found)) == (scorer.name, 1, 5)
    assert found.names == ["#0", "#1", "#2", "#3", "#4"]
    assert repr(found).splitlines()[0] == "energy (inference), layers above 1"


def test_scores_come_as_paths_are_read(model, images, tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image[0].numpy()).save(path)
    read = []

    def named():
        for path in paths:
            read.append(path)
            yield path

    stream = model.score_stream(named(), layer=0, batch_size=2)
    assert not read
    first = next(stream)
    assert read == paths[:2] and first.path == str(paths[0])
    assert list(first._asdict()) == ["path", "score", "method", "layer"]
    whole = model.score(images, layer=0, batch_size=2).values.tolist()
    assert [first.score, *(each.score for each in stream)] == whole
    assert model.score(tmp_path, layer=0, batch_size=2).values.tolist() == whole
    np.save(tmp_path / "all.npy", images[:, 0].numpy())
    assert model.score([tmp_path / "all.npy"], layer=0, batch_size=2).values.tolist() == whole


def test_what_cannot_be_read_ends_the_call_or_is_passed_over(model, images, tmp_path):
    np.save(tmp_path / "all.npy", images[:, 0].numpy())
    paths, failed = [tmp_path / "none.png", tmp_path / "all.npy"], []
    with pytest.raises(HebmError, match="does not exist"):
        model.score(paths, layer=0)
    assert len(model.score(paths, layer=0, failed=failed.append)) == len(images)
    assert len(failed) == 1
    with pytest.raises(HebmError, match="no image to score"):
        model.score([], layer=0)
    with pytest.raises(UsageError, match=r"float32 \[5, 1, 8, 8\]; they must be uint8"):
        model.score(images.float(), layer=0)


def test_the_cut_is_chosen_on_test_images(model, images):
    scorer = score.make_scorer(model.prior, model.recipe)
    cut, _ = score.default_cut(scorer, data.load(model.recipe.data, "test"))
    assert model.score(images).layer == cut


def test_images_of_another_size_are_brought_to_the_runs(model, images):
    larger = images.repeat_interleave(2, 2).repeat_interleave(2, 3).expand(-1, 3, -1, -1)
    assert len(model.score(larger, layer=0)) == len(images)


def test_auroc_holds_scores_against_sets(model, images):
    found = model.auroc({"noise": images}, 12, score="energy", scheme="inference", draws=1)
    [expected] = ood.compare(
        [score.make_scorer(model.prior, model.recipe, draws=1)],
        data.load(model.recipe.data, "test"),
        12,
        sets=[("noise", images)],
    )
    assert found.figures()["methods"] == [expected.figures()]
    assert is_picture(found._repr_png_()) and "noise" in found.table() and found.lines()[0] in repr(found)
    every = model.auroc({"noise": images}, 12, draws=1)
    assert [method.scorer.name for method in every.methods] == [
        *("energy (inference)", "energy (diffusion)", "likelihood", "llr")
    ]
    below = model.auroc({"noise": images}, 12, draws=1, layer=0)
    assert [method.scorer.score for method in below.methods] == ["energy", "energy", "likelihood"]


# Images from latents of images ----------------------------------------------------------------------------------------


def test_reconstruct_is_what_inference_decodes_to(model, flow, images, tmp_path):
    for each, steps in ((model, None), (model, 2), (flow, None), (flow, 3)):
        found = each.reconstruct(images, steps=steps, seed=1)
        made, errors = reconstruct.reconstruct(Inference(each.prior, each.recipe, steps, 1), images)
        assert torch.equal(found.made, made) and torch.equal(found.errors.mse, errors.mse)
        assert [entry["mse"] for entry in found.figures()] == errors.mse.tolist()
        assert is_picture(found._repr_png_()) and "over 5 images" in repr(found)
    own = model.reconstruct(n=3)
    assert own.names == ["test#0", "test#1", "test#2"]
    assert torch.equal(own.images, data.load(model.recipe.data, "test").batch(range(3)))
    np.save(tmp_path / "all.npy", images[:, 0].numpy())
    assert torch.equal(model.reconstruct(tmp_path / "all.npy").made, model.reconstruct(images).made)


def test_images_that_do_not_fit_are_refused_or_fitted(model, images):
    with pytest.raises(HebmError, match="have them fitted"):
        model.reconstruct(images[..., :6])
    assert model.reconstruct(images[..., :6], fit=True).made.shape == (5, *SHAPE)


def test_inpaint_is_what_is_completed(model, flow, images):
    left = torch.zeros(5, 1, 8, 8, dtype=torch.bool)
    left[..., :4] = True
    for each in (model, flow):
        found = each.inpaint(images, "left", draws=2, steps=2, seed=1)
        expected = inpaint.inpaint(Inference(each.prior, each.recipe, 2, 1), images, left, 2)
        assert torch.equal(found.completions, expected.completions) and torch.equal(found.mean, expected.mean)
        assert torch.equal(found.hidden, left) and is_picture(found._repr_png_())
        assert len(found.figures()) == 5 and "hidden pixels: PSNR" in repr(found)
    for mask in (left, left[:, 0], left[0, 0]):
        assert torch.equal(model.inpaint(images, mask, draws=2, steps=2, seed=1).hidden, left)
    damaged = model.inpaint(images, "left", draws=1, steps=0, damaged=True)
    assert damaged.figures() == [] and damaged.errors is None and "1 completion of 5 images" in repr(damaged)
    with pytest.raises(UsageError, match="no mask 'lft'"):
        model.inpaint(images, "lft")
    with pytest.raises(UsageError, match=r"the mask is \[3, 3\]"):
        model.inpaint(images, torch.ones(3, 3))


# Looking --------------------------------------------------------------------------------------------------------------


def test_flow_match(flow, model):
    found = flow.flow_match(16)
    assert found.steps == flow.prior.inference.steps and found.figures()["samples"] == 16
    assert is_picture(found._repr_png_()) and repr(found).startswith("inferred latents to the flow prior")
    with pytest.raises(HebmError, match="come from an encoder; name a run of a flow or a latent-ebm"):
        model.flow_match()


def test_diagnose_is_told_all(model, monkeypatch):
    told = []
    monkeypatch.setattr(diagnostics, "diagnose_prior", lambda *given: told.append(given) or "found")
    assert model.diagnose(24, 1, 3, ["chains"], chain="underdamped", theta=0.3).found == "found"
    [(prior, *others)] = told
    assert others == [model.run, model.recipe, 24, 1, 3, ["chains"]]
    assert torch.equal(drawn(prior), model.sample(4, chain="underdamped", theta=0.3))
    with pytest.raises(UsageError, match="samples is 3"):
        model.diagnose(samples=3)
    with pytest.raises(UsageError, match="did you mean 'chains'"):
        model.diagnose(parts=["chain"])


def test_diagnose(model, monkeypatch):
    monkeypatch.setattr(mixing, "LONGER", 2)
    monkeypatch.setattr(diagnostics, "POSTERIOR", 20)
    found = model.diagnose(steps=1, parts=["chains"])
    assert found.figures and repr(found) == found.table() and found.prior == "diffusion-ebm"
    assert is_picture(found._repr_png_())


def test_diagnose_what_has_no_chains(tiny, flow):
    for each in (flow, model_of(tiny, prior="gaussian")):
        found = each.diagnose(samples=20, parts=["two-sample", "chains"])
        assert found.figures and found._repr_png_() is None
        with pytest.raises(HebmError, match="has no chains to picture"):
            found.png()
        with pytest.raises(HebmError, match="takes no Langevin steps; ask for two-sample"):
            each.diagnose(parts=["chains"])


def test_info_is_data_and_reads_as_text(tiny, model, flow):
    for each in (model, flow):
        found = each.info()
        assert found == hebmtool.info(each.run.name, runs=tiny) and json.loads(json.dumps(found)) == found
        assert repr(found).startswith(f"{each.run.path}: {each.run.name}, digits images 1x8x8")


def test_info_has_labels_and_evaluations_in_data_and_in_words(copied):
    run = Run(copied / "digits")
    for _ in range(2):
        hebmtool.evaluate(run, "ebm", device="cpu", steps=1)
    hebmtool.evaluate(run, "ebm", device="cpu", steps=1, seed=5)
    found = hebmtool.info(run)
    [label] = found["labels"]
    assert (label["name"], label["step"], len(label["values"])) == ("class", 2, 10)
    assert label["accuracy"] == run.figures()["label_accuracy"]["class"] and "origin" not in label
    seeds = [each["provenance"]["seed"] for each in found["evaluations"]]
    assert seeds == [5, 0] and {each["origin"] for each in found["evaluations"]} == {"now"}
    lines = repr(found).splitlines()
    assert any(line.startswith("label class: 10 values, 2 updates, found in") for line in lines)
    fd = next(f["value"] for f in found["evaluations"][0]["figures"] if (f["name"], f["of"]) == ("FD", "ebm"))
    assert any(line.startswith("  ebm: ") and f"FD {fd:.3f}" in line for line in lines)
    assert sum(line.startswith("evaluated 24 images a set against") for line in lines) == 2
    assert f"({found['test_images']} test images)" in repr(found)
    (run.path / "prior-ebm.safetensors").unlink()
    assert "of other checkpoints than these" in repr(hebmtool.info(run))


def test_evaluate_and_compare(copied):
    run = Run(copied / "digits")
    found = hebmtool.evaluate("digits", "ebm", runs=copied, device="cpu", steps=1, command="as typed")
    expected = evaluation.evaluate(run, CPU, "ebm", 1)
    values = {(f.name, f.of): f.value for f in found.figures if not f.name.startswith("seconds")}
    assert values == {(f.name, f.of): f.value for f in expected.figures if not f.name.startswith("seconds")}
    assert "command: as typed" in repr(found) and found.markdown() == found._repr_markdown_()
    assert json.loads(json.dumps(found.as_dict()))["provenance"]["steps"] == 1
    flow = model_of(copied, "flow").evaluate(samples=24)
    assert {figure.of for figure in flow.figures} == {"gaussian", "flow", "reconstructions"}
    side = hebmtool.compare("digits", copied / "flow", runs=copied)
    assert {"digits/ebm", "flow/flow"} <= set(side.columns) and "digits/ebm" in repr(side)
    assert side.warnings and "| ---" in side.markdown() and set(side.as_dict()["runs"]) == {"digits", "flow"}
    with pytest.raises(UsageError, match="leave out either"):
        hebmtool.evaluate("digits", runs=copied, fast=True, steps=3)
    with pytest.raises(UsageError, match="say which runs"):
        hebmtool.compare()


def test_report_is_a_page(model, tmp_path, monkeypatch):
    def describe(run: Run, device: torch.device, seed: int, batch_size: int) -> str:
        return f"<!doctype html><p>{run.name}, {device}, {seed}, {batch_size}, \udcff"  # as names of files may be

    monkeypatch.setattr("hebmtool.report.sections.report", describe)
    page = model.report(3, batch_size=32)
    assert (
        page.startswith("<!doctype html><p>digits, cpu, 3, 32,") and repr(page) == f"<page of {len(page)} characters>"
    )
    page.save(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == page.replace("\udcff", "?")
    assert page._repr_html_().startswith('<iframe srcdoc="&lt;!doctype')


# Training -------------------------------------------------------------------------------------------------------------


def keys(overrides: list[str]) -> dict[str, object]:
    return {key: yaml.safe_load(value) for key, value in (each.split("=", 1) for each in overrides)}


def test_train_both_stages(tmp_path):
    quick = ["train_vae.iterations=1", "train_prior.iterations=1", "prior.labels=[class]", "name=two"]
    run = hebmtool.train_vae("digits", [*DIGITS, *quick], runs=tmp_path, device="cpu")
    assert run.name == "two" and run.priors() == ["gaussian"]
    settings = api.train.read_recipe("digits", [*DIGITS, *quick])
    before = settings.model_copy(deep=True)
    found = hebmtool.train_prior(settings, runs=tmp_path, device="cpu", readjust_bn=1)
    assert settings == before, "what is given stays as it is"
    assert found["run"] == str(run.path) and found["closure"]["kind"] == "diffusion-ebm" and "class" in found["labels"]
    assert run.recipe().train_prior.readjust_bn == 1
    tuned = hebmtool.train_prior(settings, runs=tmp_path, device="cpu", finetune=True, resume=True)
    assert tuned["closure"] is None and "class" in tuned["labels"]
    assert hebmtool.load(run).prior.kind == "diffusion-ebm"
    with pytest.raises(HebmError, match="already has checkpoints"):
        hebmtool.train_vae("digits", {"name": "two"}, runs=tmp_path)


def test_train_a_flow(tmp_path):
    found = hebmtool.train_prior("digits-flow", [*FLOW, "train_prior.iterations=1"], runs=tmp_path, device="cpu")
    assert found["run"] == str(tmp_path / "flow") and found["flow"]["psnr"] > 0
    with pytest.raises(UsageError, match="together with the prior; use `hebm train-prior`"):
        hebmtool.train_vae("digits-flow", runs=tmp_path)
    with pytest.raises(UsageError, match="a flow model has none"):
        hebmtool.train_prior("digits-flow", {"name": "other"}, runs=tmp_path, readjust_bn=2)


def test_what_cannot_be_trained(tmp_path):
    train = partial(hebmtool.train_prior, runs=tmp_path)
    with pytest.raises(HebmError, match="train it first with `hebm train-vae digits`"):
        train("digits")
    with pytest.raises(UsageError, match="prior.labels is empty"):
        train("digits", finetune=True)


def test_recipes_are_given_in_every_form(tmp_path):
    read = importlib.import_module("hebmtool.api.train").read_recipe
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nprior:\n  levels: 4\n")
    forms = [read(path), read(str(path)), read({"name": "mine", "prior": {"levels": 4}}), read(read(path))]
    assert all(each == forms[0] for each in forms) and forms[0].prior.levels == 4
    by_key = {"prior.levels": 5, "prior.kind": "ebm", "train_prior.lr": 1e-5, "prior.labels": ["class"]}
    changed = read(path, by_key)
    assert changed == read(forms[0], ["prior.levels=5", "prior.kind=ebm", "train_prior.lr=1e-5", "prior.labels=class"])
    assert changed.prior.levels == 5 and changed.train_prior.lr == 1e-5
    with pytest.raises(UsageError, match="levles"):
        read(path, {"prior.levles": 5})
    with pytest.raises(UsageError, match="levles"):
        read({"prior": {"levles": 5}})


# The demonstration ----------------------------------------------------------------------------------------------------


def test_the_demo_draws_what_the_model_draws(tmp_path):
    from hebmtool import demo

    quick = keys([*DIGITS, "train_vae.iterations=1", "train_prior.iterations=1"])
    shown = demo.demo(tmp_path, "cpu", quick)
    assert shown.run == tmp_path / "demo" and is_picture(shown.picture.read_bytes())
    assert shown.closure["kind"] == "diffusion-ebm" and shown.closure["samples"] == 24
    model = model_of(tmp_path, "demo")
    again = demo.prior_picture(model, shown.closure)
    assert again.tobytes() == Image.open(shown.picture).tobytes()
    assert torch.equal(model.sample(8, model.recipe.seed), closures.prior_images(model.prior, 8, model.recipe.seed))
