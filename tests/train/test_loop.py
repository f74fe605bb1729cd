"""What all trainings share: the loop, averages, saving, and stopping on a signal."""

import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from tiny import DIGITS, train_digits
from torch import nn

from hebmtool import rows
from hebmtool.errors import HebmError
from hebmtool.generator import Tower
from hebmtool.generator.layers import SpectralPenalty
from hebmtool.recipe import Recipe, TrainPrior, load
from hebmtool.run import checkpoint
from hebmtool.run.folder import Run
from hebmtool.train import vae
from hebmtool.train.loop import Ema, Updates, load_training, save_training, warm_cosine
from hebmtool.train.stopping import StopSignals


def updates(run, calls, total=7, step=0, kept=None, **config):
    config = TrainPrior(**({"save_every": 3, "sample_every": 2, "log_every": 4} | config))
    return Updates(
        run,
        "stage",
        0,
        config,
        total,
        step,
        save=lambda step: calls.append(("save", step)),
        show=lambda step: calls.append(("show", step)),
        kept=kept,
    )


def test_what_stands_between_updates(tmp_path):
    run, calls, drawn = Run(tmp_path), [], []
    with updates(run, calls) as these:
        for step in these:
            drawn.append(torch.rand(()).item())
            if these.to_log:
                these.log(loss=float(step))
    assert calls == [("show", 2), ("save", 3), ("show", 4), ("show", 6), ("save", 6), ("save", 7)]
    assert [(record["step"], record["loss"]) for record in run.metrics("stage")] == [(4, 3), (7, 6)]
    # Random numbers are the step's own, wherever training began.
    with updates(run, calls, step=5) as these:
        assert [torch.rand(()).item() for _ in these] == drawn[5:]


@pytest.mark.parametrize("at", [2, 6])
def test_a_signal_stops_after_the_update_it_came_in_and_after_saving(tmp_path, at):
    calls = []
    said = f"stopped by SIGTERM after update {at + 1}; saved"
    with pytest.raises(HebmError, match=said), updates(Run(tmp_path), calls) as these:
        for step in these:
            if step == at:
                os.kill(os.getpid(), signal.SIGTERM)
    assert calls[-1] == ("save", at + 1) and calls.count(("save", at + 1)) == 1
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e16])
def test_a_loss_that_ran_away_changes_nothing(tmp_path, value):
    module = nn.Linear(1, 1)
    before, ema = [p.clone() for p in module.parameters()], Ema(module, 0.5)
    optimizer = torch.optim.Adam(module.parameters())
    with updates(Run(tmp_path), []) as these:
        for _ in these:
            loss = module(torch.ones(1, 1)).sum() * 0 + value
            with pytest.raises(HebmError, match="diverged at update 1: .*lower the.knob"):
                these.add(loss)
                these.descend(optimizer, module, ema, "the.knob")
            break
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


def test_what_ran_away_ahead_of_being_read_is_never_saved(tmp_path, monkeypatch):
    """As on an accelerator, which is asked now and then: the first update that ran away is named, whatever came after
    it, and nothing is logged or saved from there on."""
    module, calls, check = nn.Linear(1, 1), [], Updates.check
    optimizer, ema = torch.optim.Adam(module.parameters()), Ema(module, 0.5)
    monkeypatch.setattr(Updates, "check", lambda self: None)
    with (
        pytest.raises(HebmError, match="diverged at update 5: loss nan, .*lower the.knob"),
        updates(Run(tmp_path), calls, save_every=4, sample_every=10) as these,
    ):
        for step in these:
            loss = module(torch.ones(1, 1)).sum() * (float("nan") if step == 4 else 1.0)
            these.add(loss)
            these.descend(optimizer, module, ema, "the.knob")
            if step == 5:
                monkeypatch.setattr(Updates, "check", check)
    assert calls == [("save", 4)] and module.weight.isnan().all()


def test_parts_are_clipped_apart(tmp_path):
    module = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    optimizer, ema = torch.optim.SGD(module.parameters(), lr=1.0), Ema(module, 0.5)
    before = [p.item() for p in module.parameters()]
    with updates(Run(tmp_path), [], clip=1e-3) as these:
        for _ in these:
            loss = 5 * module[0].weight.sum() - 7 * module[1].weight.sum()
            these.add(loss)
            assert these.descend(optimizer, module, ema, "", list(module)).tolist() == pytest.approx([5, 7])
            break
    moved = [p.item() - b for p, b in zip(module.parameters(), before, strict=True)]
    assert moved == pytest.approx([-1e-3, 1e-3], rel=1e-2)


def test_a_finished_training_is_left_as_it_is(tmp_path):
    """Nothing to make and nothing missing: its files keep their time, and what was trained on them stays theirs."""
    kept, calls = tmp_path / "generator.safetensors", []
    with updates(Run(tmp_path), calls, step=7, kept=kept) as these:
        assert list(these) == []
    assert calls == [("save", 7)]  # what sampling reads was not there
    for step, expected in ((7, []), (6, [("save", 7)])):
        checkpoint.save(kept, {"w": torch.ones(1)}, kind="generator", recipe={}, step=step)
        calls.clear()
        with updates(Run(tmp_path), calls, step=7, kept=kept) as these:
            assert list(these) == []
        assert calls == expected


def test_learning_rate_warms_up_and_follows_a_cosine():
    rates = [warm_cosine(step, 100, 1e-2, 1e-4, 10) for step in range(101)]
    assert rates[0] == pytest.approx(1e-3) and rates[9] == pytest.approx(1e-2) == rates[10]
    assert rates[55] == pytest.approx((1e-2 + 1e-4) / 2) and rates[100] == pytest.approx(1e-4)
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))
    assert warm_cosine(5, 5, 1.0, 0.1, 5) == pytest.approx(1.0)


