"""Images of updates, read ahead by other processes: the same, in order, quietly, and over when the training is."""

import os
import signal
import sys
from multiprocessing import active_children, reduction

import pytest
import safetensors.torch
import torch
from pictures import error, picture, write
from tiny import CPU, DIGITS
from torch.utils.data import get_worker_info

from hebmtool import data as d
from hebmtool import recipe, rows
from hebmtool.data import feed as feeding
from hebmtool.data import files
from hebmtool.errors import HebmError
from hebmtool.recipe import Data, TrainPrior
from hebmtool.run.folder import Run
from hebmtool.train.loop import Updates
from hebmtool.train.vae import train_vae

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes that read are forked")
HOW = TrainPrior(batch_size=5, accumulate=2, workers=2)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The recipe's part of 24 images on disk, which memory does not hold."""
    for i in range(24):
        write(tmp_path / "images" / f"{i:02}.png", picture(10 + i % 3, 9, 1, seed=i))
    monkeypatch.setattr(files, "CACHE_BYTES", 0)
    return Data(source="folder", path=str(tmp_path / "images"), size=8, channels=1)


def fed(images, config, steps, total=12):
    """(batches of these updates, a number drawn after each)."""
    batches, drawn = [], []
    with d.Feed(images, config, "stage", 3, total, CPU) as feed:
        for step in steps:
            feed.update(step)
            for part in rows.parts(config.batch_size, config.accumulate):
                torch.manual_seed(d.seed_of(3, "stage", step))
                with rows.computing(part):
                    batches.append(feed.take(part))
                drawn.append(torch.rand(()).item())
    assert not active_children()
    return torch.cat(batches), drawn


@pytest.mark.parametrize("cut", [False, True])
def test_images_read_ahead_are_those_read_here(folder, cut):
    images = d.load(folder.model_copy(update={"random_crop": cut}), "train")
    assert images.decoded_anew
    here, drawn = fed(images, HOW.model_copy(update={"workers": 0}), range(6))
    ahead, drawn_ahead = fed(images, HOW, range(6))
    assert torch.equal(here, ahead) and drawn == drawn_ahead
    # Whenever it begins, and through whatever the set was taken from.
    part = images.subset(range(len(images)))
    assert torch.equal(fed(part, HOW, range(4, 6))[0], here[20:])


def test_who_reads(folder, monkeypatch):
    images, small = d.load(folder, "train"), d.Images(9, (1, 8, 8), torch.empty)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)))
    assert feeding.workers(images, None) == 5 and feeding.workers(images, 3) == 3 and feeding.workers(images, 0) == 0
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)))
    assert feeding.workers(images, None) == feeding.MOST and feeding.workers(small, 3) == 0
    monkeypatch.setattr(files, "CACHE_BYTES", 2**20)
    assert feeding.workers(d.load(folder, "train"), None) == 0


def test_what_cannot_be_read_is_one_sentence(folder, tmp_path):
    for path in (tmp_path / "images").iterdir():
        path.write_bytes(path.read_bytes()[:60])
    with error(HebmError, tmp_path / "images", "cannot be read as an image"):
        fed(d.load(folder, "train"), HOW, range(3))


@pytest.mark.parametrize("amid", ["reading", "handing over"])
def test_a_reader_that_dies_is_told(folder, monkeypatch, amid):
    images = d.load(folder, "train")
    said = "a process that reads images has ended .*; resume with fewer of them"
    if amid == "handing over":  # where its end of the connection may close before torch hears of its death
        monkeypatch.setattr(reduction, "send_handle", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(HebmError, match=said), d.Feed(images, HOW, "stage", 3, 1000, CPU) as feed:
        for step in range(1000):
            feed.update(step)
            for part in rows.parts(HOW.batch_size, HOW.accumulate):
                feed.take(part)
            os.kill(active_children()[0].pid, signal.SIGKILL)
    assert not active_children()


def test_readers_leave_signals_and_the_terminal_to_the_training(folder, capfd, monkeypatch):
    def read(i, decode=files.read_image):
        assert get_worker_info() is not None and torch.get_num_threads() == 1
        os.write(2, b"something a library says")
        print("more of it", flush=True)
        return decode(i, folder)

    images = d.load(folder, "train")
    images._read.decode = lambda i: read(images.names[i])
    with d.Feed(images, HOW, "stage", 3, 40, CPU) as feed:
        for step in range(4):
            feed.update(step)
            for part in rows.parts(HOW.batch_size, HOW.accumulate):
                feed.take(part)
            for each in active_children():
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                    os.kill(each.pid, number)
    assert capfd.readouterr() == ("", "")


def test_a_training_that_was_stopped_and_resumed_with_other_readers_is_bit_identical(folder, tmp_path, monkeypatch):
    keys = [*DIGITS, "data.source=folder", f"data.path={folder.path}", "data.size=8", "data.random_crop=true"]
    keys += ["data.channels=1", "train_vae.iterations=4", "train_vae.batch_size=4"]
    settings = {n: recipe.load("digits", [*keys, f"train_vae.workers={n}"]) for n in (0, 1)}
    with Run.create(tmp_path / "whole", settings[0]) as run:
        train_vae(settings[0], run, CPU)
    descend, made = Updates.descend, []

    def stopping(self, *arguments):
        made.append(len(active_children()))
        if len(made) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return descend(self, *arguments)

    with monkeypatch.context() as patch, Run.create(tmp_path / "stopped", settings[1]) as run:
        patch.setattr(Updates, "descend", stopping)
        with pytest.raises(HebmError, match="stopped by SIGTERM after update 2"):
            train_vae(settings[1], run, CPU)
    assert made == [1, 1] and not active_children()
    with Run.create(tmp_path / "stopped", settings[0], True) as run:
        train_vae(settings[0], run, CPU, resume=True)
    one, other = (
        safetensors.torch.load_file(tmp_path / name / "digits" / "generator.train.safetensors")
        for name in ("whole", "stopped")
    )
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
