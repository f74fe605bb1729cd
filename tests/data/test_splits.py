"""What is held out stays so, whatever joins the set or leaves it; and folders that are splits are not classes."""

import numpy as np
import pytest
from pictures import error, picture, write

from hebmtool import data as d
from hebmtool.data import splits
from hebmtool.errors import HebmError
from hebmtool.recipe import Data

N = 60


def folder(path, how="hash", **keys):
    return Data(source="folder", path=str(path), test_fraction=0.3, hold_out=how, **keys)


def array(path, how="hash"):
    return Data(source="array", path=str(path), test_fraction=0.3, hold_out=how)


def of(settings):
    """Which images are of which split: by file or pixels."""
    both = [d.load(settings, split) for split in ("train", "test")]
    return [
        {(images.names[i] if images.names else images.batch([i]).numpy().tobytes()) for i in range(len(images))}
        for images in both
    ]


@pytest.fixture
def flat(tmp_path):
    for i in range(N):
        write(tmp_path / "set" / f"{i}.png", np.full((4, 4), i, np.uint8))
    return tmp_path / "set"


def test_files_that_join_or_leave_move_no_other(flat):
    train, test = of(folder(flat))
    assert len(train) + len(test) == N and 8 <= len(test) <= 30
    (flat / "7.png").unlink()
    (flat / "30.png").unlink()
    for i in range(N, 2 * N):
        write(flat / f"{i}.png", np.full((4, 4), i, np.uint8))
    now = of(folder(flat))
    gone = {str(flat / "7.png"), str(flat / "30.png")}
    assert train - gone <= now[0] and test - gone <= now[1] and len(now[1]) > len(test)


def test_by_order_they_are_dealt_anew(flat):
    """As hebmtool 0.1.0 held out, which its runs keep."""
    train, test = of(folder(flat, "order"))
    assert len(test) == round(0.3 * N)
    (flat / "7.png").unlink()
    now = of(folder(flat, "order"))
    assert train & now[1] or test & now[0]


def test_it_is_the_name_within_the_folder_that_counts(flat, tmp_path):
    before = [{name.rpartition("/")[2] for name in names} for names in of(folder(flat))]
    flat.rename(tmp_path / "moved")
    assert before == [{name.rpartition("/")[2] for name in names} for names in of(folder(tmp_path / "moved"))]


@pytest.mark.parametrize("ending", ["npy", "npz"])
def test_rows_that_join_leave_or_change_places_move_no_other(tmp_path, ending):
    pixels = np.random.default_rng(0).integers(0, 256, (2 * N, 4, 4), dtype=np.uint8)

    def saved(rows):
        path = tmp_path / f"set.{ending}"
        np.save(path, rows) if ending == "npy" else np.savez(path, x=rows)
        return of(array(path))

    train, test = saved(pixels[:N])
    assert len(train) + len(test) == N and 8 <= len(test) <= 30
    assert saved(pixels[:N][::-1]) == [train, test]
    gone = {pixels[3].tobytes()}
    now = saved(np.delete(pixels, 3, axis=0))
    assert train - gone <= now[0] and test - gone <= now[1]


def test_equal_rows_are_of_one_split(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (N, 4, 4), dtype=np.uint8)
    np.save(tmp_path / "set.npy", np.concatenate([pixels, pixels]))
    train, test = of(array(tmp_path / "set.npy"))
    assert not train & test


@pytest.mark.parametrize("how", ["hash", "order"])
@pytest.mark.parametrize("n", [2, 3, 5])
def test_each_split_has_an_image(tmp_path, how, n):
    for fraction in (0.001, 0.999):
        np.save(tmp_path / "set.npy", np.zeros((n, 4, 4), np.uint8))
        settings = array(tmp_path / "set.npy", how).model_copy(update={"test_fraction": fraction})
        sizes = [len(d.load(settings, split)) for split in ("train", "test")]
        assert min(sizes) >= 1 and sum(sizes) == n


def test_the_embedded_digits_stay_as_they_were():
    by_hash, by_order = (d.load(Data(hold_out=how), "test").numbers.tolist() for how in ("hash", "order"))
    assert by_hash == by_order and by_hash[:4] == splits.permutation(1797, 0, 0)[:4].tolist()


# Layouts


@pytest.mark.parametrize(
    ("train", "held"),
    [("train", "val"), ("Train", "VAL"), ("training", "valid"), ("train", "validation"), ("TRAIN", "Test")],
)
@pytest.mark.parametrize("classes", [False, True])
def test_folders_called_as_splits_are_splits(tmp_path, train, held, classes):
    for part, count in ((train, 5), (held, 3)):
        for i in range(count):
            write(tmp_path / part / ("cat" if classes else "") / f"{i}.png", picture(4, 4, 1, seed=i))
    (tmp_path / "annotations").mkdir()  # without images
    found = [d.load(Data(source="folder", path=str(tmp_path)), split) for split in ("train", "test")]
    assert [len(images) for images in found] == [5, 3]
    assert all(images.classes == (["cat"] if classes else None) for images in found)


def test_of_three_splits_the_test_split_is_tested_on(tmp_path):
    for part, count in (("train", 5), ("val", 3), ("test", 2)):
        for i in range(count):
            write(tmp_path / part / f"{i}.png", picture(4, 4, 1, seed=i))
    found = [len(d.load(Data(source="folder", path=str(tmp_path)), split)) for split in ("train", "test")]
    assert found == [5, 2]


@pytest.mark.parametrize(
    "parts",
    [
        ("train",),
        ("test", "val"),
        ("train", "plane", "car"),
        ("train", "test", "car"),
        ("train", "Train", "test"),
        ("train", "val", "valid"),
        ("Validation", "cat"),
    ],
)
def test_what_could_be_either_is_refused_and_both_are_named(tmp_path, parts):
    for part in parts:
        write(tmp_path / part / "a.png", picture(4, 4, 1))
    if len(list(tmp_path.iterdir())) < len(parts):
        pytest.skip("this filesystem does not tell cases apart")
    with error(HebmError, "can be read in two ways", "as splits", "as classes", *(f"{part}/" for part in parts)):
        d.load(Data(source="folder", path=str(tmp_path)), "train")


def test_classes_are_classes(tmp_path):
    for part in ("cat", "trains", "contest", "value"):
        for i in range(3):
            write(tmp_path / part / f"{i}.png", picture(4, 4, 1, seed=i))
    found = d.load(Data(source="folder", path=str(tmp_path)), "train")
    assert found.classes == ["cat", "contest", "trains", "value"]


def test_runs_of_0_1_0_read_folders_as_they_did(tmp_path):
    for part in ("train", "val"):
        for i in range(4):
            write(tmp_path / part / f"{i}.png", picture(4, 4, 1, seed=i))
    assert d.load(folder(tmp_path, "order"), "train").classes == ["train", "val"]
