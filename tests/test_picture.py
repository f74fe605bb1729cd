"""Pictures: geometry, exact pixels, colours, and files that are whole or not there."""

import io
import os

import numpy as np
import pytest
import torch
from PIL import Image

from hebmtool import picture
from hebmtool.errors import HebmError
from hebmtool.picture import GAP, PAPER


def tile(canvas: Image.Image, row: int, column: int, side: int) -> np.ndarray:
    """The pixels [side, side, 3] of one cell."""
    pixels, pitch = np.asarray(canvas), side + GAP
    y, x = GAP + row * pitch, GAP + column * pitch
    return pixels[y : y + side, x : x + side]


def random_images(n, channels=1, side=8):
    return torch.randint(256, (n, channels, side, side), dtype=torch.uint8)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_to_uint8_rounds_and_clamps():
    values = torch.tensor([-1.0, 0.0, 0.4 / 255, 0.6 / 255, 0.5, 254.6 / 255, 1.0, 7.0])
    assert picture.to_uint8(values).tolist() == [0, 0, 0, 1, 128, 255, 255, 255]
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(picture.to_uint8(every.float() / 255), every)


def test_one_image_keeps_its_pixels_and_colours():
    grey, colour = random_images(1)[0], random_images(1, 3)[0]
    assert picture.to_pil(grey).mode == "L" and picture.to_pil(colour).mode == "RGB"
    assert np.array_equal(np.asarray(picture.to_pil(grey)), grey[0].numpy())
    assert np.array_equal(np.asarray(picture.to_pil(colour)), colour.permute(1, 2, 0).numpy())
    assert np.array_equal(np.asarray(picture.to_pil(grey.float() / 255)), grey[0].numpy())


@pytest.mark.parametrize(
    ("n", "columns", "rows_found", "columns_found"),
    [(1, None, 1, 1), (9, None, 3, 3), (10, None, 3, 4), (5, 2, 3, 2), (3, 5, 1, 5), (2, None, 1, 2)],
)
def test_grid_geometry(n, columns, rows_found, columns_found):
    canvas = picture.grid(random_images(n, side=64), columns)
    assert canvas.size == (columns_found * (64 + GAP) + GAP, rows_found * (64 + GAP) + GAP)


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_shows_every_pixel_and_paper_elsewhere(channels):
    images = random_images(5, channels, side=50)
    canvas = picture.grid(images, 3)
    assert canvas.mode == "RGB"
    for i, image in enumerate(images):
        expected = image.expand(3, -1, -1).permute(1, 2, 0).numpy()
        assert np.array_equal(tile(canvas, i // 3, i % 3, 50), expected)
    assert (tile(canvas, 1, 2, 50) == PAPER).all()  # no sixth image
    pixels = np.asarray(canvas)
    for gap in (pixels[:GAP], pixels[:, :GAP], pixels[50 + GAP : 50 + 2 * GAP], pixels[-GAP:], pixels[:, -GAP:]):
        assert (gap == PAPER).all()


def test_grid_enlarges_tiny_images_by_whole_pixels():
    images = random_images(2)
    canvas = picture.grid(images, 2)
    for i in range(2):
        cell = tile(canvas, 0, i, 48)
        assert np.array_equal(cell[..., 0], images[i, 0].numpy().repeat(6, 0).repeat(6, 1))


def test_grid_takes_images_in_the_unit_interval_too():
    images = random_images(4)
    assert np.array_equal(np.asarray(picture.grid(images.float() / 255)), np.asarray(picture.grid(images)))


def test_panels_hold_each_grid_below_its_title():
    left, right = random_images(4, side=48), random_images(4, side=48)
    canvas = picture.panels([("one\ntwo lines", left), ("a title much wider than its grid", right)], 2)
    pixels = np.asarray(canvas)

    def place(part: np.ndarray) -> tuple[int, int]:
        height, width = part.shape[:2]
        for y in range(pixels.shape[0] - height + 1):
            for x in range(pixels.shape[1] - width + 1):
                if (pixels[y, x + GAP] == PAPER).all() and np.array_equal(pixels[y : y + height, x : x + width], part):
                    return y, x
        raise AssertionError("the grid is not in the picture")

    (y_left, x_left), (y_right, x_right) = (place(np.asarray(picture.grid(part, 2))) for part in (left, right))
    assert y_left == y_right and x_right >= x_left + picture.grid(left, 2).width
    header = pixels[:y_left]
    assert (header[:, :x_right] < 128).any() and (header[:, x_right:] < 128).any()  # ink above both
    assert (pixels[:, -1] == PAPER).all()  # the wide title is not cut


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_are_laid_out_as_data_sets_are(channels):
    images = random_images(2, channels)
    array = picture.to_nhwc(images)
    assert array.dtype == np.uint8 and array.shape == ((2, 8, 8) if channels == 1 else (2, 8, 8, 3))
    assert np.array_equal(array.reshape(2, 8, 8, channels), images.permute(0, 2, 3, 1).numpy())


# Files


def test_saved_picture_reads_back_in_a_new_folder(tmp_path):
    canvas = picture.grid(random_images(3))
    picture.save(canvas, tmp_path / "a" / "b" / "grid.png")
    with Image.open(tmp_path / "a" / "b" / "grid.png") as found:
        assert found.format == "PNG" and np.array_equal(np.asarray(found), np.asarray(canvas))
    assert names(tmp_path / "a" / "b") == ["grid.png"]
    with Image.open(io.BytesIO(picture.to_png(canvas))) as found:
        assert np.array_equal(np.asarray(found), np.asarray(canvas))


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "no space left"), KeyboardInterrupt()])
def test_a_failed_save_leaves_the_old_file_and_no_temporary(tmp_path, monkeypatch, call, error):
    path = tmp_path / "grid.png"
    path.write_bytes(b"precious")

    def fail(*_):
        raise error

    monkeypatch.setattr(os, call, fail)
    expected = HebmError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as raised:
        picture.save(picture.grid(random_images(2)), path)
    monkeypatch.undo()
    if expected is HebmError:
        assert str(path) in str(raised.value) and "no space left" in str(raised.value)
    assert names(tmp_path) == ["grid.png"] and path.read_bytes() == b"precious"


def test_a_folder_that_is_a_file_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HebmError, match="could not save"):
        picture.save(picture.grid(random_images(1)), tmp_path / "file" / "grid.png")
