"""What an update is said to cost: against a count by hand, and against what one takes on a CPU."""

import sys

import pytest
import torch
from tiny import DIGITS, FLOW
from torch import nn

from hebmtool import recipe
from hebmtool.errors import UsageError
from hebmtool.train import cost
from hebmtool.train.cost import META, Live, Stage, counted, image_shape, stages

MEASURED = """
import torch
from hebmtool import recipe
from hebmtool.api.planning import measured
from hebmtool.train.cost import stages
torch.set_num_threads(1)
[stage, _] = stages(recipe.load("digits", ["train_vae.batch_size=768"]), torch.device("cpu"))
stage.update(2)
print(measured(stage, 1)["memory"])
"""


def made(net: nn.Module, shape: tuple[int, int, int], batch: int = 4) -> Stage:
    return Stage("s", 10, batch, "float32", [net], net, lambda x: net(x).square().sum(), shape, META)


def test_arithmetic_is_that_of_a_count_by_hand():
    """Two for a multiplication and an addition; the gradient of the weights costs as much again, that of the input too,
    where it is wanted."""
    with META:
        net = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Flatten(), nn.Linear(5 * 8 * 8, 7))
    convolution, product = 2 * 3 * 5 * 9 * 64, 2 * 5 * 64 * 7
    for n in (1, 6):
        assert counted(made(net, (3, 8, 8)), n)[0] == n * (2 * convolution + 3 * product)


def test_a_chain_counts_by_its_steps():
    """One gradient of F more, for each step more, forwards and back."""
    settings = recipe.load("digits", [*DIGITS, "prior.objective=recovery", "prior.steps=7"])
    stage = stages(settings)[1]
    found = cost.cost(stage)
    assert found.flops == counted(stage, stage.batch, 7)[0]
    flops = [counted(stage, stage.batch, K)[0] for K in (3, 4)]
    assert flops[1] - flops[0] == found.flops_per_step * stage.batch > 0


def test_the_published_networks_are_counted_too():
    published = [
        "prior.energy.form=published",
        "prior.energy.reads=z",
        "prior.objective=recovery",
        "train_prior.precision=bf16",
    ]
    assert cost.cost(stages(recipe.load("digits", [*DIGITS, *published]))[1]).flops_per_step > 0


def test_memory_is_what_lives_at_once():
    with Live(META) as live:
        a = torch.empty(1000, device=META)
        b = a + 1
        view = b[:10]
        del b
        assert live.now == live.peak == 8000
        del view, a
        assert live.now == 0
        torch.empty(500, device=META)
        torch.zeros(10_000)
    assert live.now == 0 and live.peak == 8000


@pytest.mark.skipif(sys.platform != "linux", reason="the process's peak is read from /proc")
def test_memory_is_within_a_fifth_of_what_a_process_takes(child):
    predicted = cost.cost(stages(recipe.load("digits", ["train_vae.batch_size=768"]))[0]).memory
    status, out, err = child(sys.executable, "-c", MEASURED).finish()
    assert status == 0, err
    measured = int(out)
    assert predicted == pytest.approx(measured, rel=0.2)


def test_every_stage_is_counted_at_its_recipe():
    vae, prior = stages(recipe.load("digits", DIGITS))
    assert (vae.name, vae.updates, vae.batch) == ("train-vae", 5, 16)
    assert (prior.name, prior.updates, prior.batch) == ("train-prior diffusion-ebm", 3, 8)
    finish = ["prior.chain=hmc", "prior.steps=5", "train_prior.finish=0.4"]
    _, prior, last = stages(recipe.load("digits", [*DIGITS, *finish]))
    assert (prior.updates, last.updates, prior.steps, last.steps) == (2, 1, 0, 5)
    assert last.name == "train-prior diffusion-ebm, finish" and last.disk == 0 < prior.disk
    assert cost.cost(last).flops > 2 * cost.cost(prior).flops, "five gradients more"
    for keys, K in ((["train_prior.redraw=3"], 2), (["train_prior.buffer=8", "train_prior.fresh=0.25"], 8)):
        assert stages(recipe.load("digits", [*DIGITS, *finish, *keys]))[-1].steps == K, "5 / 3; 0.25 * 5 + 0.75 * 9"
    with pytest.raises(UsageError, match="draws by an exact chain, and prior.chain is underdamped"):
        stages(recipe.load("digits", [*DIGITS, "train_prior.finish=0.4"]))
    *_, label = stages(recipe.load("digits", [*DIGITS, "prior.labels=[class]"]))
    assert (label.name, label.updates, label.batch) == ("train-prior label class", 2, 8)
    assert cost.cost(label).flops > 0 and label.learned.values == list(range(10))
    [flow] = stages(recipe.load("digits-flow", FLOW))
    assert flow.steps == 3 and flow.parameters > 0
    assert image_shape(recipe.load("cifar10")) == (3, 32, 32)
    with pytest.raises(UsageError, match="data.source folder may have any size.*set data.size"):
        image_shape(recipe.load("digits", ["data.source=folder"]))
