"""Labels coupled to an energy: what a condition adds, what it makes the chain sample, and learning p(y | z, t)."""

import json

import pytest
import torch
from PIL import Image
from test_cli import TINY, one_sentence, spawn

from hebmtool import data, recipe
from hebmtool.errors import HebmError, UsageError
from hebmtool.judge import labels as label_judge
from hebmtool.noise import Noise
from hebmtool.prior import labels
from hebmtool.prior.kinds import make_prior
from hebmtool.prior.labels import Condition, LabelEnergy
from hebmtool.prior.schedule import Schedule
from hebmtool.run import checkpoint
from hebmtool.use import controllable
from hebmtool.use.controllable import Wish


def make_label(generator, name="class", values=("a", "b", "c"), chosen=None) -> LabelEnergy:
    """A label whose networks have random weights where they start at zero, as if it had been trained."""
    label = LabelEnergy(name, values, 3, generator, recipe.Energy(reads="z+state", width=6, blocks=1), chosen)
    for p in label.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.1)
    label.energy.settle()
    label.energy.fix()
    return label.eval()


def make_ebm(generator, kind="diffusion-ebm", **keys):
    config = recipe.Prior(kind=kind, **{"chain": "preconditioned", "steps": 3} | keys)
    config.energy = recipe.Energy(width=6, blocks=1)
    return make_prior(generator, config)


def test_log_prob_is_the_softmax_of_the_summed_energies(generator):
    label, t = make_label(generator), torch.tensor([0, 1, 2, 0, 1])
    walk = generator.top_down(torch.randn(5, generator.D))
    found = label.log_prob(walk, t)
    assert found.shape == (5, 3)
    assert torch.allclose(found.exp().sum(1), torch.ones(5))
    logits = sum(layer for layer in label.energy(walk, t).unbind(1))
    assert torch.allclose(found, logits - logits.logsumexp(1, keepdim=True), atol=1e-6)
    # The levels matter.
    assert not torch.allclose(found, label.log_prob(walk, torch.zeros_like(t)))


@pytest.mark.parametrize("chosen", [[0], [1], [0, 1]])
def test_only_the_coupled_layers_are_read(generator, chosen):
    label = make_label(generator, chosen=chosen)
    walk = generator.top_down(torch.randn(4, generator.D))
    t = torch.zeros(4, dtype=torch.long)
    assert label.energy(walk, t).shape == (4, len(chosen), 3)
    before = label.log_prob(walk, t)
    for l in range(generator.L):
        moved = generator.top_down(generator.join(walk.u))
        moved.z = [z + (k == l) for k, z in enumerate(moved.z)]
        assert torch.equal(before, label.log_prob(moved, t)) == (l not in chosen)


@pytest.mark.parametrize("chain", ["langevin", "preconditioned"])
@pytest.mark.parametrize("kind", ["ebm", "diffusion-ebm"])
def test_a_condition_adds_its_weighted_log_probability_to_the_log_density(generator, kind, chain):
    prior, label = make_ebm(generator, kind, chain=chain), make_label(generator)
    other = make_label(generator, "odd", ("0", "1"))
    u, y = torch.randn(4, generator.D), torch.tensor([0, 1, 2, 1])
    t = torch.zeros(4, dtype=torch.long)
    walk = generator.top_down(u)
    given = prior.given([Condition(label, y, 0.5), Condition(other, y % 2, -2.0)])
    added = 0.5 * label.log_prob(walk, t)[range(4), y] - 2.0 * other.log_prob(walk, t)[range(4), y % 2]
    assert torch.allclose(given.log_density(u) - prior.log_density(u), added, atol=1e-4)
    assert prior.conditions == () and given.energy is prior.energy
    # With one label the values' coupled energies have the marginal for their logsumexp.
    each = torch.stack([prior.given([Condition(label, torch.full_like(y, k))]).log_density(u) for k in range(3)])
    assert torch.allclose(each.logsumexp(0), prior.log_density(u), atol=1e-4)


