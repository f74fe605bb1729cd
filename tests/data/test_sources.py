"""Sources that a user brings (folders, arrays) or the package has (digits): splits, labels, and what is refused."""

import os
import pickle

import numpy as np
import pytest
import torch
from pictures import error, picture, write

from hebmtool import data as d
from hebmtool.data import files, sources
from hebmtool.errors import HebmError, UsageError
from hebmtool.recipe import Data, words

# Digits, and what is done to every source -----------------------------------------------------------------------------


def test_digits_split_is_fixed_disjoint_and_whole():
    train, test = d.load(Data(), "train"), d.load(Data(), "test")
    assert train.shape == test.shape == (1, 8, 8)
    assert (len(train), len(test)) == (1617, 180)
    assert train.classes == [str(k) for k in range(10)]
    assert train.labels.dtype == torch.int64 and set(test.labels.tolist()) == set(range(10))
    pixels = torch.cat([train.batch(range(len(train))), test.batch(range(len(test)))])
    assert pixels.dtype == torch.uint8 and pixels.max() == 255 and pixels.min() == 0
    from sklearn.datasets import load_digits

    # Every image exactly once, with its own label.
    raw = load_digits()
    labels = torch.cat([train.labels, test.labels])
    expected = sorted(
        (*np.round(image.ravel() * 255 / 16).astype(int), label)
        for image, label in zip(raw.images, raw.target, strict=True)
    )
    found = sorted((*image.flatten().tolist(), label) for image, label in zip(pixels, labels.tolist(), strict=True))
    assert [tuple(map(int, e)) for e in expected] == found
    again = d.load(Data(), "test")
    assert torch.equal(again.batch([0, 5]), test.batch(torch.tensor([0, 5])))


def test_limit_shortens_training_only():
    assert len(d.load(Data(limit=7), "train")) == len(d.load(Data(limit=7), "train").labels) == 7
    assert len(d.load(Data(limit=7), "test")) == 180


def test_a_source_is_a_function_with_a_word(monkeypatch):
    monkeypatch.setattr(words.SOURCES, "_words", list(words.SOURCES))
    monkeypatch.setattr(sources, "SOURCES", dict(sources.SOURCES))

    @d.source("stripes", "bars")
    def stripes(settings, split):
        return d.Images(9, (1, 4, 4), lambda i: torch.zeros(len(i), 1, 4, 4, dtype=torch.uint8), classes=["a"])

    for word in ("stripes", "bars"):
        assert len(d.load(Data(source=word), "train")) == 9


def test_excluded_classes_leave_the_training_split_alone_before_the_limit_counts():
    whole, test = d.load(Data(), "train"), d.load(Data(), "test")
    settings = Data(exclude=[3, "7"], limit=50)
    left = d.load(settings, "train")
    kept = [i for i, y in enumerate(whole.labels.tolist()) if y not in (3, 7)][:50]
    assert len(left) == 50 and left.labels.tolist() == whole.labels[kept].tolist()
    assert torch.equal(left.batch(range(50)), whole.batch(kept)) and left.classes == whole.classes
    assert torch.equal(d.load(settings, "test").labels, test.labels)


def test_the_pooled_split_tests_every_image_left_out_and_a_share_of_the_others():
    settings = Data(exclude=[3, "7"], test_fraction=0.2, split="pooled")
    train, test = d.load(settings, "train"), d.load(settings, "test")
    from sklearn.datasets import load_digits

    whole = load_digits()
    left_out = np.isin(whole.target, [3, 7])
    assert not np.isin(train.labels, [3, 7]).any() and np.isin(test.labels, [3, 7]).sum() == left_out.sum()
    held = round(0.2 * (~left_out).sum())
    assert (len(train), len(test)) == ((~left_out).sum() - held, held + left_out.sum())
    pixels = [tuple(image.flatten().tolist()) for part in (train, test) for image in part.batch(range(len(part)))]
    assert sorted(pixels) == sorted(tuple(np.round(i * 255 / 16).astype(int).flatten()) for i in whole.images)
    # No order by class: the first are of both kinds.
    first, share = np.isin(test.labels[:300], [3, 7]).mean(), left_out.sum() / len(test)
    assert abs(first - share) < 0.1
    again = d.load(settings.model_copy(update={"limit": 20}), "train")
    assert torch.equal(again.batch(range(20)), train.batch(range(20))) and len(again) == 20
    with error(UsageError, "data.split is pooled", "data.exclude leaves no class out"):
        d.load(Data(split="pooled"), "train")


