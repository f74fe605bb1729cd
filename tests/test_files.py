"""Files: whole under their own name, whatever happens while they are written."""

import os
import subprocess
import sys

import pytest

from hebmtool import files
from hebmtool.errors import HebmError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_failed_append_restores_the_end_of_the_file(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    files.append_line(path, "one")

    class Short:
        """A file on a disk that takes three bytes more."""

        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            return self.file.write(data[:3])

    def short_open(*arguments, **options):
        return Short(open(*arguments, **options))

    monkeypatch.setattr(files, "open", short_open, raising=False)
    with pytest.raises(HebmError, match="no space left"):
        files.append_line(path, "second")
    assert path.read_text() == "one\n"


FULL_DISK = """
import shutil, sys, torch
from pathlib import Path
from hebmtool import files
from hebmtool.run import checkpoint
from hebmtool.errors import HebmError
folder = Path(sys.argv[1])
path = folder / "generator.safetensors"
def save(n, step):
    checkpoint.save(path, {"w": torch.ones(n)}, kind="generator", recipe={}, step=step)
save(100_000, 1)
try:
    save(200_000, 2)
except HebmError as error:
    print(error)
assert [p.name for p in folder.iterdir()] == [path.name], list(folder.iterdir())
tensors, header = checkpoint.load(path)
assert header.step == 1 and tensors["w"].sum() == 100_000
save(50_000, 3)
assert checkpoint.header(path).step == 3
(folder / "fill").write_bytes(bytes(shutil.disk_usage(folder).free - 16_384))
log = folder / "metrics.jsonl"
try:
    for i in range(10_000):
        files.append_line(log, f"{i:099d}")
except HebmError as error:
    print(error)
assert [int(line) for line in log.read_text().split()] == list(range(i)) and i > 0
"""


def test_full_disk(tmp_path, child):
    """On a real 1 MiB disk, in a mount namespace of its own that vanishes with the process."""
    mounted = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=1m none "$1" && shift && exec "$@"', "sh", tmp_path]
    try:
        allowed = subprocess.run([*mounted, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("needs the right to mount a small tmpfs")
    status, out, err = child(*mounted, sys.executable, "-c", FULL_DISK, tmp_path).finish()
    assert status == 0, err
    save_error, append_error = out.splitlines()
    assert "no space left (needs 0.8 MiB, 0.6 MiB free); the previous checkpoint is intact" in save_error
    assert "metrics.jsonl: no space left" in append_error


# Text


def test_write_text_replaces_and_makes_folders(tmp_path):
    path = tmp_path / "a" / "recipe.yaml"
    files.write_text(path, "first, longer")
    files.write_text(path, "é")
    assert path.read_text("utf-8") == "é" and names(path.parent) == ["recipe.yaml"]


def test_append_line_begins_afresh_after_a_cut_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    files.append_line(path, "a")
    with path.open("a") as file:
        file.write('{"half')
    files.append_line(path, "b")
    assert path.read_text() == 'a\n{"half\nb\n'


def test_parts_are_written_one_after_another_in_one_move(tmp_path):
    path = tmp_path / "data"
    files.write_bytes(path, b"one", memoryview(b"two"), b"")
    assert path.read_bytes() == b"onetwo" and names(tmp_path) == ["data"]


def test_a_digest_is_of_the_content(tmp_path):
    for name, text in (("a", "x"), ("b", "x"), ("c", "y")):
        (tmp_path / name).write_text(text)
    a, b, c = (files.digest(tmp_path / name) for name in "abc")
    assert a == b != c
    with pytest.raises(HebmError, match="could not read .*absent: No such file"):
        files.digest(tmp_path / "absent")


def test_what_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "plain").write_text("precious")
    with pytest.raises(HebmError, match="could not save .*plain/x: .*; make it writable and rerun") as raised:
        files.write_text(tmp_path / "plain" / "x", "text")
    assert "\n" not in str(raised.value) and (tmp_path / "plain").read_text() == "precious"


@pytest.mark.parametrize("links", [True, False])
def test_a_second_name_of_a_file_replaces_what_was_there(tmp_path, monkeypatch, links):
    last, good = tmp_path / "last", tmp_path / "good"
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(1, "Operation not permitted")))
    for content in (b"first", b"second", b"second"):
        files.write_bytes(last, content)
        files.link_over(last, good)
        files.link_over(last, good)  # which are one file already
        assert good.read_bytes() == content and sorted(os.listdir(tmp_path)) == ["good", "last"]
    files.write_bytes(last, b"third")
    assert good.read_bytes() == b"second"
