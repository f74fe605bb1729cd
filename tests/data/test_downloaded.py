"""Sources that are downloaded: torchvision's files and LSUN's databases, made small here."""

import gzip
import io
import pickle
import struct
import sys

import lmdb
import numpy as np
import pytest
import torch
from pictures import error, write
from PIL import Image

from hebmtool import data as d
from hebmtool import rows
from hebmtool.data import files, sources
from hebmtool.errors import HebmError
from hebmtool.recipe import Data, TrainPrior


def fake_mnist(folder):
    """Nine training and four test images in MNIST's own files."""
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (13, 28, 28), dtype=np.uint8)
    for part, x in (("train", pixels[:9]), ("t10k", pixels[9:])):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, len(x), 28, 28) + x.tobytes())
        labels = np.arange(len(x), dtype=np.uint8)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, len(x)) + labels.tobytes())
    return pixels


@pytest.mark.parametrize(
    ("source", "name", "third"), [("mnist", "MNIST", "2"), ("fashion-mnist", "FashionMNIST", "Pullover")]
)
def test_mnist_files(tmp_path, source, name, third):
    pixels = fake_mnist(tmp_path / name / "raw")
    settings = Data(source=source, path=str(tmp_path), download=False)
    train, test = d.load(settings, "train"), d.load(settings, "test")
    assert np.array_equal(train.batch(range(9))[:, 0], pixels[:9]) and np.array_equal(test.batch([3])[0, 0], pixels[12])
    assert train.labels.tolist() == list(range(9)) and train.classes[2] == third and train.shape == (1, 28, 28)
    assert d.load(settings.model_copy(update={"size": 32}), "test").batch([0]).shape == (1, 1, 32, 32)


