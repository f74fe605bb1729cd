"""Images of any shape from wherever a user names them; classes left out."""

import tracemalloc

import pytest
import torch
from pictures import grey
from PIL import Image

from hebmtool import data, recipe
from hebmtool.data import anywhere
from hebmtool.data.decode import fit


def test_read_takes_files_folders_and_arrays(imgs, tmp_path):
    failed = []
    paths = [
        imgs,
        tmp_path / "set.npz",
        imgs / "a.png",
        tmp_path / "absent.png",
        tmp_path / "set.npy",
        tmp_path / "x.npz",
    ]
    found = list(anywhere.read(map(str, paths), recipe.Recipe(name="x"), (1, 8, 8), failed.append))
    names = [name.removeprefix(f"{tmp_path}/") for name, _ in found]
    inside = ["imgs/a.png", "imgs/deep/b.jpg", "imgs/deep/er/c.png"]
    assert names == [*inside, "set.npz#0", "set.npz#1", "imgs/a.png", "set.npy#0", "set.npy#1", "set.npy#2"]
    assert all(x.shape == (1, 8, 8) and x.dtype == torch.uint8 for _, x in found)
    assert torch.equal(found[0][1], grey(1)[0]) and torch.equal(found[-1][1], grey(3)[2])
    assert len(failed) == 3
    assert all(name in str(error) for name, error in zip(("bad.png", "absent.png", "x.npz"), failed, strict=True))


def test_an_empty_folder_is_a_failure(tmp_path):
    failed = []
    assert list(anywhere.read([str(tmp_path)], recipe.Recipe(name="x"), (1, 8, 8), failed.append)) == []
    assert "no images" in str(failed[0])


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 6, 10), (3, 12, 5)])
def test_any_image_is_brought_to_the_runs_shape(shape):
    for size in ((3, 8, 8), (1, 40, 7), (3, 5, 33)):
        assert data.fit_to(grey(2, size), shape, recipe.Data(crop=12)).shape == (2, *shape)
    # What the recipe itself would make of an image, where it can.
    config, x = recipe.Data(crop=20, size=8, channels=1), grey(2, (3, 24, 30))
    assert torch.equal(data.fit_to(x, (1, 8, 8), config), fit(x, config))


def test_reading_keeps_nothing(tmp_path):
    image = tmp_path / "big.png"
    Image.fromarray(grey(1, (1, 300, 300))[0, 0].numpy()).save(image)  # 90 kB decoded
    images = anywhere.read([str(image)] * 80, recipe.Recipe(name="x"), (1, 8, 8), pytest.fail)
    next(images)
    tracemalloc.start()
    for _ in images:
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * 90_000
