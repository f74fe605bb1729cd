"""Where an image is cropped: in the middle, at a place of the recipe's, or at random in training."""

import numpy as np
import pytest
import torch
from pictures import error

from hebmtool import data as d
from hebmtool import recipe
from hebmtool.errors import HebmError, UsageError
from hebmtool.recipe import Data

H, W = 40, 30
# Every pixel says where it is.
PLACES = torch.stack([torch.arange(H)[:, None].expand(H, W), torch.arange(W).expand(H, W), torch.zeros(H, W)])


@pytest.fixture
def array(tmp_path):
    np.savez(tmp_path / "images.npz", images=PLACES.to(torch.uint8).permute(1, 2, 0).expand(20, H, W, 3).numpy())
    return {"source": "array", "path": str(tmp_path / "images.npz")}


def corner(x) -> list[int]:
    return x[..., :2, 0, 0].tolist()


def test_a_crop_lies_where_it_is_told(array):
    data = Data(**array, crop=16, crop_at=[21, 3])
    image = d.load(data, "test").batch([0])[0]
    assert image.shape == (3, 16, 16) and corner(image) == [21, 3]
    assert corner(d.load(Data(**array, crop=16), "test").batch([0])[0]) == [12, 7]
    with error(HebmError, "the square of side 16 at data.crop_at [21, 15] (top, left) reaches beyond it"):
        d.load(Data(**array, crop=16, crop_at=[21, 15]), "test").batch([0])


def test_a_file_is_cropped_there_and_one_that_is_too_small_in_the_middle(tmp_path):
    from PIL import Image

    Image.fromarray(PLACES.to(torch.uint8).permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    data = Data(crop=16, crop_at=[21, 3])
    assert corner(d.read_image(tmp_path / "a.png", data)) == [21, 3]
    whole = PLACES.to(torch.uint8)[None]
    assert corner(d.fit_to(whole, (3, 16, 16), data)[0]) == [21, 3]
    # It ends before the square does: any image is taken, its middle where it must be.
    assert corner(d.fit_to(whole[:, :, :30], (3, 16, 16), data)[0]) == [7, 7]


def test_training_sees_a_square_at_random_and_testing_the_middle(array):
    data = Data(**array, size=W, random_crop=True)
    images = d.load(data, "train")
    assert images.shape == (3, W, W)
    indices = [0, 1, 2] * 30
    torch.manual_seed(0)
    seen = images.seen(indices)
    tops = {corner(x)[0] for x in seen}
    assert tops == set(range(H - W + 1)) and {corner(x)[1] for x in seen} == {0}
    torch.manual_seed(0)
    assert torch.equal(images.seen(indices), seen)
    assert corner(images.batch([0])[0]) == corner(images.subset([3]).batch([0])[0]) == [5, 0]
    assert len({corner(x)[0] for x in images.subset([3]).seen([0] * 30)}) > 3
    assert torch.equal(images.batch([0]), d.load(Data(**array, size=W), "train").batch([0]))


def test_without_random_crops_nothing_is_drawn(array):
    images = d.load(Data(**array, size=W), "train")
    before = torch.get_rng_state()
    assert torch.equal(images.seen([1, 2]), images.batch([1, 2]))
    assert torch.equal(torch.get_rng_state(), before)


def test_files_are_cropped_at_random_too(tmp_path):
    from PIL import Image

    for i in range(4):
        Image.fromarray(PLACES.to(torch.uint8).permute(1, 2, 0).numpy()).save(tmp_path / f"{i}.png")
    images = d.load(Data(source="folder", path=str(tmp_path), size=W, random_crop=True), "train")
    assert len({corner(x)[0] for x in images.seen([0, 1] * 20)}) > 5


@pytest.mark.parametrize(
    "keys, said",
    [
        ({"crop_at": [0, 0]}, "data.crop_at says where the crop lies, but there is none"),
        ({"random_crop": True}, "data.random_crop cuts images that data.size has resized, and there is none"),
        ({"random_crop": True, "size": 8, "missing": 0.5}, "data.random_crop moves images and data.missing does not"),
        ({"crop": 8, "crop_at": [1]}, "data.crop_at"),
    ],
)
def test_crops_that_do_not_fit_together_are_refused(keys, said):
    with error(UsageError, said):
        recipe.from_dict({"data": keys, "prior": {"kind": "flow"}})
