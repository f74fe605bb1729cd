"""What a recipe will take, said before anything is spent."""

import json

import pytest
from tiny import DIGITS, options


def test_a_plan_has_every_stage_in_words_and_as_json(hebm):
    small = options([*DIGITS, "prior.labels=[class]"])
    status, out, err = hebm("plan", "digits", *small, "--gpus", 2, "--gpu", "a100", "--json")
    assert status == 0, err
    found = json.loads(out)
    assert (found["latent_dimensions"], found["layers"], found["gpu"], found["gpus"]) == (40, 2, "a100", 2)
    assert [stage["stage"] for stage in found["stages"]] == [
        *("train-vae", "train-prior diffusion-ebm", "train-prior label class")
    ]
    for stage in found["stages"]:
        assert stage["flops_per_update"] > stage["flops_per_image"] > 0 < stage["memory"]
        seconds = stage["flops_per_update"] / (2 * 19.5e12 * 0.2)
        assert stage["hours"] * 3600 == pytest.approx(stage["updates"] * seconds, rel=1e-7)  # JSON has eight digits
        assert stage["measured"] is None


def test_what_cannot_be_planned_is_told(hebm):
    for asked, said in (
        (["--gpu", "h1000"], "there is no GPU 'h1000' here; choose of h100, h200, a100, l4, rtx4090; did you mean"),
        (["--set", "data.source=folder"], "set data.size"),
    ):
        status, out, err = hebm("plan", "digits", *asked)
        assert status == 2 and not out and said in err