def test_cifar_and_svhn_files(tmp_path, monkeypatch):
    from scipy.io import savemat
    from torchvision import datasets

    # The real files' checksums are not these files'.
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    monkeypatch.setattr("torchvision.datasets.svhn.check_integrity", lambda *_: True)
    batches = tmp_path / datasets.CIFAR10.base_folder
    batches.mkdir()
    x = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        (batches / name).write_bytes(pickle.dumps({"data": x.reshape(2, -1), "labels": [3, 7]}))
    (batches / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {k}" for k in range(10)]}))
    settings = Data(source="cifar10", path=str(tmp_path), download=False)
    train = d.load(settings, "train")
    assert np.array_equal(train.batch([2, 3]), x) and len(train) == 10
    assert train.labels[:2].tolist() == [3, 7] and train.classes[3] == "class 3"
    assert len(d.load(settings, "test")) == 2

    savemat(tmp_path / "test_32x32.mat", {"X": x.transpose(2, 3, 1, 0), "y": np.array([[10], [4]])})
    test = d.load(Data(source="svhn", path=str(tmp_path), download=False), "test")
    assert np.array_equal(test.batch([0, 1]), x) and test.labels.tolist() == [0, 4] and test.classes[4] == "4"


def test_celeba_files(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.celeba.check_integrity", lambda *_: True)
    folder = tmp_path / "celeba"
    names = [f"{i:06d}.jpg" for i in range(1, 6)]
    for i, name in enumerate(names):
        write(folder / "img_align_celeba" / name, np.full((218, 178, 3), 50 * i, np.uint8))
    lines = {"list_eval_partition": "{} {}", "identity_CelebA": "{} 1"}
    for file, line in lines.items():
        rows = [line.format(name, split) for name, split in zip(names, (0, 2, 0, 1, 2), strict=True)]
        (folder / f"{file}.txt").write_text("\n".join(rows) + "\n")
    for file in ("list_attr_celeba", "list_bbox_celeba", "list_landmarks_align_celeba"):
        (folder / f"{file}.txt").write_text("4\nOne Two\n" + "".join(f"{name} 1 -1\n" for name in names))
    settings = Data(source="celeba", path=str(tmp_path), crop=148, size=32, download=False)
    train = d.load(settings, "train")
    assert train.labels is None and train.shape == (3, 32, 32)
    assert train.batch([1, 0]).float().mean((1, 2, 3)).round().tolist() == [100, 0]
    assert d.load(settings, "test").names == [str(folder / "img_align_celeba" / names[i]) for i in (1, 4)]
    assert d.load(Data(source="celeba", path=str(tmp_path), download=False), "train").shape == (3, 218, 178)


@pytest.mark.parametrize("source", ["mnist", "fashion-mnist", "cifar10", "svhn", "celeba"])
def test_absent_files_say_what_to_place_where(tmp_path, monkeypatch, source):
    from torchvision import datasets

    name, folder, files = sources.TORCHVISION[source]
    with error(HebmError, source, tmp_path / folder, files, "data.download=true"):
        d.load(Data(source=source, path=str(tmp_path), download=False), "train")

    def unreachable(self):
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(getattr(datasets, name), "download", unreachable)
    with error(HebmError, source, "could not be downloaded (no route to host)", tmp_path / folder, files):
        d.load(Data(source=source, path=str(tmp_path)), "train")


def test_the_default_root_is_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fake_mnist(tmp_path / "data" / "MNIST" / "raw")
    assert len(d.load(Data(source="mnist", download=False), "test")) == 4


def test_damaged_mnist_is_refused(tmp_path):
    fake_mnist(tmp_path / "MNIST" / "raw")
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(gzip.compress(b"not unpacked"))
    with error(HebmError, "mnist", tmp_path / "MNIST/raw"):
        d.load(Data(source="mnist", path=str(tmp_path)), "train")


def fake_lsun(folder, images):
    database = lmdb.open(str(folder), map_size=2**24)
    with database.begin(write=True) as transaction:
        for key, pixels in images.items():
            file = io.BytesIO()
            if pixels is not None:
                Image.fromarray(pixels).save(file, "JPEG", quality=95)
            transaction.put(key, file.getvalue() or b"damaged")
    database.close()


def test_lsun(tmp_path, monkeypatch):
    levels = {f"key{i}".encode(): np.full((40 + i, 60, 3), 60 * i, np.uint8) for i in range(4)}
    fake_lsun(tmp_path / "tower_train_lmdb", levels | {b"key4": None})
    fake_lsun(tmp_path / "tower_val_lmdb", {b"only": np.full((30, 30), 9, np.uint8)})
    monkeypatch.chdir(tmp_path)
    settings = Data(source="lsun", path=str(tmp_path), category="tower", size=16)
    train, test = d.load(settings, "train"), d.load(settings, "test")
    again = d.load(settings, "train")  # both may be open at once
    assert (len(train), len(test), train.shape) == (5, 1, (3, 16, 16))
    assert train.batch([3, 1]).float().mean((1, 2, 3)).round().tolist() == [180, 60]
    assert again.batch([0, 1, 2, 3]).shape == (4, 3, 16, 16)
    assert test.batch([0]).unique().tolist() == [9] and test.shape == (3, 16, 16)  # grey among RGB
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tower_train_lmdb", "tower_val_lmdb"]  # nothing left behind
    with error(HebmError, "key4", "tower_train_lmdb", "cannot be read as an image"):
        train.batch([0, 4])
    with error(HebmError, "differ in size", "data.size="):
        d.load(settings.model_copy(update={"size": None}), "train")


@pytest.mark.skipif(sys.platform != "linux", reason="processes that read are forked")
def test_other_processes_read_a_database(tmp_path, monkeypatch):
    fake_lsun(tmp_path / "tower_train_lmdb", {bytes([i]): np.full((20, 20, 3), 9 * i, np.uint8) for i in range(1, 9)})
    monkeypatch.setattr(files, "CACHE_BYTES", 0)
    images = d.load(Data(source="lsun", path=str(tmp_path), category="tower", size=16), "train")
    here = images.batch([0])  # open here already
    with d.Feed(images, TrainPrior(batch_size=8, workers=1), "stage", 0, 1, torch.device("cpu")) as feed:
        indices = feed.update(0)
        found = feed.take(rows.whole(8))
    assert torch.equal(found[indices == 0], here) and found.float().mean() > 30


def test_absent_lsun_says_where_to_put_it(tmp_path):
    with error(HebmError, tmp_path / "towr_train_lmdb", "towr_train_lmdb.zip", "did you mean 'tower'"):
        d.load(Data(source="lsun", path=str(tmp_path), category="towr", size=16), "train")
    (tmp_path / "tower_val_lmdb").mkdir()
    (tmp_path / "tower_val_lmdb" / "data.mdb").write_bytes(b"words" * 5000)
    with error(HebmError, tmp_path / "tower_val_lmdb", "LMDB"):
        d.load(Data(source="lsun", path=str(tmp_path), category="tower", size=16), "test")