def test_what_cannot_be_excluded(tmp_path):
    with error(HebmError, "data.exclude names the class '10'", "0, 1, 2"):
        d.load(Data(exclude=[10]), "train")
    with error(HebmError, "leaves no image"):
        d.load(Data(exclude=list(range(10))), "train")
    np.save(tmp_path / "set.npy", np.zeros((5, 8, 8), np.uint8))
    with error(HebmError, "data.exclude names classes", "have no labels"):
        d.load(Data(source="array", path=str(tmp_path / "set.npy"), exclude=[1]), "train")


def test_attributes_are_made_of_classes():
    odd = Data(attributes={"odd": ["1", "3", "5", "7", "9"]})
    for split in ("train", "test"):
        images = d.load(odd, split)
        assert torch.equal(images.attributes["odd"], images.labels % 2 == 1)
    with error(HebmError, "data.attributes.even", "'zwei'"):
        d.load(Data(attributes={"even": ["zwei"]}), "train")


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="'val'"):
        d.load(Data(), "val")


# Folders --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["hash", "order"])
def test_a_flat_folder_holds_out_a_share(tmp_path, how):
    for i in range(10):
        write(tmp_path / f"{i}.png", np.full((6, 6), i, np.uint8))
    settings = Data(source="folder", path=str(tmp_path), test_fraction=0.3, hold_out=how)
    train, test = d.load(settings, "train"), d.load(settings, "test")
    assert (train.shape, train.labels, train.classes) == ((1, 6, 6), None, None)
    assert len(train) + len(test) == 10 and (len(test) == 3 if how == "order" else 1 <= len(test) <= 6)
    assert sorted(train.names + test.names) == [str(tmp_path / f"{i}.png") for i in range(10)]
    values = train.batch([2, 0, 2])[:, 0, 0, 0].tolist()
    assert [str(tmp_path / f"{v}.png") for v in values] == [train.names[i] for i in (2, 0, 2)]
    assert d.load(settings, "test").names == test.names
    limited = d.load(settings.model_copy(update={"limit": 2}), "train")
    assert limited.names == train.names[:2]


