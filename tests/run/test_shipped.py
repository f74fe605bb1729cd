"""Runs that come with the package."""

import zlib

import pytest

from hebmtool.errors import HebmError
from hebmtool.run import shipped
from hebmtool.run.folder import Run


@pytest.fixture
def models(tiny, tmp_path, monkeypatch):
    """One, called tinier."""
    folder = tmp_path / "models"
    (folder / "tinier").mkdir(parents=True)
    for name in ("recipe.yaml", "generator.safetensors"):
        (folder / "tinier" / name).write_bytes((tiny / "digits" / name).read_bytes())
    monkeypatch.setattr(shipped, "FOLDER", folder)
    return folder


def test_it_is_copied_once_beside_other_runs(models, tmp_path):
    root = tmp_path / "runs"
    run = Run.open("tinier", root)
    assert run.path == root / "tinier-shipped" and run.priors() == ["gaussian"]
    run.set_figure("generator", {"elbo": -1.0})
    assert Run.open("tinier", root).figures() == {"generator": {"elbo": -1.0}}
    assert sorted(path.name for path in root.iterdir()) == ["tinier-shipped"]
    assert (models / "tinier" / "generator.safetensors").stat().st_mtime == run.generator_path.stat().st_mtime


def test_a_run_of_that_name_comes_first(models, copied):
    (copied / "digits").rename(copied / "tinier")
    assert Run.open("tinier", copied).path == copied / "tinier"
    assert not (copied / "tinier-shipped").exists()


def test_where_it_cannot_be_copied_is_said(models, tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(HebmError, match="comes with the package, and cannot be copied"):
        Run.open("tinier", tmp_path / "runs")


def test_it_is_named_where_a_run_is_missing(models, tmp_path):
    with pytest.raises(HebmError, match="did you mean 'tinier'"):
        Run.open("tinyer", tmp_path)
    with pytest.raises(HebmError, match=r"comes with the package \(tinier\)"):
        Run.open(None, tmp_path)


@pytest.mark.parametrize("name", shipped.names())
def test_every_one_is_whole(name, tmp_path):
    run = Run.open(name, tmp_path)
    assert len(run.priors()) > 1 and run.recipe().data.path is None
    assert not list(run.path.glob("*.train.*")) and (run.path / "README.md").is_file()


def test_the_wheel_stays_below_twenty_megabytes():
    packed = sum(len(zlib.compress(path.read_bytes())) for path in shipped.FOLDER.rglob("*.*"))
    assert packed < 18.5e6, "what else is in it takes 1 MB"
