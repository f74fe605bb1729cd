"""Images: every source, every layout, what a likelihood is given, and the sentences for what goes wrong."""

import gzip
import io
import pickle
import struct
from contextlib import contextmanager

import lmdb
import numpy as np
import pytest
import torch
from PIL import Image

from hebmtool import data as d
from hebmtool.errors import HebmError, UsageError
from hebmtool.recipe import Data


def picture(height, width, channels=3, seed=0):
    """uint8 [H, W, C], or [H, W] for one channel."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return pixels[..., 0] if channels == 1 else pixels


def write(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


@contextmanager
def error(kind, *words):
    """Expect `kind` itself, with all the words in one line."""
    with pytest.raises(kind) as caught:
        yield caught
    message = str(caught.value)
    assert caught.type is kind and "\n" not in message
    for word in words:
        assert str(word) in message, message


# ------------------------------------------------------------------------------------------------------------- digits


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


def test_batch_refuses_indices_outside():
    images = d.load(Data(limit=3), "train")
    assert images.batch([]).shape == (0, 1, 8, 8)
    for wrong in ([3], [-1]):
        with pytest.raises(IndexError):
            images.batch(wrong)


# -------------------------------------------------------------------------------------------------------------- order


def test_order_is_a_permutation_of_its_arguments_alone():
    first = d.order(50, 3, 0)
    assert first.dtype == torch.int64 and sorted(first.tolist()) == list(range(50))
    torch.manual_seed(1)
    first_again = d.order(50, 3, 0)
    assert torch.equal(first, first_again)
    assert not torch.equal(first, d.order(50, 3, 1)) and not torch.equal(first, d.order(50, 4, 0))
    first_again.zero_()  # a caller's changes stay the caller's
    assert torch.equal(first, d.order(50, 3, 0))
    d.order(5, 2**63 - 1, 0)


def test_batches_cover_an_epoch_and_drop_its_ragged_end():
    steps = [d.batch_indices(10, 3, 0, step) for step in range(6)]
    assert all(step.shape == (3,) and step.dtype == torch.int64 for step in steps)
    assert torch.equal(torch.cat(steps[:3]), d.order(10, 0, 0)[:9])
    assert torch.equal(torch.cat(steps[3:]), d.order(10, 0, 1)[:9])


def test_a_batch_larger_than_the_set_is_refused():
    assert len(d.batch_indices(4, 4, 0, 7)) == 4
    with error(HebmError, "64", "10"):
        d.batch_indices(10, 64, 0, 0)


# ------------------------------------------------------------------------------------------------------------ prepare


def test_mixture_keeps_the_upper_bits():
    batch = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(d.prepare(batch, Data(), "mixture", train=True), batch.float() / 255)
    five = d.prepare(batch, Data(bits=5), "mixture", train=False)
    assert torch.equal(five, (batch.float() / 8).floor() / 31) and five.max() == 1


def test_bernoulli_draws_binary_images_with_the_right_mean():
    torch.manual_seed(0)
    batch = torch.full((1, 1, 200, 200), 64, dtype=torch.uint8)
    for train in (True, False):
        x = d.prepare(batch, Data(), "bernoulli", train=train)
        assert set(x.unique().tolist()) == {0.0, 1.0} and abs(x.mean() - 64 / 255) < 0.01
        assert not torch.equal(x, d.prepare(batch, Data(), "bernoulli", train=train))


def test_gaussian_dequantises_within_the_bin():
    torch.manual_seed(0)
    batch = torch.tensor([0, 100, 255], dtype=torch.uint8).view(1, 1, 1, 3).repeat(500, 1, 1, 1)
    x = d.prepare(batch, Data(), "gaussian", train=False) * 256 - batch
    assert x.min() >= 0 and x.max() <= 1 and abs(x.mean() - 0.5) < 0.05 and x.std() > 0.25
    few = d.prepare(batch, Data(bits=1), "gaussian", train=False)
    assert few[..., 1].max() <= 0.5 <= few[..., 2].min() and few.max() <= 1


def test_flips_each_image_in_training_only():
    torch.manual_seed(0)
    batch = torch.arange(4, dtype=torch.uint8).view(1, 1, 1, 4).repeat(64, 1, 1, 1)
    flipped = d.prepare(batch, Data(flip=True), "mixture", train=True)[:, 0, 0, 0] > 0
    assert 15 < flipped.sum() < 49
    assert torch.equal(d.prepare(batch, Data(flip=True), "mixture", train=False), batch / 255)
    assert torch.equal(d.prepare(batch, Data(), "mixture", train=True), batch / 255)


def test_prepare_refuses_what_it_does_not_know():
    with error(UsageError, "'mixtur'", "bernoulli, gaussian, mixture", "did you mean 'mixture'"):
        d.prepare(torch.zeros(1, 1, 4, 4, dtype=torch.uint8), Data(), "mixtur", train=True)
    with pytest.raises(TypeError, match="uint8"):
        d.prepare(torch.zeros(1, 1, 4, 4), Data(), "mixture", train=True)


# -------------------------------------------------------------------------------------------------------- read_image


def test_plain_images_are_read_exactly(tmp_path):
    colour, grey = picture(5, 7), picture(5, 7, 1)
    assert np.array_equal(d.read_image(write(tmp_path / "c.png", colour), Data()), colour.transpose(2, 0, 1))
    assert np.array_equal(d.read_image(str(write(tmp_path / "g.bmp", grey)), Data()), grey[None])


def test_channels_are_converted(tmp_path):
    grey = picture(5, 7, 1)
    x = d.read_image(write(tmp_path / "g.png", grey), Data(channels=3))
    assert x.shape == (3, 5, 7) and all(np.array_equal(plane, grey) for plane in x)
    colour = picture(5, 7)
    x = d.read_image(write(tmp_path / "c.png", colour), Data(channels=1))
    expected = np.array(Image.fromarray(colour).convert("L")).astype(int)
    assert x.shape == (1, 5, 7) and abs(x[0].numpy() - expected).max() <= 1 and (x[0].numpy() == expected).mean() > 0.9
    white = d.read_image(write(tmp_path / "w.png", np.full((4, 4, 3), 255, np.uint8)), Data(channels=1))
    assert white.min() == 255


def test_unusual_modes_become_sensible(tmp_path):
    sixteen = np.array([[0, 257 * 100, 65535, 257 * 7 + 1]] * 4, dtype=np.uint16)
    for name in ("g.png", "g.tif"):
        assert d.read_image(write(tmp_path / name, sixteen), Data())[0, 0].tolist() == [0, 100, 255, 7]

    transparent = np.zeros((4, 4, 4), np.uint8)
    transparent[0] = [10, 20, 30, 255]
    x = d.read_image(write(tmp_path / "a.png", transparent), Data())
    assert x[:, 0, 0].tolist() == [10, 20, 30] and x[:, 1, 0].tolist() == [255, 255, 255]
    assert d.read_image(write(tmp_path / "la.png", np.zeros((4, 4, 2), np.uint8)), Data()).unique().tolist() == [255]

    colour = np.zeros((4, 4, 3), np.uint8)
    colour[:2] = [204, 0, 102]  # of the web palette
    Image.fromarray(colour).convert("P").save(tmp_path / "p.gif")
    assert np.array_equal(d.read_image(tmp_path / "p.gif", Data()), colour.transpose(2, 0, 1))
    Image.fromarray(colour).convert("CMYK").save(tmp_path / "cmyk.tif")
    assert np.array_equal(d.read_image(tmp_path / "cmyk.tif", Data()), colour.transpose(2, 0, 1))
    Image.fromarray(np.eye(4, dtype=bool)).save(tmp_path / "bits.png")
    assert np.array_equal(d.read_image(tmp_path / "bits.png", Data())[0], np.eye(4) * 255)


def test_photographs_stand_upright(tmp_path):
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise: left becomes top
    write(tmp_path / "a.jpg", pixels, exif=exif, quality=95)
    x = d.read_image(tmp_path / "a.jpg", Data())
    assert x.shape == (3, 32, 16) and x[:, 4].min() > 200 and x[:, -4].max() < 50
    write(tmp_path / "b.png", np.zeros((32, 16, 3), np.uint8))
    assert d.load(Data(source="folder", path=str(tmp_path)), "train").shape == (3, 32, 16)  # headers agree with it


def test_crop_then_short_side_then_middle_square(tmp_path):
    wide = np.zeros((8, 24), np.uint8)
    wide[:, 8:16] = 200
    path = write(tmp_path / "w.png", wide)
    assert d.read_image(path, Data(size=8))[0].eq(200).all()  # the middle, its scale kept
    assert d.read_image(path, Data(size=16)).shape == (1, 16, 16)
    assert d.read_image(path, Data(size=4)).shape == (1, 4, 4)
    assert d.read_image(path, Data()).shape == (1, 8, 24)
    cropped = d.read_image(path, Data(crop=6))
    assert np.array_equal(cropped[0], wide[1:7, 9:15])
    assert d.read_image(path, Data(crop=8, size=4)).eq(200).all()
    with error(HebmError, path, "24x8", "data.crop 9", "at most 8"):
        d.read_image(path, Data(crop=9))


def test_shrinking_is_antialiased(tmp_path):
    comb = np.zeros((64, 64), np.uint8)
    comb[:, ::8] = 255
    x = d.read_image(write(tmp_path / "s.png", comb), Data(size=8))
    assert abs(x[..., 1:-1].float() - 255 / 8).max() < 2  # without it, the teeth are missed


@pytest.mark.parametrize("content", [b"", b"these are words", b"\x89PNG\r\n\x1a\n" + b"x" * 50])
def test_a_file_that_is_no_image_is_named(tmp_path, content):
    path = tmp_path / "odd.png"
    path.write_bytes(content)
    with error(HebmError, path, "cannot be read as an image"):
        d.read_image(path, Data())


def test_a_cut_off_or_absent_file_is_named(tmp_path):
    path = write(tmp_path / "cut.png", picture(64, 64))
    path.write_bytes(path.read_bytes()[:3000])
    with error(HebmError, path, "cannot be read as an image"):
        d.read_image(path, Data())
    with error(HebmError, tmp_path / "none.png", "does not exist"):
        d.read_image(tmp_path / "none.png", Data())
    with error(HebmError, "floating-point"):
        d.read_image(write(tmp_path / "f.tif", np.ones((4, 4), np.float32)), Data())


# ------------------------------------------------------------------------------------------------------------- folder


def test_paths_are_sorted_images_at_any_depth(tmp_path):
    for name in ("b.png", "a.JPG", "deep/er/c.webp", ".hidden.png", ".cache/d.png"):
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "deep" / "loop").symlink_to(tmp_path)
    assert d.paths_in(tmp_path) == [tmp_path / "a.JPG", tmp_path / "b.png", tmp_path / "deep/er/c.webp"]
    (tmp_path / "empty").mkdir()
    with error(HebmError, "no images in", tmp_path / "empty", ".png"):
        d.paths_in(tmp_path / "empty")
    with error(HebmError, tmp_path / "absent", "does not exist"):
        d.paths_in(tmp_path / "absent")
    with error(HebmError, "is not a folder"):
        d.paths_in(tmp_path / "b.png")


def test_a_flat_folder_holds_out_a_fixed_share(tmp_path):
    for i in range(10):
        write(tmp_path / f"{i}.png", np.full((6, 6), i, np.uint8))
    settings = Data(source="folder", path=str(tmp_path), test_fraction=0.3)
    train, test = d.load(settings, "train"), d.load(settings, "test")
    assert (len(train), len(test), train.shape, train.labels, train.classes) == (7, 3, (1, 6, 6), None, None)
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
    with error(HebmError, "a.png is 8x8", "c.png is 12x9", "--set data.size="):
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
    write(tmp_path / "deep" / "train" / "cat" / "b.png", picture(4, 4))
    with error(HebmError, "too deep"):
        load(path=str(tmp_path / "deep"))


@pytest.mark.parametrize("keep", [True, False])
def test_files_damaged_while_training_are_named_and_kept_ones_not_read_again(tmp_path, monkeypatch, keep):
    monkeypatch.setattr(d, "CACHE_BYTES", 10**6 if keep else 0)
    for i in range(6):
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


# -------------------------------------------------------------------------------------------------------------- array


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
    assert (len(train), len(test)) == (shape[0] - round(0.3 * shape[0]), round(0.3 * shape[0]))
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
        ({"x": np.zeros((5, 8, 8), np.uint8), "y": np.arange(-1, 4)}, ["from -1 to 3", "at least 0"]),
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


# ------------------------------------------------------------------------------------------------ torchvision and LSUN


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

    name, folder, files = d.TORCHVISION[source]
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


def test_absent_lsun_says_where_to_put_it(tmp_path):
    with error(HebmError, tmp_path / "towr_train_lmdb", "towr_train_lmdb.zip", "did you mean 'tower'"):
        d.load(Data(source="lsun", path=str(tmp_path), category="towr", size=16), "train")
    (tmp_path / "tower_val_lmdb").mkdir()
    (tmp_path / "tower_val_lmdb" / "data.mdb").write_bytes(b"words" * 5000)
    with error(HebmError, tmp_path / "tower_val_lmdb", "LMDB"):
        d.load(Data(source="lsun", path=str(tmp_path), category="tower", size=16), "test")


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="'val'"):
        d.load(Data(), "val")
