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


def test_keys_are_listed_as_lines_and_as_json(hebm):
    status, out, _ = hebm("recipes", "keys", "prior.levels")
    assert status == 0 and out.split("\t")[:2] == ["prior.levels", "3"]
    status, out, _ = hebm("recipes", "keys", "--json")
    assert status == 0 and {"name", "takes", "default", "description"} == set(json.loads(out.splitlines()[0]))


def test_a_recipe_of_ones_own_is_made_checked_and_never_replaced(hebm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hebm("recipes", "new", "cats", "--from", "cifar10-small")[:2] == (0, "cats.yaml\n")
    assert hebm("recipes", "check", "cats.yaml", "mnist")[:2] == (0, "cats.yaml\tcats\nmnist\tmnist\n")
    status, _, err = hebm("recipes", "new", "cats")
    assert status == 1 and "cats.yaml exists" in err
    assert hebm("recipes", "new", "cats", "--force")[0] == 0
    (tmp_path / "cats.yaml").write_text("prior: {level: 3}")
    status, _, err = hebm("recipes", "check", "cats.yaml")
    assert status == 2 and "unknown key prior.level" in err and "did you mean 'levels'" in err


def test_the_schema_is_json(hebm):
    status, out, _ = hebm("recipes", "schema")
    assert status == 0 and json.loads(out)["properties"]["prior"]