def test_train_and_test_folders_with_classes(tmp_path):
    for split, label, value in [("train", "cat", 1), ("train", "dog", 2), ("test", "dog", 3), ("test", "owl", 4)]:
        for i in range(8):
            write(tmp_path / split / label / f"{i}.png", np.full((4, 4), 10 * value + i, np.uint8))
    settings = Data(source="folder", path=str(tmp_path))
    train, test = d.load(settings, "train"), d.load(settings, "test")
    assert train.classes == test.classes == ["cat", "dog", "owl"]
    assert (len(train), len(test)) == (16, 16) and train.labels.dtype == torch.int64
    # Labels go with their images, and a limit leaves no class out.
    assert torch.equal(train.labels, (train.batch(range(16))[:, 0, 0, 0] // 10 - 1).long())
    assert torch.equal(test.labels, (test.batch(range(16))[:, 0, 0, 0] // 10 - 2).long())
    assert {path.split("/")[-2] for path in test.names} == {"dog", "owl"}
    few = d.load(settings.model_copy(update={"limit": 6}), "train")
    assert len(few) == 6 and set(few.labels.tolist()) == {0, 1}


def test_one_coloured_image_makes_all_rgb(tmp_path):
    write(tmp_path / "train" / "a.png", picture(4, 4, 1))
    write(tmp_path / "test" / "b.png", picture(4, 4))
    settings = Data(source="folder", path=str(tmp_path))
    assert d.load(settings, "train").shape == (3, 4, 4)
    assert d.load(settings, "train").batch([0]).shape == (1, 3, 4, 4)
    assert d.load(settings.model_copy(update={"channels": 1}), "test").batch([0]).shape == (1, 1, 4, 4)


def test_mixed_sizes_need_a_size(tmp_path):
    write(tmp_path / "a.png", picture(8, 8))
    write(tmp_path / "b.png", picture(8, 8))
    write(tmp_path / "c.png", picture(9, 12))
    settings = Data(source="folder", path=str(tmp_path))
    with error(HebmError, "a.png is 8x8", "c.png is 12x9", "data.size="):
        d.load(settings, "train")
    assert d.load(settings.model_copy(update={"size": 16}), "train").batch([0, 1]).shape == (2, 3, 16, 16)
    assert d.load(settings.model_copy(update={"crop": 8}), "test").shape == (3, 8, 8)
    with error(HebmError, "a.png is 8x8", "data.crop 9"):
        d.load(settings.model_copy(update={"crop": 9}), "train")


def test_folder_mistakes_are_named(tmp_path):
    def load(**settings):
        return d.load(Data(source="folder", **settings), "train")

    with error(UsageError, "data.path"):
        load()
    with error(HebmError, "does not exist"):
        load(path=str(tmp_path / "absent"))
    only = write(tmp_path / "one" / "a.png", picture(4, 4))
    with error(HebmError, "1 image", "at least 2"):
        load(path=str(only.parent))
    with error(HebmError, "data.source=array"):
        load(path=str(only))
    (only.parent / "words.png").write_text("words")
    with error(HebmError, only.parent / "words.png"):
        load(path=str(only.parent))
    write(tmp_path / "beside" / "a.png", picture(4, 4))
    write(tmp_path / "beside" / "cat" / "b.png", picture(4, 4))
    with error(HebmError, tmp_path / "beside" / "a.png", "class folder"):
        load(path=str(tmp_path / "beside"))
    write(tmp_path / "deep" / "felines" / "cat" / "b.png", picture(4, 4))
    with error(HebmError, "too deep"):
        load(path=str(tmp_path / "deep"))


@pytest.mark.parametrize("keep", [True, False])
def test_files_damaged_while_training_are_named_and_kept_ones_not_read_again(tmp_path, monkeypatch, keep):
    monkeypatch.setattr(files, "CACHE_BYTES", 10**6 if keep else 0)
    for i in range(12):
        write(tmp_path / f"{i}.png", picture(16, 16, seed=i))
    images = d.load(Data(source="folder", path=str(tmp_path)), "train")
    seen = images.batch([0])
    assert torch.equal(images.batch([0]), seen)
    for name in images.names[:2]:
        with open(name, "r+b") as file:
            file.truncate(200)
    write(tmp_path / images.names[2], picture(20, 20))
    if keep:
        assert torch.equal(images.batch([0]), seen)
    else:
        with error(HebmError, images.names[0], "cannot be read"):
            images.batch([0])
    with error(HebmError, images.names[1], "cannot be read"):
        images.batch([3, 1, 4])
    with error(HebmError, images.names[2], "20x20", "16x16"):
        images.batch([2])


# Arrays ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "found"),
    [
        ((9, 8, 6), (1, 8, 6)),
        ((9, 8, 6, 1), (1, 8, 6)),
        ((9, 8, 6, 3), (3, 8, 6)),
        ((9, 1, 8, 6), (1, 8, 6)),
        ((9, 3, 8, 6), (3, 8, 6)),
        ((3, 8, 6), (1, 8, 6)),
    ],
)
@pytest.mark.parametrize("ending", ["npz", "npy"])
def test_array_layouts(tmp_path, shape, found, ending):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    path = tmp_path / f"set.{ending}"
    np.save(path, pixels) if ending == "npy" else np.savez(path, images=pixels)
    settings = Data(source="array", path=str(path), test_fraction=0.3)
    train, test = d.load(settings, "train"), d.load(settings, "test")
    assert train.shape == test.shape == found and train.names is None
    assert len(train) + len(test) == shape[0] and len(train) and len(test)
    planes = pixels.transpose(0, 3, 1, 2) if shape[-1] in (1, 3) else pixels.reshape(shape[0], *found)
    both = torch.cat([train.batch(range(len(train))), test.batch(range(len(test)))]).numpy()
    assert sorted(map(bytes, both)) == sorted(np.ascontiguousarray(plane).tobytes() for plane in planes)


def test_array_with_splits_labels_and_classes(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), dtype=np.uint8)
    np.savez_compressed(
        tmp_path / "set.npz",
        x_train=x[:5],
        x_test=x[5:],
        y_train=np.array([[0], [1], [1], [0], [1]], np.uint8),
        y_test=np.array([1, 0]),
        classes=np.array(["cat", "dog"]),
    )
    settings = Data(source="array", path=str(tmp_path / "set.npz"))
    train, test = d.load(settings, "train"), d.load(settings, "test")
    assert np.array_equal(train.batch(range(5)), x[:5].transpose(0, 3, 1, 2))  # as given, in the order given
    assert np.array_equal(test.batch([1]), x[6:].transpose(0, 3, 1, 2))
    assert train.labels.tolist() == [0, 1, 1, 0, 1] and test.labels.tolist() == [1, 0]
    assert train.labels.dtype == torch.int64 and train.classes == test.classes == ["cat", "dog"]
    assert d.load(settings.model_copy(update={"limit": 2}), "train").labels.tolist() == [0, 1]


def test_single_array_with_labels_keeps_them_together(tmp_path, monkeypatch):
    x = np.tile(np.arange(20, dtype=np.uint8)[:, None, None], (1, 4, 4))
    np.savez(tmp_path / "set.npz", x=x, labels=np.arange(20))
    monkeypatch.chdir(tmp_path)
    for split in ("train", "test"):
        images = d.load(Data(source="array", path="set.npz"), split)
        assert torch.equal(images.labels, images.batch(range(len(images)))[:, 0, 0, 0].long())


def test_arrays_are_cropped_resized_and_converted_as_files_are(tmp_path):
    pixels = picture(20, 30)
    np.savez(tmp_path / "set.npz", x=np.stack([pixels, pixels]))
    write(tmp_path / "a.png", pixels)
    for settings in ({}, {"crop": 12}, {"size": 8}, {"crop": 18, "size": 24, "channels": 1}, {"channels": 1}):
        images = d.load(Data(source="array", path=str(tmp_path / "set.npz"), **settings), "train")
        batch = images.batch([0])
        assert tuple(batch.shape[1:]) == images.shape
        assert torch.equal(batch[0], d.read_image(tmp_path / "a.png", Data(**settings)))
    with error(HebmError, "30x20", "data.crop 21"):
        d.load(Data(source="array", path=str(tmp_path / "set.npz"), crop=21), "train")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": np.zeros((5, 8, 8), np.float32)}, ["(5, 8, 8)", "float32", "uint8"]),
        ({"x": np.zeros((5, 8, 8, 4), np.uint8)}, ["(5, 8, 8, 4)", "(N, H, W)"]),
        ({"x": np.zeros((5, 64), np.uint8)}, ["(5, 64)"]),
        ({"x": np.zeros((8, 8, 3), np.uint8)}, ["(8, 8, 3)"]),
        ({"x": np.zeros((0, 8, 8), np.uint8)}, ["N of at least 1"]),
        ({"x": np.array([None, 1])}, ["plain arrays"]),
        ({"pixels": np.zeros((5, 8, 8), np.uint8)}, ["pixels", "x_train", "images"]),
        ({"x_train": np.zeros((5, 8, 8), np.uint8)}, ["x_train", "x_test"]),
        (
            {"x_train": np.zeros((5, 8, 8), np.uint8), "x_test": np.zeros((5, 9, 9), np.uint8)},
            ["x_train has shape (5, 8, 8)", "x_test (5, 9, 9)"],
        ),
        ({"x": np.zeros((5, 8, 8), np.uint8), "y": np.zeros(4, int)}, ["y of", "(4,)", "(5,)"]),
        ({"x": np.zeros((5, 8, 8), np.uint8), "y": np.zeros(5)}, ["float64", "integers"]),
        ({"x": np.zeros((5, 8, 8), np.uint8), "y": np.arange(-1, 4)}, ["from -1 to 3", "from 0 to 65535"]),
        (
            {"x": np.zeros((5, 8, 8), np.uint8), "y": np.arange(5), "classes": np.array(["a", "b"])},
            ["from 0 to 4", "from 0 to 1"],
        ),
        ({"x": np.zeros((1, 8, 8), np.uint8)}, ["1 image", "at least 2"]),
    ],
)
def test_other_arrays_are_refused(tmp_path, arrays, words):
    path = tmp_path / "set.npz"
    np.savez(path, **arrays)
    with error(HebmError, path, *words):
        d.load(Data(source="array", path=str(path)), "train")