def test_averages_forget_the_start_and_copy_what_is_no_parameter():
    module = nn.BatchNorm1d(2)
    ema = Ema(module, 0.9)
    values = [1.0, 3.0, -2.0]
    expected = module.weight[0].item()
    for step, value in enumerate(values):
        with torch.no_grad():
            module.weight.fill_(value)
            module.running_mean.fill_(value)
            module.num_batches_tracked.fill_(step)
        ema.update(module, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert ema.tensors["weight"][0].item() == pytest.approx(expected)
    assert ema.tensors["running_mean"][0].item() != -2.0  # averaged like a parameter
    assert ema.tensors["num_batches_tracked"].item() == 2
    # Late, the decay is what was asked for.
    before = ema.tensors["weight"].clone()
    ema.update(module, 10_000)
    assert torch.allclose(ema.tensors["weight"], 0.9 * before + 0.1 * module.weight)


def test_what_is_saved_of_a_training_is_all_of_it(tmp_path):
    def made():
        module = nn.Linear(3, 2)
        return module, Ema(module, 0.9), torch.optim.Adam(module.parameters(), lr=0.1), nn.Linear(1, 1)

    module, ema, optimizer, extra = made()
    for step in range(3):
        optimizer.zero_grad()
        module(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
        ema.update(module, step)
    path = tmp_path / "x.train.safetensors"
    save_training(path, Recipe(), 3, "a training", module, ema, optimizer, extra, {"origin": "here"})
    assert checkpoint.header(path).extra == {"origin": "here"}
    other, other_ema, other_optimizer, other_extra = made()
    assert load_training(path, "a training", other, other_ema, other_optimizer, other_extra) == 3
    for a, b in ((module, other), (extra, other_extra)):
        assert all(torch.equal(x, b.state_dict()[key]) for key, x in a.state_dict().items())
    assert all(torch.equal(value, other_ema.tensors[key]) for key, value in ema.tensors.items())
    a, b = (checkpoint.flatten_optimizer(each) for each in (optimizer, other_optimizer))
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    # What is restored moves apart from what it was read into.
    with torch.no_grad():
        other.weight.add_(1)
    assert not torch.equal(other_ema.tensors["weight"], other.weight)
    with pytest.raises(HebmError, match="holds a 'a training' checkpoint where a 'b training' one is needed"):
        load_training(path, "b training", other, other_ema, other_optimizer)


# Signals


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_first_signal_is_noted_and_a_further_interrupt_raises(name):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), StopSignals() as stop:
        assert not stop.requested and stop.signal is None
        signal.raise_signal(signal.Signals[name])
        assert stop.requested and stop.signal == name
        signal.raise_signal(signal.SIGTERM)
        assert stop.signal == name
        signal.raise_signal(signal.SIGINT)
    assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))


def test_a_terminal_that_closes_stops_a_training_unless_it_was_told_not_to(heard):
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert stop.signal == "SIGHUP"
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert not stop.requested


def test_outside_the_main_thread_signals_are_left_alone():
    found = []

    def work():
        with StopSignals() as stop:
            found.append((stop.requested, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(False, signal.getsignal(signal.SIGINT))]


def learned(tiny_like: Path, stage: str, *overrides: str) -> dict[str, torch.Tensor]:
    """Weights after the few updates of a stage of the tiny run, otherwise computed."""
    run = train_digits(tiny_like, *overrides, kinds=("diffusion-ebm",) if stage == "prior" else ())
    path = run.prior_train_path("diffusion-ebm") if stage == "prior" else run.generator_train_path
    return {key: value for key, value in checkpoint.load(path)[0].items() if key.startswith("model.")}


def gradients_of_stage_one(accumulate: int, training: bool) -> torch.Tensor:
    """Of one batch in so many turns, BatchNorms with statistics of the images they see, or with those they have."""
    settings = load("digits", [*DIGITS, "train_vae.kl_balance=false"])
    torch.manual_seed(0)
    generator = Tower(settings.generator, (1, 8, 8)).train()
    x = torch.rand(12, 1, 8, 8) * torch.linspace(0, 1, 12)[:, None, None, None]  # each turn's are of another mean
    for norm in (m for m in generator.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.train(training)
    penalty, sizes = SpectralPenalty(generator), vae.pixels(generator)
    for part in rows.parts(len(x), accumulate):
        torch.manual_seed(1)
        with rows.computing(part):
            loss, _, _ = vae.objective(generator, penalty, settings.train_vae, 1.0, sizes, x[part.rows])
            (part.share * loss).backward()
    return torch.cat([p.grad.flatten() for p in generator.parameters() if p.grad is not None])


def test_turns_of_stage_one_add_up_to_its_gradient_but_for_batchnorm():
    apart = []
    for training in (False, True):
        whole, turns = (gradients_of_stage_one(n, training) for n in (1, 3))
        apart.append((turns - whole).norm() / whole.norm())
    assert apart[0] < 1e-5 and apart[1] > 1e-3


@pytest.mark.parametrize(
    ("stage", "overrides"), [("prior", ["train_prior.accumulate=3"]), ("vae", ["train_vae.recompute=true"])]
)
def test_what_spares_memory_changes_nothing(tmp_path, stage, overrides):
    """A batch in turns, and activations computed again; BatchNorm's running statistics included."""
    one = learned(tmp_path / "a", stage, "prior.labels=[]")
    other = learned(tmp_path / "b", stage, "prior.labels=[]", *overrides)
    assert one.keys() == other.keys()
    for key, value in one.items():
        torch.testing.assert_close(other[key], value, rtol=1e-4, atol=1e-6, msg=lambda said, key=key: f"{key}: {said}")
