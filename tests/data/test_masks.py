"""Masks: which pixels are hidden, in words and from files, and that every image meets its own."""

import numpy as np
import pytest
import torch
from PIL import Image

from hebmtool import data, recipe
from hebmtool.data import masks
from hebmtool.errors import HebmError, UsageError

SHAPE = (1, 8, 8)


def share(words, shape=SHAPE):
    return masks.parse(words, shape)([0])[0, 0]


def test_masks_in_words():
    for word, rows, columns in (
        ("left", slice(None), slice(0, 4)),
        ("right", slice(None), slice(4, 8)),
        ("top", slice(0, 4), slice(None)),
        ("bottom", slice(4, 8), slice(None)),
        ("center:0.5", slice(2, 6), slice(2, 6)),
        ("center", slice(2, 6), slice(2, 6)),
    ):
        expected = torch.zeros(8, 8, dtype=torch.bool)
        expected[rows, columns] = True
        assert torch.equal(share(word), expected), word
    assert torch.equal(share("right", (3, 4, 5)), share("left", (3, 4, 5)).flip(1))
    drawn = masks.parse("random:0.3", (1, 64, 64), seed=1)(range(5))
    assert drawn.shape == (5, 1, 64, 64) and drawn.float().mean().item() == pytest.approx(0.3, abs=0.02)
    # The mask of an image is its own, whatever it is drawn with.
    assert torch.equal(masks.parse("random:0.3", (1, 64, 64), seed=1)([3]), drawn[3:4])
    assert not torch.equal(drawn[0], drawn[1])


def test_masks_from_files(tmp_path):
    one = np.zeros((8, 8), dtype=np.uint8)
    one[2:5, 1:3] = 255
    Image.fromarray(one).save(tmp_path / "m.png")
    np.save(tmp_path / "m.npy", one)
    np.savez(tmp_path / "m.npz", np.stack([one, one.T]))
    (tmp_path / "folder").mkdir()
    for i, each in enumerate((one, one.T)):
        Image.fromarray(each).convert("RGB").save(tmp_path / f"folder/{i}.png")
    for name in ("m.png", "m.npy"):
        assert np.array_equal(share(str(tmp_path / name)).numpy(), one > 0)
    for name in ("m.npz", "folder"):
        found = masks.parse(str(tmp_path / name), SHAPE)([1, 0])
        assert np.array_equal(found[0, 0].numpy(), one.T > 0) and np.array_equal(found[1, 0].numpy(), one > 0)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.ones((8, 8)), "hides every pixel"),
        (np.zeros((8, 8)), "hides no pixel"),
        (np.stack([np.eye(8), np.ones((8, 8))]), "mask 1 of"),
        (np.eye(9), "is 9x9 pixels, but the images are 8x8"),
        (np.ones(8), "shape (8,)"),
        (np.array([["a"]]), "type <U1"),
    ],
)
def test_masks_that_cannot_be_used(tmp_path, array, words):
    np.save(tmp_path / "m.npy", array)
    with pytest.raises(HebmError) as caught:
        masks.parse(str(tmp_path / "m.npy"), SHAPE)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("centre:0.5", "did you mean 'center'"),
        ("left:0.3", "there is no mask 'left:0.3'"),
        ("center:1.5", "above 0 and below 1"),
        ("random:all", "above 0 and below 1"),
        ("center:0.01", "hides no pixel"),
        ("center:0.99", "hides every pixel"),
    ],
)
def test_words_that_are_no_masks(text, words):
    with pytest.raises(UsageError) as caught:
        masks.parse(text, SHAPE)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_missing_needs_as_many_masks_as_images(tmp_path):
    np.save(tmp_path / "m.npy", np.stack([np.eye(8)] * 3))
    config = recipe.Data(missing=str(tmp_path / "m.npy"))

    def images(n):
        return data.Images(n, SHAPE, lambda indices: torch.zeros(len(indices), *SHAPE, dtype=torch.uint8))

    assert masks.missing(config, images(3), 0)([2]).sum() == 8
    with pytest.raises(HebmError, match="holds 3 masks for 4 images"):
        masks.missing(config, images(4), 0)
    assert masks.missing(recipe.Data(), images(4), 0) is None


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("source", ["folder", "array"])
def test_every_image_meets_its_own_mask(tmp_path, source, split):
    """Image i is of grey 10 i and its mask hides i + 1 pixels, whatever a split takes and shuffles."""
    pixels = np.stack([np.full((8, 8), 10 * i, dtype=np.uint8) for i in range(12)])
    hiding = np.stack([np.arange(64).reshape(8, 8) <= i for i in range(12)])
    if source == "array":
        np.savez(tmp_path / "x.npz", **({"x_train": pixels, "x_test": pixels} if split else {"x": pixels}))
        np.save(tmp_path / "m.npy", hiding)
        where, path = "x.npz", "m.npy"
    else:
        for folder in ("m", "x/train", "x/test") if split else ("m", "x"):
            (tmp_path / folder).mkdir(parents=True)
            for i in range(12):
                array = 255 * hiding[i].astype(np.uint8) if folder == "m" else pixels[i]
                Image.fromarray(array).save(tmp_path / folder / f"{i:02d}.png")
        where, path = "x", "m"
    config = recipe.Data(source=source, path=str(tmp_path / where), missing=str(tmp_path / path), limit=7)
    images = data.load(config, "train")
    hidden = masks.missing(config, images, 0)
    assert len(images) == 7
    order = [6, 0, 3]
    assert torch.equal(hidden(order).sum((1, 2, 3)), images.batch(order)[:, 0, 0, 0].long() // 10 + 1)


def test_a_mask_under_another_name_is_refused(tmp_path):
    for folder, names in (("x", "abcd"), ("m", "efgh")):
        (tmp_path / folder).mkdir()
        for name in names:
            Image.fromarray(255 * np.eye(8, dtype=np.uint8)).save(tmp_path / folder / f"{name}.png")
    config = recipe.Data(source="folder", path=str(tmp_path / "x"), missing=str(tmp_path / "m"))
    with pytest.raises(HebmError, match=r"[efgh]\.png would be that of .*[abcd]\.png; give each mask the name"):
        masks.missing(config, data.load(config, "train"), 0)


@pytest.mark.parametrize("share", [1e-6, 1 - 1e-6])
def test_a_random_mask_hides_something_and_shows_something(share):
    found = masks.parse(f"random:{share}", SHAPE)(range(20)).flatten(1).sum(1)
    assert found.min() >= 1 and found.max() <= 63
