"""The one reader of image files: every mode and size, and the sentences for what is none."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from pictures import error, picture, write
from PIL import Image

from hebmtool import data as d
from hebmtool.data import decode
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


def png(depth, colour, values, transparent=()):
    """A PNG of one row, in what Pillow does not write; values and what is transparent by channel."""
    samples = np.asarray(values, ">u2" if depth == 16 else "u1")

    def chunk(kind, content):
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    head = struct.pack(">IIBBBBB", len(samples), 1, depth, colour, 0, 0, 0)
    parts = chunk(b"IHDR", head)
    if len(transparent):
        parts += chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))
    return b"\x89PNG\r\n\x1a\n" + parts + chunk(b"IDAT", zlib.compress(b"\0" + samples.tobytes())) + chunk(b"IEND", b"")


def tiff(values, **tags):
    """A TIFF of one row of grey, with these tags' values (baseline TIFF 6.0)."""
    values = np.asarray(values)
    known = {"bits": 258, "photometric": 262, "kind": 339}
    entries = {256: len(values), 257: 1, 258: values.itemsize * 8, 259: 1, 262: 1, 273: 0, 277: 1, 278: 1}
    entries |= {279: values.nbytes, 339: {"u": 1, "i": 2, "f": 3}[values.dtype.kind]}
    entries |= {known[name]: value for name, value in tags.items()}
    entries[273] = 8 + 2 + 12 * len(entries) + 4  # where the pixels are
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(entries.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + b"\0\0\0\0" + values.tobytes()


GREY, COLOUR, GREY_ALPHA = 0, 2, 4  # of PNG


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (png(16, GREY, [0, 257, 2570, 65535], [2570]), [0, 1, 255, 255]),
        (png(16, GREY_ALPHA, [[0, 65535], [65535, 65535], [2570, 0]]), [0, 255, 255]),
        (tiff(np.uint16([0, 257, 65535])), [0, 1, 255]),
        (tiff(np.uint16([0, 257, 65535]), photometric=0), [255, 254, 0]),
        (tiff(np.uint8([0, 1, 255]), photometric=0), [255, 254, 0]),
        (b"P5 3 1 1023\n" + struct.pack(">3H", 0, 514, 1023), [0, 128, 255]),
    ],
)
def test_grey_of_more_than_8_bits_is_right(tmp_path, content, expected):
    path = tmp_path / "odd.png"  # whatever it is called
    path.write_bytes(content)
    x = d.read_image(path, Data())
    assert x.shape[0] == 1 and x.flatten().tolist() == expected


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (png(16, COLOUR, [[0, 1, 2], [3, 4, 5]], [0, 0, 0]), "16-bit colours is transparent"),
        (tiff(np.uint32([0, 1, 2])), "32 bits"),
        (tiff(np.int32([0, 1, 2])), "signed numbers of 32 bits"),
        (tiff(np.int16([0, 1, 2])), "signed numbers of 16 bits"),
        (tiff(np.int8([0, 1, 2])), "signed numbers of 8 bits"),
        (tiff(np.uint8([0, 1, 2]), bits=12), "12 bits"),
        (tiff(np.float32([0, 1, 2])), "floating-point"),
    ],
)
def test_numbers_of_unknown_range_are_refused(tmp_path, content, words):
    path = tmp_path / "odd.tif"
    path.write_bytes(content)
    with error(HebmError, path, words):
        d.read_image(path, Data())


@pytest.mark.parametrize("kind", ["EPS", "ICNS", "TGA", "JPEG2000", "PCX", "ICO"])
def test_only_formats_that_are_named_are_opened(tmp_path, kind):
    path = tmp_path / "a.png"
    Image.fromarray(picture(32, 32)).save(path, kind)
    with error(HebmError, path, "none in the formats PNG, JPEG"):
        d.read_image(path, Data())


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", tmp_path, Path("/dev/zero")):
        with error(HebmError, path, "no regular file"):
            d.read_image(path, Data())


def test_folders_linked_in_circles_are_seen_once(tmp_path):
    for name in "abc":
        write(tmp_path / name / f"{name}.png", picture(4, 4))
        for other in "abc":
            (tmp_path / name / f"to-{other}").symlink_to(tmp_path / other)
    expected = [tmp_path / name / f"{name}.png" for name in "abc"]
    assert d.paths_in(tmp_path) == expected
    assert sorted(path.name for path in d.paths_in(tmp_path / "b")) == [path.name for path in expected]
    (tmp_path / "a" / "self").symlink_to("self")
    assert d.paths_in(tmp_path) == expected


def test_there_is_a_limit_of_pixels(tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "PIXELS", 64 * 64)
    monkeypatch.setattr(decode, "BAND", 7 * 128)  # what is converted in parts is the same
    many = np.zeros((96, 128, 3), np.uint8)
    many[:, 64:] = [200, 100, 50]
    big, photo = write(tmp_path / "big.png", many), write(tmp_path / "photo.jpg", many, quality=95)
    with error(HebmError, big, "128x96 pixels", "no more than 4,096"):
        d.read_image(big, Data(size=32))
    for settings in (Data(), Data(size=64), Data(crop=32, size=16)):  # what would then be too small, or another part
        with error(HebmError, photo, "no more than 4,096"):
            d.read_image(photo, settings)
    x = d.read_image(photo, Data(size=48))
    assert x.shape == (3, 48, 48) and abs(x[:, 24, -4].float() - x.new_tensor([200, 100, 50])).max() < 8
    assert d.read_image(photo, Data(), shrink=True).shape == (3, 48, 64)
    small = write(tmp_path / "small.png", picture(64, 64))
    assert np.array_equal(d.read_image(small, Data()), picture(64, 64).transpose(2, 0, 1))
    assert np.array_equal(d.read_image(small, Data(channels=1)).shape, (1, 64, 64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with error(HebmError, big, "more than 4,096 pixels"):
        d.read_image(big, Data())
