"""How well scores tell other images: the comparison and what it chooses by, the battery, the figure, the command."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toys import toy_prior

from hebmtool import data, recipe
from hebmtool.errors import HebmError, UsageError
from hebmtool.judge import ood
from hebmtool.judge.battery import battery
from hebmtool.metrics.detection import figures_of_merit
from hebmtool.noise import derive_seed
from hebmtool.run.open import load_prior
from hebmtool.use.score import Scorer, calibration, default_cut, in_batches, make_scorer

CPU = torch.device("cpu")


def grey(n, shape=(1, 8, 8), seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8))


@pytest.fixture
def tower(make_generator):
    """Three layers, L = 3."""
    return make_generator(scales=1, layers_per_scale=3)


# The comparison


class Few:
    """A test split."""

    shape = (1, 8, 8)

    def __init__(self, images):
        self.images, self.asked = images, []

    def __len__(self):
        return len(self.images)

    def batch(self, indices):
        self.asked.append(list(indices))
        return self.images[list(indices)]


def scorers(tower):
    """Of every score there is, and a recipe that reads 8x8 images as ink."""
    prior, settings = toy_prior(tower, weight=0.1), recipe.Recipe(name="x")
    settings.generator.likelihood = "bernoulli"
    kinds = [("energy", "inference"), ("energy", "diffusion"), ("likelihood", "inference"), ("llr", "inference")]
    return [Scorer(prior, settings, *kind, draws=2) for kind in kinds]


def test_comparison_judges_on_other_images_than_it_chooses_by(tower):
    test, asked = Few(grey(30) // 8), scorers(tower)
    sets = {"bright": 255 - grey(20, seed=1) // 8, "dim": grey(25, seed=2) // 8}
    found = ood.compare(asked, test, 500, None, iter(sets.items()))
    assert set(map(tuple, test.asked)) == {tuple(range(10)), tuple(range(10, 30))}
    cuts = [default_cut(scorer, test) for scorer in (asked[0], asked[0], *asked[2:])]  # both schemes share theirs
    for method, scorer, (cut, by) in zip(found, asked, cuts, strict=True):
        assert (method.scorer, method.chosen, method.by) == (scorer, cut, by)
        assert list(method.rows) == [(name, k) for name in sets for k in scorer.cuts]
        inside = in_batches(scorer, test.images[10:])
        for name, images in sets.items():
            outside = in_batches(scorer, images)
            for column, k in enumerate(scorer.cuts):
                seed = derive_seed(name, k) % 2**32
                expected = figures_of_merit(inside[:, column], outside[:, column], ood.BOOTSTRAPS, seed)
                for key, value in expected.items():
                    assert method.rows[name, k][key] == pytest.approx(value, abs=0.02), key
    assert ood.figure(found).startswith(b"\x89PNG")
    with pytest.raises(HebmError, match="at least 6 test images"):
        ood.compare(asked, Few(grey(5)), 500, None, iter(sets.items()))


def test_a_cut_that_is_given_is_not_chosen(tower):
    test, sets = Few(grey(30)), [("bright", 255 - grey(20, seed=1) // 8)]
    energy, _, _, ratio = scorers(tower)
    (found,) = ood.compare([energy], test, 8, 2, sets)
    assert (found.chosen, found.by, len(found.inside)) == (2, None, 8) and "as asked" in found.sentence()
    assert test.asked == [list(range(10, 18))]
    with pytest.raises(UsageError, match="from 1 to 2"):
        ood.compare([ratio], test, 8, 0, sets)


def test_the_worst_set_says_how_good_a_cut_is(tower):
    rng = np.random.default_rng(0)
    method = ood.Method(scorers(tower)[0], rng.normal(size=(30, 3)), 1, [0.5, 0.9, 0.6])
    method.add("far", rng.normal(size=(40, 3)) - [0, 9, 9])
    method.add("near", rng.normal(size=(40, 3)) - [9, 1, 3])
    assert method.rows["far", 1]["auroc"] == method.rows["far", 2]["auroc"] == 1.0
    assert method.worst(1) == ("near", method.rows["near", 1]["auroc"]) and method.best == 2
    assert method.worst(0) == ("far", method.rows["far", 0]["auroc"])
    assert method.sentence().startswith("energy (inference): cut 1, chosen without these sets: AUROC at least 0.")
    assert f"best in hindsight cut 2: at least {method.worst(2)[1]:.3f} (" in method.sentence()
    figures = method.figures()
    assert (figures["cut"], figures["best_cut"], figures["chosen_by"]) == (1, 2, [0.5, 0.9, 0.6])
    assert [row["set"] for row in figures["rows"]] == ["far"] * 3 + ["near"] * 3
    lines = ood.table([method]).splitlines()
    assert len(lines) == 7 and sum("1*" in line for line in lines) == 2


def test_a_flow_has_one_cut_and_nothing_to_choose(flow, tmp_path):
    prior, settings = load_prior(flow, "flow", CPU), flow.recipe()
    scorer = make_scorer(prior, settings)
    test = data.load(settings.data, "test")
    first = calibration(test)
    (found,) = ood.compare([scorer], test, 10)
    assert (found.chosen, found.by, found.inside.shape) == (0, None, (10, 1)) and 1 < first < len(test)
    assert list(found.outside) == ["noise", "constant", "shuffled", "mixed", "inverted", "photos"]
    assert found.sentence().startswith("posterior: AUROC at least ") and ood.figure([found]).startswith(b"\x89PNG")


# The battery


def members(test, source="mnist", seed=0):
    return dict(battery(test, recipe.Data(source=source), tuple(test.shape[1:]), seed))


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 16, 12)])
def test_battery_members_are_what_they_say(shape):
    test = grey(30, shape)
    found = members(test)
    assert list(found) == ["noise", "constant", "shuffled", "mixed", "inverted", "digits", "photos"]
    for images in found.values():
        assert images.dtype == torch.uint8 and images.shape == test.shape
    assert abs(found["noise"].float().mean() - 127.5) < 3 and found["noise"].unique().numel() == 256
    constant = found["constant"].flatten(2)
    assert (constant == constant[..., :1]).all() and constant[..., 0].unique().numel() > 15
    before, after = (x.flatten(2).transpose(1, 2).tolist() for x in (test, found["shuffled"]))
    assert all(sorted(a) == sorted(b) and a != b for a, b in zip(before, after, strict=True))
    for image in found["mixed"]:
        halves = (test[:, None].int() + test[None].int()) // 2
        pairs = (halves == image).flatten(2).all(2).nonzero()
        assert len(pairs) and all(i != j for i, j in pairs.tolist())
    assert torch.equal(found["inverted"].int() + test.int(), torch.full_like(test, 255).int())
    assert found["photos"].float().flatten(1).std(1).min() > 1
    assert found["photos"].flatten(1).unique(dim=0).shape[0] == 30


def test_battery_is_a_function_of_its_seed():
    test = grey(12)
    again, other = members(test), members(test, seed=1)
    for name, images in members(test).items():
        assert torch.equal(images, again[name])
        assert torch.equal(images, other[name]) == (name == "inverted")


def test_digits_are_no_outliers_to_a_run_on_digits():
    assert "digits" not in members(grey(4), "digits") and "photos" in members(grey(4), "digits")


# The command


def test_auroc_of_the_battery(hebm, tiny, tmp_path):
    out_path = tmp_path / "figure.png"
    arguments = ("ood-score", "--auroc", "--run", "digits", "--runs", tiny, "-n", 20, "--out", out_path)
    status, out, err = hebm(*arguments, "--draws", 1)
    assert status == 0, err
    lines = out.splitlines()
    sets = ["noise", "constant", "shuffled", "mixed", "inverted", "photos"]
    # A line per set and cut: energy by both schemes and likelihood at 0 and 1, the ratio at 1; then a sentence each.
    assert len(lines) == 1 + len(sets) * (3 * 2 + 1) + 4
    assert all(sum(f"  {name} " in line for line in lines) == 7 for name in sets)
    scores = ["energy (inference)", "energy (diffusion)", "likelihood", "llr"]
    assert [line.split(":")[0] for line in lines[-4:]] == scores
    assert all("best in hindsight" in line for line in lines[-4:])
    with Image.open(out_path) as image:
        assert image.format == "PNG" and image.width > 1000
    status, _, err = hebm(*arguments)
    assert status == 1 and "--force" in err


def test_auroc_of_ones_own_sets_as_json(hebm, copied, tmp_path):
    folder = tmp_path / "imgs"
    folder.mkdir()
    for i, image in enumerate(grey(3)):
        Image.fromarray(image[0].numpy()).save(folder / f"{i}.png")
    (folder / "bad.png").write_bytes(b"no image")
    np.save(tmp_path / "bright.npy", 255 - grey(9)[:, 0].numpy() // 8)
    given = ("--ood", folder, "--ood", tmp_path / "bright.npy", "--score", "energy", "--scheme", "inference")
    arguments = ("--layer", 1, "-n", 20, "--draws", 1, "--json", "--run", "digits", "--runs", copied)
    status, out, err = hebm("ood-score", "--auroc", *given, *arguments)
    assert status == 1 and "bad.png" in err  # everything else is there all the same
    found = json.loads(out)
    (method,) = found["methods"]
    assert found["images"] == 20 and method["cut"] == 1 and method["chosen_by"] is None
    assert [(row["set"], row["cut"]) for row in method["rows"]] == [(s, k) for s in ("imgs", "bright") for k in (0, 1)]
    for row in method["rows"]:
        assert row["auroc_interval"][0] <= row["auroc"] <= row["auroc_interval"][1]
    assert Path(found["picture"]).parent == copied / "digits" / "samples"
