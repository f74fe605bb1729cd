"""Labels coupled to an energy: what a condition adds, what it makes the chain sample, and learning p(y | z, t)."""

import numpy as np
import pytest
import torch
from toys import ENERGY_KINDS, Twins, toy_label, toy_prior

from hebmtool import data, recipe
from hebmtool.chains import CHAINS
from hebmtool.errors import HebmError, UsageError
from hebmtool.noise import Noise
from hebmtool.prior import Schedule, labels
from hebmtool.prior.energy import chosen_layers
from hebmtool.prior.labels import Condition, LabelEnergy


def test_log_prob_is_the_softmax_of_the_summed_energies(generator):
    label, t = toy_label(generator), torch.tensor([0, 1, 2, 0, 1])
    walk = generator.walk(torch.randn(5, generator.D))
    found = label.log_prob(walk, t)
    assert found.shape == (5, 3)
    assert torch.allclose(found.exp().sum(1), torch.ones(5))
    logits = sum(layer for layer in label.energy(walk, t).unbind(1))
    assert torch.allclose(found, logits - logits.logsumexp(1, keepdim=True), atol=1e-6)
    # The levels matter.
    assert not torch.allclose(found, label.log_prob(walk, torch.zeros_like(t)))


@pytest.mark.parametrize("layers", [[2], [1], [1, 2]])
def test_only_the_coupled_layers_are_read(generator, layers):
    label, read = toy_label(generator, layers=layers), [generator.layer_number(number) for number in layers]
    walk = generator.walk(torch.randn(4, generator.D))
    t = torch.zeros(4, dtype=torch.long)
    assert label.energy(walk, t).shape == (4, len(layers), 3)
    before = label.log_prob(walk, t)
    for l in range(generator.L):
        moved = generator.walk(generator.join(walk.u))
        moved.z = [z + (k == l) for k, z in enumerate(moved.z)]
        assert torch.equal(before, label.log_prob(moved, t)) == (l not in read)


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("kind", ENERGY_KINDS)
def test_a_condition_adds_its_weighted_log_probability_to_the_log_density(generator, kind, chain):
    prior, label = toy_prior(generator, kind, chain=chain), toy_label(generator)
    other = toy_label(generator, "odd", ("0", "1"))
    u, y = torch.randn(4, generator.D), torch.tensor([0, 1, 2, 1])
    t = torch.zeros(4, dtype=torch.long)
    walk = generator.walk(u)
    given = prior.given([Condition(label, y, 0.5), Condition(other, y % 2, -2.0)])
    added = 0.5 * label.log_prob(walk, t)[range(4), y] - 2.0 * other.log_prob(walk, t)[range(4), y % 2]
    assert torch.allclose(given.log_density(u) - prior.log_density(u), added, atol=1e-4)
    assert prior.conditions == () and given.energy is prior.energy
    # With one label the values' coupled energies have the marginal for their logsumexp.
    each = torch.stack([prior.given([Condition(label, torch.full_like(y, k))]).log_density(u) for k in range(3)])
    assert torch.allclose(each.logsumexp(0), prior.log_density(u), atol=1e-4)


@pytest.mark.parametrize("kind", ENERGY_KINDS)
def test_the_chain_follows_the_condition_at_every_level(kind):
    """F = 0 and log p(y | u_t) = m . u: at level t the chain's law given u_{t+1} is N(a u_{t+1} + sigma^2 m, sigma^2),
    so that with the same m at all levels the means add up; and p(u_0 | y), where it ends, is N(m, I)."""
    generator, m, n = Twins(), 0.5, 1500
    prior = toy_prior(generator, kind, weight=0, steps=14)
    given = prior.given([lambda walk, t: m * generator.join(walk.u).sum(1)])
    stages = list(given.trajectory(Noise(0, range(n), generator.D)))
    expected = [0.0]
    for t in reversed(range(prior.T)):
        a, sigma = (c.item() for c in prior.schedule.conditional(torch.tensor([t])))
        expected.append(a * expected[-1] + sigma**2 * m)
    if prior.T > 1:  # further steps on p(u_0 | y) itself
        assert abs(expected[-1] - m) > 0.15
        expected.append(m)
    # 1500 x 8 numbers: a standard error of 0.009.
    assert [u.mean().item() for u in stages] == pytest.approx(expected, abs=0.04)
    assert prior.sample(Noise(0, range(n), generator.D)).mean().item() == pytest.approx(0, abs=0.04)


def test_a_label_that_is_in_the_latents_is_learned():
    """y is the sign of the top layer's mean; noised latents tell it less well."""
    generator = Twins()
    energy = recipe.Energy(reads="z+state", width=8, blocks=1)
    label = LabelEnergy("up", ("0", "1"), generator, recipe.Prior(energy=energy))
    schedule, optimizer = Schedule(3), torch.optim.Adam(label.parameters(), lr=2e-2)

    def draw(n, t):
        u = torch.randn(n, generator.D)
        y = (u[:, generator.slices[0]].mean(1) > 0).long()
        return generator.walk(schedule.diffuse(u, t)[0]), y

    for _ in range(80):
        t = torch.randint(3, (64,))
        walk, y = draw(64, t)
        loss = torch.nn.functional.nll_loss(label.log_prob(walk, t), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    right = []
    for level in range(3):
        t = torch.full((2000,), level)
        walk, y = draw(2000, t)
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
    np.save(tmp_path / "x.npy", np.zeros((20, 8, 8), np.uint8))
    config = recipe.Data(source="array", path=str(tmp_path / "x.npy"))
    with pytest.raises(HebmError, match="they have none at all"):
        labels.values_of("class", data.load(config, "train"), config)
    config = recipe.Data(source="array", path=str(tmp_path / "x.npy"), attributes={"odd": ["1"]})
    with pytest.raises(HebmError, match="have no labels"):
        data.load(config, "train")


@pytest.mark.parametrize("layers", [[0], [1, 3]])
def test_a_coupled_layer_must_exist(generator, layers):
    key = "prior.label_layers"
    assert chosen_layers(generator, [1, 2], key) == [0, 1] and chosen_layers(generator, [2], key) == [0]
    with pytest.raises(UsageError, match=f"{key} names layer .*, but the generator has 1 to 2"):
        chosen_layers(generator, layers, key)