def test_array_files_that_are_none(tmp_path):
    def load(path):
        return d.load(Data(source="array", path=path), "train")

    with error(UsageError, "data.path"):
        load(None)
    with error(HebmError, "does not exist"):
        load(str(tmp_path / "absent.npz"))
    with error(HebmError, "data.source=folder"):
        load(str(tmp_path))
    for content in (b"", b"words", pickle.dumps([1, 2]), b"PK\x03\x04 cut off"):
        (tmp_path / "odd.npz").write_bytes(content)
        with error(HebmError, tmp_path / "odd.npz", "cannot be read") as caught:
            load(str(tmp_path / "odd.npz"))
        assert "allow_pickle" not in str(caught.value)


def test_labels_are_numbers_of_classes(tmp_path):
    for label in (-1, 2**16, 10**9, 2**63 - 1):
        np.savez(tmp_path / "a.npz", x=picture(4, 4, 3)[None].repeat(2, 0), y=np.array([0, label]))
        with error(HebmError, "y of", label, "must be from 0 to 65535"):
            d.load(Data(source="array", path=str(tmp_path / "a.npz")), "train")


def test_an_archive_larger_than_memory_is_not_unpacked(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "zeros.npz", images=np.zeros((1000, 32, 32), np.uint8))
    monkeypatch.setattr(os, "sysconf", lambda name: 1000)
    with error(HebmError, "zeros.npz", "GiB unpacked", "GiB of memory"):
        d.load(Data(source="array", path=str(tmp_path / "zeros.npz")), "train")
