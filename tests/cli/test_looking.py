"""`hebm info` and `hebm recipes`."""

import json


def test_info_shows_layers_and_priors(hebm, tiny):
    status, out, _ = hebm("info", "digits", "--runs", tiny, "--json")
    found = json.loads(out)
    assert status == 0
    assert [layer["layer"] for layer in found["layers"]] == [2, 1]
    assert [layer["resolution"] for layer in found["layers"]] == [[2, 2], [4, 4]]
    assert all(layer["kl"] is not None for layer in found["layers"])
    assert [prior["kind"] for prior in found["priors"]] == ["gaussian", "ebm", "diffusion-ebm"]
    status, out, _ = hebm("info", "digits", "--runs", tiny)
    assert status == 0 and "KL (nats)" in out and "prior diffusion-ebm: 3 updates" in out


def test_recipes_are_listed_and_shown(hebm):
    status, out, _ = hebm("recipes")
    names = [line.split("\t")[0] for line in out.splitlines()]
    assert status == 0 and {"digits", "mnist", "cifar10", "celeba64", "celebahq256", "lsun64"} <= set(names)
    status, out, _ = hebm("recipes", "show", "digits")
    assert status == 0 and "# " in out and "prior:" in out