@pytest.mark.parametrize("kind", ["ebm", "diffusion-ebm"])
def test_the_chain_follows_the_condition_at_every_level(generator, kind):
    """F = 0 and log p(y | u_t) = m_t . u: at level 0 the chain's law given u_1 is N(a u_1 + sigma^2 m, sigma^2), so
    that with the same m at all levels the means of the levels add up."""
    prior, m = make_ebm(generator, kind, steps=40), 0.5
    given = prior.given([lambda walk, t: m * generator.join(walk.u).sum(1)])
    u = given.sample(Noise(0, range(400), generator.D))
    expected = 0.0
    if kind == "ebm":
        expected = m
    else:
        for t in reversed(range(prior.schedule.T)):
            a, sigma, r = (c.item() for c in prior.conditional(torch.tensor([t])))
            expected = r * a * expected + sigma**2 * m
    # 400 x 40 numbers: a standard error of 0.008.
    assert u.mean().item() == pytest.approx(expected, abs=0.04)
    assert prior.sample(Noise(0, range(400), generator.D)).mean().item() == pytest.approx(0, abs=0.04)


def test_a_label_that_is_in_the_latents_is_learned(generator):
    """y is the sign of the top layer's mean; noised latents tell it less well."""
    label = LabelEnergy("up", ("0", "1"), 3, generator, recipe.Energy(reads="z+state", width=16, blocks=1))
    schedule, optimizer = Schedule(3), torch.optim.Adam(label.parameters(), lr=1e-2)

    def draw(n, t):
        u = torch.randn(n, generator.D)
        y = (u[:, generator.slices[0]].mean(1) > 0).long()
        return generator.top_down(schedule.diffuse(u, t)[0]), y

    for _ in range(150):
        t = torch.randint(3, (64,))
        walk, y = draw(64, t)
        loss = torch.nn.functional.nll_loss(label.log_prob(walk, t), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    right = []
    for level in range(3):
        t = torch.full((1000,), level)
        walk, y = draw(1000, t)
        right.append((label.log_prob(walk, t).argmax(1) == y).float().mean().item())
    assert right[0] > 0.9 and right[0] > right[1] > right[2] > 0.5


# What the images say


def test_attributes_are_made_of_classes():
    config = recipe.from_dict({"data": {"attributes": {"odd": [1, 3, 5, 7, 9]}}}).data
    images = data.load(config, "test")
    assert torch.equal(images.attributes["odd"], images.labels % 2 == 1)
    y, values = labels.values_of("odd", images, config)
    assert values == ["0", "1"] and torch.equal(y, images.labels % 2)
    y, values = labels.values_of("class", images, config)
    assert values == [str(k) for k in range(10)] and torch.equal(y, images.labels)
    with pytest.raises(HebmError, match="no label 'odf'; they have class, odd; did you mean"):
        labels.values_of("odf", images, config)
    with pytest.raises(HebmError, match=r"data\.attributes\.odd names the class '11'; there are 0, 1"):
        data.load(recipe.from_dict({"data": {"attributes": {"odd": [11]}}}).data, "test")


def test_images_without_labels_cannot_have_attributes(tmp_path):
    import numpy as np

    np.save(tmp_path / "x.npy", np.zeros((20, 8, 8), np.uint8))
    config = recipe.Data(source="array", path=str(tmp_path / "x.npy"))
    with pytest.raises(HebmError, match="they have none at all"):
        labels.values_of("class", data.load(config, "train"), config)
    config = recipe.Data(source="array", path=str(tmp_path / "x.npy"), attributes={"odd": ["1"]})
    with pytest.raises(HebmError, match="have no labels"):
        data.load(config, "train")


@pytest.mark.parametrize("layers", [[0], [1, 3]])
def test_a_coupled_layer_must_exist(generator, layers):
    assert labels.chosen_layers(generator, [1, 2]) == [0, 1] and labels.chosen_layers(generator, [2]) == [0]
    with pytest.raises(UsageError, match="but the generator has 1 to 2"):
        labels.chosen_layers(generator, layers)


# What is asked


@pytest.mark.parametrize(
    ("text", "wish"),
    [
        ("Smiling=1", Wish("Smiling", "1", 1.0)),
        ("Male=0:0.5", Wish("Male", "0", 0.5)),
        ("odd=all", Wish("odd", "all", 1.0)),
        ("odd=1:-2", Wish("odd", "1", -2.0)),
    ],
)
def test_parse(text, wish):
    assert controllable.parse(text) == wish


@pytest.mark.parametrize("text", ["Smiling", "=1", "Smiling=", "Smiling=1:x", "Smiling=1:", "a=1:nan"])
def test_parse_refuses(text):
    with pytest.raises(UsageError, match="NAME=VALUE:WEIGHT"):
        controllable.parse(text)


def test_rows_are_every_combination(generator):
    known = {"class": make_label(generator), "odd": make_label(generator, "odd", ("0", "1"))}
    found = controllable.rows([Wish("class", "all"), Wish("odd", "all", 0.5)], known)
    assert [controllable.title(row) for row in found] == [
        f"class {c}, odd {o} x0.5" for c in ("a", "b", "c") for o in ("0", "1")
    ]
    for wishes, message in (
        ([], "say what to condition on"),
        ([Wish("class", "d")], "has no value 'd'; it has a, b, c"),
        ([Wish("glasses", "1")], "no trained label 'glasses'; it has class, odd"),
        ([Wish("odd", "1"), Wish("odd", "0")], "asked for more than once"),
        ([Wish("odd", "1", 0.0)], "the weight of odd is 0"),
        ([Wish("odd", "1", float("inf"))], "the weight of odd is inf"),
    ):
        with pytest.raises(UsageError, match=message):
            controllable.rows(wishes, known)


def test_an_image_is_the_same_at_any_batch_size_and_in_any_row(generator):
    prior, known = make_ebm(generator), {"class": make_label(generator)}
    wanted = controllable.rows([Wish("class", "all", 3.0)], known)
    whole = controllable.sample(prior, known, wanted, 5, seed=3)
    parts = controllable.sample(prior, known, wanted, 5, seed=3, batch_size=2)
    alone = controllable.sample(prior, known, wanted[1:2], 3, seed=3)
    for a, b in [*zip(whole, parts, strict=True), (whole[1][:3], alone[0])]:
        assert (a.int() - b.int()).abs().max() <= 1
    assert not torch.equal(whole[0], whole[1])
    gaussian = make_prior(generator, recipe.Prior(kind="gaussian"))
    for draw in (
        lambda prior: controllable.sample(prior, known, wanted, 2),
        lambda prior: controllable.across_layers(prior, known, wanted[0], 2),
    ):
        with pytest.raises(HebmError, match="the gaussian prior has no energy"):
            draw(gaussian)
        with pytest.raises(HebmError, match="on 3 noise levels and the prior has 4"):
            draw(make_ebm(generator, levels=4))


def test_across_layers_moves_one_layer_at_a_time(generator, monkeypatch):
    prior, known = make_ebm(generator), {"class": make_label(generator)}
    decoded = []
    monkeypatch.setattr(generator, "images", lambda u: decoded.append(u) or torch.zeros(len(u), 1, 8, 8))
    found = controllable.across_layers(prior, known, [Wish("class", "b")], 3)
    assert found.parts == [[2], [1], [2, 1]] and found.images.shape == (3, 3, 1, 8, 8)
    base, *resampled = decoded
    for u, part in zip(resampled, found.parts, strict=True):
        for l, (a, b) in enumerate(zip(generator.split(u), generator.split(base), strict=True)):
            assert torch.equal(a, b) == (generator.layer_number(l) not in part)


def test_diversity_is_the_mean_pairwise_distance():
    import numpy as np

    points = np.random.default_rng(1).normal(size=(300, 4))
    exact = np.linalg.norm(points[:, None] - points[None], axis=2)
    exact = exact.sum() / (300 * 299)
    assert label_judge.diversity(points) == pytest.approx(exact, rel=0.03)


def test_judge_counts_what_was_asked():
    class Judge:
        def predict(self, images):
            return images[:, 0, 0, 0].long()

    images = torch.tensor([0, 1, 1, 2]).reshape(4, 1, 1, 1)
    judges = {"class": (Judge(), ["a", "b", "c"])}
    assert label_judge.judge(images, [Wish("class", "b")], judges)["controllability"] == 0.5
    assert label_judge.judge(images, [Wish("class", "b", -1.0)], judges)["controllability"] == 0.5
    assert label_judge.judge(images, [Wish("class", "c", -1.0)], judges)["controllability"] == 0.75


# The command, on the digits


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run on the digits with a prior, then the class coupled to it, then an attribute learned apart."""
    root = tmp_path_factory.mktemp("runs")
    tiny = [*TINY, "--set", "train_prior.label_iterations=60", "--set", "train_prior.label_lr=5e-3"]
    attribute = ["--set", "data.attributes={odd: [1, 3, 5, 7, 9]}", "--set", "prior.labels=[odd]"]
    for stage in (
        ["train-vae", "digits"],
        ["train-prior", "digits"],
        ["train-prior", "digits", "--finetune", "--set", "prior.labels=class"],
        ["train-prior", "digits", "--finetune", *attribute, "--set", "prior.label_layers=[2]"],
    ):
        process = spawn(*stage, "--runs", root, *tiny)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err.decode()
    assert json.loads(out)["labels"]["odd"]["values"] == ["0", "1"]
    return root


def test_finetuning_leaves_the_prior_as_it_was_and_reports_accuracy(hebm, runs):
    run = runs / "digits"
    assert len(json.loads((run / "figures.json").read_text())["label_accuracy"]["class"]) == 3
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any(r["stage"] == "train-prior label class" and r["step"] == 60 for r in records)
    header = checkpoint.header(run / "label-odd.safetensors")
    assert header.kind == "label" and header.extra["values"] == ["0", "1"] and header.step == 60
    assert checkpoint.header(run / "prior-diffusion-ebm.safetensors").recipe["prior"]["labels"] == []
    status, _, err = hebm("train-prior", "digits", "--runs", runs, "--finetune", "--set", "prior.labels=class", *TINY)
    assert status == 1 and "has the label 'class' already" in one_sentence(err)


def test_controllable_draws_judges_and_writes(hebm, runs, tmp_path):
    out_path = tmp_path / "classes.png"
    command = ["controllable", "--runs", runs, "-n", 6, "--out", out_path]
    status, out, err = hebm(*command, "--class", "all", "--attribute", "odd=1:0.5", "--json")
    assert status == 0, err
    found = json.loads(out)
    assert found["picture"] == str(out_path) and Image.open(out_path).width > 300
    assert len(found["rows"]) == 10 and set(found["classifiers"]) == {"class", "odd"}
    assert found["rows"][3]["asked"] == "class 3, odd 1 x0.5" and found["rows"][3]["samples"] == 6
    assert all(0 <= row["controllability"] <= min(row["by_label"].values()) for row in found["rows"])
    # The judge is kept, and serves the next call.
    kept = runs / "digits" / "classifier-class.safetensors"
    before = kept.stat().st_mtime_ns
    status, out, err = hebm("controllable", "--runs", runs, "-n", 2, "--class", "3", "--across-layers")
    assert status == 0 and out.strip().endswith(".png") and "layers [2] resampled" in err, err
    assert kept.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "say what to condition on"),
        (["--class", "12"], 2, "has no value '12'; it has 0, 1, 2"),
        (["--attribute", "Smiling=1"], 2, "no trained label 'Smiling'; it has class, odd"),
        (["--attribute", "odd"], 2, "NAME=VALUE"),
        (["--class", "3", "--prior", "gaussian"], 1, "the gaussian prior has no energy"),
        (["--class", "all", "--across-layers"], 2, "takes one condition"),
        (["--class", "3", "--out", "x.npz"], 2, "give a .png"),
        (["--class", "3", "--temperature", "0"], 2, "--temperature is 0"),
    ],
)
def test_controllable_refuses(hebm, runs, arguments, status, message):
    found, _, err = hebm("controllable", "--runs", runs, "-n", 2, *arguments)
    assert found == status and message in one_sentence(err)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--finetune"], "prior.labels is empty"),
        (["--finetune", "--set", "prior.labels=class", "--set", "prior.levels=6"], "has 3; set it to that"),
        (["--finetune", "--set", "prior.labels=[class, class]"], "names class twice"),
        (["--finetune", "--set", "prior.labels=class", "--set", "prior.label_layers=[]"], "prior.label_layers is []"),
        (["--finetune", "--set", "prior.labels=class", "--set", "data.attributes={odd: [1]}"], "odd is now 1, and"),
        (["--finetune", "--set", "prior.labels=class", "--set", "data.attributes={a/b: [1]}"], "an attribute 'a/b'"),
        (["--finetune", "--set", "prior.labels=hats"], "no label 'hats'; they have class"),
        (["--set", "prior.labels=class", "--set", "prior.label_layers=[9]", "--set", "prior.kind=ebm"], "layer 9"),
        (["--set", "prior.labels=3"], "prior.labels is 3, but must be a list of names"),
    ],
)
def test_train_prior_refuses_labels(hebm, runs, settings, message):
    status, _, err = hebm("train-prior", "digits", "--runs", runs, *TINY, *settings)
    assert status in (1, 2) and message in one_sentence(err)
