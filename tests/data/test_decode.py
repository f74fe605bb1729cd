"""The one reader of image files: every mode and size, and the sentences for what is none."""

import numpy as np
import pytest
from pictures import error, picture, write
from PIL import Image

from hebmtool import data as d
from hebmtool.errors import HebmError
from hebmtool.recipe import Data


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
