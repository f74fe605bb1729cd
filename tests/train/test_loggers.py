"""What follows a training beside metrics.jsonl: it has the same numbers, and resuming takes back what is done again."""

import csv
import importlib.util

import pytest
from tiny import DIGITS

from hebmtool import api, ranks, recipe
from hebmtool.errors import HebmError
from hebmtool.run.folder import Run
from hebmtool.train import loggers

SHORT = [*DIGITS, "train_vae.sample_every=2", "train_vae.log_every=1"]


def follow(root, *more, resume=False):
    """Stage one with loggers, as the command trains it."""
    return api.train_vae("digits", [*SHORT, *more], runs=root, device="cpu", resume=resume)


def rows(run) -> list[dict]:
    with open(run.path / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def told(run, stage):
    """(scalars {tag: {step: value}}, steps with pictures) as TensorBoard reads them."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(run.path / "tensorboard" / stage))
    events.Reload()
    tags = events.Tags()
    scalars = {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in tags["scalars"]}
    return scalars, [event.step for tag in tags["images"] for event in events.Images(tag)]


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """A run stopped after 3 updates in no checkpoint of its own, and resumed to 5."""
    pytest.importorskip("tensorboard")
    root = tmp_path_factory.mktemp("followed")
    words = "loggers=[csv, tensorboard]"
    run = follow(root, words, "train_vae.iterations=3")
    # What a killed training had told beyond its checkpoint.
    with loggers.following(run, recipe.load("digits", [words])):
        run.log("train-vae", 4, loss=1e9, odd=1.0)
    assert rows(run)[-1]["loss"] == "1000000000.0" and told(run, "train-vae")[0]["loss"][4] == 1e9
    return follow(root, words, "train_vae.iterations=5", resume=True)


def test_the_table_has_what_metrics_jsonl_has(followed):
    records = [record for record in followed.metrics() if record["stage"] == "train-vae"]
    table = [row for row in rows(followed) if row["stage"] == "train-vae"]
    assert [int(row["step"]) for row in table] == [r["step"] for r in records] == [1, 2, 3, 4, 5]
    for row, record in zip(table, records, strict=True):
        assert float(row["loss"]) == record["loss"]
        assert [float(row[f"kl.{i}"]) for i in (1, 2)] == record["kl"]
    assert "odd" not in table[0]  # the column was of a record that is taken back
    assert {row["stage"] for row in rows(followed)} >= {"train-vae", "train-vae-test"}


def test_tensorboard_reads_the_same_and_forgets_what_is_done_again(followed):
    scalars, _ = told(followed, "train-vae")
    expected = {record["step"]: record["loss"] for record in followed.metrics("train-vae")}
    assert scalars["loss"] == pytest.approx(expected, rel=1e-5) and 5 in expected
    assert "kl.2" in scalars and not scalars.get("odd")  # the tag stands there, with nothing in it
    assert set(told(followed, "train-vae-test")[0]) >= {"elbo", "bits_per_dim"}


def test_tensorboard_has_the_sample_grids(followed):
    _, pictures = told(followed, "train-vae")
    assert pictures == [int(path.stem[-7:]) for path in sorted(followed.samples_dir.glob("generator-*.png"))]
    assert 5 in pictures and len(pictures) >= 3


def test_stage_two_follows_too_and_leaves_stage_one_alone(followed):
    before = told(followed, "train-vae")
    keys = [*DIGITS, "loggers=csv", "prior.kind=ebm", "train_prior.log_every=1"]
    api.train_prior("digits", keys, runs=followed.path.parent, device="cpu")
    assert [int(row["step"]) for row in rows(followed) if row["stage"] == "train-prior ebm"] == [1, 2, 3]
    assert told(followed, "train-vae") == before
    assert followed.recipe().loggers == ["csv"]


@pytest.mark.parametrize("word", loggers.EXTRAS)
def test_one_that_is_not_installed_is_told_before_anything_is_written(tmp_path, monkeypatch, word):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == word else find(name, *more))
    with pytest.raises(HebmError, match=rf'loggers has {word}.*pip install "hebmtool\[{word}\]"'):
        follow(tmp_path, f"loggers={word}")
    assert not list(tmp_path.iterdir())


def test_the_first_of_several_processes_alone_is_followed(tmp_path, monkeypatch):
    run = Run(tmp_path)
    monkeypatch.setattr(ranks, "is_first", lambda: False)
    with loggers.following(run, recipe.load("digits", ["loggers=csv"])):
        assert run.followers is None


def test_one_that_fails_is_left_out_and_training_goes_on(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("the server is gone")

    monkeypatch.setattr(loggers.Table, "log", fail)
    run = follow(tmp_path, "loggers=csv")
    assert [record["step"] for record in run.metrics("train-vae")] == [1, 2, 3, 4, 5]
    assert capsys.readouterr().err.count("the logger csv fails and is left out (the server is gone)") == 1


def test_weights_and_biases_is_told_offline_where_there_is_no_key(tmp_path, monkeypatch, capsys):
    wandb = pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    if wandb.Settings().api_key:
        pytest.skip("there is a key of W&B here")
    run = Run(tmp_path / "run")
    with loggers.following(run, recipe.load("digits", ["loggers=wandb"])):
        run.log("train-vae", 1, loss=2.5, kl=[0.5, 1.5])
        told = run.followers._each["wandb"]._run
        summary = {key: told.summary[key] for key in ("train-vae/loss", "train-vae/kl.2", "train-vae/update")}
        assert told.settings._offline
    assert summary == {"train-vae/loss": 2.5, "train-vae/kl.2": 1.5, "train-vae/update": 1}
    assert list((run.path / "wandb").glob("offline-*/*.wandb")), "nothing was written to upload later"
    assert "wandb sync" in capsys.readouterr().err
