"""The loop that all trainings share."""

import os
import signal

import pytest
import torch
from torch import nn

from hebmtool.errors import HebmError
from hebmtool.recipe import TrainPrior
from hebmtool.run.folder import Run
from hebmtool.train.loop import Ema, Updates


def updates(run, calls, total=7, step=0, **config):
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
                these.descend(loss, optimizer, module, ema, "the.knob")
            break
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


def test_parts_are_clipped_apart(tmp_path):
    module = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    optimizer, ema = torch.optim.SGD(module.parameters(), lr=1.0), Ema(module, 0.5)
    before = [p.item() for p in module.parameters()]
    with updates(Run(tmp_path), [], clip=1e-3) as these:
        for _ in these:
            loss = 5 * module[0].weight.sum() - 7 * module[1].weight.sum()
            assert these.descend(loss, optimizer, module, ema, "", list(module)) == pytest.approx([5, 7])
            break
    moved = [p.item() - b for p, b in zip(module.parameters(), before, strict=True)]
    assert moved == pytest.approx([-1e-3, 1e-3], rel=1e-2)
