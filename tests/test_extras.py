"""What only some uses need is an extra: nothing else imports it, and what needs it says how it is had."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from hebmtool import recipe
from hebmtool.data import load as load_images
from hebmtool.errors import HebmError
from hebmtool.prior import FlowPrior

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
OPTIONAL = ("zuko", "lmdb", "huggingface_hub", "tensorboard", "wandb")


@pytest.fixture
def without(monkeypatch):
    """Make a package one that cannot be imported."""

    def hide(name: str) -> None:
        for module in [m for m in sys.modules if m.partition(".")[0] == name]:
            monkeypatch.delitem(sys.modules, module)
        monkeypatch.setitem(sys.modules, name, None)

    return hide


def test_a_flow_prior_without_zuko_is_a_sentence(without, monkeypatch):
    without("zuko")
    monkeypatch.delitem(sys.modules, "hebmtool.prior.couplings", raising=False)
    with pytest.raises(HebmError, match=r'needs zuko, which is not installed.*pip install "hebmtool\[flow\]"'):
        FlowPrior.from_recipe(recipe.load("digits-flow"), (1, 8, 8))


def test_lsun_without_lmdb_is_a_sentence(without, tmp_path):
    without("lmdb")
    folder = tmp_path / "church_outdoor_train_lmdb"
    folder.mkdir()
    (folder / "data.mdb").write_bytes(b"")
    settings = recipe.from_dict({"data": {"source": "lsun", "path": str(tmp_path), "size": 8}})
    with pytest.raises(HebmError, match=r'needs lmdb, which is not installed.*pip install "hebmtool\[lsun\]"'):
        load_images(settings.data, "train")


def test_the_package_imports_none_of_them():
    script = f"""
import sys
for name in {OPTIONAL}: sys.modules[name] = None
import hebmtool.cli.main, hebmtool.api, hebmtool.demo, hebmtool.train.loggers, hebmtool.train.one_stage
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=600)


def test_every_one_has_an_extra_and_the_tests_have_all_they_need():
    brought = {name: {line.partition(">")[0] for line in lines} for name, lines in EXTRAS.items()}
    base = {line.partition(">")[0] for line in PROJECT["dependencies"]}
    for package in OPTIONAL:
        assert package not in base and [name for name, packages in brought.items() if package in packages]
    [own] = [line for line in EXTRAS["test"] if line.startswith("hebmtool[")]
    assert set(own[len("hebmtool[") : -1].split(",")) >= {"flow", "hub", "lsun", "tensorboard"}
    assert "clean-fid" in base
