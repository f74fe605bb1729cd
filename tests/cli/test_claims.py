"""Two at once: an output is one process's, figures are everybody's; and names that could be taken for one another."""

import itertools
import json
import os
import signal
import sys

import pytest
import torch

from hebmtool.cli import outputs
from hebmtool.cli.outputs import Sink
from hebmtool.errors import HebmError
from hebmtool.run.folder import Run

CLAIMS = """
import sys
from hebmtool.cli.outputs import Sink
from hebmtool.errors import HebmError
try:
    sink = Sink(sys.argv[1])
except HebmError as error:
    sys.exit(f"hebm: {error}")
print("mine", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("out", ["many", "new/many", "grid.png", "images.npz"])
def test_an_output_is_one_process_s_at_a_time(child, tmp_path, out):
    def claiming():
        return child(sys.executable, "-c", CLAIMS, tmp_path / out, stdin=-1)

    first = claiming()
    assert first.stdout.readline() == "mine\n"
    status, found, err = claiming().finish()
    assert (status, found) == (1, "") and err.startswith("hebm: another process is writing") and out in err
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    third = claiming()  # what was killed holds nothing
    assert third.stdout.readline() == "mine\n"
    third.finish("")
    left = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert left == []


def test_one_of_many_at_once_gets_it(child, tmp_path):
    rivals = [child(sys.executable, "-c", CLAIMS, tmp_path / "many", stdin=-1) for _ in range(4)]
    said = [rival.stdout.readline() for rival in rivals]
    assert said.count("mine\n") == 1


def test_a_claim_ends_with_the_writing(tmp_path):
    images = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    for out in ("many", "grid.png", "images.npz"):
        sink = Sink(str(tmp_path / out))
        with pytest.raises(HebmError, match="another process is writing"):
            Sink(str(tmp_path / out))
        sink.write(iter([images]))
        with pytest.raises(HebmError, match="not empty|exists"):
            Sink(str(tmp_path / out))
    assert not list(tmp_path.rglob(".*"))


FIGURES = """
import sys
from hebmtool.run.folder import Run
print("ready", flush=True)
sys.stdin.readline()
for i in range(25):
    Run(sys.argv[1]).set_figure(f"closure.{sys.argv[2]}-{i}", i)
"""


def test_figures_of_several_processes_are_all_kept(child, tmp_path):
    writers = [child(sys.executable, "-c", FIGURES, tmp_path, name, stdin=-1) for name in "abc"]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("\n")
        writer.stdin.flush()
    assert [writer.finish()[0] for writer in writers] == [0, 0, 0]
    found = json.loads((tmp_path / "figures.json").read_text())["closure"]
    assert found == {f"{name}-{i}": i for name, i in itertools.product("abc", range(25))}


# What is there already


@pytest.mark.parametrize("out", ["there.png", "there.npz", "there"])
@pytest.mark.parametrize("what", ["fifo", "dangling link", "socket"])
def test_whatever_is_there_is_something(tmp_path, monkeypatch, out, what):
    monkeypatch.chdir(tmp_path)
    if what == "fifo":
        os.mkfifo(out)
    elif what == "dangling link":
        os.symlink("nowhere", out)
    else:
        import socket

        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(out)
    before = os.lstat(out)
    with pytest.raises(HebmError, match=f"the file {out} exists"):
        Sink(out)
    assert os.path.samestat(before, os.lstat(out))
    if out != "there":
        Sink(out, force=True).write(iter([torch.zeros(1, 1, 4, 4, dtype=torch.uint8)]))
        assert os.path.isfile(out) and not os.path.islink(out) and not os.path.exists("nowhere")


# Names


def test_pictures_made_otherwise_are_called_otherwise():
    made = [
        {},
        {"n": 4},
        {"temperature": 0.7},
        {"steps": 3},
        {"chain": "underdamped", "theta": 0.3},
        {"chain": "underdamped"},
        {"fast": True},
        {"class": "3"},
        {"class": "all"},
        {"class": "3", "weight": -1.0},
        {"": ["Smiling=1"]},
        {"": ["Smiling=1", "Male=0:0.5"]},
        {"": "a/mask.png"},
        {"": "b/mask.png"},
        {"of": ["x/1.png"]},
        {"of": ["x/1.png", "x/2.png"]},
        {"of": [f"{i}.png" for i in range(99)]},
        {"of": [f"{i}.png" for i in range(98)]},
        {"of": ["a b"]},
        {"of": ["a-b"]},
    ]
    names = [outputs.name("do", "ebm", **each, seed=0) for each in made]
    assert len(set(names)) == len(names) and max(map(len, names)) < 150
    assert names[0] == "do-ebm-seed0.png" and names[1] == "do-ebm-n4-seed0.png" and not any("/" in n for n in names)


def test_a_grid_of_four_leaves_that_of_sixty_four_alone(copied, hebm):
    run, kept = copied / "flow", {}
    for words in ((), ("-n", 4), ("-n", 4, "--temperature", 0.5), ("--columns", 4)):
        status, out, err = hebm("sample", "--run", run, *words)
        assert status == 0, err
        assert out.strip() not in kept
        kept[out.strip()] = os.stat(out.strip()).st_mtime_ns
    assert all(os.stat(path).st_mtime_ns == then for path, then in kept.items())


def test_one_class_and_all_classes_are_two_pictures(copied, hebm):
    drawn = set()
    for value in ("3", "all"):
        words = ("--class", value, "-n", 1, "--no-report", "--prior", "ebm")
        status, out, err = hebm("controllable", "--run", copied / "digits", *words)
        assert status == 0, err
        drawn.add(out)
    assert len(drawn) == 2


@pytest.mark.parametrize("names", [("x", "x.train"), ("a/b", "a%2Fb"), ("x.train", "x%2Etrain"), ("x", "x.good")])
def test_labels_have_files_of_their_own(tmp_path, names):
    run = Run(tmp_path)
    ways = (run.label_path, run.label_train_path, run.classifier_path)
    paths = [way(name) for name in names for way in ways]
    assert len(set(paths)) == len(paths) and all(path.parent == tmp_path for path in paths)


def test_a_label_whose_name_ends_in_train_is_a_label(tmp_path):
    run = Run(tmp_path)
    for name in ("x", "x.train"):
        for path in (run.label_path(name), run.label_train_path(name)):
            path.write_bytes(b"")
    assert run.label_paths() == sorted([run.label_path("x"), run.label_path("x.train")])
    assert run.label_path("Mouth_Open").name == "label-Mouth_Open.safetensors"  # as before
